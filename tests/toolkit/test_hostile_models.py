"""Forged models, checkpoints and encoders: each is refused with a short message, and without much memory."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
import random
import re
import shutil
import struct
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import seqcls_fast as sf
from seqcls_fast import __main__
from seqcls_fast.toolkit import store
from seqcls_fast.toolkit.data.errors import seal
from seqcls_fast.toolkit.data.series import SeriesEncoder
from seqcls_fast.toolkit.data.text import TextEncoder
from seqcls_fast.toolkit.evaluation.decision import DecisionThreshold
from seqcls_fast.toolkit.training.checkpoint import CheckpointError, Checkpoints
from seqcls_fast.toolkit.training.resume import check_content
from support.corpora import sentences, waves
from support.interruptions import small
from support.memory import little_memory
from support.nonsense import GONE, NONSENSE, PYTHONS, places, put

pytest.importorskip("resource")  # of systems that have pipes and limits of memory

X, Y = sentences(0, 60)
CONFIG, WEIGHTS, COMMAND, SEARCH = store.CONFIG, store.WEIGHTS, store.COMMAND, store.SEARCH
Damage = Callable[[Path], None]
WRITES_COMPLEX = tuple(map(int, metadata.version("safetensors").split(".")[:2])) >= (0, 7)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models of texts and of series, with every file that their folders can hold."""
    folder = tmp_path_factory.mktemp("saved")
    text = sf.TextClassifier(hidden_size=4, embedding_dim=4, epochs=2, class_weight={"neg": 1.0, "pos": 2.0})
    text.fit(X, Y, validation=0.3)
    text.temperature_, text.threshold_ = 1.5, DecisionThreshold("pos", 0.5, "recall", 0.9, 0.5, 1.0, 40)
    settings = {"data": "data.csv", "hidden_size": 4, "class_weight": None}
    text.extra_ = {
        COMMAND: {
            "command": "seqcls-fast train data.csv", "settings": settings, "sha256": {"data.csv": "0" * 64},
            "rows": 42, "split": {"share": 0.3, "seed": 0, "rows": 18}, "ranks": 1, "threads": 1, "resumed": False,
            "device": "cpu", "versions": {"seqcls_fast": "0.1.0", "torch": "2.11"},
        },
        SEARCH: {"metric": "val_loss", "seed": 0, "saved": 1, "trials": [{"trial": 1, "settings": {"dropout": 0.1}}]},
    }  # fmt: skip
    text.save(folder / "text")
    sf.SeriesClassifier(hidden_size=4, epochs=1, pooling="attention").fit(*waves()).save(folder / "series")
    for name in ("text", "series"):
        load(folder / name)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture
def model(saved: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved["text"], tmp_path / "model"))


def load(folder: Path) -> Any:
    return (sf.SeriesClassifier if folder.name == "series" else sf.TextClassifier).load(folder)


# -- damages ----------------------------------------------------------------------------------------------------------


def change(*place: Any, to: Any = None, file: str = CONFIG) -> Damage:
    """As :func:`put`, in a JSON file."""

    def damage(folder: Path) -> None:
        whole = [json.loads((folder / file).read_text())]
        put(0, *place, to=to)(whole)
        (folder / file).write_text(json.dumps(whole[0]))

    return damage


def text_of(name: str, words: bytes | str) -> Damage:
    return lambda folder: (folder / name).write_bytes(words.encode() if isinstance(words, str) else words) and None


def parameter(**values: Any) -> Damage:
    return change("parameters", to=lambda parameters: parameters | values)


def reseal(folder: Path) -> None:
    """Makes the checksum fit, as an attacker can."""
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    change("sha256", to=digest)(folder)


def tensors(edit: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        edit(found)
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, folder / WEIGHTS)
        reseal(folder)

    return damage


def tensor(name: str, to: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    return tensors(lambda found: found.update({name: to(found[name])}))


def filled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def fill(old: torch.Tensor) -> torch.Tensor:
        new = old.clone()
        new.view(-1)[-1] = value
        return new

    return fill


def header(words: bytes, length: int | None = None, data: bytes = b"") -> Damage:
    def damage(folder: Path) -> None:
        size = len(words) if length is None else length
        (folder / WEIGHTS).write_bytes(struct.pack("<Q", size) + words + data)
        reseal(folder)

    return damage


def entry(name: str, **values: Any) -> Damage:
    """Changes shape, dtype or offsets of a tensor in the header, and leaves the data."""

    def damage(folder: Path) -> None:
        old = (folder / WEIGHTS).read_bytes()
        length = struct.unpack("<Q", old[:8])[0]
        content = json.loads(old[8 : 8 + length])
        content[name] = content.get(name, {}) | values
        header(json.dumps(content).encode(), data=old[8 + length :])(folder)

    return damage


def instead(name: str, make: Callable[[Path], Any]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


def sparse(name: str, size: int) -> Damage:
    """Makes the file that large without using space on the disk."""
    return lambda folder: os.truncate(folder / name, size)


def vocabulary(edit: Callable[[dict[str, Any]], Any]) -> Damage:
    """Replaces the encoder by one with a valid checksum."""

    def damage(folder: Path) -> None:
        def edited(text: str) -> str:
            content = json.loads(text)
            edit(content)
            fields = {name: content[name] for name in content if name not in ("kind", "version", "sha256")}
            return seal("TextEncoder", fields)

        change("encoder", to=edited)(folder)

    return damage


def both(one: Damage, other: Damage) -> Damage:
    def damage(folder: Path) -> None:
        one(folder)
        other(folder)

    return damage


def deep(levels: int = 100_000) -> str:
    return "[" * levels + "]" * levels


DAMAGES: dict[str, tuple[Damage, str]] = {
    # sizes in config.json that are not those of the weights
    **{
        f"num_layers {value}": (parameter(num_layers=value), "num_layers")
        for value in (10**9, 3000, 10**400, 0, -1, True, 1.0, "1", None, [1])
    },
    "num_layers 2": (parameter(num_layers=2), "no tensor model.encoder.weight_ih_l1"),
    **{
        f"{name} {value}": (parameter(**{name: value}), "")
        for name in ("hidden_size", "embedding_dim")
        for value in (10**8, 10**9, 2**31, 2**62, 2**63, 10**30, 10**400, 5, 0, -4, True, 4.0, "4", None)
    },
    "bidirectional": (parameter(bidirectional=False), r"model.head.weight: expected .* \(2, 4\) but got F32 \(2, 8\)"),
    "cell": (parameter(cell="lstm"), r"float32 \(16, 4\)"),
    "cell unknown": (parameter(cell="x" * 10_000), "cell: expected one of"),
    "cell a list": (parameter(cell=[]), ""),
    "pooling": (parameter(pooling="attention"), "no tensor model.attention.weight"),
    "dropout": (parameter(dropout=float("1e999")), "dropout"),
    "dropout text": (parameter(dropout="x"), ""),
    "weight_decay": (parameter(weight_decay="x"), "weight_decay: expected a number of at least 0 but got 'x'"),
    "warmup": (parameter(warmup=None), "warmup: expected a share of the steps, .* but got None"),
    "amp": (parameter(amp="yes"), "amp: expected a bool but got 'yes'"),
    "log_dir": (parameter(log_dir=5), "log_dir: expected"),
    "lowercase": (parameter(lowercase={"a": 1}), "lowercase: expected bool"),
    "learning_rate": (parameter(learning_rate="fast"), "learning_rate: expected"),
    "class_weight": (parameter(class_weight={"labels": ["neg"], "weights": ["x"]}), "class_weight: expected a weight"),
    "class_weight of others": (parameter(class_weight={"labels": ["x"], "weights": [1]}), "class_weight: expected lab"),
    "class_weight huge": (parameter(class_weight={"labels": ["neg"], "weights": [10**400]}), ""),
    "parameters nested": (parameter(log_dir=json.loads(deep(100))), "nested less deeply"),
    "parameter unknown": (parameter(evil="\x1b[2J" * 1000), "unexpected keyword"),
    # other fields of config.json
    "temperature 1e-320": (change("temperature", to=1e-320), "temperature: expected a number from 0.001"),
    **{
        f"temperature {value}": (change("temperature", to=value), "temperature: expected a number from 0.001")
        for value in (0, -1, 1e-4, 1e4, float("inf"), True, "1", None, [], 10**400)
    },
    "temperature NaN": (change("temperature", to=float("nan")), "but got NaN"),
    "classes None": (change("classes", to=[None, "pos"]), "classes: expected numbers, strings or tuples but got None"),
    "classes twice": (change("classes", to=["pos", "pos"]), "classes: expected at least two different"),
    "classes equal": (change("classes", to=[1, True]), "classes: expected at least two different"),
    "classes one": (change("classes", to=["pos"]), "classes: expected at least two different"),
    "classes many": (
        both(
            change(to=lambda config: config | {"classes": list(range(100_000)), "threshold": None}),
            parameter(class_weight=None),
        ),
        r"model.head.weight: expected .*\(100000, 8\)",
    ),
    "classes nested": (change("classes", to=["a", json.loads('{"tuple":[' * 300 + "]}" * 300)]), ""),
    "classes objects": (change("classes", to=["a", {"b": 1}]), "classes: expected numbers, strings or tuples"),
    "threshold": (change("threshold", "label", to="pink" * 1000), "threshold: expected one of the classes"),
    "history": (change("history", to="long"), "history: expected a list"),
    "history empty": (change("history", to=[]), "best_epoch: expected one of 0"),
    "history disordered": (change("history", to=lambda history: history[::-1]), "expected the epochs from 1 on"),
    "history text": (change("history", 0, "val_loss", to="low"), r"history\[0\].val_loss: expected a number"),
    "history infinite": (change("history", 0, "loss", to=float("inf")), r"history\[0\].loss: expected a finite"),
    "history huge": (change("history", 0, "loss", to=10**400), r"history\[0\].loss: expected a finite"),
    "history without": (change("history", 1, "accuracy", to=GONE), "expected 'accuracy' in it"),
    "best_epoch": (change("best_epoch", to=3), "best_epoch: expected one of 2"),
    "best_epoch True": (change("best_epoch", to=True), "best_epoch: expected a whole number"),
    "seed": (change("seed", to=10**30), "seed: expected a whole number"),
    "data": (change("data", to=[]), "data: expected an object"),
    "data rows": (change("data", "rows", to="many"), "data.rows: expected a whole number"),
    "data digest": (change("data", "digest", to={"a": 1}), "data.digest: expected text"),
    "data validation": (change("data", "validation", to={"rows": 1}), "expected 'digest' in it"),
    "data share": (change("data", "validation", "share", to="x"), "share: expected a number"),
    "report": (change("validation_report", to=5), "validation_report: expected an object"),
    "report without": (change("validation_report", "macro", to=GONE), "expected 'macro' in it"),
    "report text": (change("validation_report", "macro", "f1", to="good"), "macro.f1: expected a number"),
    "report interval": (change("validation_report", "intervals", "accuracy", to=[0]), "a list of at least 2"),
    "report matrix": (change("validation_report", "confusion_matrix", 0, to=[-1, "x"]), "a list of whole numbers"),
    "report class": (change("validation_report", "per_class", "neg", to={}), "expected 'precision' in it"),
    "report warnings": (change("validation_report", "warnings", to=[1]), r"warnings\[0\]: expected text"),
    "kind": (change("kind", to="\x1b]0;" + "x" * 10_000), "expected a model of TextClassifier"),
    "kind a list": (change("kind", to=["text"]), "kind: expected text"),
    "without classes": (change("classes", to=GONE), "expected 'classes' in it"),
    "without sha256": (change("sha256", to=GONE), "expected 'sha256' in it"),
    "format": (change("format", to="y" * 10_000), "expected format 1"),
    "format newer": (change("format", to=2), "expected format 1 but got 2"),
    # JSON
    "no JSON": (text_of(CONFIG, "{"), "expected JSON"),
    "empty": (text_of(CONFIG, ""), "expected JSON"),
    "list": (text_of(CONFIG, "[]"), "expected format 1 but got 'list'"),
    "number": (text_of(CONFIG, "9" * 5000), "expected JSON"),
    "deep": (text_of(CONFIG, deep()), "nested too deeply"),
    "deep objects": (text_of(CONFIG, '{"a":' * 100_000), "nested too deeply"),
    "deep inside": (change("encoder", to=deep()), "nested too deeply"),
    "a name twice": (text_of(CONFIG, '{"format": 1, "format": 1}'), "the name 'format' more than once"),
    "NaN": (text_of(CONFIG, '{"format": NaN}'), "got NaN"),
    "UTF-8": (text_of(CONFIG, b'{"format": "\xff"}'), "utf-8"),
    "UTF-16": (text_of(CONFIG, '{"format": 1}'.encode("utf-16")), "utf-8"),
    "huge": (sparse(CONFIG, 1 << 40), "expected at most .* bytes but got"),
    "huge lists": (text_of(CONFIG, b"[" + b"[]," * (1 << 24) + b"0]"), "expected at most .* bytes but got"),
    # the encoder
    "encoder": (change("encoder", to="{}"), "TextEncoder: expected text from to_json"),
    "encoder a list": (change("encoder", to=[]), "encoder: expected text"),
    "encoder newer": (change("encoder", to=lambda t: json.dumps(json.loads(t) | {"version": 2})), "version 1 but got"),
    "encoder changed": (change("encoder", to=lambda text: text.replace('"film"', '"flim"')), "it was changed"),
    "word more": (vocabulary(lambda c: c["tokens"].append("more")), "model.embedding.weight: expected"),
    "words many": (vocabulary(lambda c: c.update(tokens=[f"w{i}" for i in range(19_000)])), "embedding.weight: exp"),
    "words too many": (vocabulary(lambda c: c.update(tokens=[f"w{i}" for i in range(30_000)])), "30000 tokens where"),
    "word twice": (vocabulary(lambda c: c["tokens"].append(c["tokens"][0])), "a token twice"),
    "word half": (vocabulary(lambda c: c["tokens"].__setitem__(0, "\ud800")), r"a lone surrogate, U\+D800"),
    "word a number": (vocabulary(lambda c: c["tokens"].__setitem__(0, 5)), "no list of strings"),
    "merges": (vocabulary(lambda c: c.update(merges=[["x" * 10_000, "y"]])), "merges that do not belong"),
    "max_vocab": (vocabulary(lambda c: c["parameters"].update(max_vocab="x")), "max_vocab: expected an int"),
    # the weights
    "cut": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-1]) and None, "truncated or changed"),
    "longer": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes() + b"\0") and None, "or changed"),
    "empty weights": (text_of(WEIGHTS, b""), "truncated or changed"),
    "changed": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-1] + b"\x7f") and None, "truncated or changed",
    ),
    "sparse weights": (sparse(WEIGHTS, 1 << 40), "truncated or changed"),
    "header length": (header(b"{}", 2**64 - 1), "truncated or changed"),
    "header huge": (header(b" " * (1 << 21) + b"{}"), "a header of at most 1048576 bytes"),
    "header no JSON": (header(b"{"), "expected tensors but got"),
    "header a list": (header(b"[]"), "expected an object"),
    "header deep": (header(deep().encode()), "nested too deeply"),
    "header empty": (header(b"{}"), "num_layers"),
    "header names twice": (header(b'{"a": {}, "a": {}}'), "the name 'a' more than once"),
    "header entry": (entry("model.head.bias", dtype=5), "dtype: expected text"),
    "shape negative": (entry("model.head.bias", shape=[-2]), "shape: expected a list of whole numbers"),
    "shape huge": (entry("model.head.bias", shape=[2**62]), r"model.head.bias: expected .* but got F32"),
    "shape no list": (entry("model.head.bias", shape="2"), "shape: expected a list"),
    "shape of others": (entry("seen.exact", shape=[2**40]), "expected tensors but got"),
    "shapes that overflow": (entry("model.head.weight", shape=[2**32, 2**32]), r"got F32 \(4294967296, 4294967296\)"),
    "dtype unknown": (entry("model.head.bias", dtype="F4\x1b[2J"), r"but got F4\\x1b\[2J"),
    "offsets negative": (entry("model.head.bias", data_offsets=[-8, 0]), "expected a whole number"),
    "offsets": (entry("model.head.bias", data_offsets=[0]), "data_offsets: expected a list of at least 2"),
    "offsets overlap": (entry("model.head.bias", data_offsets=[0, 8]), ""),
    "tensor missing": (tensors(lambda found: found.pop("model.head.bias")), "no tensor model.head.bias"),
    "tensor more": (tensors(lambda found: found.update(evil=torch.zeros(1))), r"no other tensors but got \['evil'\]"),
    "tensor outside": (tensors(lambda found: found.update({"../../evil": torch.zeros(1)})), "no other tensors"),
    "tensor of control characters": (tensors(lambda found: found.update({"\x1b[2J\n": torch.zeros(1)})), r"\\x1b\[2J"),
    "tensors many": (
        tensors(lambda found: found.update({f"more{i}": torch.zeros(1) for i in range(5000)})), "no other tensors",
    ),
    "seen missing": (tensors(lambda found: found.pop("seen.near")), "no tensor seen.near"),
    "seen of two dimensions": (tensor("seen.near", lambda t: t[:, None]), r"seen.near: expected torch.int64 \(N,\)"),
    "seen of floats": (tensor("seen.near", lambda t: t.float()), r"seen.near: expected torch.int64 \(N,\)"),
    **{
        f"weights of {dtype}": (tensor("model.head.weight", lambda t, d=dtype: t.to(d)), "expected torch.float32")
        for dtype in (torch.int64, torch.complex64, torch.bool, torch.float64, torch.bfloat16, torch.float8_e4m3fn)
        if dtype != torch.complex64 or WRITES_COMPLEX
    },
    **{
        f"weights of {value}": (tensor("model.embedding.weight", filled(value)), "expected finite weights but got")
        for value in (float("nan"), float("inf"), -float("inf"))
    },
    # files
    **{
        f"{name} a folder": (instead(name, Path.mkdir), "expected a file but got a folder")
        for name in (CONFIG, WEIGHTS, COMMAND)
    },
    **{
        f"{name} a pipe": (instead(name, os.mkfifo), "expected a file but got a pipe")
        for name in (CONFIG, WEIGHTS, COMMAND)
    },
    "endless": (instead(CONFIG, lambda path: path.symlink_to("/dev/zero")), "expected a file but got a pipe or a dev"),
    "endless weights": (instead(WEIGHTS, lambda path: path.symlink_to("/dev/zero")), "expected a file but got a pipe"),
    "a loop of links": (instead(CONFIG, lambda path: path.symlink_to(path)), "expected a file but got"),
    # files that commands write beside the model
    "command": (text_of(COMMAND, "[1]"), "command: expected an object"),
    "command deep": (text_of(COMMAND, deep()), "nested too deeply"),
    "command huge": (sparse(COMMAND, 1 << 30), "expected at most .* bytes"),
    "command without": (change("command", to=GONE, file=COMMAND), "expected 'command' in it"),
    "command sha256": (change("sha256", to=[], file=COMMAND), "sha256: expected an object"),
    "command versions": (change("versions", "seqcls_fast", to=GONE, file=COMMAND), "expected 'seqcls_fast' in it"),
    "command split": (change("split", to={"share": "x"}, file=COMMAND), "share: expected a number"),
    "command split's seed": (change("split", "seed", to=GONE, file=COMMAND), "split: expected a seed with a share"),
    "command threads": (change("threads", to=10**6, file=COMMAND), "threads: expected a whole number"),
    "command nested": (change("settings", "data", to=json.loads(deep(100)), file=COMMAND), "nested less deeply"),
    "search": (text_of(SEARCH, "{}"), "expected 'saved' in it"),
    "search trials": (change("trials", to="x", file=SEARCH), "trials: expected a list"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_a_hostile_model_is_refused(name: str, model: Path) -> None:
    damage, sentence = DAMAGES[name]
    damage(model)
    with pytest.raises(store.StoreError) as caught, little_memory():
        sf.TextClassifier.load(model)
    check_sentence(str(caught.value), sentence)


def check_sentence(words: str, pattern: str) -> None:
    assert re.search(pattern, words)
    assert len(words) < 2000
    assert words.isprintable()
    assert "allocate" not in words  # it did not try to
    assert not PYTHONS.search(words)


def test_the_command_says_one_sentence(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parameter(num_layers=10**9)(model)
    assert __main__.main(["predict", str(model), "x.txt"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_links_to_files_are_followed(model: Path, saved: dict[str, Path]) -> None:
    """Links to files are fine: caches of downloaded models use them."""
    for name in (CONFIG, WEIGHTS):
        (model / name).unlink()
        (model / name).symlink_to(saved["text"] / name)
    assert np.array_equal(sf.TextClassifier.load(model).predict_proba(X), load(saved["text"]).predict_proba(X))
    (model / CONFIG).unlink()
    (model / CONFIG).symlink_to(model / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"load: expected config\.json in"):
        sf.TextClassifier.load(model)


@pytest.mark.parametrize("name", ["text", "series"])
def test_what_loads_can_be_used_and_saved(
    name: str, saved: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With any value at any place of the JSON, the model is either refused or can be used and saved."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # saves time: these hundreds of models need not survive
    folder = Path(shutil.copytree(saved[name], tmp_path / name))
    data = X if name == "text" else waves()[0]
    draw, wrong, loaded, refused = random.Random(0), [], 0, 0
    for file in (CONFIG, COMMAND, SEARCH):
        if not (folder / file).exists():
            continue
        whole = (folder / file).read_text()
        every = [(place, value) for place in places(json.loads(whole)) for value in NONSENSE]
        for place, value in draw.sample(every, min(len(every), 400)):
            change(*place, to=value, file=file)(folder)
            try:
                found = load(folder)
                loaded += 1
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    found.predict(data[:3])
                    found.save(tmp_path / "again")
                    type(found).load(tmp_path / "again")
            except store.StoreError as error:
                refused += 1
                if len(str(error)) >= 2000 or not str(error).isprintable() or PYTHONS.search(str(error)):
                    wrong.append((place, value, str(error)[:300]))
            except Exception as error:
                wrong.append((place, value, repr(error)[:300]))
            (folder / file).write_text(whole)
    assert wrong == []
    assert loaded > 20
    assert refused > 100


def test_a_split_without_a_validation(model: Path, tmp_path: Path) -> None:
    """Two fields contradict each other; only the model card reads both."""
    change("data", "validation", to=None)(model)
    sf.TextClassifier.load(model).save(tmp_path / "again")


def test_any_byte_of_the_header(saved: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved["series"], tmp_path / "series"))
    whole = (folder / WEIGHTS).read_bytes()
    draw = random.Random(1)
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 1, 2, 5])):
            data[draw.randrange(8 + struct.unpack("<Q", whole[:8])[0])] = draw.choice(b'\0\xff"{}[],:0129FI')
        (folder / WEIGHTS).write_bytes(data if draw.random() < 0.8 else data[: draw.randrange(len(data))])
        reseal(folder)
        try:
            with little_memory():
                load(folder)
        except store.StoreError as error:
            check_sentence(str(error), "")


def test_what_load_refuses_save_refuses(saved: dict[str, Path], tmp_path: Path) -> None:
    """Otherwise the saved model could never be loaded again."""
    model = load(saved["text"])
    with torch.no_grad():
        model.model_.head.bias[0] = float("nan")
    with pytest.raises(ValueError, match=r"save: model\.head\.bias: expected finite weights but got nan"):
        model.save(tmp_path / "model")
    model = load(saved["text"])
    model.temperature_ = 0.0
    with pytest.raises(ValueError, match=r"temperature: expected a number from 0\.001 to 1000 but got 0\.0"):
        model.save(tmp_path / "model")
    assert not list(tmp_path.iterdir())
    model = load(saved["text"])
    expected = model.predict_proba(X)
    model.model_.double()
    model.save(tmp_path / "model")
    assert np.array_equal(load(tmp_path / "model").predict_proba(X), expected)


def test_many_words_and_classes_are_no_attack(tmp_path: Path) -> None:
    texts = [f"word{i} word{i + 1}" for i in range(3000)]
    model = sf.TextClassifier(hidden_size=2, embedding_dim=1, epochs=1, batch_size=512, max_vocab=10**6)
    model.fit(texts, [f"class {i % 300}" for i in range(3000)], validation=0.2)
    model.save(tmp_path / "model")
    assert np.array_equal(load(tmp_path / "model").predict_proba(texts), model.predict_proba(texts))


def test_labels_without_meaning_are_refused_before_training() -> None:
    with pytest.raises(ValueError, match="y: expected a label but got"):
        sf.TextClassifier().fit(["a", "b"], [("x", float("nan")), ("y", 1.0)])


def test_names_with_half_a_character_can_be_saved(tmp_path: Path) -> None:
    """Names of files may have bytes that are not UTF-8; labels may have such characters, too."""
    model = sf.TextClassifier(hidden_size=4, embedding_dim=4, epochs=1).fit(X, ["\udc80" + label for label in Y])
    model.extra_ = {COMMAND: {"command": "seqcls-fast train \udcff.csv"}}
    model.save(tmp_path / "model")
    loaded = load(tmp_path / "model")
    assert loaded.classes_.tolist() == model.classes_.tolist()
    assert loaded.extra_ == model.extra_


# -- encoders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [TextEncoder, SeriesEncoder])
@pytest.mark.parametrize(
    "text", [deep(), '{"kind": ' + deep(400) + "}", "9" * 5000, '{"a": NaN}', '{"kind": 1, "kind": 1}', "", "[]"]
)
def test_forged_encoders(kind: Any, text: str) -> None:
    with pytest.raises(ValueError, match=f"{kind.__name__}: expected text from to_json") as caught:
        kind.from_json(text)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "fields",
    [
        {"parameters": []}, {"parameters": 5}, {"parameters": {}}, {"parameters": {"tokenizer": ["word"]}},
        {"tokens": "x"}, {"tokens": {"a": 1}}, {"merges": [["a" * 10_000, "b", "c"]]},
        {"merges": [["x" * 10_000, "y"]]}, {"merges": 5},
        {"parameters": {"tokenizer": "word", "x" * 10_000: 1}}, {"parameters": {"tokenizer": "y" * 10_000}},
        {"tokens": ["\ud800"]}, {"tokens": ["<unk>"] * 2},
    ],
    ids=lambda fields: str(fields)[:40],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_sealed_nonsense(kind: str, fields: Any) -> None:
    content = json.loads(TextEncoder(kind, max_vocab=300).fit(X).to_json()) | fields
    text = seal("TextEncoder", {name: content[name] for name in ("parameters", "tokens", "merges")})
    with pytest.raises(ValueError, match="TextEncoder: expected text from to_json") as caught:
        TextEncoder.from_json(text)
    check_sentence(str(caught.value), "")


# -- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")

    def end(history: Any) -> bool:
        return len(history) == 2

    small(folder, on_nan="restore").fit(X, Y, validation=0.3, stop=end)
    return folder


def forge(folder: Path, number: int, data: bytes) -> Path:
    """Writes a checkpoint whose checksum fits its content."""
    path = folder / f"checkpoint-{number:08}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
    path.write_bytes(data)
    return path


def of_text(text: str) -> bytes:
    head = json.dumps({"__metadata__": {"checkpoint": text}}).encode()
    return struct.pack("<Q", len(head)) + head


FORGED = {
    "empty": b"", "noise": b"noise", "length": struct.pack("<Q", 2**63) + b"{}",
    "no JSON": struct.pack("<Q", 2) + b"{{", "a list": struct.pack("<Q", 2) + b"[]",
    "no metadata": struct.pack("<Q", 2) + b"{}",
    "metadata": struct.pack("<Q", 20) + b'{"__metadata__":{ } }'[:20], "deep": of_text(deep()),
    "deep header": struct.pack("<Q", 200_000) + deep().encode(), "no object": of_text("5"),
    "no state": of_text('{"format": 1}'), "tensor unknown": of_text('{"format": 1, "state": {"tensor": "7"}}'),
    "tensor a list": of_text('{"format": 1, "state": {"tensor": []}}'),
    "dict a number": of_text('{"format": 1, "state": {"dict": 5}}'),
    "dict of threes": of_text('{"format": 1, "state": {"dict": [[1, 2, 3]]}}'),
    "key a list": of_text('{"format": 1, "state": {"dict": [[[], 1]]}}'),
    "state deep": of_text('{"format": 1, "state": ' + deep(400) + "}"),
    "format": of_text('{"format": "%s"}' % ("x" * 9999)),
    "digits": of_text("9" * 5000),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_checkpoint_is_passed_over(name: str, trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "kept"))
    forge(folder, 99_999_999, FORGED[name])
    expected = Checkpoints(trained, 0).newest()
    with pytest.warns(RuntimeWarning, match="the one before it is used") as said:
        found = Checkpoints(folder, 0).newest(check_content)
    for warning in said:
        check_sentence(str(warning.message), "")
    assert found["state"]["history"] == expected["state"]["history"]
    alone = tmp_path / "alone"
    alone.mkdir()
    forge(alone, 1, FORGED[name])
    with pytest.raises(CheckpointError):
        Checkpoints(alone, 0).newest(check_content)


def test_a_checkpoint_larger_than_memory(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint-00000001-0123456789abcdef.safetensors"
    path.touch()
    os.truncate(path, 1 << 40)
    with little_memory(), pytest.raises(CheckpointError, match="fits in memory but got 1099511627776 bytes") as caught:
        Checkpoints(tmp_path, 0).newest()
    check_sentence(str(caught.value), "")


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint-99999999-0123456789abcdef.safetensors", "checkpoint-99999999999-0123456789abcdef.safetensors",
        f"checkpoint-{'9' * 150}-0123456789abcdef.safetensors", "checkpoint-٩٩٩٩٩٩٩٩-0123456789abcdef.safetensors",
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["file", "folder", "pipe", "link"])
def test_a_forged_number_hides_nothing(name: str, kind: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 0)
    checkpoints.write({"step": 1})
    forged = tmp_path / name
    {"file": Path.touch, "folder": Path.mkdir, "pipe": os.mkfifo, "link": lambda path: path.symlink_to("nowhere")}[
        kind
    ](forged)
    again = Checkpoints(tmp_path, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert again.newest()["state"]["step"] == 1
        for step in (2, 3, 4):
            again.write({"step": step})
            assert Checkpoints(tmp_path, 0).newest()["state"]["step"] == step
    assert len(list(tmp_path.glob("checkpoint-0*"))) == 2


def test_the_highest_number_is_followed_by_a_higher_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 0)
    checkpoints._written = 99_999_998
    for step in range(3):
        checkpoints.write({"step": step})
    assert Checkpoints(tmp_path, 0).newest()["state"]["step"] == 2
    assert sorted(int(path.name.split("-")[1]) for path in tmp_path.iterdir()) == [100_000_000, 100_000_001]


def first(found: dict[Any, Any]) -> Any:
    return found[next(iter(found))]


TAMPERED: dict[str, Callable[[Any], None]] = {
    "about": put("about", to=5), "seed": put("about", "seed", to="x"), "parameters": put("about", "parameters", to=[]),
    "state": put("state", to=[]), "no model": put("state", "model", to=GONE),
    "model of numbers": put("state", "model", to={"a": 5}), "best": put("state", "best", to=5),
    "history": put("state", "history", to=[{"epoch": 7}]),
    "history of text": put("state", "history", 0, "loss", to="x"),
    "sums": put("state", "sums", to={}), "sums of text": put("state", "sums", "rows", to="x"),
    "restores": put("state", "restores", to=10**9), "micro_batches": put("state", "micro_batches", to=0),
    "finished": put("state", "finished", to="no"), "first_loss": put("state", "first_loss", to="x"),
    "restore_point": put("state", "restore_point", to={}), "optimizer": put("state", "optimizer", to=[]),
    "rate": put("state", "optimizer", "param_groups", 0, "lr", to="fast"), "more": put("state", "more", to=1),
}  # fmt: skip
# values of the right types that do not fit this training
UNFIT: dict[str, Callable[[Any], None]] = {
    "weights of another shape": put("state", "model", "head.bias", to=torch.zeros(3)),
    "weights of another dtype": put("state", "model", "head.bias", to=lambda t: t.double()),
    "weights missing": put("state", "model", "head.bias", to=GONE),
    "best of another shape": put("state", "best", "head.bias", to=torch.zeros(3)),
    "best of NaN": put("state", "best", "head.bias", to=torch.full((2,), math.nan)),
    "moments of another shape": put("state", "optimizer", "state", 0, "exp_avg", to=torch.zeros(1)),
    "moments of another dtype": put("state", "optimizer", "state", 0, "exp_avg", to=lambda t: t.long()),
    "moments missing": put("state", "optimizer", "state", 0, to={}),
    "moments of no weight": put("state", "optimizer", "state", to=lambda found: found | {999: first(found)}),
    "step of many": put("state", "optimizer", "state", 0, "step", to=torch.zeros(9)),
    "restore point of another shape": put("state", "restore_point", "model", "head.bias", to=torch.zeros(3)),
    "restore point of later": put("state", "restore_point", "epochs", to=99),
    "groups missing": put("state", "optimizer", "param_groups", to=[]),
    "steps": put("state", "sums", "steps", to=10**6), "rows": put("state", "sums", "steps", to=1),
    "history without": put("state", "history", 0, "val_loss", to=GONE),
    "history empty": put("state", "history", to=[]),
}  # fmt: skip


def tampered(trained: Path, folder: Path, edit: Callable[[Any], None]) -> None:
    content = copy.deepcopy(Checkpoints(trained, 0).newest())
    edit(content)
    checkpoints = Checkpoints(folder, 0)
    checkpoints.about = content["about"]
    checkpoints._written = max(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))
    checkpoints.write(content["state"])


@pytest.mark.parametrize("name", TAMPERED)
def test_a_checkpoint_with_nonsense_in_it_is_passed_over(name: str, trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "kept"))
    tampered(trained, folder, TAMPERED[name])
    with pytest.warns(RuntimeWarning, match="expected a checkpoint of format 2 but got .* the one before it is used"):
        small(folder, on_nan="restore").fit(X, Y, validation=0.3, resume=True)


@pytest.mark.parametrize("name", UNFIT)
def test_a_checkpoint_that_does_not_fit_is_refused(name: str, trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "kept"))
    tampered(trained, folder, UNFIT[name])
    with pytest.raises(CheckpointError, match="resume: expected a checkpoint of this training but got") as caught:
        small(folder, on_nan="restore").fit(X, Y, validation=0.3, resume=True)
    assert len(str(caught.value)) < 2000


def test_what_was_not_tampered_with_goes_on(trained: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "kept"))
    tampered(trained, folder, put("state", "finished", to=False))
    assert len(small(folder, on_nan="restore").fit(X, Y, validation=0.3, resume=True).history_) == 3

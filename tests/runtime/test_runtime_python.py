"""seqcls_fast.runtime: the results of the modules and estimators, without an import of torch."""

from __future__ import annotations

import ctypes
import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from c_library import PLAIN_SERIES, PLAIN_TEXT

import seqcls_fast as sf
from seqcls_fast import _runtime
from seqcls_fast._runtime_format import packed_file
from seqcls_fast.export import to_runtime
from seqcls_fast.runtime import Model
from support.corpora import sentences, waves


def open_model(module: Any, tmp_path: Path, dtype: str = "float32") -> Model:
    to_runtime(module, tmp_path / "model.sfm", dtype)
    return Model.open(tmp_path / "model.sfm", sf.available_impls()[-1])  # the kernels that the module has


def test_nothing_of_torch_is_imported(tmp_path: Path) -> None:
    open_model(sf.SequenceClassifier(3, 8, 2), tmp_path)
    program = (
        "import sys, numpy\n"
        "before = set(sys.modules)\n"
        "import seqcls_fast\n"
        "model = seqcls_fast.runtime.Model.open(sys.argv[1])\n"
        "model.predict([numpy.zeros((4, 3))]), model.stream().step(numpy.zeros(3))\n"
        "slow = {'numpy.typing', 'importlib.abc', 'importlib.util', 'hashlib', 'secrets', 'shutil', 'pathlib'}\n"
        "assert not ({'torch', 'sklearn', 'scipy'} | slow) & (set(sys.modules) - before), set(sys.modules) - before"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "model.sfm")], check=True)


@pytest.mark.parametrize("pooling", ["max", "attention"])
def test_series(pooling: str, tmp_path: Path) -> None:
    estimator = sf.SeriesClassifier(
        hidden_size=6, epochs=2, pooling=pooling, bidirectional=pooling == "attention", **PLAIN_SERIES
    )
    estimator.fit(*waves(count=40))
    model, new = open_model(estimator, tmp_path), waves(seed=3, count=150)[0]
    assert model.predict_proba(new).tobytes() == estimator.predict_proba(new).tobytes()
    assert model.predict(new).tolist() == estimator.predict(new).tolist()
    assert model.predict_proba([each.tolist() for each in new]).tobytes() == estimator.predict_proba(new).tobytes()
    if not model.is_streamable:
        with pytest.raises(ValueError, match="expected at most 64, for which the stream was made"):
            model.stream().push(np.zeros((65, 2)))
        with pytest.raises(RuntimeError, match="step: expected a model that reads its input once"):
            model.stream().step(np.zeros(2))
        return
    stream = model.stream()
    for step in new[0]:
        last = stream.step(step)
    expected = estimator.predict_proba(new[:1])[0].astype(np.float32)
    np.testing.assert_array_equal(last, expected)
    stream.reset()
    np.testing.assert_array_equal(stream.push(new[0]), expected)


def test_ids_and_labels(tmp_path: Path) -> None:
    estimator = sf.TextClassifier(hidden_size=6, embedding_dim=5, epochs=1, **PLAIN_TEXT)
    texts, labels = sentences(count=40)
    estimator.fit(texts, labels)
    model = open_model(estimator, tmp_path)
    ids = [[estimator.encoder_._tokens.index(word) + 2 for word in text.split()] for text in texts]
    assert model.predict_proba(ids).tobytes() == estimator.predict_proba(texts).tobytes()
    assert model.predict(ids).tolist() == estimator.predict(texts).tolist()
    assert model.classes is not None
    assert model.classes.tolist() == estimator.classes_.tolist()
    assert model.predict(texts).tolist() == estimator.predict(texts).tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layers(dtype: str, tmp_path: Path) -> None:
    module = sf.LSTM(3, 20, num_layers=2, batch_first=True)
    model = open_model(module, tmp_path, dtype)
    kind = getattr(torch, dtype)
    x, resets = torch.randn(4, 90, 3), torch.rand(4, 90) < 0.1
    with torch.no_grad():
        expected = module.to(kind)(x.to(kind), lengths=[90, 4, 0, 77], resets=resets)[0].float().numpy()
        full = module(x.to(kind))[0].float().numpy()
    np.testing.assert_array_equal(model.run(x.numpy(), [90, 4, 0, 77], resets.numpy()), expected)
    one, four = model.stream(), model.stream(4)
    np.testing.assert_array_equal(np.stack([one.step(x[0, t].numpy()) for t in range(90)]), full[0])
    np.testing.assert_array_equal(np.stack([four.step(x[:, t].double().numpy()) for t in range(90)], 1), full)
    four.reset()
    np.testing.assert_array_equal(four.push(x.numpy()), full)
    four.reset(1)
    again = four.push(x.numpy())
    np.testing.assert_array_equal(again[1], full[1])
    assert (again[0] != full[0]).any()
    assert model.stream_bytes(1, 1) < model.stream_bytes(1, 64) < model.stream_bytes(2, 64)


def test_streams_of_ids(tmp_path: Path) -> None:
    module = sf.SequenceClassifier(4, 6, 3, vocab_size=9, padding_idx=None).eval()
    model, ids = open_model(module, tmp_path), torch.randint(9, (2, 5))
    with torch.inference_mode():
        expected = sf._head.softmax(module(ids).double()).float().numpy()
    one, two = model.stream(), model.stream(2)
    np.testing.assert_array_equal([one.step(int(each)) for each in ids[0]][-1], expected[0])
    np.testing.assert_array_equal([two.step(ids[:, t].numpy()) for t in range(5)][-1], expected)
    two.reset()
    np.testing.assert_array_equal(two.push(ids.numpy()), expected)


def test_empty_input(tmp_path: Path) -> None:
    module = sf.SequenceClassifier(3, 6, 2).eval()
    model = open_model(module, tmp_path)
    assert model.predict_proba([]).shape == (0, 2)
    with torch.inference_mode():
        expected = sf._head.softmax(module(torch.zeros(1, 1, 3), [0]).double()).numpy()
    np.testing.assert_array_equal(model.predict_proba([np.zeros((0, 3))]), expected)
    assert open_model(sf.GRU(3, 4), tmp_path).run(np.zeros((0, 5, 3))).shape == (0, 5, 4)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="path: expected a file that can be read"):
        Model.open(tmp_path / "none.sfm")
    (tmp_path / "other.sfm").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"file: expected one that seqcls_fast.export.to_runtime\(\) wrote"):
        Model.open(tmp_path / "other.sfm")
    layers = open_model(sf.GRU(3, 4), tmp_path)
    with pytest.raises(ValueError, match="isa: expected one of auto, base"):
        Model.open(tmp_path / "model.sfm", isa="mmx")
    for function, kind, words in (
        (lambda: layers.predict([]), TypeError, "predict_proba: expected a classifier but got layers without a head"),
        (lambda: layers.run(np.zeros((2, 3))), ValueError, r"x: expected \(B, T, 3\) but got \(2, 3\)"),
        (lambda: layers.run(np.zeros((1, 2, 3)), [3]), ValueError, "lengths: expected 0 to 2 but got 3 at 0"),
        (lambda: layers.run(np.zeros((1, 2, 3)), [1, 2]), ValueError, r"lengths: expected \(1,\) but got \(2,\)"),
        (lambda: layers.run(np.zeros((1, 2, 3)), [1.5]), TypeError, "lengths: expected integers but got float64"),
        (lambda: layers.run(np.zeros((1, 2, 3)), [[2]]), ValueError, r"lengths: expected \(1,\) but got \(1, 1\)"),
        (
            lambda: layers.run(np.zeros((2, 3, 3)), None, np.zeros((3, 2), bool)),
            ValueError,
            r"resets: expected \(2, 3\) but got \(3, 2\)",
        ),
        (lambda: layers.stream(2).step(np.zeros((3, 2), "f4")), ValueError, r"x: expected \(2, 3\) but got \(3, 2\)"),
        (lambda: layers.stream(2).step(np.zeros(6)), ValueError, r"x: expected \(2, 3\) but got \(6,\)"),
        (lambda: layers.stream().step(np.zeros((3, 1))), ValueError, r"x: expected \(3\) but got \(3, 1\)"),
        (lambda: layers.stream(2).push(np.zeros((3, 2, 3))), ValueError, r"expected \(2, T, 3\) but got \(3, 2, 3\)"),
        (lambda: layers.stream_bytes(1 << 20, 1 << 31), MemoryError, "steps: expected at most"),
        (lambda: layers.stream_bytes(0, 1), ValueError, "rows: expected 1 to 1048576 but got 0"),
        (lambda: layers.stream(0), ValueError, "rows: expected 1 to 1048576 but got 0"),
        (lambda: layers.stream().step(np.zeros(4)), ValueError, r"x: expected \(3\) but got \(4,\)"),
        (lambda: layers.stream(2).push(np.zeros((2, 3))), ValueError, r"chunk: expected \(2, T, 3\) but got \(2, 3\)"),
        (lambda: layers.stream().reset(1), ValueError, "row: expected 0 to 0, or None for all rows, but got 1"),
        (lambda: layers.stream(2).reset(-1), ValueError, "row: expected 0 to 1, or None for all rows, but got -1"),
        (lambda: layers.stream().reset(0.5), TypeError, "row: expected an integer but got float"),
        (lambda: layers.stream().reset(10**30), ValueError, "row: expected an integer of 64 bits but got a larger one"),
        (lambda: layers.stream().get_state(10**30), ValueError, "row: expected an integer of 64 bits"),
        (lambda: layers.stream(10**30), ValueError, "rows: expected an integer of 64 bits but got a larger one"),
        (lambda: layers.stream(1, "2"), TypeError, "steps: expected an integer but got str"),
        (lambda: layers.stream_bytes(1, 10**30), ValueError, "steps: expected an integer of 64 bits"),
        (lambda: layers.run([[["1", "2", "3"]]]), ValueError, "x: expected numbers but got text"),
        (lambda: layers.run([[[1, 2, 3j]]]), ValueError, "x: expected numbers but got complex numbers"),
        (lambda: layers.run([[[1, 2], [3]]]), ValueError, "x: expected an array of numbers but got lists of different"),
        (
            lambda: layers.run([[[1, 2, 10**400]]]),
            ValueError,
            "x: expected numbers that float64 holds but got a larger",
        ),
        (
            lambda: layers.run(np.zeros((1, 1, 3)), [10**30]),
            ValueError,
            "lengths: expected integers of 64 bits but got",
        ),
        (
            lambda: layers.run(np.zeros((1, 1, 3)), [[1], [2, 3]]),
            ValueError,
            "lengths: expected integers but got lists",
        ),
        (lambda: layers.run(np.zeros((1, 1, 3)), None, [["no"]]), TypeError, "resets: expected booleans but got <U2"),
        (lambda: layers.stream().push([["1", "2", "3"]]), ValueError, "chunk: expected numbers but got text"),
        (lambda: layers.stream().push([[b"1", b"2", b"3"]]), ValueError, "chunk: expected numbers but got bytes"),
        (lambda: layers.stream().push([[1j, 2, 3]]), ValueError, "chunk: expected numbers but got complex numbers"),
        (lambda: layers.stream().push([[None, "2", 3]]), ValueError, "chunk: expected numbers but got str among them"),
        (lambda: layers.stream().push([[1, 2, 10**400]]), ValueError, "chunk: expected numbers that float64 holds but"),
        (lambda: layers.stream().step([1, 2, 10**400]), ValueError, "x: expected numbers that float64 holds but got a"),
        (lambda: layers.stream().step("123"), ValueError, "x: expected numbers but got text"),
    ):
        with pytest.raises(kind, match=words):
            function()
    model = open_model(sf.SequenceClassifier(3, 4, 2, bidirectional=True), tmp_path)
    with pytest.raises(RuntimeError, match=r"step: expected a model that reads its input once.* has two directions"):
        model.stream().step(np.zeros(3))
    for given, kind, words in (
        ([np.zeros((2, 4))], ValueError, r"X\[0\]: expected an array \(T, 3\) but got \(2, 4\)"),
        ([np.zeros((2, 3)), "x"], TypeError, r"X\[1\]: expected an array of numbers, as the model was not trained"),
        ("x", TypeError, "X: expected a list of sequences but got str"),
        ([[[1, 2, "y"]]], ValueError, r"X\[0\]: expected numbers but got text"),
        ([[[1, None, "2.5"]]], ValueError, r"X\[0\]: expected numbers but got str among them"),
        ([[[1, 2, 10**400]]], ValueError, r"X\[0\]: expected numbers that float64 holds but got a larger one"),
        ([[[1, 2, 3], [1, 2]]], ValueError, r"X\[0\]: expected an array of numbers but got lists of different sizes"),
        ([np.zeros((1, 3)), None], ValueError, r"X\[1\]: expected an array \(T, 3\) but got a missing value"),
        ([3], ValueError, r"X\[0\]: expected an array \(T, 3\) but got a single number"),
        (np.array(3.0), TypeError, "X: expected a list of sequences but got ndarray"),
        ({"a": 1}, TypeError, "X: expected a list of sequences but got dict"),
    ):  # fmt: skip
        with pytest.raises(kind, match=words):
            model.predict_proba(given)
    with pytest.raises(TypeError, match="run: expected layers without a head but got a classifier"):
        model.run(np.zeros((1, 1, 3)))
    ids = open_model(sf.SequenceClassifier(3, 4, 2, vocab_size=5), tmp_path)
    with pytest.raises(ValueError, match="ids: expected 0 to 4 but got 5 in row 0 at step 1"):
        ids.predict([[1, 5]])
    with pytest.raises(TypeError, match="chunk: expected integers, the ids of tokens, but got float64"):
        ids.stream().push([0.5])
    with pytest.raises(TypeError, match="x: expected integers, the ids of tokens, but got float64"):
        ids.stream().step(0.5)
    with pytest.raises(ValueError, match=r"x: expected ids \(2, \) but got \(1, 2\)"):
        ids.stream(2).step([[1, 2]])
    for number in (2**63, 10**30):
        with pytest.raises(
            ValueError, match=r"X\[0\]: expected integers, the ids of tokens, of 64 bits but got a larger"
        ):
            ids.predict([[number]])
    assert ids.predict([np.array([1, 2], object)]).shape == (1,)
    with pytest.raises(ValueError, match="ids: expected 0 to 4 but got 7 in row 70 at step 0"):
        ids.predict([[1]] * 70 + [[7]])


def test_folders_that_save_did_not_write(tmp_path: Path) -> None:
    """Each is refused with a sentence that names config.json, whatever is in it."""
    small: dict[str, Any] = {"hidden_size": 3, "embedding_dim": 3, "epochs": 1, "holdout": None}
    sf.TextClassifier(**small).fit(*sentences(count=20)).save(tmp_path / "model")
    config, weights = tmp_path / "model/config.json", tmp_path / "model/model.safetensors"
    saved, content = json.loads(config.read_text()), weights.read_bytes()

    def refused(words: str, **changes: Any) -> None:
        config.write_text(json.dumps(saved | changes))
        with pytest.raises(ValueError, match=words):
            Model.open(tmp_path / "model")

    assert Model.open(tmp_path / "model").outputs == 2
    refused("config.json: expected format 1 of save", format=2)
    refused("config.json: expected an encoder that fits its checksum", encoder=saved["encoder"].replace("good", "bad!"))
    refused("config.json: expected what save.. writes but got KeyError", parameters={})
    refused("config.json: expected what save.. writes but got", threshold=3)
    refused("config.json: expected what save.. writes but got ValueError: 7", threshold={"label": 7, "value": 0.5})
    refused("file: tensor 'encoder.weight_ih_l0'", parameters=saved["parameters"] | {"hidden_size": 4})
    refused("model.encoder.cell: expected one of", parameters=saved["parameters"] | {"cell": "x"})
    refused("model.decision.temperature: expected a number", temperature="x")
    changed = bytearray(content)
    changed[-1] ^= 1
    weights.write_bytes(changed)
    refused("config.json: expected the model.safetensors that was saved with it, but it is truncated or changed")
    weights.write_bytes(content[:100])
    refused("config.json: expected", sha256=hashlib.sha256(content[:100]).hexdigest())
    config.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config.json: expected what save\(\) writes but got"):
        Model.open(tmp_path / "model")
    weights.unlink()
    config.write_text(json.dumps(saved))
    with pytest.raises(FileNotFoundError, match=r"or a folder of save\(\) but there is no .*model.safetensors"):
        Model.open(tmp_path / "model")


@pytest.mark.parametrize(
    "labels",
    ['[null, "b"]', '[{"a": 1}, "b"]', '[{"tuple": 1}, "b"]', '[["a"], "b"]', '[{"tuple": [["a"]]}, "b"]'],
)
def test_labels_that_no_estimator_has(labels: str, tmp_path: Path) -> None:
    to_runtime(sf.SequenceClassifier(3, 8, 2), tmp_path / "model.sfm")
    content = (tmp_path / "model.sfm").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    about = json.loads(header["__metadata__"]["model"]) | {"labels": json.loads(labels)}
    about["decision"] = {"temperature": 1.0}
    tensors = {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], np.float32).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }
    (tmp_path / "other.sfm").write_bytes(packed_file(about, tensors))
    with pytest.raises(ValueError, match="classes: expected numbers, strings or tuples but got "):
        Model.open(tmp_path / "other.sfm")


def test_rows_of_length_0_are_no_rows(tmp_path: Path) -> None:
    """An empty array may lie at NULL, which stands for all rows in C."""
    model = open_model(sf.GRU(3, 4), tmp_path)
    stream, held = _runtime.Stream(model._model, 2, 8), np.full((2, 1, 4), 7, np.float32)
    x, rows = np.ones((2, 1, 3), np.float32), memoryview((ctypes.c_int64 * 0).from_address(0)).cast("B").cast("q")
    stream.run(0, 1, x[:0], None, None, None, None, rows, held[:0], None, None, None)
    assert (held == 7).all()


def test_calls_of_many_steps(tmp_path: Path) -> None:
    model = open_model(sf.GRU(1, 1), tmp_path)
    x = np.ones((1, (1 << 22) + 1, 1), np.float32)
    np.testing.assert_array_equal(model.run(x, [3])[:, :3], model.run(x[:, :3]))
    stream = _runtime.Stream(model._model, 1, 8)
    for steps in (-1, 1 << 62):
        with pytest.raises(ValueError, match="x: expected"):
            stream.run(1, steps, x, None, None, None, None, None, None, None, None, None)


def test_one_thread_at_a_time_uses_a_stream(tmp_path: Path) -> None:
    """Others get an error instead of another thread's states; a model takes any number of threads."""
    model = open_model(sf.LSTM(64, 256), tmp_path)
    stream, refused, wrong = model.stream(), [], []
    chunk = np.random.default_rng(0).normal(size=(400, 64)).astype(np.float32)
    expected = model.run(chunk[None])[0]

    def work(shared: bool) -> None:
        for _ in range(4):
            try:
                found = (stream if shared else model.stream()).push(chunk)
                if not shared and found.tobytes() != expected.tobytes():
                    wrong.append(1)
            except RuntimeError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work, args=(k % 2 == 0,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert set(refused) <= {"stream: expected one call at a time but another thread is using it"}


def test_what_needs_torch_says_so() -> None:
    program = (
        "import importlib.abc, sys\n"
        "class Missing(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch':\n"
        "            raise ModuleNotFoundError('No module', name='torch')\n"
        "sys.meta_path.insert(0, Missing())\n"
        "import seqcls_fast\n"
        "assert seqcls_fast.runtime.Model\n"
        "for name in seqcls_fast.__all__:\n"
        "    try:\n        getattr(seqcls_fast, name)\n    except ImportError as error:\n        print(error)\n"
        "for name in ('nn', 'ops', 'reference', 'export'):\n"
        "    try:\n        __import__('seqcls_fast.' + name)\n    except ImportError as error:\n        print(error)"
    )
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    words = " needs torch: pip install 'seqcls-fast[torch]' (seqcls_fast.runtime runs saved models without it)"
    do_without = {"__version__", "Report", "evaluate_predictions"}
    names = [f"seqcls_fast.{name}" for name in sf.__all__ if name not in do_without]
    assert out.splitlines() == [name + words for name in [*names, *["This part of seqcls_fast"] * 4]]

"""The record of a training in a saved model, and `reproduce`, which trains it again and compares."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

import seqcls_fast as sf
from seqcls_fast import __main__
from seqcls_fast.cli import reproduce
from seqcls_fast.cli import train as train_command
from seqcls_fast.toolkit import store
from seqcls_fast.toolkit.card import metrics_of, model_card, versions
from seqcls_fast.toolkit.evaluation.intervals import METHODS
from seqcls_fast.toolkit.training.checkpoint import Checkpoints
from support.corpora import sentences, waves

SMALL = ["--hidden-size", "8", "--embedding-dim", "8", "--epochs", "3"]


def write(path: Path, seed: int = 0, count: int = 80) -> str:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(*sentences(seed, count), strict=True)])
    return str(path)


def run(*arguments: str | Path) -> int:
    return __main__.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and models: `model` with a share to validate on, `filed` with a file, `plain` without."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("reproduce")
    data, other = write(folder / "data.csv"), write(folder / "other.csv", 1)
    assert run("train", data, *SMALL, "--validation-share", "0.25", "--out", folder / "model") == 0
    assert run("train", data, *SMALL, "--validation", other, "--out", folder / "filed") == 0
    assert run("train", data, *SMALL, "--out", folder / "plain") == 0
    return folder


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """The folder once more, to be spoilt; its models name the data of the first."""
    return Path(shutil.copytree(made, tmp_path / "copy"))


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_settings(model: Path, **changes: Any) -> None:
    path = model / "command.json"
    change(path, settings=json.loads(path.read_text())["settings"] | changes)


def answer_of(capsys: pytest.CaptureFixture[str], code: int, *arguments: str | Path) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert run("reproduce", *arguments, "--json") == code
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert run(*arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    return captured.err


# -- what is saved ----------------------------------------------------------------------------------------------------


def test_what_the_command_writes_down(made: Path) -> None:
    record = json.loads((made / "model" / "command.json").read_text())
    assert (record["rows"], record["split"]) == (60, {"share": 0.25, "seed": 0, "rows": 20})
    assert (record["threads"], record["ranks"], record["device"]) == (1, 1, "cpu")
    assert record["versions"] == versions()
    assert {"seqcls_fast", "torch", "python", "platform", "implementation"} <= set(record["versions"])
    filed = json.loads((made / "filed" / "command.json").read_text())
    assert (filed["rows"], filed["split"]) == (80, {"file": str(made / "other.csv"), "rows": 80})
    assert json.loads((made / "plain" / "command.json").read_text())["split"] is None
    assert sorted(path.name for path in (made / "model").iterdir()) == [
        "README.md", "command.json", "config.json", "model.safetensors"
    ]  # fmt: skip


def test_the_card(made: Path) -> None:
    folder = made / "model"
    card = (folder / "README.md").read_text()
    record = json.loads((folder / "command.json").read_text())
    model = sf.TextClassifier.load(folder)
    assert record["command"] in card
    assert record["sha256"][str(made / "data.csv")] in card
    assert f"| training | 60 | `{model.data_['digest']}` |" in card
    held = model.data_["validation"]
    assert f"| validation (a share of 0.25, drawn with seed 0) | 20 | `{held['digest']}` |" in card
    report = model.validation_report_
    low, high = report["intervals"]["accuracy"]
    assert f"| accuracy | {report['accuracy']:.4f} ({low:.4f} to {high:.4f}) |" in card
    assert f"| log loss | {report['log_loss']:.4f} |" in card
    scores = report["per_class"]["pos"]
    cells = []
    for each in ("precision", "recall", "f1"):
        low, high = scores["intervals"][each]
        cells.append(f"{scores[each]:.4f} ({low:.4f} to {high:.4f})")
    assert f"| `pos` | {' | '.join(cells)} | 10 |" in card
    assert f"After {model.best_epoch_} epochs" in card
    assert f"| torch | `{torch.__version__}` |" in card
    assert "| threads | `1` |" in card
    assert "| ranks | `1` |" in card
    assert "Calibrated" not in card
    model.extra_["command.json"]["versions"] = {"seqcls_fast": "0.0.7", "torch": "1.0"}
    later = model_card(model.fitted_, type(model))  # as another version saves it
    assert "Trained with seqcls_fast 0.0.7." in later
    assert "| torch | `1.0` |" in later
    plain = (made / "plain" / "README.md").read_text()
    assert "| validation" not in plain
    assert "intervals" not in plain


def test_a_calibrated_model(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = sf.TextClassifier.load(made / "model")
    before = model_card(model.fitted_, type(model))
    other, labels = sentences(5)
    model.calibrate(other, labels).choose_threshold(other, labels, label="pos", recall=0.5)
    model.save(tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"a temperature of {model.temperature_:.4g}." in card
    assert str(model.threshold_) in card
    assert [line for line in before.splitlines() if line not in card] == []  # all else stays
    command = (tmp_path / "model" / "command.json").read_text()
    assert command == (made / "model" / "command.json").read_text()
    answer, _ = answer_of(capsys, 0, tmp_path / "model")
    assert answer["weights"]["equal"]
    assert answer["metrics"]["log loss"]["before"] == answer["metrics"]["log loss"]["now"]
    assert ["calibrated afterwards, which is not repeated" in note for note in answer["notes"]] == [True]


def test_a_model_of_python_s_has_a_card_without_command(tmp_path: Path) -> None:
    X, y = sentences(count=40)
    model = sf.TextClassifier(hidden_size=4, epochs=1, verbose=False).fit(X, ["a|b" if x == "pos" else "c" for x in y])
    card = model_card(model.fitted_, type(model))
    assert "reproduce" not in card
    assert "| training | 40 |" in card
    assert r"2 classes: `a\x7cb`, `c`." in card
    model.save(tmp_path / "m")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_what_was_saved_with_a_model_is_not_said_of_another(made: Path, tmp_path: Path) -> None:
    model = sf.TextClassifier.load(made / "model")
    assert list(model.extra_) == ["command.json"]
    model.fit(*sentences(count=40)).save(tmp_path / "m")
    assert not (tmp_path / "m" / "command.json").exists()


@pytest.mark.parametrize(("text", "message"), [("{", "expected JSON"), ("[1]", "expected an object but got [1]")])
def test_a_spoiled_command(copied: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    (copied / "model" / "command.json").write_text(text)
    with pytest.raises(store.StoreError, match=rf"command\.json: .*{re.escape(message)}"):
        sf.TextClassifier.load(copied / "model")
    assert message in refused(capsys, "reproduce", copied / "model")


def test_a_model_and_its_command_are_written_together(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that is full at the last file leaves the model that was there."""
    folder = copied / "model"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    original, synced = os.fsync, []

    def fsync(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) == len(before):
            raise OSError(28, "No space left on device")
        original(descriptor)

    monkeypatch.setattr(Checkpoints, "write", lambda self, state: None)  # which synchronises files, too
    monkeypatch.setattr(os, "fsync", fsync)
    arguments = [*SMALL, "--seed", "3", "--validation-share", "0.25", "--overwrite", "--out", folder]
    assert "No space left" in refused(capsys, "train", copied / "data.csv", *arguments)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


# -- reproduce --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model", "filed", "plain"])
def test_the_same_weights(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    answer, err = answer_of(capsys, 0, made / name, "--keep", tmp_path / "again")
    assert (err, answer["reproduced"], answer["verdict"]) == ("", True, "weights are equal bit by bit")
    assert answer["weights"] == {"equal": True, "largest_difference": 0.0, "said": "weights are equal"}
    assert (answer["other"], answer["differences"], answer["notes"]) == ([], {}, [])
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (made / name / "model.safetensors").read_bytes()
    assert (answer["metrics"].get("accuracy") is None) == (name == "plain")
    for metric in answer["metrics"].values():
        assert metric["before"] == metric["now"]
    report = json.loads((made / name / "config.json").read_text())["validation_report"]
    if report is not None:
        assert answer["metrics"]["accuracy"]["interval"] == report["intervals"]["accuracy"]
        assert answer["metrics"]["accuracy"]["within"] is True
        methods = [answer["metrics"][each]["method"] for each in ("accuracy", "macro f1")]
        assert methods == [METHODS["accuracy"], METHODS["macro_f1"]]
        assert answer["metrics"]["log loss"]["within"] is None


def test_the_table(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run("reproduce", made / "model") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["before", "now", "interval", "before"]
    assert any(line.startswith("balanced accuracy ") and " to " in line for line in lines)
    assert "weights are equal bit by bit" in lines


def test_series_with_class_weights_and_the_threads_of_then(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "series.jsonl"
    rows = [{"series": x.tolist(), "label": label} for x, label in zip(*waves(count=40), strict=True)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--kind", "series", "--hidden-size", "4", "--epochs", "2", "--class-weight", '{"1": 3.0}']
    folders = ["--log-dir", "none", "--checkpoint-dir", tmp_path / "checkpoints"]
    torch.set_num_threads(2)
    assert run("train", data, *options, *folders, "--out", tmp_path / "m") == 0
    torch.set_num_threads(1)
    answer, _ = answer_of(capsys, 0, tmp_path / "m", "--keep", tmp_path / "again")
    assert answer["weights"]["equal"]
    assert json.loads((tmp_path / "again" / "command.json").read_text())["threads"] == 2
    assert torch.get_num_threads() == 1


def test_data_that_moved(copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, elsewhere = copied / "filed", tmp_path / "elsewhere.csv"
    for name in ("data", "other"):  # the copy of the model names those
        path = copied / "filed" / "command.json"
        path.write_text(path.read_text().replace(f"{name}.csv", f"gone-{name}.csv"))
    err = refused(capsys, "reproduce", model)
    assert "gone-data.csv: expected the file that the model was trained with (--data names another)" in err
    shutil.copy(copied / "data.csv", elsewhere)
    err = refused(capsys, "reproduce", model, "--data", elsewhere)
    assert "gone-other.csv: expected the file" in err
    assert "(--validation names another)" in err
    moved = ["--data", elsewhere, "--validation", copied / "other.csv"]
    answer, _ = answer_of(capsys, 0, model, *moved, "--keep", tmp_path / "again")
    assert answer["weights"]["equal"]
    record = json.loads((tmp_path / "again" / "command.json").read_text())
    assert record["settings"]["data"] == str(elsewhere)


def test_data_that_changed(made: Path, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = copied / "data.csv"
    before = train_command.sha256(data)
    with data.open("a") as file:
        file.write("a new line,pos\n")
    err = refused(capsys, "reproduce", made / "model", "--data", data)
    assert err.startswith(f"{data}: expected the data that the model was trained with, of SHA-256 {before}, but got ")
    assert train_command.sha256(data) in err
    err = refused(capsys, "reproduce", made / "model", "--validation", data)
    assert "--validation: expected nothing, as the model was trained without, but got" in err


def test_what_cannot_be_reproduced(made: Path, copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = copied / "model"
    config = json.loads((model / "config.json").read_text())
    del config["data"]
    (model / "config.json").write_text(json.dumps(config))
    assert "expected 'data' to be saved, but the model is of an older version" in refused(capsys, "reproduce", model)
    (copied / "plain" / "command.json").unlink()
    assert "expected command.json, as train writes it" in refused(capsys, "reproduce", copied / "plain")
    taken = refused(capsys, "reproduce", made / "model", "--keep", made / "plain")
    assert "expected a new or empty directory (--out replaces nothing)" in taken
    assert "expected config.json" in refused(capsys, "reproduce", copied / "nowhere")


def test_other_weights_that_are_as_good(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = copied / "model"
    change_settings(model, dropout=0.1)
    report = json.loads((model / "config.json").read_text())["validation_report"]
    wide = {name: [0.0, 1.0] for name in report["intervals"]}
    change(model / "config.json", validation_report=report | {"intervals": wide})
    answer, err = answer_of(capsys, 0, model)
    assert err == ""
    assert answer["weights"]["largest_difference"] > 0
    assert answer["verdict"].startswith("weights differ by at most ")
    assert answer["verdict"].endswith("each metric lies within the interval that it had")


def test_another_model(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = copied / "model"
    change_settings(model, epochs=1, learning_rate=1e-6, wide=False)  # which learns nothing
    report = json.loads((model / "config.json").read_text())["validation_report"]
    narrow = {name: [0.99, 1.0] for name in report["intervals"]}
    change(model / "config.json", validation_report=report | {"intervals": narrow})
    answer, err = answer_of(capsys, 1, model)
    assert not answer["reproduced"]
    assert err == f"{model}: {answer['verdict']}\n"
    assert "expected accuracy from 0.9900 to 1.0000 but got 0." in err
    assert run("reproduce", model) == 1
    assert " (outside)" in capsys.readouterr().out
    change_settings(model, hidden_size=4)
    answer, err = answer_of(capsys, 1, model)
    assert answer["weights"]["largest_difference"] is None
    assert "weights have other shapes; expected accuracy" in err


def test_other_weights_and_nothing_to_measure_by(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_settings(copied / "plain", dropout=0.1)
    answer, err = answer_of(capsys, 1, copied / "plain")
    assert "there was no validation to tell whether the model is as good" in err
    assert list(answer["metrics"]) == ["training loss", "training accuracy"]


def test_versions_and_searches_are_told(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / "model" / "command.json"
    record = json.loads(path.read_text())
    change(path, versions=record["versions"] | {"torch": "1.0", "gone": "2"}, device="NVIDIA H200")
    (copied / "model" / "search.json").write_text('{"saved": 1, "trials": []}')
    answer, _ = answer_of(capsys, 0, copied / "model")
    assert answer["differences"] == {
        "torch": ["1.0", torch.__version__], "gone": ["2", None], "device": ["NVIDIA H200", "cpu"]
    }  # fmt: skip
    assert answer["notes"] == ["the model was chosen among others (search.json): its own training was repeated"]
    assert run("reproduce", copied / "model") == 0
    assert f"torch: 1.0 before, {torch.__version__} now" in capsys.readouterr().out.splitlines()


# -- the comparison ---------------------------------------------------------------------------------------------------


def saved_of(made: Path) -> tuple[Any, dict[str, Any]]:
    return store.load_folder(made / "model"), store.load_extra(made / "model")["command.json"]


def test_how_far_equality_could_go(made: Path) -> None:
    saved, record = saved_of(made)
    assert reproduce.compare(saved, record, saved, record)["notes"] == []
    notes = reproduce.compare(saved, record | {"ranks": 4, "resumed": True}, saved, record)["notes"]
    assert notes[0].startswith(
        "4 processes trained the model and 1 trained it again: at best weights are equal but for"
    )
    assert notes[0].endswith("and dropout draws for each process of its own")
    assert "was resumed" in notes[1]
    still = deepcopy(record) | {"ranks": 4}
    still["settings"]["dropout"] = 0.0
    assert reproduce.compare(saved, still, saved, record)["notes"][0].endswith("but for rounding")
    short = deepcopy(saved)
    short[0]["history"][1]["accumulated"] = 2
    assert "short of memory" in reproduce.compare(short, record, saved, record)["notes"][0]


def test_classes_vocabulary_and_data_are_compared(made: Path) -> None:
    saved, record = saved_of(made)
    for name, value in {"classes": ["a", "b"], "encoder": {}, "data": saved[0]["data"] | {"digest": "0"}}.items():
        other = saved[0] | {name: value}, saved[1]
        answer = reproduce.compare(saved, record, other, record)
        assert answer["other"] == [name]
        assert answer["reproduced"] == (name != "classes")
    more = saved[0] | {"data": saved[0]["data"] | {"threads": 7}}, saved[1]
    assert reproduce.compare(saved, record, more, record)["other"] == []
    fewer = {name: tensor for name, tensor in saved[1].items() if name != "seen.near"}  # no weights
    assert reproduce.compare(saved, record, (saved[0], fewer), record)["weights"]["equal"]


@pytest.mark.parametrize(("now", "within"), [(0.8, True), (0.9, True), (0.7999, False), (0.9001, False)])
@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "macro_f1"])
def test_every_metric_must_lie_within_its_interval(made: Path, now: float, within: bool, name: str) -> None:
    saved, record = saved_of(made)
    intervals = {each: [0.0, 1.0] for each in saved[0]["validation_report"]["intervals"]} | {name: [0.8, 0.9]}
    before = saved[0] | {"validation_report": saved[0]["validation_report"] | {"intervals": intervals}}, saved[1]
    report = deepcopy(before[0]["validation_report"])
    if name == "macro_f1":
        report["macro"]["f1"] = now
    else:
        report[name] = now
    weights = saved[1] | {"model.head.bias": saved[1]["model.head.bias"] + 0.5}
    answer = reproduce.compare(before, record, (saved[0] | {"validation_report": report}, weights), record)
    assert answer["weights"] == {
        "equal": False, "largest_difference": pytest.approx(0.5), "said": "weights differ by at most 0.5 (head.bias)"
    }  # fmt: skip
    assert answer["reproduced"] is within


def test_metrics_of_a_report() -> None:
    X, y = sentences(count=60)
    model = sf.TextClassifier(hidden_size=4, epochs=1, verbose=False).fit(X, y, validation=sentences(3, 40))
    report = model.evaluate(*sentences(3, 40))
    found = metrics_of(model.validation_report_)
    assert list(found) == [name for name, _, _ in report.summary()]
    for name, value, interval in report.summary():
        assert found[name] == (pytest.approx(value), None if interval is None else pytest.approx(interval))


def test_the_digest_of_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "a.csv")
    first = train_command.sha256(tmp_path)
    assert train_command.sha256(tmp_path) == first
    (tmp_path / "a.csv").rename(tmp_path / "b.csv")
    second = train_command.sha256(tmp_path)
    write(tmp_path / "b.csv", seed=1)
    assert len({first, second, train_command.sha256(tmp_path)}) == 3


def test_the_file_of_vectors_must_be_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, vectors = write(tmp_path / "data.csv"), tmp_path / "some.vec"
    vectors.write_text("good 1 2 3\nbad 3 2 1\nfilm 0 0 1\nday 0 1 0\n")
    small = ["--hidden-size", "8", "--embedding-dim", "3", "--epochs", "2", "--vectors", vectors]
    assert run("train", data, *small, "--out", tmp_path / "model") == 0
    assert answer_of(capsys, 0, tmp_path / "model")[0]["weights"]["equal"]
    vectors.write_text("good 1 2 3\nbad 3 2 2\nfilm 0 0 1\nday 0 1 0\n")
    words = refused(capsys, "reproduce", tmp_path / "model")
    assert "some.vec: expected the file that the model was trained with, of SHA-256" in words


def test_the_words_of_an_array_of_vectors_must_be_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, vectors, names = write(tmp_path / "data.csv"), tmp_path / "some.npy", tmp_path / "some.words"
    np.save(vectors, np.eye(4, 3, dtype=np.float32))
    names.write_text("good\nbad\nfilm\nday\n")
    small = ["--hidden-size", "8", "--embedding-dim", "3", "--epochs", "2", "--vectors", vectors]
    assert run("train", data, *small, "--out", tmp_path / "model") == 0
    assert answer_of(capsys, 0, tmp_path / "model")[0]["weights"]["equal"]
    names.write_text("bad\ngood\nfilm\nday\n")
    words = refused(capsys, "reproduce", tmp_path / "model")
    assert "some.words: expected the file that the model was trained with, of SHA-256" in words

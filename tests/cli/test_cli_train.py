"""`train`: the models, files and messages that it leaves."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import seqcls_fast
from seqcls_fast.cli import train as train_command
from support.commands import ENVIRONMENT, RUN, SMALL, refused, reviews, told, weights, write_csv


def test_train_says_what_it_did(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, "train", made.train, *made.columns, *SMALL, "--epochs", "2", "--out", str(tmp_path / "m"))
    assert out.startswith("120 texts, 2 classes, 2 epochs, ")
    assert out.endswith(f"saved to {tmp_path / 'm'}\n")


def test_train_with_everything(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = ["--report", str(tmp_path / "r.html"), "--pictures", str(tmp_path / "pictures"), "--json"]
    arguments = [
        made.train,
        *made.columns,
        *SMALL,
        "--validation-share",
        "0.25",
        "--out",
        str(tmp_path / "m"),
        *outputs,
    ]
    answer = json.loads(told(capsys, "train", *arguments))
    assert (answer["rows"], answer["validation_rows"], answer["classes"]) == (90, 30, ["neg", "pos"])
    assert len(answer["history"]) == 4
    assert "val_loss" in answer["history"][-1]
    assert answer["report"]["per_class"]["pos"]["support"] == 15
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<svg" in page
    pictures = sorted(path.stem for path in (tmp_path / "pictures").iterdir())
    assert pictures == ["confusion", "learning_curves", "lengths", "precision_recall", "reliability", "roc"]
    model = seqcls_fast.toolkit.estimators.TextClassifier.load(tmp_path / "m")
    assert model.get_params()["hidden_size"] == 8


def test_duplicates_across_the_split_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_csv(tmp_path / "d.csv", ("text", "label"), reviews(20, 1) * 4)
    arguments = [data, *SMALL, "--validation-share", "0.25", "--out", str(tmp_path / "m"), "--json"]
    found = json.loads(told(capsys, "train", *arguments))["report"]["warnings"]
    assert any("duplicate" in warning for warning in found), found


def test_a_second_file_validates(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [made.train, *made.columns, *SMALL, "--validation", made.test, "--out", str(tmp_path / "m"), "--json"]
    answer = json.loads(told(capsys, "train", *arguments))
    assert (answer["rows"], answer["validation_rows"]) == (120, 40)
    record = json.loads((tmp_path / "m" / "command.json").read_text())
    assert set(record["sha256"]) == {made.train, made.test}


@pytest.mark.parametrize("way", ["command", "command.json", "config.json"])
def test_a_model_is_reproduced(
    made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    record = json.loads(Path(made.model, "command.json").read_text())
    assert record["versions"]["torch"] == torch.__version__
    if way == "command":
        program, *words = shlex.split(record["command"])
        assert program == "seqcls-fast"
        assert words[-2:] == ["--out", made.model]
        arguments = words[:-2]
    elif way == "command.json":
        arguments = ["train", "--config", str(Path(made.model, way))]
    else:
        arguments = ["train", made.train, *made.columns, "--config", str(Path(made.model, way))]
    told(capsys, *arguments, "--out", str(tmp_path / "again"))
    assert weights(tmp_path / "again") == weights(made.model)
    again = json.loads((tmp_path / "again" / "command.json").read_text())
    assert again["settings"] == record["settings"]


def test_a_saved_model_is_not_replaced_by_accident(
    made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", made.train, *made.columns, *SMALL, "--out", str(tmp_path)]
    (tmp_path / "notes.txt").write_text("mine")
    assert "expected a new or empty directory (--overwrite replaces a saved model)" in refused(capsys, *train)
    assert "expected a new folder or one that holds a saved model alone" in refused(capsys, *train, "--overwrite")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    (tmp_path / "notes.txt").unlink()
    told(capsys, *train)
    before = weights(tmp_path)
    told(capsys, *train, "--overwrite", "--seed", "1")
    assert weights(tmp_path) != before
    assert (tmp_path / "command.json").exists()


def test_weights_stay_with_their_rows() -> None:
    x, y, weight = list(range(40)), [k % 2 for k in range(40)], [float(k) for k in range(40)]
    x_left, y_left, weight_left, (x_held, y_held) = train_command._split(x, y, weight, 0.25, 0)
    assert sorted(x_left + x_held) == x
    assert y_left == [k % 2 for k in x_left]
    assert y_held == [k % 2 for k in x_held]
    assert sum(y_held) == 5
    assert weight_left == x_left


def test_class_weights_of_numbers(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """JSON's keys are strings; the labels of a JSONL file may be numbers."""
    arguments = ["--kind", "series", "--hidden-size", "4", "--epochs", "1", "--class-weight", '{"1": 3.0}']
    told(capsys, "train", made.series, *arguments, "--out", str(tmp_path / "m"))
    model = seqcls_fast.toolkit.estimators.SeriesClassifier.load(tmp_path / "m")
    assert model.class_weight == {1: 3.0}
    err = refused(capsys, "train", made.series, *arguments[:-1], '{"7": 1}', "--out", str(tmp_path / "n"))
    assert "class_weight" in err
    assert not (tmp_path / "n").exists()


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_leaves_what_was_saved(
    made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "m"
    train = ["train", made.train, *made.columns, *SMALL, "--out", str(folder)]
    told(capsys, *train)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    process = subprocess.Popen(
        [*RUN, *train, "--overwrite", "--verbose", "--epochs", "1000000"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell may have told us to ignore it
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:  # until training is under way
        if line.startswith("epoch"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    kept = tmp_path / ".m.checkpoints"
    assert err.splitlines()[-2] == f"{kept} holds the newest checkpoint; --resume goes on from it"
    assert err.splitlines()[-1] == "interrupted; what was saved before is untouched"
    assert "Traceback" not in err
    assert out == ""
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(tmp_path.iterdir()) == [kept, folder]

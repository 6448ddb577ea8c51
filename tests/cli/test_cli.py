"""The commands around a model: their inputs, files and output, and the message of each failure.

Most tests call main(); a process is started where only that shows the behaviour: the imports of --help, standard input,
pipes, Ctrl-C.
"""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from types import NoneType, SimpleNamespace
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch

import seqcls_fast
from seqcls_fast import __main__, _ext
from seqcls_fast.classifier import CELLS, POOLINGS, SequenceClassifier
from seqcls_fast.cli import bench, info, options, shared
from seqcls_fast.cli import train as train_command
from seqcls_fast.cli.main import make_parser
from seqcls_fast.toolkit import estimators, parameter_table
from seqcls_fast.toolkit.training.loop import METRICS, SCHEDULES

COMMANDS = ("train", "evaluate", "predict", "trace", "calibrate", "reproduce", "export", "bench", "info", "plan")
BLOCKED = ("torch", "numpy", "sklearn", "tokenizers", "safetensors", "matplotlib", "rich", "pyarrow")
RUN = [sys.executable, "-m", "seqcls_fast"]
# Output that is not buffered would hide what happens to it at the end.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {
    "OMP_NUM_THREADS": "1"
}
GOOD, BAD, OTHER = ("good", "great", "fine"), ("bad", "awful", "poor"), ("the", "a", "film", "plot", "actor")
SMALL = ["--hidden-size", "8", "--embedding-dim", "8", "--epochs", "4", "--max-length", "12"]


def reviews(count: int, seed: int) -> list[tuple[str, str]]:
    draw, rows = random.Random(seed), []
    for number in range(count):
        words = [draw.choice(OTHER) for _ in range(draw.randint(2, 6))] + [f"n{seed}x{number}"]
        words[draw.randrange(len(words))] = draw.choice(BAD if number % 2 else GOOD)
        rows.append((" ".join(words), "neg" if number % 2 else "pos"))
    return rows


def write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[str, str]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Data, and a model of texts and one of series, trained by the command."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cli")
    draw = random.Random(0)
    series = [
        {"series": [[draw.gauss(k % 2 * 3, 1), 0.5] for _ in range(3 + k % 5)], "label": k % 2} for k in range(60)
    ]
    found = SimpleNamespace(
        folder=folder,
        train=write_csv(folder / "train.csv", ("review", "stars"), reviews(120, 1)),
        test=write_csv(folder / "test.csv", ("review", "stars"), reviews(40, 2)),
        series=str(folder / "series.jsonl"),
        model=str(folder / "model"),
        series_model=str(folder / "series_model"),
        columns=["--text", "review", "--label", "stars"],
    )
    Path(found.series).write_text("".join(json.dumps(line) + "\n" for line in series))
    assert __main__.main(["train", found.train, *found.columns, *SMALL, "--out", found.model]) == 0
    arguments = ["--kind", "series", "--hidden-size", "8", "--epochs", "4", "--out", found.series_model]
    assert __main__.main(["train", found.series, *arguments]) == 0
    return found


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert __main__.main(arguments) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence of a job that failed."""
    capsys.readouterr()
    assert __main__.main(arguments) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.err.count("\n") == 1, captured.err
    return captured.err.strip()


def misused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_info:
        __main__.main(arguments)
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def options_of(*arguments: str) -> options.TrainOptions:
    return options.from_command_line(make_parser().parse_args(["train", *arguments, "--out", "out"]))


def weights(folder: str | Path) -> bytes:
    return Path(folder, "model.safetensors").read_bytes()


# -- help and options -------------------------------------------------------------------------------------------------


def test_help_imports_no_library() -> None:
    code = f"""
import contextlib, io, sys
for name in {BLOCKED}:
    sys.modules[name] = None  # which makes importing it fail
from seqcls_fast.__main__ import main
for command in {COMMANDS}:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        try:
            main([command, "--help"])
        except SystemExit as end:
            assert end.code == 0, command
    assert "examples:" in text.getvalue() and f"seqcls-fast {{command}}" in text.getvalue(), command
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        __main__.main(["--help"])
    out = capsys.readouterr().out
    assert all(f"\n    {command}" in out for command in COMMANDS)


@pytest.mark.parametrize("kind", parameter_table.ESTIMATORS)
def test_options_are_the_estimators_parameters(kind: str) -> None:
    estimator = getattr(estimators, parameter_table.ESTIMATORS[kind])
    signature, hints = inspect.signature(estimator), get_type_hints(estimator.__init__)
    known = parameter_table.parameters_of(kind)
    assert list(known) == list(signature.parameters)
    assert {name: parameter.default for name, parameter in known.items()} == {
        name: parameter.default for name, parameter in signature.parameters.items()
    }
    for name, parameter in known.items():
        if name != "class_weight":  # Any: the labels in it may have any type
            types = set(get_args(hints[name]) or (hints[name],)) - {os.PathLike[str]}
            assert set(parameter.types) == types, name
    assert options_of("data.csv", "--kind", kind).parameters == {name: each.default for name, each in known.items()}


@pytest.mark.parametrize("kind", parameter_table.ESTIMATORS)
def test_docstrings_describe_the_same_parameters(kind: str) -> None:
    """The docstring of a class names each parameter, and each value that the help of the option puts in quotes."""
    described = [estimators.TextClassifier, getattr(estimators, parameter_table.ESTIMATORS[kind]), SequenceClassifier]
    sections = [inspect.getdoc(each).partition("Args:\n")[2].partition("\n\n")[0] for each in described]
    entries = re.findall(r"^    (\w[\w, ]*):", "\n".join(sections[:2]), re.MULTILINE)
    names = {name for entry in entries for name in entry.split(", ")}
    values = {value for section in sections for value in re.findall(r'"(\w+)"', section)}
    for name, parameter in parameter_table.parameters_of(kind).items():
        assert parameter.help, name
        assert name in names, f"{name} is not in the docstring's Args"
        assert set(re.findall(r'"(\w+)"', parameter.help)) <= values, name


def test_help_names_the_values() -> None:
    known = parameter_table.parameters_of("text")
    for name, values in {"cell": CELLS, "pooling": POOLINGS, "schedule": SCHEDULES, "metric": METRICS}.items():
        assert set(re.findall(r'"(\w+)"', known[name].help)) == set(values)


def test_types_of_parameters() -> None:
    known = parameter_table.parameters_of("text")
    assert known["seed"].types == (int, NoneType)
    assert known["epochs"].types == (int,)
    assert [name for name in known if known[name].is_flag] == ["bidirectional", "lowercase", "amp", "verbose"]


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        (["--hidden-size", "32"], "hidden_size", 32),
        (["--learning-rate", "1e-3"], "learning_rate", 1e-3),
        (["--max-grad-norm", "none"], "max_grad_norm", None),
        (["--max-length", "None"], "max_length", None),
        (["--no-bidirectional"], "bidirectional", False),
        (["--amp"], "amp", True),
        (["--normalization", "none"], "normalization", None),
        (["--cell", "lstm"], "cell", "lstm"),
        (["--log-dir", "7"], "log_dir", "7"),
        (["--class-weight", "balanced"], "class_weight", "balanced"),
        (["--class-weight", '{"a": 2, "b": 0.5}'], "class_weight", {"a": 2, "b": 0.5}),
        (["--class-weight", "none"], "class_weight", None),
        (["--seed", "none"], "seed", None),
    ],
)
def test_values(options: list[str], name: str, value: Any) -> None:
    chosen = options_of("data.csv", *options).parameters[name]
    assert chosen == value
    assert type(chosen) is type(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("train data.csv --out m --epochs many", "argument --epochs: expected int but got 'many'"),
        ("train data.csv --out m --epochs 2.5", "argument --epochs: expected int but got '2.5'"),
        ("train data.csv --out m --learning-rate x", "expected float or none but got 'x'"),
        ("train data.csv --out m --validation-share 1", "expected a share between 0 and 1 but got '1'"),
        ("train data.csv --out m --validation-share 0.1 --validation v", "expected one of them but got both"),
        ("train data.csv --out m --missing mean", "--missing: expected with --kind series but got --kind text"),
        ("train data.ts --out m --tokenizer bpe", "--tokenizer: expected with --kind text but got --kind series"),
        ("train data.csv --out m --report r.html", "--report: expected with --validation or --validation-share"),
        ("train --out m", "data: expected a file but got none"),
        ("train data.csv", "--out"),
        ("export m --to m.txt", "--to: expected a name that ends in .onnx or .pt2 but got 'm.txt'"),
        ("predict m --format xml", "'xml'"),
        ("predict m --batch 0", "expected a number of at least 1 but got '0'"),
        ("trace m", "example"),
    ],
)
def test_mistakes_exit_2(capsys: pytest.CaptureFixture[str], options: str, message: str) -> None:
    err = misused(capsys, *options.split())
    assert err.startswith(f"usage: seqcls-fast {options.split()[0]}")
    assert message in err


# -- train ------------------------------------------------------------------------------------------------------------


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


def test_the_command_line_reads_back() -> None:
    given = [
        "--validation",
        "a b.csv",
        "--class-weight",
        '{"x y": 2}',
        "--no-lowercase",
        "--max-length",
        "none",
        "--verbose",
    ]
    for asked in (
        options_of("my data.csv", "--text", "the text", "--input-format", "csv", *given),
        options_of("d.ts", "--missing", "mask", "--validation-share", "0.5"),
    ):
        line = shlex.join(asked.command_line("out"))
        assert options.from_command_line(make_parser().parse_args(shlex.split(line))) == asked
    assert asked.kind == "series"


def test_config_gives_way_to_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "c.json"
    config.write_text(
        json.dumps({"data": "c.csv", "hidden_size": 5, "cell": "lstm", "validation": "v.csv", "max_length": 9})
    )
    asked = options_of("--config", str(config), "--cell", "gru", "--max-length", "none")
    assert (asked.data, asked.validation) == ("c.csv", "v.csv")
    chosen = asked.parameters
    assert (chosen["hidden_size"], chosen["cell"], chosen["max_length"]) == (5, "gru", None)
    assert asked.given == {"data", "hidden_size", "cell", "validation", "max_length"}
    asked = options_of("d.csv", "--config", str(config), "--validation-share", "0.2")
    assert (asked.data, asked.validation, asked.validation_share) == ("d.csv", None, 0.2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"hiden_size": 5}', "expected the names of train's options but got 'hiden_size'"),
        ("[1]", "expected an object of options but got list"),
        ("{", "expected JSON but got something else"),
    ],
)
def test_config_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    config = tmp_path / "c.json"
    config.write_text(text)
    assert message in refused(capsys, "train", "d.csv", "--config", str(config), "--out", str(tmp_path / "m"))


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


# -- evaluate ---------------------------------------------------------------------------------------------------------


def test_evaluate(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "evaluate", made.model, made.test, *made.columns)
    assert "precision" in text
    page, pictures = tmp_path / "r.html", tmp_path / "pictures"
    answer = json.loads(
        told(
            capsys,
            "evaluate",
            made.model,
            made.test,
            *made.columns,
            "--json",
            "--html",
            str(page),
            "--pictures",
            str(pictures),
        )
    )
    assert answer["examples"] == 40
    model = estimators.TextClassifier.load(made.model)
    rows = reviews(40, 2)
    assert answer["accuracy"] == model.score([row[0] for row in rows], [row[1] for row in rows])
    assert page.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
    assert (pictures / "confusion.png").stat().st_size > 1000


def test_evaluate_finds_leaked_data(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def leaked(model: str, data: str, *arguments: str) -> list[str]:
        answer = json.loads(told(capsys, "evaluate", model, data, *arguments, "--json"))
        return [warning for warning in answer["warnings"] if "duplicates of" in warning]

    assert leaked(made.model, made.test, *made.columns) == []
    assert "120 of 120" in leaked(made.model, made.train, *made.columns)[0]  # which the model remembers
    assert "60 of 60" in leaked(made.series_model, made.series)[0]
    other = write_csv(tmp_path / "other.csv", ("review", "stars"), reviews(5, 2))
    assert "5 of 40" in leaked(made.model, made.test, *made.columns, "--train", other)[0]
    both = write_csv(tmp_path / "both.csv", ("review", "stars"), reviews(5, 1) + reviews(40, 2))
    assert "10 of 45" in leaked(made.model, both, *made.columns, "--train", other)[0]


def test_labels_may_be_text_where_the_model_learnt_numbers(
    made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.loads(line) for line in Path(made.series).read_text().splitlines()]
    path = tmp_path / "s.jsonl"
    path.write_text("".join(json.dumps(line | {"label": str(line["label"])}) + "\n" for line in lines))
    expected = told(capsys, "evaluate", made.series_model, made.series, "--json")
    assert told(capsys, "evaluate", made.series_model, str(path), "--json") == expected
    assert json.loads(expected)["labels"] == ["0", "1"]


# -- predict ----------------------------------------------------------------------------------------------------------


def expected_of(made: SimpleNamespace, texts: list[str]) -> tuple[list[str], np.ndarray]:
    model = estimators.TextClassifier.load(made.model)
    return model.predict(texts).tolist(), model.predict_proba(texts)


def test_predict_csv(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, "predict", made.model, made.test, "--text", "review")
    header, *rows = csv.reader(io.StringIO(out))
    labels, shares = expected_of(made, [row[0] for row in reviews(40, 2)])
    assert header == ["label", "probability_neg", "probability_pos"]
    assert [row[0] for row in rows] == labels
    np.testing.assert_allclose([[float(value) for value in row[1:]] for row in rows], shares, rtol=1e-5)
    path = tmp_path / "labels.csv"
    assert told(capsys, "predict", made.model, made.test, "--text", "review", "--out", str(path)) == ""
    assert path.read_text(encoding="utf-8") == out


def test_predict_jsonl(made: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, "predict", made.model, made.test, "--text", "review", "--format", "jsonl")
    records = [json.loads(line) for line in out.splitlines()]
    labels, shares = expected_of(made, [row[0] for row in reviews(40, 2)])
    assert [record["label"] for record in records] == labels
    assert [list(record["probabilities"].values()) for record in records] == shares.tolist()
    assert list(records[0]["probabilities"]) == ["neg", "pos"]


def test_predict_json_is_one_object(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", made.model, made.test, "--text", "review", "--json", "--batch", "7"]
    answer = json.loads(told(capsys, *arguments))
    labels, _ = expected_of(made, [row[0] for row in reviews(40, 2)])
    assert [record["label"] for record in answer["predictions"]] == labels
    assert answer["summary"] == {"rows": 40, "labels": {name: labels.count(name) for name in ("neg", "pos")}}
    path = tmp_path / "labels.csv"
    summary = json.loads(told(capsys, *arguments, "--out", str(path)))
    assert summary == answer["summary"] | {"out": str(path)}
    assert len(path.read_text().splitlines()) == 41


def test_predict_numbers_keep_their_type(made: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    out = told(capsys, "predict", made.series_model, made.series, "--format", "jsonl")
    assert {json.loads(line)["label"] for line in out.splitlines()} == {0, 1}


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))


def test_predict_lines_of_stdin(
    made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(monkeypatch, 'a good film\n\nan awful, "café" plot\r\nbad'.encode())
    rows = list(csv.reader(io.StringIO(told(capsys, "predict", made.model))))
    labels, _ = expected_of(made, ["a good film", "", 'an awful, "café" plot', "bad"])
    assert [row[0] for row in rows[1:]] == labels


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_predict_records_of_stdin(
    made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], format: str
) -> None:
    data = {"csv": b'id,review\n1,"good,\nfine"\n2,bad\n', "jsonl": b'{"review": "good,\\nfine"}\n{"review": "bad"}\n'}
    stdin(monkeypatch, data[format])
    out = told(capsys, "predict", made.model, "-", "--text", "review", "--input-format", format)
    labels, _ = expected_of(made, ["good,\nfine", "bad"])
    assert [line.split(",")[0] for line in out.splitlines()[1:]] == labels


def test_predict_series_of_stdin(
    made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(monkeypatch, b'{"series": [[-3, 0.5], [0, 0.5]]}\n{"series": [[3, 0.5], [4, 0.5], [3, 0.5]]}\n')
    out = told(capsys, "predict", made.series_model)
    assert [line[0] for line in out.splitlines()[1:]] == ["0", "1"]


def test_predict_of_nothing(
    made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stdin(monkeypatch, b"")
    assert told(capsys, "predict", made.model) == "label,probability_neg,probability_pos\n"
    stdin(monkeypatch, b"")
    assert json.loads(told(capsys, "predict", made.model, "--json")) == {
        "predictions": [], "summary": {"rows": 0, "labels": {"neg": 0, "pos": 0}}
    }  # fmt: skip


def test_predict_streams(
    made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch is asked for only when the one before has been written."""
    seen: list[int] = []
    original = estimators.TextClassifier.predict_proba

    def predict_proba(self: Any, X: list[str]) -> Any:
        seen.append(len(X))
        return original(self, X)

    monkeypatch.setattr(estimators.TextClassifier, "predict_proba", predict_proba)
    stdin(monkeypatch, b"good film\n" * 600)
    assert len(told(capsys, "predict", made.model).splitlines()) == 601
    assert seen == [256, 256, 88]


def test_a_failed_prediction_leaves_the_file_before(
    made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("before")
    stdin(monkeypatch, b"good\n" * 300 + b"\xff\n")
    err = refused(capsys, "predict", made.model, "--out", str(path))
    assert "line 301" in err
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_unreadable_data_writes_nothing(made: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["predict", made.model, made.test, "--text", "txet"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "expected a column 'txet' but got 'review', 'stars'" in captured.err


def test_pipes_are_utf_8_whatever_the_locale(made: SimpleNamespace) -> None:
    command, environment = [*RUN, "trace", made.model, "-"], ENVIRONMENT | {"PYTHONIOENCODING": "ascii"}
    text = "schöner Film\n".encode()
    result = subprocess.run(command, input=text, capture_output=True, timeout=120, env=environment)
    assert (result.returncode, result.stderr) == (0, b"")
    assert "'schöner Film'" in result.stdout.decode()
    assert "█" in result.stdout.decode()


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_reader_that_has_seen_enough(made: SimpleNamespace) -> None:
    process = subprocess.Popen(
        [*RUN, "predict", made.model],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENVIRONMENT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.write(b"good film\n" * 2000)
    process.stdin.close()
    assert process.wait(timeout=120) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


# -- trace, export, bench ---------------------------------------------------------------------------------------------


def test_trace(
    made: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = told(capsys, "trace", made.model, "A good film", "--picture", str(tmp_path / "t.svg"))
    labels, shares = expected_of(made, ["A good film"])
    assert text.splitlines()[0].endswith("'A good film'")
    assert f"P({labels[0]})" in text
    assert (tmp_path / "t.svg").read_text(encoding="utf-8").count("<svg") == 1
    answer = json.loads(told(capsys, "trace", made.model, "A good film", "--json"))
    assert [stage["name"] for stage in answer["stages"]] == [
        "ids",
        "embedding",
        "hidden",
        "pooled",
        "logits",
        "softmax",
    ]
    assert len(answer["tokens"]) == 3
    np.testing.assert_allclose(answer["probabilities"][-1], shares[0], rtol=1e-6)
    stdin(monkeypatch, b"A good film")
    assert json.loads(told(capsys, "trace", made.model, "-", "--json"))["probabilities"] == answer["probabilities"]


def test_trace_of_a_series(made: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    answer = json.loads(told(capsys, "trace", made.series_model, "[[1, 2], [3, 4]]", "--json"))
    assert (answer["kind"], answer["raw"]) == ("series", [[1, 2], [3, 4]])
    model = estimators.SeriesClassifier.load(made.series_model)
    np.testing.assert_allclose(
        answer["probabilities"][-1], model.predict_proba([np.array([[1, 2], [3, 4]])])[0], rtol=1e-6
    )
    assert "expected a series as JSON" in refused(capsys, "trace", made.series_model, "no JSON")


@pytest.mark.skipif(_ext.C is None, reason="exporting needs the compiled extension")
@pytest.mark.parametrize("kind", ["text", "series"])
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_export(
    made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str, kind: str
) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
        runtime = pytest.importorskip("onnxruntime")
    path, folder = tmp_path / f"m{suffix}", made.model if kind == "text" else made.series_model
    answer = json.loads(told(capsys, "export", folder, "--to", str(path), "--json"))
    model = getattr(estimators, parameter_table.ESTIMATORS[kind]).load(folder)
    assert answer["classes"] == model.classes_.tolist()
    data = ["a good film", "bad", "the plot of the film"] if kind == "text" else [np.ones((n, 2)) for n in (4, 1, 11)]
    x, lengths = model.encoder_.encode(data).pad([0, 1, 2])
    if suffix == ".onnx":
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        logits = torch.from_numpy(session.run(["logits"], {"x": x.numpy(), "lengths": lengths.numpy()})[0])
    else:
        extra = {"classes.json": ""}
        logits = torch.export.load(path, extra_files=extra).module()(x, lengths)
        assert json.loads(extra["classes.json"]) == answer["classes"]
    np.testing.assert_allclose(logits.detach().double().softmax(1).numpy(), model.predict_proba(data), atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("cell", CELLS)
def test_bench_compares_the_same_model(cell: str, pooling: str) -> None:
    options: dict[str, Any] = {"cell": cell, "pooling": pooling, "bidirectional": pooling != "mean", "num_layers": 2}
    model = SequenceClassifier(5, 6, 3, vocab_size=30, **options).eval()
    x, lengths = shared.random_batch(model, 9, longest=40)
    with torch.no_grad():
        expected = model(x, lengths)
        torch.testing.assert_close(bench._with_torch(model)(x, lengths), expected, rtol=1e-4, atol=1e-5)


def test_bench(made: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    for model in ([], [made.series_model]):
        answer = json.loads(told(capsys, "bench", *model, "--rounds", "1", "--rows", "4", "--threads", "1", "--json"))
        assert list(answer["seconds"]) == ["training step", "inference", "one row"]
        assert all(set(times) == {"seqcls_fast", "torch.nn"} for times in answer["seconds"].values())
    assert "torch.nn packed" in told(capsys, "bench", made.model, "--rounds", "1", "--rows", "4")


def test_bench_refuses_to_compare_different_models(
    made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = bench._with_torch

    def changed(model: Any) -> Any:
        model = original(model)
        with torch.no_grad():
            model.head.bias += torch.arange(model.num_classes)
        return model

    monkeypatch.setattr(bench, "_with_torch", changed)
    assert "expected equal first losses" in refused(capsys, "bench", made.model, "--rounds", "1", "--rows", "4")


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ""),
        (b"text,label\n", "expected at least one example but got none"),
        (b"text,label\ngood,pos\nfine,pos\n", "expected at least two classes but got one"),
        (b"text,label\ngood,pos\nfine,\n", "line 3: expected a label"),
        (b"text,label\ngood,pos\n\xff\xfe,neg\n", "line 3: expected UTF-8"),
        (b"txt,label\ngood,pos\n", "expected a column 'text' but got 'txt', 'label'"),
    ],
)
def test_bad_data(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(content)
    assert message in refused(capsys, "train", str(path), "--out", str(tmp_path / "m"))
    assert not (tmp_path / "m").exists()


def test_failures_are_a_sentence(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = str(tmp_path / "nowhere" / "file")
    for arguments in (
        ["train", nowhere, "--out", str(tmp_path / "m")],
        [
            "train",
            made.train,
            *made.columns,
            "--validation-share",
            "0.1",
            "--report",
            nowhere,
            "--out",
            str(tmp_path / "m"),
        ],
        ["train", made.train, *made.columns, "--cell", "gruu", "--out", str(tmp_path / "m")],
        ["evaluate", made.model, nowhere],
        ["evaluate", made.model, made.test, "--html", nowhere],
        ["predict", nowhere],
        ["predict", made.model, made.test, "--text", "review", "--out", nowhere],
        ["trace", made.model, "good", "--picture", nowhere + ".png"],
        ["trace", made.model, "good", "--picture", str(tmp_path / "t.gif")],
        ["export", made.model, "--to", nowhere + ".onnx"],
        ["bench", nowhere],
    ):
        assert "expected" in (message := refused(capsys, *arguments)) or nowhere in message
    assert not any(tmp_path.iterdir())


def test_without_the_toolkits_libraries(
    made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    install = "needs numpy: pip install 'seqcls-fast[toolkit]'"
    assert refused(capsys, "train", made.train, "--out", "m") == f"seqcls-fast train {install}"
    assert refused(capsys, "predict", made.model, made.test) == f"a saved model {install}"


def test_a_damaged_model(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "m"
    told(capsys, "train", made.train, *made.columns, *SMALL, "--epochs", "1", "--out", str(folder))
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert "truncated or changed" in refused(capsys, "predict", str(folder), made.test)


def test_debug_shows_where(made: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["predict", made.model, "nowhere.csv", "--debug"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "FileNotFoundError" in err


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    """As on a full disk: each write to a file fails, also the one that Python tries when it ends."""
    import resource

    with (tmp_path / "out").open("wb") as file:
        result = subprocess.run(
            [*RUN, "info"], stdout=file, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, timeout=120,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        )  # fmt: skip
    assert (result.returncode, result.stderr) == (1, "File too large\n")


def test_warnings_are_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    original = info.collect

    def warning() -> dict[str, Any]:
        warnings.warn("it is late", stacklevel=2)
        return original()

    monkeypatch.setattr(info, "collect", warning)
    assert __main__.main(["info"]) == 0
    assert capsys.readouterr().err == "warning: it is late\n"


def test_our_own_mistakes_say_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise KeyError("threads")

    monkeypatch.setattr(info, "collect", broken)
    assert refused(capsys, "info") == "unexpected KeyError: 'threads' (--debug shows where)"


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    shared.print_json(
        {"a": float("nan"), 1: [np.float64("inf"), np.int64(2)], "p": Path("x"), "t": torch.tensor([1.0])}
    )
    out = capsys.readouterr().out
    assert json.loads(out, parse_constant=pytest.fail) == {"a": None, "1": [None, 2], "p": "x", "t": [1.0]}


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

"""The options of a training: the table of parameters, the values of options, config files."""

from __future__ import annotations

import inspect
import json
import os
import re
import shlex
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import pytest

from seqcls_fast.classifier import CELLS, POOLINGS, SequenceClassifier
from seqcls_fast.cli import options
from seqcls_fast.cli.main import make_parser
from seqcls_fast.toolkit import estimators, parameter_table
from seqcls_fast.toolkit.training.options import METRICS, SCHEDULES
from support.commands import refused


def options_of(*arguments: str) -> options.TrainOptions:
    return options.from_command_line(make_parser().parse_args(["train", *arguments, "--out", "out"]))


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
    assert known["max_vocab"].types == (int,)
    assert [name for name in known if known[name].is_flag] == [
        "bidirectional",
        "wide",
        "lowercase",
        "refit",
        "amp",
        "verbose",
        "baseline",
        "warm_start",
    ]


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


def test_config_with_a_name_that_is_too_long(tmp_path: Path) -> None:
    """The name is refused where the file is opened, by the name's sentence."""
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"data": "x" * 3000}))
    assert options.from_file(config).stream is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"hiden_size": 5}', "expected the names of train's options but got 'hiden_size'"),
        ("[1]", "expected an object of options but got list"),
        ("{", "expected JSON but got something else"),
        ('{"kind": ["text"]}', "kind: expected str but got ['text']"),
        ('{"label": 5}', "label: expected str but got 5"),
        ('{"validation_share": "a"}', "validation_share: expected float | None but got 'a'"),
    ],
)
def test_config_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    config = tmp_path / "c.json"
    config.write_text(text)
    assert message in refused(capsys, "train", "d.csv", "--config", str(config), "--out", str(tmp_path / "m"))

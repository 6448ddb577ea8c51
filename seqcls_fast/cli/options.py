"""The options of a training, from the command line and a config file, as one record: TrainOptions.

The fields of the record that carry a help text become options of the parser; so do the parameters of the estimators,
which toolkit/parameter_table.py lists.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
from collections.abc import Collection
from pathlib import Path
from types import NoneType
from typing import Any

from .._files import open_regular
from ..toolkit._terminal import did_you_mean, escaped, kind_of, shown
from ..toolkit.parameter_table import ESTIMATORS, PARAMETERS, Parameter, parameters_of
from ..toolkit.schema import check_annotated, loads
from .shared import UsageError, plain

__all__ = ["TrainOptions", "add_data_options", "add_parameters", "from_command_line", "from_file"]


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1 but got {shown(text)}")
    return share


def _option(help: str, default: Any = dataclasses.MISSING, **keywords: Any) -> Any:
    """A field that is also an option, with keywords of add_argument(). Without a default, _resolved() finds one."""
    return dataclasses.field(default=default, metadata={"help": help, **keywords})


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """The data to train on and the way to train: everything that decides which model results."""

    data: str
    kind: str = _option("text or series (default: series for .ts, else text)", choices=tuple(ESTIMATORS))
    text: str = _option("the column of the texts", "text", metavar="COLUMN")
    label: str = _option("the column of the labels", "label", metavar="COLUMN")
    weight: str | None = _option("a column of sample weights", None, metavar="COLUMN")
    input_format: str | None = _option(
        "csv, tsv, jsonl, parquet or ts (default: by the file's suffix)", None, metavar="FORMAT"
    )
    delimiter: str | None = _option("what separates the fields of CSV in place of a comma", None, metavar="SIGN")
    stream: bool = _option(
        "read the data while training goes on, for more than fits in memory (default: for a folder)",
        action=argparse.BooleanOptionalAction,
    )
    validation: str | None = _option(
        "a second file, to measure on after each epoch and at the end", None, metavar="FILE"
    )
    validation_share: float | None = _option(
        "or a share of the data instead, such as 0.1", None, metavar="SHARE", type=_share
    )
    parameters: dict[str, Any]  # of the estimator, by the names of its constructor
    given: frozenset[str] = dataclasses.field(default=frozenset(), compare=False)  # the names that the user set

    @property
    def validated(self) -> bool:
        return self.validation is not None or self.validation_share is not None

    @property
    def files(self) -> list[str]:
        """The files that parameters name, where they are there; fit() says what is wrong with others."""
        from ..toolkit.data.vectors import with_words

        vectors, tokenizer = (self.parameters.get(name) for name in ("vectors", "tokenizer"))
        named = [*(with_words(vectors) if isinstance(vectors, str) else []), tokenizer]
        return [path for path in named if isinstance(path, str) and Path(path).suffix and os.path.isfile(path)]

    def replace(self, **fields: Any) -> TrainOptions:
        return dataclasses.replace(self, **fields)

    def with_parameters(self, **parameters: Any) -> TrainOptions:
        return dataclasses.replace(self, parameters=self.parameters | parameters)

    def data_options(self) -> dict[str, Any]:
        """The fields that are not parameters of the estimator."""
        return {name: getattr(self, name) for name in ("data", *_FIELDS)}

    def to_json(self) -> dict[str, Any]:
        """As command.json has it, where from_file() reads it."""
        return self.data_options() | self.parameters

    def command_line(self, out: str) -> list[str]:
        """The arguments that train the same model, with nothing left to defaults, which another version may change."""
        words = ["train", str(self.data)]
        for name, value in self.data_options().items():
            if isinstance(value, bool):
                words.append(_flag(name if value else "no_" + name))
            elif name != "data" and value is not None:
                words += [_flag(name), str(value)]
        known = parameters_of(self.kind)
        for name, value in self.parameters.items():
            if name in _IN_PYTHON:
                continue
            if isinstance(value, bool):
                words.append(_flag(name if value else "no_" + name))
            elif value is not None or not known[name].is_flag:
                words += [_flag(name), json.dumps(plain(value)) if isinstance(value, dict) else _word(value)]
        return [*words, "--out", out]


_FIELDS = {field.name: field for field in dataclasses.fields(TrainOptions) if field.metadata}
_IN_PYTHON = ("warm_start",)  # parameters about an estimator that is fitted already, which the command line has none of
_UNSET = (None, dataclasses.MISSING)
_NAMES = {"data", *_FIELDS, *(parameter.name for parameter in PARAMETERS)}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _word(value: Any) -> str:
    """A value as the command line has it."""
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def add_data_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("data")
    group.add_argument("data", nargs="?", help="CSV, TSV, JSONL, Parquet or .ts file with labels, or a folder of them")
    for name, field in _FIELDS.items():
        words = dict(field.metadata)
        if field.default not in _UNSET:
            words["help"] += f" (default: {field.default})"
        group.add_argument(_flag(name), default=argparse.SUPPRESS, **words)
    help = (
        "options from a file: an object of names as here with _ for -, or a saved model's command.json or config.json; "
        "what is given here comes first"
    )
    group.add_argument("--config", metavar="FILE.json", help=help)


def add_parameters(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "parameters", "Those of TextClassifier and SeriesClassifier; none stands for None."
    )
    for name in dict.fromkeys(parameter.name for parameter in PARAMETERS if parameter.name not in _IN_PYTHON):
        of = [parameter for parameter in PARAMETERS if parameter.name == name]
        group.add_argument(_flag(name), default=argparse.SUPPRESS, help=_help(of), **_parsing(of[0]))


def _help(of: list[Parameter]) -> str:
    """The help of the entries that share a name, which differ in their defaults."""
    if len(of) > 1:
        default = ", ".join(f"{_word(each.default)} for {' and '.join(each.kinds)}" for each in of)
    else:
        only = "" if len(of[0].kinds) == len(ESTIMATORS) else f"; for {of[0].kinds[0]} only"
        default = _word(of[0].default) + only
    return f"{of[0].help} (default: {default})".replace("%", "%%")


def _parsing(parameter: Parameter) -> dict[str, Any]:
    if parameter.is_flag:
        return {"action": argparse.BooleanOptionalAction}
    return {
        "type": lambda text: _value(parameter.types, text), "metavar": parameter.name.rpartition("_")[2].upper()
    }  # fmt: skip


def _value(types: Collection[type], text: str) -> Any:
    """The value of the first type that the text can be read as; "none" is None."""
    if text.lower() == "none" and NoneType in types:
        return None
    for kind, read in ((int, int), (float, float), (dict, _mapping)):
        if kind in types:
            try:
                return read(text)
            except ValueError:
                pass
    if str not in types:
        names = sorted("none" if kind is NoneType else kind.__name__ for kind in types)
        raise argparse.ArgumentTypeError(f"expected {' or '.join(names)} but got {shown(text)}")
    return text


def _mapping(text: str) -> dict[str, Any]:
    value = loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


def from_command_line(arguments: argparse.Namespace) -> TrainOptions:
    """The options that were given, those of --config, and the defaults, in this order."""
    words = {name: value for name, value in vars(arguments).items() if name in _NAMES}
    if words["data"] is None:
        del words["data"]
    return _resolved(words, _read_config(arguments.config) if arguments.config else {})


def from_file(path: Path) -> TrainOptions:
    """The options that a config file holds, and the defaults."""
    return _resolved({}, _read_config(path))


def _resolved(words: dict[str, Any], config: dict[str, Any]) -> TrainOptions:
    given = frozenset(words) | frozenset(config)
    for name, other in (("validation", "validation_share"), ("validation_share", "validation")):
        if name in words:
            if other in words:
                raise UsageError("--validation and --validation-share: expected one of them but got both")
            config.pop(other, None)
    merged = config | words
    data = merged.get("data")
    if data is None:
        raise UsageError("data: expected a file but got none")
    set_here = {name: merged[name] for name in ("data", *_FIELDS) if merged.get(name) is not None}
    check_annotated(set_here, TrainOptions)  # a file can hold values of any type
    found: dict[str, Any] = {name: merged.get(name, field.default) for name, field in _FIELDS.items()}
    if found["kind"] in _UNSET:
        found["kind"] = "series" if str(data).endswith(".ts") else "text"
    if found["stream"] in _UNSET:
        found["stream"] = os.path.isdir(data)
    kind = found["kind"]
    if kind not in ESTIMATORS:
        raise UsageError(f"--kind: expected text or series but got {shown(kind)}")
    own = parameters_of(kind)
    for parameter in PARAMETERS:
        if parameter.name not in own and words.get(parameter.name) is not None:
            raise UsageError(
                f"{_flag(parameter.name)}: expected with --kind {parameter.kinds[0]} but got --kind {kind}"
            )
    chosen = {name: merged.get(name, parameter.default) for name, parameter in own.items()}
    return TrainOptions(data=data, **found, parameters=chosen, given=given)


def _read_config(path: str | Path) -> dict[str, Any]:
    try:
        with open_regular(Path(path)) as file:
            config = loads(file.read())
    except ValueError as error:
        raise ValueError(f"{escaped(path)}: expected JSON but got something else ({escaped(error)})") from None
    if isinstance(config, dict) and isinstance(config.get("settings"), dict):  # command.json
        config = {name: value for name, value in config["settings"].items() if name != "checkpoint_dir"}
    elif isinstance(config, dict) and isinstance(config.get("parameters"), dict):  # config.json
        from ..toolkit.parameter_checks import parameters_from_json

        config = {"kind": config.get("kind"), **parameters_from_json(config["parameters"])}
    if not isinstance(config, dict):
        raise ValueError(f"{escaped(path)}: expected an object of options but got {kind_of(config)}")
    for name in config:
        if name not in _NAMES:
            near = did_you_mean(name, _NAMES)
            raise ValueError(f"{escaped(path)}: expected the names of train's options but got {shown(name)}{near}")
    return config

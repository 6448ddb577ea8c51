"""The options of `train`, from the command line or a file.

They are read from the source of estimators.py with `ast`, so that the estimators' signatures are the only list of
parameters and defaults, and `--help` still imports neither torch nor numpy.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from .._files import open_regular
from ..toolkit._terminal import escaped, kind_of, shown
from ..toolkit.schema import loads
from .shared import ESTIMATORS, UsageError, plain

__all__ = ["add_parameters", "add_settings", "command_line", "given", "parameters", "settings_of"]


class Setting(NamedTuple):
    """One of train's own options, which a --config file may hold too."""

    default: Any
    help: str


SETTINGS = {
    "kind": Setting(None, "text or series (default: series for .ts, else text)"),
    "text": Setting("text", "the column of the texts"),
    "label": Setting("label", "the column of the labels"),
    "weight": Setting(None, "a column of sample weights"),
    "input_format": Setting(None, "csv, tsv, jsonl, parquet or ts (default: by the file's suffix)"),
    "delimiter": Setting(None, "what separates the fields of CSV in place of a comma"),
    "stream": Setting(None, "read the data while they are used, for more than fits in memory (default: for a folder)"),
    "validation": Setting(None, "a second file, to measure on after each epoch and at the end"),
    "validation_share": Setting(None, "or a share of the data instead, such as 0.1"),
}


class Parameter(NamedTuple):
    """A parameter of an estimator, as it stands in the source."""

    types: frozenset[str]  # of bool, int, float, str, dict, None; empty: not known, so all of them
    default: Any
    help: str


@lru_cache
def parameters(kind: str) -> dict[str, Parameter]:
    """The parameters of the estimator for "text" or "series", read without importing anything."""
    folder = Path(__file__).parents[1] / "toolkit"
    found = _class_in(folder / "estimators.py", ESTIMATORS[kind])
    model = _described(_class_in(folder.parent / "classifier.py", "SequenceClassifier"))
    described = {
        name: model[name] if text.startswith("of :class:`seqcls_fast.SequenceClassifier`") else text
        for name, text in _described(found).items()
    }
    init = next(node for node in found.body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    answer = {}
    for argument, default in zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True):
        assert default is not None, argument.arg  # scikit-learn's protocol: every parameter has one
        annotation = ast.unparse(argument.annotation) if argument.annotation else ""
        types = frozenset(re.findall(r"\b(?:bool|int|float|str|dict|None)\b", annotation))
        answer[argument.arg] = Parameter(types, ast.literal_eval(default), described.get(argument.arg, ""))
    return answer


def _class_in(path: Path, name: str) -> ast.ClassDef:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


def _described(found: ast.ClassDef) -> dict[str, str]:
    """What the section "Args:" of a class says of each name; several share an entry, or have each a part up to ";"."""
    section = re.search(r"^Args:\n((?:[ ]+.*\n|\n)+)", (ast.get_docstring(found) or "") + "\n", re.MULTILINE)
    entries = re.findall(r"^    (\w[\w, ]*): (.*(?:\n {5,}.*)*)", section[1], re.MULTILINE) if section else []
    answer: dict[str, str] = {}
    for names, text in entries:
        every, parts = names.split(", "), " ".join(text.split()).rstrip(".").split("; ")
        each = parts if len(parts) == len(every) else ["; ".join(parts)] * len(every)
        answer |= dict(zip(every, each, strict=True))
    return answer


def _value(types: frozenset[str], text: str) -> Any:
    """What an option's text means among the types its parameter may have; "none" is None."""
    if text.lower() == "none" and (not types or "None" in types):
        return None
    for name, read in (("int", int), ("float", float), ("dict", _mapping)):
        if not types or name in types:
            try:
                return read(text)
            except ValueError:
                pass
    if types and "str" not in types:
        raise argparse.ArgumentTypeError(
            f"expected {' or '.join(sorted(types, key=str.lower)).lower()} but got {shown(text)}"
        )
    return text


def _mapping(text: str) -> dict[str, Any]:
    value = loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def add_settings(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    data.add_argument("data", nargs="?", help="CSV, TSV, JSONL, Parquet or .ts file with labels, or a folder of them")
    for name, setting in SETTINGS.items():
        default = f" (default: {setting.default})" if setting.default is not None else ""
        kwargs: dict[str, Any] = {"choices": tuple(ESTIMATORS)} if name == "kind" else {"metavar": _metavar(name)}
        if name == "validation_share":
            kwargs["type"] = _share
        if name == "stream":
            kwargs = {"action": argparse.BooleanOptionalAction}
        data.add_argument(_option(name), default=argparse.SUPPRESS, help=setting.help + default, **kwargs)
    words = (
        "options from a file: an object of names as here with _ for -, or a saved model's command.json or config.json"
    )
    data.add_argument("--config", metavar="FILE.json", help=f"{words}; what is given here comes first")


def add_parameters(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "parameters", "Those of TextClassifier and SeriesClassifier; none stands for None."
    )
    known = {kind: parameters(kind) for kind in ESTIMATORS}
    for name in dict.fromkeys(name for kind in known for name in known[kind]):
        of = {kind: known[kind][name] for kind in known if name in known[kind]}
        group.add_argument(_option(name), default=argparse.SUPPRESS, help=_parameter_help(of), **_parsing(of, name))


def _metavar(name: str) -> str:
    return "COLUMN" if name in ("text", "label", "weight") else name.rpartition("_")[2].upper()


def _parsing(of: dict[str, Parameter], name: str) -> dict[str, Any]:
    types = frozenset().union(*(parameter.types for parameter in of.values()))
    if types and types <= {"bool", "None"}:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": lambda text: _value(types, text), "metavar": name.rpartition("_")[2].upper()}


def _parameter_help(of: dict[str, Parameter]) -> str:
    first = next(iter(of.values()))
    defaults = {kind: _word(parameter.default) for kind, parameter in of.items()}
    if len(set(defaults.values())) > 1:
        default = ", ".join(f"{value} for {kind}" for kind, value in defaults.items())
    else:
        default = next(iter(defaults.values())) + ("" if len(of) == len(ESTIMATORS) else f"; for {next(iter(of))} only")
    words = re.sub(r":\w+:`([^`]*)`", r"\1", first.help).replace("``", "")
    return f"{words} (default: {default})".strip().replace("%", "%%")


def _word(value: Any) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1 but got {shown(text)}")
    return share


def settings_of(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train's own settings and the estimator's parameters: defaults, then --config, then the command line."""
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    config = _read_config(arguments.config) if arguments.config else {}
    for name, other in (("validation", "validation_share"), ("validation_share", "validation")):
        if name in given:
            if other in given:
                raise UsageError("--validation and --validation-share: expected one of them but got both")
            config.pop(other, None)
    merged = config | given
    if "data" not in merged:
        raise UsageError("data: expected a file but got none")
    settings = {name: merged.get(name, setting.default) for name, setting in SETTINGS.items()}
    settings = {"data": merged["data"], **settings}
    settings["kind"] = settings["kind"] or ("series" if str(merged["data"]).endswith(".ts") else "text")
    settings["stream"] = Path(merged["data"]).is_dir() if settings["stream"] is None else settings["stream"]
    if settings["kind"] not in ESTIMATORS:
        raise UsageError(f"--kind: expected text or series but got {shown(settings['kind'])}")
    own = parameters(settings["kind"])
    every = {name for kind in ESTIMATORS for name in parameters(kind)}
    for name in every - set(own):
        if name in given:
            other = next(kind for kind in ESTIMATORS if kind != settings["kind"])
            raise UsageError(f"{_option(name)}: expected with --kind {other} but got --kind {settings['kind']}")
    # vars() holds an explicit None too, which `given` left out
    chosen = {name: vars(arguments).get(name, config.get(name, own[name].default)) for name in own}
    return settings, chosen


def given(arguments: argparse.Namespace) -> frozenset[str]:
    """The names that the command line or --config settles, None among the values too."""
    return frozenset(vars(arguments)).union(_read_config(arguments.config) if arguments.config else ())


def _read_config(path: str) -> dict[str, Any]:
    try:
        with open_regular(Path(path)) as file:
            config = loads(file.read())
    except ValueError as error:
        raise ValueError(f"{escaped(path)}: expected JSON but got something else ({escaped(error)})") from None
    if isinstance(config, dict) and isinstance(config.get("settings"), dict):  # command.json
        config = {name: value for name, value in config["settings"].items() if name != "checkpoint_dir"}
    elif isinstance(config, dict) and isinstance(config.get("parameters"), dict):  # config.json
        from ..toolkit.estimators import parameters_from_json

        config = {"kind": config.get("kind"), **parameters_from_json(config["parameters"])}
    if not isinstance(config, dict):
        raise ValueError(f"{escaped(path)}: expected an object of options but got {kind_of(config)}")
    known = {"data", *SETTINGS, *(name for kind in ESTIMATORS for name in parameters(kind))}
    for name in config:
        if name not in known:
            raise ValueError(f"{escaped(path)}: expected the names of train's options but got {shown(name)}")
    return config


def command_line(settings: dict[str, Any], chosen: dict[str, Any], out: str) -> list[str]:
    """Every parameter spelled out, so that neither a config file nor another version's defaults can change it."""
    words = ["train", str(settings["data"])]
    for name, value in settings.items():
        if isinstance(value, bool):
            words.append(_option(name) if value else _option("no_" + name))
        elif name != "data" and value is not None:
            words += [_option(name), str(value)]
    known = parameters(settings["kind"])
    for name, value in chosen.items():
        if isinstance(value, bool):
            words.append(_option(name) if value else _option("no_" + name))
        elif not (value is None and known[name].types and known[name].types <= {"bool", "None"}):
            words += [_option(name), json.dumps(plain(value)) if isinstance(value, dict) else _word(value)]
    return [*words, "--out", out]

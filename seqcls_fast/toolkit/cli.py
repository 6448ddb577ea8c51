"""The commands around a model: train, evaluate, predict, trace, export, bench.

The options of `train` are read from the source of estimators.py with `ast`, so that the estimators' signatures are the
only list of parameters and defaults, and `--help` still imports neither torch nor numpy. For the same reason every
import of a library or of a module that needs one stands inside a function.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import io
import json
import logging
import math
import os
import re
import shlex
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from .. import __version__
from ._extras import need

__all__ = ["UsageError", "add_command", "add_commands", "run"]

ESTIMATORS = {"text": "TextClassifier", "series": "SeriesClassifier"}
UNEXPECTED = (LookupError, AttributeError, AssertionError, NameError)  # not written for people, hence a mistake of ours

Run = Callable[[argparse.Namespace], None]


class UsageError(Exception):
    """Options that do not go together: exit code 2, as for all that argparse refuses itself."""


# -- what all commands share ------------------------------------------------------------------------------------------


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parses, runs, and turns whatever happens into an exit code and at most one sentence on stderr."""
    arguments = parser.parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):  # data are UTF-8 wherever they go
        sys.stdout.reconfigure(encoding=None if sys.stdout.isatty() else "utf-8", errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            if not arguments.debug:
                warnings.showwarning = _show_warning
            arguments.run(arguments)
        sys.stdout.flush()
        return 0
    except UsageError as error:
        arguments.parser.print_usage(sys.stderr)
        print(f"{arguments.parser.prog}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; what was saved before is untouched", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output has seen enough, as in `predict ... | head`
        _drop_output()
        return 141
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        else:
            print(_sentence(error), file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # which may be what failed before
            _drop_output()
        return 1


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _drop_output() -> None:
    """Or Python tries once more at the end, and complains."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    message = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, UNEXPECTED):
        return f"unexpected {type(error).__name__}: {message} (--debug shows where)"
    return message


def add_command(commands: Any, name: str, purpose: str, examples: str, run: Run) -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".", epilog=examples, formatter_class=layout
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of text")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    parser.set_defaults(run=run, parser=parser)
    return parser


def _print_json(value: Any) -> None:
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def _plain(value: Any) -> Any:
    """As JSON has it: arrays become lists, keys strings, and what is no finite number null."""
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "tolist"):  # of numpy or torch
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A name to write to, which takes the place of `path` once all is written; a failure leaves `path` as it was."""
    _check_folder(path)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        written = Path(folder, path.name)
        yield written
        os.replace(written, path)


def _check_folder(*paths: str | Path | None) -> None:
    """Before any work whose result could then not be written."""
    for path in paths:
        if path is not None and not Path(path).parent.is_dir():
            raise FileNotFoundError(f"{path}: expected a folder that exists but there is no {Path(path).parent}")


def _write(path: str | Path, text: str) -> None:
    with _replacing(Path(path)) as written:
        written.write_text(text, encoding="utf-8")


@contextmanager
def _output(path: str | None) -> Iterator[IO[str]]:
    if path is None:
        yield sys.stdout
        return
    with _replacing(Path(path)) as written, written.open("w", encoding="utf-8", newline="") as file:
        yield file


# -- train ------------------------------------------------------------------------------------------------------------

TRAIN_EXAMPLES = """\
examples:
  seqcls-fast train reviews.csv --text review --label stars --validation-share 0.1 --out model
  seqcls-fast train sensors.ts --kind series --missing mean --cell lstm --epochs 50 --out model
  seqcls-fast train train.jsonl --validation dev.jsonl --patience 3 --report report.html --pictures pictures --out model
  seqcls-fast train --config model/command.json --out again    the same model once more
"""


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
    "validation": Setting(None, "a second file, to measure on after each epoch and at the end"),
    "validation_share": Setting(None, "or a share of the data instead, such as 0.1; every class keeps its proportion"),
}


class Parameter(NamedTuple):
    """A parameter of an estimator, as it stands in the source."""

    types: frozenset[str]  # of bool, int, float, str, dict, None; empty: not known, so all of them
    default: Any
    help: str


@lru_cache
def parameters(kind: str) -> dict[str, Parameter]:
    """The parameters of the estimator for "text" or "series", read without importing anything."""
    folder = Path(__file__).parent
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
            f"expected {' or '.join(sorted(types, key=str.lower)).lower()} but got {text!r}"
        )
    return text


def _mapping(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add_train(commands: Any) -> None:
    purpose = "learn a classifier from a file and save it as a directory"
    parser = add_command(commands, "train", purpose, TRAIN_EXAMPLES, _train)
    parser.usage = "%(prog)s DATA --out DIR [options]"
    data = parser.add_argument_group("data")
    data.add_argument("data", nargs="?", help="CSV, TSV, JSONL, Parquet or .ts file of examples with labels")
    for name, setting in SETTINGS.items():
        default = f" (default: {setting.default})" if setting.default is not None else ""
        kwargs: dict[str, Any] = {"choices": tuple(ESTIMATORS)} if name == "kind" else {"metavar": _metavar(name)}
        if name == "validation_share":
            kwargs["type"] = _share
        data.add_argument(_option(name), default=argparse.SUPPRESS, help=setting.help + default, **kwargs)
    words = (
        "options from a file: an object of names as here with _ for -, or a saved model's command.json or config.json"
    )
    data.add_argument("--config", metavar="FILE.json", help=f"{words}; what is given here comes first")
    result = parser.add_argument_group("result")
    result.add_argument("--out", required=True, metavar="DIR", help="where to save the model")
    result.add_argument("--overwrite", action="store_true", help="replace what --out holds, once training is done")
    result.add_argument("--report", metavar="FILE.html", help="the validation's report as a page")
    result.add_argument("--pictures", metavar="DIR", help="learning curves and, with a validation, its pictures")
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
        raise argparse.ArgumentTypeError(f"expected a share between 0 and 1 but got {text!r}")
    return share


def _settings(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
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
    if settings["kind"] not in ESTIMATORS:
        raise UsageError(f"--kind: expected text or series but got {settings['kind']!r}")
    own = parameters(settings["kind"])
    every = {name for kind in ESTIMATORS for name in parameters(kind)}
    for name in every - set(own):
        if name in given:
            other = next(kind for kind in ESTIMATORS if kind != settings["kind"])
            raise UsageError(f"{_option(name)}: expected with --kind {other} but got --kind {settings['kind']}")
    # vars() holds an explicit None too, which `given` left out
    chosen = {name: vars(arguments).get(name, config.get(name, own[name].default)) for name in own}
    return settings, chosen


def _read_config(path: str) -> dict[str, Any]:
    try:
        config = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON but got something else ({error})") from None
    if isinstance(config, dict) and isinstance(config.get("settings"), dict):  # command.json
        config = config["settings"]
    elif isinstance(config, dict) and isinstance(config.get("parameters"), dict):  # config.json
        from .estimators import _from_json

        config = {"kind": config.get("kind"), **_from_json(config["parameters"])}
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected an object of options but got {type(config).__name__}")
    known = {"data", *SETTINGS, *(name for kind in ESTIMATORS for name in parameters(kind))}
    for name in config:
        if name not in known:
            raise ValueError(f"{path}: expected the names of train's options but got {name!r}")
    return config


def _command_line(settings: dict[str, Any], chosen: dict[str, Any], out: str) -> list[str]:
    """Every parameter spelled out, so that neither a config file nor another version's defaults can change it."""
    words = ["train", str(settings["data"])]
    for name, value in settings.items():
        if name != "data" and value is not None:
            words += [_option(name), str(value)]
    known = parameters(settings["kind"])
    for name, value in chosen.items():
        if isinstance(value, bool):
            words.append(_option(name) if value else _option("no_" + name))
        elif not (value is None and known[name].types and known[name].types <= {"bool", "None"}):
            words += [_option(name), json.dumps(_plain(value)) if isinstance(value, dict) else _word(value)]
    return [*words, "--out", out]


def _train(arguments: argparse.Namespace) -> None:
    settings, chosen = _settings(arguments)
    validated = settings["validation"] is not None or settings["validation_share"] is not None
    if arguments.report and not validated:
        raise UsageError("--report: expected with --validation or --validation-share, which it is about")
    out = Path(arguments.out)
    if out.exists() and not arguments.overwrite and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out}: expected a new or empty directory (--overwrite replaces a saved model)")
    _check_folder(arguments.report)
    need("numpy", "seqcls-fast train")
    from . import estimators

    columns = {name: settings[name] for name in ("kind", "text", "label", "weight", "delimiter")}
    columns["format"] = settings["input_format"]
    x, y, weight = _examples(settings["data"], **columns)
    validation = None
    if settings["validation"] is not None:
        validation = _examples(settings["validation"], **columns | {"weight": None})[:2]
    elif settings["validation_share"] is not None:
        x, y, weight, validation = _split(x, y, weight, settings["validation_share"], chosen["seed"])
    command = _command_line(settings, chosen, arguments.out)
    record = _record(command, settings, chosen)
    estimator = getattr(estimators, ESTIMATORS[settings["kind"]])(**chosen | _class_weight(chosen, y))
    start = time.perf_counter()
    estimator.fit(x, y, validation=validation, sample_weight=weight)
    seconds = time.perf_counter() - start
    estimator.save(out)
    _write(out / "command.json", json.dumps(_plain(record), indent=2, ensure_ascii=False) + "\n")
    report = None if validation is None else _report(estimator, *validation, x)
    if arguments.report and report is not None:
        lengths = estimator.encoder_.encode(x).lengths
        _write(arguments.report, report.to_html(history=estimator.history_, lengths=lengths))
    if arguments.pictures:
        _pictures(Path(arguments.pictures), report, estimator, x)
    if arguments.json:
        _print_json({
            "out": arguments.out, "classes": estimator.classes_, "rows": len(x), "seconds": seconds,
            "validation_rows": 0 if validation is None else len(validation[0]), "history": estimator.history_,
            "report": None if report is None else report.to_dict(), "command": shlex.join(["seqcls-fast", *command]),
        })  # fmt: skip
        return
    what = f"{len(x)} {'series' if settings['kind'] == 'series' else 'texts'}, {len(estimator.classes_)} classes"
    print(f"{what}, {len(estimator.history_)} epochs, {seconds:.1f} s: saved to {out}")
    if report is not None:
        print(f"\nvalidation\n{report}")


def _record(command: list[str], settings: dict[str, Any], chosen: dict[str, Any]) -> dict[str, Any]:
    """What stands in command.json; `--config` reads its settings back."""
    import torch

    names = [settings["data"], *([settings["validation"]] if settings["validation"] else [])]
    return {
        "command": shlex.join(["seqcls-fast", *command]),
        "settings": settings | chosen,
        "sha256": {str(name): _sha256(name) for name in names},
        "versions": {"seqcls_fast": __version__, "torch": str(torch.__version__), "python": sys.version.split()[0]},
    }


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _examples(path: str, kind: str, **columns: Any) -> tuple[list[Any], list[Any], list[float] | None]:
    from . import readers

    table = readers.read(path, kind=kind, **columns)
    assert table.labels is not None
    return table.texts_or_series, table.labels, table.weights


def _split(x: list[Any], y: list[Any], weight: list[float] | None, share: float, seed: int | None) -> tuple[Any, ...]:
    """What to learn from and what to hold back, as fit(validation=share) would, but in hand for the report."""
    from . import estimators, labels

    kept, held = estimators._stratified(labels.to_targets(y, labels.classes_of(y)), share, seed)
    train, test = kept.tolist(), held.tolist()
    left = None if weight is None else [weight[i] for i in train]
    return [x[i] for i in train], [y[i] for i in train], left, ([x[i] for i in test], [y[i] for i in test])


def _report(estimator: Any, x: list[Any], y: list[Any], train: list[Any] | None) -> Any:
    """As the estimator's evaluate(), which does not know the training data and so finds no duplicates of them."""
    from .evaluation import evaluate_predictions

    proba = estimator.predict_proba(x)
    texts: dict[str, Any] = {} if train is None else {"train_texts": train, "test_texts": x}
    return evaluate_predictions(
        y, estimator.classes_[proba.argmax(1)].tolist(), proba, labels=estimator.classes_.tolist(),
        train_accuracy=estimator.history_[-1]["accuracy"], **texts,
    )  # fmt: skip


def _class_weight(chosen: dict[str, Any], labels: Iterable[Any]) -> dict[str, Any]:
    """JSON has no keys but strings; the labels of a file may be numbers."""
    weights = chosen.get("class_weight")
    if not isinstance(weights, dict):
        return {}
    by_name = {str(label): label for label in labels}
    return {"class_weight": {by_name.get(str(name), name): weight for name, weight in weights.items()}}


def _pictures(folder: Path, report: Any, estimator: Any, x: Sequence[Any]) -> None:
    from . import plots

    folder.mkdir(parents=True, exist_ok=True)
    figures = {"lengths": plots.length_histogram(estimator.encoder_.encode(x).lengths)}
    if getattr(estimator, "history_", None):
        figures["learning_curves"] = plots.learning_curves(estimator.history_)
    if report is not None:
        for draw in (plots.confusion, plots.reliability, plots.roc, plots.precision_recall):
            figures[draw.__name__] = draw(report)
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png")


# -- evaluate, predict, trace -----------------------------------------------------------------------------------------

EVALUATE_EXAMPLES = """\
examples:
  seqcls-fast evaluate model test.csv --text review --label stars
  seqcls-fast evaluate model test.jsonl --html report.html --pictures pictures
  seqcls-fast evaluate model test.csv --json > report.json
"""
PREDICT_EXAMPLES = """\
examples:
  seqcls-fast predict model new.csv --text review > labels.csv
  seqcls-fast predict model new.jsonl --format jsonl --out labels.jsonl
  tail -n 1000 messages | seqcls-fast predict model    a text per line; an empty line is an empty text
  cat new.csv | seqcls-fast predict model - --input-format csv
"""
TRACE_EXAMPLES = """\
examples:
  seqcls-fast trace model "I love this movie"
  seqcls-fast trace model "I love this movie" --picture trace.png
  seqcls-fast trace model "[[0.1, 2.0], [0.3, 1.5]]"   a model of series: its steps as JSON
"""


def _add_use(commands: Any) -> None:
    parser = add_command(commands, "evaluate", "measure a saved model on labelled data", EVALUATE_EXAMPLES, _evaluate)
    parser.add_argument("model", help="directory that train wrote")
    parser.add_argument("data", help="file of examples with labels")
    _add_columns(parser)
    parser.add_argument("--label", default="label", metavar="COLUMN", help="default: %(default)s")
    parser.add_argument("--train", metavar="FILE", help="what it was trained on, to look for duplicates of it")
    parser.add_argument("--html", metavar="FILE", help="the report as a page")
    parser.add_argument("--pictures", metavar="DIR", help="its pictures as files")
    purpose = "label new data as it streams in, in constant memory"
    parser = add_command(commands, "predict", purpose, PREDICT_EXAMPLES, _predict)
    parser.add_argument("model", help="directory that train wrote")
    parser.add_argument("data", nargs="?", default="-", help="file, or - for stdin (default)")
    _add_columns(parser)
    parser.add_argument(
        "--format", choices=("csv", "jsonl"), default="csv", help="what to write (default: %(default)s)"
    )
    parser.add_argument("--out", metavar="FILE", help="where to write it, once all is there (default: stdout, at once)")
    parser.add_argument("--batch", type=_count, default=256, metavar="N", help="rows at a time (default: %(default)s)")
    purpose = "show every stage of one prediction, and how it forms token by token"
    parser = add_command(commands, "trace", purpose, TRACE_EXAMPLES, _trace)
    parser.add_argument("model", help="directory that train wrote")
    parser.add_argument("example", help="the text, or a series as JSON; - reads it from stdin")
    parser.add_argument("--picture", metavar="FILE", help="the probabilities over tokens, as .png or .svg")


def _add_columns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", default="text", metavar="COLUMN", help="default: %(default)s")
    parser.add_argument("--delimiter", metavar="SIGN", help="what separates the fields of CSV in place of a comma")
    words = "csv, tsv, jsonl, parquet, ts, or txt: a text per line (default: by the file's suffix; txt for stdin)"
    parser.add_argument("--input-format", metavar="FORMAT", help=words)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1 but got {text!r}")
    return int(text)


def _load(path: str) -> tuple[Any, str]:
    """The estimator, and its kind."""
    need("numpy", "a saved model")
    from . import estimators, store

    kind = str(store.load_folder(path)[0].get("kind"))
    name = ESTIMATORS.get(kind, ESTIMATORS["text"])  # which refuses another kind with a sentence
    return getattr(estimators, name).load(path), kind


def _labels_of(estimator: Any, labels: Sequence[Any]) -> list[Any]:
    """Labels as the model knows them: CSV has strings where the model may have learnt numbers from JSON."""
    classes = estimator.classes_.tolist()
    by_name = {str(label): label for label in classes}
    return [label if label in classes else by_name.get(str(label), label) for label in labels]


def _evaluate(arguments: argparse.Namespace) -> None:
    _check_folder(arguments.html)
    estimator, kind = _load(arguments.model)
    columns = {"text": arguments.text, "label": arguments.label, "delimiter": arguments.delimiter}
    columns["format"] = arguments.input_format
    x, y, _ = _examples(arguments.data, kind=kind, **columns)
    train = None if arguments.train is None else _examples(arguments.train, kind=kind, **columns)[0]
    report = _report(estimator, x, _labels_of(estimator, y), train)
    if arguments.html:
        _write(arguments.html, report.to_html())
    if arguments.pictures:
        _pictures(Path(arguments.pictures), report, estimator, x)
    if arguments.json:
        _print_json(report.to_dict())
    else:
        print(report)


def _predict(arguments: argparse.Namespace) -> None:
    _check_folder(arguments.out)
    estimator, kind = _load(arguments.model)
    classes = estimator.classes_.tolist()
    counts = dict.fromkeys(map(str, classes), 0)
    inline = arguments.json and not arguments.out  # the predictions stand in the one JSON object
    examples = _inputs(arguments, kind)
    batches = iter(lambda: list(islice(examples, arguments.batch)), [])
    first = next(batches, [])  # nothing is written for data that cannot be read at all
    with _output(arguments.out) as file:
        write = _inline_rows(file) if inline else _writer(file, arguments.format, classes)
        if inline:
            file.write('{"predictions": [')
        for batch in chain([first] if first else [], batches):
            for shares in estimator.predict_proba(batch):
                best = int(shares.argmax())
                counts[str(classes[best])] += 1
                write(classes[best], dict(zip(map(str, classes), shares.tolist(), strict=True)))
            file.flush()
        if inline:
            file.write('], "summary": ')
    summary = {"rows": sum(counts.values()), "labels": counts}
    if inline:
        print(json.dumps(summary) + "}")
    elif arguments.json:
        _print_json(summary | {"out": arguments.out})
    elif arguments.out:
        print(f"{summary['rows']} rows: written to {arguments.out}", file=sys.stderr)


def _writer(file: IO[str], format: str, classes: list[Any]) -> Callable[[Any, dict[str, float]], None]:
    if format == "csv":
        import csv

        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["label", *(f"probability_{label}" for label in classes)])
        return lambda label, shares: rows.writerow([label, *(f"{share:.6g}" for share in shares.values())])

    def write(label: Any, shares: dict[str, float]) -> None:
        file.write(_row(label, shares) + "\n")

    return write


def _inline_rows(file: IO[str]) -> Callable[[Any, dict[str, float]], None]:
    between = iter(["\n"])

    def write(label: Any, shares: dict[str, float]) -> None:
        file.write(next(between, ",\n") + _row(label, shares))

    return write


def _row(label: Any, shares: dict[str, float]) -> str:
    return json.dumps({"label": _plain(label), "probabilities": shares}, ensure_ascii=False)


def _inputs(arguments: argparse.Namespace, kind: str) -> Iterator[Any]:
    """The texts or series, one at a time."""
    from . import readers

    source, format = arguments.data, arguments.input_format
    if source == "-":
        source, format = sys.stdin, format or {"text": "txt", "series": "jsonl"}[kind]
    columns = {"text": arguments.text, "format": format, "delimiter": arguments.delimiter}
    for record in readers.stream(source, kind=kind, **columns):
        yield record["series" if kind == "series" else arguments.text]


def _trace(arguments: argparse.Namespace) -> None:
    from .trace import trace

    _check_folder(arguments.picture)
    estimator, kind = _load(arguments.model)
    text = sys.stdin.buffer.read().decode().removesuffix("\n") if arguments.example == "-" else arguments.example
    example: Any = text
    if kind == "series":
        try:
            example = json.loads(text)
        except ValueError:
            raise ValueError("example: expected a series as JSON, such as [[0.1, 2.0], [0.3, 1.5]]") from None
    found = trace(estimator, example)
    if arguments.picture:
        from . import plots

        plots.save(found.figure(), Path(arguments.picture))
    if arguments.json:
        _print_json(found.to_dict())
    else:
        print(found)


# -- export, bench ----------------------------------------------------------------------------------------------------

EXPORT_EXAMPLES = """\
examples:
  seqcls-fast export model --to model.onnx   standard ONNX, for onnxruntime and others
  seqcls-fast export model --to model.pt2    torch.export: torch.export.load("model.pt2") after import seqcls_fast.ops
"""
BENCH_EXAMPLES = """\
examples:
  seqcls-fast bench                     a bidirectional GRU on ragged ids, beside torch.nn's
  seqcls-fast bench model --threads 1   a saved model's sizes
"""


def _add_more(commands: Any) -> None:
    purpose = "write a saved model's network for other programs: ids or features and lengths in, logits out"
    parser = add_command(commands, "export", purpose, EXPORT_EXAMPLES, _export)
    parser.add_argument("model", help="directory that train wrote")
    parser.add_argument("--to", required=True, metavar="FILE", help="a name that ends in .onnx or .pt2")
    purpose = "compare a training step and inference with the same model on torch.nn's layers"
    parser = add_command(commands, "bench", purpose, BENCH_EXAMPLES, _bench)
    parser.add_argument("model", nargs="?", help="directory that train wrote (default: a model of common sizes)")
    parser.add_argument("--rows", type=_count, default=64, metavar="B", help="rows of a batch (default: %(default)s)")
    parser.add_argument("--rounds", type=_count, default=15, help="of the timing (default: %(default)s)")
    parser.add_argument("--threads", type=_count, help="torch's intra-op threads (default: torch's choice)")


def _export(arguments: argparse.Namespace) -> None:
    path = Path(arguments.to)
    if path.suffix not in (".onnx", ".pt2"):
        raise UsageError(f"--to: expected a name that ends in .onnx or .pt2 but got {arguments.to!r}")
    _check_folder(path)
    estimator, _ = _load(arguments.model)
    import torch

    model = copy.deepcopy(estimator.model_).cpu().eval()
    x, lengths = _batch(model, 2, longest=8)
    batch, time_steps = torch.export.Dim("batch"), torch.export.Dim("time")
    shapes = {"x": {0: batch, 1: time_steps}, "lengths": {0: batch}}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # which tells of operators that no model of ours has
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of its own code
        if path.suffix == ".onnx":
            from ..export import to_onnx

            names = ["x", "lengths"]
            to_onnx(model, (x, lengths), path, dynamic_shapes=shapes, input_names=names, output_names=["logits"])
        else:
            program = torch.export.export(model, (x, lengths), dynamic_shapes=shapes)
            labels = {"classes.json": json.dumps(_plain(estimator.classes_))}
            with _replacing(path) as written:
                torch.export.save(program, written, extra_files=labels)
    features = "" if model.vocab_size else f", {model.input_size} features"
    answer = {
        "file": arguments.to, "x": f"{str(x.dtype).removeprefix('torch.')} (batch, time{features})",
        "lengths": "int64 (batch)", "logits": f"float32 (batch, {model.num_classes})", "classes": estimator.classes_,
    }  # fmt: skip
    if arguments.json:
        _print_json(answer)
    else:
        print("\n".join(f"{name:<8} {value}" for name, value in _plain(answer).items()))


def _batch(model: Any, rows: int, longest: int) -> tuple[Any, Any]:
    """Random ids or features of lengths whose median is 30, like those of short texts, or of `longest` at most."""
    import torch

    generator = torch.Generator().manual_seed(0)
    lengths = (30 * torch.randn(rows, generator=generator).mul(0.75).exp()).long().clamp(1, longest)
    lengths[0] = longest
    shape = (rows, longest)
    if model.vocab_size is None:
        return torch.randn(*shape, model.input_size, generator=generator), lengths
    ids = torch.randint(1, max(2, model.vocab_size), shape, generator=generator)
    return ids.masked_fill_(torch.arange(longest) >= lengths[:, None], 0), lengths


def _bench(arguments: argparse.Namespace) -> None:
    import torch

    from ..classifier import SequenceClassifier

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.model:
        model = copy.deepcopy(_load(arguments.model)[0].model_).cpu()
    else:
        model = SequenceClassifier(50, 64, 4, vocab_size=10_000, bidirectional=True, pooling="max")
    for module in model.modules():  # both must compute the same
        if hasattr(module, "dropout"):
            module.dropout = 0.0
    x, lengths = _batch(model, arguments.rows, longest=200)
    y = torch.randint(model.num_classes, (arguments.rows,))
    peer = copy.deepcopy(model)
    models = {"seqcls_fast": model, "torch.nn": _with_torch(peer)}
    steps = {name: _step(each, torch.optim.Adam(each.parameters()), x, lengths, y) for name, each in models.items()}
    losses = {name: step() for name, step in steps.items()}
    if not math.isclose(*losses.values(), rel_tol=1e-3, abs_tol=1e-4):
        raise RuntimeError(f"bench: expected equal first losses but got {losses}, so no timing is shown")
    answer = {"training step": _interleaved(steps, arguments.rounds)}
    for each in models.values():
        each.eval()
    model.prepare_inference()
    for name, rows in {"inference": (x, lengths), "one row": (x[:1, :30], lengths[:1].clamp(max=30))}.items():
        with torch.inference_mode():
            answer[name] = _interleaved({key: partial(each, *rows) for key, each in models.items()}, arguments.rounds)
    described = {
        "model": f"{model.cell}, {model.num_layers} x {model.hidden_size}{' both ways' * model.bidirectional}",
        "rows": arguments.rows, "steps": int(lengths.sum()), "threads": torch.get_num_threads(), "seconds": answer,
    }  # fmt: skip
    if arguments.json:
        _print_json(described)
        return
    print(f"{described['model']}, {arguments.rows} rows of 1 to 200 steps, {described['threads']} threads")
    print(f"{'median, in ms':<16}{'seqcls_fast':>12}{'torch.nn packed':>18}{'ratio':>8}")
    for name, seconds in answer.items():
        ours, theirs = seconds.values()
        print(f"{name:<16}{1e3 * ours:12.3f}{1e3 * theirs:18.3f}{theirs / ours:8.1f}")


def _with_torch(model: Any) -> Any:
    """The same classifier around torch.nn's encoder, which takes ragged rows packed."""
    from torch import nn
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    from ..classifier import SequenceClassifier

    class Packed(SequenceClassifier):
        def _encode(self, x: Any, lengths: Any) -> tuple[Any, Any]:
            rows = x if self.embedding is None else self.embedding(x)
            packed = pack_padded_sequence(rows, lengths, batch_first=True, enforce_sorted=False)
            output, final = self.encoder(packed)
            wanted = self.pooling != "last"
            output = pad_packed_sequence(output, batch_first=True, total_length=x.size(1))[0] if wanted else None
            return output, final if self.cell != "lstm" else final[0]

    options = {"nonlinearity": model.cell.removeprefix("rnn_")} if model.cell.startswith("rnn") else {}
    kind = getattr(nn, "RNN" if options else model.cell.upper())
    encoder = kind(
        model.input_size, model.hidden_size, model.num_layers, batch_first=True, bidirectional=model.bidirectional,
        **options,
    )  # fmt: skip
    encoder.load_state_dict(model.encoder.state_dict())
    model.encoder, model.__class__ = encoder, Packed
    return model


def _step(model: Any, optimizer: Any, x: Any, lengths: Any, y: Any) -> Callable[[], float]:
    from torch.nn.functional import cross_entropy

    model.train()

    def step() -> float:
        optimizer.zero_grad()
        loss = cross_entropy(model(x, lengths), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _interleaved(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, taken in turn, so that a busy machine slows all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, once in runs.items():
            start = time.perf_counter()
            once()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def add_commands(commands: Any) -> None:
    _add_train(commands)
    _add_use(commands)
    _add_more(commands)

"""`evaluate`, `predict` and `trace`: what a saved model says of data."""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ..toolkit._extras import need
from ..toolkit._terminal import escaped, json_text
from .shared import (
    UsageError,
    add_command,
    check_folder,
    count,
    load,
    plain,
    print_json,
    read_examples,
    replacing,
    save_pictures,
    write_text,
)

if TYPE_CHECKING:
    from ..toolkit.ranks import Ranks

__all__ = ["add", "add_columns", "add_labelled", "labelled", "labels_of"]

# Where a spreadsheet may begin a formula, which may start programs: at the start of a field and, with other settings,
# behind a semicolon, a tab or a line break. The last four signs are wide forms of the first. A number is no formula.
_FORMULA = re.compile(
    r"""(^|[;\t\r\n])(?=[ "']*[=+\-@\uff1d\uff0b\uff0d\uff20])"""
    r"(?!^[+-]([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?\Z)",
    re.IGNORECASE,
)

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


def add(commands: Any) -> None:
    parser = add_command(commands, "evaluate", "measure a saved model on labelled data", EVALUATE_EXAMPLES, _evaluate)
    parser.add_argument("model", help="directory that train wrote")
    add_labelled(parser)
    words = "other data to look for duplicates of, beside what the model was trained on"
    parser.add_argument("--train", metavar="FILE", help=words)
    parser.add_argument("--html", metavar="FILE", help="the report as a page")
    parser.add_argument("--pictures", metavar="DIR", help="its pictures as files")
    purpose = "label new data as it streams in, in constant memory"
    parser = add_command(commands, "predict", purpose, PREDICT_EXAMPLES, _predict)
    parser.add_argument("model", help="directory that train wrote")
    parser.add_argument("data", nargs="?", default="-", help="file, or - for stdin (default)")
    add_columns(parser)
    parser.add_argument(
        "--format", choices=("csv", "jsonl"), default="csv", help="what to write (default: %(default)s)"
    )
    parser.add_argument("--out", metavar="FILE", help="where to write it, once all is there (default: stdout, at once)")
    words = (
        "write labels to CSV as they are; otherwise a label that a spreadsheet would run as a formula (it begins with "
        "=, +, -, @, a tab or a line break, and is no number) gets an apostrophe in front, and a terminal is shown "
        "escapes for control characters"
    )
    parser.add_argument("--raw", action="store_true", help=words)
    parser.add_argument("--batch", type=count, default=256, metavar="N", help="rows at a time (default: %(default)s)")
    purpose = "show every stage of one prediction, and how it forms token by token"
    parser = add_command(commands, "trace", purpose, TRACE_EXAMPLES, _trace)
    parser.add_argument("model", help="directory that train wrote")
    parser.add_argument("example", help="the text, or a series as JSON; - reads it from stdin")
    parser.add_argument("--picture", metavar="FILE", help="the probabilities over tokens, as .png or .svg")


def add_labelled(parser: argparse.ArgumentParser) -> None:
    """Options of examples with labels, which :func:`labelled` reads."""
    parser.add_argument("data", help="file of examples with labels")
    add_columns(parser)
    parser.add_argument("--label", default="label", metavar="COLUMN", help="default: %(default)s")


def add_columns(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--text", default="text", metavar="COLUMN", help="default: %(default)s")
    parser.add_argument("--delimiter", metavar="SIGN", help="what separates the fields of CSV in place of a comma")
    words = "csv, tsv, jsonl, parquet, ts, or txt: a text per line (default: by the file's suffix; txt for stdin)"
    parser.add_argument("--input-format", metavar="FORMAT", help=words)


def _evaluate(arguments: argparse.Namespace) -> None:
    check_folder(arguments.html)
    estimator, kind = load(arguments.model)
    x, y = labelled(arguments, arguments.data, kind)
    if arguments.train is not None:
        from ..toolkit.data.leakage import fingerprints

        estimator.seen_ |= fingerprints(labelled(arguments, arguments.train, kind)[0])
    report = estimator.evaluate(x, labels_of(estimator, y))
    if arguments.html:
        write_text(arguments.html, report.to_html())
    if arguments.pictures:
        save_pictures(Path(arguments.pictures), report, estimator, estimator.encoder_.encode(x).lengths)
    if arguments.json:
        print_json(report.to_dict())
    else:
        print(report)


def labelled(arguments: argparse.Namespace, path: str, kind: str) -> tuple[list[Any], list[Any]]:
    columns = {"text": arguments.text, "label": arguments.label, "delimiter": arguments.delimiter}
    return read_examples(path, kind=kind, format=arguments.input_format, **columns)[:2]


def labels_of(estimator: Any, labels: Sequence[Any]) -> list[Any]:
    """Labels as the model knows them: CSV has strings where the model may have learnt numbers from JSON."""
    classes = estimator.classes_.tolist()
    by_name = {str(label): label for label in classes}
    return [label if label in classes else by_name.get(str(label), label) for label in labels]


def _predict(arguments: argparse.Namespace) -> None:
    need("numpy", "a saved model")
    from ..toolkit.ranks import join

    if arguments.raw and arguments.format != "csv":
        raise UsageError(f"--raw: expected with --format csv but got {arguments.format}")
    check_folder(arguments.out)
    with join() as ranks:
        if ranks.world > 1 and arguments.data == "-":
            raise UsageError("data: expected a file that every process can read but got -, the standard input")
        estimator, kind = load(arguments.model)
        examples = _inputs(arguments, kind)
        batches = iter(lambda: list(islice(examples, arguments.batch)), [])
        found = _probabilities(estimator, batches, ranks)
        if ranks.writer:
            _write_predictions(arguments, estimator, found)
        else:
            for _ in found:  # never any, but it takes part
                pass


def _probabilities(estimator: Any, batches: Iterator[list[Any]], ranks: Ranks) -> Iterator[Any]:
    """Of one batch after the other, on the process that writes. Of as many batches as processes, each takes one."""
    while turn := list(islice(batches, ranks.world)):
        mine = estimator.predict_proba(turn[ranks.rank]) if ranks.rank < len(turn) else None
        yield from (each for each in ranks.gather(mine) or [] if each is not None)


def _write_predictions(arguments: argparse.Namespace, estimator: Any, found: Iterator[Any]) -> None:
    classes = estimator.classes_.tolist()
    counts = dict.fromkeys(map(str, classes), 0)
    inline = arguments.json and not arguments.out  # the predictions stand in the one JSON object
    first = list(islice(found, 1))  # nothing is written for data that cannot be read at all
    with _output(arguments.out) as file:
        write = _inline_rows(file) if inline else _writer(file, arguments.format, classes, arguments.raw)
        if inline:
            file.write('{"predictions": [')
        for probabilities in chain(first, found):
            for label, shares in zip(estimator.decide(probabilities).tolist(), probabilities.tolist(), strict=True):
                counts[str(label)] += 1
                write(label, dict(zip(map(str, classes), shares, strict=True)))
            file.flush()
        if inline:
            file.write('], "summary": ')
    summary = {"rows": sum(counts.values()), "labels": counts}
    if inline:
        print(json.dumps(summary) + "}")
    elif arguments.json:
        print_json(summary | {"out": arguments.out})
    elif arguments.out:
        print(f"{summary['rows']} rows: written to {escaped(arguments.out)}", file=sys.stderr)


@contextmanager
def _output(path: str | None) -> Iterator[IO[str]]:
    if path is None:
        yield sys.stdout
        return
    with replacing(Path(path), wait=False) as written, written.open("w", encoding="utf-8", newline="") as file:
        yield file


def _writer(file: IO[str], format: str, classes: list[Any], raw: bool) -> Callable[[Any, dict[str, float]], None]:
    if format == "csv":
        seen = str if raw else _shown_harmless if file.isatty() else _harmless
        returns = any("\r" in str(label) for label in classes)  # which Python does not quote before 3.13
        rows = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL)
        fields = {label: seen(label) for label in classes}
        rows.writerow(["label", *(seen(f"probability_{label}") for label in classes)])
        return lambda label, shares: rows.writerow([fields[label], *(f"{share:.6g}" for share in shares.values())])

    def write(label: Any, shares: dict[str, float]) -> None:
        file.write(_row(label, shares) + "\n")

    return write


def _inline_rows(file: IO[str]) -> Callable[[Any, dict[str, float]], None]:
    between = iter(["\n"])

    def write(label: Any, shares: dict[str, float]) -> None:
        file.write(next(between, ",\n") + _row(label, shares))

    return write


def _row(label: Any, shares: dict[str, float]) -> str:
    return json_text({"label": plain(label), "probabilities": shares})


def _harmless(text: Any) -> str:
    """As a field of CSV for any program: an apostrophe in front makes a formula a text, and no two labels one."""
    return _FORMULA.sub(r"\1'", str(text))


def _shown_harmless(text: Any) -> str:
    return escaped(_harmless(text))


def _inputs(arguments: argparse.Namespace, kind: str) -> Iterator[Any]:
    """The texts or series, one at a time."""
    from ..toolkit.data import readers

    source, format = arguments.data, arguments.input_format
    if source == "-":
        source, format = sys.stdin, format or {"text": "txt", "series": "jsonl"}[kind]
    columns = {"text": arguments.text, "format": format, "delimiter": arguments.delimiter}
    for record in readers.stream(source, kind=kind, **columns):
        yield record["series" if kind == "series" else arguments.text]


def _trace(arguments: argparse.Namespace) -> None:
    from ..toolkit.trace import trace

    check_folder(arguments.picture)
    estimator, kind = load(arguments.model)
    text = sys.stdin.buffer.read().decode().removesuffix("\n") if arguments.example == "-" else arguments.example
    example: Any = text
    if kind == "series":
        try:
            example = json.loads(text)
        except ValueError:
            raise ValueError("example: expected a series as JSON, such as [[0.1, 2.0], [0.3, 1.5]]") from None
    found = trace(estimator, example)
    if arguments.picture:
        from ..toolkit.evaluation import plots

        plots.save(found.figure(), Path(arguments.picture))
    if arguments.json:
        print_json(found.to_dict())
    else:
        print(found)

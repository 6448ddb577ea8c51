"""`predict`: labels and probabilities of new data, read and written in batches, so that memory stays constant.

Labels come from training data, which may be anybody's: in CSV, a label that a spreadsheet would run is made harmless.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from ..toolkit._extras import need
from ..toolkit._terminal import did_you_mean, escaped, json_text, shown
from ._without_torch import open_runtime
from .shared import UsageError, add_columns, add_command, check_folder, count, load, plain, print_json, replacing

if TYPE_CHECKING:
    from ..toolkit.ranks import Ranks

__all__ = ["add"]

# Matches where a spreadsheet may begin a formula, which may start programs: at the start of a field and, with other
# settings of the spreadsheet, after a semicolon, a tab or a line break. The four escapes are wide forms of = + - @.
# A number is no formula.
_FORMULA = re.compile(
    r"""(^|[;\t\r\n])(?=[ "']*[=+\-@\uff1d\uff0b\uff0d\uff20])"""
    r"(?!^[+-]([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?\Z)",
    re.IGNORECASE,
)

_Write = Callable[[dict[str, Any], Any, dict[str, float]], None]  # takes what stands before the label, it, and shares


class _Example(NamedTuple):
    sequence: Any
    beside: Any  # what --echo or --id writes beside the label


EXAMPLES = """\
examples:
  seqcls-fast predict model new.csv --text review > labels.csv
  seqcls-fast predict model new.jsonl --format jsonl --out labels.jsonl
  seqcls-fast predict model new.csv --echo             each text beside its label
  seqcls-fast predict model new.csv --id number        the column `number` beside the label
  tail -n 1000 messages | seqcls-fast predict model    a text per line; an empty line is an empty text
  cat new.csv | seqcls-fast predict model - --input-format csv
"""


def add(commands: Any) -> None:
    purpose = "label new data as it streams in, in constant memory"
    parser = add_command(commands, "predict", purpose, EXAMPLES, _predict)
    parser.add_argument("model", help="directory that train wrote")
    parser.add_argument("data", nargs="?", default="-", help="file, or - for stdin (default)")
    add_columns(parser)
    parser.add_argument(
        "--format", choices=("csv", "jsonl"), default="csv", help="what to write (default: %(default)s)"
    )
    parser.add_argument("--out", metavar="FILE", help="where to write it, once all is there (default: stdout, at once)")
    words = "write each input beside its label (for series the number of the row, from 0 on)"
    beside = parser.add_mutually_exclusive_group()
    beside.add_argument("--echo", action="store_true", help=words)
    beside.add_argument("--id", metavar="COLUMN", help="write a column of the data beside the label, such as an id")
    words = (
        "write labels and inputs to CSV as they are; otherwise one that a spreadsheet would run as a formula (that "
        "begins with =, +, -, @, a tab or a line break, and is no number) gets an apostrophe in front, and a terminal "
        "is shown escapes for control characters"
    )
    parser.add_argument("--raw", action="store_true", help=words)
    parser.add_argument("--batch", type=count, default=256, metavar="N", help="rows at a time (default: %(default)s)")


def _predict(arguments: argparse.Namespace) -> None:
    need("numpy", "a saved model")
    if arguments.raw and arguments.format != "csv":
        raise UsageError(f"--raw: expected with --format csv but got {arguments.format}")
    check_folder(arguments.out)
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 and (predictor := open_runtime(arguments.model)) is not None:
        batches = _batches(arguments, predictor.kind)
        found = ((batch, predictor.predict([each.sequence for each in batch])) for batch in batches)
        _write_predictions(arguments, predictor.classes, found)
        return
    from ..toolkit.ranks import join

    with join() as ranks:
        if ranks.world > 1 and arguments.data == "-":
            raise UsageError("data: expected a file that every process can read but got -, the standard input")
        estimator, kind = load(arguments.model)
        shared = _shared(estimator, _batches(arguments, kind), ranks)
        if ranks.writer:
            _write_predictions(arguments, estimator.classes_.tolist(), shared)
        else:
            for _ in shared:  # yields nothing here, but computes this process's share of the batches
                pass


def _batches(arguments: argparse.Namespace, kind: str) -> Iterator[list[_Example]]:
    examples = _inputs(arguments, kind)
    return iter(lambda: list(islice(examples, arguments.batch)), [])


def _shared(estimator: Any, batches: Iterator[list[_Example]], ranks: Ranks) -> Iterator[tuple[list[_Example], Any]]:
    """Each batch with its labels and probabilities, in the process that writes; the processes share the batches."""
    while turn := list(islice(batches, ranks.world)):
        mine = None
        if ranks.rank < len(turn):
            probabilities = estimator.predict_proba([example.sequence for example in turn[ranks.rank]])
            mine = estimator.decide(probabilities).tolist(), probabilities.tolist()
        yield from zip(turn, ranks.gather(mine) or [], strict=False)


def _write_predictions(arguments: argparse.Namespace, classes: list[Any], found: Iterator[Any]) -> None:
    counts = dict.fromkeys(map(str, classes), 0)
    inline = arguments.json and not arguments.out  # one JSON object holds the predictions and the summary
    first = list(islice(found, 1))  # before anything is written: the data may be unreadable
    beside = "id" if arguments.id is not None else "input" if arguments.echo else None
    with _output(arguments.out) as file:
        write = _inline_rows(file) if inline else _writer(file, arguments.format, classes, arguments.raw, beside)
        if inline:
            file.write('{"predictions": [')
        for examples, (decided, probabilities) in chain(first, found):
            for example, label, shares in zip(examples, decided, probabilities, strict=True):
                counts[str(label)] += 1
                before = {} if beside is None else {beside: example.beside}
                write(before, label, dict(zip(map(str, classes), shares, strict=True)))
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


def _writer(file: IO[str], format: str, classes: list[Any], raw: bool, beside: str | None) -> _Write:
    """A function that writes a row. ``beside`` is the name of the column before the label, if there is one."""
    if format == "csv":
        seen = str if raw else _shown_harmless if file.isatty() else _harmless
        # before Python 3.13, csv does not quote \r by itself
        returns = beside is not None or any("\r" in str(label) for label in classes)
        rows = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL if returns else csv.QUOTE_MINIMAL)
        fields = {label: seen(label) for label in classes}
        rows.writerow([*filter(None, [beside]), "label", *(seen(f"probability_{label}") for label in classes)])

        def write_fields(before: dict[str, Any], label: Any, shares: dict[str, float]) -> None:
            words = ("" if value is None else seen(value) for value in before.values())
            rows.writerow([*words, fields[label], *(f"{share:.6g}" for share in shares.values())])

        return write_fields

    def write(before: dict[str, Any], label: Any, shares: dict[str, float]) -> None:
        file.write(_row(before, label, shares) + "\n")

    return write


def _inline_rows(file: IO[str]) -> _Write:
    between = iter(["\n"])

    def write(before: dict[str, Any], label: Any, shares: dict[str, float]) -> None:
        file.write(next(between, ",\n") + _row(before, label, shares))

    return write


def _row(before: dict[str, Any], label: Any, shares: dict[str, float]) -> str:
    return json_text({**plain(before), "label": plain(label), "probabilities": shares})


def _harmless(text: Any) -> str:
    """A field of CSV that no spreadsheet runs: an apostrophe in front of a formula makes it text."""
    return _FORMULA.sub(r"\1'", str(text))


def _shown_harmless(text: Any) -> str:
    return escaped(_harmless(text))


def _inputs(arguments: argparse.Namespace, kind: str) -> Iterator[_Example]:
    """The texts or series, one at a time."""
    from ..toolkit.data import readers

    source, format = arguments.data, arguments.input_format
    if source == "-":
        source, format = sys.stdin, format or {"text": "txt", "series": "jsonl"}[kind]
    columns = {"text": arguments.text, "format": format, "delimiter": arguments.delimiter}
    for number, record in enumerate(readers.stream(source, kind=kind, **columns)):
        sequence = record["series" if kind == "series" else arguments.text]
        if arguments.id is None:
            yield _Example(sequence, number if kind == "series" else sequence)
        elif arguments.id in record:
            yield _Example(sequence, record[arguments.id])
        else:
            near = did_you_mean(arguments.id, record)
            raise ValueError(f"--id: expected a column of the data but row {number} has no {shown(arguments.id)}{near}")

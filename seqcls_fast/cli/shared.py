"""Functions that several commands use: to declare options, to read data and models, and to write results.

A file is written under another name first and takes its place when it is complete (_files.py).
"""

from __future__ import annotations

import argparse
import io
import math
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from .. import _files
from ..toolkit._extras import need
from ..toolkit._terminal import escaped, json_text, shown
from ..toolkit.parameter_table import ESTIMATORS
from ..toolkit.timing import timed, turns

__all__ = [
    "UsageError", "add_columns", "add_command", "add_labelled", "add_out", "check_folder", "check_new", "claimed",
    "count", "labelled", "labels_of", "load", "median_seconds", "own_format", "plain", "print_json", "random_batch",
    "read_examples", "replacing", "result_file", "save_pictures", "write_text", "written_to",
]  # fmt: skip


class UsageError(Exception):
    """Options that cannot be combined: exit code 2, as for errors that argparse finds."""


def add_command(
    commands: Any, name: str, purpose: str, examples: str, run: Callable[[argparse.Namespace], None]
) -> argparse.ArgumentParser:
    """The parser of a new command, with the options that all commands have."""
    layout = argparse.RawDescriptionHelpFormatter
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=purpose, description=purpose[0].upper() + purpose[1:] + ".", epilog=examples, formatter_class=layout,
        allow_abbrev=False,  # an abbreviation could come to mean another option in a later version
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout instead of text")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    parser.set_defaults(run=run, parser=parser)
    return parser


def add_out(parser: argparse.ArgumentParser, **own_formats: str) -> None:
    """Adds --out to a command that prints its result. ``own_formats``: suffixes that the command writes by itself."""
    ways = "".join(f"; a name that ends in .{suffix} {words}" for suffix, words in own_formats.items())
    parser.add_argument("--out", metavar="FILE", help=f"where to write the result (default: stdout){ways}")
    parser.set_defaults(prints=True, own_formats=tuple(f".{suffix}" for suffix in own_formats))


def own_format(arguments: argparse.Namespace) -> str | None:
    """The file of --out, if its name has a suffix that the command writes by itself."""
    out: str | None = arguments.out
    return out if out is not None and Path(out).suffix.lower() in arguments.own_formats else None


def result_file(arguments: argparse.Namespace) -> str | None:
    """The file of --out that takes what a command prints."""
    return arguments.out if getattr(arguments, "prints", False) and not own_format(arguments) else None


@contextmanager
def written_to(path: str | None) -> Iterator[None]:
    """Writes to a file, whole or not at all, what the block prints. Without a path it is printed."""
    if path is None:
        yield
        return
    check_folder(path)
    with redirect_stdout(io.StringIO()) as text:
        yield
    write_text(path, text.getvalue())


def count(text: str) -> int:
    if not re.fullmatch("0*[1-9][0-9]{0,17}", text):
        raise argparse.ArgumentTypeError(f"expected a number of at least 1 but got {shown(text)}")
    return int(text)


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


def print_json(value: Any) -> None:
    print(json_text(plain(value), indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    """A value that JSON can hold: arrays become lists, keys strings, and NaN and infinities None."""
    if isinstance(value, dict):
        return {str(plain(key)): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if hasattr(value, "tolist"):  # an array or a tensor
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def check_folder(*paths: str | Path | None) -> None:
    """Refuses files whose folder is missing. Called before the work whose result would be lost."""
    for path in paths:
        if path is not None and not Path(path).parent.is_dir():
            name, folder = escaped(path), escaped(Path(path).parent)
            raise FileNotFoundError(f"{name}: expected a folder that exists but there is no {folder}")


def check_new(folder: Path, hint: str = "") -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{escaped(folder)}: expected a new or empty directory{hint and f' ({hint})'}")


@contextmanager
def replacing(path: Path, wait: bool = True) -> Iterator[Path]:
    """A name to write to. The file takes the place of `path` at the end; a failure leaves `path` as it was."""
    check_folder(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected a file but got a folder")
    with _files.replacing(path, wait) as written:
        yield written


@contextmanager
def claimed(out: Path, replaces: bool, hint: str = "") -> Iterator[None]:
    """Keeps the folder for this command while the block runs: another command that would save there is refused."""
    from ..toolkit import store

    target = store.check_target(out)
    _files.make_folder(target.parent)
    with _files.locked(target.with_name(f".{target.name}.run"), out, wait=False):
        _files.restore(target)
        if not replaces:
            check_new(out, hint)
        yield


def write_text(path: str | Path, text: str) -> None:
    with replacing(Path(path)) as written:
        written.write_text(text, encoding="utf-8")


def save_pictures(folder: Path, report: Any, estimator: Any, lengths: Any = None) -> None:
    """Draws what there is: learning curves, the report, and a histogram of ``lengths`` if sequences are in memory."""
    from ..toolkit.evaluation import plots

    folder.mkdir(parents=True, exist_ok=True)
    figures = {} if lengths is None else {"lengths": plots.length_histogram(lengths)}
    if getattr(estimator, "history_", None):
        figures["learning_curves"] = plots.learning_curves(estimator.history_)
    if report is not None:
        for draw in (plots.confusion, plots.reliability, plots.roc, plots.precision_recall):
            figures[draw.__name__] = draw(report)
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png")


def read_examples(path: str, kind: str, **columns: Any) -> tuple[list[Any], list[Any], list[float] | None]:
    from ..toolkit.data import readers

    table = readers.read(path, kind=kind, **columns)
    assert table.labels is not None
    return table.texts_or_series, table.labels, table.weights


def labelled(arguments: argparse.Namespace, path: str, kind: str) -> tuple[list[Any], list[Any]]:
    """The examples and labels of a file, by the options of :func:`add_labelled`."""
    columns = {"text": arguments.text, "label": arguments.label, "delimiter": arguments.delimiter}
    return read_examples(path, kind=kind, format=arguments.input_format, **columns)[:2]


def labels_of(estimator: Any, labels: Sequence[Any]) -> list[Any]:
    """The labels as the model knows them: a CSV holds strings, where the model may know numbers from JSON."""
    classes = estimator.classes_.tolist()
    by_name = {str(label): label for label in classes}
    return [label if label in classes else by_name.get(str(label), label) for label in labels]


def load(path: str) -> tuple[Any, str]:
    """The estimator of a saved model, and its kind."""
    need("numpy", "a saved model")
    from ..toolkit import estimators, store

    with store.opened(path) as saved:
        kind = saved.config["kind"]
    name = ESTIMATORS.get(kind, ESTIMATORS["text"])  # its load() says that it does not know such a kind
    return getattr(estimators, name).load(path), kind


def median_seconds(calls: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """The median time of each call, timed in turns."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _, name in turns(calls, rounds):
        samples[name].append(timed(calls[name])[0])
    return {name: statistics.median(seconds) for name, seconds in samples.items()}


def random_batch(model: Any, rows: int, longest: int) -> Any:
    """Random ids or features, lengths like those of short texts (30 in the median, at most `longest`), a wide part."""
    import torch

    from ..toolkit.data.ragged import Inputs

    generator = torch.Generator().manual_seed(0)
    lengths = (30 * torch.randn(rows, generator=generator).mul(0.75).exp()).long().clamp(1, longest)
    lengths[0] = longest
    shape = (rows, longest)
    wide: Any = None
    if model.wide_ids is not None:
        wide = (torch.randint(model.wide_ids, (rows, 5 * longest), generator=generator), torch.ones(rows, 5 * longest))
    elif model.wide_features is not None:
        wide = torch.randn(rows, model.wide_features, generator=generator)
    if model.vocab_size is None:
        return Inputs(torch.randn(*shape, model.input_size, generator=generator), lengths, wide)
    ids = torch.randint(1, max(2, model.vocab_size), shape, generator=generator)
    return Inputs(ids.masked_fill_(torch.arange(longest) >= lengths[:, None], 0), lengths, wide)

"""Labelled sequences from files and folders: CSV, TSV, JSONL and Parquet, the UCR/UEA ``.ts`` format, lines of text.

Files are read as bytes and decoded line by line, so that memory is that of the longest record and every complaint
knows its line. UTF-8 alone is read, with or without a byte order mark; an empty text is data, an empty label is not.
Data larger than memory are read by blocks, which one pass finds and which can then be read in any order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from .._terminal import NAME, escaped, shown
from .errors import DataError
from .formats import Csv, Jsonl, Lines, Parquet, Text, Ts, as_number, described

__all__ = ["BLOCK", "Block", "Content", "Files", "Layout", "Table", "files_below", "read", "stream"]

Source = str | os.PathLike[str] | IO[bytes] | IO[str]
Record = dict[str, Any]

BLOCK = 256  # rows at most
_BLOCK_BYTES = 1 << 20  # after which a block takes no further row

_FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".ts": "ts",
    ".txt": "txt",
}
_KINDS = {"text": ("csv", "tsv", "jsonl", "parquet", "txt"), "series": ("jsonl", "parquet", "ts")}


@dataclass
class Table:
    """What :func:`read` returns, in the order of the file."""

    texts_or_series: list[Any]
    labels: list[Any] | None
    weights: list[float] | None

    def __len__(self) -> int:
        return len(self.texts_or_series)

    def take(self, rows: Sequence[int]) -> Table:
        if rows == range(len(self)):
            return self

        def taken(column: list[Any] | None) -> list[Any] | None:
            return None if column is None else [column[row] for row in rows]

        return Table(taken(self.texts_or_series) or [], taken(self.labels), taken(self.weights))


class Block(NamedTuple):
    """Rows that are read at once: at most 256 of them or a megabyte (or one longer row), or a row group of Parquet."""

    file: int  # its place among the files
    offset: int  # where its first line begins, in bytes; the number of the row group
    line: int  # the number of that line, or of the first row
    rows: int


class Content(Protocol):
    """What a block holds. Of a row group, rows become Python's objects only when they are taken."""

    def __len__(self) -> int: ...

    def take(self, rows: Sequence[int], /) -> Table: ...


@dataclass(frozen=True)
class Layout:
    """What is read of a file: the arguments of :func:`read`."""

    text: str = "text"
    label: str | None = "label"
    weight: str | None = None
    format: str | None = None
    kind: str = "text"
    delimiter: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"kind: expected text or series but got {shown(self.kind)}")

    @property
    def column(self) -> str:
        """Of the sequences."""
        return "series" if self.kind == "series" else self.text

    @property
    def wanted(self) -> list[str]:
        return [name for name in (self.column, self.label, self.weight) if name is not None]

    def format_of(self, source: Source) -> str:
        """By the name, if it is not given; a ValueError for what does not go with it."""
        format, delimiter = _format(source, self.format, self.kind), self.delimiter
        if delimiter is not None:
            if format != "csv":
                raise ValueError(f"delimiter: expected None for {format} but got {shown(delimiter)}")
            if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n':
                raise ValueError(f"delimiter: expected one character but got {shown(delimiter)}")
        if format == "ts" and self.weight is not None:
            raise ValueError(f"weight: expected None for ts, which has no columns, but got {shown(self.weight)}")
        if format == "txt" and (self.label is not None or self.weight is not None):
            raise ValueError("label and weight: expected None for txt, which holds texts alone")
        return format

    def reader(self, format: str) -> Csv | Jsonl | Text | Ts:
        """Of lines."""
        if format == "csv" or format == "tsv":
            return Csv(self.wanted, "\t" if format == "tsv" else self.delimiter or ",")
        if format == "jsonl":
            return Jsonl(self.wanted)
        return Ts(self.label) if format == "ts" else Text(self.column)

    def check(self, record: Record, where: str) -> None:
        """Refuses what is no text or series, label or weight; series become arrays, weights floats."""
        try:
            if self.kind == "series":
                record[self.column] = _series(record[self.column])
            else:
                _check_text(record[self.column], self.column)
            if self.label is not None:
                _check_label(record[self.label], self.label)
            if self.weight is not None:
                record[self.weight] = _weight(record[self.weight], self.weight)
        except ValueError as error:
            raise DataError(f"{where}: {escaped(error, 1000)}") from None

    def table(self, columns: list[list[Any]], numbers: Sequence[int], name: str, place: str = "line") -> Table:
        """Columns as wanted, checked like the records of :func:`stream`, but fast where all is plainly right."""
        if self.kind == "series" or self.weight is not None or not all(map(_plainly_right, columns, (False, True))):
            wanted, checked = self.wanted, []
            for number, *values in zip(numbers, *columns, strict=True):
                record = dict(zip(wanted, values, strict=True))
                self.check(record, f"{escaped(name)}, {place} {number}")
                checked.append([record[column] for column in wanted])
            columns = [list(column) for column in zip(*checked, strict=True)] or [[] for _ in wanted]
        rest = iter(columns)
        return Table(
            next(rest), None if self.label is None else next(rest), None if self.weight is None else next(rest)
        )


def read(
    path: Source,
    *,
    text: str = "text",
    label: str | None = "label",
    weight: str | None = None,
    format: str | None = None,
    kind: str = "text",
    delimiter: str | None = None,
) -> Table:
    """A whole file, or all files of a folder.

    Args:
        path: the file, or its name; or a folder: what is read are the files below it whose names end in a known suffix
            and begin with neither . nor _, in the order of their paths.
        text: the column, or JSON key, of the texts. Series always lie under ``series``: a list of steps, each a list of
            features, or of numbers where there is one feature.
        label: that of the labels: text, or in JSONL and Parquet also a number or a bool. None for data without labels.
            Not used for ``.ts``, where the label is the last field.
        weight: that of the weights, finite and not negative; None if there are none.
        format: csv, tsv, jsonl, parquet, ts or txt (a text on each line); None to go by the name.
        kind: ``"text"`` or ``"series"``.
        delimiter: what separates the fields of CSV in place of a comma.

    Example::

        >>> import io
        >>> from seqcls_fast.toolkit.data.readers import read
        >>> file = io.StringIO('text,label\\n"good, very good",1\\nbad,0\\n')
        >>> read(file, format="csv")
        Table(texts_or_series=['good, very good', 'bad'], labels=['1', '0'], weights=None)
    """
    column = "series" if kind == "series" else text
    sequences: list[Any] = []
    labels: list[Any] = []
    weights: list[float] = []
    for record in stream(path, text=text, label=label, weight=weight, format=format, kind=kind, delimiter=delimiter):
        sequences.append(record[column])
        if label is not None:
            labels.append(record[label])
        if weight is not None:
            weights.append(record[weight])
    if not sequences:
        raise DataError(f"{escaped(_name(path))}: expected at least one example but got none")
    return Table(sequences, None if label is None else labels, None if weight is None else weights)


def stream(
    path_or_file: Source,
    *,
    text: str = "text",
    label: str | None = None,
    weight: str | None = None,
    format: str | None = None,
    kind: str = "text",
    delimiter: str | None = None,
) -> Iterator[Record]:
    """The records of a file one by one, each a dict of all its columns; arguments as in :func:`read`.

    Only the columns that are named here are checked. A file without records yields nothing.

    Example::

        >>> import io
        >>> from seqcls_fast.toolkit.data.readers import stream
        >>> next(stream(io.StringIO('{"text": "good", "id": 7}'), format="jsonl"))
        {'text': 'good', 'id': 7}
    """
    layout = Layout(text, label, weight, format, kind, delimiter)
    if isinstance(path_or_file, str | os.PathLike):
        files = Files(path_or_file, layout)
        return (record for k in range(len(files.paths)) for record in files.records(k))
    return _records(path_or_file, layout, layout.format_of(path_or_file))


class Files:
    """The files below a path, to be read as a whole or by blocks.

    Example::

        >>> import pathlib, tempfile
        >>> from seqcls_fast.toolkit.data.readers import Files, Layout
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = pathlib.Path(folder, "a.csv").write_text("text,label\\ngood,1\\nbad,0\\n")
        ...     files = Files(folder, Layout())
        ...     blocks = [block for block, _ in files.blocks()]
        ...     print(blocks, files.content(blocks[0]).take([1]))
        [Block(file=0, offset=11, line=2, rows=2)] Table(texts_or_series=['bad'], labels=['0'], weights=None)
    """

    def __init__(self, path: str | os.PathLike[str], layout: Layout) -> None:
        self.layout = layout
        self.paths = _paths(path, layout)
        self.formats = [layout.format_of(path) for path in self.paths]
        self.stamps: dict[int, tuple[int, int]] = {}  # size and time of change of each file that blocks were found in
        self._readers: dict[int, Csv | Jsonl | Text | Ts] = {}  # which know a file's columns
        self._group: tuple[tuple[int, int], Any] | None = None  # the row group read last: others may want the rest

    def records(self, file: int) -> Iterator[Record]:
        with _open(self.paths[file]) as opened:
            yield from _records(opened, self.layout, self.formats[file])

    def blocks(self) -> Iterator[tuple[Block, Content]]:
        """All of them, in order and with what they hold. One pass, after which each can be read by itself."""
        for file, (path, format) in enumerate(zip(self.paths, self.formats, strict=True)):
            if format == "ts":
                wanted = "a format that is read by blocks"
                raise ValueError(f"{escaped(path)}: expected {wanted} but got ts, which is read whole")
            with _open(path) as opened:
                self.stamps.setdefault(file, _stamp(opened))
                self._check_stamp(file, opened)
                yield from self._groups(file, opened) if format == "parquet" else self._blocks(file, opened)
                self._check_stamp(file, opened)  # what was written meanwhile

    def content(self, block: Block) -> Content:
        """What a block holds; a DataError where its file has changed since :meth:`blocks`."""
        with _open(self.paths[block.file]) as opened:
            self._check_stamp(block.file, opened)
            if self.formats[block.file] == "parquet":
                return self._row_group(block, opened)
            opened.seek(block.offset)
            lines = Lines(opened, escaped(self.paths[block.file]), block.offset, block.line - 1)
            return self._table(block.file, list(islice(self._reader(block.file).rows(lines), block.rows)))

    def _blocks(self, file: int, opened: IO[bytes]) -> Iterator[tuple[Block, Table]]:
        lines, reader = Lines(opened, escaped(self.paths[file])), self.layout.reader(self.formats[file])
        reader.begin(lines)
        self._readers[file] = reader
        rows: list[tuple[int, Any]] = []
        start, line = lines.offset, lines.number + 1
        for row in reader.rows(lines):
            rows.append(row)
            if len(rows) == BLOCK or lines.offset - start >= _BLOCK_BYTES:
                yield Block(file, start, line, len(rows)), self._table(file, rows)
                rows, start, line = [], lines.offset, lines.number + 1
        if rows:
            yield Block(file, start, line, len(rows)), self._table(file, rows)

    def _groups(self, file: int, opened: IO[bytes]) -> Iterator[tuple[Block, Content]]:
        parquet = Parquet(opened, escaped(self.paths[file]), self.layout.wanted)
        first = 1
        for group, rows in enumerate(parquet.groups()):
            block = Block(file, group, first, rows)
            if rows:
                yield block, _RowGroup(parquet, parquet.group(group), block, self.layout)
            first += rows

    def _row_group(self, block: Block, opened: IO[bytes]) -> Content:
        key = (block.file, block.offset)
        if self._group is None or self._group[0] != key:
            self._group = None  # two of them need not be in memory
            parquet = Parquet(opened, escaped(self.paths[block.file]), self.layout.wanted)
            self._group = key, _RowGroup(parquet, parquet.group(block.offset), block, self.layout)
        content: Content = self._group[1]
        return content

    def _reader(self, file: int) -> Csv | Jsonl | Text | Ts:
        if file not in self._readers:
            self._readers[file] = self.layout.reader(self.formats[file])
            with _open(self.paths[file]) as opened:
                self._readers[file].begin(Lines(opened, escaped(self.paths[file])))
        return self._readers[file]

    def _table(self, file: int, rows: list[tuple[int, Any]]) -> Table:
        keys = [self._readers[file].key(column) for column in self.layout.wanted]
        columns = [[values[key] for _, values in rows] for key in keys]
        return self.layout.table(columns, [number for number, _ in rows], escaped(self.paths[file]))

    def _check_stamp(self, file: int, opened: IO[bytes]) -> None:
        if self.stamps.get(file) != _stamp(opened):
            name = escaped(self.paths[file])
            raise DataError(f"{name}: expected the file that was looked through before but it has changed")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": {}, "_group": None}


class _RowGroup:
    def __init__(self, parquet: Parquet, table: Any, block: Block, layout: Layout) -> None:
        self.parquet, self.table, self.block, self.layout = parquet, table, block, layout

    def __len__(self) -> int:
        return self.block.rows

    def take(self, rows: Sequence[int]) -> Table:
        columns = dict(zip(self.parquet.wanted, self.parquet.columns(self.table, rows), strict=True))
        return self.layout.table(
            [columns[name] for name in self.layout.wanted], [self.block.line + row for row in rows],
            self.parquet.name, "row",
        )  # fmt: skip


def _paths(path: str | os.PathLike[str], layout: Layout) -> list[str]:
    """The file, or those of a folder; where labels are read, files of text alone are not meant."""
    if not os.path.isdir(path):
        return [os.fspath(path)]
    formats = [name for name in _KINDS[layout.kind] if name != "txt" or layout.label is None]
    found = files_below(path, formats if layout.format is None else None)
    if not found:
        endings = ", ".join(ending for ending, name in _FORMATS.items() if name in formats)
        raise DataError(f"{escaped(path)}: expected a folder with files that end in one of {endings} but found none")
    return found


def files_below(path: str | os.PathLike[str], formats: Collection[str] | None = tuple(_FORMATS.values())) -> list[str]:
    """The files in a folder and below, sorted: those of some formats, by their names, or all; hidden ones never."""
    found = []
    for folder, folders, names in os.walk(path, onerror=_raise):
        folders[:] = [name for name in folders if name[0] not in "._"]
        for name in names:
            known = formats is None or _FORMATS.get(os.path.splitext(name)[1].lower()) in formats
            if known and name[0] not in "._":
                found.append(Path(folder, name))
    return [os.fspath(name) for name in sorted(found)]


def _open(path: str) -> IO[bytes]:
    """For reading; a name that is too long is not repeated as a whole."""
    try:
        return open(path, "rb")
    except OSError as error:
        if len(path) <= NAME:
            raise
        raise OSError(error.errno, error.strerror, escaped(path)) from None


def _raise(error: OSError) -> None:
    raise error


def _stamp(opened: IO[bytes]) -> tuple[int, int]:
    found = os.fstat(opened.fileno())
    return found.st_size, found.st_mtime_ns


def _format(source: Source, format: str | None, kind: str) -> str:
    if format is None:
        suffix = os.path.splitext(_name(source))[1].lower()
        format = _FORMATS.get(suffix)
        if format is None:
            known = ", ".join(_FORMATS)
            raise ValueError(
                f"path: expected a name that ends in one of {known}, or format=, but got {shown(_name(source), NAME)}"
            )
    if format not in _FORMATS.values():
        known = ", ".join(dict.fromkeys(_FORMATS.values()))
        raise ValueError(f"format: expected one of {known} but got {shown(format)}")
    if format not in _KINDS[kind]:
        raise ValueError(f"format: expected one of {', '.join(_KINDS[kind])} for kind={kind!r} but got {format}")
    return format


def _records(file: Any, layout: Layout, format: str) -> Iterator[Record]:
    name = escaped(_name(file))
    if format == "parquet":
        for number, record in Parquet(file, name, layout.wanted).rows():
            layout.check(record, f"{name}, row {number}")
            yield record
        return
    lines, reader = Lines(file, name), layout.reader(format)
    reader.begin(lines)
    for number, row in reader.rows(lines):
        record = reader.record(row)
        layout.check(record, f"{lines.name}, line {number}")
        yield record


def _name(source: Source) -> str:
    """How messages call it: standard input and files in memory have no path."""
    if not isinstance(source, str | os.PathLike):
        given = getattr(source, "name", None)
        return given if isinstance(given, str) else "<data>"
    return os.fspath(source)


# -- what a record must hold ------------------------------------------------------------------------------------------


def _plainly_right(column: list[Any], labels: bool) -> bool:
    """Whether a column is of Unicode strings, of labels too that are not empty; else each value has to be looked at."""
    try:
        "".join(column).encode()
    except (TypeError, UnicodeEncodeError):
        return False
    return not labels or all(map(str.strip, column))


def _series(value: Any) -> Any:
    from .series import as_steps

    if not hasattr(value, "dtype") and not isinstance(value, list):
        raise ValueError(f"series: expected a list of steps but got {described(value)}")
    steps = as_steps(value, "series")
    infinite = abs(steps) == math.inf
    if infinite.any():
        step, feature = infinite.nonzero()[0][0], infinite.nonzero()[1][0]
        raise ValueError(f"series: expected finite values but got inf at step {step}, feature {feature}")
    return steps


def _check_text(value: Any, column: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"expected text in {shown(column)} but got {described(value)}")
    if not value.isascii():
        _check_unicode(value, column)


def _check_unicode(value: str, column: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(value[error.start]):04X}"
        raise ValueError(f"expected Unicode text in {shown(column)} but got a lone surrogate, {half}") from None


def _check_label(value: Any, column: str) -> None:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"expected a label in {shown(column)} but got nothing")
    if not isinstance(value, str | int | float) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(f"expected a label in {shown(column)}, text or a number, but got {described(value)}")
    if isinstance(value, str):
        _check_unicode(value, column)


def _weight(value: Any, column: str) -> float:
    try:
        weight = math.nan if isinstance(value, bool) else as_number(value) if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ValueError(f"expected a weight in {shown(column)}, finite and at least 0, but got {described(value)}")
    return weight

"""Reads labelled sequences from files and folders: CSV, TSV, JSONL, Parquet, UCR/UEA ``.ts``, lines of text.

Files are read as bytes and decoded line by line, so that no more than one record is in memory and every error message
knows its line. Only UTF-8 is read, with or without a byte order mark. An empty text is data, an empty label an error.
Data larger than memory are read in blocks: one pass finds them, and they can then be read in any order.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

from .._terminal import NAME, escaped, shown
from .errors import DataError
from .formats import FORMATS
from .records import Block, Content, Layout, Reader, Record, Table

__all__ = ["Files", "files_below", "read", "stream"]

Source = str | os.PathLike[str] | IO[bytes] | IO[str]


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
        path: an open file, the name of a file, or a folder. Of a folder all files below it are read, in the order of
            their paths, whose names end in a known suffix and do not begin with . or _.
        text: the column, or JSON key, of the texts. The column of series is always ``series``: a list of steps, each a
            list of features, or a number if there is one feature.
        label: the column of the labels: text, or in JSONL and Parquet also a number or a bool. None for data without
            labels. Not used for ``.ts``, where the label is the last field.
        weight: the column of the weights, finite and not negative; None if there are none.
        format: csv, tsv, jsonl, parquet, ts or txt (a text on each line); None to tell it from the file's name.
        kind: ``"text"`` or ``"series"``.
        delimiter: the character that separates the fields of CSV, in place of a comma.

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
    return _records(path_or_file, _reader_of(path_or_file, layout))


class Files:
    """The files below a path, which are read one by one or in blocks.

    Example::

        >>> import pathlib, tempfile
        >>> from seqcls_fast.toolkit.data.readers import Files
        >>> from seqcls_fast.toolkit.data.records import Layout
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
        self.stamps: dict[int, tuple[int, int]] = {}  # by file, its size and time of change when blocks() read it
        self._readers = [_reader_of(path, layout) for path in self.paths]
        self._last: tuple[Block, Content] | None = None  # the block read last: more of its rows are often next

    def records(self, file: int) -> Iterator[Record]:
        with _open(self.paths[file]) as opened:
            yield from _records(opened, self._readers[file])

    def blocks(self) -> Iterator[tuple[Block, Content]]:
        """All blocks in order, with their rows. After this pass each block can be read by itself."""
        for file, (path, reader) in enumerate(zip(self.paths, self._readers, strict=True)):
            if not reader.in_blocks:
                name = _format_of(path, self.layout)
                wanted = "a format that is read by blocks"
                raise ValueError(f"{escaped(path)}: expected {wanted} but got {name}, which is read whole")
            with _open(path) as opened:
                self.stamps.setdefault(file, _stamp(opened))
                self._check_stamp(file, opened)
                yield from reader.blocks(opened, escaped(path), file)
                self._check_stamp(file, opened)  # it may have been written to meanwhile

    def content(self, block: Block) -> Content:
        """The rows of a block; a DataError if its file has changed since :meth:`blocks`."""
        path = self.paths[block.file]
        with _open(path) as opened:
            self._check_stamp(block.file, opened)
            if self._last is None or self._last[0] != block:
                self._last = None  # frees the last row group before the next one is read
                self._last = block, self._readers[block.file].content(opened, escaped(path), block)
            return self._last[1]

    def place(self, block: Block) -> str:
        """Where a block begins, for error messages."""
        return f"{self._readers[block.file].place} {block.line}"

    def _check_stamp(self, file: int, opened: IO[bytes]) -> None:
        if self.stamps.get(file) != _stamp(opened):
            name = escaped(self.paths[file])
            raise DataError(f"{name}: expected the file as it was surveyed but it has changed")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}


def _paths(path: str | os.PathLike[str], layout: Layout) -> list[str]:
    """The file itself, or the files of a folder. Formats without labels are left out if labels are wanted."""
    if not os.path.isdir(path):
        return [os.fspath(path)]
    formats = [
        name for name, format in FORMATS.items()
        if layout.kind in format.kinds and (format.has_labels or layout.label is None)
    ]  # fmt: skip
    found = files_below(path, formats if layout.format is None else None)
    if not found:
        endings = ", ".join(ending for ending, name in _endings().items() if name in formats)
        raise DataError(f"{escaped(path)}: expected a folder with files that end in one of {endings} but found none")
    return found


def files_below(path: str | os.PathLike[str], formats: Collection[str] | None = tuple(FORMATS)) -> list[str]:
    """The files in a folder and below, sorted; of the formats given, by their names, or all files if that is None.

    Names that begin with . or _ are skipped.
    """
    found, endings = [], _endings()
    for folder, folders, names in os.walk(path, onerror=_raise):
        folders[:] = [name for name in folders if name[0] not in "._"]
        for name in names:
            known = formats is None or endings.get(os.path.splitext(name)[1].lower()) in formats
            if known and name[0] not in "._":
                found.append(Path(folder, name))
    return [os.fspath(name) for name in sorted(found)]


def _open(path: str) -> IO[bytes]:
    """Opens a file for reading. An error message cuts a name that is too long."""
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


def _endings() -> dict[str, str]:
    """The format of each ending of a file's name."""
    return {ending: name for name, format in FORMATS.items() for ending in format.endings}


def _format_of(source: Source, layout: Layout) -> str:
    """The format that is asked for, or the one that the file's name ends in."""
    format = layout.format
    if format is None:
        suffix = os.path.splitext(_name(source))[1].lower()
        endings = _endings()
        format = endings.get(suffix)
        if format is None:
            known = ", ".join(endings)
            raise ValueError(
                f"path: expected a name that ends in one of {known}, or format=, but got {shown(_name(source), NAME)}"
            )
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)} but got {shown(format)}")
    if layout.kind not in FORMATS[format].kinds:
        fitting = ", ".join(name for name, each in FORMATS.items() if layout.kind in each.kinds)
        raise ValueError(f"format: expected one of {fitting} for kind={layout.kind!r} but got {format}")
    return format


def _reader_of(source: Source, layout: Layout) -> Reader:
    """A reader for a file; a ValueError if the layout asks for something that its format cannot have."""
    format = _format_of(source, layout)
    if layout.delimiter is not None and not FORMATS[format].takes_delimiter:
        raise ValueError(f"delimiter: expected None for {format} but got {shown(layout.delimiter)}")
    return FORMATS[format](layout)


def _records(file: Any, reader: Reader) -> Iterator[Record]:
    name = escaped(_name(file))
    for number, record in reader.records(file, name):
        reader.layout.check(record, f"{name}, {reader.place} {number}")
        yield record


def _name(source: Source) -> str:
    """The name of a file in error messages: standard input and files in memory have no path."""
    if not isinstance(source, str | os.PathLike):
        given = getattr(source, "name", None)
        return given if isinstance(given, str) else "<data>"
    return os.fspath(source)

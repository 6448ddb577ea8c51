"""The file formats: a class that reads each, and the registry of them, ``FORMATS``.

To add a format, write a subclass of :class:`LineReader` here (or of ``records.Reader``, if the format has no lines) and
add it to ``FORMATS`` at the end of this file. ``read()``, ``Stream`` and the command line find it there.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from .._extras import need
from .._terminal import escaped, shown
from .errors import DataError
from .parquet import Parquet
from .records import Block, Content, Layout, Reader, Record, Table, as_number, check_columns, described

__all__ = ["FORMATS", "LineReader", "Lines"]

BLOCK = 256  # most rows in a block
_BLOCK_BYTES = 1 << 20  # a block of this size takes no further row
_FIELD_LIMIT = 2**31 - 1  # characters in a CSV field; the csv module's own limit is 131,072
_JSON_SPACE = " \t\r\n"


class Lines:
    """The lines of a file, decoded, with their ends.

    ``offset`` and ``number`` count the bytes and lines read so far. If a file was opened as text, the
    bytes under it are read, where it has any.
    """

    def __init__(self, file: Any, name: str, offset: int = 0, number: int = 0) -> None:
        self.name, self.offset, self.number = escaped(name), offset, number
        self._file = getattr(file, "buffer", file)

    def __iter__(self) -> Iterator[str]:
        return map(self._decoded, self._file)

    def _decoded(self, line: bytes | str) -> str:
        self.number += 1
        if isinstance(line, bytes):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                at, first = self.offset + error.start, self.number == 1
                hint = " (it looks like UTF-16)" if first and line[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
                raise DataError(
                    f"{self.name}, line {self.number}: expected UTF-8 but got byte 0x{line[error.start]:02X} at byte "
                    f"{at} of the file{hint}"
                ) from None
            self.offset += len(line)
        else:
            text = line
        return text.removeprefix("\ufeff") if self.number == 1 else text


class LineReader(Reader):
    """Base of the formats that have records on lines.

    A subclass defines :meth:`rows`, which can begin at the start of the file or at any record, so that one block is
    read by the same code as a whole file.
    """

    def begin(self, lines: Lines) -> None:
        """Reads what comes before the first record, such as the names of columns."""

    def rows(self, lines: Lines) -> Iterator[tuple[int, Any]]:
        """The records, each with the number of the line it begins at, in any form that :meth:`key` can index."""
        raise NotImplementedError

    def key(self, column: str) -> Any:
        """Index of a column in a row of :meth:`rows`."""
        return column

    def record(self, row: Any) -> Record:
        """A row of :meth:`rows` as a dict."""
        found: Record = row
        return found

    def records(self, file: Any, name: str) -> Iterator[tuple[int, Record]]:
        lines = Lines(file, name)
        self.begin(lines)
        for number, row in self.rows(lines):
            yield number, self.record(row)

    def blocks(self, file: Any, name: str, number: int) -> Iterator[tuple[Block, Content]]:
        lines = Lines(file, name)
        self.begin(lines)
        rows: list[tuple[int, Any]] = []
        start, line = lines.offset, lines.number + 1
        for row in self.rows(lines):
            rows.append(row)
            if len(rows) == BLOCK or lines.offset - start >= _BLOCK_BYTES:
                yield Block(number, start, line, len(rows)), self._table(rows, name)
                rows, start, line = [], lines.offset, lines.number + 1
        if rows:
            yield Block(number, start, line, len(rows)), self._table(rows, name)

    def content(self, file: Any, name: str, block: Block) -> Content:
        file.seek(block.offset)
        lines = Lines(file, name, block.offset, block.line - 1)
        return self._table(list(islice(self.rows(lines), block.rows)), name)

    def _table(self, rows: list[tuple[int, Any]], name: str) -> Table:
        keys = [self.key(column) for column in self.layout.wanted]
        columns = [[values[key] for _, values in rows] for key in keys]
        return self.layout.table(columns, [number for number, _ in rows], name, self.place)


class Csv(LineReader):
    """Rows with quotes as in RFC 4180, including line breaks inside quotes; empty lines are skipped."""

    endings = (".csv",)
    takes_delimiter = True

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        given = layout.delimiter
        if given is not None and (not isinstance(given, str) or len(given) != 1 or given in '"\r\n'):
            raise ValueError(f"delimiter: expected one character but got {shown(given)}")
        self.delimiter = given or ","
        self.columns: list[str] = []

    def begin(self, lines: Lines) -> None:
        """Reads the names of the columns. An empty file has no columns and no rows."""
        for line, columns in islice(self._fields(lines), 1):
            check_columns(lines.name, line, columns, self.layout.wanted, self.delimiter)
            self.columns = columns

    def rows(self, lines: Lines) -> Iterator[tuple[int, list[str]]]:
        count = len(self.columns)
        for start, row in self._fields(lines):
            if len(row) != count:
                noun = "field" if count == 1 else "fields"
                raise DataError(f"{lines.name}, line {start}: expected {count} {noun} but got {len(row)}")
            yield start, row

    def key(self, column: str) -> int:
        return self.columns.index(column)

    def record(self, row: list[str]) -> Record:
        return dict(zip(self.columns, row, strict=True))

    def _fields(self, lines: Lines) -> Iterator[tuple[int, list[str]]]:
        csv.field_size_limit(max(csv.field_size_limit(), _FIELD_LIMIT))  # one limit for the whole process
        start = lines.number + 1
        try:
            for row in csv.reader(lines, delimiter=self.delimiter, strict=True):  # reads no line ahead
                if row:
                    yield start, row
                start = lines.number + 1
        except csv.Error as error:
            raise DataError(f"{lines.name}, line {start}: expected CSV but got {_csv_fault(error)}") from None


class Tsv(Csv):
    """CSV with tabs."""

    endings = (".tsv",)
    takes_delimiter = False

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.delimiter = "\t"


def _csv_fault(error: csv.Error) -> str:
    """The error of csv.reader, without its advice about how to open files."""
    message = str(error)
    if "end of data" in message:
        return "a quote that is opened and never closed"
    if "new-line character" in message:
        return "a carriage return that neither ends the line nor stands in quotes"
    return escaped(message)  # it may quote the delimiter, which may be a tab


class Jsonl(LineReader):
    """A JSON object on each line; empty lines are skipped. NaN is accepted, as Python writes it."""

    endings = (".jsonl", ".ndjson")
    kinds = ("text", "series")

    def rows(self, lines: Lines) -> Iterator[tuple[int, Record]]:
        scan, wanted = json.JSONDecoder().scan_once, self.layout.wanted  # type: ignore[attr-defined]
        for line in lines:
            try:
                record, end = scan(line, 0)
                if line[end:].strip(_JSON_SPACE):
                    record = self._parsed(line, lines)
            except (StopIteration, ValueError, RecursionError):  # white space before the object, or an error
                if not line.strip():
                    continue
                record = self._parsed(line, lines)
            if not isinstance(record, dict):
                raise DataError(
                    f"{lines.name}, line {lines.number}: expected a JSON object but got {described(record)}"
                )
            for column in wanted:
                if column not in record:
                    check_columns(lines.name, lines.number, list(record), wanted)
            yield lines.number, record

    def _parsed(self, line: str, lines: Lines) -> Any:
        """The slower json.loads(), whose errors say where they are."""
        try:
            return json.loads(line)
        except json.JSONDecodeError as error:
            found = f"{error.msg} at {error.colno}"
        except (ValueError, RecursionError):
            found = "a number of thousands of digits, or lists that are nested as deeply"
        raise DataError(f"{lines.name}, line {lines.number}: expected JSON but got {found}") from None


class Text(LineReader):
    """A text on each line, without labels."""

    endings = (".txt",)
    has_labels = False

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        if layout.label is not None or layout.weight is not None:
            raise ValueError("label and weight: expected None for txt, which holds texts alone")

    def rows(self, lines: Lines) -> Iterator[tuple[int, Record]]:
        for line in lines:
            yield lines.number, {self.layout.column: line.rstrip("\n").removesuffix("\r")}


class Ts(LineReader):
    """UCR/UEA: lines with ``@`` first, then one series a line: dimensions between colons, values between commas, label.

    Its lines depend on the ``@`` lines at the start, so it is not read in blocks.
    """

    endings = (".ts",)
    kinds = ("series",)
    in_blocks = False

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        if layout.weight is not None:
            raise ValueError(f"weight: expected None for ts, which has no columns, but got {shown(layout.weight)}")

    def rows(self, lines: Lines) -> Iterator[tuple[int, Record]]:
        header: dict[str, list[str]] = {}
        dimensions: int | None = None
        for line in map(str.strip, lines):
            if not line or line.startswith("#"):
                continue
            where = f"{lines.name}, line {lines.number}"
            if "data" not in header:
                tag, *values = line.split()
                if not tag.startswith("@"):
                    raise DataError(
                        f"{where}: expected a line that begins with @ before @data but got {described(line)}"
                    )
                header[tag[1:].lower()] = values
                if "data" in header:
                    _check_header(where, header, self.layout.label)
                continue
            fields = line.split(":")
            record: dict[str, Any] = {}
            if _says(header, "classlabel"):
                record[self.layout.label or "label"] = found = fields.pop().strip()
                if header["classlabel"][1:] and found and found not in header["classlabel"][1:]:
                    known = escaped(", ".join(header["classlabel"][1:]))
                    raise DataError(f"{where}: expected one of the class labels {known} but got {described(found)}")
            if dimensions is None:
                dimensions = int(header["dimensions"][0]) if "dimensions" in header else max(1, len(fields))
            if len(fields) != dimensions or not fields:
                noun = "dimension" if dimensions == 1 else "dimensions"
                raise DataError(f"{where}: expected {dimensions} {noun} but got {len(fields)}")
            yield lines.number, {"series": _ts_series(where, fields), **record}
        if header and "data" not in header:
            raise DataError(f"{lines.name}: expected @data before the end of the file but got none")


def _check_header(where: str, header: dict[str, list[str]], label: str | None) -> None:
    if _says(header, "timestamps"):
        raise DataError(f"{where}: expected values without time stamps but got @timeStamps true")
    if _says(header, "targetlabel"):
        raise DataError(f"{where}: expected class labels but got @targetLabel true, which is for regression")
    if label is not None and not _says(header, "classlabel"):
        raise DataError(f"{where}: expected @classLabel true before it but got no labels")
    if "dimensions" in header and not re.fullmatch("[0-9]{1,9}", found := " ".join(header["dimensions"])):
        raise DataError(f"{where}: expected a number in @dimensions but got {escaped(found, 80) or 'none'}")


def _says(header: dict[str, list[str]], tag: str) -> bool:
    return " ".join(header.get(tag, [])[:1]).lower() == "true"


def _ts_series(where: str, fields: list[str]) -> Any:
    """The values of a series, (T, dimensions)."""
    np = need("numpy", "Reading series")
    dimensions = [_ts_values(where, field) if field.strip() else [] for field in fields]
    for number, dimension in enumerate(dimensions):
        if len(dimension) != len(dimensions[0]):
            expected, got = len(dimensions[0]), len(dimension)
            raise DataError(f"{where}: expected {expected} steps in dimension {number}, as in the first, but got {got}")
    return np.array(dimensions, dtype=np.float64).T


def _ts_values(where: str, field: str) -> list[float]:
    read = float if field.isascii() and "_" not in field else as_number  # checked once, not for each value
    return [_ts_value(where, value, read) for value in field.split(",")]


def _ts_value(where: str, value: str, read: Callable[[str], float]) -> float:
    try:
        return math.nan if value.strip() == "?" else read(value)
    except ValueError:
        raise DataError(f"{where}: expected a number or ? but got {described(value)}") from None


# In the order in which messages and help list them.
FORMATS: dict[str, type[Reader]] = {"csv": Csv, "tsv": Tsv, "jsonl": Jsonl, "parquet": Parquet, "ts": Ts, "txt": Text}

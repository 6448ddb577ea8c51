"""The formats of labelled sequences: CSV and TSV, JSON lines, lines of text, UCR/UEA's ``.ts`` and Parquet.

A reader of lines begins wherever its lines do, at the start of a file or at a record in its middle, so that a block of
a large file is read by the same code as a whole one. What it yields are rows of values that ``key`` finds a column in.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice, pairwise
from typing import Any

from .._extras import need
from .._terminal import escaped, shown
from .errors import DataError

__all__ = ["Csv", "Jsonl", "Lines", "Parquet", "Rows", "Text", "Ts", "as_number", "described"]

Rows = Iterator[tuple[int, Any]]  # with the line that each begins at

_FIELD_LIMIT = 2**31 - 1  # characters, in place of csv's 131,072
_SHOWN = 50  # names of columns in a message
_JSON_SPACE = " \t\r\n"


class Lines:
    """Lines with their ends. ``offset`` and ``number`` are how many bytes and lines were read when one is given out.

    Text files are read from the bytes below them where they have any.
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


class Csv:
    """Rows with quotes as in RFC 4180, line breaks inside them included; lines without anything are passed over."""

    def __init__(self, wanted: list[str], delimiter: str) -> None:
        csv.field_size_limit(max(csv.field_size_limit(), _FIELD_LIMIT))  # a guard of the whole process; ours are long
        self.wanted, self.delimiter = wanted, delimiter
        self.columns: list[str] = []

    def begin(self, lines: Lines) -> None:
        """Reads the names of the columns. An empty file has none, and no rows."""
        for line, columns in islice(self._fields(lines), 1):
            _check_columns(lines.name, line, columns, self.wanted)
            if len(set(columns)) < len(columns):
                twice = next(column for column in columns if columns.count(column) > 1)
                raise DataError(
                    f"{lines.name}, line {line}: expected columns of different names but got {shown(twice)} twice"
                )
            self.columns = columns

    def rows(self, lines: Lines) -> Rows:
        count = len(self.columns)
        for start, row in self._fields(lines):
            if len(row) != count:
                noun = "field" if count == 1 else "fields"
                raise DataError(f"{lines.name}, line {start}: expected {count} {noun} but got {len(row)}")
            yield start, row

    def key(self, column: str) -> int:
        return self.columns.index(column)

    def record(self, row: list[str]) -> dict[str, Any]:
        return dict(zip(self.columns, row, strict=True))

    def _fields(self, lines: Lines) -> Iterator[tuple[int, list[str]]]:
        start = lines.number + 1
        try:
            for row in csv.reader(lines, delimiter=self.delimiter, strict=True):  # which pulls no line too many
                if row:
                    yield start, row
                start = lines.number + 1
        except csv.Error as error:
            raise DataError(f"{lines.name}, line {start}: expected CSV but got {_csv_fault(error)}") from None


def _csv_fault(error: csv.Error) -> str:
    """What csv.reader found, without its advice about opening files."""
    message = str(error)
    if "end of data" in message:
        return "a quote that is opened and never closed"
    if "new-line character" in message:
        return "a carriage return that neither ends the line nor stands in quotes"
    return message


class _Keyed:
    """Rows that are records, in files without anything before them."""

    def begin(self, lines: Lines) -> None:
        pass

    def key(self, column: str) -> str:
        return column

    def record(self, row: dict[str, Any]) -> dict[str, Any]:
        return row


class Jsonl(_Keyed):
    """An object on each line; lines without anything are passed over. NaN is read, as Python writes it."""

    def __init__(self, wanted: list[str]) -> None:
        self.wanted = wanted

    def rows(self, lines: Lines) -> Rows:
        scan, wanted = json.JSONDecoder().scan_once, self.wanted  # type: ignore[attr-defined]
        for line in lines:
            try:
                record, end = scan(line, 0)
                if line[end:].strip(_JSON_SPACE):
                    record = self._parsed(line, lines)
            except (StopIteration, ValueError, RecursionError):  # white space before it, or what is to be said
                if not line.strip():
                    continue
                record = self._parsed(line, lines)
            if not isinstance(record, dict):
                raise DataError(
                    f"{lines.name}, line {lines.number}: expected a JSON object but got {described(record)}"
                )
            for column in wanted:
                if column not in record:
                    _check_columns(lines.name, lines.number, list(record), wanted)
            yield lines.number, record

    def _parsed(self, line: str, lines: Lines) -> Any:
        try:
            return json.loads(line)
        except json.JSONDecodeError as error:
            found = f"{error.msg} at {error.colno}"
        except (ValueError, RecursionError):
            found = "a number of thousands of digits, or lists as deep"
        raise DataError(f"{lines.name}, line {lines.number}: expected JSON but got {found}") from None


class Text(_Keyed):
    """A text on each line."""

    def __init__(self, column: str) -> None:
        self.column = column

    def rows(self, lines: Lines) -> Rows:
        for line in lines:
            yield lines.number, {self.column: line.rstrip("\n").removesuffix("\r")}


class Ts(_Keyed):
    """UCR/UEA: ``@`` lines, then a case on each line: dimensions between colons, values between commas, the label."""

    def __init__(self, label: str | None) -> None:
        self.label = label

    def rows(self, lines: Lines) -> Rows:
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
                    _check_header(where, header, self.label)
                continue
            fields = line.split(":")
            record: dict[str, Any] = {}
            if _says(header, "classlabel"):
                record[self.label or "label"] = found = fields.pop().strip()
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
    """The values of a case, (T, dimensions)."""
    np = need("numpy", "Reading series")
    dimensions = [_ts_values(where, field) if field.strip() else [] for field in fields]
    for number, dimension in enumerate(dimensions):
        if len(dimension) != len(dimensions[0]):
            expected, got = len(dimensions[0]), len(dimension)
            raise DataError(f"{where}: expected {expected} steps in dimension {number}, as in the first, but got {got}")
    return np.array(dimensions, dtype=np.float64).T


def _ts_values(where: str, field: str) -> list[float]:
    read = float if _is_plain(field) else as_number
    return [_ts_value(where, value, read) for value in field.split(",")]


def _ts_value(where: str, value: str, read: Callable[[str], float]) -> float:
    try:
        return math.nan if value.strip() == "?" else read(value)
    except ValueError:
        raise DataError(f"{where}: expected a number or ? but got {described(value)}") from None


def as_number(text: str) -> float:
    """As float(), but for what only Python takes for a number: underscores, and the digits of other scripts."""
    if not _is_plain(text):
        raise ValueError(text)
    return float(text)


def _is_plain(text: str) -> bool:
    return "_" not in text and text.isascii()


class Parquet:
    """The rows of a file from its start, or those of a row group as a table of pyarrow's."""

    def __init__(self, file: Any, name: str, wanted: list[str]) -> None:
        self.name, self.wanted = escaped(name), list(dict.fromkeys(wanted))
        need("pyarrow", "Reading Parquet")
        file = getattr(file, "buffer", file)
        if not file.seekable():
            file = io.BytesIO(file.read())  # its index stands at the end
        with _found_wrong(self.name):
            self.file = need("pyarrow.parquet", "Reading Parquet").ParquetFile(file)
            _check_columns(self.name, None, self.file.schema_arrow.names, wanted)

    def rows(self) -> Rows:
        with _found_wrong(self.name):
            batches = (batch.to_pylist() for batch in self.file.iter_batches(batch_size=1024))
            yield from enumerate(chain.from_iterable(batches), 1)

    def groups(self) -> list[int]:
        """How many rows each row group has."""
        found = self.file.metadata
        return [found.row_group(group).num_rows for group in range(found.num_row_groups)]

    def group(self, group: int) -> Any:
        with _found_wrong(self.name):
            return self.file.read_row_group(group, columns=self.wanted, use_threads=False)

    def columns(self, table: Any, rows: Sequence[int]) -> list[list[Any]]:
        """Some rows of it, column after column as wanted."""
        with _found_wrong(self.name):
            if isinstance(rows, range):
                table = table.slice(rows.start, len(rows))  # a view, where take() copies
            else:
                table = table.take(rows)
            return [_as_list(table.column(name)) for name in self.wanted]


def _as_list(column: Any) -> list[Any]:
    types = need("pyarrow", "Reading Parquet").types
    if types.is_string(column.type) or types.is_large_string(column.type):
        return column.to_numpy().tolist()  # to_pylist() takes eight times as long
    if _is_list(column.type):
        series = [_as_arrays(chunk) for chunk in column.chunks]
        if None not in series:
            return [one for arrays in series if arrays for one in arrays]
    return column.to_pylist()


def _as_arrays(lists: Any) -> list[Any] | None:
    """Lists of numbers, or of steps with as many numbers each, as arrays; None for others, which to_pylist() takes."""
    types = need("pyarrow", "Reading Parquet").types
    ends = lists.offsets.to_numpy()
    parts, shape = lists.flatten(), [-1]
    if _is_list(parts.type):
        shape += parts.value_lengths().unique().to_pylist()
        if parts.null_count or len(shape) > 2 or 0 in shape:
            return None
        parts = parts.flatten()
    if lists.null_count or not (types.is_floating(parts.type) or types.is_integer(parts.type)):
        return None
    values = parts.to_numpy(zero_copy_only=False).reshape(shape)  # NaN for null
    return [values[start:end] for start, end in pairwise((ends - ends[0]).tolist())]


def _is_list(type: Any) -> bool:
    types = need("pyarrow", "Reading Parquet").types
    return bool(types.is_list(type) or types.is_large_list(type))


@contextmanager
def _found_wrong(name: str) -> Iterator[None]:
    try:
        yield
    except (need("pyarrow", "Reading Parquet").ArrowException, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{name}: expected Parquet but got {escaped(error, 1000)}") from None


def _check_columns(name: str, line: int | None, columns: list[str], wanted: list[str]) -> None:
    where = name if line is None else f"{name}, line {line}"
    for column in wanted:
        if column not in columns:
            there = ", ".join(map(shown, columns[:_SHOWN])) + (", ..." if len(columns) > _SHOWN else "")
            raise DataError(f"{where}: expected a column {shown(column)} but got {escaped(there, 1000) or 'none'}")


def described(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return shown(value, 40)
    return {"list": "a list", "dict": "an object"}.get(type(value).__name__, type(value).__name__)

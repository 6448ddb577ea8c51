"""Labelled sequences from files: CSV, TSV, JSONL and Parquet, the UCR/UEA ``.ts`` format, and lines of text.

Files are read as bytes and decoded line by line, so that memory is that of the longest record and every complaint
knows its line. UTF-8 alone is read, with or without a byte order mark; an empty text is data, an empty label is not.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import IO, Any

from ._extras import need
from .errors import DataError

__all__ = ["Table", "read", "stream"]

Source = str | os.PathLike[str] | IO[bytes] | IO[str]
Record = dict[str, Any]
Rows = Iterator[tuple[int, Record]]  # with the line, or for Parquet the row, that each begins at
Check = Callable[[Record], None]

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
_FIELD_LIMIT = 2**31 - 1  # characters, in place of csv's 131,072


@dataclass
class Table:
    """What :func:`read` returns, in the order of the file."""

    texts_or_series: list[Any]
    labels: list[Any] | None
    weights: list[float] | None


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
    """A whole file.

    Args:
        path: the file, or its name.
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
        >>> from seqcls_fast.toolkit.readers import read
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
        raise DataError(f"{_name(path)}: expected at least one example but got none")
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
        >>> from seqcls_fast.toolkit.readers import stream
        >>> next(stream(io.StringIO('{"text": "good", "id": 7}'), format="jsonl"))
        {'text': 'good', 'id': 7}
    """
    if kind not in _KINDS:
        raise ValueError(f"kind: expected text or series but got {kind!r}")
    format = _format(path_or_file, format, kind)
    if delimiter is not None:
        if format != "csv":
            raise ValueError(f"delimiter: expected None for {format} but got {delimiter!r}")
        if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n':
            raise ValueError(f"delimiter: expected one character but got {delimiter!r}")
    column = "series" if kind == "series" else text
    wanted = [name for name in (column, label, weight) if name is not None]
    if format == "ts" and weight is not None:
        raise ValueError(f"weight: expected None for ts, which has no columns, but got {weight!r}")
    if format == "txt" and (label is not None or weight is not None):
        raise ValueError("label and weight: expected None for txt, which holds texts alone")
    return _records(path_or_file, format, wanted, _checks(column, kind, label, weight), delimiter or ",")


def _format(source: Source, format: str | None, kind: str) -> str:
    if format is None:
        suffix = os.path.splitext(_name(source))[1].lower()
        format = _FORMATS.get(suffix)
        if format is None:
            known = ", ".join(_FORMATS)
            raise ValueError(
                f"path: expected a name that ends in one of {known}, or format=, but got {_name(source)!r}"
            )
    if format not in _FORMATS.values():
        known = ", ".join(dict.fromkeys(_FORMATS.values()))
        raise ValueError(f"format: expected one of {known} but got {format!r}")
    if format not in _KINDS[kind]:
        raise ValueError(f"format: expected one of {', '.join(_KINDS[kind])} for kind={kind!r} but got {format}")
    return format


def _records(source: Source, format: str, wanted: list[str], check: Check, delimiter: str) -> Iterator[Record]:
    name = _name(source)
    place = "row" if format == "parquet" else "line"
    opened = isinstance(source, str | os.PathLike)
    file: Any = open(source, "rb") if isinstance(source, str | os.PathLike) else source  # noqa: SIM115
    try:
        if format == "parquet":
            rows = _parquet(file, name, wanted)
        else:
            lines = _lines(file, name)
            if format == "csv" or format == "tsv":
                rows = _csv(lines, name, wanted, "\t" if format == "tsv" else delimiter)
            elif format == "jsonl":
                rows = _jsonl(lines, name, wanted)
            elif format == "ts":
                rows = _ts(lines, name, wanted[1] if len(wanted) > 1 else None)
            else:
                rows = ((number, {wanted[0]: line.rstrip("\n").removesuffix("\r")}) for number, line in lines)
        for number, record in rows:
            try:
                check(record)
            except ValueError as error:
                raise DataError(f"{name}, {place} {number}: {error}") from None
            yield record
    finally:
        if opened:
            file.close()


def _name(source: Source) -> str:
    """How messages call it: standard input and files in memory have no path."""
    if not isinstance(source, str | os.PathLike):
        given = getattr(source, "name", None)
        return given if isinstance(given, str) else "<data>"
    return os.fspath(source)


# -- what a record must hold ------------------------------------------------------------------------------------------


def _checks(column: str, kind: str, label: str | None, weight: str | None) -> Check:
    def check(record: Record) -> None:
        if kind == "series":
            record[column] = _series(record[column])
        else:
            _check_text(record[column], column)
        if label is not None:
            _check_label(record[label], label)
        if weight is not None:
            record[weight] = _weight(record[weight], weight)

    return check


def _series(value: Any) -> Any:
    from .series import as_steps

    if not hasattr(value, "dtype") and not isinstance(value, list):
        raise ValueError(f"series: expected a list of steps but got {_described(value)}")
    steps = as_steps(value, "series")
    infinite = abs(steps) == math.inf
    if infinite.any():
        step, feature = infinite.nonzero()[0][0], infinite.nonzero()[1][0]
        raise ValueError(f"series: expected finite values but got inf at step {step}, feature {feature}")
    return steps


def _check_text(value: Any, column: str) -> None:
    if not isinstance(value, str):
        raise ValueError(f"expected text in {column!r} but got {_described(value)}")
    if not value.isascii():
        _check_unicode(value, column)


def _check_unicode(value: str, column: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        half = f"U+{ord(value[error.start]):04X}"
        raise ValueError(f"expected Unicode text in {column!r} but got a lone surrogate, {half}") from None


def _check_label(value: Any, column: str) -> None:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"expected a label in {column!r} but got nothing")
    if not isinstance(value, str | int | float) or value != value:
        raise ValueError(f"expected a label in {column!r}, text or a number, but got {_described(value)}")
    if isinstance(value, str):
        _check_unicode(value, column)


def _weight(value: Any, column: str) -> float:
    try:
        weight = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not 0 <= weight < math.inf:
        raise ValueError(f"expected a weight in {column!r}, finite and at least 0, but got {_described(value)}")
    return weight


def _described(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        shown = repr(value)
        return shown if len(shown) <= 40 else f"{shown[:36]}..."
    return {"list": "a list", "dict": "an object"}.get(type(value).__name__, type(value).__name__)


def _check_columns(name: str, line: int, columns: list[str], wanted: list[str]) -> None:
    for column in wanted:
        if column not in columns:
            there = ", ".join(map(repr, columns)) or "none"
            raise DataError(f"{name}, line {line}: expected a column {column!r} but got {there}")


# -- the formats ------------------------------------------------------------------------------------------------------


def _lines(file: Any, name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends. Text files are read from the bytes below them where they have any."""
    offset = 0
    for number, line in enumerate(getattr(file, "buffer", file), 1):
        if isinstance(line, bytes):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                at = offset + error.start
                hint = " (it looks like UTF-16)" if number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
                raise DataError(
                    f"{name}, line {number}: expected UTF-8 but got byte 0x{line[error.start]:02X} at byte {at} of the "
                    f"file{hint}"
                ) from None
            offset += len(line)
        else:
            text = line
        yield number, text.removeprefix("\ufeff") if number == 1 else text


def _csv(lines: Iterator[tuple[int, str]], name: str, wanted: list[str], delimiter: str) -> Rows:
    """Rows with quotes as in RFC 4180, line breaks inside them included; lines without anything are passed over."""
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD_LIMIT))  # a guard of the whole process; ours are long
    rows = csv.reader((text for _, text in lines), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    while True:
        start = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{name}, line {start}: expected CSV but got {_csv_fault(error)}") from None
        if not row:
            continue
        if columns is None:
            columns = row
            _check_columns(name, start, columns, wanted)
            if len(set(columns)) < len(columns):
                twice = next(column for column in columns if columns.count(column) > 1)
                raise DataError(f"{name}, line {start}: expected columns of different names but got {twice!r} twice")
            continue
        if len(row) != len(columns):
            raise DataError(f"{name}, line {start}: expected {_fields(len(columns))} but got {len(row)}")
        yield start, dict(zip(columns, row, strict=True))


def _csv_fault(error: csv.Error) -> str:
    """What csv.reader found, without its advice about opening files."""
    message = str(error)
    if "end of data" in message:
        return "a quote that is opened and never closed"
    if "new-line character" in message:
        return "a carriage return that neither ends the line nor stands in quotes"
    return message


def _fields(count: int) -> str:
    return f"{count} field{'' if count == 1 else 's'}"


def _jsonl(lines: Iterator[tuple[int, str]], name: str, wanted: list[str]) -> Rows:
    """An object on each line; lines without anything are passed over. NaN is read, as Python writes it."""
    for number, line in lines:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{name}, line {number}: expected JSON but got {error.msg} at {error.colno}") from None
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, or nested as deeply
            raise DataError(f"{name}, line {number}: expected JSON but got {error}") from None
        if not isinstance(record, dict):
            raise DataError(f"{name}, line {number}: expected a JSON object but got {_described(record)}")
        _check_columns(name, number, list(record), wanted)
        yield number, record


def _parquet(file: Any, name: str, wanted: list[str]) -> Rows:
    arrow = need("pyarrow", "Reading Parquet")
    parquet = need("pyarrow.parquet", "Reading Parquet")
    file = getattr(file, "buffer", file)
    if not file.seekable():
        file = io.BytesIO(file.read())  # its index stands at the end
    try:
        table = parquet.ParquetFile(file)
        columns = table.schema_arrow.names
        for column in wanted:
            if column not in columns:
                there = ", ".join(map(repr, columns)) or "none"
                raise DataError(f"{name}: expected a column {column!r} but got {there}")
        records = chain.from_iterable(batch.to_pylist() for batch in table.iter_batches(batch_size=1024))
        yield from enumerate(records, 1)
    except (arrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{name}: expected Parquet but got {error}") from None


def _ts(lines: Iterator[tuple[int, str]], name: str, label: str | None) -> Rows:
    """UCR/UEA: ``@`` lines, then a case on each line: dimensions between colons, values between commas, the label."""
    header: dict[str, list[str]] = {}
    dimensions: int | None = None
    for number, line in lines:
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        where = f"{name}, line {number}"
        if "data" not in header:
            tag, *values = line.split()
            if not tag.startswith("@"):
                raise DataError(f"{where}: expected a line that begins with @ before @data but got {_described(line)}")
            header[tag[1:].lower()] = values
            if "data" in header:
                _check_header(where, header, label)
            continue
        fields = line.split(":")
        record: Record = {}
        if _says(header, "classlabel"):
            record[label or "label"] = found = fields.pop().strip()
            if header["classlabel"][1:] and found and found not in header["classlabel"][1:]:
                known = ", ".join(header["classlabel"][1:])
                raise DataError(f"{where}: expected one of the class labels {known} but got {_described(found)}")
        if dimensions is None:
            dimensions = int(header["dimensions"][0]) if "dimensions" in header else max(1, len(fields))
        if len(fields) != dimensions or not fields:
            noun = "dimension" if dimensions == 1 else "dimensions"
            raise DataError(f"{where}: expected {dimensions} {noun} but got {len(fields)}")
        yield number, {"series": _ts_series(where, fields), **record}
    if header and "data" not in header:
        raise DataError(f"{name}: expected @data before the end of the file but got none")


def _check_header(where: str, header: dict[str, list[str]], label: str | None) -> None:
    if _says(header, "timestamps"):
        raise DataError(f"{where}: expected values without time stamps but got @timeStamps true")
    if _says(header, "targetlabel"):
        raise DataError(f"{where}: expected class labels but got @targetLabel true, which is for regression")
    if label is not None and not _says(header, "classlabel"):
        raise DataError(f"{where}: expected @classLabel true before it but got no labels")
    if "dimensions" in header and not (len(header["dimensions"]) == 1 and header["dimensions"][0].isdecimal()):
        raise DataError(f"{where}: expected a number in @dimensions but got {' '.join(header['dimensions']) or 'none'}")


def _says(header: dict[str, list[str]], tag: str) -> bool:
    return " ".join(header.get(tag, [])[:1]).lower() == "true"


def _ts_series(where: str, fields: list[str]) -> Any:
    """The values of a case, (T, dimensions)."""
    np = need("numpy", "Reading series")
    dimensions = [[_ts_value(where, value) for value in field.split(",")] if field.strip() else [] for field in fields]
    for number, dimension in enumerate(dimensions):
        if len(dimension) != len(dimensions[0]):
            expected, got = len(dimensions[0]), len(dimension)
            raise DataError(f"{where}: expected {expected} steps in dimension {number}, as in the first, but got {got}")
    return np.array(dimensions, dtype=np.float64).T


def _ts_value(where: str, value: str) -> float:
    try:
        return math.nan if value.strip() == "?" else float(value)
    except ValueError:
        raise DataError(f"{where}: expected a number or ? but got {_described(value)}") from None

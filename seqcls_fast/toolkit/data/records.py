"""The records of a file: which columns are read, how many rows at once, what a value must be, and the base of formats.

Every check raises a DataError that names the file and the line, or for Parquet the row.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from ..._texts import lone_surrogate
from .._terminal import did_you_mean, escaped, shown
from .errors import DataError

__all__ = ["Block", "Content", "Layout", "Reader", "Record", "Table", "as_number", "check_columns", "described"]

Record = dict[str, Any]

_SHOWN = 50  # names of columns in a message
_DELIMITERS = ";\t|"  # that files of CSV often have in place of a comma


@dataclass
class Table:
    """Sequences and, where there are any, their labels and weights, in the order of the file."""

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
    """Rows that are read at once: at most 256 rows or one megabyte (one longer row is allowed), or a Parquet row group.

    A stream's survey keeps these four numbers of every block, so that any block can be read again by itself.
    """

    file: int  # index of the file
    offset: int  # byte at which the first line begins; for Parquet the number of the row group
    line: int  # number of the first line; for Parquet of the first row
    rows: int


class Content(Protocol):
    """The rows of a block. Rows of a Parquet row group become Python objects only when they are taken."""

    def __len__(self) -> int: ...

    def take(self, rows: Sequence[int], /) -> Table: ...


@dataclass(frozen=True)
class Layout:
    """Which columns of a file are read, and how: the arguments of :func:`~seqcls_fast.toolkit.data.readers.read`."""

    text: str = "text"
    label: str | None = "label"
    weight: str | None = None
    format: str | None = None
    kind: str = "text"
    delimiter: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("text", "series"):
            raise ValueError(f"kind: expected text or series but got {shown(self.kind)}")

    @property
    def column(self) -> str:
        """The column that holds the sequences."""
        return "series" if self.kind == "series" else self.text

    @property
    def wanted(self) -> list[str]:
        """The columns that are read: sequences, labels, weights."""
        return [name for name in (self.column, self.label, self.weight) if name is not None]

    def check(self, record: Record, where: str) -> None:
        """Refuses a wrong text, series, label or weight; turns series into arrays and weights into floats."""
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

    def table(self, columns: list[list[Any]], numbers: Sequence[int], name: str, place: str) -> Table:
        """A table from the wanted columns. Values are checked as by :meth:`check`, or all at once if all are strings.

        ``numbers`` are those of the lines or rows, and ``place`` says which of the two they are.
        """
        if self.kind == "series" or self.weight is not None or not all(map(_all_valid, columns, (False, True))):
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


class Reader:
    """Base of the file formats: one object reads one file. ``name`` is what error messages call the file.

    A format sets ``endings`` and whichever of the other attributes differ, and defines the three methods.
    """

    endings: ClassVar[tuple[str, ...]]  # of the names of such files, in lower case
    kinds: ClassVar[tuple[str, ...]] = ("text",)  # the sequences that it can hold: "text", "series"
    place: ClassVar[str] = "line"  # what error messages number: lines or rows
    takes_delimiter: ClassVar[bool] = False
    has_labels: ClassVar[bool] = True
    in_blocks: ClassVar[bool] = True  # whether blocks() and content() work, so that a Stream can read such files

    def __init__(self, layout: Layout) -> None:
        """A subclass may raise a ValueError for a layout that the format cannot have."""
        self.layout = layout

    def records(self, file: Any, name: str) -> Iterator[tuple[int, Record]]:
        """All records of a file open for reading bytes, each with the number of its line or row."""
        raise NotImplementedError

    def blocks(self, file: Any, name: str, number: int) -> Iterator[tuple[Block, Content]]:
        """All blocks in order, with their rows; ``number`` is the index of the file."""
        raise NotImplementedError

    def content(self, file: Any, name: str, block: Block) -> Content:
        """The rows of one block. Called after :meth:`blocks`, perhaps on a pickled copy of the reader."""
        raise NotImplementedError


def _all_valid(column: list[Any], labels: bool) -> bool:
    """Whether a column holds Unicode strings alone, and as labels none that is empty."""
    try:
        "".join(column).encode()
    except (TypeError, UnicodeEncodeError):
        return False
    return not labels or all(map(str.strip, column))


def _series(value: Any) -> Any:
    from .steps import as_steps

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
    if found := lone_surrogate(value):
        raise ValueError(f"expected Unicode text in {shown(column)} but got a lone surrogate, {found[0]}")


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


def as_number(text: str) -> float:
    """float(text), but refuses the underscores and the digits of other scripts that Python accepts."""
    if "_" in text or not text.isascii():
        raise ValueError(text)
    return float(text)


def check_columns(
    name: str, line: int | None, columns: list[str], wanted: list[str], delimiter: str | None = None
) -> None:
    """Refuses a file whose columns lack one that is wanted, or have a name twice.

    ``delimiter`` is the one that separates them, if the format has any.
    """
    where = name if line is None else f"{name}, line {line}"
    for column in wanted:
        if column not in columns:
            there = ", ".join(map(shown, columns[:_SHOWN])) + (", ..." if len(columns) > _SHOWN else "")
            names = (name for name in columns if not set(_DELIMITERS) & set(name))
            hint = _other_delimiter(columns, wanted, delimiter) or did_you_mean(column, names)
            there = escaped(there, 1000) or "none"
            raise DataError(f"{where}: expected a column {shown(column)} but got {there}{hint}")
    if len(set(columns)) < len(columns):
        twice = next(column for column in columns if columns.count(column) > 1)
        raise DataError(f"{where}: expected columns of different names but got {shown(twice)} twice")


def _other_delimiter(columns: list[str], wanted: list[str], delimiter: str | None) -> str:
    """The end of a message about a header that has all columns with another delimiter, as spreadsheets write it."""
    if delimiter is None:
        return ""
    for sign in _DELIMITERS:
        if set(wanted) <= {name.strip('" ') for name in delimiter.join(columns).split(sign)}:
            return f"; did you mean delimiter={sign!r} (--delimiter on the command line)?"
    return ""


def described(value: Any) -> str:
    """A value as a message shows it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return shown(value, 40)
    return {"list": "a list", "dict": "an object"}.get(type(value).__name__, type(value).__name__)

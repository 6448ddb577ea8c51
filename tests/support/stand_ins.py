"""Frames and columns as pandas, polars and Hugging Face's datasets have them, for tests without these libraries.

Each has the methods that its original has and iterates over what the original iterates over: pandas over the names of
the columns, polars over the columns, datasets over the rows as dicts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any


class NA:
    """pandas.NA: a comparison with it is NA, which is neither true nor false."""

    def __ne__(self, other: object) -> Any:
        return self

    __eq__ = __ne__

    def __bool__(self) -> bool:
        raise TypeError("boolean value of NA is ambiguous")

    def __hash__(self) -> int:
        return 1

    def __repr__(self) -> str:
        return "<NA>"


class Series:
    """pandas.Series and polars.Series: both have to_list()."""

    def __init__(self, values: list[Any]) -> None:
        self._values = values

    ndim = 1

    def to_list(self) -> list[Any]:
        return list(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __getitem__(self, label: Any) -> Any:
        raise KeyError(label)  # as in pandas, where an index need not begin at 0


class _Frame:
    def __init__(self, **columns: list[Any]) -> None:
        self._columns = columns

    def __len__(self) -> int:
        return max(map(len, self._columns.values()), default=0)


class PandasFrame(_Frame):
    @property
    def columns(self) -> Series:  # pandas.Index
        return Series(list(self._columns))

    def __getattr__(self, name: str) -> Series:  # every column is an attribute, too
        if name.startswith("_") or name not in self._columns:
            raise AttributeError(name)
        return self[name]

    def __getitem__(self, name: str) -> Series:
        return Series(self._columns[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)


class PolarsFrame(_Frame):
    @property
    def columns(self) -> list[str]:
        return list(self._columns)

    def __getitem__(self, name: str) -> Series:
        return Series(self._columns[name])

    def __iter__(self) -> Iterator[Series]:
        return map(Series, self._columns.values())


class LazyFrame:
    """polars.LazyFrame: a query that has not been computed, with columns but no rows."""

    columns = ("text",)

    def collect(self) -> PolarsFrame:
        raise AssertionError("a query is not to be run")


class Dataset(_Frame):
    """datasets.Dataset, whose columns iterate and have no to_list()."""

    @property
    def column_names(self) -> list[str]:
        return list(self._columns)

    def to_list(self) -> list[dict[str, Any]]:
        return list(self)

    def __getitem__(self, name: str) -> Column:
        return Column(self._columns[name])

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for values in zip(*self._columns.values(), strict=True):
            yield dict(zip(self._columns, values, strict=True))


class Column(Sequence[Any]):
    def __init__(self, values: list[Any]) -> None:
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: int) -> Any:
        return self._values[index]


class DatasetDict(dict[str, Dataset]):
    """datasets.DatasetDict: a dict from a split's name to its data."""

    @property
    def column_names(self) -> dict[str, list[str]]:
        return {name: dataset.column_names for name, dataset in self.items()}

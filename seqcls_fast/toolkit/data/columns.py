"""What sequences, labels and weights may come in: a list, an array, a column, or a frame with a single column.

A frame gives the names of its columns to whoever iterates over it, and a dict its keys, which would be taken for the
data. Frames and columns are known by their methods, so that no library of theirs has to be installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

from .._terminal import kind_of, shown

__all__ = ["items", "missing"]

_LAZY = ("collect", "compute")  # methods of a frame that is a query yet: polars' and Dask's
_LIST = ("to_list", "to_pylist")  # of a column: pandas' and polars', pyarrow's


def items(data: Any, name: str, wanted: str, hint: str = "") -> Iterable[Any]:
    """The values of a list, an array, an iterator, a column or a frame with one column; else a sentence about it.

    Args:
        data: what a caller passed.
        name: that of the argument, for the sentence.
        wanted: what it should be.
        hint: what to pass for a single string.

    Example::

        >>> import pyarrow
        >>> from seqcls_fast.toolkit.data.columns import items
        >>> items(pyarrow.table({"review": ["good", "bad"]}), "X", "a list of texts")
        ['good', 'bad']
    """
    if isinstance(data, list | tuple):
        return data
    got = f"{name}: expected {wanted} but got"
    if isinstance(data, str):
        raise TypeError(f"{got} a str{hint}")
    if isinstance(data, Mapping):
        raise TypeError(f"{got} {kind_of(data)}; pass one of its values, or all of them as list({name}.values())")
    if isinstance(data, Set):
        raise TypeError(f"{got} {kind_of(data)}, which has no order; pass a list")
    for method in _LAZY:
        if hasattr(type(data), method):
            raise TypeError(f"{got} {kind_of(data)}, which holds no values yet; pass {name}.{method}()")
    if hasattr(type(data), "tocsr"):
        raise TypeError(f"{got} {kind_of(data)}, which is sparse; pass {name}.toarray()")
    columns = _columns(data)
    if columns is not None:
        if len(columns) != 1:
            some = f" with {len(columns)} columns, {shown(columns, 200)}; pass one of them, {name}[column]"
            raise ValueError(f"{got} {kind_of(data)}{some if columns else ' without columns'}")
        data = data[columns[0]]
    for method in _LIST:
        if hasattr(type(data), method):
            values: list[Any] = getattr(data, method)()
            return values
    if isinstance(data, bytes | bytearray) or not isinstance(data, Iterable) or getattr(data, "ndim", 1) == 0:
        raise TypeError(f"{got} {kind_of(data)}")
    return data


def missing(value: Any) -> bool:
    """Whether a value stands for none: None, NaN, and what pandas has of that kind."""
    try:
        return value is None or bool(value != value)
    except (TypeError, ValueError):  # pandas.NA is neither equal to itself nor unequal; an array is several values
        return not hasattr(value, "__len__")


def _columns(data: Any) -> list[Any] | None:
    """The names of a frame's columns; None for what is no frame."""
    for attribute in ("column_names", "columns"):  # pyarrow has the columns themselves under the second
        if hasattr(type(data), attribute):
            names = getattr(data, attribute)
            return None if names is None else list(names)
    return None

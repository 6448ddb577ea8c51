"""Takes sequences, labels and weights from a list, an array, a column, or a frame with a single column.

Iterating over a frame gives the names of its columns, and over a dict its keys, which would be taken for the data.
Frames and columns are recognised by their methods, so that pandas, polars and pyarrow need not be installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

from .._terminal import kind_of, shown

__all__ = ["items", "missing"]

_LAZY = ("collect", "compute")  # methods of frames that have not been computed yet, in polars and Dask
_LIST = ("to_list", "to_pylist")  # methods of columns, in pandas and polars, and in pyarrow


def items(data: Any, name: str, wanted: str, hint: str = "") -> Iterable[Any]:
    """The values of a list, an array, an iterator, a column or a frame with one column; an error for anything else.

    Args:
        data: the argument of a caller.
        name: the name of that argument, for the error message.
        wanted: the kind of value that was expected, for the error message.
        hint: the end of the error message for a string.

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
    """Whether a value is missing: None, NaN, or pandas.NA and pandas.NaT."""
    try:
        return value is None or bool(value != value)
    except (TypeError, ValueError, RuntimeError):
        # pandas.NA is neither equal to itself nor unequal; an array is several values
        return not hasattr(value, "__len__")


def _columns(data: Any) -> list[Any] | None:
    """The names of a frame's columns; None if ``data`` is not a frame."""
    for attribute in ("column_names", "columns"):  # in this order: pyarrow's `columns` are not names
        if hasattr(type(data), attribute):
            names = getattr(data, attribute)
            return None if names is None else list(names)
    return None

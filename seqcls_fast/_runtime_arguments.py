"""What the runtime's functions are called with, as arrays and numbers in the types that the library takes.

Whatever cannot be one gets a sentence that begins with the name of the argument.
"""

from __future__ import annotations

import operator
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["array", "integers", "numbers", "whole"]

_KINDS = {"U": "text", "T": "text", "S": "bytes", "c": "complex numbers"}  # of arrays that are no numbers


def integers(given: ArrayLike, name: str, expected: str) -> NDArray[np.int64]:
    """An array of integers, or an empty one, as int64."""
    found = array(given, name, expected)
    try:
        if found.dtype.kind == "O" and all(isinstance(each, int) for each in found.flat):
            found = found.astype(np.int64)
        if found.dtype.kind == "u" and found.size and found.max() > np.iinfo(np.int64).max:
            raise OverflowError
    except OverflowError:
        raise ValueError(f"{name}: expected {expected} of 64 bits but got a larger one") from None
    if found.size and found.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected {expected} but got {found.dtype}")
    return np.ascontiguousarray(found, np.int64)


def numbers(given: Any, name: str, kind: type[np.floating[Any]]) -> NDArray[Any]:
    """An array of numbers in a type of float. None among them becomes NaN."""
    found = array(given, name, "an array of numbers")
    if found.dtype.kind == "O":
        for value in found.flat:
            if value is not None and not isinstance(value, Real):
                raise ValueError(f"{name}: expected numbers but got {type(value).__name__} among them")
        try:
            found = found.astype(np.float64)
        except OverflowError:
            raise ValueError(f"{name}: expected numbers that float64 holds but got a larger one") from None
    if found.dtype.kind not in "fiub":
        raise ValueError(f"{name}: expected numbers but got {_KINDS.get(found.dtype.kind, found.dtype)}")
    return np.ascontiguousarray(found, kind)


def array(given: Any, name: str, expected: str) -> NDArray[Any]:
    """What numpy makes of an argument."""
    try:
        return np.asarray(given)
    except ValueError:
        raise ValueError(f"{name}: expected {expected} but got lists of different sizes or depths") from None


def whole(value: Any, name: str) -> int:
    """An integer that C's int64_t holds."""
    try:
        found = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer but got {type(value).__name__}") from None
    if not -(1 << 63) <= found < 1 << 63:
        raise ValueError(f"{name}: expected an integer of 64 bits but got a larger one")
    return found

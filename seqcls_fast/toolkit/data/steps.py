"""One series as an array of steps, whatever holds its numbers. It needs no torch, so that files are read without it."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

from .._extras import need
from .._terminal import VALUE, escaped, kind_of, shown
from .columns import missing as is_missing

if TYPE_CHECKING:
    import numpy as np
else:
    np = need("numpy", "a series")

__all__ = ["as_steps", "at"]


def as_steps(series: Any, name: str) -> np.ndarray:
    """One series as float64 ``(T, F)``, missing values as NaN. Raises a ValueError that begins with ``name``."""
    torch = sys.modules.get("torch")  # before it is imported there are no tensors
    if torch is not None and isinstance(series, torch.Tensor):
        series = series.detach().cpu()
        series = series.double().numpy() if series.is_floating_point() else series.numpy()
    try:
        array = np.asarray(series)
    except ValueError:
        words = f"{name}: expected an array (steps, features) but got lists of different sizes or depths in a step"
        raise ValueError(_ragged(series, name) or words) from None
    if array.dtype.kind == "O":
        array = _of_objects(array, name)
    if array.dtype.kind not in "fiub":
        kind = {"U": "text", "S": "bytes", "c": "complex numbers"}.get(array.dtype.kind, escaped(array.dtype, VALUE))
        raise ValueError(f"{name}: expected numbers but got {kind}")
    if array.ndim == 1:
        array = array[:, None]
    if array.ndim != 2:
        single = "a missing value" if array.ndim == 0 and is_missing(series) else "a single number"
        got = single if array.ndim == 0 else f"{array.ndim} dimensions"
        raise ValueError(f"{name}: expected an array (steps, features) but got {got}")
    if not array.shape[1]:
        raise ValueError(f"{name}: expected at least one feature but got none")
    return array.astype(np.float64, copy=False)


def _of_objects(array: np.ndarray, name: str) -> np.ndarray:
    """Numbers that numpy keeps as objects, because there are None or ints of more than 64 bits among them."""
    result = np.empty(array.shape)
    for place, value in np.ndenumerate(array):
        if not isinstance(value, Real) and not is_missing(value):
            where = f" {at((0, *place, 0))}" if place else ""
            raise ValueError(f"{name}: expected numbers but got {_described(value)}{where}")
        try:
            result[place] = float(value) if isinstance(value, Real) else math.nan
        except OverflowError:
            result[place] = math.inf
    return result


def _ragged(series: Any, name: str) -> str | None:
    """A message about the first step of a nested list that differs in size; None if all sizes are equal."""
    if not isinstance(series, list | tuple):
        return None
    sizes = [len(step) if isinstance(step, Sequence) and not isinstance(step, str) else None for step in series]
    for step, size in enumerate(sizes):
        if size != sizes[0]:
            sayings = [
                "a single number" if n is None else f"{n} feature{'' if n == 1 else 's'}" for n in (sizes[0], size)
            ]
            return f"{name}: expected {sayings[0]} as at step 0 but got {sayings[1]} at step {step}"
    return None


def _described(value: Any) -> str:
    return shown(value) if isinstance(value, str) and len(value) <= 20 else kind_of(value)


def at(where: Sequence[int]) -> str:
    return f"at step {where[1]}, feature {where[2]}"

"""Labels of classes as an array, for the classifiers and for the runtime. It needs numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["as_array"]


def as_array(labels: Sequence[Any]) -> NDArray[Any]:
    """An array of numbers or strings if all labels have that type, else of objects."""
    kinds = {type(label) for label in labels}
    if len(kinds) == 1 and kinds <= {bool, int, float, str}:
        array = np.array(labels)
        if array.tolist() == list(labels) and array.dtype.kind in "biufU":  # false for 2**64 and for "a\0"
            return array
    array = np.empty(len(labels), dtype=object)
    for index, label in enumerate(labels):  # assigning all at once would take tuples apart
        array[index] = label
    return array

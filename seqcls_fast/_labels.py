"""Labels of classes as an array, for the classifiers and for the runtime. It needs numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["PLAIN", "as_array", "from_json"]

PLAIN = (bool, int, float, str, type(None))  # the types of JSON that a label, or an item of a tuple, may have


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


def from_json(values: Any) -> NDArray[Any]:
    """The labels in the JSON of a saved model or of a file of the runtime; a ValueError for other JSON."""

    def decode(value: Any, inside: bool = False) -> Any:
        if isinstance(value, dict) and list(value) == ["tuple"] and isinstance(value["tuple"], list):
            return tuple(decode(item, True) for item in value["tuple"])
        if not isinstance(value, PLAIN) or (value is None and not inside):
            raise ValueError(f"classes: expected numbers, strings or tuples but got {type(value).__name__}")
        return value

    if not isinstance(values, list):
        raise ValueError(f"classes: expected a list of labels but got {type(values).__name__}")
    return as_array([decode(value) for value in values])

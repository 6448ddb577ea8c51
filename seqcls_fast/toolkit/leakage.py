"""Whether test data were seen in training: fingerprints of the inputs, small enough to be kept with a model."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

__all__ = ["Fingerprints", "fingerprints", "leaks"]

_BYTES = 8  # a million of them are alike by chance once in 30 million


@dataclass(frozen=True)
class Fingerprints:
    exact: frozenset[int]  # of the inputs as they are
    near: frozenset[int]  # but for case, Unicode form and white space

    def __or__(self, other: Fingerprints) -> Fingerprints:
        return Fingerprints(self.exact | other.exact, self.near | other.near)


def fingerprints(items: Iterable[Any], name: str = "items") -> Fingerprints:
    """Of texts, or of series as arrays of numbers."""
    found = [(_digest(item, k, name), _digest(_normalised(item), k, name)) for k, item in enumerate(items)]
    return Fingerprints(frozenset(exact for exact, _ in found), frozenset(near for _, near in found))


def leaks(train: Fingerprints, test: Sequence[Any]) -> list[str]:
    """Sentences about test inputs that the training data hold."""
    same, similar = 0, 0
    for k, item in enumerate(test):
        if hasattr(item, "__len__") and not len(item):
            continue  # nothing in it to learn
        if _digest(item, k, "test_texts") in train.exact:
            same += 1
        elif _digest(_normalised(item), k, "test_texts") in train.near:
            similar += 1
    found = []
    for number, kind in (
        (same, "duplicates"),
        (similar, "near-duplicates (but for case, Unicode form or white space)"),
    ):
        if number:
            share = f"{number} of {len(test)} test examples ({100 * number / len(test):.1f} %)"
            found.append(f"{share} are {kind} of training examples, so accuracy is too optimistic (leakage)")
    return found


def _digest(item: Any, k: int, name: str) -> int:
    """Of a text, or of a series' shape and values, which is equal for equal values of different dtypes."""
    if isinstance(item, str):
        data = item.encode("utf-8", "surrogatepass")
    else:
        try:
            values = np.ascontiguousarray(item, dtype=np.float64) + 0.0  # -0.0 becomes 0.0
        except (TypeError, ValueError):
            raise TypeError(
                f"{name}: expected strings or arrays of numbers but got {item!r:.60} at index {k}"
            ) from None
        columns = values.reshape(len(values), -1) if values.size else values
        data = repr(columns.shape).encode() + columns.tobytes()
    return int.from_bytes(blake2b(data, digest_size=_BYTES).digest(), "little", signed=True)  # as int64 has it


def _normalised(item: Any) -> Any:
    if not isinstance(item, str):
        return item
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", item).casefold()).split())

"""Finds test data that were seen in training, by fingerprints (hashes) of the inputs that are kept with a model."""

from __future__ import annotations

import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from .._terminal import shown
from . import columns

__all__ = ["Fingerprints", "Sketch", "fingerprints", "leaks", "shared"]

_BYTES = 8  # of a fingerprint: among a million of them, two are equal by chance once in 30 million
_KEPT = 1 << 18  # fingerprints that a Sketch keeps at most
_WANTED = "a list of texts or series"
_PENDING = 1 << 16  # fingerprints that are collected before they are merged with those kept


@dataclass(frozen=True)
class Fingerprints:
    """Fingerprints of inputs."""

    exact: frozenset[int]  # of the inputs as they are
    near: frozenset[int]  # of the inputs without their case, Unicode form and white space

    def __or__(self, other: Fingerprints) -> Fingerprints:
        return Fingerprints(self.exact | other.exact, self.near | other.near)

    @property
    def sampled(self) -> bool:
        """Whether these are only a sample, since there may have been more than a :class:`Sketch` keeps."""
        return len(self.exact) == _KEPT


class Sketch:
    """Fingerprints of any number of inputs in bounded memory: the 262,144 smallest hashes, which are a fair sample."""

    def __init__(self) -> None:
        self._exact, self._near = _Smallest(), _Smallest()

    def add(self, items: Iterable[Any], name: str = "items") -> None:
        for k, item in enumerate(items):
            exact, near = _digests(item, k, name)
            self._exact.add(exact)
            self._near.add(near)

    def fingerprints(self) -> Fingerprints:
        return Fingerprints(self._exact.values(), self._near.values())


class _Smallest:
    """The smallest of the numbers that were added, without duplicates."""

    def __init__(self) -> None:
        self._kept, self._pending = np.zeros(0, np.int64), array("q")
        self._end = 1 << 63  # numbers from here on are not among the smallest

    def add(self, number: int) -> None:
        if number < self._end:
            self._pending.append(number)
            if len(self._pending) == _PENDING:
                self._sort_in()

    def values(self) -> frozenset[int]:
        self._sort_in()
        return frozenset(self._kept.tolist())

    def _sort_in(self) -> None:
        self._kept = np.unique(np.concatenate([self._kept, np.array(self._pending, np.int64)]))[:_KEPT]
        self._pending = array("q")
        if len(self._kept) == _KEPT:
            self._end = int(self._kept[-1])


def fingerprints(items: Iterable[Any], name: str = "items") -> Fingerprints:
    """The fingerprints of texts, or of series as arrays of numbers."""
    found = [_digests(item, k, name) for k, item in enumerate(columns.items(items, name, _WANTED))]
    return Fingerprints(frozenset(exact for exact, _ in found), frozenset(near for _, near in found))


def leaks(train: Fingerprints, test: Sequence[Any]) -> list[str]:
    """Warnings about test inputs that are among the training data, or in the sample of streamed training data."""
    least = "at least " if train.sampled else ""
    same, similar = 0, 0
    for k, item in enumerate(test):
        if hasattr(item, "__len__") and not len(item):
            continue  # an empty input tells nothing
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
            share = f"{least}{number} of {len(test)} test examples ({100 * number / len(test):.1f} %)"
            found.append(f"{share} are {kind} of training examples, so accuracy is too optimistic (leakage)")
    return found


def shared(train: Fingerprints, test: Fingerprints) -> list[str]:
    """As :func:`leaks`, for streamed test data, of which only fingerprints are kept."""
    number = len(train.exact & test.exact)
    if not number:
        return []
    return [
        f"at least {number} test examples are duplicates of training examples, so accuracy is too optimistic (leakage)"
    ]


def _digests(item: Any, k: int, name: str) -> tuple[int, int]:
    normal = _normalised(item)
    exact = _digest(item, k, name)
    return exact, exact if normal is item or normal == item else _digest(normal, k, name)


def _digest(item: Any, k: int, name: str) -> int:
    """The fingerprint of a text, or of a series' shape and values; it does not depend on the dtype."""
    if isinstance(item, str):
        data = item.encode("utf-8", "surrogatepass")
    else:
        try:
            values = np.ascontiguousarray(item, dtype=np.float64) + 0.0  # -0.0 becomes 0.0
        except (TypeError, ValueError):
            raise TypeError(
                f"{name}: expected strings or arrays of numbers but got {shown(item, 60)} at index {k}"
            ) from None
        columns = values.reshape(len(values), -1) if values.size else values
        data = repr(columns.shape).encode() + columns.tobytes()
    return int.from_bytes(blake2b(data, digest_size=_BYTES).digest(), "little", signed=True)  # so that it fits in int64


def _normalised(item: Any) -> Any:
    if not isinstance(item, str):
        return item
    if item.isascii():
        return " ".join(item.lower().split())
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", item).casefold()).split())

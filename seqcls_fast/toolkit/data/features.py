"""Features for a linear model: hashed n-grams of texts, and summaries of series. Both are encoders, as those of the
network are, so that they read lists and Streams alike.

An n-gram is known by its hash alone, so that memory does not grow with the data. Everything is computed for many texts
at once with numpy, without a loop over n-grams in Python.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .ragged import Ragged
from .series import SeriesEncoder

__all__ = ["HashedText", "SeriesSummary"]

_MOST_CHARACTERS = 10_000  # of a text that are read
_CHARACTERS = (2, 3, 4, 5)  # lengths of n-grams of characters
_SEGMENTS = 8  # equal parts of a series whose means are features
_SPACE = 32

Words = NDArray[np.uint64]


class HashedText:
    """Texts as ids of their words, pairs of words, and n-grams of 2 to 5 characters within words.

    Args:
        bits: ids are below ``2**bits``. Different n-grams may share an id.
        lowercase, normalization: as of :class:`~seqcls_fast.toolkit.data.text.TextEncoder`.

    Example::

        >>> from seqcls_fast.toolkit.data.features import HashedText
        >>> one, other = HashedText(18).encode(["a film", "film"]).split()
        >>> set(other.tolist()) < set(one.tolist()), len(other)
        (True, 15)
    """

    def __init__(self, bits: int, *, lowercase: bool = True, normalization: str | None = "NFKC") -> None:
        self.bits, self.lowercase, self.normalization = bits, lowercase, normalization

    @property
    def count(self) -> int:
        """How many different ids there are."""
        return 1 << self.bits

    def encode(self, texts: Sequence[str]) -> Ragged:
        padded = [f" {self._normal(text)} " for text in texts]
        lengths = np.array([len(text) for text in padded], np.int64)
        codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
        rows = np.repeat(np.arange(len(padded)), lengths)
        in_word, is_space = _kinds(codes)
        codes = np.where(is_space, np.uint64(_SPACE), codes)
        found = [*_words(codes, rows, in_word), *_characters(codes, rows, is_space)]
        hashes = np.concatenate([_mixed(each + np.uint64(kind << 40)) for kind, (each, _) in enumerate(found)])
        owners = np.concatenate([owner for _, owner in found])
        order = np.argsort(owners, kind="stable")
        ids = (hashes[order] >> np.uint64(64 - self.bits)).astype(np.int64)
        return Ragged(torch.from_numpy(ids), torch.from_numpy(np.bincount(owners, minlength=len(padded))))

    def _normal(self, text: str) -> str:
        text = text[:_MOST_CHARACTERS]
        if self.normalization is not None and not text.isascii():
            text = unicodedata.normalize(self.normalization, text)  # type: ignore[arg-type]
        return text.lower() if self.lowercase else text


def _kinds(codes: Words) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which characters are part of words (letters, digits and marks), and which are spaces."""
    distinct, places = np.unique(codes, return_inverse=True)
    signs = [chr(code) for code in distinct.tolist()]
    in_word = np.array([sign.isalnum() or unicodedata.category(sign)[0] == "M" for sign in signs], bool)
    is_space = np.array([sign.isspace() for sign in signs], bool)
    return in_word[places], is_space[places]


def _words(codes: Words, rows: NDArray[np.int64], in_word: NDArray[np.bool_]) -> list[tuple[Words, Any]]:
    """Hashes of the words and of the pairs of neighbours in a text, each with the numbers of the texts."""
    inside = np.flatnonzero(in_word)
    if not len(inside):
        return []
    first = np.diff(inside, prepend=-2) > 1  # no word goes on into another text, as there are spaces between
    starts = np.flatnonzero(first)
    position = inside - inside[starts][np.cumsum(first) - 1]
    signs = _mixed(codes[inside] | (position.astype(np.uint64) << np.uint64(32)))
    words, owners = np.add.reduceat(signs, starts), rows[inside[starts]]
    near = owners[1:] == owners[:-1]
    pairs = words[:-1] * np.uint64(0x9E3779B97F4A7C15) + words[1:]
    return [(words, owners), (pairs[near], owners[1:][near])]


def _characters(codes: Words, rows: NDArray[np.int64], is_space: NDArray[np.bool_]) -> list[tuple[Words, Any]]:
    """Hashes of n-grams that have no space but at their ends, each with the numbers of the texts."""
    spaces = np.concatenate([[0], np.cumsum(is_space)])  # before each character
    found, hashes = [], codes
    for n in range(2, max(_CHARACTERS) + 1):
        count = len(codes) - n + 1
        if count <= 0:
            break
        hashes = hashes[:count] * np.uint64(0xD1342543DE82EF95) + codes[n - 1 :]
        starts = np.arange(count)
        fine = spaces[starts + n - 1] == spaces[starts + 1]
        if n == 2:
            fine &= ~(is_space[:-1] & is_space[1:])
        if n in _CHARACTERS:
            found.append((hashes[fine], rows[:count][fine]))
    return found


def _mixed(values: Words) -> Words:
    """Bits of a hash that all depend on all bits of the value: the finaliser of splitmix64."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class SeriesSummary:
    """A series as one step of features: its length, and of each of its own features mean, deviation, extremes, first
    and last value, slope, mean size and deviation of the changes, and the means of eight parts.

    Args:
        encoder: the fitted encoder of the network, which deals with missing values.

    Example::

        >>> from seqcls_fast.toolkit.data.features import SeriesSummary
        >>> from seqcls_fast.toolkit.data.series import SeriesEncoder
        >>> summary = SeriesSummary(SeriesEncoder(standardize=False).fit([[1.0, 2.0, 3.0]]))
        >>> [round(value, 2) for value in summary.encode([[1.0, 2.0, 3.0]]).values[0, 1:8].tolist()]
        [2.0, 0.82, 1.0, 3.0, 1.0, 3.0, 1.0]
    """

    def __init__(self, encoder: SeriesEncoder) -> None:
        self.encoder = encoder

    @property
    def count(self) -> int:
        """How many features a series has."""
        return 1 + (9 + _SEGMENTS) * self.encoder.features_out

    def encode(self, series: Sequence[Any]) -> Ragged:
        encoded = self.encoder.encode(series)
        lengths = encoded.lengths.numpy()
        there = np.flatnonzero(lengths)
        summaries = np.zeros((len(lengths), self.count))
        if len(there):
            summaries[there, 1:] = _summaries(encoded.values.double().numpy(), lengths[there])
        summaries[:, 0] = np.log1p(lengths)
        values = torch.from_numpy(np.clip(summaries, -1e6, 1e6).astype(np.float32))
        return Ragged(values, torch.ones(len(lengths), dtype=torch.int64))


def _summaries(x: NDArray[np.float64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """The features of series that all have steps; ``x`` are their steps (N, F), end to end."""
    starts = np.cumsum(lengths) - lengths
    count, step = lengths[:, None], np.arange(len(x)) - np.repeat(starts, lengths)
    ends = starts + lengths - 1

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.add.reduceat(values, starts) / count
        return found

    middle = mean(x)
    deviation = np.sqrt(mean((x - np.repeat(middle, lengths, 0)) ** 2))
    time = step[:, None] - (np.repeat(lengths, lengths)[:, None] - 1) / 2
    slope = mean(x * time) / np.maximum(mean(time**2), 1e-12)
    changes = np.diff(x, axis=0, prepend=x[:1])
    changes[starts] = 0
    lows, highs = np.minimum.reduceat(x, starts), np.maximum.reduceat(x, starts)
    part = step * _SEGMENTS // np.repeat(lengths, lengths) + np.repeat(np.arange(len(lengths)), lengths) * _SEGMENTS
    sums = np.zeros((len(lengths) * _SEGMENTS, x.shape[1]))
    np.add.at(sums, part, x)
    sizes = np.bincount(part, minlength=len(sums))[:, None]
    parts = np.where(sizes > 0, sums / np.maximum(sizes, 1), np.repeat(middle, _SEGMENTS, 0))
    sizes_of_steps = [mean(np.abs(changes)), np.sqrt(mean(changes**2))]
    return np.concatenate(
        [middle, deviation, lows, highs, x[starts], x[ends], slope, *sizes_of_steps, parts.reshape(len(lengths), -1)], 1
    )

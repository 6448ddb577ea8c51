"""Hashed n-grams of texts: the ids of words, pairs of words, and n-grams of characters.

An n-gram is known by its hash alone, so that memory does not grow with the data. The extension has the hashes in C++
(csrc/text/); without it they are computed here with numpy, for many texts at once, and are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..._ext import C
from ..._texts import normal
from .ragged import Bags, Ragged

__all__ = ["HashedText", "bags_of"]

_MOST_CHARACTERS = 10_000  # of a text that are read
_CHARACTERS = (2, 3, 4, 5)  # lengths of n-grams of characters
_SPACE = 32
_WORD_KINDS = 2  # of n-grams: words, and pairs of them; then come those of 2, 3, ... characters
# Characters that separate words, beside all of ASCII but letters and digits; as csrc/text/hashed_ngrams.cpp has them.
_BETWEEN_WORDS = (
    (0x80, 0xA9), (0xAB, 0xB1), (0xB4, 0xB4), (0xB6, 0xB8), (0xBB, 0xBB), (0xBF, 0xBF), (0xD7, 0xD7), (0xF7, 0xF7),
    (0x55A, 0x55F), (0x589, 0x58A), (0x5BE, 0x5BE), (0x5C0, 0x5C0), (0x5C3, 0x5C3), (0x5F3, 0x5F4), (0x60C, 0x60D),
    (0x61B, 0x61F), (0x66A, 0x66D), (0x6D4, 0x6D4), (0x700, 0x70D), (0x964, 0x965), (0xE3F, 0xE3F), (0x104A, 0x104F),
    (0x1361, 0x1368), (0x1680, 0x1680), (0x17D4, 0x17DB), (0x1800, 0x180A), (0x2000, 0x206F), (0x20A0, 0x20CF),
    (0x2100, 0x2BFF), (0x2E00, 0x2E7F), (0x3000, 0x3004), (0x3008, 0x3020), (0x3030, 0x3030), (0xD800, 0xF8FF),
    (0xFE10, 0xFE19), (0xFE30, 0xFE6F), (0xFF01, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40), (0xFF5B, 0xFF65),
    (0xFFE0, 0xFFFF), (0x1F000, 0x1FAFF), (0xE0000, 0xE007F),
)  # fmt: skip
_SPACES = (
    *range(0x9, 0xE), *range(0x1C, 0x21), 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F,
    0x3000,
)  # fmt: skip

Words = NDArray[np.uint64]


class HashedText:
    """Texts as ids of their words, pairs of words, and n-grams of 2 to 5 characters within words.

    Args:
        bits: ids are below ``2**bits``, those of words and pairs below half of that. Different n-grams may share an id.
        lowercase, normalization: as of :class:`~seqcls_fast.toolkit.data.text.TextEncoder`.

    Example::

        >>> from seqcls_fast.toolkit.data.ngrams import HashedText
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
        """The ids of each text, as often as they occur in it."""
        ids, counts, lengths = _counted([self._normal(text) for text in texts], self.bits)
        owners = np.repeat(np.repeat(np.arange(len(lengths)), lengths), counts)
        found = torch.from_numpy(np.repeat(ids, counts).astype(np.int64))
        return Ragged(found, torch.from_numpy(np.bincount(owners, minlength=len(lengths))))

    def bags(self, texts: Sequence[str]) -> Bags:
        """The ids of each text, once each, with the weight 1 + log(how often it occurs)."""
        return bags_of([self._normal(text) for text in texts], self.bits)

    def _normal(self, text: str) -> str:
        return normal(text[:_MOST_CHARACTERS], self.normalization, self.lowercase)


def bags_of(texts: list[str], bits: int) -> Bags:
    """As :meth:`HashedText.bags`, of texts that are normalised; of each the first 10,000 characters count."""
    ids, counts, found = _counted([text[:_MOST_CHARACTERS] for text in texts], bits)
    lengths = torch.from_numpy(found)
    weights = (1 + np.log(counts)).astype(np.float32)
    return Bags(Ragged(torch.from_numpy(ids), lengths), Ragged(torch.from_numpy(weights), lengths))


def _counted(texts: list[str], bits: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    """The different ids of each text, rising; how often each occurs; how many there are of each text."""
    if C is None:
        return _counted_by_numpy(texts, bits)
    ids, counts, lengths = C.hashed_ngrams(texts, bits)
    return np.frombuffer(ids, np.int32), np.frombuffer(counts, np.int32), np.frombuffer(lengths, np.int64)


def _counted_by_numpy(texts: list[str], bits: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int64]]:
    padded = [f" {text} " for text in texts]
    lengths = np.array([len(text) for text in padded], np.int64)
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    rows = np.repeat(np.arange(len(padded)), lengths)
    in_word, is_space = _kinds(codes)
    codes = np.where(is_space, np.uint64(_SPACE), codes)
    keys = [np.zeros(0, np.int64)]  # a text's number and an id, in one number
    for kind, (hashes, owners) in enumerate([*_words(codes, rows, in_word), *_characters(codes, rows, is_space)]):
        ids = _mixed(hashes + np.uint64(kind << 40)) >> np.uint64(65 - bits) if bits > 1 else np.zeros_like(hashes)
        keys.append(owners << bits | ids.astype(np.int64) | (kind >= _WORD_KINDS) << (bits - 1))
    found, counts = np.unique(np.concatenate(keys), return_counts=True)
    ids32 = (found & ((1 << bits) - 1)).astype(np.int32)
    return ids32, counts.astype(np.int32), np.bincount(found >> bits, minlength=len(padded))


def _kinds(codes: Words) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which characters are part of words, and which are spaces."""
    ranges = np.array(_BETWEEN_WORDS, np.uint64)
    place = np.searchsorted(ranges[:, 0], codes, side="right")
    between = (place > 0) & (codes <= ranges[place - 1, 1])
    ascii_word = np.array([chr(code).isalnum() for code in range(128)])
    in_word = np.where(codes < 128, ascii_word[np.minimum(codes, 127).astype(np.int64)], ~between)
    return in_word, np.isin(codes, np.array(_SPACES, np.uint64))


def _words(codes: Words, rows: NDArray[np.int64], in_word: NDArray[np.bool_]) -> list[tuple[Words, Any]]:
    """Hashes of the words and of the pairs of neighbours in a text, each with the numbers of the texts."""
    inside = np.flatnonzero(in_word)
    if not len(inside):
        none = (np.zeros(0, np.uint64), np.zeros(0, np.int64))
        return [none, none]
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

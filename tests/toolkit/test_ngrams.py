"""Hashed n-grams: the same ids in C++ and in numpy, and the rule that the documentation states."""

from __future__ import annotations

import random

import numpy as np
import pytest

from seqcls_fast import _ext
from seqcls_fast.toolkit.data import ngrams
from seqcls_fast.toolkit.data.ngrams import HashedText, bags_of

TEXTS = [
    "", " ", "a", "good", "a good  film", "don't!  x\ty\n", "中文 größe 😀", "x" * 70, "\ud800 half", "...",
    "1 2 1 2 1", "ابجد، هوز؟", "\x85\xa0\u3000-\u2003", "\x00 nul\x00", "naïve café", "\U0010ffff\ue000 \U000e0041",
]  # fmt: skip


def anything(rng: random.Random) -> str:
    ends = (0x7F, 0x7FF, 0xFFFF, 0x10FFFF)
    return "".join(chr(rng.choice([32, 97, 98, rng.randint(0, rng.choice(ends))])) for _ in range(rng.randint(0, 60)))


@pytest.mark.skipif(_ext.C is None, reason=f"the compiled extension is missing: {_ext.why_missing}")
@pytest.mark.parametrize("bits", [1, 2, 13, 19, 30])
def test_the_extension_has_the_same_ids(bits: int) -> None:
    rng = random.Random(bits)
    texts = TEXTS + [anything(rng) for _ in range(300)]
    wanted = ngrams._counted_by_numpy(texts, bits)
    assert all(a == b.tobytes() for a, b in zip(_ext.C.hashed_ngrams(texts, bits), wanted, strict=True))


@pytest.mark.skipif(_ext.C is None, reason=f"the compiled extension is missing: {_ext.why_missing}")
def test_every_character_is_of_the_same_kind() -> None:
    texts = [f"a{chr(code)}b" for code in range(0x110000)]
    for start in range(0, len(texts), 1 << 16):
        part = texts[start : start + (1 << 16)]
        wanted = ngrams._counted_by_numpy(part, 20)
        found = _ext.C.hashed_ngrams(part, 20)
        assert all(a == b.tobytes() for a, b in zip(found, wanted, strict=True)), hex(start)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_do_not_depend_on_the_texts_beside(text: str) -> None:
    for beside in (["..."], ["words of others", ""]):
        alone, together = bags_of([text], 18), bags_of([*beside, text], 18)
        assert alone.ids.values.tolist() == together.ids.split()[-1].tolist()
        assert alone.weights.values.tolist() == together.weights.split()[-1].tolist()


def test_words_have_the_lower_half() -> None:
    def low(text: str) -> int:
        return int((HashedText(16).bags([text]).ids.values < 1 << 15).sum())

    assert [low(text) for text in ("...", "one", "one two", "one, two... three", "a-b")] == [0, 1, 3, 5, 3]


def test_weights_grow_with_the_logarithm() -> None:
    found = HashedText(20).bags(["word " * 20]).weights.values
    assert sorted(set(found.tolist())) == pytest.approx([1 + np.log(k) for k in (19, 20)], rel=1e-6)


def test_repeated_ids_are_those_of_the_bags() -> None:
    one, other = HashedText(16).encode(TEXTS[:12]).split(), HashedText(16).bags(TEXTS[:12])
    for repeated, ids, weights in zip(one, other.ids.split(), other.weights.split(), strict=False):
        found, counts = np.unique(repeated.numpy(), return_counts=True)
        assert found.tolist() == ids.tolist()
        assert weights.numpy() == pytest.approx(1 + np.log(counts), rel=1e-6)


@pytest.mark.skipif(_ext.C is None, reason=f"the compiled extension is missing: {_ext.why_missing}")
def test_wrong_input() -> None:
    for bits in (0, 31):
        with pytest.raises(RuntimeError, match=f"bits: expected a number from 1 to 30 but got {bits}"):
            _ext.C.hashed_ngrams(["a"], bits)
    with pytest.raises(TypeError, match="texts: expected strings but got something else"):
        _ext.C.hashed_ngrams([b"a"], 16)

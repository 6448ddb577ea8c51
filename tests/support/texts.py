"""Texts of every kind that a tokenizer must take: scripts, marks, cases, emoji, spaces, and nothing."""

from __future__ import annotations

import random
import unicodedata

SPECIAL = [
    "", " ", "\t\n\x1c\x85\u2028", "\0", "\u0130stanbul",
    "a\u03a3 \u0391\u03a3\u0391 \u0391\u03a3\u0301 \u03a3 \u03a3.a a\xad\u03a3",
    "\u01c4\u01c4\u01c5 \u0149 \xdf \u1e9e \ufb01 \u212b A\u030a", "e\u0301 \xe9 e\u0327\u0301 e\u0301\u0327",
    "\ud55c\uad6d\uc5b4 \u1112\u1161\u11ab \uac00\u11a8", "\u65e5\u672c\u8a9e\u306e\u30c6 \u304b\u3099 \u30ac \ufa19",
    "\u0e20\u0e32\u0e29\u0e32 \u0ea5\u0eb2\u0ea7 \u1781\u17d2\u1798 \u1019\u103c\u1014 a\u0e01",
    "\U0001f44d\U0001f3fd\U0001f469\u200d\U0001f467",
    "\U0001f1e9\U0001f1ea\U0001f1eb \u2764\ufe0f \u200d\u200d!",
    "\u0915\u094d\u0937\u093f \u0938\u094d\u200d\u0915 \u0936\u093f\u200c\u0915",
    "\u0969\u096a 12\u0663 \xbd \xb2 \u2167", "a\u200bb\ufeffc\u2060d", "x" * 3000, "\u8a9e" * 1500, "!" * 1100,
    "\U0002f800 \U000e0101 \U0010ffff", "<pad> <unk>", "\u017f \u212a \u2135 \ufdfa \u0344 \u0958 \u2adc",
]  # fmt: skip
_BLOCKS = [
    (0x0, 0x250), (0x300, 0x370), (0x370, 0x530), (0x590, 0x780), (0x900, 0x980), (0xE00, 0xEFF), (0x1000, 0x10A0),
    (0x1100, 0x1200), (0x1780, 0x1800), (0x1E00, 0x2100), (0x2100, 0x2200), (0x3000, 0x3100), (0x4E00, 0x4F00),
    (0xAC00, 0xAD00), (0xF900, 0xFB50), (0xFE00, 0xFFF0), (0x1D400, 0x1D500), (0x1F1E0, 0x1F200), (0x1F3F0, 0x1F680),
    (0xE0100, 0xE0110), (0x0, 0xD800), (0x10000, 0x110000),
]  # fmt: skip


def character(rng: random.Random) -> str:
    """A character that this interpreter's version of Unicode knows, as others may have another class elsewhere."""
    while True:
        code = rng.randrange(*rng.choice(_BLOCKS))
        if not 0xD800 <= code < 0xE000 and unicodedata.category(chr(code)) != "Cn":
            return chr(code)


def texts(seed: int, count: int) -> list[str]:
    """The special texts, and others of up to 40 characters, of which neighbours are often of one block."""
    rng = random.Random(seed)
    found = list(SPECIAL)
    while len(found) < count:
        parts = ["".join(character(rng) for _ in range(rng.randrange(1, 5))) for _ in range(rng.randrange(10))]
        found.append(rng.choice(["", " ", " ", "-"]).join(parts))
    return found

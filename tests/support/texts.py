"""Texts of every kind that a tokenizer must take, drawn at random: scripts, marks, cases, emoji, spaces, and nothing."""

from __future__ import annotations

import random
import unicodedata

SPECIAL = [
    "", " ", "\t\n\x1c\x85\u2028", "\0", "İstanbul", "ΑΣ ΑΣΑ ΑΣ\u0301 Σ ΑΣ.Α Α\u00adΣ", "Ǆǆǅ ŉ ß ẞ ﬁ Å Å", "e\u0301 é e\u0327\u0301 e\u0301\u0327",
    "한국어 \u1112\u1161\u11ab \uac00\u11a8", "日本語のテキスト か\u3099 ガ 神", "ภาษาไทย ລາວ ខ្មែរ မြန်မာ aก", "👍🏽👩‍👩‍👧 🇩🇪🇫🇷🇩 ❤️ \u200d\u200d!",
    "क्षि स्\u200dक शि\u200cक", "३४५ 12٣ ½ ² Ⅷ", "a\u200bb\ufeffc\u2060d", "x" * 3000, "語" * 1500, "!" * 1100, "\U0002f800 \U000e0101 \U0010ffff",
    "<pad> <unk>", "ſ K ℵ ﷺ \u0344 \u0958 \u2adc",
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

"""Writes csrc/runtime/character_classes.h: what the words of a text are made of, by code point.

The classes are those of the `tokenizers` package, which cuts texts into words in Python, so that both cut them alike
whatever version of Unicode the interpreter has. Run `python tools/character_classes.py` with the package installed.
"""

from __future__ import annotations

from pathlib import Path

import tokenizers

HEADER = Path(__file__).parents[1] / "csrc/runtime/character_classes.h"
CLASSES = {r"\p{L}": 1, r"\p{M}": 2, r"\p{N}": 3, r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]": 4}
MOST, LINE = 0x110000, 120
TEXT = """\
// What the words of a text are made of, by code point: each number is the first code point of a range times 8, plus the
// class of the range. 1: a letter, 2: a mark, 3: a digit; 4 more: of a script that has no spaces between words.
// Written by tools/character_classes.py.
// clang-format off
#pragma once

#include <cstdint>

namespace sf::texts {

constexpr uint32_t kCharacterClasses[] = {
%s
};

}  // namespace sf::texts
"""


def members(pattern: str) -> set[int]:
    """The code points that the tokenizers' regular expression takes for this class."""
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "removed", invert=True)
    known = [code for code in range(MOST) if not 0xD800 <= code < 0xE000]
    found: set[int] = set()
    for begin in range(0, len(known), 1 << 14):
        text = "".join(map(chr, known[begin : begin + (1 << 14)]))
        found.update(ord(part) for part, _ in split.pre_tokenize_str(text))
    return found


def classes() -> list[int]:
    """The class of each code point."""
    found = [0] * MOST
    for pattern, value in CLASSES.items():
        for code in members(pattern):
            found[code] += value
    return found


def header(found: list[int]) -> str:
    starts = [code for code in range(MOST) if code == 0 or found[code] != found[code - 1]]
    lines, line = [], "   "
    for code in starts:
        word = f" {8 * code + found[code]:#x},"
        if len(line + word) > LINE:
            lines, line = [*lines, line], "   "
        line += word
    return TEXT % "\n".join([*lines, line])


if __name__ == "__main__":
    HEADER.write_text(header(classes()))

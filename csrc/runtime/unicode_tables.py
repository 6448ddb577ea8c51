"""Tables for csrc/runtime/normal.cpp, which brings texts into a form of Unicode and to lower case.

They are made of what this interpreter knows (`unicodedata` and `str.lower`) when the library is built, and packed as
bytes, since all of them together would otherwise take a tenth of the library. Numbers have seven bits in each byte, the
lowest first; all but the last byte of a number have the eighth bit.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable

_MOST = sys.maxunicode + 1
_HANGUL = range(0xAC00, 0xD7A4)  # is composed by a formula
_BYTES_OF_A_LINE = 28


def _number(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _signed(value: int) -> bytes:
    return _number(-2 * value - 1 if value < 0 else 2 * value)


def _codes() -> Iterable[int]:
    return (code for code in range(_MOST) if not 0xD800 <= code < 0xE000)


def decompositions() -> bytes:
    """For each character: the distance from the one before, 4 * length + 2 * composes + compatible, what it becomes."""
    found, last = b"", 0
    for code in _codes():
        tag, _, rest = unicodedata.decomposition(chr(code)).rpartition("> ")
        if not rest or code in _HANGUL:
            continue
        parts = [int(part, 16) for part in rest.split()]
        composes = not tag and len(parts) == 2 and unicodedata.normalize("NFC", chr(code)) == chr(code)
        found += _number(code - last) + _number(4 * len(parts) + 2 * composes + bool(tag))
        found += b"".join(map(_number, parts))
        last = code
    return found


def runs(value_of: Callable[[int], int]) -> bytes:
    """For each run of characters with one value, not 0: the distance from the run before, its length, the value."""
    found, last, begin, value = b"", 0, 0, 0
    for code in [*_codes(), _MOST]:
        now = value_of(code) if code < _MOST else 0
        if now == value:
            continue
        if value:
            found += _number(begin - last) + _number(code - begin) + _number(value)
            last = code
        begin, value = code, now
    return found


def lower_case() -> bytes:
    """For each character that changes: the distance from the one before, and from it to its lower case."""
    found, last = b"", 0
    for code in _codes():
        lower = chr(code).lower()
        if len(lower) == 1 and ord(lower) != code:
            found += _number(code - last) + _signed(ord(lower) - code)
            last = code
    return found


def sigma_neighbour(code: int) -> int:
    """What a character says of a capital sigma beside it: 1 that it is not at the end of a word, 2 nothing at all."""
    if ("a\u03a3" + chr(code)).lower()[1] == "\u03c3":
        return 1
    return 2 if ("a\u03a3" + chr(code) + "a").lower()[1] == "\u03c3" else 0


def header() -> str:
    tables = {
        "kDecompositions": decompositions(),
        "kClasses": runs(lambda code: unicodedata.combining(chr(code))),
        "kLowerCase": lower_case(),
        "kSigmaNeighbours": runs(sigma_neighbour),
    }
    lines = [
        "// Unicode " + unicodedata.unidata_version + ", written by csrc/runtime/unicode_tables.py.",
        "#pragma once",
    ]
    for name, content in tables.items():
        lines += ["", f"constexpr unsigned char {name}[] = {{"]
        for at in range(0, len(content), _BYTES_OF_A_LINE):
            lines.append("    " + ",".join(map(str, content[at : at + _BYTES_OF_A_LINE])) + ",")
        lines.append("};")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.stdout.write(header())

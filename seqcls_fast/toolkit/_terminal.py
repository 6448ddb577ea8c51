"""How a message shows what came from outside: texts, labels, names of files and columns, words of other libraries.

Control characters would move a terminal's cursor, direction marks would reorder the line, and invisible ones would make
two names look alike: all of them are written as escapes. Whatever is long is cut in the middle.
"""

from __future__ import annotations

import json
import re
import reprlib
import warnings
from collections.abc import Callable
from typing import Any

__all__ = ["escaped", "json_text", "kind_of", "shown"]

VALUE, NAME, MESSAGE = 80, 400, 1900  # characters of a value, of a path, of a whole message

_UNUSUAL = re.compile("[^ -~]")
# Characters without a picture that Python takes for printable. U+FE0E and U+FE0F stay: they style an emoji.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0d\uffa0\U000e0100-\U000e01ef]")


def escaped(text: Any, limit: int = NAME) -> str:
    """A text on one line, without quotes, at most ``limit`` characters; what cannot be seen is written as repr does.

    Example::

        >>> from seqcls_fast.toolkit._terminal import escaped
        >>> print(escaped("a\\x1b[2Jb.csv"), escaped("n" * 100, 20))
        a\\x1b[2Jb.csv nnnnnnnnn...nnnnnnnn
    """
    text = str(text)
    if len(text) > 2 * limit:  # more could not be shown
        text = text[:limit] + text[-limit:]
    return _cut(_written(text, lambda sign: ascii(sign)[1:-1]), limit)


def shown(value: Any, limit: int = VALUE) -> str:
    """Any value on one line, as repr() writes it: strings in quotes, and of a long list the first items.

    Example::

        >>> from seqcls_fast.toolkit._terminal import shown
        >>> print(shown("a\\nb"), shown([1] * 1000), shown("n" * 100, 20))
        'a\\nb' [1, 1, 1, 1, 1, 1, ...] 'nnnnnnn...nnnnnnnn'
    """
    short = reprlib.Repr()
    short.maxstring = short.maxlong = short.maxother = max(limit, 8)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            text = short.repr(value)
    except Exception:  # an object may say nothing of itself, or have more digits than Python writes
        text = f"<{kind_of(value)}>"
    return escaped(text, limit)


def json_text(value: Any, **options: Any) -> str:
    """JSON, with the options of json.dumps: text of any script as it is, and what cannot be seen by JSON's own escapes.

    Example::

        >>> from seqcls_fast.toolkit._terminal import json_text
        >>> print(json_text({"größe": "\u202e"}))
        {"größe": "\\u202e"}
    """
    text = json.dumps(value, ensure_ascii=False, **options)
    return _written(text, lambda sign: sign if sign == "\n" else json.dumps(sign)[1:-1])


def kind_of(value: Any) -> str:
    """The name of a value's type."""
    return escaped(type(value).__name__, VALUE)


def _written(text: str, write: Callable[[str], str]) -> str:
    """The text with every character that has no picture of its own as ``write`` puts it."""

    def of(found: re.Match[str]) -> str:
        sign = found[0]
        return sign if sign.isprintable() and not _BLANK.match(sign) else write(sign)

    return _UNUSUAL.sub(of, text)


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    left = max(0, limit - 3)
    return f"{text[: left - left // 2]}...{text[len(text) - left // 2 :]}"

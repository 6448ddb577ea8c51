"""Values from outside as text for a terminal: in messages (texts, labels, names of files and columns) and in tables.

Control characters would move a terminal's cursor, direction marks would reorder the line, and invisible characters
would make two names look alike. All of them are written as escapes. In a message a long value is cut in the middle.
"""

from __future__ import annotations

import difflib
import json
import re
import reprlib
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

__all__ = [
    "bar", "beginning", "columns", "did_you_mean", "escaped", "json_text", "kind_of", "numbers", "printable", "shown",
    "visible",
]  # fmt: skip

VALUE, NAME, MESSAGE = 80, 400, 1900  # the most characters of a value, of a path, of a whole message
BAR = 24  # columns of a bar that stands for 1

_UNUSUAL = re.compile("[^ -~]")
# Characters that nothing is drawn for, though str.isprintable() holds. U+FE0E and U+FE0F stay: they style an emoji.
_BLANK = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0d\uffa0\U000e0100-\U000e01ef]")


def escaped(text: Any, limit: int = NAME) -> str:
    """A text on one line, without quotes, in at most ``limit`` characters. Invisible ones are escaped as by repr().

    Example::

        >>> from seqcls_fast.toolkit._terminal import escaped
        >>> print(escaped("a\\x1b[2Jb.csv"), escaped("n" * 100, 20))
        a\\x1b[2Jb.csv nnnnnnnnn...nnnnnnnn
    """
    text = str(text)
    if len(text) > 2 * limit:  # the middle would be cut anyway
        text = text[:limit] + text[-limit:]
    return _both_ends(_written(text, lambda sign: ascii(sign)[1:-1]), limit)


def shown(value: Any, limit: int = VALUE) -> str:
    """Any value on one line, as repr() writes it: strings in quotes, and only the first items of a long list.

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
    except Exception:  # repr() of an object may fail, and an int may have more digits than Python writes
        text = f"<{kind_of(value)}>"
    return escaped(text, limit)


def json_text(value: Any, **options: Any) -> str:
    """JSON with the options of json.dumps(). Text of any script stays as it is, invisible characters become escapes.

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


def did_you_mean(value: Any, known: Iterable[Any], others: Mapping[str, str] | None = None) -> str:
    """The end of a message about a wrong name: the known name that is nearest to it, or nothing if none is near.

    ``others`` are names that are used elsewhere, in lower case, and what they are called here.

    Example::

        >>> from seqcls_fast.toolkit._terminal import did_you_mean
        >>> did_you_mean("GRU", ["gru", "lstm"]), did_you_mean("x", ["gru", "lstm"])
        ("; did you mean 'gru'?", '')
    """
    if not isinstance(value, str):
        return ""
    names = {name.lower(): name for name in known if isinstance(name, str)}
    word = value[:100].lower()
    near = difflib.get_close_matches(word, names, 1)
    found = (others or {}).get(word) or (names[near[0]] if near else None)
    return f"; did you mean {shown(found)}?" if found is not None else ""


def printable(label: Any) -> str:
    """A label for people: invisible characters are escaped, an empty label is quoted, a long one cut."""
    name = str(label)
    return escaped(name, 40) if name.strip() else shown(name, 40)


def visible(token: str) -> str:
    """A token with its invisible characters escaped, in quotes if it is empty or has spaces at an end."""
    text = escaped(token)
    return text if text.strip() == text != "" else shown(token)


# -- tables in columns ------------------------------------------------------------------------------------------------


def columns(text: str) -> int:
    """The columns of a terminal that a text takes: two for a wide character, none for a combining one."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def beginning(text: str, most: int) -> str:
    """A text as far as it fits in ``most`` columns, with an ellipsis if it is cut.

    Example::

        >>> from seqcls_fast.toolkit._terminal import beginning
        >>> beginning("abcdefg", 6)
        'abc...'
    """
    kept = taken = 0
    for index, sign in enumerate(text):
        taken += columns(sign)
        if taken <= most - 3:
            kept = index + 1
        if taken > most:
            return text[:kept] + "..."
    return text


def numbers(values: Sequence[float], most: int) -> str:
    """The first ``most`` values, with two decimals."""
    text = " ".join(f"{value:.2f}" for value in values[:most])
    return text + (" ..." if len(values) > most else "")


def bar(share: float) -> str:
    """A bar whose length stands for a share from 0 to 1, exact to an eighth of a column."""
    eighths = round(share * BAR * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def _written(text: str, write: Callable[[str], str]) -> str:
    """The text, with ``write(sign)`` in the place of every character that a reader could not see."""

    def of(found: re.Match[str]) -> str:
        sign = found[0]
        return sign if sign.isprintable() and not _BLANK.match(sign) else write(sign)

    return _UNUSUAL.sub(of, text)


def _both_ends(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    left = max(0, limit - 3)
    return f"{text[: left - left // 2]}...{text[len(text) - left // 2 :]}"

"""JSON from outside: it is parsed strictly and compared with a description.

A description is a check: a function that takes a value and its name, and raises a ValueError that says what it expected
where. The functions below are checks, or make checks of larger values from those of their parts.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from ._terminal import escaped, shown

__all__ = [
    "Check", "anything", "check_annotated", "counts", "flag", "listed", "loads", "mapping", "number", "optional",
    "plain", "record", "text", "whole",
]  # fmt: skip

Check = Callable[[Any, str], None]

INT64 = 2**63 - 1
_LARGEST = 2**1023  # a larger int may not fit in a float


def loads(data: str | bytes) -> Any:
    """Like json.loads(), but NaN, a repeated name, deep nesting and bytes other than UTF-8 are a ValueError."""
    try:
        content = data.decode() if isinstance(data, bytes) else data
        return json.loads(content, object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"the name {shown(name)} more than once")
    return found


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN, which no number in it can be")
    return float(name)


# -- descriptions -----------------------------------------------------------------------------------------------------


def anything(value: Any, name: str) -> None:
    """Accepts any value, which is checked elsewhere."""


def flag(value: Any, name: str) -> None:
    if not isinstance(value, bool):
        raise _refusal(name, "true or false", value)


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """A finite number."""

    def check(value: Any, name: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise _refusal(name, _range("a number", low, high), value)
        if not -_LARGEST < value < _LARGEST:
            raise _refusal(name, "a finite number", value)

    return check


def whole(low: int, high: int = INT64) -> Check:
    def check(value: Any, name: str) -> None:
        if type(value) is not int or not low <= value <= high:
            raise _refusal(name, _range("a whole number", low, high), value)

    return check


def text(value: Any, name: str) -> None:
    if not isinstance(value, str):
        raise _refusal(name, "text", value)


def optional(check: Check) -> Check:
    return lambda value, name: None if value is None else check(value, name)


def listed(check: Check, least: int = 0) -> Check:
    def check_all(value: Any, name: str) -> None:
        if not isinstance(value, list) or len(value) < least:
            raise _refusal(name, f"a list of at least {least}" if least else "a list", value)
        for index, each in enumerate(value):
            check(each, f"{name}[{index}]")

    return check_all


def counts(value: Any, name: str) -> None:
    """A list of whole numbers of at least 0, checked fast, as it may be long."""
    numbers = isinstance(value, list) and set(map(type, value)) <= {int}
    if not numbers or (value and not 0 <= min(value) <= max(value) <= INT64):
        raise _refusal(name, "a list of whole numbers of at least 0", value)


def mapping(check: Check) -> Check:
    """An object with any names, whose values all pass ``check``."""
    return record({}, others=check)


def record(
    needed: Mapping[str, Check], possible: Mapping[str, Check] | None = None, others: Check | None = None
) -> Check:
    """An object with all ``needed`` names, any ``possible`` ones, and others only if there is a check for them."""
    known = {**(possible or {}), **needed}

    def check(value: Any, name: str) -> None:
        if not isinstance(value, dict):
            raise _refusal(name, "an object", value)
        for each in needed:
            if each not in value:
                raise ValueError(f"{name}: expected {each!r} in it but got {shown(list(value), 200)}")
        for each, found in value.items():
            check_one = known.get(each, others)
            if check_one is None:
                raise ValueError(f"{name}: expected no other names than {', '.join(known)} but got {shown(each)}")
            check_one(found, f"{name}.{escaped(each, 40)}")

    return check


def plain(depth: int) -> Check:
    """Any JSON that is nested at most ``depth`` deep."""

    def check(value: Any, name: str) -> None:
        if isinstance(value, list | dict):
            if not depth:
                raise _refusal(name, "a value that is nested less deeply", value)
            for each in value.values() if isinstance(value, dict) else value:
                plain(depth - 1)(each, name)

    return check


_KINDS: dict[str, tuple[type, ...]] = {
    "bool": (bool, int, float), "int": (int,), "float": (int, float), "str": (str,), "PathLike": (os.PathLike,),
    "None": (type(None),), "Any": (object,),
}  # fmt: skip


def check_annotated(values: Mapping[str, Any], owner: type) -> None:
    """Checks values against the annotations of a constructor's parameters. A number may stand for a bool."""
    parameters = inspect.signature(owner).parameters
    for name, value in values.items():
        annotation = parameters[name].annotation
        kinds = [kind for word in re.findall(r"\w+", str(annotation)) for kind in _KINDS.get(word, ())]
        if not isinstance(value, tuple(kinds)):
            raise TypeError(f"{name}: expected {annotation} but got {shown(value)}")


def _range(kind: str, low: float, high: float) -> str:
    if low == -math.inf:
        return kind
    return f"{kind} from {low} to {high}" if high < INT64 else f"{kind} of at least {low}"


def _refusal(name: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"{name}: expected {expected} but got {shown(value)}")

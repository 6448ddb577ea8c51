"""Wrong values for any place of a JSON file, and functions that find such places and change them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

# Messages of Python itself, which do not say what the user did wrong.
PYTHONS = re.compile(
    "not supported between|object is not|has no attribute|takes .* argument|must be a mapping|not iterable|unhashable"
    "|indices must be|zip\\(\\)|to unpack"
)
GONE = object()  # for put(): the place is removed

NONSENSE = (
    None, True, -1, 0, 2, 10**30, 10**400, 0.5, 1e308, float("inf"), "", "x" * 3000, "\x1b[2J\n", "\ud800", [], {},
    [[]], {"a": 1}, ["pos"], GONE,
)  # fmt: skip


def places(value: Any, *above: Any) -> Iterator[tuple[Any, ...]]:
    """The place of every value inside, as the keys and indices that lead to it."""
    if above:
        yield above
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, *above, name)


def put(*place: Any, to: Any) -> Callable[[Any], None]:
    """Replaces the value at a place, by ``to`` or by ``to(value)``; removes it if ``to`` is ``GONE``."""

    def edit(content: Any) -> None:
        for name in place[:-1]:
            content = content[name]
        if to is GONE:
            del content[place[-1]]
        else:
            content[place[-1]] = to(content[place[-1]]) if callable(to) else to

    return edit

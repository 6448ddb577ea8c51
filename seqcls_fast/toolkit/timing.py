"""The order in which several sides are timed: in turns, so that a machine whose speed drifts slows all of them alike.

`seqcls-fast bench`, the demo and the benchmarks of the CPU and the GPU all time in this order. They differ in how they
take one sample of a side.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

__all__ = ["MIN_ROUNDS", "Call", "timed", "turns"]

Result = TypeVar("Result")
Call = Callable[[], Any]

MIN_ROUNDS = 3  # these are measured even after the deadline


def turns(
    names: Iterable[str], rounds: int, *, deadline: float = math.inf, clock: Callable[[], float] = time.perf_counter
) -> Iterator[tuple[int, str]]:
    """Pairs (round, name): every name once a round, in an order that rotates by one each round.

    When ``clock()`` has passed ``deadline``, no round begins any more, except for the first ``MIN_ROUNDS``.

    Example:
        >>> list(turns(["a", "b"], 2))
        [(0, 'a'), (0, 'b'), (1, 'b'), (1, 'a')]
    """
    order = list(names)
    for number in range(rounds):
        if number >= MIN_ROUNDS and clock() > deadline:
            return
        yield from ((number, name) for name in order)
        order = order[1:] + order[:1]


def timed(call: Callable[[], Result]) -> tuple[float, Result]:
    """(seconds, result) of one call."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result

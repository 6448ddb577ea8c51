"""The grid of layers that is measured on a GPU, and the rows of it that are measured first.

The points are ordered so that the first N are an even sample of the grid, for any N: each turn through it has every
cell, precision, size, pass and input once, each with a batch size, length and directions drawn at random. Nothing here
needs torch, because the command itself must run without it.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from seqcls_fast._cells import BUILT_IN

CELLS = {cell: BUILT_IN[cell].gates for cell in ("rnn_tanh", "gru", "lstm")}
PRECISIONS = {"bf16": 2, "fp16": 2, "tf32": 4, "fp32": 4}  # bytes of an element
HIDDEN = (32, 64, 128, 192, 256, 512, 768, 1024)
BATCHES = (1, 16, 64, 256, 1024)
STEPS = (32, 128, 512)


class GridPoint(NamedTuple):
    """A layer whose input is as wide as its state. Ragged: lengths from T / 10 to T, and only h_n is asked for."""

    cell: str
    precision: str
    hidden: int
    training: bool  # forward and backward
    ragged: bool
    batch: int
    steps: int
    directions: int

    def __str__(self) -> str:
        sizes = f"B{self.batch}-T{self.steps}-H{self.hidden}"
        kinds = ("training" if self.training else "inference", "ragged" if self.ragged else "padded")
        return "-".join([self.cell, self.precision, sizes, f"d{self.directions}", *kinds])

    @classmethod
    def parse(cls, name: str) -> GridPoint:
        cell, precision, batch, steps, hidden, directions, what, lengths = name.split("-")
        sizes = (int(batch[1:]), int(steps[1:]), int(directions[1:]))
        return cls(cell, precision, int(hidden[1:]), what == "training", lengths == "ragged", *sizes)

    def planned(self, device: Any) -> str:
        """The regimes of its passes on a device."""
        layer = (self.cell, self.hidden, self.batch, self.precision, self.directions)
        passes = (False, True) if self.training else (False,)
        return "/".join(device.plan(*layer, backward, "auto")["regime"] for backward in passes)

    @property
    def bytes(self) -> int:
        """The memory that one side needs, roughly: gates, saved values, their gradients, input and output."""
        per_unit = 2 + CELLS[self.cell] * (3 if self.training else 1)
        values = self.batch * self.steps * self.hidden * self.directions * per_unit
        return 2 * values * PRECISIONS[self.precision]  # twice, because projections are float32

    @property
    def seconds(self) -> float:
        """The time of one call of torch.nn's layer, roughly: the launches of every step, and the arithmetic."""
        passes = 3 if self.training else 1
        width = CELLS[self.cell] * self.hidden * self.directions
        flop = 4 * self.batch * self.steps * width * self.hidden * passes
        launches = self.steps * self.directions * passes * (4 if self.ragged else 1)
        return 10e-6 * launches + flop / (40e12 if self.precision == "fp32" else 200e12)


ALWAYS = [
    GridPoint("lstm", precision, 768, training, False, 16, 1024, 1)
    for precision in ("bf16", "fp16")
    for training in (False, True)
]
CANDIDATES = 500
MOST_SECONDS = 0.05  # of one call of torch.nn's layer, for a point to be among the chosen ones
MOST_BYTES = 24 << 30  # of one side of a point; several sides are on the device at once


@lru_cache
def grid() -> tuple[GridPoint, ...]:
    """Every point that fits in memory. It begins with those that are always measured."""
    draw = random.Random(0)
    strata = list(itertools.product(CELLS, PRECISIONS, HIDDEN, (False, True), (False, True)))
    shapes = list(itertools.product(BATCHES, STEPS, (1, 2)))
    orders = {stratum: draw.sample(shapes, len(shapes)) for stratum in strata}
    points = [
        GridPoint(*stratum, *orders[stratum][number])
        for number in range(len(shapes))
        for stratum in draw.sample(strata, len(strata))
    ]
    return (*ALWAYS, *(point for point in points if point.bytes <= MOST_BYTES))


def chosen(points: Sequence[GridPoint], count: int) -> list[GridPoint]:
    """Points that differ as much as so few can: each has the most pairs of values that no earlier one has.

    The first are those that are always measured. The others are among the first of the grid, without those that take
    long.
    """
    found = [point for point in points if point in ALWAYS]
    seen = {pair for point in found for pair in pairs(point)}
    quick = [point for point in points if point not in ALWAYS and point.seconds <= MOST_SECONDS]
    rest = {point: pairs(point) for point in quick[:CANDIDATES]}
    while rest and len(found) < count:
        best = max(rest, key=lambda point: len(rest[point] - seen))  # the first of the best
        found.append(best)
        seen |= rest.pop(best)
    return found


def pairs(point: GridPoint) -> set[tuple[tuple[str, Any], ...]]:
    """Every two values of a point, with the names of their fields."""
    return set(itertools.combinations(point._asdict().items(), 2))

"""The grid that gpu_check.py measures, thinned to what its stages have time for.

Any beginning of the grid's order is an even sample of it: each pass meets every cell, precision, size, pass and input
once, at a batch, length and direction of its own. Nothing here needs torch, as gpu_check.py itself does not.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from seqcls_fast._cells import BUILT_IN

CELLS = {cell: BUILT_IN[cell].gates for cell in ("rnn_tanh", "gru", "lstm")}
PRECISIONS = {"bf16": 2, "fp16": 2, "tf32": 4, "fp32": 4}  # bytes of an element
HIDDEN = (32, 64, 128, 192, 256, 512, 768, 1024)
BATCHES = (1, 16, 64, 256, 1024)
STEPS = (32, 128, 512)


class Row(NamedTuple):
    """One layer whose input is as wide as its state. Ragged: lengths from T / 10 to T, and h_n alone is asked for."""

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
    def parse(cls, name: str) -> Row:
        cell, precision, batch, steps, hidden, directions, what, lengths = name.split("-")
        sizes = (int(batch[1:]), int(steps[1:]), int(directions[1:]))
        return cls(cell, precision, int(hidden[1:]), what == "training", lengths == "ragged", *sizes)

    @property
    def bytes(self) -> int:
        """About what one side keeps: per step and unit its gates, saved values, their gradients, in and output."""
        per_unit = 2 + CELLS[self.cell] * (3 if self.training else 1)
        values = self.batch * self.steps * self.hidden * self.directions * per_unit
        return 2 * values * PRECISIONS[self.precision]  # twice, as projections are float32

    @property
    def seconds(self) -> float:
        """About what one call of torch.nn's takes: launches of every step, and arithmetic."""
        passes = 3 if self.training else 1
        width = CELLS[self.cell] * self.hidden * self.directions
        flop = 4 * self.batch * self.steps * width * self.hidden * passes
        launches = self.steps * self.directions * passes * (4 if self.ragged else 1)
        return 10e-6 * launches + flop / (40e12 if self.precision == "fp32" else 200e12)


ALWAYS = [Row("lstm", p, 768, training, False, 16, 1024, 1) for p in ("bf16", "fp16") for training in (False, True)]
SETUP_SECONDS = 1.0  # of a row: modules, gate, two graphs
CALLS = 40  # of torch.nn's, in a row
MOST_BYTES = 24 << 30  # a side of a row; several are on the device at once


def row_cost(row: Row) -> float:
    """Expected seconds of a row."""
    return SETUP_SECONDS + CALLS * row.seconds


@lru_cache
def grid() -> tuple[Row, ...]:
    """Every row that fits memory, what is always measured first."""
    draw = random.Random(0)
    strata = list(itertools.product(CELLS, PRECISIONS, HIDDEN, (False, True), (False, True)))
    shapes = list(itertools.product(BATCHES, STEPS, (1, 2)))
    orders = {stratum: draw.sample(shapes, len(shapes)) for stratum in strata}
    rows = [
        Row(*stratum, *orders[stratum][number])
        for number in range(len(shapes))
        for stratum in draw.sample(strata, len(strata))
    ]
    return (*ALWAYS, *(row for row in rows if row.bytes <= MOST_BYTES))


def stretches(rows: Sequence[Row], seconds: float, cost: Callable[[Row], float] = row_cost) -> Iterator[list[Row]]:
    """`rows` in stretches that are each expected to take no longer than `seconds`, a row at least."""
    stretch: list[Row] = []
    spent = 0.0
    for row in rows:
        if stretch and spent + cost(row) > seconds:
            yield stretch
            stretch, spent = [], 0.0
        stretch.append(row)
        spent += cost(row)
    if stretch:
        yield stretch


def grid_part(number: int, seconds: float) -> list[Row]:
    """The rows of stage grid<number>, from 1 on; none beyond the end of the grid."""
    return next(itertools.islice(stretches(grid(), seconds), number - 1, None), [])

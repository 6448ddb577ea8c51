"""Layers that are called for one step, as in streams and games: with a state that is carried from call to call.

In inference a row has the time of reading as many bytes as the weights take, which no call of one row can undercut.
The rows without a state are calls with next to nothing to compute.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..harness import Session
from ..layer_cases import CELLS, TINY, Case, Shape
from ..rows import Row, both_rows

SHAPES = (TINY, Shape(1, 1, 64, 64), Shape(1, 1, 128, 256), Shape(4, 1, 128, 256))


def cases(quick: bool = False) -> Iterator[Case]:
    calls = [(TINY, False), *((shape, True) for shape in SHAPES)]
    for kind in (Case("GRU", TINY), Case("GRU", TINY, graph=True), Case("GRU", TINY, training=True)):
        for cell in ("GRU",) if quick else CELLS:
            for shape, state in calls[:2] if quick else calls:
                yield replace(kind, cell=cell, shape=shape, state=state)


def measure(session: Session) -> Iterator[Row]:
    for case in cases(session.quick):
        inference = not (case.training or case.graph)
        row = session.layer("one_step", case, frozen=inference, floor=inference)
        row.what = f"one step, {case.what}"
        yield from both_rows(row) if inference else [row]

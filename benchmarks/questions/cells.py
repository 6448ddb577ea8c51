"""Cells in the loops that people write around them: `module(x, state)` against torch.nn's, in inference with no_grad.

A training step is the forward, and the backward of the sum of the new h into x, the state and the parameters.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..harness import Session
from ..layer_cases import CELLS, Case, Shape
from ..rows import Row, both_rows

BATCHES = (1, 4, 16, 64)
UNITS = (8, 32, 64, 128, 256, 512)
SHAPES = (*(Shape(B, 1, H, H) for B in BATCHES for H in UNITS), Shape(1, 1, 32, 64))


def measure(session: Session) -> Iterator[Row]:
    for training in (False, True):
        for cell in ("GRU",) if session.quick else CELLS:
            for shape in SHAPES[:2] if session.quick else SHAPES:
                case = Case(cell, shape, training=training, single=True)
                row = session.layer("cells", case, ["torch"], frozen=not training)
                yield from [row] if training else both_rows(row)

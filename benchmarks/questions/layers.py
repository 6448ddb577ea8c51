"""Layers: inference, training, ragged, bidirectional, stacked and bfloat16, from tiny to 1024 units.

At several threads only the four tables of one float32 layer in one direction are measured.
"""

from __future__ import annotations

from collections.abc import Iterator

from .. import layer_cases
from ..harness import Session
from ..rows import Row


def measure(session: Session) -> Iterator[Row]:
    for case in layer_cases.grid(quick=session.quick):
        if session.threads == 1 or (case.plain and case.dtype == "float32"):
            yield session.layer("layers", case)

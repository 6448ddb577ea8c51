"""Time against T, B and H, one of them varied at a time; the report fits exponents to it."""

from __future__ import annotations

from collections.abc import Iterator

from ..harness import Session
from ..layer_cases import Case, Shape
from ..rows import Row

BASE = Shape(32, 64, 64, 128)
RANGES = {"T": (16, 64, 256, 512), "B": (1, 8, 32, 128, 512), "H": (32, 64, 128, 256, 512)}
PEERS = ["torch", "onnxruntime", "OpenVINO"]


def measure(session: Session) -> Iterator[Row]:
    for axis, sizes in RANGES.items():
        for cell in ("GRU", "LSTM"):
            for size in sizes[:2] if session.quick else sizes:
                row = session.layer("scaling", Case(cell, BASE._replace(**{axis: size})), PEERS)
                row.what, row.name = f"time against {axis}", f"{cell} {axis} = {size}"
                yield row

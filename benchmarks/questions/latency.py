"""One sequence at a time: the median and the 99th percentile of single calls, and the first call of a new layer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from functools import partial

from .. import harness, layer_cases
from ..harness import Run, Session
from ..layer_cases import CELLS, Case, Shape
from ..rows import Row, Side

SHAPES = (Shape(1, 20, 32, 64), Shape(1, 50, 50, 64), Shape(1, 100, 128, 256))
CALLS = 100  # of a block


def measure(session: Session) -> Iterator[Row]:
    for cell in ("GRU",) if session.quick else CELLS:
        for shape in SHAPES[:1] if session.quick else SHAPES:
            case = Case(cell, shape)
            with layer_cases.grad_mode(case):
                yield from _rows(session, case)


def _rows(session: Session, case: Case) -> Iterator[Row]:
    first: dict[str, Side] = {}
    for _ in range(harness.MIN_ROUNDS):
        built = harness.engines(case, session.threads, session.peers)
        for name, engine in built.items():
            first.setdefault(name, Side()).rounds.append(harness.timed_once(engine.run)[0])
    errors = {n: layer_cases.error_of(case, engine.values(engine.run())) for n, engine in built.items()}
    runs = {n: engine.run for n, engine in built.items() if errors[n] <= case.error_bound}
    found = {"first call": {name: first[name] for name in runs}} | _percentiles(session, runs)
    for what, sides in found.items():
        for name, side in sides.items():
            side.error = errors[name]
        yield Row("latency", what, f"{case.cell} {case.shape}", session.threads, sides)


def _percentiles(session: Session, runs: Mapping[str, Run]) -> dict[str, dict[str, Side]]:
    """Of the calls of each block; the 99th percentile of so few is the second longest."""
    found = {what: {name: Side() for name in runs} for what in ("median call", "99th percentile")}
    with harness.no_garbage_collection():
        deadline = time.perf_counter() + 2 * session.allowance
        for number in range(session.max_rounds):
            if number >= harness.MIN_ROUNDS and time.perf_counter() > deadline:
                break
            for name, run in runs.items():
                times: list[float] = []
                _, good = session.guard.block(partial(_clock, run, times), 1, warm=False)
                times.sort()
                for what, value in zip(found, (statistics.median(times), times[-2]), strict=True):
                    side = found[what][name]
                    side.rounds.append(value if good else None)
                    if not good:
                        side.least = min(value, side.least or value)
    return found


def _clock(run: Run, times: list[float]) -> None:
    for _ in range(CALLS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)

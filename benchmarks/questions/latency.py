"""One sequence at a time: the median and 99th percentile of single calls, and the first call of a new layer.

Frozen weights are packed before the first call, as other libraries do when they load a model.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Mapping
from functools import partial

from seqcls_fast.toolkit.timing import MIN_ROUNDS, Call, timed, turns

from .. import harness, layer_cases, peers
from ..harness import Session
from ..layer_cases import CELLS, Case, Shape
from ..rows import FROZEN, Row, Side, both_rows

SHAPES = (Shape(1, 20, 32, 64), Shape(1, 50, 50, 64), Shape(1, 100, 128, 256))
CALLS = 100  # of a sample


def measure(session: Session) -> Iterator[Row]:
    for cell in ("GRU",) if session.quick else CELLS:
        for shape in SHAPES[:1] if session.quick else SHAPES:
            case = Case(cell, shape)
            with layer_cases.grad_mode(case):
                yield from _rows(session, case)


def _rows(session: Session, case: Case) -> Iterator[Row]:
    first: dict[str, Side] = {}
    for _ in range(MIN_ROUNDS):
        built = harness.engines(case, session.threads, session.peers)
        for name, engine in built.items():
            first.setdefault(name, Side()).rounds.append(timed(engine.run)[0])
    with contextlib.ExitStack() as entered:
        for _ in range(MIN_ROUNDS):
            entered.close()  # the module of the round before is frozen no longer
            built[FROZEN] = engine = peers.build_frozen(layer_cases.build(case), session.threads)
            entered.enter_context(engine.around())
            harness.engines(case, session.threads, session.peers)  # empties the CPU's caches of our code, as above
            first.setdefault(FROZEN, Side()).rounds.append(timed(engine.run)[0])
        errors = {n: layer_cases.error_of(case, engine.values(engine.run())) for n, engine in built.items()}
        calls = {n: engine.run for n, engine in built.items() if errors[n] <= case.error_bound}
        found = {"first call": first} | _percentiles(session, calls)
    for what, sides in found.items():
        row = Row("latency", what, case.name, session.threads, {})
        for name, error in errors.items():
            row.sides[name] = sides[name] if name in calls else Side(note=f"WRONG: error {error:.1e}")
            row.sides[name].error = error
        yield from both_rows(row)


def _percentiles(session: Session, calls: Mapping[str, Call]) -> dict[str, dict[str, Side]]:
    """Both of the CALLS calls of each sample. The 99th percentile of 100 calls is the second longest."""
    found = {what: {name: Side() for name in calls} for what in ("median call", "99th percentile")}
    with harness.no_garbage_collection():
        deadline = time.perf_counter() + 2 * session.allowance
        for _, name in turns(calls, session.max_rounds, deadline=deadline):
            seconds: list[float] = []
            _, good = session.guard.sample(partial(_time_each, calls[name], seconds), 1, warm=False)
            seconds.sort()
            for what, value in zip(found, (statistics.median(seconds), seconds[-2]), strict=True):
                found[what][name].add(value, good)
    return found


def _time_each(call: Call, seconds: list[float]) -> None:
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)

"""Timing the sides of a row in turns, and the session that a question measures in.

A sample taken while the machine was busy is repeated a few times. A side without two good samples keeps the least of
all that was seen, and is starred. All other samples count. Sides take turns because the
clock of a shared machine drifts over seconds.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

import torch

from seqcls_fast.toolkit.timing import MIN_ROUNDS, Call, timed, turns

from . import layer_cases, peers
from .guard import Guard
from .layer_cases import Case
from .machine import Machine
from .rows import Row, Side

RETRIES = 2  # of one sample; a side that never had a good one is given up after two rounds of them
FAR_BEHIND, LONG = 3.0, 0.2  # times the fastest side, and seconds: a side above both is called only once


def calls_per_sample(call: Call, min_time: float) -> int:
    """How many calls take min_time, from twice as many each time until a quarter of it is seen."""
    calls = 1
    while True:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        elapsed = time.perf_counter() - start
        if elapsed >= min_time / 4:
            return max(1, math.ceil(calls * min_time / elapsed))
        calls *= 2


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def measure(
    sides: Mapping[str, Call], guard: Guard, *, first: Mapping[str, float], min_time: float, max_rounds: int,
    allowance: float,
) -> dict[str, Side]:  # fmt: skip
    """Times all sides in turns, up to max_rounds rounds while `allowance` seconds last, and at least MIN_ROUNDS.

    `first` has the seconds of each side's first call: slow sides then need no trial calls, and one that is far behind
    all others is called once more only.
    """
    fastest = min(first.values())
    once = [name for name, seconds in first.items() if seconds > max(LONG, FAR_BEHIND * fastest)]
    found = {name: Side(note="a single call" if name in once else "") for name in sides}
    names = [name for name in sides if name not in once]
    with no_garbage_collection():
        deadline = time.perf_counter() + allowance
        for name in once:
            _add_round(found[name], sides[name], 1, guard, deadline)
        calls = {n: 1 if first[n] > 10 * min_time else calls_per_sample(sides[n], min_time) for n in names}
        for _, name in turns(names, max_rounds, deadline=deadline):
            _add_round(found[name], sides[name], calls[name], guard, deadline)
    return found


def _add_round(side: Side, call: Call, calls: int, guard: Guard, deadline: float) -> None:
    for attempt in range(1 + RETRIES):
        seconds, good = guard.sample(call, calls, warm=calls > 1)
        if good:
            side.rounds.append(seconds)
            return
        side.least = min(seconds, side.least or math.inf)
        hopeless = len(side.good) < 2 and side.rounds.count(None) >= 2
        if hopeless or time.perf_counter() > deadline:
            break
        time.sleep(0.01 * (attempt + 1))
    side.rounds.append(None)


class Session:
    """All that a question needs to measure at one thread count."""

    def __init__(
        self, threads: int, *, quick: bool = False, row_seconds: float = 2.0, max_rounds: int = 9,
        names: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        torch.set_num_threads(threads)
        if quick and names is None:  # torch.compile alone would take most of a minute
            names = [peer.name for peer in peers.PEERS if peer.name != "torch.compile"]
        self.threads, self.quick, self.peers = threads, quick, names
        self.allowance = 0.1 if quick else row_seconds
        self.max_rounds = MIN_ROUNDS if quick else max_rounds
        self.min_time = 0.003 if quick else 0.01
        self.machine = Machine(threads)
        self.guard = Guard(self.machine)

    def time(self, sides: Mapping[str, Call], first: Mapping[str, float] | None = None) -> dict[str, Side]:
        """Samples of every side. Each is called once before, unless ``first`` has the seconds of such a call."""
        self.guard.recent = 0.0
        first = first or {name: timed(call)[0] for name, call in sides.items()}
        return measure(
            sides, self.guard, first=first, min_time=self.min_time, max_rounds=self.max_rounds,
            allowance=self.allowance,
        )  # fmt: skip

    def layer(self, question: str, case: Case, names: Sequence[str] | None = None) -> Row:
        """A row of one case: ours and every peer, or those of ``names``, each timed if its result is right."""
        with layer_cases.grad_mode(case):
            built = engines(case, self.threads, names or self.peers)
            row = Row(question, case.what, f"{case.cell} {case.shape}", self.threads, {})
            row.gflop = layer_cases.gflop_of(case)
            first, calls = {}, {}
            for name, engine in built.items():
                row.sides[name] = side = Side()
                try:
                    first[name], result = timed(engine.run)
                    if first[name] < LONG:  # the first call also allocates, so a second one counts
                        first[name], result = timed(engine.run)
                    side.error = layer_cases.error_of(case, engine.values(result))
                except Exception as error:  # a peer may fail on a case that it did not refuse
                    if name == "ours":
                        raise
                    side.note = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
                    continue
                if side.error <= case.error_bound:
                    calls[name] = engine.run
                else:
                    side.note = f"WRONG: error {side.error:.1e}"
            if "ours" not in calls:
                return row
            for name, side in self.time(calls, first={name: first[name] for name in calls}).items():
                side.error = row.sides[name].error
                row.sides[name] = side
        row.bounds = self.machine.bounds(case, self.guard.recent_peak)
        return row


def engines(case: Case, threads: int, names: Sequence[str] | None = None) -> dict[str, peers.Engine]:
    """Ours and those of the peers."""
    problem = layer_cases.build(case)
    found = {"ours": peers.build_ours(problem, threads)}
    return found | {peer.name: _attempt(peer, problem, threads) for peer in peers.peers_of(case, names)}


def _attempt(peer: peers.Peer, problem: layer_cases.Problem, threads: int) -> peers.Engine:
    """A peer's engine, or one that raises the error of building it when it is called."""
    try:
        return peer.build(problem, threads)
    except Exception as error:

        def run(error: Exception = error) -> NoReturn:
            raise error

        return peers.Engine(run, lambda values: values)

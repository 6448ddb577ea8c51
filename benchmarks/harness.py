"""Timing the sides of a row in turns, and the session that a question measures in.

A sample taken while the machine was busy is repeated a few times. A side without two good samples keeps the least of
all that was seen, and is starred. All other samples count. Sides take turns because the clock of a shared machine
drifts over seconds.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import NoReturn

import torch

from seqcls_fast.toolkit.timing import MIN_ROUNDS, Call, timed, turns

from . import layer_cases, peers
from .guard import Guard
from .layer_cases import Case, Values
from .machine import Machine
from .rows import FLOOR, FROZEN, Row, Side

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
        self.named = names  # the peers that were asked for; None if all
        if quick and names is None:  # torch.compile alone would take most of a minute
            names = [peer.name for peer in peers.PEERS if peer.name != "torch.compile"]
        self.threads, self.quick, self.peers = threads, quick, names
        self.allowance = 0.1 if quick else row_seconds
        self.max_rounds = MIN_ROUNDS if quick else max_rounds
        self.min_time = 0.003 if quick else 0.01
        self.machine = Machine(threads)
        self.guard = Guard(self.machine)

    def asks(self, peer: str) -> bool:
        """Whether a peer is asked that single questions alone have: all are, unless some were named."""
        return peer in self.named if self.named is not None else not (self.quick and peer == "torch.compile")

    def time(self, sides: Mapping[str, Call], first: Mapping[str, float] | None = None) -> dict[str, Side]:
        """Samples of every side. Each is called once before, unless ``first`` has the seconds of such a call."""
        self.guard.recent = 0.0
        first = first or {name: timed(call)[0] for name, call in sides.items()}
        return measure(
            sides, self.guard, first=first, min_time=self.min_time, max_rounds=self.max_rounds,
            allowance=self.allowance,
        )  # fmt: skip

    def layer(
        self, question: str, case: Case, names: Sequence[str] | None = None, *, frozen: bool = False,
        floor: bool = False,
    ) -> Row:  # fmt: skip
        """A row of one case: ours and every peer, or those of ``names``, each timed if its result is right.

        ``frozen`` adds ours with frozen weights. ``floor`` adds a read of as many bytes as the weights have; it is
        timed in turns with the layer, so both find their bytes in the same caches, and it is a bound of the row.
        """
        row = Row(question, case.what, case.name, self.threads, {}, gflop=layer_cases.gflop_of(case))
        with layer_cases.grad_mode(case):
            built = engines(case, self.threads, names or self.peers, frozen=frozen)
            others = {FLOOR: layer_cases.reader_of_weights(case)} if floor else {}
            self.fill(row, built, partial(layer_cases.error_of, case), case.error_bound, others)
        if row.sides["ours"].measured:
            row.bounds = self.machine.bounds(case, self.guard.recent_peak)
            row.bounds |= {FLOOR: row.sides[FLOOR].value} if floor else {}
        return row

    def fill(
        self, row: Row, built: Mapping[str, peers.Engine], error_of: Callable[[Values], float], error_bound: float,
        others: Mapping[str, Call] | None = None,
    ) -> None:  # fmt: skip
        """Gives a row the sides of these engines, each timed if its result is right, unless ours is wrong.

        ``others`` are calls without a result to check, which are timed in turns with the engines.
        """
        calls = dict(others or {})
        first = {name: timed(call)[0] for name, call in calls.items()}
        with contextlib.ExitStack() as entered:
            for name, engine in built.items():
                row.sides[name] = side = Side()
                try:
                    entered.enter_context(engine.around())
                    first[name], result = timed(engine.run)
                    if first[name] < LONG:  # the first call also allocates, so a second one counts
                        first[name], result = timed(engine.run)
                    side.error = error_of(engine.values(result))
                except Exception as error:  # a peer may fail on a case that it did not refuse
                    if name.startswith("ours"):
                        raise
                    side.note = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
                    continue
                if side.error <= error_bound:
                    calls[name] = engine.run
                else:
                    side.note = f"WRONG: error {side.error:.1e}"
            if "ours" not in calls:
                return
            for name, side in self.time(calls, first={name: first[name] for name in calls}).items():
                side.error = row.sides[name].error if name in row.sides else None
                row.sides[name] = side


def engines(
    case: Case, threads: int, names: Sequence[str] | None = None, *, frozen: bool = False
) -> dict[str, peers.Engine]:
    """Ours, ours with frozen weights if asked, and those of the peers."""
    problem = layer_cases.build(case)
    found = {"ours": peers.build_ours(problem, threads)}
    if frozen:
        found[FROZEN] = peers.build_frozen(problem, threads)
    return found | {peer.name: _attempt(peer, problem, threads) for peer in peers.peers_of(case, names)}


def _attempt(peer: peers.Peer, problem: layer_cases.Problem, threads: int) -> peers.Engine:
    """A peer's engine, or one that raises the error of building it when it is called."""
    try:
        return peer.build(problem, threads)
    except Exception as error:

        def run(error: Exception = error) -> NoReturn:
            raise error

        return peers.Engine(run, lambda values: values)

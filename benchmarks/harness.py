"""Timing: a noise guard, interleaved blocks of every side in one process, and the session that a question measures in.

A block counts only if an FMA probe right before and right after it shows 93 % of the quiet peak and its threads had
their CPUs to themselves; otherwise it is repeated a few times, and a side without two good blocks keeps its minimum and
is starred. Nothing else is left out: there are no other outliers. Speed is compared block by block in turns, since the
clock of a shared machine drifts over seconds.
"""

from __future__ import annotations

import contextlib
import gc
import math
import resource
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NoReturn, TypeVar

import torch

from . import layer_cases, peers
from .layer_cases import Case
from .machine import Machine, Peak
from .rows import Row, Side

Result = TypeVar("Result")
Run = Callable[[], Any]

QUIET_SHARE = 0.93  # of the quiet peak, below which a block is discarded
BUSY_SHARE = 0.97  # of the wall clock's time that one thread has its CPU
PREEMPTIONS_PER_SECOND = 250  # several threads: on all CPUs of a machine its own chores cause 200, a competitor 300
USUAL_SHARE = 0.85  # several threads: of the CPU time a side was once seen to use, below which they had to share a CPU
MIN_ROUNDS = 3
RETRIES = 2  # of one discarded block; a side that never had a good one is given up after twice as many
FAR_BEHIND, LONG = 3.0, 0.2  # a side this many times slower than the fastest, and than these seconds, is called once


class Guard:
    """Times one block of calls and says whether the machine was quiet meanwhile."""

    def __init__(self, peak: Peak, threads: int, kind: str) -> None:
        self.peak, self.threads, self.kind = peak, threads, kind
        self.quiet = peak.quiet_gflops(kind, threads)
        self.accepted = self.rejected = 0
        self.recent = 0.0  # best probe since whoever times a row last set this to 0
        self._busiest: MutableMapping[Run, float] = weakref.WeakKeyDictionary()  # CPU time per elapsed time

    @property
    def recent_peak(self) -> float:
        """The peak at the clock of the moment, which drifts by some percent; the quiet one if nothing was quiet."""
        return self.recent if self.recent >= QUIET_SHARE * self.quiet else self.quiet

    def _is_quiet(self) -> bool:
        if self.threads > 1:
            time.sleep(0.006)  # idle OpenMP workers spin for some milliseconds and would look like a competitor
        now = self.peak.gflops(self.kind, self.threads, 0.001)
        self.quiet, self.recent = max(self.quiet, now), max(self.recent, now)
        return now >= QUIET_SHARE * self.quiet

    def _had_its_cpus(self, run: Run, before: Any, elapsed: float) -> bool:
        now = resource.getrusage(resource.RUSAGE_SELF)
        used = now.ru_utime + now.ru_stime - before.ru_utime - before.ru_stime
        if self.threads == 1:  # busy all the time, in whichever of an engine's threads
            return used >= BUSY_SHARE * elapsed - 2e-4
        # how many threads an engine keeps busy is its own affair, but it is the same in every block
        busiest = self._busiest[run] = max(used / elapsed, self._busiest.get(run, 0.0))
        preempted = now.ru_nivcsw - before.ru_nivcsw > max(4, PREEMPTIONS_PER_SECOND * elapsed)
        return not preempted and used >= USUAL_SHARE * busiest * elapsed

    def block(self, run: Callable[[], object], calls: int, warm: bool) -> tuple[float, bool]:
        """(seconds per call, good): `calls` calls between two probes."""
        good = self._is_quiet()
        if warm:
            run()
        before = resource.getrusage(resource.RUSAGE_SELF)
        start = time.perf_counter()
        for _ in range(calls):
            run()
        elapsed = time.perf_counter() - start
        good = self._had_its_cpus(run, before, elapsed) and good and self._is_quiet()
        self.accepted += good
        self.rejected += not good
        return elapsed / calls, good


def timed_once(run: Callable[[], Result]) -> tuple[float, Result]:
    """(seconds, result) of a single call."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def calls_per_block(run: Run, min_time: float) -> int:
    """How many calls last min_time, from a doubling warm-up."""
    calls = 1
    while True:
        start = time.perf_counter()
        for _ in range(calls):
            run()
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
    sides: Mapping[str, Run], guard: Guard, *, first: Mapping[str, float], min_time: float, max_rounds: int,
    allowance: float,
) -> dict[str, Side]:  # fmt: skip
    """Times all sides in turns, up to max_rounds rounds while `allowance` seconds last, and at least MIN_ROUNDS.

    `first`: seconds of each side's first call, which spares slow sides the calibration, and one far behind all others
    every call but one. The order rotates by one every round.
    """
    fastest = min(first.values())
    once = [name for name, seconds in first.items() if seconds > max(LONG, FAR_BEHIND * fastest)]
    times = {name: Side(note="a single call" if name in once else "") for name in sides}
    names = [name for name in sides if name not in once]
    with no_garbage_collection():
        deadline = time.perf_counter() + allowance
        for name in once:
            _add_round(times[name], sides[name], 1, guard, deadline)
        calls = {n: 1 if first[n] > 10 * min_time else calls_per_block(sides[n], min_time) for n in names}
        for number in range(max_rounds):
            if number >= MIN_ROUNDS and time.perf_counter() > deadline:
                break
            for name in names[number % len(names) :] + names[: number % len(names)]:
                _add_round(times[name], sides[name], calls[name], guard, deadline)
    return times


def _add_round(side: Side, run: Run, calls: int, guard: Guard, deadline: float) -> None:
    for attempt in range(1 + RETRIES):
        seconds, good = guard.block(run, calls, warm=calls > 1)
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
    """What a question needs to measure at one thread count."""

    def __init__(
        self, threads: int, *, quick: bool = False, row_seconds: float = 2.0, max_rounds: int = 9,
        names: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        torch.set_num_threads(threads)
        if quick and names is None:  # torch.compile takes most of a minute
            names = [peer.name for peer in peers.PEERS if peer.name != "torch.compile"]
        self.threads, self.quick, self.peers = threads, quick, names
        self.allowance = 0.1 if quick else row_seconds
        self.max_rounds = MIN_ROUNDS if quick else max_rounds
        self.min_time = 0.003 if quick else 0.01
        self.machine = Machine(threads)
        self.guard = Guard(self.machine.peak, threads, self.machine.kind)

    def time(self, sides: Mapping[str, Run], first: Mapping[str, float] | None = None) -> dict[str, Side]:
        """Every side's blocks; each is called once before, unless ``first`` says what such a call took."""
        self.guard.recent = 0.0
        first = first or {name: timed_once(run)[0] for name, run in sides.items()}
        return measure(
            sides, self.guard, first=first, min_time=self.min_time, max_rounds=self.max_rounds,
            allowance=self.allowance,
        )  # fmt: skip

    def layer(self, question: str, case: Case, names: Sequence[str] | None = None) -> Row:
        """Ours and every peer (or those of these names) on one case, each behind the gate."""
        with layer_cases.grad_mode(case):
            built = engines(case, self.threads, names or self.peers)
            row = Row(question, case.what, f"{case.cell} {case.shape}", self.threads, {})
            row.gflop = layer_cases.gflop_of(case)
            first, runs = {}, {}
            for name, engine in built.items():
                row.sides[name] = side = Side()
                try:
                    first[name], result = timed_once(engine.run)
                    if first[name] < LONG:  # the first call also allocates
                        first[name], result = timed_once(engine.run)
                    side.error = layer_cases.error_of(case, engine.values(result))
                except Exception as error:  # a peer may refuse what it announced
                    if name == "ours":
                        raise
                    side.note = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
                    continue
                if side.error <= case.error_bound:
                    runs[name] = engine.run
                else:
                    side.note = f"WRONG: error {side.error:.1e}"
            if "ours" not in runs:
                return row
            for name, side in self.time(runs, first={name: first[name] for name in runs}).items():
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
    """Its engine, or one that fails as building it did."""
    try:
        return peer.build(problem, threads)
    except Exception as error:

        def run(error: Exception = error) -> NoReturn:
            raise error

        return peers.Engine(run, lambda values: values)

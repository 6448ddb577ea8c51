"""Timing for the benchmarks: machine limits from compiled micro-benchmarks, a noise guard, interleaved A/B blocks.

A block counts only if an FMA probe right before and right after it shows 93 % of the quiet peak and it was hardly ever
preempted; otherwise it is repeated a few times, and a side without two good blocks keeps its minimum and is starred.
Speed is compared within one process, block by block in turns: the clock of a shared machine drifts over seconds.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import math
import os
import platform
import resource
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

QUIET_SHARE = 0.93  # of the quiet peak, below which a block is discarded
PREEMPTIONS_PER_SECOND = 60  # a competitor on the same core causes 200 and more
MIN_ROUNDS = 3
RETRIES = 3  # of one discarded block; a side that never had a good one is given up after twice as many


def _build_peak_library() -> ctypes.CDLL:
    """Compile peak.cpp once per version of its text and load it."""
    source = Path(__file__).with_name("peak.cpp")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "seqcls_fast"
    library = cache / f"peak-{digest}.so"
    if not library.exists():
        names = [os.environ.get("CXX"), "c++", "g++", "clang++"]
        compiler = next((path for name in names if name and (path := shutil.which(name))), None)
        if compiler is None:
            raise RuntimeError("benchmarks/peak.cpp: expected a C++17 compiler ($CXX, c++, g++ or clang++), found none")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:  # renamed when whole: two runs may build at once
            built = Path(folder) / library.name
            flags = ["-O3", "-std=c++17", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread"]
            subprocess.run([compiler, *flags, str(source), "-o", str(built)], check=True)
            built.replace(library)
    loaded = ctypes.CDLL(str(library))
    for name in ("peak_gflops", "clock_ghz", "read_gbs", "round_trip_ns"):
        getattr(loaded, name).restype = ctypes.c_double
    return loaded


class Peak:
    """The measured limits of this machine. `kind` is ISA-dtype, for instance "avx512-float32"."""

    def __init__(self) -> None:
        self._library = _build_peak_library()

    def gflops(self, kind: str, threads: int, seconds: float = 0.002) -> float:
        """One measurement; -1 where the CPU cannot run this kind."""
        return self._library.peak_gflops(kind.encode(), threads, ctypes.c_double(seconds))

    def quiet_gflops(self, kind: str, threads: int, tries: int = 40) -> float:
        """The best of several short measurements: somebody else's load can only lower one."""
        return max(self.gflops(kind, threads) for _ in range(tries))

    def widest(self) -> str:
        """The widest instruction set with a float32 peak here: what impl="auto" is measured against."""
        return next(isa for isa in ("avx512", "avx2", "base") if self.gflops(f"{isa}-float32", 1) > 0)

    def clock_ghz(self, gflops_per_thread: float) -> tuple[float, int]:
        """(clock, flop per clock): a chain of multiplies times the clock roughly, the FMA peak then gives it exactly.

        The flop per clock is the power of two nearest to peak / rough clock (64 for two 512-bit FMA ports in float32).
        """
        rough = max(self._library.clock_ghz(ctypes.c_double(0.003)) for _ in range(10))
        if rough <= 0:  # no such chain for this CPU: assume two 128-bit ports
            return gflops_per_thread / 16, 16
        per_clock = 2 ** round(math.log2(gflops_per_thread / rough))
        return gflops_per_thread / per_clock, per_clock

    def read_gbs(self, kilobytes: int, threads: int) -> float:
        each = ctypes.c_int64(1024 * kilobytes)
        return max(self._library.read_gbs(each, threads, ctypes.c_double(0.01)) for _ in range(3))

    def round_trip_ns(self) -> float:
        return self._library.round_trip_ns(100)


class Guard:
    """Times one block of calls and says whether the machine was quiet meanwhile."""

    def __init__(self, peak: Peak, threads: int, kind: str) -> None:
        self.peak, self.threads, self.kind = peak, threads, kind
        self.quiet = peak.quiet_gflops(kind, threads)
        self.accepted = self.rejected = 0
        self.recent = 0.0  # best probe since whoever times a row last set this to 0

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

    def block(self, run: Callable[[], object], calls: int, warm: bool) -> tuple[float, bool]:
        """(seconds per call, good): `calls` calls between two probes."""
        good = self._is_quiet()
        if warm:
            run()
        preempted = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        start = time.perf_counter()
        for _ in range(calls):
            run()
        elapsed = time.perf_counter() - start
        preempted = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - preempted
        good = good and preempted <= max(2, PREEMPTIONS_PER_SECOND * elapsed) and self._is_quiet()
        self.accepted += good
        self.rejected += not good
        return elapsed / calls, good


@dataclass
class Times:
    """Seconds per call of one side, one entry per round; None where no block of the round was good."""

    rounds: list[float | None] = field(default_factory=list)
    rejected: list[float] = field(default_factory=list)

    @property
    def good(self) -> list[float]:
        return [seconds for seconds in self.rounds if seconds is not None]

    @property
    def starred(self) -> bool:
        """A single good block may be luck: the probes look at the machine before and after it, not during it."""
        return len(self.good) < 2

    @property
    def seconds(self) -> float:
        return min(self.good + self.rejected) if self.starred else statistics.median(self.good)


@dataclass
class Ratio:
    """How many times slower `slow` is than `fast`: ratio of medians, and quartiles of the ratios per round."""

    value: float
    low: float | None  # fewer than two good rounds
    high: float | None

    @classmethod
    def of(cls, slow: Times, fast: Times) -> Ratio:
        pairs = [a / b for a, b in zip(slow.rounds, fast.rounds, strict=True) if a is not None and b is not None]
        low, _, high = statistics.quantiles(pairs, n=4, method="inclusive") if len(pairs) >= 2 else (None, None, None)
        return cls(slow.seconds / fast.seconds, low, high)


def timed_once(run: Callable[[], Result]) -> tuple[float, Result]:
    """(seconds, result) of a single first call: what the correctness gate looks at, and a rough cost."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def calls_per_block(run: Callable[[], object], min_time: float) -> int:
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


def measure(
    sides: Mapping[str, Callable[[], object]],
    guard: Guard,
    *,
    first: Mapping[str, float],
    min_time: float,
    max_rounds: int,
    allowance: float,
) -> dict[str, Times]:
    """Times all sides in turns, up to max_rounds rounds while `allowance` seconds last, and at least MIN_ROUNDS.

    `first`: seconds of each side's first call, which spares slow sides the calibration. The order rotates by one every
    round. Garbage collection is off inside.
    """
    gc.collect()
    gc.disable()
    try:
        deadline = time.perf_counter() + allowance
        calls = {n: 1 if first[n] > 10 * min_time else calls_per_block(run, min_time) for n, run in sides.items()}
        times = {name: Times() for name in sides}
        names = list(sides)
        for number in range(max_rounds):
            if number >= MIN_ROUNDS and time.perf_counter() > deadline:
                break
            for name in names[number % len(names) :] + names[: number % len(names)]:
                _add_round(times[name], sides[name], calls[name], guard, deadline)
        return times
    finally:
        gc.enable()


def _add_round(times: Times, run: Callable[[], object], calls: int, guard: Guard, deadline: float) -> None:
    for attempt in range(1 + RETRIES):
        seconds, good = guard.block(run, calls, warm=calls > 1)
        if good:
            times.rounds.append(seconds)
            return
        times.rejected.append(seconds)
        hopeless = times.starred and len(times.rejected) > 2 * RETRIES
        if hopeless or time.perf_counter() > deadline:
            break
        time.sleep(0.01 * (attempt + 1))
    times.rounds.append(None)


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return f"{fields['model name']} (family {fields['cpu family']} model {fields['model']})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def pinning() -> str:
    """Where the threads may run, and the variables that would bind them."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    names = ("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_WAIT_POLICY", "GOMP_CPU_AFFINITY", "MALLOC_MMAP_THRESHOLD_")
    settings = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    return f"CPUs {','.join(map(str, cpus))}; {' '.join(settings) or 'no OMP or malloc settings'}"

"""Timing samples: the seconds of a few calls, and whether the machine was quiet while they ran.

A sample is good if a multiply-add probe right before it and right after it reaches 93 % of the quiet peak, and if the
sampled threads had their CPUs to themselves.
"""

from __future__ import annotations

import resource
import time
import weakref
from collections.abc import Callable, MutableMapping
from typing import Any

from .machine import Machine

QUIET_SHARE = 0.93  # of the quiet peak that a probe must reach
BUSY_SHARE = 0.97  # of the elapsed time that a single thread must have had its CPU
PREEMPTIONS_PER_SECOND = 250  # of several threads on all CPUs: the system causes up to 200, a competing process 300
USUAL_SHARE = 0.85  # of the CPU time that a call was once seen to use: with less, its threads had to share a CPU


class Guard:
    """Times one sample after another and counts the good ones and the others."""

    def __init__(self, machine: Machine) -> None:
        self.peak, self.threads, self.kind = machine.peak, machine.threads, machine.kind
        self.quiet = self.peak.quiet_gflops(self.kind, self.threads)
        self.accepted = self.rejected = 0
        self.recent = 0.0  # the best probe since a row's timing began and set this to 0
        self._busiest: MutableMapping[Callable[[], Any], float] = weakref.WeakKeyDictionary()  # CPU time / elapsed time

    @property
    def recent_peak(self) -> float:
        """The peak at the present clock, which drifts by some percent; the quiet peak if no probe was quiet."""
        return self.recent if self.recent >= QUIET_SHARE * self.quiet else self.quiet

    def sample(self, call: Callable[[], object], calls: int, warm: bool) -> tuple[float, bool]:
        """(seconds per call, good) of so many calls, after one call that is not timed if ``warm``."""
        good = self._is_quiet()
        if warm:
            call()
        before = resource.getrusage(resource.RUSAGE_SELF)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        elapsed = time.perf_counter() - start
        good = self._had_its_cpus(call, before, elapsed) and good and self._is_quiet()
        self.accepted += good
        self.rejected += not good
        return elapsed / calls, good

    def _is_quiet(self) -> bool:
        if self.threads > 1:
            time.sleep(0.006)  # idle OpenMP threads spin for some milliseconds and would look like a competing process
        now = self.peak.gflops(self.kind, self.threads, 0.001)
        self.quiet, self.recent = max(self.quiet, now), max(self.recent, now)
        return now >= QUIET_SHARE * self.quiet

    def _had_its_cpus(self, call: Callable[[], Any], before: Any, elapsed: float) -> bool:
        now = resource.getrusage(resource.RUSAGE_SELF)
        used = now.ru_utime + now.ru_stime - before.ru_utime - before.ru_stime
        if self.threads == 1:  # some thread of the engine is busy all the time
            return used >= BUSY_SHARE * elapsed - 2e-4
        # engines keep different numbers of threads busy, but one engine the same number in every sample
        busiest = self._busiest[call] = max(used / elapsed, self._busiest.get(call, 0.0))
        preempted = now.ru_nivcsw - before.ru_nivcsw > max(4, PREEMPTIONS_PER_SECOND * elapsed)
        return not preempted and used >= USUAL_SHARE * busiest * elapsed

"""Runs parts in worker processes until a deadline, and saves what they find the moment it is known.

A worker is kept across stages, since its start takes long, and is replaced when it hangs, dies or has lost its GPU.
Nothing here imports torch, so that no fault of the GPU reaches this process.
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..rows import ROOT
from .messages import read
from .results import Results

MOST_LOST = 2  # parts of one kind that may hang or crash before the others of that kind are left out
MOST_STARTS = 2  # failed starts of a worker, one after the other, after which it is given up


class Over(Exception):
    """The time is over, or a signal says so."""


@dataclass(frozen=True)
class Patience:
    """Seconds after which a worker counts as hung."""

    silence: float = 15.0  # of a part without a message
    start: float = 60.0  # of a step of the start: torch is loaded from a cold disk
    part: float = 60.0  # of a part, even if it is not silent


USUAL = Patience()


class Stage(NamedTuple):
    name: str
    program: str
    share: float  # of the time that is left for this and later stages; what it does not need is theirs
    least: float = 0.0  # seconds without which no part of it begins; where set, a part may take all that are left


class Worker:
    """A process that runs parts."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that its children can be killed with it
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._said: deque[str] = deque(maxlen=15)  # its last other lines, to be shown if it dies
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def ask(self, name: str, seconds: float) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # it has died, which hear() tells
            self.process.stdin.write(f"{name} {seconds:.1f}\n")
            self.process.stdin.flush()

    def hear(self, seconds: float) -> dict[str, Any]:
        """The next message; {"ended": why} if it has died, {"silent": seconds} if none comes in that time."""
        until = time.monotonic() + seconds
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return {"silent": seconds}
            if line is None:
                status = self.process.wait()
                said = " | ".join(filter(None, self._said))[-1500:]
                sentence = status == 1 and said  # of a worker that knows why it cannot go on
                return {"ended": said, "final": True} if sentence else {"ended": f"exit status {status}: {said}"}
            message = read(line)
            if message is not None:
                return message
            self._said.append(line.strip())

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=2)  # a process that waits for a broken driver may not end at all


class Supervisor:
    """Runs the parts of stages with the programs that have them. `left`: not tried, or cut short."""

    def __init__(
        self,
        programs: Mapping[str, Sequence[str]],
        results: Results,
        deadline: float,
        *,
        patience: Patience = USUAL,
        only: str = "",
        environment: Mapping[str, str] | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        self.programs, self.results, self.deadline, self.patience = programs, results, deadline, patience
        self.only, self.environment, self.say = only, environment or {}, say
        self.workers: dict[str, Worker] = {}
        self.parts: dict[str, list[tuple[str, str, str]]] = {}  # by program: stage, name, kind
        self.lost, self.bad_starts = Counter[str](), Counter[str]()
        self.problems: dict[str, str] = {}  # why a program is given up, by its name
        self.tried: set[str] = set()

    @property
    def left(self) -> set[str]:
        wanted = {name for parts in self.parts.values() for _, name, _ in parts if re.search(self.only, name)}
        cut = {name for name in self.tried if "cut" in self.results.parts.get(name, "cut")}
        return wanted - self.results.finished - (self.tried - cut)

    def run(self, stages: Sequence[Stage]) -> None:
        """Runs all stages, each within its share of the time, and then what they had no time for."""
        for number, stage in enumerate(stages):
            now, shares = time.monotonic(), sum(each.share for each in stages[number:])
            if shares:
                self.run_stage(stage, now + (self.deadline - now) * stage.share / shares)
        for stage in stages:
            self.run_stage(stage, self.deadline)

    def run_stage(self, stage: Stage, until: float) -> None:
        if stage.share == 0 and until < self.deadline:
            return
        if stage.program not in self.parts and not self.start(stage.program):
            return
        finished, failed = self.results.finished, self.results.failures()
        parts = [each for each in self.parts[stage.program] if each[0] == stage.name]
        parts.sort(key=lambda each: each[1] in failed)  # what failed in an earlier call comes last
        for _, name, kind in parts:
            if name in finished or name in self.tried or not re.search(self.only, name):
                continue
            seconds = until - time.monotonic()
            if seconds <= stage.least:
                return
            if self.lost[kind] >= MOST_LOST:
                self.results.put(name, {"skipped": f"{MOST_LOST} parts of its kind, {kind}, hung or crashed"})
                self.tried.add(name)
                continue
            if stage.program not in self.workers and not self.start(stage.program):
                return
            self.tried.add(name)
            self._run_part(stage.program, name, kind, seconds if stage.least else self.patience.part)

    def stop(self) -> None:
        for worker in self.workers.values():
            worker.kill()
        self.workers.clear()

    def start(self, program: str) -> bool:
        """Starts a worker and learns its parts. Says once why that fails."""
        while self.bad_starts[program] < MOST_STARTS:
            worker = self.workers[program] = self._new_worker(program)
            while True:
                message = self._hear(worker, self.patience.start)
                if "parts" in message:
                    self.parts[program] = [tuple(each) for each in message["parts"]]
                    if message.get("facts"):
                        self.results.describe(message["facts"])
                    self.bad_starts[program] = 0
                    return True
                if "ended" in message or "silent" in message:
                    break
            self._replace(program)
            self.bad_starts[program] += MOST_STARTS if message.get("final") else 1
            why = message.get("ended") or f"it was silent for {message['silent']:.0f} s"
            self.problems[program] = f"{program} could not be started: {why}"
            if self.bad_starts[program] >= MOST_STARTS:
                self.say(self.problems[program])
        return False

    def _new_worker(self, program: str) -> Worker:
        try:
            return Worker(self.programs[program], self.environment)
        except OSError as error:  # a damaged program, or one of another machine
            why = f"{self.programs[program][0]} cannot be run: {error.strerror}"
            return Worker([sys.executable, "-c", f"raise SystemExit({why!r})"], self.environment)

    def _replace(self, program: str) -> None:
        self.workers.pop(program).kill()

    def _hear(self, worker: Worker, seconds: float) -> dict[str, Any]:
        left = self.deadline - time.monotonic()
        message = worker.hear(min(seconds, left))
        if "silent" in message and left <= seconds:
            raise Over("the time is over")
        return message

    def _run_part(self, program: str, name: str, kind: str, seconds: float) -> None:
        worker, entry, latest = self.workers[program], {}, time.monotonic() + seconds + self.patience.silence
        worker.ask(name, seconds)
        while True:
            message = self._hear(worker, min(self.patience.silence, max(0.0, latest - time.monotonic())))
            if "found" in message:
                entry = message["found"]
                self.results.put(name, entry | {"cut": "its end is missing"})
            elif "done" in message:
                entry = message["done"]
                break
            elif "ended" in message:
                entry = entry | {"failed": f"the worker died: {message['ended']}"}
                break
            elif "silent" in message:
                too_long = time.monotonic() >= latest
                why = "it took too long" if too_long else f"silent for {message['silent']:.0f} s"
                entry = entry | {"failed": f"hung: {why}"}
                break
        self.results.put(name, entry)
        line = f"{name}  {entry.get('line', '')}".rstrip()
        self.say(f"{line}  FAILED: {entry['failed']}" if "failed" in entry else line)
        if "done" not in message or message.get("last"):
            self.lost[kind] += 1
            self._replace(program)
            if self.lost[kind] == MOST_LOST:
                self.say(f"{kind}: {MOST_LOST} parts hung or crashed, so the others of this kind are left out")

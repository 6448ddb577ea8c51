"""Builds, checks and measures the CUDA part on a machine with a GPU, torch and nvcc; needs no network.

    python -m benchmarks.gpu                           every stage in turn; or `make gpu`
    python -m benchmarks.gpu --stage build,correctness
    python -m benchmarks.gpu --stage correctness --only 'lstm-bf16-H(128|256)'
    python -m benchmarks.gpu --report                  prints the report again, from the file

Stages: build, correctness, sanitize, latency, grid1, grid2, ... (see grid.py). Each takes at most --budget-minutes. The
next call runs the parts that it had no time for, and those that failed. Results are in
benchmarks/results/gpu-NAME.json, which is complete after every part. A part that crashes or hangs is reported, and the
next one runs in a new process. Exit status: 0 all done, 1 something failed, 3 nothing failed but parts are left.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..rows import ROOT, csrc_hash
from . import report
from .results import Results, file_name
from .worker import MARK, stage_key

STAGES = ("build", "correctness", "sanitize", "latency", "grid1", "grid2", "grid3")
SILENCE = {"build": 1800.0, "sanitize": 300.0}  # seconds without a message after which a part counts as hung
USUAL_SILENCE = 60.0
MOST_HUNG = 3  # so many hung parts end a stage, or all of its time would be spent waiting
LEFT = 3  # exit status if parts are left


class Worker:
    """A process of worker.py. Iterating gives its messages, the last of which says how it ended.

    It may take `seconds` of the stage's `budget`, which decides the parts of a grid stage.
    """

    program: tuple[str, ...] = ("-m", "benchmarks.gpu.worker")

    def __init__(self, stage: str, done: Sequence[str], seconds: float, budget: float, pattern: str) -> None:
        command = [sys.executable, *self.program, stage, str(seconds), str(budget), pattern]
        self.silence = SILENCE.get(stage, USUAL_SILENCE)
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # so that its children can be killed with it
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(list(done)))
        self.process.stdin.close()
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        said: deque[str] = deque(maxlen=15)  # its last other lines, to be shown if it dies
        try:
            while True:
                try:
                    line = self._lines.get(timeout=self.silence)
                except queue.Empty:
                    yield {"ended": f"hung: silent for {self.silence:.0f} s"}
                    return
                if line is None:
                    break
                if line.startswith(MARK):
                    yield json.loads(line.removeprefix(MARK))
                else:
                    said.append(line.rstrip())
            status = self.process.wait()
            yield {"ended": "" if status == 0 else f"exit status {status}: {' | '.join(filter(None, said))[-1500:]}"}
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()


Spawn = Callable[[str, Sequence[str], float, float, str], Iterable[dict[str, Any]]]


@dataclass
class Outcome:
    """How a stage ended: the parts that ran, are left, or failed and why."""

    stage: str
    ran: int = 0
    left: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [f"{self.ran} parts ran"]
        words += [f"{len(self.failed)} failed"] if self.failed else []
        words += [f"{self.left} left for another call"] if self.left else []
        return f"{self.stage}: {', '.join(words)}"


def run_stage(
    stage: str,
    results: Results,
    spawn: Spawn,
    *,
    budget: float,
    pattern: str = "",
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Runs the parts of a stage that are not finished, in as many processes as that takes, and saves every result."""
    start, outcome = clock(), Outcome(stage)
    tried: set[str] = set()
    hung = 0
    while True:
        done = sorted(results.finished | tried)
        seconds = budget - (clock() - start)
        current, ended, begun = "", "", False
        for message in spawn(stage, done, seconds, budget, pattern):
            if "left" in message:
                outcome.left = message["left"]
            elif "begin" in message:
                current = message["begin"]
            elif "done" in message:
                begun = True
                _record(message["done"], message["result"], results, outcome, say)
                tried.add(message["done"])
                current = ""
            elif "ended" in message:
                ended = message["ended"]
        if current:  # the process died during a part
            _record(current, {"failed": ended or "the process ended"}, results, outcome, say)
            tried.add(current)
        elif not ended:
            return outcome
        elif not begun:
            name = f"{stage_key(stage)}/(start)"
            outcome.failed[name] = ended
            say(f"{name} FAILED: {ended}")
            return outcome
        hung += ended.startswith("hung")
        if outcome.left == 0 or hung == MOST_HUNG or clock() - start >= budget:
            return outcome


def _record(name: str, result: dict[str, Any], results: Results, outcome: Outcome, say: Callable[[str], None]) -> None:
    results.put(name, result)
    outcome.ran += 1
    outcome.left -= 1
    if "failed" in result:
        outcome.failed[name] = result["failed"]
    line = f"{name}  {result.get('line', '')}".rstrip()
    say(f"{line}  FAILED: {result['failed']}" if "failed" in result else line)


def facts(spawn: Spawn = Worker) -> dict[str, Any]:
    """The facts that one needs to compare two files."""
    found: dict[str, Any] = {}
    for message in spawn("facts", [], 60, 60, ""):
        found |= message.get("facts", {})
        if message.get("ended"):
            raise SystemExit(f"the device could not be asked: {message['ended']}")
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {"time": now, "csrc": csrc_hash(), "python": sys.version.split()[0], **found}


def _stages(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [
        name for name in names if not re.fullmatch(r"build|correctness|sanitize|latency|grid[1-9]\d*", name)
    ]:
        raise argparse.ArgumentTypeError(f"expected {', '.join(STAGES)}, ... but got {', '.join(unknown)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", type=_stages, default=list(STAGES), metavar="NAME,...", help="default: all of them")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: benchmarks/results/gpu-NAME.json")
    parser.add_argument("--budget-minutes", type=float, default=8, metavar="M", help="of each stage (default: 8)")
    parser.add_argument("--only", default="", metavar="REGEX", help="only parts whose names it is found in")
    parser.add_argument("--report", action="store_true", help="run nothing and print the report")
    return parser


def main(argv: Sequence[str] | None = None, spawn: Spawn = Worker) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.report and arguments.out:
        print("\n".join(report.verdict(json.loads(arguments.out.read_text())["parts"])))
        return 0
    run = facts(spawn)
    results = Results(arguments.out or ROOT / "benchmarks/results" / file_name(run["device"]), run)
    if arguments.report:
        print("\n".join(report.verdict(results.parts)))
        return 0
    print(", ".join(f"{name} {value}" for name, value in run.items()))
    if results.dropped:
        print(f"{results.path}: started anew: {results.dropped}")
    outcomes = []
    for stage in arguments.stage:
        print(f"\n== {stage}", flush=True)
        start = time.monotonic()
        budget = 60 * arguments.budget_minutes
        outcome = run_stage(stage, results, spawn, budget=budget, pattern=arguments.only, say=_say)
        outcomes.append(outcome)
        _say(f"== {outcome} in {time.monotonic() - start:.0f} s")
        if stage == "build" and outcome.failed:
            break
    print("\n".join(report.verdict(results.parts)))
    print(f"\n{results.path}")
    return closing(outcomes)


def _say(line: str) -> None:
    print(line, flush=True)


def closing(outcomes: Sequence[Outcome]) -> int:
    """Prints the last lines and returns the exit status."""
    for outcome in outcomes:
        print(outcome)
        for name, reason in outcome.failed.items():
            print(f"  FAILED {name}: {reason}")
    if any(outcome.failed for outcome in outcomes):
        return 1
    return LEFT if any(outcome.left for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())

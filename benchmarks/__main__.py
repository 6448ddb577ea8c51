"""`python -m benchmarks [QUESTION ...]`: measures and appends to the file of this CPU's model in benchmarks/results.

Each thread count has a process of its own, which is bound to as many CPUs before any engine starts: no other limit is
kept by all engines. It takes the last CPUs, because the first one serves the machine's interrupts.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

QUESTIONS = (
    "layers", "random_shapes", "latency", "cells", "one_step", "policies", "resets", "options", "tokens", "classifier",
    "scaling", "per_sample", "compile_time", "import_time", "memory", "runtime",
)  # fmt: skip
ALONE = "quality"  # a question with options and results of its own, which runs only where it is named
AT_ONE_THREAD = ("compile_time", "import_time", "memory", "runtime")  # the number of threads makes no difference


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, allow_abbrev=False)
    found.add_argument(
        "questions",
        nargs="*",
        metavar="QUESTION",
        help=f"any of {', '.join(QUESTIONS)} (default: all), or {ALONE} alone",
    )
    counts = "1,2" if (os.cpu_count() or 1) > 1 else "1"
    found.add_argument("--threads", metavar="N,...", default=counts, help=f"thread counts (default: {counts})")
    found.add_argument("--quick", action="store_true", help="one thread, small sizes, few short rounds")
    found.add_argument("--row-seconds", type=float, default=0.4, metavar="S", help="of each row, about (default: 0.4)")
    found.add_argument("--rounds", type=int, default=9, metavar="N", help="of timing, at most (default: 9)")
    found.add_argument("--peers", metavar="NAME,...", help="compare layers with these (default: all installed)")
    found.add_argument("--json", type=Path, metavar="FILE", help="append to this file instead")
    found.add_argument("--resume", action="store_true", help="leave out questions that this commit has answered")
    found.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # set for the process of one thread count
    return found


def bind(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        if threads > len(allowed):
            raise SystemExit(f"--threads: expected at most the {len(allowed)} CPUs there are but got {threads}")
        os.sched_setaffinity(0, allowed[-threads:])


def answer(arguments: argparse.Namespace, threads: int) -> int:
    """Measures in this process. The exit status is 1 if a result of ours was wrong."""
    bind(threads)
    from . import harness, machine, rows

    names = arguments.peers.split(",") if arguments.peers else None
    warnings.simplefilter("ignore")  # torch warns of its own layers, and of features that are off on purpose
    session = harness.Session(
        threads, quick=arguments.quick, row_seconds=arguments.row_seconds, max_rounds=arguments.rounds, names=names
    )
    facts = session.machine.facts()
    print("\n".join(facts["limits"]))
    file = arguments.json or (Path(os.devnull) if arguments.quick else rows.file_of(machine.cpu_model()))
    file.parent.mkdir(parents=True, exist_ok=True)
    rows.cut_unfinished_line(file)
    before = rows.answered(file, facts) if arguments.resume else set()
    for question in (each for each in arguments.questions if each in before):
        print(f"-- {question} at {threads} thread(s): measured before; without --resume it is measured again")
    wrong = 0
    with file.open("a") as output:
        rows.write_run(facts, output)
        for question in (each for each in arguments.questions if each not in before):
            start = time.perf_counter()
            for row in importlib.import_module(f"benchmarks.questions.{question}").measure(session):
                rows.write(row, output)
                print(rows.described(row), flush=True)
                wrong += not row.sides["ours"].measured
            rows.write_answered(question, output)
            print(f"-- {question} at {threads} thread(s): {time.perf_counter() - start:.0f} s", flush=True)
    guard = session.guard
    print(f"{guard.accepted} timing samples kept, {guard.rejected} discarded because the machine was busy")
    return 1 if wrong else 0


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == [ALONE]:
        bind(1)
        return int(importlib.import_module(f"benchmarks.questions.{ALONE}").main(argv[1:]))
    arguments = parser().parse_args(argv)
    arguments.questions = arguments.questions or list(QUESTIONS)
    if unknown := [name for name in arguments.questions if name not in QUESTIONS]:
        raise SystemExit(f"expected questions out of {', '.join(QUESTIONS)} but got {', '.join(unknown)}")
    counts = [int(count) for count in arguments.threads.split(",")]
    if arguments.here:
        with contextlib.suppress(KeyboardInterrupt):  # which the process that waits for this one reports
            return answer(arguments, counts[0])
        return 130
    status = 0
    for threads in counts[:1] if arguments.quick else counts:
        asked = [name for name in arguments.questions if threads == counts[0] or name not in AT_ONE_THREAD]
        if asked:
            options = [word for word in argv if word not in QUESTIONS]
            command = [sys.executable, "-m", "benchmarks", *asked, *options, "--here", "--threads", str(threads)]
            try:
                status = max(status, subprocess.run(command, check=False).returncode)
            except KeyboardInterrupt:
                print("interrupted; every row that was measured is kept, and --resume goes on with the next question")
                return 130
    return status


if __name__ == "__main__":
    sys.exit(main())

"""Checks and measures the CUDA part on a machine with a GPU, within a time that is given.

    python -m benchmarks.gpu --budget 520 --out FOLDER            everything, in the order below
    python -m benchmarks.gpu --budget 60 --out FOLDER --only 'lstm-bf16'
    python -m benchmarks.gpu --out FOLDER --report                runs nothing and prints the report again

It needs the extension with its CUDA part and the program of primitives: `make gpu` builds them for this machine,
`make gpu-package` for another one. FOLDER gets gpu.json, which holds every figure the moment it exists, and report.txt;
nothing is written elsewhere. A second call with the same FOLDER goes on where the first one ended.

Stages: primitives (of csrc/cuda/kernels/device.cuh), layers (a small one per regime, cell, precision and pass), rows
(of the grid, against torch.nn), ncu, memcheck, correctness, latency, more rows, racecheck. A part that crashes or hangs
costs that part. Exit status: 0 all done, 1 something failed, 2 nothing could run, 3 nothing failed but parts are left.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..rows import ROOT, csrc_hash
from . import package, report
from .results import NAME, Results
from .supervisor import USUAL, Over, Patience, Stage, Supervisor

STAGES = (
    Stage("primitives", "primitives", 4),
    Stage("layers", "torch", 6),
    Stage("rows", "torch", 20),
    Stage("ncu", "torch", 5, least=25),
    Stage("memcheck", "torch", 8, least=40),
    Stage("correctness", "torch", 8),
    Stage("latency", "torch", 0),
    Stage("more rows", "torch", 0),
    Stage("racecheck", "torch", 0, least=60),
)
PROGRAMS = {
    "torch": (sys.executable, "-m", "benchmarks.gpu.worker"),
    "primitives": (str(ROOT / "benchmarks" / "gpu" / "primitives"),),
}
LEFT, UNUSABLE = 3, 2
END_SECONDS = 5.0  # for the report and for ending the workers


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0 but got {text}")
    return value


def regex(text: str) -> str:
    try:
        return re.compile(text).pattern
    except re.error as error:
        raise argparse.ArgumentTypeError(f"expected a regular expression but got {text}: {error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=seconds, default=520.0, metavar="SECONDS", help="of the call (default: 520)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the results go")
    parser.add_argument("--only", type=regex, default="", metavar="REGEX", help="only parts whose names it is found in")
    parser.add_argument("--report", action="store_true", help="run nothing and print the report")
    return parser


def say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody may read the output any more, but the results still count
        print(line, flush=True)


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """Makes SIGTERM and SIGINT raise Over, once: what follows is the report, which takes no time."""
    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()

    def over(number: int, _: Any) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise Over(f"{signal.Signals(number).name} came")

    before = {number: signal.signal(number, over) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def environment(temporary: Path) -> dict[str, str]:
    """Variables with which no library writes outside the results' folder."""
    places = dict.fromkeys(("TMPDIR", "XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"), str(temporary))
    return places | {"CUDA_CACHE_DISABLE": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}


def main(
    argv: Sequence[str] | None = None,
    programs: Mapping[str, Sequence[str]] = PROGRAMS,
    stages: Sequence[Stage] = STAGES,
    patience: Patience = USUAL,
    root: Path = ROOT,
) -> int:
    begin = time.monotonic()
    arguments = _parser().parse_args(argv)
    folder = arguments.out.resolve()
    if arguments.report:
        return print_again(folder)
    if complaint := package.complaint(root):
        say(complaint)
        return UNUSABLE
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    results = Results(folder, {"time": now, "csrc": csrc_hash(root), "python": sys.version.split()[0]}, say)
    temporary = folder / "tmp"
    with contextlib.suppress(OSError):  # on a full disk, libraries look for another place
        temporary.mkdir(exist_ok=True)
    for program, *_ in programs.values():  # a copy may have lost the mark that it may be run
        with contextlib.suppress(OSError):
            if not os.access(program, os.X_OK):
                os.chmod(program, 0o755)
    end = begin + arguments.budget - min(END_SECONDS, arguments.budget / 10)
    supervisor = Supervisor(
        programs,
        results,
        end,
        patience=patience,
        only=arguments.only,
        environment=environment(temporary),
        say=say,
    )
    why = ""
    with ending_on_signals():
        try:
            supervisor.start("torch")  # its facts say which results may be kept
            supervisor.run(stages)
        except Over as over:
            why = f"ended early: {over}"
        supervisor.stop()
        shutil.rmtree(temporary, ignore_errors=True)
        results.write()
        return close(supervisor, why, time.monotonic() - begin)


def close(supervisor: Supervisor, why: str, took: float) -> int:
    """Prints and saves the report, whose last lines are the table, and returns the exit status."""
    results, left = supervisor.results, supervisor.left
    failures = results.failures()
    lines = ["", *(f"{name} {value}" for name, value in results.run.items())]
    lines += [f"FAILED {name}: {reason}" for name, reason in failures.items()]
    lines += supervisor.problems.values()
    ran = f"{len(supervisor.tried)} parts ran in {took:.0f} s, {len(failures)} failed, {len(left)} are left"
    lines += [f"{ran}; {why}" if why else ran, *report.verdict(results.parts, results.run)]
    text = "\n".join(lines)
    results.save(results.path.with_name("report.txt"), text + "\n")
    say(text)
    if failures:
        return 1
    if supervisor.problems:
        return 1 if supervisor.tried else UNUSABLE
    return LEFT if left else 0


def print_again(folder: Path) -> int:
    try:
        found = json.loads((folder / NAME).read_text())
        lines = report.verdict(found["parts"], found["run"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"--out: expected a folder with the results of this command but got {folder}: {error!r}")
        return UNUSABLE
    say("\n".join(lines))
    return 0


if __name__ == "__main__":
    status = main()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)  # an ordinary exit would wait for threads of workers that cannot be ended, and flush once more

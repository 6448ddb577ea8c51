"""Compares this tree with another revision: `make bench-compare BASE=rev`, or `python -m benchmarks.compare rev`.

The other revision is built in a worktree under build/compare, which is kept. Each revision has a process of its own on
the same CPU, and the two take their samples in turns. Both run this tree's benchmarks. The exit status is 1 if some
case became slower by more than TOLERATED, even at the better end of its interval.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from seqcls_fast.toolkit.timing import turns

from . import rows
from .compare_worker import cases
from .rows import ROOT, Row, Side

TOLERATED = 0.05
ROUNDS = 9


def build(revision: str) -> Path:
    """The folder of a revision, with its extension built."""
    sha = _told("git", "rev-parse", "--verify", f"{revision}^{{commit}}")
    tree = ROOT / "build" / "compare" / sha[:12]
    if not tree.exists():
        _told("git", "worktree", "add", "--force", "--detach", str(tree), sha)
    if not list((tree / "seqcls_fast").glob("_C*.so")):
        print(f"building {sha[:12]} in {tree.relative_to(ROOT)}", flush=True)
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        subprocess.run(command, cwd=tree, env=os.environ | {"SEQCLS_CUDA": "0"}, check=True)
    return tree


def _told(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout.strip()


class Worker:
    """The process of one revision, which runs compare_worker.py."""

    def __init__(self, tree: Path, threads: int) -> None:
        command = [sys.executable, "-m", "benchmarks.compare_worker", str(tree), str(threads)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)

    def ask(self, *words: object) -> list[str]:
        """The worker's answer to one line of words."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(*words, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline().split()
        if not answer:
            raise SystemExit(f"{self.process.args!r}: the process ended before it answered")
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(base: Worker, head: Worker, quick: bool, threads: int) -> Iterator[Row]:
    workers = {"base": base, "ours": head}
    for index, case in enumerate(cases(quick)):
        seconds = [float(worker.ask("case", int(quick), index)[0]) for worker in workers.values()]
        calls = max(1, round(0.02 / max(1e-7, min(seconds))))  # a sample takes about 20 ms
        row = Row("compare", case.what, f"{case.cell} {case.shape}", threads, {name: Side() for name in workers})
        for _, name in turns(workers, 3 if quick else ROUNDS):
            value, good = map(float, workers[name].ask("sample", calls))
            row.sides[name].add(value, bool(good))
        yield row


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", nargs="?", help="a revision of this repository")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="one shape, few rounds")
    arguments = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    if arguments.base is None:
        parser.error("expected a revision: make bench-compare BASE=main")
    tree = build(arguments.base)
    if hasattr(os, "sched_setaffinity"):  # the workers inherit it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-arguments.threads :])
    workers = [Worker(tree, arguments.threads), Worker(ROOT, arguments.threads)]
    slower = []
    for row in compare(*workers, arguments.quick, arguments.threads):
        print(rows.described(row), flush=True)
        if row.ratio("base").high < 1 - TOLERATED:
            slower.append(row)
    for worker in workers:
        worker.close()
    print("\n".join(f"slower: {rows.described(row)}" for row in slower) or "nothing became slower")
    return 1 if slower else 0


if __name__ == "__main__":
    sys.exit(main())

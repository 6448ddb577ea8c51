"""Two revisions, block by block in turns: `make bench-compare BASE=rev`, or `python benchmarks/compare.py rev`.

The other revision is built in a worktree under build/compare and kept there. Each has a process of its own on the same
CPU; both run this tree's benchmarks, and one waits while the other measures. The exit status is 1 where a case became
slower by more than TOLERATED, its whole interval included.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import rows
from .rows import ROOT, Row, Side

# The benchmarks come from this tree and the package from the one to measure, which has benchmarks of its own.
WORKER = """
import sys
root, tree, threads = sys.argv[1:]
sys.path[0] = root
from benchmarks import compare
sys.path[0] = tree
compare.work(int(threads))
"""
TOLERATED = 0.05
ROUNDS = 9


def build(revision: str) -> Path:
    """The tree of a revision with its extension."""
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
    """The process of one revision."""

    def __init__(self, tree: Path, threads: int) -> None:
        command = [sys.executable, "-c", WORKER, str(ROOT), str(tree), str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )  # fmt: skip

    def ask(self, *words: object) -> list[str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(*words, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline().split()
        if not answer:
            raise SystemExit(f"the process of {self.process.args!r} ended")
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def cases(quick: bool) -> list[Any]:
    from . import layer_cases

    shapes = [layer_cases.SHAPES[i] for i in ((2,) if quick else (1, 2, 4, 6))]
    return [case for case in layer_cases.grid(shapes=shapes) if case.plain]


def work(threads: int) -> None:
    """Answers what stdin asks: "case QUICK INDEX" with the seconds of a call, "block CALLS" with seconds a call."""
    import seqcls_fast as sf
    from seqcls_fast import _ext

    from . import harness
    from .layer_cases import grad_mode

    if _ext.C is None:
        raise SystemExit(f"{sf.__file__}: expected a built extension")
    session = harness.Session(threads)
    engine, mode = None, None
    for line in sys.stdin:
        command, *numbers = line.split()
        if command == "case":
            if mode is not None:
                mode.__exit__(None, None, None)
            case = cases(bool(int(numbers[0])))[int(numbers[1])]
            mode = grad_mode(case)
            mode.__enter__()
            engine = harness.engines(case, threads, [])["ours"]
            engine.run()
            print(harness.timed_once(engine.run)[0], flush=True)
        else:
            seconds, good = session.guard.block(engine.run, int(numbers[0]), warm=True)
            print(seconds, int(good), flush=True)


def compare(base: Worker, head: Worker, quick: bool, threads: int) -> Iterator[Row]:
    workers = {"base": base, "ours": head}
    for index, case in enumerate(cases(quick)):
        seconds = [float(worker.ask("case", int(quick), index)[0]) for worker in workers.values()]
        calls = max(1, round(0.02 / max(1e-7, min(seconds))))
        row = Row("compare", case.what, f"{case.cell} {case.shape}", threads, {name: Side() for name in workers})
        for number in range(3 if quick else ROUNDS):
            for name in list(workers)[:: 1 if number % 2 else -1]:
                side = row.sides[name]
                value, good = map(float, workers[name].ask("block", calls))
                side.rounds.append(value if good else None)
                if not good:
                    side.least = min(value, side.least or value)
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
    if hasattr(os, "sched_setaffinity"):  # which the workers inherit
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

"""The process of one revision for compare.py: this tree's benchmarks measure the package of another tree.

    python -m benchmarks.compare_worker TREE THREADS      in the root folder of this tree

The other tree may be older, so only those benchmarks are imported that need nothing new of the package: guard.py and
peers.py, not harness.py.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from . import layer_cases
from .layer_cases import Case


def cases(quick: bool) -> list[Case]:
    shapes = [layer_cases.SHAPES[i] for i in ((2,) if quick else (1, 2, 4, 6))]
    return [case for case in layer_cases.grid(shapes=shapes) if case.plain]


def work(tree: Path, threads: int) -> None:
    """Answers lines of stdin: "case QUICK INDEX" with the seconds of a call, "sample CALLS" with (seconds, good)."""
    sys.path.insert(0, str(tree))
    import torch

    import seqcls_fast as sf
    from seqcls_fast import _ext

    from . import guard, machine, peers

    if not Path(sf.__file__).is_relative_to(tree):
        raise SystemExit(f"{tree}: expected its own package but got {sf.__file__}")
    if _ext.C is None:
        raise SystemExit(f"{sf.__file__}: expected a built extension")
    torch.set_num_threads(threads)
    watch = guard.Guard(machine.Machine(threads))
    engine, mode = None, contextlib.ExitStack()
    for line in sys.stdin:
        command, *numbers = line.split()
        if command == "case":
            case = cases(bool(int(numbers[0])))[int(numbers[1])]
            mode.close()
            mode.enter_context(layer_cases.grad_mode(case))
            engine = peers.build_ours(layer_cases.build(case), threads)
            engine.run()
            print(watch.sample(engine.run, 1, warm=False)[0], flush=True)
        else:
            assert engine is not None
            seconds, good = watch.sample(engine.run, int(numbers[0]), warm=True)
            print(seconds, int(good), flush=True)


if __name__ == "__main__":
    work(Path(sys.argv[1]).resolve(), int(sys.argv[2]))

"""Counts the instructions of a few kernels with callgrind: unlike a time, the count has no noise.

    python -m benchmarks.instructions [--record]      the counts beside the recorded ones, or record them

It counts the AVX2 kernels that the extension's own build has left under build/temp. Another compiler makes another
number of instructions, so the bound is generous.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "results" / "instructions.tsv"
CELLS = ("rnn_tanh", "gru", "lstm")
PASSES = ("pack", "forward", "forward-saving", "backward", "weight-grad")
BOUND = 1.15  # times the recorded count
FLAGS = ("-std=c++17", "-O1", "-Wno-missing-field-initializers")


def missing(root: Path = ROOT) -> str:
    """The reason why nothing can be counted here; empty if there is none."""
    if shutil.which("valgrind") is None:
        return "no valgrind on the PATH"
    if shutil.which(_compiler()) is None:
        return f"no compiler {_compiler()}"
    built = _objects(root)
    if built is None:
        return "no AVX2 objects under build/temp: the extension was not built here"
    sources = [*(root / "csrc/cpu/kernels").iterdir(), *(root / "csrc/core").iterdir()]
    newer = [path.name for path in sources if path.stat().st_mtime > built.stat().st_mtime]
    return f"{', '.join(newer)} changed after the extension was built" if newer else ""


def _compiler() -> str:
    return os.environ.get("CXX", "c++")


def _objects(root: Path) -> Path | None:
    found = root / "build/temp/kernels_avx2.o"
    return found if found.exists() else None


def count(kernels: Sequence[str] | None = None, root: Path = ROOT) -> dict[str, int]:
    """The instructions of each "cell pass", or of some of them."""
    if why := missing(root):
        raise SystemExit(f"instructions: {why}")
    with tempfile.TemporaryDirectory() as folder:
        driver = Path(folder) / "driver"
        source = Path(__file__).with_name("instructions.cpp")
        subprocess.run([_compiler(), *FLAGS, str(source), str(_objects(root)), "-o", str(driver)], check=True)
        return {name: _counted(driver, name) for name in kernels or [f"{c} {p}" for c in CELLS for p in PASSES]}


def _counted(driver: Path, kernel: str) -> int:
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=measured"]
    done = subprocess.run([*command, str(driver), *kernel.split()], capture_output=True, text=True, check=False)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or found is None:
        raise SystemExit(f"{kernel}: valgrind failed:\n{done.stderr}")
    return int(found[1])


def compiler() -> str:
    """The first line of the compiler's version."""
    return subprocess.run([_compiler(), "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]


def recorded() -> dict[str, int]:
    lines = [line.split("\t") for line in RECORD.read_text().splitlines() if not line.startswith("#")]
    return {name: int(instructions) for name, instructions in lines}


def too_many(counts: dict[str, int], before: dict[str, int], bound: float = BOUND) -> list[str]:
    """A sentence for each kernel that takes more than the bound allows."""
    return [
        f"{name}: {counts[name]} instructions, {counts[name] / before[name]:.2f} times the recorded {before[name]}"
        for name in counts
        if counts[name] > bound * before[name]
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Count the instructions of a few kernels by callgrind.")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.relative_to(ROOT)}")
    arguments = parser.parse_args(argv)
    counts = count()
    before = recorded() if RECORD.exists() else {}
    for name, instructions in counts.items():
        print(f"{name:<24}{instructions:>10}", f"{instructions / before[name]:.3f}" if name in before else "")
    if arguments.record:
        lines = [f"# {compiler()}, avx2", *(f"{name}\t{instructions}" for name, instructions in counts.items())]
        RECORD.write_text("\n".join(lines) + "\n")
        return 0
    complaints = too_many(counts, before) if before else []
    print("\n".join(complaints))
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())

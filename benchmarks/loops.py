"""Counts the instructions of the loops that products spend their time in, from the disassembly of the kernels.

    python -m benchmarks.loops [--record]      for each instruction set that was built here, beside the recorded ones

Of a tile, the loop that forms the product is counted: how many of them, and how many other instructions.
A multiply-add of vectors is the work; the others are what the loop costs beyond it. The extension's build leaves the
objects of x86 under build/temp, and `make arm` those of ARM under build/arm.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "results" / "loops.tsv"
SETS = ("avx2", "avx512", "avx512_bf16", "neon", "neon_bf16")
TILES = {
    "rnn_tanh forward": "forward_tile<{f}, sf::Elman<sf::TanhActivation>,",
    "gru forward": "forward_tile<{f}, sf::Gru,",
    "lstm forward": "forward_tile<{f}, sf::Lstm,",
    "lstm backward": "backward_tile<{f}, sf::Lstm,",
    "weight gradient": "grad_tile<{f},",
}
LEAST_SHARE = 0.4  # of multiply-adds: other loops have less
MULTIPLY_ADD = re.compile(r"^(vfn?madd\d+p[sd]|vfmadd\d+p[sd]|fmla|vdpbf16ps|bfdot)\b")
JUMP = re.compile(r"^(j[a-z]+|b|b\.[a-z]+|cbn?z|tbn?z)\s")


class Loop(NamedTuple):
    multiply_adds: int
    others: int

    def share(self) -> float:
        return self.multiply_adds / (self.multiply_adds + self.others)


def object_of(isa: str) -> Path | None:
    """The kernels of an instruction set, as built last; None if they were not built here."""
    found = ROOT / ("build/arm" if isa.startswith("neon") else "build/temp") / f"kernels_{isa}.o"
    return found if found.exists() else None


def functions(path: Path, isa: str) -> Iterator[tuple[str, list[tuple[int, str]]]]:
    """The name and the instructions, each with its address, of every function."""
    tool = "aarch64-linux-gnu-objdump" if isa.startswith("neon") else "objdump"
    if shutil.which(tool) is None:
        raise SystemExit(f"loops: no {tool} on the PATH")
    done = subprocess.run([tool, "-dC", "--no-show-raw-insn", path], capture_output=True, text=True, check=True)
    for block in done.stdout.split("\n\n"):
        head, *lines = block.strip().split("\n")
        named = re.match(r"[0-9a-f]+ <(.*)>:$", head)
        if named:
            split = (line.split("\t", 1) for line in lines if "\t" in line)
            yield named[1], [(int(address.strip(" :"), 16), words.strip()) for address, words in split]


def busiest(instructions: Sequence[tuple[int, str]]) -> Loop | None:
    """The loop of a product: from the target of a jump backwards to the jump, that with the largest share of
    multiply-adds. The compiler moves parts of other loops around, which then seem to be a loop with the product's."""
    addresses = {address: k for k, (address, _) in enumerate(instructions)}
    spans = []
    for k, (address, words) in enumerate(instructions):
        target = re.search(r"\b([0-9a-f]+) <", words) if JUMP.match(words) else None
        start = addresses.get(int(target[1], 16)) if target else None
        if start is not None and int(target[1], 16) < address:  # type: ignore[index]
            spans.append((start, k))
    counts = [[bool(MULTIPLY_ADD.match(words)) for _, words in instructions[a : b + 1]] for a, b in spans]
    found = max(counts, key=lambda one: sum(one) / len(one), default=[])
    return Loop(sum(found), len(found) - sum(found)) if sum(found) else None


def counted(isa: str) -> dict[str, Loop]:
    """The loop of each kind of tile, of that with most multiply-adds among the tiles of all sizes."""
    path = object_of(isa)
    if path is None:
        raise SystemExit(f"loops: the kernels of {isa} were not built here")
    formats = ["Plain<float>", "Bfloat16Pairs"] if isa.endswith("_bf16") else ["Plain<float>"]
    found: dict[str, Loop] = {}
    for name, instructions in functions(path, isa):
        plain = name.replace("sf::(anonymous namespace)::", "")
        for kind, start in TILES.items():
            for f in formats:
                if start.format(f=f) in plain.split("(")[0]:
                    loop, key = busiest(instructions), f"{isa} {kind}" + (" of pairs" if f == "Bfloat16Pairs" else "")
                    if loop is not None and loop.share() > LEAST_SHARE:
                        found[key] = max(found.get(key, loop), loop)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Count the instructions of the products' loops.")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.relative_to(ROOT)}")
    arguments = parser.parse_args(argv)
    loops = {key: loop for isa in SETS if object_of(isa) is not None for key, loop in counted(isa).items()}
    for key, loop in loops.items():
        print(f"{key:<36}{loop.multiply_adds:>4} multiply-adds, {loop.others:>3} others")
    if arguments.record:
        lines = ["# multiply-adds and other instructions of the products' loops"]
        lines += [f"{key}\t{loop.multiply_adds}\t{loop.others}" for key, loop in loops.items()]
        RECORD.write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

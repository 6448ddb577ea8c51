"""Peak memory of one call beyond what the process held before it. Each side has a process of its own.

python -m benchmarks.questions.memory SIDE WHAT CELL B T I H      measures one side and prints bytes
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..harness import Session

from ..rows import ROOT, Row, Side

WHATS = {
    "inference, output": ("ours", "torch", "JAX"),
    "inference, h_n alone": ("ours", "torch"),
    "training of three layers": ("ours", "ours recompute_gates", "torch", "JAX"),
}
BASE = (32, 64, 128)  # B, I, H


def measure(session: Session) -> Iterator[Row]:
    if not Path("/proc/self/clear_refs").exists():
        return  # Linux alone can reset the high-water mark of memory
    B, I, H = BASE
    for what, sides in list(WHATS.items())[: 1 if session.quick else None]:
        for T in (256,) if session.quick else (256, 1024):
            shape = (B, T, I, H)
            row = Row("memory", f"memory, {what}", f"GRU {shape}", 1, {}, unit="bytes")
            for side in sides:
                row.sides[side] = _measured(side, what, "GRU", shape)
            yield row


def _measured(side: str, what: str, cell: str, shape: tuple[int, ...]) -> Side:
    command = [sys.executable, "-m", "benchmarks.questions.memory", side, what, cell, *map(str, shape)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return Side(note=(done.stderr.strip().splitlines() or ["failed"])[-1][:80])
    return Side([float(done.stdout.split()[-1])])


def _call_of(side: str, what: str, cell: str, shape: tuple[int, ...]) -> Any:
    import seqcls_fast as sf

    from .. import layer_cases, peers

    training = "training" in what
    case = layer_cases.Case(cell, layer_cases.Shape(*shape), training=training, layers=3 if training else 1)
    problem = layer_cases.build(case)
    if what == "inference, h_n alone":
        module = problem.module(sf if side == "ours" else layer_cases.nn)
        options = {"want_output": False} if side == "ours" else {}
        return lambda: layer_cases.last_hidden(module(problem.x, **options))
    if side == "ours recompute_gates":
        for layer in (sf.RNN, sf.GRU, sf.LSTM):
            layer.recompute_gates = True
    build = {peer.name: peer.build for peer in peers.PEERS} | {"ours": peers.build_ours}
    return build[side.removesuffix(" recompute_gates")](problem, 1).run


def child(side: str, what: str, cell: str, *sizes: str) -> None:
    import torch

    torch.set_num_threads(1)
    shape = tuple(map(int, sizes))
    grad = torch.enable_grad() if "training" in what else torch.inference_mode()
    with grad:
        _call_of(side, what, cell, (2, 3, *shape[2:]))()  # libraries that load at the first call are not counted
        call = _call_of(side, what, cell, shape)
        Path("/proc/self/clear_refs").write_text("5")  # sets the high-water mark to the memory in use now
        before = _high_water()
        result = call()
        print(_high_water() - before)
        del result


def _high_water() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    child(*sys.argv[1:])

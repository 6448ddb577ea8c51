"""Stand-ins for the tests of benchmarks/gpu: a device of the CPU, whose one regime is `base`, a clock, and results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2]))  # where this is run as a program

from benchmarks.gpu import device, worker
from benchmarks.gpu.grid import GridPoint
from seqcls_fast import _ext
from seqcls_fast.toolkit.timing import Call

RUN = {"csrc": "abc", "device": "NVIDIA H200", "torch": "2.14", "cuda": "13.0", "cudnn": 91300}
POINT = GridPoint("lstm", "bf16", 64, True, False, 16, 32, 1)

compiled = pytest.mark.skipif(_ext.C is None, reason="needs the compiled extension")


class Clock:
    """A clock that shows the time it was set to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class CpuDevice:
    """Gpu's methods on the CPU. A call takes a microsecond of the clock above."""

    torch_device = torch.device("cpu")
    regimes = ("base",)

    def __init__(self) -> None:
        self.clock = Clock()

    memory = 141 << 30
    capability = (9, 0)

    def warm_up(self, say: Callable[[str], None]) -> None:
        say("nothing to load")

    def facts(self) -> dict[str, Any]:
        return {"device": "a CPU", "memory": self.memory}

    def plan(self, cell: str, hidden: int, batch: int, *_: Any) -> dict[str, Any]:
        cycles = {"mma_cycles": 198.0, "mufu_cycles": 99.0}
        return {"regime": "base", "fits": True, "blocks": 1, "tiles": 1, "teams": batch // 8} | cycles

    def clock_ghz(self) -> float:
        return 1.98

    def synchronize(self) -> None:
        pass

    tidy = empty_kernel = synchronize

    def seconds(self, call: Call, calls: int) -> float:
        call()
        self.clock.now += 1e-6 * calls
        return 1e-6

    def capture(self, call: Call) -> tuple[Call, Any]:
        results = call()

        def replay() -> None:
            for name, tensor in (call() or {}).items():
                if not tensor.is_inference():
                    results[name].copy_(tensor)

        return replay, results

    def at_once(self, calls: Sequence[Call]) -> list[Any]:
        return [call() for call in calls]


def part(ours: float, regime: str = "onchip", **rivals: float) -> dict[str, Any]:
    """The entry of a point, timed eagerly: three samples per side, whose median is the given time."""
    sides = {"ours": ours, **{name.replace("_", " "): t for name, t in rivals.items()}}
    return {"regime": regime, "times": {"eager": {name: [9 * t, t, t / 9] for name, t in sides.items()}}}


if __name__ == "__main__":  # the worker of `python -m benchmarks.gpu` with this device in the place of a GPU
    device.Gpu = CpuDevice  # type: ignore[assignment, misc]
    device.check_build = lambda _: {"cuda_archs": "none", "csrc_hash": "none"}
    sys.exit(worker.main([]))

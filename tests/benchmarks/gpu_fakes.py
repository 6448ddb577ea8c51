"""A device of the CPU in the GPU's place, for the tests of benchmarks/gpu_*.py; its one regime is `base`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from benchmarks.gpu import device as gpu_device
from seqcls_fast import _ext

compiled = pytest.mark.skipif(_ext.C is None, reason="needs the compiled extension")


class Clock:
    """Time passes when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class CpuDevice:
    """Gpu's methods on the CPU. A call takes a microsecond on the made-up clock."""

    torch_device = torch.device("cpu")
    regimes = ("base",)

    def __init__(self) -> None:
        self.clock = Clock()

    def plan(self, cell: str, hidden: int, batch: int, *_: Any) -> dict[str, Any]:
        cycles = {"mma_cycles": 198.0, "mufu_cycles": 99.0}
        return {"regime": "base", "fits": True, "blocks": 1, "tiles": 1, "teams": batch // 8} | cycles

    def clock_ghz(self) -> float:
        return 1.98

    def synchronize(self) -> None:
        pass

    tidy = empty_kernel = synchronize

    def seconds(self, run: gpu_device.Run, calls: int) -> float:
        run()
        self.clock.now += 1e-6 * calls
        return 1e-6

    def capture(self, run: gpu_device.Run) -> tuple[gpu_device.Run, Any]:
        results = run()

        def replay() -> None:
            for name, tensor in (run() or {}).items():
                if not tensor.is_inference():
                    results[name].copy_(tensor)

        return replay, results

    def at_once(self, runs: Sequence[gpu_device.Run]) -> list[Any]:
        return [run() for run in runs]

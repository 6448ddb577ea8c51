"""The GPU as gpu_check.py uses it: clocks, graphs, streams and facts; and the interleaved timing of several sides.

Everything that needs CUDA is a method of Gpu, so that tests put a device of the CPU in its place.
"""

from __future__ import annotations

import contextlib
import gc
import math
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

Run = Callable[[], Any]

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "tf32": torch.float32,
    "fp32": torch.float32,
    "fp64": torch.float64,
}
PLANNED = {"bf16": "bf16", "fp16": "fp16", "tf32": "tf32", "fp32": "tf32x3"}  # as the planner calls them
MIN_ROUNDS = 3


@contextlib.contextmanager
def tf32_switch(precision: str) -> Iterator[None]:
    """torch's own switch, which both sides look at; set below torch.backends, which torch's test helpers freeze."""
    before = torch.backends.cudnn.allow_tf32
    torch._C._set_cudnn_allow_tf32(precision == "tf32")
    try:
        yield
    finally:
        torch._C._set_cudnn_allow_tf32(before)


class Gpu:
    """The current CUDA device."""

    def __init__(self) -> None:
        if not torch.cuda.is_available():
            raise SystemExit(f"torch {torch.__version__} sees no CUDA device here")
        self.torch_device = torch.device("cuda", torch.cuda.current_device())

    def facts(self) -> dict[str, Any]:
        properties = torch.cuda.get_device_properties(self.torch_device)
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm", "--format=csv,noheader"]
        try:
            told = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.splitlines()[0]
        except (OSError, subprocess.SubprocessError, IndexError):
            told = "unknown, unknown"
        driver, clock = told.split(", ")
        return {
            "device": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "driver": driver,
            "clock": clock,
        }

    @property
    def regimes(self) -> list[str]:
        from seqcls_fast import _C

        return _C.regimes()

    def plan(
        self, cell: str, hidden: int, batch: int, precision: str, directions: int, backward: bool, regime: str
    ) -> dict[str, Any]:
        """What the planner says for this device; float64 has one regime."""
        from seqcls_fast import _C

        if precision == "fp64":
            return {"regime": "stepwise", "fits": regime in ("auto", "stepwise"), "blocks": 0}
        limits = _C.device_limits(self.torch_device.index)
        return _C.plan(cell, hidden, batch, PLANNED[precision], directions, backward, regime, limits)

    def clock_ghz(self) -> float:
        return torch.cuda.get_device_properties(self.torch_device).clock_rate / 1e6

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.torch_device)

    def empty_kernel(self) -> None:
        torch.cuda._sleep(0)

    def seconds(self, run: Run, calls: int) -> float:
        """Seconds a call, by events around so many."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls

    def capture(self, run: Run) -> tuple[Run, Any]:
        """(replay, what it leaves its results in): a CUDA graph of one call, after the warm-up that capturing needs."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = run()
        return graph.replay, results

    def at_once(self, runs: Sequence[Run]) -> list[Any]:
        """The results of each run, each on a stream of its own, none waiting for another."""
        streams = [torch.cuda.Stream() for _ in runs]
        self.synchronize()
        found = []
        for stream, run in zip(streams, runs, strict=True):
            with torch.cuda.stream(stream):
                found.append(run())
        self.synchronize()
        return found

    def tidy(self) -> None:
        """Returns memory, and raises what earlier work left in error."""
        gc.collect()
        self.synchronize()
        torch.cuda.empty_cache()


def interleave(
    sides: Mapping[str, Run],
    seconds: Callable[[Run, int], float],
    *,
    rounds: int = 7,
    block: float = 0.01,
    allowance: float = 4.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds a call of every side, a sample per round, all sides in turns; the order rotates.

    A block of calls lasts about `block` seconds; after `allowance` seconds and MIN_ROUNDS no round begins.
    """
    start = clock()
    calls = {}
    for name, run in sides.items():
        seconds(run, 1)
        once = seconds(run, 2)
        calls[name] = max(1, min(200, math.ceil(block / max(once, 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds):
        if number >= MIN_ROUNDS and clock() - start > allowance:
            break
        for name in names[number % len(names) :] + names[: number % len(names)]:
            samples[name].append(float(f"{seconds(sides[name], calls[name]):.4g}"))
    return samples


def slope(device: Any, run_of: Callable[[int], Run], steps: tuple[int, int] = (256, 512)) -> float:
    """Seconds a time step: the difference of two lengths, replayed from graphs."""
    replays = {str(T): device.capture(run_of(T))[0] for T in steps}
    samples = interleave(replays, device.seconds, rounds=5)
    few, many = (statistics.median(samples[str(T)]) for T in steps)
    return (many - few) / (steps[1] - steps[0])

"""The GPU: its facts, plans, clock, events, graphs and streams.

Everything that needs CUDA is a method of Gpu, so that tests can use a class that works on the CPU instead. The package
is not imported before a method needs it, because its extension may have to be built first.
"""

from __future__ import annotations

import contextlib
import gc
import subprocess
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..rows import csrc_hash

if TYPE_CHECKING:
    from seqcls_fast.toolkit.timing import Call

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "tf32": torch.float32,
    "fp32": torch.float32,
    "fp64": torch.float64,
}
PLANNED = {"bf16": "bf16", "fp16": "fp16", "tf32": "tf32", "fp32": "tf32x3"}  # the planner's names


def check_build(capability: tuple[int, int]) -> dict[str, Any]:
    """How the extension was built, or SystemExit with the sentence that says why it cannot run on this GPU."""
    from seqcls_fast._ext import C, why_missing

    if C is None:
        raise SystemExit(f"the extension cannot be loaded: {why_missing}")
    build: dict[str, Any] = C.build_info()
    if not build["cuda"]:
        raise SystemExit("the extension was built without CUDA: build it with `make gpu` or `make gpu-package`")
    if build.get("csrc_hash") != csrc_hash():
        raise SystemExit(
            f"the extension was built from csrc {build.get('csrc_hash')}, but csrc here is {csrc_hash()}: build it anew"
        )
    if not runs_on(build["cuda_archs"], capability):
        wanted = "{}.{}".format(*capability)
        raise SystemExit(
            f"this GPU has compute capability {wanted}, but the extension was built for {build['cuda_archs']}: "
            f"build it with TORCH_CUDA_ARCH_LIST={wanted}"
        )
    return build


def runs_on(archs: str, capability: tuple[int, int]) -> bool:
    """Whether code for one of these architectures, in nvcc's names, runs on a GPU: the major numbers must be equal, and
    that of a later minor number does not run on an earlier one. With "a" it runs on its own alone."""
    major, minor = capability
    for name in archs.split(","):
        number = int(name.rstrip("af"))
        if number // 10 == major and (number % 10 == minor or (number % 10 < minor and not name.endswith("a"))):
            return True
    return False


@contextlib.contextmanager
def tf32_switch(precision: str) -> Iterator[None]:
    """Sets torch's switch for TF32, which ours obeys as well.

    torch's test helpers forbid setting it through torch.backends, so the function under that is called.
    """
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
    def capability(self) -> tuple[int, int]:
        return torch.cuda.get_device_capability(self.torch_device)

    def warm_up(self, say: Callable[[str], None]) -> None:
        """Loads the libraries that the first calls load, which may take longer than a part may be silent."""
        for precision in ("bf16", "fp32", "fp64"):
            layer = torch.nn.LSTM(8, 8, device=self.torch_device, dtype=DTYPES[precision])
            output, _ = layer(torch.zeros(2, 2, 8, device=self.torch_device, dtype=DTYPES[precision]))
            output.sum().backward()
            self.synchronize()
            say(f"ran torch.nn in {precision}")

    @property
    def regimes(self) -> list[str]:
        from seqcls_fast import _C

        return _C.regimes()

    def plan(
        self, cell: str, hidden: int, batch: int, precision: str, directions: int, backward: bool, regime: str
    ) -> dict[str, Any]:
        """The planner's answer for this device. float64 has a single regime, which the planner does not know."""
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

    def seconds(self, call: Call, calls: int) -> float:
        """Seconds per call of so many calls, by events around them."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls

    def capture(self, call: Call) -> tuple[Call, Any]:
        """(replay, results): a CUDA graph of one call, and the tensors that a replay writes.

        Capturing needs a few calls before it on another stream.
        """
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = call()
        return graph.replay, results

    def at_once(self, calls: Sequence[Call]) -> list[Any]:
        """The results of all calls, each on a stream of its own so that none waits for another."""
        streams = [torch.cuda.Stream() for _ in calls]
        self.synchronize()
        found = []
        for stream, call in zip(streams, calls, strict=True):
            with torch.cuda.stream(stream):
                found.append(call())
        self.synchronize()
        return found

    def tidy(self) -> None:
        """Frees cached memory, and raises an error that earlier work left on the device."""
        gc.collect()
        self.synchronize()
        torch.cuda.empty_cache()

"""The process that uses the GPU: it imports torch once, and runs one part after another as its parent asks for them.

It may crash or hang without loss: supervisor.py then starts another one. It says which parts there are, sends what a
part has found as soon as it is known, and ends if a part has left CUDA's context in error. See messages.py.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .messages import tell

HEALTH_LOST = 17  # exit status after an error on the device
CORRECTNESS_SIZES = (33, 200, 512, 7, 128, 768, 64, 256)  # in an order that reaches every regime early
ROWS = 40  # of the grid, in the stage "rows"


class Part(NamedTuple):
    """A piece of work. `run` takes the seconds that it may last, and yields what it has found so far."""

    stage: str
    kind: str  # parts of one kind are left out after two of them have hung or crashed
    run: Callable[[float], Iterator[dict[str, Any]]]


Parts = dict[str, Part]


def parts_of(device: Any) -> Parts:
    """All parts by name, in the order in which they run within their stage."""
    from . import grid, layers, modules, timing, tools

    found: Parts = {}
    regimes, memory = device.regimes, device.facts()["memory"]

    def add(stage: str, name: str, kind: str, function: Callable[..., Any], *arguments: Any) -> None:
        def run(seconds: float) -> Iterator[dict[str, Any]]:
            given = {"seconds": seconds} if stage in tools.STAGES else {}
            result = function(*arguments, **given)
            yield from [result] if isinstance(result, dict) else result

        found[name] = Part(stage, kind, run)

    kinds = [(cell, precision) for precision in layers.CASE_DTYPES for cell in layers.MODULES]
    for regime in regimes:
        for cell, precision in kinds:
            hidden = layers.smallest(device, cell, precision, regime)
            for backward in () if hidden is None else (False, True):
                name = f"layers/{cell}-{precision}-H{hidden}-{regime}-{'backward' if backward else 'forward'}"
                kind = f"{regime} {'backward' if backward else 'forward'}"
                add("layers", name, kind, layers.check_pass, device, cell, precision, hidden, regime, backward)
    points = [point for point in grid.grid() if 6 * point.bytes <= memory]
    chosen = grid.chosen(points, ROWS)
    for point in dict.fromkeys([*chosen, *points]):
        stage = "rows" if point in chosen else "more rows"
        add(stage, f"grid/{point}", point.planned(device), timing.measure_point, device, point)
    add("ncu", "ncu/lstm-bf16", "ncu", tools.profile)
    add("memcheck", "memcheck/every-regime", "memcheck", tools.sanitize, "memcheck", tuple(regimes))
    for hidden in CORRECTNESS_SIZES:
        for cell, precision in kinds:
            case = layers.variants(cell, precision, hidden)["ragged"]
            for regime in layers.fitting(device, case, precision):
                name = f"correctness/{cell}-{precision}-H{hidden}-{regime}"
                add("correctness", name, regime, layers.check_layer, device, cell, precision, hidden, regime)
    for name, check in modules.parts(device).items():
        add("correctness", f"correctness/{name}", name, check)
    for name, measure in timing.latencies(device).items():
        add("latency", f"latency/{name}", name, measure)
    add("racecheck", "racecheck/every-regime", "racecheck", tools.sanitize, "racecheck", tuple(regimes))
    return found


def serve(parts: Parts, requests: Iterator[str], healthy: Callable[[], None], say: Callable[..., None] = tell) -> bool:
    """Runs the parts that are asked for, each as "NAME SECONDS". Stops and returns False if `healthy` raises."""
    for request in requests:
        name, seconds = request.rsplit(" ", 1)
        begin, result = time.monotonic(), {}
        try:
            for result in parts[name].run(float(seconds)):
                say(found=result)
        except Exception as error:
            result = result | {"failed": f"{type(error).__name__}: {str(error)[:2000]}"}
        try:
            healthy()
            well = True
        except Exception as error:
            well = False
            result = result | {"failed": f"{result.get('failed', '')}; left the device in error: {error}".strip("; ")}
        say(done=result | {"took": round(time.monotonic() - begin, 2)}, last=not well)
        if not well:
            return False
    return True


def requests() -> Iterator[str]:
    """The lines of stdin. When the parent has gone this process ends at once, even in the middle of a part."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line.strip())
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield lines.get()


def start(say: Callable[..., None] = tell) -> tuple[Any, Parts]:
    """The device and the parts, or SystemExit with the sentence that says why not; tells of each step that is done."""
    import torch

    say(step=f"imported torch {torch.__version__}")
    from . import device

    gpu = device.Gpu()
    say(step="made a context")
    build = device.check_build(gpu.capability)
    gpu.warm_up(lambda step: say(step=step))
    parts = parts_of(gpu)
    listed = [[part.stage, name, part.kind] for name, part in parts.items()]
    say(facts=gpu.facts() | {"built_for": build["cuda_archs"], "built_from": build["csrc_hash"]}, parts=listed)
    return gpu, parts


def main(arguments: list[str]) -> int:
    if arguments:  # a further process, which one of the tools watches
        from . import device, tools

        run = {"--small": tools.run_small, "--profile": tools.run_profiled}[arguments[0]]
        run(device.Gpu(), *arguments[1:])
        return 0
    gpu, parts = start()
    return 0 if serve(parts, requests(), gpu.tidy) else HEALTH_LOST


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

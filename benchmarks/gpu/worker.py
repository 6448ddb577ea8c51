"""Runs the parts of one stage, in a process that may crash or hang without loss.

It reads from stdin which parts are done, and writes to stdout, a JSON object per line, how many parts there are, which
one begins and the result of each. A kernel that fails leaves CUDA's context in error: the process then ends, and the
next one goes on with the part after that.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any, TextIO

from ..rows import ROOT

MARK = "@@benchmarks.gpu "  # begins the lines that are for the parent
HEALTH_LOST = 17  # exit status after an error on the device
CORRECTNESS_SIZES = (33, 200, 512, 7, 128, 768, 64, 256)  # in an order that reaches every regime early
GRID_SHARE = 0.8  # of a stage's time that its points are expected to take

Part = Callable[[], dict[str, Any]]


# -- build and sanitize: these run in further processes, so that this one needs no GPU --------------------------------


def build_parts() -> dict[str, Part]:
    return {"extension": build}


def build() -> dict[str, Any]:
    """Builds the extension in place with its CUDA part, unless it is newer than all sources."""
    if built_for() and newest("seqcls_fast", "_C*.so") > max(newest("csrc", "**/*"), newest(".", "setup.py")):
        return {"line": f"there already, for {built_for()}", "seconds": 0.0, "anew": True}
    start = time.monotonic()
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    environment = os.environ | {"SEQCLS_CUDA": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    answer: dict[str, Any] = {"seconds": round(time.monotonic() - start, 1), "anew": True}
    if done.returncode:
        return answer | {"failed": f"setup.py exited with {done.returncode}: {done.stderr[-2000:]}"}
    if not built_for():
        return answer | {"failed": "setup.py built an extension without CUDA"}
    return answer | {"line": f"{answer['seconds']} s, for {built_for()}"}


def built_for() -> str:
    """The GPU architectures of the built extension, asked in another process; empty if there are none."""
    code = "import torch; from seqcls_fast import _C; print(_C.build_info().get('cuda_archs', ''))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def newest(folder: str, pattern: str) -> float:
    return max((path.stat().st_mtime for path in (ROOT / folder).glob(pattern) if path.is_file()), default=0.0)


def sanitize_parts(regimes: Collection[str]) -> dict[str, Part]:
    return {
        f"{tool}-{regime}": partial(sanitize, tool, regime) for tool in ("memcheck", "racecheck") for regime in regimes
    }


def sanitize(tool: str, regime: str) -> dict[str, Any]:
    """Small layers of every cell and precision under one of compute-sanitizer's tools."""
    program = find_sanitizer()
    if program is None:
        return {"line": "skipped: no compute-sanitizer in CUDA_HOME or on the PATH", "skipped": True}
    options = ["--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no"]
    command = [program, *options, sys.executable, "-m", "benchmarks.gpu.worker", "--small", regime]
    # gives every tensor an allocation of its own, so that an access beyond its end is seen
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return sanitizer_verdict(done.stdout + done.stderr, done.returncode)


def find_sanitizer() -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which("compute-sanitizer", path=f"{home}/bin") or shutil.which("compute-sanitizer")


def sanitizer_verdict(text: str, status: int) -> dict[str, Any]:
    """The tool's summary, with "failed" if there is none, if it counts an error, or if no layer ran."""
    told = [line.removeprefix("=========").strip() for line in text.splitlines() if line.startswith("=========")]
    summary = next((line for line in reversed(told) if "SUMMARY" in line), "")
    clean = re.search(r"SUMMARY: 0 (errors|hazards)", summary) is not None
    answer: dict[str, Any] = {"line": summary, "layers": len(re.findall(r"^layer ", text, re.MULTILINE))}
    if status == 0 and clean and answer["layers"]:
        return answer
    findings = [line for line in told if line and "SUMMARY" not in line][:40]
    said = [line for line in text.splitlines() if not line.startswith("=========")][-10:]
    return answer | {"failed": f"{summary or 'no summary'}, exit status {status}", "findings": findings, "end": said}


def run_small(device: Any, regime: str) -> None:
    """Forward and backward of small layers, which still span several blocks if the regime uses several."""
    from . import layers
    from .device import DTYPES, tf32_switch

    for precision in DTYPES:
        for cell in layers.MODULES:
            for hidden in (33, 130, 200, 260, 520):
                case = layers.Case(
                    cell=cell,
                    T=3,
                    B=9,
                    I=8,
                    H=hidden,
                    directions=2,
                    lengths="zeros",
                    dtype=layers.CASE_DTYPES[precision],
                )
                if regime in layers.fitting(device, case, precision):
                    with tf32_switch(precision):
                        layers.Layer(device, case, precision, regime).run()
                    device.synchronize()
                    print(f"layer {case} {precision} {regime}", flush=True)
                    break


# -- the stages -------------------------------------------------------------------------------------------------------


def parts_of(stage: str, device: Any, budget: float) -> dict[str, Part]:
    """Name -> part. `device` is None for build and sanitize, whose further processes use it."""
    if stage == "build":
        return build_parts()
    from seqcls_fast._ext import C, why_missing

    if C is None or not C.build_info()["cuda"]:
        raise SystemExit(f"the extension has no CUDA part, run the stage build: {why_missing or 'built without CUDA'}")
    if stage == "sanitize":
        return sanitize_parts(C.regimes())
    from . import grid, layers, modules, timing

    if stage == "correctness":
        sizes = [
            (cell, precision, hidden)
            for hidden in CORRECTNESS_SIZES
            for cell in layers.MODULES
            for precision in layers.CASE_DTYPES
        ]
        parts = {f"{c}-{p}-H{h}": partial(layers.check_layer, device, c, p, h) for c, p, h in sizes}
        return parts | modules.parts(device)
    if stage == "latency":
        return timing.latencies(device)
    points = grid.grid_part(int(stage.removeprefix("grid")), GRID_SHARE * budget)
    return {str(point): partial(timing.measure_point, device, point) for point in points}


def serve(
    parts: Mapping[str, Part],
    done: Collection[str],
    seconds: float,
    tell: Callable[[dict[str, Any]], None],
    healthy: Callable[[], None],
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Runs the parts that are not done until `seconds` have passed. Stops and returns False if `healthy` raises."""
    left = [name for name in parts if name not in done]
    tell({"parts": len(parts), "left": len(left)})
    start, longest = clock(), 0.0
    for number, name in enumerate(left):
        begin = clock()
        if begin - start + longest > seconds:
            tell({"stopped": len(left) - number})
            return True
        tell({"begin": name})
        try:
            result = parts[name]()
        except Exception as error:
            result = {"failed": f"{type(error).__name__}: {error}"}
        try:
            healthy()
            well = True
        except Exception as error:
            well = False
            result.setdefault("failed", f"left the device in error: {error}")
        longest = max(longest, clock() - begin)
        tell({"done": name, "result": result | {"took": round(clock() - begin, 2)}})
        if not well:
            return False
    return True


def tell_parent(message: dict[str, Any], to: TextIO) -> None:
    print(MARK + json.dumps(_plain(message)), file=to, flush=True)


def _plain(value: Any) -> Any:
    """A value with text instead of infinities and NaNs, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def main(arguments: list[str]) -> int:
    stage, tell, device = arguments[0], partial(tell_parent, to=sys.stdout), None
    if stage not in ("build", "sanitize"):
        from .device import Gpu

        device = Gpu()
    if stage == "--small":
        run_small(device, arguments[1])
        return 0
    if stage == "facts":
        assert device is not None
        tell({"facts": device.facts()})
        return 0
    seconds, budget, pattern = float(arguments[1]), float(arguments[2]), arguments[3]
    done = set(json.loads(sys.stdin.read()))
    parts = {f"{stage_key(stage)}/{n}": part for n, part in parts_of(stage, device, budget).items()}
    wanted = {name: part for name, part in parts.items() if re.search(pattern, name)}
    healthy = (lambda: None) if device is None else device.tidy
    return 0 if serve(wanted, done, seconds, tell, healthy) else HEALTH_LOST


def stage_key(stage: str) -> str:
    """The prefix of a stage's parts in the results. Grid stages share one, as their points depend on the budget."""
    return re.sub(r"\d+$", "", stage)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

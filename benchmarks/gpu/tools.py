"""Runs small layers under NVIDIA's tools: compute-sanitizer, which finds bad accesses, and ncu, which reads counters.

Each tool runs one further process for all regimes, because the start under a tool takes longest. That process stops by
itself when its time is over, so that the tool can write its summary.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..rows import ROOT
from .messages import tell

STAGES = ("ncu", "memcheck", "racecheck")  # their parts are given the seconds that they may take
SUMMARY_SECONDS = 10.0  # that a tool may take after its process has ended
SECTIONS = ("SpeedOfLight", "LaunchStats", "Occupancy", "SchedulerStats", "WarpStateStats", "MemoryWorkloadAnalysis")
PROFILED = {"onchip": 64, "cluster": 512, "grid": 1024}  # the sizes of the layers that ncu looks at


def find(tool: str) -> str | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    return shutil.which(tool, path=f"{home}/bin") or shutil.which(tool)


def run_tool(command: Sequence[str], seconds: float, environment: dict[str, str]) -> Iterator[str]:
    """The lines that a command prints, and at last its exit status. It is killed when its time is over."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    over = threading.Event()

    def beat() -> None:
        while not over.wait(5):
            tell(beat=True)

    threading.Thread(target=beat, daemon=True).start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            yield line.rstrip("\n")
        yield str(process.wait())
    finally:
        over.set()
        timer.cancel()
        process.kill()
        process.wait()


def worker(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu.worker", *arguments]


# -- compute-sanitizer ------------------------------------------------------------------------------------------------


def sanitize(tool: str, regimes: Sequence[str], seconds: float) -> Iterator[dict[str, Any]]:
    """Small layers of every cell and precision in each regime under one of compute-sanitizer's tools."""
    program = find("compute-sanitizer")
    if program is None:
        yield {"line": "skipped: no compute-sanitizer in CUDA_HOME or on the PATH", "skipped": True}
        return
    options = ["--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no"]
    until = time.monotonic() + seconds - 2 * SUMMARY_SECONDS
    command = [program, *options, *worker("--small", ",".join(regimes), str(until))]
    # gives every tensor an allocation of its own, so that an access beyond its end is seen
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    lines: list[str] = []
    for line in run_tool(command, seconds - SUMMARY_SECONDS, environment):
        lines.append(line)
        if line.startswith("layer "):
            yield sanitizer_verdict(lines, None)
    yield sanitizer_verdict(lines[:-1], int(lines[-1]))


def sanitizer_verdict(lines: Sequence[str], status: int | None) -> dict[str, Any]:
    """What the tool has found, with "failed" if it reports an error, or if it has ended without a summary or a layer.

    status: None while it runs, negative if it was killed.
    """
    told = [line.removeprefix("=========").strip() for line in lines if line.startswith("=========")]
    ran = [line.split()[-1] for line in lines if line.startswith("layer ")]
    summary = next((line for line in reversed(told) if "SUMMARY" in line), "")
    clean = re.search(r"SUMMARY: 0 (errors|hazards)", summary) is not None
    by_regime = {regime: ran.count(regime) for regime in dict.fromkeys(ran)}
    counts = ", ".join(f"{count} {regime}" for regime, count in by_regime.items())
    answer: dict[str, Any] = {"line": f"{summary or 'no summary'}; layers: {counts or 'none'}", "layers": by_regime}
    findings = [line for line in told if line and "SUMMARY" not in line and "COMPUTE-SANITIZER" not in line][:40]
    if findings:
        answer |= {"failed": f"{summary or 'it reports errors'}: {findings[0]}", "findings": findings}
    elif status is None or (status == 0 and clean and ran):
        return answer
    elif status < 0 and ran:  # what it has seen is clean, but it had not the time for its summary
        return answer | {"cut": "ended by the time limit"}
    else:
        answer |= {"failed": f"{summary or 'no summary'}, exit status {status}"}
    return answer | {"end": [line for line in lines if not line.startswith("=========")][-10:]}


def run_small(device: Any, regimes: str, until: str = "inf") -> None:
    """Forward and backward of small layers, the regimes in turn, until the clock shows `until`."""
    from . import layers
    from .device import DTYPES, tf32_switch

    for precision in DTYPES:
        for cell in reversed(layers.MODULES):
            for regime in regimes.split(","):
                hidden = layers.smallest(device, cell, precision, regime)
                if hidden is None:
                    continue
                if time.monotonic() > float(until):
                    return
                with tf32_switch(precision):
                    layers.Layer(device, layers.small(cell, precision, hidden), regime).run()
                device.synchronize()
                print(f"layer {cell} {precision} H{hidden} {regime}", flush=True)


# -- ncu --------------------------------------------------------------------------------------------------------------


def profile(seconds: float) -> Iterator[dict[str, Any]]:
    """The counters of the forward kernel of an LSTM in each regime that holds its weights on the chip."""
    program = find("ncu")
    if program is None:
        yield {"line": "skipped: no ncu in CUDA_HOME or on the PATH", "skipped": True}
        return
    options = ["--clock-control", "none", "--profile-from-start", "off", "--kernel-name", "regex:^recur", "--csv"]
    options += [word for section in SECTIONS for word in ("--section", section)]
    lines = list(run_tool([program, *options, *worker("--profile")], seconds - SUMMARY_SECONDS, {}))
    yield counters(lines[:-1], lines[-1])


def counters(lines: Sequence[str], status: str) -> dict[str, Any]:
    """The counters in ncu's output, by regime and name, or "failed" if it holds none."""
    regimes = [line.split()[-1] for line in lines if line.startswith("layer ")]
    table = [line for line in lines if line.startswith('"')]
    kernels: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(table):
        if row.get("Metric Name"):
            value = f"{row['Metric Value']} {row.get('Metric Unit', '')}".strip()
            kernels.setdefault(row["ID"], {})[row["Metric Name"]] = value
    if not kernels:
        return {"failed": f"ncu read no counters, exit status {status}", "end": list(lines)[-10:]}
    named = dict(zip(regimes, kernels.values(), strict=False)) if len(kernels) == len(regimes) else kernels
    line = "; ".join(f"{name} {found.get('Duration', 'no duration')}" for name, found in named.items())
    return {"line": line, "counters": named}


def run_profiled(device: Any) -> None:
    """One forward in each regime, between the calls that tell ncu to look."""
    from . import layers

    for regime, hidden in PROFILED.items():
        case = layers.Case(cell="lstm", T=64, B=16, I=hidden, H=hidden, dtype="bfloat16")
        if regime in layers.fitting(device, case, "bf16"):
            layer = layers.Layer(device, case, regime)
            layer.run(backward=False)
            device.synchronize()
            torch.cuda.profiler.start()
            layer.run(backward=False)
            device.synchronize()
            torch.cuda.profiler.stop()
            print(f"layer lstm bf16 H{hidden} {regime}", flush=True)

"""The limits of this machine, measured by peak.cpp; the least time that they allow a case; and the facts of a run."""

from __future__ import annotations

import ctypes
import datetime
import hashlib
import importlib.metadata
import math
import os
import platform
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import seqcls_fast as sf
from seqcls_fast import _ext, ops

from . import layer_cases, rows
from .layer_cases import Case

# Clocks that the activations of 16 values take in a step, on a core that issues two 512-bit multiply-adds per clock.
# Those of RNN's backward were never counted.
FORWARD_CLOCKS = {"RNN": 9.1, "GRU": 26.1, "LSTM": 43.7}
BACKWARD_CLOCKS = {"RNN": 0.0, "GRU": 10.0, "LSTM": 21.0}
WIDE = 64  # float32 operations of such a core per clock; a core with fewer needs more clocks in proportion
PACKAGES = ("onnxruntime", "openvino", "jax", "keras", "torchrl")


def _build_peak_library() -> ctypes.CDLL:
    """Compiles peak.cpp, once for each version of its text, and loads it."""
    source = Path(__file__).with_name("peak.cpp")
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "seqcls_fast"
    library = cache / f"peak-{digest}.so"
    if not library.exists():
        names = [os.environ.get("CXX"), "c++", "g++", "clang++"]
        compiler = next((path for name in names if name and (path := shutil.which(name))), None)
        if compiler is None:
            raise RuntimeError("benchmarks/peak.cpp: expected a C++17 compiler ($CXX, c++, g++ or clang++), found none")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:  # for two processes that build at once
            built = Path(folder) / library.name
            flags = ["-O3", "-std=c++17", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread"]
            subprocess.run([compiler, *flags, str(source), "-o", str(built)], check=True)
            built.replace(library)
    loaded = ctypes.CDLL(str(library))
    for name in ("peak_gflops", "clock_ghz", "read_gbs", "round_trip_ns"):
        getattr(loaded, name).restype = ctypes.c_double
    return loaded


class Peak:
    """Measures the limits of this machine. A `kind` is ISA-dtype, for instance "avx512-float32"."""

    def __init__(self) -> None:
        self._library = _build_peak_library()

    def gflops(self, kind: str, threads: int, seconds: float = 0.002) -> float:
        """One measurement, or -1 if the CPU cannot run this kind."""
        return self._library.peak_gflops(kind.encode(), threads, ctypes.c_double(seconds))

    def quiet_gflops(self, kind: str, threads: int, tries: int = 40) -> float:
        """The best of several short measurements, since other processes can only lower one."""
        return max(self.gflops(kind, threads) for _ in range(tries))

    def widest(self) -> str:
        """The widest instruction set of this CPU."""
        return next(isa for isa in ("avx512", "avx2", "base") if self.gflops(f"{isa}-float32", 1) > 0)

    def clock_ghz(self, gflops_per_thread: float) -> tuple[float, int]:
        """(clock, flop per clock) of a thread with this multiply-add peak.

        A chain of multiplications gives the clock roughly. The flop per clock is the power of two nearest to the peak
        divided by it, 64 for two 512-bit units in float32, and the peak divided by that is the clock exactly.
        """
        rough = max(self._library.clock_ghz(ctypes.c_double(0.003)) for _ in range(10))
        if rough <= 0:  # peak.cpp has no such chain for this CPU: assume two 128-bit units
            return gflops_per_thread / 16, 16
        per_clock = 2 ** round(math.log2(gflops_per_thread / rough))
        return gflops_per_thread / per_clock, per_clock

    def read_gbs(self, kilobytes: int, threads: int) -> float:
        each = ctypes.c_int64(1024 * kilobytes)
        return max(self._library.read_gbs(each, threads, ctypes.c_double(0.01)) for _ in range(3))

    def round_trip_ns(self) -> float:
        return self._library.round_trip_ns(100)


class Machine:
    """The measured limits at one thread count."""

    def __init__(self, threads: int) -> None:
        self.peak, self.threads = Peak(), threads
        self.isa = self.peak.widest()
        self.kind = f"{self.isa}-float32"
        self.clock, self.flop_per_clock = self.peak.clock_ghz(self.peak.quiet_gflops(self.kind, 1))
        sizes = [2**power for power in range(4, 19)]
        self.reads = {size: self.peak.read_gbs(size, threads) for size in sizes}  # by the KB that each thread reads
        for larger, smaller in zip(reversed(sizes), reversed(sizes[:-1]), strict=False):  # less data is not slower
            self.reads[smaller] = max(self.reads[smaller], self.reads[larger])

    def read_gbs(self, size: float) -> float:
        """GB/s of all threads together, from the smallest cache that holds ``size`` bytes in all, or from memory."""
        fitting = (gbs for kilobytes, gbs in self.reads.items() if size <= 1024 * kilobytes * self.threads)
        return next(fitting, self.reads[max(self.reads)])

    def bounds(self, case: Case, float32_gflops: float) -> dict[str, float]:
        """The least seconds of a case, for each of the things that may limit it. ``float32_gflops`` is the peak now.

        arithmetic: the products at the multiply-add peak, and the activations. weights: reading the recurrent weights
        at every step of the longest sequence. traffic: moving all data once, from the cache that all of it fits in.
        """
        gflops, size = float32_gflops, layer_cases.weight_bytes_per_step(case)
        if case.dtype == "bfloat16" and "avx512_bf16" in ops.available_impls():
            gflops = max(self.peak.quiet_gflops(f"{self.isa}-bfloat16", self.threads, tries=10), gflops)
        clocks = FORWARD_CLOCKS[case.cell] + (BACKWARD_CLOCKS[case.cell] if case.training else 0.0)
        clocks *= max(1.0, WIDE / self.flop_per_clock)
        vectors = layer_cases.row_steps(case) * case.directions * case.layers * math.ceil(case.shape.H / 16)
        clock = float32_gflops / self.flop_per_clock  # of all threads together
        longest = int(layer_cases.lengths_of(case.shape).max()) if case.ragged else case.shape.T
        streams = longest * size * case.directions * case.layers * (2 if case.training else 1)
        traffic = layer_cases.bytes_of(case)
        return {
            "arithmetic": layer_cases.gflop_of(case) / gflops + 1e-9 * vectors * clocks / clock,
            "weights": 1e-9 * streams / self.read_gbs(size),
            "traffic": 1e-9 * traffic / self.read_gbs(traffic),
        }

    def sgemm_gflops(self, size: int = 512) -> float:
        """GFLOP/s that torch.mm reaches."""
        a, best = torch.ones(size, size), math.inf
        for _ in range(10):
            start = time.perf_counter()
            torch.mm(a, a)
            best = min(best, time.perf_counter() - start)
        return 2e-9 * size**3 / best

    def describe(self) -> list[str]:
        kinds = [f"{isa}-{dtype}" for isa in ("avx512", "avx2", "base") for dtype in ("float32", "float64", "bfloat16")]
        peaks = {kind: self.peak.quiet_gflops(kind, self.threads, tries=10) for kind in kinds}
        sizes = {"32 KB": 32, "512 KB": 512, "8 MB": 8192, "256 MB": 262144}
        reads = [f"{name} {self.reads[size]:.0f}" for name, size in sizes.items()]
        lines = [
            f"threads: {self.threads}; {os.cpu_count()} CPUs, bound to {pinning()}",
            "peak GFLOP/s: " + ", ".join(f"{kind} {value:.0f}" for kind, value in peaks.items() if value > 0),
            f"torch.mm float32 {self.sgemm_gflops():.0f} GFLOP/s; "
            f"clock {self.clock:.2f} GHz = peak / {self.flop_per_clock} flop per clock",
            f"read GB/s from buffers of: {', '.join(reads)}",
        ]
        if self.threads > 1:
            lines.append(f"core-to-core round trip {self.peak.round_trip_ns():.0f} ns")
        return lines

    def facts(self) -> dict[str, Any]:
        """The facts that one needs to compare two results."""
        changed = _git("status", "--porcelain", "--", "csrc", "seqcls_fast")
        return {
            "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "machine": cpu_model(),
            "threads": self.threads,
            "pinning": pinning(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "peers": {name: version for name in PACKAGES if (version := _version(name))},
            "seqcls_fast": sf.__version__,
            "impl": ops.available_impls()[-1],
            "build": dict(_ext.C.build_info()) if _ext.C is not None else {},
            "commit": (_git("rev-parse", "--short", "HEAD") or "none") + ("+changes" if changed else ""),
            "csrc": rows.csrc_hash(),
            "limits": self.describe(),
        }


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(rows.ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return f"{fields['model name']} (family {fields['cpu family']} model {fields['model']})"
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def pinning() -> str:
    """The CPUs that threads may run on, and the environment variables that change where they run or how they wait."""
    cpus = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    names = ("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_WAIT_POLICY", "GOMP_CPU_AFFINITY", "MALLOC_MMAP_THRESHOLD_")
    settings = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
    return f"{','.join(map(str, cpus))}; {' '.join(settings) or 'no OMP or malloc settings'}"

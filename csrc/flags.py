"""The compiler's flags and the instruction sets, for setup.py and for csrc/runtime/build.py, which needs no torch."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "csrc/cpu/kernels/kernels.cpp"  # compiled once for each of ISAS but the last
AMX_KERNELS = ROOT / "csrc/cpu/kernels/amx.cpp"  # amx_bf16: tiles, and all else by avx512_bf16

# Contraction is off, so that the compiler forms no fused multiply-add by itself: a sum must have the same bits in every
# tile, and the sources write each fused multiply-add as one.
FLAGS = [
    "-O2",
    "-g0",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    f"-ffile-prefix-map={ROOT}=.",
]
COMPILER = shlex.split(os.environ.get("CXX") or "c++")
HAVE_COMPILER = sys.platform != "win32" and shutil.which(COMPILER[0]) is not None
# What it compiles for, which is another machine where it is a cross compiler.
TARGET = subprocess.run(
    [*COMPILER, "-dumpmachine"], capture_output=True, text=True, check=False
).stdout.split("-")[0].strip() if HAVE_COMPILER else ""  # fmt: skip
GNU = HAVE_COMPILER and "Free Software Foundation" in subprocess.run(
    [*COMPILER, "--version"], capture_output=True, text=True, check=False
).stdout  # fmt: skip
# For the kernels. Their inner loops are written with vectors, so that -O3 would only unroll others; but the loops that
# convert between types need the vectorizer, which GCC uses little at -O2.
VECTORIZE = ["-ftree-vectorize", "-fvect-cost-model=dynamic"] if GNU else []
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]
OF_TARGET = {
    "x86_64": {
        "avx2": AVX2,
        "avx512": AVX512,
        "avx512_bf16": [*AVX512, "-mavx512bf16"],
        "amx_bf16": [*AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
    },
    "aarch64": {"neon": ["-DSF_NEON"], "neon_bf16": ["-DSF_NEON", "-march=armv8.2-a+bf16"]},
}
OF_TARGET["amd64"], OF_TARGET["arm64"] = OF_TARGET["x86_64"], OF_TARGET["aarch64"]
ISAS: dict[str, list[str]] = {"base": [], **OF_TARGET.get(TARGET, {})}


def chosen_isas(wanted: str | None, option: str) -> list[str]:
    """The instruction sets to build: "base", and those of a list with commas, or all of them without one."""
    names = set(wanted.split(",") if wanted else ISAS)
    unknown = names - set(ISAS)
    if unknown:
        raise SystemExit(f"{option}: expected some of {', '.join(ISAS)} but got {', '.join(sorted(unknown))}")
    if "amx_bf16" in names:
        names.add("avx512_bf16")
    return ["base", *(name for name in ISAS if name in names and name != "base")]


def kernel_source(isa: str) -> Path:
    """What is compiled for one instruction set."""
    return AMX_KERNELS if isa == "amx_bf16" else KERNELS


def kernel_flags(isa: str) -> list[str]:
    """The flags of kernel_source() for one instruction set."""
    macros = [f"-DSF_ISA=kernels_{isa}", f'-DSF_ISA_NAME="{isa}"']
    if isa == "amx_bf16":
        macros += ["-DSF_WITHOUT_AMX=kernels_avx512_bf16", "-fno-exceptions"]  # tables for them would be weak symbols
    # GCC 12 warns about its own AVX-512 headers
    return [*FLAGS, *VECTORIZE, *ISAS[isa], "-Wno-uninitialized", "-Wno-maybe-uninitialized", *macros]

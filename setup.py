"""Builds ``seqcls_fast._C``: kernels.cpp once per instruction set, the rest once.

``python setup.py build_ext --inplace --isas=avx2`` builds fewer sets (the portable one is always there), which is what
the mutation tests do.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension

ROOT = Path(__file__).parent
X86 = platform.machine() in ("x86_64", "AMD64")

# What each build of kernels.cpp may use. Contraction stays off: every fused multiply-add is written as one, so that a
# sum has the same bits in every tile.
FLAGS = [
    "-O2",
    "-g0",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    f"-ffile-prefix-map={ROOT.resolve()}=.",
]
COMPILER = shlex.split(os.environ.get("CXX", "c++"))
HAVE_COMPILER = sys.platform != "win32" and shutil.which(COMPILER[0]) is not None
# The hot loops are written with vectors; -O3 would only unroll the rest. The conversion loops need the vectorizer,
# which GCC's -O2 uses sparingly.
GNU = HAVE_COMPILER and "Free Software Foundation" in subprocess.run(
    [*COMPILER, "--version"], capture_output=True, text=True, check=False
).stdout  # fmt: skip
VECTORIZE = ["-ftree-vectorize", "-fvect-cost-model=dynamic"] if GNU else []
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"]
ISAS = {"base": [], "avx2": AVX2, "avx512": AVX512, "avx512_bf16": [*AVX512, "-mavx512bf16"]}


class BuildPerIsa(BuildExtension):
    """Compiles kernels.cpp into one folder per instruction set and links all of them."""

    user_options = [
        *BuildExtension.user_options,
        ("isas=", None, "comma-separated instruction sets to build besides base"),
    ]

    def initialize_options(self) -> None:
        super().initialize_options()
        self.isas: str | None = None
        self.build_temp = "build/temp"  # kept between builds; pip would start from nothing in a folder of its own

    def build_extension(self, ext: CppExtension) -> None:
        wanted = (self.isas.split(",") if self.isas else list(ISAS)) if X86 else []
        unknown = set(wanted) - set(ISAS)
        if unknown:
            raise SystemExit(f"--isas: expected some of {', '.join(ISAS)} but got {', '.join(sorted(unknown))}")
        names = ["base", *(name for name in ISAS if name in wanted and name != "base")]

        def compile_isa(name: str) -> list[str]:
            macros = [f"-DSF_ISA=kernels_{name}", f'-DSF_ISA_NAME="{name}"']
            # GCC 12 warns about its own AVX-512 headers
            flags = [*FLAGS, *VECTORIZE, *ISAS[name], "-Wno-uninitialized", "-Wno-maybe-uninitialized"]
            return self.compiler.compile(
                [str(ROOT / "csrc/cpu/kernels.cpp")],
                output_dir=str(Path(self.build_temp) / name),
                depends=ext.depends,
                extra_postargs=[*flags, *macros],
            )

        with ThreadPoolExecutor() as pool:
            ext.extra_objects = [obj for objects in pool.map(compile_isa, names) for obj in objects]
        ext.define_macros += [(f"SF_WITH_{name.upper()}", None) for name in names]
        super().build_extension(ext)


if not HAVE_COMPILER:
    print(
        "seqcls_fast: no C++ compiler here: installing without the extension, on the slow reference path",
        file=sys.stderr,
    )

setup(
    ext_modules=[]
    if not HAVE_COMPILER
    else [
        CppExtension(
            "seqcls_fast._C",
            ["csrc/bindings.cpp", "csrc/cpu/dispatch.cpp", "csrc/cpu/pool.cpp"],
            define_macros=[("TORCH_TARGET_VERSION", "0x020b000000000000")],
            extra_compile_args=FLAGS,
            depends=sorted(str(p) for p in (ROOT / "csrc").rglob("*.h")),
        )
    ],
    cmdclass={"build_ext": BuildPerIsa},
)

"""Builds the kernels of csrc/cpu/kernels/amx.cpp with emulated tiles, and loads them as a plugin: "amx-emulated".

They call the portable kernels for what is not theirs, and are compiled for the oldest CPU, so that they run on each.
"""

from __future__ import annotations

import fcntl
import runpy
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from simt.build import registered, why_no_plugin

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build/amx"
NAME = "amx-emulated"
HOST = ("csrc/cpu/host/run.cpp", "csrc/cpu/host/pool.cpp")


def setup() -> dict[str, Any]:
    """What setup.py compiles with."""
    sys.path.insert(0, str(ROOT))
    try:
        return runpy.run_path(str(ROOT / "setup.py"))
    finally:
        sys.path.remove(str(ROOT))


def build_plugin() -> Path:
    known = setup()
    flags, compile_object, cxx = known["_flags"], known["_compile"]["compile_object"], known["cxx"]
    common = [*known["CXX_FLAGS"], *flags["FLAGS"]]
    torch_folder = Path(torch.__file__).parent
    emulated = [*flags["kernel_flags"]("base"), "-Itests/amx", "-Wno-psabi"]
    emulated = [word for word in emulated if not word.startswith("-DSF_ISA")]
    emulated += ["-DSF_AMX_EMULATED", "-DSF_ISA=kernels_amx_emulated", f'-DSF_ISA_NAME="{NAME}"']
    python = known["python_headers"]()
    parts = [
        # the object of the extension itself, which is current where the extension was built here
        (
            ROOT / "build/temp/kernels_base.o",
            flags["KERNELS"],
            cxx(*known["CXX_FLAGS"], *flags["kernel_flags"]("base")),
        ),
        (OUT / "amx.o", flags["AMX_KERNELS"], cxx(*known["CXX_FLAGS"], *emulated, "-DSF_WITHOUT_AMX=kernels_base")),
        (OUT / "plugin.o", ROOT / "tests/amx/plugin.cpp", cxx(*common, *known["torch_headers"](torch_folder), *python)),
    ]
    for source in HOST:
        command = cxx(*common, *known["torch_headers"](torch_folder))
        parts.append((OUT / f"{Path(source).stem}.o", ROOT / source, command))
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / "lock").open("w") as lock:  # other sessions of pytest build it too
        fcntl.flock(lock, fcntl.LOCK_EX)
        objects = [compile_object(*part[:2], *part[2]) for part in parts]
        library = OUT / "_amx.so"
        how = [*flags["COMPILER"], "-shared", *map(str, objects), f"-L{torch_folder / 'lib'}"]
        how += ["-ltorch_cpu", "-lc10", "-o", str(library)]
        if not known["_compile"]["is_current"](library, " ".join(how), objects):
            known["_compile"]["run"](*how)
    return library


@lru_cache(maxsize=1)
def load_plugin() -> Any:
    """Build the plugin, add its implementation to those of this process, and return its module."""
    return registered("_amx", build_plugin())


__all__ = ["NAME", "load_plugin", "why_no_plugin"]

"""Compiles csrc/cuda to PTX, builds the interpreter, and loads it as a plugin.

The PTX is kept under build/ptx, in a folder named by a hash of the sources and flags, so that only a change compiles it
again (half a minute on two cores). It is that of sm_90a alone: the kernels of other architectures have the same text,
but those of the cluster regime are for sm_90a only.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import torch

from seqcls_fast import _ext
from simt import build as simt

HERE = Path(__file__).parent
ROOT = simt.ROOT
KEPT = ROOT / "build" / "ptx"
ARCHITECTURE = "90a"
FLAGS = ("-std=c++17", "-O3", "--expt-relaxed-constexpr", "-diag-suppress=161,1675,20014")


def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return (home and shutil.which("nvcc", path=f"{home}/bin")) or shutil.which("nvcc")


def why_not() -> str | None:
    """Why the interpreter cannot be built or loaded here, or None if it can."""
    if simt.why_no_plugin() is not None:
        return simt.why_no_plugin()
    if nvcc() is None:
        return "no nvcc in CUDA_HOME or on the PATH, which makes the PTX"
    return None if shutil.which("nm") else "no nm on the PATH, which names the kernels"


def sources() -> list[Path]:
    return sorted(file for file in (ROOT / "csrc" / "cuda").rglob("*.cu") if file.name != "runner.cu")


def compile_ptx() -> list[Path]:
    """The PTX of every source, compiled unless it is kept."""
    command = [str(nvcc()), *FLAGS, f"-gencode=arch=compute_{ARCHITECTURE},code=compute_{ARCHITECTURE}"]
    digest = hashlib.sha256(" ".join(command).encode())
    digest.update(subprocess.run([command[0], "--version"], capture_output=True, check=True).stdout)
    for folder in ("core", "cuda"):
        for file in sorted((ROOT / "csrc" / folder).rglob("*.*")):
            digest.update(file.read_bytes())
    target = KEPT / digest.hexdigest()[:16]
    target.mkdir(parents=True, exist_ok=True)

    def one(source: Path) -> Path:
        made = target / f"{source.stem}.ptx"
        if not made.exists():
            partial = made.with_name(f"{made.name}.{os.getpid()}")
            arguments = ["-ptx", str(source.relative_to(ROOT)), "-o", str(partial)]
            done = subprocess.run([*command, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"nvcc could not compile {source.name} to PTX\n{done.stderr[:4000]}")
            partial.replace(made)
        return made

    with (target / "lock").open("w") as lock, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        fcntl.flock(lock, fcntl.LOCK_EX)  # sessions that start together would each compile everything
        return list(pool.map(one, sources()))


def kernels_of(text: str) -> dict[str, str]:
    """The text of each kernel by its mangled name."""
    found = {}
    for part in text.split(".visible .entry ")[1:]:
        end = part.index("\n}\n")
        found[part[: part.index("(")]] = part[: end + 3]
    return found


@lru_cache(maxsize=1)
def kernels() -> dict[str, str]:
    """The PTX of all kernels. A kernel that several sources compile is the same in each of them."""
    return {name: text for path in compile_ptx() for name, text in kernels_of(path.read_text()).items()}


def build_interpreter() -> Path:
    headers = (Path(torch.__file__).parent / "include", sysconfig.get_path("include"))
    includes = [flag for folder in headers for flag in ("-isystem", str(folder))]
    own = [HERE / "plugin.cpp", HERE / "decode.cpp"]
    return simt.build([*sources(), *own], "_ptx.so", "-shared", *simt.PLUGIN_FLAGS, *includes)


def names_of(library: Path) -> dict[int, str]:
    """The names of the kernels' host functions by their offset in the library."""
    table = subprocess.run(["nm", str(library)], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"^([0-9a-f]+) [tTwWuV] (_ZN2sf4cuda\w+)$", table, re.MULTILINE)
    return {int(offset, 16): name for offset, name in found}


@lru_cache(maxsize=1)
def load_interpreter() -> ModuleType:
    """Build the interpreter, give it all kernels, and add its implementations to those of this process."""
    assert _ext.C is not None
    library = build_interpreter()
    spec = importlib.util.spec_from_file_location("_ptx", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.set_names(names_of(library))
    for name, text in kernels().items():
        module.set_kernel(name, text)
    _ext.C.register_plugin(module.plugin)
    return module

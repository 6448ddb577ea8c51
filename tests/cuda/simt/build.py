"""Compiles programs and libraries that include simt.h, and loads the plugin.

Results are kept under build/simt, an object in a folder named by a hash of its preprocessed text, so that a change
compiles only the sources that it affects. Paths in the commands are relative, so a copy of the project has the same
hashes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from seqcls_fast import _ext

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
KEPT = ROOT / "build" / "simt"
FLAGS = ("-std=c++17", "-O1", "-Wall", "-Wextra", f"-I{HERE.relative_to(ROOT)}")
# Device code has pragmas that other compilers do not know. Small devices need kernels that no real device would.
PLUGIN_FLAGS = ("-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas", "-DSF_EVERY_REGIME")


def compiler() -> list[str] | None:
    """The command of $CXX or c++, if there is one."""
    command = shlex.split(os.environ.get("CXX", "c++"))
    return command if command and shutil.which(command[0]) else None


def why_not() -> str | None:
    """Why nothing can be built here, or None if it can."""
    if sys.platform != "linux":
        return "simt.h asks for Linux"
    return None if compiler() else "no C++ compiler: CXX is not set to one, and c++ is not installed"


def why_no_plugin() -> str | None:
    """Why the plugin cannot be built or loaded here, or None if it can."""
    if _ext.C is None:
        return f"the extension is missing: {_ext.why_missing}"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's headers are not installed"
    return why_not()


def build(sources: Sequence[Path], output: str, *flags: str) -> Path:
    """Compile ``sources`` in parallel into a file called ``output`` and return its path.

    Args:
        sources: C++ files.
        output: name of the program, or of the library if ``flags`` ask for one.
        flags: options of the compiler, between FLAGS and $CXXFLAGS.
    """
    command = compiler()
    if command is None:
        raise RuntimeError(f"build: {why_not()}")
    command += [*FLAGS, *flags, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(lambda source: _object(command, source), sources))
    digest = hashlib.sha256(shlex.join([*command, output, *map(str, objects)]).encode())
    return _kept(digest.hexdigest(), output, [*command, *map(str, objects)])


def _object(command: list[str], source: Path) -> Path:
    path = source.relative_to(ROOT) if source.is_relative_to(ROOT) else source
    of_source = [*command, "-x", "c++", str(path)]
    digest = hashlib.sha256(shlex.join(of_source).encode() + _run([*of_source, "-E"]))
    return _kept(digest.hexdigest(), f"{source.stem}.o", [*of_source, "-c"])


def _kept(digest: str, name: str, command: list[str]) -> Path:
    """The file that ``command`` makes. The command runs only if the file is not there yet."""
    target = (KEPT / digest[:16] / name).relative_to(ROOT)
    if not (ROOT / target).exists():
        (ROOT / target).parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{name}.{os.getpid()}")  # renamed when complete: another session may look for it
        _run([*command, "-o", str(partial)])
        (ROOT / partial).replace(ROOT / target)
    return ROOT / target


def _run(command: list[str]) -> bytes:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        first = done.stderr.decode(errors="replace")[:4000]  # an error in a template is repeated for every kernel
        raise RuntimeError(f"build: {shlex.join(command)} failed\n{first}")
    return done.stdout


def build_plugin() -> Path:
    """Build the CUDA backend as a plugin for CPU tensors, which takes a minute of two cores if nothing is kept yet."""
    of_cuda = sorted(file for file in (ROOT / "csrc" / "cuda").rglob("*.cu") if file.name != "runner.cu")
    headers = (Path(torch.__file__).parent / "include", sysconfig.get_path("include"))  # torch brings pybind11
    includes = [flag for folder in headers for flag in ("-isystem", str(folder))]
    return build([*of_cuda, HERE / "plugin.cpp"], "_simt.so", "-shared", *PLUGIN_FLAGS, *includes)


@lru_cache(maxsize=1)
def load_plugin() -> tuple[str, ...]:
    """Build the plugin, add its implementations to those of this process, and return their names."""
    return tuple(registered("_simt", build_plugin()).names)


def registered(name: str, library: Path) -> Any:
    """The module in a plugin's library, whose implementations are added to those of this process."""
    assert _ext.C is not None
    spec = importlib.util.spec_from_file_location(name, library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    _ext.C.register_plugin(module.plugin)
    return module

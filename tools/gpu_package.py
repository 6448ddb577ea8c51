"""Builds what `python -m benchmarks.gpu` needs: the extension with its CUDA part, and the program of primitives.

    python tools/gpu_package.py --here            in the tree, for the GPU of this machine
    python tools/gpu_package.py --out FOLDER      a package for another machine, which then builds and installs nothing

A package is for this interpreter and for the GPUs in TORCH_CUDA_ARCH_LIST. It runs on systems whose C and C++ libraries
are at least those of LIMITS, which this program checks, and is at most 64 MiB large.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import setup  # noqa: E402
from benchmarks.gpu import package  # noqa: E402
from benchmarks.rows import csrc_hash  # noqa: E402

PRIMITIVES = "benchmarks/gpu/primitives"
# The newest symbols that the files may need: those of 2021 (glibc 2.34) and of GCC 5 (GLIBCXX 3.4.21).
LIMITS = {"GLIBC": (2, 34), "GLIBCXX": (3, 4, 21), "CXXABI": (1, 3, 9), "GCC": (4, 3)}
MOST_BYTES = 64 << 20
LEFT_OUT = ("__pycache__", "results", "*.pyc", "*.so")


def architecture_here() -> str:
    """The compute capability of this machine's first GPU, as the driver says."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    except (OSError, subprocess.SubprocessError) as error:
        raise SystemExit(f"expected a GPU that nvidia-smi can tell of, but it fails: {error}") from None
    if not told or not re.fullmatch(r"\d+\.\d", told[0]):
        raise SystemExit(f"expected a compute capability from nvidia-smi but got {' '.join(told) or 'nothing'}")
    return told[0]


def run(*command: str | Path, **variables: str) -> None:
    words = [str(word) for word in command]
    print(shlex.join(words), flush=True)
    if status := subprocess.run(words, cwd=ROOT, env=os.environ | variables, check=False).returncode:
        raise SystemExit(f"{words[0]} failed with exit status {status}")


def build_primitives(to: Path) -> None:
    toolkit = setup.find_toolkit()
    if toolkit is None:
        raise SystemExit("expected nvcc in CUDA_HOME or on the PATH, but there is none")
    flags = setup.nvcc_flags(setup.architectures())
    run(toolkit.nvcc, *flags, "-o", to, ROOT / f"{PRIMITIVES}.cu")


def needed(readelf: str) -> dict[str, tuple[int, ...]]:
    """The newest version of each library's symbols that a file needs, from what readelf --version-info prints."""
    found: dict[str, tuple[int, ...]] = {}
    for family, version in re.findall(r"Name: ([A-Z]+)_(\d[\d.]*)", readelf):
        found[family] = max(found.get(family, ()), tuple(map(int, version.split("."))))
    return found


def too_new(found: dict[str, tuple[int, ...]]) -> list[str]:
    """A sentence for each library of which a later version is needed than LIMITS allows."""

    def shown(version: tuple[int, ...]) -> str:
        return ".".join(map(str, version))

    return [
        f"{family} {shown(version)} is needed, but at most {shown(LIMITS.get(family, ()))} is allowed"
        for family, version in found.items()
        if version > LIMITS.get(family, ())
    ]


def check_symbols(path: Path) -> None:
    told = subprocess.run(["readelf", "--version-info", path], capture_output=True, text=True, check=True).stdout
    found = needed(told)
    print(f"{path.name} needs " + ", ".join(f"{name} {'.'.join(map(str, v))}" for name, v in sorted(found.items())))
    if sentences := too_new(found):
        raise SystemExit(f"{path}: {'; '.join(sentences)}: build on an older system")


def make_package(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()) and not (folder / package.NAME).exists():
        raise SystemExit(f"--out: expected a new folder or an earlier package but {folder} holds other files")
    library = ROOT / "build/gpu/lib"
    shutil.rmtree(library, ignore_errors=True)
    build = ["build", "--build-lib", library, "build_ext", "--build-temp", "build/gpu/temp"]
    run(sys.executable, "setup.py", "--quiet", *build, SEQCLS_CUDA="1")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(library / "seqcls_fast", folder / "seqcls_fast", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("benchmarks", "tests/support", "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    build_primitives(folder / PRIMITIVES)
    extension = folder / "seqcls_fast" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    for path in (extension, folder / PRIMITIVES):
        check_symbols(path)
    facts = {"python": package.interpreter(), "torch": torch.__version__, "cuda_archs": ",".join(setup.architectures())}
    package.describe(folder, facts | {"csrc_hash": csrc_hash(folder)})
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        raise SystemExit(f"{folder}: expected at most {MOST_BYTES >> 20} MiB but it has {size / 2**20:.1f}")
    print(f"{folder}: {size / 2**20:.1f} MiB, {', '.join(f'{name} {value}' for name, value in facts.items())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--here", action="store_true", help="build in the tree, for this machine's GPU")
    where.add_argument("--out", type=Path, metavar="FOLDER", help="make a package; what the folder held is deleted")
    arguments = parser.parse_args()
    if arguments.here:
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", architecture_here())
        run(sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", SEQCLS_CUDA="1")
        build_primitives(ROOT / PRIMITIVES)
    else:
        make_package(arguments.out.resolve())


if __name__ == "__main__":
    main()

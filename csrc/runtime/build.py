"""Builds libseqcls, the runtime: `make runtime`. It needs a C++17 compiler and nothing else, neither torch nor pip.

The shared and the static library and the header come to build/runtime. The kernels are those of the extension, compiled
once more with SF_INFERENCE: without training they take a fifth of the space. Those of AMX are left out: a stream has
few rows, for which tiles are no faster than vectors. setup.py builds the Python module of the runtime from the same
objects.
"""

from __future__ import annotations

import argparse
import os
import runpy
import shlex
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = runpy.run_path(str(ROOT / "csrc/flags.py"))
COMPILE = runpy.run_path(str(ROOT / "csrc/compile.py"))
run, is_current = COMPILE["run"], COMPILE["is_current"]
OUT = ROOT / "build" / "runtime"
HERE = ROOT / "csrc/runtime"
PYTHON_MODULE = HERE / "python.cpp"  # setup.py compiles it
FEATURES = sorted([*(ROOT / "csrc/series").glob("*.cpp"), *(ROOT / "csrc/text").glob("*.cpp")])
ONCE = [ROOT / "csrc/cpu/host/isa.cpp", *FEATURES, *sorted(set(HERE.glob("*.cpp")) - {PYTHON_MODULE})]
FAST = {"stream.cpp", "hashed_ngrams.cpp", "random_convolutions.cpp"}  # the others are compiled to be small
TABLES = "unicode_tables.h"
SHARED = "libseqcls.dylib" if sys.platform == "darwin" else "libseqcls.so"
EXPORTS = HERE / "seqcls.map"
OF_LINUX = [
    "-Wl,-z,now",
    "-Wl,-s",
    "-Wl,--gc-sections",
    "-Wl,-soname,libseqcls.so.1",
    f"-Wl,--version-script={EXPORTS}",
]
LINK = ["-shared", *OF_LINUX] if sys.platform == "linux" else ["-dynamiclib"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g1"]


def objects(folder: Path, isas: list[str], extra: Sequence[str] = ()) -> list[tuple[Path, Path, list[str]]]:
    """The object files of the library: for each its path, its source, and the compiler with its flags."""
    write_tables(folder)
    isas = [name for name in isas if FLAGS["kernel_source"](name) == FLAGS["KERNELS"]]
    compiler = [*FLAGS["COMPILER"], "-std=c++17", "-fPIC"]
    once = [*FLAGS["FLAGS"], "-ffunction-sections", f"-I{folder}", *(f"-DSF_WITH_{name.upper()}" for name in isas)]
    alone = ["-DSF_INFERENCE", "-fno-exceptions", "-fno-asynchronous-unwind-tables"]  # tables of 100 kB otherwise
    # On x86 the set "base" is for machines without AVX2, for which size counts more than speed.
    small = ["-Os"] if "avx2" in FLAGS["ISAS"] else []
    parts = [
        (f"kernels_{name}", FLAGS["KERNELS"], [*FLAGS["kernel_flags"](name), *alone, *small * (name == "base")])
        for name in reversed(isas)
    ]
    parts += [(source.stem, source, once + ["-Os"] * (source.name not in FAST)) for source in ONCE]
    return [(folder / f"{stem}.o", source, [*compiler, *flags, *extra]) for stem, source, flags in parts]


def write_tables(folder: Path) -> None:
    """Writes the tables of Unicode that this Python knows, if they are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    text = runpy.run_path(str(HERE / "unicode_tables.py"))["header"]()
    if not (folder / TABLES).exists() or (folder / TABLES).read_text() != text:
        (folder / TABLES).write_text(text)


def archive(folder: Path, parts: list[Path]) -> Path:
    library = folder / "libseqcls.a"
    library.unlink(missing_ok=True)
    run(os.environ.get("AR", "ar"), "rcs", library, *parts)
    return library


def build(folder: Path, isas: list[str], sanitize: bool) -> None:
    extra = SANITIZE if sanitize else []
    with ThreadPoolExecutor(COMPILE["jobs"]()) as pool:
        waiting = [
            pool.submit(COMPILE["compile_object"], built, source, *command)
            for built, source, command in objects(folder / "objects", isas, extra)
        ]
    parts = [each.result() for each in waiting]
    library = folder / SHARED
    command = [*FLAGS["COMPILER"], *LINK, *extra, *map(str, parts), "-o", str(library)]
    if is_current(library, shlex.join(command), [*parts, EXPORTS, HERE / "seqcls.h"]):
        return
    archive(folder, parts)
    run(*command)
    if sys.platform == "linux":
        (folder / "libseqcls.so.1").unlink(missing_ok=True)
        (folder / "libseqcls.so.1").symlink_to(SHARED)
    shutil.copy(HERE / "seqcls.h", folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="Build libseqcls into build/runtime.")
    parser.add_argument("--out", type=Path, default=OUT, help="another folder")
    parser.add_argument("--isas", help='comma-separated instruction sets besides "base"; all of them without it')
    parser.add_argument("--sanitize", action="store_true", help="with AddressSanitizer and UBSan")
    options = parser.parse_args()
    build(options.out.resolve(), FLAGS["chosen_isas"](options.isas, "--isas"), options.sanitize)


if __name__ == "__main__":
    main()

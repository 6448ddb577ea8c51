"""Builds libseqcls, the runtime: `make runtime`. It needs a C++17 compiler and nothing else, neither torch nor pip.

The shared and the static library and the header come to build/runtime. The kernels are those of the extension, compiled
once more with SF_INFERENCE: without training they take a fifth of the space. setup.py builds the Python module of the
runtime from the same objects.
"""

from __future__ import annotations

import argparse
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FLAGS = runpy.run_path(str(ROOT / "csrc/flags.py"))
OUT = ROOT / "build" / "runtime"
KERNELS = ROOT / "csrc/cpu/kernels/kernels.cpp"
HERE = ROOT / "csrc/runtime"
PYTHON_MODULE = HERE / "python.cpp"  # setup.py compiles it
ONCE = [ROOT / "csrc/cpu/host/isa.cpp", *sorted(set(HERE.glob("*.cpp")) - {PYTHON_MODULE})]
SHARED = "libseqcls.dylib" if sys.platform == "darwin" else "libseqcls.so"
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g1"]


def newest(*folders: str) -> float:
    """When a header of these folders changed last."""
    return max(path.stat().st_mtime for folder in folders for path in (ROOT / "csrc" / folder).rglob("*.h"))


def is_current(built: Path, how: str, inputs_changed: float) -> bool:
    """Whether a file was made in the same way, which is written beside it, after its inputs changed last."""
    said = built.with_name(f"{built.name}.how")
    current = built.exists() and said.exists() and said.read_text() == how and built.stat().st_mtime > inputs_changed
    if not current:
        built.unlink(missing_ok=True)
        said.write_text(how)
    return current


def run(*command: str | Path) -> None:
    words = [str(word) for word in command]
    print(shlex.join(words), flush=True)
    subprocess.run(words, cwd=ROOT, check=True)


def objects(folder: Path, isas: list[str], extra: list[str]) -> list[Path]:
    """Compiles what has changed since, and returns all object files of the library."""
    once = [*FLAGS["FLAGS"], *(f"-DSF_WITH_{name.upper()}" for name in isas)]
    alone = ["-DSF_INFERENCE", "-fno-exceptions", "-fno-asynchronous-unwind-tables"]  # tables of 100 kB otherwise
    tasks = [(KERNELS, f"kernels_{name}.o", [*FLAGS["kernel_flags"](name), *alone]) for name in reversed(isas)]
    tasks += [(source, f"{source.stem}.o", once) for source in ONCE]
    of_kernels, of_others = newest("core", "cpu"), newest("core", "cpu", "runtime", "bindings")

    def compiled(task: tuple[Path, str, list[str]]) -> Path:
        source, name, flags = task
        built = folder / name
        headers = of_kernels if source == KERNELS else of_others
        words = [*FLAGS["COMPILER"], "-std=c++17", "-fPIC", *flags, *extra, "-c", str(source.relative_to(ROOT))]
        if not is_current(built, shlex.join(words), max(headers, source.stat().st_mtime)):
            partial = built.with_suffix(".partial.o")  # so that a file half written is never taken for an object
            run(*words, "-o", partial)
            partial.replace(built)
        return built

    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)) as pool:
        return list(pool.map(compiled, tasks))


def archive(folder: Path, parts: list[Path]) -> Path:
    library = folder / "libseqcls.a"
    library.unlink(missing_ok=True)
    run(os.environ.get("AR", "ar"), "rcs", library, *parts)
    return library


def build(folder: Path, isas: list[str], sanitize: bool) -> None:
    extra = SANITIZE if sanitize else []
    parts = objects(folder / "objects", isas, extra)
    library = folder / SHARED
    if is_current(library, shlex.join(map(str, parts)), max(path.stat().st_mtime for path in parts)):
        return
    archive(folder, parts)
    how = (
        ["-shared", "-Wl,-z,now", "-Wl,-s", "-Wl,-soname,libseqcls.so.1"]
        if sys.platform == "linux"
        else ["-dynamiclib"]
    )
    run(*FLAGS["COMPILER"], *how, *extra, *parts, "-o", library)
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

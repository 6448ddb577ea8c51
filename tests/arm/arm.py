"""Builds the CPU backend for 64-bit ARM with Debian's cross compiler, and runs it under qemu: `make arm`.

The backend's own scheduling runs on the stand-in for torch's threads that tests/tsan has, since torch itself cannot be
cross-compiled here. Inputs and expected results are written on this machine: the cases of tests/support/cases.py, and
the float64 reference, compared as on every other instruction set. Then faults are put into a copy of the vectors of
NEON, one at a time: some case must differ for each, or the cases would not show that there is none. At last
examples/stream.c runs a saved model with the cross-compiled runtime, and must print what it prints here.
"""

from __future__ import annotations

import argparse
import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "build" / "arm"
COMPILER, EMULATOR, LIBRARIES = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
KERNELS, STAND_IN = "csrc/cpu/kernels/kernels.cpp", "-Itests/tsan/stand_in"
HOST = ("csrc/cpu/host/run.cpp", "csrc/cpu/host/pool.cpp", "csrc/cpu/host/isa.cpp", "tests/arm/driver.cpp")

sys.path.insert(0, str(ROOT / "tests"))
from seqcls_fast._cells import BUILT_IN  # noqa: E402
from support.cases import Case, Problem, build, pairwise  # noqa: E402
from support.checks import check_padding, compare, expected, padding  # noqa: E402

DTYPES = ("float32", "float64", "bfloat16", "float16")  # as csrc/core/args.h numbers them
CELLS = tuple(BUILT_IN)
FAULTY_COST = 100_000  # multiply-adds of a case for which kernels are compiled without optimization, at most
Named = dict[str, Tensor]


class Fault(NamedTuple):
    """An error in csrc/cpu/kernels, and the instruction set whose kernels are compiled with it."""

    name: str
    file: str
    old: str
    new: str
    isa: str
    dtype: str  # of the cases that must differ


FAULTS = (
    Fault("products are subtracted", "vec.h", "vfmaq_f32(neon(c)", "vfmsq_f32(neon(c)", "neon", "float32"),
    Fault("rounds down", "vec.h", "vrndnq_f64(", "vrndmq_f64(", "neon", "float64"),
    Fault("other halves", "vec.h", "vzip2q_f32(", "vzip1q_f32(", "neon", "float32"),
    Fault("pairs of weights alone", "tile.h", "(neon(acc), a, w)", "(neon(acc), w, w)", "neon_bf16", "bfloat16"),
)


def missing() -> str:
    """Why nothing can run here; empty if it can."""
    names = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]
    return f"no {' and no '.join(names)} on the PATH: `make arm-tools` installs them on Debian" if names else ""


def run(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([str(word) for word in words], cwd=ROOT, check=True, **options)


def driver(isas: Sequence[str], build: dict[str, Any]) -> Path:
    """The program that runs cases, with all instruction sets; ``build`` is what csrc/flags.py has for the compiler."""
    compile_object = runpy.run_path(str(ROOT / "csrc/compile.py"))["compile_object"]
    common = ["-std=c++17", *build["FLAGS"]]
    macros = [f"-DSF_WITH_{name.upper()}" for name in isas]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        parts = [(f"kernels_{name}", KERNELS, ["-std=c++17", *build["kernel_flags"](name)]) for name in isas]
        parts += [(Path(source).stem, source, [*common, *macros]) for source in HOST]
        tasks = [
            pool.submit(compile_object, OUT / f"{name}.o", ROOT / source, COMPILER, *flags, STAND_IN)
            for name, source, flags in parts
        ]
        objects = [task.result() for task in tasks]
    program = OUT / "driver"
    run(COMPILER, "-static", *objects, "-o", program)
    return program


def faulty_driver(fault: Fault, isas: Sequence[str], build: dict[str, Any]) -> Path:
    """The same program with a fault. Its kernels are compiled without optimization, which takes a fifth of the time."""
    folder = OUT / "faults" / str(FAULTS.index(fault))
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("csrc/core", "csrc/cpu/kernels"):
        shutil.copytree(ROOT / part, folder / part)
    path = folder / "csrc/cpu/kernels" / fault.file
    text = path.read_text()
    if text.count(fault.old) != 1:
        raise SystemExit(f"arm: {fault.name}: expected its text once in {fault.file} but it is there "
                         f"{text.count(fault.old)} times")  # fmt: skip
    path.write_text(text.replace(fault.old, fault.new))
    kernels = folder / "kernels.o"
    run(
        COMPILER,
        "-std=c++17",
        *build["kernel_flags"](fault.isa),
        "-O0",
        "-w",
        STAND_IN,
        "-c",
        folder / KERNELS,
        "-o",
        kernels,
    )
    others = [f"kernels_{name}" for name in isas if name != fault.isa] + [Path(source).stem for source in HOST]
    run(COMPILER, "-static", kernels, *(OUT / f"{name}.o" for name in others), "-o", folder / "driver")
    return folder / "driver"


# ---- What the driver reads and writes: see driver.cpp


def numbers(*values: int) -> bytes:
    return torch.tensor(values, dtype=torch.int64).numpy().tobytes()


def raw(t: Tensor) -> bytes:
    t = t.contiguous()
    return (t.view(torch.int16) if t.element_size() == 2 else t).numpy().tobytes()


def given(case: Case, problem: Problem) -> bytes:
    """A case as the driver reads it. Steps beyond a row's length hold NaN, or an id that does not exist."""
    beyond = padding(problem.lengths, case.T)
    parts = [
        numbers(
            CELLS.index(case.cell), DTYPES.index(case.dtype), case.directions, case.T, case.B, case.I, case.H, case.P,
            case.bias, case.state, problem.lengths is not None, case.want_output, case.ids,
        )
    ]  # fmt: skip
    if problem.lengths is not None:
        parts.append(raw(problem.lengths.long()))

    def hidden(t: Tensor) -> Tensor:
        poison = float("nan") if t.is_floating_point() else 1 << 40
        mask = beyond if t.dim() == 2 or beyond is None else beyond[:, :, None]
        return t if mask is None else t.masked_fill(mask, poison)

    for name, t in problem.inputs.items():
        parts.append(raw(hidden(t) if case.ids else hidden(t).to(case.torch_dtype)) if name == "x" else
                     raw(t.to(case.torch_dtype)))  # fmt: skip
    for name, t in problem.cotangents.items():
        parts.append(raw((hidden(t) if name == "output" else t).to(case.torch_dtype)))
    return b"".join(parts)


def results(case: Case, wanted: Named, data: memoryview) -> tuple[Named, memoryview]:
    """The results of a case by name, and what follows them."""
    found = {}
    for name, t in wanted.items():
        size = t.numel() * case.torch_dtype.itemsize
        flat = torch.frombuffer(bytearray(data[:size]), dtype=case.torch_dtype) if size else torch.empty(0)
        found[name], data = flat.to(case.torch_dtype).view(t.shape), data[size:]
    return found, data


def check(program: Path, isa: str, threads: int, cases: Iterable[Case], show: bool = True) -> int:
    """Runs cases and compares their results with the reference; returns how many differ."""
    cases = list(cases)
    data = b"".join(given(case, build(case)) for case in cases)
    command = [EMULATOR, "-cpu", "max", "-L", LIBRARIES, program, isa, str(threads)]
    done = subprocess.run(list(map(str, command)), input=data, capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"arm: the driver ended with {done.returncode}: {done.stderr.decode()[-2000:]}")
    left, wrong = memoryview(done.stdout), 0
    for case in cases:
        wanted = expected(case)
        found, left = results(case, wanted, left)
        try:
            compare(found, wanted, case, isa)
            check_padding(found, case)
        except AssertionError as error:
            wrong += 1
            if show:
                print(f"{isa} {case}: {error}", flush=True)
    if left:
        raise SystemExit(f"arm: the driver wrote {len(left)} bytes too many")
    return wrong


def not_noticed(cases: Sequence[Case], isas: Sequence[str], build: dict[str, Any]) -> int:
    """How many of the faults change no result."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        programs = list(pool.map(lambda fault: faulty_driver(fault, isas, build), FAULTS))
    missed = 0
    for fault, program in zip(FAULTS, programs, strict=True):
        some = [case for case in cases if case.dtype == fault.dtype and case.cost <= FAULTY_COST]
        wrong = check(program, fault.isa, 1, some, show=False)
        print(f"{fault.name:24} {f'{wrong} of {len(some)} cases differ' if wrong else 'NOT NOTICED'}", flush=True)
        missed += not wrong
    return missed


# ---- The runtime


def stream_here_and_there(isas: Sequence[str]) -> int:
    """What examples/stream.c prints with a saved model here and on ARM: 0 if it is the same up to rounding."""
    import seqcls_fast as sf

    torch.manual_seed(0)
    model = OUT / "model.sfm"
    sf.export.to_runtime(torch.nn.Sequential(sf.LSTM(3, 24))[0], model)
    build_here = runpy.run_path(str(ROOT / "csrc/runtime/build.py"))
    build_here["build"](OUT / "here", ["base"], False)
    run(sys.executable, "csrc/runtime/build.py", "--out", OUT / "there", "--isas", ",".join(isas),
        env=os.environ | {"CXX": COMPILER, "AR": "aarch64-linux-gnu-ar"})  # fmt: skip
    printed = []
    for compiler, folder, before in (
        ("cc", "here", []),
        ("aarch64-linux-gnu-gcc", "there", [EMULATOR, "-L", LIBRARIES]),
    ):
        program = OUT / folder / "stream"
        run(compiler, "-O2", f"-I{OUT / folder}", "examples/stream.c", OUT / folder / "libseqcls.a", "-lstdc++", "-lm",
            "-lpthread", "-o", program)  # fmt: skip
        lines = "\n".join(f"{k * 0.1} {k * -0.2} {k % 3}" for k in range(20)) + "\n"
        done = run(*before, program, model, input=lines.encode(), capture_output=True)
        printed.append(done.stdout.decode())
    numbers_of = [[float(word) for word in text.split() if _is_number(word)] for text in printed]
    close = len(numbers_of[0]) == len(numbers_of[1]) > 20 and all(
        abs(a - b) <= 1e-5 * max(1.0, abs(a)) for a, b in zip(*numbers_of, strict=True)
    )
    print(f"examples/stream.c: {len(numbers_of[0])} numbers, {'as here' if close else 'OTHER THAN HERE'}")
    return 0 if close else 1


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the CPU backend on an emulated 64-bit ARM.")
    parser.add_argument("--all", action="store_true", help="every case instead of a sample")
    parser.add_argument("--max-cost", type=int, default=400_000, help="multiply-adds of a case's forward pass, at most")
    chosen = parser.parse_args()
    if why := missing():
        print(f"arm: nothing is checked: {why}", file=sys.stderr)
        return 3 if os.environ.get("REQUIRE_ARM") else 0
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    os.environ["CXX"] = COMPILER
    flags = runpy.run_path(str(ROOT / "csrc/flags.py"))
    del os.environ["CXX"]
    isas = list(flags["ISAS"])
    start = time.monotonic()
    program = driver(isas, flags)
    print(f"built for {', '.join(isas)} in {time.monotonic() - start:.0f} s", flush=True)
    cases = [replace(case, layout="time_first") for case in pairwise() if case.cost <= chosen.max_cost]
    cases = [case for case in cases if case.valid]
    cases = cases if chosen.all else cases[::2]
    wrong = 0
    for isa in isas:
        for threads in (1, 3):
            some = cases if threads == 1 else cases[::4]
            start = time.monotonic()
            faults = check(program, isa, threads, some)
            print(f"{isa}, {threads} thread(s): {len(some)} cases, {faults} wrong, {time.monotonic() - start:.0f} s")
            wrong += faults
    if not wrong:
        start = time.monotonic()
        wrong = not_noticed(cases, isas, flags)
        print(
            f"{len(FAULTS) - wrong} of {len(FAULTS)} planted faults noticed, {time.monotonic() - start:.0f} s",
            flush=True,
        )
    return 1 if wrong + stream_here_and_there(isas) else 0


if __name__ == "__main__":
    sys.exit(main())

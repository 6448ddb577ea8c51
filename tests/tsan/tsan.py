"""Builds the parts of the CPU backend that threads share with ThreadSanitizer, and runs driver.cpp: `make tsan`.

Then it takes a lock or an order away in a copy of the sources, one at a time: each such fault must be reported, or the
driver would not show that there is none. torch is not needed: stand_in/ has the two functions of it that are used.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "build" / "tsan"
COMPILER = shlex.split(os.environ.get("CXX", "c++"))
# -O1: ThreadSanitizer's checks cost more time than the optimizer would save
FLAGS = ["-std=c++17", "-O1", "-g1", "-Wall", "-Wextra", "-fsanitize=thread", "-fno-math-errno", "-ffp-contract=off"]
KERNELS = "csrc/cpu/kernels/kernels.cpp"
SOURCES = ["csrc/cpu/host/run.cpp", "csrc/cpu/host/pool.cpp", "csrc/cpu/host/isa.cpp", "tests/tsan/driver.cpp"]
SECONDS = 600  # after which a run has hung
RACE = 66  # the exit status that ThreadSanitizer is told to use


class Fault(NamedTuple):
    name: str
    file: str  # in csrc/cpu/host
    old: str
    new: str
    found: str  # a word of what must be reported


LOCK, POOL_LOCK = "std::lock_guard<std::mutex> lock(mutex_);", "std::lock_guard<std::mutex> lock(p.mutex);"
FAULTS = (
    Fault("cache: find without lock", "packed_weights.h", f"key) {{\n    {LOCK}", "key) {", "PackedCache"),
    Fault("cache: add without lock", "packed_weights.h", f"bytes) {{\n    {LOCK}", "bytes) {", "PackedCache"),
    Fault("cache: clear without lock", "packed_weights.h", f"clear() {{\n    {LOCK}", "clear() {", "PackedCache"),
    Fault("pool: take without lock", "pool.cpp", f"{POOL_LOCK}\n    for (size_t", "for (size_t", "pool_take"),
    Fault("pool: give without lock", "pool.cpp", f"{POOL_LOCK}\n    p.free.push", "p.free.push", "pool_give"),
    Fault("pool: trim without lock", "pool.cpp", f"{POOL_LOCK}\n    dropped.swap", "dropped.swap", "pool_trim"),
    Fault(
        "barrier: arrivals without order", "schedule.h", "me->weight, std::memory_order_acq_rel",
        "me->weight, std::memory_order_relaxed", "forward",
    ),
    Fault(
        "barrier: waiting without order", "schedule.h", "arrived_.load(std::memory_order_acquire)",
        "arrived_.load(std::memory_order_relaxed)", "forward",
    ),
    Fault("barrier: none", "schedule.h", "task.barrier = SpinBarrier::wait", "task.barrier = [](void*) {}", "forward"),
    Fault(
        "scratch of all threads", "schedule.h", "task.scratch = buffer.data() + first * each",
        "task.scratch = buffer.data()", "race",
    ),
    Fault(
        "parallel: exceptions without lock", "schedule.h", "const std::lock_guard<std::mutex> lock(mutex);\n", "",
        "parallel",
    ),
    Fault(
        "first use without order", "fork.h", "current_.load(std::memory_order_acquire)",
        "current_.load(std::memory_order_relaxed)", "ForkSafe",
    ),
    Fault("fork: the parent's cache", "fork.h", "owned && owned->depth == depth", "owned", "wrong: a child begins"),
    Fault("cache: packed from others", "packed_weights.h", "pack(own.layer)", "pack(layer)", "wrong: the results"),
)  # fmt: skip


def compiled(root: Path, source: str, folder: Path) -> Path:
    """The object of a source of the tree at `root`."""
    output = folder / f"{Path(source).stem}.o"
    macros = ["-DSF_ISA=kernels_base", '-DSF_ISA_NAME="base"'] if source == KERNELS else []
    folder.mkdir(parents=True, exist_ok=True)
    stand_in = f"-I{ROOT / 'tests/tsan/stand_in'}"
    subprocess.run([*COMPILER, *FLAGS, *macros, stand_in, "-c", str(root / source), "-o", str(output)], check=True)
    return output


def kernels() -> Path:
    """The kernels' object, which is kept until one of its sources changes."""
    kept = KEPT / "kernels.o"
    sources = [path for folder in ("core", "cpu/kernels") for path in (ROOT / "csrc" / folder).iterdir()]
    newest = max(path.stat().st_mtime for path in (*sources, Path(__file__)))
    return kept if kept.exists() and kept.stat().st_mtime > newest else compiled(ROOT, KERNELS, KEPT)


def built(root: Path, folder: Path, jobs: int) -> Path:
    with ThreadPoolExecutor(jobs) as pool:
        objects = [pool.submit(kernels), *(pool.submit(compiled, root, source, folder) for source in SOURCES)]
    driver, paths = folder / "driver", [str(each.result()) for each in objects]
    subprocess.run([*COMPILER, *FLAGS, *paths, "-o", str(driver)], check=True)
    return driver


def run(driver: Path) -> tuple[int, str]:
    """The exit status and the report. Where addresses are too random for ThreadSanitizer, they are fixed."""
    environment = os.environ | {"TSAN_OPTIONS": f"halt_on_error=1:exitcode={RACE}:second_deadlock_stack=1"}
    for before in ([], ["setarch", "-R"]):
        command = [*before, "timeout", str(SECONDS), str(driver)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if "unexpected memory mapping" not in done.stderr:
            break
    return done.returncode, done.stdout + done.stderr


def outcome(fault: Fault) -> str:
    """Puts a fault into a copy of the sources: `reported: ...`, or what is wrong."""
    root = KEPT / "faults" / str(FAULTS.index(fault))
    shutil.rmtree(root, ignore_errors=True)
    for part in ("csrc", "tests/tsan"):
        shutil.copytree(ROOT / part, root / part)
    path = root / "csrc/cpu/host" / fault.file
    text = path.read_text()
    if text.count(fault.old) != 1:
        return f"NOT THERE: its text occurs {text.count(fault.old)} times"
    path.write_text(text.replace(fault.old, fault.new))
    status, report = run(built(root, root / "objects", jobs=1))
    if status not in (1, RACE) or fault.found not in report:
        return f"NOT REPORTED: exit status {status}\n{report[:3000]}"
    shutil.rmtree(root)
    lines = report.splitlines()
    return "reported: " + next(line.strip() for line in lines if "SUMMARY" in line or line.startswith("wrong"))


def main() -> int:
    parser = argparse.ArgumentParser(description="Run what threads share under ThreadSanitizer.")
    parser.add_argument("--no-faults", action="store_true", help="only the sources as they are")
    parser.add_argument("--only", metavar="WORDS", default="", help="only faults whose name contains this")
    chosen, jobs = parser.parse_args(), len(os.sched_getaffinity(0))
    start = time.monotonic()
    status, report = run(built(ROOT, KEPT, jobs))
    took = time.monotonic() - start
    print(f"{report[-6000:]}the sources as they are: exit status {status}, {took:.0f} s", flush=True)
    if status or chosen.no_faults:
        return 1 if status else 0
    faults = [fault for fault in FAULTS if chosen.only in fault.name]
    with ThreadPoolExecutor(jobs) as pool:
        outcomes = []
        for fault, words in zip(faults, pool.map(outcome, faults), strict=True):
            print(f"{fault.name:34} {words}", flush=True)
            outcomes.append(words.startswith("reported"))
    print(f"{sum(outcomes)} of {len(faults)} planted faults reported, {time.monotonic() - start:.0f} s")
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Compiles csrc/cuda and checks properties of the kernels that no test on a CPU can see.

    python tools/cuda_check.py [--cuobjdump PATH] [--jobs N] [--static-report FILE]

The checks: no spills, no local memory; in the time loop of a recurrent kernel the right number of tensor core
instructions, barriers and waits, no product that a branch skips, and words between blocks at the scope of the device;
between a wait for other blocks of a cluster and the product a barrier of the warp. nvcc, c++filt and cuobjdump are
needed. cuobjdump is that of --cuobjdump, that of CUOBJDUMP, one on the PATH, or that of the triton package, which comes
with a CUDA torch. The flags are those of setup.py, so that the code that is checked is the code that is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path

import sass
import step_model
import step_report

ROOT = Path(__file__).resolve().parents[1]
ARCHS = ("sm_80", "sm_90a")
LATER_ARCHS = ("sm_100a", "sm_120a")  # for these only a kernel that calls most of device.cuh is compiled
MAX_SHOWN = 4  # kernels listed under each problem
MAX_SECONDS = 360  # for compiling everything on 2 idle cores

RECURRENT = re.compile(
    r"\bsf::cuda::recur<sf::cuda::Shape<sf::(?P<cell>\w+(?:<.*?>+)?), sf::cuda::(?P<precision>\w+), (?P<splits>\d+), "
    r"(?P<k_tiles>\d+), \(sf::cuda::Pass\)(?P<backward>[01]), (?P<options>true|false|\(bool\)[01])>, "
    r"sf::cuda::(?P<regime>\w+)>"
)
# Barriers of the block and waits for an mbarrier in the time loop, per step. Warps that share K have one more barrier.
WAITS = {"Onchip": (1, 0), "Cluster": (0, 1), "Grid": (1, 0)}
FORBIDDEN = {
    "MEMBAR": "waits for all earlier stores",
    "ERRBAR": "waits for all earlier stores",
    "CCTL": "drops the L1 cache",
    "UCGABAR": "is a barrier of the whole cluster",
}

VOCABULARY = """\
#include "kernels/device.cuh"

namespace sf::cuda {
SF_KERNEL(128) vocabulary(float* out, uint64_t* words) {
  SharedAllocator allocator;
  const auto operand = allocator.take<uint16_t>(1024);
  for (int i = thread_id(); i < 1024; i += block_threads()) operand.store(i, to_bf16(out[i]));
  cta_sync();
  const uint4 b = load_matrices(operand, thread_id() % 32 * 8);
  const uint32_t a[4] = {b.x, b.y, b.z, b.w};
  float d[4] = {};
  mma_bf16(d, a, b.x, b.y);
  mma_fp16(d, a, b.z, b.w);
  mma_tf32(d, a, b.x, b.z);
  post(words, bits_of(exp2_approx(d[0])), 1);
  out[thread_id()] = reciprocal_approx(d[1]) + static_cast<float>(poll(words + 1));
  cluster_sync();
}
}  // namespace sf::cuda
"""


@dataclass
class Usage:
    """The resources of a kernel that ptxas -v reports, with those of the functions that it calls."""

    registers: int = 0
    stack: int = 0
    spills: int = 0
    static_shared: int = 0


@dataclass
class Checked:
    """One source compiled for one architecture: its problems, and the rows of the report."""

    problems: dict[str, list[str]] = field(default_factory=dict)  # each problem with the kernels that have it
    rows: list[step_model.Row] = field(default_factory=list)
    kernels: int = 0
    recurrent: int = 0
    most_registers: int = 0


def parse_ptxas(log: str) -> dict[str, Usage]:
    usages: dict[str, Usage] = {}
    usage = Usage()
    for line in log.splitlines():
        if found := re.search(r"Compiling entry function '(\S+)'", line):
            usage = usages.setdefault(found[1], Usage())
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            usage.stack += int(found[1])
            usage.spills += int(found[2]) + int(found[3])
        elif found := re.search(r"Used (\d+) registers", line):
            usage.registers = int(found[1])
            shared = re.search(r"(\d+) bytes smem", line)
            usage.static_shared = int(shared[1]) if shared else 0
    return usages


def parse_launch_bounds(ptx: str) -> dict[str, int]:
    """The most threads of a block, for each kernel that states it."""
    bounds = {}
    for entry in re.split(r"\.entry\s+", ptx)[1:]:
        header = entry.split("{", 1)[0]
        if found := re.search(r"\.maxntid\s+(\d+)(?:,\s*(\d+))?(?:,\s*(\d+))?", header):
            name = re.match(r"[\w$]+", entry)
            bounds[name[0] if name else ""] = int(found[1]) * int(found[2] or 1) * int(found[3] or 1)
    return bounds


def register_cap(warps: int) -> int:
    """The most registers a thread of a block may have, by the same formula as in plan.h."""
    return min(255, 16384 // (32 * -(-warps // 4)) // 8 * 8)


@lru_cache
def cells() -> dict[str, tuple[str, int]]:
    """The name and the number of gates of each cell in csrc/core/cells.h, by its type as nvcc prints it."""
    text = (ROOT / "csrc/core/cells.h").read_text()
    gates = dict(re.findall(r"^struct (\w+) \{[^{}]*?\bkGates = (\d+)", text, re.MULTILINE))
    bases = dict(re.findall(r"^struct (\w+) : (\w+) \{", text, re.MULTILINE))
    aliases = {
        name: f"{kind}<sf::{argument}>" for name, kind, argument in re.findall(r"using (\w+) = (\w+)<(\w+)>;", text)
    }
    found = {}
    for name, option, kind in re.findall(r"^ +X\((\w+), (?:(\w+)<)?(\w+)>?\)", text, re.MULTILINE):
        printed = aliases.get(kind, kind)
        plain = printed.split("<")[0]
        printed = f"{option}<sf::{printed}>" if option else printed
        found[printed] = name, int(gates[bases.get(plain, plain)])
    return found


def recurrent_kernel(demangled: str) -> step_model.Kernel | None:
    found = RECURRENT.search(demangled)
    if found is None:
        if re.search(r"\brecur<", demangled):
            raise ValueError(f"expected the template arguments that RECURRENT describes but got {demangled}")
        return None
    cell, gates = cells()[found["cell"].replace("> >", ">>")]
    return step_model.Kernel(
        cell=cell,
        gates=gates,
        backward=found["backward"] == "1",
        precision=found["precision"],
        splits=int(found["splits"]),
        k_tiles=int(found["k_tiles"]),
        regime=found["regime"],
        options=found["options"] in ("true", "(bool)1"),
    )


def usage_problems(usage: Usage, threads: int | None) -> list[str]:
    problems = []
    if usage.spills or usage.stack:
        problems.append(f"expected no spills and no stack but got {usage.spills} and {usage.stack} bytes")
    if usage.static_shared:
        problems.append(f"expected all shared memory to be the launch's but {usage.static_shared} bytes are static")
    if threads is None:
        problems.append("expected a launch bound, which decides how many registers there are")
    elif usage.registers > register_cap(-(-threads // 32)):
        cap = register_cap(-(-threads // 32))
        problems.append(f"expected at most {cap} registers with {threads} threads but got {usage.registers}")
    return problems


def warp_barrier_problems(ptx: str) -> dict[str, list[str]]:
    """The problems of the kernels that wait for an mbarrier, by the kernel's name.

    The lanes of a warp may see the end of a phase at different tries. The compiler must therefore be told that they
    come together before the next instruction that all lanes run as one. ptxas may need no instruction for it, so the
    PTX is read.
    """
    problems = {}
    for entry in re.split(r"\.entry\s+", ptx)[1:]:
        _, *after = re.split(r"\bmbarrier\.try_wait\b", entry)
        apart = sum(not re.search(r"\bbar\.warp\.sync\b", part.split("ldmatrix", 1)[0]) for part in after)
        if apart:
            name = re.match(r"[\w$]+", entry)
            problems[name[0] if name else ""] = [
                f"expected a bar.warp.sync between a wait for an mbarrier and ldmatrix but {apart} waits have none"
            ]
    return problems


def convergence_problems(loop: sass.Loop) -> list[str]:
    """Instructions that all lanes of a warp must run together, but which a branch in the time loop jumps over.

    Code behind the branch that closes the loop, such as the retry of a wait, is left out: it comes back to where it
    was left.
    """
    branches = {}
    for one in loop.code:
        target = sass.TARGET.search(one.operands) if one.opcode == "BRA" and one.guarded and not one.never else None
        if target:
            branches[one.address] = int(target[1], 16)
    head = loop.code[0].address
    closing = max((address for address, target in branches.items() if target == head), default=head)
    together = [one.address for one in loop.code if re.match("HMMA|LDSM", one.text)]
    for address, target in branches.items():
        if target <= closing and (skipped := sum(address < other < target for other in together)):
            return [f"expected no branch over HMMA or LDSM but one at {address:#x} skips {skipped} of them"]
    return []


def count_waits(loop: sass.Loop, inner: Sequence[sass.Loop]) -> tuple[int, int, int]:
    """Barriers of the block, named barriers, and waits for an mbarrier. A wait counts once, whatever retries it has."""
    barriers = [instruction for instruction in loop.code if instruction.text.startswith("BAR.")]
    of_block = sum(instruction.operands == "0x0" for instruction in barriers)
    retries = [one for one in inner if one.count(r"SYNCS\.PHASECHK")]
    first_tries = loop.count(r"SYNCS\.PHASECHK") - sum(one.count(r"SYNCS\.PHASECHK") for one in retries)
    return of_block, len(barriers) - of_block, max(first_tries, len(retries))


def loop_problems(kernel: step_model.Kernel, loop: sass.Loop, inner: Sequence[sass.Loop]) -> list[str]:
    problems = []
    hmma = loop.count("HMMA")
    steps, rest = divmod(hmma, kernel.step_hmma)
    if rest:
        problems.append(f"expected {kernel.step_hmma} HMMA a step but the time loop has {hmma}")
    for pattern, why in FORBIDDEN.items():
        if count := loop.count(f"(CGA)?{pattern}"):
            problems.append(f"expected no {pattern}, which {why}, but the time loop has {count}")
    if calls := sum(instruction.calls for instruction in loop.code):
        problems.append(f"expected no function called, as this check cannot see into it, but the time loop has {calls}")
    problems += convergence_problems(loop)
    if kernel.regime == "Grid":
        for what, pattern in (("reads", r"LDG\.E\.64"), ("writes", r"STG\.E\.64")):
            strong = loop.count(pattern + r"\.STRONG\.GPU")
            if not strong:
                problems.append(f"expected {what} of 64 bits with .STRONG.GPU but the time loop has none")
    barriers, mbarrier = WAITS[kernel.regime]
    # The units of a row that meet within a step have a barrier before the totals, and one behind them.
    barriers = barriers * kernel.exchanges + kernel.meetings * 2
    expected = (barriers, mbarrier, int(kernel.splits > 1) * kernel.exchanges)
    of_block, named, mbarriers = count_waits(loop, inner)
    names = ("block barriers", "mbarrier waits", "named barriers")
    for name, per_step, count in zip(names, expected, (of_block, mbarriers, named), strict=True):
        if count != per_step * max(steps, 1):
            problems.append(f"expected {per_step} {name} a step but the time loop has {count}")
    return problems


def check_kernel(
    demangled: str, code: list[sass.Instruction], usage: Usage, threads: int | None, arch: str
) -> tuple[list[str], step_model.Row | None]:
    problems = usage_problems(usage, threads)
    local = [instruction.text for instruction in code if re.match("LDL|STL", instruction.text)]
    if local:
        problems.append(f"expected no local memory but {len(local)} instructions use it, the first {local[0]}")
    kernel = recurrent_kernel(demangled)
    generation = int(re.sub(r"\D", "", arch))
    if kernel is None or (kernel.regime == "Cluster" and generation < 90):  # there are no clusters below
        return problems, None
    found = sass.loops(code)
    loop = sass.time_loop(found)
    if loop is None:
        return [*problems, "expected HMMA in a loop but found none"], None
    inner = [one for one in found if loop.contains(one)]
    problems += loop_problems(kernel, loop, inner)
    warps = -(-(threads or 1024) // 32)
    row = step_model.estimate(
        kernel, loop, inner, warps=warps, registers=usage.registers, cap=register_cap(warps), spills=usage.spills
    )
    return problems, row


def demangle(names: Iterable[str]) -> list[str]:
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None:
        raise SystemExit("cuda_check: expected cu++filt or c++filt on the PATH, to read the kernels' names")
    result = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    return result.stdout.splitlines()


@dataclass(frozen=True)
class Job:
    source: Path
    arch: str
    folder: Path
    command: tuple[str, ...]  # nvcc and its flags

    @property
    def stem(self) -> str:
        return f"{self.source.stem}-{self.arch}"

    @property
    def cubin(self) -> Path:
        return self.folder / f"{self.stem}.cubin"


def compile_one(job: Job) -> tuple[str, float]:
    """Compile, and return the output of nvcc with the CPU time, which does not depend on the load of the machine."""
    kept = job.folder / job.stem
    kept.mkdir()
    command = [*job.command, "-Xptxas=-v", "--keep", f"--keep-dir={kept}", "-cubin"]
    before = os.times()
    result = subprocess.run([*command, "-o", str(job.cubin), str(job.source)], capture_output=True, text=True, cwd=ROOT)
    after = os.times()
    seconds = after.children_user - before.children_user + after.children_system - before.children_system
    return result.stderr + result.stdout, seconds


def check_one(job: Job, log: str, *, cuobjdump: str) -> Checked:
    """Run all checks on one compiled source."""
    dump = subprocess.run([cuobjdump, "-sass", str(job.cubin)], capture_output=True, text=True, check=True).stdout
    kernels, usages = sass.parse(dump), parse_ptxas(log)
    ptx = (job.folder / job.stem / f"{job.source.stem}.ptx").read_text()
    bounds, apart = parse_launch_bounds(ptx), warp_barrier_problems(ptx)
    checked = Checked(kernels=len(usages))
    if missing := set(usages) - set(kernels):
        checked.problems[f"{job.arch}: expected every kernel in the disassembly"] = sorted(missing)
    for mangled, name in zip(usages, demangle(usages), strict=True):
        if mangled in missing:
            continue
        usage = usages[mangled]
        problems, row = check_kernel(name, kernels[mangled], usage, bounds.get(mangled), job.arch)
        for problem in [*problems, *apart.get(mangled, [])]:
            checked.problems.setdefault(f"{job.arch}: {problem}", []).append(f"{job.source.name}: {name}")
        checked.most_registers = max(checked.most_registers, usage.registers)
        if row is not None:
            checked.recurrent += 1
            checked.rows.append(row)
    return checked


def find_cuobjdump(wanted: str | None) -> str:
    """The path of a disassembler. Exits with a sentence if there is none."""
    wanted = wanted or os.environ.get("CUOBJDUMP")
    if wanted:
        if shutil.which(wanted) is None:
            raise SystemExit(f"cuda_check: expected a cuobjdump but {wanted} cannot be run")
        return wanted
    triton = importlib.util.find_spec("triton")
    in_wheel = Path(triton.origin).parent / "backends/nvidia/bin/cuobjdump" if triton and triton.origin else None
    found = shutil.which("cuobjdump") or (in_wheel and shutil.which(in_wheel))
    if not found:
        raise SystemExit(
            "cuda_check: expected cuobjdump on the PATH, in CUOBJDUMP, in --cuobjdump, or in the triton of the python "
            "that runs this (a CUDA build of torch brings one)"
        )
    return str(found)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--cuobjdump", help="the disassembler")
    parser.add_argument("--jobs", type=int, default=2, help="compilations at once (default 2)")
    parser.add_argument("--static-report", type=Path, metavar="FILE", help="write the static estimates of every kernel")
    parser.add_argument("sources", nargs="*", type=Path, help="check these instead of all of csrc/cuda")
    arguments = parser.parse_args(argv)
    cuobjdump = find_cuobjdump(arguments.cuobjdump)
    sys.path.insert(0, str(ROOT))
    import setup as build  # has the flags

    toolkit = build.find_toolkit()
    if toolkit is None:
        raise SystemExit("cuda_check: expected nvcc in CUDA_HOME or on the PATH")
    sources = [path.resolve() for path in arguments.sources] or build.CUDA_SOURCES
    if not sources:
        raise SystemExit("cuda_check: expected .cu files in csrc/cuda but there are none")

    problems: dict[str, list[str]] = {}
    rows: list[step_model.Row] = []
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(arguments.jobs) as pool:
        folder = Path(name)
        vocabulary = folder / "vocabulary.cu"
        vocabulary.write_text(VOCABULARY)
        commands = {
            arch: (toolkit.nvcc, *build.nvcc_flags([arch.removeprefix("sm_")]), f"-I{ROOT / 'csrc/cuda'}")
            for arch in (*ARCHS, *LATER_ARCHS)
        }
        jobs = [Job(source, arch, folder, commands[arch]) for source in sources for arch in ARCHS]
        later = [Job(vocabulary, arch, folder, commands[arch]) for arch in LATER_ARCHS]
        logs = dict(zip([*jobs, *later], pool.map(compile_one, [*jobs, *later]), strict=True))
        total = sum(seconds for _, seconds in logs.values()) / 2
        for job, (log, seconds) in logs.items():
            print(f"{job.stem:32s} {seconds:6.1f} s")
            if not job.cubin.exists():
                errors = [line for line in log.splitlines() if "error" in line] or log.splitlines()
                problems[f"{job.stem}: nvcc could not compile it"] = errors
        print(f"compiling takes {total:.0f} s of two cores (at most {MAX_SECONDS} s)")
        if total > MAX_SECONDS:
            problems[f"compiling: expected at most {MAX_SECONDS} s but it took {total:.0f} s"] = []

        built = [job for job in jobs if job.cubin.exists()]
        results = list(pool.map(partial(check_one, cuobjdump=cuobjdump), built, [logs[job][0] for job in built]))
    for arch in ARCHS:
        mine = [checked for job, checked in zip(built, results, strict=True) if job.arch == arch]
        for problem, where in (item for checked in mine for item in checked.problems.items()):
            problems.setdefault(problem, []).extend(where)
        recurrent = sum(checked.recurrent for checked in mine)
        most = max((checked.most_registers for checked in mine), default=0)
        print(f"{arch}: {sum(one.kernels for one in mine)} kernels, {recurrent} time loops, at most {most} registers")
        if not recurrent and not arguments.sources:
            problems[f"{arch}: expected recurrent kernels but found none"] = []
        rows = [row for checked in mine for row in checked.rows]  # the report has those of the last architecture
    if arguments.static_report and not problems:
        text = step_report.report(rows, arch=ARCHS[-1], nvcc=f"nvcc {toolkit.release}")
        arguments.static_report.parent.mkdir(parents=True, exist_ok=True)
        arguments.static_report.write_text(text)
        print(f"wrote {arguments.static_report}")
    for problem, where in problems.items():
        more = [f"and {len(where) - MAX_SHOWN} more"] if len(where) > MAX_SHOWN else []
        print("\n    ".join([problem, *where[:MAX_SHOWN], *more]), file=sys.stderr)
    print(f"{len(problems)} problems" if problems else "nothing wrong")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

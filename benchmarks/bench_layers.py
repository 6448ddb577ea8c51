"""torch.nn's recurrent layers against ours: tables with verdicts, or cases for pytest-benchmark.

    python benchmarks/bench_layers.py --quick                        a look in under a minute
    python benchmarks/bench_layers.py --json NAME --markdown FILE    everything; appends to benchmarks/results/NAME.json
    pytest benchmarks/bench_layers.py --benchmark-autosave -k GRU    then again with --benchmark-compare

Each row passes a correctness gate against float64 before it is timed, and shows both sides' error. Defaults on both
sides: eager, batch_first, torch's own allocator; inference returns the full output, the training loss is h_n.sum().
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import harness
import layer_cases
import pytest
import report
import torch
from layer_cases import PER_SAMPLE, SHAPES, TINY, WHATS, Case, Shape, Side
from report import CELLS, Row

import seqcls_fast as sf
from seqcls_fast import _ext, ops

ROOT = Path(__file__).resolve().parent.parent
HOPELESS = 3.0  # a torch side this many times slower than the other one, and slower than a second, is called once


class Machine:
    """The measured limits, and one noise guard per thread count."""

    def __init__(self) -> None:
        self.peak = harness.Peak()
        self.isa = self.peak.widest()
        quiet = self.peak.quiet_gflops(f"{self.isa}-float32", 1)
        self.clock, self.flop_per_clock = self.peak.clock_ghz(quiet)
        self._guards: dict[int, harness.Guard] = {}

    def guard(self, threads: int) -> harness.Guard:
        if threads not in self._guards:
            self._guards[threads] = harness.Guard(self.peak, threads, f"{self.isa}-float32")
        return self._guards[threads]

    def kind(self, what: str) -> str:
        """The micro-benchmark whose peak bounds this table."""
        if what == "avx2":
            return "avx2-float32"
        dots = what == "bf16" and "avx512_bf16" in ops.available_impls()
        return f"{self.isa}-{'bfloat16' if dots else 'float32'}"

    def describe(self, threads: Sequence[int]) -> list[str]:
        kinds = [f"{isa}-{dtype}" for isa in ("avx512", "avx2", "base") for dtype in ("float32", "float64", "bfloat16")]
        peaks = []
        for kind in kinds:
            values = [self.peak.quiet_gflops(kind, n, tries=10) for n in threads]
            if values[0] > 0:
                peaks.append(f"{kind} {' / '.join(f'{value:.0f}' for value in values)}")
        sizes = {"32 KB": 32, "512 KB": 512, "8 MB": 8192, "256 MB": 262144}
        reads = [f"{name} {self.peak.read_gbs(size, 1):.0f}" for name, size in sizes.items()]
        far = f"; core-to-core round trip {self.peak.round_trip_ns():.0f} ns" if (os.cpu_count() or 1) > 1 else ""
        return [
            f"{harness.cpu_model()}, {os.cpu_count()} CPUs; {harness.pinning()}",
            f"peak GFLOP/s at {'/'.join(map(str, threads))} threads: {', '.join(peaks)}",
            f"clock {self.clock:.2f} GHz = {self.isa} float32 peak / {self.flop_per_clock} flop per clock",
            f"read GB/s, one thread: {', '.join(reads)}{far}",
        ]


@dataclasses.dataclass
class Budget:
    """Shares the time left among the rows still to come, in proportion to what each is expected to take."""

    minutes: float
    cases: list[tuple[Case, int]]
    rounds: int
    min_time: float
    start: float = dataclasses.field(default_factory=time.perf_counter)

    def _expected(self, case: Case, threads: int) -> float:
        sides = 3 if case.ragged or case.what in report.OTHERS else 2
        torch_gflops = 60 if case.cell == "LSTM" and not case.ragged else 30  # a thread, roughly
        if case.per_sample:
            torch_gflops /= 10
        return self.rounds * sides * self.min_time + (self.rounds + 2) * 1.3 * layer_cases.gflop_of(case) / (
            torch_gflops * threads
        )

    def allowance(self, index: int) -> float:
        """Seconds for the row at `index`; at most twice what it is expected to take."""
        left = 60 * self.minutes - (time.perf_counter() - self.start)
        expected = [self._expected(*each) for each in self.cases[index:]]
        return expected[0] * max(0.0, min(2.0, left / sum(expected)))


def measure_row(case: Case, threads: int, machine: Machine, allowance: float, rounds: int, min_time: float) -> Row:
    """Gate, then time; a wrong result of ours leaves the row without times."""
    guard = machine.guard(threads)
    guard.recent = 0.0
    layer_cases.reference(case)
    with layer_cases.grad_mode(case):
        sides = layer_cases.sides_of(case)
        first, errors = {}, {}
        for name, side in sides.items():
            first[name], values = harness.timed_once(side)
            if name == "ours" or name.startswith("torch"):
                errors[name] = layer_cases.error_of(case, side, values)
        shape = tuple(case.shape)
        if not errors["ours"] <= case.error_bound:
            torch_error = min(error for name, error in errors.items() if name != "ours")
            return Row(
                case.what, case.cell, shape, threads, None, None, torch_error=torch_error, our_error=errors["ours"]
            )

        rivals = [name for name in sides if name.startswith("torch")]
        best = min(first[name] for name in rivals)
        once = [name for name in rivals if first[name] > max(1.0, HOPELESS * best)]
        timed = {name: side for name, side in sides.items() if name not in once}
        if case.what == "avx2":
            del timed["torch"]  # not a rival: it uses AVX-512 where there is one
        times = harness.measure(timed, guard, first=first, min_time=min_time, max_rounds=rounds, allowance=allowance)
    ours = times["ours"]
    row = Row(case.what, case.cell, shape, threads, None, ours.seconds, rounds=len(ours.good), once=once)
    row.our_error = errors["ours"]
    rival = min((name for name in rivals if name in times), key=lambda name: times[name].seconds, default="torch")
    row.torch_side, row.torch_error = rival, errors[rival]
    involved = [ours]
    if rival in times:
        ratio = harness.Ratio.of(times[rival], ours)
        row.torch_s, row.ratio, row.low, row.high = times[rival].seconds, ratio.value, ratio.low, ratio.high
        involved.append(times[rival])
    for name in (f"ours {other}" for other in report.OTHERS.values()):
        if name in times:
            row.other_s, row.other_ratio = times[name].seconds, times[name].seconds / ours.seconds
            involved.append(times[name])
    row.starred = any(side.starred for side in involved)
    if case.what != "overhead":
        kind = machine.kind(case.what)
        gflops = max(
            guard.recent_peak if kind == guard.kind else 0.0, machine.peak.quiet_gflops(kind, threads, tries=10)
        )
        clock = guard.recent_peak / threads / machine.flop_per_clock
        row.gflops = layer_cases.gflop_of(case) / ours.seconds
        row.share = layer_cases.roofline_seconds(case, gflops, clock, threads) / ours.seconds
        if case.what == "avx2":
            row.wide_share = layer_cases.roofline_seconds(case, gflops, clock, threads, lanes=8) / ours.seconds
    return row


# -- table mode -------------------------------------------------------------------------------------------------------


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def run_facts() -> dict[str, Any]:
    """What has to be known to compare two result files."""
    sources = sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file())
    digest = hashlib.sha256(b"".join(str(path.relative_to(ROOT)).encode() + path.read_bytes() for path in sources))
    changed = _git("status", "--porcelain", "--", "csrc", "seqcls_fast")
    return {
        "time": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": harness.cpu_model(),
        "cpus": os.cpu_count(),
        "pinning": harness.pinning(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "seqcls_fast": sf.__version__,
        "impl": ops.available_impls()[-1],
        "build": dict(_ext.C.build_info()) if _ext.C is not None else {},
        "commit": (_git("rev-parse", "--short", "HEAD") or "none") + ("+changes" if changed else ""),
        "csrc": digest.hexdigest()[:12],
    }


def _cases(arguments: argparse.Namespace) -> Iterator[tuple[Case, int]]:
    for what in arguments.what:
        for threads in arguments.threads:
            if what == "overhead":
                if threads == arguments.threads[0]:  # one row of one step: nothing to share
                    yield from ((Case(what, cell, TINY), threads) for cell in arguments.cells)
            else:
                shapes = [s for s in arguments.shapes if what != "per-sample" or s not in set(SHAPES) - set(PER_SAMPLE)]
                yield from ((Case(what, cell, shape), threads) for cell in arguments.cells for shape in shapes)


def _line(row: Row, header: bool) -> str:
    """One row of the live table; the Markdown one comes with --markdown."""
    cells = report.columns(row)
    widths = {name: max(len(name), {"B, T, I, H": 17, "quartiles": 13, "torch ms": 12}.get(name, 7)) for name in cells}
    lines = ["  ".join(text.ljust(widths[name]) for name, text in cells.items()).rstrip()]
    if header:
        lines = [
            f"\n{report.titled(row.what, row.threads)}",
            "  ".join(name.ljust(widths[name]) for name in cells),
            *lines,
        ]
    return "\n".join(lines)


def _results_file(name: str) -> Path:
    path = Path(name)
    return path if path.suffix or len(path.parts) > 1 else ROOT / "benchmarks" / "results" / f"{name}.json"


def run_tables(arguments: argparse.Namespace) -> int:
    facts, machine = run_facts(), Machine()
    facts["limits"] = machine.describe(arguments.threads)
    print("\n".join(facts["limits"]))
    print(
        f"torch {facts['torch']}, seqcls_fast {facts['seqcls_fast']} ({facts['impl']}), commit {facts['commit']}, "
        f"csrc {facts['csrc']}; budget {arguments.budget_minutes:g} min, "
        f"{arguments.rounds} rounds of {arguments.min_time:g} s"
    )
    cases = list(_cases(arguments))
    budget = Budget(arguments.budget_minutes, cases, arguments.rounds, arguments.min_time)
    output = None
    if arguments.json:
        file = _results_file(arguments.json)
        file.parent.mkdir(parents=True, exist_ok=True)
        output = file.open("a")
        print(json.dumps({"run": facts}), file=output, flush=True)
    rows: list[Row] = []
    for index, (case, threads) in enumerate(cases):
        torch.set_num_threads(threads)
        allowance = budget.allowance(index)
        row = measure_row(case, threads, machine, allowance, arguments.rounds, arguments.min_time)
        table = [old for old in rows if (old.what, old.threads) == (row.what, threads)]
        rows.append(row)
        print(_line(row, header=not table), flush=True)
        if output:
            print(json.dumps({"row": dataclasses.asdict(row)}), file=output, flush=True)
        if index + 1 == len(cases) or (cases[index + 1][0].what, cases[index + 1][1]) != (case.what, threads):
            print("\n".join(report.verdict([*table, row], rows)), flush=True)
    guards = machine._guards.values()
    print(
        f"\n{(time.perf_counter() - budget.start) / 60:.1f} minutes; {sum(g.accepted for g in guards)} blocks counted, "
        f"{sum(g.rejected for g in guards)} discarded as disturbed"
    )
    if arguments.markdown:
        Path(arguments.markdown).write_text("\n".join(facts["limits"]) + "\n\n" + report.tables(rows))
    return 1 if any(row.ours_s is None for row in rows) else 0


def _list_of(choices: Sequence[str]) -> Any:
    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in choices]:
            raise argparse.ArgumentTypeError(f"expected names out of {', '.join(choices)}, got {', '.join(unknown)}")
        return names

    return parse


def _counts(text: str) -> list[int]:
    return [int(count) for count in text.split(",")]


def _shapes(text: str) -> list[Shape]:
    try:
        return [Shape(*(int(size) for size in shape.split("x"))) for shape in text.split(",")]
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(f"expected BxTxIxH,BxTxIxH,... but got {text}") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="torch.nn against seqcls_fast, interleaved in one process, behind a correctness gate.",
        epilog="Lists are comma-separated. Needs a C++ compiler, and a quiet machine to mean much.",
    )
    cpus = os.cpu_count() or 1
    parser.add_argument(
        "--threads", metavar="N,...", type=_counts, default=[1, 2] if cpus > 1 else [1],
        help="thread counts, 1 first: the others are held against it (default: 1,2)",
    )  # fmt: skip
    parser.add_argument(
        "--what", type=_list_of(WHATS), default=list(WHATS), help=f"any of {','.join(WHATS)} (default: all)"
    )
    parser.add_argument("--cells", type=_list_of(CELLS), default=list(CELLS), help=f"any of {','.join(CELLS)}")
    parser.add_argument("--shapes", type=_shapes, metavar="BxTxIxH,...", help="default: the eight the goals are set on")
    parser.add_argument("--quick", action="store_true", help="one thread, three small shapes, few short rounds")
    parser.add_argument(
        "--json", metavar="NAME", help="append to benchmarks/results/NAME.json (or to a file given as a path)"
    )
    parser.add_argument("--markdown", metavar="FILE", help="write the tables and verdicts there")
    parser.add_argument("--min-time", type=float, metavar="S", help="shortest block (default: 0.02)")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds of a row while the budget lasts (default: 7)")
    parser.add_argument(
        "--budget-minutes", type=float, default=10, metavar="M",
        help="rounds are cut, to no fewer than 3, to end about here (default: 10)",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    if arguments.quick:
        arguments.threads = arguments.threads[:1]
    arguments.shapes = arguments.shapes or list(SHAPES[:3] if arguments.quick else SHAPES)
    arguments.rounds = arguments.rounds or (3 if arguments.quick else 7)
    arguments.min_time = arguments.min_time or (0.005 if arguments.quick else 0.02)
    if "avx2" in arguments.what and "avx2" not in ops.available_impls():
        print(f"no avx2 table: impl must be one of {', '.join(ops.available_impls())} here")
        arguments.what.remove("avx2")
    return run_tables(arguments)


# -- pytest-benchmark -------------------------------------------------------------------------------------------------


def _pytest_cases() -> Iterator[Any]:
    for what in ("inference", "training", "ragged-inference", "ragged-training", "bf16"):
        for cell in CELLS:
            for shape in SHAPES:
                sides = ["torch padded", "torch packed", "ours"] if "ragged" in what else ["torch", "ours"]
                if what == "ragged-training" and shape.T > 128:
                    sides.remove("torch packed")  # up to 17 s a step; the table mode calls it once
                name = f"{what}-{cell}-{'x'.join(map(str, shape))}"
                yield from (pytest.param(Case(what, cell, shape), side, id=f"{name}-{side}") for side in sides)


@pytest.mark.parametrize(("case", "name"), _pytest_cases())
def test_layer(benchmark: Any, case: Case, name: str) -> None:
    """One side of one case at one thread; the group holds its rivals."""
    torch.set_num_threads(1)
    benchmark.group = str(case)
    layer_cases.reference(case)
    with layer_cases.grad_mode(case):
        side: Side = layer_cases.sides_of(case)[name]
        seconds, values = harness.timed_once(side)
        error = layer_cases.error_of(case, side, values)
        assert name != "ours" or error <= case.error_bound
        benchmark.extra_info.update(error=error, gflop=layer_cases.gflop_of(case))
        if seconds > 0.1:
            benchmark.pedantic(side, rounds=3)
        else:
            benchmark(side)


if __name__ == "__main__":
    sys.exit(main())

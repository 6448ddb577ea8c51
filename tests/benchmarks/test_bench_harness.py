"""The harness on fake clocks and engines: busy machines, turns, wrong results; and the commands, on small cases."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import seqcls_fast as sf
from benchmarks import compare, guard, harness, instructions, layer_cases, loops, peers, rows
from benchmarks.rows import Row, Side
from seqcls_fast.toolkit.timing import MIN_ROUNDS

ROOT = Path(__file__).parents[2]


class FakeGuard:
    """Samples take `seconds(name)` and are good if `good(name, how many the side has had)`."""

    def __init__(self, seconds: Callable[[str], float], good: Callable[[str, int], bool]) -> None:
        self.seconds, self.good = seconds, good
        self.order: list[str] = []

    def sample(self, call: Any, calls: int, warm: bool) -> tuple[float, bool]:
        name = call()
        self.order.append(name)
        return self.seconds(name), self.good(name, self.order.count(name))


def measured(guard: FakeGuard, names: str = "abc", first: float = 1e-3, **options: Any) -> dict[str, rows.Side]:
    sides = {name: lambda name=name: name for name in names}
    settings = {"min_time": 0.0, "max_rounds": 4, "allowance": 60.0} | options
    return harness.measure(sides, guard, first=dict.fromkeys(names, first), **settings)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(harness, "calls_per_sample", lambda call, min_time: 1)


def test_sides_take_turns() -> None:
    guard = FakeGuard(lambda name: 1.0, lambda name, number: True)
    measured(guard)
    assert "".join(guard.order) == "abc" + "bca" + "cab" + "abc"


def test_samples_of_a_busy_machine_are_repeated() -> None:
    guard = FakeGuard(lambda name: 1.0, lambda name, number: name != "b" or number % 2 == 0)
    sides = measured(guard)
    assert sides["b"].rounds == [1.0] * 4
    assert sides["b"].least == 1.0
    assert guard.order.count("b") == 8
    assert guard.order.count("a") == 4


def test_a_side_without_good_samples_keeps_its_least() -> None:
    times = iter([5.0, 3.0, 4.0] * 20)
    guard = FakeGuard(lambda name: next(times) if name == "b" else 1.0, lambda name, number: name != "b")
    side = measured(guard)["b"]
    assert side.rounds == [None] * 4
    assert side.value == 3.0
    assert side.starred
    assert guard.order.count("b") < 4 * (1 + harness.RETRIES), "it is given up"


def test_time_is_capped_but_three_rounds_are_measured() -> None:
    guard = FakeGuard(lambda name: 1.0, lambda name, number: True)
    sides = measured(guard, max_rounds=50, allowance=0.0)
    assert len(sides["a"].rounds) == MIN_ROUNDS


def test_a_side_far_behind_is_called_once() -> None:
    guard = FakeGuard(lambda name: 1.0, lambda name, number: True)
    sides = {name: lambda name=name: name for name in "ab"}
    first = {"a": 1.0, "b": 3.5}
    found = harness.measure(sides, guard, first=first, min_time=0.0, max_rounds=3, allowance=9.0)  # type: ignore[arg-type]
    assert found["b"].rounds == [1.0], "the first call was no sample"
    assert found["b"].note == "a single call"
    assert guard.order.count("b") == 1
    busy = FakeGuard(lambda name: 1.0, lambda name, number: name != "b")
    found = harness.measure(sides, busy, first=first, min_time=0.0, max_rounds=3, allowance=9.0)  # type: ignore[arg-type]
    assert found["b"].starred


def test_threads_that_shared_a_cpu_spoil_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a sample used less CPU time than the side's others, though no other process is seen."""
    clock = {"elapsed": 0.0, "used": 0.0}
    usage = lambda who: SimpleNamespace(ru_utime=clock["used"], ru_stime=0.0, ru_nivcsw=0)  # noqa: E731
    monkeypatch.setattr(guard.resource, "getrusage", usage)
    monkeypatch.setattr(guard.time, "perf_counter", lambda: clock["elapsed"])
    peak = SimpleNamespace(quiet_gflops=lambda *a: 100.0, gflops=lambda *a: 100.0)
    watch = guard.Guard(SimpleNamespace(peak=peak, threads=2, kind="any"))  # type: ignore[arg-type]

    def run(busy: float) -> None:
        clock["elapsed"] += 0.01
        clock["used"] += 0.01 * busy

    both, one = iter([2.0, 1.9, 1.0, 2.0]), iter([1.0, 1.0])
    on_both, on_one = lambda: run(next(both)), lambda: run(next(one))
    assert [watch.sample(on_both, 1, False)[1] for _ in range(4)] == [True, True, False, True]
    assert [watch.sample(on_one, 1, False)[1] for _ in range(2)] == [True, True], "an engine of one thread"


@pytest.fixture(scope="module")
def session() -> harness.Session:
    return harness.Session(1, quick=True, names=["torch"])


def test_a_row_of_a_layer(session: harness.Session) -> None:
    case = layer_cases.Case("GRU", layer_cases.Shape(3, 4, 5, 6))
    row = session.layer("layers", case)
    assert list(row.sides) == ["ours", "torch"]
    assert all(side.measured and side.error is not None and side.error < 1e-5 for side in row.sides.values())
    assert set(row.bounds) == {"arithmetic", "weights", "traffic"}
    assert 0 < max(row.bounds.values()) < row.sides["ours"].value


def test_a_wrong_result_is_never_timed(session: harness.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    case = layer_cases.Case("GRU", layer_cases.Shape(3, 4, 5, 6))

    def wrong(problem: layer_cases.Problem, threads: int) -> peers.Engine:
        engine = peers.build_ours(problem, threads)
        return peers.Engine(engine.run, lambda values: {n: v + 0.01 for n, v in engine.values(values).items()})

    def refuses(problem: layer_cases.Problem, threads: int) -> peers.Engine:
        def run() -> None:
            raise RuntimeError("no such layer\nand more")

        return peers.Engine(run, lambda values: values)

    fakes = [peers.Peer("wrong", "torch", lambda case: "", wrong), peers.Peer("shy", "torch", lambda case: "", refuses)]
    monkeypatch.setattr(peers, "PEERS", fakes)
    row = session.layer("layers", case, ["wrong", "shy"])
    assert not row.sides["wrong"].measured
    assert row.sides["wrong"].note.startswith("WRONG: error 1.0e-02")
    assert row.sides["shy"].note == "RuntimeError: no such layer"
    assert row.sides["ours"].measured
    monkeypatch.setattr(peers, "build_ours", lambda problem, threads: wrong_ours(problem, threads))
    monkeypatch.setattr(peers, "PEERS", [])

    def wrong_ours(problem: layer_cases.Problem, threads: int) -> peers.Engine:
        return peers.Engine(lambda: {n: v * 2 for n, v in layer_cases.reference(case).items()}, lambda values: values)

    row = session.layer("layers", case)
    assert not row.sides["ours"].measured


def test_frozen_weights_and_a_read_of_them(session: harness.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    @contextlib.contextmanager
    def frozen(module: Any) -> Iterator[None]:
        log.append("frozen")
        module.register_forward_pre_hook(lambda *_: log.append("called"))
        yield
        log.append("no longer")

    monkeypatch.setattr(sf, "frozen", frozen)
    case = layer_cases.Case("GRU", layer_cases.Shape(3, 1, 5, 6), state=True)
    row = session.layer("one_step", case, frozen=True, floor=True)
    assert list(row.sides) == ["ours", rows.FROZEN, "torch", rows.FLOOR]
    assert all(side.measured for side in row.sides.values())
    assert log[0] == "frozen"
    assert log[-1] == "no longer"
    assert set(log[1:-1]) == {"called"}
    assert row.bounds[rows.FLOOR] == row.sides[rows.FLOOR].value
    assert row.rivals() == ["torch"]


def test_a_wrong_result_with_frozen_weights_is_never_timed(
    session: harness.Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def frozen(module: Any) -> Iterator[None]:
        with torch.no_grad():
            module.bias_hh[0] += 0.01
        yield

    monkeypatch.setattr(sf, "frozen", frozen)
    case = layer_cases.Case("GRU", layer_cases.Shape(3, 1, 5, 6), single=True)
    plain, wrong = rows.both_rows(session.layer("cells", case, frozen=True))
    assert plain.sides["ours"].measured
    assert not wrong.sides["ours"].measured
    assert wrong.sides["ours"].note.startswith("WRONG: error")


def test_bounds_follow_the_machine(session: harness.Session) -> None:
    machine = session.machine
    case = layer_cases.Case("LSTM", layer_cases.Shape(64, 50, 64, 64))
    slow, fast = machine.bounds(case, 50.0), machine.bounds(case, 100.0)
    assert slow["arithmetic"] == pytest.approx(2 * fast["arithmetic"])
    assert slow["weights"] == fast["weights"]
    assert fast["arithmetic"] > layer_cases.gflop_of(case) / 100


def test_questions() -> None:
    """A small row of each in one process. `make bench-quick` runs the questions that start processes of their own."""
    code = (
        "import sys; sys.path[:0] = ['.']\n"
        "import importlib\nfrom benchmarks import harness, rows\n"
        "session = harness.Session(1, quick=True, names=['torch'])\n"
        "for question in sys.argv[1:]:\n"
        "    rows.write(next(importlib.import_module('benchmarks.questions.' + question).measure(session)), sys.stdout)"
    )
    questions = [
        "layers",
        "random_shapes",
        "latency",
        "cells",
        "one_step",
        "policies",
        "resets",
        "options",
        "tokens",
        "per_sample",
        "scaling",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *questions], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["row"] for line in done.stdout.splitlines() if line.startswith("{")]
    assert [row["question"] for row in found] == questions
    for row in found:
        assert row["sides"]["ours"]["rounds"]


def test_a_run_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    facts = {"commit": "a", "csrc": "b", "threads": 1, "torch": "c", "peers": {}, "impl": "d"}
    file = tmp_path / "cpu.json"
    assert rows.answered(file, facts) == set()
    row = Row("cells", "cell", "GRUCell (1, 8, 8)", 1, {"ours": Side([1.0])})
    with file.open("a") as output:
        for other in ({"commit": "other"}, {"threads": 2}, {"peers": {"jax": "1"}}, {}):
            rows.write_run({**facts, **other}, output)
            rows.write(row, output)
            rows.write_answered("layers" if other else "cells", output)
        output.write('{"row": {"question": "lat')
    rows.cut_unfinished_line(file)
    assert rows.answered(file, facts) == {"cells"}, "layers was answered under other conditions"
    assert [each.row.key for each in rows.load(file)] == [row.key]
    rows.cut_unfinished_line(file)
    assert rows.answered(file, facts) == {"cells"}


def test_questions_that_were_answered_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "cpu.json"
    command = [sys.executable, "-m", "benchmarks", "import_time", "--quick", "--resume", "--json", str(file)]
    first, second = (
        subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout for _ in range(2)
    )
    assert "measured before" not in first
    assert "import_time at 1 thread(s): measured before" in second
    assert len(rows.load(file)) > 0


def test_unknown_questions_are_refused() -> None:
    command = [sys.executable, "-m", "benchmarks", "speed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "expected questions out of layers" in done.stderr


# -- comparing revisions ----------------------------------------------------------------------------------------------


def test_compare_finds_what_became_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def ask(self, *words: object) -> list[str]:
            return ["0.001"] if words[0] == "case" else [str(self.seconds), "1"]

        def close(self) -> None:
            pass

    case = layer_cases.Case("GRU", layer_cases.Shape(3, 4, 5, 6))
    monkeypatch.setattr(compare, "cases", lambda quick: [case])
    [row] = compare.compare(Fake(1.0), Fake(1.2), True, 1)  # type: ignore[arg-type]
    assert row.ratio("base").high == pytest.approx(1 / 1.2)
    for base, status in ((1.0, 1), (1.19, 0), (1.5, 0)):
        made = iter([Fake(base), Fake(1.2)])
        monkeypatch.setattr(compare, "build", lambda revision: ROOT)
        monkeypatch.setattr(compare, "Worker", lambda tree, threads, made=made: next(made))
        monkeypatch.setattr(compare.os, "sched_setaffinity", lambda *arguments: None, raising=False)
        assert compare.main(["some-revision", "--quick"]) == status


def test_compare_with_itself(tmp_path: Path) -> None:
    """Real processes on one case: with this package, and with one that lacks the folders older revisions lack."""
    older = tmp_path / "seqcls_fast"
    shutil.copytree(ROOT / "seqcls_fast", older, ignore=shutil.ignore_patterns("toolkit", "cli", "__pycache__"))
    for tree in (ROOT, tmp_path):
        worker = compare.Worker(tree, 1)
        seconds = float(worker.ask("case", 1, 0)[0])
        sample, good = map(float, worker.ask("sample", 2))
        worker.close()
        assert seconds > 0
        assert sample > 0
        assert good in (0, 1)
        assert worker.process.returncode == 0
    shutil.rmtree(older)
    with pytest.raises(SystemExit, match="ended before it answered"):
        compare.Worker(tmp_path, 1).ask("case", 1, 0)


def test_compare_refuses_an_unknown_revision() -> None:
    with pytest.raises(SystemExit, match="git rev-parse"):
        compare.build("no-such-revision")


# -- instructions -----------------------------------------------------------------------------------------------------


def test_instructions_are_within_the_bound() -> None:
    if why := instructions.missing():
        pytest.skip(why)
    counts = instructions.count(["gru forward", "lstm backward", "rnn_tanh weight-grad"])
    assert not instructions.too_many(counts, instructions.recorded())
    assert instructions.count(["gru forward"])["gru forward"] == counts["gru forward"], "no noise"


def test_the_bound_on_instructions() -> None:
    assert instructions.too_many({"a": 116, "b": 114}, {"a": 100, "b": 100}) == [
        "a: 116 instructions, 1.16 times the recorded 100"
    ]
    assert set(instructions.recorded()) == {f"{c} {p}" for c in instructions.CELLS for p in instructions.PASSES}


def test_loops_of_a_product() -> None:
    lines = [
        (0, "vmovups (%rax),%zmm0"), (4, "vfmadd231ps %zmm0,%zmm1,%zmm2"), (8, "vfmadd231ps %zmm0,%zmm1,%zmm3"),
        (12, "add $0x40,%rax"), (16, "jne 0 <f>"), (20, "vfmadd231ps %zmm0,%zmm1,%zmm4"), (24, "jmp 0 <f>"),
        (28, "jne 40 <f>"), (64, "ret"),
    ]  # fmt: skip
    assert loops.busiest(lines) == loops.Loop(3, 4)  # from 0 to 24 it is 3 of 7, from 0 to 16 2 of 5
    assert loops.busiest(lines[-2:]) is None
    recorded = [line.split("\t")[0] for line in loops.RECORD.read_text().splitlines()[1:]]
    assert {f"{isa} {kind}" for isa in ("avx2", "avx512", "neon") for kind in loops.TILES} <= set(recorded)


def test_instructions_say_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if instructions.shutil.which("valgrind"):
        assert "not built here" in instructions.missing(tmp_path)
        objects = tmp_path / "build/temp/kernels_avx2.o"
        for file in (tmp_path / "csrc/cpu/kernels/a.h", tmp_path / "csrc/core/b.h", objects):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        assert not instructions.missing(tmp_path)
        os.utime(tmp_path / "csrc/cpu/kernels/a.h", (2e9, 2e9))
        assert instructions.missing(tmp_path) == "a.h changed after the extension was built"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert instructions.missing(tmp_path) == "no valgrind on the PATH"

"""The logic of `make gpu` without a GPU: the results file, the grid, the report, stages whose parts crash or hang."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_fakes import Clock, CpuDevice, compiled

from benchmarks import rows
from benchmarks.gpu import __main__ as gpu_check
from benchmarks.gpu import device as gpu_device
from benchmarks.gpu import grid as gpu_rows
from benchmarks.gpu import layers as gpu_layers
from benchmarks.gpu import report as gpu_report
from benchmarks.gpu import worker as gpu_parts
from benchmarks.gpu.grid import Row
from benchmarks.gpu.results import Results, csrc_hash, file_name
from seqcls_fast import _ext

ROOT = Path(__file__).parents[2]
RUN = {"csrc": "abc", "device": "NVIDIA H200", "torch": "2.14", "cuda": "13.0", "cudnn": 91300}
ROW = Row("lstm", "bf16", 64, True, False, 16, 32, 1)


# -- the results file -------------------------------------------------------------------------------------------------


def test_hash_is_that_of_the_cpu_results() -> None:
    assert csrc_hash(ROOT) == rows.csrc_hash()


def test_file_name() -> None:
    assert file_name("NVIDIA H200") == "gpu-nvidia-h200.json"


def test_results_are_whole_after_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new folder" / "gpu.json"
    results = Results(file, RUN)
    results.put("b/one", {"line": "fine"})
    results.put("a/two", {"failed": "no"})
    assert json.loads(file.read_text()) == {"run": RUN, "parts": {"a/two": {"failed": "no"}, "b/one": {"line": "fine"}}}
    before = file.read_text()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        results.put("c/three", {})
    assert file.read_text() == before
    monkeypatch.undo()
    assert Results(file, RUN).parts == {"a/two": {"failed": "no"}, "b/one": {"line": "fine"}}


def test_only_what_went_well_is_finished(tmp_path: Path) -> None:
    results = Results(tmp_path / "gpu.json", RUN)
    for name in ("failed", "skipped", "anew", "line"):
        results.put(name, {name: "x"})
    assert results.finished == {"line"}
    assert Results(tmp_path / "gpu.json", RUN).finished == {"line"}


@pytest.mark.parametrize("fact", RUN)
def test_other_sources_or_machine_start_anew(tmp_path: Path, fact: str) -> None:
    Results(tmp_path / "gpu.json", RUN).put("a", {})
    again = Results(tmp_path / "gpu.json", RUN | {"time": "later"})
    assert (again.parts, again.dropped) == ({"a": {}}, "")
    other = Results(tmp_path / "gpu.json", RUN | {fact: "other"})
    assert other.parts == {}
    assert other.dropped == f"{fact} {RUN[fact]} before, now other"


@pytest.mark.parametrize("text", ["{", "[]", '{"run": {}}'])
def test_another_file_is_not_overwritten(tmp_path: Path, text: str) -> None:
    (tmp_path / "gpu.json").write_text(text)
    with pytest.raises(SystemExit, match="written by gpu_check"):
        Results(tmp_path / "gpu.json", RUN)
    assert (tmp_path / "gpu.json").read_text() == text


# -- the grid ---------------------------------------------------------------------------------------------------------


def test_names_say_all_of_a_row() -> None:
    assert str(ROW) == "lstm-bf16-B16-T32-H64-d1-training-padded"
    assert [Row.parse(str(row)) for row in gpu_rows.grid()] == list(gpu_rows.grid())


def test_grid_begins_with_the_hard_target_and_has_all_that_fits() -> None:
    rows = gpu_rows.grid()
    assert [str(row) for row in rows[:4]] == [
        f"lstm-{dtype}-B16-T1024-H768-d1-{what}-padded"
        for dtype in ("bf16", "fp16")
        for what in ("inference", "training")
    ]
    everything = 3 * 4 * 8 * 2 * 2 * 5 * 3 * 2
    assert len(set(rows)) == len(rows) < everything + 4
    assert everything + 4 - len(rows) < everything // 50  # what is too large for the device
    assert max(row.bytes for row in rows) <= gpu_rows.MOST_BYTES


def test_any_beginning_of_the_grid_is_even() -> None:
    first = gpu_rows.grid()[:250]
    for field, values in {
        "cell": gpu_rows.CELLS,
        "precision": gpu_rows.PRECISIONS,
        "hidden": gpu_rows.HIDDEN,
        "training": (False, True),
        "ragged": (False, True),
        "batch": gpu_rows.BATCHES,
        "steps": gpu_rows.STEPS,
        "directions": (1, 2),
    }.items():
        share = 250 / len(values)
        for value in values:
            count = sum(getattr(row, field) == value for row in first)
            assert 0.6 * share < count < 1.4 * share, (field, value, count)


def test_thinning_keeps_the_order_and_the_budget() -> None:
    rows = gpu_rows.grid()[:50]
    cost = {row: 1.0 + i % 4 for i, row in enumerate(rows)}
    cost[rows[20]] = 99.0
    found = list(gpu_rows.stretches(rows, 10, cost.__getitem__))
    assert list(itertools.chain(*found)) == list(rows)
    assert [rows[20]] in found
    for stretch, following in itertools.pairwise(found):
        if len(stretch) > 1:
            assert sum(map(cost.__getitem__, stretch)) <= 10
        assert sum(map(cost.__getitem__, stretch)) + cost[following[0]] > 10


def test_grid_stages_are_consecutive_and_end() -> None:
    first, second = gpu_rows.grid_part(1, 300), gpu_rows.grid_part(2, 300)
    assert first + second == list(gpu_rows.grid()[: len(first) + len(second)])
    assert 100 < len(first) < 300
    assert gpu_rows.grid_part(1000, 300) == []


def test_a_dearer_row_is_expected_to_take_longer() -> None:
    for change in ({"steps": 512}, {"training": True}, {"ragged": True}, {"directions": 2}, {"batch": 1024}):
        row = Row("gru", "fp32", 1024, False, False, 16, 128, 1)
        assert row._replace(**change).seconds > row.seconds
    launches, flop = 128 * 2 * 3 * 4, 4 * 16 * 128 * 3 * 1024 * 2 * 1024 * 3
    dear = Row("gru", "fp32", 1024, True, True, 16, 128, 2)
    assert dear.seconds == pytest.approx(launches * 10e-6 + flop / 40e12)
    assert ROW.bytes == 16 * 32 * 64 * (2 + 4 * 3) * 2 * 2


# -- the report -------------------------------------------------------------------------------------------------------


def part(ours: float, regime: str = "onchip", **rivals: float) -> dict[str, Any]:
    """A grid part, eager, three samples a side of which the median is the given one."""
    sides = {"ours": ours, **{name.replace("_", " "): t for name, t in rivals.items()}}
    return {"regime": regime, "times": {"eager": {name: [9 * t, t, t / 9] for name, t in sides.items()}}}


def test_timed_rows() -> None:
    parts = {
        f"grid/{ROW}": part(2.0, nn=5.0),
        "grid/wrong": {"failed": "wrong: h_n"},
        "latency/launch": {"times": {}},
        f"grid/{ROW._replace(ragged=True)}": part(2.0, nn_packed=30.0, nn_padded=7.0, ours_packed=1.0),
        f"grid/{ROW._replace(batch=1)}": {
            "regime": "grid",
            "times": {"eager": {"ours": [1.0]}, "graph": {"nn": [1.0]}},
        },
    }
    found = gpu_report.timed(parts)
    assert [(t.medians, t.ratio) for t in found] == [
        ({"ours": 2.0, "nn": 5.0}, 2.5),
        ({"ours": 2.0, "nn packed": 30.0, "nn padded": 7.0, "ours packed": 1.0}, 3.5),
    ]


def bar(name: str) -> gpu_report.Bar:
    return next(each for each in gpu_report.BARS if name in each.name)


def test_bars_apply_to_the_issue_s_rows() -> None:
    def rows(name: str, *candidates: Row) -> list[Row]:
        timed = [
            gpu_report.Timed(row, "eager", {"ours": 1.0, "nn packed" if row.ragged else "nn": 1.0}, "")
            for row in candidates
        ]
        return [t.row for t in timed if bar(name).applies(t)]

    sizes = [ROW._replace(hidden=hidden) for hidden in (1, 32, 128, 192, 512, 768)]
    assert [row.hidden for row in rows("H <= 128", *sizes)] == [1, 32, 128]
    assert [row.hidden for row in rows("192 <= H <= 512", *sizes)] == [192, 512]
    assert rows("192 <= H <= 512", sizes[3]._replace(cell="rnn_tanh")) == []
    assert rows("192 <= H <= 512", sizes[3]._replace(cell="gru"))
    assert rows("H <= 128", ROW._replace(training=False), ROW._replace(ragged=True)) == []
    assert rows("against packed", ROW, ROW._replace(ragged=True, training=False)) == []
    assert rows("against packed", ROW._replace(ragged=True))
    assert rows("both packed", ROW._replace(ragged=True)) == []
    assert rows("1.96", *gpu_rows.ALWAYS) == [Row("lstm", "bf16", 768, False, False, 16, 1024, 1)]


def test_bars_arithmetic() -> None:
    def judged(name: str, *values: float) -> str:
        rows = [
            gpu_report.Timed(ROW._replace(batch=i), "graph", {"ours": 1.0, "nn": v}, "") for i, v in enumerate(values)
        ]
        return bar(name).judge(rows)

    assert judged("H <= 128", 3.0, 4.0, 12.0) == (
        "met           forward + backward, H <= 128: 3x: worst 3.00x, 0 % below the bar, "
        "at lstm-bf16-B0-T32-H64-d1-training-padded graph; 3 of 3 meet it; mean 5.24x, best 12.00x"
    )
    missed = judged("H <= 128", 6.0, 1.5, 3.0)
    assert missed.startswith("MISSED ")
    assert "worst 1.50x, 50 % below the bar, at lstm-bf16-B1-" in missed
    assert "2 of 3 meet it; mean 3.00x, best 6.00x" in missed
    assert judged("against packed", 3.0) == "not measured  forward + backward, ragged against packed: 10x"
    assert judged("no row below", 0.99).startswith("MISSED")
    assert judged("no row below", 1.0).startswith("met")


def test_bar_of_a_step() -> None:
    def judged(*times: float) -> str:
        sides = [{"ours": us * 1024e-6, "nn": 1.0} for us in times]
        return bar("1.96").judge([gpu_report.Timed(gpu_rows.ALWAYS[0], "eager", s, "grid") for s in sides])

    assert judged(1.95).startswith("met")
    assert judged(2.45).startswith("MISSED")
    assert "worst 2.45 us, 25 % above the bar" in judged(1.5, 2.45)
    assert judged(1.5, 2.45).endswith("best 1.50 us")


def test_packed_bar_does_not_look_at_padded() -> None:
    sides = {"ours": 1.0, "nn packed": 20.0, "nn padded": 2.0, "ours packed": 4.0}
    row = gpu_report.Timed(ROW._replace(ragged=True), "eager", sides, "")
    assert bar("against packed").judge([row]).startswith("met")
    assert "worst 5.00x, 50 % below the bar" in bar("both packed").judge([row])
    assert row.ratio == 2.0


def test_report_ends_with_losing_rows_and_bars() -> None:
    parts = {
        f"grid/{ROW}": part(2.0, nn=1.0),
        f"grid/{ROW._replace(batch=1)}": part(2.0, nn=1.8, regime="grid/stepwise"),
        f"grid/{ROW._replace(batch=64)}": part(2.0, nn=8.0),
        f"grid/{ROW._replace(hidden=32)}": part(2.0, nn=2.0),  # level, so not lost
        "latency/gru-bf16-H256": {
            "cluster": {"forward us": 0.5, "backward us": 0.75, "forward floor us": 0.25, "backward floor us": 0.25},
            "grid": {"forward us": 1.5, "backward us": 1.75, "forward floor us": 0.25, "backward floor us": 0.25},
            "nn": {"forward us": 9.0, "backward us": 8.0},
            "line": "",
        },
        "correctness/gru-bf16-H33": {"padded": {"nn": 2e-3, "onchip": 1e-3}, "ragged": {"onchip": "inf"}},
        "correctness/lstm-bf16-H33": {"padded": {"nn": 4e-3, "onchip": 3e-3}},
    }
    lines = gpu_report.verdict(parts)
    at = [lines.index(head) for head in lines if head.endswith(":") or head.startswith("losing")]
    assert at == sorted(at)
    assert lines[-1 - len(gpu_report.BARS)] == "bars:"
    lost = lines.index("losing rows: 2 of 4")
    assert lines[lost + 1].strip().startswith(f"{ROW} eager: 0.50x (ours 2000000.0, nn 1000000.0 us; onchip)")
    assert "0.90x" in lines[lost + 2]
    assert "grid/stepwise" in lines[lost + 2]
    text = "\n".join(lines)
    assert "bf16  onchip    inf, torch.nn's nan, at gru-bf16-H33 ragged" in text
    steps = "forward   cluster 0.50 (+0.25), grid 1.50 (+1.25), nn 9.00, grid's exchange over cluster's +1.00"
    assert steps in re.sub(r"gru-bf16-H256 +", "", text)
    table = next(line for line in lines if "padded training eager H64" in line)
    assert table.split()[-5] == f"{(0.5 * 0.9 * 4) ** (1 / 3):.2f}"
    assert table.split()[-4] == "(0.50)"


def test_report_of_nothing() -> None:
    assert gpu_report.verdict({})[:2] == ["", "losing rows: 0 of 0"]
    assert all("not measured" in line for line in gpu_report.verdict({})[-len(gpu_report.BARS) :])


# -- a worker's parts -------------------------------------------------------------------------------------------------


def served(
    parts: dict[str, Callable[[], dict[str, Any]]], done: Sequence[str] = (), seconds: float = 100.0, **options: Any
) -> tuple[bool, list[dict[str, Any]]]:
    told: list[dict[str, Any]] = []
    options = {"healthy": lambda: None} | options
    return gpu_parts.serve(parts, done, seconds, told.append, **options), told


def test_parts_run_in_order_but_for_those_done() -> None:
    ran = []
    parts = {name: lambda name=name: ran.append(name) or {"line": name} for name in "abc"}
    well, told = served(parts, ["b", "z"])
    assert well
    assert ran == ["a", "c"]
    assert told[0] == {"parts": 3, "left": 2}
    assert [list(message) for message in told[1:]] == [["begin"], ["done", "result"]] * 2
    assert told[2]["result"]["line"] == "a"


def test_a_failing_part_does_not_stop_the_others() -> None:
    def fails() -> dict[str, Any]:
        raise ValueError("x: expected 1")

    _, told = served({"a": fails, "b": dict})
    assert told[2]["result"]["failed"] == "ValueError: x: expected 1"
    assert "failed" not in told[4]["result"]


def test_a_device_left_in_error_ends_the_process() -> None:
    def sick() -> None:
        raise RuntimeError("illegal memory access")

    well, told = served({"a": dict, "b": dict}, healthy=sick)
    assert not well
    assert [message.get("begin") for message in told if "begin" in message] == ["a"]
    assert told[-1]["result"]["failed"] == "left the device in error: illegal memory access"


def test_no_part_begins_that_would_end_after_the_budget() -> None:
    clock = Clock()

    def takes(seconds: float) -> dict[str, Any]:
        clock.now += seconds
        return {}

    parts = {"a": lambda: takes(40), "b": lambda: takes(30), "c": lambda: takes(30), "d": lambda: takes(1)}
    well, told = served(parts, seconds=100, clock=clock)
    assert well
    assert [message["begin"] for message in told if "begin" in message] == ["a", "b"]  # 70 passed, 40 more would be 110
    assert told[-1] == {"stopped": 2}
    assert [m["result"]["took"] for m in told if "done" in m] == [40, 30]
    _, told = served({"a": lambda: takes(40)}, seconds=1, clock=clock)
    assert [message["begin"] for message in told if "begin" in message] == ["a"]  # or it would never run


def test_messages_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    gpu_parts.tell_parent({"done": "a", "result": {"error": math.inf, "nn": math.nan, "x": 1.5}}, to=sys.stdout)
    line = capsys.readouterr().out.removeprefix(gpu_parts.MARK)
    assert json.loads(line, parse_constant=pytest.fail)["result"] == {"error": "inf", "nn": "nan", "x": 1.5}


CLEAN = "layer a\nlayer b\n========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
RACES = """\
layer a
========= Error: Race reported between Write
========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)
"""


def test_sanitizer_verdict() -> None:
    assert gpu_parts.sanitizer_verdict(CLEAN, 0) == {"line": "ERROR SUMMARY: 0 errors", "layers": 2}
    races = gpu_parts.sanitizer_verdict("layer a\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors)\n", 0)
    assert "failed" not in races
    found = gpu_parts.sanitizer_verdict(RACES, 9)
    assert found["findings"] == ["Error: Race reported between Write"]
    assert found["failed"].startswith("RACECHECK SUMMARY: 2 hazards")
    assert "failed" in gpu_parts.sanitizer_verdict(RACES, 0)
    assert "failed" in gpu_parts.sanitizer_verdict(CLEAN, 1)
    assert "failed" in gpu_parts.sanitizer_verdict("========= ERROR SUMMARY: 0 errors\n", 0)  # nothing ran
    assert gpu_parts.sanitizer_verdict("Device not supported", 0)["failed"] == "no summary, exit status 0"


def test_no_sanitizer_is_a_reason_not_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    answer = gpu_parts.sanitize("memcheck", "onchip")
    assert answer["line"] == "skipped: no compute-sanitizer in CUDA_HOME or on the PATH"
    assert "failed" not in answer


@compiled
def test_small_layers_for_the_sanitizer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_layers, "MODULES", {"gru": None})
    gpu_parts.run_small(CpuDevice(), "base")
    assert len(re.findall(r"^layer gru", capsys.readouterr().out, re.MULTILINE)) == len(gpu_device.DTYPES)


@compiled
@pytest.mark.skipif(_ext.C is not None and bool(_ext.C.build_info()["cuda"]), reason="this build has CUDA")
@pytest.mark.parametrize("stage", ["correctness", "sanitize", "grid1"])
def test_stages_want_the_cuda_part(stage: str) -> None:
    with pytest.raises(SystemExit, match="run the stage build: built without CUDA"):
        gpu_parts.parts_of(stage, CpuDevice(), 60)


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        ("build", ["extension"]),
        ("sanitize", ["memcheck-onchip", "racecheck-stepwise"]),
        ("correctness", ["lstm-bf16-H768", "rnn_relu-fp64-H7", "module-GRU", "refusals"]),
        ("latency", ["launch", "gru-bf16-H64", "lstm-fp32-H1024", "clusters"]),
        ("grid1", [str(row) for row in gpu_rows.ALWAYS]),
    ],
)
@compiled
def test_stages_have_their_parts(stage: str, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class WithCuda:
        build_info = staticmethod(lambda: {"cuda": True})
        regimes = staticmethod(_ext.C.regimes if _ext.C is not None else list)

    monkeypatch.setattr(_ext, "C", WithCuda)
    assert set(names) <= set(gpu_parts.parts_of(stage, CpuDevice(), 480))


# -- a stage ----------------------------------------------------------------------------------------------------------


class Script:
    """Stands for workers: each is the messages it gives; what they were asked is kept."""

    def __init__(self, *workers: list[dict[str, Any]], clock: Clock | None = None, takes: float = 0.0) -> None:
        self.workers, self.clock, self.takes = list(workers), clock, takes
        self.asked: list[tuple[str, list[str], float, float, str]] = []

    def __call__(
        self, stage: str, done: Sequence[str], seconds: float, budget: float, pattern: str
    ) -> Iterator[dict[str, Any]]:
        self.asked.append((stage, list(done), seconds, budget, pattern))
        yield from self.workers.pop(0)
        if self.clock:
            self.clock.now += self.takes


def ran(*names: str, **result: Any) -> list[dict[str, Any]]:
    return [message for name in names for message in ({"begin": name}, {"done": name, "result": result})]


FINE: dict[str, Any] = {"ended": ""}


def stage(script: Script, results: Results, **options: Any) -> tuple[gpu_check.Outcome, list[str]]:
    said: list[str] = []
    return gpu_check.run_stage("grid1", results, script, **{"budget": 100.0, "say": said.append} | options), said


def test_a_stage(tmp_path: Path) -> None:
    results = Results(tmp_path / "gpu.json", RUN)
    results.put("grid/before", {})
    script = Script([{"left": 2}, *ran("grid/a", "grid/b", line="1.5x"), FINE])
    outcome, said = stage(script, results, pattern="lstm", clock=Clock())
    assert script.asked == [("grid1", ["grid/before"], 100.0, 100.0, "lstm")]
    assert (outcome.ran, outcome.left, outcome.failed) == (2, 0, {})
    assert said == ["grid/a  1.5x", "grid/b  1.5x"]
    assert set(json.loads((tmp_path / "gpu.json").read_text())["parts"]) == {"grid/before", "grid/a", "grid/b"}


@pytest.mark.parametrize("end", ["exit status -11: Segmentation fault", "hung: silent for 90 s", ""])
def test_a_worker_that_dies_costs_one_part(tmp_path: Path, end: str) -> None:
    results = Results(tmp_path / "gpu.json", RUN)
    script = Script(
        [{"left": 3}, *ran("grid/a"), {"begin": "grid/b"}, {"ended": end}],
        [{"left": 1}, *ran("grid/c"), FINE],
    )
    outcome, said = stage(script, results)
    assert [asked[1] for asked in script.asked] == [[], ["grid/a", "grid/b"]]
    assert outcome.failed == {"grid/b": end or "the process ended"}
    assert (outcome.ran, outcome.left) == (3, 0)
    assert said[1] == f"grid/b  FAILED: {end or 'the process ended'}"
    assert Results(tmp_path / "gpu.json", RUN).finished == {"grid/a", "grid/c"}


def test_a_device_in_error_goes_on_in_a_new_process(tmp_path: Path) -> None:
    sick = {"ended": f"exit status {gpu_parts.HEALTH_LOST}"}
    script = Script(
        [{"left": 2}, *ran("grid/a", failed="left the device in error"), sick], [{"left": 1}, *ran("grid/b"), FINE]
    )
    outcome, _ = stage(script, Results(tmp_path / "gpu.json", RUN))
    assert outcome.failed == {"grid/a": "left the device in error"}
    assert (outcome.ran, outcome.left) == (2, 0)


def test_a_worker_that_cannot_start_ends_the_stage(tmp_path: Path) -> None:
    script = Script([{"ended": "exit status 1: no CUDA device"}])
    outcome, _ = stage(script, Results(tmp_path / "gpu.json", RUN))
    assert outcome.failed == {"grid/(start)": "exit status 1: no CUDA device"}


def test_what_failed_is_tried_again_next_time_and_not_before(tmp_path: Path) -> None:
    results = Results(tmp_path / "gpu.json", RUN)
    stage(Script([{"left": 2}, *ran("grid/a", failed="x"), *ran("grid/b"), FINE]), results)
    script = Script([{"left": 1}, *ran("grid/a"), FINE])
    outcome, _ = stage(script, Results(tmp_path / "gpu.json", RUN))
    assert script.asked[0][1] == ["grid/b"]
    assert outcome.failed == {}


def test_time_is_shared_by_the_workers_of_a_stage(tmp_path: Path) -> None:
    clock = Clock()
    dies = [{"left": 9}, *ran("grid/a"), {"begin": "grid/b"}, {"ended": "exit status 1"}]
    script = Script(dies, [{"left": 7}, {"begin": "grid/c"}, {"ended": "exit status 1"}], clock=clock, takes=60)
    outcome, _ = stage(script, Results(tmp_path / "gpu.json", RUN), clock=clock)
    assert [asked[2:4] for asked in script.asked] == [(100, 100), (40, 100)]
    assert outcome.left == 6
    assert str(outcome) == "grid1: 3 parts ran, 2 failed, 6 left for another call"


def test_a_stage_that_hangs_again_and_again_ends(tmp_path: Path) -> None:
    hangs = [[{"left": 9}, {"begin": f"grid/{i}"}, {"ended": "hung: silent for 60 s"}] for i in range(9)]
    outcome, _ = stage(Script(*hangs), Results(tmp_path / "gpu.json", RUN))
    assert len(outcome.failed) == gpu_check.MOST_HUNG
    crashes = [[*messages[:2], {"ended": "exit status 1"}] for messages in hangs]
    crashes[-1][0] = {"left": 1}
    outcome, _ = stage(Script(*crashes), Results(tmp_path / "gpu.json", RUN))
    assert len(outcome.failed) == 9


def worker_of(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch, silence: float = 60) -> list[dict[str, Any]]:
    """The messages of a real process."""
    program = tmp_path / "worker.py"
    program.write_text(
        f"import json, os, sys, time\ndef tell(**m): print({gpu_parts.MARK!r} + json.dumps(m), flush=True)\n{text}"
    )
    monkeypatch.setattr(gpu_check.Worker, "program", (str(program),))
    monkeypatch.setattr(gpu_check, "USUAL_SILENCE", silence)
    return list(gpu_check.Worker("grid1", ["a", "b"], 7.5, 8.0, "x"))


def test_worker_process_is_told_and_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = worker_of(tmp_path, "print('noise')\ntell(begin=sys.argv[1:], left=json.load(sys.stdin))", monkeypatch)
    assert found == [{"begin": ["grid1", "7.5", "8.0", "x"], "left": ["a", "b"]}, {"ended": ""}]


def test_worker_process_that_dies_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = worker_of(tmp_path, "tell(begin='a')\nprint('CUDA error')\nos.abort()", monkeypatch)
    assert found[0] == {"begin": "a"}
    assert found[1]["ended"] == "exit status -6: CUDA error"


def test_worker_process_that_hangs_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = tmp_path / "pids"
    text = (
        "import subprocess\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\ntell(begin='a')\ntime.sleep(600)"
    )
    assert worker_of(tmp_path, text, monkeypatch, silence=3) == [{"begin": "a"}, {"ended": "hung: silent for 3 s"}]
    deadline = time.monotonic() + 20
    while any(_runs(int(pid)) for pid in pids.read_text().split()):
        assert time.monotonic() < deadline, "a process outlived its stage"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    """Whether a process is there and not merely waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# -- the command ------------------------------------------------------------------------------------------------------

FACTS: list[dict[str, Any]] = [{"facts": {k: v for k, v in RUN.items() if k != "csrc"}}, FINE]


def called(script: Script, tmp_path: Path, arguments: str) -> int:
    return gpu_check.main([*arguments.split(), "--out", str(tmp_path / "gpu.json")], script)


def test_command_runs_stages_in_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = [{"left": 1}, *ran("build/extension", line="60 s", anew=True), FINE]
    times = part(1e-6, nn=4e-6)
    script = Script(FACTS, build, [{"left": 1}, *ran(f"grid/{ROW}", **times), FINE])
    assert called(script, tmp_path, "--stage build,grid1 --budget-minutes 2 --only x") == 0
    assert [(asked[0], *asked[3:]) for asked in script.asked[1:]] == [("build", 120, "x"), ("grid1", 120, "x")]
    out = capsys.readouterr().out
    assert "device NVIDIA H200" in out
    assert "met           forward + backward, H <= 128: 3x: worst 4.00x, 33 % above the bar" in out
    assert out.rstrip().endswith("build: 1 parts ran\ngrid1: 1 parts ran")
    saved = json.loads((tmp_path / "gpu.json").read_text())
    assert saved["run"]["csrc"] == csrc_hash(ROOT)
    assert saved["parts"][f"grid/{ROW}"]["times"] == times["times"]
    assert gpu_check.main(["--report", "--out", str(tmp_path / "gpu.json")], Script()) == 0
    assert "worst 4.00x" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("messages", "status"),
    [
        ([{"left": 1}, *ran("latency/a"), FINE], 0),
        ([{"left": 2}, *ran("latency/a"), FINE], 3),
        ([{"left": 2}, *ran("latency/a", failed="wrong"), FINE], 1),
        ([{"ended": "exit status 1"}], 1),
    ],
)
def test_exit_status(
    messages: list[dict[str, Any]], status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(Script(FACTS, messages), tmp_path, "--stage latency") == status
    assert ("FAILED latency/" in capsys.readouterr().out) == (status == 1)


def test_a_failed_build_ends_it(tmp_path: Path) -> None:
    script = Script(FACTS, [{"left": 1}, *ran("build/extension", failed="nvcc"), FINE])
    assert called(script, tmp_path, "") == 1
    assert len(script.asked) == 2


def test_no_device_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="the device could not be asked: exit status 1: no CUDA device"):
        called(Script([{"ended": "exit status 1: no CUDA device"}]), tmp_path, "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_machine_without_gpu_says_so() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--stage", "latency"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "sees no CUDA device here" in result.stderr


@pytest.mark.parametrize("stage_name", ["grid0", "grid", "buidl"])
def test_unknown_stages_exit_2(stage_name: str) -> None:
    with pytest.raises(SystemExit) as exit_info:
        gpu_check.main(["--stage", stage_name], Script())
    assert exit_info.value.code == 2


def test_the_command_itself_needs_no_torch() -> None:
    """It outlives workers whose CUDA context is lost, so it must have none."""
    code = "import sys; sys.modules['torch'] = None; import benchmarks.gpu.__main__"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_gpu() -> None:
    def printed(*arguments: str, **environment: str) -> str:
        command = ["make", "--no-print-directory", "-n", "gpu", *arguments]
        clean = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS")}
        return (
            subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, check=True)
            .stdout.splitlines()[-1]
            .rstrip()
        )

    assert printed() == ".venv/bin/python -m benchmarks.gpu"
    assert printed("PYTHON=snake", "GPU=--report") == "snake -m benchmarks.gpu --report"
    assert printed(PYTHON="snake").split() == ["snake", "-m", "benchmarks.gpu"]

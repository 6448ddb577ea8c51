"""The process that runs the parts of a stage of `make gpu`, with parts that need no GPU."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from gpu_fakes import Clock, CpuDevice, compiled

from benchmarks.gpu import grid, layers, worker
from benchmarks.gpu.device import DTYPES
from seqcls_fast import _ext


def served(
    parts: dict[str, Callable[[], dict[str, Any]]], done: Sequence[str] = (), seconds: float = 100.0, **options: Any
) -> tuple[bool, list[dict[str, Any]]]:
    told: list[dict[str, Any]] = []
    options = {"healthy": lambda: None} | options
    return worker.serve(parts, done, seconds, told.append, **options), told


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
    assert [message["begin"] for message in told if "begin" in message] == ["a"]  # the first part runs in any case


def test_messages_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    worker.tell_parent({"done": "a", "result": {"error": math.inf, "nn": math.nan, "x": 1.5}}, to=sys.stdout)
    line = capsys.readouterr().out.removeprefix(worker.MARK)
    assert json.loads(line, parse_constant=pytest.fail)["result"] == {"error": "inf", "nn": "nan", "x": 1.5}


CLEAN = "layer a\nlayer b\n========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 0 errors\n"
RACES = """\
layer a
========= Error: Race reported between Write
========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)
"""


def test_sanitizer_verdict() -> None:
    assert worker.sanitizer_verdict(CLEAN, 0) == {"line": "ERROR SUMMARY: 0 errors", "layers": 2}
    races = worker.sanitizer_verdict("layer a\n========= RACECHECK SUMMARY: 0 hazards displayed (0 errors)\n", 0)
    assert "failed" not in races
    found = worker.sanitizer_verdict(RACES, 9)
    assert found["findings"] == ["Error: Race reported between Write"]
    assert found["failed"].startswith("RACECHECK SUMMARY: 2 hazards")
    assert "failed" in worker.sanitizer_verdict(RACES, 0)
    assert "failed" in worker.sanitizer_verdict(CLEAN, 1)
    assert "failed" in worker.sanitizer_verdict("========= ERROR SUMMARY: 0 errors\n", 0)  # nothing ran
    assert worker.sanitizer_verdict("Device not supported", 0)["failed"] == "no summary, exit status 0"


def test_no_sanitizer_is_a_reason_not_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    answer = worker.sanitize("memcheck", "onchip")
    assert answer["line"] == "skipped: no compute-sanitizer in CUDA_HOME or on the PATH"
    assert "failed" not in answer


@compiled
def test_small_layers_for_the_sanitizer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MODULES", {"gru": None})
    worker.run_small(CpuDevice(), "base")
    assert len(re.findall(r"^layer gru", capsys.readouterr().out, re.MULTILINE)) == len(DTYPES)


@compiled
@pytest.mark.skipif(_ext.C is not None and bool(_ext.C.build_info()["cuda"]), reason="this build has CUDA")
@pytest.mark.parametrize("stage", ["correctness", "sanitize", "grid1"])
def test_stages_want_the_cuda_part(stage: str) -> None:
    with pytest.raises(SystemExit, match="run the stage build: built without CUDA"):
        worker.parts_of(stage, CpuDevice(), 60)


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        ("build", ["extension"]),
        ("sanitize", ["memcheck-onchip", "racecheck-stepwise"]),
        ("correctness", ["lstm-bf16-H768", "rnn_relu-fp64-H7", "module-GRU", "refusals"]),
        ("latency", ["launch", "gru-bf16-H64", "lstm-fp32-H1024", "clusters"]),
        ("grid1", [str(point) for point in grid.ALWAYS]),
    ],
)
@compiled
def test_stages_have_their_parts(stage: str, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class WithCuda:
        build_info = staticmethod(lambda: {"cuda": True})
        regimes = staticmethod(_ext.C.regimes if _ext.C is not None else list)

    monkeypatch.setattr(_ext, "C", WithCuda)
    assert set(names) <= set(worker.parts_of(stage, CpuDevice(), 480))

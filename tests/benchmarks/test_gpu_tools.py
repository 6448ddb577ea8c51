"""NVIDIA's tools, as `python -m benchmarks.gpu` runs them, with tools that are shell scripts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from gpu_fakes import CpuDevice, compiled

from benchmarks.gpu import layers, tools
from benchmarks.gpu.device import DTYPES

CLEAN = ["layer gru bf16 H33 onchip", "layer gru bf16 H130 grid", "========= ERROR SUMMARY: 0 errors"]
RACES = [
    "layer gru bf16 H33 onchip",
    "========= Error: Race reported between Write",
    "========= RACECHECK SUMMARY: 2 hazards displayed (2 errors, 0 warnings)",
]


def test_sanitizer_verdict() -> None:
    verdict = tools.sanitizer_verdict
    assert verdict(["========= COMPUTE-SANITIZER", *CLEAN], 0) == {
        "line": "ERROR SUMMARY: 0 errors; layers: 1 onchip, 1 grid",
        "layers": {"onchip": 1, "grid": 1},
    }
    hazards = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors)"
    assert "failed" not in verdict([CLEAN[0], hazards], 0)
    found = verdict(RACES, 9)
    assert found["findings"] == ["Error: Race reported between Write"]
    assert found["failed"].startswith("RACECHECK SUMMARY: 2 hazards")
    assert "failed" in verdict(RACES, 0)
    assert "failed" in verdict(CLEAN, 1)
    assert "failed" in verdict([CLEAN[-1]], 0)  # nothing ran
    assert verdict(["Device not supported"], 0)["failed"] == "no summary, exit status 0"


def test_a_sanitizer_that_is_ended_has_seen_something() -> None:
    assert "cut" not in tools.sanitizer_verdict(CLEAN[:1], None)
    assert tools.sanitizer_verdict(CLEAN[:1], -9)["cut"] == "ended by the time limit"
    assert "failed" in tools.sanitizer_verdict(RACES[:2], -9)
    assert "failed" in tools.sanitizer_verdict([], -9)  # it had not run a layer


def script(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(folder / "none"))
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_sanitizer_tells_each_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "; ".join(f"echo '{line}'" for line in CLEAN)
    script(
        tmp_path, "compute-sanitizer", f"echo $PYTORCH_NO_CUDA_MEMORY_CACHING $* > {tmp_path}/told; {said}", monkeypatch
    )
    found = list(tools.sanitize("memcheck", ["onchip", "grid"], 60))
    assert [answer["layers"] for answer in found] == [{"onchip": 1}, {"onchip": 1, "grid": 1}, {"onchip": 1, "grid": 1}]
    assert found[-1]["line"].startswith("ERROR SUMMARY: 0 errors")
    told = (tmp_path / "told").read_text()
    assert told.startswith("1 --tool memcheck --error-exitcode 9")
    assert "--small onchip,grid" in told


def test_a_tool_is_ended_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(tmp_path, "compute-sanitizer", f"echo '{CLEAN[0]}'; exec sleep 60", monkeypatch)
    found = list(tools.sanitize("memcheck", ["onchip"], tools.SUMMARY_SECONDS + 1))
    assert found[-1]["cut"] == "ended by the time limit"
    assert found[-1]["layers"] == {"onchip": 1}


@pytest.mark.parametrize("run", [lambda: tools.sanitize("memcheck", ["grid"], 60), lambda: tools.profile(60)])
def test_no_tool_is_a_reason_not_a_failure(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "find", lambda _: None)
    (answer,) = run()
    assert answer["skipped"]
    assert answer["line"].startswith("skipped: no ")


def test_counters() -> None:
    lines = [
        "==PROF== Connected to process 12",
        "layer lstm bf16 H64 onchip",
        "layer lstm bf16 H512 cluster",
        '"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"',
        '"0","recur","Duration","us","12.5"',
        '"0","recur","Registers Per Thread","register/thread","200"',
        '"1","recur","Duration","us","30"',
    ]
    assert tools.counters(lines, "0") == {
        "line": "onchip 12.5 us; cluster 30 us",
        "counters": {
            "onchip": {"Duration": "12.5 us", "Registers Per Thread": "200 register/thread"},
            "cluster": {"Duration": "30 us"},
        },
    }
    assert tools.counters(["==ERROR== LibraryNotLoaded"], "1")["failed"] == "ncu read no counters, exit status 1"


@compiled
def test_small_layers_for_the_sanitizer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "MODULES", {"gru": None})
    tools.run_small(CpuDevice(), "base")
    assert len(re.findall(r"^layer gru \w+ H33 base$", capsys.readouterr().out, re.MULTILINE)) == len(DTYPES)
    tools.run_small(CpuDevice(), "base", "0")
    assert capsys.readouterr().out == ""

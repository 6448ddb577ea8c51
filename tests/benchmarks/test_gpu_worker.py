"""The process that uses the GPU, with parts and devices that need none."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gpu_fakes import CpuDevice, compiled

from benchmarks.gpu import device, grid, messages, worker
from benchmarks.gpu.worker import Part
from benchmarks.rows import csrc_hash
from seqcls_fast import _ext


def served(asked: list[str], healthy: Callable[[], None] = lambda: None, **parts: Any) -> tuple[bool, list[Any]]:
    told: list[dict[str, Any]] = []
    made = {name: Part("stage", "kind", run) for name, run in parts.items()}
    return worker.serve(made, iter(asked), healthy, lambda **message: told.append(message)), told


def test_parts_are_run_as_asked() -> None:
    given = []

    def works(seconds: float) -> Iterator[dict[str, Any]]:
        given.append(seconds)
        yield {"line": "half"}
        yield {"line": "whole"}

    well, told = served(["a 60.0", "a 2.5"], a=works)
    assert well
    assert given == [60.0, 2.5]
    assert [message.get("found") for message in told[:2]] == [{"line": "half"}, {"line": "whole"}]
    assert told[2]["done"]["line"] == "whole"
    assert told[2]["last"] is False
    assert len(told) == 6


def test_a_failing_part_keeps_what_it_found_and_stops_no_other() -> None:
    def fails(_: float) -> Iterator[dict[str, Any]]:
        yield {"error": 1e-3}
        raise ValueError("x: expected 1")

    well, told = served(["a 1", "b 1"], a=fails, b=lambda _: iter([{}]))
    assert well
    assert told[1]["done"] | {"took": 0} == {"error": 1e-3, "failed": "ValueError: x: expected 1", "took": 0}
    assert "failed" not in told[-1]["done"]


def test_a_device_left_in_error_ends_the_process() -> None:
    def sick() -> None:
        raise RuntimeError("illegal memory access")

    well, told = served(["a 1", "b 1"], sick, a=lambda _: iter([{"line": "fine"}]), b=lambda _: iter([{}]))
    assert not well
    assert told[-1]["last"] is True
    assert told[-1]["done"]["failed"] == "left the device in error: illegal memory access"
    assert told[-1]["done"]["line"] == "fine"


def test_messages_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    messages.tell(done={"error": math.inf, "nn": math.nan, "x": 1.5})
    line = capsys.readouterr().out
    assert messages.read(line) == {"done": {"error": "inf", "nn": "nan", "x": 1.5}}
    for other in ("a line", messages.MARK + "{", messages.MARK + "[]", line[:-5]):
        assert messages.read(other) is None


@compiled
def test_every_stage_has_its_parts() -> None:
    parts = worker.parts_of(CpuDevice())
    of_stage: dict[str, list[str]] = {}
    for name, part in parts.items():
        of_stage.setdefault(part.stage, []).append(name)
    assert {stage: len(names) for stage, names in of_stage.items() if stage != "more rows"} == {
        "layers": 4 * 5 * 2,
        "rows": worker.ROWS,
        "ncu": 1,
        "memcheck": 1,
        "correctness": 8 * 4 * 5 + 6,
        "latency": 2 + 3 * 2 * 6,
        "racecheck": 1,
    }
    assert parts["layers/lstm-bf16-H33-base-backward"].kind == "base backward"
    assert parts["correctness/gru-fp64-H512-base"].kind == "base"
    assert of_stage["rows"][:4] == [f"grid/{point}" for point in grid.ALWAYS]
    assert parts[of_stage["rows"][0]].kind == "base"
    found = list(parts["layers/gru-fp32-H33-base-forward"].run(60))
    assert len(found) == 1
    assert "failed" not in found[0]


@compiled
def test_points_too_large_for_the_device_are_left_out() -> None:
    class Small(CpuDevice):
        memory = 1 << 30

    names = [name.removeprefix("grid/") for name in worker.parts_of(Small()) if name.startswith("grid/")]
    assert 100 < len(names) < len(grid.grid())
    assert all(6 * grid.GridPoint.parse(name).bytes <= Small.memory for name in names)


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        ("80,90a", (8, 0), True),
        ("80,90a", (8, 6), True),
        ("80,90a", (9, 0), True),
        ("86", (8, 0), False),
        ("80,90a", (7, 5), False),
        ("80,90a", (10, 0), False),
        ("100a", (10, 3), False),
        ("100", (10, 3), True),
        ("120", (12, 0), True),
    ],
)
def test_code_runs_on_its_own_major_number(archs: str, capability: tuple[int, int], runs: bool) -> None:
    assert device.runs_on(archs, capability) == runs


class Built:
    """An extension with a CUDA part for an H200, of the sources that are here."""

    info: dict[str, Any]

    def __init__(self, **changed: Any) -> None:
        self.info = {"cuda": True, "cuda_archs": "90a", "csrc_hash": csrc_hash()} | changed

    def build_info(self) -> dict[str, Any]:
        return self.info


@pytest.mark.parametrize(
    ("extension", "sentence"),
    [
        (None, "the extension cannot be loaded: "),
        (Built(cuda=False), "the extension was built without CUDA: build it with `make gpu`"),
        (Built(csrc_hash="0123"), "the extension was built from csrc 0123, but csrc here is "),
        (
            Built(cuda_archs="80"),
            "capability 9.0, but the extension was built for 80: build it with TORCH_CUDA_ARCH",
        ),
    ],
)
def test_an_extension_that_is_not_for_here(
    extension: Built | None, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ext, "C", extension)
    with pytest.raises(SystemExit, match=re.escape(sentence)):
        device.check_build((9, 0))


def test_an_extension_that_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ext, "C", Built())
    assert device.check_build((9, 0))["cuda_archs"] == "90a"


@compiled
def test_the_extension_knows_its_sources() -> None:
    assert _ext.C is not None
    assert re.fullmatch("[0-9a-f]{12}", str(_ext.C.build_info()["csrc_hash"]))

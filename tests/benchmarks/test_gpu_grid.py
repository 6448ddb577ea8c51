"""The results file of `make gpu` and the grid of its stages, without a GPU."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
from gpu_fakes import POINT, RUN

from benchmarks.gpu import grid
from benchmarks.gpu.grid import GridPoint
from benchmarks.gpu.results import Results, file_name
from benchmarks.rows import ROOT, csrc_hash

# -- the results file -------------------------------------------------------------------------------------------------


def test_hash_sees_names_and_contents(tmp_path: Path) -> None:
    file = tmp_path / "csrc" / "cuda" / "a.h"
    file.parent.mkdir(parents=True)
    file.write_text("one")
    found = [csrc_hash(tmp_path)]
    file.write_text("two")
    found.append(csrc_hash(tmp_path))
    file.rename(file.with_name("b.h"))
    found += [csrc_hash(tmp_path)] * 2
    assert len(set(found)) == 3
    assert csrc_hash(ROOT) == csrc_hash()


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
    with pytest.raises(SystemExit, match=r"written by `python -m benchmarks\.gpu`"):
        Results(tmp_path / "gpu.json", RUN)
    assert (tmp_path / "gpu.json").read_text() == text


# -- the grid ---------------------------------------------------------------------------------------------------------


def test_names_say_all_of_a_point() -> None:
    assert str(POINT) == "lstm-bf16-B16-T32-H64-d1-training-padded"
    assert [GridPoint.parse(str(point)) for point in grid.grid()] == list(grid.grid())


def test_grid_begins_with_the_hard_target_and_has_all_that_fits() -> None:
    points = grid.grid()
    assert [str(point) for point in points[:4]] == [
        f"lstm-{dtype}-B16-T1024-H768-d1-{what}-padded"
        for dtype in ("bf16", "fp16")
        for what in ("inference", "training")
    ]
    everything = 3 * 4 * 8 * 2 * 2 * 5 * 3 * 2
    assert len(set(points)) == len(points) < everything + 4
    assert everything + 4 - len(points) < everything // 50  # these are too large for the device
    assert max(point.bytes for point in points) <= grid.MOST_BYTES


def test_any_beginning_of_the_grid_is_even() -> None:
    first = grid.grid()[:250]
    for field, values in {
        "cell": grid.CELLS,
        "precision": grid.PRECISIONS,
        "hidden": grid.HIDDEN,
        "training": (False, True),
        "ragged": (False, True),
        "batch": grid.BATCHES,
        "steps": grid.STEPS,
        "directions": (1, 2),
    }.items():
        share = 250 / len(values)
        for value in values:
            count = sum(getattr(point, field) == value for point in first)
            assert 0.6 * share < count < 1.4 * share, (field, value, count)


def test_thinning_keeps_the_order_and_the_budget() -> None:
    points = grid.grid()[:50]
    cost = {point: 1.0 + i % 4 for i, point in enumerate(points)}
    cost[points[20]] = 99.0
    found = list(grid.stretches(points, 10, cost.__getitem__))
    assert list(itertools.chain(*found)) == list(points)
    assert [points[20]] in found
    for stretch, following in itertools.pairwise(found):
        if len(stretch) > 1:
            assert sum(map(cost.__getitem__, stretch)) <= 10
        assert sum(map(cost.__getitem__, stretch)) + cost[following[0]] > 10


def test_grid_stages_are_consecutive_and_end() -> None:
    first, second = grid.grid_part(1, 300), grid.grid_part(2, 300)
    assert first + second == list(grid.grid()[: len(first) + len(second)])
    assert 100 < len(first) < 300
    assert grid.grid_part(1000, 300) == []


def test_a_dearer_point_is_expected_to_take_longer() -> None:
    for change in ({"steps": 512}, {"training": True}, {"ragged": True}, {"directions": 2}, {"batch": 1024}):
        point = GridPoint("gru", "fp32", 1024, False, False, 16, 128, 1)
        assert point._replace(**change).seconds > point.seconds
    launches, flop = 128 * 2 * 3 * 4, 4 * 16 * 128 * 3 * 1024 * 2 * 1024 * 3
    dear = GridPoint("gru", "fp32", 1024, True, True, 16, 128, 2)
    assert dear.seconds == pytest.approx(launches * 10e-6 + flop / 40e12)
    assert POINT.bytes == 16 * 32 * 64 * (2 + 4 * 3) * 2 * 2

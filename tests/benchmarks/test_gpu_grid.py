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
from benchmarks.gpu.results import Results
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


def test_results_are_whole_after_every_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "new folder"
    file = folder / "gpu.json"
    results = Results(folder, RUN)
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
    assert Results(folder, RUN).parts == {"a/two": {"failed": "no"}, "b/one": {"line": "fine"}}


def test_only_what_went_well_is_finished(tmp_path: Path) -> None:
    results = Results(tmp_path, RUN)
    for name in ("failed", "skipped", "cut", "line"):
        results.put(name, {name: "x"})
    assert results.finished == {"line"}
    assert Results(tmp_path, RUN).finished == {"line"}
    assert results.failures() == {"failed": "x"}


@pytest.mark.parametrize("fact", RUN)
def test_results_of_other_sources_or_machines_are_set_aside(tmp_path: Path, fact: str) -> None:
    said: list[str] = []
    Results(tmp_path, RUN).put("a", {})
    again = Results(tmp_path, {"csrc": "abc", "time": "later"}, said.append)
    again.describe(RUN)
    assert again.parts == {"a": {}}
    assert not said
    again.describe(RUN | {fact: "other"})
    assert again.parts == {}
    assert said[0].endswith(f"the file that was there is now gpu.json.old1: {fact} {RUN[fact]} before, now other")
    assert json.loads((tmp_path / "gpu.json.old1").read_text())["parts"] == {"a": {}}


@pytest.mark.parametrize("text", ["{", "[]", '{"run": {}}', '{"run": {}, "parts": 3}'])
def test_another_file_is_kept(tmp_path: Path, text: str) -> None:
    said: list[str] = []
    (tmp_path / "gpu.json").write_text(text)
    results = Results(tmp_path, RUN, said.append)
    results.put("a", {})
    assert (tmp_path / "gpu.json.old1").read_text() == text
    assert "is now gpu.json.old1: it was not written by this command" in said[0]
    assert Results(tmp_path, RUN).parts == {"a": {}}


def test_a_folder_that_is_a_file_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(SystemExit, match="--out: expected a folder that can be written but got"):
        Results(tmp_path / "out", RUN)


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


FIELDS: dict[str, tuple[Any, ...]] = {
    "cell": tuple(grid.CELLS),
    "precision": tuple(grid.PRECISIONS),
    "hidden": grid.HIDDEN,
    "training": (False, True),
    "ragged": (False, True),
    "batch": grid.BATCHES,
    "steps": grid.STEPS,
    "directions": (1, 2),
}


def test_any_beginning_of_the_grid_is_even() -> None:
    first = grid.grid()[:250]
    for field, values in FIELDS.items():
        share = 250 / len(values)
        for value in values:
            count = sum(getattr(point, field) == value for point in first)
            assert 0.6 * share < count < 1.4 * share, (field, value, count)


def test_the_chosen_rows_differ() -> None:
    rows = grid.chosen(grid.grid(), 40)
    assert len(set(rows)) == 40
    assert rows[:4] == list(grid.ALWAYS)
    for field, values in FIELDS.items():
        counts = [sum(getattr(point, field) == value for point in rows) for value in values]
        assert min(counts) >= 0.4 * 40 / len(values), (field, counts)
    pairs = sum(len(us) * len(vs) for us, vs in itertools.combinations(FIELDS.values(), 2))
    assert len({pair for point in rows for pair in grid.pairs(point)}) > 0.85 * pairs
    assert sum(point.seconds for point in rows) < 2


def test_a_dearer_point_is_expected_to_take_longer() -> None:
    for change in ({"steps": 512}, {"training": True}, {"ragged": True}, {"directions": 2}, {"batch": 1024}):
        point = GridPoint("gru", "fp32", 1024, False, False, 16, 128, 1)
        assert point._replace(**change).seconds > point.seconds
    launches, flop = 128 * 2 * 3 * 4, 4 * 16 * 128 * 3 * 1024 * 2 * 1024 * 3
    dear = GridPoint("gru", "fp32", 1024, True, True, 16, 128, 2)
    assert dear.seconds == pytest.approx(launches * 10e-6 + flop / 40e12)
    assert POINT.bytes == 16 * 32 * 64 * (2 + 4 * 3) * 2 * 2

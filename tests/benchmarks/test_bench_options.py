"""The questions about resets and about the options of layers: every side computes the same, and goals are reported."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import goals, keras_engines, layer_cases, option_loops
from benchmarks.layer_cases import Case, Shape, Values
from benchmarks.questions import options, resets
from benchmarks.rows import Row, Side
from benchmarks.torch_engines import Engine

MODES = pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
BY_NAME = "{0.cell} {0.name}".format


def within_bound(case: Case, engines: dict[str, Engine], error_of: Callable[[Values], float]) -> None:
    for name, engine in engines.items():
        with engine.around():
            assert error_of(engine.values(engine.run())) <= case.error_bound, name


# -- resets -----------------------------------------------------------------------------------------------------------


def reset_case(cell: str, training: bool = False) -> Case:
    return Case(cell, Shape(5, 12, 6, 9), training=training, state=True)


@MODES
@pytest.mark.parametrize("density", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("cell", layer_cases.CELLS)
def test_all_ways_to_reset_agree(cell: str, density: float, training: bool) -> None:
    case = reset_case(cell, training)
    problem, marks = layer_cases.build(case), resets.resets_of(case.shape, density)
    assert bool(marks.any()) == (density > 0)
    with layer_cases.grad_mode(case):
        expected = resets.reference(problem, marks)
        error_of = partial(layer_cases.distance_from, expected, gradients=training)
        built = resets.engines(problem, marks, torchrl=False)
        assert set(built) == {"ours", resets.SPLIT, resets.STEPS, resets.LOOP}
        within_bound(case, built, error_of)


def test_a_reset_counts() -> None:
    """The reference differs where a row resets and nowhere before, and whatever state comes before the first step."""
    case = reset_case("LSTM")
    problem, marks = layer_cases.build(case), torch.zeros(12, 5, dtype=torch.bool)
    without = resets.reference(problem, marks)
    marks[4, 2] = marks[0, 3] = True
    found = resets.reference(problem, marks)
    differs = (found["output"] != without["output"]).any(2)
    expected = torch.zeros(12, 5, dtype=torch.bool)
    expected[4:, 2] = expected[:, 3] = True
    assert torch.equal(differs, expected)
    other = replace(problem, states=tuple(state + 1 for state in problem.states))
    assert torch.equal(resets.reference(other, marks)["output"][:, 3], found["output"][:, 3])


def test_the_goals_of_resets() -> None:
    case = Case("LSTM", Shape(8, 32, 64, 64))
    assert resets.goals_of(case, 0.1) == {resets.PLAIN: 1 / 1.05, resets.COMPILED: 2.0}
    assert resets.goals_of(replace(case, cell="RNN"), 0.1)[resets.COMPILED] == 3.0
    long = replace(case, shape=Shape(32, 128, 128, 128))
    assert resets.goals_of(long, 0.01) == {resets.PLAIN: 1 / 1.05, resets.SPLIT: 5.0, resets.STEPS: 5.0}
    assert resets.SPLIT not in resets.goals_of(long, 0.1)
    assert {(shape.B, shape.T, shape.H) for shape in resets.SHAPES} == {
        (B, T, H) for B in (8, 32) for T in (32, 128) for H in (64, 128)
    }


# -- options ----------------------------------------------------------------------------------------------------------


@MODES
@pytest.mark.parametrize("kind", options.KINDS, ids=BY_NAME)
def test_loops_compute_what_ours_do(kind: options.Kind, training: bool) -> None:
    """In training with the masks of one seed. In evaluation the random options drop nothing, and are not measured."""
    if kind.is_random and not training:
        return
    case = Case(kind.cell, Shape(5, 7, 6, 9), training=training)
    problem = options.build(kind, case)
    with layer_cases.grad_mode(case):
        expected = options.reference(problem, kind)
        within_bound(case, options.engines(problem, kind), partial(options.error_of, expected))


@pytest.mark.parametrize("name", ["torchrl", *keras_engines.BACKENDS.values()])
def test_libraries_compute_the_same(name: str) -> None:
    """torchrl with resets, and Keras's layers: see option_peer_run.py."""
    installed = importlib.util.find_spec(name) if name == "torchrl" else keras_engines.installed(name)
    if not installed:
        pytest.skip("torchrl is not installed" if name == "torchrl" else f"Keras or {name} is not installed")
    command = [sys.executable, str(Path(__file__).with_name("option_peer_run.py")), name]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # imports what this process imports
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr}"


@pytest.mark.parametrize("kind", [kind for kind in options.KINDS if kind.is_random], ids=BY_NAME)
def test_masks_are_drawn_and_count(kind: options.Kind) -> None:
    """Each call of a loop draws masks of its own, with the share of the option, and they change the result."""
    shape = Shape(50, 40, 6, 9)
    rate = kind.options.get("zoneout") or kind.options["recurrent_dropout"]
    for masks in (
        option_loops.draw(kind.cell, kind.options, shape),
        option_loops.given(kind.cell, kind.options, shape),
    ):
        found = [mask for mask in masks if mask is not None]
        assert found
        for mask in found:
            assert float((mask == 0).float().mean()) == pytest.approx(rate, abs=0.1)
    one, other = (option_loops.draw(kind.cell, kind.options, shape) for _ in range(2))
    assert not all(a is None or b is None or torch.equal(a, b) for a, b in zip(one, other, strict=True))
    case = Case(kind.cell, Shape(5, 7, 6, 9), training=True)
    expected = options.reference(options.build(kind, case), kind)
    assert float((expected["d x"] - expected["evaluated d x"]).abs().max()) > 1e-3


def test_the_goals_of_options() -> None:
    found = {(kind.cell, kind.name): kind for kind in options.KINDS}
    small, large = (Case("LSTM", shape, training=True) for shape in options.SHAPES[1:3])
    norm, state = found["LSTM", "layer normalisation"], found["LSTM", "dropout of the state"]
    assert options.goals_of(norm, small) == {options.LOOP: 10.0}
    assert options.goals_of(norm, large) == {options.LOOP: 2.5, options.PLAIN: 1 / 1.3}
    assert options.goals_of(state, large)[options.PLAIN] == 1 / 1.08
    assert options.goals_of(found["GRU", "zoneout"], large)[options.PLAIN] == 1 / 1.2
    assert options.PLAIN not in options.goals_of(found["GRU", "layer normalisation"], large)


# -- which rows there are, and what is said of goals ------------------------------------------------------------------


def session() -> Any:
    """A session that measures nothing. It asks no library that is optional."""

    def filled(row: Row, built: Any, error_of: Any, bound: float, others: Any) -> None:
        row.sides = {name: Side([1.0]) for name in (*built, *others)}

    return SimpleNamespace(quick=True, threads=1, asks=lambda name: False, fill=filled)


def test_rows() -> None:
    [inference, training] = list(resets.measure(session()))
    assert (inference.what, training.what) == ("resets, inference", "resets, training")
    assert inference.name == "GRU (8, 32, 64, 64), 1 % resets"
    assert list(inference.sides) == ["ours", resets.SPLIT, resets.STEPS, resets.LOOP, resets.PLAIN]
    assert resets.PLAIN not in inference.rivals()
    found = list(options.measure(session()))
    assert "dropout of the state, training" in {row.what for row in found}
    assert "zoneout, inference" not in {row.what for row in found}
    assert list(found[0].sides) == ["ours", options.LOOP, options.PLAIN]


def test_goals_are_reported() -> None:
    def row(ours: float, plain: float, loop: float, name: str) -> Row:
        sides = {"ours": Side([ours] * 3), "ours plain": Side([plain] * 3), "loop": Side([loop] * 3)}
        return Row("resets", "resets", name, 1, sides, goals={"ours plain": 1 / 1.05, "loop": 5.0, "absent": 2.0})

    text = list(goals.section([row(1.1, 1.0, 6.6, "a"), row(1.0, 1.0, 4.0, "b"), row(1.0, 1.0, 9.0, "c")]))
    assert text[-3:-1] == [
        "| resets | 1 | ours plain | at most 1.05 times its time | 1.10 times | 2 of 3 |",
        "| resets | 1 | loop | at least 5.00 times as fast | 4.00 times | 2 of 3 |",
    ]
    assert list(goals.section([replace(row(1, 1, 1, "a"), goals={})])) == []

"""The cases and engines of the benchmarks at small sizes, against float64: every kind of case, every installed peer."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peer_run import KINDS
from torch import nn

import seqcls_fast as sf
from benchmarks import layer_cases, peers, rows
from benchmarks.layer_cases import Case, Shape
from benchmarks.questions import cells, one_step, policies, random_shapes
from benchmarks.rows import FROZEN, Row, Side

QUICK_PEERS = [peer for peer in peers.PEERS if peer.name != "torch.compile"]  # compiling takes seconds


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_ours_is_right(case: Case) -> None:
    with layer_cases.grad_mode(case):
        engine = peers.build_ours(layer_cases.build(case), 1)
        assert layer_cases.error_of(case, engine.values(engine.run())) <= case.error_bound


@pytest.mark.parametrize("case", [c for c in KINDS if not (c.training or c.graph or c.ragged)], ids=str)
def test_ours_is_right_with_frozen_weights(case: Case) -> None:
    with layer_cases.grad_mode(case):
        engine = peers.build_frozen(layer_cases.build(case), 1)
        with engine.around():
            assert layer_cases.error_of(case, engine.values(engine.run())) <= case.error_bound


@pytest.mark.parametrize("peer", QUICK_PEERS, ids=lambda peer: peer.name)
def test_peers_compute_the_same(peer: peers.Peer) -> None:
    """Each runs in a process of its own and must leave its state as it was: see peer_run.py."""
    if not peer.installed:
        pytest.skip(f"{peer.package} is not installed")
    command = [sys.executable, str(Path(__file__).with_name("peer_run.py")), peer.name]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # imports what this process imports
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr}"


def test_a_wrong_result_is_seen() -> None:
    case = Case("GRU", Shape(5, 7, 6, 9))
    with layer_cases.grad_mode(case):
        engine = peers.build_ours(layer_cases.build(case), 1)
        values = {name: value.clone() for name, value in engine.values(engine.run()).items()}
        values["output"][3, 2, 1] += 1e-3
        assert layer_cases.error_of(case, values) > case.error_bound
        values["output"][3, 2, 1] = torch.nan
        assert layer_cases.error_of(case, values) == float("inf")
        values.pop("h_n")
        with pytest.raises(KeyError):
            layer_cases.error_of(case, values)


def test_a_state_counts() -> None:
    """It is passed to the call, and what becomes of it is compared: c_n, and the gradients of h0 and c0."""
    for case in (Case("LSTM", Shape(5, 7, 6, 9), state=True), Case("LSTM", Shape(5, 1, 6, 9), single=True)):
        values = {name: value.clone() for name, value in layer_cases.reference(case).items()}
        assert layer_cases.error_of(case, values) == 0
        values["c_n"] += 1e-3
        assert layer_cases.error_of(case, values) > case.error_bound
        training = replace(case, training=True)
        assert {"d x", "d h0", "d c0"} < layer_cases.reference(training).keys()
        without = layer_cases.build(case).module()(layer_cases.build(case).x)
        assert layer_cases.error_of(case, layer_cases.results_of(case, without)) > case.error_bound


def test_a_graph_is_recorded_where_it_is_said() -> None:
    case = Case("GRU", Shape(5, 7, 6, 9))
    for kind in (case, replace(case, graph=True), Case("GRU", Shape(5, 1, 6, 9), single=True)):
        with layer_cases.grad_mode(kind):
            engine = peers.build_ours(layer_cases.build(kind), 1)
            assert engine.values(engine.run())["h_n"].requires_grad == kind.graph


def test_parameters_are_ordinary_tensors_in_inference_mode() -> None:
    """Those of a user are, and only such a tensor counts its changes."""
    with torch.inference_mode():
        case = Case("GRU", Shape(2, 3, 5, 7))
        assert not any(weight.is_inference() for weight in layer_cases.build(case).module().parameters())


def test_the_reader_of_weights() -> None:
    assert layer_cases.reader_of_weights(Case("LSTM", Shape(2, 1, 5, 7)))() == 4 * 7 * (5 + 7 + 2)


def test_the_cases_of_calls() -> None:
    """Cells from 8 to 512 units and 1 to 64 rows; layers of one step with and without a state; each in every mode."""
    asked: list[tuple[Case, bool]] = []

    def layer(question: str, case: Case, *_: Any, frozen: bool = False, floor: bool = False) -> Row:
        asked.append((case, frozen))
        assert not floor or frozen
        return Row(question, case.what, case.name, 1, {"ours": Side([1.0]), FROZEN: Side([0.5]), "torch": Side([2.0])})

    session: Any = SimpleNamespace(quick=False, layer=layer)
    found = list(cells.measure(session))
    assert {(case.cell, case.shape.B, case.shape.H, case.training) for case, _ in asked} == {
        (cell, B, H, training)
        for cell in layer_cases.CELLS
        for B in (1, 4, 16, 64)
        for H in (8, 32, 64, 128, 256, 512)
        for training in (False, True)
    }
    assert all(case.single and frozen is not case.training for case, frozen in asked)
    assert {row.what for row in found} == {"cell inference", "cell inference, frozen", "cell training"}
    assert "LSTMCell (1, 32, 64)" in {row.name for row in found}
    asked.clear()
    found = list(one_step.measure(session))
    assert all(case.shape.T == 1 for case, _ in asked)
    tables = ("inference", "inference, frozen", "forward with a graph", "training")
    assert {(row.what, row.name) for row in found} == {
        (f"one step, {table}", f"{cell} {case}")
        for table in tables
        for cell in layer_cases.CELLS
        for case in (
            "(1, 1, 8, 8)",
            *(f"{shape}, state carried" for shape in ("(1, 1, 8, 8)", "(1, 1, 64, 64)", "(1, 1, 128, 256)")),
            "(4, 1, 128, 256), state carried",
        )
    }
    assert len({row.key for row in found}) == len(found)


# -- loops around cells -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", list(policies.tasks(quick=True)), ids=lambda task: task.name)
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
def test_loops_around_cells_are_right(task: policies.Task, training: bool) -> None:
    expected = task.reference(training)
    engines = task.engines(training)
    assert set(engines) == {"ours", "torch"} | ({FROZEN} if not training else set())
    for engine in engines.values():
        with torch.set_grad_enabled(training), engine.around():
            values = engine.values(engine.run())
        bound = layer_cases.ERROR_BOUND["gradient" if training else "forward"]
        assert layer_cases.distance_from(expected, values, gradients=training) <= bound
    if training:
        assert expected.keys() == {f"d {name}" for name, _ in task.model.named_parameters()}


def test_training_changes_the_weights_of_a_copy() -> None:
    for task in policies.tasks(quick=True):
        before = {name: weight.clone() for name, weight in task.model.named_parameters()}
        models: list[nn.Module] = [copy.deepcopy(task.model)]
        task.engine(models[0], training=True).run()
        task.engines(training=True)["ours"].run()
        assert all(torch.equal(weight, before[name]) for name, weight in task.model.named_parameters())
        assert not any(torch.equal(weight, before[name]) for name, weight in models[0].named_parameters())


def test_ours_has_converted_cells_and_torchs_has_not() -> None:
    for task in policies.tasks(quick=True):
        model = policies.converted(task.model)
        assert isinstance(model.cell, (sf.GRUCell, sf.LSTMCell))
        assert type(task.model.cell) in (nn.GRUCell, nn.LSTMCell)
    with pytest.raises(RuntimeError, match="expected every cell to be converted but got\n0 swapped"):
        policies.converted(nn.Linear(2, 3))


def test_a_decoder_takes_its_own_tokens() -> None:
    """Without tokens it goes on from the likeliest one, so the same tokens given to it lead to the same logits."""
    task = next(task for task in policies.tasks(quick=True) if "LSTMCell decoder" in task.name)
    with torch.no_grad():
        free = task.model(*task.inputs)
        assert free.shape == (policies.TOKENS, 1, policies.VOCABULARY)
        torch.testing.assert_close(task.model(*task.inputs, free.argmax(2)), free, rtol=0, atol=0)
        assert not torch.equal(task.model(*task.inputs, task.targets), free)


def test_tables() -> None:
    """Each table has every cell, and ragged lengths range from a tenth of T to T."""
    cases = list(layer_cases.grid())
    assert len(set(cases)) == len(cases)
    tables = {case.what for case in cases}
    assert {"inference", "training", "ragged inference", "ragged training", "bfloat16 inference"} <= tables
    assert {"bidirectional training", "stacked inference"} <= tables
    for what in tables:
        assert {case.cell for case in cases if case.what == what} == set(layer_cases.CELLS)
    assert max(case.shape.H for case in cases) == 1024
    lengths = layer_cases.lengths_of(Shape(1000, 50, 1, 1))
    assert (int(lengths.min()), int(lengths.max())) == (5, 50)


def test_costs() -> None:
    case = Case("LSTM", Shape(2, 3, 5, 7))
    forward = 2e-9 * 2 * 3 * 28 * (5 + 7)
    assert layer_cases.gflop_of(case) == pytest.approx(forward)
    assert layer_cases.gflop_of(replace(case, training=True)) == pytest.approx(3 * forward)
    both = 2e-9 * 2 * 3 * 56 * ((5 + 7) + (14 + 7))
    assert layer_cases.gflop_of(replace(case, directions=2, layers=2)) == pytest.approx(both)
    assert layer_cases.bytes_of(case) == 4 * (6 * 5 + 6 * 7 + 28 * 12)
    assert layer_cases.bytes_of(replace(case, dtype="bfloat16")) == layer_cases.bytes_of(case) / 2
    assert layer_cases.bytes_of(replace(case, training=True)) > 3 * layer_cases.bytes_of(case)
    ragged = replace(case, ragged=True)
    steps = int(layer_cases.lengths_of(case.shape).sum())
    assert layer_cases.gflop_of(ragged) == pytest.approx(forward * steps / 6)


def test_a_commit_draws_its_own_shapes() -> None:
    cases = random_shapes.drawn("0afe4f0", ())
    assert cases == random_shapes.drawn("0afe4f0", ())
    assert len(set(cases)) == random_shapes.COUNT
    assert not set(cases) & set(random_shapes.drawn("0afe4f1", ()))
    for case in cases:
        assert layer_cases.gflop_of(case) <= random_shapes.MOST_GFLOP
        for name, size in case.shape._asdict().items():
            low, high = random_shapes.RANGES[name]
            assert low <= size <= high
    many = random_shapes.drawn("a", (), 2_000)
    small = sum(case.shape.H <= 90 for case in many) / len(many)  # half of the doublings from 8 to 1024
    assert 0.45 < small < 0.65, "small sizes are as frequent as large ones; the largest products are left out"


def test_shapes_of_other_commits_are_not_drawn_again(tmp_path: Path) -> None:
    first = random_shapes.drawn("0afe4f0", ())
    with (tmp_path / "some-cpu.json").open("w") as file:
        rows.write_run({}, file)
        for case, commit in zip(first, ("0afe4f0", "1111111"), strict=False):
            what = f"inference of shapes drawn by {commit}"
            rows.write(Row("random_shapes", what, case.name, 1, {"ours": Side([1.0])}), file)
    assert random_shapes.earlier("0afe4f0", tmp_path) == {first[1].name}
    again = random_shapes.drawn("0afe4f0", {first[1].name})
    assert first[1] not in again
    assert len(set(first) & set(again)) == random_shapes.COUNT - 1

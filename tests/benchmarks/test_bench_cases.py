"""The cases and engines of the benchmarks at small sizes, against float64: every kind of case, every installed peer."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peer_run import KINDS

from benchmarks import layer_cases, peers
from benchmarks.layer_cases import Case, Shape

QUICK_PEERS = [peer for peer in peers.PEERS if peer.name != "torch.compile"]  # compiling takes seconds


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_ours_is_right(case: Case) -> None:
    with layer_cases.grad_mode(case):
        engine = peers.build_ours(layer_cases.build(case), 1)
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

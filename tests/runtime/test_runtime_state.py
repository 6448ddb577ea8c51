"""States of rows as bytes: a sequence goes on in another stream with the bits that it would have had."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from c_library import FASTEST, PLAIN_SERIES, Refused
from c_library import Model as CModel

import seqcls_fast as sf
from seqcls_fast.export import to_runtime
from seqcls_fast.runtime import Model
from support.corpora import waves

MODELS = ("projected", "gru", "mean", "max", "series")


def module(name: str) -> Any:
    torch.manual_seed(0)
    if name == "series":
        parameters = PLAIN_SERIES | {"differences": True, "missing": "forward", "max_length": 14}
        estimator = sf.SeriesClassifier(hidden_size=5, epochs=1, bidirectional=False, pooling="mean", **parameters)
        return estimator.fit(*waves(count=20))
    if name in ("mean", "max"):
        return sf.SequenceClassifier(2, 5, 3, pooling=name, cell="lstm", num_layers=2)
    return sf.LSTM(2, 6, num_layers=2, proj_size=3) if name == "projected" else sf.GRU(2, 5, learn_initial_state=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_a_row_moves_to_another_stream(name: str, dtype: str, tmp_path: Path) -> None:
    to_runtime(module(name), tmp_path / "model.sfm", dtype)
    model, x = Model.open(tmp_path / "model.sfm"), np.random.default_rng(0).normal(size=(3, 20, 2)).astype(np.float32)
    if name == "series":
        x[:, 6:9] = np.nan
    here, there = model.stream(3), Model.open(tmp_path / "model.sfm").stream(2)
    here.push(x[:, :7])
    there.push(x[:2, ::-1])
    there.set_state(here.get_state(2), 0)
    there.set_state(here.get_state()[0], 1)
    expected, found = here.push(x[:, 7:]), there.push(x[[2, 0], 7:])
    assert found.tobytes() == expected[[2, 0]].tobytes()
    assert there.get_state().shape == (2, here.get_state(0).size)
    assert there.get_state(0).tobytes() == here.get_state(2).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_a_state_moves_after_any_number_of_single_steps(cell: str, dtype: str, tmp_path: Path) -> None:
    """The short way of single steps has two places for h, which take turns."""
    torch.manual_seed(0)
    to_runtime(getattr(sf, cell)(2, 6, num_layers=2), tmp_path / "model.sfm", dtype)
    model, x = Model.open(tmp_path / "model.sfm"), np.random.default_rng(0).normal(size=(12, 2)).astype(np.float32)
    expected = model.stream().push(x)
    for before in range(5):
        here = model.stream()
        for step in x[:before]:
            here.step(step)
        state = here.get_state(0)
        for other in range(4):
            there = model.stream()
            for step in x[:other]:
                there.step(-step)
            there.set_state(state, 0)
            assert there.get_state(0).tobytes() == state.tobytes()
            found = np.stack([there.step(step) for step in x[before:9]])
            np.testing.assert_array_equal(found, expected[before:9])
            np.testing.assert_array_equal(there.push(x[9:]), expected[9:])
        here.step(-x[0])
        here.set_state(state, 0)
        np.testing.assert_array_equal(here.push(x[before:]), expected[before:])


def test_a_state_is_of_one_model(tmp_path: Path) -> None:
    states = []
    for k in range(2):
        torch.manual_seed(k)
        to_runtime(sf.GRU(2, 3), tmp_path / f"{k}.sfm")
        states.append(Model.open(tmp_path / f"{k}.sfm").stream().get_state(0))
    stream = Model.open(tmp_path / "0.sfm").stream(2)
    before = stream.get_state()
    broken = states[0].copy()
    broken[0] ^= 1
    for state, row, kind, words in (
        (states[1], 0, ValueError, "state: expected one of a stream of this model but got one of another model"),
        (broken, 0, ValueError, r"state: expected bytes of seqcls_get_state\(\) but got others"),
        (states[0][1:], 0, ValueError, r"state: expected \(\d+,\) but got \(\d+,\)"),
        (states[0], None, ValueError, r"state: expected \(2, \d+\) but got \(\d+,\)"),
        (states[0], 2, ValueError, "row: expected 0 to 1 but got 2"),
        (states[0].astype(float), 0, TypeError, r"state: expected bytes \(uint8\) but got float64"),
    ):
        with pytest.raises(kind, match=words):
            stream.set_state(state, row)
    with pytest.raises(ValueError, match="row: expected 0 to 1 but got -1"):
        stream.get_state(-1)
    assert stream.get_state().tobytes() == before.tobytes()


def test_counts_that_no_stream_has(tmp_path: Path) -> None:
    to_runtime(module("series"), tmp_path / "model.sfm")
    stream = CModel(tmp_path / "model.sfm", FASTEST).stream()
    state = stream.state()
    for at, value in (
        (8, 1),
        (16, -1),
        (16, 2**63 - 1),
        (24, -1),
        (24, 15),
    ):  # bytes, pooled steps, steps that were taken
        other = state.copy()
        other[at : at + 8] = np.array([value], np.int64).view(np.uint8)
        with pytest.raises(Refused, match="bad argument: state: expected bytes of seqcls_get_state"):
            stream.set_state(other)
    with pytest.raises(Refused, match=f"bad argument: state: expected {state.size} bytes but got {state.size - 8}"):
        stream.set_state(state[8:])


def test_a_row_moves_to_another_process(tmp_path: Path) -> None:
    to_runtime(module("mean"), tmp_path / "model.sfm")
    stream, x = Model.open(tmp_path / "model.sfm").stream(), np.ones((9, 2))
    stream.push(x)
    stream.get_state(0).tofile(tmp_path / "state")
    program = (
        "import sys, numpy; from seqcls_fast.runtime import Model\n"
        "stream = Model.open(sys.argv[1]).stream()\n"
        "stream.set_state(numpy.fromfile(sys.argv[2], 'u1'), 0)\n"
        "sys.stdout.buffer.write(stream.push(numpy.ones((9, 2))).tobytes())"
    )
    words = [sys.executable, "-c", program, str(tmp_path / "model.sfm"), str(tmp_path / "state")]
    assert subprocess.run(words, check=True, capture_output=True).stdout == stream.push(x).tobytes()

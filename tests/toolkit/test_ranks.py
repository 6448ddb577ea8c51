"""Two processes train like one: the same batches, and weights that differ only by rounding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from seqcls_fast.toolkit.ranks import ALONE, Ranks, current, restarted
from seqcls_fast.toolkit.training.checkpoint import Checkpoints
from support import two_ranks
from support.interruptions import Killed, kill_after
from support.processes import SUPPORT, torchrun

pytestmark = pytest.mark.alone  # it starts several processes at a time

STEPS = 3 * 5  # epochs of five batches
WORK = 8 * 8 * 3 * 8  # products summed into one gradient: rows, steps, gates, and the terms of each
# A gradient, clipped to a norm of 1, has at most WORK rounding errors; AdamW divides it by its eps or more.
BOUND = STEPS * 1e-2 * WORK * 2.0**-53 / 1e-8


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """The folder of results, the content of told.json, and stderr."""
    folder = tmp_path_factory.mktemp("ranks")
    with pytest.MonkeyPatch.context() as patch:
        kill_after(7, patch)
        with pytest.raises(Killed):
            two_ranks.trained("gru", ALONE, checkpoints=Checkpoints(folder / "alone", 0))
    done = torchrun(2, str(SUPPORT / "two_ranks.py"), str(folder))
    assert done.returncode == 0, done.stderr
    return folder, json.loads((folder / "told.json").read_text()), done.stderr


def assert_close(found: Path, expected: dict[str, torch.Tensor]) -> None:
    weights = load_file(found)
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (weights[name] - tensor).abs().max() <= BOUND, name


def figures(history: list[dict[str, Any]]) -> list[float]:
    return [value for record in history for name, value in record.items() if "second" not in name]


@pytest.mark.parametrize("case", [*two_ranks.CASES, *two_ranks.WIDE])
def test_weights_of_one_process(case: str, run: tuple[Path, dict[str, Any], str]) -> None:
    folder, told, _ = run
    weights, history = two_ranks.trained(case, ALONE)
    assert_close(folder / f"{case}.safetensors", weights)
    # counts are the same; "padding" is not, as each process pads only its own rows
    alike = [{k: v for k, v in record.items() if k != "padding"} for record in (*history, *told[case])]
    assert figures(alike[:3]) == pytest.approx(figures(alike[3:]), abs=BOUND)


@pytest.mark.parametrize("case", two_ranks.CASES)
def test_weights_of_distributed_data_parallel(case: str, run: tuple[Path, dict[str, Any], str]) -> None:
    folder, _, _ = run
    assert_close(folder / f"{case}-last.safetensors", load_file(folder / f"{case}-torch.safetensors"))


def test_weights_matter(run: tuple[Path, dict[str, Any], str]) -> None:
    folder, _, _ = run
    assert_close(folder / "plain.safetensors", two_ranks.trained("gru", ALONE, weighted=False)[0])
    weighted, plain = (load_file(folder / f"{name}.safetensors") for name in ("gru", "plain"))
    assert max(float((weighted[name] - plain[name]).abs().max()) for name in weighted) > 1000 * BOUND


def test_one_of_them_runs_out_of_memory(run: tuple[Path, dict[str, Any], str]) -> None:
    folder, told, _ = run
    assert_close(folder / "memory.safetensors", load_file(folder / "gru.safetensors"))
    assert told["memory"] == [[2, 2, 2]] * 2  # rank 0, which writes file and history, knows about rank 1
    assert told["warned"][0] == []
    assert "too little memory for 4 sequences at once" in told["warned"][1][0]


def test_resumed_with_another_number_of_ranks(run: tuple[Path, dict[str, Any], str]) -> None:
    folder, _, _ = run
    whole = two_ranks.trained("gru", ALONE)[0]
    assert_close(folder / "resumed.safetensors", whole)
    state = Checkpoints(folder / "killed", 0).newest()["state"]
    assert (len(state["history"]), state["sums"]["steps"]) == (1, 2)
    weights, _ = two_ranks.trained("gru", ALONE, saved=state)
    assert max(float((weights[name] - whole[name]).abs().max()) for name in whole) <= BOUND


def test_all_stop_when_the_writer_says_so(run: tuple[Path, dict[str, Any], str]) -> None:
    folder, told, _ = run
    assert len(told["stopped"]) == 2
    assert_close(
        folder / "stopped.safetensors", two_ranks.trained("gru", ALONE, stop=lambda history: len(history) == 2)[0]
    )


def test_one_writer(run: tuple[Path, dict[str, Any], str]) -> None:
    folder, told, stderr = run
    assert list((folder / "of-rank-0").iterdir())
    assert not (folder / "of-rank-1").exists()
    assert len(list((folder / "logs").iterdir())) == 1
    assert stderr.count("epoch   1/5") == 1
    first, second = told["estimator"]
    assert first["weights"] == second["weights"]
    assert first["accuracy"] == second["accuracy"]  # of the network alone; the report is of the whole model
    assert first["report"]["accuracy"] >= first["accuracy"]
    assert first["report"]["examples"] == 20
    assert second["report"] is None
    assert first["ranks"] == 2
    assert first["seeds"] == second["seeds"]


def test_different_data_are_noticed(run: tuple[Path, dict[str, Any], str]) -> None:
    words = "fit: expected the same data and parameters in every process but got different ones"
    assert run[1]["different"] == [words, words]


@pytest.mark.parametrize("world", [2, 3, 5])
def test_the_order_does_not_depend_on_the_ranks(world: int) -> None:
    data = two_ranks.examples(1, 33, True)
    whole = [part.rows for part in data.epoch(8, 4, 2, 0, ALONE)]
    assert [len(rows) for rows in whole] == [part.count for part in data.epoch(8, 4, 2, 0, ALONE)]
    shares = [list(data.epoch(8, 4, 2, 0, Ranks(rank, world))) for rank in range(world)]
    for rows, *parts in zip(whole, *shares, strict=True):
        assert sorted(torch.cat([part.rows for part in parts]).tolist()) == sorted(rows.tolist())
        assert {part.count for part in parts} == {len(rows)}
        assert max(len(part.rows) for part in parts) - min(len(part.rows) for part in parts) <= 1
    later = [part.rows.tolist() for part in data.epoch(8, 4, 2, 3, ALONE)]
    assert later == [rows.tolist() for rows in whole[3:]]
    assert later != [part.rows.tolist() for part in data.epoch(8, 4, 1, 3, ALONE)]
    pieces = [piece for rank in range(world) for piece in data.pieces(Ranks(rank, world))]
    assert sum(len(piece) for piece in pieces) == len(data)
    seen = sorted(float(values.sum()) for piece in pieces for values in piece.sequences.split())
    assert seen == sorted(float(values.sum()) for values in data.sequences.split())


def test_alone() -> None:
    assert current() == ALONE
    assert (ALONE.writer, ALONE.gather(1), ALONE.all(2), ALONE.from_writer(3)) == (True, [1], [2], 3)
    tensors = [torch.ones(2), torch.zeros(3)]
    assert ALONE.sum_(tensors) == tensors


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_RESTART_COUNT": "0"}, False),
        ({"TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_RESTART_COUNT": "2"}, True),
        ({"TORCHELASTIC_RESTART_COUNT": "2"}, False),  # torchrun has not started this process
    ],
)
def test_restarted(environment: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert restarted() is expected

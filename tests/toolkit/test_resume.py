"""Checkpoints: a training that was killed and resumed ends with the same bits, and no failure loses a checkpoint."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import seqcls_fast as sf
from seqcls_fast.toolkit.training import checkpoint
from seqcls_fast.toolkit.training import loop as training
from seqcls_fast.toolkit.training.checkpoint import CheckpointError, Checkpoints
from support import killed
from support.corpora import sentences, waves
from support.interruptions import Killed, kill_after, limit_rows, small
from support.processes import ROOT, SUPPORT, TESTS

X, Y = sentences(0, 100)


def killed_and_resumed(folder: Path, steps: int, **more: Any) -> sf.TextClassifier:
    with pytest.MonkeyPatch.context() as patch:
        kill_after(steps, patch)
        with pytest.raises(Killed):
            small(folder, **more).fit(X, Y, validation=0.2)
    return small(folder, **more).fit(X, Y, validation=0.2, resume=True)


def test_killed_fifty_times(tmp_path: Path) -> None:
    """Killed at any point: in a step, between two steps, or while a checkpoint is written."""
    command = [sys.executable, str(SUPPORT / "killed.py"), "trainings", str(tmp_path / "trainings"), "50"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(ROOT)])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["killed"] == 50
    assert found["moments"] >= 10
    assert len(found["ends"]) >= 4  # the one that was never killed, the last one, and some others
    assert set(found["ends"]) == {found["expected"]}


@pytest.mark.parametrize("steps", [0, 1, 4, 5, 7, 14])
def test_every_moment_is_as_good(steps: int, tmp_path: Path) -> None:
    expected = killed.digest(small(None).fit(X, Y, validation=0.2))
    assert killed.digest(killed_and_resumed(tmp_path, steps)) == expected


@pytest.mark.parametrize(
    "more",
    [
        {"cell": "lstm", "num_layers": 2, "class_weight": "balanced"},
        {"schedule": "one_cycle", "patience": 1, "metric": "accuracy", "learning_rate": 0.5},
        {"amp": True, "pooling": "attention"},
    ],
    ids=["lstm", "patience", "amp"],
)
def test_with_all_that_training_carries(more: dict[str, Any], tmp_path: Path) -> None:
    expected = killed.digest(small(None, **more).fit(X, Y, validation=0.2))
    assert killed.digest(killed_and_resumed(tmp_path, 4, **more)) == expected


def diverge_once(patch: pytest.MonkeyPatch, epoch: int, step: int) -> None:
    check = training._Training._check_finite

    def check_finite(self: Any, loss: float, norm: float) -> None:
        at = (len(self.history), self.sums.steps, self.restores)
        check(self, float("nan") if at == (epoch, step, 0) else loss, norm)

    patch.setattr(training._Training, "_check_finite", check_finite)


@pytest.mark.parametrize("steps", [5, 6, 8, 11])
def test_what_to_go_back_to_outlives_a_kill(steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second step of the third epoch gives NaN, and that epoch is trained again."""
    options = {"on_nan": "restore", "epochs": 4}
    untroubled = small(None, **options).fit(X, Y, validation=0.2)
    diverge_once(monkeypatch, 2, 1)
    whole = small(None, **options).fit(X, Y, validation=0.2)
    assert whole.history_[-1]["lr"] == untroubled.history_[-1]["lr"] / 2
    assert killed.digest(killed_and_resumed(tmp_path, steps, **options)) == killed.digest(whole)


def test_series_and_an_interrupt(tmp_path: Path) -> None:
    series, classes = waves()

    def classifier() -> sf.SeriesClassifier:
        return sf.SeriesClassifier(hidden_size=4, epochs=4, checkpoint_dir=tmp_path, checkpoint_every=0)

    def interrupt(history: Any) -> bool:
        if len(history) == 2:
            raise KeyboardInterrupt
        return False

    expected = killed.digest(classifier().set_params(checkpoint_dir=None).fit(series, classes))
    stopped = classifier()
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(series, classes, stop=interrupt)
    assert len(stopped.history_) == 2
    assert killed.digest(classifier().fit(series, classes, resume=True)) == expected


def test_a_training_that_is_over_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = killed.digest(small(tmp_path).fit(X, Y, validation=0.2, stop=lambda history: len(history) == 2))
    kill_after(0, monkeypatch)
    again = small(tmp_path).fit(X, Y, validation=0.2, resume=True)
    assert len(again.history_) == 2
    assert killed.digest(again) == done


def test_stop_may_say_it_in_numpys_way(tmp_path: Path) -> None:
    assert len(small(tmp_path).fit(X, Y, stop=lambda history: np.bool_(len(history) == 2)).history_) == 2


def test_a_drawn_seed_is_kept(tmp_path: Path) -> None:
    resumed = killed_and_resumed(tmp_path, 7, seed=None)
    assert killed.digest(small(None, seed=resumed.seed_).fit(X, Y, validation=0.2)) == killed.digest(resumed)


def test_resuming_without_a_checkpoint_begins(tmp_path: Path) -> None:
    assert len(small(tmp_path / "new").fit(X, Y, resume=True).history_) == 3


# -- refused trainings -------------------------------------------------------------------------------------------------


def test_another_training_is_refused(tmp_path: Path) -> None:
    small(tmp_path).fit(X, Y)
    with pytest.raises(CheckpointError, match="resume: expected epochs as in the checkpoint, 3, but got 4"):
        small(tmp_path, epochs=4).fit(X, Y, resume=True)
    with pytest.raises(CheckpointError, match="resume: expected the data as in the checkpoint, 100, but got 99"):
        small(tmp_path).fit(X[1:], Y[1:], resume=True)
    with pytest.raises(CheckpointError, match=r"resume: expected the data as in the checkpoint, [0-9a-f]{32}, but got"):
        small(tmp_path).fit([*X[:-1], X[0]], Y, resume=True)
    with pytest.raises(CheckpointError, match="resume: expected validation as in the checkpoint, None, but got"):
        small(tmp_path).fit(X, Y, validation=(X, Y), resume=True)
    small(tmp_path, device="cpu", verbose=False, checkpoint_every=5).fit(X, Y, resume=True)


def test_checkpoints_are_not_overwritten_unasked(tmp_path: Path) -> None:
    small(tmp_path).fit(X, Y)
    with pytest.raises(FileExistsError, match="checkpoint_dir: expected resume=True or a folder without checkpoints"):
        small(tmp_path).fit(X, Y)
    with pytest.raises(ValueError, match="resume: expected a checkpoint_dir to resume from but got None"):
        small(None).fit(X, Y, resume=True)
    with pytest.raises(ValueError, match="checkpoint_every: expected seconds, at least 0, but got -1"):
        small(tmp_path, checkpoint_every=-1).fit(X, Y)


# -- failures ----------------------------------------------------------------------------------------------------------

STATE = {"step": 1, "inner": [{"a": torch.arange(5), 3: None}, 0.1, "text", True]}


def same(found: Any) -> bool:
    state = found["state"]
    return state["step"] in (1, 2) and state["inner"][0]["a"].tolist() == [0, 1, 2, 3, 4] and 3 in state["inner"][0]


def test_two_are_kept(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 0)
    (tmp_path / ".checkpoint-00000009-0.safetensors").write_bytes(b"of a killed process")
    for _ in range(4):
        checkpoints.write(STATE)
    assert sorted(path.name.split("-")[1] for path in tmp_path.iterdir()) == ["00000003", "00000004"]
    again = Checkpoints(tmp_path, 0)
    again.write(STATE)
    assert len(list(tmp_path.glob("checkpoint-00000005-*"))) == 1
    assert same(again.newest())


@pytest.mark.parametrize("damage", ["cut", "empty", "changed"])
def test_damage_is_found_and_the_one_before_used(damage: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 0)
    checkpoints.write(STATE)
    checkpoints.write(STATE | {"step": 2})
    first, second = sorted(tmp_path.iterdir())
    data = second.read_bytes()
    second.write_bytes({"cut": data[:-3], "empty": b"", "changed": data[:-1] + bytes([data[-1] ^ 1])}[damage])
    with pytest.warns(RuntimeWarning, match="expected the checkpoint that was written, but it is"):
        assert checkpoints.newest()["state"]["step"] == 1
    first.write_bytes(b"")
    with (
        pytest.warns(RuntimeWarning, match="the one before it is used"),
        pytest.raises(CheckpointError, match=f"{first.name}: expected the checkpoint that was written"),
    ):
        checkpoints.newest()


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_FORMAT", 3)
    Checkpoints(tmp_path, 0).write(STATE)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="expected a checkpoint of format 2 but got format 3"):
        Checkpoints(tmp_path, 0).newest()


def fail(patch: pytest.MonkeyPatch, code: int) -> None:
    def fsync(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    patch.setattr(checkpoint.os, "fsync", fsync)


def test_a_full_disk_stops_nothing(tmp_path: Path) -> None:
    """There is one warning, the last checkpoint is intact, and checkpoints are written again when there is space."""
    with pytest.MonkeyPatch.context() as patch:
        write, calls = Checkpoints.write, [0]

        def sometimes(self: Checkpoints, state: Any) -> None:
            calls[0] += 1
            with pytest.MonkeyPatch.context() as inner:
                if 4 <= calls[0] <= 8:
                    fail(inner, errno.ENOSPC)
                write(self, state)

        patch.setattr(Checkpoints, "write", sometimes)
        with pytest.warns(RuntimeWarning) as said:
            whole = small(tmp_path).fit(X, Y)
    words = "checkpoint_dir: no checkpoint could be written to .* .No space left on device.; training goes on"
    assert [str(warning.message) for warning in said] == [said[0].message.args[0]]
    assert pytest.importorskip("re").match(words, str(said[0].message))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert killed.digest(small(tmp_path).fit(X, Y, resume=True)) == killed.digest(whole)
    assert not list(tmp_path.glob(".*"))


def test_a_failing_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, 0)
    checkpoints.write(STATE)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    fail(monkeypatch, errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.write(STATE | {"step": 2})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_takes_nothing_is_said_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_after(0, monkeypatch)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="file"):
        small(tmp_path / "file" / "in").fit(X, Y)
    fail(monkeypatch, errno.EROFS)
    with pytest.raises(OSError, match="Read-only file system"):
        small(tmp_path / "new").fit(X, Y)


def test_checkpoints_cost_a_fiftieth_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    quick = Checkpoints(tmp_path / "quick", every=10)
    sync = checkpoint.os.fsync

    def slowly(handle: int) -> None:
        now[0] += 0.5  # for the file, and again for its folder
        sync(handle)

    assert not quick.due()
    now[0] += 10
    assert quick.due()
    monkeypatch.setattr(checkpoint.os, "fsync", slowly)
    quick.write(STATE)
    now[0] += 49.9
    assert not quick.due()
    now[0] += 0.1
    assert quick.due()
    always = Checkpoints(tmp_path / "always", every=0)
    always.write(STATE)
    assert always.due()


# -- too little memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "forward"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), "forward"),
        (MemoryError("std::bad_alloc"), "backward"),
    ],
    ids=["cuda", "cpu", "backward"],
)
def test_batches_are_halved(error: Exception, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"class_weight": "balanced", "learning_rate": 0.01}
    options |= dict.fromkeys(("dropout", "embedding_dropout", "word_dropout"), 0.0)  # pieces would draw other numbers
    whole = small(None, **options).fit(X, Y)
    limit_rows(monkeypatch, 5, error, where)
    with pytest.warns(
        RuntimeWarning, match="batch_size: there is too little memory for 16 sequences at once, so"
    ) as said:
        halved = small(None, **options).fit(X, Y)
    assert len(said) == 2  # halves, then quarters
    assert [record.get("accumulated") for record in halved.history_] == [4, 4, 4]
    assert "accumulated" not in whole.history_[0]
    # the rows of a batch are summed in another order; test_ranks.py bounds the difference, in float64
    assert [r["loss"] for r in halved.history_] == pytest.approx([r["loss"] for r in whole.history_], rel=1e-3)
    assert [r["padding"] for r in halved.history_] <= [r["padding"] for r in whole.history_]


def test_halves_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_rows(monkeypatch, 5, torch.OutOfMemoryError("CUDA out of memory."))
    with pytest.warns(RuntimeWarning):
        whole = small(None).fit(X, Y, validation=0.2)
    with pytest.warns(RuntimeWarning) as said:
        assert killed.digest(killed_and_resumed(tmp_path, 7)) == killed.digest(whole)
    assert len(said) == 2


def test_a_sequence_that_never_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_rows(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory."))
    with (
        pytest.warns(RuntimeWarning, match="too little memory for (16|8|4|2) sequences"),
        pytest.raises(MemoryError, match="there is too little memory for a single sequence; try a smaller"),
    ):
        small(None).fit(X, Y)


def test_predictions_are_halved_too(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = small(None).fit(X, Y, validation=0.2)
    expected = trained.predict_proba(X)
    limit_rows(monkeypatch, 7, torch.OutOfMemoryError("CUDA out of memory."), training=False)
    np.testing.assert_allclose(trained.predict_proba(X), expected, atol=1e-6)
    assert small(None).fit(X, Y, validation=0.2).history_[-1]["val_loss"] == pytest.approx(
        trained.history_[-1]["val_loss"]
    )
    limit_rows(monkeypatch, 0, torch.OutOfMemoryError("CUDA out of memory."), training=False)
    with pytest.raises(torch.OutOfMemoryError):
        trained.predict(X)


def test_other_errors_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_rows(monkeypatch, 5, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        small(None).fit(X, Y)

"""fit(), predict() and evaluate() on data that are read while they are used."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import seqcls_fast as sf
from seqcls_fast.toolkit.data import pools
from seqcls_fast.toolkit.data.datasets import Examples, Streamed
from seqcls_fast.toolkit.data.labels import as_list, classes_of, to_targets, weights_of
from seqcls_fast.toolkit.data.stream import Stream
from seqcls_fast.toolkit.data.text import TextEncoder
from seqcls_fast.toolkit.ranks import ALONE, Ranks
from seqcls_fast.toolkit.training.checkpoint import CheckpointError
from support import killed
from support.corpora import sentences, waves
from support.interruptions import Killed, kill_after

X, Y = sentences(0, 700)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The sentences in a CSV file and a JSONL file, each with a weight."""
    where = tmp_path / "data"
    where.mkdir()
    with open(where / "a.csv", "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label", "weight"])
        rows.writerows((text, label, 1 + i % 3) for i, (text, label) in enumerate(zip(X[:300], Y[:300], strict=True)))
    with open(where / "b.jsonl", "w", encoding="utf-8") as lines:
        for i, (text, label) in enumerate(zip(X[300:], Y[300:], strict=True), 300):
            lines.write(json.dumps({"text": text, "label": label, "weight": 1 + i % 3}) + "\n")
    return where


def small(**more: Any) -> sf.TextClassifier:
    return sf.TextClassifier(
        **{"hidden_size": 8, "embedding_dim": 8, "batch_size": 32, "epochs": 3, "dropout": 0.3, "workers": 0, **more}
    )


def test_what_it_learns(folder: Path) -> None:
    other, labels = sentences(1, 100)
    learnt = small(epochs=15, learning_rate=0.01).fit(Stream(folder), validation=0.2)
    assert learnt.score(other, labels) > 0.95
    assert learnt.data_["rows"] + learnt.data_["validation"]["rows"] == 700
    assert learnt.data_["validation"]["share"] == 0.2
    assert learnt.validation_report_["examples"] == learnt.data_["validation"]["rows"]
    assert "train" in "\n".join(learnt.evaluate(X[:50], Y[:50]).warnings)  # found by the sample of fingerprints
    memory = small(holdout=None).fit(X, Y)  # all of the data, as both draw others to hold out
    assert memory.encoder_.to_json() == small(holdout=None).fit(Stream(folder)).encoder_.to_json()


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(workers: int, folder: Path) -> None:
    expected = killed.digest(small().fit(Stream(folder), validation=0.2))
    assert killed.digest(small(workers=workers).fit(Stream(folder), validation=0.2)) == expected


@pytest.mark.parametrize("steps", [1, 18, 30])
def test_resumed(steps: int, folder: Path, tmp_path: Path) -> None:
    options = {"checkpoint_dir": tmp_path / "checkpoints", "checkpoint_every": 0}
    expected = killed.digest(small().fit(Stream(folder), validation=0.2))
    with pytest.MonkeyPatch.context() as patch:
        kill_after(steps, patch)
        with pytest.raises(Killed):
            small(**options).fit(Stream(folder), validation=0.2)
    assert killed.digest(small(**options).fit(Stream(folder), validation=0.2, resume=True)) == expected
    with open(folder / "a.csv", "a", encoding="utf-8") as file:
        file.write("one more,pos,1\n")
    with pytest.raises(CheckpointError, match="resume: expected the data as in the checkpoint"):
        small(**options).fit(Stream(folder), validation=0.2, resume=True)


@pytest.mark.parametrize("class_weight", [None, "balanced", {"pos": 3.0}])
@pytest.mark.parametrize("weight", [None, "weight"])
def test_weights_are_those_of_data_in_memory(class_weight: Any, weight: str | None, folder: Path) -> None:
    encoder = TextEncoder()
    stream = Stream(folder, weight=weight)
    stream.survey(encoder)
    streamed = Streamed(stream, encoder, classes_of(Y), class_weight, workers=0, epochs=1)
    targets = to_targets(as_list(Y), classes_of(Y))
    given = None if weight is None else np.array([1 + i % 3 for i in range(len(X))], dtype=np.float64)
    expected = weights_of(targets, classes_of(Y), class_weight, given)
    found = [
        (values.tolist(), int(target), None if part.examples.weights is None else float(part.examples.weights[row]))
        for part in streamed.epoch(32, 0, 0, 0, ALONE)
        for row in part.rows.tolist()
        for values, target in [(part.examples.sequences.split()[row], part.examples.targets[row])]
    ]
    assert len(found) == len(streamed) == len(X)
    memory = Examples(encoder.encode(X), targets, expected)
    weights = [None] * len(X) if expected is None else expected.tolist()
    rows = zip(memory.sequences.split(), targets.tolist(), weights, strict=True)
    ours, theirs = sorted(found, key=str), sorted(((v.tolist(), t, w) for v, t, w in rows), key=str)
    assert [row[:2] for row in ours] == [row[:2] for row in theirs]
    if expected is not None:
        assert [row[2] for row in ours] == pytest.approx([row[2] for row in theirs], rel=1e-6)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_a_batch(world: int, folder: Path) -> None:
    encoder = TextEncoder()
    stream = Stream(folder)
    stream.survey(encoder)
    streamed = Streamed(stream, encoder, classes_of(Y), None, workers=0, epochs=1)

    def rows(ranks: Ranks) -> list[tuple[int, list[Any]]]:
        return [
            (part.count, [part.examples.sequences.split()[row].tolist() for row in part.rows.tolist()])
            for part in streamed.epoch(32, 0, 1, 2, ranks)
        ]

    whole, parts = rows(ALONE), [rows(Ranks(rank, world)) for rank in range(world)]
    assert len(whole) == streamed.steps(32) - 2
    for (count, batch), *shares in zip(whole, *parts, strict=True):
        assert {share[0] for share in shares} == {count} == {len(batch)}
        assert sorted(row for share in shares for row in share[1]) == sorted(batch)
    pieces = [piece for rank in range(world) for piece in streamed.pieces(Ranks(rank, world))]
    assert sum(len(piece) for piece in pieces) == len(X)


def test_predict_and_evaluate(folder: Path) -> None:
    learnt = small(epochs=5, learning_rate=0.01).fit(X, Y)
    assert np.array_equal(learnt.predict(Stream(folder, label=None)), learnt.predict(X))
    np.testing.assert_allclose(learnt.predict_proba(Stream(folder, label=None)), learnt.predict_proba(X), atol=1e-5)
    streamed, memory = learnt.evaluate(Stream(folder)), learnt.evaluate(X, Y)
    assert np.array_equal(streamed.confusion, memory.confusion)
    assert streamed.log_loss == pytest.approx(memory.log_loss, rel=1e-4)
    with pytest.warns(UserWarning, match="expected data that training has not seen"):
        calibrated = learnt.calibrate(Stream(folder)).temperature_
    with pytest.warns(UserWarning, match="expected data that training has not seen"):
        assert learnt.calibrate(X, Y).temperature_ == pytest.approx(calibrated, rel=1e-3)


def test_series(tmp_path: Path) -> None:
    series, classes = waves(0, 300)
    with open(tmp_path / "waves.jsonl", "w", encoding="utf-8") as lines:
        for steps, label in zip(series, classes, strict=True):
            lines.write(json.dumps({"series": steps.tolist(), "label": label}) + "\n")
    learnt = sf.SeriesClassifier(hidden_size=8, epochs=5, workers=0).fit(
        Stream(tmp_path / "waves.jsonl", kind="series"), validation=waves(1)
    )
    assert learnt.score(*waves(2)) > 0.9
    assert learnt.classes_.tolist() == [0, 1]


def test_killed_when_a_pool_and_the_epoch_were_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint is that of the last step of an epoch, so the next pool does not exist."""
    monkeypatch.setattr(pools, "POOL_ROWS", 32)
    expected = killed.digest(small(batch_size=7).fit(Stream(folder)))
    options = {"batch_size": 7, "checkpoint_dir": tmp_path / "checkpoints", "checkpoint_every": 0}

    def stop(history: Any) -> bool:
        raise Killed

    with pytest.raises(Killed):
        small(**options).fit(Stream(folder), stop=stop)
    assert killed.digest(small(**options).fit(Stream(folder), resume=True)) == expected


def test_a_label_that_only_the_validation_has(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("text,label\ngood,pos\nso,so\n")
    with pytest.raises(ValueError, match="validation: expected labels seen in training but got 'so'"):
        small(epochs=10**6).fit(Stream(folder), validation=Stream(tmp_path / "other.csv"))


def test_data_of_training_are_recognised(folder: Path) -> None:
    learnt = small().fit(Stream(folder))
    assert any(
        "at least" in warning and "duplicates" in warning for warning in learnt.evaluate(Stream(folder)).warnings
    )
    with pytest.warns(UserWarning, match="calibrate: expected data that training has not seen, but at least"):
        learnt.calibrate(Stream(folder))
    assert learnt.score(Stream(folder)) == learnt.score(X, Y)


def test_bad_arguments(folder: Path) -> None:
    with pytest.raises(ValueError, match="y and sample_weight: expected None with a Stream, which names their columns"):
        small().fit(Stream(folder), Y)
    with pytest.raises(ValueError, match="X: expected a Stream of kind 'series' but got 'text'"):
        sf.SeriesClassifier().fit(Stream(folder))
    with pytest.raises(ValueError, match="X: expected a Stream with a column of labels but got label=None"):
        small().fit(Stream(folder, label=None))
    with pytest.raises(ValueError, match="y: expected None with a Stream"):
        small().fit(X, Y).evaluate(Stream(folder, label=None))
    with pytest.raises(ValueError, match="workers: expected at least 0 but got -1"):
        small(workers=-1).fit(Stream(folder))

"""Fitted classifiers in the runtime: the probabilities, labels and thresholds of the estimators, bit by bit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_library import FASTEST, PLAIN_SERIES, PLAIN_TEXT, Model, Refused

import seqcls_fast as sf
from seqcls_fast.export import to_runtime
from seqcls_fast.toolkit.data.series import POLICIES
from seqcls_fast.toolkit.evaluation.decision import DecisionThreshold
from support.corpora import sentences, waves


def fitted(estimator: Any, data: Any) -> Any:
    estimator.fit(*data)
    estimator.temperature_ = 1.7
    return estimator


def padded(series: list[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    lengths = [len(each) for each in series]
    x = np.full((len(series), max(lengths), series[0].shape[1]), np.nan)  # what lies beyond is never read
    for row, each in zip(x, series, strict=True):
        row[: len(each)] = each
    return x, lengths


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("missing", POLICIES)
def test_series(missing: str, bidirectional: bool, tmp_path: Path) -> None:
    train, labels = waves(count=30)
    holes = [each.copy() for each in waves(seed=1, count=12)[0]]
    if missing != "error":
        rng = np.random.default_rng(0)
        for each in (*train, *holes):
            each[rng.random(each.shape) < 0.3] = math.nan
    estimator = sf.SeriesClassifier(
        hidden_size=6, epochs=1, missing=missing, max_length=9, bidirectional=bidirectional, pooling="mean",
        **PLAIN_SERIES,
    )  # fmt: skip
    fitted(estimator, (train, labels))
    to_runtime(estimator, tmp_path / "model.sfm")
    model, (x, lengths) = Model(tmp_path / "model.sfm", FASTEST), padded(holes)
    assert model.info.is_streamable != bidirectional
    stream = model.stream(12, x.shape[1] if bidirectional else 4)
    found = stream.run(x, lengths, double=True)
    expected = estimator.predict_proba(holes)
    assert found["probabilities"].tobytes() == expected.tobytes()
    assert estimator.classes_[found["classes"]].tolist() == estimator.predict(holes).tolist()
    stream.reset()
    if not bidirectional:
        for t in range(x.shape[1]):  # step by step: rows end, and steps beyond max_length count no more
            rows = [row for row, length in enumerate(lengths) if t < length]
            if rows:
                last = stream.run(x[rows, t : t + 1], rows=rows, double=True)
                for row, found_row in zip(rows, last["probabilities"], strict=True):
                    if t + 1 == lengths[row]:
                        assert found_row.tobytes() == expected[row].tobytes()


def test_values_that_a_series_cannot_have(tmp_path: Path) -> None:
    estimator = sf.SeriesClassifier(hidden_size=3, epochs=1, bidirectional=False, **PLAIN_SERIES)
    fitted(estimator, waves(count=20))
    to_runtime(estimator, tmp_path / "model.sfm")
    stream = Model(tmp_path / "model.sfm", FASTEST).stream(2)
    stream.run(np.ones((2, 3, 2)), double=True)
    x = np.zeros((2, 3, 2))
    for value, words in {
        math.inf: "a finite value but got an infinite one", math.nan: "no missing value (NaN), which the model's "
        'missing="error" refuses,', 1e300: "a value that is finite in float32 once it is scaled",
    }.items():  # fmt: skip
        bad = x.copy()
        bad[1, 2, 0] = value
        before = stream.run(x[:, :0], double=True)["probabilities"]
        with pytest.raises(Refused) as error:
            stream.run(bad, double=True)
        assert error.value.sentence == f"x: expected {words} in row 1 at step 2, feature 0"
        assert stream.run(x[:, :0], double=True)["probabilities"].tobytes() == before.tobytes()  # no row has moved


@pytest.mark.parametrize("pooling", ["last", "mean", "attention"])
def test_texts_as_ids(pooling: str, tmp_path: Path) -> None:
    data = sentences(count=40)
    estimator = sf.TextClassifier(hidden_size=6, embedding_dim=5, epochs=1, pooling=pooling, **PLAIN_TEXT)
    fitted(estimator, data)
    to_runtime(estimator, tmp_path / "model.sfm")
    model = Model(tmp_path / "model.sfm", FASTEST)
    texts = data[0][:9]
    ragged = estimator.encoder_.encode(texts)
    ids, lengths = padded_ids(ragged)
    stream = model.stream(9, ids.shape[1])
    assert stream.run(ids, lengths)["probabilities"].tobytes() == estimator.predict_proba(texts).tobytes()
    about = json.loads(model.info.about)
    assert about["labels"] == estimator.classes_.tolist()
    assert about["decision"]["temperature"] == 1.7


def padded_ids(ragged: Any) -> tuple[np.ndarray, list[int]]:
    lengths = ragged.lengths.tolist()
    ids = np.full((len(lengths), max(lengths)), -5)  # never read
    values = ragged.values.tolist()
    for row, length in zip(ids, lengths, strict=True):
        row[:length], values = values[:length], values[length:]
    return ids, lengths


def test_threshold(tmp_path: Path) -> None:
    train, labels = waves(count=30)
    estimator = sf.SeriesClassifier(hidden_size=6, epochs=1, **PLAIN_SERIES)
    estimator.fit(train, labels)
    scores = np.sort(estimator.predict_proba(train)[:, 1])
    for value in (float(scores[7]), 0.0, 1.0):
        estimator.threshold_ = DecisionThreshold(1, value, "recall", 0.9, 0.5, 1.0, 40)
        to_runtime(estimator, tmp_path / "model.sfm")
        x, lengths = padded(train)
        found = Model(tmp_path / "model.sfm", FASTEST).stream(30).run(x, lengths, double=True)["classes"]
        assert estimator.classes_[found].tolist() == estimator.predict(train).tolist()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("convolutions", 200, "convolutions: expected a model without this part, which the runtime does not compute"),
        ("normalize", "series", "normalize: expected 'data', which is all that the runtime computes, but got 'series'"),
        ("differences", True, "differences: expected False, .* but got True; fit the classifier with differences=F"),
        ("time", True, "time: expected False, which is all that the runtime computes, but got True"),
    ],
)
def test_parts_of_series_that_are_refused(name: str, value: Any, words: str, tmp_path: Path) -> None:
    estimator = sf.SeriesClassifier(hidden_size=3, epochs=1, **(PLAIN_SERIES | {name: value}))
    estimator.fit(*waves(count=20))
    with pytest.raises(ValueError, match=words):
        to_runtime(estimator, tmp_path / "model.sfm")
    assert not (tmp_path / "model.sfm").exists()


def test_wide_parts_are_refused(tmp_path: Path) -> None:
    texts = sf.TextClassifier(hidden_size=3, embedding_dim=3, epochs=1).fit(*sentences(count=20))
    for model in (texts, sf.SequenceClassifier(3, 4, 2, wide_features=5), sf.SequenceClassifier(3, 4, 2, wide_ids=5)):
        with pytest.raises(ValueError, match=r"wide: expected a model without this part.* fit a classifier with wide="):
            to_runtime(model, tmp_path / "model.sfm")

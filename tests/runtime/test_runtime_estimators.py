"""Fitted classifiers in the runtime: the probabilities, labels and thresholds of the estimators, bit by bit."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from c_library import FASTEST, PLAIN_SERIES, PLAIN_TEXT, Model, Refused

import seqcls_fast as sf
from seqcls_fast.cli._without_torch import open_runtime
from seqcls_fast.export import to_runtime
from seqcls_fast.runtime import Model as PythonModel
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


@pytest.mark.parametrize("bidirectional", [False, True])
def test_steps_beyond_the_longest_are_checked_as_the_estimator_does(bidirectional: bool, tmp_path: Path) -> None:
    more = {"max_length": 3, "bidirectional": bidirectional} | PLAIN_SERIES
    estimator = sf.SeriesClassifier(hidden_size=3, epochs=1, **more).fit(*waves(count=20))
    estimator.save(tmp_path / "saved")
    model = PythonModel.open(tmp_path / "saved", FASTEST)
    series = [np.zeros((6, 2)) for _ in range(70)]
    assert model.predict_proba(series).tobytes() == estimator.predict_proba(series).tobytes()
    for value, words in ((math.inf, "a finite value but got an infinite"), (math.nan, r"no missing value \(NaN\)")):
        for step in (2, 3, 5):
            series[68] = np.zeros((6, 2))
            series[68][step, 1] = value
            with pytest.raises(ValueError, match=rf"series\[68\]: .* at step {step}, feature 1"):
                estimator.predict_proba(series)
            with pytest.raises(ValueError, match=rf"x: expected {words}.* in row 68 at step {step}, feature 1"):
                model.predict_proba(series)
    series[68][5, 1] = 1e300  # which the estimator cuts off before it scales
    assert model.predict_proba(series).tobytes() == estimator.predict_proba(series).tobytes()


def test_a_model_that_was_trained_with_amp(tmp_path: Path) -> None:
    """The runtime computes in float32 what the estimator would compute there without it."""
    estimator = sf.SeriesClassifier(hidden_size=6, epochs=2, amp=True, **PLAIN_SERIES).fit(*waves(count=30))
    new = waves(seed=1, count=9)[0]
    estimator.save(tmp_path / "saved")
    to_runtime(estimator, tmp_path / "model.sfm")
    with_amp = estimator.predict_proba(new)
    expected = estimator.set_params(amp=False).predict_proba(new)
    assert (with_amp != expected).any()
    for path in (tmp_path / "model.sfm", tmp_path / "saved"):
        assert PythonModel.open(path, FASTEST).predict_proba(new).tobytes() == expected.tobytes()
    assert open_runtime(str(tmp_path / "saved")) is None  # so that `seqcls-fast predict` has the estimator's results


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


SERIES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "each by itself": {"normalize": "series"},
    "forward": {"normalize": "series", "missing": "forward", "pooling": "attention"},
    "zero": {"normalize": "series", "missing": "zero", "max_length": 9, "time": False},
    "mask": {"normalize": "data", "missing": "mask", "convolutions": 300},
    "as they are": {"standardize": False, "normalize": "series", "convolutions": 84 * 2},
    "no convolutions": {"convolutions": 0, "missing": "mean"},
    "one direction": {"bidirectional": False, "convolutions": 84},
    "channels first": {"layout": "channels_time"},
}


def with_holes(series: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    found = [each.copy() for each in series]
    for each in found:
        each[rng.random(each.shape) < 0.3] = math.nan
    return found


@pytest.mark.parametrize("name", list(SERIES))
def test_every_part_of_series(name: str, tmp_path: Path) -> None:
    """Of series from 0 to 1,100 steps: convolutions and summaries, the series' own scale, differences, the time."""
    rng = np.random.default_rng(0)
    train, labels = waves(count=40)
    new = waves(seed=1, count=12)[0] + [rng.normal(size=(steps, 2)) for steps in (0, 1, 2, 8, 9, 130, 1100)]
    new += [np.ones((7, 2)), np.full((20, 2), 1e300) if name == "each by itself" else np.zeros((20, 2))]
    if "missing" in SERIES[name]:
        train, new = with_holes(train, rng), [*with_holes(new, rng), np.full((4, 2), math.nan)]
    if name == "channels first":
        train, new = [each.T for each in train], [each.T for each in new if len(each)]
    estimator = sf.SeriesClassifier(**({"hidden_size": 6, "epochs": 1, "convolutions": 500} | SERIES[name]))
    fitted(estimator, (train, labels))
    to_runtime(estimator, tmp_path / "model.sfm")
    estimator.save(tmp_path / "saved")
    for path in (tmp_path / "model.sfm", tmp_path / "saved"):
        model = PythonModel.open(path, FASTEST)
        assert not model.is_streamable
        assert model.predict_proba(new).tobytes() == estimator.predict_proba(new).tobytes()
        assert model.predict(new).tolist() == estimator.predict(new).tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_differences_in_a_stream(dtype: str, tmp_path: Path) -> None:
    plain = PLAIN_SERIES | {"differences": True}
    estimator = sf.SeriesClassifier(hidden_size=6, epochs=1, bidirectional=False, missing="mask", **plain)
    fitted(estimator, waves(count=30))
    to_runtime(estimator, tmp_path / "model.sfm", dtype)
    model, new = (
        PythonModel.open(tmp_path / "model.sfm", FASTEST),
        with_holes(waves(seed=2, count=5)[0], np.random.default_rng(1)),
    )
    whole = model.predict_proba(new)
    if dtype == "float32":
        assert whole.tobytes() == estimator.predict_proba(new).tobytes()
    for each, expected in zip(new, whole.astype(np.float32), strict=True):
        stream = model.stream()
        assert [stream.step(step) for step in each][-1].tobytes() == expected.tobytes()
        stream.reset()
        assert [stream.push(each[:3]), stream.push(each[3:])][-1].tobytes() == expected.tobytes()


def test_bfloat16_leaves_convolutions_and_ngrams_in_float32(tmp_path: Path) -> None:
    """Their share of the logits is then that of the model in float32, and the network's is that of bfloat16."""
    series = fitted(sf.SeriesClassifier(hidden_size=6, epochs=1, convolutions=200), waves(count=30))
    texts = fitted(sf.TextClassifier(hidden_size=5, embedding_dim=4, epochs=1, holdout=None), sentences(count=30))
    for estimator, new in ((series, waves(seed=1, count=6)[0]), (texts, sentences(seed=1, count=6)[0])):
        ragged, model = estimator.encoder_.encode(new), estimator.model_.eval()
        x, lengths, wide = ragged.inputs(range(len(new)))
        with torch.inference_mode(), sf.use_impl(FASTEST):
            beside = model.wide(*wide) if wide is not None else model.convolutions(x, lengths)
        to_runtime(estimator, tmp_path / "model.sfm", "bfloat16")
        found = PythonModel.open(tmp_path / "model.sfm", FASTEST).predict_proba(new)
        model.wide, model.convolutions = None, None
        with torch.inference_mode(), sf.use_impl(FASTEST):
            kind = torch.bfloat16 if x.is_floating_point() else x.dtype
            logits = model.to(torch.bfloat16)(x.to(kind), lengths).float() + beside
            expected = sf._head.softmax(logits.double(), 1.7).numpy()
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"convolutions": 84}, "has random convolutions of whole series"),
        ({"normalize": "series"}, "scales each series by its own mean and deviation"),
        ({"time": True}, "has the time as a feature, which ends with the series"),
    ],
)
def test_what_needs_the_whole_series(more: dict[str, Any], words: str, tmp_path: Path) -> None:
    estimator = sf.SeriesClassifier(hidden_size=3, epochs=1, bidirectional=False, **(PLAIN_SERIES | more))
    fitted(estimator, waves(count=20))
    to_runtime(estimator, tmp_path / "model.sfm")
    stream = PythonModel.open(tmp_path / "model.sfm").stream()
    with pytest.raises(RuntimeError, match=f"step: expected a model that reads its input once.* this one {words}: run"):
        stream.step(np.zeros(2))
    with pytest.raises(RuntimeError, match=f"state: expected a model whose streams have one.* this one {words}"):
        stream.get_state(0)


def test_wide_parts_of_modules_are_refused(tmp_path: Path) -> None:
    for model in (sf.SequenceClassifier(3, 4, 2, wide_features=5), sf.SequenceClassifier(3, 4, 2, wide_ids=5)):
        with pytest.raises(
            ValueError, match="wide: expected a module without this part, which the runtime computes for"
        ):
            to_runtime(model, tmp_path / "model.sfm")


def test_labels_of_every_kind(tmp_path: Path) -> None:
    series = waves(count=20)[0]
    for labels in ([1.5, 2.0], [True, False], ["a\0", "b"], [(1, "x"), (2, "y")], [1, "one"]):
        estimator = sf.SeriesClassifier(hidden_size=3, epochs=1, **PLAIN_SERIES).fit(series, labels * 10)
        to_runtime(estimator, tmp_path / "model.sfm")
        estimator.save(tmp_path / "saved")
        for path in (tmp_path / "model.sfm", tmp_path / "saved"):
            found = PythonModel.open(path).classes
            assert found is not None
            assert found.dtype == estimator.classes_.dtype
            assert found.tolist() == estimator.classes_.tolist()


def test_a_tokenizer_file_is_refused(tmp_path: Path) -> None:
    """Also one whose name is that of a tokenizer of ours."""
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    file = tmp_path / "words.json"
    words.save(str(file))
    model = sf.TextClassifier(tokenizer=file, epochs=1, verbose=False).fit(["a b", "b a"] * 20, ["x", "y"] * 20)
    model.save(tmp_path / "model")
    sentence = "tokenizer: expected word, char or bpe but got a file of Hugging Face's tokenizers"
    with pytest.raises(ValueError, match=sentence):
        to_runtime(model, tmp_path / "m.sfm")
    with pytest.raises(ValueError, match=sentence):
        PythonModel.open(tmp_path / "model")


def test_labels_that_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="can be used but not saved"):
        model = sf.SeriesClassifier(hidden_size=3, epochs=1, **PLAIN_SERIES).fit(waves(0, 40)[0], [b"a", b"b"] * 20)
    with pytest.raises(ValueError, match="expected labels that are numbers, strings or tuples but got"):
        to_runtime(model, tmp_path / "m.sfm")

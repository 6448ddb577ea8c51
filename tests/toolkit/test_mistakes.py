"""Mistakes that a first try makes: each gets a sentence that says what was probably meant, or a warning, or works."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from sklearn.ensemble import BaggingClassifier
from sklearn.inspection import permutation_importance

import seqcls_fast as sf
from seqcls_fast.toolkit.data.readers import read
from seqcls_fast.toolkit.stream import Stream
from support.corpora import sentences, waves

QUICK: dict[str, Any] = {"hidden_size": 4, "epochs": 1, "verbose": False}


def text(**options: Any) -> sf.TextClassifier:
    return sf.TextClassifier(**QUICK | {"embedding_dim": 4} | options)


def series(**options: Any) -> sf.SeriesClassifier:
    return sf.SeriesClassifier(**QUICK | options)


# -- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "end"),
    [
        ("weight_decay", None, "a number of at least 0 but got None; 0 is no decay"),
        ("warmup", "0.1", "but got '0.1'; did you mean 0.1, without quotes?"),
        ("warmup", True, "from 0 to below 1, but got True"),
        ("learning_rate", "1e-3", "but got '1e-3'; did you mean 0.001, without quotes?"),
        ("max_grad_norm", "none", "None or a number above 0 but got 'none'"),
        ("learning_rate", 0.0, "None or a number above 0 but got 0.0"),
        ("epochs", "3", "expected an int but got str; did you mean 3, without quotes?"),
        ("tokenizer", "wordpiece", "expected one of word, char, bpe but got 'wordpiece'; did you mean 'bpe'?"),
        ("tokenizer", "words", "; did you mean 'word'?"),
        ("tokenizer", 3, "expected one of word, char, bpe but got 3"),
        ("cell", "GRU", "but got 'GRU'; did you mean 'gru'?"),
        ("cell", "rnn", "but got 'rnn'; did you mean 'rnn_tanh'?"),
        ("cell", "mamba", "but got 'mamba'"),
        ("pooling", "Max", "expected one of last, mean, max, attention but got 'Max'; did you mean 'max'?"),
        ("schedule", "cosin", "; did you mean 'cosine'?"),
        ("metric", "f1", "; did you mean 'macro_f1'?"),
        ("embedding_dim", 0, "expected at least 1 but got 0"),
        ("embedding_dim", 2.5, "expected an int but got float"),
        ("hidden_size", 10**20, "expected at most 65536 but got 100000000000000000000"),
        ("num_layers", 10**7, "expected at most 1024 but got 10000000"),
        ("bidirectional", "yes", "expected a bool but got 'yes'"),
        ("amp", None, "expected a bool but got None"),
        ("verbose", 5, "expected a bool but got 5"),
        ("dropout", None, "a probability, from 0 to below 1, but got None"),
        ("seed", "1", "an int of 64 bits but got '1'; did you mean 1, without quotes?"),
        ("seed", 1 << 70, f"an int of 64 bits but got {1 << 70}"),
        ("log_dir", 5, "None or the path of a folder but got int"),
        ("checkpoint_dir", b"a", "None or the path of a folder but got bytes"),
        ("device", "cpuu", "a device that this machine has but got 'cpuu'; did you mean 'cpu'?"),
    ],
)
def test_parameters(name: str, value: Any, end: str) -> None:
    with pytest.raises((ValueError, TypeError)) as found:
        text(**{name: value}).fit(*sentences())
    assert str(found.value).startswith(f"{name}: expected ")
    assert str(found.value).endswith(end)


def test_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    none = (
        "a device that this machine has but got 'gpu'; torch finds no GPU on this machine, which it would call 'cuda'$"
    )
    with pytest.raises(ValueError, match=none):
        text(device="gpu").fit(*sentences())
    with pytest.raises(ValueError, match=r"but got 'cuda'; torch finds no GPU on this machine$"):
        text(device="cuda").fit(*sentences())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"but got 'gpu'; did you mean 'cuda'.$"):
        text(device="gpu").fit(*sentences())


@pytest.mark.parametrize("estimator", [sf.TextClassifier, sf.SeriesClassifier])
def test_unknown_parameters(estimator: Any) -> None:
    with pytest.raises(
        TypeError, match=f"^{estimator.__name__}: got an unexpected keyword argument 'epoch'; did you mean 'ep"
    ):
        estimator(epoch=3)
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'zzz'$"):
        estimator(zzz=3)
    assert set(inspect.signature(estimator).parameters) == set(estimator().get_params())


# -- data -------------------------------------------------------------------------------------------------------------


def test_rows_of_a_table() -> None:
    rows: Any = [{"a": "good", "b": 1}] * 4
    with pytest.raises(TypeError, match=r"X: expected strings but got dict at 0; pass .* as \[row\['a'\] for row in X"):
        text().fit(rows, [0, 1, 0, 1])
    with pytest.raises(TypeError, match=r"X: expected arrays .* but got dict at 1; pass .* \[row\['a'\] for row in X"):
        series().fit([np.zeros((2, 1)), *rows], [0, 1, 0, 1, 0])
    with pytest.raises(TypeError, match=r"\[row\['text'\] for row in X\]"):
        text().fit([{}], [0])


@pytest.mark.parametrize(
    ("given", "end"),
    [
        (20, "but got 20; did you mean 0.2, a share of X?"),
        ("0.25", "but got '0.25'; did you mean 0.25, a share of X?"),
        (1, "but got 1"),
        (1000, "but got 1000"),
        (True, "but got True"),
        ("dev.csv", "but got 'dev.csv'"),
    ],
)
def test_shares(given: Any, end: str) -> None:
    with pytest.raises(ValueError, match=r"validation: expected .X, y., a pathlib.Path, a Stream or a share") as found:
        text().fit(*sentences(), validation=given)
    assert str(found.value).endswith(end)


def test_a_third_argument(tmp_path: Path) -> None:
    X, y = sentences()
    beginning = "fit: expected validation= and sample_weight= by their names but got a third argument without one"
    with pytest.raises(TypeError, match=rf"^{beginning}; did you mean validation=0.2\?$"):
        text().fit(X, y, 0.2)
    with pytest.raises(TypeError, match=r"did you mean validation=\("):
        text().fit(X, y, (X, y))
    with pytest.raises(TypeError, match=r"did you mean sample_weight=\[1.0, "):
        text().fit(X, y, [1.0] * len(X))


def test_another_delimiter(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    hint = r"expected a column 'text' but got '.*'; did you mean delimiter='{}' \(--delimiter on the command line\)\?$"
    for sign, written in ((";", ";"), ("\t", r"\\t"), ("|", r"\|")):
        path.write_text(f"text{sign}label{sign}more, or less\ngood{sign}1{sign}\n")
        for reading in (lambda: read(path), lambda: Stream(path).survey()):
            with pytest.raises(ValueError, match=hint.format(written)):
                reading()
        assert read(path, delimiter=sign).labels == ["1"]
    path.write_text("Text,label\ngood,1\n")
    with pytest.raises(ValueError, match=r"expected a column 'text' but got 'Text', 'label'; did you mean 'Text'.$"):
        read(path)
    path.write_text("review;label\ngood;1\n")  # no delimiter gives the columns
    with pytest.raises(ValueError, match=r"expected a column 'text' but got 'review;label'$"):
        read(path)


# -- labels that are hardly classes -----------------------------------------------------------------------------------


def warnings_of_fit(model: Any, *data: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        model.fit(*data)
    assert all(each.filename == __file__ for each in found)
    return [str(each.message) for each in found]


def test_labels_that_hardly_repeat(tmp_path: Path) -> None:
    X = [f"text {k}" for k in range(20)]
    (said,) = warnings_of_fit(text(), X, [f"n{k}" for k in range(20)])
    assert said == (
        "y: expected labels that repeat but got 20 different ones in 20 sequences; are they names or texts rather than "
        "classes?"
    )
    (said,) = warnings_of_fit(series(), [np.full((2, 1), k) for k in range(20)], np.arange(20) / 7)
    assert said.endswith("are they numbers to estimate rather than classes?")
    assert warnings_of_fit(text(), X, [k // 2 for k in range(20)]) == []
    assert warnings_of_fit(text(), X[:6], list(range(6))) == []  # so few say nothing
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"text {k},{k}\n" for k in range(30)))
    (said,) = warnings_of_fit(text(workers=0), Stream(path))
    assert said.startswith("y: expected labels that repeat but got 30 different ones in 30 sequences")


def test_swapped() -> None:
    X, y = sentences()
    (said,) = warnings_of_fit(text(), y, X)
    assert said.startswith("y: expected fewer labels than X has different texts, 2, but got ")
    assert said.endswith("; are X and y swapped?")
    assert warnings_of_fit(text(), X, y) == []
    assert warnings_of_fit(text(), ["good", "bad"], [1, 0]) == []
    values, targets = waves()
    with pytest.raises(TypeError, match=r"y: expected hashable labels but got ndarray .*; are X and y swapped.$"):
        series().fit(targets, values)


# -- the tools of scikit-learn that take tables alone ------------------------------------------------------------------


def test_one_class_in_the_part_that_is_held_out() -> None:
    X, _ = sentences(count=240)
    (said,) = warnings_of_fit(text(), X, ["a"] * 239 + ["b"])
    assert said.startswith(
        "validation: expected a share with sequences of several classes but got 24 of 'a' alone; pass"
    )
    assert warnings_of_fit(text(), X, ["a"] * 237 + ["b"] * 3) == []


def test_labels_of_several_types() -> None:
    X, _ = sentences(count=40)
    with pytest.warns(UserWarning, match="expected labels of one type but got int, str; labels that look alike are"):
        assert text().fit(X, [1, "1"] * 20).classes_.tolist() == [1, "1"]
    with pytest.warns(UserWarning, match="expected labels of one type but got bool, int; .* such as 1 and True$"):
        text().fit(X, [False, True, 2, 3] * 10)
    with pytest.warns(
        UserWarning, match="used but not saved: save: expected labels that are numbers, .* but got bytes"
    ):
        text().fit(X, [b"a", b"b"] * 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text().fit(X, [1, 2.5] * 20)


def test_labels_and_weights_of_other_shapes() -> None:
    X, y = sentences(count=40)
    with pytest.raises(ValueError, match=r"^y: expected one dimension but got shape \(40, 1\); pass y\[:, 0\]$"):
        text().fit(X, np.array(y)[:, None])
    with pytest.raises(ValueError, match=r"shape \(40, 2\); if a row marks its class, pass y.argmax\(1\)$"):
        text().fit(X, np.eye(2)[[0, 1] * 20])
    for weights, got in (([1.0] * 39 + [-1], "-1 at 39"), ([None] * 40, "nan at 0")):
        with pytest.raises(ValueError, match=rf"^sample_weight: expected finite numbers of at least 0 but got {got}$"):
            text().fit(X, y, sample_weight=weights)
    with pytest.raises(TypeError, match=r"^X: expected strings but got Tensor at 0$"):
        text().fit(torch.zeros(2, 3), [0, 1])
    with pytest.raises(TypeError, match=r"^stop: expected None or a function of the history but got 3$"):
        text().fit(X, y, stop=3)


def test_validation_data_are_named() -> None:
    X, y = sentences(count=40)
    for validation, words in (
        (("a.csv", "b.csv"), "X: expected a list of texts but got a str"),
        ((X, y[:3]), "y: expected 40 labels, one for each sequence of X, but got 3"),
        (([], []), "expected at least one sequence but got none"),
        ((["a\ud800"], ["pos"]), r"texts\[0\]: expected Unicode text but got a lone surrogate"),
    ):
        with pytest.raises((ValueError, TypeError), match=f"^validation: {words}"):
            text().fit(X, y, validation=validation)


def test_arrays_of_one_column() -> None:
    X, y = sentences()
    column = np.array(X, dtype=object)[:, None]
    model = text().fit(column, y)
    assert np.array_equal(model.predict_proba(column), text().fit(X, y).predict_proba(X))
    assert np.array_equal(model.predict(np.array(X)[:, None]), model.predict(X))  # of numpy's strings
    found = permutation_importance(model, column, y, n_repeats=2, random_state=0)
    assert found.importances.shape == (1, 2)
    bagged = BaggingClassifier(text(), n_estimators=2, random_state=0).fit(column, y)
    assert bagged.predict(column).shape == (len(X),)
    with pytest.raises(TypeError, match="X: expected strings but got ndarray at 0"):
        text().fit(np.array([X, X], dtype=object).T, y)


def test_series_in_one_column() -> None:
    X, y = waves()
    column = np.empty((len(X), 1), dtype=object)
    column[:, 0] = X
    assert np.array_equal(series().fit(column, y).predict_proba(X), series().fit(X, y).predict_proba(X))
    bagged = BaggingClassifier(series(), n_estimators=2, random_state=0).fit(column, y)
    assert bagged.predict(column).shape == (len(X),)
    numbers = np.linspace(0, 1, 40)[:, None]  # a series of one step each
    assert series().fit(numbers, [0, 1] * 20).n_features_in_ == 1

"""The types that data may have: frames and columns of any library; everything else is refused with a message.

Classes with the same methods stand in for pandas, polars and datasets; pyarrow is the real library.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

pytest.importorskip("sklearn")

import seqcls_fast as sf
from seqcls_fast.toolkit.data import columns, leakage
from seqcls_fast.toolkit.data.series import SeriesEncoder
from seqcls_fast.toolkit.data.text import TextEncoder
from seqcls_fast.toolkit.evaluation.evaluate import evaluate_predictions
from support.corpora import sentences, waves
from support.stand_ins import NA, Column, Dataset, DatasetDict, LazyFrame, PandasFrame, PolarsFrame, Series

QUICK: dict[str, Any] = {"hidden_size": 8, "epochs": 2, "verbose": False}


def arrow(kind: str) -> Callable[[list[Any]], Any]:
    def made(values: list[Any]) -> Any:
        pa = pytest.importorskip("pyarrow")
        table = pa.table({"x": values})
        return {"table": table, "batch": pa.RecordBatch.from_pydict({"x": values}), "chunked": table["x"]}.get(
            kind, pa.array(values)
        )

    return made


HOLDERS: dict[str, Callable[[list[Any]], Any]] = {
    "generator": lambda values: (value for value in values),
    "values of a dict": lambda values: dict(enumerate(values)).values(),
    "array": lambda values: np.fromiter(values, dtype=object, count=len(values)),
    "pandas column": Series,
    "pandas frame": lambda values: PandasFrame(x=values),
    "pandas frame with a column named as a method": lambda values: PandasFrame(collect=values),
    "polars frame": lambda values: PolarsFrame(x=values),
    "dataset": lambda values: Dataset(x=values),
    "column of a dataset": Column,
    "arrow table": arrow("table"),
    "arrow batch": arrow("batch"),
    "arrow chunks": arrow("chunked"),
    "arrow array": arrow("array"),
}
WRONG: dict[str, tuple[Any, str]] = {
    "pandas frame": (PandasFrame(a=["x", "y"], b=["z", "w"]), r"PandasFrame with 2 columns, \['a', 'b'\]; pass one of"),
    "polars frame": (PolarsFrame(a=["x", "y"], b=["z", "w"]), r"PolarsFrame with 2 columns, \['a', 'b'\]; pass one of"),
    "dataset": (
        Dataset(a=["x", "y"], b=["z", "w"]),
        r"Dataset with 2 columns, \['a', 'b'\]; pass one of them, {}\[col",
    ),
    "no column": (PandasFrame(), "PandasFrame without columns"),
    "query": (LazyFrame(), r"LazyFrame, which holds no values yet; pass {}.collect\(\)"),
    "splits": (DatasetDict(train=Dataset(x=["a"])), "DatasetDict; pass one of its values"),
    "dict": ({"x": 1, "y": 2}, r"dict; pass one of its values, or all of them as list\({}.values\(\)\)"),
    "keys": ({"x": 1, "y": 2}.keys(), "dict_keys, which has no order"),
    "set": ({"x", "y"}, "set, which has no order; pass a list"),
    "sparse matrix": (sparse.csr_matrix((2, 3)), r"csr_matrix, which is sparse; pass {}.toarray\(\)"),
    "sparse array": (sparse.csr_array((2, 3)), "csr_array, which is sparse"),
    "str": ("xy", "a str"),
    "bytes": (b"xy", "bytes"),
    "number": (3, "int"),
    "array without dimensions": (np.array("xy"), "ndarray"),
    "tensor without dimensions": (torch.tensor(1.0), "Tensor"),
}


@pytest.fixture(scope="module")
def texts() -> sf.TextClassifier:
    return sf.TextClassifier(embedding_dim=8, **QUICK).fit(*sentences(count=40))


@pytest.fixture(scope="module")
def series() -> sf.SeriesClassifier:
    return sf.SeriesClassifier(**QUICK).fit(*waves(count=20))


def wrong(name: str, argument: str) -> tuple[Any, str]:
    value, got = WRONG[name]
    return value, f"^{argument}: expected .* but got {got.format(argument)}"


@pytest.mark.parametrize("kind", ["texts", "series"])
@pytest.mark.parametrize("holder", HOLDERS)
def test_one_column_is_taken_everywhere(holder: str, kind: str, request: pytest.FixtureRequest) -> None:
    model, hold = request.getfixturevalue(kind), HOLDERS[holder]
    X, y = sentences(3, 40) if kind == "texts" else waves(3, 20)
    X = X if kind == "texts" else [x.tolist() for x in X]
    weights = [1.0, 2.0] * (len(X) // 2)
    expected = model.predict_proba(X)
    assert np.array_equal(model.predict_proba(hold(X)), expected)
    assert model.predict(hold(X)).tolist() == model.predict(X).tolist()
    assert model.score(hold(X), hold(y), hold(weights)) == model.score(X, y, weights)
    assert model.evaluate(hold(X), hold(y)).to_dict() == model.evaluate(X, y).to_dict()
    again = type(model)(**model.get_params())
    again.fit(hold(X), hold(y), sample_weight=hold(weights), validation=(hold(X), hold(y)))
    model = type(model)(**model.get_params()).fit(X, y, sample_weight=weights, validation=(X, y))
    assert again.classes_.tolist() == model.classes_.tolist()
    assert again.history_[-1]["val_loss"] == model.history_[-1]["val_loss"]
    assert np.array_equal(again.predict_proba(X), model.predict_proba(X))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that these are the training data
        one = copy.deepcopy(model).calibrate(hold(X), hold(y))
        one.choose_threshold(hold(X), hold(y), label=y[0], recall=0.5)
        model.calibrate(X, y).choose_threshold(X, y, label=y[0], recall=0.5)
    assert (one.temperature_, one.threshold_) == (model.temperature_, model.threshold_)


@pytest.mark.parametrize("kind", ["texts", "series"])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_column_is_refused_everywhere(name: str, kind: str, request: pytest.FixtureRequest) -> None:
    model, labels = request.getfixturevalue(kind), ["x", "y"]
    X: list[Any] = ["a", "b"] if kind == "texts" else [[[1.0, 2.0]], [[3.0, 4.0]]]
    calls: dict[str, list[Callable[[Any], Any]]] = {
        "X": [
            model.predict,
            model.predict_proba,
            type(model)().fit,
            lambda value: model.evaluate(value, labels),
            lambda value: model.score(value, labels),
            lambda value: model.calibrate(value, labels),
            lambda value: model.choose_threshold(value, labels, label="x", recall=0.5),
            lambda value: type(model)().fit(value, labels),
            lambda value: type(model)().fit(X, labels, validation=(value, labels)),
        ],
        "y": [
            lambda value: model.evaluate(X, value),
            lambda value: model.score(X, value),
            lambda value: model.calibrate(X, value),
            lambda value: model.choose_threshold(X, value, label="x", recall=0.5),
            lambda value: type(model)().fit(X, value),
            lambda value: type(model)().fit(X, labels, validation=(X, value)),
        ],
        "sample_weight": [
            lambda value: model.score(X, labels, value),
            lambda value: type(model)().fit(X, labels, sample_weight=value),
        ],
    }
    for argument, each in calls.items():
        value, sentence = wrong(name, argument)
        for call in each:
            with pytest.raises((TypeError, ValueError), match=sentence.replace("^", "^(validation: )?")):
                call(value)


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_column_is_refused_by_what_estimators_consist_of(name: str) -> None:
    calls: dict[str, Callable[[Any], Any]] = {
        "texts": TextEncoder().fit,
        "series": SeriesEncoder().fit,
        "y_true": lambda value: evaluate_predictions(value, ["x", "y"]),
        "y_pred": lambda value: evaluate_predictions(["x", "y"], value),
        "labels": lambda value: evaluate_predictions(["x", "y"], ["x", "y"], labels=value),
        "train_texts": lambda value: evaluate_predictions(
            ["x", "y"], ["x", "y"], train_texts=value, test_texts=["a", "b"]
        ),
        "test_texts": lambda value: evaluate_predictions(
            ["x", "y"], ["x", "y"], train_texts=["a", "b"], test_texts=value
        ),
        "items": leakage.fingerprints,
    }
    for argument, call in calls.items():
        value, sentence = wrong(name, argument)
        with pytest.raises((TypeError, ValueError), match=sentence):
            call(value)


def test_columns_of_predictions_are_taken() -> None:
    expected = evaluate_predictions([1, 2, 1], [1, 1, 2]).to_dict()
    for hold in HOLDERS.values():
        assert evaluate_predictions(hold([1, 2, 1]), hold([1, 1, 2])).to_dict() == expected


@pytest.mark.parametrize("nothing", [None, float("nan"), NA()], ids=repr)
def test_missing_values(nothing: Any, texts: sf.TextClassifier) -> None:
    with pytest.raises(TypeError, match=f"X: expected strings but got {nothing!r} at 1"):
        texts.predict(Series(["a", nothing]))
    with pytest.raises(ValueError, match=f"y: expected a label but got {nothing!r} at 0"):
        texts.evaluate(["a", "b"], Series([nothing, "pos"]))
    with pytest.raises(ValueError, match=r"series\[1\]: expected an array .* but got a missing value"):
        SeriesEncoder().fit(Series([[1.0], nothing]))
    encoder = SeriesEncoder(missing="zero").fit([[1.0], [3.0]])
    assert encoder.encode([[1.0, nothing]]).values.tolist() == [[-1.0], [-2.0]]
    with pytest.raises(ValueError, match="sample_weight: expected finite numbers of at least 0"):
        texts.score(["a", "b"], ["pos", "neg"], Series([1.0, nothing]))


def test_a_dict_or_a_set_is_no_series(series: sf.SeriesClassifier) -> None:
    with pytest.raises(
        TypeError, match=r"X: expected arrays \(T, features\) but got dict at 0; pass one value of each"
    ):
        series.predict([{"a": 1.0}])
    for value in ({1.0}, (x for x in [1.0])):
        with pytest.raises(ValueError, match=f"series\\[0\\]: expected numbers but got {type(value).__name__}$"):
            series.predict([value])


def test_a_frame_for_each_series_is_taken(series: sf.SeriesClassifier) -> None:
    pa = pytest.importorskip("pyarrow")
    X, _ = waves(count=4)
    frames = [pa.table({"a": x[:, 0], "b": x[:, 1]}) for x in X]
    assert np.array_equal(series.predict_proba(frames), series.predict_proba(X))


def test_labels_of_arrow_scalars_are_plain(texts: sf.TextClassifier) -> None:
    pa = pytest.importorskip("pyarrow")
    X, y = sentences(3, 20)
    assert texts.score(X, list(pa.array(y))) == texts.score(X, y)


def test_no_library_of_frames_is_imported() -> None:
    source = Path(columns.__file__).read_text()
    assert "need(" not in source
    assert not {"pandas", "polars", "pyarrow", "datasets", "numpy"} & set(vars(columns))


# -- paths ------------------------------------------------------------------------------------------------------------


def test_a_string_is_never_read_as_a_file(
    texts: sf.TextClassifier, series: sf.SeriesClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A str is never read as a file: a text from outside may be the name of a secret file."""
    X, y = sentences(count=40)
    monkeypatch.chdir(tmp_path)
    Path("secret.csv").write_text("text,label\n" + "".join(f"{x},{label}\n" for x, label in zip(X, y, strict=True)))
    Path("secret.jsonl").write_text('{"series": [[1.0, 2.0]], "label": 0}\n{"series": [[3.0, 4.0]], "label": 1}\n')
    calls: list[Callable[[Any, Any], Any]] = [
        lambda model, X: model.predict(X),
        lambda model, X: model.predict_proba(X),
        lambda model, X: model.score(X),
        lambda model, X: model.evaluate(X),
        lambda model, X: model.calibrate(X),
        lambda model, X: model.choose_threshold(X, label=model.classes_[0], recall=0.5),
        lambda model, X: type(model)(**QUICK).fit(X),
    ]
    for model, name, said in (
        (
            texts,
            "secret.csv",
            r"X: expected a list of texts but got a str; for one text pass predict\(\[text\]\), for a",
        ),
        (
            series,
            "secret.jsonl",
            r"X: expected a list of series .* but got a str; for a file pass pathlib.Path\(name\)",
        ),
    ):
        for call in calls:
            with pytest.raises(TypeError, match=said):
                call(model, name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that these are few data
                call(copy.deepcopy(model), Path(name))
    assert texts.trace("secret.csv").tokens == ["secret", ".", "csv"]  # the text itself was traced


def test_a_path_without_a_file(texts: sf.TextClassifier, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        texts.predict(tmp_path / "missing.csv")

"""TextClassifier and SeriesClassifier: they learn, keep scikit-learn's protocol, and refuse bad data in a sentence."""

from __future__ import annotations

import copy
import json
import os
import pickle
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

import seqcls_fast as sf
from seqcls_fast import _files
from seqcls_fast.toolkit import store
from seqcls_fast.toolkit.data import labels
from seqcls_fast.toolkit.fitted import make_model
from seqcls_fast.toolkit.training.options import batch_size_for, learning_rate_for
from support.corpora import sentences, waves

QUICK: dict[str, Any] = {"hidden_size": 8, "epochs": 8, "verbose": False}


def text(**options: Any) -> sf.TextClassifier:
    return sf.TextClassifier(**QUICK | {"embedding_dim": 8} | options)


def series(**options: Any) -> sf.SeriesClassifier:
    return sf.SeriesClassifier(**QUICK | options)


@pytest.fixture(scope="module")
def fitted() -> sf.TextClassifier:
    return text().fit(*sentences())


@pytest.mark.parametrize("seed", range(5))
def test_learns_short_sentences(seed: int) -> None:
    X, y = sentences(seed)
    model = sf.TextClassifier(max_length=10, embedding_dim=50, hidden_size=64, cell="lstm", epochs=20, seed=seed)
    assert model.fit(X, y).score(X, y) == 1.0
    assert model.score(*sentences(seed + 100)) > 0.9
    assert [record["epoch"] for record in model.history_] == list(range(1, 21))
    assert model.history_[-1]["loss"] < model.history_[0]["loss"] / 2  # of the network alone


@pytest.mark.parametrize("tokenizer", ["word", "char", "bpe"])
def test_tokenizers(tokenizer: str) -> None:
    X, y = sentences()
    model = text(tokenizer=tokenizer, hidden_size=16, epochs=20).fit(X, y)
    assert model.score(X, y) > 0.9
    assert model.predict(["", "zzz 😀 good"]).tolist()[1] in ("pos", "neg")


@pytest.mark.parametrize("cell", ["gru", "lstm", "rnn_tanh"])
@pytest.mark.parametrize("pooling", ["last", "mean", "max", "attention"])
def test_learns_series(cell: str, pooling: str) -> None:
    X, y = waves()
    model = series(cell=cell, pooling=pooling, hidden_size=16, epochs=15).fit(X, y)
    assert model.score(*waves(1)) > 0.9
    assert model.n_features_in_ == 2
    assert model.classes_.tolist() == [0, 1]


def test_probabilities(fitted: sf.TextClassifier) -> None:
    X, _ = sentences(7, 300)
    probabilities = fitted.predict_proba(X)
    assert probabilities.shape == (300, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (fitted.classes_[probabilities.argmax(1)] == fitted.predict(X)).all()
    alone = np.concatenate([fitted.predict_proba([x]) for x in X[:20]])
    np.testing.assert_allclose(alone, probabilities[:20], rtol=1e-5, atol=1e-6)
    assert fitted.predict_proba([]).shape == (0, 2)
    assert fitted.predict([]).shape == (0,)


def test_the_same_seed_gives_the_same_model_and_leaves_torch_s_generator() -> None:
    X, y = sentences()
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one = text(dropout=0.5).fit(X, y)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(6)
    assert np.array_equal(text(dropout=0.5).fit(X, y).predict_proba(X), one.predict_proba(X))
    assert not np.array_equal(text(dropout=0.5, seed=1).fit(X, y).predict_proba(X), one.predict_proba(X))


# -- scikit-learn's protocol ------------------------------------------------------------------------------------------


def test_parameters() -> None:
    model = text(cell="lstm")
    assert is_classifier(model)
    assert model.get_params()["cell"] == "lstm"
    assert clone(model).get_params() == model.get_params()
    assert model.set_params(cell="gru", epochs=3) is model
    assert (model.cell, model.epochs) == ("gru", 3)
    with pytest.raises(ValueError, match="Invalid parameter 'cells'"):
        model.set_params(cells="gru")
    assert "cell='gru'" not in repr(model)  # a default
    assert "epochs=3" in repr(model)


def test_constructor_only_stores() -> None:
    wrong = sf.TextClassifier(cell="mamba", epochs=-1)  # only fit() checks, as in scikit-learn
    with pytest.raises(ValueError, match="epochs: expected at least 1 but got -1"):
        wrong.fit(*sentences())
    with pytest.raises(ValueError, match="cell: expected one of"):
        wrong.set_params(epochs=1).fit(*sentences())


@pytest.mark.parametrize("method", ["predict", "predict_proba", "score", "evaluate", "save", "trace"])
def test_not_fitted(method: str) -> None:
    arguments = {"score": (["a"], ["b"]), "evaluate": (["a"], ["b"]), "save": ("folder",), "trace": ("a",)}
    with pytest.raises(NotFittedError):
        getattr(text(), method)(*arguments.get(method, (["a"],)))


@pytest.mark.parametrize("name", ["classes_", "model_", "temperature_", "history_", "extra_"])
def test_nothing_is_learned_before_fit(name: str) -> None:
    assert not hasattr(text(), name)
    with pytest.raises(AttributeError, match=f"'TextClassifier' object has no attribute '{name}'"):
        getattr(text(), name)
    assert not hasattr(series(), "n_features_in_")


def test_a_copy_keeps_what_is_assigned_to_it(fitted: sf.TextClassifier) -> None:
    X, _ = sentences(7, 40)
    before = fitted.predict_proba(X)
    for other in (copy.copy(fitted), copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        assert np.array_equal(other.predict_proba(X), before)
        other.temperature_ = 3.0
        assert not np.array_equal(other.predict_proba(X), before)
        assert fitted.temperature_ == 1.0
    assert np.array_equal(fitted.predict_proba(X), before)


def test_prediction_follows_parameters_that_are_set_after_fit(fitted: sf.TextClassifier) -> None:
    X, _ = sentences(7, 40)
    model = copy.copy(fitted)
    exact = model.predict_proba(X)
    half = model.set_params(amp=True).predict_proba(X)
    assert not np.array_equal(half, exact)
    np.testing.assert_allclose(half, exact, atol=0.05)
    assert np.array_equal(model.set_params(amp=False).predict_proba(X), exact)


def test_cross_validation_grid_search_and_pipelines() -> None:
    X, y = sentences(count=60)
    scores = cross_val_score(text(), np.array(X, dtype=object), y, cv=3)
    assert scores.shape == (3,)
    search = GridSearchCV(text(epochs=4), {"hidden_size": [4, 8]}, cv=2).fit(X, y)
    assert search.best_params_["hidden_size"] in (4, 8)
    upper = FunctionTransformer(lambda texts: [t.upper() for t in texts])
    pipeline = Pipeline([("upper", upper), ("classify", text())]).fit(X, y)
    assert pipeline.score(X, y) > 0.8
    rows, row_labels = waves(count=40)
    assert cross_val_score(series(), rows, row_labels, cv=2).mean() > 0.5


def test_fitting_again_forgets() -> None:
    model = text().fit(*sentences())
    model.fit(["one two", "three four"] * 5, [1, 2] * 5)
    assert model.classes_.tolist() == [1, 2]
    assert len(model.history_) == 8


# -- labels and weights -----------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[Any, Any]] = {
    "strings": ("a", "b"),
    "ints": (3, -1),
    "bools": (True, False),
    "floats": (0.5, 1.5),
    "tuples": (("a", 1), ("b", 2)),
    "mixed": ("a", 1),
    "none of one type": (None.__class__, int),
}


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_any_hashable_kind(kind: str) -> None:
    X, y = sentences()
    pair = KINDS[kind]
    named = [pair[label == "pos"] for label in y]
    model = text(hidden_size=16, epochs=15).fit(X, named)
    assert set(model.classes_.tolist()) == set(pair)
    assert model.score(X, named) > 0.95
    assert all(type(label) in {type(p) for p in pair} for label in model.predict(X).tolist())


def test_labels_as_arrays_and_tensors() -> None:
    X, y = waves(count=20)
    for given in (np.array(y), torch.tensor(y), tuple(y), [np.int64(label) for label in y]):
        assert series(epochs=1).fit(X, given).classes_.tolist() == [0, 1]


def test_weights_move_the_balance() -> None:
    rng = np.random.default_rng(0)
    X = [rng.normal(size=(4, 1)) + (0.5 if i < 20 else 0.0) for i in range(200)]
    y = [1] * 20 + [0] * 180
    options = {"epochs": 10, "hidden_size": 8}
    found = [
        (series(**options).fit(X, y).predict(X) == 1).sum(),
        (series(**options, class_weight="balanced").fit(X, y).predict(X) == 1).sum(),
        (series(**options, class_weight={1: 9.0}).fit(X, y).predict(X) == 1).sum(),
        (series(**options).fit(X, y, sample_weight=[9.0] * 20 + [1.0] * 180).predict(X) == 1).sum(),
    ]
    assert min(found[1:]) > found[0] + 20


def test_what_weights_are() -> None:
    targets, classes = torch.tensor([0, 0, 0, 1]), np.array(["a", "b"])
    assert labels.weights_of(targets, classes, None, None) is None
    balanced = labels.weights_of(targets, classes, "balanced", None)
    assert balanced is not None
    torch.testing.assert_close(balanced, torch.tensor([2 / 3, 2 / 3, 2 / 3, 2.0]))
    both = labels.weights_of(targets, classes, {"b": 2.0}, [1, 1, 0, 1])
    assert both is not None
    torch.testing.assert_close(both, torch.tensor([1.0, 1.0, 0.0, 2.0]))


# -- validation -------------------------------------------------------------------------------------------------------


def test_validation_keeps_the_best_epoch_and_stops() -> None:
    X, y = sentences()
    other = sentences(50, 40)
    model = text(epochs=40, hidden_size=16, patience=3, metric="accuracy", learning_rate=0.01, wide=False)
    model.fit(X, y, validation=other)
    best = max(model.history_, key=lambda record: record["val_accuracy"])
    assert len(model.history_) == best["epoch"] + 3 < 40
    assert model.score(*other) == best["val_accuracy"]
    assert {"val_loss", "val_accuracy", "val_balanced_accuracy", "val_macro_f1"} <= set(model.history_[0])
    report = model.evaluate(*other).to_dict()
    assert report["accuracy"] == pytest.approx(best["val_accuracy"])


def test_a_share_is_held_out() -> None:
    X, y = sentences()
    X = [f"{words} {index}" for index, words in enumerate(X)]
    model = text(epochs=2).fit(X, y, validation=0.25)
    assert "val_loss" in model.history_[0]
    assert len(model.seen_.exact) == 90  # of 120: nothing was learned from the held-out ones
    assert model.encoder_.vocab_size <= text(epochs=1).fit(X, y).encoder_.vocab_size


@pytest.mark.parametrize(
    ("sentence", "options", "arguments"),
    [
        ("patience: expected None without validation", {"patience": 2}, {}),
        ("validation: expected a share between 0 and 1 but got 1.5", {}, {"validation": 1.5}),
        ("validation: expected labels seen in training", {}, {"validation": (["a", "b"], ["pos", "new"])}),
        ("validation: expected at least one sequence but got none", {}, {"validation": ([], [])}),
        ("sample_weight: expected shape", {}, {"sample_weight": [1.0]}),
        ("sample_weight: expected finite numbers of at least 0", {}, {"sample_weight": [-1.0] * 120}),
        ("class_weight: expected labels of y but got 'x'", {"class_weight": {"x": 1.0}}, {}),
        ("class_weight: expected None, 'balanced' or a dict but got 'heavy'", {"class_weight": "heavy"}, {}),
        ("schedule: expected one of cosine, one_cycle, constant but got 'step'", {"schedule": "step"}, {}),
        ("metric: expected one of", {"metric": "auc"}, {}),
        ("on_nan: expected one of raise, restore but got 'ignore'", {"on_nan": "ignore"}, {}),
        ("learning_rate: expected None or a number above 0 but got -1", {"learning_rate": -1}, {}),
        ("warmup: expected a share of the steps", {"warmup": 1.0}, {}),
        ("weight_decay: expected a number of at least 0", {"weight_decay": -0.1}, {}),
    ],
    ids=lambda value: value[:30].replace(" ", "_") if isinstance(value, str) else "",
)  # fmt: skip
def test_parameters_refused(sentence: str, options: dict[str, Any], arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=sentence):
        text(**options).fit(*sentences(), **arguments)


# -- bad data ---------------------------------------------------------------------------------------------------------

BAD: dict[str, tuple[type[Exception], Any, Any]] = {
    "y: expected 2 labels, one for each sequence of X, but got 1": (ValueError, ["a", "b"], ["x"]),
    "y: expected at least two classes but got one, 'x'": (ValueError, ["a", "b"], ["x", "x"]),
    "X: expected at least two sequences but got none": (ValueError, [], []),
    "X: expected strings but got int at 1": (TypeError, ["a", 3], ["x", "y"]),
    "y: expected labels but got None": (ValueError, ["a", "b"], None),
    "y: expected a label but got None at 1": (ValueError, ["a", "b"], ["x", None]),
    "y: expected a label but got nan at 0": (ValueError, ["a", "b"], [float("nan"), 1.0]),
    "y: expected hashable labels but got list at 0": (TypeError, ["a", "b"], [["x"], ["y"]]),
    "y: expected one dimension but got shape": (ValueError, ["a", "b"], np.zeros((2, 2))),
    "y: expected a list of labels but got a str": (TypeError, ["a", "b"], "xy"),
    "X: expected a list of texts but got int": (TypeError, 3, ["x", "y"]),
}


@pytest.mark.parametrize("sentence", BAD)
def test_bad_data_is_refused(sentence: str) -> None:
    kind, X, y = BAD[sentence]
    with pytest.raises(kind, match=sentence):
        text().fit(X, y)


def test_bad_series_are_refused() -> None:
    X, y = waves(count=10)
    with pytest.raises(ValueError, match=r"NaN|missing"):
        series().fit([*X[:-1], np.full((3, 2), np.nan)], y)
    with pytest.raises(ValueError, match="feature"):
        series().fit([*X[:-1], np.zeros((3, 5))], y)
    model = series(epochs=1).fit(X, y)
    with pytest.raises(ValueError, match="feature"):
        model.predict([np.zeros((3, 5))])


def test_a_path_in_the_place_of_data(tmp_path: Path) -> None:
    X, y = sentences()
    path = tmp_path / "train.csv"
    path.write_text("text,label\n" + "".join(f"{x},{label}\n" for x, label in zip(X, y, strict=True)))
    model = text(hidden_size=16, epochs=15).fit(path)
    assert model.score(path) > 0.95
    assert model.evaluate(path).to_dict()["accuracy"] == model.score(path)
    with pytest.raises(ValueError, match="y: expected None with the path of a file"):
        model.score(path, y)
    with pytest.raises(FileNotFoundError):
        model.fit(tmp_path / "missing.csv")


# -- training that goes wrong -----------------------------------------------------------------------------------------


def test_exploding_loss_is_explained_and_leaves_no_model() -> None:
    X, y = waves()
    model = series(cell="rnn_relu", learning_rate=1e6, max_grad_norm=None, schedule="constant", warmup=0.0)
    with pytest.raises(RuntimeError, match=r"epoch \d+, step \d+: the (loss|gradient) is .*on_nan='restore'"):
        model.fit(X, y)


def test_restore_halves_the_rate_until_training_works() -> None:
    X, y = waves()
    model = series(on_nan="restore", learning_rate=0.02, hidden_size=16, epochs=12)
    spoil = iter([True] + [False] * 10_000)
    original = sf.SequenceClassifier.forward

    def forward(self: Any, *arguments: Any) -> Any:
        logits = original(self, *arguments)
        return logits * float("nan") if self.training and next(spoil) else logits

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sf.SequenceClassifier, "forward", forward)
        model.fit(X, y)
    assert max(record["lr"] for record in model.history_) <= 0.01
    assert model.score(X, y) > 0.9


def test_always_nan_gives_up(capsys: pytest.CaptureFixture[str]) -> None:
    X, y = waves()
    original = sf.SequenceClassifier.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sf.SequenceClassifier, "forward", lambda self, *a: original(self, *a) * float("nan"))
        with pytest.raises(RuntimeError, match="the loss is nan, for the 6th time"):
            series(on_nan="restore", verbose=True).fit(X, y)
    assert "back to the end of epoch 0, at half the learning rate" in capsys.readouterr().err


def test_interrupt_leaves_a_model_that_can_be_saved(tmp_path: Path) -> None:
    X, y = sentences()
    model = text(epochs=100_000)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # the shell may have made us ignore it
    timer = threading.Timer(1.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            model.fit(X, y)
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, before)
    assert len(model.history_) >= 1
    model.save(tmp_path / "model")
    assert (sf.TextClassifier.load(tmp_path / "model").predict(X) == model.predict(X)).all()


def test_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    X, y = sentences()
    text(epochs=2).fit(X, y)
    assert capsys.readouterr() == ("", "")
    text(epochs=2, verbose=True).fit(X, y, validation=(X, y))
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "epoch   2/2  loss" in shown.err
    assert "val accuracy" in shown.err
    assert "tokens/s, padding" in shown.err
    assert "kept the weights of epoch" in shown.err


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    text(epochs=2, log_dir=tmp_path / "logs").fit(*sentences())
    assert [file.name for file in (tmp_path / "logs").iterdir() if file.stat().st_size]


def test_bfloat16_training() -> None:
    X, y = sentences()
    assert text(amp=True, hidden_size=16, epochs=15).fit(X, y).score(X, y) > 0.9


def test_sizes_that_suit_the_data() -> None:
    sizes = [batch_size_for(n) for n in (1, 120, 1000, 10_000, 100_000, 10**7)]
    assert sizes == [4, 8, 16, 64, 256, 256]
    rates = [learning_rate_for(n) for n in (1, 100, 300, 2500, 10**6)]
    assert rates == pytest.approx([0.01, 0.01, 0.1 / 300**0.5, 0.002, 0.002])


def test_evaluate_knows_what_was_seen_in_training(tmp_path: Path) -> None:
    X, y = sentences()
    model = text().fit(X, y)
    model.save(tmp_path)
    seen = [X[0], X[1].upper(), "never seen before"]
    for estimator in (model, sf.TextClassifier.load(tmp_path)):
        said = " ".join(estimator.evaluate(seen, ["neg", "pos", "neg"]).warnings)
        assert "1 of 3 test examples (33.3 %) are duplicates" in said
        assert "1 of 3 test examples (33.3 %) are near-duplicates" in said


# -- saving and loading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    X, y = sentences()
    pair = KINDS[kind]
    weights = {pair[0]: 2.0}
    model = text(epochs=2, class_weight=weights).fit(X, [pair[label == "pos"] for label in y])
    if kind == "none of one type":
        with pytest.raises(ValueError, match="save: expected labels that are numbers, strings or tuples but got type"):
            model.save(tmp_path / "model")
        assert not list(tmp_path.iterdir())
        return
    model.save(tmp_path / "model")
    loaded = sf.TextClassifier.load(tmp_path / "model")
    assert loaded.get_params() == model.get_params()
    assert loaded.classes_.tolist() == model.classes_.tolist()
    assert loaded.classes_.dtype == model.classes_.dtype
    assert np.array_equal(loaded.predict_proba(X), model.predict_proba(X))
    assert loaded.history_ == model.history_
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    card = (tmp_path / "model" / "README.md").read_text()
    assert "TextClassifier" in card
    assert "epochs=2" in card


def test_series_saved_and_loaded(tmp_path: Path) -> None:
    X, y = waves()
    X[0][1, 1] = np.nan
    model = series(epochs=2, missing="mask", cell="lstm", num_layers=2).fit(X, y)
    model.save(tmp_path)
    loaded = sf.SeriesClassifier.load(tmp_path)
    assert np.array_equal(loaded.predict_proba(X), model.predict_proba(X))
    assert loaded.n_features_in_ == 2
    with pytest.raises(store.StoreError, match="expected a model of TextClassifier but got kind 'series'"):
        sf.TextClassifier.load(tmp_path)


def test_saving_replaces_a_model_and_nothing_else(fitted: sf.TextClassifier, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    fitted.save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(
        FileExistsError, match="save: expected a new folder or one that holds a saved model alone but got"
    ):
        fitted.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("where", ["write", "rename"])
def test_a_full_disk_leaves_the_old_model(where: str, fitted: sf.TextClassifier, tmp_path: Path) -> None:
    fitted.save(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    renames = iter(range(100))

    def fail(*arguments: Any) -> None:
        if where == "rename" and next(renames) != 1:  # the second of two puts the new folder in place
            return original(*arguments)
        raise OSError(28, "No space left on device")

    original = os.rename if where == "rename" else os.fsync
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename" if where == "rename" else "fsync", fail)
        patch.setattr(_files, "_renameat2", lambda: None)
        with pytest.raises(OSError, match="No space left"):
            fitted.save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before


def spoil_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


SPOILED: dict[str, Any] = {
    "is truncated or changed": lambda f: (f / "model.safetensors").write_bytes(
        (f / "model.safetensors").read_bytes()[:-1]
    ),
    "expected JSON": lambda f: (f / "config.json").write_text("{"),
    "expected format 1 but got 7": lambda f: spoil_config(f, format=7),
    "expected format 1 but got 'list'": lambda f: (f / "config.json").write_text("[]"),
    "expected what save.. writes but got .*unexpected keyword": lambda f: spoil_config(
        f, parameters={"evil": 1, "class_weight": None}
    ),
    "classes: expected at least two different ones but got 0": lambda f: spoil_config(f, classes=[]),
    "expected what save.. writes": lambda f: spoil_config(f, encoder="{}"),
    "size mismatch|expected what save.. writes": lambda f: spoil_config(f, classes=["a", "b", "c"]),
}


@pytest.mark.parametrize("sentence", SPOILED)
def test_a_spoiled_folder_is_refused(sentence: str, fitted: sf.TextClassifier, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    SPOILED[sentence](tmp_path)
    with pytest.raises(store.StoreError, match=sentence):
        sf.TextClassifier.load(tmp_path)


def test_missing_files(fitted: sf.TextClassifier, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"load: expected config.json in"):
        sf.TextClassifier.load(tmp_path)
    fitted.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"load: expected model.safetensors in"):
        sf.TextClassifier.load(tmp_path)


# -- what a review found ----------------------------------------------------------------------------------------------


def test_saving_keeps_what_is_not_a_saved_model(fitted: sf.TextClassifier, tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "src").mkdir(parents=True)
    (project / "config.json").write_text('{"mine": 1}')
    (project / "src" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="save: expected a new folder or one that holds a saved model alone"):
        fitted.save(project)
    fitted.save(tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError):
        fitted.save(tmp_path / "model")
    assert sf.TextClassifier.load(tmp_path / "model").epochs == 8


def test_saving_by_unusual_paths(fitted: sf.TextClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fitted.save("model")
    fitted.save("model/../model/")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    fitted.save("link")
    assert (tmp_path / "link").is_symlink()
    with pytest.raises(ValueError, match="save: expected another folder than the current one"):
        fitted.save(".")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "model"]


def test_a_rare_class_s_weight_is_no_explosion() -> None:
    rng = np.random.default_rng(0)
    X = [rng.normal(size=(5, 3)) for _ in range(1000)]
    series(class_weight="balanced", hidden_size=16).fit(X, [1] * 5 + [0] * 995)


def test_restore_goes_back_to_weights_that_have_proven_sound() -> None:
    X, y = waves(count=24)  # one step an epoch, so the next epoch tests an epoch's weights
    model = series(
        batch_size=24, epochs=30, learning_rate=1e9, cell="rnn_relu", max_grad_norm=None, schedule="constant",
        warmup=0.0, on_nan="restore",
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="for the 6th time, at learning rate 3"):
        model.fit(X, y)  # 1e9 / 2**5: still too large, but halved each time
    assert not hasattr(model, "model_")


def test_one_step_learns() -> None:
    X, y = sentences(count=4)
    model = text(epochs=1, batch_size=4)
    fitted = model.fit(X, y)
    start = make_model(fitted.fitted_.inputs, model.get_params(), fitted.encoder_, 2)
    assert not torch.equal(start.head.weight, fitted.model_.head.weight)


def test_a_failed_fit_leaves_the_model_before() -> None:
    X, y = waves()
    model = series().fit(X, y)
    before = model.predict_proba(X)
    model.set_params(cell="rnn_relu", learning_rate=1e9, max_grad_norm=None, schedule="constant", warmup=0.0)
    with pytest.raises(RuntimeError, match=r"the (loss|gradient) is|the loss"):
        model.fit(X, ["a" if label else "b" for label in y])
    assert np.array_equal(model.predict_proba(X), before)


def test_parameters_from_numpy(tmp_path: Path) -> None:
    X, y = sentences(count=40)
    search = GridSearchCV(
        text(epochs=1), {"hidden_size": np.array([4, 8]), "seed": np.arange(2)}, cv=2, error_score="raise"
    )
    search.fit(X, y).best_estimator_.save(tmp_path / "a")
    weights = dict(zip(np.unique(y), np.array([1, 2]), strict=True))
    options = {
        "class_weight": weights,
        "dropout": np.float32(0.1),
        "device": torch.device("cpu"),
        "amp": np.bool_(False),
    }
    text(epochs=np.int64(1), **options).fit(X, y).save(tmp_path / "b")
    assert sf.TextClassifier.load(tmp_path / "b").class_weight == {"neg": 1.0, "pos": 2.0}


def test_what_was_fitted_is_saved(tmp_path: Path) -> None:
    model = text(epochs=1).fit(*sentences())
    model.set_params(hidden_size=99).save(tmp_path / "model")
    assert sf.TextClassifier.load(tmp_path / "model").hidden_size == 8


def test_devices(tmp_path: Path) -> None:
    X, y = sentences()
    for device in ("nowhere", "meta", 5, None):
        with pytest.raises(ValueError, match="device: expected auto or a device that this machine has but got"):
            text(device=device).fit(X, y)
    text(epochs=1).fit(X, y).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    spoil_config(tmp_path, parameters=config["parameters"] | {"device": "cuda:77"})
    if not torch.cuda.is_available():
        assert sf.TextClassifier.load(tmp_path).device == "auto"
    assert sf.TextClassifier.load(tmp_path, device="cpu").device == "cpu"


@pytest.mark.parametrize(
    "changes",
    [
        {"history": "x"}, {"history": []}, {"history": [1]}, {"history": [{}]}, {"best_epoch": 99}, {"best_epoch": "x"},
        {"classes": ["pos", "pos"]}, {"classes": [1, {"x": 2}]}, {"parameters": []}, {"encoder": 3},
    ],
    ids=str,
)  # fmt: skip
def test_tampered_values_are_refused_in_a_sentence(changes: Any, fitted: sf.TextClassifier, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    spoil_config(tmp_path, **changes)
    with pytest.raises(store.StoreError, match=r"expected what save.. writes but got") as caught:
        sf.TextClassifier.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_json_too_deep_to_be_ours(fitted: sf.TextClassifier, tmp_path: Path) -> None:
    fitted.save(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(store.StoreError):
        sf.TextClassifier.load(tmp_path)


def test_series_of_any_tensors() -> None:
    X, y = waves(count=20)
    for convert in (
        lambda a: torch.tensor(a, requires_grad=True),
        lambda a: torch.tensor(a).bfloat16(),
        np.ndarray.tolist,
    ):
        model = series(epochs=1).fit([convert(a) for a in X], y)
        assert "duplicates" in " ".join(model.evaluate([convert(a) for a in X], y).warnings)


@pytest.mark.parametrize("pair", [("a\0", "a"), (2**63, -1), (2**64 - 1, 1), ((1, (2, "x")), (1, (2, "y")))], ids=repr)
def test_labels_numpy_would_change(pair: tuple[Any, Any], tmp_path: Path) -> None:
    X, y = sentences()
    model = text(hidden_size=16, epochs=15).fit(X, [pair[label == "pos"] for label in y])
    assert set(model.classes_.tolist()) == set(pair)
    model.save(tmp_path)
    assert set(sf.TextClassifier.load(tmp_path).predict(X).tolist()) == set(pair)


def test_unhashable_inside_a_tuple() -> None:
    with pytest.raises(TypeError, match="y: expected hashable labels but got tuple at 0, which is not"):
        text().fit(["a", "b"], [([1],), ([2],)])


def test_the_best_epoch_s_figures_are_told() -> None:
    X, y = sentences()
    model = text(epochs=30, learning_rate=0.05, metric="accuracy", wide=False).fit(X, y, validation=sentences(9, 40))
    best = max(model.history_, key=lambda record: record["val_accuracy"])
    assert model.best_epoch_ == best["epoch"] < 30
    kept = model.evaluate(*sentences(9, 40)).to_dict()["log_loss"]
    assert kept == pytest.approx(best["val_loss"], rel=1e-3)
    assert kept != pytest.approx(model.history_[-1]["val_loss"], rel=1e-2)
    from seqcls_fast.toolkit.card import model_card

    assert f"After {best['epoch']} epochs" in model_card(model.fitted_, sf.TextClassifier)


def test_compiled_models_are_pickled_and_saved(tmp_path: Path) -> None:
    X, y = sentences()
    model = text(epochs=1).fit(X, y)
    wanted = model.predict_proba(X)
    model.model_.compile(backend="eager")
    assert np.array_equal(pickle.loads(pickle.dumps(model)).predict_proba(X), wanted)
    model.model_ = torch.compile(model.model_, backend="eager")
    model.save(tmp_path)
    assert np.array_equal(sf.TextClassifier.load(tmp_path).predict_proba(X), wanted)


def test_predictions_after_a_change_of_weights() -> None:
    X, y = sentences(count=400)
    model = text(epochs=1).fit(X, y)
    before = model.predict_proba(X)
    with torch.no_grad():
        model.model_.embedding.weight.add_(1.0)
    assert not np.allclose(model.predict_proba(X), before)


def test_no_seed_differs_from_fit_to_fit() -> None:
    X, y = sentences()
    one, other = (text(seed=None, epochs=1).fit(X, y) for _ in range(2))
    assert not np.array_equal(one.predict_proba(X), other.predict_proba(X))


def test_what_validation_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "dev.csv"
    path.write_text("text,label\ngood,pos\n")
    for validation in (True, 1, [["a"], ["pos"]], str(path), (str(path), None)):
        with pytest.raises(ValueError, match=r"validation: expected .X, y., a pathlib.Path, a Stream or a share but"):
            text().fit(*sentences(), validation=validation)
    assert "val_loss" in text(epochs=1).fit(*sentences(), validation=path).history_[0]


def test_after_going_back_the_kept_weights_are_those_of_the_epoch_told() -> None:
    """The epoch before a NaN is dropped, so that it cannot count as the best one."""
    X, y = waves(count=80)
    other = waves(5, 40)
    model = series(
        on_nan="restore", learning_rate=0.02, batch_size=10, epochs=4, schedule="constant", warmup=0.0, convolutions=0
    )  # fmt: skip
    steps = iter(range(10_000))
    original = sf.SequenceClassifier.forward

    def forward(self: Any, *arguments: Any) -> Any:
        logits = original(self, *arguments)
        return logits * float("nan") if self.training and next(steps) == 16 else logits  # the third epoch's first

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sf.SequenceClassifier, "forward", forward)
        model.fit(X, y, validation=other)
    assert [record["epoch"] for record in model.history_] == [1, 2, 3, 4]
    assert [record["lr"] for record in model.history_] == [0.02, 0.01, 0.01, 0.01]
    kept = model.evaluate(*other).to_dict()["log_loss"]
    assert kept == pytest.approx(model.history_[model.best_epoch_ - 1]["val_loss"], rel=1e-3)

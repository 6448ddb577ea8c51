"""partial_fit() and warm_start: training that goes on from weights, with their vocabulary and classes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from sklearn.base import clone

from seqcls_fast import SeriesClassifier, TextClassifier
from seqcls_fast.toolkit.data.stream import Stream
from support.corpora import sentences, waves

X, Y = sentences(0, 120)
CLASSES = ["neg", "pos"]
QUICK: dict[str, Any] = {"hidden_size": 8, "epochs": 2, "verbose": False, "baseline": False}
TEXT = QUICK | {"embedding_dim": 8}
SERIES = QUICK | {"convolutions": 0}


def weights(clf: Any) -> dict[str, torch.Tensor]:
    return {name: each.clone() for name, each in clf.model_.state_dict().items()}


def same(one: Any, other: Any) -> bool:
    ours, theirs = weights(one), weights(other)
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def in_parts(clf: Any, X: Any, Y: Any, classes: Any, size: int = 40, passes: int = 1) -> Any:
    for _ in range(passes):
        for start in range(0, len(X), size):
            clf.partial_fit(X[start : start + size], Y[start : start + size], classes=classes)
    return clf


# -- partial_fit ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "series"])
def test_batches_teach(kind: str) -> None:
    if kind == "text":
        clf, data, new = TextClassifier(**TEXT, learning_rate=0.01), (X, Y, CLASSES), sentences(1, 60)
    else:
        clf, data, new = SeriesClassifier(**SERIES, learning_rate=0.01), (*waves(0, 120), [0, 1]), waves(1, 60)
    in_parts(clf, *data, passes=4)
    assert clf.score(*new) > 0.9
    assert [each["epoch"] for each in clf.history_] == list(range(1, 13))
    assert clf.data_["rows"] == 40
    assert clf.data_["earlier"] == 11 * 40
    assert "40 examples" in clf.fitted_.about["training"]
    assert "after an earlier training on 440" in clf.fitted_.about["training"]


def test_n_grams_learn_too() -> None:
    clf = TextClassifier(**TEXT).partial_fit(X[:40], Y[:40], classes=CLASSES)
    before = weights(clf)["wide.weight"]
    assert before.shape == (1 << 18, 2)  # as for 4,096 texts, not for the 40 of the first call
    clf.partial_fit(["zebra quagga"], ["pos"])
    changed = (weights(clf)["wide.weight"] != before).any(1)
    assert 30 < int(changed.sum()) < 60


def test_it_is_deterministic_and_goes_on_after_loading(tmp_path: Path) -> None:
    one, other = (TextClassifier(**TEXT).partial_fit(X[:60], Y[:60], classes=CLASSES) for _ in range(2))
    assert same(one, other)
    other.save(tmp_path / "model")
    loaded = TextClassifier.load(tmp_path / "model")
    one.partial_fit(X[60:], Y[60:])
    loaded.partial_fit(X[60:], Y[60:])
    assert same(one, loaded)
    assert np.array_equal(one.predict_proba(X), loaded.predict_proba(X))
    loaded.save(tmp_path / "model")
    assert TextClassifier.load(tmp_path / "model").data_ == one.data_


def test_each_call_has_noise_of_its_own() -> None:
    """The same rows twice: other words are dropped in the second call, and rows come in another order."""
    clf = TextClassifier(**TEXT).partial_fit(X, Y, classes=CLASSES)
    start = clf.fitted_
    first = weights(clf.partial_fit(X, Y))
    clf.fitted_ = start
    second = weights(clf.partial_fit(X, Y))
    assert all(first[name].equal(second[name]) for name in first)  # as the state decides, and nothing else
    clf.fitted_ = start
    clf.history_ = [*start.history, start.history[-1] | {"epoch": 2}]
    third = weights(clf.partial_fit(X, Y))
    assert not all(first[name].equal(third[name]) for name in first)


def test_what_was_learned_stays_with_who_has_it() -> None:
    clf = TextClassifier(**TEXT).partial_fit(X, Y, classes=CLASSES)
    kept, before = clf.fitted_, weights(clf)
    clf.partial_fit(X, Y)
    assert all(before[name].equal(each) for name, each in kept.model.state_dict().items())
    assert not same(clf, type("Kept", (), {"model_": kept.model}))


def test_vocabulary_and_classes_stay() -> None:
    clf = TextClassifier(**TEXT).partial_fit(X, Y, classes=[*CLASSES, "other"])
    encoder = clf.encoder_.to_json()
    clf.partial_fit(["never seen words"], ["other"])
    assert clf.encoder_.to_json() == encoder
    assert clf.classes_.tolist() == ["neg", "other", "pos"]
    assert clf.evaluate(X, Y).warnings  # its data were seen in an earlier call, which the fingerprints still know


def test_weights_of_rows_count() -> None:
    clf = TextClassifier(**TEXT, class_weight={"pos": 1.0, "neg": 0.0})
    in_parts(clf, X, Y, CLASSES, passes=4)
    assert set(clf.predict(X)) == {"pos"}
    weighted = TextClassifier(**TEXT).partial_fit(X, Y, CLASSES, np.where(np.array(Y) == "pos", 0.0, 1.0))
    for _ in range(8):
        weighted.partial_fit(X, Y, sample_weight=np.where(np.array(Y) == "pos", 0.0, 1.0))
    assert set(weighted.predict(X)) == {"neg"}


def test_a_fitted_model_is_trained_on() -> None:
    clf = TextClassifier(**TEXT).fit(X, Y).calibrate(X[:60] + ["good bad"] * 4, Y[:60] + CLASSES * 2)
    before = weights(clf)
    assert clf.temperature_ != 1
    with pytest.warns(UserWarning, match="partial_fit: the temperature and the threshold are forgotten"):
        clf.partial_fit(X, Y)
    assert clf.temperature_ == 1
    assert not all(before[name].equal(each) for name, each in weights(clf).items())
    assert clf.validation_report_ is None
    assert len(clf.history_) == 3


def test_bad_calls_of_partial_fit(tmp_path: Path) -> None:
    new = TextClassifier(**TEXT)
    known = TextClassifier(**TEXT).partial_fit(X, Y, classes=CLASSES)
    before = known.fitted_
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], str]] = [
        (new, (X, Y), {}, r"^classes: expected all labels that may come, in the first call .* but got None$"),
        (new, (X, Y, ["pos"]), {}, "^classes: expected at least two different labels but got 1$"),
        (new, (X, Y, "pos"), {}, "^classes: expected a list of labels but got a str$"),
        (new, (X, Y, ["pos", None]), {}, "^classes: expected a label but got None at 1$"),
        (new, (X, Y, ["a", "b"]), {}, "^y: expected labels seen in training but got 'neg' at 0; the first call"),
        (new, ([" "], ["pos"], CLASSES), {}, "expected a token to learn but got none in 1 texts$"),
        (new, (X, None, CLASSES), {}, "^y: expected labels but got None$"),
        (known, (X, Y, ["a", "b"]), {}, r"^classes: expected those of the first call, \['neg', 'pos'\], but got \['a'"),
        (known, (["a"], ["b"]), {}, "^y: expected labels seen in training but got 'b' at 0; the first call says all"),
        (known, ([], []), {}, "^X: expected at least one sequence but got none$"),
        (known, (X, Y[:-1]), {}, "^y: expected 120 labels, one for each .* but got 119$"),
        (known, ([None], ["pos"]), {}, "^X: expected strings but got None at 0$"),
        (known, (X, Y), {"hidden_size": 9}, "^partial_fit: expected hidden_size=8.* but got 9"),
        (known, (X, Y), {"hidden_size": 8, "class_weight": "balanced"}, "^class_weight: expected None or a dict for p"),
        (SeriesClassifier(**QUICK), (*waves(0, 20), [0, 1]), {}, "^partial_fit: expected convolutions=0 but got 10000"),
    ]  # fmt: skip
    for clf, arguments, changed, words in calls:
        with pytest.raises((ValueError, TypeError), match=words):
            clf.set_params(**changed).partial_fit(*arguments)
    assert known.fitted_ is before
    assert not hasattr(new, "fitted_")
    (tmp_path / "a.csv").write_text("text,label\na,b\n")
    with pytest.raises(TypeError, match=r"^X: expected sequences in memory but got a Stream; fit\(\) reads a Stream"):
        new.partial_fit(Stream(tmp_path / "a.csv"), classes=CLASSES)


def test_series_must_have_the_features_of_the_first_call() -> None:
    series, labels = waves(0, 20)
    clf = SeriesClassifier(**SERIES).partial_fit(series, labels, classes=[0, 1])
    with pytest.raises(ValueError, match=r"^series\[0\]: expected 2 features but got 3$"):
        clf.partial_fit([np.zeros((4, 3))], [0])


def test_random_convolutions_are_not_lost() -> None:
    series, labels = waves(0, 40)
    clf = SeriesClassifier(**SERIES | {"convolutions": 100}).fit(series, labels)
    before = clf.fitted_
    clf.set_params(convolutions=0, warm_start=True)
    for train_on in (clf.fit, clf.partial_fit):
        with pytest.raises(ValueError, match=r"^convolutions: expected more than 0, as the model .* but got 0; a new"):
            train_on(series, labels)
    assert clf.fitted_ is before


# -- warm_start -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "series"])
def test_a_warm_start_goes_on(kind: str) -> None:
    """With steps of no size the weights stay as they were; a cold start draws them anew."""
    make, data = (TextClassifier, (X, Y)) if kind == "text" else (SeriesClassifier, waves(0, 60))
    clf = make(**(TEXT if kind == "text" else SERIES), holdout=None, seed=1).fit(*data)
    before, encoder = weights(clf), clf.encoder_.to_json()
    clf.set_params(warm_start=True, learning_rate=1e-12, weight_decay=0.0, seed=2, epochs=1, dropout=0.4)
    if kind == "text":
        clf.set_params(word_dropout=0.0, wide_dropout=0.0)
    clf.fit(data[0][:30], data[1][:30])
    for name, each in weights(clf).items():
        if not name.startswith("wide."):  # whose rate is its own
            torch.testing.assert_close(each, before[name])
    assert clf.encoder_.to_json() == encoder
    assert clf.model_.dropout == 0.4
    assert len(clf.history_) == 1
    assert clf.data_["earlier"] == len(data[0])
    cold = clone(clf).fit(*data)
    assert "earlier" not in cold.data_


def test_fine_tuning_of_a_loaded_model(tmp_path: Path) -> None:
    clf = TextClassifier(**TEXT | {"epochs": 6}, learning_rate=0.01).fit(X, Y)
    clf.save(tmp_path / "model")
    tuned = TextClassifier.load(tmp_path / "model").set_params(warm_start=True, epochs=3)
    turned = ["pos" if label == "neg" else "neg" for label in Y]
    tuned.fit(X, turned)
    assert tuned.score(X, turned) > clf.score(X, turned)
    again = TextClassifier.load(tmp_path / "model").set_params(warm_start=True, epochs=3).fit(X, turned)
    assert same(tuned, again)
    tuned.save(tmp_path / "tuned")
    card = (tmp_path / "tuned" / "README.md").read_text()
    assert "| training before that | 120 |" in card
    assert TextClassifier.load(tmp_path / "tuned").get_params()["warm_start"] is True


def test_a_warm_start_fits_the_wide_part_of_series_anew() -> None:
    series, labels = waves(0, 60)
    clf = SeriesClassifier(**QUICK, convolutions=84).fit(series, labels)
    swapped = [1 - label for label in labels]
    clf.set_params(warm_start=True, epochs=1).fit(series, swapped)
    assert clf.score(series, swapped) > 0.9


def test_a_warm_start_of_a_refit_goes_on_too() -> None:
    many, labels = sentences(0, 240)
    clf = TextClassifier(**TEXT, seed=1).fit(many, labels)
    assert clf.data_["refit"] == 240
    before = weights(clf)
    clf.set_params(warm_start=True, learning_rate=1e-12, weight_decay=0.0, seed=2).fit(many, labels)
    assert clf.data_["refit"] == 240
    torch.testing.assert_close(weights(clf)["embedding.weight"], before["embedding.weight"])


def test_a_warm_start_from_a_stream(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in zip(X, Y, strict=True)))
    clf = TextClassifier(**TEXT, warm_start=True, workers=0).fit(X, Y)
    before = clf.encoder_.to_json()
    clf.fit(Stream(path))
    assert (clf.encoder_.to_json(), clf.data_["earlier"]) == (before, 120)
    path.write_text("text,label\na,b\n")
    with pytest.raises(
        ValueError, match="expected labels seen in training but got 'b' at 0; warm_start=False begins anew"
    ):
        clf.fit(Stream(path))


def test_bad_warm_starts() -> None:
    clf = TextClassifier(**TEXT, warm_start=True).fit(X, Y)
    with pytest.raises(
        ValueError, match=r"^y: expected labels seen in training but got 'b' at 1; warm_start=False begins"
    ):
        clf.fit(["a", "b"], ["pos", "b"])
    with pytest.raises(
        ValueError, match=r"^warm_start: expected cell='gru', as the model was made with, but got 'lstm'"
    ):
        clf.set_params(cell="lstm").fit(X, Y)
    with pytest.raises(TypeError, match=r"^warm_start: expected a bool but got str$"):
        TextClassifier(warm_start="yes").fit(X, Y)


def test_a_start_has_its_vectors(tmp_path: Path) -> None:
    """A file of vectors is for weights that begin anew. A start goes on without one, so another one is refused."""
    (tmp_path / "some.vec").write_text("good 1 2\nbad 2 1\nfilm 0 1\nday 1 0\n")
    options = TEXT | {"embedding_dim": 2, "warm_start": True}
    clf = TextClassifier(**options, vectors=tmp_path / "some.vec").fit(X, Y)
    clf.save(tmp_path / "model")
    (tmp_path / "some.vec").unlink()
    loaded = TextClassifier.load(tmp_path / "model")
    loaded.set_params(vectors=tmp_path / "some.vec").fit(X, Y).partial_fit(X, Y)  # a saved model says it as a string
    before = loaded.fitted_
    for train_on, method in ((loaded.fit, "warm_start"), (loaded.partial_fit, "partial_fit")):
        loaded.set_params(vectors=tmp_path / "other.vec")
        with pytest.raises(ValueError, match=f"^{method}: expected vectors='.*some.vec', as the model was .*other.vec"):
            train_on(X, Y)
    assert loaded.fitted_ is before


def test_a_batch_of_one_class_is_enough_once_classes_are_known() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clf = TextClassifier(**TEXT).partial_fit(X[:1], Y[:1], classes=CLASSES)
        clf.set_params(warm_start=True, holdout=None).fit(X[:1], Y[:1])
    assert clf.classes_.tolist() == CLASSES

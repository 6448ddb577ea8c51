"""Temperatures and thresholds: those that scipy and a loop over all thresholds find, kept with the model and applied.

The estimator's model is made overconfident on purpose, on data whose labels are noisy, so that there is what to mend.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import random
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import optimize
from sklearn.base import clone
from sklearn.metrics import precision_score, recall_score

import seqcls_fast as sf
from seqcls_fast import __main__, _ext
from seqcls_fast.toolkit import store
from seqcls_fast.toolkit.evaluation.calibration import temperature, threshold
from seqcls_fast.toolkit.evaluation.decision import DecisionThreshold, decide
from seqcls_fast.toolkit.evaluation.evaluate import evaluate_predictions

CLASSES = ("blue", "green", "red")


def problem(seed: int, count: int = 200, classes: int = 3, scale: float = 3.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are ``scale`` times too large, and classes drawn with the probabilities of those that are not."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(scale=1.5, size=(count, classes))
    drawn = (honest + rng.gumbel(size=honest.shape)).argmax(1)
    return scale * honest, drawn


def loss(logits: np.ndarray, targets: np.ndarray, T: float) -> float:
    return float(torch.nn.functional.cross_entropy(torch.tensor(logits).double() / T, torch.tensor(targets)))


# -- the temperature


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(50, 300), classes=st.integers(2, 6), scale=st.floats(0.3, 8.0))
def test_temperature_is_scipy_s(seed: int, count: int, classes: int, scale: float) -> None:
    logits, targets = problem(seed, count, classes, scale)
    found = temperature(logits, targets)

    def of_log(x: float) -> float:
        return loss(logits, targets, float(np.exp(x)))

    best = optimize.minimize_scalar(of_log, bounds=np.log([0.05, 20]), method="bounded", options={"xatol": 1e-9})
    assert found == pytest.approx(float(np.exp(best.x)), rel=1e-4)  # a minimum is flat, so its place is less exact

    def slope(inverse: float) -> float:
        where = torch.tensor(inverse, dtype=torch.float64, requires_grad=True)
        torch.nn.functional.cross_entropy(torch.tensor(logits) * where, torch.tensor(targets)).backward()
        assert where.grad is not None
        return float(where.grad)

    assert found == pytest.approx(1 / optimize.brentq(slope, 0.05, 20, xtol=1e-14), rel=1e-11)


def test_temperature_undoes_a_scale() -> None:
    logits, targets = problem(0, 20_000, scale=3.0)
    assert temperature(logits, targets) == pytest.approx(3.0, rel=0.03)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as numpy warns of what overflows
        assert temperature(5 * logits, targets) == pytest.approx(5 * temperature(logits, targets), rel=1e-12)
    as_tensors = torch.tensor(logits, dtype=torch.float32), torch.tensor(targets)
    assert temperature(*as_tensors) == pytest.approx(temperature(logits, targets), rel=1e-6)


def test_shifted_rows_are_the_same_model() -> None:
    logits, targets = problem(1)
    shifts = np.random.default_rng(0).normal(size=(200, 1)) * 1e3
    assert temperature(logits + shifts, targets) == pytest.approx(temperature(logits, targets), rel=1e-9)


@pytest.mark.parametrize("margin", [0.1, 4.0, 500.0])
def test_examples_that_are_all_right_are_no_measure(margin: float) -> None:
    with pytest.warns(UserWarning, match=r"left at 1, .* below 0.05: 0 of 2 examples are classified wrong"):
        assert temperature([[margin, 0.0], [0.0, margin]], [0, 1]) == 1


def test_worse_than_guessing_is_flat() -> None:
    with pytest.warns(UserWarning, match="kept at 20 where the data would have it higher"):
        assert temperature([[2.0, 0.0], [0.0, 2.0]], [1, 0]) == 20


def test_logits_that_are_all_alike() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert temperature([[1.0, 1.0], [3.0, 3.0]], [0, 1]) == 1.0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([], []), "logits: expected finite numbers of shape (N, K) but got float64 in shape (0,)"),
        ((np.zeros((0, 2)), []), "logits: expected finite numbers of shape (N, K) but got float64 in shape (0, 2)"),
        (([[0.0, np.nan]], [0]), "logits: expected finite numbers of shape (N, K) but got NaN or infinity in shape"),
        (([[0.0, 1.0]], [0, 1]), "targets: expected 1 whole numbers but got int64 in shape (2,)"),
        (([[0.0, 1.0]], [0.5]), "targets: expected 1 whole numbers but got float64 in shape (1,)"),
        (([[0.0, 1.0]], [2]), "targets: expected columns, from 0 to 1, but got 2"),
        (([[0.0, 1.0]] * 2, [1, -1]), "targets: expected columns, from 0 to 1, but got -1"),
    ],
)
def test_temperature_refuses(arguments: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        temperature(*arguments)


@pytest.mark.parametrize("classes", [2, 5])
def test_an_overconfident_model_is_mended(classes: int) -> None:
    fitted, held_out = problem(0, 1000, classes), problem(1, 1000, classes)
    T = temperature(*fitted)
    before, after = (torch.tensor(held_out[0] / each).softmax(1).numpy() for each in (1.0, T))
    labels = range(classes)
    report = evaluate_predictions(held_out[1], after.argmax(1), after, uncalibrated=before, labels=labels, bootstrap=0)
    assert report.before is not None
    assert report.log_loss is not None
    assert report.log_loss < report.before["log loss"] - 0.1
    assert report.expected_calibration_error is not None
    assert report.expected_calibration_error < report.before["calibration error"] / 2
    assert report.accuracy == report.before["accuracy"]


# -- the threshold


@settings(max_examples=200, deadline=None)
@given(
    examples=st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=1, max_size=40),
    target=st.sampled_from(["precision", "recall"]),
    wanted=st.sampled_from([0.01, 0.25, 1 / 3, 0.5, 0.6, 0.75, 0.9, 1.0]),
)
@example([(True, 2), (False, 1), (True, 0)], "recall", 0.5)  # the highest threshold just reaches it
def test_threshold_by_a_loop(examples: list[tuple[bool, int]], target: str, wanted: float) -> None:
    positive, scores = (np.array(column) for column in zip(*examples, strict=True))
    if not positive.any():
        with pytest.raises(ValueError, match="positive: expected at least one positive example but got none"):
            threshold(positive, scores, precision=wanted)
        return
    options = []
    for value in sorted(set(scores.tolist())):
        chosen = scores >= value
        hits = int((chosen & positive).sum())
        options.append((value, hits / int(chosen.sum()), hits / int(positive.sum())))
    reached = [each for each in options if each[1 if target == "precision" else 2] >= wanted]
    if not reached:
        with pytest.raises(ValueError, match="precision: expected one that some threshold reaches, at most "):
            threshold(positive, scores, precision=wanted)
        return
    found = threshold(positive, scores, **{target: wanted})
    order = (lambda each: (each[2], each[1])) if target == "precision" else (lambda each: (each[1], each[2]))
    assert found == max(reached, key=order)  # of points equal in one number, the better in the other


def test_unreachable_precision_says_what_is_reachable() -> None:
    with pytest.raises(ValueError, match=r"at most 0\.6667, but got 0\.9"):
        threshold([False, True, True], [0.9, 0.9, 0.9], precision=0.9)


@pytest.mark.parametrize(
    ("positive", "scores", "options", "sentence"),
    [
        ([True], [0.5], {}, "precision, recall: expected one of them but got none"),
        ([True], [0.5], {"precision": 0.5, "recall": 0.5}, "precision, recall: expected one of them but got both"),
        ([True], [0.5], {"precision": 0}, "precision: expected a share above 0, at most 1, but got 0"),
        ([True], [0.5], {"recall": 1.5}, "recall: expected a share above 0, at most 1, but got 1.5"),
        ([True], [0.5], {"recall": "a"}, "recall: expected a share above 0, at most 1, but got 'a'"),
        ([True], [0.5], {"recall": float("nan")}, "recall: expected a share above 0, at most 1, but got nan"),
        ([1], [0.5], {"recall": 0.5}, "positive: expected booleans of shape (N,) but got int64 in shape (1,)"),
        ([True], [0.5, 0.1], {"recall": 0.5}, "scores: expected 1 finite numbers but got float64 in shape (2,)"),
        ([True], [np.inf], {"recall": 0.5}, "scores: expected 1 finite numbers but got NaN or infinity in shape (1,)"),
    ],
)
def test_threshold_refuses(positive: Any, scores: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        threshold(positive, scores, **options)


def test_decide() -> None:
    shares = np.array([[0.5, 0.3, 0.2], [0.6, 0.1, 0.3], [0.2, 0.2, 0.6], [0.1, 0.4, 0.5]])
    assert decide(shares, CLASSES, None).tolist() == [0, 0, 2, 2]
    few = DecisionThreshold("green", 0.3, "recall", 0.9, 0.5, 1.0, 40)
    assert decide(shares, CLASSES, few).tolist() == [1, 0, 2, 1]  # 0.3 is enough, 0.2 and 0.1 are not
    many = DecisionThreshold("red", 0.9, "precision", 0.9, 1.0, 0.1, 40)
    assert decide(shares, CLASSES, many).tolist() == [0, 0, 0, 1]  # the likeliest of the others
    assert shares[3].tolist() == [0.1, 0.4, 0.5]


# -- with an estimator


def corpus(seed: int, count: int) -> tuple[list[str], list[str]]:
    """Texts that name a colour among other words, and labels that are another colour in a quarter of the cases."""
    draw = random.Random(seed)
    texts, colours = [], []
    for number in range(count):
        colour = draw.choice(CLASSES)
        words = [draw.choice(["a", "the", "is", "it"]) for _ in range(draw.randint(1, 4))] + [f"n{seed}x{number}"]
        words.insert(draw.randrange(len(words)), colour)
        if draw.random() < 0.5:
            words.insert(draw.randrange(len(words)), draw.choice(CLASSES))
        texts.append(" ".join(words))
        colours.append(colour if draw.random() < 0.8 else draw.choice(CLASSES))
    return texts, colours


@pytest.fixture(scope="module")
def trained() -> sf.TextClassifier:
    torch.set_num_threads(1)
    model = sf.TextClassifier(hidden_size=8, embedding_dim=8, epochs=6, verbose=False).fit(*corpus(0, 300))
    with torch.no_grad():
        for parameter in model.model_.head.parameters():
            parameter.mul_(6)
    return model


@pytest.fixture
def model(trained: sf.TextClassifier) -> sf.TextClassifier:
    return copy.deepcopy(trained)


DEV, TEST = corpus(1, 240), corpus(2, 240)


def test_calibrate(model: sf.TextClassifier) -> None:
    raw, predicted = model.fitted_.logits(TEST[0]).double(), model.predict(TEST[0])
    assert (model.temperature_, model.threshold_) == (1.0, None)
    assert model.evaluate(*TEST).before is None
    assert model.calibrate(*DEV) is model
    targets = [CLASSES.index(label) for label in DEV[1]]
    assert model.temperature_ == temperature(model.fitted_.logits(DEV[0]), targets) > 1.5
    np.testing.assert_allclose(model.predict_proba(TEST[0]), (raw / model.temperature_).softmax(1).numpy(), rtol=1e-12)
    assert (model.predict(TEST[0]) == predicted).all()
    report = model.evaluate(*TEST)
    shares = raw.softmax(1).numpy()
    plain = evaluate_predictions(TEST[1], predicted, shares, labels=CLASSES, bootstrap=0)
    assert report.before == pytest.approx({name: value for name, value, _ in plain.summary()}, rel=1e-12)
    assert report.log_loss is not None
    assert report.log_loss < report.before["log loss"]
    assert report.expected_calibration_error is not None
    assert report.expected_calibration_error < report.before["calibration error"]


@pytest.mark.parametrize(("target", "wanted"), [("precision", 0.9), ("recall", 0.95)])
def test_choose_threshold(model: sf.TextClassifier, target: str, wanted: float) -> None:
    model.calibrate(*DEV)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.choose_threshold(*DEV, label="green", **{target: wanted}) is model
    rule = model.threshold_
    assert rule is not None
    assert (rule.label, rule.target, rule.wanted) == ("green", target, wanted)
    assert rule.positives == DEV[1].count("green")
    found, true = model.predict(DEV[0]) == "green", np.array(DEV[1]) == "green"
    assert rule.precision == pytest.approx(precision_score(true, found))
    assert rule.recall == pytest.approx(recall_score(true, found))
    assert getattr(rule, target) >= wanted
    shares = model.predict_proba(TEST[0])
    assert ((model.predict(TEST[0]) == "green") == (shares[:, 1] >= rule.value)).all()
    others = np.where(shares[:, 0] >= shares[:, 2], "blue", "red")
    below = shares[:, 1] < rule.value
    assert (model.predict(TEST[0])[below] == others[below]).all()
    assert (model.predict(TEST[0]) == model.decide(shares)).all()
    right = np.mean(model.predict(TEST[0]) == np.array(TEST[1]))
    assert model.score(*TEST) == right
    report = model.evaluate(*TEST)
    assert report.accuracy == right
    assert report.before is not None
    assert report.before["accuracy"] == np.mean(np.array(CLASSES)[shares.argmax(1)] == np.array(TEST[1]))
    assert not any("columns of proba" in warning for warning in report.warnings)


def test_labels_the_model_does_not_know_are_no_positives(model: sf.TextClassifier) -> None:
    X, y = DEV
    strange = ["pink" if label == "red" else label for label in y]
    plain = copy.deepcopy(model).choose_threshold(X, y, label="green", recall=0.8).threshold_
    assert model.choose_threshold(X, strange, label="green", recall=0.8).threshold_ == plain
    with pytest.raises(ValueError, match="y: expected labels seen in training but got 'pink'"):
        model.calibrate(X, strange)


def test_of_a_path(model: sf.TextClassifier, tmp_path: Path) -> None:
    path = tmp_path / "dev.csv"
    path.write_text("text,label\n" + "".join(f"{x},{y}\n" for x, y in zip(*DEV, strict=True)))
    from_path = copy.deepcopy(model).calibrate(path).choose_threshold(path, label="red", recall=0.9)
    model.calibrate(*DEV).choose_threshold(*DEV, label="red", recall=0.9)
    assert (from_path.temperature_, from_path.threshold_) == (model.temperature_, model.threshold_)


def test_series_with_labels_that_are_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 160)
    X = [rng.normal(size=(4, 1)) + label for label in y]
    model = sf.SeriesClassifier(hidden_size=4, epochs=2, verbose=False).fit(X[:80], y[:80])
    model.calibrate(X[80:], y[80:]).choose_threshold(X[80:], y[80:], label=np.int64(1), precision=0.8)
    assert model.threshold_ is not None
    assert type(model.threshold_.label) is int
    model.save(tmp_path)
    loaded = sf.SeriesClassifier.load(tmp_path)
    assert loaded.threshold_ == model.threshold_
    assert loaded.predict(X).tolist() == model.predict(X).tolist()


def test_saved_and_loaded_to_the_bit(model: sf.TextClassifier, tmp_path: Path) -> None:
    model.calibrate(*DEV).choose_threshold(*DEV, label="green", precision=0.9)
    model.save(tmp_path)
    loaded = sf.TextClassifier.load(tmp_path)
    assert (loaded.temperature_, loaded.threshold_) == (model.temperature_, model.threshold_)
    assert np.array_equal(loaded.predict_proba(TEST[0]), model.predict_proba(TEST[0]))
    assert loaded.predict(TEST[0]).tolist() == model.predict(TEST[0]).tolist()
    found, expected = (each.evaluate(*TEST).to_dict() for each in (loaded, model))
    assert found | {"about": None} == expected | {"about": None}  # which has the time
    card = (tmp_path / store.CARD).read_text()
    assert f"{model.temperature_:.4g}" in card
    assert "green" in card


def test_a_folder_from_before_there_was_calibration(model: sf.TextClassifier, tmp_path: Path) -> None:
    model.save(tmp_path)
    path = tmp_path / store.CONFIG
    config = json.loads(path.read_text())
    del config["temperature"], config["threshold"]
    path.write_text(json.dumps(config))
    loaded = sf.TextClassifier.load(tmp_path)
    assert (loaded.temperature_, loaded.threshold_) == (1.0, None)
    assert np.array_equal(loaded.predict_proba(TEST[0]), model.predict_proba(TEST[0]))


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("temperature", 0, "temperature: expected a number from 0.001 to 1000 but got 0"),
        ("temperature", float("inf"), "temperature: expected a number from 0.001 to 1000 but got inf"),
        ("temperature", float("nan"), "but got NaN, which no number in it can be"),
        ("temperature", "2", "temperature: expected a number from 0.001 to 1000 but got '2'"),
        ("temperature", None, "temperature: expected a number from 0.001 to 1000 but got None"),
        ("threshold", 0.5, "threshold: expected an object or null but got float"),
        ("threshold", {"label": "green"}, "missing 6 required positional arguments"),
        ("threshold", {"label": "pink"}, "threshold: expected one of the classes but got 'pink'"),
        ("threshold", {"label": ["green"]}, "classes: expected numbers, strings or tuples but got list"),
        ("threshold", {"value": 1.5}, "threshold: expected a value from 0 to 1 but got 1.5"),
        ("threshold", {"value": "high"}, "threshold: expected a value from 0 to 1 but got 'high'"),
        ("threshold", {"recall": float("inf")}, "threshold: expected a recall from 0 to 1 but got inf"),
        ("threshold", {"target": "f1"}, "threshold: expected a target of precision or recall but got 'f1'"),
        ("threshold", {"positives": 0}, "threshold: expected a number of positives but got 0"),
        ("threshold", {"more": 0}, "unexpected keyword argument 'more'"),
    ],
)
def test_spoiled_calibrations_are_refused(
    trained: sf.TextClassifier, tmp_path: Path, name: str, value: Any, sentence: str
) -> None:
    trained.save(tmp_path)
    path = tmp_path / store.CONFIG
    if isinstance(value, dict) and value != {"label": "green"}:
        value = DecisionThreshold("green", 0.5, "recall", 0.9, 0.5, 1.0, 40).to_json() | value
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(store.StoreError, match=re.escape(sentence)):
        sf.TextClassifier.load(tmp_path)


def test_a_label_that_is_a_tuple_comes_back() -> None:
    rule = DecisionThreshold(("a", 1), 0.5, "recall", 0.9, 0.5, 1.0, 40)
    assert DecisionThreshold.from_json(json.loads(json.dumps(rule.to_json())), [("a", 1), ("b", 2)]) == rule


def test_scikit_learn_sees_neither(model: sf.TextClassifier) -> None:
    parameters = model.get_params()
    model.calibrate(*DEV).choose_threshold(*DEV, label="green", recall=0.9)
    assert model.get_params() == parameters
    fresh = clone(model)
    assert not hasattr(fresh, "temperature_")
    model.set_params(epochs=1).fit(*corpus(0, 40))
    assert (model.temperature_, model.threshold_) == (1.0, None)


def test_calibrating_forgets_the_threshold(model: sf.TextClassifier) -> None:
    model.choose_threshold(*DEV, label="green", recall=0.9)
    with pytest.warns(UserWarning, match="calibrate: the threshold of 'green' is forgotten"):
        model.calibrate(*DEV)
    assert model.threshold_ is None


def test_training_data_are_no_held_out_data(model: sf.TextClassifier) -> None:
    seen = corpus(0, 300)
    with pytest.warns(UserWarning, match="calibrate: expected data that training has not seen, but 300 of 300"):
        model.calibrate(*seen)
    with pytest.warns(UserWarning, match="choose_threshold: expected data that training has not seen, but 300 of 300"):
        model.choose_threshold(*seen, label="green", recall=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.choose_threshold(*DEV, label="green", recall=0.9)


def test_few_positives(model: sf.TextClassifier) -> None:
    rows = [i for i, label in enumerate(DEV[1]) if label != "green"]
    rows += [i for i, label in enumerate(DEV[1]) if label == "green"][:29]
    X, y = [DEV[0][i] for i in rows], [DEV[1][i] for i in rows]
    with pytest.warns(UserWarning, match="expected 30 sequences of 'green' or more but got 29"):
        model.choose_threshold(X, y, label="green", recall=0.9)
    assert any("'green' was chosen on 29 examples of it" in warning for warning in model.evaluate(*TEST).warnings)
    model.choose_threshold(*DEV, label="green", recall=0.9)
    assert not any("was chosen on" in warning for warning in model.evaluate(*TEST).warnings)


def test_refused(model: sf.TextClassifier) -> None:
    for sentence, options in {
        "label: expected one of the classes but got 'pink'": {"label": "pink", "recall": 0.5},
        "precision, recall: expected one of them but got none": {"label": "green"},
        "precision, recall: expected one of them but got both": {"label": "green", "recall": 0.5, "precision": 0.5},
        "recall: expected a share above 0, at most 1, but got 2": {"label": "green", "recall": 2},
    }.items():
        with pytest.raises(ValueError, match=sentence):
            model.choose_threshold(*DEV, **options)
    with pytest.raises(ValueError, match="y: expected sequences of the label 'green' but got none"):
        model.choose_threshold(["x"], ["red"], label="green", recall=0.5)
    for method in (model.calibrate, lambda X, y: model.choose_threshold(X, y, label="green", recall=0.5)):
        with pytest.raises(ValueError, match="X: expected at least one sequence but got none"):
            method([], [])
    with pytest.raises(ValueError, match=re.escape("probabilities: expected shape (N, 3) but got (1, 2)")):
        model.decide(np.array([[0.5, 0.5]]))
    assert (model.temperature_, model.threshold_) == (1.0, None)


# -- what is shown


def test_report_before_and_after(model: sf.TextClassifier) -> None:
    model.calibrate(*DEV).choose_threshold(*DEV, label="green", precision=0.9)
    report = model.evaluate(*TEST)
    assert report.before is not None
    assert list(report.before) == [name for name, _, _ in report.summary()]
    lines = str(report).splitlines()
    assert any(re.fullmatch(r"calibration +before +after", line) for line in lines)
    (row,) = (line.split() for line in lines if line.startswith("log loss"))
    assert row[2:] == [f"{report.before['log loss']:.3f}", f"{report.log_loss:.3f}"]
    assert any(line.startswith("threshold: 'green' where its probability is at least 0.") for line in lines)
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["before_calibration"] == report.before
    assert found["threshold"]["label"] == "green"
    page = report.to_html()
    assert page.count("<small>before ") == len(report.before)
    assert f"<small>before {report.before['calibration error']:.3f}</small>" in page
    assert "Threshold: &#x27;green&#x27; where" in page


def test_report_of_a_model_that_is_not_calibrated(trained: sf.TextClassifier) -> None:
    report = trained.evaluate(*TEST)
    assert "before" not in str(report)
    assert report.to_dict()["before_calibration"] is report.to_dict()["threshold"] is None
    assert "before" not in report.to_html().lower().replace("before you trust", "")


def test_picture_before_and_after(model: sf.TextClassifier) -> None:
    plots = pytest.importorskip("seqcls_fast.toolkit.evaluation.plots")
    report = model.calibrate(*DEV).evaluate(*TEST)
    shares = model.fitted_.logits(TEST[0]).double().softmax(1).numpy()
    plain = evaluate_predictions(TEST[1], np.array(CLASSES)[shares.argmax(1)], shares, labels=CLASSES, bootstrap=0)
    upper, _ = plots.reliability(report).axes
    (points,) = (line for line in upper.lines if line.get_label() == "before calibration")
    bins = plain.bins()
    np.testing.assert_allclose(points.get_xdata(), bins.confidence[bins.counts > 0], rtol=1e-12)  # means of floats
    assert points.get_ydata().tolist() == bins.accuracy[bins.counts > 0].tolist()
    assert upper.get_title() == f"calibration error {report.bins().error:.3f}, before {bins.error:.3f}"
    assert not any(line.get_label() == "before calibration" for line in plots.reliability(plain).axes[0].lines)


def test_trace(model: sf.TextClassifier) -> None:
    model.calibrate(*DEV).choose_threshold(*DEV, label="green", precision=0.95)
    assert model.threshold_ is not None
    text = next(  # one whose likeliest class is not the one that the threshold decides
        text
        for text, shares in zip(TEST[0], model.predict_proba(TEST[0]), strict=True)
        if shares.argmax() == 1 and shares[1] < model.threshold_.value
    )
    found = model.trace(text)
    assert found.predicted == model.predict([text])[0] != "green"
    np.testing.assert_allclose(found.probabilities[-1].numpy(), model.predict_proba([text])[0], rtol=1e-6)
    softmax = found.stages[-1]
    np.testing.assert_allclose(softmax.values[0].numpy(), model.predict_proba([text])[0], rtol=1e-6)
    assert softmax.note == (
        f"of the logits / {model.temperature_:.4g}, the temperature; "
        f"green is predicted from {model.threshold_.value:.4g} on"
    )
    assert found.to_dict()["predicted"] == found.predicted
    assert f"P({found.predicted})" in str(found)


# -- the command


@pytest.fixture
def folder(trained: sf.TextClassifier, tmp_path: Path) -> Path:
    """A saved model beside a file that train left, with the data for it."""
    trained.save(tmp_path / "model")
    (tmp_path / "model" / store.COMMAND).write_text('{"command": "seqcls-fast train"}')
    for name, (texts, labels) in {"dev": DEV, "test": TEST, "train": corpus(0, 300)}.items():
        write_csv(tmp_path / f"{name}.csv", texts, labels)
    return tmp_path


def write_csv(path: Path, texts: list[str], labels: list[str]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("review", "stars"), *zip(texts, labels, strict=True)])


COLUMNS = ("--text", "review", "--label", "stars")


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    capsys.readouterr()
    assert __main__.main(arguments) == 0, capsys.readouterr().err
    captured = capsys.readouterr()
    return captured.out, captured.err


def undated(report: str) -> list[str]:
    return [line for line in report.splitlines() if not line.startswith("date: ")]


def test_command_round_trip(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved, dev = str(folder / "model"), str(folder / "dev.csv")
    before = json.loads((folder / "model" / store.CONFIG).read_text())
    out, err = told(capsys, "calibrate", saved, dev, *COLUMNS, "--for", "green", "--precision", "0.9")
    assert err == ""
    model = sf.TextClassifier.load(saved)
    expected = sf.TextClassifier.load(saved)
    expected.temperature_, expected.threshold_ = 1.0, None
    expected.calibrate(*DEV).choose_threshold(*DEV, label="green", precision=0.9)
    assert (model.temperature_, model.threshold_) == (expected.temperature_, expected.threshold_)
    assert out.startswith(f"240 texts: temperature {model.temperature_:.4g}, saved to {saved}\n")
    report = undated(str(model.evaluate(*DEV)))
    start = undated(out).index(report[0])
    assert undated(out)[start : start + len(report)] == report
    assert "These are the data that it was fitted to" in out
    after = json.loads((folder / "model" / store.CONFIG).read_text())
    assert {name for name in after if after[name] != before[name]} == {"temperature", "threshold"}
    assert json.loads((folder / "model" / store.COMMAND).read_text())["command"] == "seqcls-fast train"

    rows = list(csv.DictReader(io.StringIO(told(capsys, "predict", saved, str(folder / "test.csv"), *COLUMNS[:2])[0])))
    assert [row["label"] for row in rows] == model.predict(TEST[0]).tolist()
    shares = [[float(row[f"probability_{name}"]) for name in CLASSES] for row in rows]
    np.testing.assert_allclose(shares, model.predict_proba(TEST[0]), rtol=1e-5)
    report = json.loads(told(capsys, "evaluate", saved, str(folder / "test.csv"), *COLUMNS, "--json")[0])
    assert report | {"about": None} == json.loads(json.dumps(model.evaluate(*TEST).to_dict() | {"about": None}))
    traced = json.loads(told(capsys, "trace", saved, TEST[0][0], "--json")[0])
    np.testing.assert_allclose(traced["probabilities"][-1], model.predict_proba(TEST[0][:1])[0], rtol=1e-6)


def test_command_as_json_and_elsewhere(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved, dev, other = str(folder / "model"), str(folder / "dev.csv"), str(folder / "other")
    files = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
    answer = json.loads(told(capsys, "calibrate", saved, dev, *COLUMNS, "--out", other, "--json")[0])
    assert {path.name: path.read_bytes() for path in (folder / "model").iterdir()} == files
    model = sf.TextClassifier.load(other)
    assert answer["temperature"] == model.temperature_ > 1.5
    assert (answer["threshold"], answer["out"], answer["fitted_to"], answer["examples"]) == (None, other, dev, 240)
    report = model.evaluate(*DEV)
    assert answer["before"] == report.before
    assert answer["after"] == {name: value for name, value, _ in report.summary()}
    assert answer["after"]["log loss"] < answer["before"]["log loss"]
    assert (folder / "other" / store.COMMAND).exists()

    arguments = (
        other,
        str(folder / "test.csv"),
        *COLUMNS,
        "--for",
        "green",
        "--recall",
        "0.95",
        "--no-temperature",
        "--json",
    )
    again = json.loads(told(capsys, "calibrate", *arguments)[0])
    assert again["temperature"] == answer["temperature"]
    assert again["threshold"]["recall"] >= 0.95
    assert __main__.main(["calibrate", saved, dev, *COLUMNS, "--out", other]) == 1
    assert f"{other}: expected a new or empty directory" in capsys.readouterr().err


def test_command_warns_of_training_data(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = told(capsys, "calibrate", str(folder / "model"), str(folder / "train.csv"), *COLUMNS)
    assert err.startswith("warning: calibrate: expected data that training has not seen, but 300 of 300")
    assert "warning: 300 of 300" in out


def test_command_with_labels_that_are_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--for is a string; the labels of a JSONL file are numbers."""
    rng = np.random.default_rng(0)
    lines = [{"series": (rng.normal(size=(4, 1)) + k % 2).tolist(), "label": k % 2} for k in range(160)]
    for name, part in {"train": lines[:80], "dev": lines[80:]}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in part))
    rows = [np.array(line["series"]) for line in lines[:80]]
    model = sf.SeriesClassifier(hidden_size=4, epochs=2, verbose=False).fit(rows, [k % 2 for k in range(80)])
    model.save(tmp_path / "model")
    arguments = (str(tmp_path / "model"), str(tmp_path / "dev.jsonl"), "--for", "1", "--recall", "0.9", "--json")
    answer = json.loads(told(capsys, "calibrate", *arguments)[0])
    assert answer["threshold"]["label"] == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--precision 0.9", "--for: expected with --precision or --recall"),
        ("--for green", "--for: expected with --precision or --recall"),
        ("--no-temperature", "--no-temperature: expected with --for, or nothing is left to do"),
        ("--for green --precision 0.9 --recall 0.9", "not allowed with argument"),
        ("--for green --precision 90", "expected a share above 0, at most 1, but got '90'"),
        ("--for green --recall nan", "expected a share above 0, at most 1, but got 'nan'"),
        ("--for green --recall much", "expected a share above 0, at most 1, but got 'much'"),
    ],
)
def test_command_misused(capsys: pytest.CaptureFixture[str], options: str, sentence: str) -> None:
    with pytest.raises(SystemExit) as exit_info:
        __main__.main(["calibrate", "model", "dev.csv", *options.split()])
    assert exit_info.value.code == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


def test_command_that_fails_leaves_the_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turned = {"blue": "green", "green": "red", "red": "blue"}
    write_csv(folder / "turned.csv", DEV[0], [turned[label] for label in DEV[1]])
    files = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
    for name, more, sentence in (
        ("dev", ("--for", "pink", "--recall", "0.9"), "label: expected one of the classes but got 'pink'"),
        ("turned", ("--for", "green", "--precision", "1"), "precision: expected one that some threshold reaches"),
        ("dev", ("--label", "none"), "none"),
        ("nowhere", (), "nowhere.csv"),
    ):
        assert __main__.main(["calibrate", str(folder / "model"), str(folder / f"{name}.csv"), *COLUMNS, *more]) == 1
        err = capsys.readouterr().err
        assert sentence in err
        assert "Traceback" not in err
    assert {path.name: path.read_bytes() for path in (folder / "model").iterdir()} == files


@pytest.mark.skipif(_ext.C is None, reason="exporting needs the compiled extension")
def test_export_says_what_to_divide_by(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved, file = str(folder / "model"), str(folder / "m.pt2")
    answer = json.loads(told(capsys, "export", saved, "--to", file, "--json")[0])
    assert not {"temperature", "threshold"} & answer.keys()
    told(capsys, "calibrate", saved, str(folder / "dev.csv"), *COLUMNS, "--for", "green", "--recall", "0.9")
    model = sf.TextClassifier.load(saved)
    answer = json.loads(told(capsys, "export", saved, "--to", file, "--json")[0])
    assert answer["temperature"] == model.temperature_
    assert model.threshold_ is not None
    assert answer["threshold"] == model.threshold_.to_json()
    x, lengths, wide = model.encoder_.encode(TEST[0][:3]).inputs([0, 1, 2])
    logits = torch.export.load(file).module()(x, lengths, wide=(wide[0].long(), wide[1])).detach().double()
    shares = (logits / answer["temperature"]).softmax(1).numpy()
    np.testing.assert_allclose(shares, model.predict_proba(TEST[0][:3]), atol=1e-6)

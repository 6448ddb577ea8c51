"""evaluate_predictions against scikit-learn and numbers computed by hand, its warnings, its page.

scikit-learn is the oracle of every metric it has; the calibration error is checked against a plain loop over the
examples. The intervals have tests of their own in test_intervals.py.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

np = pytest.importorskip("numpy")
sklearn = pytest.importorskip("sklearn")
metrics = pytest.importorskip("sklearn.metrics")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from seqcls_fast.toolkit.evaluation.evaluate import evaluate_predictions  # noqa: E402


def problem(seed: int, count: int, classes: int, skill: float = 1.0, ties: bool = False) -> tuple[Any, Any, Any]:
    """True classes, predicted ones and probabilities of a model that is right more often the higher ``skill``."""
    rng = np.random.default_rng(seed)
    true = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes))
    logits[np.arange(count), true] += skill
    proba = np.exp(np.round(logits) if ties else logits)
    proba /= proba.sum(1, keepdims=True)
    return true, proba.argmax(1), proba


def counts(**cells: int) -> tuple[list[str], list[str]]:
    """Labels for cells such as ``ab=3``: three examples of class a predicted as b."""
    return [k[0] for k, n in cells.items() for _ in range(n)], [k[1] for k, n in cells.items() for _ in range(n)]


def warned(report: Any, *words: str) -> list[str]:
    return [warning for warning in report.warnings if all(word in warning for word in words)]


HEALTHY = counts(aa=450, ab=50, bb=460, ba=40)


# -- metrics


def test_by_hand() -> None:
    report = evaluate_predictions([1] * 45 + [0] * 55, [1] * 40 + [0] * 5 + [1] * 10 + [0] * 45)
    positive = report.per_class[1]
    assert (positive.precision, positive.support) == (0.8, 45)
    assert positive.recall == pytest.approx(40 / 45)
    assert positive.f1 == pytest.approx(80 / 95)
    assert report.accuracy == 0.85
    assert report.balanced_accuracy == pytest.approx((40 / 45 + 45 / 55) / 2)
    assert report.confusion.tolist() == [[45, 10], [5, 40]]
    assert report.roc_auc is report.pr_auc is report.log_loss is report.brier is None
    assert report.expected_calibration_error is None
    assert report.warnings == []


def test_probabilities_by_hand() -> None:
    proba = [[0.9, 0.1], [0.6, 0.4], [0.4, 0.6], [0.3, 0.7]]
    report = evaluate_predictions(["n", "p", "n", "p"], ["n", "n", "p", "p"], proba)
    assert report.roc_auc == 3 / 4  # of the pairs 0.4, 0.7 against 0.1, 0.6 three are in order
    assert report.pr_auc == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert report.log_loss == pytest.approx(-np.log([0.9, 0.4, 0.4, 0.7]).mean())
    assert report.brier == pytest.approx((0.1**2 + 0.6**2 + 0.6**2 + 0.3**2) / 4)
    # 0.9 right alone in its bin; two of 0.6 in (0.533, 0.6], both wrong; 0.7 right alone
    assert report.expected_calibration_error == pytest.approx((0.1 + 0.6 * 2 + 0.3) / 4)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 200),
    classes=st.integers(2, 6),
    ties=st.booleans(),
    skill=st.floats(0, 4),
)
def test_scikit_learn(seed: int, count: int, classes: int, ties: bool, skill: float) -> None:
    true, pred, proba = problem(seed, count, classes, skill, ties)
    report = evaluate_predictions(true, pred, proba, labels=range(classes), bootstrap=0)
    assert report.confusion.tolist() == metrics.confusion_matrix(true, pred, labels=range(classes)).tolist()
    assert report.accuracy == pytest.approx(metrics.accuracy_score(true, pred))
    recalls = metrics.recall_score(true, pred, average=None, labels=np.unique(true), zero_division=0)
    assert report.balanced_accuracy == pytest.approx(recalls.mean())
    for average in ("macro", "micro", "weighted"):
        expected = metrics.precision_recall_fscore_support(true, pred, average=average, zero_division=0)
        scores = getattr(report, average)
        assert (scores.precision, scores.recall, scores.f1) == pytest.approx(expected[:3])
    expected = metrics.precision_recall_fscore_support(true, pred, labels=range(classes), zero_division=0)
    for k, scores in report.per_class.items():
        assert [scores.precision, scores.recall, scores.f1, scores.support] == pytest.approx([e[k] for e in expected])
    assert report.log_loss == pytest.approx(metrics.log_loss(true, proba, labels=range(classes)))
    hot = np.eye(classes)[true]
    assert report.brier == pytest.approx(((proba - hot) ** 2).sum(1).mean() / (2 if classes == 2 else 1))
    present = np.unique(true)
    if len(present) == 1:
        assert report.roc_auc is report.pr_auc is None
        return
    columns = [1] if classes == 2 else present
    areas = [metrics.roc_auc_score(true == k, proba[:, k]) for k in columns]
    assert report.roc_auc == pytest.approx(np.mean(areas))
    precisions = [metrics.average_precision_score(true == k, proba[:, k]) for k in columns]
    assert report.pr_auc == pytest.approx(np.mean(precisions))


@pytest.mark.parametrize("classes", [2, 4])
def test_scikit_learn_at_one_call(classes: int) -> None:
    """The averages over classes are scikit-learn's own, not just its scores per class averaged by us."""
    true, pred, proba = problem(0, 300, classes)
    report = evaluate_predictions(true, pred, proba, bootstrap=0)
    scores = proba[:, 1] if classes == 2 else proba
    assert report.roc_auc == pytest.approx(metrics.roc_auc_score(true, scores, multi_class="ovr", average="macro"))
    hot = (true == 1) if classes == 2 else np.eye(classes)[true]
    assert report.pr_auc == pytest.approx(metrics.average_precision_score(hot, scores, average="macro"))
    assert report.balanced_accuracy == pytest.approx(metrics.balanced_accuracy_score(true, pred))
    if classes == 2 or tuple(map(int, sklearn.__version__.split(".")[:2])) >= (1, 7):  # before, for two classes alone
        assert report.brier == pytest.approx(metrics.brier_score_loss(true, scores))


def test_calibration_error_by_a_loop() -> None:
    true, pred, proba = problem(3, 500, 3)
    total = 0.0
    for k in range(15):
        rows = [i for i in range(500) if k / 15 < proba[i].max() <= (k + 1) / 15]
        if rows:
            right = sum(pred[i] == true[i] for i in rows) / len(rows)
            total += len(rows) / 500 * abs(right - sum(proba[i].max() for i in rows) / len(rows))
    assert evaluate_predictions(true, pred, proba).expected_calibration_error == pytest.approx(total)


def test_sure_and_right_is_calibrated() -> None:
    assert evaluate_predictions([0, 1], [0, 1], [[1, 0], [0, 1]]).expected_calibration_error == 0


def test_bins_hold_their_upper_end() -> None:
    report = evaluate_predictions([1, 0], [0, 0], [[0.6, 0.4], [0.62, 0.38]])  # (0.533, 0.6] and (0.6, 0.667]
    assert report.expected_calibration_error == pytest.approx((0.6 + 0.38) / 2)


def test_certain_and_wrong_is_finite() -> None:
    report = evaluate_predictions([0, 1], [1, 1], [[0, 1], [0, 1]])
    assert report.log_loss == pytest.approx(metrics.log_loss([0, 1], np.array([[0.0, 1.0], [0.0, 1.0]])))


# -- labels of any kind


@pytest.mark.parametrize(
    ("true", "pred", "names"),
    [
        (["b", "a", "b"], ("b", "b", "b"), ["a", "b"]),
        (np.array([2, 1, 2]), [2, 2, 1], ["1", "2"]),
        (torch.tensor([2, 1, 2]), np.array([2, 2, 1]), ["1", "2"]),
        ([True, False], [1, 0], ["False", "True"]),
        ([("x", 1), ("x", 2)], [("x", 1), ("x", 1)], ["('x', 1)", "('x', 2)"]),
        ([None, "a", 3], [None, "a", "a"], ["None", "3", "a"]),
        (np.array(["é", "中"]), ["é", "é"], ["é", "中"]),
        ([1, "1"], [1, 1], ["1", "'1'"]),
    ],
)
def test_kinds_of_labels(true: Any, pred: Any, names: list[str]) -> None:
    report = evaluate_predictions(true, pred)
    assert sorted(report.names) == sorted(names)
    assert json.loads(json.dumps(report.to_dict()))["per_class"].keys() == set(names)
    assert str(report)


def test_columns_follow_labels() -> None:
    true, pred, proba = problem(0, 100, 3)
    words = ["z", "x", "y"]  # not sorted: column 0 is z
    report = evaluate_predictions([words[k] for k in true], [words[k] for k in pred], proba, labels=words)
    assert report.labels == words
    assert report.log_loss == pytest.approx(metrics.log_loss(true, proba))


def test_label_unknown_to_the_model() -> None:
    true, pred, proba = problem(0, 300, 2)
    words = [["a", "b"][k] for k in true]
    words[:30] = ["new"] * 30
    report = evaluate_predictions(words, [["a", "b"][k] for k in pred], proba, labels=["a", "b"])
    assert report.labels == ["a", "b", "new"]
    assert report.per_class["new"].support == 30
    assert report.per_class["new"].recall == 0
    assert report.accuracy == np.mean([w == ["a", "b"][k] for w, k in zip(words, pred, strict=True)])
    of_true = np.where(np.arange(300) < 30, 0, proba[np.arange(300), true])
    assert report.log_loss == pytest.approx(-np.log(np.maximum(of_true, np.finfo(float).eps)).mean())
    assert report.brier == pytest.approx(((proba**2).sum(1) - of_true**2 + (1 - of_true) ** 2).mean())
    assert len(warned(report, "recall", "not among the labels", "'new' (30 examples)")) == 1
    assert not warned(report, "never predicted")  # another warning says so already
    assert not warned(evaluate_predictions(*HEALTHY, labels=["a", "b"]), "not among")


def test_class_without_examples_is_left_out_of_averages() -> None:
    true, pred = counts(aa=50, bb=40, ba=10)
    report = evaluate_predictions(true, pred, labels=["a", "b", "c"])
    without = evaluate_predictions(true, pred)
    assert (report.macro, report.intervals) == (without.macro, without.intervals)
    assert report.per_class["c"].support == 0
    assert report.warnings == []


# -- warnings


def test_healthy_report_has_no_warnings() -> None:
    assert evaluate_predictions(*HEALTHY, train_accuracy=0.95).warnings == []
    assert evaluate_predictions(*problem(0, 400, 4, skill=3)).warnings == []


def test_accuracy_hides_recall() -> None:
    report = evaluate_predictions(*counts(aa=977, bb=3, ba=22, ab=0))
    assert (report.accuracy, report.per_class["b"].recall) == (pytest.approx(0.978, abs=1e-3), 0.12)
    assert len(warned(report, "accuracy is 97.8 %", "recall", "'b' 12.0 % (3 of 25 found)")) == 1
    assert not warned(evaluate_predictions(*counts(aa=950, bb=40, ba=10)), "recall is far lower")


def test_recall_of_the_largest_class_is_no_minority() -> None:
    report = evaluate_predictions(*counts(aa=200, ab=100, ac=100, bb=300, cc=300))
    assert report.per_class["a"].recall == 0.5
    assert not warned(report, "minority")


def test_many_missed_classes_are_one_warning() -> None:
    true = ["big"] * 900 + [f"c{k}" for k in range(9) for _ in range(30)]
    pred = ["big"] * 900 + [f"c{k}" for k in range(9) for _ in range(3)] + ["big"] * 243
    found = warned(evaluate_predictions(true, pred), "far lower on minority classes")
    assert len(found) == 1
    assert found[0].endswith("and 4 more")


def test_no_better_than_the_majority() -> None:
    assert warned(
        evaluate_predictions(*counts(aa=700, bb=50, ba=200, ab=50)), "accuracy", "no better", "'a' gives 75.0"
    )
    close = evaluate_predictions(*counts(aa=75, ab=0, bb=3, ba=22))  # 78 of 100, and the majority class gives 75
    assert warned(close, "accuracy", "not clearly better")
    assert not warned(evaluate_predictions(*HEALTHY), "majority")
    few = counts(aa=75, bb=3, ba=22)
    assert not warned(evaluate_predictions(*few, bootstrap=0), "majority")  # accuracy itself is compared then


def test_overfitting() -> None:
    assert not warned(evaluate_predictions(*HEALTHY, train_accuracy=1.0), "overfitting")  # 1.0 against 0.91 is usual
    report = evaluate_predictions(*counts(aa=350, ab=150, bb=350, ba=150), train_accuracy=0.99)
    assert len(warned(report, "accuracy", "99.0 %", "70.0 %", "overfitting")) == 1
    tiny = evaluate_predictions(*counts(aa=4, ab=1, bb=4, ba=1), train_accuracy=0.94)
    assert not warned(tiny, "overfitting")  # the interval of 0.8 on 10 examples reaches 0.943


def test_duplicates() -> None:
    true, pred = counts(aa=2, bb=2)
    # the second in full-width letters and with the one sign TEL, which has no lower case of its own
    train = ["Hello world", "\uff26\uff35\uff2c\uff2c width \u2121", "other"]
    report = evaluate_predictions(
        true, pred, train_texts=train, test_texts=["Hello world", "hello\t WORLD ", "full width tel", "new"]
    )
    assert len(warned(report, "1 of 4", "are duplicates", "accuracy", "leakage")) == 1
    assert len(warned(report, "2 of 4", "near-duplicates", "accuracy", "leakage")) == 1
    clean = evaluate_predictions(true, pred, train_texts=train, test_texts=["", "b", "c", "d"])
    assert not warned(clean, "duplicates")
    assert not warned(evaluate_predictions(true, pred, train_texts=["", "x"], test_texts=["", "b", "c", "d"]), "dupl")


def test_duplicate_series() -> None:
    true, pred = counts(aa=2, bb=2)
    train = [np.arange(6, dtype=np.float32).reshape(3, 2), np.zeros(3)]
    test = [np.arange(6.0).reshape(3, 2), np.arange(6.0).reshape(2, 3), torch.tensor([-0.0, 0.0, 0.0]), [1.0, 2.0, 3.0]]
    report = evaluate_predictions(true, pred, train_texts=train, test_texts=test)
    assert len(warned(report, "2 of 4", "are duplicates")) == 1
    assert not warned(report, "near-duplicates")


def test_never_predicted() -> None:
    report = evaluate_predictions(*counts(aa=60, bb=40, ca=30))
    assert len(warned(report, "never predicted: 'c'", "recall", "precision")) == 1
    assert not warned(evaluate_predictions(*HEALTHY), "never predicted")


def test_undefined_recall() -> None:
    report = evaluate_predictions(*counts(aa=50, bb=45, ac=5))
    assert len(warned(report, "recall is undefined", "'c'")) == 1
    assert not warned(evaluate_predictions(*HEALTHY), "undefined")


def test_too_few_examples() -> None:
    assert warned(evaluate_predictions(*counts(aa=500, bb=29)), "too few", "averages over classes", "'b' (29)")
    assert not warned(evaluate_predictions(*counts(aa=500, bb=30)), "too few")


def test_single_class() -> None:
    report = evaluate_predictions(["a"] * 40, ["a"] * 40, [[0.9, 0.1]] * 40, labels=["a", "b"])
    assert report.roc_auc is report.pr_auc is None
    assert len(warned(report, "single class", "roc_auc", "'a'")) == 1
    assert not warned(report, "majority")
    assert json.dumps(report.to_dict())
    assert not warned(evaluate_predictions(*HEALTHY), "single class")


def test_columns_in_the_wrong_order() -> None:
    true, pred, proba = problem(0, 300, 2, skill=2)
    assert warned(evaluate_predictions(true, pred, proba[:, ::-1]), "columns of proba", "roc_auc")
    assert not warned(evaluate_predictions(true, pred, proba), "columns")


def test_labels_of_two_types() -> None:
    assert warned(evaluate_predictions([1, 2], ["1", "2"]), "accuracy", "different types")
    assert not warned(evaluate_predictions([1, 2], [1, 2]), "types")


def test_almost_all_is_not_all() -> None:
    report = evaluate_predictions(["a"] * 9999 + ["b"], ["a"] * 10000)
    assert warned(report, "accuracy is 99.9 %")
    assert not warned(report, "100.0 %")


# -- bad input


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        (([], []), ValueError, "y_true: expected at least one label but got none"),
        ((["a"], ["a", "b"]), ValueError, "y_pred: expected 1 labels, as many as y_true, but got 2"),
        (("abc", "abc"), TypeError, "y_true: expected a list of labels but got a str"),
        ((3, [1]), TypeError, "y_true: expected a list of labels but got int"),
        (([1], np.array(1)), TypeError, "y_pred: expected a list of labels but got ndarray"),
        (([1], [[1]]), TypeError, "y_pred: expected hashable labels but got list at index 0"),
        (([1.0, float("nan")], [1, 1]), ValueError, "y_true: expected labels but got nan at index 1"),
        (([0, 1], [0, 1], [[0.5, 0.5]]), ValueError, r"proba: expected shape (2, 2) but got (1, 2)"),
        (([0, 1], [0, 1], [0.5, 0.5]), ValueError, r"proba: expected shape (2, 2) but got (2,)"),
        (([0, 1], [0, 1], [[0.2, 0.3, 0.5]] * 2), ValueError, "proba: expected 2 columns, one per label, but got 3"),
        (([0, 1], [0, 1], [[0.5, 0.5], [np.nan, 1]]), ValueError, "proba: expected finite numbers but got [nan  1.]"),
        (([0, 1], [0, 1], [[0.5, 0.5], [-0.1, 1.1]]), ValueError, "proba: expected no negative number but got [-0.1"),
        (
            ([0, 1], [0, 1], [[0.5, 0.5], [0.5, 0.4]]),
            ValueError,
            "expected rows that sum to 1 but got [0.5 0.4] (sum 0.9",
        ),
        (([0, 1], [0, 1], [[0.5, 0.5], [1]]), ValueError, "proba: expected numbers of shape (2, 2) but got list"),
        ((range(5000), range(5000)), ValueError, "expected at most 4096 classes but got 5000"),
    ],
)
def test_bad_input(arguments: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=re.escape(sentence)):
        evaluate_predictions(*arguments)


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"labels": ["a"]}, ValueError, "y_pred: expected one of the 1 labels but got 'b'"),
        ({"labels": ["a", "b", "a"]}, ValueError, "labels: expected each label once but got 'a' again"),
        ({"bootstrap": -1}, ValueError, "bootstrap: expected 0 or more resamples but got -1"),
        ({"confidence": 1}, ValueError, "confidence: expected a number between 0 and 1 but got 1"),
        ({"train_accuracy": 99}, ValueError, "train_accuracy: expected a number from 0 to 1 but got 99"),
        ({"train_texts": ["a"]}, ValueError, "train_texts, test_texts: expected both or neither"),
        (
            {"train_texts": [], "test_texts": ["x"]},
            ValueError,
            "test_texts: expected 2 inputs, as many as y_true, but got 1",
        ),
        ({"train_texts": [["x"]], "test_texts": ["x", "y"]}, TypeError, "train_texts: expected strings or arrays"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=re.escape(sentence)):
        evaluate_predictions(["a", "b"], ["a", "b"], **options)


def test_rows_may_be_off_by_a_rounding() -> None:
    evaluate_predictions([0, 1], [0, 1], [[0.5, 0.5009], [0.5, 0.4991]])
    evaluate_predictions([0, 1], [0, 1], torch.tensor([[0.5, 0.5], [0.25, 0.75]], requires_grad=True))


# -- as a dict, as text, as a page


def test_to_dict() -> None:
    report = evaluate_predictions(*problem(0, 100, 3))
    found = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert found["accuracy"] == report.accuracy
    assert found["per_class"]["2"] == {
        "precision": report.per_class[2].precision,
        "recall": report.per_class[2].recall,
        "f1": report.per_class[2].f1,
        "support": report.per_class[2].support,
        "intervals": {name: list(interval) for name, interval in report.per_class[2].intervals.items()},
    }
    assert found["macro"]["f1"] == report.macro.f1
    assert sum(map(sum, found["confusion_matrix"])) == found["examples"] == 100
    for name in ("roc_auc", "pr_auc", "log_loss", "brier", "expected_calibration_error", "balanced_accuracy"):
        assert found[name] == getattr(report, name)
    assert found["intervals"]["macro_f1"] == list(report.intervals["macro_f1"])
    assert found["interval_methods"].keys() == {*found["intervals"], *found["per_class"]["2"]["intervals"]}
    assert evaluate_predictions([1], [1], bootstrap=0).to_dict()["interval_methods"] == {}


def test_table_is_aligned() -> None:
    report = evaluate_predictions(["spam", "中文", "a\nb", ""] * 10, ["spam", "中文", "a\nb", "spam"] * 10)
    lines = str(report).splitlines()
    rows = [line for line in lines[:9] if line]
    # a wide character takes two columns of a terminal
    assert {len(line) + sum(c in "中文" for c in line) for line in rows} == {len(rows[0])}
    assert [line.split()[0] for line in rows[1:5]] == ["''", r"a\nb", "spam", "中文"]
    assert any(line.startswith("warning: ") for line in lines)


class Page(HTMLParser):
    """The references of a page, its visible text, and its unclosed tags."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.handle_attributes(attrs)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.handle_attributes(attrs)

    def handle_attributes(self, attrs: Any) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href"):
                self.references.append(value)
            self.references += re.findall(r"url\(([^)]*)\)", value or "")
            if name == "id":
                self.ids.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page() -> None:
    pytest.importorskip("matplotlib")
    words = ["<script>alert(1)</script>", "中文", 'a"b&c']
    true, pred, proba = problem(0, 200, 3)
    report = evaluate_predictions([words[k] for k in true], [words[k] for k in pred], proba, labels=words)
    history = [
        {"epoch": 1, "loss": 1.0, "val_loss": 1.1, "val_accuracy": 0.5},
        {"epoch": 2, "loss": 0.5, "val_loss": 0.9},
    ]
    text = report.to_html(history=history, lengths=[3, 4, 5])
    page = Page(text)
    assert page.open == []
    assert page.tags.count("svg") == 6  # confusion, reliability, ROC, PR, learning curves, lengths
    assert page.tags.count("script") == 0
    assert all(word in page.text for word in words)  # in the table and the pictures, whose text is text
    assert f"{report.accuracy:.3f}" in page.text
    assert page.references
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert len(page.ids) == len(set(page.ids))
    assert {reference[1:] for reference in page.references if reference[0] == "#"} <= set(page.ids)
    assert "@import" not in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_page_without_probabilities() -> None:
    pytest.importorskip("matplotlib")
    report = evaluate_predictions(*counts(aa=977, bb=3, ba=22), bootstrap=0)
    page = Page(report.to_html())
    assert page.tags.count("svg") == 1
    assert all(warning in page.text for warning in report.warnings)
    assert "trust" not in Page(evaluate_predictions(*HEALTHY).to_html()).text


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(("dark", "back"), [(False, 255), (True, 19)])
def test_page_in_a_browser(tmp_path: Path, dark: bool, back: int) -> None:
    """On a screen as narrow as a phone's everything fits, and the colours follow the reader's scheme."""
    image = pytest.importorskip("matplotlib.image")
    words = ["<b>short</b>", "a_label_that_is_long_and_has_no_space_anywhere", "c"]
    true, pred, proba = problem(0, 40, 3)
    report = evaluate_predictions([words[k] for k in true], [words[k] for k in pred], proba, labels=words)
    (tmp_path / "page.html").write_text(report.to_html(), encoding="utf-8")
    frame = '<body style="margin:0"><iframe src="page.html" style="width:390px;height:2400px;border:0"></iframe></body>'
    (tmp_path / "phone.html").write_text(frame)
    assert BROWSER is not None
    subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=600,2400",
         f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={0 if dark else 1}",
         f"--screenshot={tmp_path / 'page.png'}", (tmp_path / "phone.html").as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    pixels = np.round(image.imread(tmp_path / "page.png")[:, :390, :3] * 255).astype(int)
    assert (pixels[:, :12, 0] == back).all()
    assert (pixels[:, -12:, 0] == back).all()
    assert (pixels[:, :, 0] != back).any(1).mean() > 0.4  # rows of the screen with something on them
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200

"""``evaluate_predictions``: checks labels and probabilities, and computes every number of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .._terminal import kind_of, shown
from ..data.columns import items, missing
from ..data.leakage import Fingerprints, fingerprints, leaks
from .beside import beside
from .findings import findings
from .intervals import Intervals, intervals
from .metrics import (
    ClassScores,
    Floats,
    Scores,
    average_precision,
    averages,
    operating_points,
    roc_auc,
    scores_by_class,
)
from .mistakes import mistakes
from .report import Report

if TYPE_CHECKING:
    from .decision import DecisionThreshold

__all__ = ["evaluate_predictions"]

MOST = 4096  # classes, because the confusion matrix is dense


def evaluate_predictions(
    y_true: Iterable[Hashable],
    y_pred: Iterable[Hashable],
    proba: Any = None,
    *,
    labels: Iterable[Hashable] | None = None,
    train_accuracy: float | None = None,
    train_texts: Sequence[Any] | Fingerprints | None = None,
    test_texts: Sequence[Any] | None = None,
    uncalibrated: Any = None,
    rule: DecisionThreshold | None = None,
    baseline: Iterable[Hashable] | None = None,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Report:
    r"""Scores predictions, and warns in ``report.warnings`` where a good number hides a bad model.

    Args:
        y_true, y_pred: true and predicted labels of any hashable kind.
        proba: :math:`(N, K)` probabilities, columns in the order of ``labels``. Default: ``None``, and no ROC-AUC,
            PR-AUC, log loss, Brier score or calibration error.
        labels: the classes the model knows. Default: those in ``y_true`` and ``y_pred``, sorted. Others in ``y_true``
            are classes of their own that were never predicted, with probability 0.
        train_accuracy: accuracy on the training data, to warn of overfitting.
        train_texts, test_texts: the inputs (strings, or arrays for series), to warn of test data seen in training. For
            the training data their ``fingerprints`` are enough. Those of the test data are shown with errors.
        uncalibrated: the probabilities before calibration, whose numbers become ``report.before``.
        rule: the threshold that decided ``y_pred``. Default: ``None``, the likeliest class was predicted.
        baseline: the labels that a simple model predicts, to say in ``report.baseline`` how much this one adds to it.
        bootstrap: the number of resamples for the intervals of balanced accuracy and macro F1; 0 for no intervals.
        confidence: the probability with which an interval holds the value that ever more such examples would show.
        seed: the seed of the resampling.

    Precision, recall and F1 are 0 where undefined. Macro averages leave out classes that are neither in ``y_true`` nor
    in ``y_pred``. With two classes the second is the positive one, with more the AUCs are one-vs-rest averages over the
    classes in ``y_true``. The Brier score of two classes lies within [0, 1], that of more within [0, 2]. Intervals of
    accuracy and of a class's scores are Wilson's, others come from the bootstrap and reach at least as far as those of
    the classes added up, so that no interval is a point where no error was seen.

    Examples::

        >>> from seqcls_fast.toolkit.evaluation.evaluate import evaluate_predictions
        >>> report = evaluate_predictions(["ham"] * 980 + ["spam"] * 20, ["ham"] * 997 + ["spam"] * 3)
        >>> report.accuracy, report.per_class["spam"].recall
        (0.983, 0.15)
        >>> print(report.warnings[0])
        accuracy is 98.3 % but recall is far lower on a minority class: 'spam' 15.0 % (3 of 20 found)
    """
    true, pred = _as_list(y_true, "y_true"), _as_list(y_pred, "y_pred")
    if not true:
        raise ValueError("y_true: expected at least one label but got none")
    if len(true) != len(pred):
        raise ValueError(f"y_pred: expected {len(true)} labels, as many as y_true, but got {len(pred)}")
    if bootstrap < 0:
        raise ValueError(f"bootstrap: expected 0 or more resamples but got {shown(bootstrap)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number between 0 and 1 but got {shown(confidence)}")
    if train_accuracy is not None and not 0 <= train_accuracy <= 1:
        raise ValueError(f"train_accuracy: expected a number from 0 to 1 but got {shown(train_accuracy)}")
    if (train_texts is None) != (test_texts is None):
        raise ValueError("train_texts, test_texts: expected both or neither but got one of them")
    if test_texts is not None:
        test_texts = list(items(test_texts, "test_texts", "a list of texts or series"))
        if len(test_texts) != len(true):
            raise ValueError(f"test_texts: expected {len(true)} inputs, as many as y_true, but got {len(test_texts)}")

    if uncalibrated is not None and proba is None:
        raise ValueError("uncalibrated: expected with proba but got it alone")

    known = _sorted(true + pred) if labels is None else _as_list(labels, "labels")
    twice = [label for label, times in Counter(known).items() if times > 1]
    if twice:
        raise ValueError(f"labels: expected each label once but got {shown(twice[0])} again")
    strange = set(pred).difference(known)
    if strange:
        raise ValueError(f"y_pred: expected one of the {len(known)} labels but got {shown(_sorted(strange)[0])}")
    others = None if baseline is None else _as_list(baseline, "baseline")
    if others is not None and len(others) != len(true):
        raise ValueError(f"baseline: expected {len(true)} labels, as many as y_true, but got {len(others)}")
    strange = set(others or ()).difference(known)
    if strange:
        raise ValueError(f"baseline: expected one of the {len(known)} labels but got {shown(_sorted(strange)[0])}")
    probabilities = None if proba is None else _check_proba(proba, len(true), len(known))
    raw = None if uncalibrated is None else _check_proba(uncalibrated, len(true), len(known), "uncalibrated")
    classes = known + _sorted(set(true).difference(known))
    K = len(classes)
    if K > MOST:
        raise ValueError(f"y_true, y_pred: expected at most {MOST} classes but got {K}; are they numbers, not classes?")
    index = {label: k for k, label in enumerate(classes)}
    true_ids = np.array([index[label] for label in true], np.int64)
    pred_ids = np.array([index[label] for label in pred], np.int64)
    if probabilities is not None:
        probabilities = np.pad(probabilities, ((0, 0), (0, len(classes) - len(known))))

    confusion = np.bincount(true_ids * K + pred_ids, minlength=K * K).reshape(K, K)
    hits, support, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    precision, recall, f1 = scores_by_class(hits, support, predicted)
    overall = averages(hits, support, predicted)
    found = intervals(confusion, bootstrap, confidence, seed) if bootstrap else Intervals({}, [{}] * K)
    per_class = [
        ClassScores(float(precision[k]), float(recall[k]), float(f1[k]), int(support[k]), found.by_class[k])
        for k in range(K)
    ]
    report = Report(
        labels=classes,
        names=_names(classes),
        confusion=confusion,
        per_class=dict(zip(classes, per_class, strict=True)),
        macro=Scores(
            *(float(score.sum() / np.count_nonzero(support + predicted)) for score in (precision, recall, f1))
        ),
        micro=Scores(*[float(overall["accuracy"])] * 3),  # with one label each, all three are the accuracy
        weighted=Scores(*(float((score * support).sum() / len(true)) for score in (precision, recall, f1))),
        accuracy=float(overall["accuracy"]),
        balanced_accuracy=float(overall["balanced_accuracy"]),
        intervals=found.overall,
        confidence=confidence,
        rule=rule,
        true_ids=true_ids,
        proba=probabilities,
    )
    if probabilities is not None:
        _score_proba(report, probabilities)
    if raw is not None:
        before = evaluate_predictions(true, [known[k] for k in raw.argmax(1)], raw, labels=known, bootstrap=0)
        report.before = {name: value for name, value, _ in before.summary()}
        report.before_bins = before.bins()
    if others is not None:
        other_ids = np.array([index[label] for label in others], np.int64)
        report.baseline = beside(true_ids, pred_ids, other_ids, K, bootstrap, confidence, seed)
    if train_texts is not None and test_texts is not None:
        if not isinstance(train_texts, Fingerprints):
            train_texts = fingerprints(train_texts, "train_texts")
        report.warnings += leaks(train_texts, test_texts)
    report.warnings += findings(report, len(known), train_accuracy, pred_ids)
    report.errors, report.confused = mistakes(report.names, confusion, true_ids, pred_ids, probabilities, test_texts)
    return report


def _score_proba(report: Report, proba: Floats) -> None:
    points = (operating_points(positive, scores) for _, positive, scores in report.one_vs_rest())
    areas = [(roc_auc(true, false), average_precision(true, false)) for true, false in points]
    if areas:
        report.roc_auc, report.pr_auc = (float(area) for area in np.mean(areas, axis=0))
    of_true = proba[np.arange(len(proba)), report.true_ids]
    report.log_loss = float(-np.mean(np.log(np.clip(of_true, np.finfo(np.float64).eps, 1))))
    squares = (proba**2).sum(1) - of_true**2 + (1 - of_true) ** 2
    report.brier = float(np.mean(squares) / (2 if len(report.labels) == 2 else 1))
    report.expected_calibration_error = report.bins().error


def _as_list(values: Any, name: str) -> list[Any]:
    """Labels as Python objects, so that numbers of numpy and torch hash like the Python numbers they equal."""
    values = items(values, name, "a list of labels")
    found: list[Any] = values.tolist() if hasattr(values, "tolist") else list(values)
    for k, label in enumerate(found):
        if type(label) is str:
            continue
        try:
            hash(label)
        except TypeError:
            raise TypeError(f"{name}: expected hashable labels but got {kind_of(label)} at index {k}") from None
        if label is not None and missing(label):
            raise ValueError(f"{name}: expected labels but got {shown(label)} at index {k}")
    return found


def _sorted(labels: Iterable[Any]) -> list[Any]:
    unique = list(dict.fromkeys(labels))
    try:
        return sorted(unique)
    except TypeError:  # types that do not compare
        return sorted(unique, key=lambda label: (type(label).__name__, str(label)))


def _names(labels: Sequence[Any]) -> list[str]:
    """str() of each label, but repr() where two labels have the same str(), as 1 and '1' do."""
    times = Counter(str(label) for label in labels)
    return [str(label) if times[str(label)] == 1 else repr(label) for label in labels]


def _check_proba(proba: Any, count: int, columns: int, name: str = "proba") -> Floats:
    if hasattr(proba, "detach"):
        proba = proba.detach().cpu().double()
    try:
        values = np.asarray(proba, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected numbers of shape ({count}, {columns}) but got {kind_of(proba)}") from None
    if values.ndim == 2 and values.shape[0] == count and values.shape[1] != columns:
        raise ValueError(
            f"{name}: expected {columns} columns, one per label, but got {values.shape[1]}; "
            "labels= names those that are in neither y_true nor y_pred"
        )
    if values.shape != (count, columns):
        raise ValueError(f"{name}: expected shape ({count}, {columns}) but got {values.shape}")
    for wrong, what in (
        (~np.isfinite(values).all(1), "finite numbers"),
        ((values < 0).any(1), "no negative number"),
        (np.abs(values.sum(1) - 1) > 1e-3, "rows that sum to 1"),
    ):
        if wrong.any():
            k = int(wrong.argmax())
            row = np.array2string(values[k], precision=4, threshold=6)
            raise ValueError(f"{name}: expected {what} but got {row} (sum {values[k].sum():.4g}) in row {k}")
    return values

"""Findings: sentences about the numbers of a report that should not be trusted, or that hide a bad model."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from .._terminal import printable
from .metrics import Ints, ratio
from .results import Results

__all__ = ["FEW", "findings"]

FEW = 30  # with fewer examples of a class, its recall and the averages over classes are not to be trusted
FAR = 0.2  # a minority class's recall is reported if it is that far below accuracy
GAP = 0.1  # train accuracy is called overfitting if it is that far above test accuracy


def findings(results: Results, known: int, train_accuracy: float | None, pred_ids: Ints) -> list[str]:
    """The sentences, of which there may be none.

    Args:
        results: the numbers.
        known: how many of its classes the model knows, which come first.
        train_accuracy: accuracy on the training data, or None.
        pred_ids: the predicted class of each example.
    """
    support, predicted = results.support, results.confusion.sum(0)
    hits, count = results.confusion.diagonal(), int(results.support.sum())
    present = np.flatnonzero(support)
    quoted = [f"'{printable(name)}'" for name in results.names]
    recall = ratio(hits, support)
    accuracy = results.accuracy
    low, high = results.intervals.get("accuracy", (accuracy, accuracy))
    found = []

    if len(present) == 1:
        found.append(
            f"y_true holds a single class, {quoted[present[0]]}: roc_auc and pr_auc are undefined, and "
            "accuracy does not show whether classes are told apart"
        )
    fair = count / len(present)
    missed = [k for k in present if support[k] < fair and recall[k] < accuracy - FAR]
    if missed:
        listed = _listed(f"{quoted[k]} {_percent(recall[k])} ({hits[k]} of {support[k]} found)" for k in missed)
        which = "a minority class" if len(missed) == 1 else "minority classes"
        found.append(f"accuracy is {_percent(accuracy)} but recall is far lower on {which}: {listed}")
    base = int(support.argmax())
    if len(present) > 1 and low <= support[base] / count:
        clearly = "not clearly" if accuracy > support[base] / count else "no"
        found.append(
            f"accuracy of {_percent(accuracy)} is {clearly} better than the majority class: "
            f"always answering {quoted[base]} gives {_percent(support[base] / count)}"
        )
    if results.baseline is not None and (warning := results.baseline.warning()) is not None:
        found.append(warning)
    if train_accuracy is not None and train_accuracy > max(high, accuracy + GAP):
        found.append(
            f"accuracy is {_percent(train_accuracy)} on the training data but {_percent(accuracy)} here: overfitting"
        )
    never = [k for k in present if not predicted[k] and k < known]
    if never:
        found.append(
            f"never predicted: {_listed(quoted[k] for k in never)}, so recall is 0, precision undefined (counted as 0)"
        )
    unknown = [k for k in present if k >= known]
    if unknown:
        found.append(
            f"in y_true but not among the labels: {_listed(f'{quoted[k]} ({support[k]} examples)' for k in unknown)}; "
            "the model cannot predict them, and accuracy and recall count each as an error"
        )
    absent = np.flatnonzero((support == 0) & (predicted > 0))
    if len(absent):
        found.append(f"recall is undefined (counted as 0) without an example of {_listed(quoted[k] for k in absent)}")
    few = [k for k in present if support[k] < FEW]
    if few:
        listed = _listed(f"{quoted[k]} ({support[k]})" for k in few)
        found.append(
            f"too few examples, less than {FEW}, for recall and the averages over classes to be trusted: {listed}"
        )
    threshold = results.rule
    if threshold is not None and threshold.positives < FEW:
        found.append(
            f"the threshold of '{printable(threshold.label)}' was chosen on {threshold.positives} examples of it, less "
            f"than {FEW}: too few for its {threshold.target} of {threshold.wanted:g} to be trusted"
        )
    if results.proba is not None and threshold is None:  # with a threshold another class may well be predicted
        top = results.proba.max(1)
        apart = np.mean(results.proba[np.arange(count), pred_ids] < top)
        if apart > 0.1:
            found.append(
                f"y_pred is not the likeliest class of proba in {_percent(apart)} of the examples: "
                "roc_auc and log_loss are wrong if the columns of proba are not in the order of the labels"
            )
    alike = [name for name, label in zip(results.names, results.labels, strict=True) if name != str(label)]
    if alike:
        listed = _listed(map(printable, alike))
        found.append(f"accuracy counts labels of different types as different classes: {listed}")
    return found


def _percent(share: float) -> str:
    """With one decimal. From 99.95 % on it is rounded down, so that 100 % is said of a share of 1 alone."""
    return f"{math.floor(share * 1000) / 10 if 0.9995 <= share < 1 else share * 100:.1f} %"


def _listed(items: Iterable[str]) -> str:
    every = list(items)
    return ", ".join(every[:5]) + (f" and {len(every) - 5} more" if len(every) > 5 else "")

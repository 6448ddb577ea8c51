"""Numbers about predictions as functions of counts and scores.

Every metric of hard predictions is a function of the confusion matrix. The definitions are scikit-learn's. The tests
compare with it, and nothing here needs it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Bins", "ClassScores", "Floats", "Ints", "Scores", "average_precision", "averages", "binned", "operating_points",
    "ratio", "roc_auc", "scores_by_class",
]  # fmt: skip

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BINS = 15  # of the expected calibration error


@dataclass(frozen=True)
class Scores:
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class ClassScores(Scores):
    support: int
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)  # of the scores that are defined


class Bins(NamedTuple):
    """Examples grouped by their highest probability: their count, its mean, and the accuracy (0 in an empty bin)."""

    counts: Ints
    confidence: Floats
    accuracy: Floats

    @property
    def error(self) -> float:
        """The expected calibration error."""
        return float(np.sum(self.counts * np.abs(self.confidence - self.accuracy)) / self.counts.sum())


def binned(proba: Floats, true_ids: Ints) -> Bins:
    """The examples in 15 bins (lower, upper] of equal width by the probability of the likeliest class."""
    top = proba.max(1)
    hit = proba.argmax(1) == true_ids
    bin_of = np.clip(np.ceil(top * BINS).astype(np.int64) - 1, 0, BINS - 1)
    counts = np.bincount(bin_of, minlength=BINS)
    return Bins(
        counts,
        ratio(np.bincount(bin_of, weights=top, minlength=BINS), counts),
        ratio(np.bincount(bin_of, weights=hit, minlength=BINS), counts),
    )


def operating_points(positive: NDArray[np.bool_], scores: Floats) -> tuple[Ints, Ints]:
    """True and false positives at every distinct threshold, from the highest score down."""
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    true = np.cumsum(positive[order])[ends]
    return true, ends + 1 - true


def roc_auc(true: Ints, false: Ints) -> float:
    """The area under the ROC curve through :func:`operating_points`."""
    true, false = np.append(0, true), np.append(0, false)
    return float(np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2) / (true[-1] * false[-1]))


def average_precision(true: Ints, false: Ints) -> float:
    """The mean of the precision at each of the :func:`operating_points`, weighted by the recall that the point adds."""
    return float(np.sum(np.diff(true, prepend=0) * true / (true + false)) / true[-1])


def ratio(part: Any, whole: Any) -> Floats:
    """part / whole, and 0 where whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), whole)
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def scores_by_class(hits: Ints, support: Ints, predicted: Ints) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 of each class."""
    return ratio(hits, predicted), ratio(hits, support), ratio(2 * hits, support + predicted)


def averages(hits: Ints, support: Ints, predicted: Ints) -> dict[str, Floats]:
    """Metrics of all classes together, from counts whose last dimension is the classes.

    Dimensions before it, such as that of bootstrap samples, are kept.
    """
    _, recall, f1 = scores_by_class(hits, support, predicted)
    return {
        "accuracy": hits.sum(-1) / support.sum(-1),
        "balanced_accuracy": recall.sum(-1) / np.count_nonzero(support, axis=-1),
        "macro_f1": f1.sum(-1) / np.count_nonzero(support + predicted, axis=-1),
    }

"""The intervals of a report, which do not shrink to a point where no error was seen.

Accuracy, precision and recall are shares of known numbers of examples, so Wilson's interval holds for them; F1 is a
function of such a share. Averages over classes have the bootstrap's, which says nothing of a class in which every
example is right: all resamples agree. So their interval reaches at least as far as Wilson's of the classes, added up.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .metrics import Floats, Ints, averages, scores_by_class

__all__ = [
    "BOTH", "METHODS", "WILSON", "Interval", "Intervals", "about", "added_accuracy", "added_macro_f1", "added_up",
    "intervals", "wilson",
]  # fmt: skip

Interval = tuple[float, float]

WILSON, BOTH = "wilson", "bootstrap, at least wilson of the classes"
METHODS = {
    "accuracy": WILSON, "balanced_accuracy": BOTH, "macro_f1": BOTH, "precision": WILSON, "recall": WILSON, "f1": WILSON
}  # fmt: skip


class Intervals(NamedTuple):
    """Intervals of the metrics of all classes together, and for each class those of its scores that are defined."""

    overall: dict[str, Interval]
    by_class: list[dict[str, Interval]]


def about(confidence: float) -> str:
    """What the intervals of a report are, in a sentence."""
    return (
        f"{100 * confidence:g} % intervals are Wilson's; those of balanced accuracy and macro f1 are the bootstrap's, "
        "or where these are wider Wilson's of the classes, added up"
    )


def wilson(hits: Ints, counts: Ints, confidence: float) -> tuple[Floats, Floats]:
    """Both ends of Wilson's interval for the shares hits / counts; 0 and 1 where a count is 0.

    They are the shares p for which hits / counts lies as many standard deviations from p as a normal distribution's
    ends of this confidence: the roots of (hits / counts - p)^2 = z^2 p (1 - p) / counts.
    """
    z = _deviations(confidence)
    middle = (hits + z**2 / 2) / (counts + z**2)
    half = z * np.sqrt(hits / np.maximum(counts, 1) * (counts - hits) + z**2 / 4) / (counts + z**2)
    # at the ends exactly, where the difference would be rounded
    return np.where(hits == 0, 0.0, middle - half), np.where(hits == counts, 1.0, middle + half)


def _deviations(confidence: float) -> float:
    """How many standard deviations from its mean a normal distribution's ends of this confidence are."""
    return NormalDist().inv_cdf((1 + confidence) / 2)


def added_up(values: Floats, low: Floats, high: Floats) -> Interval:
    """The interval of the mean of independent values: their distances to the ends add up as variances do."""
    mean, count = float(values.mean()), len(values)
    below, above = (float(np.sqrt(((values - end) ** 2).sum())) / count for end in (low, high))
    return max(0.0, mean - below), min(1.0, mean + above)


def intervals(confusion: Ints, resamples: int, confidence: float, seed: int) -> Intervals:
    """The intervals that hold the true value with probability ``confidence``, by :data:`METHODS`."""
    hits, support, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    _, recall, f1 = scores_by_class(hits, support, predicted)
    either = support + predicted - hits  # F1 is 2 s / (1 + s) for the share s = hits / either
    share_ends = wilson(hits, either, confidence)
    f1_ends = tuple(2 * end / (1 + end) for end in share_ends)
    recall_ends = wilson(hits, support, confidence)
    scores = {
        "precision": (predicted > 0, wilson(hits, predicted, confidence)),
        "recall": (support > 0, recall_ends),
        "f1": (either > 0, f1_ends),
    }
    by_class = [
        {name: (float(low[k]), float(high[k])) for name, (known, (low, high)) in scores.items() if known[k]}
        for k in range(len(confusion))
    ]
    low, high = wilson(hits.sum(), support.sum(), confidence)
    found = {"accuracy": (float(low), float(high))}
    drawn = _bootstrap(confusion, resamples, confidence, seed)
    for name, values, known, ends in (
        ("balanced_accuracy", recall, support > 0, recall_ends),
        ("macro_f1", f1, either > 0, f1_ends),
    ):
        by_sum = added_up(values[known], ends[0][known], ends[1][known])
        found[name] = min(by_sum[0], drawn[name][0]), max(by_sum[1], drawn[name][1])
    return Intervals(found, by_class)


def added_accuracy(right: NDArray[np.bool_], other: NDArray[np.bool_], confidence: float) -> Interval:
    """Bonett and Price's interval of the difference of two shares of the same examples.

    It is Wald's after one example is added to each kind of disagreement, so that it is no point where none was seen.
    """
    z = _deviations(confidence)
    gained, lost = (float((np.count_nonzero(each) + 1) / (len(right) + 2)) for each in (right & ~other, other & ~right))
    half = z * float(np.sqrt((gained + lost - (gained - lost) ** 2) / (len(right) + 2)))
    return max(-1.0, gained - lost - half), min(1.0, gained - lost + half)


def added_macro_f1(
    true: Ints, pred: Ints, other: Ints, classes: int, resamples: int, confidence: float, seed: int
) -> Interval:
    """The bootstrap's interval of the difference of two macro F1 of the same examples, which are drawn together."""
    cells, counts = np.unique(np.stack([true, pred, other]), axis=1, return_counts=True)
    rng, parts = np.random.default_rng(seed), []
    at_once = max(1, 2_000_000 // max(len(counts), classes))
    for start in range(0, resamples, at_once):
        draws = rng.multinomial(counts.sum(), counts / counts.sum(), size=min(at_once, resamples - start))
        support = _sums(draws, cells[0], classes)
        scores = []
        for found in cells[1:]:
            right = found == cells[0]
            hits, predicted = _sums(draws[:, right], found[right], classes), _sums(draws, found, classes)
            scores.append(averages(hits, support, predicted)["macro_f1"])
        parts.append(scores[0] - scores[1])
    low, high = np.quantile(np.concatenate(parts), [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _sums(draws: Ints, classes: Ints, count: int) -> Ints:
    """The sums of the columns of each class, (draws, count)."""
    order = np.argsort(classes, kind="stable")
    present, starts = np.unique(classes[order], return_index=True)
    sums = np.zeros((len(draws), count), np.int64)
    if len(present):
        sums[:, present] = np.add.reduceat(draws[:, order], starts, axis=1)
    return sums


def _bootstrap(confusion: Ints, resamples: int, confidence: float, seed: int) -> dict[str, Interval]:
    """Of each of the :func:`averages`, the bounds that hold the share ``confidence`` of the bootstrap samples.

    A sample of the examples is one multinomial draw over the cells of the confusion matrix, so that a thousand samples
    take milliseconds and no loop over examples.
    """
    rng = np.random.default_rng(seed)
    true, pred = np.nonzero(confusion)
    counts = confusion[true, pred]
    diagonal = np.flatnonzero(true == pred)
    total, K = int(counts.sum()), len(confusion)

    parts = []
    at_once = max(1, 2_000_000 // len(counts))  # resamples, so that the draws of many classes fit in memory
    for start in range(0, resamples, at_once):
        draws = rng.multinomial(total, counts / total, size=min(at_once, resamples - start))
        hits = _sums(draws[:, diagonal], true[diagonal], K)
        parts.append(averages(hits, _sums(draws, true, K), _sums(draws, pred, K)))
    tail = (1 - confidence) / 2
    ends = {name: np.quantile(np.concatenate([p[name] for p in parts]), [tail, 1 - tail]) for name in parts[0]}
    return {name: (float(low), float(high)) for name, (low, high) in ends.items()}

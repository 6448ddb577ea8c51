"""Two numbers that are chosen on held-out data: a temperature for all probabilities, a threshold for one class.

On its training data a model is surer and more often right than on others, so they would be wrong if chosen there.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._terminal import VALUE, escaped, shown
from .metrics import operating_points

__all__ = ["Threshold", "checked_temperature", "temperature", "threshold"]

LEAST, MOST = 0.05, 20.0  # temperatures
_HALVINGS = 56  # of an interval of length log(MOST / LEAST) = 6, which end at the precision of a double


class Threshold(NamedTuple):
    """The least score for which a class is predicted, with its precision and recall on the data it was chosen on."""

    value: float
    precision: float
    recall: float


def checked_temperature(value: Any) -> float:
    """The value as a float, if logits can be divided by it. Otherwise a ValueError is raised."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-3 <= value <= 1e3:
        raise ValueError(f"temperature: expected a number from 0.001 to 1000 but got {shown(value)}")
    return float(value)


def temperature(logits: Any, targets: Any) -> float:
    """The T above 0 for which the true classes are most likely under ``softmax(logits / T)``.

    Args:
        logits: :math:`(N, K)`, from a model on held-out data.
        targets: :math:`(N)`, the columns of the true classes.

    The negative log likelihood is convex in 1 / T, so its slope changes sign once, and bisection finds the place.
    T is at most 20, with a warning. Where it would be below 0.05 it is 1, with a warning too: if nearly all examples
    are classified right, T tends to 0, which tells nothing about other data.

    Examples::

        >>> from seqcls_fast.toolkit.evaluation.calibration import temperature
        >>> logits = [[4.0, 0.0]] * 4  # a probability of 98 %
        >>> round(temperature(logits, [0, 0, 0, 1]), 3)  # but right in 75 % of the cases: 4 / log(3)
        3.641
    """
    scores, rows = np.asarray(logits, dtype=np.float64), np.asarray(targets)
    if scores.ndim != 2 or not len(scores) or not np.isfinite(scores).all():
        raise ValueError(f"logits: expected finite numbers of shape (N, K) but got {_described(scores)}")
    if rows.shape != scores.shape[:1] or rows.dtype.kind not in "iu":
        raise ValueError(f"targets: expected {len(scores)} whole numbers but got {_described(rows)}")
    if rows.min() < 0 or rows.max() >= scores.shape[1]:
        strange = rows.min() if rows.min() < 0 else rows.max()
        raise ValueError(f"targets: expected columns, from 0 to {scores.shape[1] - 1}, but got {strange}")
    ahead = scores - np.take_along_axis(scores, rows[:, None], 1)  # by how much each score exceeds the true class's

    def slope(inverse: float) -> float:
        scaled = inverse * ahead
        shares = np.exp(scaled - scaled.max(1, keepdims=True))
        return float(np.mean((shares * ahead).sum(1) / shares.sum(1)))

    if not ahead.any():
        return 1.0  # every temperature gives the same likelihood
    if slope(1 / LEAST) <= 0:
        wrong = int((ahead > 0).any(1).sum())
        warnings.warn(
            f"temperature: left at 1, since the data would have it below {LEAST:g}: {wrong} of {len(scores)} examples "
            "are classified wrong, too few to say how sure the model may be; give more held-out data",
            stacklevel=2,
        )
        return 1.0
    if slope(1 / MOST) >= 0:
        warnings.warn(
            f"temperature: kept at {MOST:g} where the data would have it higher: on them the model does no better than "
            "guessing; are the labels those it was trained on?",
            stacklevel=2,
        )
        return MOST
    low, high = math.log(1 / MOST), math.log(1 / LEAST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if slope(math.exp(middle)) < 0:
            low = middle
        else:
            high = middle
    return math.exp(-(low + high) / 2)


def threshold(positive: Any, scores: Any, *, precision: float | None = None, recall: float | None = None) -> Threshold:
    """The least score for which examples should be predicted positive, to reach a precision or a recall.

    Args:
        positive: :math:`(N)`, whether each example is positive.
        scores: :math:`(N)`, higher for examples that are more likely positive.
        precision: chooses the threshold of largest recall among those with at least this precision.
        recall: chooses the threshold of largest precision among those with at least this recall.

    Examples::

        >>> from seqcls_fast.toolkit.evaluation.calibration import threshold
        >>> threshold([True, False, True, True, False], [0.9, 0.8, 0.7, 0.6, 0.1], precision=0.75)
        Threshold(value=0.6, precision=0.75, recall=1.0)
        >>> threshold([True, False, True, True, False], [0.9, 0.8, 0.7, 0.6, 0.1], recall=0.3).value
        0.9
    """
    true_of, values = np.asarray(positive), np.asarray(scores, dtype=np.float64)
    if true_of.ndim != 1 or true_of.dtype != bool:
        raise ValueError(f"positive: expected booleans of shape (N,) but got {_described(true_of)}")
    if values.shape != true_of.shape or not np.isfinite(values).all():
        raise ValueError(f"scores: expected {len(true_of)} finite numbers but got {_described(values)}")
    if (precision is None) == (recall is None):
        raise ValueError(f"precision, recall: expected one of them but got {'both' if recall is not None else 'none'}")
    name, wanted = ("precision", precision) if recall is None else ("recall", recall)
    if isinstance(wanted, bool) or not isinstance(wanted, int | float | np.number) or not 0 < wanted <= 1:
        raise ValueError(f"{name}: expected a share above 0, at most 1, but got {shown(wanted)}")
    if not true_of.any():
        raise ValueError("positive: expected at least one positive example but got none")

    true, false = operating_points(true_of, values)
    precisions, recalls = true / (true + false), true / true[-1]
    # Among equally good points, the one better in the other number is taken: of equal recall the highest threshold, of
    # equal precision the lowest.
    if name == "precision":
        if precisions.max() < wanted:
            raise ValueError(f"precision: expected one that some threshold reaches, at most {precisions.max():.4g}, "
                             f"but got {wanted:g}")  # fmt: skip
        best = int(np.where(precisions >= wanted, true, -1).argmax())
    else:
        best = len(true) - 1 - int(np.where(recalls >= wanted, precisions, -1)[::-1].argmax())
    return Threshold(float(np.unique(values)[::-1][best]), float(precisions[best]), float(recalls[best]))


def _described(values: NDArray[Any]) -> str:
    bad = values.dtype.kind == "f" and not np.isfinite(values).all()
    return f"{'NaN or infinity' if bad else escaped(values.dtype, VALUE)} in shape {values.shape}"

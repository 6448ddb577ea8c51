"""How sure a model may be, and where it draws the line: a temperature for its probabilities, a threshold for a class.

Both are read off held-out data: on those that a model was trained on it is surer, and more often right, than elsewhere.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .._terminal import VALUE, escaped, kind_of, shown
from ..data import labels
from .evaluate import operating_points, printable

__all__ = ["Rule", "Threshold", "checked_temperature", "decide", "temperature", "threshold"]

LEAST, MOST = 0.05, 20.0  # temperatures
_HALVINGS = 56  # of log(MOST / LEAST), which is 6: down to the rounding of a double


class Threshold(NamedTuple):
    """A score from which on a class is predicted, and what that gave on the data it was chosen on."""

    value: float
    precision: float
    recall: float


@dataclass(frozen=True)
class Rule:
    """``label`` is predicted where its probability is at least ``value``, and the likeliest of the others elsewhere.

    ``precision`` and ``recall`` are what that reached, on data with ``positives`` examples of the label, where
    ``wanted`` was asked of the ``target``, one of the two.
    """

    label: Any
    value: float
    target: str
    wanted: float
    precision: float
    recall: float
    positives: int

    def __str__(self) -> str:
        return (
            f"'{printable(self.label)}' where its probability is at least {self.value:.4g} "
            f"(chosen for a {self.target} of {self.wanted:g}, on {self.positives} examples of it: "
            f"precision {self.precision:.3f}, recall {self.recall:.3f})"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"label": labels.to_json(labels.as_array([self.label]))[0]}

    @classmethod
    def from_json(cls, values: Any, classes: Sequence[Any]) -> Rule:
        """What :meth:`to_json` made, checked, for a model of these classes."""
        if not isinstance(values, dict):
            raise ValueError(f"threshold: expected an object or null but got {kind_of(values)}")
        rule = cls(**values | {"label": labels.from_json([values.get("label")]).tolist()[0]})
        if rule.label not in classes:
            raise ValueError(f"threshold: expected one of the classes but got {shown(rule.label)}")
        if not isinstance(rule.target, str) or rule.target not in ("precision", "recall"):
            raise ValueError(f"threshold: expected a target of precision or recall but got {shown(rule.target)}")
        for name in ("value", "wanted", "precision", "recall"):
            share = getattr(rule, name)
            if type(share) not in (int, float) or not 0 <= share <= 1:
                raise ValueError(f"threshold: expected a {name} from 0 to 1 but got {shown(share)}")
        if type(rule.positives) is not int or not 1 <= rule.positives < 2**63:
            raise ValueError(f"threshold: expected a number of positives but got {shown(rule.positives)}")
        return rule


def checked_temperature(value: Any) -> float:
    """A temperature that logits can be divided by, or a ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-3 <= value <= 1e3:
        raise ValueError(f"temperature: expected a number from 0.001 to 1000 but got {shown(value)}")
    return float(value)


def temperature(logits: Any, targets: Any) -> float:
    """The T above 0 that makes ``softmax(logits / T)`` most likely, given the true classes.

    Args:
        logits: :math:`(N, K)`, a model's on held-out data.
        targets: :math:`(N)`, the columns of the true classes.

    The negative log likelihood is convex in 1 / T, so that its slope there changes sign once: bisection finds where,
    to rounding. T is at most 20, with a warning, and 1 where it would be below 0.05, with another: examples that are
    all classified right would have it 0, which says nothing about others.

    Examples::

        >>> from seqcls_fast.toolkit.evaluation.calibration import temperature
        >>> logits = [[4.0, 0.0]] * 4  # as sure as 98 %
        >>> round(temperature(logits, [0, 0, 0, 1]), 3)  # and right in 75 % of the cases: 4 / log(3)
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
    ahead = scores - np.take_along_axis(scores, rows[:, None], 1)  # of the true class

    def slope(inverse: float) -> float:
        scaled = inverse * ahead
        shares = np.exp(scaled - scaled.max(1, keepdims=True))
        return float(np.mean((shares * ahead).sum(1) / shares.sum(1)))

    if not ahead.any():
        return 1.0  # all temperatures are alike
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
    """The score from which on examples are to be taken for positive, for a wanted precision or a wanted recall.

    Args:
        positive: :math:`(N)`, which examples are.
        scores: :math:`(N)`, higher for those more likely to be.
        precision: of the thresholds that reach it, the one of the largest recall.
        recall: of the thresholds that reach it, the one of the largest precision.

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
    # Of points that are level, the one better in the other number: the highest threshold of those of one recall, the
    # lowest of those of one precision.
    if name == "precision":
        if precisions.max() < wanted:
            raise ValueError(f"precision: expected one that some threshold reaches, at most {precisions.max():.4g}, "
                             f"but got {wanted:g}")  # fmt: skip
        best = int(np.where(precisions >= wanted, true, -1).argmax())
    else:
        best = len(true) - 1 - int(np.where(recalls >= wanted, precisions, -1)[::-1].argmax())
    return Threshold(float(np.unique(values)[::-1][best]), float(precisions[best]), float(recalls[best]))


def decide(probabilities: NDArray[np.float64], classes: Sequence[Any], rule: Rule | None) -> NDArray[np.int64]:
    """The column of the class that each row is taken for: the likeliest, or what the rule says."""
    likeliest: NDArray[np.int64] = probabilities.argmax(1)
    if rule is None:
        return likeliest
    column = list(classes).index(rule.label)
    others = probabilities.copy()
    others[:, column] = -1
    return np.where(probabilities[:, column] >= rule.value, column, others.argmax(1))


def _described(values: NDArray[Any]) -> str:
    bad = values.dtype.kind == "f" and not np.isfinite(values).all()
    return f"{'NaN or infinity' if bad else escaped(values.dtype, VALUE)} in shape {values.shape}"

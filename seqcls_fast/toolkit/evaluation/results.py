"""``Results``: every number of a classification report, as a table's rows, as curves, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._terminal import printable
from .beside import Beside
from .intervals import METHODS, about
from .metrics import Bins, ClassScores, Floats, Ints, Scores, binned
from .mistakes import ConfusedPair, Mistake

if TYPE_CHECKING:
    from .decision import DecisionThreshold

__all__ = ["Results"]


@dataclass
class Results:
    """The numbers of a :class:`~seqcls_fast.Report`, without its text and its page."""

    labels: list[Any]
    names: list[str]  # the labels as strings
    confusion: Ints = field(repr=False)  # (K, K): rows are true classes, columns predicted ones
    per_class: dict[Any, ClassScores]  # by label
    macro: Scores
    micro: Scores
    weighted: Scores
    accuracy: float
    balanced_accuracy: float
    roc_auc: float | None = None
    pr_auc: float | None = None
    log_loss: float | None = None
    brier: float | None = None
    expected_calibration_error: float | None = None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    confidence: float = 0.95
    warnings: list[str] = field(default_factory=list)
    before: dict[str, float] | None = None  # summary() without calibration and threshold
    before_bins: Bins | None = field(default=None, repr=False)
    rule: DecisionThreshold | None = None
    true_ids: Ints = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)  # (N): rows of the true classes
    proba: Floats | None = field(default=None, repr=False)  # (N, K)
    baseline: Beside | None = None  # a simple linear model on the same examples
    errors: list[Mistake] = field(default_factory=list, repr=False)  # the surest ones
    confused: list[ConfusedPair] = field(default_factory=list, repr=False)  # the pairs confused most often
    about: dict[str, str] = field(default_factory=dict)  # the model, its settings and data, by name

    @property
    def support(self) -> Ints:
        return self.confusion.sum(1)

    @property
    def about_intervals(self) -> str:
        """Which intervals these are, in a sentence; empty where there are none."""
        return about(self.confidence) if self.intervals else ""

    def one_vs_rest(self) -> Iterator[tuple[str, NDArray[np.bool_], Floats]]:
        """The name, which examples are positive, and the scores, of the second class of two, or of each of more.

        Classes that no example has, or that all examples have, have no curve and are left out.
        """
        proba = self._needs_proba()
        for k in range(1, 2) if len(self.labels) == 2 else range(len(self.labels)):
            positive = self.true_ids == k
            if positive.any() and not positive.all():
                yield self.names[k], positive, proba[:, k]

    def bins(self) -> Bins:
        """The examples in 15 bins (lower, upper] of equal width by the probability of the likeliest class."""
        return binned(self._needs_proba(), self.true_ids)

    def to_dict(self) -> dict[str, Any]:
        """Everything in types that ``json.dumps`` takes. Of the examples it has the few that the report names."""
        scores = zip(self.names, self.per_class.values(), strict=True)
        return {
            "examples": int(self.confusion.sum()),
            "labels": list(self.names),
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "macro": asdict(self.macro),
            "micro": asdict(self.micro),
            "weighted": asdict(self.weighted),
            "per_class": {name: asdict(score) for name, score in scores},
            "confusion_matrix": self.confusion.tolist(),
            "roc_auc": self.roc_auc,
            "pr_auc": self.pr_auc,
            "log_loss": self.log_loss,
            "brier": self.brier,
            "expected_calibration_error": self.expected_calibration_error,
            "confidence": self.confidence,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "interval_methods": dict(METHODS) if self.intervals else {},
            "before_calibration": self.before,
            "threshold": None if self.rule is None else self.rule.to_json(),
            "baseline": None if self.baseline is None else self.baseline.to_dict(),
            "warnings": list(self.warnings),
            "most_confident_errors": [asdict(mistake) for mistake in self.errors],
            "most_confused": [asdict(pair) for pair in self.confused],
            "about": dict(self.about),
        }

    def summary(self) -> list[tuple[str, float, tuple[float, float] | None]]:
        """The metrics of all classes together that are defined here: name, value, interval."""
        values = {
            "accuracy": self.accuracy,
            "balanced accuracy": self.balanced_accuracy,
            "macro f1": self.macro.f1,
            "roc auc": self.roc_auc,
            "pr auc": self.pr_auc,
            "log loss": self.log_loss,
            "brier": self.brier,
            "calibration error": self.expected_calibration_error,
        }
        return [
            (name, value, self.intervals.get(name.replace(" ", "_")))
            for name, value in values.items()
            if value is not None
        ]

    def rows(self) -> list[tuple[str, Scores, int]]:
        """The table of scores: a row for each class, then the averages over them."""
        count = int(self.confusion.sum())
        averages = [("macro", self.macro, count), ("micro", self.micro, count), ("weighted", self.weighted, count)]
        return [
            (printable(name), score, score.support)
            for name, score in zip(self.names, self.per_class.values(), strict=True)
        ] + averages

    def _needs_proba(self) -> Floats:
        if self.proba is None:
            raise ValueError("report: expected one made with proba but got one made from predictions alone")
        return self.proba

"""What a model adds to another one on the same examples, with intervals, and a warning where that is nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .intervals import Interval, added_accuracy, added_macro_f1
from .metrics import Ints, averages

__all__ = ["Beside", "beside"]

_RESAMPLES = 1000  # where a report has no resampled intervals of its own


@dataclass(frozen=True)
class Beside:
    """The scores of a simple linear model, and by how much those of the report are above them."""

    accuracy: float
    macro_f1: float
    added: dict[str, tuple[float, Interval]]  # by "accuracy" and "macro_f1"

    def to_dict(self) -> dict[str, Any]:
        added = {name: {"value": value, "interval": list(ends)} for name, (value, ends) in self.added.items()}
        return {"accuracy": self.accuracy, "macro_f1": self.macro_f1, "added": added}

    def rows(self) -> list[tuple[str, float, float, Interval]]:
        """For each metric its name, the value of the linear model, what is added to it, and the interval of that."""
        values = {"accuracy": self.accuracy, "macro_f1": self.macro_f1}
        return [(name.replace("_", " "), values[name], *self.added[name]) for name in values]

    def warning(self) -> str | None:
        value, (low, high) = self.added["accuracy"]
        if low > 0:
            return None
        points = f"{100 * value:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
        network, linear = (f"{100 * share:.1f} %" for share in (self.accuracy + value, self.accuracy))
        says = "below" if high < 0 else "not clearly better than"
        return f"accuracy of {network} is {says} the {linear} of a simple linear model (baseline_): {points}"


def beside(true: Ints, pred: Ints, other: Ints, classes: int, resamples: int, confidence: float, seed: int) -> Beside:
    """Compares predictions ``pred`` with ``other`` ones; all are numbers of classes."""
    scores = []
    for found in (pred, other):
        hits, support, predicted = (
            np.bincount(each, minlength=classes) for each in (found[found == true], true, found)
        )
        scores.append({name: float(value) for name, value in averages(hits, support, predicted).items()})
    ends = {
        "accuracy": added_accuracy(pred == true, other == true, confidence),
        "macro_f1": added_macro_f1(true, pred, other, classes, resamples or _RESAMPLES, confidence, seed),
    }
    added = {name: (scores[0][name] - scores[1][name], interval) for name, interval in ends.items()}
    return Beside(scores[1]["accuracy"], scores[1]["macro_f1"], added)

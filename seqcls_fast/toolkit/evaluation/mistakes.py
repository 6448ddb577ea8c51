"""The errors that a person looks at first: the surest ones, and the classes that are taken for each other most often.

Sure and wrong often means that the label is wrong, so these lists are the fastest way to the mistakes in one's data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .._terminal import escaped, numbers
from .metrics import Floats, Ints

__all__ = ["ConfusedPair", "Mistake", "described", "mistakes"]

_ERRORS, _PAIRS, _EXAMPLES = 10, 5, 2  # how many of each are listed
_LONGEST = 300  # characters of an example


@dataclass(frozen=True)
class Mistake:
    """An example whose predicted class is not its own."""

    index: int  # of the example in the data, from 0 on
    true: str
    predicted: str
    probability: float | None  # of the predicted class
    example: str | None  # the text, or the size and first values of a series


@dataclass(frozen=True)
class ConfusedPair:
    """A class whose examples are taken for another one."""

    true: str
    predicted: str
    count: int
    share: float  # of the examples of the true class
    examples: list[Mistake] = field(default_factory=list)  # the surest ones


def mistakes(
    names: Sequence[str], confusion: Ints, true_ids: Ints, pred_ids: Ints, proba: Floats | None, inputs: Any = None
) -> tuple[list[Mistake], list[ConfusedPair]]:
    """The surest errors, which need probabilities, and the pairs of classes that are confused most often."""
    wrong = np.flatnonzero(true_ids != pred_ids)
    sure = np.zeros(len(wrong)) if proba is None else proba[wrong, pred_ids[wrong]]
    wrong = wrong[np.argsort(-sure, kind="stable")]

    def mistake(index: int) -> Mistake:
        predicted = pred_ids[index]
        return Mistake(
            index, names[true_ids[index]], names[predicted],
            None if proba is None else float(proba[index, predicted]),
            None if inputs is None else described(inputs[index]),
        )  # fmt: skip

    pairs = []
    apart = confusion * (1 - np.eye(len(confusion), dtype=np.int64))
    for cell in np.argsort(-apart, axis=None, kind="stable")[:_PAIRS].tolist():
        true, predicted = divmod(cell, len(confusion))
        count = int(apart[true, predicted])
        if count:
            rows = wrong[(true_ids[wrong] == true) & (pred_ids[wrong] == predicted)][:_EXAMPLES].tolist()
            share = count / int(confusion[true].sum())
            pairs.append(ConfusedPair(names[true], names[predicted], count, share, [mistake(row) for row in rows]))
    return [] if proba is None else [mistake(row) for row in wrong[:_ERRORS].tolist()], pairs


def described(example: Any) -> str:
    """An example on one line."""
    if isinstance(example, str):
        return escaped(example, _LONGEST)
    values = np.asarray(example)
    steps, features = len(values), 1 if values.ndim < 2 else values.shape[1]
    sizes = f"{steps} step{'s' * (steps != 1)} of {features} feature{'s' * (features != 1)}"
    return f"{sizes}: {numbers(values.ravel()[:7].tolist(), 6)}"

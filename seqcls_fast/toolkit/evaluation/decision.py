"""How a class is decided from probabilities: the likeliest one, or by a threshold that was chosen for one class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .._terminal import kind_of, printable, shown
from ..data import labels

__all__ = ["DecisionThreshold", "decide"]


@dataclass(frozen=True)
class DecisionThreshold:
    """``label`` is predicted where its probability is at least ``value``, elsewhere the likeliest of the others.

    It was chosen on data with ``positives`` examples of the label, to reach ``wanted`` of the ``target``, which is
    ``"precision"`` or ``"recall"``. ``precision`` and ``recall`` are those that it reached there.
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
    def from_json(cls, values: Any, classes: Sequence[Any]) -> DecisionThreshold:
        """Reads and checks the output of :meth:`to_json`, for a model of these classes."""
        if not isinstance(values, dict):
            raise ValueError(f"threshold: expected an object or null but got {kind_of(values)}")
        found = cls(**values | {"label": labels.from_json([values.get("label")]).tolist()[0]})
        if found.label not in classes:
            raise ValueError(f"threshold: expected one of the classes but got {shown(found.label)}")
        if not isinstance(found.target, str) or found.target not in ("precision", "recall"):
            raise ValueError(f"threshold: expected a target of precision or recall but got {shown(found.target)}")
        for name in ("value", "wanted", "precision", "recall"):
            share = getattr(found, name)
            if type(share) not in (int, float) or not 0 <= share <= 1:
                raise ValueError(f"threshold: expected a {name} from 0 to 1 but got {shown(share)}")
        if type(found.positives) is not int or not 1 <= found.positives < 2**63:
            raise ValueError(f"threshold: expected a number of positives but got {shown(found.positives)}")
        return found


def decide(
    probabilities: NDArray[np.float64], classes: Sequence[Any], threshold: DecisionThreshold | None
) -> NDArray[np.int64]:
    """The column of the class that is predicted for each row of probabilities."""
    likeliest: NDArray[np.int64] = probabilities.argmax(1)
    if threshold is None:
        return likeliest
    column = list(classes).index(threshold.label)
    others = probabilities.copy()
    others[:, column] = -1
    return np.where(probabilities[:, column] >= threshold.value, column, others.argmax(1))

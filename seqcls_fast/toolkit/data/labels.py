"""Labels of any hashable type: the sorted classes, each label's number among them, and weights by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..._labels import PLAIN, as_array, from_json
from .._terminal import kind_of, shown
from .columns import items, missing

__all__ = ["as_array", "classes_of", "from_json", "stratified", "to_json", "to_targets", "weights_of"]


def as_list(y: Any, count: int | None = None, name: str = "y") -> list[Any]:
    """Labels as plain Python values, one for each of ``count`` sequences."""
    y = items(y, name, "a list of labels")
    if isinstance(y, np.ndarray | Tensor) and y.ndim != 1:
        hint = ""
        if y.ndim == 2:
            hint = f"; pass {name}[:, 0]" if y.shape[1] == 1 else f"; if a row marks its class, pass {name}.argmax(1)"
        raise ValueError(f"{name}: expected one dimension but got shape {tuple(y.shape)}{hint}")
    values = y.tolist() if isinstance(y, np.ndarray | Tensor) else [_plain(value) for value in y]
    if count is not None and len(values) != count:
        raise ValueError(f"y: expected {count} labels, one for each sequence of X, but got {len(values)}")
    for index, value in enumerate(values):
        try:
            hash(value)
        except TypeError:
            got = f"{kind_of(value)} at {index}"
            hint = "; are X and y swapped?" if hasattr(value, "ndim") else ""
            raise TypeError(f"{name}: expected hashable labels but got {got}, which is not{hint}") from None
        if _is_missing(value):
            raise ValueError(f"{name}: expected a label but got {shown(value)} at {index}")
    return values


def _is_missing(label: Any) -> bool:
    """Whether a label, or an item of a tuple, is missing. NaN equals nothing, so its class would have no members."""
    return any(map(_is_missing, label)) if type(label) is tuple else missing(label)


def _plain(value: Any) -> Any:
    if type(value) is tuple:
        return tuple(_plain(item) for item in value)
    if hasattr(type(value), "as_py"):  # a scalar of pyarrow
        return value.as_py()
    return value.item() if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.dim() == 0) else value


def classes_of(labels: Sequence[Any]) -> np.ndarray:
    """The distinct labels, sorted; by type and text if they cannot be compared."""
    found = list(dict.fromkeys(labels))
    try:
        found.sort()
    except TypeError:
        found.sort(key=lambda label: (type(label).__name__, repr(label)))
    return as_array(found)


def doubts(classes: np.ndarray) -> list[str]:
    """Sentences about labels that are hardly meant as they are."""
    found = []
    kinds = {type(label) for label in classes.tolist()}
    if len(kinds) > 1 and not kinds <= {int, float}:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        found.append(
            f"y: expected labels of one type but got {names}; labels that look alike are different classes, such as 1 "
            "and '1', and labels that are equal are one, such as 1 and True"
        )
    try:
        to_json(classes)
    except ValueError as error:
        found.append(f"y: the model can be used but not saved: {error}")
    return found


def to_targets(labels: Sequence[Any], classes: np.ndarray, name: str = "y", hint: str = "") -> Tensor:
    """The number of each label among the classes. ``hint`` ends the message about a label that is not one of them."""
    place = {label: index for index, label in enumerate(classes.tolist())}
    for index, label in enumerate(labels):
        if label not in place:
            raise ValueError(f"{name}: expected labels seen in training but got {shown(label)} at {index}{hint}")
    return torch.tensor([place[label] for label in labels], dtype=torch.int64)


def weights_of(targets: Tensor, classes: np.ndarray, class_weight: Any, sample_weight: Any) -> Tensor | None:
    """The weight of each sequence, with mean 1; None if all have the same."""
    if class_weight is None and sample_weight is None:
        return None
    counts = torch.bincount(targets, minlength=len(classes))
    weights = class_factors(counts, classes.tolist(), class_weight)[targets]
    if sample_weight is not None:
        weights *= torch.from_numpy(sample_weights(sample_weight, len(targets)))
    return (weights / positive(weights.mean())).float()


def sample_weights(given: Any, count: int) -> np.ndarray:
    """The weights that a caller passed for ``count`` sequences, float64."""
    given = items(given, "sample_weight", "a list of numbers")
    try:
        weights = np.array(given if isinstance(given, np.ndarray | Tensor) else list(given), dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError("sample_weight: expected finite numbers of at least 0 but got something else") from None
    if weights.shape != (count,):
        raise ValueError(f"sample_weight: expected shape ({count},) but got {weights.shape}")
    wrong = np.flatnonzero(~((weights >= 0) & np.isfinite(weights)))
    if len(wrong):
        found = f"{weights[wrong[0]]:g} at {wrong[0]}"
        raise ValueError(f"sample_weight: expected finite numbers of at least 0 but got {found}")
    if not weights.sum() > 0:
        raise ValueError("sample_weight: expected some weight above 0")
    return weights


def class_factors(counts: Tensor, classes: list[Any], class_weight: Any) -> Tensor:
    """The relative weight of each class, float64."""
    if class_weight is None:
        return torch.ones(len(classes), dtype=torch.float64)
    if isinstance(class_weight, str) and class_weight == "balanced":
        return 1 / counts.clamp(min=1).double()
    if not isinstance(class_weight, dict):
        raise ValueError(f"class_weight: expected None, 'balanced' or a dict but got {shown(class_weight)}")
    class_weight = {_plain(label): _plain(weight) for label, weight in class_weight.items()}
    for label, weight in class_weight.items():
        if label not in classes:
            raise ValueError(f"class_weight: expected labels of y but got {shown(label)}")
        if not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise ValueError(
                f"class_weight: expected a weight of at least 0 for {shown(label)} but got {shown(weight)}"
            )
    return torch.tensor([float(class_weight.get(label, 1.0)) for label in classes], dtype=torch.float64)


def positive(weight: Tensor) -> Tensor:
    if not float(weight) > 0:
        raise ValueError("class_weight and sample_weight: expected some weight above 0")
    return weight


def stratified(targets: Tensor, share: float, seed: int | None) -> tuple[Tensor, Tensor]:
    """Rows to keep and rows to hold out: the same share of each class; a class of one sequence is kept."""
    generator = torch.Generator()
    generator.seed() if seed is None else generator.manual_seed(seed)
    held = []
    for target in targets.unique():
        rows = (targets == target).nonzero().flatten()
        count = min(len(rows) - 1, max(1, round(share * len(rows))))
        held.append(rows[torch.randperm(len(rows), generator=generator)[:count]])
    out = torch.cat(held).sort().values
    if not len(out):
        raise ValueError("validation: expected classes with at least two sequences each, to hold one out")
    mask = torch.ones(len(targets), dtype=torch.bool)
    mask[out] = False
    return mask.nonzero().flatten(), out


def to_json(classes: np.ndarray) -> list[Any]:
    """The classes as JSON: numbers, strings, and tuples of these. Other labels cannot be saved."""

    def encode(label: Any) -> Any:
        label = _plain(label)
        if type(label) in PLAIN:
            return label
        if isinstance(label, tuple):
            return {"tuple": [encode(item) for item in label]}
        raise ValueError(f"save: expected labels that are numbers, strings or tuples but got {kind_of(label)}")

    return [encode(label) for label in classes.tolist()]

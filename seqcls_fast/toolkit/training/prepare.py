"""What fit() is given, as what training takes: an encoder that has learnt, classes, and examples as numbers.

Data are in memory, or a Stream that is read while it is used. The two end in the same Task.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._terminal import shown
from ..data import labels
from ..data.datasets import Data, Examples, Streamed
from ..data.leakage import Fingerprints, fingerprints
from ..data.stream import Stream

__all__ = ["Task", "prepared"]


@dataclass
class Task:
    encoder: Any
    classes: np.ndarray
    data: Data
    held: Data | None  # to validate on
    seen: Fingerprints
    about: dict[str, Any]  # rows and digests, for the model's card and to know the data again

    def close(self) -> None:
        """Ends the processes that read ahead."""
        for data in (self.data, self.held):
            if isinstance(data, Streamed):
                data.stream.close()


def prepared(estimator: Any, X: Any, y: Any, validation: Any, sample_weight: Any, seed: int) -> Task:
    if validation is None and estimator.patience is not None:
        raise ValueError("patience: expected None without validation but got a number of epochs")
    if isinstance(validation, float | np.floating) and not 0 < validation < 1:
        raise ValueError(f"validation: expected a share between 0 and 1 but got {shown(validation)}")
    make = _streamed if isinstance(X, Stream) else _in_memory
    return make(estimator, X, y, validation, sample_weight, seed)


def _in_memory(estimator: Any, X: Any, y: Any, validation: Any, sample_weight: Any, seed: int) -> Task:
    X, y = estimator._labelled(X, y)
    if not X:
        raise ValueError("X: expected at least two sequences but got none")
    classes = _checked(labels.classes_of(y))
    targets = labels.to_targets(y, classes)
    weights = labels.weights_of(targets, classes, estimator.class_weight, sample_weight)
    about: dict[str, Any] = {}
    held_inputs, held_targets = None, None
    if isinstance(validation, float | np.floating):
        kept, out = labels.stratified(targets, float(validation), seed)
        held_inputs, held_targets = [X[i] for i in out.tolist()], targets[out]
        X, targets = [X[i] for i in kept.tolist()], targets[kept]
        weights = None if weights is None else weights[kept] / labels.positive(weights[kept].mean())
        about = {"share": float(validation)}
    encoder = estimator._make_encoder().fit(X)
    examples = Examples(encoder.encode(X), targets, weights)
    held: Data | None = None
    if held_inputs is not None and held_targets is not None:
        held = Examples(encoder.encode(held_inputs), held_targets)
    elif validation is not None:
        held = _validation(estimator, validation, encoder, classes)
    return Task(
        encoder, classes, examples, held, fingerprints(estimator._plain(X)),
        {"rows": len(examples), "digest": examples.digest(), "validation": _about(held, about)},
    )  # fmt: skip


def _streamed(estimator: Any, X: Stream, y: Any, validation: Any, sample_weight: Any, seed: int) -> Task:
    if y is not None or sample_weight is not None:
        raise ValueError("y and sample_weight: expected None with a Stream, which names their columns")
    if X.kind != estimator._kind:
        raise ValueError(f"X: expected a Stream of kind {estimator._kind!r} but got {shown(X.kind)}")
    if X.label is None:
        raise ValueError("X: expected a Stream with a column of labels but got label=None")
    about: dict[str, Any] = {}
    held_stream = None
    if isinstance(validation, float | np.floating):
        X, held_stream = X.split(float(validation), seed)
        about = {"share": float(validation)}
    encoder = estimator._make_encoder()
    survey = X.survey(encoder)
    classes = _checked(labels.classes_of(list(survey.labels)))
    data = Streamed(X, encoder, classes, estimator.class_weight, estimator.workers, estimator.epochs)
    held: Data | None = None
    if held_stream is not None:
        held = Streamed(held_stream, encoder, classes, None, estimator.workers, estimator.epochs)
    elif validation is not None:
        held = _validation(estimator, validation, encoder, classes)
    return Task(
        encoder, classes, data, held, survey.seen,
        {"rows": len(data), "digest": data.digest(), "validation": _about(held, about)},
    )  # fmt: skip


def _validation(estimator: Any, validation: Any, encoder: Any, classes: np.ndarray) -> Data:
    """From (X, y), a pathlib.Path or a Stream."""
    if isinstance(validation, Stream):
        labels.to_targets(list(validation.survey().labels), classes, "validation")  # or training would end in them
        return Streamed(validation, encoder, classes, None, estimator.workers, estimator.epochs)
    pair = validation if isinstance(validation, tuple) else (validation, None)
    if len(pair) != 2 or (pair[1] is None and not isinstance(pair[0], os.PathLike)):
        wanted = "(X, y), a pathlib.Path, a Stream or a share"
        raise ValueError(f"validation: expected {wanted} but got {shown(validation)}")
    X, y = estimator._labelled(*pair)
    if not X:
        raise ValueError("validation: expected at least one sequence but got none")
    return Examples(encoder.encode(X), labels.to_targets(y, classes, "validation"))


def _checked(classes: np.ndarray) -> np.ndarray:
    if len(classes) < 2:
        raise ValueError(f"y: expected at least two classes but got one, {shown(classes.tolist()[0])}")
    return classes


def _about(held: Data | None, more: dict[str, Any]) -> dict[str, Any] | None:
    return None if held is None else {"rows": len(held), "digest": held.digest(), **more}

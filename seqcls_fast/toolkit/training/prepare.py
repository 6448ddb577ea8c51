"""From the data that fit() is given to the data that training takes: an encoder, the classes, and encoded examples.

The data are in memory, or a Stream that is read while it is used. Both end in the same ``Prepared``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .._terminal import shown
from ..data import labels
from ..data.datasets import Data, Examples, Raw, Streamed
from ..data.leakage import Fingerprints, fingerprints
from ..data.stream import Stream
from ..inputs import Inputs
from .options import batch_size_for, epochs_for
from .scores import normalized

__all__ = ["FitData", "Known", "Prepared", "prepare"]

Raws = tuple[list[Any] | None, list[Any] | None]

_ANEW = "; warm_start=False begins anew"
_ENOUGH = 20  # rows, from which on labels are expected to repeat


@dataclass(frozen=True)
class FitData:
    """The arguments of fit() that are data, as the estimators document them."""

    X: Any
    y: Any = None
    validation: Any = None
    sample_weight: Any = None

    @property
    def share(self) -> float | None:
        """The share of X to hold out, if the validation is one."""
        return float(self.validation) if isinstance(self.validation, float | np.floating) else None


@dataclass(frozen=True)
class Known:
    """What a model has learnt before that is to be trained on."""

    encoder: Any
    classes: np.ndarray


@dataclass
class Prepared:
    encoder: Any  # which has learned from the training data
    classes: np.ndarray
    data: Data
    held: Data | None  # the validation data
    seen: Fingerprints  # of the training data
    epochs: int
    held_from_all: bool  # whether the validation data are a share that was held out unasked, of data in memory
    about: dict[str, Any]  # counts and digests of the data, for the model card and to recognise the data again
    raw: Raws = (None, None)  # the sequences of both as they were given, where they are in memory

    def encoded_by(self, encoder: Any) -> tuple[Data, Data | None]:
        """The training data and the validation data, encoded by another encoder while they are used."""

        def encoded(data: Data | None, raw: list[Any] | None) -> Data | None:
            if isinstance(data, Examples) and raw is not None:
                return Raw(raw, data, encoder)
            return data.encoded_by(encoder) if isinstance(data, Streamed) else None

        data = encoded(self.data, self.raw[0])
        assert data is not None
        return data, encoded(self.held, self.raw[1])

    def narrow(self) -> tuple[Data, Data | None]:
        """The training data and the validation data without the wide parts of texts."""

        def narrow(data: Data | None) -> Data | None:
            if isinstance(data, Examples):
                return replace(data, sequences=data.sequences.narrow())
            return data.narrow() if isinstance(data, Streamed) else None

        data = narrow(self.data)
        assert data is not None
        return data, narrow(self.held)

    def alone(self) -> tuple[Data, Data | None]:
        """The training data and the validation data as one process reads them, after the training."""

        def alone(data: Data | None) -> Data | None:
            return data.encoded_by(self.encoder) if isinstance(data, Streamed) else data

        data = alone(self.data)
        assert data is not None
        return data, alone(self.held)

    def close(self) -> None:
        """Ends the processes that read a Stream ahead."""
        for data in (self.data, self.held):
            if isinstance(data, Streamed):
                data.stream.close()


def prepare(
    inputs: Inputs, parameters: Mapping[str, Any], given: FitData, seed: int, known: Known | None = None
) -> Prepared:
    """Checks and encodes the data, and learns the encoder and the classes from them.

    Args:
        inputs: how raw data of this kind become sequences.
        parameters: those of the estimator.
        given: the data.
        seed: decides which examples a share of X holds out.
        known: the encoder and the classes of a model that is trained on, which stay as they are.
    """
    if given.share is not None and not 0 < given.share < 1:
        raise ValueError(f"validation: expected a share between 0 and 1 but got {shown(given.validation)}")
    make = _streamed if isinstance(given.X, Stream) else _in_memory
    prepared = make(inputs, parameters, given, seed, known)
    if prepared.held is None and parameters["patience"] is not None:
        raise ValueError("patience: expected None without validation but got a number of epochs")
    return prepared


def _with_holdout(
    inputs: Inputs, given: FitData, rows: int, classes: int, parameters: Mapping[str, Any]
) -> FitData:  # fmt: skip
    """The data, of which a share is to be held out where there is no validation and there are enough rows.

    A share has a row of each class at least, so with many classes of few rows it would be much more than was asked.
    """
    share = parameters["holdout"]
    if given.validation is not None or share is None or rows < max(inputs.enough_to_hold, 2 * classes / share):
        return given
    return replace(given, validation=share)


def _epochs(parameters: Mapping[str, Any], rows: int) -> int:
    size = parameters["batch_size"] or batch_size_for(rows)
    found: int = parameters["epochs"] or epochs_for(-(-rows // size))
    return found


def _in_memory(
    inputs: Inputs, parameters: Mapping[str, Any], given: FitData, seed: int, known: Known | None
) -> Prepared:
    X, y = inputs.labelled(given.X, given.y)
    if not X:
        raise ValueError("X: expected at least two sequences but got none")
    for words in inputs.doubts(X):
        _warn(words)
    classes = _checked(labels.classes_of(y), len(y), X) if known is None else known.classes
    asked, given = given, _with_holdout(inputs, given, len(y), len(classes), parameters)
    targets = labels.to_targets(y, classes, hint=_ANEW)
    weights = labels.weights_of(targets, classes, parameters["class_weight"], given.sample_weight)
    held_inputs: list[Any] | None = None
    held_targets = None
    if given.share is not None:
        kept, out = labels.stratified(targets, given.share, seed)
        held_inputs, held_targets = [X[i] for i in out.tolist()], targets[out]
        _check_held(held_targets.tolist(), classes)
        X, targets = [X[i] for i in kept.tolist()], targets[kept]
        weights = None if weights is None else weights[kept] / labels.positive(weights[kept].mean())
    if known is None:
        encoder = inputs.make_encoder(normalized(inputs, parameters, X, targets, seed)).fit(X)
        encoder = inputs.learnt(encoder, len(classes))
    else:
        encoder = known.encoder
    examples = Examples(encoder.encode(X), targets, weights)
    held: Data | None = None
    if held_inputs is not None and held_targets is not None:
        held = Examples(encoder.encode(held_inputs), held_targets)
    elif given.validation is not None:
        held, held_inputs = _validation(inputs, parameters, given.validation, encoder, classes)
    seen = fingerprints(inputs.plain(X))
    about = _about(examples, held, given.share)
    epochs = _epochs(parameters, len(examples))
    return Prepared(encoder, classes, examples, held, seen, epochs, given is not asked, about, (X, held_inputs))


def _streamed(
    inputs: Inputs, parameters: Mapping[str, Any], given: FitData, seed: int, known: Known | None
) -> Prepared:
    X: Stream = given.X
    if given.y is not None or given.sample_weight is not None:
        raise ValueError("y and sample_weight: expected None with a Stream, which names their columns")
    if X.kind != inputs.kind:
        raise ValueError(f"X: expected a Stream of kind {inputs.kind!r} but got {shown(X.kind)}")
    if X.label is None:
        raise ValueError("X: expected a Stream with a column of labels but got label=None")
    held_stream = None
    if given.validation is None and parameters["holdout"] is not None and inputs.holds_out_of_streams:
        given = _with_holdout(inputs, given, X.survey().rows, 0, parameters)
    if given.share is not None:
        X, held_stream = X.split(given.share, seed)
    if known is None:
        encoder = inputs.make_encoder(parameters)
        survey = X.survey(encoder)
        classes = _checked(labels.classes_of(list(survey.labels)), survey.rows)
        encoder = inputs.learnt(encoder, len(classes))
    else:
        survey, encoder, classes = X.survey(), known.encoder, known.classes
        labels.to_targets(list(survey.labels), classes, hint=_ANEW)
    workers, epochs = parameters["workers"], _epochs(parameters, survey.rows)
    data = Streamed(X, encoder, classes, parameters["class_weight"], workers, epochs)
    held: Data | None = None
    held_inputs: list[Any] | None = None
    if held_stream is not None:
        held = Streamed(held_stream, encoder, classes, None, workers, epochs)
    elif given.validation is not None:
        held, held_inputs = _validation(inputs, parameters, given.validation, encoder, classes)
    about = _about(data, held, given.share)
    return Prepared(encoder, classes, data, held, survey.seen, epochs, False, about, (None, held_inputs))


def _validation(
    inputs: Inputs, parameters: Mapping[str, Any], validation: Any, encoder: Any, classes: np.ndarray
) -> tuple[Data, list[Any] | None]:
    """The validation data from (X, y), a pathlib.Path or a Stream, and the sequences as they are if in memory."""
    if isinstance(validation, Stream):
        # Unknown labels are refused here, before a training that could only fail at its first validation.
        labels.to_targets(list(validation.survey().labels), classes, "validation")
        return Streamed(validation, encoder, classes, None, parameters["workers"], 1), None
    pair = validation if isinstance(validation, tuple) else (validation, None)
    if len(pair) != 2 or (pair[1] is None and not isinstance(pair[0], os.PathLike)):
        wanted = "(X, y), a pathlib.Path, a Stream or a share"
        raise ValueError(f"validation: expected {wanted} but got {shown(validation)}{_as_share(validation)}")
    try:
        X, y = inputs.labelled(*pair)
        if not X:
            raise ValueError("expected at least one sequence but got none")
        sequences = encoder.encode(X)
    except (TypeError, ValueError) as error:
        raise type(error)(f"validation: {error}") from None
    return Examples(sequences, labels.to_targets(y, classes, "validation")), X


def _as_share(value: Any) -> str:
    """The end of a message about a percentage, or a text, in the place of a share."""
    try:
        share = float(value) if isinstance(value, str | int) and not isinstance(value, bool) else 0.0
    except (ValueError, OverflowError):
        share = 0.0
    share = share / 100 if share > 1 else share
    return f"; did you mean {share:g}, a share of X?" if 0 < share < 1 else ""


def _checked(classes: np.ndarray, rows: int, X: Sequence[Any] = ()) -> np.ndarray:
    """The classes of ``rows`` labels, after a check and with warnings about labels that are hardly classes."""
    if len(classes) < 2:
        raise ValueError(f"y: expected at least two classes but got one, {shown(classes.tolist()[0])}")
    texts = len(set(X)) if all(isinstance(each, str) for each in X) else 0
    for words in labels.doubts(classes):
        _warn(words)
    found = len(classes)
    if 0 < texts < found:
        _warn(f"y: expected fewer labels than X has different texts, {texts}, but got {found}; are X and y swapped?")
    elif rows >= _ENOUGH and found > rows / 2:
        what = "numbers to estimate" if classes.dtype.kind == "f" else "names or texts"
        _warn(
            f"y: expected labels that repeat but got {found} different ones in {rows} sequences; are they {what} "
            "rather than classes?"
        )
    return classes


def _check_held(targets: Sequence[int], classes: np.ndarray) -> None:
    """Warns of a share that was held out and cannot show how well classes are told apart."""
    if len(set(targets)) == 1:
        label = shown(classes.tolist()[targets[0]])
        _warn(
            f"validation: expected a share with sequences of several classes but got {len(targets)} of {label} alone; "
            "pass validation=(X, y), or train on all with holdout=None"
        )


def _warn(words: str) -> None:
    warnings.warn(words, UserWarning, stacklevel=9)  # of the caller of fit()


def _about(data: Data, held: Data | None, share: float | None) -> dict[str, Any]:
    validation: dict[str, Any] | None = None
    if held is not None:
        validation = {"rows": len(held), "digest": held.digest()} | ({} if share is None else {"share": share})
    return {"rows": len(data), "digest": data.digest(), "validation": validation}

"""The baseline: a linear model on simple features, which is fitted beside the network and compared with it.

It shows what the network is worth on these data. Its work is bounded by numbers of rows and passes, not by a clock, so
that a training with a seed ends with the same baseline everywhere. An n-gram of a text has one of 65,536 ids (fewer for
more than 64 classes), and weights are kept in 16 bits: a saved baseline takes 128 KB for each class, and 256 KB.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ._extras import need
from .data.datasets import Data
from .data.features import SeriesSummary
from .data.ngrams import HashedText
from .data.ragged import Ragged
from .data.series import SeriesEncoder
from .data.stream import Stream
from .inputs import Inputs
from .ranks import ALONE, Ranks

__all__ = ["Baseline", "features_for", "fit_baseline", "tensors_for"]

_BITS, _SIZE_BITS = 16, 22  # the bits of the ids of n-grams; of the number of weights
_READ = 1024  # rows that are encoded at once
_MOST_ROWS = 100_000  # rows that are learned from in all passes together
_FEW = 4_000  # rows, up to which more passes over them are needed
_MOST_WORK = 16_000_000  # rows times classes
_MOST_WEIGHT = 10.0  # of a row; a larger one would make steps too long
_PREFIX = "baseline."  # of the names of its tensors in a saved model

Floats = NDArray[np.float64]


def features_for(encoder: Any, classes: int) -> HashedText | SeriesSummary:
    """The encoder of the baseline's features, for the network's encoder, which is fitted."""
    if isinstance(encoder, SeriesEncoder):
        return SeriesSummary(encoder)
    bits = max(1, min(_BITS, _SIZE_BITS - (classes - 1).bit_length()))
    return HashedText(bits, lowercase=encoder.lowercase, normalization=encoder.normalization)


@dataclass(frozen=True, eq=False)
class Baseline:
    """A linear model; ``predict`` and ``predict_proba`` take what those of the estimator take."""

    inputs: Inputs
    features: Any  # their encoder
    classes: NDArray[Any]
    middle: Tensor  # (features,) which is subtracted from the values of a series; (0,) for texts
    scale: Tensor  # (features,) by which they are multiplied then
    weights: Tensor  # (features, classes)
    bias: Tensor  # (classes,)

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of each sequence."""
        found: NDArray[Any] = self.classes[self.predict_proba(X).argmax(1)]
        return found

    def predict_proba(self, X: Any) -> Floats:
        """The probability of each class, ``(len(X), len(classes))``."""
        if isinstance(X, Stream):
            pieces = (piece.sequences for piece in X.pieces(self.features, workers=0))
        else:
            rows, _ = self.inputs.read(X, None, labelled=False)
            pieces = (self.features.encode(rows[k : k + _READ]) for k in range(0, len(rows), _READ))
        return np.concatenate([np.zeros((0, len(self.classes))), *map(self._shares, pieces)])

    def targets_of(self, data: Data, ranks: Ranks) -> NDArray[np.int64]:
        """The numbers of the classes that are predicted, in the order in which all ranks together see the data."""
        pieces = (piece for rank in range(ranks.world) for piece in data.pieces(Ranks(rank, ranks.world)))
        found = [self._shares(piece.sequences).argmax(1) for piece in pieces]
        return np.concatenate([np.zeros(0, np.int64), *found])

    def _shares(self, rows: Ragged) -> Floats:
        x, columns = _used(_scaled(_matrix(rows, self.features), self.middle.numpy(), self.scale.double().numpy()))
        return _softmax(x @ self.weights.numpy()[columns].astype(np.float64) + self.bias.double().numpy())

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by their names in a saved model."""
        return {_PREFIX + name: getattr(self, name) for name in _TENSORS}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], inputs: Inputs, features: Any, classes: NDArray[Any]
    ) -> Baseline:
        """The inverse of :meth:`tensors`, whose shapes :func:`tensors_for` says."""
        return cls(inputs, features, classes, **{name: tensors[_PREFIX + name] for name in _TENSORS})


_TENSORS = ("middle", "scale", "weights", "bias")


def tensors_for(features: Any, classes: int) -> dict[str, tuple[torch.dtype, tuple[int, ...] | None]]:
    """The dtype and shape of each tensor of a saved baseline, by name."""
    middle = 0 if isinstance(features, HashedText) else features.count
    shapes: dict[str, tuple[int, ...]] = {
        "middle": (middle,), "scale": (features.count,), "weights": (features.count, classes), "bias": (classes,)
    }  # fmt: skip
    narrow = {"weights": _dtype(features)}
    return {_PREFIX + name: (narrow.get(name, torch.float32), shape) for name, shape in shapes.items()}


def _dtype(features: Any) -> torch.dtype:
    return torch.float16 if isinstance(features, HashedText) else torch.float32


def fit_baseline(inputs: Inputs, features: Any, data: Data, classes: NDArray[Any], seed: int, epochs: int) -> Baseline:
    """Learns a baseline: logistic regression by stochastic gradient descent, with weight decay.

    Args:
        inputs: how raw data of this kind become sequences.
        features: the encoder of the features.
        data: encoded by it.
        classes: the labels.
        seed: decides about the order of the rows.
        epochs: of the network, whose number bounds the passes here.
    """
    text, K = isinstance(features, HashedText), len(classes)
    rows, passes = _amount(len(data), K, epochs)

    def read(epoch: int) -> Iterator[tuple[Any, NDArray[np.int64], Any]]:
        for batch in islice(data.epoch(_READ, seed, epoch, 0, ALONE), -(-rows // _READ)):
            found, chosen = batch.examples, batch.rows
            x = _matrix(found.sequences.take(chosen), features)
            weights = np.ones(len(chosen)) if found.weights is None else found.weights[chosen].double().numpy()
            yield x, found.targets[chosen].numpy(), np.minimum(weights, _MOST_WEIGHT)

    middle, scale = (_document_frequencies if text else _moments)(x for x, _, _ in read(0))
    # A step is a sum over rows. Many texts have few features in common, so that it may be large for them.
    size, rate = (32 if rows > _FEW else 4, 2.0) if text else (8, 0.25)
    weights, bias = np.zeros((features.count, K)), np.zeros(K)
    mean_weights, mean_bias = np.zeros_like(weights), np.zeros_like(bias)
    decay, seen = 0.1 / rows, 0
    for epoch in range(passes):
        for x, targets, importance in read(epoch):
            x = _scaled(x, middle, scale)
            for start in range(0, len(targets), size):
                stop = min(start + size, len(targets))
                part, columns = _used(x[start:stop])
                errors = _softmax(part @ weights[columns] + bias)
                errors[np.arange(stop - start), targets[start:stop]] -= 1
                errors *= importance[start:stop, None]
                step = rate / (1 + rate * decay * seen)
                weights[columns] -= step * (part.T @ errors + decay * size * weights[columns])
                bias -= 0.1 * step * errors.sum(0)
                seen += stop - start
        if epoch >= passes // 2:  # the mean over the ends of the later passes depends less on the order of the rows
            mean_weights += weights / (passes - passes // 2)
            mean_bias += bias / (passes - passes // 2)
    kept = [torch.from_numpy(each).float() for each in (middle, scale, mean_bias)]
    narrow = torch.from_numpy(mean_weights).to(_dtype(features))
    return Baseline(inputs, features, classes, kept[0], kept[1], narrow, kept[2])


def _amount(count: int, classes: int, epochs: int) -> tuple[int, int]:
    """The rows and the passes to learn from, for less than a fifth of the time of a network of common sizes."""
    rows = max(1, min(count, _MOST_ROWS, _MOST_WORK // classes))
    passes = min(20, max(5, 20_000 // rows)) if rows <= _FEW else min(5, epochs)
    return rows, max(1, min(passes, _MOST_ROWS // rows, _MOST_WORK // (rows * classes)))


# -- matrices of features, dense for series and sparse for texts -------------------------------------------------------


def _matrix(rows: Ragged, features: Any) -> Any:
    """The features of series, or for texts 1 + log(how often) for each id that occurs."""
    if not isinstance(features, HashedText):
        return rows.values.numpy().astype(np.float64)
    ids, ends = rows.values.numpy(), np.concatenate([[0], rows.lengths.numpy().cumsum()])
    found = need("scipy.sparse", "a baseline").csr_matrix((np.ones(len(ids)), ids, ends), (len(rows), features.count))
    found.sum_duplicates()
    found.data = 1 + np.log(found.data)
    return found


def _scaled(x: Any, middle: Any, scale: Any) -> Any:
    """Features of which those of a row together have a size of about 1."""
    if isinstance(x, np.ndarray):
        return np.clip((x - middle) * scale, -5, 5) / np.sqrt(x.shape[1])
    x.data *= scale[x.indices]
    row = np.repeat(np.arange(x.shape[0]), np.diff(x.indptr))
    x.data /= np.maximum(np.sqrt(np.bincount(row, x.data**2, minlength=x.shape[0])), 1e-9)[row]
    return x


def _used(x: Any) -> tuple[Any, Any]:
    """The columns of a matrix that are not all zero, and their numbers."""
    if isinstance(x, np.ndarray):
        return x, slice(None)
    columns, places = np.unique(x.indices, return_inverse=True)
    return type(x)((x.data, places, x.indptr), (x.shape[0], len(columns))), columns


def _document_frequencies(matrices: Iterator[Any]) -> tuple[Floats, Floats]:
    """Nothing, and the smoothed inverse document frequency of each id, as scikit-learn's TfidfVectorizer has it."""
    there: Any = 0
    rows = 0
    for x in matrices:
        there, rows = there + x.getnnz(0), rows + x.shape[0]
    return np.zeros(0), np.log((1 + rows) / (1 + there)) + 1


def _moments(matrices: Iterator[Any]) -> tuple[Floats, Floats]:
    """The mean of each feature, and 1 / its deviation (1 for a constant one)."""
    rows, sums, squares = 0, np.zeros(1), np.zeros(1)
    start: Any = None
    for x in matrices:
        start = x.mean(0) if start is None else start  # an offset, against rounding
        rows, sums, squares = rows + len(x), sums + (x - start).sum(0), squares + ((x - start) ** 2).sum(0)
    deviation = np.sqrt(np.maximum(squares / rows - (sums / rows) ** 2, 0))
    return start + sums / rows, 1 / np.where(deviation > 1e-6, deviation, 1.0)


def _softmax(scores: Floats) -> Floats:
    shares = np.exp(scores - scores.max(1, keepdims=True))
    found: Floats = shares / shares.sum(1, keepdims=True)
    return found

"""Features of series for a linear model: summaries. They are an encoder, as that of the network is, so that they read
lists and Streams alike. Those of texts are in ngrams.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .ragged import Ragged
from .series import SeriesEncoder

__all__ = ["SeriesSummary"]

_SEGMENTS = 8  # equal parts of a series whose means are features


class SeriesSummary:
    """A series as one step of features: its length, and of each of its own features mean, deviation, extremes, first
    and last value, slope, mean size and deviation of the changes, and the means of eight parts.

    Args:
        encoder: the fitted encoder of the network, which deals with missing values.

    Example::

        >>> from seqcls_fast.toolkit.data.features import SeriesSummary
        >>> from seqcls_fast.toolkit.data.series import SeriesEncoder
        >>> summary = SeriesSummary(SeriesEncoder(standardize=False).fit([[1.0, 2.0, 3.0]]))
        >>> [round(value, 2) for value in summary.encode([[1.0, 2.0, 3.0]]).values[0, 1:8].tolist()]
        [2.0, 0.82, 1.0, 3.0, 1.0, 3.0, 1.0]
    """

    def __init__(self, encoder: SeriesEncoder) -> None:
        self.encoder = encoder

    @property
    def count(self) -> int:
        """How many features a series has."""
        return 1 + (9 + _SEGMENTS) * self.encoder.features_out

    def encode(self, series: Sequence[Any]) -> Ragged:
        encoded = self.encoder.encode(series)
        lengths = encoded.lengths.numpy()
        there = np.flatnonzero(lengths)
        summaries = np.zeros((len(lengths), self.count))
        if len(there):
            summaries[there, 1:] = _summaries(encoded.values.double().numpy(), lengths[there])
        summaries[:, 0] = np.log1p(lengths)
        values = torch.from_numpy(np.clip(summaries, -1e6, 1e6).astype(np.float32))
        return Ragged(values, torch.ones(len(lengths), dtype=torch.int64))


def _summaries(x: NDArray[np.float64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
    """The features of series that all have steps; ``x`` are their steps (N, F), end to end."""
    starts = np.cumsum(lengths) - lengths
    count, step = lengths[:, None], np.arange(len(x)) - np.repeat(starts, lengths)
    ends = starts + lengths - 1

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.add.reduceat(values, starts) / count
        return found

    middle = mean(x)
    deviation = np.sqrt(mean((x - np.repeat(middle, lengths, 0)) ** 2))
    time = step[:, None] - (np.repeat(lengths, lengths)[:, None] - 1) / 2
    slope = mean(x * time) / np.maximum(mean(time**2), 1e-12)
    changes = np.diff(x, axis=0, prepend=x[:1])
    changes[starts] = 0
    lows, highs = np.minimum.reduceat(x, starts), np.maximum.reduceat(x, starts)
    part = step * _SEGMENTS // np.repeat(lengths, lengths) + np.repeat(np.arange(len(lengths)), lengths) * _SEGMENTS
    sums = np.zeros((len(lengths) * _SEGMENTS, x.shape[1]))
    np.add.at(sums, part, x)
    sizes = np.bincount(part, minlength=len(sums))[:, None]
    parts = np.where(sizes > 0, sums / np.maximum(sizes, 1), np.repeat(middle, _SEGMENTS, 0))
    sizes_of_steps = [mean(np.abs(changes)), np.sqrt(mean(changes**2))]
    return np.concatenate(
        [middle, deviation, lows, highs, x[starts], x[ends], slope, *sizes_of_steps, parts.reshape(len(lengths), -1)], 1
    )

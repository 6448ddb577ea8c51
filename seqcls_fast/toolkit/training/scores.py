"""Scores of random convolutions, fitted in closed form; what they miss of rows left out chooses how series are scaled.

The rows that are read, and the convolutions, are bounded by numbers, so that memory is bounded too, and the same seed
gives the same scores everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...convolutions import KERNELS, ConvolutionScores, RandomConvolutions, dilations_for
from ..data.batches import generator_of
from ..data.datasets import Data, Examples
from ..data.ragged import Ragged
from ..data.series import NORMALS
from ..inputs import Inputs
from ..ranks import ALONE
from .ridge import Ridge, fit_ridge, logit_scale

__all__ = ["Wide", "fit_wide", "in_parts", "normalized"]

_READ = 256  # rows that are read at once
_MOST_VALUES = 1 << 22  # of series whose features are computed at once
_FEW = 2_500  # rows, up to which the matrix of all pairs of rows is cheaper than that of all pairs of features
_MOST_ROWS, _MANY_FEATURES = 10_000, 30 * KERNELS  # for more rows than that
_SAMPLES = 256  # series of which the biases are quantiles
_BLOCKS = (1.0, 0.3, 0.0)  # weights of the summaries, of which the rows left out choose one
_TRIED = 1_000  # series by which it is chosen how they are scaled


@dataclass(frozen=True)
class Wide:
    scores: ConvolutionScores  # whose results are logits
    error: float  # the mean square of what they miss of rows that they were not fitted on


def normalized(
    inputs: Inputs, parameters: Mapping[str, Any], X: Sequence[Any], targets: Tensor, seed: int
) -> Mapping[str, Any]:
    """The parameters, with the choice of what ``normalize="auto"`` stands for: what the scores miss less with."""
    if parameters.get("normalize") != "auto":
        return parameters
    found: dict[str, float] = {}
    if parameters["standardize"] and parameters["convolutions"]:
        rows = torch.randperm(len(X), generator=generator_of(seed, "normalize"))[:_TRIED]
        some, classes = [X[row] for row in rows.tolist()], int(targets.max()) + 1
        for normalize in NORMALS:
            try:
                encoder = inputs.make_encoder({**parameters, "normalize": normalize}).fit(some)
                data = [Examples(encoder.encode(some), targets[rows])]
            except ValueError:  # encoding all series says what is wrong, with the number of the one that is
                break
            found[normalize] = fit_wide(data, encoder.features_own, classes, _MANY_FEATURES, seed).error
    return {**parameters, "normalize": min(found, key=found.__getitem__, default=NORMALS[0])}


def in_parts(sequences: Ragged) -> tuple[Tensor, ...]:
    """Their numbers, in parts whose features are computed at once: few of long series."""
    steps = max(1, int(sequences.lengths.max()) if len(sequences) else 1) * sequences.values.size(1)
    return torch.arange(len(sequences)).split(max(1, min(_READ, _MOST_VALUES // steps)))


def fit_wide(data: Sequence[Data], channels: int, classes: int, features: int, seed: int) -> Wide:
    """Fits the scores of random convolutions to data.

    Args:
        data: parts of the training data, of which about 10,000 rows are read at most.
        channels: how many features of a step are read, from the first on.
        classes: how many there are.
        features: about how many convolutions there are; fewer for many rows.
        seed: decides about the kernels, and which rows are read of many.
    """
    rows = sum(map(len, data))
    if rows > _FEW:
        features = min(features, _MANY_FEATURES)

    def read() -> Iterator[tuple[Ragged, Tensor, Tensor | None]]:
        for each in data:
            for batch in islice(each.epoch(_READ, seed, 0, 0, ALONE), -(-_MOST_ROWS * len(each) // (rows * _READ))):
                found = batch.examples
                weights = None if found.weights is None else found.weights[batch.rows]
                yield found.sequences.take(batch.rows), found.targets[batch.rows], weights

    pieces = list(read())
    # A batch has series of about one length, so samples are drawn from all of them.
    series = [one[:, :channels] for sequences, _, _ in pieces for one in sequences.split()]
    chosen = torch.randperm(len(series), generator=generator_of(seed, "samples"))[:_SAMPLES]
    samples, longest = [series[place] for place in chosen.tolist()], max(map(len, series), default=1)
    convolutions = RandomConvolutions(channels, *dilations_for(longest, features)).draw(samples, seed)
    scores = ConvolutionScores(convolutions, classes)
    found, targets, weights = [], [], []
    for sequences, some, importance in pieces:
        found += [scores.features(*sequences.pad(rows)) for rows in in_parts(sequences)]
        targets.append(some)
        weights.append(torch.ones(len(some)) if importance is None else importance)
    matrix, labels, share = torch.cat(found), torch.cat(targets).numpy(), torch.cat(weights).double().numpy()
    ridge = _fit(scores, matrix, labels, classes, share)
    return Wide(scores, ridge.error)


def _fit(
    scores: ConvolutionScores, matrix: Tensor, targets: NDArray[np.int64], classes: int, weights: NDArray[np.float64]
) -> Ridge:
    """Sets the moments and weights of the scores, so that they are logits."""
    middle, deviation = matrix.double().mean(0), matrix.double().std(0, correction=0)
    there = deviation > 1e-6 * matrix.double().abs().amax(0)  # others are constant but for rounding
    scores.middle.copy_(middle)
    scores.scale.copy_(torch.where(there, 1 / deviation.clamp(min=1e-300), 0.0))
    # The summaries are few. As a block they get a weight beside that of all convolutions together.
    convolutions, x = len(scores.convolutions.biases), scores.standardised(matrix).double().numpy()
    found = []
    for share in _BLOCKS:
        block = np.ones(matrix.shape[1])
        block[convolutions:] = share * np.sqrt(convolutions / (matrix.shape[1] - convolutions))
        found.append((fit_ridge(x * block, targets, classes, weights), block))
    ridge, block = min(found, key=lambda each: each[0].error)
    scale = logit_scale(ridge.left_out, targets)
    scores.linear.weight.copy_(torch.from_numpy((scale * ridge.weights * block[:, None]).T))
    scores.linear.bias.copy_(torch.from_numpy(scale * ridge.bias))
    return ridge

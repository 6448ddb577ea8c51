"""The wide part of a classifier of series: scores from random convolutions, added to the logits of the network.

It is fitted in closed form once the network is trained, so that batches, checkpoints and ranks know nothing of it. The
validation data then say how much of either goes into the logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...classifier import SequenceClassifier
from ...convolutions import KERNELS, ConvolutionScores, RandomConvolutions, dilations_for
from ..data.datasets import Data
from ..data.ragged import Ragged
from ..ranks import ALONE, Ranks
from .logits import logits_of
from .prepare import Prepared
from .ridge import Ridge, fit_ridge, log_losses, logit_scale

__all__ = ["Wide", "add_wide", "fit_wide", "mix"]

_READ = 256  # rows whose features are computed at once
_FEW = 2_500  # rows, up to which the matrix of all pairs of rows is cheaper than that of all pairs of features
_MOST_ROWS, _MANY_FEATURES = 10_000, 30 * KERNELS  # for more rows than that
_SAMPLES = 256  # series of which the biases are quantiles
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the network in the logits
_USUAL = 1  # the share that is taken unless the validation data show that another is better


@dataclass(frozen=True)
class Wide:
    scores: ConvolutionScores  # whose results are logits
    error: float  # the mean square of what they miss of rows that they were not fitted on


def add_wide(
    model: SequenceClassifier, prepared: Prepared, parameters: Mapping[str, Any], seed: int, ranks: Ranks
) -> None:
    """Fits the wide part to the training data, in the process that writes, and gives it to the models of all."""
    device = next(model.parameters()).device
    if ranks.writer:
        data, held = prepared.alone()
        wide = _fitted(model, prepared, parameters, seed, data)
        mix(model, wide.scores, held, device, parameters["amp"])
    _share(model, ranks, device)


def refit(
    model: SequenceClassifier, prepared: Prepared, parameters: Mapping[str, Any], seed: int, ranks: Ranks
) -> None:
    """Fits the wide part again, to the training data and the validation data, with the weight that it has."""
    device = next(model.parameters()).device
    if ranks.writer:
        data, held = prepared.alone()
        assert model.convolutions is not None
        weight = float(model.convolutions.weight)
        wide = _fitted(model, prepared, parameters, seed, data, held)
        model.convolutions = wide.scores.weighted(weight).to(device)
    _share(model, ranks, device)


def _fitted(
    model: SequenceClassifier, prepared: Prepared, parameters: Mapping[str, Any], seed: int, *data: Data | None
) -> Wide:
    channels, features = prepared.encoder.features_out, parameters["convolutions"]
    return fit_wide([each for each in data if each is not None], channels, model.num_classes, features, seed)


def _share(model: SequenceClassifier, ranks: Ranks, device: torch.device) -> None:
    """Gives the model of the process that writes to the others."""
    if ranks.world == 1:
        return
    found = None
    if ranks.writer:
        assert model.convolutions is not None
        state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        found = model.convolutions.convolutions.sizes, state
    sizes, state = ranks.from_writer(found)
    if not ranks.writer:
        model.convolutions = ConvolutionScores(RandomConvolutions(**sizes), model.num_classes).to(device)
        model.load_state_dict(state)


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

    pieces = read()
    first: list[Any] = []
    for piece in pieces:
        first.append(piece)
        if sum(len(targets) for _, targets, _ in first) >= _SAMPLES:
            break
    samples = [series[:, :channels] for sequences, _, _ in first for series in sequences.split()]
    longest = max(map(len, samples), default=1)
    convolutions = RandomConvolutions(channels, *dilations_for(longest, features)).draw(samples, seed)
    scores = ConvolutionScores(convolutions, classes)
    found, targets, weights = [], [], []
    for sequences, some, importance in chain(first, pieces):
        found.append(scores.features(*sequences.pad(torch.arange(len(sequences)))))
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
    # The summaries are few. As a block they get the weight of all convolutions together.
    convolutions = len(scores.convolutions.biases)
    block = np.ones(matrix.shape[1])
    block[convolutions:] = np.sqrt(convolutions / (matrix.shape[1] - convolutions))
    ridge = fit_ridge(scores.standardised(matrix).double().numpy() * block, targets, classes, weights)
    scale = logit_scale(ridge.left_out, targets)
    scores.linear.weight.copy_(torch.from_numpy((scale * ridge.weights * block[:, None]).T))
    scores.linear.bias.copy_(torch.from_numpy(scale * ridge.bias))
    return ridge


def mix(model: SequenceClassifier, scores: ConvolutionScores, held: Data | None, device: Any, amp: bool) -> float:
    """Adds scores to the logits of a model, in the shares that suit the validation data; returns the network's."""
    if held is None:
        share, scale = 0.5, 1.0
    else:
        found = [(logits_of(model, piece.sequences, _READ, device, amp), _of(scores, piece.sequences), piece.targets)
                 for piece in held.pieces(ALONE)]  # fmt: skip
        network, wide = (torch.cat([each[k] for each in found]).double().numpy() for k in (0, 1))
        share, scale = _shares(network, wide, torch.cat([targets for _, _, targets in found]).numpy())
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.mul_(share * scale)
    model.convolutions = scores.weighted((1 - share) * scale).to(device)
    return share


def _shares(network: NDArray[np.float64], wide: NDArray[np.float64], targets: NDArray[np.int64]) -> tuple[float, float]:
    """The network's share of the logits, and what their sum is multiplied by."""
    losses, scales = [], []
    for share in _SHARES:
        mixed = share * network + (1 - share) * wide
        scales.append(logit_scale(mixed, targets))
        losses.append(log_losses(scales[-1] * mixed, targets))
    best = int(np.argmin([each.mean() for each in losses]))
    gain = losses[_USUAL] - losses[best]
    if best and gain.mean() <= gain.std() / np.sqrt(len(gain)):  # which may be chance
        best = _USUAL
    return _SHARES[best], scales[best]


def _of(scores: ConvolutionScores, sequences: Ragged) -> Tensor:
    pieces = torch.arange(len(sequences)).split(_READ)
    with torch.no_grad():
        return torch.cat([scores(*sequences.pad(rows)) for rows in pieces])

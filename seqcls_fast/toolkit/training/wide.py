"""The wide part of a classifier of series: scores from random convolutions, added to the logits of the network.

It is fitted in closed form once the network is trained, so that batches, checkpoints and ranks know nothing of it. The
validation data then say how much of either goes into the logits.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...classifier import SequenceClassifier
from ...convolutions import ConvolutionScores, RandomConvolutions
from ..data.datasets import Data
from ..data.ragged import Ragged
from ..ranks import ALONE, Ranks
from .logits import logits_of
from .prepare import Prepared
from .ridge import log_losses, logit_scale
from .scores import Wide, fit_wide, in_parts

__all__ = ["add_wide", "give_to_all", "mix", "refit"]

_READ = 256  # rows whose features are computed at once
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the network in the logits
_USUAL = 1  # the share that is taken unless the validation data show that another is better
_ENOUGH = 30  # rows of validation data, from which on they can show it


def add_wide(
    model: SequenceClassifier, prepared: Prepared, parameters: Mapping[str, Any], seed: int, ranks: Ranks,
    fitted: Wide | None = None,
) -> Wide | None:  # fmt: skip
    """Fits the wide part to the training data, in the process that writes, and gives it to the models of all.

    ``fitted`` is what an earlier call with the same data and seed has returned, whose work is then not done again.
    """
    device = next(model.parameters()).device
    if ranks.writer:
        data, held = prepared.alone()
        fitted = _fitted(model, prepared, parameters, seed, data) if fitted is None else fitted
        mix(model, copy.deepcopy(fitted.scores), held, device, parameters["amp"])
    give_to_all(model, ranks)
    return fitted


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
    give_to_all(model, ranks)


def _fitted(
    model: SequenceClassifier, prepared: Prepared, parameters: Mapping[str, Any], seed: int, *data: Data | None
) -> Wide:
    channels, features = prepared.encoder.features_own, parameters["convolutions"]
    return fit_wide([each for each in data if each is not None], channels, model.num_classes, features, seed)


def give_to_all(model: SequenceClassifier, ranks: Ranks) -> None:
    """Gives the model of the process that writes to the others, with its random convolutions if it has some."""
    if ranks.world == 1:
        return
    found = None
    if ranks.writer:
        state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        sizes = None if model.convolutions is None else model.convolutions.convolutions.sizes
        found = sizes, state
    sizes, state = ranks.from_writer(found)
    if not ranks.writer:
        if sizes is not None:
            scores = ConvolutionScores(RandomConvolutions(**sizes), model.num_classes)
            model.convolutions = scores.to(next(model.parameters()).device)
        model.load_state_dict(state)


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
    if len(targets) < _ENOUGH:
        return _SHARES[_USUAL], 1.0
    if gain.mean() <= 2 * gain.std() / np.sqrt(len(gain)):  # which may be chance
        best = _USUAL
    return _SHARES[best], scales[best]


def _of(scores: ConvolutionScores, sequences: Ragged) -> Tensor:
    with torch.no_grad():
        return torch.cat([scores(*sequences.pad(rows)) for rows in in_parts(sequences)])

"""The wide part of a classifier of texts: a linear support vector machine on its n-grams, beside the network.

The network is trained by itself, and the machine is fitted by itself to the same rows; so batches, checkpoints and
resuming know nothing of it. Held-out data say how much of either goes into the logits. The machine then becomes the
table of weighted ids that the model has, times its share, and the head of the network is multiplied by the other share:
a model that is saved or exported looks like one whose table was trained with the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding_bag

from ..._ext import C
from ..._wide import WeightedIds
from ...classifier import SequenceClassifier
from ..data.batches import generator_of, seed_of
from ..data.datasets import Data
from ..data.ragged import Bags
from ..ranks import ALONE, Ranks
from .logits import logits_of
from .prepare import Prepared
from .ridge import log_losses, logit_scale
from .wide import give_to_all

__all__ = ["Machine", "Mixing", "SparseRows", "add_machine", "fit_machine", "mixing_of", "network_alone", "suits"]

_COST = 2.0  # of a row that is on the wrong side, for rows of the size 1
_BIAS = 0.5  # the feature that all rows have, whose weight times this is the bias; as in csrc/linear/linear_svm.cpp
_PASSES, _TOLERANCE = 40, 0.05  # over the rows at most; the violation that ends them, where 1 is a margin
_MOST_NGRAMS, _MOST_DUALS, _MOST_WORK = 1 << 24, 1 << 25, 1 << 30  # n-grams of all texts; rows and n-grams by classes
_READ = 1024  # rows that are read at once
_AT_ONCE = 256  # rows whose logits are computed at once
_FOLDS = 3  # parts of the rows that are left out in turns, where no data are held out
# Of the network, once both parts are scaled to be logits. It always has one, so that the model can be trained on.
_SHARES = tuple(k / 10 for k in range(1, 11))
_USUAL = 0.2  # the share that is taken where no data are held out

Floats = NDArray[np.float64]


class Machine(NamedTuple):
    weights: NDArray[np.float32]  # (ids, classes)
    bias: NDArray[np.float32]  # (classes,)


class Mixing(NamedTuple):
    """What the scores of the machine and the logits of the network are multiplied by, before they are added up."""

    machine: float
    network: float


@dataclass(frozen=True)
class SparseRows:
    """Texts as sparse rows of the size 1, with the number of each one's class and how much it counts."""

    starts: NDArray[np.int64]  # (rows + 1,)
    ids: NDArray[np.int32]
    values: NDArray[np.float32]
    targets: NDArray[np.int64]
    weights: NDArray[np.float32]  # of mean 1, or nearly

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: NDArray[np.int64]) -> SparseRows:
        lengths = np.diff(self.starts)[rows]
        starts = _starts(lengths)
        places = np.repeat(self.starts[rows] - starts[:-1], lengths) + np.arange(starts[-1])
        return SparseRows(starts, self.ids[places], self.values[places], self.targets[rows], self.weights[rows])

    def scores(self, machine: Machine) -> Floats:
        """``(rows, classes)``"""
        found = embedding_bag(
            torch.from_numpy(self.ids), torch.from_numpy(machine.weights), torch.from_numpy(self.starts[:-1]),
            per_sample_weights=torch.from_numpy(self.values), mode="sum",
        )  # fmt: skip
        scores: Floats = np.add(found.double().numpy(), machine.bias)
        return scores


def suits(parameters: Mapping[str, Any], ngrams: int, rows: int, classes: int) -> bool:
    """Whether the n-grams are a machine of their own: it needs all of them in memory, and leaves none of them out."""
    fits = ngrams <= _MOST_NGRAMS and rows * classes <= _MOST_DUALS and ngrams * classes <= _MOST_WORK
    return bool(parameters.get("wide")) and not parameters["wide_dropout"] and fits


@contextmanager
def network_alone(model: SequenceClassifier) -> Iterator[None]:
    """A context in which the model has no table of weighted ids."""
    wide, model.wide = model.wide, None
    try:
        yield
    finally:
        model.wide = wide


def add_machine(
    model: SequenceClassifier, prepared: Prepared, parameters: Mapping[str, Any], seed: int, ranks: Ranks,
    mixing: Mixing | None = None, fitted: Machine | None = None,
) -> tuple[Machine | None, Mixing | None]:  # fmt: skip
    """Fits a machine, in the process that writes, and adds its scores to the logits of the models of all processes.

    Args:
        model: whose network is trained, and whose table has zeros.
        prepared: the data.
        parameters: those of the estimator.
        seed: decides about the order of the rows.
        ranks: all processes.
        mixing: of a training on a part of these data; None to choose it.
        fitted: what an earlier call with the same data and seed has returned, whose work is then not done again.
    """
    assert isinstance(model.wide, WeightedIds)
    if ranks.writer:
        data, held = prepared.alone()
        scale, classes = model.wide.scale.cpu().numpy(), model.num_classes
        rows = _rows_of(data, scale, seed) if fitted is None or (mixing is None and held is None) else None
        if fitted is None:
            assert rows is not None
            fitted = fit_machine(rows, len(scale), classes, seed)
        if mixing is None and held is not None:
            mixing = _held_out(model, fitted, scale, held, parameters["amp"])
        elif mixing is None:
            assert rows is not None
            mixing = _left_out(rows, len(scale), classes, seed)
        _add(model, fitted, mixing)
    give_to_all(model, ranks)
    return fitted, mixing


@torch.no_grad()
def _add(model: SequenceClassifier, machine: Machine, mixing: Mixing) -> None:
    assert isinstance(model.wide, WeightedIds)
    model.wide.weight.copy_(torch.from_numpy(machine.weights).to(model.wide.weight) * mixing.machine)
    for parameter in model.head.parameters():
        parameter.mul_(mixing.network)
    model.head.bias.add_(torch.from_numpy(machine.bias).to(model.head.bias) * mixing.machine)


def _held_out(model: SequenceClassifier, machine: Machine, scale: NDArray[np.float32], held: Data, amp: bool) -> Mixing:
    """The mixing that suits the held-out data."""
    device = model.head.weight.device
    network, scores, targets = [], [], []
    for piece in held.pieces(ALONE):
        bags = piece.sequences.wide
        assert isinstance(bags, Bags)
        rows = _sparse(bags, scale, piece.targets, None)
        scores.append(rows.scores(machine))
        targets.append(rows.targets)
        with network_alone(model):
            network.append(logits_of(model, piece.sequences.narrow(), _AT_ONCE, device, amp).double().numpy())
    return mixing_of(np.concatenate(network), np.concatenate(scores), np.concatenate(targets))


def _left_out(rows: SparseRows, ids: int, classes: int, seed: int) -> Mixing:
    """The usual mixing, with the scale of the scores that suits rows which the machine was not fitted to."""
    part = torch.randperm(len(rows), generator=generator_of(seed, "folds")).numpy() % _FOLDS
    scores, targets = [], []
    for number in range(_FOLDS):
        kept, out = np.flatnonzero(part != number), np.flatnonzero(part == number)
        if len(kept) and len(out):
            left = rows.take(out)
            scores.append(left.scores(fit_machine(rows.take(kept), ids, classes, seed)))
            targets.append(left.targets)
    if not scores:
        return Mixing(1 - _USUAL, _USUAL)
    return Mixing((1 - _USUAL) * logit_scale(np.concatenate(scores), np.concatenate(targets)), _USUAL)


def mixing_of(network: Floats, scores: Floats, targets: NDArray[np.int64]) -> Mixing:
    """The mixing with the least share of the network of those whose log loss may be the least but for chance: the
    network finds rare classes less well. Both parts are first scaled to be logits, so that shares compare."""
    scales = logit_scale(scores, targets), logit_scale(network, targets)
    losses, found = [], []
    for share in _SHARES:
        mixed = (1 - share) * scales[0] * scores + share * scales[1] * network
        scale = logit_scale(mixed, targets)
        losses.append(log_losses(scale * mixed, targets))
        found.append(Mixing(scale * (1 - share) * scales[0], scale * share * scales[1]))
    best = losses[int(np.argmin([each.mean() for each in losses]))]
    more = [each - best for each in losses]
    near = [each.mean() <= 2 * each.std() / np.sqrt(len(each)) for each in more]
    return found[near.index(True)]


# -- the rows ---------------------------------------------------------------------------------------------------------


def _rows_of(data: Data, scale: NDArray[np.float32], seed: int) -> SparseRows:
    """All rows of the training data, of which :func:`suits` says that there are not too many."""
    parts = []
    for batch in data.epoch(_READ, seed, 0, 0, ALONE):
        found = batch.examples
        bags = found.sequences.wide
        assert isinstance(bags, Bags)
        weights = None if found.weights is None else found.weights[batch.rows]
        taken = Bags(*(each.take(batch.rows) for each in bags))
        parts.append(_sparse(taken, scale, found.targets[batch.rows], weights))
    starts = _starts(np.concatenate([np.diff(part.starts) for part in parts]))
    names = ("ids", "values", "targets", "weights")
    return SparseRows(starts, *(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _sparse(bags: Bags, scale: NDArray[np.float32], targets: Tensor, weights: Tensor | None) -> SparseRows:
    """Rows as :class:`~seqcls_fast._wide.WeightedIds` weighs them."""
    ids, lengths = bags.ids.values.numpy().astype(np.int32, copy=False), bags.ids.lengths.numpy()
    values = bags.weights.values.numpy() * scale[ids]
    owners = np.repeat(np.arange(len(lengths)), lengths)
    sizes = np.sqrt(np.bincount(owners, values.astype(np.float64) ** 2, minlength=len(lengths)))
    values = (values / np.maximum(sizes, np.finfo(np.float32).tiny)[owners]).astype(np.float32)
    counts = np.ones(len(targets), np.float32) if weights is None else weights.numpy().astype(np.float32)
    return SparseRows(_starts(lengths), ids, values, targets.numpy(), counts)


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where rows of these lengths begin, one after another, and where the last one ends."""
    return np.concatenate([np.zeros(1, np.int64), lengths.cumsum()])


# -- the machine ------------------------------------------------------------------------------------------------------


def fit_machine(rows: SparseRows, ids: int, classes: int, seed: int) -> Machine:
    """Linear support vector machines, one for each class against the others; see csrc/linear/linear_svm.h."""
    costs, key = rows.weights * np.float32(_COST), seed_of(seed, "machine")
    given = (rows.starts, rows.ids, rows.values, rows.targets, costs, ids, classes, _PASSES, _TOLERANCE, key)
    weights, bias, _, _ = _fitted_by_numpy(*given) if C is None else C.linear_svm(*given)
    return Machine(weights, bias)


def _fitted_by_numpy(
    starts: NDArray[np.int64], ids: NDArray[np.int32], values: NDArray[np.float32], targets: NDArray[np.int64],
    costs: NDArray[np.float32], features: int, classes: int, passes: int, tolerance: float, seed: int,
) -> tuple[NDArray[np.float32], NDArray[np.float32], int, float]:  # fmt: skip
    """The steps of csrc/linear/linear_svm.cpp, where the extension is not there; with sums in another order."""
    weights, bias = np.zeros((features, classes), np.float32), np.zeros(classes, np.float32)
    duals, order = np.zeros((len(targets), classes), np.float32), np.flatnonzero(costs > 0)
    generator, violation, done, square = np.random.default_rng(seed), 0.0, 0, np.float32(_BIAS**2)
    signs = np.where(targets[:, None] == np.arange(classes), np.float32(1), np.float32(-1))
    while done < passes:
        violation = 0.0
        for row in generator.permutation(order):
            part = slice(starts[row], starts[row + 1])
            own, x = ids[part], values[part]
            slack, dual = np.float32(0.5) / costs[row], duals[row]
            slope = signs[row] * (x @ weights[own] + bias) - 1 + slack * dual
            violation = max(violation, float(np.where(dual > 0, np.abs(slope), np.maximum(0, -slope)).max()))
            moved = np.maximum(0, dual - slope / (x @ x + square + slack))
            step = signs[row] * (moved - dual)
            duals[row] = moved
            weights[own] += x[:, None] * step
            bias += square * step
        done += 1
        if violation <= tolerance:
            break
    return weights, bias, done, violation

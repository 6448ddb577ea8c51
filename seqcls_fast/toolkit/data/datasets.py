"""Training data, in memory or streamed: batches in an order that depends on seed and epoch alone.

A batch belongs to all processes that train together, each of which takes its share of the rows. An epoch can begin at
any step, with the batches that it would have had from there; so a training can be resumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..ranks import Ranks
from . import labels
from .batches import bucketed, generator_of
from .ragged import Ragged
from .stream import Stream

__all__ = ["Batch", "Data", "Examples", "Raw", "Streamed"]

_AT_ONCE = 4096  # sequences that :class:`Raw` encodes at once


@dataclass(frozen=True)
class Batch:
    """The rows of a batch that one process takes."""

    examples: Examples
    rows: Tensor  # indices into the examples
    count: int  # rows of the batch, over all processes


class Data(Protocol):
    """Training data, in memory or streamed."""

    def __len__(self) -> int: ...

    def steps(self, batch_size: int) -> int:
        """Batches in an epoch."""
        ...

    def epoch(self, batch_size: int, seed: int, epoch: int, start: int, ranks: Ranks) -> Iterator[Batch]:
        """The batches of an epoch from step ``start`` on."""
        ...

    def pieces(self, ranks: Ranks) -> Iterator[Examples]:
        """One process's share of all examples, each once, in pieces that fit in memory."""
        ...

    def digest(self) -> str:
        """A hash of the examples and their order."""
        ...


@dataclass(frozen=True)
class Examples:
    """Data in memory."""

    sequences: Ragged
    targets: Tensor  # (count,) int64
    weights: Tensor | None = None  # (count,) float32, of mean 1

    def __len__(self) -> int:
        return len(self.targets)

    def steps(self, batch_size: int) -> int:
        return math.ceil(len(self) / batch_size)

    def epoch(self, batch_size: int, seed: int, epoch: int, start: int, ranks: Ranks) -> Iterator[Batch]:
        for rows in bucketed(self.sequences.lengths, batch_size, generator_of(seed, "batches", epoch))[start:]:
            yield Batch(self, ranks.share(rows), len(rows))

    def order(self, ranks: Ranks) -> Tensor:
        """The rows of one process's :meth:`pieces`."""
        if ranks.world == 1:
            return torch.arange(len(self))
        return ranks.share(self.sequences.lengths.argsort(stable=True))

    def pieces(self, ranks: Ranks) -> Iterator[Examples]:
        if ranks.world == 1:
            yield self
            return
        rows = self.order(ranks)
        weights = None if self.weights is None else self.weights[rows]
        yield Examples(self.sequences.take(rows), self.targets[rows], weights)

    def digest(self) -> str:
        found = blake2b(digest_size=16)
        for tensor in (*self.sequences.tensors(), self.targets, self.weights):
            if tensor is not None:
                found.update(tensor.contiguous().numpy().tobytes())
        return found.hexdigest()


@dataclass(frozen=True)
class Raw:
    """Data in memory that are encoded a batch at a time, by another encoder than that of ``examples``."""

    sequences: Sequence[Any]  # as they were given
    examples: Examples
    encoder: Any

    def __len__(self) -> int:
        return len(self.examples)

    def steps(self, batch_size: int) -> int:
        return self.examples.steps(batch_size)

    def epoch(self, batch_size: int, seed: int, epoch: int, start: int, ranks: Ranks) -> Iterator[Batch]:
        order = torch.randperm(len(self), generator=generator_of(seed, "raw", epoch))
        for rows in order.split(batch_size)[start:]:
            found = self._encoded(ranks.share(rows))
            yield Batch(found, torch.arange(len(found)), len(rows))

    def pieces(self, ranks: Ranks) -> Iterator[Examples]:
        order = self.examples.order(ranks)
        yield from (self._encoded(rows) for rows in order.split(_AT_ONCE) if len(rows))

    def digest(self) -> str:
        return self.examples.digest()

    def _encoded(self, rows: Tensor) -> Examples:
        sequences = self.encoder.encode([self.sequences[row] for row in rows.tolist()])
        weights = self.examples.weights
        return Examples(sequences, self.examples.targets[rows], None if weights is None else weights[rows])


class Streamed:
    """Data of a Stream, read and encoded while they are used, by a fitted encoder, in each of ``epochs`` epochs."""

    def __init__(
        self, stream: Stream, encoder: Any, classes: np.ndarray, class_weight: Any, workers: int, epochs: int
    ) -> None:
        self.stream, self.encoder, self.classes, self.class_weight = stream, encoder, classes, class_weight
        self.workers, self.epochs = workers, epochs
        survey = stream.survey()
        self.scale: Tensor | None = None  # by class, a factor for the weights, which makes their mean 1
        if class_weight is not None or stream.weight is not None:
            known = classes.tolist()
            counts = torch.tensor([survey.labels.get(label, 0) for label in known])
            factors = labels.class_factors(counts, known, class_weight)
            weight = torch.tensor([survey.weights.get(label, 0.0) for label in known], dtype=torch.float64)
            self.scale = (factors * survey.rows / labels.positive((factors * weight).sum())).float()

    def encoded_by(self, encoder: Any) -> Streamed:
        """The same data, encoded by another encoder, in this process."""
        return Streamed(self.stream, encoder, self.classes, self.class_weight, 0, 1)

    def narrow(self) -> Streamed:
        """The same texts without their wide parts."""
        return Streamed(self.stream, self.encoder.narrow(), self.classes, self.class_weight, self.workers, self.epochs)

    def __len__(self) -> int:
        return self.stream.survey().rows

    def steps(self, batch_size: int) -> int:
        return self.stream.steps(batch_size)

    def epoch(self, batch_size: int, seed: int, epoch: int, start: int, ranks: Ranks) -> Iterator[Batch]:
        pool: Examples | None = None
        for batch in self.stream.epoch(
            self.encoder, batch_size, seed, epoch, classes=self.classes, start_step=start, rank=ranks.rank,
            world=ranks.world, workers=self.workers, epochs=self.epochs,
        ):  # fmt: skip
            if pool is None or pool.targets is not batch.targets:  # the first batch of another pool
                weights = None if self.scale is None else self.scale[batch.targets]
                if weights is not None and batch.weights is not None:
                    weights = weights * batch.weights
                pool = Examples(batch.sequences, batch.targets, weights)
            yield Batch(pool, batch.rows, batch.count)

    def pieces(self, ranks: Ranks) -> Iterator[Examples]:
        for piece in self.stream.pieces(self.encoder, ranks.rank, ranks.world, self.workers, self.classes):
            assert piece.targets is not None
            yield Examples(piece.sequences, piece.targets)

    def digest(self) -> str:
        return self.stream.survey().digest

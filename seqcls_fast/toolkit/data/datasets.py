"""What training learns from, in memory or read while it is used: batches whose order depends on seed and epoch alone.

A batch belongs to all processes that train together, each of which takes its part of it. Whoever asks for an epoch from
some step on gets what the others got, or what it would have got itself before it was killed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..ranks import Ranks
from . import labels
from .batches import bucketed, generator_of
from .ragged import Ragged

if TYPE_CHECKING:
    from .stream import Stream

__all__ = ["Data", "Examples", "Part", "Streamed"]


@dataclass(frozen=True)
class Part:
    """The rows of a batch that one process takes."""

    examples: Examples
    rows: Tensor
    count: int  # rows of the batch, over all processes


class Data(Protocol):
    def __len__(self) -> int: ...

    def steps(self, batch_size: int) -> int:
        """Of an epoch."""
        ...

    def epoch(self, batch_size: int, seed: int, epoch: int, start: int, ranks: Ranks) -> Iterator[Part]:
        """The batches of an epoch from step ``start`` on."""
        ...

    def pieces(self, ranks: Ranks) -> Iterator[Examples]:
        """What one process takes of all examples, each once, in pieces that fit in memory."""
        ...

    def digest(self) -> str:
        """The same for the same examples in the same order."""
        ...


@dataclass(frozen=True)
class Examples:
    """In memory."""

    sequences: Ragged
    targets: Tensor  # (count,) int64
    weights: Tensor | None = None  # (count,) float32, of mean 1

    def __len__(self) -> int:
        return len(self.targets)

    def steps(self, batch_size: int) -> int:
        return math.ceil(len(self) / batch_size)

    def epoch(self, batch_size: int, seed: int, epoch: int, start: int, ranks: Ranks) -> Iterator[Part]:
        for rows in bucketed(self.sequences.lengths, batch_size, generator_of(seed, "batches", epoch))[start:]:
            yield Part(self, ranks.share(rows), len(rows))

    def pieces(self, ranks: Ranks) -> Iterator[Examples]:
        if ranks.world == 1:
            yield self
            return
        rows = ranks.share(self.sequences.lengths.argsort(stable=True))
        weights = None if self.weights is None else self.weights[rows]
        yield Examples(self.sequences.take(rows), self.targets[rows], weights)

    def digest(self) -> str:
        found = blake2b(digest_size=16)
        for tensor in (self.sequences.values, self.sequences.lengths, self.targets, self.weights):
            if tensor is not None:
                found.update(tensor.contiguous().numpy().tobytes())
        return found.hexdigest()


class Streamed:
    """Read and encoded while it is used, ``epochs`` times, by an encoder that has learnt; for given classes."""

    def __init__(
        self, stream: Stream, encoder: Any, classes: np.ndarray, class_weight: Any, workers: int, epochs: int
    ) -> None:
        self.stream, self.encoder, self.classes = stream, encoder, classes
        self.workers, self.epochs = workers, epochs
        survey = stream.survey()
        self.scale: Tensor | None = None  # of each class's weights, so that all of them are 1 on average
        if class_weight is not None or stream.weight is not None:
            known = classes.tolist()
            counts = torch.tensor([survey.labels.get(label, 0) for label in known])
            factors = labels.class_factors(counts, known, class_weight)
            weight = torch.tensor([survey.weights.get(label, 0.0) for label in known], dtype=torch.float64)
            self.scale = (factors * survey.rows / labels.positive((factors * weight).sum())).float()

    def __len__(self) -> int:
        return self.stream.survey().rows

    def steps(self, batch_size: int) -> int:
        return self.stream.steps(batch_size)

    def epoch(self, batch_size: int, seed: int, epoch: int, start: int, ranks: Ranks) -> Iterator[Part]:
        pool: Examples | None = None
        for part in self.stream.epoch(
            self.encoder, batch_size, seed, epoch, classes=self.classes, start_step=start, rank=ranks.rank,
            world=ranks.world, workers=self.workers, epochs=self.epochs,
        ):  # fmt: skip
            if pool is None or pool.targets is not part.targets:  # batches of a pool share it
                weights = None if self.scale is None else self.scale[part.targets]
                if weights is not None and part.weights is not None:
                    weights = weights * part.weights
                pool = Examples(part.sequences, part.targets, weights)
            yield Part(pool, part.rows, part.count)

    def pieces(self, ranks: Ranks) -> Iterator[Examples]:
        for piece in self.stream.pieces(self.encoder, ranks.rank, ranks.world, self.workers, self.classes):
            assert piece.targets is not None
            yield Examples(piece.sequences, piece.targets)

    def digest(self) -> str:
        return self.stream.survey().digest

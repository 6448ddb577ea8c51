"""Batches of sequences of similar length, in a random order that is the same for the same seed."""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor

__all__ = ["bucketed", "by_length", "generator_of", "seed_of"]

_MOST_STEPS = 1 << 17  # rows times steps of a padded batch, for predictions
POOL_BATCHES = 50  # batches whose rows are sorted together: enough for similar lengths, few enough to stay random


def seed_of(*key: int | str) -> int:
    """A seed for a key such as (7, "dropout", epoch, step). Different keys give independent random numbers."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1


def generator_of(*key: int | str) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(*key))


def bucketed(lengths: Tensor, size: int, generator: torch.Generator) -> list[Tensor]:
    """The rows of each batch: all of them once, shuffled, then sorted by length within pools of 50 batches."""
    order = torch.randperm(len(lengths), generator=generator)
    batches: list[Tensor] = []
    for pool in order.split(size * POOL_BATCHES):
        ordered = pool[lengths[pool].argsort(stable=True)]
        batches += ordered.split(size)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]


def by_length(lengths: Tensor, size: int) -> list[Tensor]:
    """The rows of each batch, for predictions: the longest first, so that a lack of memory shows at once. Batches of
    very long sequences have fewer rows."""
    if len(lengths) == 1:  # one sequence to predict, which should take little time
        return [torch.zeros(1, dtype=torch.int64)]
    order = lengths.argsort(descending=True, stable=True)
    batches, start = [], 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        end = start + max(1, min(size, _MOST_STEPS // longest))
        batches.append(order[start:end])
        start = end
    return batches

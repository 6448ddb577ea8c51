"""Batches of sequences of about one length, in an order that is random and yet the same for one seed."""

from __future__ import annotations

from hashlib import blake2b

import torch
from torch import Tensor

__all__ = ["bucketed", "by_length", "generator_of", "seed_of"]

_MOST_STEPS = 1 << 17  # of a padded batch
POOL_BATCHES = 50  # batches whose rows are sorted together: enough to be of one length, few enough to stay random


def seed_of(*key: int | str) -> int:
    """A seed for each key, such as (7, "dropout", epoch, step): what is drawn for one does not depend on the others."""
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
    """The rows of each batch, for predictions: longest first, so that too little memory shows at once; fewer where they
    are very long."""
    order = lengths.argsort(descending=True, stable=True)
    batches, start = [], 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        end = start + max(1, min(size, _MOST_STEPS // longest))
        batches.append(order[start:end])
        start = end
    return batches

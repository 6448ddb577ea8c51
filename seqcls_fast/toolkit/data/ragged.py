"""Sequences of different lengths, one after another in one tensor, from which a padded batch is one gather."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Ragged"]


@dataclass(frozen=True, eq=False)
class Ragged:
    """``values`` are ids ``(N,)`` or steps ``(N, F)`` of all sequences; ``lengths`` says how many each has.

    Example::

        >>> from seqcls_fast.toolkit.data.ragged import Ragged
        >>> ragged = Ragged.of([[5, 6, 7], [], [8]])
        >>> x, lengths = ragged.pad([0, 2])
        >>> x.tolist(), lengths.tolist()
        ([[5, 6, 7], [8, 0, 0]], [3, 1])
    """

    values: Tensor
    lengths: Tensor

    def __post_init__(self) -> None:
        if int(self.lengths.sum()) != len(self.values):
            raise ValueError(f"lengths: expected a sum of {len(self.values)} but got {int(self.lengths.sum())}")
        object.__setattr__(self, "_starts", self.lengths.cumsum(0) - self.lengths)

    @classmethod
    def of(cls, sequences: Sequence[Any]) -> Ragged:
        """From tensors, arrays or lists of ids. An empty list gives an empty tensor of ids."""
        tensors = [torch.as_tensor(sequence) for sequence in sequences]
        lengths = torch.tensor([len(tensor) for tensor in tensors], dtype=torch.int64)
        some = [tensor for tensor in tensors if len(tensor)] or tensors[:1]  # an empty list has no dtype of its own
        values = torch.cat(some) if some else torch.zeros(0, dtype=torch.int64)
        if not values.numel() and values.dim() == 1:
            values = values.to(torch.int64)
        return cls(values, lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def pad(self, rows: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Some sequences as ``(B, T)`` or ``(B, T, F)``, zeros beyond their ends, and their lengths; T is 1 or more."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        lengths = self.lengths[rows]
        steps = torch.arange(max(1, int(lengths.max()) if len(rows) else 1))
        beyond = steps >= lengths[:, None]
        if not len(self.values):
            return self.values.new_zeros(*beyond.shape, *self.values.shape[1:]), lengths
        index = (self._starts[rows][:, None] + steps).masked_fill_(beyond, 0)  # type: ignore[attr-defined]
        padded = self.values[index]
        padded[beyond] = 0
        return padded, lengths

    def take(self, rows: Tensor | Sequence[int]) -> Ragged:
        """Some sequences, in that order."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        lengths = self.lengths[rows]
        before = self._starts[rows] - (lengths.cumsum(0) - lengths)  # type: ignore[attr-defined]
        return Ragged(self.values[before.repeat_interleave(lengths) + torch.arange(int(lengths.sum()))], lengths)

    def split(self) -> list[Tensor]:
        return list(self.values.split(self.lengths.tolist()))

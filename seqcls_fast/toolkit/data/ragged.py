"""Sequences of different lengths, one after another in one tensor, from which a padded batch is one gather.

A sequence may carry a wide part beside its steps: what describes it as a whole and goes straight to the logits. It
travels inside :class:`Ragged`, so that nothing between the encoder and the model has to know of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Arrays", "Bags", "Inputs", "Ragged"]


class Inputs(NamedTuple):
    """What a :class:`~seqcls_fast.SequenceClassifier` is called with."""

    x: Tensor
    lengths: Tensor
    wide: Any = None

    def to(self, device: torch.device | str) -> Inputs:
        return Inputs(*(_on(each, device) for each in self))

    def through(self, model: Any) -> Tensor:
        """The logits. A model without a wide part is called without one, as any model of steps and lengths is."""
        found: Tensor = model(self.x, self.lengths, **({} if self.wide is None else {"wide": self.wide}))
        return found


class Bags(NamedTuple):
    """Weighted ids of each sequence, in no order: a wide part."""

    ids: Ragged
    weights: Ragged


class Arrays(NamedTuple):
    """A :class:`Ragged` as numpy arrays, in which form it goes from one process to another."""

    values: Any
    lengths: Any
    wide: Any = None  # an array, or a pair of Arrays


@dataclass(frozen=True, eq=False)
class Ragged:
    """``values`` are ids ``(N,)`` or steps ``(N, F)`` of all sequences; ``lengths`` says how many each has.

    ``wide`` is the wide part of each sequence: weighted ids, or a row of numbers (count, W), or None for none.

    Example::

        >>> from seqcls_fast.toolkit.data.ragged import Ragged
        >>> ragged = Ragged.of([[5, 6, 7], [], [8]])
        >>> x, lengths = ragged.pad([0, 2])
        >>> x.tolist(), lengths.tolist()
        ([[5, 6, 7], [8, 0, 0]], [3, 1])
    """

    values: Tensor
    lengths: Tensor
    wide: Bags | Tensor | None = None

    def __post_init__(self) -> None:
        parts = self.wide if isinstance(self.wide, Bags) else [] if self.wide is None else [self.wide]
        if any(len(part) != len(self.lengths) for part in parts):
            raise ValueError(f"wide: expected {len(self.lengths)} rows, as there are sequences, but got others")
        if int(self.lengths.sum()) != len(self.values):
            raise ValueError(f"lengths: expected a sum of {len(self.values)} but got {int(self.lengths.sum())}")

    @cached_property
    def _starts(self) -> Tensor:
        return self.lengths.cumsum(0) - self.lengths

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
        if len(rows) == len(self) == 1 and len(self.values):  # one sequence to predict: there is nothing to pad
            return self.values[None], self.lengths
        rows = torch.as_tensor(rows, dtype=torch.int64)
        lengths = self.lengths[rows]
        steps = torch.arange(max(1, int(lengths.max()) if len(rows) else 1))
        beyond = steps >= lengths[:, None]
        if not len(self.values):
            return self.values.new_zeros(*beyond.shape, *self.values.shape[1:]), lengths
        index = (self._starts[rows][:, None] + steps).masked_fill_(beyond, 0)
        padded = self.values[index]
        padded[beyond] = 0
        return padded, lengths

    def inputs(self, rows: Tensor | Sequence[int]) -> Inputs:
        """Some sequences as a model takes them: as by :meth:`pad`, and their wide part."""
        wide: Any = self.wide
        if isinstance(wide, Bags):
            wide = tuple(part.pad(rows)[0] for part in wide)
        elif wide is not None:
            wide = wide[torch.as_tensor(rows, dtype=torch.int64)]
        return Inputs(*self.pad(rows), wide)

    def take(self, rows: Tensor | Sequence[int]) -> Ragged:
        """Some sequences, in that order."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        lengths = self.lengths[rows]
        before = self._starts[rows] - (lengths.cumsum(0) - lengths)
        wide: Any = self.wide
        if isinstance(wide, Bags):
            wide = Bags(*(part.take(rows) for part in wide))
        elif wide is not None:
            wide = wide[rows]
        return Ragged(self.values[before.repeat_interleave(lengths) + torch.arange(int(lengths.sum()))], lengths, wide)

    def narrow(self) -> Ragged:
        """The sequences without their wide part."""
        return self if self.wide is None else Ragged(self.values, self.lengths)

    def split(self) -> list[Tensor]:
        return list(self.values.split(self.lengths.tolist()))

    def arrays(self) -> Arrays:
        wide: Any = self.wide
        if isinstance(wide, Bags):
            wide = tuple(part.arrays() for part in wide)
        elif wide is not None:
            wide = wide.numpy()
        return Arrays(self.values.numpy(), self.lengths.numpy(), wide)

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Ragged:
        """The inverse of :meth:`arrays`."""
        wide: Any = arrays.wide
        if isinstance(wide, tuple):
            wide = Bags(*map(cls.from_arrays, wide))
        elif wide is not None:
            wide = torch.from_numpy(wide)
        return cls(torch.from_numpy(arrays.values), torch.from_numpy(arrays.lengths), wide)

    def tensors(self) -> Iterator[Tensor]:
        """All numbers that it is made of, for a digest."""
        yield from (self.values, self.lengths)
        for part in self.wide if isinstance(self.wide, Bags) else [self.wide]:
            if part is not None:
                yield from (part,) if isinstance(part, Tensor) else part.tensors()


def _on(part: Any, device: torch.device | str) -> Any:
    if isinstance(part, tuple):
        return tuple(each.to(device) for each in part)
    return None if part is None else part.to(device)

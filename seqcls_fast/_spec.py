"""The arguments of a layer as autograd's Functions pass them; how ``vmap`` makes a mapped dimension part of the batch.

The order of a layer's tensors is the same everywhere: in calls, in lists of their gradients, and in facts about them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._cells import Rates

__all__ = [
    "RESETS",
    "SHARED",
    "WEIGHTS",
    "Spec",
    "Tensors",
    "X",
    "batch_dims",
    "batch_of",
    "can_fold",
    "fold",
    "fold_all",
    "mapped",
    "one_by_one",
    "unfold_all",
    "with_options",
    "without_options",
]

Tensors = Sequence[Any]  # Tensor or None

# The index of each tensor of a layer. Lists of the tensors, of their gradients and of facts about them all have this
# order. What all rows of the batch share begins at SHARED, the weights, one kind after another, at WEIGHTS.
X, H0, C0, LENGTHS, BATCH_SIZES, RESETS, SEED, H_RESET, C_RESET, WEIGHTS = range(10)
SHARED = H_RESET
_PLAIN = BATCH_SIZES + 1  # the tensors before this one are those of a layer without options


class Spec:
    """The arguments of a Function that are not tensors. The tensors always come as ``x, h0, c0, lengths, batch_sizes,
    resets, seed, h_reset, c_reset, *weights``."""

    want_saved = True
    recompute = False  # the backward runs the forward again, which therefore saves nothing
    samples = 0  # number of equal slices of the batch, each with weight gradients of its own; 0: gradients of the whole
    needs: Sequence[bool] = ()  # for each tensor, whether a backward returns its gradient
    rates: Rates | None = None  # None: nothing is zoned out or dropped

    def __init__(
        self, directions: int, cell: str, batch_first: bool, want_output: bool, impl: str, allow_tf32: bool = False
    ) -> None:
        self.directions, self.cell, self.batch_first = directions, cell, batch_first
        self.want_output, self.impl, self.allow_tf32 = want_output, impl, allow_tf32

    def replace(self, **changes: Any) -> Spec:
        """A copy with some values changed."""
        other = Spec.__new__(Spec)
        other.__dict__ |= self.__dict__ | changes
        return other


def with_options(values: Tensors, absent: Any = None) -> Tensors:
    """The tensors of a layer without options, or facts about them, with ``absent`` in the place of each option."""
    return *values[:_PLAIN], *(absent,) * (WEIGHTS - _PLAIN), *values[_PLAIN:]


def without_options(values: Tensors) -> Tensors:
    """The inverse of :func:`with_options`."""
    return *values[:_PLAIN], *values[WEIGHTS:]


# In the functions below, `dims` has the dimension of each tensor that vmap maps over, or None. `places` has the
# dimension of its batch, counted without the mapped one, or None if the tensor has no batch.
Dims = Sequence[int | None]


def mapped(function: Callable[..., Any], spec: Spec, n: int, dims: Dims, tensors: Tensors) -> Any:
    """``output, h_n, c_n, saved`` of a layer over ``n`` indices of a mapped dimension, and its place in each of them.
    ``function`` computes them from tensors without that dimension."""
    if not can_fold(tensors, dims):
        return one_by_one(function, n, dims, tensors)
    inputs, outputs = batch_dims(spec)
    folded = fold_all(tensors, dims, inputs, n)
    return unfold_all(function(*folded), outputs, n, batch_of(tensors[X], dims[X], inputs[X]))


def batch_dims(spec: Spec) -> tuple[Dims, Dims]:
    """The dimension of the batch in ``x, h0, c0, lengths, batch_sizes, resets, seed`` and in ``output, h_n, c_n,
    saved``."""
    steps = 0 if spec.batch_first else 1
    return (steps, 1, 1, 0, None, steps, None), (steps, 1, 1, 2)


def can_fold(tensors: Tensors, dims: Dims) -> bool:
    """Whether the mapped dimension can be part of the batch: all indices share the weights, no rows are packed, and no
    masks are drawn, which depend on the place of a row in its batch."""
    return tensors[BATCH_SIZES] is None and tensors[SEED] is None and all(dim is None for dim in dims[SHARED:])


def batch_of(x: Tensor, dim: int | None, at: int | None) -> int:
    """The size of the batch in each index of ``x``."""
    assert at is not None
    return x.size(at if dim is None or dim > at else at + 1)


def fold_all(tensors: Tensors, dims: Dims, places: Dims, n: int) -> list[Any]:
    """Merges the mapped dimension of each tensor into its batch. Tensors beyond ``places`` have no batch."""
    padded = [*places, *[None] * (len(tensors) - len(places))]
    return [fold(*item, n) for item in zip(tensors, dims, padded, strict=True)]


def unfold_all(results: Tensors, places: Dims, n: int, batch: int) -> Any:
    """The inverse: splits the batch of each tensor again. Also the place of the mapped dimension in each."""
    pairs = list(zip(results, places, strict=True))
    apart = tuple(t if t is None or at is None else t.unflatten(at, (n, batch)) for t, at in pairs)
    return apart, tuple(None if t is None else at for t, at in pairs)


def fold(t: Tensor | None, dim: int | None, at: int | None, n: int) -> Tensor | None:
    if t is None or at is None:
        return t
    apart = t.unsqueeze(at).expand(*t.shape[:at], n, *t.shape[at:]) if dim is None else t.movedim(dim, at)
    return apart.flatten(at, at + 1)


def one_by_one(function: Callable[..., Any], n: int, dims: Any, tensors: Any) -> Any:
    """The results of ``function`` for each index of the mapped dimension, stacked in dimension 0, and these zeros."""
    if not n:
        raise RuntimeError("vmap: expected at least one index to map weights or packed rows over but got none")
    each = [
        function(*(t if dim is None else t.select(dim, i) for t, dim in zip(tensors, dims, strict=True)))
        for i in range(n)
    ]
    stacked = tuple(None if parts[0] is None else torch.stack(parts) for parts in zip(*each, strict=True))
    return stacked, tuple(None if t is None else 0 for t in stacked)

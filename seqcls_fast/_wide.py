"""The wide part of a classifier: features of a whole sequence that go straight to the logits, beside its encoder.

They are weighted ids, as of hashed n-grams, or a row of numbers. Ids are looked up in a table that may be large.
Its gradient can therefore be sparse: it has the rows that occur in a batch and no others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, embedding_bag

from . import _head

__all__ = ["WeightedIds", "logits_of"]


class WeightedIds(nn.Module):
    """A row of logits for each id. Those of a sequence are added up, times their weights.

    The weight of an id is what the caller gives times ``scale[id]``; all weights of a sequence are then divided by the
    root of the sum of their squares.

    Args:
        count: ids are below it.
        classes: number of logits.
        device, dtype: of the weights, which begin as zeros.
    """

    scale: Tensor

    def __init__(self, count: int, classes: int, *, device: Any = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.sparse = False  # whether the gradient of weight is a sparse tensor
        self.weight = nn.Parameter(torch.zeros(count, classes, device=device, dtype=dtype))
        self.register_buffer("scale", torch.ones(count, device=device, dtype=dtype))

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        """``(B, classes)`` for ids and weights ``(B, N)``; the weight of padding is 0."""
        weights = weights.to(self.weight.dtype) * self.scale[ids]
        # Sums from left to right, to which padding adds nothing, so that a row has the same bits in every batch. Roots
        # in float64 are the same after rounding wherever they are computed; csrc/runtime has them too.
        sizes = weights.square().double().cumsum(1)[:, -1:].sqrt().to(weights.dtype)
        weights = weights / sizes.clamp_min(torch.finfo(weights.dtype).tiny)
        if _head.in_graph():  # exporters know no bags
            return (embedding(ids, self.weight) * weights[:, :, None]).sum(1)
        if not self.sparse or not torch.is_grad_enabled():
            return embedding_bag(ids, self.weight, per_sample_weights=weights, mode="sum")
        # The gradient of a bag has a row for each of its ids, those of the padding included. Here the bags look up a
        # small table, so that the gradient of the large one has a row for each id that occurs.
        there = weights != 0
        there[:, 0] = True  # a bag must have an id
        count = there.sum(1)
        rows, places = ids[there].unique(return_inverse=True)
        table = embedding(rows, self.weight, sparse=True)
        return embedding_bag(places, table, count.cumsum(0) - count, per_sample_weights=weights[there], mode="sum")

    def extra_repr(self) -> str:
        return f"{self.weight.size(0)}, {self.weight.size(1)}"


def logits_of(module: nn.Module | None, wide: Any, rows: int) -> Tensor | None:
    """The wide part's share of the logits of ``rows`` sequences, after a check of its input; None if there is none."""
    if module is None:
        if wide is not None:
            raise ValueError("wide: expected None for a model without a wide part but got an input")
        return None
    if isinstance(module, WeightedIds):
        found: Tensor = module(*_checked_ids(module, wide, rows))
        return found
    if not isinstance(wide, Tensor):
        raise TypeError(f"wide: expected a tensor (B, {_features(module)}) but got {type(wide).__name__}")
    if wide.shape != (rows, _features(module)) or not wide.is_floating_point():
        expected = f"floating-point numbers ({rows}, {_features(module)})"
        raise ValueError(f"wide: expected {expected} but got {wide.dtype} {tuple(wide.shape)}")
    return _head.linear(module, wide)


def _features(module: Any) -> int:
    size: int = module.in_features
    return size


def _checked_ids(module: WeightedIds, wide: Any, rows: int) -> tuple[Tensor, Tensor]:
    if not isinstance(wide, tuple | list) or len(wide) != 2 or not all(isinstance(each, Tensor) for each in wide):
        got = f"{len(wide)} values" if isinstance(wide, tuple | list) else type(wide).__name__
        raise TypeError(f"wide: expected two tensors, ids and weights (B, N), but got {got}")
    ids, weights = wide
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool or not weights.is_floating_point():
        raise TypeError(f"wide: expected integer ids and floating-point weights but got {ids.dtype}, {weights.dtype}")
    if ids.dim() != 2 or ids.size(0) != rows or ids.size(1) < 1 or weights.shape != ids.shape:
        shapes = f"{tuple(ids.shape)} and {tuple(weights.shape)}"
        raise ValueError(f"wide: expected ids and weights ({rows}, N) with N from 1 on but got {shapes}")
    if ids.is_cpu and ids.numel() and not _head.in_graph():
        low, high = (int(value) for value in ids.aminmax())
        if low < 0 or high >= module.weight.size(0):
            most = module.weight.size(0) - 1
            raise RuntimeError(f"wide: expected ids from 0 to {most} but got {low if low < 0 else high}")
    return ids.long(), weights

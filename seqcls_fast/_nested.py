"""Ragged batches without padding: jagged nested tensors, and ``(values, cu_seqlens)`` as variable-length attention has.

Both hold one row after another, while the operators read packed rows one step after another. So an index brings the
rows into that order, which is one copy of them, and another index brings the output back. A row without steps has no
packed row: it takes no part in the call, and its final state is its initial one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._inputs import shape_of, values_can_be_read

__all__ = ["JaggedRows", "as_jagged", "jagged_resets"]


class JaggedRows(NamedTuple):
    """The rows of a batch, and where each of their steps stands in packed order."""

    values: Tensor  # (N, I): row after row
    offsets: Tensor  # (B + 1,): where each row begins, and N
    nested: bool  # whether the batch came as a nested tensor
    filled: Tensor  # (n,): the rows that have steps, longest first
    empty: Tensor  # (B - n,): the others
    rank: Tensor  # (B,): where each row stands in the order of these two
    batch_sizes: Tensor  # (T,), on the CPU: as in a PackedSequence
    places: Tensor  # (N,): for each packed row its place in values
    back: Tensor  # (N,): for each place in values its packed row

    def packed(self, values: Tensor) -> Tensor:
        """Values of the rows in packed order."""
        return values.index_select(0, self.places)

    def like_input(self, packed: Tensor | None) -> Any:
        """An output in packed order, laid out as the input came."""
        if packed is None:
            return None
        values = packed.index_select(0, self.back)
        if self.nested:
            return torch.nested.nested_tensor_from_jagged(values, self.offsets)
        return values, self.offsets


def as_jagged(input: Any, lengths: Any) -> JaggedRows:
    """The rows of a nested tensor, or of a pair of values and offsets. Raises for what is neither."""
    name = "a nested tensor" if isinstance(input, Tensor) else "(values, cu_seqlens)"
    if lengths is not None:
        raise RuntimeError(f"lengths: expected None with {name}, which has its own lengths")
    if isinstance(input, Tensor):
        values, offsets = _parts_of(input)
    else:
        values, offsets = input
        if values.dim() != 2:
            raise RuntimeError(f"values: expected shape (N, features), row after row, but got {shape_of(values)}")
        _check_offsets(offsets, values)
    return JaggedRows(values, offsets, isinstance(input, Tensor), *_packed_order(offsets, values))


def _parts_of(nested: Any) -> tuple[Tensor, Tensor]:
    if nested.layout != torch.jagged:
        raise RuntimeError(f"input: expected a nested tensor of layout torch.jagged but got one of {nested.layout}")
    values = nested.values()
    if nested.dim() != 3 or values.dim() != 2 or nested.size(0) != nested.offsets().numel() - 1:
        raise ValueError(f"input: expected a nested tensor (B, *, features) but got {nested.dim()} dimensions")
    if isinstance(nested.size(2), torch.SymInt) and not torch.compiler.is_compiling():
        raise RuntimeError(
            "input: expected a nested tensor (B, *, features), whose steps are its second dimension, but they are the "
            "third: transpose it back"
        )
    if nested.lengths() is not None:  # a view that leaves out a part of each row
        nested = nested.contiguous()
    return nested.values(), nested.offsets()


def _check_offsets(offsets: Tensor, values: Tensor) -> None:
    if offsets.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"cu_seqlens: expected torch.int32 or torch.int64 but got {offsets.dtype}")
    if offsets.dim() != 1 or not offsets.numel():
        raise RuntimeError(f"cu_seqlens: expected shape (B + 1,) but got {shape_of(offsets)}")
    if offsets.device != values.device:
        raise RuntimeError(f"cu_seqlens: expected a tensor on {values.device}, like values, but got {offsets.device}")


def _packed_order(offsets: Tensor, values: Tensor) -> tuple[Tensor, ...]:
    """The further fields of :class:`JaggedRows`. A GPU is waited for, as batch sizes must be on the CPU."""
    if offsets.is_meta and not torch.compiler.is_compiling():
        raise RuntimeError("cu_seqlens: expected a tensor that has values, as they order the rows, but got one on meta")
    starts, count, device = offsets.cpu().long(), values.size(0), values.device
    _check_values(starts, count)
    lengths = starts.diff()
    order = lengths.argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(order.size(0))
    row = torch.arange(lengths.size(0)).repeat_interleave(lengths)
    step = torch.arange(count) - starts[row]
    batch_sizes = step.bincount()
    back = (batch_sizes.cumsum(0) - batch_sizes)[step] + rank[row]
    places = torch.empty_like(back)
    places[back] = torch.arange(count)
    has_steps = lengths[order] > 0
    filled, empty = order[has_steps].to(device), order[~has_steps].to(device)
    return filled, empty, rank.to(device), batch_sizes, places.to(device), back.to(device)


def _check_values(starts: Tensor, count: int) -> None:
    if not values_can_be_read(starts) or torch._C._is_tracing():
        return
    first, last = int(starts[0]), int(starts[-1])
    if first or last != count:
        raise RuntimeError(
            f"cu_seqlens: expected offsets from 0 to {count}, the number of rows of values, but got {first} to {last}"
        )
    falls = (starts.diff() < 0).nonzero()
    if len(falls):
        k = int(falls[0])
        raise RuntimeError(
            f"cu_seqlens: expected offsets that ascend but got {int(starts[k])} before {int(starts[k + 1])}"
        )


def jagged_resets(resets: Any, rows: JaggedRows) -> Any:
    """``resets`` as values of the rows: a nested tensor's, or the tensor ``(N,)`` itself."""
    if not isinstance(resets, Tensor) or not resets.is_nested:
        return resets
    nested: Any = resets
    if nested.layout != torch.jagged or nested.dim() != 2 or nested.lengths() is not None:
        raise RuntimeError("resets: expected a jagged nested tensor (B, *) without gaps, like the input's rows")
    offsets: Tensor = nested.offsets()
    if offsets is not rows.offsets and not (
        offsets.shape == rows.offsets.shape and bool((offsets == rows.offsets).all())
    ):
        raise RuntimeError("resets: expected a nested tensor with the offsets of the input's but got others")
    return nested.values()

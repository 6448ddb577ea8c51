"""How many operations ``torch.utils.flop_counter`` counts for our operators: two for each multiply-add of a product.

As torch does, the formulas count matrix products alone. They are registered when torch.utils.flop_counter is imported,
by us or anybody else, because importing it here would cost every program that does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._after_import import after_import
from ._ext import C
from ._inputs import holds_ids
from ._shapes import by_kind

__all__ = ["backward_flops", "forward_flops", "linear_flops", "pool_steps_flops"]


def forward_flops(
    x: Tensor, weights: Sequence[Tensor], h0: Tensor | None, c0: Tensor | None, lengths: Tensor | None,
    batch_sizes: Tensor | None, cell: str, directions: int, batch_first: bool, *_: Any, **__: Any,
) -> int:  # fmt: skip
    """The operations of ``rnn_forward`` and ``rnn_layer``: each step multiplies by every weight matrix."""
    steps, _rows = _steps(x, lengths, batch_sizes, batch_first)
    w_ih, w_hh, w_hr = _sizes(x, weights, directions, cell)
    return 2 * steps * (w_ih + w_hh + w_hr)


def backward_flops(
    d_output: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None, x: Tensor, weights: Sequence[Tensor],
    h0: Tensor | None, c0: Tensor | None, lengths: Tensor | None, batch_sizes: Tensor | None, output: Tensor,
    saved: Tensor, cell: str, directions: int, batch_first: bool, want_d_x: bool, want_d_weights: bool, *_: Any,
    **__: Any,
) -> int:  # fmt: skip
    """The operations of ``rnn_backward``. The first step of a row passes no gradient on to h0 if there is none."""
    steps, rows = _steps(x, lengths, batch_sizes, batch_first)
    w_ih, w_hh, w_hr = _sizes(x, weights, directions, cell)
    count = (steps - (rows if h0 is None else 0)) * w_hh + steps * w_hr
    if want_d_x:
        count += steps * w_ih
    if want_d_weights:
        count += steps * (w_ih + w_hh + w_hr)
    return 2 * count


def linear_flops(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    """The operations of ``linear``."""
    return 2 * x.size(0) * weight.numel()


def pool_steps_flops(
    output: Tensor, lengths: Tensor | None, pooling: str, weight: Tensor | None, *_: Any, **__: Any
) -> int:
    """The operations of ``pool_steps`` with attention: the score of each step, and its part of the weighted sum."""
    return 0 if weight is None else 4 * _steps(output, lengths, None, True)[0] * weight.numel()


def _sizes(x: Tensor, weights: Sequence[Tensor], directions: int, cell: str) -> list[int]:
    """The numbers of elements of w_ih, w_hh and w_hr, all directions together. Ids are looked up in w_ih, which is no
    product."""
    w_ih, w_hh, _, _, w_hr, _ = by_kind(weights, directions, cell)
    return [sum(w.numel() for w in kind) for kind in (() if holds_ids(x) else w_ih, w_hh, w_hr)]


def _steps(x: Tensor, lengths: Tensor | None, batch_sizes: Tensor | None, batch_first: bool) -> tuple[int, int]:
    """The number of steps of all rows together, and of rows with at least one step. Fake tensors have no values: rows
    then count as having all T steps, and packed rows as continued from others."""
    if batch_sizes is not None:
        return x.size(0), int(batch_sizes[0]) if _has_values(batch_sizes) else 0
    T, B = (x.size(1), x.size(0)) if batch_first else (x.size(0), x.size(1))
    if lengths is None or not _has_values(lengths):
        return T * B, B
    lengths = lengths.clamp(0, T)
    return int(lengths.sum()), int(lengths.count_nonzero())


def _has_values(t: Tensor) -> bool:
    from torch._subclasses.fake_tensor import is_fake

    return not t.is_meta and not is_fake(t)


def _register() -> None:
    from torch.utils.flop_counter import register_flop_formula

    ops = torch.ops.seqcls_fast
    for op, formula in (
        (ops.rnn_forward, forward_flops),
        (ops.rnn_layer, forward_flops),
        (ops.rnn_backward, backward_flops),
        (ops.linear, linear_flops),
        (ops.pool_steps, pool_steps_flops),
    ):
        register_flop_formula(op, get_raw=True)(formula)


if C is not None:
    after_import("torch.utils.flop_counter", _register)

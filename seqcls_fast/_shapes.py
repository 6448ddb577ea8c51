"""Fake kernels: shapes, strides and dtypes of the ops' results. And ``by_kind``, which splits a layer's weights.

torch.compile, torch.export and meta tensors run the fake kernels, which check only what their shapes depend on;
csrc/bindings checks the rest.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._cells import BUILT_IN, Cell, Further
from ._ext import C
from ._inputs import check_rank, holds_ids

__all__ = ["CELLS", "by_kind"]


def _cell(gates: int, saved: int, has_c: bool, further: Sequence[Any], is_option: bool) -> Cell:
    return Cell(gates, saved, has_c, tuple(Further(*weight) for weight in further), is_option)


CELLS = BUILT_IN if C is None else {name: _cell(*row) for name, row in C.cells().items()}
_SAVED_ALIGN = 16  # values are saved in blocks of this many units, on every instruction set

_Kind = Sequence[Tensor]


def by_kind(
    weights: Sequence[Tensor], directions: int, cell: str
) -> tuple[_Kind, _Kind, _Kind, _Kind, _Kind, Sequence[_Kind]]:
    """``w_ih, w_hh, b_ih, b_hh, w_hr`` and the cell's further kinds from the list of all weights; an absent kind is
    empty."""
    kinds = [weights[k : k + directions] for k in range(0, len(weights), directions)]
    plain = len(kinds) - len(CELLS[cell].further)
    kinds, further = kinds[:plain], kinds[plain:]
    w_hr = kinds.pop() if len(kinds) in (3, 5) else ()
    b_ih, b_hh = kinds[2:] or ((), ())
    return kinds[0], kinds[1], b_ih, b_hh, w_hr, further


def _widths(weights: Sequence[Tensor], directions: int, cell: str) -> tuple[int, int]:
    """``H``, and ``Hout``, which is smaller if states are projected."""
    if cell not in CELLS:
        raise RuntimeError(f"cell: expected one of {', '.join(CELLS)} but got {reprlib.repr(cell)}")
    return weights[0].size(0) // CELLS[cell].gates, weights[directions].size(1)


def _rows_shape(x: Tensor, batch_first: bool, batch_sizes: Tensor | None) -> tuple[Any, ...]:
    """The outer dimensions of what is saved per row and step: ``(T, B)``, or ``(N,)`` if packed."""
    if batch_sizes is not None:
        return (x.size(0),)
    return (x.size(1), x.size(0)) if batch_first else (x.size(0), x.size(1))


def _check_given(**tensors: Any) -> None:
    """Refuses None, which the dispatcher accepts for a tensor."""
    for name, t in tensors.items():
        if t is None:
            raise RuntimeError(f"{name}: expected a tensor but got None")


def _check_devices(x: Tensor, *others: Tensor | None) -> None:
    for t in others:
        if t is not None and t.device != x.device:
            raise RuntimeError(f"expected every tensor on the device of x, {x.device}, but one is on {t.device}")


def _buffer_dtype(like: Tensor) -> torch.dtype:
    """The dtype of ``saved``: that of the sums on the CPU, that of the layer on CUDA, where it enters products."""
    return like.dtype if like.device.type == "cuda" or like.dtype == torch.float64 else torch.float32


def _fake_forward(
    x: Tensor, weights: list[Tensor], h0: Tensor | None, c0: Tensor | None, lengths: Tensor | None,
    batch_sizes: Tensor | None, cell: str, directions: int, batch_first: bool, want_output: bool, want_saved: bool,
    impl: str, allow_tf32: bool = False, packed: Tensor | None = None, resets: Tensor | None = None,
    h_reset: Tensor | None = None, c_reset: Tensor | None = None, seed: Tensor | None = None, *rates: float,
) -> list[Tensor]:  # fmt: skip
    _check_given(x=x)
    _check_devices(x, h0, c0, lengths, resets, h_reset, c_reset, seed, *weights)
    hidden, out = _widths(weights, directions, cell)
    w_ih, ids = weights[0], holds_ids(x)
    if not ids and w_ih.size(1) != x.size(-1):
        raise RuntimeError(f"w_ih: expected {x.size(-1)} columns, as x has features, but got {w_ih.size(1)}")
    check_rank(x, batch_sizes)
    rows = _rows_shape(x, batch_first, batch_sizes)
    if batch_sizes is None:
        batch = rows[1]
    elif h0 is not None:
        batch = h0.size(1)
    else:  # the first entry of batch_sizes, whose value is unknown here
        batch = torch.library.get_ctx().new_dynamic_size()
    results = [w_ih.new_empty(directions, batch, out)]
    if CELLS[cell].has_c:
        results.append(w_ih.new_empty(directions, batch, hidden))
    if want_output or want_saved:
        output = w_ih.new_empty(*rows, directions * out)  # one step after another, also if batch_first
        results.append(output.transpose(0, 1) if batch_first and batch_sizes is None else output)
    if want_saved:
        padded = (hidden + _SAVED_ALIGN - 1) // _SAVED_ALIGN * _SAVED_ALIGN
        saved = CELLS[cell].saved + (CELLS[cell].gates == 1 and bool(rates) and rates[0] > 0)  # see saves_fresh_h()
        results.append(w_ih.new_empty((directions, *rows, saved * padded), dtype=_buffer_dtype(w_ih)))
    return results


def _fake_layer(
    x: Tensor, weights: list[Tensor], h0: Tensor | None, c0: Tensor | None, lengths: Tensor | None,
    batch_sizes: Tensor | None, cell: str, directions: int, batch_first: bool, want_output: bool, impl: str,
    allow_tf32: bool = False, *options: Any,
) -> list[Tensor]:  # fmt: skip
    return _fake_forward(
        x, weights, h0, c0, lengths, batch_sizes, cell, directions, batch_first, want_output, False, impl, allow_tf32,
        None, *options,
    )  # fmt: skip


def _fake_backward(
    d_output: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None, x: Tensor, weights: list[Tensor],
    h0: Tensor | None, c0: Tensor | None, lengths: Tensor | None, batch_sizes: Tensor | None,
    output: Tensor, saved: Tensor, cell: str, directions: int, batch_first: bool, want_d_x: bool,
    want_d_weights: bool, samples: int, impl: str, allow_tf32: bool = False, resets: Tensor | None = None,
    h_reset: Tensor | None = None, c_reset: Tensor | None = None, seed: Tensor | None = None, *rates: float,
) -> list[Tensor]:  # fmt: skip
    _check_given(x=x, output=output, saved=saved)
    results = [output.new_empty(t.shape) for t in (x if want_d_x else None, h0, c0) if t is not None]
    each = (samples,) if samples else ()
    results += [output.new_empty((*each, *t.shape)) for t in (h_reset, c_reset) if t is not None]
    for k, w in enumerate(weights if want_d_weights else ()):
        if k < directions and holds_ids(x):  # the kernels write the gradient of w_ih transposed
            results.append(output.new_empty((*each, *w.shape[::-1])).transpose(-1, -2))
        else:
            results.append(output.new_empty((*each, *w.shape)))
    return results


def _fake_pack(weights: list[Tensor], cell: str, directions: int, impl: str, ids: bool = False) -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size()  # the instruction set decides it
    return weights[0].new_empty(size, dtype=torch.uint8)


if C is not None:
    torch.library.register_fake("seqcls_fast::pack_weights")(_fake_pack)
    torch.library.register_fake("seqcls_fast::rnn_forward")(_fake_forward)
    torch.library.register_fake("seqcls_fast::rnn_layer")(_fake_layer)
    torch.library.register_fake("seqcls_fast::rnn_backward")(_fake_backward)


def _fake_linear(x: Tensor, weight: Tensor, bias: Tensor | None, impl: str) -> Tensor:
    _check_given(x=x, weight=weight)
    _check_devices(x, weight, bias)
    return x.new_empty(x.size(0), weight.size(0))


def _fake_pool_steps(
    output: Tensor, lengths: Tensor | None, pooling: str, weight: Tensor | None, bias: Tensor | None, impl: str
) -> Tensor:
    _check_given(output=output)
    _check_devices(output, lengths, weight, bias)
    return output.new_empty(output.size(0), output.size(2))


def _fake_softmax(logits: Tensor, temperature: float, impl: str) -> Tensor:
    _check_given(logits=logits)
    return logits.new_empty(logits.shape)


if C is not None:
    torch.library.register_fake("seqcls_fast::linear")(_fake_linear)
    torch.library.register_fake("seqcls_fast::pool_steps")(_fake_pool_steps)
    torch.library.register_fake("seqcls_fast::softmax")(_fake_softmax)

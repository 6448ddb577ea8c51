"""``rnn_layer``: the one functional entry to a recurrent layer, with its autograd and fake kernels.

The dispatcher ops know nothing of autograd; one small ``torch.autograd.Function`` around them does. Its backward
calls the kernels, or, when a graph of the backward itself is asked for, differentiates the reference layer.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import reference
from ._ext import C

__all__ = ["available_impls", "rnn_layer", "use_impl"]

Outputs = tuple[Tensor | None, Tensor, Tensor | None]
_Kind = Sequence[Tensor]

_CELLS = {"rnn_tanh": (1, 1), "rnn_relu": (1, 1), "gru": (3, 4), "lstm": (4, 4)}  # gates, gradient slots
_SAVED = {"rnn_tanh": 0, "rnn_relu": 0, "gru": 4, "lstm": 5}  # values saved per unit and step
_SAVED_ALIGN = 16  # units are saved in blocks of this many, whatever the ISA

_IMPLS: tuple[str, ...] = ("reference", *(C.impls() if C is not None else ()))
_default = threading.local()


def available_impls() -> tuple[str, ...]:
    """The names ``impl=`` accepts on this machine, besides ``"auto"``."""
    return _IMPLS


@contextmanager
def use_impl(name: str) -> Iterator[None]:
    """What ``impl="auto"`` means in this thread inside the block.

    Example::

        >>> import torch, seqcls_fast as sf
        >>> with sf.use_impl("reference"):
        ...     output, h_n = sf.GRU(3, 4)(torch.zeros(5, 2, 3))
    """
    _check_impl(name)
    before = getattr(_default, "impl", "auto")
    _default.impl = name
    try:
        yield
    finally:
        _default.impl = before


def _check_impl(name: str) -> None:
    if name != "auto" and name not in _IMPLS:
        raise ValueError(f"impl: expected one of {', '.join(('auto', *_IMPLS))} but got {name!r}")


def rnn_layer(
    x: Tensor,
    w_ih: Sequence[Tensor],
    w_hh: Sequence[Tensor],
    b_ih: Sequence[Tensor] = (),
    b_hh: Sequence[Tensor] = (),
    w_hr: Sequence[Tensor] = (),
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    *,
    cell: str,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    batch_first: bool = False,
    want_output: bool = True,
    impl: str = "auto",
) -> Outputs:
    """One recurrent layer, all its directions, over a whole sequence.

    Args:
        x: ``(T, B, I)`` of any strides, ``(B, T, I)`` if ``batch_first``; packed rows ``(N, I)`` with ``batch_sizes``.
        w_ih, w_hh, b_ih, b_hh, w_hr: one tensor per direction, as in ``torch.nn``; the last three may be empty.
        h0, c0: ``(D, B, Hout)`` and ``(D, B, H)``, zeros when None.
        cell: ``"rnn_tanh"``, ``"rnn_relu"``, ``"gru"`` or ``"lstm"``.
        lengths: ``(B,)`` integers, in any order, zeros allowed. What lies beyond a row's length is never read.
        batch_sizes: ``(T,)`` as in a ``PackedSequence``.
        want_output: without it the per-step output is None.
        impl: ``"auto"`` or one of :func:`available_impls`.

    Returns:
        ``(output, h_n, c_n)``; ``c_n`` is None unless the cell is an LSTM.

    Example::

        >>> import torch
        >>> from seqcls_fast.ops import rnn_layer
        >>> w_ih, w_hh = torch.zeros(12, 3), torch.zeros(12, 4)
        >>> output, h_n, _ = rnn_layer(torch.zeros(5, 2, 3), [w_ih], [w_hh], cell="gru")
        >>> output.shape, h_n.shape
        (torch.Size([5, 2, 4]), torch.Size([1, 2, 4]))
    """
    directions = len(w_ih)
    if directions not in (1, 2):
        raise RuntimeError(f"w_ih: expected 1 or 2 tensors, one per direction, but got {directions}")
    for name, group in (("w_hh", w_hh), ("b_ih", b_ih), ("b_hh", b_hh), ("w_hr", w_hr)):
        wanted = {"w_hh": (directions,), "b_hh": (len(b_ih),)}.get(name, (0, directions))
        if len(group) not in wanted:
            raise RuntimeError(f"{name}: expected {wanted[-1]} tensors, one per direction, but got {len(group)}")
    weights = [*w_ih, *w_hh, *b_ih, *b_hh, *w_hr]
    return run_layer(x, weights, directions, h0, c0, cell, lengths, batch_sizes, batch_first, want_output, impl)


def run_layer(
    x: Tensor,
    weights: list[Tensor],
    directions: int,
    h0: Tensor | None,
    c0: Tensor | None,
    cell: str,
    lengths: Tensor | None,
    batch_sizes: Tensor | None,
    batch_first: bool,
    want_output: bool,
    impl: str = "auto",
) -> Outputs:
    """:func:`rnn_layer` with its weights in one list, kind after kind, as the ops take them."""
    if impl == "auto":
        impl = getattr(_default, "impl", "auto")
    if impl != "auto":
        _check_impl(impl)
    if cell not in _CELLS:
        raise ValueError(f"cell: expected one of {', '.join(_CELLS)} but got {cell!r}")
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device):
        x, h0, c0, *weights = _autocast(x, h0, c0, *weights)
    compiled = C is not None and impl != "reference" and device in ("cpu", "meta") and not _transformed()
    if lengths is not None:  # the kernels check the values themselves
        lengths = reference.check_lengths(lengths, x, batch_first, values=not compiled).to(x.device, torch.int64)
    if not compiled:
        return reference.rnn_layer(
            x, *_by_kind(weights, directions), h0, c0,
            cell=cell, lengths=lengths, batch_sizes=batch_sizes, batch_first=batch_first, want_output=want_output,
        )  # fmt: skip
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, h0, c0, *weights)):
        spec = _Spec(directions, cell, batch_first, want_output, impl)
        return _Layer.apply(spec, x, h0, c0, lengths, batch_sizes, *weights)
    results = torch.ops.seqcls_fast.rnn_forward.default(
        x, weights, h0, c0, lengths, batch_sizes, cell, directions, batch_first, want_output, False, impl
    )
    return results[-1] if want_output else None, results[0], results[1] if cell == "lstm" else None


def _by_kind(flat: Sequence[Tensor], directions: int) -> tuple[_Kind, _Kind, _Kind, _Kind, _Kind]:
    """``w_ih, w_hh, b_ih, b_hh, w_hr`` out of the flat list of all of them."""
    kinds = [flat[k : k + directions] for k in range(0, len(flat), directions)]
    w_hr = kinds.pop() if len(kinds) in (3, 5) else ()
    b_ih, b_hh = kinds[2:] or ((), ())
    return kinds[0], kinds[1], b_ih, b_hh, w_hr


def _transformed() -> bool:
    """Whether functorch or forward-mode AD is at work: the kernels have no tangents and no batching rules."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def _autocast(x: Tensor, *rest: Tensor | None) -> list[Any]:
    dtype = torch.get_autocast_dtype(x.device.type)
    return [
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in (x, *rest)
    ]


class _Spec:
    """What ``_Layer`` knows besides tensors."""

    __slots__ = ("batch_first", "cell", "directions", "impl", "want_output")

    def __init__(self, directions: int, cell: str, batch_first: bool, want_output: bool, impl: str) -> None:
        self.directions, self.cell, self.batch_first = directions, cell, batch_first
        self.want_output, self.impl = want_output, impl


class _Layer(torch.autograd.Function):
    """Forward and backward through the kernels; the backward's own graph comes from the reference layer."""

    @staticmethod
    def forward(
        ctx: Any, spec: _Spec, x: Tensor, h0: Any, c0: Any, lengths: Any, batch_sizes: Any, *flat: Tensor
    ) -> Outputs:
        h_n, *c_n, output, saved = torch.ops.seqcls_fast.rnn_forward.default(
            x, flat, h0, c0, lengths, batch_sizes,
            spec.cell, spec.directions, spec.batch_first, spec.want_output, True, spec.impl,
        )  # fmt: skip
        ctx.spec = spec
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h0, c0, lengths, batch_sizes, output, saved, *flat)
        return output if spec.want_output else None, h_n, c_n[0] if c_n else None

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return (None, *_backward_with_graph(ctx, grads))
        spec = ctx.spec
        x, h0, c0, lengths, batch_sizes, output, saved, *flat = ctx.saved_tensors
        needs = ctx.needs_input_grad
        d_x, d_gates, d_h0, d_c0 = torch.ops.seqcls_fast.rnn_backward.default(
            *grads, x, flat, h0, c0, lengths, batch_sizes, output, saved,
            spec.cell, spec.directions, spec.batch_first, needs[1], spec.impl,
        )  # fmt: skip
        d_weights: Sequence[Tensor | None] = (None,) * len(flat)
        if any(needs[6:]):
            _, _, b_ih, _, w_hr = _by_kind(flat, spec.directions)
            d_weights = torch.ops.seqcls_fast.rnn_weight_grad.default(
                d_gates, x, output, h0, lengths, batch_sizes,
                spec.cell, spec.batch_first, w_hr[0].size(0) if w_hr else 0, bool(b_ih), spec.impl,
            )  # fmt: skip
        return (
            None,
            d_x if needs[1] else None,
            d_h0 if needs[2] else None,
            d_c0 if needs[3] else None,
            None,
            None,
            *d_weights,
        )


def _backward_with_graph(ctx: Any, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients as differentiable functions of the inputs and of ``grads``."""
    spec = ctx.spec
    x, h0, c0, lengths, batch_sizes, _, _, *flat = ctx.saved_tensors
    # views cut the graph between inputs: h0 may itself have been computed from x
    inputs = [
        t if t is None or not t.is_floating_point() else t.view_as(t) for t in (x, h0, c0, lengths, batch_sizes, *flat)
    ]
    x, h0, c0, lengths, batch_sizes, *flat = inputs
    outputs = reference.rnn_layer(
        x, *_by_kind(flat, spec.directions), h0, c0, cell=spec.cell, lengths=lengths, batch_sizes=batch_sizes,
        batch_first=spec.batch_first, want_output=spec.want_output,
    )  # fmt: skip
    used = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if out is not None and grad is not None]
    wanted = [i for i, needed in enumerate(ctx.needs_input_grad[1:]) if needed]
    result: list[Tensor | None] = [None] * len(inputs)
    if used:
        found = torch.autograd.grad(
            [out for out, _ in used], [inputs[i] for i in wanted], [grad for _, grad in used],
            create_graph=True, allow_unused=True,
        )  # fmt: skip
        for i, grad in zip(wanted, found, strict=True):
            result[i] = grad
    return result


def _rows_shape(x: Tensor, batch_first: bool, batch_sizes: Tensor | None) -> tuple[Any, ...]:
    """Shape of the time-major buffers kept per row and step: ``(T, B)`` or ``(N,)``."""
    if batch_sizes is not None:
        return (x.size(0),)
    return (x.size(1), x.size(0)) if batch_first else (x.size(0), x.size(1))


def _check_devices(x: Tensor, *others: Tensor | None) -> None:
    for t in others:
        if t is not None and t.device != x.device:
            raise RuntimeError(f"expected every tensor on the device of x, {x.device}, but one is on {t.device}")


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _fake_forward(
    x: Tensor, weights: list[Tensor], h0: Tensor | None, c0: Tensor | None, lengths: Tensor | None,
    batch_sizes: Tensor | None, cell: str, directions: int, batch_first: bool, want_output: bool, want_saved: bool,
    impl: str,
) -> list[Tensor]:  # fmt: skip
    _check_devices(x, h0, c0, lengths, *weights)
    hidden, out = _widths(weights, directions, cell)
    rows = _rows_shape(x, batch_first, batch_sizes)
    if batch_sizes is None:
        batch = rows[1]
    elif h0 is not None:
        batch = h0.size(1)
    else:
        batch = torch.library.get_ctx().new_dynamic_size()
    results = [x.new_empty(directions, batch, out)]
    if cell == "lstm":
        results.append(x.new_empty(directions, batch, hidden))
    if want_output or want_saved:
        results.append(x.new_empty(*x.shape[:-1], directions * out))
    if want_saved:
        padded = (hidden + _SAVED_ALIGN - 1) // _SAVED_ALIGN * _SAVED_ALIGN
        results.append(x.new_empty((directions, *rows, _SAVED[cell] * padded), dtype=_compute_dtype(x.dtype)))
    return results


def _fake_backward(
    d_output: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None, x: Tensor, weights: list[Tensor],
    h0: Tensor | None, c0: Tensor | None, lengths: Tensor | None, batch_sizes: Tensor | None,
    output: Tensor, saved: Tensor, cell: str, directions: int, batch_first: bool, want_d_x: bool, impl: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    hidden, out = _widths(weights, directions, cell)
    rows = _rows_shape(x, batch_first, batch_sizes)
    projected = len(weights) // directions in (3, 5)
    width = _CELLS[cell][1] * hidden + (out + hidden if projected else 0)
    d_x = x.new_empty(x.shape if want_d_x else (0,))
    d_gates = x.new_empty((directions, *rows, width), dtype=_compute_dtype(x.dtype))
    d_h0 = x.new_empty((0,) if h0 is None else h0.shape)
    d_c0 = x.new_empty((0,) if c0 is None else c0.shape)
    return d_x, d_gates, d_h0, d_c0


def _widths(weights: list[Tensor], directions: int, cell: str) -> tuple[int, int]:
    """``H`` and ``Hout``."""
    return weights[0].size(0) // _CELLS[cell][0], weights[directions].size(1)


def _fake_weight_grad(
    d_gates: Tensor, x: Tensor, output: Tensor, h0: Tensor | None, lengths: Tensor | None, batch_sizes: Tensor | None,
    cell: str, batch_first: bool, proj_size: int, want_bias: bool, impl: str,
) -> list[Tensor]:  # fmt: skip
    gates, slots = _CELLS[cell]
    directions = d_gates.size(0)
    hidden = d_gates.size(-1) // slots if not proj_size else (d_gates.size(-1) - proj_size) // (slots + 1)
    out = proj_size or hidden
    shapes: list[tuple[int, ...]] = [(gates * hidden, x.size(-1)), (gates * hidden, out)]
    if want_bias:
        shapes += [(gates * hidden,), (gates * hidden,)]
    if proj_size:
        shapes.append((out, hidden))
    return [x.new_empty(shape) for shape in shapes for _ in range(directions)]


if C is not None:
    torch.library.register_fake("seqcls_fast::rnn_forward")(_fake_forward)
    torch.library.register_fake("seqcls_fast::rnn_backward")(_fake_backward)
    torch.library.register_fake("seqcls_fast::rnn_weight_grad")(_fake_weight_grad)

"""Autograd, vmap and autocast of ``seqcls_fast::rnn_layer``, the op in exported and traced programs.

Such a program runs none of our Python around the op, so these are registered with torch's dispatcher. Calls from Python
take ``ops.run_layer`` instead, which makes the same choices and saves the 6 us that the dispatcher would take.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._autograd import Spec, mapped, needs_graph, reference_layer, run_backward, run_forward
from ._cells import Rates
from ._ext import C
from ._inputs import autocast
from ._shapes import CELLS

__all__ = ["ExportedLayer"]


class ExportedLayer(torch.autograd.Function):
    """The op saves nothing for the backward, which therefore runs a forward that does."""

    @staticmethod
    def forward(ctx: Any, options: Sequence[Any], *tensors: Any) -> tuple[Tensor, ...]:
        ctx.options = options
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        return tuple(_exported_op(options, tensors))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        spec, tensors = _spec_of(ctx.options), ctx.saved_tensors
        output, *_, saved = run_forward(spec, tensors)
        d_output = grads[-1] if spec.want_output else None
        d_c_n = grads[1] if CELLS[spec.cell].has_c else None
        _, *needs = ctx.needs_input_grad
        return None, *run_backward(spec, needs, (d_output, grads[0], d_c_n), tensors, output, saved)


def _rates(given: Sequence[float]) -> Rates | None:
    return Rates(*given) if any(given) else None


def _spec_of(options: Sequence[Any]) -> Spec:
    *plain, rates = options
    spec = Spec(*plain)
    spec.rates = rates
    return spec


def _exported_op(options: Sequence[Any], tensors: Sequence[Any]) -> list[Tensor]:
    directions, cell, *rest, rates = options
    x, h0, c0, lengths, batch_sizes, resets, seed, h_reset, c_reset, *weights = tensors
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.seqcls_fast.rnn_layer.default(
            x, weights, h0, c0, lengths, batch_sizes, cell, directions, *rest, resets, h_reset, c_reset, seed,
            *(rates or ()),
        )  # fmt: skip


def _exported_autograd(
    x: Tensor,
    weights: list[Tensor],
    h0: Any,
    c0: Any,
    lengths: Any,
    batch_sizes: Any,
    cell: str,
    directions: int,
    batch_first: bool,
    want_output: bool,
    impl: str,
    allow_tf32: bool = False,
    resets: Any = None,
    h_reset: Any = None,
    c_reset: Any = None,
    seed: Any = None,
    *rates: float,
) -> list[Tensor]:
    options = (directions, cell, batch_first, want_output, impl, allow_tf32, _rates(rates))
    tensors = (x, h0, c0, lengths, batch_sizes, resets, seed, h_reset, c_reset, *weights)
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        output, h_n, c_n = reference_layer(_spec_of(options), *tensors)
        return [t for t in (h_n, c_n, output) if t is not None]
    if needs_graph(tensors):
        return list(ExportedLayer.apply(options, *tensors))
    return _exported_op(options, tensors)


def _exported_vmap(
    info: Any, dims: Any, x: Tensor, weights: Any, h0: Any, c0: Any, lengths: Any, batch_sizes: Any, cell: str,
    directions: int, batch_first: bool, want_output: bool, impl: str, allow_tf32: bool = False, resets: Any = None,
    h_reset: Any = None, c_reset: Any = None, seed: Any = None, *rates: float,
) -> Any:  # fmt: skip
    plain = (cell, directions, batch_first, want_output, impl, allow_tf32)

    def function(
        x: Tensor, h0: Any, c0: Any, lengths: Any, batch_sizes: Any, resets: Any, seed: Any, h_reset: Any, c_reset: Any,
        *weights: Tensor,
    ) -> Any:  # fmt: skip
        results = torch.ops.seqcls_fast.rnn_layer.default(
            x, weights, h0, c0, lengths, batch_sizes, *plain, resets, h_reset, c_reset, seed, *rates
        )
        has_c = CELLS[cell].has_c
        return results[-1] if len(results) > 1 + has_c else None, results[0], results[1] if has_c else None, None

    spec = _spec_of((directions, cell, batch_first, want_output, impl, allow_tf32, _rates(rates)))
    of_x, of_weights, *of_states = dims[:6]
    of_resets, of_h_reset, of_c_reset, of_seed = dims[12:16] or (None,) * 4
    tensors = (x, h0, c0, lengths, batch_sizes, resets, seed, h_reset, c_reset, *weights)
    tensor_dims = (of_x, *of_states, of_resets, of_seed, of_h_reset, of_c_reset, *of_weights)
    (output, *finals, _), (output_dim, *final_dims, _) = mapped(function, spec, info.batch_size, tensor_dims, tensors)
    pairs = [(t, dim) for t, dim in zip((*finals, output), (*final_dims, output_dim), strict=True) if t is not None]
    return [t for t, _ in pairs], [dim for _, dim in pairs]


def _exported_autocast(
    x: Tensor, weights: list[Tensor], h0: Any, c0: Any, lengths: Any, batch_sizes: Any, cell: str, directions: int,
    batch_first: bool, want_output: bool, impl: str, allow_tf32: bool = False, resets: Any = None, h_reset: Any = None,
    c_reset: Any = None, *rest: Any,
) -> list[Tensor]:  # fmt: skip
    device = x.device.type
    x, h0, c0, h_reset, c_reset, *weights = autocast(x, h0, c0, h_reset, c_reset, *weights)
    with torch.autocast(device, enabled=False):
        return torch.ops.seqcls_fast.rnn_layer.default(
            x, weights, h0, c0, lengths, batch_sizes, cell, directions, batch_first, want_output, impl, allow_tf32,
            resets, h_reset, c_reset, *rest,
        )  # fmt: skip


if C is not None:
    _LIBRARY = torch.library.Library("seqcls_fast", "IMPL")
    _LIBRARY.impl("rnn_layer", _exported_autograd, "Autograd")
    torch.library.register_vmap("seqcls_fast::rnn_layer", _exported_vmap)
    for _key in ("AutocastCPU", "AutocastCUDA"):
        _LIBRARY.impl("rnn_layer", _exported_autocast, _key)

"""Gradients of a layer: autograd Functions around the ops, for eager and compiled code, torch.func and double backward.

First derivatives always come from the kernels; derivatives of derivatives, and forward mode, from differentiating the
reference layer. vmap folds its dimension into the batch and lets the weight gradients keep it, sample by sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import reference
from ._shapes import by_kind

__all__ = [
    "Layer",
    "Outputs",
    "Spec",
    "grads_batched",
    "mapped",
    "needs_graph",
    "reference_gradients",
    "reference_layer",
    "run_backward",
    "run_forward",
    "transformed_layer",
    "version_of",
]

Outputs = tuple[Tensor | None, Tensor, Tensor | None]
_Tensors = Sequence[Any]  # Tensor or None
_NOTHING = torch.empty(0, device="cpu")  # whatever the default device was at the first use


class Spec:
    """What a Function knows besides tensors. Tensors always come as ``x, h0, c0, lengths, batch_sizes, *weights``."""

    want_saved = True
    recompute = False  # a backward runs the forward again instead of keeping what it saved
    samples = 0  # stretches of the batch with weight gradients of their own; 0: one gradient for all
    needs: Sequence[bool] = ()  # which tensors' gradients a backward is to return

    def __init__(
        self, directions: int, cell: str, batch_first: bool, want_output: bool, impl: str, allow_tf32: bool = False
    ) -> None:
        self.directions, self.cell, self.batch_first = directions, cell, batch_first
        self.want_output, self.impl, self.allow_tf32 = want_output, impl, allow_tf32

    def but(self, **changes: Any) -> Spec:
        other = Spec.__new__(Spec)
        other.__dict__ |= self.__dict__ | changes
        return other


def needs_graph(tensors: _Tensors) -> bool:
    if torch.is_grad_enabled():
        for t in tensors:  # any() takes longer
            if t is not None and t.requires_grad:
                return True
    return False


def run_forward(spec: Spec, tensors: _Tensors) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """``output, h_n, c_n, saved``; the output comes with saved, wanted or not."""
    x, h0, c0, lengths, batch_sizes, *flat = tensors
    results = torch.ops.seqcls_fast.rnn_forward.default(
        x, flat, h0, c0, lengths, batch_sizes,
        spec.cell, spec.directions, spec.batch_first, spec.want_output, spec.want_saved, spec.impl, spec.allow_tf32,
    )  # fmt: skip
    steps = results[2 if spec.cell == "lstm" else 1 :]
    return (
        steps[0] if steps else None,
        results[0],
        results[1] if spec.cell == "lstm" else None,
        steps[1] if spec.want_saved else None,
    )


def _gradients(spec: Spec, needs: Sequence[bool], grads: _Tensors, tensors: _Tensors, output: Any, saved: Any) -> Any:
    """The gradients of ``tensors`` by the kernels: those of all weights where one is needed."""
    x, h0, c0, lengths, batch_sizes, *flat = tensors
    want_d_weights = True in needs[5:]
    found = torch.ops.seqcls_fast.rnn_backward.default(
        *grads, x, flat, h0, c0, lengths, batch_sizes, output, saved,
        spec.cell, spec.directions, spec.batch_first, needs[0], want_d_weights, spec.samples, spec.impl,
        spec.allow_tf32,
    )  # fmt: skip
    rest = iter(found)  # what is there, in the order of the tensors
    d_x = next(rest) if needs[0] else None
    d_h0 = None if h0 is None else next(rest)
    d_c0 = None if c0 is None else next(rest)
    d_weights = rest if want_d_weights else (None,) * len(flat)
    return d_x, d_h0 if needs[1] else None, d_c0 if needs[2] else None, None, None, *d_weights


# -- eager and compiled calls -----------------------------------------------------------------------------------------


class Layer(torch.autograd.Function):
    """What training runs. It has no ``setup_context``, which would cost a call 9 us, and so no rule for torch.func."""

    @staticmethod
    def forward(ctx: Any, spec: Spec, *tensors: Any) -> Outputs:
        output, h_n, c_n, saved = run_forward(spec.but(want_saved=False) if spec.recompute else spec, tensors)
        ctx.spec, ctx.watch = spec, None
        ctx.set_materialize_grads(False)
        kept = None if spec.recompute else output
        if output is not None and kept is not None and spec.want_output:
            if torch.compiler.is_compiling():  # Dynamo would save what an in-place change leaves, and say nothing
                kept = output.clone()
            else:
                kept, ctx.watch = output.data, version_of(output)
        ctx.save_for_backward(*tensors, kept, saved)
        return output if spec.want_output else None, h_n, c_n

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, output, saved = ctx.saved_tensors
        if saved is None:
            output, _, _, saved = run_forward(ctx.spec, tensors)
        # changed in place since: the forward's bits once more; compiled autograd has no version to look at
        elif ctx.watch is not None and (torch.compiler.is_compiling() or ctx.watch._version):
            output = run_forward(ctx.spec, tensors)[0]
        return None, *run_backward(ctx.spec, ctx.needs_input_grad[1:], grads, tensors, output, saved)


def version_of(t: Tensor) -> Tensor:
    """A tensor whose ``_version`` is that of ``t``, 0 until someone writes to it, and that keeps no memory alive."""
    watch = t.detach()
    watch.data = _NOTHING if t.is_cpu else t.new_empty(0)  # keeps the version counter it shares with t
    return watch


def run_backward(spec: Spec, needs: Sequence[bool], grads: _Tensors, tensors: _Tensors, output: Any, saved: Any) -> Any:
    """:func:`_gradients`, with a graph if one is asked for."""
    if forward_ad._current_level >= 0 or grads_batched(grads):  # tangents and this vmap know no kernels
        return reference_gradients(spec.but(needs=needs), grads, tensors)
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        # (LayerGrad has no gradient for the output: left in the graph, it would call this backward again, for nothing)
        return LayerGrad.apply(spec.but(needs=needs), *grads, output.detach(), saved, *tensors)
    return _gradients(spec, needs, grads, tensors, output, saved)


def grads_batched(grads: _Tensors) -> bool:
    """Whether they are those of ``torch.autograd.grad(is_grads_batched=True)``, which has a vmap of its own."""
    legacy = torch._C._functorch.is_legacy_batchedtensor
    return not torch.compiler.is_compiling() and any(grad is not None and legacy(grad) for grad in grads)


# -- torch.func -------------------------------------------------------------------------------------------------------


def transformed_layer(spec: Spec, *tensors: Any) -> Outputs:
    """The layer under vmap, grad and their kin."""
    output, h_n, c_n, _ = TransformedLayer.apply(spec.but(want_saved=needs_graph(tensors)), *tensors)
    return output if spec.want_output else None, h_n, c_n


class TransformedLayer(torch.autograd.Function):
    """:class:`Layer` with the rules torch.func asks for. ``saved`` is an output, as it may pass through them too."""

    @staticmethod
    def forward(spec: Spec, *tensors: Any) -> Any:
        return run_forward(spec, tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.spec, *tensors = inputs
        ctx.set_materialize_grads(False)
        steps, _, _, saved = output
        if saved is not None:
            ctx.mark_non_differentiable(saved)
        ctx.save_for_backward(*tensors, steps, saved)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, output, saved = ctx.saved_tensors
        return None, *run_backward(ctx.spec, ctx.needs_input_grad[1:], grads[:3], tensors, output, saved)

    @staticmethod
    def vmap(info: Any, in_dims: Any, spec: Spec, *tensors: Any) -> Any:
        # a vmap over x alone does not see that the weights have a graph outside it, where gradients will be asked for
        def function(*tensors: Any) -> Any:
            *results, saved = TransformedLayer.apply(below, *tensors)
            return *results, saved if spec.want_saved else None

        below = spec.but(want_saved=spec.want_saved or needs_graph(tensors))
        return mapped(function, spec, info.batch_size, in_dims[1:], tensors)


class LayerGrad(torch.autograd.Function):
    """The backward as a function of its own, so that it can be differentiated and mapped over."""

    @staticmethod
    def forward(spec: Spec, *tensors: Any) -> Any:
        return _gradients(spec, spec.needs, tensors[:3], tensors[5:], *tensors[3:5])

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.spec, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors[:3], *tensors[5:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        spec, needs = ctx.spec, ctx.needs_input_grad[1:4] + ctx.needs_input_grad[6:]
        result = _vjp(lambda t: reference_gradients(spec, t[:3], t[3:]), ctx.saved_tensors, needs, grads)
        return None, *result[:3], None, None, *result[3:]

    @staticmethod
    def vmap(info: Any, in_dims: Any, spec: Spec, *tensors: Any) -> Any:
        n, dims, (inputs, outputs) = info.batch_size, in_dims[1:], _batch_dims(spec)
        if not _can_fold(tensors[5:], dims[5:]):
            return _one_by_one(lambda *t: LayerGrad.apply(spec, *t), n, dims, tensors)
        folded = _fold_all(tensors, dims, (*outputs[:3], outputs[0], outputs[3], *inputs), n)
        found = LayerGrad.apply(spec.but(samples=max(n, 1) * max(spec.samples, 1)), *folded)
        apart, apart_dims = _unfold_all(found[:5], inputs, n, _batch_of(tensors[5], dims[5], inputs[0]))
        d_weights = [grad if grad is None else grad[: n * max(spec.samples, 1)] for grad in found[5:]]
        if spec.samples:
            d_weights = [grad if grad is None else grad.unflatten(0, (n, spec.samples)) for grad in d_weights]
        return (*apart, *d_weights), (*apart_dims, *(None if grad is None else 0 for grad in d_weights))


_Dims = Sequence[int | None]


def mapped(function: Callable[..., Any], spec: Spec, n: int, dims: _Dims, tensors: _Tensors) -> Any:
    """What ``function``, that of ``output, h_n, c_n, saved``, gives over a mapped dimension, and where that then is."""
    if not _can_fold(tensors, dims):
        return _one_by_one(function, n, dims, tensors)
    inputs, outputs = _batch_dims(spec)
    folded = _fold_all(tensors, dims, inputs, n)
    return _unfold_all(function(*folded), outputs, n, _batch_of(tensors[0], dims[0], inputs[0]))


def _batch_dims(spec: Spec) -> tuple[_Dims, _Dims]:
    """Where the batch is in ``x, h0, c0, lengths, batch_sizes`` and in ``output, h_n, c_n, saved``; None: nowhere."""
    steps = 0 if spec.batch_first else 1
    return (steps, 1, 1, 0, None), (steps, 1, 1, 2)


def _can_fold(tensors: _Tensors, dims: _Dims) -> bool:
    """Not where weights differ from index to index, nor in the order of packed rows."""
    return tensors[4] is None and all(dim is None for dim in dims[5:])


def _batch_of(x: Tensor, dim: int | None, at: int | None) -> int:
    """The size of the batch, which is at ``at`` in each index of ``x``."""
    assert at is not None
    return x.size(at if dim is None or dim > at else at + 1)


def _fold_all(tensors: _Tensors, dims: _Dims, places: _Dims, n: int) -> list[Any]:
    """The mapped dimension in front of the batch and one with it; the tensors beyond ``places`` have no batch."""
    padded = [*places, *[None] * (len(tensors) - len(places))]
    return [_fold(*item, n) for item in zip(tensors, dims, padded, strict=True)]


def _unfold_all(results: _Tensors, places: _Dims, n: int, batch: int) -> Any:
    """The inverse, and where the mapped dimension then is."""
    pairs = list(zip(results, places, strict=True))
    apart = tuple(t if t is None or at is None else t.unflatten(at, (n, batch)) for t, at in pairs)
    return apart, tuple(None if t is None else at for t, at in pairs)


def _fold(t: Tensor | None, dim: int | None, at: int | None, n: int) -> Tensor | None:
    if t is None or at is None:
        return t
    apart = t.unsqueeze(at).expand(*t.shape[:at], n, *t.shape[at:]) if dim is None else t.movedim(dim, at)
    return apart.flatten(at, at + 1)


def _one_by_one(function: Callable[..., Any], n: int, dims: Any, tensors: Any) -> Any:
    """``function`` for each index of the mapped dimension; the results stacked."""
    if not n:
        raise RuntimeError("vmap: expected at least one index to map weights or packed rows over but got none")
    each = [
        function(*(t if dim is None else t.select(dim, i) for t, dim in zip(tensors, dims, strict=True)))
        for i in range(n)
    ]
    stacked = tuple(None if parts[0] is None else torch.stack(parts) for parts in zip(*each, strict=True))
    return stacked, tuple(None if t is None else 0 for t in stacked)


# -- derivatives of derivatives ---------------------------------------------------------------------------------------


def _vjp(function: Callable[..., Any], tensors: _Tensors, needs: Sequence[bool], grads: _Tensors) -> list[Any]:
    """Gradients of ``function``, of a list of tensors, where needed, for those results that have an incoming one."""
    wanted = [i for i, needed in enumerate(needs) if needed]
    used = [i for i, grad in enumerate(grads) if grad is not None]
    found: list[Any] = [None] * len(tensors)

    def of_wanted(*chosen: Tensor) -> tuple[Tensor, ...]:
        given = list(tensors)
        for i, t in zip(wanted, chosen, strict=True):
            given[i] = t
        results = function(given)
        return tuple(results[i] for i in used)

    if used:
        backward = torch.func.vjp(of_wanted, *(tensors[i] for i in wanted))[1]
        for i, grad in zip(wanted, backward(tuple(grads[i] for i in used)), strict=True):
            found[i] = grad
    return found


def reference_gradients(spec: Spec, grads: _Tensors, tensors: _Tensors) -> list[Any]:
    """:func:`_gradients` through the reference layer, which can be differentiated again and again."""
    if spec.samples:
        return _reference_gradients_by_sample(spec, grads, tensors)
    return _vjp(lambda given: reference_layer(spec, *given), tensors, spec.needs, grads)


def reference_layer(spec: Spec, *tensors: Any) -> Outputs:
    """The layer in plain PyTorch."""
    x, h0, c0, lengths, batch_sizes, *flat = tensors
    return reference.rnn_layer(
        x, *by_kind(flat, spec.directions), h0, c0, cell=spec.cell, lengths=lengths, batch_sizes=batch_sizes,
        batch_first=spec.batch_first, want_output=spec.want_output,
    )  # fmt: skip


def _reference_gradients_by_sample(spec: Spec, grads: _Tensors, tensors: _Tensors) -> list[Any]:
    n, (inputs, outputs) = spec.samples, _batch_dims(spec)
    batch = _batch_of(tensors[0], None, inputs[0]) // n
    wanted = [i for i, needed in enumerate(spec.needs) if needed]
    flat = tensors[5:]

    def sample(grads: Any, tensors: Any) -> tuple[Any, ...]:
        found = reference_gradients(spec.but(samples=0), grads, [*tensors, *flat])
        return tuple(found[i] for i in wanted)

    apart, dims = _unfold_all(tensors[:5], inputs, n, batch)
    grads_apart, grad_dims = _unfold_all(grads, outputs[:3], n, batch)
    result: list[Any] = [None] * len(tensors)
    for i, grad in zip(wanted, torch.func.vmap(sample, in_dims=(grad_dims, dims))(grads_apart, apart), strict=True):
        result[i] = grad if i >= 5 else _fold(grad, 0, inputs[i], n)
    return result

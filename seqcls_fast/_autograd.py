"""Gradients of a layer: autograd Functions around the ops, for eager and compiled code, torch.func and double backward.

First derivatives come from the kernels. Derivatives of derivatives, and forward mode, come from torch differentiating
the reference layer. vmap folds its dimension into the batch; only the weight gradients stay apart, one per index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import reference
from ._cells import Rates
from ._shapes import CELLS, by_kind
from ._spec import (
    RESETS,
    SHARED,
    WEIGHTS,
    Spec,
    Tensors,
    X,
    batch_dims,
    batch_of,
    can_fold,
    fold,
    fold_all,
    mapped,
    one_by_one,
    unfold_all,
)

__all__ = [
    "Layer",
    "Outputs",
    "Spec",
    "backward_of_call",
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
_NOTHING = torch.empty(0, device="cpu")  # on the CPU even if torch's default device is another


def needs_graph(tensors: Iterable[Any]) -> bool:
    """Whether a result computed from the tensors must be differentiable."""
    # Dynamo cannot ask for inference mode.
    if torch.is_grad_enabled() and (torch.compiler.is_compiling() or not torch.is_inference_mode_enabled()):
        for t in tensors:  # faster than any()
            if t is not None and t.requires_grad:
                return True
    return False


def _options(spec: Spec, tensors: Tensors) -> Sequence[Any]:
    """The operators' arguments for a layer's options; none where there are none. Rates are left out where they are
    zero: torch.compile takes a number for a variable where shapes are dynamic."""
    resets, seed, h_reset, c_reset = tensors[RESETS:WEIGHTS]
    if spec.rates is not None:
        return resets, h_reset, c_reset, seed, *spec.rates
    if resets is None and h_reset is None and c_reset is None:
        return ()
    return resets, h_reset, c_reset, seed


def run_forward(spec: Spec, tensors: Tensors) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """``output, h_n, c_n, saved``. If ``saved`` is wanted, so is the output, as the backward reads both."""
    x, h0, c0, lengths, batch_sizes, _, _, _, _, *weights = tensors
    options = _options(spec, tensors)
    found = torch.ops.seqcls_fast.rnn_forward.default(
        x, weights, h0, c0, lengths, batch_sizes, spec.cell, spec.directions, spec.batch_first, spec.want_output,
        spec.want_saved, spec.impl, spec.allow_tf32, *((None, *options) if options else ()),
    )  # fmt: skip
    has_c = CELLS[spec.cell].has_c
    output = found[1 + has_c] if spec.want_output or spec.want_saved else None
    return output, found[0], found[1] if has_c else None, found[-1] if spec.want_saved else None


def _gradients(spec: Spec, needs: Sequence[bool], grads: Tensors, tensors: Tensors, output: Any, saved: Any) -> Any:
    """The gradients of ``tensors``, by the kernels. If one weight needs a gradient, all weights get one."""
    x, h0, c0, lengths, batch_sizes, _, _, h_reset, c_reset, *weights = tensors
    want_d_weights = True in needs[WEIGHTS:]
    found = torch.ops.seqcls_fast.rnn_backward.default(
        *grads, x, weights, h0, c0, lengths, batch_sizes, output, saved, spec.cell, spec.directions, spec.batch_first,
        needs[X], want_d_weights, spec.samples, spec.impl, spec.allow_tf32, *_options(spec, tensors),
    )  # fmt: skip
    rest = iter(found)  # only the gradients that were computed, in the order of the tensors
    d_x = next(rest) if needs[X] else None
    d_h0 = None if h0 is None else next(rest)
    d_c0 = None if c0 is None else next(rest)
    d_h_reset = None if h_reset is None else next(rest)
    d_c_reset = None if c_reset is None else next(rest)
    d_weights = rest if want_d_weights else (None,) * len(weights)
    grads = [d_x, d_h0, d_c0, None, None, None, None, d_h_reset, d_c_reset]
    return *(d if needed else None for d, needed in zip(grads, needs, strict=False)), *d_weights


# -- eager and compiled calls -----------------------------------------------------------------------------------------


class Layer(torch.autograd.Function):
    """A layer in training. torch.func asks for ``setup_context``, which would cost every call 9 us, so transforms have
    a Function of their own: ``TransformedLayer``."""

    @staticmethod
    def forward(ctx: Any, spec: Spec, *tensors: Any) -> Outputs:
        output, h_n, c_n, saved = run_forward(spec.replace(want_saved=False) if spec.recompute else spec, tensors)
        ctx.spec, ctx.watch = spec, None
        ctx.set_materialize_grads(False)
        kept = None if spec.recompute else output
        if output is not None and kept is not None and spec.want_output:
            if torch.compiler.is_compiling():  # Dynamo would not notice an in-place change of a saved output
                kept = output.clone()
            else:
                kept, ctx.watch = output.data, version_of(output)
        ctx.save_for_backward(*tensors, kept, saved)
        return output if spec.want_output else None, h_n, c_n

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, output, saved = ctx.saved_tensors
        if saved is None:
            with torch.no_grad():  # gradients of these gradients do not come from here
                output, _, _, saved = run_forward(ctx.spec, tensors)
        # If the output was changed in place, run the forward again, which gives the same bits. Compiled autograd has no
        # versions that would show a change, so it always runs the forward again.
        elif ctx.watch is not None and (torch.compiler.is_compiling() or ctx.watch._version):
            output = run_forward(ctx.spec, tensors)[0]
        _, *needs = ctx.needs_input_grad
        return None, *run_backward(ctx.spec, needs, grads, tensors, output, saved)


def version_of(t: Tensor) -> Tensor:
    """A tensor whose ``_version`` is that of ``t``: 0 until ``t`` is written to. It keeps no memory alive."""
    watch = t.detach()  # shares the version counter of t, and still does when its data is replaced
    watch.data = _NOTHING if t.is_cpu else t.new_empty(0)
    return watch


def run_backward(spec: Spec, needs: Sequence[bool], grads: Tensors, tensors: Tensors, output: Any, saved: Any) -> Any:
    """:func:`_gradients`, which can be differentiated again where the caller asks for that."""
    if forward_ad._current_level >= 0 or grads_batched(grads):  # the kernels have no rule for either
        return reference_gradients(spec.replace(needs=needs), grads, tensors)
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        # The output is detached because LayerGrad has no gradient for it, and torch would call this backward in vain.
        return LayerGrad.apply(spec.replace(needs=needs), *grads, output.detach(), saved, *tensors)
    return _gradients(spec, needs, grads, tensors, output, saved)


def backward_of_call(
    directions: int, cell: str, batch_first: bool, impl: str, one_step: bool, rates: Sequence[float], changed: bool,
    needs: Sequence[bool], grads: Tensors, tensors: Tensors, output: Any, saved: Any,
) -> Tensors:  # fmt: skip
    """The gradients of a node that the eager entry recorded, where its backward is differentiated, mapped or traced.

    ``changed``: the user may have written to the output. ``one_step``: the node is that of a cell, without the
    dimensions that a layer has and a cell has not. Its output is its h.
    """
    spec = Spec(directions, cell, batch_first, True, impl).replace(rates=Rates(*rates) if any(rates) else None)
    if not one_step:
        if changed:
            output = run_forward(spec, tensors)[0]
        return run_backward(spec, needs, grads, tensors, output, saved)
    add = (None, None) if tensors[X].dim() == 1 else (None,)

    def as_layer(values: Tensors) -> list[Any]:
        return [t if t is None else t[add] for t in values]

    inputs = [*as_layer(tensors[:WEIGHTS]), *tensors[WEIGHTS:]]
    output = run_forward(spec, inputs)[0] if changed else output[add]
    found = run_backward(spec, needs, as_layer(grads), inputs, output, saved)
    return [d if d is None else d.reshape(t.shape) for d, t in zip(found, tensors, strict=True)]


def grads_batched(grads: Tensors) -> bool:
    """Whether the gradients come from ``torch.autograd.grad(is_grads_batched=True)``, which has a vmap of its own."""
    legacy = torch._C._functorch.is_legacy_batchedtensor
    return not torch.compiler.is_compiling() and any(grad is not None and legacy(grad) for grad in grads)


# -- torch.func -------------------------------------------------------------------------------------------------------


def transformed_layer(spec: Spec, *tensors: Any) -> Outputs:
    """The layer under vmap, grad and the other transforms of torch.func."""
    output, h_n, c_n, _ = TransformedLayer.apply(spec.replace(want_saved=needs_graph(tensors)), *tensors)
    return output if spec.want_output else None, h_n, c_n


class TransformedLayer(torch.autograd.Function):
    """:class:`Layer` with the rules torch.func asks for. ``saved`` is an output, so that transforms apply to it too."""

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
        _, *needs = ctx.needs_input_grad
        d_output, d_h_n, d_c_n, _ = grads
        return None, *run_backward(ctx.spec, needs, (d_output, d_h_n, d_c_n), tensors, output, saved)

    @staticmethod
    def vmap(info: Any, in_dims: Any, spec: Spec, *tensors: Any) -> Any:
        # Only here, outside of vmap, can one see whether tensors that it does not map (such as weights) need gradients.
        def function(*tensors: Any) -> Any:
            *results, saved = TransformedLayer.apply(below, *tensors)
            return *results, saved if spec.want_saved else None

        below = spec.replace(want_saved=spec.want_saved or needs_graph(tensors))
        _, *dims = in_dims
        return mapped(function, spec, info.batch_size, dims, tensors)


def _grad_parts(values: Any) -> tuple[Any, Any, Any]:
    """The tensors of ``LayerGrad``, or facts about each, in three parts: the incoming gradients of ``output``, ``h_n``
    and ``c_n``; ``output`` and ``saved``; the layer's tensors."""
    return values[:3], values[3:5], values[5:]


class LayerGrad(torch.autograd.Function):
    """The backward as a function of its own, so that it can be differentiated and mapped over."""

    @staticmethod
    def forward(spec: Spec, *tensors: Any) -> Any:
        grads, (output, saved), inputs = _grad_parts(tensors)
        return _gradients(spec, spec.needs, grads, inputs, output, saved)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.spec, *tensors = inputs
        grads, _, own = _grad_parts(tensors)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*grads, None, None, *own)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        def by_reference(tensors: Any) -> list[Any]:
            incoming, _, own = _grad_parts(tensors)
            return reference_gradients(ctx.spec, incoming, own)

        _, *needs = ctx.needs_input_grad
        of_grads, _, of_own = _grad_parts(needs)
        needs = (*of_grads, False, False, *of_own)  # output and saved are results of the layer's tensors
        return None, *_vjp(by_reference, ctx.saved_tensors, needs, grads)

    @staticmethod
    def vmap(info: Any, in_dims: Any, spec: Spec, *tensors: Any) -> Any:
        _, *dims = in_dims
        n, (_, _, own), (_, _, own_dims) = info.batch_size, _grad_parts(tensors), _grad_parts(dims)
        if not can_fold(own, own_dims):
            return one_by_one(lambda *t: LayerGrad.apply(spec, *t), n, dims, tensors)
        inputs, (of_output, of_h_n, of_c_n, of_saved) = batch_dims(spec)
        folded = fold_all(tensors, dims, (of_output, of_h_n, of_c_n, of_output, of_saved, *inputs), n)
        found = LayerGrad.apply(spec.replace(samples=max(n, 1) * max(spec.samples, 1)), *folded)
        batch = batch_of(own[X], own_dims[X], inputs[X])
        apart, apart_dims = unfold_all(found[:SHARED], inputs, n, batch)
        shared = [grad if grad is None else grad[: n * max(spec.samples, 1)] for grad in found[SHARED:]]
        if spec.samples:
            shared = [grad if grad is None else grad.unflatten(0, (n, spec.samples)) for grad in shared]
        return (*apart, *shared), (*apart_dims, *(None if grad is None else 0 for grad in shared))


# -- derivatives of derivatives ---------------------------------------------------------------------------------------


def _vjp(function: Callable[..., Any], tensors: Tensors, needs: Sequence[bool], grads: Tensors) -> list[Any]:
    """The gradients of the tensors that need one. ``function`` computes results from a list of the tensors, and
    ``grads`` has the gradient of each result, or None."""
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


def reference_gradients(spec: Spec, grads: Tensors, tensors: Tensors) -> list[Any]:
    """:func:`_gradients` by the reference layer, whose gradients can be differentiated again."""
    if spec.samples:
        return _reference_gradients_by_sample(spec, grads, tensors)
    return _vjp(lambda given: reference_layer(spec, *given), tensors, spec.needs, grads)


def reference_layer(spec: Spec, *tensors: Any) -> Outputs:
    """The layer in plain PyTorch."""
    x, h0, c0, lengths, batch_sizes, resets, seed, h_reset, c_reset, *weights = tensors
    w_ih, w_hh, b_ih, b_hh, w_hr, further = by_kind(weights, spec.directions, spec.cell)
    return reference.rnn_layer(
        x, w_ih, w_hh, b_ih, b_hh, w_hr, h0, c0, cell=spec.cell, lengths=lengths, batch_sizes=batch_sizes,
        batch_first=spec.batch_first, want_output=spec.want_output, further=further, resets=resets,
        h_reset=h_reset, c_reset=c_reset, rates=spec.rates or Rates(), seed=seed,
    )  # fmt: skip


def _reference_gradients_by_sample(spec: Spec, grads: Tensors, tensors: Tensors) -> list[Any]:
    n, (inputs, (of_output, of_h_n, of_c_n, _)) = spec.samples, batch_dims(spec)
    batch = batch_of(tensors[X], None, inputs[X]) // n
    wanted = [i for i, needed in enumerate(spec.needs) if needed]
    shared = tensors[SHARED:]

    def sample(grads: Any, tensors: Any) -> tuple[Any, ...]:
        found = reference_gradients(spec.replace(samples=0), grads, [*tensors, *shared])
        return tuple(found[i] for i in wanted)

    apart, dims = unfold_all(tensors[:SHARED], inputs, n, batch)
    grads_apart, grad_dims = unfold_all(grads, (of_output, of_h_n, of_c_n), n, batch)
    result: list[Any] = [None] * len(tensors)
    for i, grad in zip(wanted, torch.func.vmap(sample, in_dims=(grad_dims, dims))(grads_apart, apart), strict=True):
        result[i] = grad if i >= SHARED else fold(grad, 0, inputs[i], n)
    return result

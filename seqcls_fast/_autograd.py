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
    "with_options",
    "without_options",
]

Outputs = tuple[Tensor | None, Tensor, Tensor | None]
_Tensors = Sequence[Any]  # Tensor or None
_NOTHING = torch.empty(0, device="cpu")  # on the CPU even if torch's default device is another

# The index of each tensor of a layer. Lists of the tensors, of their gradients and of facts about them all have this
# order. What all rows of the batch share begins at _SHARED, the weights, one kind after another, at _WEIGHTS.
_X, _H0, _C0, _LENGTHS, _BATCH_SIZES, _RESETS, _SEED, _H_RESET, _C_RESET, _WEIGHTS = range(10)
_SHARED = _H_RESET
_PLAIN = _BATCH_SIZES + 1  # the tensors before this one are those of a layer without options


class Spec:
    """The arguments of a Function that are not tensors. The tensors always come as ``x, h0, c0, lengths, batch_sizes,
    resets, seed, h_reset, c_reset, *weights``."""

    want_saved = True
    recompute = False  # the backward runs the forward again, which therefore saves nothing
    samples = 0  # number of equal slices of the batch, each with weight gradients of its own; 0: gradients of the whole
    needs: Sequence[bool] = ()  # for each tensor, whether a backward returns its gradient
    rates = Rates()

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


def with_options(values: _Tensors, absent: Any = None) -> _Tensors:
    """The tensors of a layer without options, or facts about them, with ``absent`` in the place of each option."""
    return *values[:_PLAIN], *(absent,) * (_WEIGHTS - _PLAIN), *values[_PLAIN:]


def without_options(values: _Tensors) -> _Tensors:
    """The inverse of :func:`with_options`."""
    return *values[:_PLAIN], *values[_WEIGHTS:]


def needs_graph(tensors: Iterable[Any]) -> bool:
    """Whether a result computed from the tensors must be differentiable."""
    # Dynamo cannot ask for inference mode.
    if torch.is_grad_enabled() and (torch.compiler.is_compiling() or not torch.is_inference_mode_enabled()):
        for t in tensors:  # faster than any()
            if t is not None and t.requires_grad:
                return True
    return False


def run_forward(spec: Spec, tensors: _Tensors) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor | None]:
    """``output, h_n, c_n, saved``. If ``saved`` is wanted, so is the output, as the backward reads both."""
    x, h0, c0, lengths, batch_sizes, resets, seed, h_reset, c_reset, *weights = tensors
    found = torch.ops.seqcls_fast.rnn_forward.default(
        x, weights, h0, c0, lengths, batch_sizes, spec.cell, spec.directions, spec.batch_first, spec.want_output,
        spec.want_saved, spec.impl, spec.allow_tf32, None, resets, h_reset, c_reset, seed, *spec.rates,
    )  # fmt: skip
    has_c = CELLS[spec.cell].has_c
    output = found[1 + has_c] if spec.want_output or spec.want_saved else None
    return output, found[0], found[1] if has_c else None, found[-1] if spec.want_saved else None


def _gradients(spec: Spec, needs: Sequence[bool], grads: _Tensors, tensors: _Tensors, output: Any, saved: Any) -> Any:
    """The gradients of ``tensors``, by the kernels. If one weight needs a gradient, all weights get one."""
    x, h0, c0, lengths, batch_sizes, resets, seed, h_reset, c_reset, *weights = tensors
    want_d_weights = True in needs[_WEIGHTS:]
    found = torch.ops.seqcls_fast.rnn_backward.default(
        *grads, x, weights, h0, c0, lengths, batch_sizes, output, saved, spec.cell, spec.directions, spec.batch_first,
        needs[_X], want_d_weights, spec.samples, spec.impl, spec.allow_tf32, resets, h_reset, c_reset, seed,
        *spec.rates,
    )  # fmt: skip
    rest = iter(found)  # only the gradients that were computed, in the order of the tensors
    d_x = next(rest) if needs[_X] else None
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


def run_backward(spec: Spec, needs: Sequence[bool], grads: _Tensors, tensors: _Tensors, output: Any, saved: Any) -> Any:
    """:func:`_gradients`, which can be differentiated again where the caller asks for that."""
    if forward_ad._current_level >= 0 or grads_batched(grads):  # the kernels have no rule for either
        return reference_gradients(spec.replace(needs=needs), grads, tensors)
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        # The output is detached because LayerGrad has no gradient for it, and torch would call this backward in vain.
        return LayerGrad.apply(spec.replace(needs=needs), *grads, output.detach(), saved, *tensors)
    return _gradients(spec, needs, grads, tensors, output, saved)


def backward_of_call(
    directions: int, cell: str, batch_first: bool, impl: str, one_step: bool, changed: bool, needs: Sequence[bool],
    grads: _Tensors, tensors: _Tensors, output: Any, saved: Any,
) -> _Tensors:  # fmt: skip
    """The gradients of a node that the eager entry recorded, where its backward is differentiated, mapped or traced.

    ``changed``: the user may have written to the output. ``one_step``: the node is that of a cell, without the
    dimensions that a layer has and a cell has not. Its output is its h.
    """
    spec = Spec(directions, cell, batch_first, True, impl)
    needs, tensors = with_options(needs, False), with_options(tensors)
    if not one_step:
        if changed:
            output = run_forward(spec, tensors)[0]
        return without_options(run_backward(spec, needs, grads, tensors, output, saved))
    add = (None, None) if tensors[_X].dim() == 1 else (None,)

    def as_layer(values: _Tensors) -> list[Any]:
        return [t if t is None else t[add] for t in values]

    inputs = [*as_layer(tensors[:_WEIGHTS]), *tensors[_WEIGHTS:]]
    output = run_forward(spec, inputs)[0] if changed else output[add]
    found = run_backward(spec, needs, as_layer(grads), inputs, output, saved)
    return without_options([d if d is None else d.reshape(t.shape) for d, t in zip(found, tensors, strict=True)])


def grads_batched(grads: _Tensors) -> bool:
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
        if not _can_fold(own, own_dims):
            return _one_by_one(lambda *t: LayerGrad.apply(spec, *t), n, dims, tensors)
        inputs, (of_output, of_h_n, of_c_n, of_saved) = _batch_dims(spec)
        folded = _fold_all(tensors, dims, (of_output, of_h_n, of_c_n, of_output, of_saved, *inputs), n)
        found = LayerGrad.apply(spec.replace(samples=max(n, 1) * max(spec.samples, 1)), *folded)
        batch = _batch_of(own[_X], own_dims[_X], inputs[_X])
        apart, apart_dims = _unfold_all(found[:_SHARED], inputs, n, batch)
        shared = [grad if grad is None else grad[: n * max(spec.samples, 1)] for grad in found[_SHARED:]]
        if spec.samples:
            shared = [grad if grad is None else grad.unflatten(0, (n, spec.samples)) for grad in shared]
        return (*apart, *shared), (*apart_dims, *(None if grad is None else 0 for grad in shared))


# In the functions below, `dims` has the dimension of each tensor that vmap maps over, or None. `places` has the
# dimension of its batch, counted without the mapped one, or None if the tensor has no batch.
_Dims = Sequence[int | None]


def mapped(function: Callable[..., Any], spec: Spec, n: int, dims: _Dims, tensors: _Tensors) -> Any:
    """``output, h_n, c_n, saved`` of a layer over ``n`` indices of a mapped dimension, and its place in each of them.
    ``function`` computes them from tensors without that dimension."""
    if not _can_fold(tensors, dims):
        return _one_by_one(function, n, dims, tensors)
    inputs, outputs = _batch_dims(spec)
    folded = _fold_all(tensors, dims, inputs, n)
    return _unfold_all(function(*folded), outputs, n, _batch_of(tensors[_X], dims[_X], inputs[_X]))


def _batch_dims(spec: Spec) -> tuple[_Dims, _Dims]:
    """The dimension of the batch in ``x, h0, c0, lengths, batch_sizes, resets, seed`` and in ``output, h_n, c_n,
    saved``."""
    steps = 0 if spec.batch_first else 1
    return (steps, 1, 1, 0, None, steps, None), (steps, 1, 1, 2)


def _can_fold(tensors: _Tensors, dims: _Dims) -> bool:
    """Whether the mapped dimension can be part of the batch: all indices share the weights, no rows are packed, and no
    masks are drawn, which depend on the place of a row in its batch."""
    return tensors[_BATCH_SIZES] is None and tensors[_SEED] is None and all(dim is None for dim in dims[_SHARED:])


def _batch_of(x: Tensor, dim: int | None, at: int | None) -> int:
    """The size of the batch in each index of ``x``."""
    assert at is not None
    return x.size(at if dim is None or dim > at else at + 1)


def _fold_all(tensors: _Tensors, dims: _Dims, places: _Dims, n: int) -> list[Any]:
    """Merges the mapped dimension of each tensor into its batch. Tensors beyond ``places`` have no batch."""
    padded = [*places, *[None] * (len(tensors) - len(places))]
    return [_fold(*item, n) for item in zip(tensors, dims, padded, strict=True)]


def _unfold_all(results: _Tensors, places: _Dims, n: int, batch: int) -> Any:
    """The inverse: splits the batch of each tensor again. Also the place of the mapped dimension in each."""
    pairs = list(zip(results, places, strict=True))
    apart = tuple(t if t is None or at is None else t.unflatten(at, (n, batch)) for t, at in pairs)
    return apart, tuple(None if t is None else at for t, at in pairs)


def _fold(t: Tensor | None, dim: int | None, at: int | None, n: int) -> Tensor | None:
    if t is None or at is None:
        return t
    apart = t.unsqueeze(at).expand(*t.shape[:at], n, *t.shape[at:]) if dim is None else t.movedim(dim, at)
    return apart.flatten(at, at + 1)


def _one_by_one(function: Callable[..., Any], n: int, dims: Any, tensors: Any) -> Any:
    """The results of ``function`` for each index of the mapped dimension, stacked in dimension 0, and these zeros."""
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


def reference_gradients(spec: Spec, grads: _Tensors, tensors: _Tensors) -> list[Any]:
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
        h_reset=h_reset, c_reset=c_reset, rates=spec.rates, seed=seed,
    )  # fmt: skip


def _reference_gradients_by_sample(spec: Spec, grads: _Tensors, tensors: _Tensors) -> list[Any]:
    n, (inputs, (of_output, of_h_n, of_c_n, _)) = spec.samples, _batch_dims(spec)
    batch = _batch_of(tensors[_X], None, inputs[_X]) // n
    wanted = [i for i, needed in enumerate(spec.needs) if needed]
    shared = tensors[_SHARED:]

    def sample(grads: Any, tensors: Any) -> tuple[Any, ...]:
        found = reference_gradients(spec.replace(samples=0), grads, [*tensors, *shared])
        return tuple(found[i] for i in wanted)

    apart, dims = _unfold_all(tensors[:_SHARED], inputs, n, batch)
    grads_apart, grad_dims = _unfold_all(grads, (of_output, of_h_n, of_c_n), n, batch)
    result: list[Any] = [None] * len(tensors)
    for i, grad in zip(wanted, torch.func.vmap(sample, in_dims=(grad_dims, dims))(grads_apart, apart), strict=True):
        result[i] = grad if i >= _SHARED else _fold(grad, 0, inputs[i], n)
    return result

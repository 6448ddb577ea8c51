"""torch's own recurrent layers (``torch._VF``), for calls that our kernels cannot run.

``torch_layer`` has the arguments and results of ``_autograd.reference_layer``. Gradients come from torch's graph of its
layer where it can give them. But cuDNN's backward cannot be differentiated, oneDNN's fails if the output was changed,
and neither supports most transforms. ``TorchLayer`` therefore stands between that graph and the results: it passes
gradients on to the graph, or computes them another way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import _VF, Tensor
from torch.autograd import forward_ad
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ._autograd import (
    Outputs,
    Spec,
    grads_batched,
    needs_graph,
    reference_gradients,
    reference_layer,
    version_of,
)
from ._inputs import NUMBERS, autocast_off, check_rank, holds_ids, shape_of
from ._shapes import CELLS, by_kind
from ._spec import with_options, without_options

__all__ = ["TorchLayer", "can_run", "runs_wide", "torch_layer"]

_NO_DISPATCH = torch._C._disabled_torch_dispatch_impl  # of classes without a dispatch of their own
_PRODUCTS = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}


def can_run(spec: Spec, *tensors: Any) -> bool:
    """Whether torch's layer can run a call. It is left to the reference:

    - while torch compiles or traces, and under transforms;
    - for ids, for empty tensors, for meta tensors and for subclasses with a dispatch of their own;
    - for ragged rows in a CUDA graph, because a capture cannot wait until their lengths are read;
    - for ragged rows of complex numbers, which torch packs but does not differentiate;
    - for projections on MPS, where torch refuses them;
    - for a cell that torch does not have.
    """
    x, _, _, lengths, _, *weights = tensors
    if torch.compiler.is_compiling() or torch._C._is_tracing() or torch._C._len_torch_dispatch_stack():
        return False
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    if holds_ids(x) or x.is_meta or not x.numel():
        return False
    if any(t is not None and type(t).__torch_dispatch__ is not _NO_DISPATCH for t in tensors):
        return False
    if x.is_complex() and lengths is not None:
        return False
    if x.is_cuda and lengths is not None and torch.cuda.is_current_stream_capturing():
        return False
    if not hasattr(_VF, f"{spec.cell}_cell"):
        return False
    return not (x.is_mps and by_kind(weights, spec.directions, spec.cell)[4])


def torch_layer(spec: Spec, *tensors: Any) -> Outputs:
    """Runs torch's layer; :func:`can_run` must be true of the call. Reading ``lengths`` from a GPU waits for the GPU.
    Lengths outside 0 to T are clamped."""
    _check_sizes(spec, *tensors)
    if not needs_graph(tensors):
        return _run(spec, False, *tensors)
    x, _, _, lengths, batch_sizes, *weights = tensors
    if lengths is None and not spec.recompute and _is_step(spec, x, batch_sizes, weights):
        return _run(spec, True, *tensors)  # its graph can be differentiated twice, and its results are copies
    with torch.set_grad_enabled(not spec.recompute):
        results = _run(spec, True, *tensors)
    return TorchLayer.apply(spec, *results, *tensors)


class TorchLayer(torch.autograd.Function):
    """The identity on the results of torch's layer, with gradients either for them or for the layer's tensors."""

    @staticmethod
    def forward(ctx: Any, spec: Spec, output: Tensor | None, h_n: Tensor, c_n: Tensor | None, *tensors: Any) -> Outputs:
        ctx.spec, ctx.watch, ctx.twice = spec, None, _differentiates_twice(h_n)
        ctx.shapes = [None if t is None else t.shape for t in (output, h_n, c_n)]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors)
        if output is not None:  # torch's graph may hold the output, and its backward fails if that was changed
            output = output.data
            ctx.watch = version_of(output)
        return output, h_n.detach(), None if c_n is None else c_n.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        spec, (_, _, _, _, *needs) = ctx.spec, ctx.needs_input_grad
        compiling = torch.compiler.is_compiling()  # in compiled autograd tensors have no versions
        must_rerun = compiling or spec.recompute or (ctx.watch is not None and ctx.watch._version)
        transformed = forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
        graph = torch.is_grad_enabled() and (must_rerun or not ctx.twice)
        by_reference = compiling or transformed or graph or grads_batched(grads)
        if not must_rerun and not by_reference:
            return None, *grads, *(None for _ in needs)
        x, h0, c0, lengths, *rest = ctx.saved_tensors
        if by_reference:
            lengths = None if lengths is None else lengths.to(x.device)
            tensors = with_options((x, h0, c0, lengths, *rest))
            found = without_options(reference_gradients(spec.replace(needs=with_options(needs, False)), grads, tensors))
        else:
            found = _run_again(spec, (x, h0, c0, lengths, *rest), needs, grads)
        # torch's graph gets no gradients, or zeros where compiled autograd needs a tensor to add.
        return None, *(x.new_zeros(shape) if compiling and shape else None for shape in ctx.shapes), *found


def _differentiates_twice(t: Tensor) -> bool:
    """Whether torch can differentiate its layer twice on the device of ``t``; cuDNN, MIOpen and MPS cannot."""
    return t.is_cpu


def _run_again(spec: Spec, tensors: Sequence[Any], needs: Sequence[bool], grads: Sequence[Any]) -> list[Tensor | None]:
    """The gradients of ``tensors`` from a new forward and backward."""
    leaves: list[Any] = [
        t if t is None else t.detach().requires_grad_(needed) for t, needed in zip(tensors, needs, strict=True)
    ]
    with torch.enable_grad():
        results = _run(spec, True, *leaves)
    pairs = [(t, grad) for t, grad in zip(results, grads, strict=True) if t is not None and grad is not None]
    used, given = zip(*pairs, strict=True)
    wanted = [leaf for leaf, needed in zip(leaves, needs, strict=True) if needed]
    found = iter(torch.autograd.grad(used, wanted, given, allow_unused=True))
    return [next(found) if needed else None for needed in needs]


# -- the call ---------------------------------------------------------------------------------------------------------


def _run(spec: Spec, train: bool, *tensors: Any) -> Outputs:
    x, h0, c0, lengths, batch_sizes, *weights = tensors
    storage, directions = x.dtype, spec.directions
    if x.is_cpu and runs_wide(storage):
        x, h0, c0, *weights = (None if t is None else t.float() for t in (x, h0, c0, *weights))
    batch = x.size(0 if spec.batch_first else 1) if batch_sizes is None else int(batch_sizes[0])
    shapes = [(directions, batch, weights[directions].size(1))]  # of h and, for an LSTM, c
    if spec.cell == "lstm":
        shapes.append((directions, batch, weights[0].size(0) // 4))
    states = [x.new_zeros(s) if t is None else t for s, t in zip(shapes, (h0, c0), strict=False)]
    with autocast_off(x.device.type):
        if lengths is None:
            output, *finals = _call(spec, train, x, batch_sizes, states, weights)
        else:
            output, *finals = _ragged(spec, train, x, lengths, states, weights)
    h_n, *c_n = (state.to(storage) for state in finals)
    return output.to(storage) if spec.want_output else None, h_n, c_n[0] if c_n else None


def _is_step(spec: Spec, x: Tensor, batch_sizes: Tensor | None, weights: Sequence[Tensor]) -> bool:
    """Whether the layer is a single step in one direction, which torch's functions for cells compute."""
    one = spec.directions == 1 and batch_sizes is None and x.size(1 if spec.batch_first else 0) == 1
    return one and len(weights) in (2, 4)  # without a projection


def _call(
    spec: Spec, train: bool, x: Tensor, batch_sizes: Tensor | None, states: list[Tensor], weights: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """torch's layer on padded rows or, with ``batch_sizes``, packed ones."""
    directions, lstm, time = spec.directions, spec.cell == "lstm", 1 if spec.batch_first else 0
    *kinds, _ = by_kind(weights, directions, spec.cell)
    hx = states if lstm else states[0]
    if _is_step(spec, x, batch_sizes, weights):
        stepped = getattr(_VF, f"{spec.cell}_cell")(
            x.squeeze(time), [t[0] for t in states] if lstm else hx[0], *weights
        )
        h, *c = stepped if lstm else (stepped,)
        # Copies, so that changing one result in place changes neither the others nor a tensor that the backward reads.
        finals = (t.unsqueeze(0).clone() for t in (h, *c))
        return h.unsqueeze(0).clone().transpose(0, time) if spec.want_output else h, *finals
    by_direction: Sequence[Tensor] = [kind[d] for d in range(directions) for kind in kinds if kind]
    if x.is_cuda and torch.backends.cudnn.is_acceptable(x) and torch._use_cudnn_rnn_flatten_weight():
        by_direction = _Flattened.apply(spec, *by_direction)
    function = getattr(_VF, spec.cell)
    options = (bool(kinds[2]), 1, 0.0, train, directions == 2)  # with biases, in one layer, without dropout
    if batch_sizes is None:
        return function(x, hx, by_direction, *options, spec.batch_first)
    return function(x, batch_sizes, hx, by_direction, *options)


def _ragged(
    spec: Spec, train: bool, x: Tensor, lengths: Tensor, states: list[Tensor], weights: Sequence[Tensor]
) -> tuple[Any, ...]:
    """Packs the rows that have steps, longest first. Rows without steps keep their states, and their output is 0."""
    time, rows = (1, 0) if spec.batch_first else (0, 1)  # dimensions of x
    steps, order = lengths.to("cpu", torch.int64).clamp(0, x.size(time)).sort(descending=True, stable=True)
    if steps[-1] == x.size(time):  # no row ends early
        return _call(spec, train, x, None, states, weights)
    count = int(steps.count_nonzero())
    if not count:  # torch packs no rows without steps
        h0, c0 = (*states, None)[:2]
        results = reference_layer(spec, *with_options((x, h0, c0, lengths.to(x.device), None, *weights)))
        return results[: 1 + len(states)]
    order = order[:count].to(x.device)
    packed = pack_padded_sequence(x.index_select(rows, order), steps[:count], spec.batch_first)
    chosen = [state.index_select(1, order) for state in states]
    output, *finals = _call(spec, train, packed.data, packed.batch_sizes, chosen, weights)
    finals = [state.index_copy(1, order, final) for state, final in zip(states, finals, strict=True)]
    if not spec.want_output:
        return output, *finals
    packed = PackedSequence(output, packed.batch_sizes)
    padded, _ = pad_packed_sequence(packed, total_length=x.size(time))
    zeros = padded.new_zeros(x.size(time), x.size(rows), padded.size(2))
    output = zeros.index_copy(1, order, padded)
    return output.transpose(0, 1) if spec.batch_first else output, *finals


class _Flattened(torch.autograd.Function):
    """Copies of the weights in one block of memory. cuDNN would make them itself, but warn."""

    @staticmethod
    def forward(ctx: Any, spec: Spec, *weights: Tensor) -> tuple[Tensor, ...]:
        from torch.backends.cudnn.rnn import get_cudnn_mode

        copies = [w.detach().clone(memory_format=torch.contiguous_format) for w in weights]
        each, hidden = len(copies) // spec.directions, copies[0].size(0) // CELLS[spec.cell].gates
        projected = copies[each - 1].size(0) if each in (3, 5) else 0
        torch._cudnn_rnn_flatten_weight(
            copies, each, copies[0].size(1), get_cudnn_mode(spec.cell.upper()), hidden, projected, 1, spec.batch_first,
            spec.directions == 2,
        )  # fmt: skip
        return tuple(copies)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *grads


@lru_cache
def runs_wide(dtype: torch.dtype) -> bool:
    """Whether a layer of this dtype runs in float32 on this CPU. If oneDNN has no products of that dtype here, torch's
    own take up to twenty times as long."""
    name = _PRODUCTS.get(dtype)
    return name is not None and not (torch.backends.mkldnn.is_available() and getattr(torch.ops.mkldnn, name)())


# -- checks -----------------------------------------------------------------------------------------------------------


def _check_sizes(spec: Spec, *tensors: Any) -> None:
    """The checks of csrc/bindings, with its messages. torch's layer checks few sizes and no memory: with arguments that
    do not fit, it reads and writes out of bounds."""
    x, h0, c0, _, batch_sizes, *weights = tensors
    check_rank(x, batch_sizes)
    if x.dtype not in NUMBERS:
        raise RuntimeError(f"x: expected dtype float32, float64, bfloat16 or float16 but got {x.dtype}")
    if batch_sizes is not None:
        _check_batch_sizes(batch_sizes, x.size(0))
    batch = x.size(0 if spec.batch_first else 1) if batch_sizes is None else int(batch_sizes[0])
    w_ih, w_hh, b_ih, b_hh, w_hr, _ = by_kind(weights, spec.directions, spec.cell)
    gates = CELLS[spec.cell].gates
    rows = w_ih[0].size(0) if w_ih[0].dim() == 2 else 0
    if not rows or rows % gates:
        raise RuntimeError(f"w_ih: expected {gates} * hidden_size rows but got {shape_of(w_ih[0])}")
    hidden = out = rows // gates
    if w_hr:
        if spec.cell != "lstm":
            raise RuntimeError(f"w_hr: expected none for cell {spec.cell}")
        if w_hr[0].dim() != 2 or not w_hr[0].size(0):
            raise RuntimeError(f"w_hr: expected (proj_size, {hidden}) but got {shape_of(w_hr[0])}")
        out = w_hr[0].size(0)
    if c0 is not None and spec.cell != "lstm":
        raise RuntimeError(f"c0: expected None for cell {spec.cell}")
    for name, group, shape in (
        ("x", (x,), x.shape),
        ("w_ih", w_ih, (rows, x.size(-1))),
        ("w_hh", w_hh, (rows, out)),
        ("b_ih", b_ih, (rows,)),
        ("b_hh", b_hh, (rows,)),
        ("w_hr", w_hr, (out, hidden)),
        ("h0", (h0,), (spec.directions, batch, out)),
        ("c0", (c0,), (spec.directions, batch, hidden)),
    ):
        for t in group:
            if t is None:
                continue
            if t.device != x.device:
                raise RuntimeError(
                    f"{name}: expected a tensor on {x.device}, like the input, but got one on {t.device}"
                )
            if t.dtype != x.dtype:
                raise RuntimeError(f"{name}: expected dtype {x.dtype} but got {t.dtype}")
            if t.shape != shape:
                raise RuntimeError(f"{name}: expected shape {shape} but got {shape_of(t)}")
            reach = (
                t.numel() - 1 if t.is_contiguous() else sum((n - 1) * s for n, s in zip(shape, t.stride(), strict=True))
            )
            needed = (t.storage_offset() + reach + 1) * t.itemsize
            if needed > t.untyped_storage().nbytes():
                raise RuntimeError(f"{name}: expected {needed} bytes of memory behind it, but it was freed")


def _check_batch_sizes(batch_sizes: Tensor, rows: int) -> None:
    if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64 or not batch_sizes.is_cpu:
        raise RuntimeError("batch_sizes: expected a one-dimensional int64 CPU tensor")
    if not batch_sizes.numel():
        raise RuntimeError("batch_sizes: expected at least one step")
    if batch_sizes[-1] < 1 or (batch_sizes[1:] > batch_sizes[:-1]).any():
        raise RuntimeError("batch_sizes: expected positive values that never grow")
    if batch_sizes[0] > rows or batch_sizes.sum() != rows:
        raise RuntimeError(f"batch_sizes: expected a sum of {rows}, the rows of x, but got {int(batch_sizes.sum())}")

"""``rnn_layer``: the functional form of a recurrent layer, and the choice of the implementation that runs a call.

A call that needs no gradients is one op; ``_autograd`` wraps it for gradients and transforms. Calls that our kernels
cannot run go to torch's own layer (``_torch_layer``), and those that it cannot run either to ``reference``.
"""

from __future__ import annotations

from . import _with_torch  # noqa: F401

# isort: split
import os
import reprlib
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import (  # noqa: F401  (_exported and _flops register themselves)
    _autograd,
    _eager,
    _exported,
    _flops,
    _self_test,
    _torch_layer,
    reference,
)
from ._autograd import Outputs
from ._cells import Rates
from ._ext import C
from ._inputs import autocast, autocasts, check_lengths, holds_ids
from ._shapes import CELLS

__all__ = ["LayerOptions", "available_impls", "rnn_layer", "use_impl"]


class LayerOptions(NamedTuple):
    """The arguments of a layer's options: see :func:`rnn_layer`."""

    resets: Tensor | None = None
    seed: Tensor | None = None
    h_reset: Tensor | None = None
    c_reset: Tensor | None = None
    rates: Rates | None = None


_WITHOUT_KERNELS = ("reference", "torch")
_IMPLS: tuple[str, ...] = (*_WITHOUT_KERNELS, *(C.impls() if C is not None else ()))
_HAS_CUDA = C is not None and bool(C.build_info()["cuda"])
_REGIMES: tuple[str, ...] = tuple(C.regimes()) if C is not None and _HAS_CUDA else ()
_DEVICES = ("cpu", "meta", "cuda") if _HAS_CUDA else ("cpu", "meta")
_default = threading.local()


def available_impls() -> tuple[str, ...]:
    """The names that ``impl=`` accepts on this machine, besides ``"auto"``. On the CPU ``"auto"`` means the last one.

    ``"reference"`` is the layer in plain PyTorch. ``"torch"`` is torch's own layer, or the reference for calls that
    torch's layer cannot run. The others are compiled kernels.
    """
    return _IMPLS


@contextmanager
def use_impl(name: str) -> Iterator[None]:
    """Inside the block, ``impl="auto"`` means ``name`` in this thread.

    Example::

        >>> import torch, seqcls_fast as sf
        >>> with sf.use_impl("reference"):
        ...     output, h_n = sf.GRU(3, 4)(torch.zeros(5, 2, 3))
    """
    _check_impl(name)
    before = getattr(_default, "impl", "auto")
    _set_default(name)
    try:
        yield
    finally:
        _set_default(before)


def _set_default(impl: str) -> None:
    _default.impl = impl
    _eager.use_impl(impl)


def _check_impl(name: str) -> None:
    if name != "auto" and name not in _IMPLS and not (C is not None and name in (*C.impls(), *_REGIMES)):
        raise ValueError(
            f"impl: expected one of {', '.join(('auto', *_IMPLS, *_REGIMES))} but got {reprlib.repr(name)}"
        )


def _constant(function: Any) -> Any:
    """``torch.compiler.assume_constant_result``, without its import of Dynamo, which takes as long as half of torch."""
    function._dynamo_marked_constant = True
    return function


@_constant
@lru_cache
def _runs_on(index: int | None) -> bool:
    """Whether the kernels were built for this GPU. Warns if they were not."""
    if C is None or not torch.cuda.is_available():  # a fake tensor, on a machine without a GPU
        return True
    try:
        with torch.cuda.device(index):
            C.device_limits(torch.cuda.current_device())
    except RuntimeError as error:
        warnings.warn(
            f"seqcls_fast runs torch's own recurrent layers on cuda:{index}, not its kernels: {error}",
            UserWarning,
            stacklevel=2,
        )
        return False
    return True


@_constant
def _trusted(index: int | None, *call: Any) -> bool:
    """Whether a GPU was seen to run a layer's kernels right, which is checked once (``_self_test``). ``call``: the
    arguments of :func:`_planned`; without them, whether it runs every layer right."""
    if _self_test.all_passed(f"cuda:{index}") or not torch.cuda.is_available():  # a fake tensor needs no GPU
        return True
    gpu = _self_test.Gpu(torch.cuda.current_device() if index is None else index)
    with torch.utils._python_dispatch._disable_current_modes():  # of a trace that asks
        return _self_test.trusts(gpu, *_planned(*call)) if call else _self_test.failed_regimes(gpu) == {}


def _has_kernels(impl: str, device: str, x: Tensor, *call: Any) -> bool:
    """Whether our kernels run a layer on the device of ``x``: that of a ``call``, or without it every layer."""
    if C is None or impl in _WITHOUT_KERNELS or device not in _DEVICES:
        return False
    return device != "cuda" or impl != "auto" or (_runs_on(x.device.index) and _trusted(x.device.index, *call))


def _planned(
    x: Tensor,
    weights: list[Tensor],
    directions: int,
    cell: str,
    batch_sizes: Tensor | None,
    batch_first: bool,
    rates: Rates | None = None,
) -> tuple[Any, ...]:
    """What decides the plan of a layer on a GPU."""
    batch = int(batch_sizes[0]) if batch_sizes is not None and len(batch_sizes) else x.size(0 if batch_first else 1)
    hidden = weights[0].size(0) // CELLS[cell].gates
    return cell, max(hidden, 1), max(batch, 1), weights[0].dtype, directions, _allows_tf32(), rates is not None


def takes_ids(ids: Tensor) -> bool:
    """Whether a layer on the device of ``ids`` takes them as input; torch's own layer needs features instead."""
    return _has_kernels(getattr(_default, "impl", "auto"), ids.device.type, ids)


def compiled_impl() -> str | None:
    """The implementation that runs a layer on the CPU, if it is one of our kernels for CPUs; else None."""
    impl = getattr(_default, "impl", "auto")
    if impl == "auto":
        impl = _IMPLS[-1]
    return impl if impl in _IMPLS and impl not in _WITHOUT_KERNELS else None


def _waits_for_checks() -> bool:
    """Whether lengths on a GPU are checked too, although the call then waits for the GPU."""
    return os.environ.get("SEQCLS_SYNC_CHECK") == "1"


@_constant
def _allows_tf32() -> bool:
    """Whether torch's settings allow TF32 in float32 products of recurrent layers on CUDA."""
    return bool(torch.backends.cudnn.rnn.fp32_precision == "tf32")  # type: ignore[attr-defined]


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
    recompute: bool = False,
    impl: str = "auto",
    further: Sequence[Sequence[Tensor]] = (),
    resets: Tensor | None = None,
    h_reset: Tensor | None = None,
    c_reset: Tensor | None = None,
    rates: Rates | None = None,
    seed: Tensor | None = None,
) -> Outputs:
    """One recurrent layer, all its directions, over a whole sequence.

    Args:
        x: ``(T, B, I)`` of any strides, ``(B, T, I)`` if ``batch_first``; packed rows ``(N, I)`` with ``batch_sizes``.
            Or integers without the last dimension: ids. An id ``i`` stands for a row of ``I`` zeros with a 1 at ``i``,
            so its projection is column ``i`` of ``w_ih`` and needs no product. Tokens with an embedding ``E`` become
            ids with ``w_ih = (E @ weight_ih.T).T``.
        w_ih, w_hh, b_ih, b_hh, w_hr: one tensor per direction, as in ``torch.nn``; the last three may be empty.
        h0, c0: ``(D, B, Hout)`` and ``(D, B, H)``, zeros when None.
        cell: ``"rnn_tanh"``, ``"rnn_relu"``, ``"gru"`` or ``"lstm"``; or one of these with an option that has further
            weights or another order of products: ``"rnn_tanh_layer_norm"``, ``"rnn_relu_layer_norm"``,
            ``"gru_layer_norm"``, ``"lstm_layer_norm"``, ``"lstm_peephole"``, ``"gru_reset_before"``.
        lengths: ``(B,)`` integers, in any order, zeros allowed. A row is never read beyond its length.
        batch_sizes: ``(T,)`` as in a ``PackedSequence``.
        want_output: if False, ``output`` is None.
        recompute: save memory: the forward keeps nothing for the backward, which runs the forward once more. The
            gradients are the same. It has no effect under the transforms of ``torch.func``.
        impl: ``"auto"`` or one of :func:`available_impls`.
        further: the cell's weights beyond those above, kind after kind, each one tensor per direction. With layer
            normalisation: the gains ``weight_ln_ih`` and ``weight_ln_hh`` ``(gates * H,)``, and for an LSTM
            ``weight_ln_c`` and ``bias_ln_c`` ``(H,)``. With peepholes: ``weight_peephole`` ``(3, H)``, for i, f and o.
        resets: booleans of the shape of ``x`` without its features. Where one is True, the state before that step is
            the reset state. A reset at t cuts between the steps t - 1 and t in both directions, so the reverse one
            starts from the reset state at t - 1. What lies beyond a row's length is never read.
        h_reset, c_reset: the reset state of every row, ``(D, Hout)`` and ``(D, H)``, zeros when None.
        rates: how much is zoned out or dropped: zoneout of h and of c, dropout of the state and of the candidate.
        seed: in training, the seed of the masks, one int64 without dimensions. Without it the layer is evaluated:
            nothing is dropped, and zoneout mixes the old and the new state.

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
    if cell in CELLS:  # run_layer refuses others
        kinds = CELLS[cell].further
        if len(further) != len(kinds):
            names = ", ".join(kind.name for kind in kinds) or "nothing"
            raise RuntimeError(f"further: expected {names} for cell {cell} but got {len(further)} kinds of weights")
        for kind, group in zip(kinds, further, strict=True):
            if len(group) != directions:
                raise RuntimeError(
                    f"{kind.name}: expected {directions} tensors, one per direction, but got {len(group)}"
                )
    weights = [*w_ih, *w_hh, *b_ih, *b_hh, *w_hr, *(w for group in further for w in group)]
    options = LayerOptions(resets, seed, h_reset, c_reset, Rates(*rates) if rates is not None and any(rates) else None)
    return run_layer(
        x, weights, directions, h0, c0, cell, lengths, batch_sizes, batch_first, want_output, recompute, impl, None,
        None if options == LayerOptions() else options,
    )  # fmt: skip


_NO_OPTIONS, _NO_RATES = LayerOptions(), Rates()


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
    recompute: bool = False,
    impl: str = "auto",
    packed: Tensor | None = None,
    options: LayerOptions | None = None,
) -> Outputs:
    """:func:`rnn_layer` with its weights in one list, one kind after another, as the ops take them. ``packed``: the
    weights packed for this call's implementation, in a call without a graph (``_frozen``)."""
    compiling = torch.compiler.is_compiling()
    if impl == "auto":
        if not compiling and not recompute:
            found = _eager.layer(
                x, weights, directions, h0, c0, cell, lengths, batch_sizes, batch_first, want_output, packed,
                *_NO_OPTIONS[:4] if options is None else options[:4], (options and options.rates) or _NO_RATES,
            )  # fmt: skip
            if found is not NotImplemented:
                return found
        impl = getattr(_default, "impl", "auto")
    if impl != "auto":
        _check_impl(impl)
    if cell not in CELLS:
        raise ValueError(f"cell: expected one of {', '.join(CELLS)} but got {reprlib.repr(cell)}")
    device = "cpu" if x.is_cpu else x.device.type
    is_complex = False
    if not x.is_floating_point():
        is_complex = x.is_complex()
        if holds_ids(x):
            x = x.to(torch.int64)
    resets, seed, h_reset, c_reset, rates = options or _NO_OPTIONS
    if autocasts(device):
        x, h0, c0, h_reset, c_reset, *weights = autocast(x, h0, c0, h_reset, c_reset, *weights)
    transformed = torch._C._are_functorch_transforms_active()
    # Kernels lack forward mode, and Dynamo ignores our vmap rule; either would silently return zero gradients.
    differentiable = forward_ad._current_level < 0 and not (transformed and compiling)
    call = (x, weights, directions, cell, batch_sizes, batch_first, rates) if device == "cuda" and not compiling else ()
    has_kernel = differentiable and not is_complex and _has_kernels(impl, device, x, *call)
    if lengths is not None:  # the CPU's ops check the values themselves
        shown = lengths.cpu() if device == "cuda" and _waits_for_checks() else lengths
        check_lengths(shown, x, batch_first, values=not has_kernel or device == "cuda")
        if has_kernel:
            lengths = lengths.to(x.device, torch.int64, non_blocking=device == "cuda")
    allow_tf32 = has_kernel and device == "cuda" and weights[0].dtype == torch.float32 and _allows_tf32()
    exported = torch.compiler.is_exporting() if compiling else torch._C._is_tracing()
    function: Any = None
    if not has_kernel:
        function = _fallback
    elif transformed:
        function = _autograd.transformed_layer
    elif not exported and _autograd.needs_graph((x, h0, c0, h_reset, c_reset, *weights)):
        function = _autograd.Layer.apply
    if function is not None:
        spec = _autograd.Spec(directions, cell, batch_first, want_output, impl, allow_tf32)
        if recompute:
            spec.recompute = True
        if options is not None:
            spec.rates = rates
        return function(spec, x, h0, c0, lengths, batch_sizes, resets, seed, h_reset, c_reset, *weights)
    given = () if options is None else (resets, h_reset, c_reset, seed, *(rates or ()))
    if exported:
        results = torch.ops.seqcls_fast.rnn_layer.default(
            x, weights, h0, c0, lengths, batch_sizes, cell, directions, batch_first, want_output, impl, allow_tf32,
            *given,
        )  # fmt: skip
    else:
        results = torch.ops.seqcls_fast.rnn_forward.default(
            x, weights, h0, c0, lengths, batch_sizes, cell, directions, batch_first, want_output, False, impl,
            allow_tf32, packed, *given,
        )  # fmt: skip
    return results[-1] if want_output else None, results[0], results[1] if CELLS[cell].has_c else None


def _fallback(spec: _autograd.Spec, *tensors: Any) -> Outputs:
    """The layer without our kernels: torch's own layer if it can run the call, else the reference."""
    x, h0, c0, lengths, batch_sizes, *rest = tensors
    options, weights = rest[:4], rest[4:]
    plain_layer = all(t is None for t in options) and spec.rates is None and not CELLS[spec.cell].is_option
    if plain_layer and spec.impl != "reference":
        plain = (x, h0, c0, lengths, batch_sizes, *weights)
        if _torch_layer.can_run(spec, *plain):
            return _torch_layer.torch_layer(spec, *plain)
    if lengths is not None:
        lengths = lengths.to(x.device, torch.int64)
    return _autograd.reference_layer(spec, x, h0, c0, lengths, batch_sizes, *rest)

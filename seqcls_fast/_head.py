"""What follows the layers of a classifier: a linear product, pooling over the steps of a row, softmax.

Where no gradient is wanted they are operators of ours, in which a row has the same bits in every batch. With gradients,
in traced graphs, on other devices and with ``use_impl("torch")`` torch's own operators run, which differ in the last
bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.functional import linear as torch_linear

from . import ops, reference
from ._autograd import needs_graph
from ._ext import C
from ._inputs import REALS, autocast, autocasts

__all__ = ["in_graph", "kernels_for", "linear", "pool_steps", "product", "softmax"]

_TYPES = (Tensor, nn.Parameter)


def in_graph() -> bool:
    """Whether torch traces a graph or runs a torch.func transform, where tensors have no values to look at."""
    return torch.compiler.is_compiling() or torch._C._is_tracing() or torch._C._are_functorch_transforms_active()


def kernels_for(*tensors: Tensor | None) -> str | None:
    """The implementation that computes with these tensors, or None where torch's own operators must."""
    if in_graph() or forward_ad._current_level >= 0 or needs_graph(tensors):
        return None
    for t in tensors:
        if t is None:
            continue
        # Other subclasses of Tensor, such as quantized weights, know torch's operators alone.
        if type(t) not in _TYPES or not t.is_cpu or t.dtype not in REALS:
            return None
    return ops.compiled_impl()


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)`` for rows ``(N, K)``. A layer that is more than a plain ``nn.Linear`` is called as it is."""
    if not in_graph() and _is_plain(layer):
        weight, bias = layer.weight, layer.bias
        impl = kernels_for(x, weight, bias)
        if impl is not None:
            return _linear_op(x, weight, bias, impl)
    called: Tensor = layer(x)
    return called


def product(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weight.T`` for rows ``(N, K)``."""
    impl = kernels_for(x, weight)
    return torch_linear(x, weight) if impl is None else _linear_op(x, weight, None, impl)


def pool_steps(output: Tensor, lengths: Tensor | None, pooling: str, attention: nn.Module | None = None) -> Tensor:
    """:func:`seqcls_fast.reference.pool_steps`, with the layer that gives the scores for ``"attention"``."""
    if not in_graph() and (attention is None or _is_plain(attention)):
        weight, bias = (None, None) if attention is None else (attention.weight, attention.bias)
        impl = kernels_for(output, weight, bias)
        if impl is not None:
            output, weight, bias = _as_autocast(output, weight, bias)
            lengths = None if lengths is None else lengths.to(torch.int64)
            found: Tensor = torch.ops.seqcls_fast.pool_steps.default(output, lengths, pooling, weight, bias, impl)
            return found
    scores = None if attention is None else attention(output).squeeze(2)
    return reference.pool_steps(output, lengths, pooling, scores)


def softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """``(logits / temperature).softmax(1)`` of rows ``(N, classes)``."""
    impl = kernels_for(logits)
    if impl is None:
        return reference.softmax(logits, temperature)
    found: Tensor = torch.ops.seqcls_fast.softmax.default(logits, temperature, impl)
    return found


def _linear_op(x: Tensor, weight: Tensor, bias: Tensor | None, impl: str) -> Tensor:
    found: Tensor = torch.ops.seqcls_fast.linear.default(*_as_autocast(x, weight, bias), impl)
    return found


def _is_plain(layer: nn.Module | None) -> TypeGuard[nn.Linear]:
    """Whether a call of ``layer`` does what ``nn.Linear`` does and nothing else."""
    if type(layer) is not nn.Linear or "forward" in layer.__dict__:
        return False
    return not (layer._forward_hooks or layer._forward_pre_hooks or nn.modules.module._has_any_global_hook())


def _as_autocast(x: Tensor, *rest: Tensor | None) -> list[Any]:
    return autocast(x, *rest) if autocasts("cpu") else [x, *rest]


# -- the operators themselves, where they are called with tensors that require gradients ------------------------------


def _pool_with_weight(
    output: Tensor, lengths: Tensor | None, pooling: str, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    scores = None if weight is None else torch_linear(output, weight, bias).squeeze(2)
    return reference.pool_steps(output, lengths, pooling, scores)


def _differentiable(name: str, formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    op = getattr(torch.ops.seqcls_fast, name).default

    def call(*args: Any) -> Tensor:
        transformed = forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()
        if transformed or needs_graph([t for t in args if isinstance(t, Tensor)]):
            return formula(*args[:-1])  # torch's own operators, which have gradients; the last argument is impl
        with torch._C._AutoDispatchBelowAutograd():
            found: Tensor = op(*args)
        return found

    return call


if C is not None:
    _LIBRARY = torch.library.Library("seqcls_fast", "IMPL")
    _LIBRARY.impl("linear", _differentiable("linear", torch_linear), "Autograd")
    _LIBRARY.impl("pool_steps", _differentiable("pool_steps", _pool_with_weight), "Autograd")
    _LIBRARY.impl("softmax", _differentiable("softmax", reference.softmax), "Autograd")

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
from ._inputs import autocast, autocasts

__all__ = ["kernels_for", "linear", "pool_steps", "product", "softmax"]

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


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
        if type(t) not in (Tensor, nn.Parameter) or not t.is_cpu or t.dtype not in _DTYPES:
            return None
    return ops.compiled_impl()


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """``layer(x)`` for rows ``(N, K)``. A layer that is more than a plain ``nn.Linear`` is called as it is."""
    if in_graph() or not _is_plain(layer) or kernels_for(x, layer.weight, layer.bias) is None:
        called: Tensor = layer(x)
        return called
    return product(x, layer.weight, layer.bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear`` for rows ``(N, K)``."""
    impl = kernels_for(x, weight, bias)
    if impl is None:
        return torch_linear(x, weight, bias)
    found: Tensor = torch.ops.seqcls_fast.linear.default(*_as_autocast(x, weight, bias), impl)
    return found


def pool_steps(output: Tensor, lengths: Tensor | None, pooling: str, attention: nn.Module | None = None) -> Tensor:
    """:func:`seqcls_fast.reference.pool_steps`, with the layer that gives the scores for ``"attention"``."""
    if not in_graph():
        weights: list[Tensor | None] | None = None
        if attention is None:
            weights = [None, None]
        elif _is_plain(attention):
            weights = [attention.weight, attention.bias]
        impl = None if weights is None else kernels_for(output, *weights)
        if weights is not None and impl is not None:
            output, weight, bias = _as_autocast(output, *weights)
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


def _is_plain(layer: nn.Module) -> TypeGuard[nn.Linear]:
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

"""Writes the weights of other libraries into a layer of ours: they keep the transpose, with the gates in another order.

Only tensors and arrays come here: the libraries are never imported.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["I_F_G_O", "I_G_F_O", "Z_R_N", "as_weight", "fill", "reordered"]

# Where each of our gates, r z n or i f g o, lies in the order of the name.
Z_R_N, I_F_G_O, I_G_F_O = (1, 0, 2), (0, 1, 2, 3), (0, 2, 1, 3)


def as_weight(name: str, value: Any) -> Tensor:
    try:
        found = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: expected an array of numbers but got {reprlib.repr(value)}") from None
    if not found.is_floating_point():
        raise TypeError(f"{name}: expected floating-point numbers but got {found.dtype}")
    return found


def reordered(t: Tensor, order: Sequence[int]) -> Tensor:
    """The gates, which lie in the last dimension, in our order."""
    parts = t.chunk(len(order), -1)
    return torch.cat([parts[place] for place in order], -1)


def fill(
    layer: nn.Module, suffix: str, order: Sequence[int], kernel: Tensor, recurrent: Tensor, biases: Sequence[Tensor]
) -> None:
    """Writes one direction of a layer. A single bias becomes ``bias_ih``, and ``bias_hh`` is zero."""
    own = layer.get_parameter
    with torch.no_grad():
        own(f"weight_ih_l0{suffix}").copy_(reordered(kernel, order).T)
        own(f"weight_hh_l0{suffix}").copy_(reordered(recurrent, order).T)
        if biases:
            own(f"bias_hh_l0{suffix}").zero_()
        for name, bias in zip(("bias_ih_l0", "bias_hh_l0"), biases, strict=False):
            own(f"{name}{suffix}").copy_(reordered(bias, order))

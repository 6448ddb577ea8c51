"""Questions about a layer's tensors that every path asks: is autocast on, are these ids, are the lengths right.

The reference, the modules' checks and the operators' Python side all use them, so this file imports none of these.
"""

from __future__ import annotations

import reprlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "NUMBERS",
    "REALS",
    "autocast",
    "autocast_off",
    "autocasts",
    "check_lengths",
    "check_rank",
    "holds_ids",
    "shape_of",
    "values_can_be_read",
]

REALS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # the dtypes of our kernels
NUMBERS = (*REALS, torch.complex64, torch.complex128)  # of every layer


def autocasts(device: str) -> bool:
    """Whether autocast is on for a type of device. Meta tensors have no autocast, and torch raises when asked."""
    return device != "meta" and torch.is_autocast_enabled(device)


def autocast(x: Tensor, *rest: Tensor | None) -> list[Any]:
    """The tensors in the dtype that autocast asks for; it leaves float64 and integers alone."""
    dtype = torch.get_autocast_dtype(x.device.type)
    return [
        t.to(dtype) if t is not None and t.is_floating_point() and t.dtype != torch.float64 else t for t in (x, *rest)
    ]


def autocast_off(device: str) -> AbstractContextManager[Any]:
    """A block without autocast, for sums that must stay in float32."""
    return torch.autocast(device, enabled=False) if autocasts(device) else nullcontext()


def holds_ids(x: Tensor) -> bool:
    """Whether ``x`` names columns of ``w_ih`` instead of holding features."""
    return not (x.is_floating_point() or x.is_complex() or x.dtype == torch.bool)


def shape_of(t: Tensor) -> str:
    """The shape as text for a message, shortened if it has many dimensions."""
    return reprlib.repr(tuple(t.shape))


def check_rank(x: Tensor, batch_sizes: Tensor | None) -> None:
    outer, ids = 2 if batch_sizes is None else 1, holds_ids(x)
    if x.dim() != outer + (not ids):
        rows = "(T, B" if batch_sizes is None else "packed rows (N"
        raise RuntimeError(f"x: expected {rows}{') of ids' if ids else ', I)'} but got shape {shape_of(x)}")


def check_lengths(lengths: Tensor, x: Tensor, batch_first: bool = False, *, values: bool = True) -> Tensor:
    """Returns ``lengths``; raises unless it holds one integer in ``[0, T]`` for each row of the padded ``x``.

    Values are not read where that would wait for another device, break a traced graph, or happen under vmap, which
    has several values for each: there the kernels clamp them. With ``values=False`` the caller checks them.
    """
    dims = 2 if holds_ids(x) else 3
    if x.dim() != dims:
        raise RuntimeError(f"lengths: expected None unless x is padded ({dims}-D) but got lengths and a {x.dim()}-D x")
    T, B = (x.size(1), x.size(0)) if batch_first else (x.size(0), x.size(1))
    if lengths.dim() != 1 or lengths.size(0) != B:
        raise RuntimeError(f"lengths: expected one per row of the batch, shape ({B},) but got {shape_of(lengths)}")
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise RuntimeError(f"lengths: expected integers but got {lengths.dtype}")
    if values and B and values_can_be_read(lengths):
        low, high = (int(value) for value in lengths.aminmax())
        if low < 0 or high > T:
            raise RuntimeError(f"lengths: expected values from 0 to T = {T} but got {low} to {high}")
    return lengths


def values_can_be_read(t: Tensor) -> bool:
    """Whether a check may look at the values: not on another device, in a traced graph, or under vmap."""
    if not t.is_cpu or torch.compiler.is_compiling():
        return False
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(t):
        if functorch.is_batchedtensor(t):
            return False
        t = functorch.get_unwrapped(t)
    return True

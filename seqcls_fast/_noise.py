"""The random masks of a layer in plain PyTorch: the same words as csrc/core/noise.h, each computed from its place."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["CANDIDATE", "STATE", "ZONEOUT_C", "ZONEOUT_H", "kept", "new_seed"]

ZONEOUT_H, ZONEOUT_C, STATE, CANDIDATE = range(4)  # what is masked
_WORD = 0xFFFFFFFF


def new_seed(device: torch.device) -> Tensor:
    """A seed from torch's generator, for all masks of one call."""
    return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)


def kept(seed: Tensor, masked: int, direction: int, rows: int, steps: int, units: int, rate: float) -> Tensor:
    """Which units are kept, ``(steps, rows, units)``: each is dropped with probability ``rate``."""
    device = seed.device
    row = torch.arange(rows, device=device).view(1, -1, 1)
    step = torch.arange(steps, device=device).view(-1, 1, 1)
    low, high = (torch.tensor(start, device=device) for start in (0x243F6A88, 0x85A308D3))
    for part in (seed & _WORD, (seed >> 32) & _WORD, torch.tensor(masked * 2 + direction, device=device), row, step):
        low, high = _mixed(low + part), _mixed(high + part)
    words = _mixed(_mixed(torch.arange(units, device=device) + low) ^ high)
    return words >= min(int(rate * 2.0**32 + 0.5), _WORD)


def _mixed(x: Tensor) -> Tensor:
    """32 bits, changed so that each bit of the result depends on all of them. Larger numbers are cut to 32 bits."""
    x = x & _WORD
    x = x ^ (x >> 16)
    x = (x * 0x7FEB352D) & _WORD
    x = x ^ (x >> 15)
    x = (x * 0x846CA68B) & _WORD
    return x ^ (x >> 16)

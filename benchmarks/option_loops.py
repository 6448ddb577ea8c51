"""Layers with options as loops over the steps, written by hand in torch, and the masks that they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from seqcls_fast import _noise

from .layer_cases import Shape

SEED = 4  # of the masks with which results are compared
Options = Mapping[str, Any]  # those of our constructors, by name


class Masks(NamedTuple):
    keep_h: Tensor | None = None  # (T, B, H), which units take their new value
    keep_c: Tensor | None = None
    state: Tensor | None = None  # (B, H), 0 or 1 / (1 - p)
    candidate: Tensor | None = None  # (T, B, H), as above


def masks_of(cell: str, options: Options, shape: Shape, kept: Callable[[int, int, float], Tensor]) -> Masks:
    """``kept(what, steps, p)``: (steps, B, H), each true with probability 1 - p."""
    p, q = (options.get(name, 0.0) for name in ("zoneout", "recurrent_dropout"))
    if p:
        keep_c = kept(_noise.ZONEOUT_C, shape.T, p) if cell == "LSTM" else None
        return Masks(kept(_noise.ZONEOUT_H, shape.T, p), keep_c)
    if options.get("recurrent_dropout_kind") == "candidate":
        return Masks(candidate=kept(_noise.CANDIDATE, shape.T, q) / (1 - q))
    return Masks(state=kept(_noise.STATE, 1, q)[0] / (1 - q)) if q else Masks()


def draw(cell: str, options: Options, shape: Shape) -> Masks:
    return masks_of(cell, options, shape, lambda what, steps, p: torch.rand(steps, shape.B, shape.H) >= p)


def given(cell: str, options: Options, shape: Shape) -> Masks:
    """The masks that our layers draw after ``torch.manual_seed(SEED)``."""
    torch.manual_seed(SEED)
    seed = _noise.new_seed(torch.device("cpu"))

    def kept(what: int, steps: int, p: float) -> Tensor:
        return _noise.kept(seed, what, 0, shape.B, steps, shape.H, p)

    return masks_of(cell, options, shape, kept)


def _normed(cell: str, sums: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """r and z of a GRU are normalised together, n apart from them; other cells normalise all gates together."""
    H = gain.size(0) // 3
    sizes = [2 * H, H] if cell == "GRU" else [gain.size(0)]
    parts = zip(sums.split(sizes, -1), gain.split(sizes), bias.split(sizes), strict=True)
    return torch.cat([layer_norm(part, part.shape[-1:], g, b) for part, g, b in parts], -1)


def loop(cell: str, reset_after: bool, x: Tensor, weights: Mapping[str, Tensor], masks: Masks) -> Tensor:
    """The output of one layer by a Python loop over the steps of x (T, B, I)."""
    w_ih, w_hh, b_ih, b_hh = (weights[f"{name}_l0"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    norm, seen = "weight_ln_ih_l0" in weights, weights.get("weight_peephole_l0")
    if norm:
        projected = _normed(cell, linear(x, w_ih), weights["weight_ln_ih_l0"], b_ih)
    else:
        projected = linear(x, w_ih, b_ih)
    h = c = x.new_zeros(x.size(1), w_hh.size(1))
    outputs = []
    for t in range(len(x)):
        old_h, old_c = h, c
        operand = h if masks.state is None else h * masks.state
        if norm:
            y = _normed(cell, linear(operand, w_hh), weights["weight_ln_hh_l0"], b_hh)
        elif reset_after:
            y = linear(operand, w_hh, b_hh)
        if cell == "RNN":
            h = torch.tanh(projected[t] + y)
        elif cell == "GRU":
            (x_r, x_z, x_n) = projected[t].chunk(3, 1)
            if reset_after:
                y_r, y_z, y_n = y.chunk(3, 1)
                r, z = torch.sigmoid(x_r + y_r), torch.sigmoid(x_z + y_z)
                n = torch.tanh(x_n + r * y_n)
            else:
                H = h.size(1)
                y_r, y_z = linear(operand, w_hh[: 2 * H], b_hh[: 2 * H]).chunk(2, 1)
                r, z = torch.sigmoid(x_r + y_r), torch.sigmoid(x_z + y_z)
                n = torch.tanh(x_n + linear(r * operand, w_hh[2 * H :], b_hh[2 * H :]))
            n = n if masks.candidate is None else n * masks.candidate[t]
            h = n + z * (h - n)
        else:
            i, f, g, o = (projected[t] + y).chunk(4, 1)
            if seen is not None:
                i, f = i + seen[0] * c, f + seen[1] * c
            g = torch.tanh(g) if masks.candidate is None else torch.tanh(g) * masks.candidate[t]
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * g
            o = o if seen is None else o + seen[2] * c
            read = layer_norm(c, c.shape[-1:], weights["weight_ln_c_l0"], weights["bias_ln_c_l0"]) if norm else c
            h = torch.sigmoid(o) * torch.tanh(read)
        if masks.keep_h is not None:
            h = torch.where(masks.keep_h[t], h, old_h)
        if masks.keep_c is not None:
            c = torch.where(masks.keep_c[t], c, old_c)
        outputs.append(h)
    return torch.stack(outputs)

"""How close to float64, measured against torch.nn on the same numbers: float32 at most twice torch's error, forward
and gradients (2.5 times where both are below 1e-6); 16-bit dtypes at most torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import seqcls_fast as sf
from cases import CELLS

SHAPES = [(50, 32, 64, 128), (20, 8, 16, 32), (100, 4, 50, 65), (7, 3, 300, 20)]


def modules(cell: str, I: int, H: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Ours and torch's in `dtype`, and torch's in float64, with equal weights."""
    kind = {"gru": "GRU", "lstm": "LSTM"}.get(cell, "RNN")
    options = {"nonlinearity": cell[4:]} if kind == "RNN" else {}
    ours = getattr(sf, kind)(I, H, dtype=dtype, **options)
    theirs = getattr(nn, kind)(I, H, dtype=dtype, **options)
    exact = getattr(nn, kind)(I, H, dtype=torch.float64, **options)
    theirs.load_state_dict(ours.state_dict())
    exact.load_state_dict(ours.state_dict())
    return ours, theirs, exact


def results(module: nn.Module, x: Tensor, cotangent: Tensor, impl: str) -> dict[str, Tensor]:
    """Output and gradients by name, as float64."""
    dtype = next(module.parameters()).dtype
    x = x.to(dtype).requires_grad_()
    with sf.use_impl(impl):
        output = module(x)[0]
    names, leaves = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(output, [x, *leaves], cotangent.to(dtype))
    return {"output": output.detach().double()} | {
        f"d {name}": t.double() for name, t in zip(("x", *names), found, strict=True)
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_error_against_torch(cell: str, shape: tuple[int, int, int, int], dtype: torch.dtype, compiled: str) -> None:
    T, B, I, H = shape
    ours, theirs, exact = modules(cell, I, H, dtype)
    x, cotangent = torch.randn(T, B, I).to(dtype), torch.randn(T, B, H).to(dtype)
    mine, torchs, wanted = (results(m, x, cotangent, compiled) for m in (ours, theirs, exact))
    for name, want in wanted.items():
        if dtype == torch.float32:  # relative to the largest element
            a, b = (float((found[name] - want).abs().max() / want.abs().max()) for found in (mine, torchs))
            factor = 2.5 if name == "output" and max(a, b) < 1e-6 else 2.0
        else:  # root mean square: the largest error is half a unit in the last place for both
            a, b = (float((found[name] - want).norm() / want.norm()) for found in (mine, torchs))
            factor = 1.0
        assert a <= factor * b, f"{name}: error {a:.3g}, torch's {b:.3g}"

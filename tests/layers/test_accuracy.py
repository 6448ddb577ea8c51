"""Distance to float64 results, compared with that of torch.nn on the same numbers. In float32 our error is at most
twice torch's, for outputs and gradients (2.5 times for outputs where both errors are below 1e-6); in 16-bit dtypes it
is at most torch's own. Errors are root mean squares over a few seeds, because a maximum depends too much on the seed.
"""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

import seqcls_fast as sf
from support.cases import CELLS

SHAPES = [(50, 32, 64, 128), (20, 8, 16, 32), (100, 4, 50, 65), (7, 3, 300, 20)]


def modules(cell: str, I: int, H: int, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Our module and torch's in `dtype`, and torch's in float64, all with equal weights."""
    kind = {"gru": "GRU", "lstm": "LSTM"}.get(cell, "RNN")
    options = {"nonlinearity": cell[4:]} if kind == "RNN" else {}
    ours = getattr(sf, kind)(I, H, dtype=dtype, **options)
    theirs = getattr(nn, kind)(I, H, dtype=dtype, **options)
    exact = getattr(nn, kind)(I, H, dtype=torch.float64, **options)
    theirs.load_state_dict(ours.state_dict())
    exact.load_state_dict(ours.state_dict())
    return ours, theirs, exact


def results(module: nn.Module, x: Tensor, cotangent: Tensor, impl: str) -> dict[str, Tensor]:
    """The output and the gradients by name, converted to float64."""
    dtype = next(module.parameters()).dtype
    x = x.to(dtype).requires_grad_()
    with sf.use_impl(impl):
        output = module(x)[0]
    names, leaves = zip(*module.named_parameters(), strict=True)
    found = torch.autograd.grad(output, [x, *leaves], cotangent.to(dtype))
    return {"output": output.detach().double()} | {
        f"d {name}": t.double() for name, t in zip(("x", *names), found, strict=True)
    }


@lru_cache(maxsize=8)  # all implementations run a case before the next case begins
def torch_results(
    cell: str, shape: tuple[int, int, int, int], dtype: torch.dtype, seed: int
) -> tuple[nn.Module, Tensor, Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Our module, the input, the incoming gradient, and torch's results in `dtype` and in float64."""
    T, B, I, H = shape
    torch.manual_seed(seed)
    ours, theirs, exact = modules(cell, I, H, dtype)
    x, cotangent = torch.randn(T, B, I).to(dtype), torch.randn(T, B, H).to(dtype)
    return ours, x, cotangent, results(theirs, x, cotangent, "auto"), results(exact, x, cotangent, "auto")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_error_against_torch(cell: str, shape: tuple[int, int, int, int], dtype: torch.dtype, compiled: str) -> None:
    squares: dict[str, list[float]] = {}
    seeds = 4
    for seed in range(seeds):
        ours, x, cotangent, theirs, exact = torch_results(cell, shape, dtype, seed)
        mine = results(ours, x, cotangent, compiled)
        for name, want in exact.items():
            if cell == "rnn_relu" and dtype != torch.float32 and name != "output":
                continue  # in both libraries, a unit that rounds to the other side of 0 loses its whole gradient
            total = squares.setdefault(name, [0.0, 0.0])
            for k, found in enumerate((mine, theirs)):
                total[k] += float((found[name] - want).norm() / want.norm()) ** 2 / seeds
    for name, (a, b) in ((name, (a**0.5, b**0.5)) for name, (a, b) in squares.items()):
        factor = 1.0 if dtype != torch.float32 else 2.5 if name == "output" and max(a, b) < 1e-6 else 2.0
        assert a <= factor * b, f"{name}: error {a:.3g}, torch's {b:.3g}"


def one_step(cell: str, x: Tensor, impl: str) -> Tensor:
    """tanh(x) or relu(x) by one step of an RNN, sigmoid(x) by a GRU whose gate mixes 0 and h0 = 1; one unit each."""
    gates = {"gru": [0.0, 1.0, 0.0]}.get(cell, [1.0])
    w_ih = torch.tensor(gates, dtype=x.dtype)[:, None]
    h0 = torch.ones(1, len(x), 1, dtype=x.dtype) if cell == "gru" else None
    return sf.rnn_layer(x[None, :, None], [w_ih], [torch.zeros_like(w_ih)], h0=h0, cell=cell, impl=impl)[1].flatten()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru"])
def test_activations_over_their_range(cell: str, dtype: torch.dtype, compiled: str) -> None:
    """The error is at most 5 units in the last place, near 0 too. In its tail sigmoid(x) is about e^x, which magnifies
    a rounding of x, so half a unit is added for each unit of x. Values below the smallest normal float32 may be 0."""
    size = torch.logspace(-30, 2.2, 4001, dtype=torch.float64)
    x = torch.cat([size, -size, torch.linspace(-20, 20, 4001, dtype=torch.float64), torch.zeros(1)]).to(dtype)
    want = (torch.tanh if cell == "rnn_tanh" else torch.sigmoid)(x.double())
    error = (one_step(cell, x, compiled).double() - want).abs()
    units = error / (want.abs() * torch.finfo(dtype).eps) / (5 + (x.double().abs() / 2 if cell == "gru" else 0))
    units[error <= 2 * torch.finfo(torch.float32).tiny] = 0
    worst = int(units.argmax())
    assert units[worst] <= 1, f"{float(units[worst]):.1f} times the bound at {float(x[worst])}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weight", [1.0, 1 + 2**-7, 0.7])
def test_every_16_bit_number(dtype: torch.dtype, weight: float, compiled: str) -> None:
    """relu(weight * x) for all 65536 bit patterns: numbers are read and rounded (to nearest even) as torch does it."""
    x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    w = torch.full((1, 1), weight, dtype=dtype)
    found = sf.rnn_layer(x[None, :, None], [w], [torch.zeros_like(w)], cell="rnn_relu", impl=compiled)[1].flatten()
    want = torch.relu(x.float() * w.item()).to(dtype)
    if dtype == torch.bfloat16:  # the bfloat16 dot product instruction treats subnormal numbers and products as 0
        normal = ~((x.float().abs().minimum(want.float()) < 2 * torch.finfo(dtype).tiny) & (want != 0))
        found, want = found[normal], want[normal]
    torch.testing.assert_close(found, want, rtol=0, atol=0, equal_nan=True)

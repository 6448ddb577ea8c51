"""Our module and torch.nn's with the same weights and input, and their results and gradients by name.

In float64 unless a test says otherwise. torch.nn's results are the expected ones, with one tolerance for all cells.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import seqcls_fast as sf
from support.tolerances import assert_close_by_name

PAIRS = {"RNN": (sf.RNN, nn.RNN), "GRU": (sf.GRU, nn.GRU), "LSTM": (sf.LSTM, nn.LSTM)}
OURS = [pytest.param(sf_class, nn_class, id=name) for name, (sf_class, nn_class) in PAIRS.items()]
T, B, I, H = 5, 4, 3, 6
TERMS = 2 * 2 * T * (2 * H + H + 10) + T * B  # forward and back through two layers; a step reads up to 2 * H + H values
Tensors = dict[str, Tensor | None]


def named(output: Any, states: Any) -> Tensors:
    """A module's result by name."""
    if isinstance(output, PackedSequence):
        output = output.data
    h_n, c_n = states if isinstance(states, tuple) else (states, None)
    return {"output": output, "h_n": h_n, "c_n": c_n}


def gradients(results: Tensors, module: nn.Module, **inputs: Tensor) -> Tensors:
    """Gradients of all parameters and of `inputs`, by name, for fixed random cotangents on every result."""
    g = torch.Generator().manual_seed(1)
    used = [t for t in results.values() if t is not None]
    cotangents = [torch.randn(t.shape, generator=g, dtype=torch.float64).to(t.dtype) for t in used]
    wrt = dict(module.named_parameters()) | inputs
    # the graph is kept: both modules may share a part of it, such as the packing of their input
    found = torch.autograd.grad(used, list(wrt.values()), cotangents, retain_graph=True, allow_unused=True)
    return {f"d_{name}": grad for name, grad in zip(wrt, found, strict=True)}


def pair(sf_class: type, nn_class: type, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Our module and torch's with the same weights, in float64."""
    ours = sf_class(*args, **kwargs, dtype=torch.float64)
    theirs = nn_class(*args, **kwargs, dtype=torch.float64)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def x_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape or (T, B, I), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hx_of(module: Any, batch: int | None = B, seed: int = 2) -> Any:
    count = module.num_layers * (2 if module.bidirectional else 1)
    outer = (count,) if batch is None else (count, batch)
    h = x_of(*outer, module.proj_size or module.hidden_size, seed=seed)
    return (h, x_of(*outer, module.hidden_size, seed=seed + 1)) if module.mode == "LSTM" else h


def assert_same(ours: nn.Module, theirs: nn.Module, *args: Any) -> None:
    """Both modules give the same results and the same gradients by parameter name."""
    mine, reference = named(*ours(*args)), named(*theirs(*args))
    assert_close_by_name(mine, reference, TERMS)
    assert_close_by_name(gradients(mine, ours), gradients(reference, theirs), TERMS)

"""The engines that run a Problem in torch: ours, ours with frozen weights, and every way that torch itself has.

All run through `module_engine`, so ours and torch.nn's are called in the same way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import seqcls_fast as sf

from .layer_cases import Problem, Values, arguments_of, gradients_of, hidden, last_hidden, results_of, states_at

UNROLLED = 10  # steps that torch.compile is given at most: it unrolls the loop and compiles for seconds per step


@dataclass(frozen=True)
class Engine:
    """``run()`` computes, ``values`` turns its result into tensors. ``around`` is entered before the first call."""

    run: Callable[[], Any]
    values: Callable[[Any], Values]
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext


Forward = Callable[..., Any]  # (x, state) to a result of torch.nn's form: a module, or what calls it


def module_engine(
    problem: Problem, module: nn.Module, forward: Forward | None = None, summed: Callable[[Any], Tensor] | None = None
) -> Engine:
    """Calls the module, or ``forward`` with it, and in training the backward of h_n.sum(), or of another sum."""
    case, forward = problem.case, forward or module
    if not case.training:
        return Engine(partial(forward, *arguments_of(problem.inputs)), partial(results_of, case))
    inputs = {name: tensor.clone().requires_grad_() for name, tensor in problem.inputs.items()}
    arguments, leaves = arguments_of(inputs), [*inputs.values(), *module.parameters()]
    summed = summed or (hidden if case.single else last_hidden)

    def train() -> None:
        for leaf in leaves:
            leaf.grad = None
        summed(forward(*arguments)).sum().backward()

    return Engine(train, lambda _: gradients_of(module, inputs))


def _packed(lengths: Tensor, module: nn.Module, x: Tensor) -> Any:
    return module(pack_padded_sequence(x, lengths, enforce_sorted=False))


def _padded(lengths: Tensor, module: nn.Module, x: Tensor) -> Any:
    return None, states_at(module(x)[0], lengths)


def build_ours(problem: Problem, threads: int) -> Engine:
    module = problem.module(sf)
    if problem.lengths is None:
        return module_engine(problem, module)
    return module_engine(problem, module, partial(module, lengths=problem.lengths, want_output=False))


def build_frozen(problem: Problem, threads: int) -> Engine:
    """Ours, whose weights are frozen for as long as what is ``around`` it lasts."""
    assert problem.lengths is None
    module = problem.module(sf)
    return replace(module_engine(problem, module), around=partial(sf.frozen, module))


def torch_padded(problem: Problem, threads: int) -> Engine:
    module = problem.module()
    return module_engine(
        problem, module, None if problem.lengths is None else partial(_padded, problem.lengths, module)
    )


def torch_packed(problem: Problem, threads: int) -> Engine:
    assert problem.lengths is not None
    module = problem.module()
    return module_engine(problem, module, partial(_packed, problem.lengths, module))


def torch_without_onednn(problem: Problem, threads: int) -> Engine:
    engine = torch_padded(problem, threads)

    def run() -> Any:
        torch._C._set_mkldnn_enabled(False)
        try:
            return engine.run()
        finally:
            torch._C._set_mkldnn_enabled(True)

    return Engine(run, engine.values)


def step(cell: str, x: Tensor, h: Tensor, c: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """One step written by hand: the new h and c from ``x``, the step's projected input."""
    _, w_hh, _, b_hh = weights
    y = nn.functional.linear(h, w_hh, b_hh)
    if cell == "RNN":
        return torch.tanh(x + y), c
    if cell == "GRU":
        (xr, xz, xn), (yr, yz, yn) = x.chunk(3, 1), y.chunk(3, 1)
        r, z = torch.sigmoid(xr + yr), torch.sigmoid(xz + yz)
        n = torch.tanh(xn + r * yn)
        return n + z * (h - n), c
    i, f, g, o = (x + y).chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def hand_written(cell: str, x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """output and h_n of one layer, by a Python loop over the steps of x (T, B, I)."""
    h = c = x.new_zeros(x.size(1), weights[1].size(1))
    outputs = []
    for projected in nn.functional.linear(x, weights[0], weights[2]):
        h, c = step(cell, projected, h, c, weights)
        outputs.append(h)
    return torch.stack(outputs), h[None]


class _HandWritten(nn.Module):
    def __init__(self, cell: str, weights: Values) -> None:
        super().__init__()
        self.cell = cell
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight.clone()))
        self.compiled = torch.compile(hand_written, fullgraph=True, dynamic=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.compiled(self.cell, x, list(self.parameters()))


def torch_compiled(problem: Problem, threads: int) -> Engine:
    torch._dynamo.reset()  # otherwise it stops compiling after several shapes
    engine = module_engine(problem, _HandWritten(problem.case.cell, problem.weights))
    engine.run()  # compiles
    return engine

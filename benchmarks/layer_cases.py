"""What bench_layers.py times: the cases, both sides of each, their float64 reference and the roofline.

The ragged lengths are those the project's bars were measured with (torch's generator, seed 1, uniform in [T/10, T]).
A torch side that needs a PackedSequence packs inside the timed call: all start from a padded batch and its lengths.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from report import BAR_SHAPES
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import seqcls_fast as sf


class Shape(NamedTuple):
    B: int
    T: int
    I: int
    H: int

    def __str__(self) -> str:
        return f"{self.B}, {self.T}, {self.I}, {self.H}"


SHAPES = tuple(Shape(*sizes) for sizes in BAR_SHAPES)
TINY = Shape(1, 1, 8, 8)
PER_SAMPLE = SHAPES[1:2] + SHAPES[3:6]  # the batch holds the samples; torch's loop over more takes minutes
WHATS = ("inference", "training", "ragged-inference", "ragged-training", "per-sample", "bf16", "avx2", "overhead")
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
FORWARD_CLOCKS = {"RNN": 9.1, "GRU": 26.1, "LSTM": 43.7}  # activations, per 16 lanes and step
BACKWARD_CLOCKS = {"RNN": 0.0, "GRU": 10.0, "LSTM": 21.0}  # elementwise part; none was ever set for RNN
ERROR_BOUND = {"forward": 2e-5, "gradient": 2e-4, "bf16": 5e-2}  # beyond: wrong, not inexact


@dataclass(frozen=True)
class Case:
    what: str
    cell: str
    shape: Shape

    @property
    def training(self) -> bool:
        return "training" in self.what

    @property
    def per_sample(self) -> bool:
        return self.what == "per-sample"

    @property
    def gradients(self) -> bool:
        return self.training or self.per_sample

    @property
    def ragged(self) -> bool:
        return "ragged" in self.what

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.what == "bf16" else torch.float32

    @property
    def error_bound(self) -> float:
        return ERROR_BOUND["gradient" if self.gradients else "bf16" if self.what == "bf16" else "forward"]

    def __str__(self) -> str:
        return f"{self.what} {self.cell} ({self.shape})"


def lengths_of(shape: Shape) -> Tensor:
    return torch.randint(max(1, shape.T // 10), shape.T + 1, (shape.B,), generator=torch.Generator().manual_seed(1))


def steps_of(case: Case) -> int:
    """Row steps of the batch: B * T, or the sum of the lengths."""
    return int(lengths_of(case.shape).sum()) if case.ragged else case.shape.B * case.shape.T


def gflop_of(case: Case) -> float:
    """Matrix products only, 2 per multiply-add; a training step costs three forwards."""
    _, _, inputs, hidden = case.shape
    return 2e-9 * steps_of(case) * (inputs + hidden) * GATES[case.cell] * hidden * (3 if case.gradients else 1)


def roofline_seconds(case: Case, gflops: float, clock_ghz: float, threads: int, lanes: int = 16) -> float:
    """The shortest time cpu-kernels.md allows: products at the peak of all threads, then activations at the clock.

    lanes: 16 by definition; 8 gives the activations of an instruction set with half-width vectors twice the clocks.
    """
    clocks = FORWARD_CLOCKS[case.cell] + (BACKWARD_CLOCKS[case.cell] if case.gradients else 0.0)
    vectors = steps_of(case) * math.ceil(case.shape.H / 16) * 16 / lanes
    return gflop_of(case) / gflops + 1e-9 * vectors * clocks / (clock_ghz * threads)


def _last_hidden(result: Any) -> Tensor:
    state = result[1]
    return state[0] if isinstance(state, tuple) else state


Run = Callable[[nn.Module, Tensor], dict[str, Tensor]]


def _full(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    result = module(x)
    return {"output": result[0], "h_n": _last_hidden(result)}


def _avx2(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    with sf.use_impl("avx2"):
        return _full(module, x)


def _padded_gather(lengths: Tensor) -> Run:
    rows, last = torch.arange(len(lengths)), lengths - 1
    return lambda module, x: {"h_n": module(x)[0][rows, last]}


def _packed(lengths: Tensor) -> Run:
    def run(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
        return {
            "h_n": _last_hidden(module(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)))[0]
        }

    return run


def _ours_ragged(lengths: Tensor) -> Run:
    return lambda module, x: {"h_n": _last_hidden(module(x, lengths=lengths, want_output=False))[0]}


def _loss(result: Any) -> Tensor:
    return _last_hidden(result).sum()


def _per_sample(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Gradients of each sample's own loss by torch.func."""
    weights = {name: p.detach() for name, p in module.named_parameters()}
    gradient = torch.func.grad(lambda w, one: _loss(torch.func.functional_call(module, w, (one[None],))))
    return torch.func.vmap(gradient, (None, 0))(weights, x)


def _sample_by_sample(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The same by a loop, as one writes it where vmap does not work."""
    weights = dict(module.named_parameters())
    each = [torch.autograd.grad(_loss(module(one[None])), list(weights.values())) for one in x]
    return dict(zip(weights, map(torch.stack, zip(*each, strict=True)), strict=True))


@dataclass
class Side:
    """One implementation with its own module and input; calling it does the timed work and returns what it computed."""

    module: nn.Module
    x: Tensor
    run: Run
    training: bool = False

    def __call__(self) -> dict[str, Tensor]:
        if not self.training:
            return self.run(self.module, self.x)
        self.x.grad = None
        for parameter in self.module.parameters():
            parameter.grad = None
        self.run(self.module, self.x)["h_n"].sum().backward()
        return {}

    def gradients(self) -> dict[str, Tensor]:
        named = [("x", self.x), *self.module.named_parameters()]
        return {name: tensor.grad for name, tensor in named if tensor.grad is not None}


def _module(namespace: Any, case: Case, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    weights = getattr(nn, case.cell)(case.shape.I, case.shape.H).state_dict()
    module = getattr(namespace, case.cell)(case.shape.I, case.shape.H, batch_first=True)
    module.load_state_dict(weights)
    return module.to(dtype).train(case.training)


def _input(case: Case, dtype: torch.dtype) -> Tensor:
    shape = case.shape
    x = torch.randn(shape.B, shape.T, shape.I, generator=torch.Generator().manual_seed(2)).to(dtype)
    return x.requires_grad_(case.training)


def sides_of(case: Case) -> dict[str, Side]:
    """The sides to time, by name; those of torch start with "torch"."""

    def side(namespace: Any, run: Run, dtype: torch.dtype = case.dtype) -> Side:
        return Side(_module(namespace, case, dtype), _input(case, dtype), run, case.training)

    if case.ragged:
        lengths = lengths_of(case.shape)
        return {
            "torch padded": side(nn, _padded_gather(lengths)),
            "torch packed": side(nn, _packed(lengths)),
            "ours": side(sf, _ours_ragged(lengths)),
        }
    if case.per_sample:
        sides = {"torch loop": side(nn, _sample_by_sample)}
        if case.cell == "LSTM":  # the one cell of torch's whose per-sample gradients vmap can take
            sides["torch vmap"] = side(nn, _per_sample)
        return sides | {"ours": side(sf, _per_sample), "ours loop": side(sf, _sample_by_sample)}
    if case.what == "bf16":
        return {"torch": side(nn, _full), "ours": side(sf, _full), "ours float32": side(sf, _full, torch.float32)}
    if case.what == "avx2":
        return {"torch": side(nn, _full), "ours": side(sf, _avx2), "ours auto": side(sf, _full)}
    return {"torch": side(nn, _full), "ours": side(sf, _full)}


def grad_mode(case: Case) -> contextlib.AbstractContextManager[None]:
    """Entered once around all calls of a case: entering it takes as long as a tiny call."""
    return contextlib.nullcontext() if case.gradients else torch.inference_mode()


@lru_cache(maxsize=32)  # a table at two thread counts asks twice
def reference(case: Case) -> dict[str, Tensor]:
    """The case in float64 torch, from weights and inputs rounded to the case's own type; ragged ones are padded."""
    module = _module(nn, case, case.dtype).double()
    x = _input(case, case.dtype).detach().double().requires_grad_(case.training)
    run = _padded_gather(lengths_of(case.shape)) if case.ragged else _sample_by_sample if case.per_sample else _full
    side = Side(module, x, run, case.training)
    with grad_mode(case):
        values = side()
    return side.gradients() if case.training else values


def error_of(case: Case, side: Side, values: dict[str, Tensor]) -> float:
    """Largest distance from float64: absolute for outputs, relative to its largest entry for each gradient."""
    worst = 0.0
    got = side.gradients() if case.training else values
    for name, expected in reference(case).items():
        distance = float((got[name].detach().double() - expected).abs().max())
        largest = float(expected.abs().max())
        if case.gradients and largest > 0:  # the recurrent weight's gradient is 0 where every length is 1
            distance /= largest
        worst = math.inf if math.isnan(distance) else max(worst, distance)
    return worst

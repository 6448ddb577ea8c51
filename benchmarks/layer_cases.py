"""The cases of the benchmarks of layers: sizes, weights and inputs, a float64 reference, and the least work they need.

Every engine gets the same weights and the same time-major input, and returns the same named tensors; the tests run the
same cases. Ragged lengths are uniform in [T/10, T], and of a ragged case only the states at the sequences' ends count.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

CELLS = ("RNN", "GRU", "LSTM")
# A literal, so that compare.py can measure older revisions, which have no table of cells.
GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
ERROR_BOUND = {"forward": 2e-5, "gradient": 2e-4, "bfloat16": 5e-2}  # a larger error means that the result is wrong

Values = dict[str, Tensor]


class Shape(NamedTuple):
    B: int
    T: int
    I: int
    H: int

    def __str__(self) -> str:
        return f"({self.B}, {self.T}, {self.I}, {self.H})"


SHAPES = tuple(
    Shape(*sizes)
    for sizes in (
        (1, 1, 8, 8),  # nearly all of it is the fixed cost of a call
        (1, 50, 50, 64),
        (8, 10, 16, 32),
        (32, 100, 64, 128),
        (64, 100, 128, 128),
        (64, 256, 128, 256),
        (128, 50, 50, 64),
        (256, 128, 64, 64),
        (32, 128, 128, 512),
        (16, 32, 512, 1024),
    )
)
TINY = SHAPES[0]
MOST = (*SHAPES[1:5], *SHAPES[6:9])
A_FEW = (SHAPES[2], SHAPES[4], SHAPES[6])


@dataclass(frozen=True)
class Case:
    cell: str
    shape: Shape
    training: bool = False
    ragged: bool = False
    directions: int = 1
    layers: int = 1
    dtype: str = "float32"

    @property
    def what(self) -> str:
        """The name of its table, such as "inference", "ragged training" or "bfloat16 inference"."""
        words = ["bfloat16"] * (self.dtype == "bfloat16") + ["ragged"] * self.ragged
        words += ["bidirectional"] * (self.directions == 2) + ["stacked"] * (self.layers > 1)
        return " ".join([*words, "training" if self.training else "inference"])

    @property
    def plain(self) -> bool:
        """One layer in one direction."""
        return self.directions == 1 and self.layers == 1

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def error_bound(self) -> float:
        return ERROR_BOUND["bfloat16" if self.dtype == "bfloat16" else "gradient" if self.training else "forward"]

    @property
    def widths(self) -> list[int]:
        """The input features of each layer."""
        return [self.shape.I] + [self.directions * self.shape.H] * (self.layers - 1)

    def __str__(self) -> str:
        return f"{self.what} {self.cell} {self.shape}"


def grid(cells: Sequence[str] = CELLS, shapes: Sequence[Shape] = SHAPES, quick: bool = False) -> Iterator[Case]:
    """Every case of the tables, table by table. ``quick``: one small shape of each table."""
    first = Case("GRU", TINY)
    kinds = {
        first: SHAPES,
        replace(first, training=True): SHAPES,
        replace(first, ragged=True): MOST,
        replace(first, ragged=True, training=True): MOST,
        replace(first, directions=2): A_FEW,
        replace(first, directions=2, training=True): A_FEW,
        replace(first, layers=2): A_FEW,
        replace(first, layers=2, training=True): A_FEW,
        replace(first, dtype="bfloat16"): (SHAPES[1], *A_FEW, SHAPES[8]),
    }
    for kind, all_shapes in kinds.items():
        known = [shape for shape in all_shapes if shape in shapes] + [s for s in shapes if s not in SHAPES]
        chosen = [SHAPES[2]] if quick else known
        yield from (replace(kind, cell=cell, shape=shape) for cell in cells for shape in chosen)


# -- tensors ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """The tensors of a case: torch.nn's parameters by name, x (T, B, I), and for a ragged case lengths (B,)."""

    case: Case
    weights: Values
    x: Tensor
    lengths: Tensor | None

    def module(self, namespace: Any = nn, dtype: torch.dtype | None = None) -> nn.Module:
        """The layer as ``namespace`` has it, torch.nn or seqcls_fast, with these weights."""
        case = self.case
        module = getattr(namespace, case.cell)(
            case.shape.I, case.shape.H, case.layers, bidirectional=case.directions == 2
        )
        module.load_state_dict(self.weights)
        return module.to(dtype or case.torch_dtype).train(case.training)


def lengths_of(shape: Shape) -> Tensor:
    return torch.randint(max(1, shape.T // 10), shape.T + 1, (shape.B,), generator=torch.Generator().manual_seed(1))


@lru_cache(maxsize=2)
def build(case: Case) -> Problem:
    B, T, I, H = case.shape
    torch.manual_seed(0)
    module = getattr(nn, case.cell)(I, H, case.layers, bidirectional=case.directions == 2).to(case.torch_dtype)
    x = torch.randn(T, B, I, generator=torch.Generator().manual_seed(2)).to(case.torch_dtype)
    return Problem(case, module.state_dict(), x, lengths_of(case.shape) if case.ragged else None)


def last_hidden(result: Any) -> Tensor:
    """h_n of a recurrent module's result."""
    state = result[1]
    return state[0] if isinstance(state, tuple) else state


def states_at(output: Tensor, lengths: Tensor) -> Tensor:
    """(1, B, H): the last step of every sequence of a padded output (T, B, H)."""
    return output[lengths - 1, torch.arange(len(lengths))][None]


def gradients_of(module: nn.Module, x: Tensor) -> Values:
    named = [("x", x), *module.named_parameters()]
    return {f"d {name}": tensor.grad for name, tensor in named if tensor.grad is not None}


@lru_cache(maxsize=2)
def reference(case: Case) -> Values:
    """The results of float64 torch.nn, from weights and inputs that are rounded to the case's own type."""
    problem = build(case)
    module = problem.module(dtype=torch.float64)
    x = problem.x.double().requires_grad_(case.training)
    with grad_mode(case):
        result = module(x)
        if problem.lengths is None:
            values = {"output": result[0], "h_n": last_hidden(result)}
        else:
            values = {"h_n": states_at(result[0], problem.lengths)}
        if not case.training:
            return values
        values["h_n"].sum().backward()
    return gradients_of(module, x)


def error_of(case: Case, values: Values) -> float:
    """The largest distance from float64: absolute for outputs, relative to its largest entry for each gradient."""
    worst = 0.0
    for name, expected in reference(case).items():
        distance = float((values[name].detach().double().reshape(expected.shape) - expected).abs().max())
        largest = float(expected.abs().max())
        if case.training and largest > 0:  # the recurrent weight's gradient is 0 where every length is 1
            distance /= largest
        worst = math.inf if math.isnan(distance) else max(worst, distance)
    return worst


def grad_mode(case: Case) -> contextlib.AbstractContextManager[None]:
    """The mode for all calls of a case. It is entered once, because entering it takes as long as a tiny call."""
    return contextlib.nullcontext() if case.training else torch.inference_mode()


# -- costs ------------------------------------------------------------------------------------------------------------


def row_steps(case: Case) -> int:
    """The steps of all sequences, for one direction of one layer: B * T, or the sum of the lengths."""
    return int(lengths_of(case.shape).sum()) if case.ragged else case.shape.B * case.shape.T


def gflop_of(case: Case) -> float:
    """GFLOP of the matrix products, 2 per multiply-add. A training step costs three forwards."""
    rows = case.directions * GATES[case.cell] * case.shape.H
    each = sum(2e-9 * row_steps(case) * rows * (width + case.shape.H) for width in case.widths)
    return each * (3 if case.training else 1)


def weight_bytes_per_step(case: Case) -> int:
    """Bytes of the recurrent weights of one direction, all of which every step reads, even for one row."""
    return GATES[case.cell] * case.shape.H**2 * (2 if case.dtype == "bfloat16" else 4)


def bytes_of(case: Case) -> int:
    """Bytes that have to move at least once: inputs, weights and results, in training saved values and gradients too.

    A training step writes its gates (and c) once and reads them once, writes the gates' gradients and reads them twice
    (for the gradients of the input and of the weights), and reads x and h again for the latter.
    """
    size = 2 if case.dtype == "bfloat16" else 4
    steps, total = row_steps(case), 0
    for width in case.widths:
        gates, hidden = GATES[case.cell] * case.shape.H, case.shape.H
        weights = case.directions * gates * (width + hidden)
        output = 0 if case.ragged and not case.training and case.layers == 1 else case.directions * hidden
        total += steps * (width + output) + weights
        if case.training:
            saved = case.directions * (gates + (hidden if case.cell == "LSTM" else 0))
            total += steps * (2 * saved + 3 * case.directions * gates + 2 * width + output) + 2 * weights
    return size * total

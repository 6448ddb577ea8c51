"""The cases of the benchmarks of layers: sizes, weights and inputs, a float64 reference, and the least work they need.

Every engine gets the same weights and the same time-major input, and returns the same named tensors; the tests run the
same cases. Ragged lengths are uniform in [T/10, T], and of a ragged case only the states at the sequences' ends count.
A cell (GRUCell and the others) is a case too, of one step.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
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
    state: bool = False  # the call is given a state, as where one step follows the other, and of LSTM c_n counts too
    graph: bool = False  # a forward that records a graph for a backward, which does not come
    single: bool = False  # RNNCell, GRUCell or LSTMCell: T is 1, x has no dimension for it, and a state is always given

    @property
    def what(self) -> str:
        """The name of its table, such as "inference", "ragged training" or "bfloat16 inference"."""
        words = ["bfloat16"] * (self.dtype == "bfloat16") + ["ragged"] * self.ragged
        words += ["bidirectional"] * (self.directions == 2) + ["stacked"] * (self.layers > 1) + ["cell"] * self.single
        return " ".join(
            [*words, "training" if self.training else "forward with a graph" if self.graph else "inference"]
        )

    @property
    def name(self) -> str:
        """The name of its row in the table."""
        if self.single:
            B, _, I, H = self.shape
            return f"{self.cell}Cell ({B}, {I}, {H})"
        return f"{self.cell} {self.shape}{', state carried' if self.state else ''}"

    @property
    def has_state(self) -> bool:
        return self.state or self.single

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
        return f"{self.what} {self.name}"


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
    """The tensors of a case: torch.nn's parameters by name, x (T, B, I), and for a ragged case lengths (B,).

    Where the case has a state, ``states`` are h0, or h0 and c0, (layers * D, B, H) each. A cell's are (B, H), and its x
    is (B, I).
    """

    case: Case
    weights: Values
    x: Tensor
    lengths: Tensor | None
    states: tuple[Tensor, ...] = ()

    @property
    def inputs(self) -> Values:
        return dict(zip(("x", "h0", "c0"), (self.x, *self.states), strict=False))

    @torch.inference_mode(False)  # a user's parameters were not made in inference mode either
    def module(self, namespace: Any = nn, dtype: torch.dtype | None = None) -> nn.Module:
        """The layer or cell as ``namespace`` has it, torch.nn or seqcls_fast, with these weights."""
        module = made(namespace, self.case)
        module.load_state_dict(self.weights)
        return module.to(dtype or self.case.torch_dtype).train(self.case.training)


def made(namespace: Any, case: Case) -> nn.Module:
    """A new module of a case."""
    _, _, I, H = case.shape
    if case.single:
        return getattr(namespace, f"{case.cell}Cell")(I, H)
    return getattr(namespace, case.cell)(I, H, case.layers, bidirectional=case.directions == 2)


def lengths_of(shape: Shape) -> Tensor:
    return torch.randint(max(1, shape.T // 10), shape.T + 1, (shape.B,), generator=torch.Generator().manual_seed(1))


@lru_cache(maxsize=2)
@torch.inference_mode(False)
def build(case: Case) -> Problem:
    B, T, I, H = case.shape
    torch.manual_seed(0)
    module = made(nn, case).to(case.torch_dtype)
    random = torch.Generator().manual_seed(2)
    x = torch.randn((B, I) if case.single else (T, B, I), generator=random).to(case.torch_dtype)
    size = (B, H) if case.single else (case.layers * case.directions, B, H)
    count = (2 if case.cell == "LSTM" else 1) if case.has_state else 0
    states = tuple(torch.randn(size, generator=random).to(case.torch_dtype) for _ in range(count))
    return Problem(case, module.state_dict(), x, lengths_of(case.shape) if case.ragged else None, states)


def arguments_of(inputs: Values) -> tuple[Any, ...]:
    """The inputs of a problem as torch.nn's modules take them: x, and a state as h0 or (h0, c0)."""
    x, *states = inputs.values()
    return (x, *(states if len(states) < 2 else [tuple(states)]))


def hidden(state: Any) -> Tensor:
    """h of a state, which is h or (h, c)."""
    return state[0] if isinstance(state, tuple) else state


def last_hidden(result: Any) -> Tensor:
    """h_n of the result of a recurrent module that is no cell."""
    return hidden(result[1])


def results_of(case: Case, result: Any) -> Values:
    """What a module returned, by name. Of a ragged case only h_n counts."""
    if case.ragged:
        return {"h_n": last_hidden(result)}
    state = result if case.single else result[1]
    values = {"h_n": hidden(state)} if case.single else {"output": result[0], "h_n": hidden(state)}
    return values | ({"c_n": state[1]} if case.has_state and isinstance(state, tuple) else {})


def states_at(output: Tensor, lengths: Tensor) -> Tensor:
    """(1, B, H): the last step of every sequence of a padded output (T, B, H)."""
    return output[lengths - 1, torch.arange(len(lengths))][None]


def gradients_of(module: nn.Module, inputs: Values) -> Values:
    named = [*inputs.items(), *module.named_parameters()]
    return {f"d {name}": tensor.grad for name, tensor in named if tensor.grad is not None}


@lru_cache(maxsize=2)
def reference(case: Case) -> Values:
    """The results of float64 torch.nn, from weights and inputs that are rounded to the case's own type."""
    problem = build(case)
    module = problem.module(dtype=torch.float64)
    inputs = {name: tensor.double().requires_grad_(case.training) for name, tensor in problem.inputs.items()}
    with grad_mode(case):
        result = module(*arguments_of(inputs))
        if problem.lengths is not None:
            result = (None, states_at(result[0], problem.lengths))
        values = results_of(case, result)
        if not case.training:
            return values
        values["h_n"].sum().backward()
    return gradients_of(module, inputs)


def error_of(case: Case, values: Values) -> float:
    return distance_from(reference(case), values, gradients=case.training)


def distance_from(reference: Values, values: Values, *, gradients: bool) -> float:
    """The largest distance from float64: absolute for outputs, relative to its largest entry for each gradient."""
    worst = 0.0
    for name, expected in reference.items():
        distance = float((values[name].detach().double().reshape(expected.shape) - expected.detach()).abs().max())
        largest = float(expected.detach().abs().max())
        if gradients and largest > 0:  # the recurrent weight's gradient is 0 where every length is 1
            distance /= largest
        worst = math.inf if math.isnan(distance) else max(worst, distance)
    return worst


def grad_mode(case: Case) -> contextlib.AbstractContextManager[None]:
    """The mode for all calls of a case. It is entered once, because entering it takes as long as a tiny call.

    Cells are called in loops that people write themselves, and most of those say no_grad.
    """
    if case.training or case.graph:
        return contextlib.nullcontext()
    return torch.no_grad() if case.single else torch.inference_mode()


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


def reader_of_weights(case: Case) -> Callable[[], Tensor]:
    """A call that reads as many bytes as the weights have: torch.sum, the fastest reader that torch or numpy has.

    Where the weights are some kB, nearly all of its time is the fixed cost of this call.
    """
    weights = build(case).weights.values()
    return partial(torch.sum, torch.ones(sum(weight.nbytes for weight in weights) // 4))


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

"""States that reset inside a sequence: what they cost, and the ways in which it is done without them.

Every side is given a state and the same resets. A training step is the forward, and the backward of the output's sum:
that of h_n alone would go back to the last reset of each row and no further.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

import seqcls_fast as sf
from seqcls_fast.toolkit.timing import timed

from .. import layer_cases
from ..harness import Session
from ..layer_cases import CELLS, Case, Problem, Shape, Values
from ..rows import Row, Side
from ..torch_engines import Engine, module_engine

SHAPES = tuple(Shape(B, T, H, H) for T in (32, 128) for H in (64, 128) for B in (8, 32))
COMPILED_SHAPES = (Shape(8, 32, 64, 64), Shape(32, 32, 128, 128))  # compiling one unrolled loop takes about a minute
DENSITIES = (0.0, 0.01, 0.1)
PLAIN, LOOP = "ours without resets", "torch masked loop"
SPLIT, STEPS = "torch split at resets", "torch split at each step"
COMPILED = "torch.compile of the loop"
TORCHRL = {"TorchRL pad": "pad", "TorchRL scan": "scan"}  # its backends; not torch's own ways, by their names

_STEPS = {"RNN": torch.rnn_tanh_cell, "GRU": torch.gru_cell, "LSTM": torch.lstm_cell}  # what torch.nn's cells call
_summed = itemgetter(0)  # the output


def measure(session: Session) -> Iterator[Row]:
    for training in (False, True):
        for cell in ("GRU",) if session.quick else CELLS:
            for shape in SHAPES[:1] if session.quick else SHAPES:
                yield from _rows(session, Case(cell, shape, training=training, state=True))


def _rows(session: Session, case: Case) -> Iterator[Row]:
    problem, further = layer_cases.build(case), {}
    with layer_cases.grad_mode(case):
        if case.shape in COMPILED_SHAPES and session.threads == 1 and session.asks("torch.compile"):
            further[COMPILED] = _Loop(problem, compiled=True)
            yield _first_result(session, problem, further[COMPILED])
        for density in DENSITIES[1:2] if session.quick else DENSITIES:
            resets = resets_of(case.shape, density)
            name = f"{case.cell} {case.shape}, {100 * density:g} % resets"
            row = Row("resets", f"resets, {case.what}", name, session.threads, {}, goals=goals_of(case, density))
            error_of = partial(layer_cases.distance_from, reference(problem, resets), gradients=case.training)
            plain = module_engine(problem, problem.module(sf), summed=_summed)
            built = engines(problem, resets, torchrl=session.asks("torchrl")) | {
                name: loop.engine(problem, resets) for name, loop in further.items()
            }
            session.fill(row, built, error_of, case.error_bound, {PLAIN: plain.run})
            yield row


def goals_of(case: Case, density: float) -> dict[str, float]:
    goals = {PLAIN: 1 / 1.05}
    if case.shape.T == 128 and density == 0.01:
        goals |= {SPLIT: 5.0, STEPS: 5.0}
    if case.shape in COMPILED_SHAPES:
        goals[COMPILED] = 2.0 if case.cell == "LSTM" else 3.0
    return goals


def resets_of(shape: Shape, density: float) -> Tensor:
    return torch.rand(shape.T, shape.B, generator=torch.Generator().manual_seed(3)) < density


def engines(problem: Problem, resets: Tensor, *, torchrl: bool = True) -> dict[str, Engine]:
    ours = problem.module(sf)
    found = {
        "ours": module_engine(problem, ours, partial(ours, resets=resets), _summed),
        SPLIT: split_engine(problem, problem.module(), resets),
        STEPS: split_engine(problem, problem.module(), resets, at_each_step=True),
        LOOP: _Loop(problem).engine(problem, resets),
    }
    if torchrl and problem.case.cell != "RNN" and importlib.util.find_spec("torchrl"):
        found |= {name: torchrl_engine(problem, resets, backend) for name, backend in TORCHRL.items()}
    return found


def reference(problem: Problem, resets: Tensor) -> Values:
    """The results of float64 torch.nn, a call for each piece between resets."""
    exact = replace(problem, x=problem.x.double(), states=tuple(state.double() for state in problem.states))
    engine = split_engine(exact, problem.module(dtype=torch.float64), resets)
    return engine.values(engine.run())


def split_engine(problem: Problem, module: nn.Module, resets: Tensor, *, at_each_step: bool = False) -> Engine:
    return module_engine(problem, module, partial(split_at_resets, module, resets, at_each_step), _summed)


def map_state(function: Any, state: Any) -> Any:
    return tuple(map(function, state)) if isinstance(state, tuple) else function(state)


def split_at_resets(module: nn.Module, resets: Tensor, at_each_step: bool, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    """A call of torch.nn's layer from each step at which any row resets to the next one. ``at_each_step``: a call of
    one step for each, but one call where nothing resets, as sb3-contrib does."""
    firsts = resets.any(1).nonzero().flatten().tolist()
    if at_each_step and firsts:
        firsts = range(len(x))
    keep, outputs = (~resets).to(x.dtype).unsqueeze(2), []
    for first, end in pairwise(sorted({0, *firsts, len(x)})):
        state = map_state(keep[first].mul, state)
        output, state = module(x[first:end], state)
        outputs.append(output)
    return torch.cat(outputs), state


def masked_loop(cell: str, x: Tensor, state: Any, resets: Tensor, *weights: Tensor) -> tuple[Tensor, Any]:
    """A cell of torch.nn's at each step, its state multiplied by 0 where a row resets."""
    keep, outputs = (~resets).to(x.dtype).unsqueeze(2), []
    state = map_state(itemgetter(0), state)
    for t in range(len(x)):
        state = _STEPS[cell](x[t], map_state(keep[t].mul, state), *weights)
        outputs.append(layer_cases.hidden(state))
    return torch.stack(outputs), map_state(partial(torch.unsqueeze, dim=0), state)


class _Loop(nn.Module):
    def __init__(self, problem: Problem, *, compiled: bool = False) -> None:
        super().__init__()
        for name, weight in problem.weights.items():
            self.register_parameter(name, nn.Parameter(weight.clone()))
        if compiled:
            torch._dynamo.reset()  # otherwise it stops compiling after several shapes
        self.loop = torch.compile(masked_loop, fullgraph=True, dynamic=False) if compiled else masked_loop

    def engine(self, problem: Problem, resets: Tensor) -> Engine:
        def forward(x: Tensor, state: Any) -> tuple[Tensor, Any]:
            return self.loop(problem.case.cell, x, state, resets, *self.parameters())

        return module_engine(problem, self, forward, _summed)


def _first_result(session: Session, problem: Problem, compiled: _Loop) -> Row:
    """Seconds from weights to the first result; after it the loop is compiled for all densities."""
    case, resets = problem.case, resets_of(problem.case.shape, 0.01)

    def ours() -> None:
        engines(problem, resets, torchrl=False)["ours"].run()

    calls: Mapping[str, Any] = {"ours": ours, COMPILED: compiled.engine(problem, resets).run}
    sides = {name: Side([timed(call)[0]]) for name, call in calls.items()}
    what = f"resets, to the first result, {case.what}"
    return Row("resets", what, f"{case.cell} {case.shape}", session.threads, sides)


@torch.inference_mode(False)  # torchrl tries a backward when "scan" is made
def torchrl_engine(problem: Problem, resets: Tensor, backend: str) -> Engine:
    """torchrl's GRUModule or LSTMModule on a rollout. "scan" is its loop over the steps, "pad" makes a row of each
    episode. A state at a step that begins an episode is the one that it begins with."""
    from tensordict import TensorDict
    from torchrl import modules

    kind, (T, B) = problem.case.cell, resets.shape
    layer = getattr(nn, kind)(problem.case.shape.I, problem.case.shape.H, batch_first=True)
    layer.load_state_dict(problem.weights)
    states = ["h", "c"][: len(problem.states)]
    module = getattr(modules, f"{kind}Module")(
        **{kind.lower(): layer}, in_keys=["x", *states], out_keys=["output", *(("next", key) for key in states)],
        recurrent_backend=backend, default_recurrent_mode=True,
    )  # fmt: skip
    begins = resets.t().unsqueeze(2)

    def at_first_step(state: Tensor) -> Tensor:  # (B, T, 1, H)
        first = torch.where(resets[0].unsqueeze(1), 0, state[0])
        return torch.cat([first[:, None], first.new_zeros(B, T - 1, first.size(1))], 1).unsqueeze(2)

    def forward(x: Tensor, state: Any) -> tuple[Tensor, Any]:
        given = state if isinstance(state, tuple) else (state,)
        rollout = TensorDict({"x": x.transpose(0, 1), "is_init": begins}, [B, T])
        rollout.update({key: at_first_step(each) for key, each in zip(states, given, strict=True)})
        done = module(rollout)
        last = tuple(done["next", key][:, -1].transpose(0, 1) for key in states)
        return done["output"].transpose(0, 1), last if len(last) > 1 else last[0]

    return module_engine(problem, layer, forward, _summed)

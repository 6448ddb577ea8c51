"""Layers with options that torch.nn's do not have: beside ours without the option, and beside loops written by hand.

Every side draws its masks in each call. Results are compared with given masks: those of one seed for ours, the
reference and the loops. Keras, which draws its own, is compared in evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

import seqcls_fast as sf
from seqcls_fast.toolkit.timing import timed

from .. import keras_engines, layer_cases
from ..harness import Session
from ..layer_cases import Case, Problem, Shape, Values
from ..option_loops import SEED, Masks, draw, given, loop
from ..rows import Row, Side
from ..torch_engines import UNROLLED, Engine, module_engine

SHAPES = (Shape(1, 50, 50, 64), Shape(8, 10, 16, 32), Shape(64, 100, 128, 128), Shape(32, 50, 128, 256))
LOOP_GOALS = dict(zip(SHAPES, (10.0, 10.0, 2.5), strict=False))
PLAIN, LOOP, COMPILED = "ours without the option", "torch loop", "torch.compile of the loop"


@dataclass(frozen=True)
class Kind:
    """A layer with an option."""

    cell: str
    name: str
    options: dict[str, Any]
    most: float | None = None  # the time that was aimed at, as a multiple of the plain layer's, where H >= 128
    in_keras: dict[str, Any] = field(default_factory=dict)  # Keras's name for the option

    @property
    def is_random(self) -> bool:
        return any(name.startswith(("zoneout", "recurrent_dropout")) for name in self.options)

    def module(self, shape: Shape) -> nn.Module:
        torch.manual_seed(0)
        module = getattr(sf, self.cell)(shape.I, shape.H, **self.options)
        with torch.no_grad():
            for name, weight in module.named_parameters():
                if "_ln_" in name:  # gains of 1 and biases of 0 would hide an error, and rounding grows with the gains
                    weight.mul_(0.3).add_(0.03 * torch.randn_like(weight))
        return module


DROPPED = {"recurrent_dropout": 0.25}
KINDS = (
    *(
        Kind(cell, "layer normalisation", {"layer_norm": True}, 1.3 if cell == "LSTM" else None)
        for cell in layer_cases.CELLS
    ),
    *(Kind(cell, "dropout of the state", DROPPED, 1.08, DROPPED) for cell in layer_cases.CELLS),
    *(
        Kind(cell, "dropout of the candidate", DROPPED | {"recurrent_dropout_kind": "candidate"}, 1.2)
        for cell in ("GRU", "LSTM")
    ),
    *(Kind(cell, "zoneout", {"zoneout": 0.1}, 1.2) for cell in layer_cases.CELLS),
    Kind("LSTM", "peepholes", {"peephole": True}),
    Kind("GRU", "reset before the product", {"reset_after": False}, in_keras={"reset_after": False}),
)


def measure(session: Session) -> Iterator[Row]:
    for training in (True, False):
        for kind in KINDS[::4] if session.quick else KINDS:
            if training or not kind.is_random:  # in evaluation nothing is dropped
                for shape in SHAPES[1:2] if session.quick else SHAPES:
                    yield from _rows(session, kind, Case(kind.cell, shape, training=training))


def _rows(session: Session, kind: Kind, case: Case) -> Iterator[Row]:
    problem = build(kind, case)
    with layer_cases.grad_mode(case):
        built = engines(problem, kind)
        if case.shape.T <= UNROLLED and session.threads == 1 and session.asks("torch.compile"):
            torch._dynamo.reset()  # otherwise it stops compiling after several shapes
            compiled = loop_engine(problem, kind, torch.compile(loop, fullgraph=True, dynamic=False))
            yield _first_result(session, kind, problem, compiled)
            built[COMPILED] = compiled
        for name, backend in keras_engines.BACKENDS.items():
            if kind.in_keras and session.asks("Keras") and keras_engines.installed(backend):
                built[name] = keras_engines.engine(problem, backend, **kind.in_keras)
        row = Row("options", f"{kind.name}, {case.what}", case.name, session.threads, {}, goals=goals_of(kind, case))
        plain = layer_cases.build(case)
        others = {PLAIN: module_engine(plain, plain.module(sf), summed=itemgetter(0)).run}
        session.fill(row, built, partial(error_of, reference(problem, kind)), case.error_bound, others)
        yield row


def goals_of(kind: Kind, case: Case) -> dict[str, float]:
    goals = {LOOP: LOOP_GOALS[case.shape]} if case.shape in LOOP_GOALS else {}
    return goals | ({PLAIN: 1 / kind.most} if kind.most and case.shape.H >= 128 and case.training else {})


def _first_result(session: Session, kind: Kind, problem: Problem, compiled: Engine) -> Row:
    calls = {"ours": lambda: engines(problem, kind)["ours"].run(), COMPILED: compiled.run}
    what = f"{kind.name}, to the first result, {problem.case.what}"
    sides = {name: Side([timed(call)[0]]) for name, call in calls.items()}
    return Row("options", what, problem.case.name, session.threads, sides)


# -- engines, and what is right ---------------------------------------------------------------------------------------


def build(kind: Kind, case: Case) -> Problem:
    """The plain layer's input, and the weights of the layer with its option."""
    with torch.inference_mode(False):
        return replace(layer_cases.build(case), weights=kind.module(case.shape).state_dict())


def engines(problem: Problem, kind: Kind) -> dict[str, Engine]:
    ours = module_engine(problem, _module(problem, kind), summed=itemgetter(0))
    return {"ours": replace(ours, values=partial(_seeded, ours)), LOOP: loop_engine(problem, kind, loop)}


@torch.inference_mode(False)
def _module(problem: Problem, kind: Kind) -> nn.Module:
    module = kind.module(problem.case.shape)
    module.load_state_dict(problem.weights)
    return module.train(problem.case.training)


def _seeded(engine: Engine, _: Any = None) -> Values:
    torch.manual_seed(SEED)
    return engine.values(engine.run())


def reference(problem: Problem, kind: Kind) -> Values:
    """The results of the float64 reference with the masks of SEED; and in evaluation, which Keras is compared with."""
    exact, found = replace(problem, x=problem.x.double()), {}
    with sf.use_impl("reference"):
        for prefix, training in (("", problem.case.training), ("evaluated ", False)):
            module = _module(problem, kind).double().train(training)
            values = _seeded(module_engine(exact, module, summed=itemgetter(0)))
            found |= {f"{prefix}{name}": value for name, value in values.items()}
    return found


def error_of(expected: Values, values: Values) -> float:
    """The distance from the results with masks, or from those in evaluation if the values are."""
    if any(name.startswith("evaluated") for name in values):
        expected = {name: expected[name] for name in values}
    else:
        expected = {name: value for name, value in expected.items() if not name.startswith("evaluated")}
    return layer_cases.distance_from(expected, values, gradients=any("d x" in name for name in values))


def loop_engine(problem: Problem, kind: Kind, function: Callable[..., Tensor]) -> Engine:
    """Runs ``loop``, or what was compiled from it, with masks that each call draws."""
    module = _Weights(problem.weights)
    reset_after = kind.options.get("reset_after", True)

    def forward(masks: Callable[..., Masks], x: Tensor) -> tuple[Tensor, Tensor]:
        given_now = masks(kind.cell, kind.options, problem.case.shape)
        output = function(kind.cell, reset_after, x, dict(module.named_parameters()), given_now)
        return output, output[-1:]

    drawn, checked = (module_engine(problem, module, partial(forward, m), itemgetter(0)) for m in (draw, given))
    return replace(drawn, values=lambda _: checked.values(checked.run()))


class _Weights(nn.Module):
    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight.clone()))

"""Gradients of each sample of a batch: by torch.func's vmap(grad(...)), by a loop, and by JAX's vmap(grad(...)).

Of torch.nn's layers vmap only accepts LSTM.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import seqcls_fast as sf
from seqcls_fast.toolkit.timing import timed

from .. import layer_cases, peers
from ..harness import Session
from ..layer_cases import CELLS, SHAPES, Case, Values, last_hidden
from ..rows import Row, Side


def measure(session: Session) -> Iterator[Row]:
    for cell in CELLS:
        for shape in (SHAPES[2],) if session.quick else (SHAPES[2], SHAPES[6]):
            yield _row(session, Case(cell, shape, training=True))


def by_vmap(module: nn.Module, x: Tensor) -> Values:
    """The gradients of the sum of each sample's final h, (B, ...) by the name of the weight."""
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}

    def loss(weights: Values, one: Tensor) -> Tensor:
        return last_hidden(torch.func.functional_call(module, weights, (one[:, None],))).sum()

    return torch.func.vmap(torch.func.grad(loss), (None, 1))(weights, x)


def one_by_one(module: nn.Module, x: Tensor) -> Values:
    weights = dict(module.named_parameters())
    each = [torch.autograd.grad(last_hidden(module(one)).sum(), list(weights.values())) for one in x.split(1, 1)]
    return dict(zip(weights, map(torch.stack, zip(*each, strict=True)), strict=True))


def by_jax(problem: layer_cases.Problem) -> peers.Engine:
    import jax

    forward, weights, [x] = peers.jax_layer(problem)

    def gradient(weights: Any, one: Any) -> Any:
        return jax.grad(lambda w: forward(w, one[:, None])["h_n"].sum())(weights)

    return peers.jax_engine(jax.vmap(gradient, (None, 1)), weights, x)


def _row(session: Session, case: Case) -> Row:
    problem = layer_cases.build(case)
    expected = one_by_one(problem.module(dtype=torch.float64), problem.x.double())
    ways: dict[str, tuple[Any, Any]] = {
        "ours": (by_vmap, sf),
        "ours loop": (one_by_one, sf),
        "torch loop": (one_by_one, nn),
    }
    if case.cell == "LSTM":
        ways["torch vmap"] = (by_vmap, nn)
    engines = {
        name: peers.Engine(partial(way, problem.module(namespace), problem.x), lambda values: values)
        for name, (way, namespace) in ways.items()
    }
    if importlib.util.find_spec("jax"):
        engines["JAX vmap"] = by_jax(problem)
    errors, first = {}, {}
    for name, engine in engines.items():
        first[name], result = timed(engine.run)
        errors[name] = _error(engine.values(result), expected)
    good = [name for name in engines if errors[name] <= case.error_bound]
    row = Row("per_sample", "per-sample gradients", f"{case.cell} {case.shape}", session.threads, {})
    row.sides = {name: Side(note=f"WRONG: error {errors[name]:.1e}") for name in engines}
    if "ours" in good:
        row.sides |= session.time({name: engines[name].run for name in good}, {name: first[name] for name in good})
    for name, side in row.sides.items():
        side.error = errors[name]
    return row


def _error(values: Values, expected: Values) -> float:
    """The largest error of any gradient, each relative to its own largest entry."""
    return max(float((values[n].double() - want).abs().max() / want.abs().max()) for n, want in expected.items())

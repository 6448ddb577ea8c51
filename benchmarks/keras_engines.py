"""Keras's layers with torch and with JAX below them, for the options that Keras has: recurrent dropout, reset_after.

Keras draws masks of its own. So its results are checked in evaluation, where nothing is dropped, and timed in training.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from .layer_cases import GATES, Problem, Values
from .torch_engines import Engine

BACKENDS = {"Keras, torch": "torch", "Keras, JAX": "jax"}
ORDER = {"RNN": [0], "GRU": [1, 0, 2], "LSTM": [0, 1, 2, 3]}  # the places of Keras's gates among torch's
_LAYERS = {"RNN": "SimpleRNN", "GRU": "GRU", "LSTM": "LSTM"}
_loaded: dict[str, dict[str, Any]] = {}  # the modules of Keras by backend


def installed(backend: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in ("keras", backend))


def _modules() -> dict[str, Any]:
    return {name: module for name, module in sys.modules.items() if name.split(".")[0] == "keras"}


@contextlib.contextmanager
def keras_with(backend: str) -> Iterator[Any]:
    """Keras with this backend. A process imports Keras with one, so for another its modules are put aside."""
    others, variable = _modules(), os.environ.get("KERAS_BACKEND")
    for name in others:
        del sys.modules[name]
    sys.modules.update(_loaded.get(backend, {}))
    os.environ["KERAS_BACKEND"] = backend
    try:
        yield importlib.import_module("keras")
    finally:
        _loaded[backend] = _modules()
        for name in _loaded[backend]:
            del sys.modules[name]
        sys.modules.update(others)
        if variable is None:
            del os.environ["KERAS_BACKEND"]
        else:
            os.environ["KERAS_BACKEND"] = variable


def engine(problem: Problem, backend: str, **options: Any) -> Engine:
    """Calls a layer with these options of Keras's, and in training the backward of the output's sum."""
    with torch.inference_mode(False), keras_with(backend) as keras:
        layer = getattr(keras.layers, _LAYERS[problem.case.cell])(
            problem.case.shape.H, return_sequences=True, **options
        )
        B, T, I, _ = problem.case.shape
        layer.build((B, T, I))
        layer.set_weights(_weights(problem, options))
        make = _with_torch if backend == "torch" else _with_jax
        run, evaluate = make(layer, problem)
    return Engine(run, lambda _: _named(problem, evaluate()), partial(keras_with, backend))


def _ordered(problem: Problem, tensor: torch.Tensor) -> torch.Tensor:
    """The gates of a weight of torch's in Keras's order, or back: each order is its own inverse."""
    blocks = tensor.chunk(GATES[problem.case.cell])
    return torch.cat([blocks[gate] for gate in ORDER[problem.case.cell]])


def _weights(problem: Problem, options: dict[str, Any]) -> list[Any]:
    w_ih, w_hh, b_ih, b_hh = (_ordered(problem, weight) for weight in problem.weights.values())
    has_two = problem.case.cell == "GRU" and options.get("reset_after", True)
    bias = torch.stack([b_ih, b_hh]) if has_two else b_ih + b_hh
    return [w_ih.t().numpy(), w_hh.t().numpy(), bias.numpy()]


def _named(problem: Problem, found: list[torch.Tensor]) -> Values:
    """By torch's names: the output; or the gradients of x and of the two matrices."""
    if not problem.case.training:
        return {"evaluated output": found[0].transpose(0, 1)}
    d_x, *d_weights = found
    named = {
        f"evaluated d weight_{k}_l0": _ordered(problem, d.t()) for k, d in zip(("ih", "hh"), d_weights, strict=True)
    }
    return named | {"evaluated d x": d_x.transpose(0, 1)}


Calls = tuple[Callable[[], Any], Callable[[], list[torch.Tensor]]]


def _with_torch(layer: Any, problem: Problem) -> Calls:
    case = problem.case
    x = problem.x.transpose(0, 1).clone().requires_grad_(case.training)
    leaves = [x, *(weight.value for weight in layer.trainable_weights)]

    def call(training: bool) -> Any:
        if not case.training:
            return layer(x, training=False)
        for leaf in leaves:
            leaf.grad = None
        return layer(x, training=training).sum().backward()

    def evaluate() -> list[torch.Tensor]:
        output = call(training=False)
        return [leaf.grad for leaf in leaves[:3]] if case.training else [output]

    return partial(call, True), evaluate


def _with_jax(layer: Any, problem: Problem) -> Calls:
    import jax
    import jax.numpy as jnp

    x = jnp.asarray(problem.x.transpose(0, 1).contiguous().numpy())
    weights = [weight.value for weight in layer.trainable_weights]
    seeds = [[variable.value for variable in layer.non_trainable_variables]]  # the last ones, which the next call takes

    def forward(training: bool, x: Any, weights: Any, seeds: Any) -> Any:
        return layer.stateless_call(weights, seeds, x, training=training)

    def summed(*given: Any) -> Any:
        output, seeds = forward(*given)
        return output.sum(), seeds

    def train(*given: Any) -> Any:
        (_, seeds), (d_x, d_weights) = jax.value_and_grad(summed, (1, 2), has_aux=True)(*given)
        return [d_x, *d_weights[:2]], seeds

    call = train if problem.case.training else forward
    compiled = {
        training: jax.jit(partial(call, training)).lower(x, weights, seeds[0]).compile() for training in (True, False)
    }

    def run() -> Any:
        result, seeds[0] = compiled[True](x, weights, seeds[0])
        return jax.block_until_ready(result)

    def evaluate() -> list[torch.Tensor]:
        result, _ = compiled[False](x, weights, seeds[0])
        return [torch.tensor(jax.device_get(each)) for each in (result if problem.case.training else [result])]

    return run, evaluate

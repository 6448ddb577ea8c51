"""Derivatives of a call in both ways: gradcheck with every option, and derivatives of derivatives.

The expected numbers are torch's differences, or torch.nn's in float64. test_gradients.py does the same to rnn_layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.functional import hvp, jacobian
from torch.nn.utils.rnn import PackedSequence

import seqcls_fast as sf
from support.calls import EACH, EACH_MODULE, LAYERS, TERMS, Call, loss
from support.tolerances import assert_close_by_name
from support.twins import hx_of, x_of

pytestmark = pytest.mark.usefixtures("entry")

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "RNN relu": ("RNN", {"nonlinearity": "relu"}),
    "GRU 2 layers": ("GRU", {"num_layers": 2, "bidirectional": True}),
    "GRU without bias": ("GRU", {"bias": False, "batch_first": True}),
    "LSTM batch_first": ("LSTM", {"batch_first": True, "bidirectional": True}),
    "LSTM projected": ("LSTM", {"proj_size": 2, "num_layers": 2}),
}
WAYS = ("padded", "lengths", "packed", "unbatched", "no hx", "no output", "recomputed")
PAIRS = [(list(OPTIONS)[(k + shift) % len(OPTIONS)], way) for k, way in enumerate(WAYS) for shift in (0, 2)]


@pytest.mark.filterwarnings("ignore:seqcls_fast..rnn_forward. an autograd kernel was not registered")  # see below
@pytest.mark.parametrize(("name", "way"), PAIRS)
def test_gradcheck_of_modules(name: str, way: str) -> None:
    kind, options = OPTIONS[name]
    module: Any = getattr(sf, kind)(2, 3, dtype=torch.float64, **options)
    batch, lengths = (None, None) if way == "unbatched" else (3, torch.tensor([3, 0, 2]) if way == "lengths" else None)
    module.recompute_gates = way == "recomputed"
    shape = (3, 2) if batch is None else (3, 3, 2)
    rows, sizes = x_of(6, 2), torch.tensor([3, 2, 1])
    x = rows if way == "packed" else x_of(*shape)
    hx = () if way == "no hx" else hx_of(module, batch)
    states = list(hx) if isinstance(hx, tuple) else [hx]

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        given = rest[: len(states)]
        hx = None if not given else given if len(given) == 2 else given[0]
        weights = dict(zip(dict(module.named_parameters()), rest[len(states) :], strict=True))
        more: dict[str, Any] = {} if lengths is None else {"lengths": lengths}
        more |= {"want_output": False} if way == "no output" else {}
        order = torch.tensor([2, 0, 1])
        packed = PackedSequence(x, sizes, order, order.argsort()) if way == "packed" else x
        output, final = torch.func.functional_call(module, weights, (packed, hx), more)
        output = output.data if way == "packed" else output
        return tuple(t for t in (output, *(final if isinstance(final, tuple) else (final,))) if t is not None)

    leaves = [t.detach().requires_grad_() for t in (x, *states, *module.parameters())]
    assert gradcheck(run, leaves, fast_mode=way != "lengths")
    assert gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("kind", LAYERS)
def test_second_derivatives_of_recomputed_gates_warn_of_nothing(kind: str) -> None:
    call = Call(kind)
    call.ours.recompute_gates = True
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (first,) = torch.autograd.grad(loss(call()), call.inputs["x"], create_graph=True)
        first.square().sum().backward()


@EACH_MODULE
def test_gradcheck_of_every_class(kind: str) -> None:
    """By every element, of tiny modules; and of their gradients."""
    module: Any = getattr(sf, kind)(2, 2, dtype=torch.float64)
    lead = (2,) if "Cell" in kind else (2, 2)
    count = 2 if "LSTM" in kind else 1
    states = [x_of(*((2, 2) if "Cell" in kind else (1, 2, 2)), seed=k) for k in range(count)]
    names = dict(module.named_parameters())

    def run(x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        weights = dict(zip(names, rest[count:], strict=True))
        hx = rest[:count] if count == 2 else rest[0]
        result = torch.func.functional_call(module, weights, (x, hx))
        return tuple(torch.utils._pytree.tree_leaves(result))

    leaves = [t.detach().requires_grad_() for t in (x_of(*lead, 2), *states, *names.values())]
    assert gradcheck(run, leaves)
    assert gradgradcheck(run, leaves)


def compare(kind: str, function: Callable[[Call, Any], Any]) -> None:
    """A function of our module and of torch's gives the same tensors, none of which is zero throughout."""
    call = Call(kind)
    found = []
    for module in (call.ours, call.theirs):
        tensors = torch.utils._pytree.tree_leaves(function(call, module))
        found.append({str(k): t for k, t in enumerate(tensors)})
        module.zero_grad()
        for t in call.inputs.values():
            t.grad = None
    assert_close_by_name(*found, 8 * TERMS)
    assert all(t.any() for t in found[0].values())


def leaves_of(call: Call, module: Any) -> list[Tensor]:
    return [*module.parameters(), *call.inputs.values()]


@EACH
def test_second_and_third_derivatives(kind: str) -> None:
    def derivatives(call: Call, module: Any) -> Any:
        leaves = leaves_of(call, module)
        first = torch.autograd.grad(loss(call(module)), leaves, create_graph=True)
        assert all(t.requires_grad for t in first)
        product = torch.stack([(t * t.detach().cos()).sum() for t in first]).sum()
        second = torch.autograd.grad(product, leaves, create_graph=True)
        third = torch.autograd.grad(torch.stack([t.square().sum() for t in second]).sum(), leaves)
        return first, second, third

    compare(kind, derivatives)


@EACH
def test_second_derivatives_through_some_results_and_by_some_inputs(kind: str) -> None:
    def derivatives(call: Call, module: Any) -> Any:
        found = []
        for name in call(module):
            for x in (call.inputs["x"], call.inputs["h0"], next(module.parameters())):
                (first,) = torch.autograd.grad(call(module)[name].sin().sum(), x, create_graph=True)
                found.append(torch.autograd.grad(first.square().sum(), leaves_of(call, module), allow_unused=True))
        return [t for part in found for t in part if t is not None and t.any()]

    compare(kind, derivatives)


@EACH
def test_derivatives_by_the_incoming_gradient(kind: str) -> None:
    """The backward is linear in what comes in, and its derivative by that is a product with the Jacobian."""

    def derivatives(call: Call, module: Any) -> Any:
        results = list(call(module).values())
        incoming = [torch.ones_like(t).requires_grad_() for t in results]
        first = torch.autograd.grad(results, leaves_of(call, module), incoming, create_graph=True)
        return torch.autograd.grad(first, incoming, [t.detach().sin() for t in first])

    compare(kind, derivatives)


@EACH
def test_a_step_with_a_gradient_penalty(kind: str) -> None:
    def step(call: Call, module: Any) -> Any:
        results = call(module)
        (d_x,) = torch.autograd.grad(loss(results), call.inputs["x"], create_graph=True)
        (loss(results) + (d_x.norm(2, -1) - 1).square().mean()).backward()
        return [t.grad for t in leaves_of(call, module)]

    compare(kind, step)


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True will create a reference cycle")
@EACH
def test_backward_with_create_graph(kind: str) -> None:
    def twice(call: Call, module: Any) -> Any:
        leaves = leaves_of(call, module)
        loss(call(module)).backward(create_graph=True, inputs=leaves)
        first = [t.grad for t in leaves]
        return first, torch.autograd.grad(torch.stack([t.square().sum() for t in first]).sum(), leaves)

    compare(kind, twice)


@EACH
def test_batched_gradients(kind: str) -> None:
    def batched(call: Call, module: Any) -> Any:
        results = list(call(module).values())
        many = [torch.stack([t.detach().cos(), t.detach().sin(), torch.zeros_like(t)]) for t in results]
        leaves = leaves_of(call, module)
        return torch.autograd.grad(results, leaves, many, is_grads_batched=True)

    compare(kind, batched)


@EACH
@pytest.mark.parametrize("vectorize", [True, False])
def test_jacobians(kind: str, vectorize: bool) -> None:
    def jacobians(call: Call, module: Any) -> Any:
        names = list(call.inputs)
        run = lambda *given: tuple(call(module, **dict(zip(names, given, strict=True))).values())  # noqa: E731
        whole = jacobian(run, tuple(call.inputs.values()), vectorize=vectorize)
        _, product = hvp(lambda x: loss(call(module, x=x)), call.inputs["x"].detach(), call.inputs["x"].detach().cos())
        return [[t for t in part if t.any()] for part in whole], product

    compare(kind, jacobians)

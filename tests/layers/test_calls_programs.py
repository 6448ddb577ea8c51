"""Programs made of a call, in both ways of calling: make_fx, torch.compile, torch.export, torch.jit.trace, torch.fx.

A program holds our operators and is right for other numbers than it was made with.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from support.calls import EACH, EACH_MODULE, Call, close, equal, loss, numbered

pytestmark = [
    pytest.mark.usefixtures("entry"),
    pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning"),
]
SOME = pytest.mark.parametrize("kind", ["GRU", "LSTMCell", "rnn_layer"])  # where a call takes long


def flat_function(call: Call) -> Callable[..., Any]:
    return lambda *inputs: tuple(call(**dict(zip(call.inputs, inputs, strict=True))).values())


class Around(nn.Module):
    """A module that only calls ours."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.layer, self.is_cell, self.has_c = call.ours, call.is_cell, "c0" in call.inputs

    def forward(self, x: Tensor, h0: Tensor, c0: Tensor | None = None) -> Any:
        result = self.layer(x, (h0, c0) if self.has_c else h0)
        if self.is_cell:
            return (result[0], result[1]) if self.has_c else (result,)
        return (result[0], result[1][0], result[1][1]) if self.has_c else (result[0], result[1])


@EACH
def test_make_fx(kind: str) -> None:
    """Of the forward and of the gradients; the program is right for other numbers."""
    call = Call(kind)
    function = flat_function(call)

    def gradient(*inputs: Tensor) -> Any:
        leaves = [t.detach().requires_grad_() for t in inputs]
        return torch.autograd.grad(loss(numbered(function(*leaves))), leaves)

    for run in (function, gradient):
        inputs = [t.detach() for t in call.inputs.values()]
        with torch.set_grad_enabled(run is gradient):
            program = make_fx(run)(*inputs)
            others = [t.sin() for t in inputs]
            equal(numbered(program(*others)), numbered(run(*others)))
        targets = {str(node.target) for node in program.graph.nodes}
        assert "seqcls_fast.rnn_forward.default" in targets
        assert ("seqcls_fast.rnn_backward.default" in targets) is (run is gradient)


@SOME
@pytest.mark.parametrize("grad", [True, False])
def test_compiled_before_and_after_eager_calls(kind: str, grad: bool) -> None:
    call = Call(kind)
    for first in ("compiled", "eager"):
        torch._dynamo.reset()
        twin = torch.compile(call.ours, backend="aot_eager", fullgraph=True)
        with torch.set_grad_enabled(grad):
            plain = call() if first == "eager" else {}
            results = call(twin)
            equal(results, plain or call())
        if grad:
            leaves = [*call.inputs.values(), *call.ours.parameters()]
            equal(*(numbered(torch.autograd.grad(loss(r), leaves)) for r in (results, call())))
    torch._dynamo.reset()


@SOME
def test_a_compiled_backward_of_an_eager_call(kind: str) -> None:
    """Compiled autograd sees no change in place, and must still be right after one."""
    call = Call(kind)
    x, found = call.inputs["x"], []
    for compiled in (False, True):
        torch._dynamo.reset()
        x.grad = None
        h = call()["h_n"].mul_(2)
        backend = torch.compile(backend="aot_eager")
        with torch._dynamo.compiled_autograd._enable(backend) if compiled else nullcontext():
            h.sin().sum().backward()
        found.append({"d_x": x.grad})
    torch._dynamo.reset()
    close(*found)
    assert found[0]["d_x"].any()


@SOME
@pytest.mark.parametrize("strict", [True, False])
def test_exported(kind: str, strict: bool) -> None:
    call = Call(kind)
    inputs = [t.detach() for t in call.inputs.values()]
    arguments = (inputs[0], tuple(inputs[1:]) if len(inputs) == 3 else inputs[1])
    call.ours.requires_grad_(False)
    program = torch.export.export(call.ours, arguments, strict=strict)
    names = [str(node.target) for node in program.graph.nodes]
    assert any(name.startswith("seqcls_fast.rnn_") for name in names)
    equal(call(program.module(), x=inputs[0].sin()), call(x=inputs[0].sin()))


@EACH
@pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated", "ignore::torch.jit.TracerWarning")
def test_traced(kind: str) -> None:
    call = Call(kind)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            inputs = tuple(t.detach().requires_grad_(grad) for t in call.inputs.values())
            traced = torch.jit.trace(Around(call), inputs, check_trace=False)
            assert "seqcls_fast::rnn_" in str(traced.inlined_graph)
            others = [t.detach().sin().requires_grad_(grad) for t in inputs]
            found, wanted = numbered(traced(*others)), numbered(flat_function(call)(*others))
            equal(found, wanted)
            if grad:
                equal(*(numbered(torch.autograd.grad(loss(r), others)) for r in (found, wanted)))


@EACH_MODULE
def test_symbolic_trace(kind: str) -> None:
    call = Call(kind)
    plain = call.both()
    program = torch.fx.symbolic_trace(Around(call))
    assert [node.op for node in program.graph.nodes].count("call_module") == 1
    inputs = tuple(call.inputs.values())
    results = tuple(program(*inputs))
    equal(numbered(results), numbered(plain[name] for name in call()))
    leaves = [*call.ours.parameters(), *inputs]
    equal(*(numbered(torch.autograd.grad(loss(r), leaves)) for r in (numbered(results), call())))

"""One call of each module and of rnn_layer, beside the same call of torch.nn, for tests/layers/test_calls_*.py.

A call travels in one of two ways: through the eager entry in C++, or through Python alone. The fixture `entry` of
tests/conftest.py runs a test once for each way; the expected numbers are those of torch.nn, or the other way's bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqcls_fast as sf
from seqcls_fast.ops import rnn_layer
from support import twins
from support.tolerances import assert_close_by_name

try:
    from seqcls_fast import _eager
except ImportError:
    _eager = None  # type: ignore[assignment]
WHY_NOT_EAGER = "no eager entry in this build" if _eager is None else _eager.why_off  # None: there is one

B, I, H, T = twins.B, twins.I, twins.H, twins.T
TERMS = twins.TERMS
Named = dict[str, Tensor]


def python_way() -> AbstractContextManager[Any]:
    """Inside the block, calls go through Python alone."""
    return nullcontext() if _eager is None else _eager.off()


class Functional(sf.LSTM):
    """rnn_layer with the weights of an LSTM."""

    def forward(self, input: Tensor, hx: Any = None) -> Any:  # type: ignore[override]
        h0, c0 = hx or (None, None)
        output, h_n, c_n = rnn_layer(
            input, [self.weight_ih_l0], [self.weight_hh_l0], [self.bias_ih_l0], [self.bias_hh_l0], h0=h0, c0=c0,
            cell="lstm",
        )  # fmt: skip
        return output, (h_n, c_n)


LAYERS = ("RNN", "GRU", "LSTM")
CELLS = ("RNNCell", "GRUCell", "LSTMCell")
CLASSES: dict[str, tuple[Any, Any]] = {name: (getattr(sf, name), getattr(nn, name)) for name in (*LAYERS, *CELLS)}
CLASSES["rnn_layer"] = (Functional, nn.LSTM)
CLASSES |= {f"{name} step": CLASSES[name] for name in ("GRU", "LSTM")}  # a sequence of one step
EACH = pytest.mark.parametrize("kind", CLASSES)
EACH_MODULE = pytest.mark.parametrize("kind", [*LAYERS, *CELLS])


class Call:
    """Two modules with the same weights, ours and torch's, and leaves that are their inputs."""

    def __init__(self, kind: str, dtype: torch.dtype = torch.float64, **options: Any) -> None:
        self.kind, self.is_cell = kind, kind in CELLS
        self.ours, self.theirs = (module.to(dtype) for module in twins.pair(*CLASSES[kind], I, H, **options))
        self.inputs: Named = {}
        shapes: dict[str, tuple[int, ...]]
        if self.is_cell:
            shapes = {"x": (B, I), "h0": (B, H)} | ({"c0": (B, H)} if "LSTM" in kind else {})
            self.inputs = {name: twins.x_of(*shape, seed=k) for k, (name, shape) in enumerate(shapes.items())}
        else:
            hx = twins.hx_of(self.theirs)
            states = hx if isinstance(hx, tuple) else (hx,)
            x = twins.x_of(1 if "step" in kind else T, B, I)
            self.inputs = dict(zip(("x", "h0", "c0"), (x, *states), strict=False))
        self.inputs = {name: t.to(dtype).requires_grad_() for name, t in self.inputs.items()}

    def __call__(self, module: Any = None, **changed: Any) -> Named:
        """The results of a module (ours), by name. `changed` replaces inputs."""
        given = self.inputs | changed
        hx = given.get("h0")
        hx = hx if hx is None or "c0" not in self.inputs else (hx, given["c0"])
        result = (self.ours if module is None else module)(given["x"], hx)
        if self.is_cell:
            h, c = result if isinstance(result, tuple) else (result, None)
            found = {"h_n": h, "c_n": c}
        else:
            found = twins.named(*result)
        return {name: t for name, t in found.items() if t is not None}

    def gradients(self, results: Named, module: Any = None) -> twins.Tensors:
        """Gradients of all parameters and inputs, for fixed random cotangents. The graph is kept."""
        return twins.gradients(results, self.ours if module is None else module, **self.inputs)  # type: ignore[arg-type]

    def both(self, module: Any = None) -> twins.Tensors:
        """Results and gradients."""
        results = self(module)
        return {name: t.detach().clone() for name, t in results.items()} | self.gradients(results, module)

    def expected(self) -> twins.Tensors:
        """Those of torch.nn."""
        return self.both(self.theirs)


def close(found: Any, wanted: Any) -> None:
    assert_close_by_name(found, wanted, TERMS)


def equal(found: Any, wanted: Any) -> None:
    """The same bits, by name."""
    assert found.keys() == wanted.keys()
    assert [name for name, t in wanted.items() if not torch.equal(found[name], t)] == []


def numbered(tensors: Any) -> Named:
    """Tensors by their number in a list."""
    return {str(k): t for k, t in enumerate(tensors)}


def loss(results: Named) -> Tensor:
    """A sum whose gradient differs from element to element."""
    return torch.stack([(t * torch.arange(t.numel()).cos().view_as(t).to(t)).sum() for t in results.values()]).sum()


def nodes_of(results: Named) -> Iterator[Any]:
    """Every node of the graph behind the results."""
    waiting, seen = [t.grad_fn for t in results.values()], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [edge for edge, _ in node.next_functions]


def node_of(results: Named) -> Any:
    """Our node in the graph: the one whose edges lead to leaves, with a name that says what it is."""
    found = [
        node for node in nodes_of(results) if any("AccumulateGrad" in e.name() for e, _ in node.next_functions if e)
    ]
    (node,) = (n for n in found if any(word in n.name().lower() for word in ("layer", "rnn", "seqcls", "recurrent")))
    return node


def counted(function: Callable[..., Any]) -> tuple[Callable[..., Any], list[Any]]:
    """A function that does the same and notes the arguments of each call."""
    calls: list[Any] = []

    def note(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return function(*args, **kwargs)

    return note, calls

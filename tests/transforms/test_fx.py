"""torch.fx sees our layers and cells as leaves, as it sees torch.nn's; objects with `__torch_function__` pass through.

A graph is right if its text is that of the same model with torch.nn's layers, and if it computes what the model does.
Annotations are not postponed here, since torch cannot pickle a graph that has a string for one.
"""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torch.fx.passes.shape_prop import ShapeProp
from torch.fx.passes.split_module import split_module
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence

import seqcls_fast as sf

LAYERS, CELLS = ("RNN", "GRU", "LSTM"), ("RNNCell", "GRUCell", "LSTMCell")
T, B, I, H = 5, 4, 3, 6


class Model(nn.Module):
    """A layer between linear ones, with a cell behind it. `library` is torch.nn or ours."""

    def __init__(self, library: Any, name: str) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(I, I), nn.Sequential(nn.Linear(H, H), nn.BatchNorm1d(H))
        self.layer = getattr(library, name)(I, H, 2)
        self.cell = getattr(library, f"{name}Cell")(H, H)
        self.lstm = name == "LSTM"

    def forward(self, x: Tensor, hx: Any = None) -> Tensor:
        output, states = self.layer(self.before(x), hx)
        h = self.cell(output[-1], (states[0][0], states[1][0]) if self.lstm else states[0])
        return self.after(h[0] if self.lstm else h) + output.mean()


class Ragged(nn.Module):
    """The arguments that torch.nn lacks: lengths, as an input and as a list, and want_output."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.layer = getattr(sf, name)(I, H, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        output, _ = self.layer(x, lengths=lengths)
        _, states = self.layer(torch.ones(B, T, I), lengths=lengths, want_output=False)
        return output.sum() + self.layer(x, lengths=[1, 2, 3, 0])[0].sum() + states[0][0].sum()


def states_of(name: str, layers: int = 2) -> Any:
    h, c = torch.randn(layers, B, H), torch.randn(layers, B, H)
    return (h, c) if name == "LSTM" else h


def through_pickle(module: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(module))


def through_torch_save(module: nn.Module) -> Any:
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def in_two(module: fx.GraphModule) -> Any:
    """Split in front of the cell."""
    names = [node.name for node in module.graph.nodes]
    return split_module(module, nn.Module(), lambda node: int(names.index(node.name) >= names.index("cell")))


PASSES: dict[str, Callable[[fx.GraphModule], Any]] = {
    "traced": lambda m: m,
    "traced again": fx.symbolic_trace,
    "transformed": lambda m: fx.Transformer(m).transform(),
    "split": in_two,
    "fused": lambda m: fuse(m, inplace=True),
    "copied": copy.deepcopy,
    "pickled": through_pickle,
    "saved": through_torch_save,
}


@pytest.mark.parametrize("name", LAYERS)
def test_graphs_are_torchs(name: str) -> None:
    ours, theirs = (fx.symbolic_trace(Model(library, name)) for library in (sf, nn))
    assert ours.code == theirs.code
    assert [node.target for node in ours.graph.nodes if node.op == "call_module"] == [
        "before", "layer", "cell", "after.0", "after.1"
    ]  # fmt: skip
    ours.graph.lint()


@pytest.mark.parametrize("pass_name", PASSES)
@pytest.mark.parametrize("name", LAYERS)
def test_passes_keep_the_numbers(name: str, pass_name: str) -> None:
    model = Model(sf, name).eval()
    for hx in (None, states_of(name)):
        x = torch.randn(T, B, I, requires_grad=True)
        expected = model(x, hx)
        found = PASSES[pass_name](fx.symbolic_trace(model).eval())(x, hx)
        if pass_name == "fused":  # the linear layer has taken in the normalisation, which rounds differently
            torch.testing.assert_close(found, expected)
            continue
        assert torch.equal(found, expected)
        assert torch.equal(*(torch.autograd.grad(result.sum(), x)[0] for result in (found, expected)))


@pytest.mark.parametrize("name", LAYERS)
def test_shapes_are_propagated(name: str) -> None:
    traced = fx.symbolic_trace(Model(sf, name))
    ShapeProp(traced).propagate(torch.randn(T, B, I), states_of(name))
    (layer,) = (node for node in traced.graph.nodes if node.target == "layer")
    assert layer.meta["tensor_meta"][0].shape == (T, B, H)
    assert next(iter(layer.meta["nn_module_stack"].values()))[1] is getattr(sf, name)


@pytest.mark.parametrize("name", LAYERS)
def test_lengths_and_want_output_are_recorded(name: str) -> None:
    model = Ragged(name)
    traced = fx.symbolic_trace(model)
    first, second, third = (node for node in traced.graph.nodes if node.op == "call_module")
    assert set(first.kwargs) == {"lengths"}
    assert second.kwargs["want_output"] is False
    assert third.kwargs == {"lengths": [1, 2, 3, 0]}
    x, lengths = torch.randn(B, T, I), torch.tensor([5, 0, 2, 3])
    assert torch.equal(traced(x, lengths), model(x, lengths))


class OnlyState(nn.Module):
    """An input that is known while fx traces, and states that are not."""

    def __init__(self, name: str, layer: bool) -> None:
        super().__init__()
        self.layer = getattr(sf, name)(I, H)
        self.is_layer = layer

    def forward(self, h: Tensor, c: Tensor) -> Any:
        hx = (h, c) if "LSTM" in type(self.layer).__name__ else h
        if not self.is_layer:
            return self.layer(torch.ones(B, I), hx)
        packed = pack_padded_sequence(torch.ones(T, B, I), torch.tensor([5, 4, 4, 1]))
        return self.layer(torch.ones(T, B, I), hx), self.layer(packed, hx)[0].data


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_states_alone_may_be_proxies(name: str) -> None:
    layer = name in LAYERS
    model = OnlyState(name, layer)
    h, c = torch.randn(2, *([1] if layer else []), B, H)
    traced = fx.symbolic_trace(model)
    assert any(node.op == "call_module" for node in traced.graph.nodes)
    torch.testing.assert_close(traced(h, c), model(h, c), rtol=0, atol=0)


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_a_layer_itself_is_not_traced(name: str) -> None:
    """torch.nn's layers raise the same type, with a sentence about control flow."""
    with pytest.raises(fx.proxy.TraceError, match=f"torch.fx cannot trace seqcls_fast[.]{name} itself"):
        fx.symbolic_trace(getattr(sf, name)(I, H))
    with pytest.raises(fx.proxy.TraceError):
        fx.symbolic_trace(getattr(nn, name)(I, H))
    lonely = fx.Proxy(fx.Graph().placeholder("x"))  # its tracer belongs to no module
    with pytest.raises(fx.proxy.TraceError, match="itself"):
        getattr(sf, name)(I, H)(lonely)


class LeafTracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name == "0" or super().is_leaf_module(m, module_qualified_name)


class Doubled(sf.GRU):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output, h_n = super().forward(*args, **kwargs)
        return 2 * output, h_n


class Renamed(sf.GRU):
    pass


def hooked(before: bool) -> nn.Module:
    gru = sf.GRU(I, H)
    if before:
        gru.register_forward_pre_hook(lambda _, args: (2 * args[0],))
    else:
        gru.register_forward_hook(lambda _, args, result: (2 * result[0], result[1]))
    return gru


def replaced() -> nn.Module:
    gru = sf.GRU(I, H)
    old = gru.forward
    gru.forward = lambda x: (2 * old(x)[0], None)
    return gru


@pytest.mark.parametrize(
    ("make", "word"),
    [(lambda: hooked(True), "hooks"), (lambda: hooked(False), "hooks"), (lambda: Doubled(I, H), "own forward"),
     (replaced, "own forward")],
)  # fmt: skip
def test_nothing_runs_twice(make: Callable[[], nn.Module], word: str) -> None:
    """fx runs a hook, or the forward of a subclass, before ours sees the proxy. The node would run it once more."""
    model = nn.Sequential(make())
    with pytest.raises(fx.proxy.TraceError, match=f"torch.fx would run the {word} of '0' twice"):
        fx.symbolic_trace(model)
    x = torch.randn(T, B, I)
    traced = fx.GraphModule(model, LeafTracer().trace(model))
    assert torch.equal(traced(x)[0], model(x)[0])


def test_subclasses_without_a_forward_and_parametrized_layers_are_leaves() -> None:
    parametrized, x = sf.LSTM(I, H), torch.randn(T, B, I)
    parametrizations.weight_norm(parametrized, "weight_hh_l0")
    for layer in (Renamed(I, H), parametrized):
        model = nn.Sequential(layer)
        traced = fx.symbolic_trace(model)
        assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "output"]
        assert torch.equal(traced(x)[0], model(x)[0])


def test_a_pruned_layer_names_the_way_out() -> None:
    layer = prune.l1_unstructured(sf.GRU(I, H), "weight_hh_l0", amount=0.5)  # prunes in a hook
    with pytest.raises(fx.proxy.TraceError, match="is_leaf_module"):
        fx.symbolic_trace(nn.Sequential(layer))


# objects with __torch_function__


class Boxed:
    """A tensor in a box, which torch's functions open and whose results they box."""

    calls: ClassVar[list[Any]] = []

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.calls.append(function)
        return boxed(function(*opened(args), **opened(kwargs or {})))

    def __rmul__(self, factor: int) -> Any:
        return Boxed(factor * self.tensor)


def opened(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(map(opened, value))
    if isinstance(value, dict):
        return {name: opened(item) for name, item in value.items()}
    return value.tensor if isinstance(value, Boxed) else value


def boxed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: boxed(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(boxed, value))
    return Boxed(value) if isinstance(value, Tensor) else value


@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_objects_with_torch_function_take_the_call(name: str) -> None:
    """torch's regression test for gh-55868, for each argument."""
    layer = name in LAYERS
    module = getattr(sf, name)(I, H, *([2] if layer else []))
    x = torch.randn(*([T] if layer else []), B, I)
    h, c = torch.randn(2, *([2] if layer else []), B, H)
    hx, options = (h, c) if "LSTM" in name else h, {"lengths": torch.tensor([3, 5, 0, 1])} if layer else {}
    calls: list[tuple[Any, Any, dict[str, Any]]] = [(Boxed(x), None, {}), (Boxed(x), hx, {}), (x, boxed(hx), {})]
    if "LSTM" in name:
        calls.append((x, (h, Boxed(c)), {}))
    if layer:
        calls += [(x, hx, {"lengths": Boxed(options["lengths"])}), (Boxed(x), boxed(hx), boxed(options))]
        calls.append((Boxed(x), None, {"want_output": False}))
    for given, state, more in calls:
        Boxed.calls.clear()
        found = module(given, state, **more)
        assert [call.__self__ for call in Boxed.calls] == [module]
        expected = module(opened(given), opened(state), **opened(more))
        torch.testing.assert_close(opened(found), expected, rtol=0, atol=0)


def test_objects_that_decline_are_refused_by_torch() -> None:
    class Declines:
        @classmethod
        def __torch_function__(cls, *_: Any) -> Any:
            return NotImplemented

    for module in (sf.GRU(I, H), sf.GRUCell(I, H)):
        with pytest.raises(TypeError, match=r"no implementation found for .*forward"):
            module(Declines())


def test_a_subclass_s_own_forward_runs_once_for_an_object_with_torch_function() -> None:
    module, x = Doubled(I, H), torch.randn(T, B, I)
    output, _ = module(Boxed(x))
    assert torch.equal(output.tensor, module(x)[0])

"""convert() where a layer's class matters: keep_isinstance=, subclasses of torch's layers, and libraries that ask.

The libraries are stand-ins, which repeat what the library asks of a layer. Where a library is installed, the same is
tested with the library itself.
"""

import copy
import pickle
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import parametrizations

import seqcls_fast as sf
from seqcls_fast import _layer_classes, _recurrent, convert, revert
from support import other_libraries
from support.architectures import TERMS, results
from support.tolerances import assert_close_by_name

LAYERS = ("RNN", "GRU", "LSTM")
X = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def layer(kind: type[nn.Module], **options: Any) -> Any:
    torch.manual_seed(0)
    return kind(3, 4, dtype=torch.float64, **options)


def outputs_of(module: nn.Module, *inputs: Any, **options: Any) -> dict[str, Tensor]:
    return {str(k): v for k, v in enumerate(torch.utils._pytree.tree_leaves(module(*inputs, **options)))}


# keep_isinstance


@pytest.mark.parametrize("name", [*LAYERS, "RNNCell", "GRUCell", "LSTMCell"])
def test_isinstance_holds_for_torch_and_ours(name: str) -> None:
    module = layer(getattr(nn, name))
    convert(module, keep_isinstance=True)
    assert isinstance(module, getattr(nn, name))
    assert isinstance(module, getattr(sf, name))
    assert type(module).forward is getattr(sf, name).forward
    assert not isinstance(layer(getattr(sf, name)), getattr(nn, name))
    assert type(module) is type(pickle.loads(pickle.dumps(module))) is type(copy.copy(module))
    again = type(module)(3, 5)  # torch's constructor
    assert repr(again) == repr(getattr(nn, name)(3, 5))
    assert len(revert(module).swapped) == 1
    assert type(module) is getattr(nn, name)


def test_a_kept_layer_has_the_arguments_of_ours() -> None:
    module = layer(nn.LSTM)
    want = layer(sf.LSTM)(X, lengths=[5, 2], want_output=False)
    convert(module, keep_isinstance=True)
    output, states = module(X, lengths=[5, 2], want_output=False)
    assert output is None
    assert all(torch.equal(got, expected) for got, expected in zip(states, want[1], strict=True))
    module.recompute_gates = True
    assert torch.equal(module(X)[0], layer(sf.LSTM)(X)[0])


def test_only_true_false_and_none() -> None:
    with pytest.raises(TypeError, match=r"^keep_isinstance: expected a bool or None but got int$"):
        convert(nn.LSTM(3, 4), keep_isinstance=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("keep", [None, False, True])
def test_the_default_is_what_dynamo_takes(keep: bool | None, kept: bool) -> None:
    module = layer(nn.GRU)
    convert(module, keep_isinstance=keep)
    assert isinstance(module, nn.GRU) == (kept if keep is None else keep)


def test_a_torch_without_the_switch_takes_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._dynamo, "config", types.SimpleNamespace())
    module = layer(nn.LSTM)
    convert(module)
    assert isinstance(module, nn.LSTM)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("keep", [False, True])
def test_fullgraph_needs_the_switch_where_isinstance_holds(name: str, keep: bool, kept: bool) -> None:
    module = layer(getattr(nn, name))
    want = outputs_of(module, X)
    convert(module, keep_isinstance=keep)
    torch.compiler.reset()
    if keep and not kept:
        with pytest.raises(torch._dynamo.exc.Unsupported, match="Attempted to wrap RNN, GRU, or LSTM"):
            torch.compile(module, backend="eager", fullgraph=True)(X)
        assert_close_by_name(outputs_of(torch.compile(module, backend="eager"), X), want, TERMS)
    else:
        assert_close_by_name(outputs_of(torch.compile(module, backend="eager", fullgraph=True), X), want, TERMS)


@pytest.mark.parametrize("strict", [False, True])
def test_export_of_a_kept_layer(strict: bool) -> None:
    module = layer(nn.LSTM)
    want = outputs_of(module, X)
    convert(module, keep_isinstance=True)
    program = torch.export.export(module, (X,), strict=strict).module()
    assert_close_by_name(outputs_of(program, X), want, TERMS)


def test_per_sample_gradients_of_a_kept_layer() -> None:
    module = layer(nn.GRU)
    convert(module, keep_isinstance=True)
    weights = dict(module.named_parameters())

    def loss(weights: Any, x: Tensor) -> Tensor:
        return functional_call(module, weights, (x.unsqueeze(1),))[0].square().sum()

    each = vmap(grad(loss), (None, 1))(weights, X)
    module(X)[0].square().sum().backward()
    assert_close_by_name({k: v.sum(0) for k, v in each.items()}, {k: v.grad for k, v in weights.items()}, TERMS)


# subclasses


class Named(nn.LSTM):
    """Adds a constructor, an attribute and a method, and overrides none of torch's."""

    def __init__(self, *args: Any, note: str = "", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.note = note

    def initial(self, batch: int) -> Tensor:
        return torch.zeros(self.num_layers, batch, self.hidden_size)


class Doubled(nn.GRU):
    def forward(self, input: Any, hx: Any = None) -> Any:
        output, h_n = super().forward(input, hx)
        return 2 * output, h_n


class DoubledTwice(Doubled):
    def forward(self, *args: Any) -> Any:
        with torch.no_grad():
            output, h_n = super().forward(*args)
        return 2 * output, h_n


T = TypeVar("T")


class GenericCell(nn.GRUCell, Generic[T]):
    __slots__ = ("extra",)


class Meta(type):
    pass


class WithMeta(nn.RNN, metaclass=Meta):
    def flatten_parameters(self) -> None:
        pass


@pytest.mark.parametrize("kind", [Named, DoubledTwice, GenericCell, WithMeta, other_libraries.ForecastingLSTM])
def test_subclasses_keep_their_own_methods(kind: type[nn.Module]) -> None:
    module = layer(kind)
    x = X[0] if kind is GenericCell else X
    before, shown = results(module, x) if kind is not DoubledTwice else outputs_of(module, x), repr(module)
    want = outputs_of(module, x)
    assert convert(module).swapped == {"": f"{kind.__module__}.{kind.__qualname__}"}
    assert isinstance(module, _recurrent.RecurrentLayers | _recurrent.RecurrentCell)
    assert isinstance(module, kind)
    assert repr(module) == shown
    if kind is not DoubledTwice:
        assert_close_by_name(results(module, x), before, TERMS)
    for other in module, copy.deepcopy(module), copy.copy(module), pickle.loads(pickle.dumps(module)):
        assert type(other) is type(module)
        assert_close_by_name(outputs_of(other, x), want, TERMS)
    assert convert(module).swapped == {}
    assert revert(module).swapped == {"": f"{kind.__module__}.{kind.__qualname__}"}
    assert type(module) is kind
    assert all(torch.equal(got, want[k]) for k, got in outputs_of(module, x).items())


def test_a_subclass_runs_our_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[nn.Module] = []
    forward = sf.GRU.forward
    module = layer(DoubledTwice)
    convert(module)
    with monkeypatch.context() as patch:
        patch.setattr(_recurrent.RecurrentLayers, "forward", lambda *args: calls.append(args[0]) or forward(*args))
        module(X)
    assert calls == [module]


def test_attributes_and_constructor_of_a_subclass() -> None:
    module = layer(Named, note="kept", num_layers=2)
    convert(module)
    assert (module.note, module.initial(3).shape) == ("kept", (2, 3, 4))
    assert pickle.loads(pickle.dumps(module)).note == "kept"
    other = type(module)(3, 5, note="new")
    assert (other.note, other(X.float())[0].shape) == ("new", (5, 2, 5))
    assert module(X, lengths=[5, 2])[0][2:, 1].count_nonzero() == 0


@pytest.mark.parametrize("first", ["convert", "parametrize"])
def test_a_parametrized_subclass(first: str) -> None:
    module, twin = layer(Named), layer(Named)
    parametrizations.weight_norm(twin, "weight_hh_l0")
    if first == "convert":
        convert(module)
    parametrizations.weight_norm(module, "weight_hh_l0")
    convert(module)
    assert isinstance(module, sf.LSTM)
    assert_close_by_name(results(module, X), results(twin, X), TERMS)
    with pytest.raises(RuntimeError, match="Serialization of parametrized modules"):
        pickle.dumps(module)
    assert type(copy.deepcopy(module)) is type(module)
    revert(module)
    assert torch.nn.utils.parametrize.type_before_parametrizations(module) is Named


def test_a_subclass_of_a_converted_class_is_pickled_by_its_name() -> None:
    module = layer(nn.GRU)
    convert(module, keep_isinstance=True)
    derived = type("Derived", (type(module),), {"__module__": __name__})
    globals()["Derived"] = derived
    try:
        assert type(pickle.loads(pickle.dumps(derived(3, 4)))) is derived
    finally:
        del globals()["Derived"]


def subclass(base: type = nn.LSTM, **members: Any) -> Callable[[], nn.Module]:
    return lambda: type("Sub", (base,), members)(3, 4)


def with_attribute(name: str) -> nn.Module:
    module = Named(3, 4)
    setattr(module, name, 1)
    return module


def with_weights_of_its_class() -> nn.Module:
    module = subclass(nn.GRUCell)()
    type(module).weight_hh = property(lambda self: self.other)  # type: ignore[attr-defined]
    return module


NO_SUPER = "its class has a forward of its own that calls no super().forward"
LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "own forward": (subclass(forward=lambda self, x: x), NO_SUPER),
    "forward is no function": (subclass(forward=torch.relu), NO_SUPER),
    "forward deeper": (lambda: type("Sub", (type(subclass(forward=lambda self, x: x)()),), {})(3, 4), NO_SUPER),
    "hook": (subclass(check_forward_args=print), "its class overrides check_forward_args, which our layers do not"),
    "registry": (subclass(__init_subclass__=print), "its class overrides __init_subclass__, which"),
    "weights": (with_weights_of_its_class, "its class overrides weight_hh, which"),
    "flat": (subclass(pack=lambda self: self._flat_weights), "pack of its class uses _flat_weights, which our layers"),
    "private": (subclass(nn.GRU, _run=print), "it has an attribute _run, which is the name of one of ours"),
    "attribute": (lambda: with_attribute("_weights"), "it has an attribute _weights, which is the name of one of ours"),
}


@pytest.mark.parametrize("case", LEFT)
def test_subclasses_that_are_left(case: str) -> None:
    make, reason = LEFT[case]
    module = make()
    kind = type(module)
    (left,) = convert(module, keep_isinstance=True).left
    assert left.reason.startswith(reason)
    assert type(module) is kind


def test_what_torchs_forward_calls_and_ours_does_not_is_known() -> None:
    """Everything of torch's layers that their forward reaches is on the list, but what changes no result."""
    known = {name for kind in (nn.RNNBase, nn.RNN, nn.GRU, nn.LSTM) for name in vars(kind)}
    known -= {"forward", "__init__", "flatten_parameters"}
    for kind in (nn.RNN, nn.GRU, nn.LSTM):
        waiting, seen = ["forward"], set[str]()
        while waiting:
            code = getattr(getattr(kind, waiting.pop()), "__code__", None)
            found = ({*code.co_names} if code else set()) & known - seen
            seen |= found
            waiting += found
        assert "permute_hidden" in seen
        assert seen <= _layer_classes._IGNORED


# torchrl


EPISODES = torch.tensor([5, 2])


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
@pytest.mark.parametrize("keep", [None, True])
def test_layers_of_modules_that_ask_keep_isinstance(name: str, keep: bool | None) -> None:
    module = getattr(other_libraries, f"{name}Module")(layer(getattr(nn, name), batch_first=True))
    model = nn.ModuleDict({"policy": module, "other": layer(getattr(nn, name))})
    x = X.transpose(0, 1)
    want = outputs_of(module, x, EPISODES)
    with torch._dynamo.config.patch(allow_rnn=False):
        assert len(convert(model, keep_isinstance=keep).swapped) == 2
    assert isinstance(module.layer, getattr(sf, name))
    assert isinstance(model["other"], getattr(nn, name)) == bool(keep)
    assert_close_by_name(outputs_of(module, x, EPISODES), want, TERMS)


def test_layers_of_modules_that_ask_are_left_without_isinstance() -> None:
    derived = type("Policy", (other_libraries.LSTMModule,), {"__module__": "torchrl"})
    shared = layer(nn.LSTM, batch_first=True)
    model = nn.ModuleList([shared, derived(shared), nn.LSTM(3, 4)])
    report = convert(model, keep_isinstance=False)
    assert report.swapped == {"2": "torch.nn.LSTM"}
    assert [(left.name, left.reason) for left in report.left] == [
        ("0", "it is held by torchrl's Policy at '1', which asks for torch's class by isinstance: "
              "use keep_isinstance=True")
    ]  # fmt: skip
    assert convert(model, keep_isinstance=True).swapped == {"0": "torch.nn.LSTM"}


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_torchrl_itself(name: str) -> None:
    modules = pytest.importorskip("torchrl.modules", reason="the real torchrl")
    tensordict = pytest.importorskip("tensordict")
    keys = ["x", "h", "c"][: 3 if name == "LSTM" else 2]
    out = ["y", *[("next", key) for key in keys[1:]]]
    module = getattr(modules, f"{name}Module")(input_size=3, hidden_size=4, in_keys=keys, out_keys=out)
    starts = torch.zeros(2, 6, 1, dtype=torch.bool)
    starts[:, 0] = starts[0, 3] = True  # an episode ends inside the first row
    states = {key: torch.zeros(2, 6, 1, 4) for key in keys[1:]}
    data = tensordict.TensorDict({"x": torch.randn(2, 6, 3), "is_init": starts, **states}, [2, 6])
    with modules.set_recurrent_mode(True):
        want = module(data.clone())["y"]
        assert len(convert(module).swapped) == 1
        assert_close_by_name({"y": module(data.clone())["y"]}, {"y": want}, TERMS)


# opacus


@pytest.fixture
def validator(monkeypatch: pytest.MonkeyPatch) -> type[other_libraries.ModuleValidator]:
    """A program that has imported opacus."""
    standin = type("ModuleValidator", (other_libraries.ModuleValidator,), {
        "VALIDATORS": dict(other_libraries.ModuleValidator.VALIDATORS),
        "FIXERS": dict(other_libraries.ModuleValidator.FIXERS),
    })  # fmt: skip
    monkeypatch.setitem(sys.modules, "opacus.validators", types.SimpleNamespace(ModuleValidator=standin))  # type: ignore[arg-type]
    return standin


@pytest.mark.parametrize("keep", [False, True])
def test_opacus_still_refuses_and_fixes(validator: type[other_libraries.ModuleValidator], keep: bool) -> None:
    model = nn.ModuleList([nn.LSTM(3, 4), nn.RNN(3, 4), Named(3, 4)])
    before = validator.validate(model)
    convert(model, keep_isinstance=keep)
    assert validator.validate(model) == before == ["nn.LSTM is not supported"]
    assert isinstance(validator.FIXERS[type(model[0])](model[0]), nn.Linear)


def test_an_entry_of_opacus_is_not_replaced(validator: type[other_libraries.ModuleValidator]) -> None:
    validator.VALIDATORS[sf.LSTM] = lambda module: "another"
    model = nn.LSTM(3, 4)
    convert(model, keep_isinstance=False)
    assert validator.validate(model) == ["another"]


def test_layers_inside_the_wrapper_of_opacus_are_left() -> None:
    hooked = nn.ModuleList([nn.LSTM(3, 4)])
    hooked.autograd_grad_sample_hooks = []  # type: ignore[assignment]
    model = nn.ModuleDict({"wrapped": other_libraries.GradSampleModule(nn.ModuleList([nn.GRUCell(3, 4)])),
                           "hooked": hooked, "free": nn.LSTM(3, 4)})  # fmt: skip
    report = convert(model, keep_isinstance=True)
    assert report.swapped == {"free": "torch.nn.LSTM"}
    assert [left.name for left in report.left] == ["wrapped._module.0", "hooked.0"]
    assert all(left.reason.startswith("opacus has added its hooks") for left in report.left)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_opacus_itself(kind: type[nn.Module], keep: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opacus = pytest.importorskip("opacus", reason="the real opacus")
    validator = opacus.validators.ModuleValidator
    model = nn.ModuleList([kind(3, 4)])
    before = [str(error) for error in validator.validate(model)]
    convert(model, keep_isinstance=keep)
    assert [str(error) for error in validator.validate(model)] == before != []
    assert type(validator.fix(model)[0]).__name__ == f"DP{kind.__name__}"
    (left,) = convert(opacus.GradSampleModule(nn.ModuleList([nn.Linear(3, 3), kind(3, 4)]))).left
    assert left.name == "_module.1"


# pytorch-forecasting


@pytest.mark.parametrize("lengths", [None, EPISODES, torch.tensor([5, 0])])
def test_lengths_of_zero_around_our_forward(lengths: Tensor | None) -> None:
    module = layer(other_libraries.ForecastingLSTM)
    want = outputs_of(module, X, lengths=lengths)
    assert len(convert(module).swapped) == 1
    assert_close_by_name(outputs_of(module, X, lengths=lengths), want, TERMS)


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_pytorch_forecasting_itself(name: str) -> None:
    rnn = pytest.importorskip("pytorch_forecasting.models.nn.rnn", reason="the real pytorch-forecasting")
    module = layer(getattr(rnn, name), batch_first=True)
    x, lengths = X.transpose(0, 1), torch.tensor([5, 0])
    want = outputs_of(module, x, lengths=lengths)
    assert len(convert(module).swapped) == 1
    assert isinstance(module, rnn.RNN)
    assert_close_by_name(outputs_of(module, x, lengths=lengths), want, TERMS)
    assert module.repeat_interleave(module(x)[1], 2) is not None

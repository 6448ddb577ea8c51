"""convert() and revert() on single layers: what they keep, which layers they leave, and which models they refuse.

Results are compared with those of the same layer before. convert() only changes a module's class, so everything that
torch keeps in its dictionaries needs one test that it still has an effect, not one for each shape of a layer. All run
for both kinds of classes that a layer may get: ours alone, and ours and torch's at once. Whole models are in
test_convert_models.py, subclasses and what asks for isinstance in test_convert_classes.py.
"""

import copy
import functools
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import seqcls_fast as sf
from seqcls_fast.conversion import ConvertReport, Left, convert, revert
from support.architectures import TERMS, build, kinds, results
from support.tolerances import assert_close_by_name

pytestmark = pytest.mark.usefixtures("kept")
CLASSES = ("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell")


def layer(name: str = "LSTM", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return getattr(nn, name)(3, 4, dtype=torch.float64, **options)


def x_of(module: nn.Module) -> Tensor:
    shape = (2, 3) if isinstance(module, nn.RNNCellBase) else (5, 2, 3)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def run(module: nn.Module) -> dict[str, Tensor]:
    return results(module, x_of(module))


# one layer


@pytest.mark.parametrize("name", CLASSES)
def test_the_model_may_be_a_layer_itself(name: str, kept: bool) -> None:
    module = layer(name)
    before, parameters, shown = run(module), list(module.parameters()), repr(module)
    assert convert(module).swapped == {"": f"torch.nn.{name}"}
    assert isinstance(module, getattr(sf, name))
    assert isinstance(module, getattr(nn, name)) == kept
    assert repr(module) == shown
    assert all(new is old for new, old in zip(module.parameters(), parameters, strict=True))
    assert_close_by_name(run(module), before, TERMS)
    assert revert(module).swapped == {"": f"seqcls_fast.{name}"}
    assert type(module) is getattr(nn, name)
    assert vars(module).keys() == vars(layer(name)).keys()


@pytest.mark.parametrize("options", [
    {"name": "GRU", "num_layers": 2, "bidirectional": True, "bias": False}, {"batch_first": True}, {"proj_size": 2},
    {"name": "RNN", "nonlinearity": "relu"}, {"name": "RNNCell", "nonlinearity": "relu"},
])  # fmt: skip
def test_options_are_read_from_the_layer(options: dict[str, Any]) -> None:
    module = layer(**options)
    before = run(module)
    convert(module)
    assert_close_by_name(run(module), before, TERMS)


def test_twice_is_once_and_ours_stay_ours() -> None:
    model = nn.ModuleList([nn.LSTM(3, 4), sf.LSTM(3, 4), sf.GRUCell(3, 4)])
    assert sf.convert(model) == sf.ConvertReport({"0": "torch.nn.LSTM"}, ())
    assert convert(model) == ConvertReport({}, ())
    assert revert(model) == ConvertReport({"0": "seqcls_fast.LSTM"}, ())
    assert revert(model) == ConvertReport({}, ())
    assert kinds(model)[1:] == [nn.LSTM, sf.LSTM, sf.GRUCell]
    assert convert(model).swapped == {"0": "torch.nn.LSTM"}


def test_a_shared_layer_is_swapped_once() -> None:
    shared = nn.GRU(3, 3)
    model = nn.ModuleDict({"a": shared, "b": nn.ModuleList([shared])})
    assert convert(model).swapped == {"a": "torch.nn.GRU"}
    assert model["b"][0] is shared is model["a"]


WRITES: dict[str, Callable[[Any], Any]] = {
    "attribute": lambda m: setattr(m, "weight_hh_l0", nn.Parameter(m.weight_hh_l0.detach() * 2)),
    "entry": lambda m: m._parameters.update(weight_hh_l0=nn.Parameter(m.weight_hh_l0.detach() * 2)),
    "to": lambda m: m.float().double(),
    "state_dict": lambda m: m.load_state_dict({k: v * 2 for k, v in m.state_dict().items()}),
    "assign": lambda m: m.load_state_dict({k: v * 2 for k, v in m.state_dict().items()}, assign=True),
}


@pytest.mark.parametrize("route", WRITES)
def test_weights_replaced_while_converted_are_torchs_after_revert(route: str) -> None:
    module = layer()
    run(module)
    convert(module)
    WRITES[route](module)
    want = run(module)
    revert(module)
    current = [getattr(module, name) for name in module._flat_weights_names]
    assert all(flat is weight for flat, weight in zip(module._flat_weights, current, strict=True))
    module.flatten_parameters()
    assert_close_by_name(run(module), want, TERMS)
    assert_close_by_name(run(copy.deepcopy(module)), want, TERMS)


def test_revert_flattens_for_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    flattened: list[nn.Module] = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda module: flattened.append(module))
    model = nn.ModuleList([nn.LSTM(3, 4), nn.GRUCell(3, 4)])
    flattened.clear()
    convert(model)
    assert flattened == []
    revert(model)
    assert flattened == [model[0]]


# hooks and reparametrizations


def hooks_on(module: nn.Module, called: list[str]) -> None:
    def note(name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: called.append(name)

    module.register_forward_pre_hook(note("forward_pre"))
    module.register_forward_hook(note("forward"))
    module.register_forward_hook(note("forward_kwargs"), with_kwargs=True, always_call=True)
    module.register_full_backward_pre_hook(note("backward_pre"))
    module.register_full_backward_hook(note("backward"))
    module.register_state_dict_pre_hook(note("state_dict_pre"))
    module.register_state_dict_post_hook(note("state_dict_post"))
    module.register_load_state_dict_pre_hook(note("load_pre"))
    module.register_load_state_dict_post_hook(note("load_post"))
    module.weight_hh_l0.register_hook(note("parameter"))
    module.weight_hh_l0.register_post_accumulate_grad_hook(note("accumulated"))


def test_hooks_of_every_kind_are_carried() -> None:
    def trace(converts: bool) -> list[str]:
        module, called = layer(), list[str]()
        hooks_on(module, called)
        if converts:
            convert(module)
        module.load_state_dict(module.state_dict())
        module(input=x_of(module))[0].sum().backward()
        return called

    assert trace(True) == trace(False)
    assert len(set(trace(True))) == 11


def old_weight_norm(module: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(module, "weight_hh_l0")


REPARAMETRIZE: dict[str, Callable[[nn.Module], Any]] = {
    "prune": lambda m: prune.l1_unstructured(m, "weight_hh_l0", amount=0.5),
    "old weight_norm": old_weight_norm,
    "weight_norm": lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m, "weight_hh_l0"),
    "orthogonal": lambda m: parametrizations.orthogonal(m, "weight_hh_l0"),
}
PARAMETRIZE = ("weight_norm", "spectral_norm", "orthogonal")


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("way", REPARAMETRIZE)
def test_reparametrized_weights_stay_live(way: str, used: bool) -> None:
    module, twin = layer().eval(), layer().eval()  # in training mode, each access to a spectral norm changes it
    for m in (module, twin):
        torch.manual_seed(2)  # spectral_norm starts from a random vector
        REPARAMETRIZE[way](m)
        if used:
            run(m)
    before, keys = run(twin), list(module.state_dict())
    assert convert(module).swapped == {"": "torch.nn.LSTM"}
    assert list(module.state_dict()) == keys
    assert_close_by_name(run(module), before, TERMS)
    with torch.no_grad():  # the weight changes with the tensors that it is computed from
        for m in (module, twin):
            for parameter in m.parameters():
                parameter.mul_(0.5)
    want = run(twin)
    assert_close_by_name(run(module), want, TERMS)
    assert revert(module).swapped == {"": "seqcls_fast.LSTM"}
    assert not isinstance(module, sf.LSTM)
    again = run(module)
    assert all(torch.equal(again[key], want[key]) for key in want)


@pytest.mark.parametrize("way", PARAMETRIZE)
def test_parametrizations_are_torchs_to_handle(way: str) -> None:
    module = layer().eval()
    REPARAMETRIZE[way](module)
    run(module)  # torch's layer now holds a computed weight, which deepcopy refuses
    shared_class = type(module)
    convert(module)
    assert parametrize.is_parametrized(module, "weight_hh_l0")
    assert issubclass(parametrize.type_before_parametrizations(module), sf.LSTM)
    assert type(module).__name__ == "ParametrizedLSTM"
    want = run(module)
    other = copy.deepcopy(module)
    parametrize.remove_parametrizations(other, "weight_hh_l0")
    assert type(other) is parametrize.type_before_parametrizations(module)
    assert_close_by_name({"output": run(other)["output 0"]}, {"output": want["output 0"]}, TERMS)
    revert(other)
    assert type(other) is nn.LSTM
    assert_close_by_name({"output": run(other)["output 0"]}, {"output": want["output 0"]}, TERMS)
    assert hasattr(shared_class, "weight_hh_l0")


def test_parametrized_after_convert() -> None:
    module = layer()
    convert(module)
    parametrizations.weight_norm(module, "weight_hh_l0")
    want = run(module)
    revert(module)
    assert parametrize.type_before_parametrizations(module) is nn.LSTM
    assert_close_by_name(run(module), want, TERMS)


def test_exchange_does_not_compute_a_parametrization() -> None:
    module = layer().train()
    parametrizations.spectral_norm(module, "weight_hh_l0")
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    convert(module)
    revert(module)
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())


# layers that are left


class MyLSTM(nn.LSTM):
    def forward(self, input: Tensor, hx: Any = None) -> Any:
        return nn.LSTM.forward(self, input, hx)


class LoRALSTM(nn.LSTM):
    pass


class LoraLayer(nn.Module):
    """A class with the name of PEFT's adapter layers."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class Wrap(nn.Module):
    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer


class ExplorationPolicy(nn.Module):
    """Its name contains "lora", but it is no adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.GRUCell(3, 4)


def patched() -> nn.Module:
    """Replaces forward() in the way that accelerate does."""
    module = nn.GRU(3, 4)
    module.forward = functools.partial(module.forward)  # type: ignore[method-assign]
    return module


def parametrized_subclass() -> nn.Module:
    return parametrizations.weight_norm(MyLSTM(3, 4), "weight_hh_l0")


QUANTIZED = torch.ao.nn.quantized.dynamic
LEFT: list[tuple[Callable[[], nn.Module], str, str, str]] = [
    (lambda: MyLSTM(3, 4), "", "test_convert.MyLSTM", "its class has a forward of its own that calls no super"),
    (lambda: LoRALSTM(3, 4), "", "test_convert.LoRALSTM", "it is an adapter, which may rely on torch's class"),
    (parametrized_subclass, "", "test_convert.MyLSTM", "its class has a forward of its own that calls no super"),
    (lambda: nn.RNNBase("GRU", 3, 4), "", "torch.nn.modules.rnn.RNNBase", "its class is none of torch's layers"),
    (lambda: QUANTIZED.LSTM(3, 4), "", "torch.ao.nn.quantized.dynamic.modules.rnn.LSTM", "it is quantized or prepared"),
    (lambda: torch.ao.nn.quantized.reference.GRUCell(3, 4), "", "torch.ao.nn.", "it is quantized or prepared"),
    (lambda: torch.jit.script(nn.GRU(3, 4)), "", "torch.jit.ScriptModule of GRU", "it is scripted or traced"),
    (patched, "", "torch.nn.GRU", "its forward was replaced on the instance and would go on running"),
    (lambda: nn.LSTM(3, 4, dtype=torch.complex64), "", "torch.nn.LSTM", "its parameters are complex"),
    (lambda: LoraLayer(nn.GRUCell(3, 4)), "inner", "torch.nn.GRUCell", "it is wrapped by LoraLayer, which may rely"),
    (lambda: Wrap(nn.GRU(3, 4)), "base_layer", "torch.nn.GRU", "it is wrapped by Wrap, which may rely on torch's"),
]


@pytest.mark.filterwarnings("ignore")  # complex modules and torch.ao warn that they are experimental
@pytest.mark.parametrize(("make", "name", "kind", "reason"), LEFT, ids=lambda v: v if isinstance(v, str) else "")
def test_what_is_left_and_why(make: Callable[[], nn.Module], name: str, kind: str, reason: str) -> None:
    model = nn.ModuleDict({"a": nn.ModuleList([make()]), "b": nn.LSTM(3, 4)})
    classes = kinds(model)
    report = convert(model)
    assert report.swapped == {"b": "torch.nn.LSTM"}
    (left,) = report.left
    assert left.name == f"a.0.{name}".rstrip(".")
    assert left.type.startswith(kind)
    assert left.reason.startswith(reason.replace("Layer,", "Layer at 'a.0',").replace("Wrap,", "Wrap at 'a.0',"))
    assert kinds(model)[:-1] == classes[:-1]
    assert revert(model).left == ()


def test_what_is_no_recurrent_layer_is_not_mentioned() -> None:
    quantized = torch.ao.nn.quantized.dynamic.Linear(3, 4)
    model = nn.ModuleList([torch.jit.script(nn.Linear(3, 4)), quantized, nn.MultiheadAttention(4, 2)])
    assert convert(model) == ConvertReport({}, ())
    assert convert(ExplorationPolicy()).swapped == {"core": "torch.nn.GRUCell"}


def test_an_adapter_is_found_at_any_of_a_layers_places() -> None:
    shared = nn.GRU(3, 4)
    (left,) = convert(nn.ModuleList([shared, LoraLayer(shared)])).left
    assert left == Left("0", "torch.nn.GRU", "it is wrapped by LoraLayer at '1', which may rely on torch's class")


def test_revert_leaves_a_layer_patched_since() -> None:
    module = nn.LSTM(3, 4)
    convert(module)
    module.forward = functools.partial(module.forward)  # type: ignore[method-assign]
    assert [left.name for left in revert(module).left] == [""]
    assert isinstance(module, sf.LSTM)


# models that are refused

DISTRIBUTED = """
import torch, sys
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
import seqcls_fast as sf
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = dist.init_device_mesh("cpu", (1,))
wraps = {
    "DistributedDataParallel": nn.parallel.DistributedDataParallel,
    "FullyShardedDataParallel": lambda m: FullyShardedDataParallel(m, device_id=torch.device("cpu")),
    "FSDPModule": lambda m: fully_shard(m, mesh=mesh),
}
for name, wrap in wraps.items():
    wrapped = wrap(nn.Sequential(nn.LSTM(3, 4)))
    model = nn.ModuleList([nn.GRU(3, 4), wrapped])
    for call, verb in ((sf.convert, "convert"), (sf.revert, "revert")):
        for outer, place in ((wrapped, ""), (model, " at '1'")):
            try:
                call(outer)
                print("accepted", name)
            except RuntimeError as error:
                want = f"model: expected one not yet wrapped but got a {name}{place}: {verb} before wrapping"
                print("refused" if str(error) == want else error)
    assert type(model[0]) is nn.GRU and any(type(m) is nn.LSTM for m in wrapped.modules())
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
def test_wrapped_for_distributed_training_is_refused() -> None:
    """Runs in another process, because it needs a process group."""
    command = [sys.executable, "-W", "ignore", "-c", DISTRIBUTED]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n") == ["refused"] * 12 + [""]


@pytest.mark.parametrize("call", [convert, revert])
def test_only_modules(call: Callable[[Any], ConvertReport]) -> None:
    with pytest.raises(TypeError, match=r"^model: expected a torch.nn.Module but got type$"):
        call(nn.LSTM)


class Trouble:
    """An attribute of a parametrized class that raises when it is copied to another class."""

    def __set_name__(self, owner: type, name: str) -> None:
        raise OSError("trouble")


def test_nothing_is_changed_where_something_raises() -> None:
    model = nn.ModuleList([nn.LSTM(3, 4), parametrizations.weight_norm(nn.GRU(3, 4), "weight_hh_l0")])
    type(model[1]).trouble = Trouble()  # type: ignore[attr-defined]
    with pytest.raises((OSError, RuntimeError)):  # Python 3.11 and older wrap the error in a RuntimeError
        convert(model)
    assert type(model[0]) is nn.LSTM
    assert vars(model[0]).keys() == vars(nn.LSTM(3, 4)).keys()


# other tools of torch


@pytest.mark.parametrize("compiled_first", [False, True])
def test_torch_compile(compiled_first: bool) -> None:
    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        compiled_code.append(graph.code)
        return graph

    compiled_code: list[str] = []
    model, inputs = build("residual", torch.float64)
    before = model(*inputs).detach()
    compiled: Any = torch.compile(model, backend=backend)
    with torch.no_grad():
        if compiled_first:
            compiled(*inputs)
        assert "seqcls_fast" not in "".join(compiled_code)
        assert "_orig_mod.layers.0" in convert(compiled).swapped
        assert_close_by_name({"y": compiled(*inputs)}, {"y": before}, TERMS)
    assert "seqcls_fast" in "".join(compiled_code)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.ao.quantization is deprecated
@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"])
def test_quantize_dynamic_warns_that_ours_stay_in_float(name: str) -> None:
    model = nn.Sequential(getattr(nn, name)(3, 4))
    convert(model)
    with pytest.warns(UserWarning, match=rf"seqcls_fast.{name} stays in float: .* call seqcls_fast.revert\(model\)"):
        quantized = torch.ao.quantization.quantize_dynamic(model)
    assert isinstance(quantized[0], getattr(sf, name))


@pytest.mark.filterwarnings("ignore")  # torch.ao.quantization is deprecated
def test_quantize_dynamic_after_revert() -> None:
    model, inputs = build("crnn")
    want = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model))(*inputs)
    convert(model)
    revert(model)
    quantized = torch.ao.quantization.quantize_dynamic(model)
    assert type(quantized.rnn) is QUANTIZED.LSTM
    assert torch.equal(quantized(*inputs), want)


def test_fx_before_convert() -> None:
    traced = torch.fx.symbolic_trace(build("crnn")[0])
    _, inputs = build("crnn")
    before = traced(*inputs)
    assert convert(traced).swapped == {"rnn": "torch.nn.LSTM"}
    assert_close_by_name({"y": traced(*inputs)}, {"y": before}, TERMS)


def test_the_report_reads_as_a_table() -> None:
    assert str(ConvertReport({}, ())) == "0 swapped, 0 left"
    report = ConvertReport({"": "torch.nn.LSTM"}, (Left("head.rnn", "zoo.MyGRU", "it is odd"),))
    assert str(report).split("\n") == [
        "1 swapped, 1 left", "  (the model)  torch.nn.LSTM  swapped", "  head.rnn     zoo.MyGRU      left: it is odd",
    ]  # fmt: skip
    with pytest.raises(AttributeError):
        report.swapped = {}  # type: ignore[misc]

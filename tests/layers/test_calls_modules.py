"""Modules in both ways of calling: hooks of every kind, and weights and attributes that change between two calls.

Every change is made to our module and to torch.nn's after both were called, so that nothing a call has kept is used
again. test_nn.py and test_training.py do more of this on every implementation.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as globally
from torch.nn.utils import parametrizations, prune
from torch.utils._pytree import tree_leaves, tree_map

import seqcls_fast as sf
from support.calls import CELLS, EACH_MODULE, LAYERS, TERMS, Call, H, I, T, close, equal, loss
from support.tolerances import assert_close_by_name
from support.twins import gradients, named, x_of

pytestmark = pytest.mark.usefixtures("entry")
Log = list[tuple[str, Any, list[Tensor]]]


# -- hooks ------------------------------------------------------------------------------------------------------------


def noting(name: str, log: Log) -> Callable[..., None]:
    """A hook that notes what it gets: the shapes, and the values."""

    def hook(module: nn.Module, *args: Any) -> None:
        shapes = tree_map(lambda t: tuple(t.shape) if isinstance(t, Tensor) else repr(t), args)
        values = [t.detach().clone() for t in tree_leaves(args) if isinstance(t, Tensor)]
        log.append((f"{name} {type(module).__name__}", shapes, values))

    return hook


def install(module: nn.Module, log: Log, scope: str) -> list[Any]:
    if scope == "global":
        return [
            globally.register_module_forward_pre_hook(noting("pre", log)),
            globally.register_module_forward_hook(noting("forward", log)),
            globally.register_module_forward_hook(noting("forward, always", log), always_call=True),
            globally.register_module_full_backward_pre_hook(noting("backward pre", log)),
            globally.register_module_full_backward_hook(noting("backward", log)),
        ]
    return [
        module.register_forward_pre_hook(noting("pre", log)),
        module.register_forward_pre_hook(noting("pre, kwargs", log), with_kwargs=True),
        module.register_forward_hook(noting("forward", log)),
        module.register_forward_hook(noting("forward, kwargs", log), with_kwargs=True),
        module.register_forward_hook(noting("forward, always", log), always_call=True),
        module.register_full_backward_pre_hook(noting("backward pre", log)),
        module.register_full_backward_hook(noting("backward", log)),
    ]


@EACH_MODULE
@pytest.mark.parametrize("scope", ["instance", "global"])
def test_hooks_are_called_as_torchs(kind: str, scope: str) -> None:
    call = Call(kind)
    plain = call.both()
    logs: list[Log] = []
    for module in (call.ours, call.theirs):
        logs.append([])
        handles = install(module, logs[-1], scope)
        found = call.both(module)
        with pytest.raises((RuntimeError, ValueError)):
            module(torch.zeros(1, 2, I + 1))
        with torch.no_grad():
            call(module)
        for handle in handles:
            handle.remove()
        close(found, plain)
        count = len(logs[-1])
        call.both(module)
        assert len(logs[-1]) == count
    assert [entry[:2] for entry in logs[0]] == [entry[:2] for entry in logs[1]]
    for (name, _, mine), (_, _, wanted) in zip(*logs, strict=True):
        close(*({f"{name} {k}": t for k, t in enumerate(values)} for values in (mine, wanted)))
    names = [name for name, _, _ in logs[0]]
    assert len(set(names)) == len(handles)
    backwards = [k for k, name in enumerate(names) if name.startswith("backward")]
    assert len(backwards) == 2
    assert all(t.any() for t in logs[0][backwards[-1]][2])


@EACH_MODULE
def test_hooks_change_what_goes_in_and_out(kind: str) -> None:
    call = Call(kind)
    plain = call.both()
    scale = lambda factor: lambda value: tree_map(lambda t: t if t is None else t * factor, value)  # noqa: E731
    for module in (call.ours, call.theirs):
        module.register_forward_pre_hook(lambda _, args: (args[0] * 2, *args[1:]))
        module.register_forward_pre_hook(lambda _, args, kwargs: ((args[0] + 1, *args[1:]), kwargs), with_kwargs=True)
        module.register_forward_hook(lambda _, args, result: scale(3)(result))
        module.register_full_backward_pre_hook(lambda _, grads: scale(5)(grads))
        module.register_full_backward_hook(lambda _, inputs, outputs: scale(7)(inputs))
    found = call.both()
    close(found, call.expected())
    assert all(not torch.equal(found[name], t) for name, t in plain.items())


@pytest.mark.parametrize("kind", LAYERS)
def test_hooks_see_and_change_our_own_arguments(kind: str) -> None:
    module = getattr(sf, kind)(I, H)
    seen: list[Any] = []

    def pre(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        seen.append(set(kwargs))
        return args, kwargs | {"lengths": torch.tensor([2, 5, 0, 1])}

    wanted = module(x_of().float(), lengths=[2, 5, 0, 1])[0]
    handle = module.register_forward_pre_hook(pre, with_kwargs=True)
    assert torch.equal(module(x_of().float(), lengths=[5, 5, 5, 5])[0], wanted)
    assert torch.equal(module(x_of().float())[0], wanted)
    assert seen == [{"lengths"}, set()]
    handle.remove()
    module.register_forward_hook(lambda _, args, result: (result[0] is None, result[1]))
    assert module(x_of().float(), want_output=False)[0] is True


# -- weights that change between two calls ----------------------------------------------------------------------------


def weight(module: Any, kind: str = "weight_hh") -> str:
    return next(name for name in (kind, f"{kind}_l0") if hasattr(module, name))


def pruned(module: Any) -> Any:
    prune.l1_unstructured(module, weight(module), amount=0.5)
    return prune.l1_unstructured(module, weight(module, "bias_hh"), amount=3)


def new_parameters(module: Any) -> Any:
    for name, p in list(module.named_parameters()):
        setattr(module, name, nn.Parameter(p.detach().cos()))
    return module


class OwnParameter(nn.Parameter):
    pass


def own_parameters(module: Any) -> Any:
    for name, p in list(module.named_parameters()):
        setattr(module, name, OwnParameter(p.detach().sin()))
    return module


def strided_parameters(module: Any) -> Any:
    for name, p in list(module.named_parameters()):
        setattr(module, name, nn.Parameter((p.detach() * 2).t().clone(memory_format=torch.contiguous_format).t()))
    return module


def tied(module: Any) -> Any:
    setattr(module, weight(module, "bias_ih"), getattr(module, weight(module, "bias_hh")))
    return module


def orthogonal(module: Any) -> Any:
    torch.manual_seed(1)
    return parametrizations.orthogonal(module, weight(module))


def spectral_norm(module: Any) -> Any:
    torch.manual_seed(1)
    return parametrizations.spectral_norm(module, weight(module)).eval()


def old_weight_norm(module: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(module, weight(module))


def stepped(module: Any) -> Any:
    return (torch.optim.SGD(module.parameters(), lr=0.1).step(), module)[1]


def of(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A change of every parameter's values, through `data`."""
    return lambda module: ([change(p) for p in module.parameters()], module)[1]


CHANGES: dict[str, Callable[[Any], Any]] = {
    "weight_norm": lambda m: parametrizations.weight_norm(m, weight(m, "weight_ih")),
    "old weight_norm": old_weight_norm,
    "spectral_norm": spectral_norm,
    "orthogonal": orthogonal,
    "pruned": pruned,
    "new parameters": new_parameters,
    "own class of parameters": own_parameters,
    "strided parameters": strided_parameters,
    "tied biases": tied,
    "data": of(lambda p: p.data.mul_(2)),
    "another data": of(lambda p: setattr(p, "data", p.data + 1)),
    "storage": of(lambda p: p.data.untyped_storage().copy_((p.data * 3).untyped_storage())),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "share_memory": lambda m: m.share_memory(),
    "to and back": lambda m: m.half().double(),
    "to_empty": lambda m: (s := copy.deepcopy(m.state_dict()), m.to_empty(device="cpu").load_state_dict(s), m)[-1],
    "load_state_dict": lambda m: (m.load_state_dict({k: t + 1 for k, t in m.state_dict().items()}), m)[1],
    "assigned": lambda m: (m.load_state_dict({k: t + 1 for k, t in m.state_dict().items()}, assign=True), m)[1],
    "optimizer": stepped,
    "eval": lambda m: m.eval(),
}  # fmt: skip


@EACH_MODULE
@pytest.mark.parametrize("change", CHANGES)
def test_changed_between_two_calls(kind: str, change: str) -> None:
    call = Call(kind)
    found = []
    for module in (call.ours, call.theirs):
        loss(call(module)).backward()
        with torch.no_grad():
            call(module)
        after = CHANGES[change](module)
        for t in call.inputs.values():
            t.grad = None
        with torch.no_grad():
            inference = {f"{name} of inference": t for name, t in call(after).items()}
        found.append(call.both(after) | inference)
        if change == "strided parameters":  # torch checks that a gradient has the strides of its weight
            loss(call(after)).backward()
        if change in ("deepcopy", "pickle"):  # what happens to a copy does not touch the first one
            before = call(module)
            for p in after.parameters():
                p.data.zero_()
            equal(call(module), before)
            assert not torch.equal(call(after)["h_n"], before["h_n"])
    assert_close_by_name(*found, 2 * TERMS)


@EACH_MODULE
def test_plain_tensors_in_the_place_of_weights(kind: str) -> None:
    """As hypernetworks and weight dropout set them: parts of a graph, or constants."""
    call = Call(kind)
    leaf = torch.randn(getattr(call.ours, weight(call.ours)).shape, dtype=torch.float64, requires_grad=True)
    for make in (lambda: leaf * 2, lambda: leaf, leaf.detach):
        found = []
        for module in (copy.deepcopy(call.ours), copy.deepcopy(call.theirs)):
            call(module)
            delattr(module, weight(module))
            setattr(module, name := "weight_hh" if kind in CELLS else "weight_hh_l0", make())
            results = call(module)
            found.append(results | gradients(results, module, **call.inputs, leaf=leaf))
            setattr(module, name, leaf.detach() / 2)  # and once more
            found[-1] |= {f"{key} again": t for key, t in call(module).items()}
        close(*found)


@EACH_MODULE
@pytest.mark.parametrize("tie", [True, False])
def test_functional_call(kind: str, tie: bool) -> None:
    """With all weights, with one, and of a tied module, whose other name then follows or not."""
    call = Call(kind)
    plain = call.both()
    b_ih, b_hh = (weight(call.ours, name) for name in ("bias_ih", "bias_hh"))
    everything = {name: (p * 2).detach().requires_grad_() for name, p in call.ours.named_parameters()}
    for weights in (everything, {b_hh: everything[b_hh]}):
        for tied_biases in (False, True):
            given = {name: t for name, t in weights.items() if not tied_biases or name != b_ih}
            found = []
            for module in (copy.deepcopy(call.ours), copy.deepcopy(call.theirs)):
                if tied_biases:
                    tied(module)
                run = lambda *args, m=module, w=given: torch.func.functional_call(m, w, args, tie_weights=tie)  # noqa: E731
                results = call(run)
                found.append(results | gradients(results, nn.Module(), **given, **call.inputs))
            close(*found)
            assert all(not torch.equal(found[0][name], plain[name]) for name in results)
    equal(call.both(), plain)


@EACH_MODULE
def test_stacked_modules(kind: str) -> None:
    calls = [Call(kind) for _ in range(3)]
    weights, buffers = torch.func.stack_module_state([call.ours for call in calls])
    base, inputs = calls[0].ours, calls[0].inputs

    def one(weights: Any, buffers: Any) -> Any:
        return calls[0](lambda *args: torch.func.functional_call(base, (weights, buffers), args))

    found = torch.vmap(one)(weights, buffers)
    each = [calls[0](call.theirs) for call in calls]
    close(found, {name: torch.stack([results[name] for results in each]) for name in found})
    loss(found).backward()
    assert all(t.grad is not None and t.grad[k].any() for t in weights.values() for k in range(3))
    assert all(t.grad is not None for t in inputs.values())


@EACH_MODULE
def test_one_weight_in_two_modules(kind: str) -> None:
    first, second = Call(kind), Call(kind)
    found = []
    for module, other in ((first.ours, second.ours), (first.theirs, second.theirs)):
        for name, p in module.named_parameters():
            setattr(other, name, p)
        results = first(module) | {f"{name} of the second": t for name, t in second(other).items()}
        inputs = first.inputs | {f"{name} of the second": t for name, t in second.inputs.items()}
        found.append(results | gradients(results, module, **inputs))
        with torch.no_grad():
            next(other.parameters()).mul_(2)
        found[-1] |= {f"{name} again": t for name, t in first(module).items()}
    assert_close_by_name(*found, 2 * TERMS)


# -- attributes and subclasses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LAYERS)
def test_attributes_are_read_at_every_call(kind: str) -> None:
    call = Call(kind, num_layers=2, bidirectional=True)
    x = x_of(T, T, I)  # as many rows as steps, so that either of them may come first
    for batch_first, dropout, training in product((False, True), (0.0, 0.5, 1.0), (True, False)):
        found = []
        for module in (call.ours, call.theirs):
            module.batch_first, module.dropout = batch_first, dropout
            module.train(training)
            torch.manual_seed(5)
            results = named(*module(x))
            found.append(results | gradients(results, module) | {"next draw": torch.rand(1)})
        if not (batch_first and dropout == 0.5 and training):  # where torch.nn's mask lies the other way round
            assert_close_by_name(*found, 2 * TERMS)


def subclass(base: Any) -> Any:
    class Own(base):  # type: ignore[misc]
        def forward(self, input: Tensor, hx: Any = None) -> Any:
            result = super().forward(input * 2, hx)
            return tree_map(lambda t: t.sin(), result)

    return Own


@EACH_MODULE
def test_a_subclass_calls_the_forward_of_its_base(kind: str) -> None:
    call = Call(kind)
    call.ours, theirs = subclass(getattr(sf, kind))(I, H).double(), subclass(getattr(nn, kind))(I, H).double()
    theirs.load_state_dict(call.ours.state_dict())
    close(call.both(), call.both(theirs))


@EACH_MODULE
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_dtypes(kind: str, dtype: torch.dtype) -> None:
    """Every result and gradient has the module's dtype, and is near that of torch.nn in float64."""
    call = Call(kind, dtype)
    wide = Call(kind)
    wide.theirs.load_state_dict(call.ours.state_dict())
    wide.inputs = {name: t.detach().double().requires_grad_() for name, t in call.inputs.items()}
    found = call.both()
    assert {t.dtype for t in found.values() if t is not None} == {dtype}
    assert_close_by_name(found, wide.expected(), 8 * T if dtype.itemsize == 2 else TERMS, dtype)


# -- distributed ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this build of torch has no gloo")
    path: Path = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=path.as_uri(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@EACH_MODULE
@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}], ids=str)
@pytest.mark.usefixtures("group")
@pytest.mark.filterwarnings("ignore:find_unused_parameters=True was specified")
def test_distributed_data_parallel(kind: str, options: dict[str, Any]) -> None:
    call = Call(kind)
    loss(call()).backward()
    wanted = {name: p.grad for name, p in call.ours.named_parameters()}
    call.ours.zero_grad()
    wrapped = nn.parallel.DistributedDataParallel(call.ours, gradient_as_bucket_view=True, **options)
    for _ in range(2):
        call.ours.zero_grad()
        loss(call(wrapped)).backward()
        equal({name: p.grad for name, p in call.ours.named_parameters()}, wanted)

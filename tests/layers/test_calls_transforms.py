"""Calls that are no plain eager ones, in both ways: modes, subclasses of Tensor, torch.func, forward mode, compilers.

Whatever may look into or replace the operations of a call must see it, and the numbers stay those of a plain call.
tests/transforms asks the same of the Python way with more shapes and options.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from support.calls import CELLS, EACH, TERMS, Call, Named, close, equal, loss, numbered, python_way
from support.tolerances import assert_close_by_name

pytestmark = [
    pytest.mark.usefixtures("entry"),
    pytest.mark.filterwarnings("ignore:`torch.jit.*` is deprecated:DeprecationWarning"),
]
SOME = pytest.mark.parametrize("kind", ["GRU", "LSTMCell", "rnn_layer"])  # where a call takes long


# -- modes ------------------------------------------------------------------------------------------------------------


class Functions(TorchFunctionMode):
    """Notes every function of torch, and multiplies the input of a layer by a factor."""

    def __init__(self, factor: float = 1) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.factor = factor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        if self.factor != 1 and str(func).startswith("seqcls_fast.rnn_forward"):
            args = (args[0] * self.factor, *args[1:])
        return func(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    """Notes every operator, and multiplies the input of a layer by a factor."""

    def __init__(self, factor: float = 1) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.factor = factor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        if self.seen[-1].startswith("seqcls_fast.rnn_forward") and self.factor != 1:
            args = (args[0] * self.factor, *args[1:])
        return func(*args, **(kwargs or {}))


@EACH
def test_modes_of_functions_and_of_operators(kind: str) -> None:
    call = Call(kind)
    plain = call.both()
    with Functions() as functions:
        equal(call.both(), plain)
    assert functions.seen
    with Operators() as operators:
        equal(call.both(), plain)
    assert "seqcls_fast.rnn_forward.default" in operators.seen
    assert "seqcls_fast.rnn_backward.default" in operators.seen
    with torch.no_grad(), Operators() as operators:
        equal(call(), {name: plain[name] for name in call()})
    assert "seqcls_fast.rnn_forward.default" in operators.seen
    results = call()
    with Operators() as operators:  # around the backward alone
        equal(plain | call.gradients(results), plain)
    assert "seqcls_fast.rnn_backward.default" in operators.seen


@EACH
def test_a_mode_may_change_what_an_operator_gets(kind: str) -> None:
    call = Call(kind)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            wanted = call(x=call.inputs["x"] * 3)
            for mode in (Operators(3), Functions(3)):
                with mode:
                    results = call()
                close(results, wanted)


@EACH
def test_a_device_or_dtype_by_default_is_not_that_of_the_inputs(kind: str) -> None:
    call = Call(kind)
    results = call()
    leaves, incoming = [*call.inputs.values(), *call.ours.parameters()], [t.detach().cos() for t in results.values()]

    def run() -> Named:
        found = list(call().values())
        return numbered([*found, *torch.autograd.grad(found, leaves, incoming)])

    plain = run()
    with torch.device("meta"):
        equal(run(), plain)
    torch.set_default_device("meta")
    try:
        equal(run(), plain)
    finally:
        torch.set_default_device(None)
    torch.set_default_dtype(torch.float16)
    equal(run(), plain)


@EACH
def test_fake_tensors(kind: str) -> None:
    call = Call(kind)
    plain = call.both()
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = {name: mode.from_tensor(t) for name, t in call.inputs.items()}
    for x_alone in (False, True):
        results = call(**({"x": fakes["x"]} if x_alone else fakes))  # the mode is not active
        loss({name: t for name, t in results.items() if isinstance(t, FakeTensor)}).backward()
        assert all(isinstance(t, FakeTensor) and t.shape == plain[name].shape for name, t in results.items())
        assert isinstance(fakes["x"].grad, FakeTensor)
        assert fakes["x"].grad.shape == fakes["x"].shape
        for t in (*call.inputs.values(), *fakes.values(), *call.ours.parameters()):
            t.grad = None
    for _, results, _ in each_argument(call, mode.from_tensor):
        assert all(isinstance(t, FakeTensor) and t.shape == plain[name].shape for name, t in results.items())
    with mode:
        results = call()
    assert all(isinstance(t, FakeTensor) and t.shape == plain[name].shape for name, t in results.items())
    equal(call.both(), plain)


@EACH
def test_operations_are_counted(kind: str) -> None:
    call, counts = Call(kind), []
    for way in (False, True):
        with FlopCounterMode(display=False) as counter, python_way() if way else nullcontext():
            loss(call()).backward()
        counts.append(counter.get_flop_counts()["Global"])
    assert counts[0] == counts[1]
    assert sum(counts[0].values()) > 0
    assert len(counts[0]) == 2, "the forward and the backward"


# -- subclasses of Tensor ---------------------------------------------------------------------------------------------


class Noted(Tensor):
    """A subclass that notes functions of torch, and whose results are of the subclass."""

    seen: ClassVar[list[Any]] = []

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


class Plain(Tensor):
    """A subclass without any function of its own, as nn.Parameter is one."""

    seen: ClassVar[list[Any]] = []
    __torch_function__ = torch._C._disabled_torch_function_impl


class Wrapped(Tensor):
    """Holds a tensor; every operator runs on what it holds, and its results are wrapped."""

    inner: Tensor
    seen: ClassVar[list[str]] = []
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: Any, inner: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), dtype=inner.dtype)

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(str(func))
        given = tree_map(opened, (args, kwargs or {}))
        return tree_map(lambda t: Wrapped(t) if isinstance(t, Tensor) else t, func(*given[0], **given[1]))


def opened(t: Any) -> Any:
    return t.inner if isinstance(t, Wrapped) else t


def each_argument(call: Call, make: Callable[[Tensor], Tensor]) -> Any:
    """For every input and weight: its name, the results of a call in which it alone was made anew, and its leaf."""
    for name, t in (call.inputs | dict(call.ours.named_parameters())).items():
        leaf = make(t.detach().clone()).requires_grad_()
        if name in call.inputs:
            yield name, call(**{name: leaf}), leaf
        else:
            yield name, call(lambda *args, n=name, w=leaf: functional_call(call.ours, {n: w}, args)), leaf


@EACH
@pytest.mark.parametrize("subclass", [Noted, Plain, Wrapped])
def test_subclasses_of_tensor(kind: str, subclass: Any) -> None:
    """Each argument alone is one. Results and its gradient are right, and a subclass that asks to be told is told."""
    call = Call(kind)
    results = call()
    plain = {name: t.detach() for name, t in results.items()}
    leaves = call.inputs | dict(call.ours.named_parameters())
    grads = dict(zip(leaves, torch.autograd.grad(loss(results), list(leaves.values())), strict=True))
    kinds = {Noted: Noted, Plain: Tensor, Wrapped: Wrapped}  # what torch.nn's results are, too
    for name, found, leaf in each_argument(call, Wrapped if subclass is Wrapped else lambda t: t.as_subclass(subclass)):
        assert type(leaf) is subclass
        assert {type(t) for t in found.values()} == {kinds[subclass]}, name
        assert subclass is Plain or "seqcls_fast.rnn_forward.default" in map(str, subclass.seen)
        equal({n: opened(t.detach()).as_subclass(Tensor) for n, t in found.items()}, plain)
        subclass.seen = []
        unwrapped = {n: t.as_subclass(Tensor) for n, t in found.items()} if subclass is Noted else found
        (grad,) = torch.autograd.grad(loss(unwrapped), leaf)
        close({name: opened(grad).as_subclass(Tensor)}, {name: grads[name]})
        assert subclass is not Wrapped or "seqcls_fast.rnn_backward.default" in Wrapped.seen


# -- torch.func, forward mode -----------------------------------------------------------------------------------------


def flat_call(call: Call, module: Any) -> tuple[Callable[..., Any], list[Tensor]]:
    """A call as a function of its inputs and weights, in one list."""
    weights = {name: p.detach() for name, p in module.named_parameters()}
    names = [*call.inputs, *weights]

    def run(*flat: Tensor) -> Any:
        given = dict(zip(names, flat, strict=True))
        inputs = {name: given.pop(name) for name in call.inputs}
        return tuple(call(lambda *args: functional_call(module, given, args), **inputs).values())

    return run, [*(t.detach() for t in call.inputs.values()), *weights.values()]


@EACH
def test_function_transforms(kind: str) -> None:
    call = Call(kind)
    (run, point), (wanted_run, _) = flat_call(call, call.ours), flat_call(call, call.theirs)
    every = tuple(range(len(point)))
    leaves = [t.clone().requires_grad_() for t in point]
    results = wanted_run(*leaves)
    incoming = tuple(t.detach().cos() for t in results)
    wanted = torch.autograd.grad(results, leaves, incoming, retain_graph=True)
    close(numbered(torch.func.vjp(run, *point)[1](incoming)), numbered(wanted))
    product = lambda *flat: sum((t * g).sum() for t, g in zip(run(*flat), incoming, strict=True))  # noqa: E731
    close(numbered(torch.func.grad(product, every)(*point)), numbered(wanted))
    (jacobian,) = torch.func.jacrev(lambda *flat: run(*flat)[-1:], 0)(*point)
    (row,) = torch.autograd.grad(results[-1].flatten()[3], leaves[0])
    close({"row": jacobian.flatten(0, results[-1].dim() - 1)[3]}, {"row": row})


@EACH
def test_one_mapped_argument(kind: str) -> None:
    """vmap over each argument alone: whatever looks at the inputs must not overlook it."""
    call = Call(kind)
    run, point = flat_call(call, call.ours)
    wanted_run, _ = flat_call(call, call.theirs)
    for k, t in enumerate(point):
        many = torch.stack([t, t.cos()])
        found = torch.vmap(run, tuple(0 if j == k else None for j in range(len(point))))(
            *point[:k], many, *point[k + 1 :]
        )
        each = [wanted_run(*point[:k], one, *point[k + 1 :]) for one in many]
        close(numbered(found), numbered(torch.stack(parts) for parts in zip(*each, strict=True)))


@EACH
def test_tangents(kind: str) -> None:
    """Of each argument alone, as dual numbers and by torch.func.jvp: the product with torch.nn's Jacobian."""
    call = Call(kind)
    run, point = flat_call(call, call.ours)
    wanted_run, _ = flat_call(call, call.theirs)
    for k, t in enumerate(point):
        alone = lambda one, k=k: run(*point[:k], one, *point[k + 1 :])  # noqa: E731
        direction = t.sin() + 1
        of_torch = lambda one, k=k: wanted_run(*point[:k], one, *point[k + 1 :])  # noqa: E731
        _, wanted = torch.autograd.functional.jvp(of_torch, t, direction)
        assert_close_by_name(numbered(torch.func.jvp(alone, (t,), (direction,))[1]), numbered(wanted), 4 * TERMS)
        for grad in (False, True):
            with forward_ad.dual_level():
                dual = forward_ad.make_dual(t.clone().requires_grad_(grad), direction)
                results = [forward_ad.unpack_dual(result) for result in alone(dual)]
            tangents = [result.tangent for result in results]
            assert None not in tangents
            assert_close_by_name(numbered(tangents), numbered(wanted), 4 * TERMS)
            close(numbered(result.primal for result in results), numbered(wanted_run(*point)))
    with forward_ad.dual_level():  # a level without a dual number
        close(call(), call(call.theirs))


@EACH
def test_a_tensor_that_outlived_its_transform(kind: str) -> None:
    call, left = Call(kind), []
    torch.func.grad(lambda x: (left.append(x), x.sum())[1])(call.inputs["x"].detach())
    with torch.no_grad():
        equal(call(x=left[0]), call())


@EACH
def test_autocast(kind: str) -> None:
    """The same bits both ways, all results in bfloat16, and every gradient in the dtype of what it belongs to."""
    call, found = Call(kind, torch.float32), []
    with torch.autocast("cpu", torch.bfloat16):
        found.append(call())
        with python_way():
            found.append(call())
    equal(*found)
    assert {t.dtype for t in found[0].values()} == {torch.bfloat16}
    grads = call.gradients(found[0])
    equal(grads, call.gradients(found[1]))
    assert {t.dtype for t in grads.values() if t is not None} == {torch.float32}
    assert all(t is not None and t.any() for t in grads.values())
    assert kind in CELLS or found[0]["output"].requires_grad

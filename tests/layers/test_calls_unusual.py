"""What else may happen around a call, both ways: implementations, threads, profilers, devices, ids, references.

docs/transforms.md lists what torch does to a call; test_calls_transforms.py has its tests.
"""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import allow_mutation_on_saved_tensors, get_gradient_edge

import seqcls_fast as sf
from seqcls_fast import _autograd, _torch_layer
from seqcls_fast.ops import available_impls, rnn_layer
from support.calls import (
    CELLS,
    EACH,
    EACH_MODULE,
    LAYERS,
    Call,
    H,
    I,
    close,
    equal,
    loss,
    node_of,
    numbered,
    python_way,
)
from support.twins import x_of

pytestmark = pytest.mark.usefixtures("entry")


# -- implementations and threads --------------------------------------------------------------------------------------


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Which of the implementations without kernels ran, and in which thread."""
    found: list[tuple[str, int]] = []

    def watch(module: Any, name: str) -> None:
        original = getattr(module, name)

        def run(*args: Any) -> Any:
            found.append((name, threading.get_ident()))
            return original(*args)

        monkeypatch.setattr(module, name, run)

    watch(_autograd, "reference_layer")
    watch(_torch_layer, "torch_layer")
    return found


@EACH
@pytest.mark.parametrize("chosen", ["auto", *available_impls()])
def test_the_chosen_implementation_runs(kind: str, chosen: str, ran: list[tuple[str, int]]) -> None:
    call = Call(kind)
    wanted = call.expected()
    with sf.use_impl(chosen):
        found = call.both()
        close(found, wanted)
        with python_way():
            equal(call.both(), found)
        with torch.no_grad():
            equal(call(), {name: found[name] for name in call()})
    names = {name for name, _ in ran}
    assert names == {"reference": {"reference_layer"}, "torch": {"torch_layer"}}.get(chosen, set())
    ran.clear()
    call.both()  # after the block
    assert not ran or available_impls() == ("reference", "torch")


@EACH
def test_a_block_that_raises_restores_the_implementation(kind: str, ran: list[tuple[str, int]]) -> None:
    call = Call(kind)

    def raising() -> None:
        with sf.use_impl("reference"):
            with sf.use_impl("torch"):
                call()
            call()
            call(x=call.inputs["x"].detach()[..., 1:])

    with pytest.raises(RuntimeError):
        raising()
    assert [name for name, _ in ran][:2] == ["torch_layer", "reference_layer"]
    ran.clear()
    call()
    assert not ran or available_impls() == ("reference", "torch")
    with pytest.raises(ValueError, match="impl: expected one of auto, reference, torch"), sf.use_impl("fast"):
        pass


@EACH
def test_threads_with_implementations_of_their_own(kind: str, ran: list[tuple[str, int]]) -> None:
    """Each trains with the same module at once. Choices and the mode of autograd are those of a thread."""
    call = Call(kind)
    # torch 2.14 can deadlock where threads record the first nodes of a parameter, a Function of Python in one of them
    graph_that_stays = call()
    wanted, names = call.both(), [*available_impls(), "auto"]
    faults: list[BaseException] = []
    meet, threads_of = threading.Barrier(len(names)), {}

    def work(name: str) -> None:
        threads_of[name] = threading.get_ident()
        try:
            meet.wait()
            with sf.use_impl(name), torch.set_grad_enabled(name != "auto"):
                for _ in range(20):
                    results = call()
                    found = {key: t.detach() for key, t in results.items()}
                    assert all(t.requires_grad == (name != "auto") for t in results.values())
                    close(found | (call.gradients(results) if name != "auto" else {}),
                          {key: t for key, t in wanted.items() if name != "auto" or key in found})  # fmt: skip
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults, faults[0]
    assert any(t.requires_grad for t in graph_that_stays.values())
    assert {thread for name, thread in ran if name == "reference_layer"} == {threads_of["reference"]}


# -- profilers, deterministic mode ------------------------------------------------------------------------------------


@EACH
def test_profilers_see_the_forward_and_the_backward(kind: str) -> None:
    call = Call(kind)

    def counts(profile: Any, word: str) -> list[int]:
        return [event.count for event in profile.key_averages() if word in event.key]

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        results = call()
        name = node_of(results).name()
        loss(results).backward()
    assert counts(profile, "rnn_forward") == [1]
    assert counts(profile, "rnn_backward") == [1]
    assert 1 in counts(profile, name)
    with torch.no_grad(), torch.autograd.profiler.profile() as profile:
        call()
    assert counts(profile, "rnn_forward") == [1]


@EACH
def test_deterministic_mode_changes_no_bit(kind: str) -> None:
    """New memory is then full of NaN, so whatever is read before it is written shows."""
    call = Call(kind)
    plain = call.both()
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(3):
            equal(call.both(), plain)
    finally:
        torch.use_deterministic_algorithms(False)


# -- devices, dtypes, ids ---------------------------------------------------------------------------------------------


@EACH
def test_meta_tensors(kind: str) -> None:
    call = Call(kind)
    plain = call()
    module, inputs = call.ours.to("meta"), {name: t.detach().to("meta") for name, t in call.inputs.items()}
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            found = call(module, **inputs)
        assert {name: (t.shape, t.dtype, t.device.type) for name, t in found.items()} == {
            name: (t.shape, t.dtype, "meta") for name, t in plain.items()
        }
        assert all(t.requires_grad is grad for t in found.values())
    loss(call(module, **inputs)).backward()
    assert all(p.grad is not None and p.grad.is_meta and p.grad.shape == p.shape for p in module.parameters())


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
@EACH_MODULE
def test_complex_modules(kind: str) -> None:
    call = Call(kind, torch.complex128)
    results = call()
    assert {t.dtype for t in results.values()} == {torch.complex128}
    wanted = call(call.theirs)
    of = lambda tensors: {name: torch.view_as_real(t.resolve_conj()) for name, t in tensors.items()}  # noqa: E731
    close(of(results), of(wanted))
    leaves = [*call.ours.parameters(), *call.inputs.values()]
    others = [*call.theirs.parameters(), *call.inputs.values()]
    total = lambda tensors: sum(t.abs().square().sum() for t in tensors.values())  # noqa: E731
    pairs = (torch.autograd.grad(total(results), leaves), torch.autograd.grad(total(wanted), others))
    close(*(of(numbered(grads)) for grads in pairs))
    conjugated = {name: t.detach().conj() for name, t in call.inputs.items()}
    close(of(call(**conjugated)), of(call(call.theirs, **conjugated)))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
def test_ids(cell: str, dtype: torch.dtype) -> None:
    """Ids are rows with a single 1. They have no gradient, and a new id in the same tensor is seen."""
    gates = {"rnn_tanh": 1, "gru": 3, "lstm": 4}[cell]
    w_ih, w_hh = x_of(gates * H, I).requires_grad_(), x_of(gates * H, H).mul(0.3).requires_grad_()
    ids = torch.tensor([[0, 1], [2, 2], [1, 0]], dtype=dtype)

    def run(x: Tensor) -> dict[str, Tensor]:
        results = [t for t in rnn_layer(x, [w_ih], [w_hh], cell=cell) if t is not None]
        grads = torch.autograd.grad(results, [w_ih, w_hh], [t.detach().cos() for t in results])
        return numbered([*(t.detach() for t in results), *grads])

    for _ in range(2):
        found = run(ids)
        close(found, run(torch.nn.functional.one_hot(ids.long(), I).double()))
        with python_way():
            equal(run(ids), found)
        ids[0, 0] = 2
    with torch.no_grad():
        for bad in (3, -1):
            with pytest.raises(RuntimeError, match=f"x: expected ids from 0 to 2, the columns of w_ih, but got {bad}"):
                rnn_layer(torch.full((2, 2), bad), [w_ih], [w_hh], cell=cell)


# -- references, versions, reentrance ---------------------------------------------------------------------------------


def references(things: list[Any]) -> list[int]:
    return [sys.getrefcount(thing) for thing in things]


@EACH
def test_calls_leave_no_references_behind(kind: str) -> None:
    """Neither to their arguments nor to None, dtypes or new objects, whether they end with a result or an error."""
    call = Call(kind)
    x, states = call.inputs["x"], [t for name, t in call.inputs.items() if name != "x"]
    hx = tuple(states) if len(states) == 2 else states[0]
    wrong = x.detach()[..., 1:]
    more: dict[str, Any] = {"lengths": torch.tensor([2, 5, 0, 1])} if kind in LAYERS else {}

    def refused() -> None:
        with pytest.raises((RuntimeError, ValueError)):
            call.ours(wrong, hx, **more)

    def without_a_graph() -> None:
        with torch.no_grad():
            call.ours(x, hx, **more)

    def trained() -> None:
        results = call.ours(x, hx, **more)
        first = results if isinstance(results, Tensor) else results[0]
        torch.autograd.grad(first.sum(), [x, *call.ours.parameters()])

    watched = [x, hx, *states, wrong, call.ours, *call.ours.parameters(), torch.float64, *more.values()]
    actions: list[Callable[[], None]] = [refused, without_a_graph, trained]
    for action in actions:
        for _ in range(3):
            action()
    gc.collect()
    gc.freeze()  # so that only new objects are counted
    try:
        for action in actions:
            before = references(watched)
            for _ in range(50):
                action()
            gc.collect()
            grown = [after - first for after, first in zip(references(watched), before, strict=True)]
            assert max(map(abs, grown)) < 10, action.__name__
            assert len(gc.get_objects()) < 200, action.__name__
    finally:
        gc.unfreeze()


@EACH
def test_no_version_is_counted_up(kind: str) -> None:
    """In-place checks of others would fail if a call counted as a change of what it reads."""
    call = Call(kind)
    given = [*call.inputs.values(), *call.ours.parameters()]
    before = [t._version for t in given]
    results = call()
    assert [t._version for t in results.values()] == [0] * len(results)
    call.gradients(results)
    with torch.no_grad():
        assert [t._version for t in call().values()] == [0] * len(results)
    assert [t._version for t in given] == before
    assert all(t.grad is None for t in given)


@EACH
def test_saved_tensors_that_may_be_changed(kind: str) -> None:
    call = Call(kind)
    plain = call.both()
    with allow_mutation_on_saved_tensors():
        results = call()
        with torch.no_grad():
            for t in (*call.inputs.values(), *call.ours.parameters()):
                t.mul_(2)
        close(call.gradients(results), {name: t for name, t in plain.items() if name.startswith("d_")})


@EACH
def test_gradients_at_edges(kind: str) -> None:
    """Of a result that is an input of the backward, and through an edge instead of a result."""
    call = Call(kind)
    results = call()
    total = loss(results)
    at = torch.autograd.grad(total, [get_gradient_edge(t) for t in results.values()], retain_graph=True)
    close(numbered(at), numbered(torch.arange(t.numel()).cos().view_as(t).to(t) for t in results.values()))
    leaves = [*call.inputs.values(), *call.ours.parameters()]
    wanted = torch.autograd.grad(total, leaves, retain_graph=True)
    found = torch.autograd.grad([get_gradient_edge(t) for t in results.values()], leaves, at)
    close(numbered(found), numbered(wanted))


@EACH
def test_a_call_inside_a_backward(kind: str) -> None:
    """A hook may train the same module while its backward runs, and what it raises is what the caller sees."""
    call = Call(kind)
    plain = call.both()
    inside: list[Any] = []
    x = call.inputs["x"].detach().clone().requires_grad_()
    h = call(x=x)["h_n"]
    h.register_hook(lambda grad: inside.append(torch.enable_grad()(call.both)()))
    h.sum().backward()
    equal(inside[0], plain)
    wanted = torch.autograd.grad(call(x=x)["h_n"].sum(), x)
    assert torch.equal(x.grad, wanted[0])

    def fail(grad: Tensor) -> None:
        raise KeyError("from a hook")

    x.register_hook(fail)
    with pytest.raises(KeyError, match="from a hook"):
        call(x=x)["h_n"].sum().backward()
    equal(call.both(), plain)


@EACH_MODULE
def test_zero_rows_have_gradients(kind: str) -> None:
    call = Call(kind)
    dim = 0 if kind in CELLS else 1
    none = {name: t.detach().narrow(dim, 0, 0).requires_grad_() for name, t in call.inputs.items()}
    results = call(**none)
    assert all(t.numel() == 0 and t.requires_grad for t in results.values())
    grads = torch.autograd.grad(loss(results), [*none.values(), *call.ours.parameters()])
    assert [t.shape for t in grads] == [t.shape for t in (*none.values(), *call.ours.parameters())]
    assert not any(t.any() for t in grads)

"""The graph that a call records, in both ways of calling: hooks on saved tensors, nodes and tensors, anomaly mode,
checkpoints, which inputs and results take part, and when the memory of a graph is freed.

test_gradients.py asks the same of the operators' gradients in all their layouts, on every implementation.
"""

from __future__ import annotations

import gc
import itertools
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import disable_saved_tensors_hooks, save_on_cpu, saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from support.calls import EACH, TERMS, Call, close, counted, equal, loss, node_of, nodes_of
from support.tolerances import assert_close_by_name

pytestmark = pytest.mark.usefixtures("entry")


# -- saved tensors ----------------------------------------------------------------------------------------------------


@EACH
def test_hooks_see_what_is_saved(kind: str) -> None:
    """Everything that the backward reads passes through the hooks, and what they return is what it reads."""
    call = Call(kind)
    plain = call.both()
    pack, packed = counted(lambda t: (t.clone(), "packed"))
    unpack, unpacked = counted(lambda pair: pair[0])
    with saved_tensors_hooks(pack, unpack):
        results = call()
    values = {name: t.detach().clone() for name, t in results.items()}
    seen = {t.data_ptr() for (t,) in packed}
    weights = [p for name, p in call.ours.named_parameters() if name.startswith("weight")]
    assert {t.data_ptr() for t in (*weights, call.inputs["x"])} <= seen
    assert not unpacked
    equal(values | call.gradients(results), plain)
    first = len(unpacked)
    assert first >= len(weights) + 1
    equal(values | call.gradients(results), plain)
    assert len(unpacked) == 2 * first, "the second backward reads what the hooks kept, too"


@EACH
def test_hooks_that_change_what_is_saved_change_the_gradients(kind: str) -> None:
    call = Call(kind)
    plain = call.both()
    with saved_tensors_hooks(lambda t: t.bfloat16(), lambda t: t.double()):
        results = call()
    rounded = call.gradients(results)
    for name, t in rounded.items():
        assert t is not None
        error, scale = float((t - plain[name]).abs().max()), float(plain[name].abs().max())
        assert (0 if "bias" in name else 1e-5 * scale) < error < 0.1 * scale, name


@EACH
def test_copies_that_hooks_keep_outlive_changes_in_place(kind: str) -> None:
    """torch looks at no version of a tensor that hooks packed, so what the hooks kept must be what is used."""
    call = Call(kind)
    plain = call.both()
    with saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        results = call()
    with torch.no_grad():
        for t in (*call.inputs.values(), *call.ours.parameters()):
            t.mul_(3)
    close(call.gradients(results), {name: t for name, t in plain.items() if name.startswith("d_")})


@EACH
def test_saved_on_the_cpu_and_without_hooks(kind: str) -> None:
    call = Call(kind)
    plain = call.both()
    with save_on_cpu():
        equal(call.both(), plain)
    with disable_saved_tensors_hooks("no hooks here"):
        equal(call.both(), plain)
        with pytest.raises(RuntimeError, match="no hooks here"), save_on_cpu():
            call()


@EACH
def test_a_dropped_graph_frees_its_memory(kind: str) -> None:
    """Without the collector of cycles: nothing that the graph holds leads back to it."""
    call = Call(kind)
    gc.collect()
    gc.disable()
    try:
        for use in (False, True):
            x = call.inputs["x"].detach().clone().requires_grad_()
            results = call(x=x)
            freed = [StorageWeakRef(t.untyped_storage()) for t in (x, *results.values())]
            if use:
                loss(results).backward(retain_graph=True)
            del x, results
            assert all(ref.expired() for ref in freed)
    finally:
        gc.enable()


@EACH
def test_a_backward_frees_what_was_saved(kind: str) -> None:
    """After a backward that does not retain the graph, its node holds no tensors, though its results live on."""
    call = Call(kind)
    x = call.inputs["x"].detach().clone()
    results, freed = call(x=x), StorageWeakRef(x.untyped_storage())
    del x
    assert not freed.expired(), "the gradients of the weights read x"
    loss(results).backward()
    assert freed.expired()
    with pytest.raises(RuntimeError, match="a second time"):
        loss(results).backward()


# -- anomaly mode, threads, checkpoints -------------------------------------------------------------------------------


@EACH
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_anomaly_mode_names_our_node_and_the_line_of_the_call(kind: str) -> None:
    call = Call(kind)
    with torch.no_grad():
        call.inputs["x"][0] = float("nan")
    with warnings.catch_warnings(record=True) as told, torch.autograd.detect_anomaly():
        warnings.simplefilter("always")
        results = call()
        incoming = loss({name: t.nan_to_num() for name, t in results.items()})  # whose gradients are finite
        name = node_of(results).name()
        with pytest.raises(RuntimeError, match=f"Function '{name}' returned nan values in its"):
            incoming.backward()
    (shown,) = (str(warning.message) for warning in told if "Traceback" in str(warning.message))
    assert f"Error detected in {name}" in shown
    assert "test_calls_graph.py" in shown
    assert "results = call()" in shown
    with torch.autograd.detect_anomaly(check_nan=False):
        loss({name: t.nan_to_num() for name, t in call().items()}).backward()
    assert call.inputs["x"].grad is not None
    assert call.inputs["x"].grad.isnan().any()


@EACH
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
def test_modes_of_the_engine_change_no_bit(kind: str) -> None:
    call = Call(kind)
    plain = call.both()
    with torch.autograd.detect_anomaly():
        equal(call.both(), plain)
    with torch.autograd.set_multithreading_enabled(False):
        equal(call.both(), plain)
    results, found = call(), []
    thread = threading.Thread(target=lambda: found.append(call.gradients(results)))
    thread.start()
    thread.join()
    equal(found[0], {name: t for name, t in plain.items() if name.startswith("d_")})


@EACH
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(kind: str, reentrant: bool) -> None:
    call = Call(kind)
    loss(call()).backward()
    leaves = [*call.inputs.values(), *call.ours.parameters()]
    plain = [t.grad for t in leaves]
    runs = 0

    def run(*inputs: Tensor) -> Any:
        nonlocal runs
        runs += 1
        return tuple(call(**dict(zip(call.inputs, inputs, strict=True))).values())

    for t in leaves:
        t.grad = None
    results = checkpoint(run, *call.inputs.values(), use_reentrant=reentrant)
    loss({str(k): t for k, t in enumerate(results)}).backward()
    assert runs == 2
    assert all(torch.equal(t.grad, grad) for t, grad in zip(leaves, plain, strict=True))


# -- which results and inputs take part -------------------------------------------------------------------------------


@EACH
def test_backward_through_some_results(kind: str) -> None:
    call = Call(kind)
    names = list(call())
    for used in itertools.chain.from_iterable(itertools.combinations(names, n + 1) for n in range(len(names))):
        found, wanted = ({name: results[name] for name in used} for results in (call(), call(call.theirs)))
        close(call.gradients(found), call.gradients(wanted, call.theirs))


@EACH
def test_inputs_that_need_gradients(kind: str) -> None:
    """Each alone, the weights alone, the states alone, and none."""
    call = Call(kind)
    plain = call.both()
    leaves = dict(call.ours.named_parameters()) | call.inputs
    states = [name for name in call.inputs if name != "x"]
    weights = [name for name in leaves if name not in call.inputs]
    for wanted in (*([name] for name in leaves), states, weights, ["x", weights[0]]):
        for name, t in leaves.items():
            t.requires_grad_(name in wanted)
        results = call()
        assert all(t.requires_grad and not t.is_leaf and t.grad_fn is not None for t in results.values())
        ones = {name: t for name, t in leaves.items() if name in wanted}
        loss(results).backward()
        assert {name for name, t in leaves.items() if t.grad is not None} == set(wanted)
        reference = call()
        again = torch.autograd.grad(loss(reference), list(ones.values()))
        for t, grad in zip(ones.values(), again, strict=True):
            assert torch.equal(t.grad, grad)
            t.grad = None
    for t in leaves.values():
        t.requires_grad_(False)
    assert not any(t.requires_grad or t.grad_fn is not None or not t.is_leaf for t in call().values())
    for t in leaves.values():
        t.requires_grad_()
    equal(call.both(), plain)


@EACH
def test_grad_of_some_inputs_and_of_unused_ones(kind: str) -> None:
    call = Call(kind)
    names = [f"d_{name}" for name in dict(call.ours.named_parameters()) | call.inputs]
    leaves = [*call.ours.parameters(), *call.inputs.values()]
    plain = dict(zip(names, torch.autograd.grad(loss(call()), leaves), strict=True))
    for subset in (leaves[:1], leaves[1:2], leaves[-1:], leaves[::2], leaves[::-1]):
        found = torch.autograd.grad(loss(call()), subset)
        chosen = [plain[names[next(k for k, u in enumerate(leaves) if u is t)]] for t in subset]
        assert all(map(torch.equal, found, chosen))
    stranger = torch.zeros(3, requires_grad=True)
    d_x, none = torch.autograd.grad(loss(call()), (call.inputs["x"], stranger), allow_unused=True)
    assert torch.equal(d_x, plain["d_x"])
    assert none is None
    with pytest.raises(RuntimeError, match="appears to not have been used"):
        torch.autograd.grad(loss(call()), (call.inputs["x"], stranger))


@EACH
def test_gradients_are_added_up(kind: str) -> None:
    """Over three backwards, over one graph twice, and over two calls in one graph; torch's own are expected."""
    call = Call(kind)
    found = []
    for module in (call.ours, call.theirs):
        leaves = dict(module.named_parameters()) | call.inputs
        results = call(module)
        loss(results).backward(retain_graph=True)
        kept = {name: t.grad for name, t in leaves.items()}
        loss(results).backward()
        (loss(call(module)) * loss(call(module))).backward()
        assert all(t.grad is kept[name] for name, t in leaves.items())
        found.append({name: t.grad for name, t in leaves.items()})
        for t in leaves.values():
            t.grad = None
    assert_close_by_name(*found, 4 * TERMS)


@EACH
def test_incoming_gradients_of_any_layout(kind: str) -> None:
    call = Call(kind)
    for change in (
        lambda t: torch.ones((), dtype=t.dtype).expand_as(t),
        lambda t: t.detach().sin().movedim(-1, 0).contiguous().movedim(0, -1),
        lambda t: t.detach().repeat_interleave(2, -1)[..., ::2],
        lambda t: torch._neg_view(t.detach().sin()),
        lambda t: torch.zeros_like(t),
    ):
        found = []
        for module in (call.ours, call.theirs):
            results, leaves = call(module), [*module.parameters(), *call.inputs.values()]
            grads = torch.autograd.grad(list(results.values()), leaves, [change(t) for t in call().values()])
            found.append({str(k): t for k, t in enumerate(grads)})
        close(*found)


# -- hooks on tensors and on nodes ------------------------------------------------------------------------------------


@EACH
def test_hooks_on_tensors(kind: str) -> None:
    """Each is called once, and a gradient that a hook changes goes on changed."""
    call = Call(kind)
    leaves = dict(call.ours.named_parameters()) | call.inputs
    results = call()
    loss(results).backward()
    plain = {name: t.grad for name, t in leaves.items()}
    for t in leaves.values():
        t.grad = None
    done: list[str] = []
    for name, t in leaves.items():
        t.register_hook(lambda grad, name=name: (done.append(f"hook {name}"), grad * 3)[1])
        t.register_post_accumulate_grad_hook(lambda t, name=name: done.append(f"after {name}"))
    together: list[Any] = []
    torch.autograd.graph.register_multi_grad_hook(list(leaves.values()), together.append)
    results = call()
    for name, t in results.items():
        t.retain_grad()
        t.register_hook(lambda grad, name=name: (done.append(f"hook {name}"), grad / 3)[1])
    loss(results).backward()
    assert sorted(done) == sorted(
        [f"{when} {name}" for name in leaves for when in ("hook", "after")] + [f"hook {name}" for name in results]
    )
    ((*grads,),) = together
    assert len(grads) == len(leaves)
    assert all(t.grad is not None and t.grad.any() for t in results.values())
    close({name: t.grad for name, t in leaves.items()}, plain)


@EACH
def test_hooks_on_our_node(kind: str) -> None:
    call = Call(kind)
    plain = call.both()
    results = call()
    node = node_of(results)
    before, incoming = counted(lambda grads: tuple(g if g is None else 2 * g for g in grads))
    after, done = counted(lambda inputs, outputs: tuple(g if g is None else g / 2 for g in inputs))
    node.register_prehook(before)
    node.register_hook(after)
    close(call.gradients(results), {name: t for name, t in plain.items() if name.startswith("d_")})
    assert len(incoming) == len(done) == 1
    assert any(g is not None for g in incoming[0][0])


@EACH
def test_the_graph_leads_to_every_leaf(kind: str) -> None:
    call = Call(kind)
    leaves = {id(t) for t in (*call.ours.parameters(), *call.inputs.values())}
    results = call()
    assert {id(node.variable) for node in nodes_of(results) if hasattr(node, "variable")} == leaves
    for t in results.values():
        assert {id(node.variable) for node in nodes_of({"t": t}) if hasattr(node, "variable")} == leaves
    call.inputs["x"].requires_grad_(False)
    assert {id(n.variable) for n in nodes_of(call()) if hasattr(n, "variable")} == leaves - {id(call.inputs["x"])}

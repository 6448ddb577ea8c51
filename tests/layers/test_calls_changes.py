"""What is changed between a call and its backward, and the modes of autograd that a call runs in, in both ways.

What the backward reads and was changed is an error of torch's; a result may be changed, and the gradients stay right.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqcls_fast as sf
from support import twins
from support.calls import CELLS, EACH, TERMS, B, Call, H, I, Named, T, close, equal, loss
from support.tolerances import assert_close_by_name

pytestmark = pytest.mark.usefixtures("entry")


# -- in place ---------------------------------------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "mul_": lambda t: t.mul_(2),
    "relu_": lambda t: t.relu_(),
    "dropout": lambda t: nn.functional.dropout(t, 0.5, inplace=True),
    "a part": lambda t: t[..., 1:3].zero_(),
    "no_grad": lambda t: t.detach().mul_(2),
}


@EACH
@pytest.mark.parametrize("change", CHANGES)
def test_results_changed_in_place(kind: str, change: str) -> None:
    """Each result alone, then all. The expected gradients are those of a call whose results were copied first."""
    call = Call(kind)
    for names in (*([name] for name in call()), list(call())):
        found = []
        for copied in (False, True):
            torch.manual_seed(3)
            results = {name: t.clone() for name, t in call().items()} if copied else call()
            for name in names:
                CHANGES[change](results[name])
            values = {name: t.detach().clone() for name, t in results.items()}
            found.append(values | call.gradients(results))
            equal(call.gradients(results), {name: t for name, t in found[-1].items() if name.startswith("d_")})
        equal(*found)


@EACH
@pytest.mark.parametrize("by", ["mul_", "optimizer"])
def test_what_the_backward_reads_must_not_change(kind: str, by: str) -> None:
    call = Call(kind)
    weights = {name: p for name, p in call.ours.named_parameters() if name.startswith("weight")}
    for name, t in ({} if by == "optimizer" else call.inputs | weights).items():
        total = loss(call())
        with torch.no_grad():
            t.mul_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation") as raised:
            total.backward()
        assert name, raised
    total = loss(call())
    loss(call()).backward()
    torch.optim.SGD(call.ours.parameters(), lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()
    for module in (call.ours, call.theirs):  # the next call sees the new weights
        module.zero_grad()
    call.theirs.load_state_dict(call.ours.state_dict())
    close(call.both(), call.expected())


@EACH
def test_weights_written_through_data_are_used_by_the_next_call(kind: str) -> None:
    call = Call(kind)
    before = call.both()
    for write in (lambda p: p.data.mul_(2), lambda p: setattr(p, "data", p.data / 4)):
        for module in (call.ours, call.theirs):
            for p in module.parameters():
                write(p)
        found = call.both()
        close(found, call.expected())
        assert not torch.equal(found["h_n"], before["h_n"])


@EACH
@pytest.mark.parametrize("grad", [True, False])
def test_results_share_no_memory_and_are_no_views(kind: str, grad: bool) -> None:
    call = Call(kind)
    with torch.set_grad_enabled(grad):
        results = call()
    given = [*call.inputs.values(), *call.ours.parameters()]
    places = [t.untyped_storage().data_ptr() for t in (*results.values(), *given)]
    assert len(set(places)) == len(places)
    for t in results.values():
        assert t.requires_grad is grad
        assert t.is_leaf is not grad
        assert kind in CELLS or not t._is_view()  # a cell's are views of a layer's, of which nobody else knows
        t.requires_grad_()
        if grad:
            with pytest.raises(RuntimeError, match="only change requires_grad flags of leaf"):
                t.requires_grad_(False)


@EACH
def test_results_can_be_detached_in_place(kind: str, request: pytest.FixtureRequest) -> None:
    if kind in CELLS and request.getfixturevalue("entry") == "python":
        reason = "a cell's results are views of a layer's, which torch does not detach in place; torch.nn's are none"
        request.applymarker(pytest.mark.xfail(reason=reason, raises=RuntimeError, strict=True))
    for t in Call(kind)().values():
        t.detach_()
        assert t.is_leaf


@EACH
def test_results_go_into_the_next_call(kind: str) -> None:
    """The state is carried over three calls; then detached from the past, as truncated training does."""
    call = Call(kind)
    found = []
    for module in (call.ours, call.theirs):
        states = {}
        for _ in range(3):
            results = call(module, **states)
            states = {"h0": results["h_n"]} | ({"c0": results["c_n"]} if "c_n" in results else {})
        first = {f"before {name}": t for name, t in call.gradients(results, module).items()}
        states = {name: t.detach().requires_grad_() for name, t in states.items()}
        results = call(module, **states)
        found.append(first | twins.gradients(results, module, **states))
    assert_close_by_name(*found, 4 * TERMS)


# -- modes ------------------------------------------------------------------------------------------------------------


@EACH
def test_modes_without_gradients(kind: str) -> None:
    call = Call(kind)
    plain = {name: t.detach() for name, t in call().items()}
    modes: dict[str, Callable[[], Named]] = {
        "no_grad": torch.no_grad()(call),
        "set_grad_enabled": torch.set_grad_enabled(False)(call),
        "inference_mode": torch.inference_mode()(call),
        "decorated": lambda: (setattr(call.ours, "forward", torch.no_grad()(call.ours.forward)), call())[1],
    }
    torch.set_grad_enabled(True)
    for name, run in modes.items():
        results = run()
        equal(results, plain)
        assert not any(t.requires_grad or t.grad_fn is not None for t in results.values()), name
        assert all(t.is_inference() is (name == "inference_mode") for t in results.values())
        assert torch.is_grad_enabled()


@EACH
def test_modes_inside_modes(kind: str) -> None:
    call = Call(kind)
    plain = call.both()
    with torch.no_grad(), torch.enable_grad():
        equal(call.both(), plain)
    with torch.inference_mode(), torch.inference_mode(False):
        equal(call.both(), plain)


@EACH
def test_enabled_gradients_inside_inference_mode(kind: str) -> None:
    with torch.inference_mode(), torch.enable_grad():
        assert not any(t.requires_grad for t in Call(kind)().values())


@EACH
def test_inference_tensors_outside_of_inference_mode(kind: str) -> None:
    """They may go in where nothing must be saved, and torch refuses to save them."""
    call = Call(kind)
    plain = call()
    with torch.inference_mode():
        made = {name: t.detach().clone() for name, t in call.inputs.items()}
    with torch.no_grad():
        results = call(**made)
    equal(results, plain)
    assert not any(t.is_inference() for t in results.values())
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        call(**made)
    for p in call.ours.parameters():
        p.requires_grad_(False)
    results = call(**made)
    equal(results, plain)
    for t in results.values():
        t.mul_(2)  # an inference tensor would refuse this
        assert not t.is_inference()


def test_weights_made_in_inference_mode() -> None:
    for layer, shape in ((sf.LSTM, (T, B, I)), (sf.GRUCell, (B, I))):
        with torch.inference_mode():
            module: Any = layer(I, H)
            wanted = module(torch.ones(shape))[0].clone()
            for p in module.parameters():
                p.mul_(2)
            doubled = module(torch.ones(shape))[0].clone()
        assert not torch.equal(wanted, doubled)
        with torch.no_grad():
            assert torch.equal(module(torch.ones(shape))[0], doubled)


@EACH
def test_requires_grad_of_weights_is_read_at_every_call(kind: str) -> None:
    call = Call(kind)
    plain = call.both()
    for t in call.inputs.values():
        t.requires_grad_(False)
    for _ in range(2):
        call.ours.requires_grad_(False)
        assert not any(t.requires_grad for t in call().values())
        call.ours.requires_grad_()
        loss(call()).backward()
        assert all(p.grad is not None and p.grad.any() for p in call.ours.parameters())
    for t in call.inputs.values():
        t.requires_grad_()
    equal(call.both(), plain)

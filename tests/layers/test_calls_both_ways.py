"""One call made both ways: the same bits, or the same exception with the same sentence, for every form of a call.

With the entry "python" both calls go the same way; what is expected besides is torch.nn's result, or that it raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence
from torch.utils._pytree import tree_leaves

import seqcls_fast as sf
from seqcls_fast import ops
from seqcls_fast.ops import available_impls, rnn_layer
from support.calls import CELLS, EACH, EACH_MODULE, B, Call, H, I, T, close, equal, numbered, python_way
from support.twins import hx_of, pair, x_of

pytestmark = [
    pytest.mark.usefixtures("entry"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:torch.quantize_per_tensor"),
]


def outcome(function: Callable[[], Any]) -> tuple[str, dict[str, Tensor]]:
    """The kind of an exception with the first line of its text, or the tensors of a result."""
    try:
        result = function()
    except Exception as error:
        first = str(error).split("\n")[0]
        return f"{type(error).__name__}: {re.sub(r'j[0-9]+', 'j', first)}", {}
    return "", numbered(t for t in tree_leaves(result) if isinstance(t, Tensor))


def both_ways(function: Callable[[], Any]) -> tuple[str, dict[str, Tensor]]:
    error, tensors = outcome(function)
    with python_way():
        other_error, other = outcome(function)
    assert error == other_error
    equal(tensors, other)
    for name, t in tensors.items():
        assert (t.dtype, t.stride(), t.requires_grad) == (
            other[name].dtype,
            other[name].stride(),
            other[name].requires_grad,
        )
    return error, tensors


@EACH
def test_the_eager_entry_takes_plain_calls(kind: str, entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no others do, so that the tests of both entries are tests of two ways."""

    def ran(*_: Any, **__: Any) -> Any:
        raise AssertionError("the Python way")

    call = Call(kind)
    plain = call.both()
    monkeypatch.setattr(ops, "autocasts", ran)  # which every call asks in Python
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            if entry == "eager":
                equal(call.both() if grad else call(), plain if grad else {name: plain[name] for name in call()})
            with python_way(), pytest.raises(AssertionError, match="the Python way"):
                call()


# -- forms of a call --------------------------------------------------------------------------------------------------

FORMS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "plain": lambda m, x, hx: m(x),
    "hx": lambda m, x, hx: m(x, hx),
    "hx by name": lambda m, x, hx: m(input=x, hx=hx),
    "unbatched": lambda m, x, hx: m(x[:, 0]),
    "packed": lambda m, x, hx: m(pack_padded_sequence(x, torch.tensor([4, 4, 3, 1])), hx),
    "packed anyhow": lambda m, x, hx: m(pack_padded_sequence(x, torch.tensor([1, 4, 2, 4]), enforce_sorted=False), hx),
    "packed list": lambda m, x, hx: m(pack_sequence([x[:, 0], x[:2, 1]])),
    "no rows": lambda m, x, hx: m(x[:, :0]),
    "one step or row": lambda m, x, hx: m(x[:1]),
    "no steps": lambda m, x, hx: m(x[:0], hx),
    "4-D": lambda m, x, hx: m(x[None], hx),
    "1-D": lambda m, x, hx: m(x[0, 0], hx),
    "other features": lambda m, x, hx: m(x[..., 1:], hx),
    "float32": lambda m, x, hx: m(x.float(), hx),
    "complex": lambda m, x, hx: m(x.to(torch.complex64), hx),
    "integers": lambda m, x, hx: m(x.long(), hx),
    "meta": lambda m, x, hx: m(x.to("meta"), hx),
    "hx for fewer rows": lambda m, x, hx: m(x[:, :2], hx),
    "hx of a list": lambda m, x, hx: m(x, [1, 2]),
    "unbatched hx": lambda m, x, hx: m(x, tuple(t[:, 0] for t in hx) if isinstance(hx, tuple) else hx[:, 0]),
    "float32 hx": lambda m, x, hx: m(x, tuple(t.float() for t in hx) if isinstance(hx, tuple) else hx.float()),
    "meta hx": lambda m, x, hx: m(x, tuple(t.to("meta") for t in hx) if isinstance(hx, tuple) else hx.to("meta")),
    "a tensor or a tuple too much": lambda m, x, hx: m(x, hx[0] if isinstance(hx, tuple) else (hx, hx)),
    "three states": lambda m, x, hx: m(x, (hx, hx, hx)),
    "nothing": lambda m, x, hx: m(None),
    "an array": lambda m, x, hx: m(x.numpy()),
    "three arguments": lambda m, x, hx: m(x, hx, hx),
    "an unknown argument": lambda m, x, hx: m(x, hx, length=3),
}  # fmt: skip
OURS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "lengths": lambda m, x, hx: m(x, hx, lengths=torch.tensor([3, 0, 4, 1])),
    "int32 lengths": lambda m, x, hx: m(x, lengths=torch.tensor([3, 0, 4, 1], dtype=torch.int32)),
    "listed lengths": lambda m, x, hx: m(x, hx, lengths=[1, 2, 3, 4]),
    "a length of an unbatched input": lambda m, x, hx: m(x[:, 0], lengths=[3]),
    "the same without a dimension": lambda m, x, hx: m(x[:, 0], lengths=torch.tensor(3)),
    "no output": lambda m, x, hx: m(x, hx, want_output=False),
    "lengths and no output": lambda m, x, hx: m(x, lengths=[4, 4, 4, 4], want_output=False),
    "no output of packed rows": lambda m, x, hx: m(
        pack_padded_sequence(x, torch.tensor([4, 4, 3, 1])), hx, want_output=False
    ),
}
REFUSED: dict[str, Callable[[Any, Any, Any], Any]] = {
    "lengths beyond T": lambda m, x, hx: m(x, lengths=[6, 1, 1, 1]),
    "negative lengths": lambda m, x, hx: m(x, lengths=torch.tensor([-1, 1, 1, 1])),
    "lengths of fractions": lambda m, x, hx: m(x, lengths=torch.tensor([1.0, 1, 1, 1])),
    "too few lengths": lambda m, x, hx: m(x, lengths=[1, 1]),
    "two lengths of an unbatched input": lambda m, x, hx: m(x[:, 0], lengths=[4, 4]),
    "lengths with packed rows": lambda m, x, hx: m(pack_sequence([x[:, 0]]), lengths=[4]),
    "lengths by position": lambda m, x, hx: m(x, hx, [5, 5, 5, 5]),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "both directions": {"bidirectional": True},
    "two layers": {"num_layers": 2, "bidirectional": True, "bias": False},
}
KINDS = [("RNN", {"nonlinearity": "relu"}), ("GRU", {}), ("LSTM", {}), ("LSTM", {"proj_size": 2})]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("kind", "more"), KINDS, ids=["RNN", "GRU", "LSTM", "LSTM projected"])
def test_forms_of_a_call(kind: str, more: dict[str, Any], options: str) -> None:
    """Where torch.nn takes the call, ours is close to it; where it raises, ours raises."""
    ours, theirs = pair(getattr(sf, kind), getattr(nn, kind), I, H, **OPTIONS[options], **more)
    hx, x = hx_of(ours), x_of(B, B, I)  # as many steps as rows, so that either of them may come first
    for name, form in (FORMS | OURS | REFUSED).items():
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                error, tensors = both_ways(lambda form=form: form(ours, x, hx))
                assert all(t.requires_grad is grad for t in tensors.values() if t.is_floating_point()), name
                if name in FORMS:
                    other_error, wanted = outcome(lambda form=form: form(theirs, x, hx))
                    assert bool(error) == bool(other_error), f"{name}: {error or 'taken'} but {other_error or 'taken'}"
                    assert tensors.keys() == wanted.keys(), name
                    close(*({k: t for k, t in found.items() if t.is_floating_point()} for found in (tensors, wanted)))
        if name in REFUSED:
            assert error, name
        elif name in OURS:
            assert not error, name


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("kind", "more"), KINDS, ids=["RNN", "GRU", "LSTM", "LSTM projected"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_of_every_form(kind: str, more: dict[str, Any], options: str, dtype: torch.dtype) -> None:
    module: Any = getattr(sf, kind)(I, H, **OPTIONS[options], **more, dtype=dtype)
    states = hx_of(module)
    hx = tuple(t.to(dtype).requires_grad_() for t in (states if isinstance(states, tuple) else (states,)))
    x = x_of(B, B, I).to(dtype).requires_grad_()
    usual = ("plain", "hx", "packed", "packed anyhow", "one step or row")
    for name, form in (FORMS | OURS).items():
        if name not in usual and name not in OURS:
            continue
        for recompute in (False, True):
            module.recompute_gates = recompute

            def run(form: Any = form) -> Any:
                result = form(module, x, hx if len(hx) == 2 else hx[0])
                tensors = [t for t in tree_leaves(result) if isinstance(t, Tensor) and t.requires_grad]
                leaves = [x, *hx, *module.parameters()]
                return torch.autograd.grad(tensors, leaves, [t.detach().cos() for t in tensors], allow_unused=True)

            error, tensors = both_ways(run)
            assert not error
            assert len(tensors) >= 3
            assert all(t.any() for t in tensors.values()) or name == "one step or row"  # with a state of zeros
            assert tensors["0"].any()


def test_options_of_rnn_layer() -> None:
    """Every option of the functional entry, on every implementation."""
    x, h0, c0 = (x_of(*shape).requires_grad_() for shape in ((T, B, I), (2, B, 2), (2, B, H)))
    weights = [[x_of(*shape, seed=k).mul(0.3).requires_grad_() for k in range(2)]
               for shape in ((4 * H, I), (4 * H, 2), (4 * H,), (4 * H,), (2, H))]  # fmt: skip
    lengths = torch.tensor([5, 2, 0, 3])
    plain = {"lengths": None, "batch_first": False, "want_output": True, "recompute": False}
    changes: list[dict[str, Any]] = [
        {},
        {"lengths": lengths},
        {"batch_first": True, "x": x.detach().movedim(1, 0).requires_grad_()},
        {"want_output": False},
        {"recompute": True},
        {"lengths": lengths.int(), "want_output": False, "recompute": True},
        {"h0": None, "c0": None},
        {"c0": None},
    ]
    for impl, change in product(("auto", *available_impls()), changes):
        given = {"x": x, "h0": h0, "c0": c0} | plain | change
        every = (given["x"], given["h0"], given["c0"], *(w for kind in weights for w in kind))
        leaves = [t for t in every if t is not None]

        def run(impl: str = impl, given: Any = given, leaves: Any = leaves) -> Any:
            rest = {name: value for name, value in given.items() if name != "x"}
            results = [t for t in rnn_layer(given["x"], *weights, cell="lstm", impl=impl, **rest) if t is not None]
            return results, torch.autograd.grad(results, leaves, [t.detach().cos() for t in results])

        error, tensors = both_ways(run)
        assert not error
        assert all(t.any() for t in tensors.values())


# -- odd tensors in the place of each argument ------------------------------------------------------------------------


def shrunk(t: Tensor, size: int = 0) -> Tensor:
    copy = t.clone()
    copy.untyped_storage().resize_(size)
    return copy


SOUND: dict[str, Callable[[Tensor], Tensor]] = {
    "negated when it is read": lambda t: torch._neg_view(t.neg()),
    "expanded": lambda t: t[:1].expand_as(t),
    "overlapping": lambda t: torch.arange(999.0, dtype=t.dtype).cos().as_strided(t.shape, [1] * t.dim(), 5),
    "the last dimension first": lambda t: t.movedim(-1, 0).contiguous().movedim(0, -1),
    "at an odd offset": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "every second": lambda t: t.repeat_interleave(2, -1)[..., ::2],
}
UNSOUND: dict[str, Callable[[Tensor], Any]] = {
    "sparse": lambda t: t.to_sparse(),
    "nested": lambda t: torch.nested.nested_tensor(list(t)),
    "jagged": lambda t: torch.nested.nested_tensor(list(t), layout=torch.jagged),
    "of oneDNN": lambda t: t.float().to_mkldnn(),
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "complex": lambda t: t.to(torch.complex128),
    "conjugated when it is read": lambda t: t.to(torch.complex128).conj(),
    "bool": lambda t: t > 0,
    "integers": lambda t: t.long(),
    "float32": lambda t: t.float(),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "freed": shrunk,
    "one byte short": lambda t: shrunk(t, t.numel() * 8 - 1),
    "meta": lambda t: t.to("meta"),
    "uninitialized": lambda t: nn.UninitializedParameter(),
    "0-D": lambda t: t.sum(),
    "one more": lambda t: torch.cat([t, t[..., :1]], -1),
    "a dimension more": lambda t: t[None],
}
EITHER: dict[str, Callable[[Tensor], Any]] = {"None": lambda t: None, "fewer": lambda t: t[:-1]}


@EACH
@pytest.mark.parametrize("grad", [True, False])
def test_odd_tensors(kind: str, grad: bool) -> None:
    """Never a crash, and never another number: right, or refused by the sentence of the Python way."""
    call = Call(kind)
    call.ours.requires_grad_(grad)
    weights = dict(call.ours.named_parameters())
    for name, t in (call.inputs | weights).items():
        t = t.detach()
        for odd, make in (SOUND | UNSOUND | EITHER).items():
            if odd in ("nested", "jagged") and t.dim() == 1:
                continue  # torch makes none
            made = make(t)

            def run(module: Any, made: Any, name: str = name) -> Any:
                if name in weights:
                    return call(lambda *args: functional_call(module, {name: made}, args))
                return call(module, **{name: made})

            error, tensors = both_ways(lambda run=run, made=made: run(call.ours, made))
            if odd in SOUND:
                assert not error, f"{name}, {odd}"
                copied = made.resolve_neg().clone(memory_format=torch.contiguous_format)
                close(tensors, numbered(tree_leaves(run(call.theirs, copied))))
            elif odd in UNSOUND and (kind, name, odd) != ("rnn_layer", "x", "integers"):
                assert error, f"{name}, {odd}"


@EACH_MODULE
def test_weights_that_are_missing(kind: str) -> None:
    """Set to None or deleted. torch counts one bias of a cell that is None as zeros; everything else is refused."""
    for name, _ in Call(kind).ours.named_parameters():
        for remove in (lambda m, n: setattr(m, n, None), delattr):
            call = Call(kind)
            call()
            remove(call.ours, name)
            error, _ = both_ways(call)
            assert bool(error) != (kind in CELLS and "bias" in name and remove is not delattr), name


@EACH
def test_memory_that_is_freed_before_the_backward(kind: str) -> None:
    for name in (*Call(kind).inputs, *(n for n, _ in Call(kind).ours.named_parameters() if n.startswith("weight"))):
        call = Call(kind)
        results = list(call().values())
        leaf = (call.inputs | dict(call.ours.named_parameters()))[name]
        leaf.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match=r"expected memory for shape|out of bounds for storage"):
            torch.autograd.grad(results, list(call.ours.parameters())[:1], [torch.ones_like(t) for t in results])

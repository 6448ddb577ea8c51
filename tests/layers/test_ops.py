"""torch's own checks of custom ops, and wrong arguments of rnn_layer: each raises an error that names the argument, and
none crashes or is broadcast."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from seqcls_fast import _autograd, _ext, _spec, ops
from support.cases import CELLS, Case
from support.checks import flat_arguments, forward_arguments

needs_extension = pytest.mark.skipif(_ext.C is None, reason=f"the compiled extension is missing: {_ext.why_missing}")
# test_autograd_registration is left out for the ops that training calls: their gradients are not registered with the
# dispatcher but are in the Functions of _autograd.py, so that a call without a graph costs nothing more. rnn_layer, the
# op of exported programs, has its gradients registered and passes every check.
CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
ALL_CHECKS = (*CHECKS, "test_autograd_registration")
# opcheck compares the results of two runs. The tensor that is saved for the backward has room for whole vectors and for
# every step, and the room of missing units and steps is not written. H = 16 and no lengths leave no such room.
FULL = [
    *(Case(cell, H=16, directions=2) for cell in CELLS),
    Case("lstm", H=32, proj=True, dtype="float64", layout="batch_first"),
    Case("gru", H=16, layout="packed", dtype="bfloat16"),
    Case("rnn_tanh", H=16, bias=False, state=False, want_output=False),
    Case("gru", H=16, directions=2, ids=True),
]
RAGGED = [
    *(Case(cell, directions=2, lengths="random") for cell in CELLS),
    Case("lstm", proj=True, lengths="zeros", layout="batch_first"),
    Case("gru", lengths="random", layout="packed", state=False, dtype="bfloat16"),
    Case("lstm", lengths="random", layout="batch_first", ids=True),
]


def opcheck(op: Any, *args: Any, checks: tuple[str, ...] = CHECKS) -> Any:
    torch.library.opcheck(op.default, args, test_utils=checks)
    return op.default(*args)


@needs_extension
@pytest.mark.parametrize("case", RAGGED, ids=str)
def test_opcheck_inference(case: Case, compiled: str) -> None:
    tensors, options = flat_arguments(case, compiled)
    for want_output in (True, False):
        tail = (options["cell"], case.directions, options["batch_first"], want_output, False, compiled)
        opcheck(torch.ops.seqcls_fast.rnn_forward, *forward_arguments(tensors), *tail)


@needs_extension
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("case", RAGGED, ids=str)
def test_opcheck_of_exported_programs(case: Case, train: bool, compiled: str) -> None:
    tensors, options = flat_arguments(case, compiled)
    for want_output in (True, False):
        tail = (options["cell"], case.directions, options["batch_first"], want_output, compiled)
        args = (*forward_arguments(tensors), *tail)
        given = (args[0], *args[1], *args[2:4])
        leaves = [t.requires_grad_() for t in given if train and t is not None and t.is_floating_point()]
        results = opcheck(torch.ops.seqcls_fast.rnn_layer, *args, checks=ALL_CHECKS)
        if train:
            rest = (tensors[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr", "h0", "c0"))
            keywords = {name: tensors[name] for name in ("lengths", "batch_sizes")}
            output, *finals = ops.rnn_layer(tensors["x"], *rest, **keywords, **options, want_output=want_output)
            wanted = [t for t in (*finals, output if want_output else None) if t is not None]
            found = (torch.autograd.grad(r, leaves, [t.cos() for t in r], allow_unused=True) for r in (results, wanted))
            for a, b in zip(*found, strict=True):
                assert torch.equal(a, b)


@needs_extension
@pytest.mark.parametrize("case", FULL, ids=str)
def test_opcheck_training(case: Case, compiled: str) -> None:
    tensors, options = flat_arguments(case, compiled)
    library = torch.ops.seqcls_fast
    cell, batch_first, impl = options["cell"], options["batch_first"], options["impl"]
    fixed = forward_arguments(tensors)
    h_n, *c_n, output, saved = opcheck(
        library.rnn_forward, *fixed, cell, case.directions, batch_first, case.want_output, True, impl
    )
    d_output = torch.randn_like(output) if case.want_output else None
    d_c_n = torch.randn_like(c_n[0]) if c_n else None
    for grads in ((d_output, torch.randn_like(h_n), d_c_n), (None, torch.randn_like(h_n), None)):
        for samples in (0, case.B) if case.layout != "packed" else (0,):
            for want_d_weights in (True, False):
                opcheck(
                    library.rnn_backward, *grads, *fixed, output, saved, cell, case.directions, batch_first,
                    not case.ids, want_d_weights, samples, impl,
                )  # fmt: skip


class WatchTf32(TorchDispatchMode):
    """Lists the names of the ops that are called, each with its allow_tf32."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, bool]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "seqcls_fast":
            names = [argument.name for argument in func._schema.arguments]
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            # torch leaves out arguments that have their default value
            self.seen.append((func._schema.name.split("::")[1], given.get("allow_tf32", False)))
        return func(*args, **kwargs or {})


@needs_extension
@pytest.mark.parametrize("setting", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("way", ["inference", "exported", "vmap"])
def test_torchs_setting_decides_on_tf32_on_cuda(
    way: str, device: str, dtype: torch.dtype, setting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "_DEVICES", ("cpu", "cuda"))  # whatever the extension was built for
    if way == "exported":
        monkeypatch.setattr(torch._C, "_is_tracing", lambda: True)

    def layer(x: Tensor, w_ih: Tensor, w_hh: Tensor) -> Tensor:
        return ops.rnn_layer(x, [w_ih], [w_hh], cell="gru")[1]

    before = torch.backends.cudnn.allow_tf32
    torch._C._set_cudnn_allow_tf32(setting)
    try:
        with FakeTensorMode(), WatchTf32() as watch:
            x, *weights = (torch.zeros(s, dtype=dtype, device=device) for s in ((4, 2, 3), (12, 3), (12, 4)))
            if way == "vmap":
                torch.func.vmap(layer, (0, None, None))(torch.stack([x, x, x]), *weights)
            else:
                layer(x, *weights)
    finally:
        torch._C._set_cudnn_allow_tf32(before)
    name = "rnn_layer" if way == "exported" else "rnn_forward"
    assert watch.seen == [(name, setting and device == "cuda" and dtype == torch.float32)]


@needs_extension
@pytest.mark.parametrize("allow_tf32", [True, False])
def test_tf32_reaches_the_backward(allow_tf32: bool, compiled: str) -> None:
    x, *weights = (torch.ones(s, requires_grad=True) for s in ((4, 2, 3), (12, 3), (12, 4)))
    tensors = _spec.with_options((x, None, None, None, None, *weights))
    spec = _autograd.Spec(1, "gru", False, True, compiled, allow_tf32)
    for recompute, function in itertools.product((False, True), (_autograd.Layer.apply, _autograd.transformed_layer)):
        with WatchTf32() as watch:
            output, h_n, _ = function(spec.replace(recompute=recompute), *tensors)
            (d_x,) = torch.autograd.grad(output.sum() + h_n.sum(), x, create_graph=True)
        assert set(watch.seen) == {(name, allow_tf32) for name in ("rnn_forward", "rnn_backward")}
        assert d_x.grad_fn is not None
    with WatchTf32() as watch:
        tail = ("gru", 1, False, True, compiled, allow_tf32)
        h_n, _ = torch.ops.seqcls_fast.rnn_layer.default(x, weights, None, None, None, None, *tail)
        h_n.sum().backward()
    assert watch.seen == [(name, allow_tf32) for name in ("rnn_layer", "rnn_forward", "rnn_backward")]
    with WatchTf32() as watch:
        torch.func.vmap(lambda x: torch.ops.seqcls_fast.rnn_layer.default(x, weights, None, None, None, None, *tail))(
            torch.ones(3, 4, 2, 3)
        )
    assert watch.seen == [("rnn_layer", allow_tf32)]


@needs_extension
def test_tf32_on_the_cpu_changes_nothing(compiled: str) -> None:
    tensors, _ = flat_arguments(Case("lstm", H=16), compiled)
    fixed = forward_arguments(tensors)
    forward, backward = torch.ops.seqcls_fast.rnn_forward.default, torch.ops.seqcls_fast.rnn_backward.default
    h_n, c_n, output, saved = forward(*fixed, "lstm", 1, False, True, True, compiled)
    results = []
    for allow_tf32 in (False, True):
        found = opcheck(torch.ops.seqcls_fast.rnn_forward, *fixed, "lstm", 1, False, True, True, compiled, allow_tf32)
        tail = ("lstm", 1, False, True, True, 0, compiled, allow_tf32)
        results.append([*found, *backward(output, h_n, c_n, *fixed, output, saved, *tail)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@needs_extension
@pytest.mark.parametrize("cell", CELLS)
def test_backward_refuses_what_forward_did_not_return(cell: str, compiled: str) -> None:
    """The ops are public: a saved or output tensor of another call raises an error and is not read out of bounds."""
    case = Case(cell, T=4, B=3, H=20)
    tensors, _ = flat_arguments(case, compiled)
    tail = (cell, 1, False, True, True, 0, compiled)
    fixed = forward_arguments(tensors)
    h_n, *_, output, saved = torch.ops.seqcls_fast.rnn_forward.default(*fixed, cell, 1, False, True, True, compiled)
    wrong: dict[str, tuple[Tensor, Tensor]] = {"output": (output[:-1], saved), "output type": (output.double(), saved)}
    if saved.numel():
        wrong |= {"saved": (output, saved[..., :-1]), "saved empty": (output, saved.new_empty(0))}
    for name, pair in wrong.items():
        with pytest.raises(RuntimeError, match=name.split()[0]):
            torch.ops.seqcls_fast.rnn_backward.default(None, h_n, None, *fixed, *pair, *tail)
    with pytest.raises(RuntimeError, match="d_h_n"):
        torch.ops.seqcls_fast.rnn_backward.default(None, h_n[:, 1:], None, *fixed, output, saved, *tail)


@needs_extension
@pytest.mark.parametrize("lengths", [[5, 1], [1, -1], [2**40, 1], [1], [1, 1, 1]])
def test_op_checks_lengths_itself(lengths: list[int], compiled: str) -> None:
    tensors, _ = flat_arguments(Case("gru", T=4, B=2), compiled)
    tensors["lengths"] = torch.tensor(lengths)
    with pytest.raises(RuntimeError, match="lengths: expected"):
        torch.ops.seqcls_fast.rnn_forward.default(*forward_arguments(tensors), "gru", 1, False, True, False, compiled)


SOUND = Case("lstm", T=4, B=3, I=5, H=6, directions=2, proj=True)


def sound() -> dict[str, Any]:
    """Valid keyword arguments of rnn_layer."""
    tensors, options = flat_arguments(SOUND, "auto")
    return tensors | options


def longer(t: Tensor, dim: int) -> Tensor:
    return torch.cat([t, t.narrow(dim, 0, 1)], dim)


def shorter(t: Tensor, dim: int) -> Tensor:
    return t.narrow(dim, 0, t.size(dim) - 1)


RESIZED = [
    (name, dim, change)
    for name, rank in {"x": 3, "w_ih": 2, "w_hh": 2, "b_ih": 1, "b_hh": 1, "w_hr": 2, "h0": 3, "c0": 3}.items()
    for dim in range(rank)
    for change in (longer, shorter)
    if (name, dim) != ("x", 0)  # any number of steps is right
]


@pytest.mark.parametrize(("name", "dim", "change"), RESIZED, ids=lambda v: getattr(v, "__name__", str(v)))
def test_any_wrong_size(name: str, dim: int, change: Callable[[Tensor, int], Tensor], checked: str) -> None:
    """A size that is one too large or too small raises; the tensor is not read out of bounds and not broadcast."""
    given = sound() | {"impl": checked}
    value = given[name]
    given[name] = [value[0], change(value[1], dim)] if isinstance(value, list) else change(value, dim)
    with pytest.raises(RuntimeError, match=r"expected|Expected"):
        ops.rnn_layer(**given)


X = torch.zeros(4, 3, 5)
PACKED = {"x": torch.zeros(7, 5)}
# rnn_layer checks these itself. Those of WRONG_FOR_OP are checked by the op, and before torch's own layer is called.
# The reference leaves them to torch's operations.
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("lengths: expected", {"lengths": torch.tensor([1, -1, 2])}),
    ("lengths: expected", {"lengths": torch.tensor([1, 5, 2])}),
    ("lengths: expected", {"lengths": torch.tensor([1, 2])}),
    ("lengths: expected", {"lengths": torch.tensor([[1, 2, 3]])}),
    ("lengths: expected", {"lengths": torch.tensor(2)}),
    ("lengths: expected", {"lengths": torch.tensor([1.0, 2.0, 3.0])}),
    ("lengths: expected", {"lengths": torch.tensor([True, False, True])}),
    ("lengths: expected", {"lengths": torch.tensor([2**32 + 1, 1, 1])}),
    ("lengths: expected", {"lengths": torch.tensor([1, 2, 3]), "batch_sizes": torch.tensor([3, 3, 1])} | PACKED),
    ("sequence length|at least one step", {"x": torch.zeros(0, 3, 5)}),
]
GRU = {"cell": "gru", "w_ih": [torch.zeros(9, 5)] * 2, "w_hh": [torch.zeros(9, 3)] * 2, "b_ih": (), "b_hh": ()}
WRONG_FOR_OP: list[tuple[str, dict[str, Any]]] = [
    ("batch_sizes: expected", {"batch_sizes": torch.tensor([3, 3, 2])} | PACKED),
    ("batch_sizes: expected", {"batch_sizes": torch.tensor([3, 1, 3])} | PACKED),
    ("batch_sizes: expected", {"batch_sizes": torch.tensor([3, 4, 0])} | PACKED),
    ("batch_sizes: expected", {"batch_sizes": torch.tensor([3.0, 3.0, 1.0])} | PACKED),
    ("batch_sizes: expected", {"batch_sizes": torch.tensor([[3, 3, 1]])} | PACKED),
    ("batch_sizes: expected", {"batch_sizes": torch.tensor([], dtype=torch.int64)} | PACKED),
    ("x: expected", {"x": X.long()}),
    ("x: expected", {"x": X.bool()}),
    ("w_ih: expected dtype torch.complex64", {"x": X.cfloat()}),
    ("x: expected", {"x": torch.zeros(4, 5)}),
    ("x: expected", {"x": torch.zeros(1, 4, 3, 5)}),
    ("expected", {"x": X.double()}),
    ("h0: expected", {"h0": torch.zeros(2, 3, 3).double()}),
    ("h0: expected", {"h0": torch.zeros(1, 3, 3)}),
    ("h0: expected", {"h0": torch.zeros(2, 1, 3)}),
    ("w_ih: expected", {"w_ih": []}),
    ("w_hh: expected", {"w_hh": [torch.zeros(24, 3)]}),
    ("b_hh: expected", {"b_hh": ()}),
    ("w_hr: expected", {"w_hr": [torch.zeros(3, 6)]}),
    ("w_hr: expected", GRU | {"c0": None}),
    ("c0: expected", GRU | {"w_hr": ()}),
]


@pytest.mark.parametrize(("message", "change"), WRONG)
def test_wrong_argument(message: str, change: dict[str, Any], impl: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ops.rnn_layer(**sound() | {"impl": impl} | change)


@pytest.mark.parametrize(("message", "change"), WRONG_FOR_OP)
def test_wrong_argument_for_the_op(message: str, change: dict[str, Any], checked: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        ops.rnn_layer(**sound() | {"impl": checked} | change)


@pytest.mark.parametrize("name", ["x", "h0", "lengths"])
def test_mixed_devices(name: str, checked: str) -> None:
    given = sound() | {"impl": checked, "lengths": torch.tensor([1, 2, 3])}
    with pytest.raises((RuntimeError, NotImplementedError), match=r"device|meta"):
        ops.rnn_layer(**given | {name: given[name].to("meta")})


def test_unknown_names(impl: str) -> None:
    with pytest.raises(ValueError, match=r"one of rnn_tanh, rnn_relu, gru, lstm, .* but got 'LSTM'"):
        ops.rnn_layer(**sound() | {"impl": impl, "cell": "LSTM"})
    with pytest.raises(ValueError, match=f"one of auto, {', '.join(ops.available_impls())}.* but got 'avx3'"):
        ops.rnn_layer(**sound() | {"impl": "avx3"})
    with pytest.raises(ValueError, match="one of auto, reference"), ops.use_impl("avx3"):
        pass
    with ops.use_impl(impl), pytest.raises(ValueError, match="but got ''"):
        ops.rnn_layer(**sound() | {"impl": ""})


def test_three_directions(checked: str) -> None:
    given = sound() | {"impl": checked, "h0": None, "c0": None}
    for name in ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr"):
        given[name] = [*given[name], given[name][0]]
    with pytest.raises(RuntimeError, match="w_ih: expected"):
        ops.rnn_layer(**given)


def test_sound_arguments_are_accepted(impl: str) -> None:
    """The arguments that the tests above change are valid, also with other integer dtypes and an empty batch."""
    given = sound() | {"impl": impl}
    output, h_n, c_n = ops.rnn_layer(**given)
    assert output is not None
    assert c_n is not None
    assert (output.shape, h_n.shape, c_n.shape) == ((4, 3, 6), (2, 3, 3), (2, 3, 6))
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
        ops.rnn_layer(**given | {"lengths": torch.tensor([4, 0, 1], dtype=dtype)})
    ops.rnn_layer(**given | {"lengths": torch.tensor([4, 9, 0, 9, 1])[::2]})  # every second element, without the 9s
    empty = {"x": torch.zeros(4, 0, 5), "h0": torch.zeros(2, 0, 3), "c0": torch.zeros(2, 0, 6)}
    output, h_n, c_n = ops.rnn_layer(**given | empty)
    assert output is not None
    assert output.shape == (4, 0, 6)


@pytest.mark.parametrize("cell", CELLS)
def test_meta_tensors_have_the_right_shapes(cell: str, impl: str) -> None:
    """Meta tensors give shapes without numbers, as in torch.nn, for models that are built before weights are loaded."""
    tensors, options = flat_arguments(Case(cell, T=4, B=3, directions=2), impl)
    real = ops.rnn_layer(**tensors, **options)
    tensors = {
        name: [t.to("meta") for t in value] if isinstance(value, list) else value if value is None else value.to("meta")
        for name, value in tensors.items()
    }
    for found, want in zip(ops.rnn_layer(**tensors, **options), real, strict=True):
        assert (found is None) == (want is None)
        if found is not None and want is not None:
            assert (found.device.type, found.shape, found.dtype) == ("meta", want.shape, want.dtype)


def test_meta_tensors_of_wrong_shapes_are_refused(compiled: str) -> None:
    x, w_ih, w_hh = (torch.zeros(*shape, device="meta") for shape in ((3, 2, 5), (21, 7), (21, 7)))
    with pytest.raises(RuntimeError, match="w_ih: expected 5 columns, as x has features, but got 7"):
        ops.rnn_layer(x, [w_ih], [w_hh], cell="gru", impl=compiled)


def test_use_impl_is_per_thread_and_restored(impl: str) -> None:
    given = sound() | {"impl": "auto"}

    def h_n() -> Tensor:
        return ops.rnn_layer(**given)[1]

    outside, inside = h_n(), ops.rnn_layer(**given | {"impl": impl})[1]
    with ops.use_impl("reference"):
        with contextlib.suppress(KeyError), ops.use_impl(impl):
            assert torch.equal(h_n(), inside)
            with ThreadPoolExecutor(1) as pool:  # use_impl does not change other threads
                assert torch.equal(pool.submit(h_n).result(), outside)
            raise KeyError
        assert torch.equal(h_n(), ops.rnn_layer(**given | {"impl": "reference"})[1])
    assert torch.equal(h_n(), outside)


def test_batch_first_output_has_steps_outermost_in_memory(impl: str) -> None:
    case = Case("gru", T=4, B=3, layout="batch_first", lengths="random")
    tensors, options = flat_arguments(case, impl)
    output = ops.rnn_layer(**tensors, **options)[0]
    assert output is not None
    assert output.shape == (3, 4, 7)
    assert output.stride() == (7, 3 * 7, 1)

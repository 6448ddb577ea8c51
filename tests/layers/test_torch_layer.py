"""torch's own layer as the fallback: calls that it runs, calls that the reference runs instead, and its graph.

Its results and gradients are also compared in all tests that take `impl`. Most of those use float64 or ragged rows, for
which torch does not run oneDNN's LSTM on a CPU: the tests here use the cases for which it does.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode

import seqcls_fast as sf
from seqcls_fast import _autograd, _eager, _torch_layer, ops
from support.cases import CELLS, Case, build
from support.checks import arguments, compare, expected, gradients, keywords, layer

ROOT = Path(__file__).resolve().parents[2]
MODULES = [("RNN", {}), ("RNN", {"nonlinearity": "relu"}), ("GRU", {}), ("LSTM", {}), ("LSTM", {"proj_size": 3})]
T, B, I, H = 6, 5, 4, 7
LENGTHS = torch.tensor([3, 0, 6, 1, 4])
ONEDNN = [
    Case("lstm", T=6, B=5, I=4, H=7, state=False),
    Case("lstm", T=6, B=5, I=4, H=7, layout="batch_first", bias=False),
    Case("lstm", T=6, B=5, I=4, H=7, directions=2),
]


def not_the_reference(*_: Any) -> Any:
    raise AssertionError("the reference ran")


def not_torch(*_: Any) -> Any:
    raise AssertionError("torch's layer ran")


@pytest.fixture
def only_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch's own layer runs: neither the reference nor our kernels."""
    monkeypatch.setattr(_autograd, "reference_layer", not_the_reference)
    monkeypatch.setattr(_torch_layer, "reference_layer", not_the_reference)
    with sf.use_impl("torch"):
        yield


# -- calls that it runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("kind", "options"), MODULES, ids=str)
@pytest.mark.usefixtures("only_torch")
def test_the_modules_have_the_bits_of_torch_nn(kind: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    """Padded, packed and ragged, forward and backward. Bits are compared where the layer runs in the dtype itself."""
    options = options | {"bidirectional": True, "num_layers": 2, "dtype": dtype}
    ours, theirs = getattr(sf, kind)(I, H, **options), getattr(nn, kind)(I, H, **options)
    theirs.load_state_dict(ours.state_dict())
    x, lengths = torch.randn(T, B, I, dtype=dtype), LENGTHS.clamp(min=1)
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    calls: list[Callable[[Any], Any]] = [lambda m: m(x), lambda m: m(packed)]
    for call in calls:
        found, wanted = (tensors(call(m)) for m in (ours, theirs))
        for results in (found, wanted):
            sum(t.float().cos().sum() for t in results).backward()
        if _torch_layer.runs_wide(dtype):
            continue  # torch's layer ran, in float32: its bits are not those of this dtype
        assert all(map(torch.equal, found, wanted))
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert torch.equal(mine.grad, other.grad)
    ragged, wanted = ours(x, lengths=lengths), ours(packed)
    assert torch.equal(nn.utils.rnn.pack_padded_sequence(ragged[0], lengths, enforce_sorted=False).data, wanted[0].data)
    assert all(map(torch.equal, tensors(ragged[1]), tensors(wanted[1])))


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return tensors(value.data) if hasattr(value, "batch_sizes") else [t for part in value for t in tensors(part)]


WITHOUT_EXTENSION = """
import sys, warnings
sys.modules["seqcls_fast._C"] = None  # importing it fails
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    import torch, seqcls_fast as sf
    from seqcls_fast import _autograd, __main__
    reference, used = _autograd.reference_layer, []
    _autograd.reference_layer = lambda *args: used.append(args) or reference(*args)
    for kind in ("RNN", "GRU", "LSTM"):
        ours, theirs = getattr(sf, kind)(3, 4), getattr(torch.nn, kind)(3, 4)
        theirs.load_state_dict(ours.state_dict())
        x = torch.randn(5, 2, 3)
        assert torch.equal(ours(x)[0], theirs(x)[0])
        ours(x, lengths=[5, 0])[0].sum().backward()
        assert not used
        with sf.use_impl("reference"):
            ours(x)
        assert used.pop() and not used
    model = sf.SequenceClassifier(3, 4, 2, vocab_size=5).eval().prepare_inference()
    with torch.no_grad():
        model(torch.ones(2, 30, dtype=torch.int64))
    assert not used
print(*sf.available_impls())
print(len([t for t in told if "seqcls_fast" in str(t.message)]), told[0].message)
__main__.main(["info"])
"""


def test_without_the_extension_it_runs_and_one_warning_says_so() -> None:
    command = [sys.executable, "-c", WITHOUT_EXTENSION]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    impls, warning, *info = done.stdout.splitlines()
    assert impls == "reference torch"
    assert warning.startswith("1 seqcls_fast runs torch's own recurrent layers and not its kernels: the compiled ext")
    assert any(line.endswith("torch (available: reference, torch)") for line in info)
    assert any(line.startswith("layers on a CPU torch's own, whose bits may depend on batch") for line in info)


def test_a_device_without_kernels_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """On such a device torch's layer runs for impl="auto" and for the name of a compiled implementation."""
    monkeypatch.setattr(ops, "_DEVICES", ("cuda",))
    monkeypatch.setattr(_autograd, "reference_layer", not_the_reference)
    ours, x = sf.GRU(I, H), torch.randn(T, B, I)
    with _eager.off():  # it does not ask for the devices, as it knows the CPU alone
        plain = ours(x)[0]
        for name in ops.available_impls()[1:]:
            with sf.use_impl(name):
                assert torch.equal(ours(x)[0], plain)


@pytest.mark.usefixtures("only_torch")
def test_a_classifier_gives_it_features_and_not_ids() -> None:
    """With ids the layer would run the reference's loop over time, so the table of projections is not used."""
    model = sf.SequenceClassifier(I, H, 3, vocab_size=4).eval()
    ids = torch.randint(4, (8, 20))
    with torch.no_grad():
        plain = model(ids)
        assert torch.equal(model.prepare_inference()(ids), plain)
    with sf.use_impl("auto"):
        torch.testing.assert_close(model(ids), plain)


# -- calls that it cannot run -----------------------------------------------------------------------------------------


class Watched(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def dual(module: nn.Module, x: Tensor) -> Any:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(module(forward_ad.make_dual(x, x))[0]).tangent


def watched(module: nn.Module, x: Tensor) -> Any:
    with Watched():
        return module(x)


def fake(module: nn.Module, x: Tensor) -> Any:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    return module(mode.from_tensor(x))  # the mode itself is not active


def compiled(module: nn.Module, x: Tensor) -> Any:
    torch._dynamo.reset()
    return torch.compile(module, backend="eager", fullgraph=True)(x)


def ids(module: nn.Module, x: Tensor) -> Any:
    weights = list(module.parameters())
    given = torch.ones(T, B, dtype=torch.int64)
    return ops.run_layer(given, weights, 1, None, None, module.mode.lower(), None, None, False, True)


REFERENCE: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "vmap": lambda module, x: torch.vmap(module)(x[None]),
    "grad": lambda module, x: torch.func.grad(lambda x: module(x)[0].sum())(x),
    "forward mode": dual,
    "dispatch mode": watched,
    "fake tensor": fake,
    "meta": lambda module, x: module.to("meta")(x.to("meta")),
    "compiled": compiled,
    "exported": lambda module, x: torch.export.export(module, (x,)),
    "ids": ids,
    "empty batch": lambda module, x: module(x[:, :0]),
}


@pytest.mark.parametrize("name", REFERENCE)
@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_goes_to_the_reference(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torch_layer, "torch_layer", not_torch)
    module = getattr(sf, kind)(I, H)
    with sf.use_impl("torch"):
        with pytest.raises(AssertionError, match="torch's layer ran"):
            module(torch.randn(T, B, I))
        REFERENCE[name](module, torch.randn(T, B, I))


@pytest.mark.filterwarnings("ignore")  # tracing warns
def test_traced_modules_go_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torch_layer, "torch_layer", not_torch)
    with sf.use_impl("torch"):
        torch.jit.trace(sf.GRU(I, H), (torch.randn(T, B, I),), check_trace=False)


class OnCuda(Tensor):
    is_cuda = True


class OnMps(Tensor):
    is_mps = True


def test_limits_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths cannot be read while a CUDA graph is captured, and torch refuses projections on MPS."""
    spec = _autograd.Spec(1, "lstm", False, True, "torch")
    weights = [torch.zeros(4 * H, I), torch.zeros(4 * H, 3), torch.zeros(3, H)]
    rest = {"plain": weights[:2], "projected": weights}
    x = torch.zeros(T, B, I)

    def runs(device: type[Tensor], lengths: Tensor | None, kind: str) -> bool:
        return _torch_layer.can_run(spec, x.as_subclass(device), None, None, lengths, None, *rest[kind])

    for capturing, kind in itertools.product((False, True), rest):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda capturing=capturing: capturing)
        for lengths in (None, LENGTHS):
            assert runs(OnCuda, lengths, kind) == (not capturing or lengths is None)
            assert runs(OnMps, lengths, kind) == (kind == "plain")
            assert runs(Tensor, lengths, kind)


@pytest.mark.parametrize("name", ["x", "w_ih", "w_hh", "h0"])
def test_freed_memory_is_refused(name: str) -> None:
    """oneDNN would read the freed memory."""
    given = {"x": torch.zeros(T, B, I), "w_ih": torch.zeros(4 * H, I), "w_hh": torch.zeros(4 * H, H)}
    given["h0"] = torch.zeros(1, B, H)
    size = given[name].numel() * 4
    given[name].untyped_storage().resize_(size - 4)
    with pytest.raises(RuntimeError, match=f"{name}: expected {size} bytes of memory behind it, but it was freed"):
        ops.rnn_layer(given["x"], [given["w_ih"]], [given["w_hh"]], h0=given["h0"], cell="lstm", impl="torch")


# -- its graph --------------------------------------------------------------------------------------------------------


def leaves_of(case: Case) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
    problem = build(case)
    cotangents = {name: t.to(case.torch_dtype) for name, t in problem.cotangents.items()}
    if case.layout == "batch_first":
        cotangents["output"] = cotangents["output"].transpose(0, 1)
    return arguments(case, problem), keywords(case, problem) | {"impl": "torch"}, cotangents


def as_expected(found: dict[str, Tensor], case: Case) -> None:
    if case.layout == "batch_first":
        found = found | {name: found[name].transpose(0, 1) for name in ("output", "d x")}
    compare(found, expected(case), case)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("case", [*ONEDNN, *(Case(cell, T=1, B=5, I=4, H=7) for cell in CELLS)], ids=str)
def test_results_changed_in_place(case: Case, recompute: bool) -> None:
    """The backward of oneDNN's LSTM reads the output, and that of a single step the states. torch refuses to run them
    after a change of these, so ours must keep copies."""
    inputs, options, cotangents = leaves_of(case)
    results = layer(inputs, recompute=recompute, **options)
    before = {name: t.detach().clone() for name, t in results.items()}
    factors = {"output": 2, "h_n": 4, "c_n": 8}
    for name, t in results.items():
        t.mul_(factors[name])
    given = {name: t / factors[name] for name, t in cotangents.items()}
    for retain in (True, False):
        as_expected(before | gradients(results, inputs, given, retain_graph=retain), case)


@pytest.mark.parametrize("lengths", ["none", "zeros", "all_zero"])
@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("cell", CELLS)
def test_results_have_memory_of_their_own(cell: str, steps: int, lengths: str) -> None:
    """With shared memory, changing one result in place would change another, or a state that was given."""
    inputs, options, _ = leaves_of(Case(cell, T=steps, B=5, I=4, H=7, lengths=lengths))
    results = layer(inputs, **options)
    places = [t.untyped_storage().data_ptr() for t in (*results.values(), *inputs.values())]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize("case", ONEDNN, ids=str)
def test_a_graph_is_used_twice_where_it_is_retained(case: Case) -> None:
    inputs, options, cotangents = leaves_of(case)
    for recompute in (False, True):
        results = layer(inputs, recompute=recompute, **options)
        values = {name: t.detach() for name, t in results.items()}
        for retain in (True, True, False):
            as_expected(values | gradients(results, inputs, cotangents, retain_graph=retain), case)
        with pytest.raises(RuntimeError, match="a second time"):
            gradients(results, inputs, cotangents)


@pytest.mark.parametrize("twice", [True, False])
@pytest.mark.parametrize("case", [*ONEDNN, replace(ONEDNN[0], cell="gru", lengths="zeros")], ids=str)
def test_a_graph_of_the_backward(case: Case, twice: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second derivative after an ordinary backward of the same call. Where torch's backward has no derivative, as on
    a GPU, it must not be used."""
    monkeypatch.setattr(_torch_layer, "_differentiates_twice", lambda _: twice)
    inputs, options, cotangents = leaves_of(case)
    results = layer(inputs, **options)
    values = {name: t.detach() for name, t in results.items()}
    as_expected(values | gradients(results, inputs, cotangents, retain_graph=True), case)
    by_torch: list[Any] = []
    for t in results.values():  # the graph behind TorchLayer is that of torch's layer
        edges = {edge for edge, _ in t.grad_fn.next_functions if edge is not None}
        for edge in edges:
            edge.register_prehook(lambda given: by_torch.extend(grad for grad in given if grad is not None))
    first = gradients(results, inputs, cotangents, create_graph=True)
    assert bool(by_torch) == twice
    as_expected(values | {name: t.detach() for name, t in first.items()}, case)
    second = torch.autograd.grad(sum(t.sum() for t in first.values()), list(inputs.values()))
    wide = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
    first = gradients(
        layer(wide, **{name: value for name, value in options.items() if name != "impl"}),
        wide,
        {name: t.double() for name, t in cotangents.items()},
        create_graph=True,
    )
    wanted = torch.autograd.grad(sum(t.sum() for t in first.values()), list(wide.values()))
    for found, want in zip(second, wanted, strict=True):
        bound = 100 * torch.finfo(torch.float32).eps * max(1.0, float(want.abs().max()))
        torch.testing.assert_close(found.double(), want, rtol=0, atol=bound)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("recompute", [False, True])
def test_changed_weights_are_refused_as_torch_does(cell: str, recompute: bool) -> None:
    inputs, options, cotangents = leaves_of(Case(cell, T=6, B=5, I=4, H=7))
    results = layer(inputs, recompute=recompute, **options)
    with torch.no_grad():
        inputs["w_hh[0]"].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(results, inputs, cotangents)


@pytest.mark.parametrize("lengths", [[9, 0, -4], [5, 0, 0], [0, 0, 0], [5, 5, 5], [7, 7, 9]])
def test_lengths_that_are_not_checked_act_as_if_clamped(lengths: list[int]) -> None:
    """On a GPU lengths are not checked, since the check would wait for the GPU."""
    inputs, options, cotangents = leaves_of(Case("gru", T=5, B=3, I=4, H=7, dtype="float64"))
    flat = [t for name, t in inputs.items() if "[" in name]
    found = {}
    for name, values in {"given": lengths, "clamped": [min(max(n, 0), 5) for n in lengths]}.items():
        spec = _autograd.Spec(1, "gru", False, True, "torch")
        results = _torch_layer.torch_layer(spec, inputs["x"], inputs["h0"], None, torch.tensor(values), None, *flat)
        named = dict(zip(("output", "h_n"), results, strict=False))
        found[name] = named | gradients(named, inputs, cotangents)
    options["lengths"] = torch.tensor([min(max(n, 0), 5) for n in lengths])
    wanted = layer(inputs, **options | {"impl": "reference"})
    wanted |= gradients(wanted, inputs, cotangents)
    for name, want in wanted.items():
        assert torch.equal(found["given"][name], found["clamped"][name]), name
        torch.testing.assert_close(found["given"][name], want)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("cell", "projected"), [("gru", 0), ("rnn_relu", 0), ("lstm", 0), ("lstm", 3)])
def test_weights_in_one_piece_for_cudnn(cell: str, projected: int, bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN gets copies of the weights as torch.nn's flatten_parameters() passes them; gradients reach the weights."""
    asked: list[Any] = []
    monkeypatch.setattr(torch, "_cudnn_rnn_flatten_weight", lambda *args: asked.append(args))
    monkeypatch.setattr("torch.backends.cudnn.rnn.get_cudnn_mode", lambda mode: mode)
    more: dict[str, Any] = {"rnn_relu": {"nonlinearity": "relu"}, "lstm": {"proj_size": projected}}.get(cell, {})
    kind = {"gru": nn.GRU, "lstm": nn.LSTM}.get(cell, nn.RNN)
    module = kind(I, H, bias=bias, bidirectional=True, **more)
    spec = _autograd.Spec(2, cell, True, True, "torch")
    copies = _torch_layer._Flattened.apply(spec, *module.parameters())
    [(given, *rest)] = asked
    assert rest == [2 + 2 * bias + bool(projected), I, module.mode, H, projected, 1, True, True]
    for copy, t, p in zip(given, copies, module.parameters(), strict=True):
        assert copy.data_ptr() == t.data_ptr() != p.data_ptr()
        assert torch.equal(t, p)
    grads = torch.autograd.grad([t.cos().sum() for t in copies], list(module.parameters()))
    assert all(torch.equal(grad, -p.sin()) for grad, p in zip(grads, module.parameters(), strict=True))

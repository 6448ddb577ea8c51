"""torch.compile with fullgraph=True: values, gradients, and the number of compilations. The backend is aot_eager, which
does all of inductor's work but the code generation; inductor itself runs once per cell. Compiled code calls the same
ops, so most tests run on one implementation; test_transforms.py runs every transform on all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import seqcls_fast as sf
from support.checks import NAN
from support.tolerances import assert_close_by_name
from support.twins import named

I, H = 13, 8  # sizes that differ from T and B: torch takes equal sizes for one
LAYERS = {"rnn": sf.RNN, "gru": sf.GRU, "lstm": sf.LSTM}
EACH = pytest.mark.parametrize("name", LAYERS)
SHAPES = ((5, 3), (7, 4), (6, 2), (9, 5), (12, 7))  # T, B: from the third on, torch compiles with dynamic sizes
WORK = 2 * 12 * (I + 3 * H + 10) + 12 * 7


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Model(nn.Module):
    """A model that holds a layer: the operations around the layer are compiled together with it."""

    def __init__(self, layer: Callable[..., Any], **options: Any) -> None:
        super().__init__()
        self.layer = layer(I, H, batch_first=True, **options)
        self.head = nn.Linear(H * (2 if self.layer.bidirectional else 1), 2)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        output, hx = self.layer(torch.tanh(x), lengths=lengths)
        h_n = hx[0] if isinstance(hx, tuple) else hx
        return self.head(output).sigmoid(), h_n.sin()


def gradients(results: dict[str, Tensor | None], module: nn.Module, **inputs: Tensor) -> dict[str, Tensor | None]:
    """Gradients of every parameter and input for a fixed cotangent. Compiled code can run its backward only once."""
    wrt = dict(module.named_parameters()) | inputs
    total = torch.stack(
        [(t * torch.arange(t.numel()).cos().view_as(t)).sum() for t in results.values() if t is not None]
    )
    found = torch.autograd.grad(total.sum(), list(wrt.values()), allow_unused=True)
    return {f"d_{name}": t for name, t in zip(wrt, found, strict=True)}


def compiled_by(backend: Any, function: Any, **options: Any) -> Any:
    return torch.compile(function, fullgraph=True, backend=backend, **options)


def inputs(T: int, B: int, ragged: bool) -> tuple[Tensor, Tensor | None]:
    x = torch.randn(B, T, I, requires_grad=True)
    return x, torch.randint(0, T + 1, (B,)) if ragged else None


def same_results(model: nn.Module, twin: Any, x: Tensor, lengths: Tensor | None, train: bool) -> None:
    found = []
    for module in (twin, model):
        with torch.set_grad_enabled(train):
            results = named(*module(x, lengths))
        found.append(results | (gradients(results, model, x=x) if train else {}))
    assert_close_by_name(*found, WORK)


@EACH
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_dynamic_lengths_and_batches(name: str, ragged: bool, train: bool, compiled: str) -> None:
    model = Model(LAYERS[name], num_layers=2, bidirectional=True)
    counter = CompileCounterWithBackend("aot_eager")
    twin = compiled_by(counter, model)
    with sf.use_impl(compiled):
        for T, B in SHAPES:
            same_results(model, twin, *inputs(T, B, ragged), train)
            if SHAPES[1] == (T, B):
                before = counter.frame_count
    assert before <= 3, "first every size is taken as fixed, then what has changed as dynamic"
    assert counter.frame_count == before, "a new length or batch compiled anew"


@EACH
@pytest.mark.parametrize("train", [False, True])
def test_dynamic_from_the_start_compiles_once(name: str, train: bool) -> None:
    model = Model(LAYERS[name])
    counter = CompileCounterWithBackend("aot_eager")
    twin = compiled_by(counter, model, dynamic=True)
    for T, B in SHAPES:
        same_results(model, twin, *inputs(T, B, True), train)
    assert counter.frame_count == 1


@EACH
def test_inductor(name: str) -> None:
    model = Model(LAYERS[name])
    twin = compiled_by("inductor", model)
    for T, B in SHAPES[:3]:
        for ragged in (False, True):
            same_results(model, twin, *inputs(T, B, ragged), train=True)
    with torch.no_grad():
        same_results(model, twin, *inputs(4, 2, True), train=False)


@EACH
def test_the_graph_does_not_grow_with_the_length(name: str) -> None:
    """A layer is one op for any T, so the time to compile does not grow with T either."""
    sizes = {}
    for T in (3, 300):
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("eager")
        compiled_by(counter, Model(LAYERS[name]))(*inputs(T, 2, True))
        (graph,) = counter.graphs
        sizes[T] = len(graph.graph.nodes)
    assert sizes[3] == sizes[300]


@EACH
@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("given", [True, False], ids=["hx", "no hx"])
@pytest.mark.parametrize("train", [True, False])
def test_packed_sequence_in_and_out(name: str, given: bool, enforce_sorted: bool, train: bool) -> None:
    layer = LAYERS[name](I, H, 2)
    twin = compiled_by("aot_eager", layer)
    for lengths in ([5, 3, 2], [7, 6, 1], [9, 4, 4, 2], [4, 4, 3, 3, 1]):
        lengths = lengths if enforce_sorted else lengths[::-1]
        x = torch.randn(max(lengths), len(lengths), I)
        packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=enforce_sorted)
        h = torch.randn(2, len(lengths), H)
        hx = None if not given else (h, h + 1) if name == "lstm" else h
        found = []
        for module in (twin, layer):
            with torch.set_grad_enabled(train):
                output, final = module(packed, hx)
            assert isinstance(output, PackedSequence)
            assert pad_packed_sequence(output)[1].tolist() == lengths
            results = named(output, final)
            found.append(results | (gradients(results, layer) if train else {}))
        assert_close_by_name(*found, WORK)


def test_states_that_do_not_fit_a_packed_batch_are_refused_at_run_time() -> None:
    twin = compiled_by("aot_eager", sf.GRU(I, H))
    packed = pack_padded_sequence(torch.randn(5, 3, I), torch.tensor([5, 3, 2]))
    with pytest.raises(RuntimeError, match=r"h0: expected shape \(1, 3, 8\) but got \(1, 2, 8\)"):
        twin(packed, torch.zeros(1, 2, H))


@pytest.mark.parametrize("cell", [sf.RNNCell, sf.GRUCell, sf.LSTMCell])
def test_cells(cell: Any) -> None:
    module = cell(I, H)
    twin = compiled_by("aot_eager", lambda x, hx: module(x, module(x, hx)))
    plain = lambda x, hx: module(x, module(x, hx))  # noqa: E731
    for B in (2, 5, 6):
        x, h = torch.randn(B, I), torch.randn(B, H)
        hx = (h, h.cos()) if cell is sf.LSTMCell else h
        found = []
        for function in (twin, plain):
            result = function(x, hx)
            results = {str(k): t for k, t in enumerate(result if isinstance(result, tuple) else (result,))}
            found.append(results | gradients(results, module))
        assert_close_by_name(*found, WORK)


@EACH
def test_output_changed_in_place(name: str) -> None:
    layer = LAYERS[name](I, H)
    function = lambda x: layer(x)[0].mul_(2).relu_()  # noqa: E731
    x = torch.randn(4, 2, I, requires_grad=True)
    found = [
        results | gradients(results, layer, x=x)
        for f in (compiled_by("aot_eager", function), lambda x: (layer(x)[0] * 2).relu())
        for results in ({"output": f(x)},)
    ]
    assert_close_by_name(*found, WORK)


@EACH
def test_autocast(name: str) -> None:
    layer = LAYERS[name](I, H)

    def function(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x)[0]

    x = torch.randn(4, 2, I)
    found, wanted = compiled_by("aot_eager", function)(x), function(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted)


@EACH
@pytest.mark.parametrize("chosen", ["auto", "torch"])
def test_compiled_autograd(chosen: str, name: str) -> None:
    """Only the backward is compiled. It cannot see that the output was changed in place, and must still be right."""
    layer = LAYERS[name](I, H)
    x = torch.randn(4, 2, I, requires_grad=True)
    found = []
    for change in (False, True):
        for context in (torch._dynamo.compiled_autograd._enable(torch.compile(backend="aot_eager")), nullcontext()):
            with sf.use_impl(chosen):
                output = layer(x)[0]
            output = output.mul_(2) if change else output * 2
            x.grad = None
            with context:
                output.sin().sum().backward()
            found.append(x.grad)
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_padding_is_not_read() -> None:
    model = Model(sf.LSTM)
    x, lengths = torch.randn(3, 5, I), torch.tensor([5, 0, 2])
    x = x.masked_fill((torch.arange(5) >= lengths[:, None])[..., None], NAN)
    output, h_n = compiled_by("aot_eager", model)(x, lengths)
    assert output.isfinite().all()
    assert h_n.isfinite().all()


def test_bad_lengths_are_refused_at_run_time() -> None:
    twin = compiled_by("aot_eager", Model(sf.GRU))
    with pytest.raises(RuntimeError, match="lengths: expected values from 0 to T = 5"):
        twin(torch.randn(2, 5, I), torch.tensor([6, 1]))


def test_want_output_false() -> None:
    layer = sf.GRU(I, H, 2, bidirectional=True)
    twin = compiled_by("aot_eager", lambda x: layer(x, want_output=False))
    x = torch.randn(4, 2, I)
    output, h_n = twin(x)
    assert output is None
    assert_close_by_name({"h_n": h_n}, {"h_n": layer(x)[1]}, WORK)


@EACH
@pytest.mark.parametrize("transform", ["grad", "vmap", "per-sample", "jvp", "jacrev", "hessian"])
def test_torch_func_inside_a_compiled_function(transform: str, name: str) -> None:
    """Dynamo ignores our vmap rule, so the reference is compiled here and gives the right results."""
    layer = LAYERS[name](I, H).double()
    weights = {key: p.detach() for key, p in layer.named_parameters()}
    x = torch.randn(3, 4, 2, I, dtype=torch.float64)
    first = x[0].clone()  # torch 2.13 raises an internal error for the jvp of a view

    def loss(weights: Any, x: Tensor) -> Tensor:
        return functional_call(layer, weights, (x,))[0].sin().sum()

    call = lambda x: functional_call(layer, weights, (x,))[0]  # noqa: E731
    function, arguments = {
        "grad": (grad(loss), (weights, first)),
        "vmap": (vmap(call), (x,)),
        "per-sample": (vmap(grad(loss), (None, 0)), (weights, x)),
        "jvp": (lambda x: jvp(call, (x,), (x.sin(),)), (first,)),
        "jacrev": (jacrev(call), (first,)),
        "hessian": (hessian(lambda x: loss(weights, x)), (first[:2].clone(),)),
    }[transform]
    torch.testing.assert_close(compiled_by("aot_eager", function)(*arguments), function(*arguments))


@EACH
def test_torch_func_around_a_compiled_layer(name: str) -> None:
    layer = LAYERS[name](I, H)
    twin = torch.compile(layer, backend="aot_eager")
    x = torch.randn(4, 2, I)
    for transform in (
        lambda f: grad(lambda x: f(x)[0].sum())(x),
        lambda f: vmap(f)(torch.stack([x, x + 1])),
        lambda f: jvp(f, (x,), (x.cos(),)),
    ):
        torch.testing.assert_close(transform(twin), transform(layer))


def test_impl_is_part_of_what_was_compiled(impl: str) -> None:
    """A compiled module is compiled again under use_impl and does not run the implementation of before."""
    layer = sf.GRU(I, H)
    twin = compiled_by("aot_eager", layer)
    x = torch.randn(4, 2, I)
    with torch.no_grad():
        for name in dict.fromkeys((impl, "reference", impl)):
            with sf.use_impl(name):
                assert torch.equal(twin(x)[0], layer(x)[0]), name

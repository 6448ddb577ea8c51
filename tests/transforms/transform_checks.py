"""The check of each row of the table of transforms: ``check(library, cell)`` raises when something does not work.

Every check compares numbers with those of ``Case.expected`` and ``Case.gradients``; it is not enough that a call runs.
A check makes its own layer and leaves no state behind.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.gradcheck import GradcheckError
from torch.fx import symbolic_trace
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint
from transform_cases import (
    TERMS,
    TERMS_16,
    B,
    Case,
    H,
    I,
    Library,
    Model,
    T,
    Wrong,
    agree,
    loss,
    same_bits,
)

OTHER_SHAPES = [(7, 3), (2, 6), (1, 2)]  # T, B: further shapes at which a program runs


# -- compiled and exported --------------------------------------------------------------------------------------------


def compiled(function: Any, backend: Any = "aot_eager") -> Any:
    torch._dynamo.reset()
    return torch.compile(function, backend=backend, fullgraph=True)


def compile_inference(library: Library, cell: str) -> None:
    case = Case(library, cell)
    with torch.no_grad():
        agree(compiled(case.model)(case.x), case.expected(case.x))


def compile_training(library: Library, cell: str) -> None:
    case = Case(library, cell)
    case.check(compiled(case.model), case.x)


def compile_inductor(library: Library, cell: str) -> None:
    case = Case(library, cell)
    case.check(compiled(case.model, "inductor"), case.x)


def compile_dynamic(library: Library, cell: str) -> None:
    case = Case(library, cell)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    model = compiled(case.model, counter)
    for t, b in ((T, B), (T + 1, B + 1)):  # the second call shows torch which sizes vary
        case.check(model, torch.randn(t, b, I))
    warm = counter.frame_count
    for t, b in ((9, 7), (3, 2), (8, B)):
        case.check(model, torch.randn(t, b, I))
    if counter.frame_count != warm:
        raise Wrong(f"compiled {counter.frame_count} times, {warm} of them to warm up", "recompiles")


def compile_ragged(library: Library, cell: str) -> None:
    case = Case(library, cell)
    case.check(compiled(case.model), case.x, case.lengths)


def compile_packed(library: Library, cell: str) -> None:
    case = Case(library, cell)
    layer = compiled(case.model.layer)

    def through_packed(x: Tensor, lengths: Tensor) -> Any:
        output, finals = layer(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return pad_packed_sequence(output)[0], finals

    case.check(through_packed, case.x, case.lengths)


def export(case: Case, *args: Tensor) -> Any:
    time, batch = torch.export.Dim("T", min=1), torch.export.Dim("B", min=1)
    shapes = ({0: time, 1: batch}, *({0: batch} for _ in args[1:]))
    return torch.export.export(case.model, args, dynamic_shapes=shapes)


def elsewhere(case: Case, program: Callable[..., Any], ragged: bool = False) -> None:
    """Asserts that a program is right at other shapes and lengths than it was made with."""
    for t, b in [(T, B), *OTHER_SHAPES]:
        args = [torch.randn(t, b, I)]
        if ragged:
            args.append(1 + torch.arange(b) % t)
        with torch.no_grad():
            agree(program(*args), case.expected(*args))


def export_dynamic(library: Library, cell: str) -> None:
    case, file = Case(library, cell), io.BytesIO()
    torch.export.save(export(case, case.x), file)
    file.seek(0)
    elsewhere(case, torch.export.load(file).module())


def export_ragged(library: Library, cell: str) -> None:
    case = Case(library, cell)
    elsewhere(case, export(case, case.x, case.lengths).module(), ragged=True)


def aot_inductor(library: Library, cell: str) -> None:
    case = Case(library, cell)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = torch._inductor.aoti_compile_and_package(export(case, case.x), package_path=f"{folder}/model.pt2")
        elsewhere(case, torch._inductor.aoti_load_package(path))


@contextmanager
def onnx_file(library: Library, model: nn.Module, *args: Tensor) -> Iterator[Callable[..., list[Tensor]]]:
    import onnxruntime

    shapes = {"x": {0: "T", 1: "B"}} | ({"lengths": {0: "B"}} if len(args) == 2 else {})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        library.to_onnx(model, args, path, shapes)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*args: Tensor) -> list[Tensor]:
        feeds = {value.name: t.numpy() for value, t in zip(session.get_inputs(), args, strict=True)}
        return [torch.from_numpy(result) for result in session.run(None, feeds)]

    yield run


def onnx_dynamic(library: Library, cell: str) -> None:
    case = Case(library, cell)
    with onnx_file(library, case.model, case.x) as program:
        elsewhere(case, program)


def onnx_ragged(library: Library, cell: str) -> None:
    case = Case(library, cell)
    with onnx_file(library, case.model, case.x, case.lengths) as program:
        elsewhere(case, program, ragged=True)
        agree(program(case.x, case.some_empty), case.expected(case.x, case.some_empty))


def jit_trace(library: Library, cell: str) -> None:
    case, file = Case(library, cell), io.BytesIO()
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(case.model, (case.x,)), file)
    file.seek(0)
    elsewhere(case, torch.jit.load(file))


def fx_trace(library: Library, cell: str) -> None:
    case = Case(library, cell)
    case.check(symbolic_trace(symbolic_trace(nn.Sequential(case.model.layer))), case.x)


class Ragged(nn.Module):
    """A model whose forward does not look into the layer's result, which torch.fx does not know while it traces."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, lengths: Tensor) -> Any:
        return self.model.library.ragged(self.model.layer, x, lengths)


def fx_ragged(library: Library, cell: str) -> None:
    case = Case(library, cell)
    case.check(symbolic_trace(Ragged(case.model)), case.x, case.lengths)


# -- torch.func and derivatives ---------------------------------------------------------------------------------------


def vmap_inputs(library: Library, cell: str) -> None:
    case, xs = Case(library, cell), torch.randn(3, T, B, I)
    agree(torch.vmap(case.model)(xs), [torch.stack(parts) for parts in zip(*map(case.expected, xs), strict=True)])


def vmap_ragged(library: Library, cell: str) -> None:
    case, xs, lengths = Case(library, cell), torch.randn(2, T, B, I), torch.tensor([[3, 5, 1, 4], [4, 1, 5, 3]])
    each = [case.expected(x, n) for x, n in zip(xs, lengths, strict=True)]
    agree(torch.vmap(case.model)(xs, lengths), [torch.stack(parts) for parts in zip(*each, strict=True)])


def _per_sample(case: Case, *lengths: Tensor) -> None:
    def sample_loss(weights: Any, x: Tensor, *length: Tensor) -> Tensor:
        return loss(case.call(weights, x.unsqueeze(1), *(n.unsqueeze(0) for n in length)))

    in_dims = (None, 1, *(0 for _ in lengths))
    found = torch.vmap(torch.func.grad(sample_loss), in_dims=in_dims)(case.weights(), case.x, *lengths)
    each = [case.gradients(case.x[:, b : b + 1], *(n[b : b + 1] for n in lengths))[1:] for b in range(B)]
    agree(list(found.values()), [torch.stack(parts) for parts in zip(*each, strict=True)])


def per_sample_gradients(library: Library, cell: str) -> None:
    _per_sample(Case(library, cell))


def per_sample_ragged(library: Library, cell: str) -> None:
    case = Case(library, cell)
    _per_sample(case, case.lengths)


def ensemble(library: Library, cell: str) -> None:
    cases = [Case(library, cell) for _ in range(3)]
    weights, _ = torch.func.stack_module_state([case.model for case in cases])
    one, x = cases[0], cases[0].x
    results = torch.vmap(lambda w: one.call(w, x))(weights)
    agree(results, [torch.stack(parts) for parts in zip(*(case.expected(x) for case in cases), strict=True)])
    each = [case.gradients(x)[1:] for case in cases]
    found = torch.autograd.grad(loss(results), list(weights.values()))
    agree(found, [torch.stack(parts) for parts in zip(*each, strict=True)])


def _difference(case: Case, point: Sequence[Tensor], direction: Sequence[Tensor]) -> list[Tensor]:
    """The derivative in a direction, by central differences in float64 (with an error of about 1e-9)."""

    def at(step: float) -> tuple[Tensor, ...]:
        x, *weights = (p.double() + step * d.double() for p, d in zip(point, direction, strict=True))
        return case.expected(x, None, weights)

    return [(up - down) / 2e-5 for up, down in zip(at(1e-5), at(-1e-5), strict=True)]


def _directions(case: Case) -> tuple[list[Tensor], list[Tensor], Callable[..., Any]]:
    """Values of the input and all weights, a direction for each, and the model as a function of them."""
    point = [case.x, *case.weights().values()]
    return point, [torch.randn_like(t) for t in point], lambda x, *weights: case.call(weights, x)


def jvp(library: Library, cell: str) -> None:
    case = Case(library, cell)
    point, direction, function = _directions(case)
    results, tangents = torch.func.jvp(function, tuple(point), tuple(direction))
    agree(results, case.expected(case.x))
    agree(tangents, _difference(case, point, direction))


def dual_numbers(library: Library, cell: str) -> None:
    case = Case(library, cell)
    point, direction, function = _directions(case)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(p, d) for p, d in zip(point, direction, strict=True)]
        parts = [forward_ad.unpack_dual(result) for result in function(*duals)]
    agree([part.primal for part in parts], case.expected(case.x))
    if any(part.tangent is None for part in parts):
        raise Wrong("a tangent is missing", "no tangent")
    agree([part.tangent for part in parts], _difference(case, point, direction))


def linearize(library: Library, cell: str) -> None:
    case = Case(library, cell, sizes=(I, H), bidirectional=False)  # torch traces every step of every layer
    point, direction, function = _directions(case)
    results, tangents = torch.func.linearize(function, *point)
    agree(results, case.expected(case.x))
    agree(tangents(*direction), _difference(case, point, direction))


def _jacobian(transform: Callable[..., Any], library: Library, cell: str) -> None:
    case, x = Case(library, cell), torch.randn(3, 2, I)
    agree(transform(case.model)(x), torch.autograd.functional.jacobian(case.expected, x.double()))


def jacfwd(library: Library, cell: str) -> None:
    _jacobian(torch.func.jacfwd, library, cell)


def jacrev(library: Library, cell: str) -> None:
    _jacobian(torch.func.jacrev, library, cell)


def hessian(library: Library, cell: str) -> None:
    case, x = Case(library, cell), torch.randn(3, 2, I)
    found = torch.func.hessian(lambda x: loss(case.model(x)))(x)
    agree(found, torch.autograd.functional.hessian(lambda x: loss(case.expected(x)), x.double()))


def _penalty(case: Case, lengths: Tensor | None = None) -> None:
    """Checks the gradients of a sum of squared gradients."""

    def of(function: Callable[..., Any], dtype: torch.dtype) -> Any:
        inputs = [t.to(dtype).requires_grad_() for t in (case.x, *case.weights().values())]
        first = torch.autograd.grad(loss(function(*inputs)), inputs, create_graph=True)
        return torch.autograd.grad(sum((g * g).sum() for g in first), inputs)

    found = of(lambda x, *weights: case.call(weights, x, lengths), case.x.dtype)
    agree(found, of(lambda x, *weights: case.expected(x, lengths, weights), torch.float64))


def double_backward_float64(library: Library, cell: str) -> None:
    case = Case(library, cell, torch.float64, (2, 2))
    _penalty(case)
    inputs = [t.requires_grad_() for t in (torch.randn(2, 2, 2, dtype=torch.float64), *case.weights().values())]
    try:
        torch.autograd.gradgradcheck(lambda x, *weights: case.call(weights, x), inputs)
    except GradcheckError as error:
        raise Wrong(str(error)) from None


def double_backward_float32(library: Library, cell: str) -> None:
    _penalty(Case(library, cell))


def double_backward_ragged(library: Library, cell: str) -> None:
    case = Case(library, cell)
    _penalty(case, case.lengths)


# -- training, precision and bits -------------------------------------------------------------------------------------


def _rounded(case: Case, dtype: torch.dtype) -> None:
    """Rounds the input and the weights to 16 bits, as autocast does."""
    case.truth.load_state_dict({name: w.to(dtype) for name, w in case.model.layer.state_dict().items()})
    case.x = case.x.to(dtype).float()


def autocast(library: Library, cell: str) -> None:
    case = Case(library, cell)
    _rounded(case, torch.bfloat16)
    for lengths in ((), (case.lengths,)):
        with torch.autocast("cpu", torch.bfloat16):
            results = case.model(case.x, *lengths)
        agree(results, case.expected(case.x, *lengths), TERMS_16, torch.bfloat16)
        if any(t.dtype != torch.bfloat16 for t in results):
            raise Wrong(f"expected bfloat16 but got {[t.dtype for t in results]}", "other dtype")


def grad_scaler(library: Library, cell: str) -> None:
    case = Case(library, cell)
    before = [w.clone() for w in case.weights().values()]
    optimizer, scaler = torch.optim.SGD(case.model.parameters(), lr=1.0), torch.amp.GradScaler("cpu", init_scale=256.0)
    with torch.autocast("cpu", torch.float16):
        value = loss(case.model(case.x))
    scaler.scale(value).backward()
    scaler.step(optimizer)
    scaler.update()
    steps = [old - new for old, new in zip(before, case.weights().values(), strict=True)]
    agree(steps, case.gradients(case.x, None, before)[1:], TERMS_16, torch.float16)


def _trains(library: Library, cell: str, dtype: torch.dtype) -> None:
    case = Case(library, cell, dtype)
    case.check(case.model, case.x, terms=TERMS_16)
    optimizer, values = torch.optim.Adam(case.model.parameters(), lr=0.02, eps=1e-4), []  # 1e-8 is 0 in float16
    for _ in range(20):
        optimizer.zero_grad()
        value = (case.model(case.x)[0].float() - 0.5).square().mean()
        value.backward()
        optimizer.step()
        values.append(value.item())
    if not values[-1] < values[0] / 2:
        raise Wrong(f"the loss went from {values[0]} to {values[-1]}")


def bfloat16(library: Library, cell: str) -> None:
    _trains(library, cell, torch.bfloat16)


def float16(library: Library, cell: str) -> None:
    _trains(library, cell, torch.float16)


def in_place(library: Library, cell: str) -> None:
    for case in (Case(library, cell), Case(library, cell, sizes=(I, H), bidirectional=False)):

        def function(x: Tensor, model: nn.Module = case.model) -> Any:
            output, *finals = model(x)
            output.mul_(2)
            return output / 2, *finals

        case.check(function, case.x)


def retained_graph(library: Library, cell: str) -> None:
    case = Case(library, cell)
    x = case.x.requires_grad_()
    value, inputs = loss(case.model(x)), [x, *case.model.parameters()]
    first = torch.autograd.grad(value, inputs, retain_graph=True)
    agree(torch.autograd.grad(value, inputs), case.gradients(x))
    agree(first, case.gradients(x))


def checkpointing(library: Library, cell: str) -> None:
    case = Case(library, cell)
    case.check(lambda x: checkpoint(case.model, x, use_reentrant=False), case.x)


def deterministic(library: Library, cell: str) -> None:
    case, x, runs = Case(library, cell), torch.randn(8, 16, I), []
    before, threads = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(4)
    try:
        for _ in range(3):
            results = case.model(x)
            runs.append([*results, *torch.autograd.grad(loss(results), list(case.model.parameters()))])
        case.check(case.model, x, terms=4 * TERMS)
    finally:
        torch.use_deterministic_algorithms(before)
        torch.set_num_threads(threads)
    for run in runs[1:]:
        same_bits(run, runs[0])


def zero_lengths(library: Library, cell: str) -> None:
    case = Case(library, cell)
    case.check(case.model, case.x, case.some_empty)


def chunks(library: Library, cell: str) -> None:
    for hidden, batch in ((5, 1), (16, 3), (33, 3), (33, 11)):
        case, x = Case(library, cell, sizes=(I, hidden, 2), bidirectional=False), torch.randn(8, batch, I)
        whole = case.model.layer(x)
        agree(whole, case.expected(x), 2 * TERMS)
        parts, state = [], None
        for part in x.split([3, 1, 4]):
            output, state = case.model.layer(part, state)
            parts.append(output)
        same_bits([torch.cat(parts), state], whole)


def batch_independence(library: Library, cell: str) -> None:
    for hidden in (5, 16, 33):
        case, x = Case(library, cell, sizes=(I, hidden, 2)), torch.randn(T, 11, I)
        whole = case.model(x)
        agree(whole, case.expected(x), 2 * TERMS)
        for b in (0, 4, 10):
            same_bits(case.model(x[:, b : b + 1]), [t[:, b : b + 1] for t in whole])


def other_weights(library: Library, cell: str) -> None:
    case, other = Case(library, cell), Case(library, cell)
    weights = [w.requires_grad_() for w in other.weights().values()]
    results = case.call(weights, case.x)
    agree(results, other.expected(case.x))
    agree(torch.autograd.grad(loss(results), weights), other.gradients(case.x)[1:])

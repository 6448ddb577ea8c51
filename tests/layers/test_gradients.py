"""Uses of autograd besides one plain backward: gradcheck, unused outputs, unusual incoming gradients, retained graphs,
double backward, in-place changes, function transforms. Plain gradients are tested in test_backends.py."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from support.cases import CELLS, Case, build
from support.checks import arguments, check, gradients, keywords, layer

TINY = {"T": 3, "B": 3, "I": 2, "H": 3, "dtype": "float64"}
FULL = TINY | {"directions": 2, "lengths": "zeros"}
VARIANTS = [Case(cell, **FULL) for cell in CELLS] + [
    Case("gru", **TINY | {"bias": False, "state": False}),
    Case("gru", **FULL | {"layout": "batch_first", "want_output": False}),
    Case("lstm", **FULL | {"layout": "packed", "lengths": "random"}),
    Case("lstm", **FULL | {"proj": True}),
    Case("lstm", **TINY | {"proj": True, "lengths": "one_long", "layout": "packed"}),
    Case("rnn_tanh", **TINY | {"layout": "features_first", "lengths": "equal"}),
    Case("gru", **FULL | {"ids": True}),
    Case("lstm", **TINY | {"ids": True, "layout": "packed", "lengths": "random"}),
]
PLAIN = [Case(cell, T=5, B=4, I=6, H=9, directions=2, lengths="random", dtype="float64") for cell in CELLS]
PLAIN.append(Case("lstm", T=5, B=4, I=6, H=9, proj=True, dtype="float64"))
PLAIN.append(Case("gru", T=5, B=4, I=6, H=9, directions=2, dtype="float64", ids=True))


def tensors_and_call(case: Case, impl: str) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
    """The leaves, the keywords of layer(), and the incoming gradients of a float64 case with padded rows."""
    problem = build(case)
    return arguments(case, problem), keywords(case, problem) | {"impl": impl}, problem.cotangents


def results_of(inputs: dict[str, Tensor], options: dict[str, Any], *values: Tensor) -> tuple[Tensor, ...]:
    return tuple(layer(dict(zip(inputs, values, strict=True)), **options).values())


@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_gradcheck(case: Case, impl: str) -> None:
    inputs, options, _ = tensors_and_call(case, impl)
    assert gradcheck(partial(results_of, inputs, options), tuple(inputs.values()))


@pytest.mark.parametrize("case", VARIANTS, ids=str)
def test_gradgradcheck(case: Case, impl: str) -> None:
    inputs, options, _ = tensors_and_call(case, impl)
    assert gradgradcheck(partial(results_of, inputs, options), tuple(inputs.values()), fast_mode=True)


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_only_some_outputs_used(case: Case, impl: str) -> None:
    """A result that is not used has an undefined incoming gradient, which counts as zero."""
    inputs, options, cotangents = tensors_and_call(case, impl)
    for count in range(1, len(cotangents)):
        for used in itertools.combinations(cotangents, count):
            given = {name: t if name in used else torch.zeros_like(t) for name, t in cotangents.items()}
            wanted = gradients(layer(inputs, **options), inputs, given)
            found = gradients(layer(inputs, **options), inputs, {name: cotangents[name] for name in used})
            torch.testing.assert_close(found, wanted, rtol=0, atol=1e-15, msg=lambda m, used=used: f"{used}: {m}")


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_only_some_inputs_need_gradients(case: Case, impl: str) -> None:
    inputs, options, cotangents = tensors_and_call(case, impl)
    wanted = gradients(layer(inputs, **options), inputs, cotangents)
    for name in [name for name, t in inputs.items() if t.requires_grad]:
        alone = {key: t.detach().requires_grad_(key == name) for key, t in inputs.items()}
        found = gradients(layer(alone, **options), {name: alone[name]}, cotangents)[f"d {name}"]
        torch.testing.assert_close(found, wanted[f"d {name}"], rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_expanded_and_strided_incoming_gradients(case: Case, impl: str) -> None:
    """sum().backward() sends one number with stride 0. This and a transposed gradient count like contiguous ones."""
    inputs, options, cotangents = tensors_and_call(case, impl)
    ones = {name: torch.ones_like(t) for name, t in cotangents.items()}
    wanted = gradients(layer(inputs, **options), inputs, ones)
    expanded = {name: torch.ones((), dtype=t.dtype).expand_as(t) for name, t in cotangents.items()}
    torch.testing.assert_close(gradients(layer(inputs, **options), inputs, expanded), wanted, rtol=0, atol=0)
    torch.stack([t.sum() for t in layer(inputs, **options).values()]).sum().backward()
    torch.testing.assert_close(
        {f"d {name}": t.grad for name, t in inputs.items() if t.requires_grad}, wanted, rtol=0, atol=0
    )

    wanted = gradients(layer(inputs, **options), inputs, cotangents)
    strided = {name: t.permute(2, 0, 1).contiguous().permute(1, 2, 0) for name, t in cotangents.items()}
    torch.testing.assert_close(gradients(layer(inputs, **options), inputs, strided), wanted, rtol=0, atol=0)


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_second_backward_through_a_retained_graph(case: Case, impl: str) -> None:
    inputs, options, cotangents = tensors_and_call(case, impl)
    results = layer(inputs, **options)
    first = gradients(results, inputs, cotangents, retain_graph=True)
    layer(inputs, **options)  # another call in between must not change what was saved
    torch.testing.assert_close(gradients(results, inputs, cotangents), first, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("case", [*PLAIN, *VARIANTS], ids=str)
def test_double_backward_matches_reference(case: Case, dtype: str, impl: str) -> None:
    case = Case(**vars(case) | {"dtype": dtype})
    problem = build(case)
    directions = [torch.randn_like(t) for t in arguments(case, problem).values() if t.requires_grad]

    def second(options: dict[str, Any], dtype: torch.dtype) -> tuple[Tensor, ...]:
        given = arguments(case, problem)
        inputs = {name: t.detach().to(dtype).requires_grad_() for name, t in given.items() if t.requires_grad}
        results = layer(given | inputs, **options)
        cotangents = {name: torch.ones_like(t).requires_grad_() for name, t in results.items()}
        first = gradients(results, inputs, cotangents, create_graph=True)
        product = torch.stack([(t * v).sum() for t, v in zip(first.values(), directions, strict=True)]).sum()
        return torch.autograd.grad(product, [*inputs.values(), *cotangents.values()], materialize_grads=True)

    options = keywords(case, problem)
    wanted = second(options, torch.float64)
    for found, want in zip(second(options | {"impl": impl}, case.torch_dtype), wanted, strict=True):
        bound = 100 * torch.finfo(case.torch_dtype).eps * max(float(want.abs().max()), 1.0)
        torch.testing.assert_close(found.double(), want, rtol=0, atol=bound)


@pytest.mark.parametrize("cell", CELLS)
def test_output_changed_in_place_before_backward(cell: str, impl: str) -> None:
    """The backward reads the output, yet the output may be changed in place by an activation or dropout after it."""
    case = Case(cell, T=4, dtype="float64", directions=2, lengths="random")
    inputs, options, cotangents = tensors_and_call(case, impl)
    wanted = gradients(layer(inputs, **options), inputs, cotangents)
    results = layer(inputs, **options)
    results["output"].mul_(2)
    results["h_n"].mul_(4)
    scaled = cotangents | {"output": cotangents["output"] / 2, "h_n": cotangents["h_n"] / 4}
    torch.testing.assert_close(gradients(results, inputs, scaled, retain_graph=True), wanted, rtol=0, atol=0)
    torch.testing.assert_close(gradients(results, inputs, scaled), wanted, rtol=0, atol=0)

    results = layer(inputs, **options)
    results["output"][1:3].zero_()  # through a view
    for t in (wanted, gradients(results, inputs, {"output": torch.ones_like(results["output"])})):
        assert all(value.isfinite().all() for value in t.values())


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_no_argument_is_written(case: Case, impl: str) -> None:
    inputs, options, cotangents = tensors_and_call(case, impl)
    given = [*inputs.values(), *cotangents.values(), *(v for v in options.values() if isinstance(v, Tensor))]
    before = [t.detach().clone() for t in given]
    gradients(layer(inputs, **options), inputs, cotangents)
    for t, old in zip(given, before, strict=True):
        assert torch.equal(t.detach().nan_to_num(), old.nan_to_num())


@pytest.mark.parametrize("cell", CELLS)
def test_function_transforms_are_right_or_refused(cell: str, impl: str) -> None:
    """The ops have no rule for forward AD: it must give the right tangent or raise, and never return zeros."""
    case = Case(cell, T=3, B=2, dtype="float64")
    inputs, options, _ = tensors_and_call(case, impl)
    rest = {name: t.detach() for name, t in inputs.items() if name != "x"}
    x, tangent = inputs["x"].detach(), torch.randn_like(inputs["x"])

    def h_n(x: Tensor, options: dict[str, Any] = options) -> Tensor:
        return layer({"x": x} | rest, **options)["h_n"]

    def dual(function: Any) -> Tensor | None:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent))).tangent

    plain = partial(h_n, options={name: v for name, v in options.items() if name != "impl"})
    stacked = torch.stack([x, x + 1])
    transforms = {
        "jvp": lambda f: torch.func.jvp(f, (x,), (tangent,))[1],
        "dual": dual,
        "grad": lambda f: torch.func.grad(lambda x: f(x).sum())(x),
        "vmap": lambda f: torch.func.vmap(f)(stacked),
    }
    for name, transform in transforms.items():
        try:
            found = transform(h_n)
        except (RuntimeError, NotImplementedError):
            assert impl != "reference", f"{name} must work on the reference"
            continue
        torch.testing.assert_close(found, transform(plain), msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_recomputed_gates_are_the_same(case: Case, impl: str) -> None:
    problem = build(case)
    inputs, options = arguments(case, problem), keywords(case, problem) | {"impl": impl}
    found, kept = [], []
    for recompute in (False, True):
        numbers = 0

        def count(t: Tensor) -> Tensor:
            nonlocal numbers
            numbers += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            results = layer(inputs, recompute=recompute, **options)
        found.append(results | gradients(results, inputs, problem.cotangents))
        kept.append(numbers)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    by_reference = impl == "reference" or (impl == "torch" and case.ids)  # it keeps what torch keeps
    assert by_reference or kept[1] < kept[0]


@pytest.mark.parametrize("cell", CELLS)
def test_empty_batch(cell: str, impl: str) -> None:
    check(Case(cell, B=0, dtype="float64"), impl)

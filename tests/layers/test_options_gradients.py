"""Layers with options and the rest of autograd: finite differences of first and second order, incoming gradients in
part, less memory, autocast, and the transforms of torch.func."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, vmap

import seqcls_fast as sf
from seqcls_fast._cells import BUILT_IN
from support.cases import Case, build, only
from support.checks import Named, arguments, assert_same_bits, cotangents_of, gradients, keywords, layer, leaf

TINY = {"T": 4, "B": 3, "I": 2, "H": 3, "dtype": "float64", "directions": 2, "resets": "some", "learnt": True}
OPTIONS = [name for name, cell in BUILT_IN.items() if cell.is_option]
CASES = [Case(cell, **TINY, lengths="zeros", noise="all") for cell in BUILT_IN]
CASES += [
    Case("lstm_layer_norm", **TINY, proj=True, lengths="random", layout="packed"),
    Case("lstm_peephole", **TINY, proj=True, noise="zoneout_eval", bias=False),
    Case("gru_layer_norm", **TINY, ids=True, noise="candidate", state=False),
    Case("gru_reset_before", **TINY, layout="batch_first", noise="state", want_output=False),
]


def leaves_and_call(case: Case, impl: str) -> tuple[Named, dict[str, Any]]:
    problem = build(case)
    return arguments(case, problem), keywords(case, problem) | {"impl": impl}


def results_of(inputs: Named, options: dict[str, Any], *values: Tensor) -> tuple[Tensor, ...]:
    return tuple(layer(dict(zip(inputs, values, strict=True)), **options).values())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradcheck(case: Case, impl: str) -> None:
    inputs, options = leaves_and_call(case, impl)
    assert gradcheck(partial(results_of, inputs, options), tuple(inputs.values()), fast_mode=True)


@pytest.mark.parametrize("case", [case for case in CASES if case.cell in OPTIONS], ids=str)
def test_every_element_of_the_gradient(case: Case) -> None:
    inputs, options = leaves_and_call(case, "auto")
    assert gradcheck(partial(results_of, inputs, options), tuple(inputs.values()))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradgradcheck(case: Case, impl: str) -> None:
    inputs, options = leaves_and_call(case, impl)
    assert gradgradcheck(partial(results_of, inputs, options), tuple(inputs.values()), fast_mode=True)


MIDDLE = [Case(cell, T=6, B=5, I=7, H=17, directions=2, lengths="zeros", resets="some", learnt=True, noise="all")
          for cell in BUILT_IN]  # fmt: skip


@pytest.mark.parametrize("case", MIDDLE, ids=str)
def test_some_gradients_alone(case: Case, impl: str) -> None:
    """What one input gets does not depend on which others need a gradient, nor on which results are used together."""
    inputs, options = leaves_and_call(case, impl)
    cotangents = cotangents_of(case, build(case))
    wanted = gradients(layer(inputs, **options), inputs, cotangents)
    for name in inputs:
        alone = {key: t.detach().requires_grad_(key == name) for key, t in inputs.items()}
        found = gradients(layer(alone, **options), {name: alone[name]}, cotangents)
        assert_same_bits(found, {f"d {name}": wanted[f"d {name}"]})
    for used in cotangents:
        zeros = {key: t if key == used else torch.zeros_like(t) for key, t in cotangents.items()}
        found = gradients(layer(inputs, **options), inputs, {used: cotangents[used]})
        for name, t in gradients(layer(inputs, **options), inputs, zeros).items():
            torch.testing.assert_close(found[name], t, rtol=0, atol=0, msg=lambda m, u=used, n=name: f"{u} {n}: {m}")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", MIDDLE, ids=str)
def test_recompute_gives_the_same_bits(case: Case, dtype: str, impl: str) -> None:
    (case,) = only(case, dtype=dtype)
    inputs, options = leaves_and_call(case, impl)
    cotangents = cotangents_of(case, build(case))
    found = []
    for recompute in (False, True):
        results = layer(inputs, **options, recompute=recompute)
        found.append(results | gradients(results, inputs, cotangents))
    assert_same_bits(found[1], found[0])


@pytest.mark.parametrize("case", MIDDLE, ids=str)
def test_autocast(case: Case, impl: str) -> None:
    """As for layers without options: everything is bfloat16, and gradients come back in the dtype of each input."""
    inputs, options = leaves_and_call(case, impl)
    with torch.autocast("cpu", torch.bfloat16):
        results = layer(inputs, **options)
    narrow = {name: leaf(t.detach().bfloat16()) if t.is_floating_point() else t for name, t in inputs.items()}
    wanted = layer(narrow, **options)
    assert_same_bits(results, wanted)
    cotangents = {name: t.bfloat16() for name, t in cotangents_of(case, build(case)).items()}
    for name, t in gradients(results, inputs, cotangents).items():
        assert t.dtype == torch.float32
        narrow_d = gradients(wanted, narrow, cotangents, retain_graph=True)[name]
        assert torch.equal(t.bfloat16(), narrow_d), name


def module_of(cell: str, **options: Any) -> sf.RNN | sf.GRU | sf.LSTM:
    """A layer that runs this cell of the operators."""
    base, *kind = cell.removeprefix("rnn_").split("_", 1)
    options |= (
        {"layer_norm": {"layer_norm": True}, "peephole": {"peephole": True}}.get(kind[0], {"reset_after": False})
        if kind
        else {}
    )
    made = {"gru": sf.GRU, "lstm": sf.LSTM}.get(base)
    if made is None:
        return sf.RNN(3, 5, nonlinearity=base, **options)
    return made(3, 5, **options)


@pytest.mark.parametrize("cell", BUILT_IN)
def test_gradients_per_sample(cell: str, impl: str) -> None:
    """vmap over rows, each with its own resets: the gradients of the learnt states are those of each row alone."""
    module = module_of(cell, learn_initial_state=True, bidirectional=True, dtype=torch.float64)
    for name, parameter in module.named_parameters():
        if "_reset_" in name:
            torch.nn.init.normal_(parameter)
    weights = {name: t.detach() for name, t in module.named_parameters()}
    x, resets = torch.randn(4, 6, 3, dtype=torch.float64), torch.rand(4, 6) < 0.4

    def loss(weights: dict[str, Tensor], x: Tensor, resets: Tensor) -> Tensor:
        output, _ = functional_call(module, weights, (x,), {"resets": resets})
        return output.sin().sum()

    with sf.use_impl(impl):
        found = vmap(grad(loss), (None, 0, 0))(weights, x, resets)
        for row in range(4):
            wanted = torch.autograd.grad(
                loss(dict(module.named_parameters()), x[row], resets[row]), list(module.parameters())
            )
            for (name, d), w in zip(found.items(), wanted, strict=True):
                torch.testing.assert_close(d[row], w, rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    assert found["h_reset_l0"].abs().sum() > 0


@pytest.mark.parametrize("case", only(*MIDDLE, dtype="float64"), ids=str)
def test_vmap_sees_the_masks_of_each_call_alone(case: Case, impl: str) -> None:
    """One seed for all samples of vmap: each gives what its own call gives, with the same masks."""
    inputs, options = leaves_and_call(case, impl)
    inputs = {name: t.detach() for name, t in inputs.items()}
    resets, seed = options.pop("resets"), options.pop("seed")
    x = torch.stack([torch.randn_like(inputs["x"]) for _ in range(3)])
    many = torch.stack([resets, ~resets, torch.zeros_like(resets)])

    def call(x: Tensor, resets: Tensor) -> Named:
        return layer(inputs | {"x": x}, **options, resets=resets, seed=seed)

    found = vmap(call)(x, many)
    for k in range(3):
        for name, t in call(x[k], many[k]).items():
            torch.testing.assert_close(found[name][k], t, rtol=0, atol=1e-13)

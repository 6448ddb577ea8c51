"""One step, as cells and decoders take it: bit for bit the step of a longer call, forward and every gradient.

A call of one step uses the weights as they lie in memory and writes gradients without a total; the longer call packs
the weights and adds chunks. The longer call holds the same step: all its rows have length 1, and NaN beyond.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from seqcls_fast import _ext
from support.cases import CELLS, FLOATS, HALVES, Case, build, only
from support.checks import (
    NAN,
    Named,
    arguments,
    assert_same_bits,
    cotangents_of,
    gradients,
    layer,
    leaf,
    poison,
    poisoned_memory,
)

# (I, H): less than a vector, vectors and their neighbours, more k than one chain of sums has
WIDTHS = [(1, 3), (8, 8), (5, 16), (16, 20), (33, 17), (64, 47), (70, 100), (300, 261)]
CASES = [Case(cell, 1, 1, *widths, dtype=dtype) for cell in CELLS for dtype in FLOATS + HALVES for widths in WIDTHS]
BATCHES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 20)
STEPS = 130  # of the longer call: more than a chunk of weight gradients has


def one_step(inputs: Named, cotangents: Named, case: Case, impl: str, lengths: Tensor | None = None) -> Named:
    results = layer(inputs, cell=case.cell, impl=impl, lengths=lengths)
    return {name: t.detach() for name, t in results.items()} | gradients(results, inputs, cotangents)


def longer(inputs: Named, cotangents: Named, case: Case, impl: str, lengths: Tensor | None = None) -> Named:
    """The same steps as the first of STEPS."""
    T = case.T

    def extended(t: Tensor) -> Tensor:
        return torch.cat([t, t.new_full((STEPS - T, *t.shape[1:]), poison(t))])

    if lengths is None:
        lengths = torch.full((case.B,), T)
    inputs = inputs | {"x": leaf(extended(inputs["x"].detach()))}
    cotangents = cotangents | {"output": extended(cotangents["output"])}
    found = one_step(inputs, cotangents, case, impl, lengths)
    return found | {name: found[name][:T] for name in found.keys() & {"output", "d x"}}


def compare(
    case: Case,
    impl: str,
    what: str = "",
    lengths: Tensor | None = None,
    place: Callable[[Named], Named] = lambda inputs: inputs,
) -> None:
    problem = build(case)
    with poisoned_memory():
        inputs, cotangents = arguments(case, problem), cotangents_of(case, problem)
        found = one_step(place(inputs), cotangents, case, impl, lengths)
        wanted = longer(inputs, cotangents, case, impl, lengths)
    assert_same_bits(found, wanted, f"{case} {what}")
    assert not any(t.isnan().any() for t in found.values()), what
    with torch.no_grad():
        states = layer(place(inputs), cell=case.cell, impl=impl, lengths=lengths, want_output=False)
    assert_same_bits(states, {name: wanted[name] for name in states}, f"{case} {what} in inference")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_in_a_longer_call(case: Case, compiled: str) -> None:
    for batch in BATCHES:
        compare(only(case, B=batch)[0], compiled)


@pytest.mark.parametrize(
    "case", only(*(c for c in CASES if c.H in (8, 47)), directions=2, state=False, bias=False), ids=str
)
def test_other_layers(case: Case, compiled: str) -> None:
    """Two directions, without biases and first states; rows of length 0; a projection; ids."""
    for batch in (1, 4, 9):
        at = only(case, B=batch)[0]
        compare(at, compiled)
        compare(at, compiled, "some rows empty", torch.arange(batch) % 2)
        compare(at, compiled, "all rows empty", torch.zeros(batch, dtype=torch.int64))
        if case.cell == "lstm":
            compare(only(at, proj=True)[0], compiled, "projected")
        compare(only(at, ids=True)[0], compiled, "ids")


@pytest.mark.parametrize(
    "case", [at for T in (2, 3) for at in only(*(c for c in CASES if c.H in (8, 20, 100)), T=T)], ids=str
)
def test_few_steps(case: Case, compiled: str) -> None:
    """Two steps of few rows use the weights in place, and so does the gradient of the input for few steps of rows."""
    for batch in (1, 2, 3, 5, 21, 22):
        compare(only(case, B=batch)[0], compiled)


@pytest.mark.parametrize("layout", ["transposed", "within larger rows", "every other number"])
@pytest.mark.parametrize("case", [c for c in CASES if c.H in (17, 100)], ids=str)
def test_weights_of_any_strides(case: Case, layout: str, compiled: str) -> None:
    def place(t: Tensor) -> Tensor:
        rows, columns = t.shape
        if layout == "transposed":
            return t.t().contiguous().t()
        if layout == "within larger rows":
            return t.new_full((rows, columns + 7), NAN)[:, 3:-4].copy_(t)
        return t.new_full((rows, 2 * columns), NAN)[:, ::2].copy_(t)

    def placed(inputs: Named) -> Named:
        weights = {name: place(t.detach()).requires_grad_() for name, t in inputs.items() if name.startswith("w_")}
        return inputs | weights

    for batch in (1, 3, 8):
        compare(only(case, B=batch)[0], compiled, layout, place=placed)


@pytest.mark.parametrize("cell", CELLS)
def test_threads_that_share_the_units(cell: str, compiled: str) -> None:
    for T, batch in ((1, 1), (1, 2), (1, 7), (2, 1), (2, 2)):
        case = Case(cell, T, batch, 290, 277)
        torch.set_num_threads(1)
        problem = build(case)
        inputs, cotangents = arguments(case, problem), cotangents_of(case, problem)
        wanted = one_step(inputs, cotangents, case, compiled)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert_same_bits(
                one_step(inputs, cotangents, case, compiled), wanted, f"{threads} threads, T={T}, B={batch}"
            )


@pytest.mark.parametrize("case", [c for c in CASES if c.H in (8, 100)], ids=str)
def test_gradients_of_each_sample(case: Case, compiled: str) -> None:
    """rnn_backward(samples=) keeps the gradients of the weights of parts of the batch apart."""
    case = only(case, B=6)[0]
    inputs = {name: t.to(case.torch_dtype) for name, t in build(case).inputs.items()}
    weights = [t for name, t in inputs.items() if "[" in name]

    def backward(rows: slice, samples: int) -> list[Tensor]:
        x, h0, c0 = (inputs[name][:, rows] if name in inputs else None for name in ("x", "h0", "c0"))
        options = case.cell, 1, False
        found = torch.ops.seqcls_fast.rnn_forward(x, weights, h0, c0, None, None, *options, True, True, compiled)
        output, saved = found[-2:]
        grads = torch.ops.seqcls_fast.rnn_backward(
            output, None, None, x, weights, h0, c0, None, None, output, saved, *options, False, True, samples, compiled
        )
        return grads[-len(weights) :]

    apart = backward(slice(None), 3)
    for sample in range(3):
        for found, wanted in zip(apart, backward(slice(2 * sample, 2 * sample + 2), 0), strict=True):
            assert torch.equal(found[sample], wanted)


def test_weights_are_not_kept(compiled: str) -> None:
    """Calls of one step in training, and of one or two rows in inference, read the weights themselves each time."""
    assert _ext.C is not None
    for cell in CELLS:
        case = Case(cell, 1, 2, 20, 24)
        inputs = arguments(case, build(case))
        kept = _ext.C.cached_packs()
        layer(inputs, cell=cell, impl=compiled)
        with torch.no_grad():
            before = layer(inputs, cell=cell, impl=compiled)["h_n"]
            inputs["w_hh[0]"].data.numpy()[:] += 1  # torch does not count this as a change
            assert not torch.equal(layer(inputs, cell=cell, impl=compiled)["h_n"], before)
        assert _ext.C.cached_packs() == kept

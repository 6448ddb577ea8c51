"""Layers with options give bits that depend on nothing but a row and its place: not on the other rows, the padding, the
layout, the threads or an earlier call. A row keeps its place in the batch, since its masks depend on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import seqcls_fast as sf
from seqcls_fast._cells import BUILT_IN
from support.cases import Case, build, only
from support.checks import (
    Named,
    arguments,
    assert_same_bits,
    cotangents_of,
    gradients,
    guarded,
    keywords,
    layer,
    noise_of,
)

ROWS = ("x", "h0", "c0", "output", "h_n", "c_n", "resets")
ALL = [
    Case(cell, *shape, directions=2, lengths="zeros", resets="some", learnt=True, noise="all", dtype=dtype)
    for cell in BUILT_IN
    for shape, dtype in (((7, 9, 5, 33), "float32"), ((4, 19, 30, 65), "bfloat16"), ((3, 5, 1, 3), "float64"))
]
ALL += only(*(case for case in ALL if case.cell.startswith("lstm") and case.H > 3), proj=True)


def numbers(case: Case) -> tuple[Named, dict[str, Any]]:
    problem = build(case)
    inputs = {name: t.to(case.torch_dtype) for name, t in problem.inputs.items()}
    return inputs, {"lengths": problem.lengths, "resets": problem.resets} | noise_of(case)


def forward(case: Case, impl: str, inputs: Named, **options: Any) -> Named:
    with torch.no_grad():
        return layer(inputs, cell=case.cell, impl=impl, **options)


def first(count: int, named: Named) -> Named:
    return {name: t[:, :count] if name in ROWS else t for name, t in named.items()}


@pytest.mark.parametrize("case", ALL, ids=str)
def test_rows_before_do_not_see_rows_after(case: Case, compiled: str) -> None:
    inputs, options = numbers(case)
    whole = forward(case, compiled, inputs, **options)
    for count in {1, 2, case.B // 2, case.B - 1}:
        fewer = options | {"lengths": options["lengths"][:count], "resets": options["resets"][:, :count]}
        found = forward(case, compiled, first(count, inputs), **fewer)
        assert_same_bits(found, first(count, whole), f"{count} rows")


@pytest.mark.parametrize("case", only(*ALL, noise="none") + only(*ALL, noise="zoneout_eval"), ids=str)
def test_any_order_without_masks(case: Case, compiled: str) -> None:
    inputs, options = numbers(case)
    whole = forward(case, compiled, inputs, **options)
    for index in (list(range(case.B))[::-1], list(range(1, case.B)), [case.B - 1]):
        part = {name: t[:, index] if name in ROWS else t for name, t in inputs.items()}
        some = options | {"lengths": options["lengths"][index], "resets": options["resets"][:, index]}
        wanted = {name: t[:, index] if name in ROWS else t for name, t in whole.items()}
        assert_same_bits(forward(case, compiled, part, **some), wanted, f"rows {index}")


@pytest.mark.parametrize("case", ALL, ids=str)
def test_every_way_to_ask(case: Case, compiled: str) -> None:
    inputs, options = numbers(case)
    whole = forward(case, compiled, inputs, **options)
    states = {name: t for name, t in whole.items() if name != "output"}
    assert_same_bits(forward(case, compiled, inputs, **options, want_output=False), states, "want_output=False")
    unaligned = {name: guarded(t) for name, t in inputs.items()}
    assert_same_bits(forward(case, compiled, unaligned, **options), whole, "unaligned")
    x, resets = inputs["x"].transpose(0, 1).contiguous(), options["resets"].t().contiguous()
    found = forward(case, compiled, inputs | {"x": x}, **options | {"resets": resets}, batch_first=True)
    assert_same_bits(found | {"output": found["output"].transpose(0, 1)}, whole, "batch_first")
    trained = layer({name: t.requires_grad_() for name, t in inputs.items()}, cell=case.cell, impl=compiled, **options)
    assert_same_bits(trained, whole, "with a graph")


@pytest.mark.parametrize("case", ALL, ids=str)
def test_threads_and_repetition(case: Case, compiled: str) -> None:
    """Forward bits do not depend on the number of threads; with one number, gradients are the same again."""
    problem = build(case)
    options = keywords(case, problem) | {"impl": compiled}
    inputs, cotangents = arguments(case, problem), cotangents_of(case, problem)

    def once() -> tuple[Named, Named]:
        results = layer(inputs, **options)
        return results, gradients(results, inputs, cotangents)

    wanted, _ = once()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results, before = once()
        assert_same_bits(results, wanted, f"{threads} threads")
        results, again = once()
        assert_same_bits(results | again, wanted | before, f"{threads} threads again")


@pytest.mark.parametrize("cell", BUILT_IN)
def test_without_a_reset_nothing_changes(cell: str, compiled: str) -> None:
    """Resets that are all False, and rates of zero, give the bits of the call without them."""
    case = Case(cell, T=5, B=6, I=7, H=33, directions=2, lengths="zeros", learnt=True)
    inputs, options = numbers(case)
    wanted = forward(case, compiled, inputs, **options)
    none = torch.zeros(case.T, case.B, dtype=torch.bool)
    found = forward(case, compiled, inputs, **options | {"resets": none, "rates": (0.0,) * 4, "seed": torch.tensor(5)})
    assert_same_bits(found, wanted)


@pytest.mark.parametrize("cell", BUILT_IN)
def test_a_reset_is_a_new_call(cell: str, compiled: str) -> None:
    """A row that is reset at step 3 gives the bits of two calls, the second of which starts from the reset state."""
    case = Case(cell, T=7, B=4, I=5, H=33, learnt=True)
    inputs, _ = numbers(case)
    resets = torch.zeros(7, 4, dtype=torch.bool)
    resets[3] = True
    whole = forward(case, compiled, inputs, resets=resets)
    start = {f"{name}0": inputs[f"{name}_reset"][:, None].expand(-1, 4, -1) for name in "hc" if f"{name}0" in inputs}
    parts = [inputs | {"x": inputs["x"][:3]}, inputs | start | {"x": inputs["x"][3:]}]
    one, two = (forward(case, compiled, part) for part in parts)
    assert_same_bits(whole, two | {"output": torch.cat([one["output"], two["output"]])})


def test_seeds_decide_the_masks(compiled: str) -> None:
    """The same seed of torch gives the same bits in training, and the next call others; evaluation draws nothing."""
    with sf.use_impl(compiled):
        lstm = sf.LSTM(5, 33, 2, zoneout=0.2, recurrent_dropout=0.2, bidirectional=True)
        x = torch.randn(6, 4, 5)
        torch.manual_seed(3)
        one, two = lstm(x)[0], lstm(x)[0]
        torch.manual_seed(3)
        again = lstm(x)[0]
        assert torch.equal(one, again)
        assert not torch.equal(one, two)
        before = torch.get_rng_state()
        lstm.eval()
        assert torch.equal(lstm(x)[0], lstm(x)[0])
        assert torch.equal(torch.get_rng_state(), before)

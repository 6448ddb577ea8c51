"""Layers with options against the papers' equations in plain numpy (support/papers.py), and their gradients against
derivatives along complex directions, which have no error but rounding: f(x + ih v) = f(x) + ih f'(x) v + O(h**2)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from seqcls_fast._cells import BUILT_IN, Rates
from support import papers
from support.cases import Case, Problem, build, only
from support.checks import Named, compare, gradients, layer, leaf, noise_of, sensitivity

TINY = 1e-30  # of the complex directions


def by_the_papers(case: Case, inputs: dict[str, Any], problem: Problem) -> dict[str, Any]:
    """Results of a layer, time-first, from arrays by name."""
    x = inputs["x"]
    if case.ids:
        x = np.eye(case.I)[x]
    lengths = [case.T] * case.B if problem.lengths is None else problem.lengths.tolist()
    resets = np.zeros((case.T, case.B), bool) if problem.resets is None else problem.resets.numpy()
    seed = None if case.noise_seed is None else int(case.noise_seed)
    rates = case.rates if case.noise != "none" else Rates()
    kind = np.result_type(*(value.dtype for name, value in inputs.items() if name != "x" or not case.ids))
    found = {"output": np.zeros((case.T, case.B, case.directions * case.out), kind)}
    found |= {"h_n": np.zeros((case.directions, case.B, case.out), kind)}
    found |= {"c_n": np.zeros((case.directions, case.B, case.H), kind)}
    for d in range(case.directions):
        weights = {name.removesuffix(f"[{d}]"): w for name, w in inputs.items() if name.endswith(f"[{d}]")}
        anew = tuple(
            inputs[name][d] if name in inputs else np.zeros(n)
            for name, n in (("h_reset", case.out), ("c_reset", case.H))
        )
        for b, n in enumerate(lengths):
            start = tuple(
                inputs[name][d, b] if name in inputs else np.zeros(width)
                for name, width in (("h0", case.out), ("c0", case.H))
            )
            draws = papers.draws_of(seed, rates, d, b, n, case.out, case.H)
            steps, h, c = papers.row(case.cell, x[:n, b], start, anew, resets[:n, b], d == 1, weights, rates, draws)
            found["output"][:n, b, d * case.out : (d + 1) * case.out] = steps
            found["h_n"][d, b], found["c_n"][d, b] = h, c
    if not BUILT_IN[case.cell].has_c:
        del found["c_n"]
    return found if case.want_output else {name: value for name, value in found.items() if name != "output"}


SIZES = {"T": 5, "B": 4, "I": 3, "H": 5, "dtype": "float64"}
ALL = [Case(cell, **SIZES, directions=2, lengths="zeros") for cell in BUILT_IN]
CASES = [
    *only(*ALL, resets="some", learnt=True),
    *only(*ALL, resets="all", learnt=True, lengths="random"),
    *only(*ALL, resets="first", noise="zoneout_eval", bias=False),
    *only(*ALL, resets="some", learnt=True, noise="all", state=False),
    *only(*ALL, noise="zoneout"),
    *only(*ALL, noise="state", directions=1),
    *only(*ALL, noise="candidate", ids=True),
    *only(*ALL, resets="some", learnt=True, noise="all", proj=True),
]


def options_of(case: Case, problem: Problem) -> dict[str, Any]:
    return {"cell": case.cell, "lengths": problem.lengths, "resets": problem.resets} | noise_of(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results(case: Case, impl: str) -> None:
    problem = build(case)
    wanted = by_the_papers(case, {name: t.numpy() for name, t in problem.inputs.items()}, problem)
    found = layer(problem.inputs, **options_of(case, problem), impl=impl)
    expected = {name: torch.from_numpy(value) for name, value in wanted.items()}
    compare(found, expected, case, least_scale=sensitivity(case))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients(case: Case, impl: str) -> None:
    problem = build(case)
    leaves = {name: leaf(t.clone()) for name, t in problem.inputs.items()}
    found = gradients(layer(leaves, **options_of(case, problem), impl=impl), leaves, problem.cotangents)
    arrays = {name: t.numpy() for name, t in problem.inputs.items()}
    g = np.random.default_rng(case.seed)
    for name, value in arrays.items():
        if name == "x" and case.ids:
            continue
        direction = g.standard_normal(value.shape)
        results = by_the_papers(case, arrays | {name: value + 1j * TINY * direction}, problem)
        wanted = sum((results[key].imag / TINY * t.numpy()).sum() for key, t in problem.cotangents.items())
        products = found[f"d {name}"].numpy() * direction
        np.testing.assert_allclose(
            products.sum(), wanted, rtol=1e-11, atol=1e-11 * np.abs(products).sum(), err_msg=name
        )


def test_a_cut_row_is_many_rows() -> None:
    """The oracle cuts where the issue says: a reset at t cuts between t - 1 and t, in both directions."""
    case = Case("gru", T=6, B=1, I=2, H=3, dtype="float64", directions=2, state=False)
    inputs: Named = build(case).inputs
    resets = torch.tensor([[False], [False], [True], [False], [True], [False]])
    whole = layer(inputs, cell="gru", resets=resets)
    pieces = [layer(inputs | {"x": x}, cell="gru") for x in inputs["x"].split(2)]
    torch.testing.assert_close(whole["output"], torch.cat([piece["output"] for piece in pieces]), rtol=0, atol=1e-15)
    torch.testing.assert_close(whole["h_n"][0], pieces[-1]["h_n"][0], rtol=0, atol=1e-15)
    torch.testing.assert_close(whole["h_n"][1], pieces[0]["h_n"][1], rtol=0, atol=1e-15)

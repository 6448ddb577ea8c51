"""Every implementation against the float64 reference: results and all gradients, at odd sizes, with NaN in all memory
that must not be read."""

from __future__ import annotations

import pytest
import torch

from seqcls_fast import _ext, ops
from support.cases import CELLS, FLOATS, HALVES, LARGE, SIZES, WIDE, Case, pairwise
from support.checks import check, expected


def test_implementations_are_there() -> None:
    """Every other test runs on the implementations in this list, so a missing one must not go unnoticed."""
    impls = ops.available_impls()
    print("implementations:", *impls)
    assert impls[0] == "reference"
    assert ("base" in impls) == (_ext.C is not None)
    assert _ext.C is not None or _ext.why_missing


def test_pairwise_covers_every_cell_and_dtype() -> None:
    cases = pairwise()
    assert {(c.cell, c.dtype) for c in cases} == {(c, d) for c in CELLS for d in FLOATS + HALVES}
    assert {c.H for c in cases} == {c.B for c in cases} == set(SIZES)


@pytest.mark.parametrize("case", pairwise() + pairwise(seed=1) + LARGE + WIDE, ids=str)
def test_matches_reference(case: Case, impl: str) -> None:
    check(case, impl)


@pytest.mark.parametrize("case", LARGE + WIDE, ids=str)
def test_matches_reference_with_threads(case: Case, compiled: str) -> None:
    expected(case)  # computed here and kept, so that the reference runs on one thread
    for threads in (2, 3, 5):
        torch.set_num_threads(threads)
        check(case, compiled)

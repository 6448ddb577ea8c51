"""Layers with options on every implementation against the float64 reference: results and all gradients, those of the
further weights and of the reset states too, at odd sizes, with NaN in all memory that must not be read."""

from __future__ import annotations

import pytest

from seqcls_fast._cells import BUILT_IN
from support.cases import NOISE, RESETS, Case, with_options
from support.checks import check


def test_cases_cover_every_cell_and_option() -> None:
    cases = with_options()
    assert {(c.cell, c.resets) for c in cases} == {(cell, name) for cell in BUILT_IN for name in RESETS}
    assert {(c.cell, c.noise) for c in cases} == {
        (cell, name) for cell in BUILT_IN for name in NOISE if not (cell.startswith("rnn") and name == "candidate")
    }


@pytest.mark.parametrize("case", with_options() + with_options(seed=1), ids=str)
def test_matches_reference(case: Case, impl: str) -> None:
    check(case, impl)

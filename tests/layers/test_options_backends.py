"""Layers with options on every implementation against the float64 reference: results and all gradients, those of the
further weights and of the reset states too, at odd sizes, with NaN in all memory that must not be read."""

from __future__ import annotations

import pytest
import torch

from seqcls_fast._cells import BUILT_IN
from support.cases import LARGE, NOISE, RESETS, WIDE, Case, only, with_options
from support.checks import check, expected


def test_cases_cover_every_cell_and_option() -> None:
    cases = with_options()
    assert {(c.cell, c.resets) for c in cases} == {(cell, name) for cell in BUILT_IN for name in RESETS}
    assert {(c.cell, c.noise) for c in cases} == {
        (cell, name) for cell in BUILT_IN for name in NOISE if not (cell.startswith("rnn") and name == "candidate")
    }


@pytest.mark.parametrize("case", with_options() + with_options(seed=1), ids=str)
def test_matches_reference(case: Case, impl: str) -> None:
    check(case, impl)


def with_every_option(case: Case) -> list[Case]:
    """The case with resets, and with resets and noise for each option of its cell."""
    cells = [cell for cell in BUILT_IN if cell.startswith(case.cell) and cell != case.cell]
    options = {"resets": "some", "learnt": True}
    return only(case, **options) + [c for cell in cells for c in only(case, **options, cell=cell, noise="all")]


@pytest.mark.parametrize("case", [c for case in LARGE + WIDE for c in with_every_option(case)], ids=str)
def test_matches_reference_with_threads(case: Case, compiled: str) -> None:
    """Wide layers and many rows, whose units or rows several threads share."""
    expected(case)  # computed here and kept, so that the reference runs on one thread
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        check(case, compiled)

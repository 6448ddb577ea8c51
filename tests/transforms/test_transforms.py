"""Every row of the table in docs/transforms.md holds for each of our implementations, and the table is up to date."""

from __future__ import annotations

import warnings

import pytest
import torch

import seqcls_fast as sf
from transforms import CELLS, ROWS, Ours, Row, TorchNN, entry, outcome, read_entry, read_table, this_machine

UNROLLED = "programs of the reference, which also runs here for torch's own layer, have one T and promise no bits"


def rows(slow: bool) -> list[object]:
    return [pytest.param(row, id=row.check.__name__) for row in ROWS if row.slow == slow]


def assert_holds(row: Row, cell: str, impl: str) -> None:
    if row.kernels and impl in ("reference", "torch"):
        pytest.skip(UNROLLED)
    with sf.use_impl(impl), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracers and exporters warn
        row.check(Ours, cell)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("row", rows(slow=False))
def test_ours(row: Row, cell: str, impl: str) -> None:
    assert_holds(row, cell, impl)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("row", rows(slow=True))
def test_ours_slow(row: Row, cell: str) -> None:
    assert_holds(row, cell, sf.available_impls()[-1])


def test_table_is_up_to_date() -> None:
    table = read_table()
    names = [row.name for row in ROWS]
    assert list(table.theirs) == names
    assert table.ours == dict.fromkeys(names, dict.fromkeys(CELLS, "yes"))
    assert all(said == "yes" or said.startswith("no (") for row in table.theirs.values() for said in row.values())


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("row", rows(slow=False))
def test_torch_does_what_the_table_says(row: Row, cell: str) -> None:
    table = read_table()
    if (torch.__version__.split("+")[0], this_machine()) != (table.torch, table.machine):
        pytest.skip(f"the table was made with torch {table.torch} on {table.machine}")
    if row.cpu:
        pytest.skip("torch.nn's result depends on the CPU")
    assert outcome(row, TorchNN, cell).split()[0] == table.theirs[row.name][cell].split()[0]


@pytest.mark.parametrize(
    ("outcomes", "text"),
    [
        (("yes", "yes", "yes"), "yes"),
        (("no (A)", "no (A)", "no (A)"), "no (A)"),
        (("yes", "no (A)", "yes"), "RNN, LSTM: yes; GRU: no (A)"),
        (("yes", "no (A)", "no (B)"), "RNN: yes; GRU: no (A); LSTM: no (B)"),
    ],
)
def test_entries(outcomes: tuple[str, str, str], text: str) -> None:
    by_cell = dict(zip(CELLS, outcomes, strict=True))
    assert entry(by_cell) == text
    assert read_entry(text) == by_cell

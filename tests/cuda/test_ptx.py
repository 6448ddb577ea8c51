"""The CUDA kernels' PTX on the CPU (ptx/), behind the host code: every kernel against the float64 reference.

The interpreter ends a call at the first fault of its detectors, see test_ptx_detectors.py. `--ptx-full` runs two layers
for each recurrent kernel; otherwise one layer for each cell, precision and regime, forward and backward.
"""

from __future__ import annotations

import pytest

from ptx import selection
from ptx.build import kernels, load_interpreter, why_not
from ptx.selection import Recurrent
from support.cases import CELLS
from support.checks import check

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(scope="module", autouse=True)
def _interpreter() -> None:
    load_interpreter()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kernel" in metafunc.fixturenames:
        full = metafunc.config.getoption("ptx_full")
        chosen: list[tuple[Recurrent, int]] = []
        if why_not() is None:
            chosen = [(k, 0) for k in selection.sample()]
            if full:
                chosen = [(k, i) for k in selection.recurrent() for i in range(2)]
        metafunc.parametrize(("kernel", "which"), chosen, ids=[f"{kernel}-{which}" for kernel, which in chosen])


def runs_of(name: str) -> int:
    return load_interpreter().runs().get(name, (0, 0))[0]


def test_recurrent_kernels(kernel: Recurrent, which: int) -> None:
    names = selection.recurrent()[kernel]
    before = [runs_of(name) for name in names]
    check(list(selection.cases(kernel))[which], selection.implementation(kernel))
    assert all(runs_of(name) > count for name, count in zip(names, before, strict=True)), "another kernel ran"


def test_selection_has_every_kernel() -> None:
    """The forward and the backward of each are kernels of their own, and plan.h chooses each for some layer."""
    names = [name for passes in selection.recurrent().values() for name in passes]
    assert len(names) == len(set(names)) == sum("5recurI" in name for name in kernels())
    plain, options = (
        {(c, dtype, regime) for c in CELLS for dtype in dtypes for regime in selection.REGIMES[:3]}
        for dtypes in (selection.PRECISIONS, selection.OPTION_DTYPES)
    )
    regimes = ("onchip", "grid")
    options |= {(c, dtype, r) for c in selection.OF_ROWS for dtype in selection.OPTION_DTYPES for r in regimes}
    for found, wanted in ((False, plain), (True, options)):
        assert {(k.cell, k.dtype, k.regime) for k in selection.sample() if k.options == found} == wanted
    every = selection.recurrent()
    assert {k._replace(options=False) for k in every if k.options and k.cell in CELLS} == {
        k for k in every if not k.options
    }


def test_every_other_kernel() -> None:
    """Stepwise layers, ids, projections, layers of many launches: together they run what is left of the PTX."""
    for name, case in selection.others():
        try:
            check(case, name)
        except (AssertionError, RuntimeError) as error:
            pytest.fail(f"{name}, {case}: {error}")
    ran = load_interpreter().runs()
    assert [kernel for kernel in kernels() if "5recurI" not in kernel and kernel not in ran] == []

"""Faults in the PTX (ptx/faults.py) are noticed: by the interpreter's detectors, or by results that differ.

`--ptx-full` plants all of them, otherwise one for each assembly string and exchange.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ptx import faults, selection
from ptx.build import kernels, load_interpreter, why_not
from ptx.faults import Fault
from support.cases import Case
from support.checks import check

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

DEVICE = Path(__file__).parents[2] / "csrc/cuda/kernels/device.cuh"
EXCHANGES = ("onchip", "cluster", "grid")


def case_of(fault: Fault) -> Case:
    """A small layer that runs the kernel, with several tiles, steps and lengths."""
    kernel = fault.kernel
    H = min(selection.sizes(kernel)[1], selection.sizes(kernel)[0] + 20)
    return Case(kernel.cell, dtype=kernel.dtype, H=H, T=5, B=11, I=3, lengths="random")


@contextmanager
def planted(fault: Fault) -> Iterator[None]:
    module, names = load_interpreter(), selection.recurrent()[fault.kernel]
    texts = {name: kernels()[name] for name in names}
    changed = {name: fault.plant(text) for name, text in texts.items()}
    assert changed != texts, "no line of the kernel is the one that the fault changes"
    try:
        for name, text in changed.items():
            module.set_kernel(name, text)
        yield
    finally:
        for name, text in texts.items():
            module.set_kernel(name, text)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fault" in metafunc.fixturenames:
        chosen = faults.every()
        if not metafunc.config.getoption("ptx_full"):
            chosen = list({fault.of: fault for fault in chosen}.values())
        metafunc.parametrize("fault", chosen, ids=str)


@pytest.mark.parametrize("kernel", sorted({fault.kernel for fault in faults.every()}), ids=str)
def test_the_kernels_are_right_without_a_fault(kernel: selection.Recurrent) -> None:
    load_interpreter()
    check(case_of(Fault("", "", kernel, "", "")), selection.implementation(kernel))


def test_fault_is_noticed(fault: Fault) -> None:
    with planted(fault), pytest.raises((RuntimeError, AssertionError)) as noticed:
        check(case_of(fault), selection.implementation(fault.kernel))
    message = str(noticed.value)
    assert "the interpreter has no" not in message, message
    assert "ptx: " not in message, message  # text that is no PTX
    print(message.splitlines()[0])


def test_every_assembly_string_and_exchange_has_three() -> None:
    strings = re.findall(r'asm(?: volatile)?\(\s*((?:"[^"]*"\s*)+)', DEVICE.read_text())
    texts = {"".join(re.findall(r'"([^"]*)"', string)).replace("{ .reg .pred p; ", "") for string in strings}
    assert len(texts) == 25
    count = Counter(fault.of for fault in faults.every())
    of = {text: sum(n for start, n in count.items() if text.startswith(start)) for text in texts}
    assert {text: n for text, n in of.items() if n < 3} == {}
    assert all(count[exchange] >= 3 for exchange in EXCHANGES)
    assert all(any(text.startswith(start) for text in texts) for start in set(count) - set(EXCHANGES))

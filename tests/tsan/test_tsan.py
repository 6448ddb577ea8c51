"""The faults that `make tsan` plants are where it looks for them; building and running them is left to it."""

from __future__ import annotations

import pytest

import tsan


@pytest.mark.parametrize("fault", tsan.FAULTS, ids=lambda fault: fault.name)
def test_the_text_of_a_fault_occurs_once(fault: tsan.Fault) -> None:
    text = (tsan.ROOT / "csrc/cpu/host" / fault.file).read_text()
    assert text.count(fault.old) == 1
    assert fault.old != fault.new

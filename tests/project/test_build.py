"""Properties of the compiled files that no run of them would show, read with nm.

Each ISA's objects may export nothing the linker could merge with another's: a weak symbol compiled for AVX-512 and
handed to the baseline path is an illegal instruction on an older CPU. And the extension may need no C++ symbol of
torch, or it would run under the one release it was built with.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from seqcls_fast import _ext

ROOT = Path(__file__).parents[2]
NM = shutil.which("nm")
TORCH_NAMESPACES = re.compile(r"^_ZN[KVr]*(2at|3c10|5torch|6caffe2)")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files"),
    pytest.mark.skipif(NM is None, reason="nm is not installed"),
    pytest.mark.skipif(_ext.C is None, reason=f"no compiled extension: {_ext.why_missing}"),
]


def symbols(file: Path, *options: str) -> list[tuple[str, str]]:
    """(type letter, mangled name) of each symbol."""
    command = [str(NM), "--format=posix", *options, str(file)]  # a line is NAME TYPE [VALUE SIZE]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [(words[1], words[0]) for words in map(str.split, lines) if len(words) > 1]


def test_isa_objects_export_nothing_weak() -> None:
    assert _ext.C is not None
    if ROOT not in Path(str(_ext.C.__file__)).parents:
        pytest.skip("the extension in use was not built in this tree, so its objects are not here")
    objects = [file for file in (ROOT / "build").rglob("cpu/kernels/kernels.o") if "asan" not in file.parts]
    assert objects, "no cpu/kernels/kernels.o under build/, where setup.py keeps the objects"
    weak = {str(file): [name for kind, name in symbols(file) if kind in "WVu"] for file in objects}
    assert {file: names for file, names in weak.items() if names} == {}


def test_extension_needs_no_cpp_symbol_of_torch() -> None:
    assert _ext.C is not None
    undefined = [name for _, name in symbols(Path(str(_ext.C.__file__)), "--dynamic", "--undefined-only")]
    assert [name for name in undefined if TORCH_NAMESPACES.match(name)] == []

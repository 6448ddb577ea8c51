"""Properties of the compiled files that no run of them would show, read with nm.

Each ISA's objects may export nothing the linker could merge with another's: a weak symbol compiled for AVX-512 and
handed to the baseline path is an illegal instruction on an older CPU. The extension may need no C++ symbol of torch, or
it would run under the one release it was built with. And no library may need a symbol that systems of 2018 lack.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from seqcls_fast import _ext

ROOT = Path(__file__).parents[2]
NM = shutil.which("nm")
# The newest symbols that manylinux_2_28 allows.
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11)}
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
    objects = [file for file in (ROOT / "build").rglob("kernels_a*.o") if "asan" not in file.parts]
    assert objects, "no kernels_avx*.o or kernels_amx*.o under build/, where setup.py keeps the objects"
    weak = {str(file): [name for kind, name in symbols(file) if kind in "WVu"] for file in objects}
    assert {file: names for file, names in weak.items() if names} == {}


def test_extension_needs_no_cpp_symbol_of_torch() -> None:
    assert _ext.C is not None
    undefined = [name for _, name in symbols(Path(str(_ext.C.__file__)), "--dynamic", "--undefined-only")]
    assert [name for name in undefined if TORCH_NAMESPACES.match(name)] == []


@pytest.mark.skipif(platform.machine() != "x86_64", reason="csrc/older_glibc.cpp knows the symbols of x86-64 alone")
def test_no_library_needs_a_later_system() -> None:
    assert _ext.C is not None
    if _ext.C.build_info()["cuda"]:
        pytest.skip("CUDA's own library, which is linked statically, needs a later system")
    folder = Path(str(_ext.C.__file__)).parent
    libraries = [*folder.glob("_C.*.so"), *folder.glob("_runtime.*.so"), *folder.glob("_eager_*.so")]
    assert len(libraries) >= 2
    for library in libraries:
        needed = " ".join(name for _, name in symbols(library, "--dynamic", "--undefined-only"))
        versions = re.findall(r"@+(GLIBC|GLIBCXX|CXXABI)_([\d.]+)", needed)
        assert {family for family, _ in versions} >= {"GLIBC", "GLIBCXX"}, library
        later = {f"{family}_{v}" for family, v in versions if tuple(map(int, v.split("."))) > NEWEST[family]}
        assert later == set(), library

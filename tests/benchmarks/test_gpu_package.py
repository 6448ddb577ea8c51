"""What `make gpu-package` decides without building anything."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import gpu_package
from benchmarks.rows import ROOT

READELF = """
Version needs section '.gnu.version_r' contains 2 entries:
  0x0010:   Name: GLIBC_2.14  Flags: none  Version: 5
  0x0020:   Name: GLIBC_2.9  Flags: none  Version: 4
  0x0030:   Name: GLIBCXX_3.4.21  Flags: none  Version: 3
  0x0040:   Name: CXXABI_1.3  Flags: none  Version: 2
"""


def test_symbols_are_compared_as_numbers() -> None:
    found = gpu_package.needed(READELF)
    assert found == {"GLIBC": (2, 14), "GLIBCXX": (3, 4, 21), "CXXABI": (1, 3)}
    assert gpu_package.too_new(found) == []


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("GLIBC_2.35", "GLIBC 2.35 is needed, but at most 2.34 is allowed"),
        ("GLIBCXX_3.4.30", "GLIBCXX 3.4.30 is needed, but at most 3.4.21 is allowed"),
        ("OTHER_1.0", "OTHER 1.0 is needed, but at most  is allowed"),
    ],
)
def test_later_symbols_are_refused(name: str, sentence: str) -> None:
    assert gpu_package.too_new(gpu_package.needed(f"{READELF}  0x50:   Name: {name}  Flags")) == [sentence]


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("echo 8.6", ""),
        ("exit 9", "expected a GPU that nvidia-smi can tell of, but it fails"),
        ("echo '[N/A]'", r"expected a compute capability from nvidia-smi but got \[N/A\]"),
    ],
)
def test_the_gpu_of_this_machine(script: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    if not sentence:
        assert gpu_package.architecture_here() == "8.6"
        return
    with pytest.raises(SystemExit, match=sentence):
        gpu_package.architecture_here()


def test_a_folder_that_holds_other_files_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "thesis").write_text("x")
    with pytest.raises(SystemExit, match="expected a new folder or an earlier package"):
        gpu_package.make_package(tmp_path)
    assert (tmp_path / "thesis").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_gpu() -> None:
    def printed(*arguments: str, **environment: str) -> list[str]:
        words = ["make", "--no-print-directory", "-n", *arguments]
        clean = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS")}
        answer = subprocess.run(words, cwd=ROOT, env=clean | environment, capture_output=True, text=True, check=True)
        return [line.rstrip() for line in answer.stdout.splitlines()]

    assert printed("gpu")[-2:] == [
        ".venv/bin/python tools/gpu_package.py --here",
        ".venv/bin/python -m benchmarks.gpu --out build/gpu/results --budget 900",
    ]
    assert (
        printed("gpu", "PYTHON=snake", "GPU=--report")[-1] == "snake -m benchmarks.gpu --out build/gpu/results --report"
    )
    assert printed("gpu-package", PYTHON="snake")[-1].endswith(
        'TORCH_CUDA_ARCH_LIST="9.0" snake tools/gpu_package.py --out build/gpu-package'
    )

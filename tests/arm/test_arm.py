"""What `make arm` writes and reads, and its sentences; compiling and emulating is left to it."""

from __future__ import annotations

import shutil

import pytest
import torch

import arm
from support.cases import Case, build
from support.checks import expected


def test_no_tools_is_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr("sys.argv", ["arm.py"])
    assert arm.main() == 0
    told = capsys.readouterr().err
    assert told == (
        "arm: nothing is checked: no aarch64-linux-gnu-g++ and no qemu-aarch64 on the PATH: "
        "`make arm-tools` installs them on Debian\n"
    )
    monkeypatch.setenv("REQUIRE_ARM", "1")
    assert arm.main() == 3


@pytest.mark.parametrize(
    "case",
    [Case("lstm", T=4, B=3, I=2, H=5, directions=2, lengths="random", proj=True, dtype="bfloat16"),
     Case("gru", T=2, B=1, I=3, H=2, ids=True, bias=False, state=False, want_output=False)],
    ids=str,
)  # fmt: skip
def test_sizes_of_what_the_driver_reads_and_writes(case: Case) -> None:
    problem, wanted = build(case), expected(case)
    size = case.torch_dtype.itemsize
    counted = 13 * 8 + (problem.lengths is not None) * case.B * 8
    for name, t in {**problem.inputs, **problem.cotangents}.items():
        counted += t.numel() * (8 if name == "x" and case.ids else size)
    assert len(arm.given(case, problem)) == counted

    data = b"".join(arm.raw(t.to(case.torch_dtype)) for t in wanted.values())
    found, left = arm.results(case, wanted, memoryview(data + b"rest"))
    assert bytes(left) == b"rest"
    assert all(torch.equal(found[name], t.to(case.torch_dtype)) for name, t in wanted.items())

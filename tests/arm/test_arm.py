"""What `make arm` reads and writes, and its sentences and those of `make arm-full`. Nothing is compiled or emulated."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import with_torch

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


def test_what_arm_full_needs_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(with_torch, "missing", lambda: "no qemu-aarch64 on the PATH")
    with pytest.raises(SystemExit, match=r"^arm-full: no qemu-aarch64 on the PATH$"):
        with_torch.main()
    monkeypatch.setattr(with_torch, "missing", lambda: "")
    monkeypatch.setattr(with_torch, "OUT", tmp_path)
    monkeypatch.setattr(with_torch, "PACKAGES", tmp_path / "packages")
    monkeypatch.setattr(with_torch.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(5 << 20))
    with pytest.raises(SystemExit, match=r"expected 11264 MiB of free disk but got 5$"):
        with_torch.main()
    with pytest.raises(SystemExit, match=r"^arm-full: false ended with 1$"):
        with_torch.run("false")


def test_folders_are_made_whole_or_again(tmp_path: Path) -> None:
    tried = []

    def make(folder: Path) -> None:
        tried.append(sorted(path.name for path in folder.iterdir()))
        (folder / f"part {len(tried)}").touch()
        if len(tried) == 1:
            raise SystemExit("interrupted")

    with pytest.raises(SystemExit):
        with_torch.once(tmp_path / "made", make)
    with_torch.once(tmp_path / "made", make)
    with_torch.once(tmp_path / "made", make)
    assert tried == [[], []]


def test_faults_have_a_place() -> None:
    for fault in arm.FAULTS:
        assert (arm.ROOT / "csrc/cpu/kernels" / fault.file).read_text().count(fault.old) == 1, fault


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

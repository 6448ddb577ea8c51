"""`python -m benchmarks.gpu` with workers that hang, die, tell of wrong numbers or take too long; no GPU is needed.

Each rehearsal runs real processes, with short patience, and ends within its time with a report of all that was found.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_fakes import compiled

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import package
from benchmarks.gpu.results import Results
from benchmarks.gpu.supervisor import Patience, Stage
from benchmarks.rows import ROOT, csrc_hash

HASTY = Patience(silence=1.5, start=20, part=3)
WORKER = Path(__file__).with_name("gpu_worker.py")
STAGES = (Stage("one", "torch", 1), Stage("two", "torch", 1))


class Run:
    """The command with a fake worker, and what came of it."""

    def __init__(
        self, folder: Path, *parts: str, budget: float = 30, arguments: str = "", patience: Patience = HASTY
    ) -> None:
        self.log, out = folder / "log", folder / "out"
        programs = {"torch": (sys.executable, str(WORKER), str(self.log), *parts)}
        begin = time.monotonic()
        arguments = f"--budget {budget} --out {out} {arguments}"
        self.status = command.main(arguments.split(), programs, STAGES, patience)
        self.took = time.monotonic() - begin
        self.files = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
        saved = json.loads((out / "gpu.json").read_text())
        self.parts, self.facts = saved["parts"], saved["run"]
        self.began = self.log.read_text().split()


def test_all_parts_run_in_one_worker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path, "one/a", "two/b", "one/c")
    assert run.status == 0
    assert run.began == ["start", "one/a", "one/c", "two/b"]
    assert {name: part["line"] for name, part in run.parts.items()} == {
        "one/a": "a is fine",
        "one/c": "c is fine",
        "two/b": "b is fine",
    }
    assert run.files == ["gpu.json", "report.txt"]
    assert run.facts["csrc"] == csrc_hash()
    assert run.facts["device"] == "NVIDIA H200"
    out = capsys.readouterr().out
    assert "your GPU, NVIDIA H200, beside torch.nn: 0 of 0 rows lost" in out.splitlines()[-1]
    assert (tmp_path / "out/report.txt").read_text() in out


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("hang1", "hung: silent for"),
        ("die1", "the worker died: exit status -11: CUDA error: an illegal memory access"),
        ("endless1", "hung: it took too long"),
        ("sick1", "left the device in error: illegal memory access"),
    ],
)
def test_a_lost_worker_costs_one_part(tmp_path: Path, name: str, why: str) -> None:
    run = Run(tmp_path, f"one/{name}", "one/a", "two/b")
    assert run.status == 1
    assert run.began == ["start", f"one/{name}", "start", "one/a", "two/b"]
    assert run.parts[f"one/{name}"]["failed"].startswith(why)
    assert run.parts["two/b"] == {"line": "b is fine"}
    if name == "hang1":  # what it had found is not lost
        assert run.parts["one/hang1"]["error"] == 0.5


def test_wrong_numbers_are_told_and_cost_no_worker(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path, "one/wrong1", "one/wrong2", "one/wrong3", "two/b")
    assert run.status == 1
    assert run.began == ["start", "one/wrong1", "one/wrong2", "one/wrong3", "two/b"]
    assert "FAILED one/wrong3: wrong: h_n: error 1.0e-01" in capsys.readouterr().out


def test_a_kind_that_dies_twice_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path, "one/die1", "one/die2", "one/die3", "two/die4", "two/b")
    assert run.began == ["start", "one/die1", "start", "one/die2", "start", "two/b"]
    assert run.parts["two/die4"] == {"skipped": "2 parts of its kind, die, hung or crashed"}
    assert "die: 2 parts hung or crashed" in capsys.readouterr().out


def test_time_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = [f"one/slow{i}" for i in range(99)]
    run = Run(tmp_path, *parts, "two/a", budget=6)
    assert run.took < 6
    assert run.status == command.LEFT
    assert run.parts["two/a"] == {"line": "a is fine"}  # the first stage has no more than its share
    assert 2 <= sum("line" in part for part in run.parts.values()) < 20
    assert "are left; ended early: the time is over" in capsys.readouterr().out


def test_time_is_over_while_a_part_hangs(tmp_path: Path) -> None:
    run = Run(tmp_path, "one/a", "one/hang1", budget=2, patience=Patience())
    assert run.took < 2
    assert run.parts["one/hang1"] == {"line": "half of it", "error": 0.5, "cut": "its end is missing"}
    assert run.parts["one/a"] == {"line": "a is fine"}


def test_time_is_over_before_a_part_has_found_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path, "one/a", "one/mute1", budget=2, patience=Patience())
    assert run.took < 2
    assert run.status == command.LEFT
    assert "1 are left; ended early: the time is over" in capsys.readouterr().out


def test_a_second_call_goes_on(tmp_path: Path) -> None:
    first = Run(tmp_path, "one/wrong1", "one/a", "one/b", arguments="--only wrong|/a")
    assert list(first.parts) == ["one/a", "one/wrong1"]
    first.log.unlink()
    assert Run(tmp_path, "one/wrong1", "one/a", "one/b").began == ["start", "one/b", "one/wrong1"]


@pytest.mark.parametrize(
    ("name", "patience", "why"),
    [
        ("cannot", HASTY, "torch 2.11.0 sees no CUDA device here"),
        ("silent", Patience(start=1), "it was silent for 1 s"),
    ],
)
def test_a_worker_that_cannot_start_is_a_sentence(
    tmp_path: Path, name: str, patience: Patience, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, name, patience=patience)
    assert run.status == command.UNUSABLE
    assert run.began == (["start"] if name == "cannot" else ["start", "start"])
    assert f"torch could not be started: {why}" in capsys.readouterr().out


def test_a_program_that_is_none_costs_its_stage_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign = tmp_path / "primitives"
    foreign.write_bytes(b"\x7fELF of another machine")
    foreign.chmod(0o644)  # as a copy may leave it
    programs = {
        "torch": (sys.executable, str(WORKER), str(tmp_path / "log"), "one/a"),
        "primitives": (str(foreign),),
    }
    stages = (Stage("primitives", "primitives", 1), *STAGES)
    assert command.main(["--budget", "30", "--out", str(tmp_path / "out")], programs, stages, HASTY) == 1
    out = capsys.readouterr().out
    assert "primitives cannot be run: Exec format error" in out
    assert "one/a  a is fine" in out


def test_sigterm_ends_with_a_report(tmp_path: Path) -> None:
    programs = {"torch": (sys.executable, str(WORKER), str(tmp_path / "log"), "one/a", "one/hang1")}
    code = (
        "import sys; from benchmarks.gpu import __main__ as c; from benchmarks.gpu.supervisor import Stage; "
        f"sys.exit(c.main(['--out', {str(tmp_path / 'out')!r}], {programs!r}, (Stage('one', 'torch', 1),)))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while not (tmp_path / "log").exists() or "hang1" not in (tmp_path / "log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert process.returncode == command.LEFT
    assert "ended early: SIGTERM came" in out
    assert json.loads((tmp_path / "out/gpu.json").read_text())["parts"]["one/a"] == {"line": "a is fine"}


def test_a_run_goes_on_when_nobody_reads_its_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def write(self, _: str) -> int:
            raise BrokenPipeError

        flush = write

    monkeypatch.setattr(sys, "stdout", Closed())
    run = Run(tmp_path, "one/a", "two/b")
    assert run.status == 0
    assert set(run.parts) == {"one/a", "two/b"}
    assert run.files == ["gpu.json", "report.txt"]


def test_a_full_disk_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Path.write_text

    def full(path: Path, text: str, *rest: Any, **options: Any) -> int:
        if path.name.endswith(".partial") and "one/b" in text and "one/c" not in text:
            raise OSError(errno.ENOSPC, "No space left on device")
        return right(path, text, *rest, **options)

    monkeypatch.setattr(Path, "write_text", full)
    run = Run(tmp_path, "one/a", "one/b", "one/c")
    out = capsys.readouterr().out
    assert '{"one/b": {"line": "b is fine"}}' in out
    assert out.count("could not be written, so what it lacks is printed here: [Errno 28] No space left") == 1
    assert set(run.parts) == {"one/a", "one/b", "one/c"}  # the next write has it all
    assert run.files == ["gpu.json", "report.txt"]


def test_nothing_is_written_outside_the_folder(tmp_path: Path) -> None:
    """Libraries are told of places within it, which are gone at the end."""
    told = command.environment(tmp_path / "tmp")
    assert {told[name] for name in ("TMPDIR", "XDG_CACHE_HOME", "TRITON_CACHE_DIR")} == {str(tmp_path / "tmp")}
    assert told["PYTHONDONTWRITEBYTECODE"] == told["CUDA_CACHE_DISABLE"] == "1"


@compiled
def test_the_real_worker_on_a_device_of_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    programs = {"torch": (sys.executable, str(WORKER.with_name("gpu_fakes.py")))}
    arguments = ["--budget", "90", "--out", str(tmp_path), "--only", "^layers/gru-(fp32|bf16)-"]
    assert command.main(arguments, programs, (Stage("layers", "torch", 1),)) == 0
    out = capsys.readouterr().out
    assert "layers/gru-fp32-H33-base-backward  ragged nn " in out
    assert "fp32  base" in out
    assert len(json.loads((tmp_path / "gpu.json").read_text())["parts"]) == 4


# -- the package ------------------------------------------------------------------------------------------------------


def packed(root: Path) -> Path:
    (root / "csrc").mkdir()
    (root / "csrc/a.cpp").write_text("one")
    (root / "b.py").write_text("two")
    package.describe(root, {"python": package.interpreter()})
    return root


def test_a_whole_package_is_taken(tmp_path: Path) -> None:
    assert package.complaint(packed(tmp_path)) == ""
    assert package.complaint(ROOT) == ""  # a tree is none


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda root: (root / "b.py").write_text("tw"), "this package is damaged: b.py are missing or not as"),
        (lambda root: (root / "csrc/a.cpp").unlink(), "this package is damaged: csrc/a.cpp are missing or"),
        (lambda root: (root / "package.json").write_text("{"), "expected what `make gpu-package` writes, but it"),
        (lambda root: package.describe(root, {"python": "cpython 3.9"}), "this package is for cpython 3.9, but this"),
    ],
    ids=["changed", "missing", "no JSON", "foreign"],
)
def test_a_damaged_or_foreign_package_is_a_sentence(
    tmp_path: Path, spoil: Any, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = packed(tmp_path)
    spoil(root)
    assert command.main(["--out", str(tmp_path / "out")], {}, root=root) == command.UNUSABLE
    assert sentence in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", ["", "--out x --budget 0", "--out x --budget nan", "--out x --only ("])
def test_bad_arguments_exit_2(arguments: str) -> None:
    with pytest.raises(SystemExit) as exit_info:
        command.main(arguments.split(), {})
    assert exit_info.value.code == 2


def test_report_is_printed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Results(tmp_path, {"device": "NVIDIA H200"}, print).put("memcheck/every-regime", {"line": "0 errors"})
    assert command.main(["--report", "--out", str(tmp_path)]) == 0
    assert "every-regime: 0 errors" in capsys.readouterr().out
    assert command.main(["--report", "--out", str(tmp_path / "none")]) == command.UNUSABLE


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_machine_without_gpu_says_so(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path), "--budget", "90"]
    result = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == command.UNUSABLE
    assert "sees no CUDA device here" in result.stdout
    assert (tmp_path / "report.txt").exists()


def test_the_command_itself_needs_no_torch() -> None:
    """It goes on after workers that lost their CUDA context, so it must not have one itself."""
    code = "import sys; sys.modules['torch'] = None; import benchmarks.gpu.__main__"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)

"""The command of `make gpu` with workers that crash, hang or run out of time; no GPU is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_fakes import POINT, RUN, Clock, part

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import worker
from benchmarks.gpu.results import Results
from benchmarks.rows import ROOT, csrc_hash

# -- a stage ----------------------------------------------------------------------------------------------------------


class Script:
    """Stands in for workers, each a list of the messages it gives, and keeps the arguments they were started with."""

    def __init__(self, *workers: list[dict[str, Any]], clock: Clock | None = None, takes: float = 0.0) -> None:
        self.workers, self.clock, self.takes = list(workers), clock, takes
        self.asked: list[tuple[str, list[str], float, float, str]] = []

    def __call__(
        self, stage: str, done: Sequence[str], seconds: float, budget: float, pattern: str
    ) -> Iterator[dict[str, Any]]:
        self.asked.append((stage, list(done), seconds, budget, pattern))
        yield from self.workers.pop(0)
        if self.clock:
            self.clock.now += self.takes


def ran(*names: str, **result: Any) -> list[dict[str, Any]]:
    return [message for name in names for message in ({"begin": name}, {"done": name, "result": result})]


FINE: dict[str, Any] = {"ended": ""}


def stage(script: Script, results: Results, **options: Any) -> tuple[command.Outcome, list[str]]:
    said: list[str] = []
    return command.run_stage("grid1", results, script, **{"budget": 100.0, "say": said.append} | options), said


def test_a_stage(tmp_path: Path) -> None:
    results = Results(tmp_path / "gpu.json", RUN)
    results.put("grid/before", {})
    script = Script([{"left": 2}, *ran("grid/a", "grid/b", line="1.5x"), FINE])
    outcome, said = stage(script, results, pattern="lstm", clock=Clock())
    assert script.asked == [("grid1", ["grid/before"], 100.0, 100.0, "lstm")]
    assert (outcome.ran, outcome.left, outcome.failed) == (2, 0, {})
    assert said == ["grid/a  1.5x", "grid/b  1.5x"]
    assert set(json.loads((tmp_path / "gpu.json").read_text())["parts"]) == {"grid/before", "grid/a", "grid/b"}


@pytest.mark.parametrize("end", ["exit status -11: Segmentation fault", "hung: silent for 90 s", ""])
def test_a_worker_that_dies_costs_one_part(tmp_path: Path, end: str) -> None:
    results = Results(tmp_path / "gpu.json", RUN)
    script = Script(
        [{"left": 3}, *ran("grid/a"), {"begin": "grid/b"}, {"ended": end}],
        [{"left": 1}, *ran("grid/c"), FINE],
    )
    outcome, said = stage(script, results)
    assert [asked[1] for asked in script.asked] == [[], ["grid/a", "grid/b"]]
    assert outcome.failed == {"grid/b": end or "the process ended"}
    assert (outcome.ran, outcome.left) == (3, 0)
    assert said[1] == f"grid/b  FAILED: {end or 'the process ended'}"
    assert Results(tmp_path / "gpu.json", RUN).finished == {"grid/a", "grid/c"}


def test_a_device_in_error_goes_on_in_a_new_process(tmp_path: Path) -> None:
    sick = {"ended": f"exit status {worker.HEALTH_LOST}"}
    script = Script(
        [{"left": 2}, *ran("grid/a", failed="left the device in error"), sick], [{"left": 1}, *ran("grid/b"), FINE]
    )
    outcome, _ = stage(script, Results(tmp_path / "gpu.json", RUN))
    assert outcome.failed == {"grid/a": "left the device in error"}
    assert (outcome.ran, outcome.left) == (2, 0)


def test_a_worker_that_cannot_start_ends_the_stage(tmp_path: Path) -> None:
    script = Script([{"ended": "exit status 1: no CUDA device"}])
    outcome, _ = stage(script, Results(tmp_path / "gpu.json", RUN))
    assert outcome.failed == {"grid/(start)": "exit status 1: no CUDA device"}


def test_what_failed_is_tried_again_next_time_and_not_before(tmp_path: Path) -> None:
    results = Results(tmp_path / "gpu.json", RUN)
    stage(Script([{"left": 2}, *ran("grid/a", failed="x"), *ran("grid/b"), FINE]), results)
    script = Script([{"left": 1}, *ran("grid/a"), FINE])
    outcome, _ = stage(script, Results(tmp_path / "gpu.json", RUN))
    assert script.asked[0][1] == ["grid/b"]
    assert outcome.failed == {}


def test_time_is_shared_by_the_workers_of_a_stage(tmp_path: Path) -> None:
    clock = Clock()
    dies = [{"left": 9}, *ran("grid/a"), {"begin": "grid/b"}, {"ended": "exit status 1"}]
    script = Script(dies, [{"left": 7}, {"begin": "grid/c"}, {"ended": "exit status 1"}], clock=clock, takes=60)
    outcome, _ = stage(script, Results(tmp_path / "gpu.json", RUN), clock=clock)
    assert [asked[2:4] for asked in script.asked] == [(100, 100), (40, 100)]
    assert outcome.left == 6
    assert str(outcome) == "grid1: 3 parts ran, 2 failed, 6 left for another call"


def test_a_stage_that_hangs_again_and_again_ends(tmp_path: Path) -> None:
    hangs = [[{"left": 9}, {"begin": f"grid/{i}"}, {"ended": "hung: silent for 60 s"}] for i in range(9)]
    outcome, _ = stage(Script(*hangs), Results(tmp_path / "gpu.json", RUN))
    assert len(outcome.failed) == command.MOST_HUNG
    crashes = [[*messages[:2], {"ended": "exit status 1"}] for messages in hangs]
    crashes[-1][0] = {"left": 1}
    outcome, _ = stage(Script(*crashes), Results(tmp_path / "gpu.json", RUN))
    assert len(outcome.failed) == 9


def worker_of(tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch, silence: float = 60) -> list[dict[str, Any]]:
    """The messages of a real process."""
    program = tmp_path / "worker.py"
    program.write_text(
        f"import json, os, sys, time\ndef tell(**m): print({worker.MARK!r} + json.dumps(m), flush=True)\n{text}"
    )
    monkeypatch.setattr(command.Worker, "program", (str(program),))
    monkeypatch.setattr(command, "USUAL_SILENCE", silence)
    return list(command.Worker("grid1", ["a", "b"], 7.5, 8.0, "x"))


def test_worker_process_is_told_and_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = worker_of(tmp_path, "print('noise')\ntell(begin=sys.argv[1:], left=json.load(sys.stdin))", monkeypatch)
    assert found == [{"begin": ["grid1", "7.5", "8.0", "x"], "left": ["a", "b"]}, {"ended": ""}]


def test_worker_process_that_dies_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = worker_of(tmp_path, "tell(begin='a')\nprint('CUDA error')\nos.abort()", monkeypatch)
    assert found[0] == {"begin": "a"}
    assert found[1]["ended"] == "exit status -6: CUDA error"


def test_worker_process_that_hangs_is_killed_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pids = tmp_path / "pids"
    text = (
        "import subprocess\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\ntell(begin='a')\ntime.sleep(600)"
    )
    assert worker_of(tmp_path, text, monkeypatch, silence=3) == [{"begin": "a"}, {"ended": "hung: silent for 3 s"}]
    deadline = time.monotonic() + 20
    while any(_runs(int(pid)) for pid in pids.read_text().split()):
        assert time.monotonic() < deadline, "a process outlived its stage"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    """Whether a process exists and has not ended: an ended one exists until its parent asks for its status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# -- the command ------------------------------------------------------------------------------------------------------

FACTS: list[dict[str, Any]] = [{"facts": {k: v for k, v in RUN.items() if k != "csrc"}}, FINE]


def called(script: Script, tmp_path: Path, arguments: str) -> int:
    return command.main([*arguments.split(), "--out", str(tmp_path / "gpu.json")], script)


def test_command_runs_stages_in_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = [{"left": 1}, *ran("build/extension", line="60 s", anew=True), FINE]
    times = part(1e-6, nn=4e-6)
    script = Script(FACTS, build, [{"left": 1}, *ran(f"grid/{POINT}", **times), FINE])
    assert called(script, tmp_path, "--stage build,grid1 --budget-minutes 2 --only x") == 0
    assert [(asked[0], *asked[3:]) for asked in script.asked[1:]] == [("build", 120, "x"), ("grid1", 120, "x")]
    out = capsys.readouterr().out
    assert "device NVIDIA H200" in out
    assert "met           forward + backward, H <= 128: 3x: worst 4.00x, 33 % above the bar" in out
    assert out.rstrip().endswith("build: 1 parts ran\ngrid1: 1 parts ran")
    saved = json.loads((tmp_path / "gpu.json").read_text())
    assert saved["run"]["csrc"] == csrc_hash()
    assert saved["parts"][f"grid/{POINT}"]["times"] == times["times"]
    assert command.main(["--report", "--out", str(tmp_path / "gpu.json")], Script()) == 0
    assert "worst 4.00x" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("messages", "status"),
    [
        ([{"left": 1}, *ran("latency/a"), FINE], 0),
        ([{"left": 2}, *ran("latency/a"), FINE], 3),
        ([{"left": 2}, *ran("latency/a", failed="wrong"), FINE], 1),
        ([{"ended": "exit status 1"}], 1),
    ],
)
def test_exit_status(
    messages: list[dict[str, Any]], status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert called(Script(FACTS, messages), tmp_path, "--stage latency") == status
    assert ("FAILED latency/" in capsys.readouterr().out) == (status == 1)


def test_a_failed_build_ends_it(tmp_path: Path) -> None:
    script = Script(FACTS, [{"left": 1}, *ran("build/extension", failed="nvcc"), FINE])
    assert called(script, tmp_path, "") == 1
    assert len(script.asked) == 2


def test_no_device_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="the device could not be asked: exit status 1: no CUDA device"):
        called(Script([{"ended": "exit status 1: no CUDA device"}]), tmp_path, "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_machine_without_gpu_says_so() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--stage", "latency"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "sees no CUDA device here" in result.stderr


@pytest.mark.parametrize("stage_name", ["grid0", "grid", "buidl"])
def test_unknown_stages_exit_2(stage_name: str) -> None:
    with pytest.raises(SystemExit) as exit_info:
        command.main(["--stage", stage_name], Script())
    assert exit_info.value.code == 2


def test_the_command_itself_needs_no_torch() -> None:
    """It goes on after workers that lost their CUDA context, so it must not have one itself."""
    code = "import sys; sys.modules['torch'] = None; import benchmarks.gpu.__main__"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_gpu() -> None:
    def printed(*arguments: str, **environment: str) -> str:
        command = ["make", "--no-print-directory", "-n", "gpu", *arguments]
        clean = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS")}
        return (
            subprocess.run(command, cwd=ROOT, env=clean | environment, capture_output=True, text=True, check=True)
            .stdout.splitlines()[-1]
            .rstrip()
        )

    assert printed() == ".venv/bin/python -m benchmarks.gpu"
    assert printed("PYTHON=snake", "GPU=--report") == "snake -m benchmarks.gpu --report"
    assert printed(PYTHON="snake").split() == ["snake", "-m", "benchmarks.gpu"]

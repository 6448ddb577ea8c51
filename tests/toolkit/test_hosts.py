"""torchrun on two hosts: they train as two processes of one machine do, and a killed one comes back by itself.

The hosts are two network namespaces of this machine, or two loopback addresses where those cannot be made.
"""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from seqcls_fast.toolkit.training.checkpoint import Checkpoints
from support.corpora import sentences
from support.hosts import two_hosts
from support.processes import torchrun

pytestmark = [
    pytest.mark.alone,  # it starts several processes at a time
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="a process to kill is found in /proc"),
]

OPTIONS = ["--hidden-size", "6", "--embedding-dim", "6", "--epochs", "6", "--batch-size", "8", "--device", "cpu"]
OPTIONS += ["--no-baseline", "--no-wide", "--checkpoint-every", "0"]


def children(process: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has just ended
            continue
        if parent == process:
            found.append(int(entry.parent.name))
    return found


def test_a_killed_rank_comes_back_from_the_checkpoint(tmp_path: Path) -> None:
    with (tmp_path / "data.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(*sentences(0, 200), strict=True)])
    train = ["-m", "seqcls_fast", "train", "data.csv", *OPTIONS, "--out"]
    checkpoints = tmp_path / ".model.checkpoints"
    logs = [tmp_path / "first.log", tmp_path / "second.log"]
    with two_hosts() as hosts, logs[0].open("w") as one, logs[1].open("w") as two:
        running: list[subprocess.Popen[str]] = []
        try:
            for host, log in zip(hosts, (one, two), strict=True):
                running.append(host.torchrun(hosts[0], log, *train, "model", folder=tmp_path))
            deadline = time.monotonic() + 200
            while not (checkpoints.exists() and Checkpoints(checkpoints, 0)):
                assert all(process.poll() is None for process in running), logs[0].read_text() + logs[1].read_text()
                assert time.monotonic() < deadline, logs[0].read_text()
                time.sleep(0.02)
            for victim in children(running[1].pid):
                os.kill(victim, signal.SIGKILL)
            ended = [process.wait(timeout=250) for process in running]
        finally:
            for process in running:
                for child in children(process.pid):
                    os.kill(child, signal.SIGKILL)
                process.kill()
                process.wait()
    assert ended == [0, 0], logs[0].read_text() + logs[1].read_text()
    assert "exitcode: -9" in logs[1].read_text()  # it was killed in the middle of training
    assert not checkpoints.exists()

    words = [str(tmp_path / word) if word == "data.csv" else word for word in train]
    done = torchrun(2, *words, str(tmp_path / "whole"))
    assert done.returncode == 0, done.stderr
    weights, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "whole"))
    assert weights.keys() == whole.keys()
    for name, tensor in whole.items():
        assert weights[name].equal(tensor), name

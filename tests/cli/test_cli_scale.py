"""The command line on folders, in several processes, and after kill -9."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from seqcls_fast import __main__
from seqcls_fast.cli.train import sha256
from seqcls_fast.toolkit.training.checkpoint import Checkpoints
from support.corpora import sentences
from support.interruptions import Killed, kill_after
from support.processes import ROOT, torchrun

pytestmark = pytest.mark.alone  # it starts several processes at a time

OPTIONS = ["--hidden-size", "8", "--embedding-dim", "8", "--epochs", "6", "--batch-size", "16", "--dropout", "0"]
OPTIONS += ["--word-dropout", "0", "--embedding-dropout", "0", "--learning-rate", "0.02", "--validation-share", "0.2"]


def command(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-m", "seqcls_fast", *words]
    return subprocess.run(
        program, cwd=folder, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two files, `data`, and what one process makes of them, `model`."""
    where = tmp_path_factory.mktemp("scale")
    (where / "data").mkdir()
    X, y = sentences(0, 900)
    with open(where / "data" / "a.csv", "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows(zip(X[:300], y[:300], strict=True))
    lines = [json.dumps({"text": text, "label": label}) + "\n" for text, label in zip(X[300:], y[300:], strict=True)]
    (where / "data" / "b.jsonl").write_text("".join(lines), encoding="utf-8")
    done = command("train", "data", "--out", "model", *OPTIONS, folder=where)
    assert done.returncode == 0, done.stderr
    return where


def test_a_folder_is_streamed(folder: Path) -> None:
    record = json.loads((folder / "model" / "command.json").read_text())
    assert record["settings"]["stream"] is True
    assert " --stream " in record["command"]
    assert record["rows"] + record["split"]["rows"] == 900
    assert not list(folder.glob(".model*"))  # checkpoints go when the model is there
    done = command("train", "data/b.jsonl", "--stream", "--out", "of-a-file", *OPTIONS, folder=folder)
    assert done.returncode == 0, done.stderr
    assert "of-a-file" in done.stdout


def test_two_processes_train(folder: Path) -> None:
    words = ["-m", "seqcls_fast", "train", str(folder / "data"), "--out", str(folder / "by-two"), *OPTIONS]
    done = torchrun(2, *words, "--verbose", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)  # one process speaks
    assert answer["report"]["accuracy"] > 0.98
    assert done.stderr.count("epoch   1/6") == 1
    record = json.loads((folder / "by-two" / "command.json").read_text())
    assert record["ranks"] == 2
    assert record["command"].startswith("torchrun --nproc-per-node=2 -m seqcls_fast train ")
    alone = json.loads((folder / "model" / "config.json").read_text())
    assert answer["rows"] == alone["data"]["rows"]
    # in float32 only the beginning is bound to be alike: tests/toolkit/test_ranks.py has the weights, in float64
    assert answer["history"][0]["loss"] == pytest.approx(alone["history"][0]["loss"], rel=1e-3)


def test_two_processes_predict_in_the_order_of_the_input(folder: Path) -> None:
    alone = command("predict", "model", "data", "--batch", "64", folder=folder)
    two = torchrun(2, "-m", "seqcls_fast", "predict", str(folder / "model"), str(folder / "data"), "--batch", "64")
    assert (alone.returncode, two.returncode) == (0, 0), two.stderr
    ours, theirs = (list(csv.DictReader(output.splitlines())) for output in (two.stdout, alone.stdout))
    assert [row["label"] for row in ours] == [row["label"] for row in theirs] == sentences(0, 900)[1]
    shares = [[float(row["probability_pos"]) for row in rows] for rows in (ours, theirs)]
    assert shares[0] == pytest.approx(shares[1], abs=1e-5)


def test_what_runs_in_one_process_alone(folder: Path) -> None:
    done = torchrun(2, "-m", "seqcls_fast", "evaluate", str(folder / "model"), str(folder / "data"))
    assert done.returncode != 0
    assert "expected a single process, as only train, predict, reproduce run in several" in done.stderr


def test_a_model_beside_its_data_changes_no_digest(folder: Path) -> None:
    before = sha256(folder / "data")
    (folder / "data" / "model").mkdir()
    (folder / "data" / "model" / "config.json").write_text("{}")
    (folder / "data" / ".hidden.csv").write_text("")
    assert sha256(folder / "data") == before
    (folder / "data" / "c.csv").write_text("text,label\n")
    assert sha256(folder / "data") != before
    (folder / "data" / "c.csv").unlink()


def test_two_processes_cannot_share_the_standard_input(folder: Path) -> None:
    done = torchrun(2, "-m", "seqcls_fast", "predict", str(folder / "model"), "-")
    assert done.returncode != 0
    assert "data: expected a file that every process can read but got -, the standard input" in done.stderr


def test_killed_and_resumed(folder: Path) -> None:
    out, words = "killed", [*OPTIONS, "--checkpoint-every", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = [sys.executable, "-m", "seqcls_fast", "train", "data", "--out", out, *words]
    child = subprocess.Popen(program, cwd=folder, env=environment, stderr=subprocess.DEVNULL)
    kept, patience = folder / f".{out}.checkpoints", time.monotonic() + 60
    while max((int(path.name.split("-")[1]) for path in kept.glob("checkpoint-*")), default=-1) <= 80:
        assert child.poll() is None, "it was to be killed before its end"
        assert time.monotonic() < patience
        time.sleep(0.002)
    child.send_signal(signal.SIGSTOP)  # it lives
    for more in ("--resume", "--overwrite"):
        second = command("train", "data", "--out", out, *words, more, folder=folder)
        assert second.returncode == 1
        assert f"{out}: expected no other process to write to it but got process {child.pid} on" in second.stderr
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (folder / out).exists()
    refused = command("train", "data", "--out", out, *words, folder=folder)
    assert refused.returncode == 1
    assert "expected --resume, to go on with the training that was interrupted, or --overwrite" in refused.stderr
    other = command("train", "data", "--out", out, *words, "--epochs", "9", "--resume", folder=folder)
    assert "resume: expected epochs as in the checkpoint, 6, but got 9" in other.stderr
    done = command("train", "data", "--out", out, *words, "--resume", folder=folder)
    assert done.returncode == 0, done.stderr
    found, expected = (load_file(folder / name / "model.safetensors") for name in (out, "model"))
    assert all(tensor.equal(found[name]) for name, tensor in expected.items())
    assert not kept.exists()
    assert json.loads((folder / out / "command.json").read_text())["resumed"] is True
    assert "checkpoint_dir" not in (folder / out / "README.md").read_text()


def test_a_drawn_seed_is_resumed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    train = ["train", "data", "--out", "drawn", *OPTIONS, "--seed", "none", "--checkpoint-every", "0", "--workers", "0"]
    with pytest.MonkeyPatch.context() as patch:
        kill_after(3, patch)
        with pytest.raises(Killed):
            __main__.main(train)
    state = Checkpoints(folder / ".drawn.checkpoints", 0).newest()
    assert __main__.main([*train, "--resume"]) == 0
    assert json.loads((folder / "drawn" / "command.json").read_text())["settings"]["seed"] == state["about"]["seed"]


def test_begun_anew(folder: Path) -> None:
    Checkpoints(folder / ".anew.checkpoints", 0).write({"of": "another training"})
    done = command("train", "data", "--out", "anew", "--overwrite", *OPTIONS, folder=folder)
    assert done.returncode == 0, done.stderr
    assert not (folder / ".anew.checkpoints").exists()


def test_what_does_not_go_together(folder: Path) -> None:
    done = command("train", "data", "--out", "x", "--search", "3", "--resume", *OPTIONS, folder=folder)
    assert done.returncode == 2
    assert "--search: expected without --checkpoint-dir and --resume, as trials keep no checkpoints" in done.stderr
    done = command("train", "nowhere", "--stream", "--out", "x", *OPTIONS, folder=folder)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "nowhere" in done.stderr


def test_a_search_over_a_folder(folder: Path) -> None:
    done = command("train", "data", "--out", "searched", "--search", "2", "--json", *OPTIONS[:-4], "--validation-share", "0.2", folder=folder)  # fmt: skip  # noqa: E501
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["search"]["trials"]) == 2

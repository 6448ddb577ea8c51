"""Kills processes: trainings at random times, writers of files at each of their steps.

Children are forked from a process that has imported everything, so that starting one takes no time.

`killed.py trainings FOLDER KILLS`, run by test_resume.py, resumes each training that was killed. It prints, as JSON,
how many were killed, how many came to their end, and whether all ended with the same weights. `killed.py writers
FOLDER`, run by test_files.py, kills each writer before its first call that changes files, before its second, and so on
until it comes to its end. It prints what was found under the name after each kill, and what the next writer left there.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch

import seqcls_fast as sf
from seqcls_fast import _files
from seqcls_fast.cli.shared import write_text
from seqcls_fast.toolkit.training.checkpoint import Checkpoints
from support.corpora import sentences


def classifier(folder: Path | None) -> sf.TextClassifier:
    return sf.TextClassifier(
        hidden_size=8, embedding_dim=8, batch_size=16, epochs=4, dropout=0.3, on_nan="restore", patience=3,
        checkpoint_dir=folder, checkpoint_every=0, seed=3,
    )  # fmt: skip


def digest(model: sf.TextClassifier) -> str:
    found = hashlib.sha256()
    for tensor in model.model_.state_dict().values():
        found.update(tensor.numpy().tobytes())
    told = [{k: v for k, v in record.items() if "second" not in k} for record in model.history_]
    found.update(json.dumps(told).encode())
    return found.hexdigest()


def train(folder: Path | None, resume: bool) -> str:
    X, y = sentences(0, 200)
    return digest(classifier(folder).fit(X, y, validation=0.2, resume=resume))


def life(folder: Path, result: Path) -> int:
    """Starts a child that trains, or resumes training; returns its process id."""
    child = os.fork()
    if child == 0:
        try:
            warnings.simplefilter("error")  # no half-written file may be found
            result.write_text(train(folder, resume=True))
            os._exit(0)
        except BaseException as error:
            result.write_text(f"{type(error).__name__}: {error}")
            os._exit(1)
    return child


def trainings(folder: Path, kills: int) -> None:
    random.seed(1)
    expected = train(None, resume=False)
    folder.mkdir()
    start = time.monotonic()
    alone = life(folder / "whole", folder / "whole.txt")
    os.waitpid(alone, 0)
    seconds = time.monotonic() - start
    killed, ends, steps, longer = 0, [(folder / "whole.txt").read_text()], set(), 1.0
    while killed < kills:
        child = life(folder / "killed", folder / "result.txt")
        time.sleep(random.random() * seconds * 0.6 * longer)
        done, _ = os.waitpid(child, os.WNOHANG)
        if not done:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed += 1
            state = Checkpoints(folder / "killed", 0).newest()
            if state is not None:
                moment = len(state["state"]["history"]), state["state"]["sums"]["steps"]
                longer *= 1.1 if moment in steps else 1  # the machine may have become slower since it was measured
                steps.add(moment)
            continue
        longer = 1.0
        ends.append((folder / "result.txt").read_text())
        shutil.rmtree(folder / "killed")
    os.waitpid(life(folder / "killed", folder / "result.txt"), 0)
    ends.append((folder / "result.txt").read_text())
    print(json.dumps({"killed": killed, "ends": ends, "expected": expected, "moments": len(steps)}))


# -- at each step -----------------------------------------------------------------------------------------------------

CHANGING = ("open", "write", "fsync", "ftruncate", "mkdir", "rename", "replace", "unlink", "rmdir", "close")


def die_at(step: int) -> None:
    """Kills this process at its call number ``step`` that changes files: before it, or in the middle of a write."""
    done = count(1)

    def dying(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **more: Any) -> Any:
            if next(done) == step:
                if name == "write":
                    handle, data = arguments
                    call(handle, data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **more)

        return wrapped

    for name in CHANGING:
        setattr(os, name, dying(name, getattr(os, name)))
    _files._exchanged = dying("renameat2", _files._exchanged)


def killed_at_each_step(folder: Path, write: Callable[[str], None], found: Callable[[], str]) -> dict[str, Any]:
    """``write`` writes "old" or "new"; ``found`` returns the one that is there and whole."""
    after: list[str] = []
    left: set[str] = set()
    write("old")
    names = sorted(path.name for path in folder.iterdir())
    for step in count(1):
        child = os.fork()
        if child == 0:
            die_at(step)
            try:
                write("new")
                os._exit(0)
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr)
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            return {"after": after, "left": sorted(left), "status": os.WEXITSTATUS(status), "end": found()}
        after.append(found())
        write("old")
        left |= {path.name for path in folder.iterdir()} ^ set(names)
    raise AssertionError


def writers(folder: Path) -> None:
    X, y = sentences(0, 20)
    models = {
        name: classifier(None).set_params(epochs=n, patience=None).fit(X, y) for n, name in ((1, "old"), (2, "new"))
    }
    digests = {digest(model): name for name, model in models.items()}
    told = {}

    def kill(name: str, write: Callable[[Path, str], None], found: Callable[[Path], str]) -> None:
        where = folder / name
        where.mkdir(parents=True)
        target = where / "written"
        told[name] = killed_at_each_step(where, lambda what: write(target, what), lambda: found(target))

    def save(target: Path, what: str) -> None:
        models[what].save(target)

    def loaded(target: Path) -> str:
        return digests[digest(sf.TextClassifier.load(target))]

    def report(target: Path, what: str) -> None:
        write_text(target, what * 1000)

    def read(target: Path) -> str:
        text = target.read_text()
        return text[:3] if text == text[:3] * 1000 else "neither"

    def checkpoint(target: Path, what: str) -> None:
        checkpoints = Checkpoints(target, 0)
        for path in target.glob("checkpoint-*") if what == "old" else ():
            path.unlink()
        checkpoints.write(what)

    kill("exchanged", save, loaded)
    kill("report", report, read)
    kill("checkpoint", checkpoint, lambda target: Checkpoints(target, 0).newest()["state"])
    _files._renameat2 = lambda: None
    kill("renamed", save, loaded)
    print(json.dumps(told))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "trainings":
        trainings(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        writers(Path(sys.argv[2]))

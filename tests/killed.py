"""Trainings that are killed at random moments and resumed, again and again: run by test_resume.py.

Children are forked off a process that has imported everything, so that a life costs no more than what is left to train.
Prints, as JSON, how many were killed, how many came to their end, and whether all ended with the same weights.
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
from pathlib import Path

import torch

import seqcls_fast as sf
from corpora import sentences
from seqcls_fast.toolkit.checkpoint import Checkpoints


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
    """The process id of a child that trains, or goes on to."""
    child = os.fork()
    if child == 0:
        try:
            warnings.simplefilter("error")  # nothing half written may be met
            result.write_text(train(folder, resume=True))
            os._exit(0)
        except BaseException as error:
            result.write_text(f"{type(error).__name__}: {error}")
            os._exit(1)
    return child


def main(folder: Path, kills: int) -> None:
    torch.set_num_threads(1)
    random.seed(1)
    expected = train(None, resume=False)
    folder.mkdir()
    start = time.monotonic()
    alone = life(folder / "whole", folder / "whole.txt")
    os.waitpid(alone, 0)
    seconds = time.monotonic() - start
    killed, ends, steps = 0, [(folder / "whole.txt").read_text()], set()
    while killed < kills:
        child = life(folder / "killed", folder / "result.txt")
        time.sleep(random.random() * seconds * 0.6)
        done, _ = os.waitpid(child, os.WNOHANG)
        if not done:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            killed += 1
            state = Checkpoints(folder / "killed", 0).newest()
            if state is not None:
                steps.add((len(state["state"]["history"]), state["state"]["sums"]["steps"]))
            continue
        ends.append((folder / "result.txt").read_text())
        shutil.rmtree(folder / "killed")
    os.waitpid(life(folder / "killed", folder / "result.txt"), 0)
    ends.append((folder / "result.txt").read_text())
    print(json.dumps({"killed": killed, "ends": ends, "expected": expected, "moments": len(steps)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

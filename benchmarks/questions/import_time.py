"""Seconds of a whole process that imports what a layer needs, and of one that shows the command's help."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator

from .. import harness
from ..harness import Session
from ..rows import ROOT, Row, Side

IMPORTS = {
    "ours": "import torch, seqcls_fast; seqcls_fast.GRU",
    "torch": "import torch; torch.nn.GRU",
    "onnxruntime": "import numpy, onnxruntime",
    "OpenVINO": "import numpy, openvino",
    "JAX": "import jax.numpy",
}


def measure(session: Session) -> Iterator[Row]:
    commands = {
        name: ["-c", code]
        for name, code in IMPORTS.items()
        if name == "ours" or importlib.util.find_spec(name.lower()) is not None
    }
    yield _row(session, "import", commands)
    yield _row(session, "seqcls-fast --help", {"ours": ["-m", "seqcls_fast", "--help"]})


def _row(session: Session, name: str, commands: dict[str, list[str]]) -> Row:
    sides = {key: Side() for key in commands}
    for _ in range(1 if session.quick else harness.MIN_ROUNDS):
        for key, command in commands.items():
            seconds, _ = harness.timed_once(
                lambda words=command: subprocess.run(
                    [sys.executable, *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL
                )
            )
            sides[key].rounds.append(seconds)
    return Row("import_time", "start of a process", name, session.threads, sides)

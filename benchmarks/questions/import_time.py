"""Seconds of a whole process: one that imports a layer of each library, and one that shows the command's help."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from seqcls_fast.toolkit.timing import MIN_ROUNDS, timed, turns

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
    for _, key in turns(commands, 1 if session.quick else MIN_ROUNDS):
        command = [sys.executable, *commands[key]]
        seconds, _ = timed(partial(subprocess.run, command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL))
        sides[key].rounds.append(seconds)
    return Row("import_time", "start of a process", name, session.threads, sides)

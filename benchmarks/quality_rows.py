"""The results of measuring quality: a row for each set, engine and seed, and the files that hold them as lines of JSON.

A file is of one CPU model, since its CPU seconds are. Needs the standard library alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from . import rows

OURS = "ours"
PREFIX = rows.QUALITY  # of the names of the files


@dataclass(frozen=True)
class Score:
    """What one engine reached on one set with one seed."""

    set: str
    kind: str  # "text" or "series"
    digest: str  # of the set's rows
    train: int  # rows
    test: int
    classes: int
    engine: str
    version: str
    seed: int
    accuracy: float
    f1: float  # the mean over the classes
    log_loss: float | None  # None where the engine tells no probabilities
    calibration: float | None
    fit: float  # CPU seconds
    predict: float  # CPU seconds, of all rows of the test
    one: float  # CPU seconds, of a single row
    busy: bool  # whether others took the CPU meanwhile

    @property
    def key(self) -> tuple[str, str, int]:
        return self.set, self.engine, self.seed

    @property
    def state(self) -> tuple[str, str, str, str, int]:
        """What the figures depend on: a row that has the same need not be measured again."""
        return self.set, self.digest, self.engine, self.version, self.seed


def file_of(machine: str) -> Path:
    path = rows.file_of(machine)
    return path.with_name(PREFIX + path.name)


def write(score: Score, to: TextIO) -> None:
    """Appends a row at once, so that a run that is interrupted goes on after it."""
    entry = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in dataclasses.asdict(score).items()}
    print(json.dumps({"score": entry}), file=to, flush=True)


class Loaded(NamedTuple):
    scores: list[Score]  # the last one of each key
    run: dict[str, Any]  # the facts of the last run


def load(path: Path) -> Loaded:
    """The rows of a file. A last line that was cut off, as by a power cut, is left out."""
    found: dict[tuple[str, str, int], Score] = {}
    run: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        run = entry.get("run", run)
        if "score" in entry:
            score = Score(**entry["score"])
            found[score.key] = score
    return Loaded(list(found.values()), run)


def our_version(root: Path = rows.ROOT) -> str:
    """A hash of the package's sources, C++ included: figures of another one are those of another classifier."""
    found = hashlib.sha256(rows.csrc_hash(root).encode())
    for path in sorted((root / "seqcls_fast").rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


class Spread(NamedTuple):
    """The figures of several seeds."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        found = list(values)
        return cls(statistics.fmean(found), min(found), max(found))

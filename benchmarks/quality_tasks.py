"""The sets of quality_sets.py and quality_series.py in one form, each checked before anything is trained on it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from . import quality_series, quality_sets

QUICK = 150  # rows of a part in a quick run


@dataclass(frozen=True)
class Task:
    """The same rows for every engine."""

    name: str
    kind: str
    digest: str
    train: tuple[Sequence[Any], Sequence[str]]
    test: tuple[Sequence[Any], Sequence[str]]

    @property
    def size(self) -> float:
        """What the time of a training grows with: thousands of texts, or of steps."""
        X = self.train[0]
        return (len(X) if self.kind == "text" else sum(map(len, X))) / 1000

    @property
    def form(self) -> str:
        """Sets of one form need the same compiled functions."""
        return self.kind if self.kind == "text" else f"{min(self.train[0][0].shape[1], 2)} channels"

    def fingerprint(self) -> str:
        """A hash of everything that an engine is given, by which it is seen that none changes it."""
        found = hashlib.blake2b(digest_size=8)
        for X, y in (self.train, self.test):
            for x, label in zip(X, y, strict=True):
                found.update(x.encode("utf-8", "replace") if isinstance(x, str) else x.tobytes())
                found.update(label.encode() + b"\0")
        return found.hexdigest()


def text_task(name: str) -> Task:
    found = quality_sets.build(name)
    check_parts(found)
    train, test = (([r.text for r in found.parts[p]], [r.label for r in found.parts[p]]) for p in ("train", "test"))
    return checked(Task(name, "text", found.digest, train, test))


def series_task(name: str) -> Task:
    found = quality_series.build(name)
    task = Task(name, "series", "", found.train, found.test)
    return checked(Task(name, "series", task.fingerprint(), found.train, found.test))


def check_parts(found: quality_sets.TextSet) -> None:
    """A RuntimeError where a source, or a text, is in two parts, or the test is small."""
    seen: dict[tuple[str, str], str] = {}
    for part, kept in found.parts.items():
        for row in kept:
            for what, value in (("source", row.source), ("text", row.text)):
                if seen.setdefault((what, value), part) != part:
                    raise RuntimeError(f"{found.name}: the {what} {value!r:.80} is in two parts of the set")
    if len(found.parts["test"]) < quality_sets.FEWEST_TESTS:
        raise RuntimeError(f"{found.name}: the test has {len(found.parts['test'])} rows, which are too few")


def checked(task: Task) -> Task:
    if unknown := set(task.test[1]) - set(task.train[1]):
        raise RuntimeError(f"{task.name}: the test has labels that training has not: {', '.join(sorted(unknown)):.80}")
    return task


BUILDERS = dict.fromkeys(quality_sets.SETS, text_task) | dict.fromkeys(quality_series.SETS, series_task)


def smaller(task: Task, most: int = QUICK) -> Task:
    """The first rows of each part, of the classes that both then have; by turns, as some sets are sorted by class."""

    def some(part: tuple[Sequence[Any], Sequence[str]], allowed: set[str]) -> tuple[list[Any], list[str]]:
        places = [k for k, label in enumerate(part[1]) if label in allowed]
        places = places[:: max(1, len(places) // most)][:most]
        return [part[0][k] for k in places], [part[1][k] for k in places]

    train = some(task.train, set(task.test[1]))
    return Task(task.name, task.kind, f"{task.digest} small", train, some(task.test, set(train[1])))

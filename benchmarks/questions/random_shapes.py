"""Layers of shapes that nobody chose: 20 of them, drawn from the commit, in inference and in training.

The other tables have fixed shapes, which the kernels might be tuned for. Here every commit draws its own shapes, so
nobody can try a change on them beforehand. A shape that an earlier commit drew is not drawn again, and the rows of all
commits stay in the results, a table for each.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from .. import layer_cases, rows
from ..harness import Session
from ..layer_cases import Case, Shape
from ..rows import Row

COUNT = 20
RANGES = {"B": (1, 512), "T": (1, 500), "I": (1, 512), "H": (8, 1024)}
MOST_GFLOP = 20.0  # of a forward
LONG = 100e-6  # seconds; of shorter calls nothing is aimed at, as they are mostly the fixed cost of a call
GOALS = {"torch": 1.05, "torch packed": 1.05}  # the least ratio aimed at; 1 for other libraries


def measure(session: Session) -> Iterator[Row]:
    commit = str(session.machine.facts()["commit"]).partition("+")[0]
    cases = drawn(commit, earlier(commit))
    print(f"shapes drawn by {commit}: {', '.join(case.name for case in cases)}", flush=True)
    for training in (False, True):
        for case in cases[-1:] if session.quick else cases:
            row = session.layer("random_shapes", replace(case, training=training))
            row.what += f" of shapes drawn by {commit}"
            if row.sides["ours"].measured and row.sides["ours"].value > LONG:
                row.goals = {name: GOALS.get(name, 1.0) for name in row.rivals()}
            yield row


def drawn(commit: str, before: Collection[str], count: int = COUNT) -> list[Case]:
    """The cases of a commit, the largest first: each size is log-uniform within its range.

    Args:
        commit: the short hash of the commit, which the cases follow from alone, but for those left out.
        before: the names of cases that are left out.
        count: how many.
    """
    random_from = random.Random(commit)  # a str seeds it with a hash that is the same in every process
    found: dict[str, Case] = {}
    while len(found) < count:
        sizes = (_log_uniform(random_from, *bounds) for bounds in RANGES.values())
        case = Case(random_from.choice(layer_cases.CELLS), Shape(*sizes))
        if case.name not in before and layer_cases.gflop_of(case) <= MOST_GFLOP:
            found[case.name] = case
    return sorted(found.values(), key=layer_cases.gflop_of, reverse=True)


def earlier(commit: str, results: Path = rows.RESULTS) -> set[str]:
    """The names of the cases that other commits drew, on any machine."""
    found = (each.row for file in rows.files(results) for each in rows.load(file))
    return {row.name for row in found if row.question == "random_shapes" and not row.what.endswith(f" {commit}")}


def _log_uniform(random_from: random.Random, low: int, high: int) -> int:
    """A whole number from low to high, such that each doubling is as probable as any other."""
    value = math.exp(random_from.uniform(math.log(low), math.log(high + 1)))
    return min(high, int(value))

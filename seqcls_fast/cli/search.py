"""`train --search N`: a small random search, and when a trial is given up.

What a trial draws depends on the seed, its number and the parameter's name alone, so that a longer search begins like a
shorter one, and fixing one parameter leaves the others as they would have been.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import sys
from collections.abc import Callable, Collection
from itertools import accumulate
from typing import Any

from . import options
from .shared import UsageError

__all__ = ["Losers", "free", "run", "settings_of_trials", "shown"]

SPACE: dict[str, tuple[Any, ...]] = {
    "hidden_size": (32, 64, 128),
    "num_layers": (1, 2),
    "cell": ("gru", "lstm"),
    "dropout": (0.0, 0.1, 0.2, 0.3, 0.5),
    "pooling": ("last", "mean", "max", "attention"),
    "weight_decay": (0.0, 0.01, 0.1),
    "embedding_dim": (32, 64, 128),
}
RATE, WIDEST = "learning_rate", 4.0  # times or through what fit() would choose
_LEAST = 3  # trials to compare with
_REDRAWS = 20

Learn = Callable[[dict[str, Any], Callable[[list[dict[str, Any]]], bool]], Any]


def free(kind: str, given: Collection[str]) -> list[str]:
    """What is searched: the parameters that neither the command line nor --config settles."""
    found = [name for name in (RATE, *SPACE) if name in options.parameters(kind) and name not in given]
    if not found:
        raise UsageError("--search: expected a parameter left to choose, but all that it searches are given")
    return found


def settings_of_trials(chosen: dict[str, Any], free: list[str], rows: int, wanted: int) -> list[dict[str, Any]]:
    """What each trial changes, all of them different: nothing for the first. Where there are no more, fewer."""
    from ..toolkit.estimators import batch_size_for, learning_rate_for

    batches = math.ceil(rows / (chosen["batch_size"] or batch_size_for(rows)))
    rate = learning_rate_for(batches * chosen["epochs"])
    different: dict[str, dict[str, Any]] = {"{}": {}}
    for number in range(2, wanted * _REDRAWS):
        if len(different) == wanted:
            break
        draws = {name: random.Random(f"{chosen['seed']} {number} {name}") for name in free}
        values = {name: draw.choice(SPACE[name]) for name, draw in draws.items() if name in SPACE}
        if RATE in draws:
            values[RATE] = float(f"{rate * WIDEST ** draws[RATE].uniform(-1, 1):.3g}")
        changes = {name: values[name] for name in free if values[name] != chosen[name]}
        different.setdefault(repr(changes), changes)
    return list(different.values())


class Losers:
    """The median rule: from a third of the epochs on, a trial ends whose best so far is worse than most had by then."""

    def __init__(self, metric: str, epochs: int) -> None:
        self.name, self.sign, self.epochs = f"val_{metric}", 1 if metric == "loss" else -1, epochs
        self.curves: list[list[float]] = []  # of each trial, the best so far after each epoch; less is better

    def curve(self, history: list[dict[str, Any]]) -> list[float]:
        return list(accumulate((self.sign * record[self.name] for record in history), min))

    def lost(self, history: list[dict[str, Any]]) -> bool:
        epoch = len(history)
        if 3 * epoch < self.epochs or epoch == self.epochs:
            return False
        others = [curve[epoch - 1] for curve in self.curves if len(curve) >= epoch]
        return len(others) >= _LEAST and self.curve(history)[-1] > statistics.median(others)


def run(
    learn: Learn, chosen: dict[str, Any], free: list[str], rows: int, wanted: int
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Trains every trial; the best one's estimator and parameters, and the table."""
    from ..toolkit.ranks import current
    from ..toolkit.training.loop import TrainingError

    losers, best, failure = Losers(chosen["metric"], chosen["epochs"]), None, None
    trials = settings_of_trials(chosen, free, rows, wanted)
    table: list[dict[str, Any]] = []
    for number, changes in enumerate(trials, 1):
        row: dict[str, Any] = {"trial": number, "settings": changes, "epochs": 0, losers.name: None}
        row["ended"] = "diverged"
        table.append(row)
        try:
            estimator = learn(chosen | changes | _shows(chosen, number), losers.lost)
        except TrainingError as error:
            failure = failure or error
        else:
            history = estimator.history_
            row |= {"epochs": len(history), losers.name: history[estimator.best_epoch_ - 1][losers.name]}
            row["ended"] = "complete" if len(history) == chosen["epochs"] else "patience"
            if losers.lost(history):  # so that the best one cannot be among these
                row["ended"] = "stopped"
            if best is None or _rank(losers, row) < _rank(losers, best[0]):
                best = row, estimator
            losers.curves.append(losers.curve(history))
        if chosen["verbose"] is not False and current().writer:
            print(f"trial {number} of {len(trials)}: {_outcome(row, losers.name)}", file=sys.stderr)
    if best is None:
        assert failure is not None
        raise failure
    table.sort(key=lambda row: _rank(losers, row))
    answer = {"metric": losers.name, "seed": chosen["seed"], "saved": best[0]["trial"], "trials": table}
    return best[1], chosen | best[0]["settings"], answer


def _shows(chosen: dict[str, Any], number: int) -> dict[str, Any]:
    """A line of ours for each trial in the place of bars, and logs side by side."""
    logs = chosen["log_dir"]
    return {
        "verbose": bool(chosen["verbose"]),
        "log_dir": None if logs is None else os.path.join(logs, f"trial-{number}"),
    }


def _rank(losers: Losers, row: dict[str, Any]) -> tuple[bool, float, int]:
    value = row[losers.name]
    return value is None, 0.0 if value is None else losers.sign * value, row["trial"]


def _outcome(row: dict[str, Any], name: str) -> str:
    changes = ", ".join(f"{key}={value}" for key, value in row["settings"].items()) or "as asked"
    if row[name] is None:
        return f"diverged ({changes})"
    stopped = ", stopped" if row["ended"] == "stopped" else ""
    return f"{name} {row[name]:.4f} after {row['epochs']} epochs{stopped} ({changes})"


def shown(table: dict[str, Any]) -> str:
    """The table as text, best trial first."""
    name = table["metric"]
    lines = [f"trial  {name:>8}  epochs  ended     settings"]
    for row in table["trials"]:
        value = "-" if row[name] is None else f"{row[name]:.4f}"
        changes = " ".join(f"{key}={value}" for key, value in row["settings"].items()) or "as asked"
        lines.append(
            f"{row['trial']:>5}  {value:>{max(8, len(name))}}  {row['epochs']:>6}  {row['ended']:<8}  {changes}"
        )
    return "\n".join(lines)

"""`train --search N`: a small random search, which stops trials that do worse than most.

Trials are ranked by the whole model's value on the validation data. The baseline, and the wide part, are the same
in all of them and are fitted once. The values of a trial depend on the seed, the trial's number and the
parameter's name alone. So a longer search begins with the trials of a shorter one, and giving one parameter does not
change how the others are drawn.
"""

from __future__ import annotations

import math
import os
import random
import statistics
import sys
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

from .options import TrainOptions
from .shared import UsageError

__all__ = ["MedianRule", "changes_of_trials", "run", "searched_parameters", "shown"]

SPACE: dict[str, tuple[Any, ...]] = {
    "hidden_size": (32, 64, 128),
    "num_layers": (1, 2),
    "cell": ("gru", "lstm"),
    "dropout": (0.0, 0.1, 0.2, 0.3, 0.5),
    "pooling": ("last", "mean", "max", "attention"),
    "weight_decay": (0.0, 0.01, 0.1),
    "embedding_dim": (32, 64, 128),
}
RATE, WIDEST = "learning_rate", 4.0  # drawn between a fourth and four times the rate that fit() would choose
_LEAST = 3  # trials to compare with, before one is stopped
_REDRAWS = 20  # draws per wanted trial, before the search does with fewer

Learn = Callable[[TrainOptions, Callable[[list[dict[str, Any]]], bool]], Any]


def searched_parameters(asked: TrainOptions) -> list[str]:
    """The parameters of the search that neither the command line, --config nor a file of vectors gives."""
    fixed = set(asked.given)
    if asked.parameters.get("vectors") is not None:
        fixed.add("embedding_dim")  # the file has vectors of one width
    found = [name for name in (RATE, *SPACE) if name in asked.parameters and name not in fixed]
    if not found:
        raise UsageError("--search: expected a parameter left to choose, but all that it searches are given")
    return found


def _epochs(chosen: Mapping[str, Any], rows: int) -> int:
    from ..toolkit.training.options import batch_size_for, epochs_for

    found: int = chosen["epochs"] or epochs_for(math.ceil(rows / (chosen["batch_size"] or batch_size_for(rows))))
    return found


def changes_of_trials(asked: TrainOptions, searched: list[str], rows: int, wanted: int) -> list[dict[str, Any]]:
    """The parameters that each trial changes; the first changes none. All differ; if values run out, they are fewer."""
    from ..toolkit.training.options import batch_size_for, learning_rate_for

    chosen = asked.parameters
    batches = math.ceil(rows / (chosen["batch_size"] or batch_size_for(rows)))
    rate = learning_rate_for(batches * _epochs(chosen, rows))
    different: dict[str, dict[str, Any]] = {"{}": {}}
    for number in range(2, wanted * _REDRAWS):
        if len(different) == wanted:
            break
        draws = {name: random.Random(f"{chosen['seed']} {number} {name}") for name in searched}
        values = {name: draw.choice(SPACE[name]) for name, draw in draws.items() if name in SPACE}
        if RATE in draws:
            values[RATE] = float(f"{rate * WIDEST ** draws[RATE].uniform(-1, 1):.3g}")
        changes = {name: values[name] for name in searched if values[name] != chosen[name]}
        different.setdefault(repr(changes), changes)
    return list(different.values())


class MedianRule:
    """Ends a trial, from a third of the epochs on, if its best value so far is worse than the median of the others."""

    def __init__(self, metric: str, epochs: int) -> None:
        self.name, self.sign, self.epochs = f"val_{metric}", 1 if metric == "loss" else -1, epochs
        self.curves: list[list[float]] = []  # of each trial: the best value up to each epoch, where less is better

    def curve(self, history: list[dict[str, Any]]) -> list[float]:
        return list(accumulate((self.sign * record[self.name] for record in history), min))

    def stops(self, history: list[dict[str, Any]]) -> bool:
        epoch = len(history)
        if 3 * epoch < self.epochs or epoch == self.epochs:
            return False
        others = [curve[epoch - 1] for curve in self.curves if len(curve) >= epoch]
        return len(others) >= _LEAST and self.curve(history)[-1] > statistics.median(others)


def run(
    learn: Learn, asked: TrainOptions, searched: list[str], rows: int, wanted: int
) -> tuple[Any, TrainOptions, dict[str, Any]]:
    """Trains every trial. The results are the best trial's estimator and options, and the table of all trials."""
    from ..toolkit.ranks import current
    from ..toolkit.training.loop import TrainingError

    chosen = asked.parameters
    epochs = _epochs(chosen, rows)
    rule, best, failure = MedianRule(chosen["metric"], epochs), None, None
    trials = changes_of_trials(asked, searched, rows, wanted)
    table: list[dict[str, Any]] = []
    for number, changes in enumerate(trials, 1):
        row: dict[str, Any] = {"trial": number, "settings": changes, "epochs": 0, rule.name: None}
        row["ended"] = "diverged"
        table.append(row)
        try:
            estimator = learn(asked.with_parameters(**changes, **_output_of_trial(chosen, number)), rule.stops)
        except TrainingError as error:
            failure = failure or error
        else:
            history = estimator.history_
            row |= {"epochs": len(history), rule.name: _held_out(estimator, chosen["metric"])}
            row["ended"] = "complete" if len(history) == epochs else "patience"
            if rule.stops(history):
                row["ended"] = "stopped"
            if best is None or _rank(rule, row) < _rank(rule, best[0]):
                best = row, estimator
            rule.curves.append(rule.curve(history))
        if chosen["verbose"] is not False and current().writer:
            print(f"trial {number} of {len(trials)}: {_outcome(row, rule.name)}", file=sys.stderr)
    if best is None:
        assert failure is not None
        raise failure
    table.sort(key=lambda row: _rank(rule, row))
    answer = {"metric": rule.name, "seed": chosen["seed"], "saved": best[0]["trial"], "trials": table}
    return best[1], asked.with_parameters(**best[0]["settings"]), answer


def _held_out(estimator: Any, metric: str) -> float:
    """The whole model's value on the validation data. The history has that of the network, to which a wide part is
    added after the training."""
    from ..toolkit.ranks import current

    report = estimator.validation_report_
    if report is not None:  # in the process that writes
        report = report | {"loss": report["log_loss"], "macro_f1": report["macro"]["f1"]}
    found: float = current().from_writer(report and report[metric])
    return found


def _output_of_trial(chosen: dict[str, Any], number: int) -> dict[str, Any]:
    """No progress bars, as run() prints a line for each trial; and a folder of logs for each trial."""
    logs = chosen["log_dir"]
    return {
        "verbose": bool(chosen["verbose"]),
        "log_dir": None if logs is None else os.path.join(logs, f"trial-{number}"),
    }


def _rank(rule: MedianRule, row: dict[str, Any]) -> tuple[int, float, int]:
    """A key that sorts the best trial first, then those that were stopped, which are not trained to the end, and those
    that diverged last."""
    value = row[rule.name]
    order = {"stopped": 1, "diverged": 2}.get(row["ended"], 0)
    return order, 0.0 if value is None else rule.sign * value, row["trial"]


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

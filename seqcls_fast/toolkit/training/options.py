"""The settings of a training, the learning rate they give at each step, and the epoch whose weights are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = ["METRICS", "SCHEDULES", "History", "Options", "best_epoch_of", "learning_rate_share"]

METRICS = ("loss", "accuracy", "balanced_accuracy", "macro_f1")
SCHEDULES = ("cosine", "one_cycle", "constant")

History = list[dict[str, Any]]  # a record for each epoch


@dataclass(frozen=True)
class Options:
    """The arguments of the estimators that training needs; the estimators document each."""

    epochs: int
    batch_size: int
    learning_rate: float
    wide_rate: float = 1.0  # the highest rate of the table of a wide part; see Table
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup: float = 0.1
    max_grad_norm: float | None = 1.0
    patience: int | None = None
    metric: str = "loss"
    amp: bool = False
    on_nan: str = "raise"
    seed: int = 0
    verbose: bool | None = None
    log_dir: str | None = None


def learning_rate_share(schedule: str, done: float, warmup: float) -> float:
    """The share of the highest learning rate after ``done`` of all steps, from 0 to 1.

    Example::

        >>> from seqcls_fast.toolkit.training.options import learning_rate_share
        >>> [round(learning_rate_share("cosine", done, warmup=0.1), 2) for done in (0.05, 0.1, 0.55, 1.0)]
        [0.5, 1.0, 0.5, 0.0]
    """
    if schedule == "one_cycle":  # half a cosine up from 4 %, then a longer half down to 0
        rise = max(warmup, 0.3)
        if done < rise:
            return 0.04 + 0.96 * (1 - math.cos(math.pi * done / rise)) / 2
        return (1 + math.cos(math.pi * (done - rise) / (1 - rise))) / 2
    if done < warmup:
        return done / warmup
    if schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2 if warmup < 1 else 1.0


def best_epoch_of(history: History, metric: str) -> int:
    """The first epoch that is best on the validation set; without one, the last epoch."""
    name = f"val_{metric}"
    if name not in history[-1]:
        return len(history)
    best = min if metric == "loss" else max
    return best(history, key=lambda record: record[name])["epoch"]

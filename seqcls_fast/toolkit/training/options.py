"""The settings of a training, the learning rate they give at each step, and the epoch whose weights are kept."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

__all__ = [
    "METRICS", "SCHEDULES", "History", "Options", "batch_size_for", "best_epoch_of", "epochs_for", "learning_rate_for",
    "learning_rate_share",
]  # fmt: skip

METRICS = ("loss", "accuracy", "balanced_accuracy", "macro_f1")
SCHEDULES = ("cosine", "one_cycle", "constant")

History = list[dict[str, Any]]  # a record for each epoch


@dataclass(frozen=True)
class Options:
    """The arguments of the estimators that training needs; the estimators document each."""

    epochs: int
    batch_size: int
    learning_rate: float
    wide_rate: float = 4.0  # the highest rate of the table of a wide part; see Table
    word_dropout: float = 0.0
    wide_dropout: float = 0.0
    label_smoothing: float = 0.0
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


def batch_size_for(count: int) -> int:
    """A power of two near the root of the number of sequences, from 4 to 256.

    Few sequences then still make some steps an epoch, and many make batches that the kernels are fast with.
    """
    return 2 ** min(8, max(2, int(math.log2(max(count, 1)) / 2)))


def learning_rate_for(steps: int) -> float:
    """The learning rate, larger for fewer steps: 1e-2 for 100, 2e-3 from 2,500 on."""
    return min(1e-2, max(2e-3, 0.1 / math.sqrt(max(steps, 1))))


def epochs_for(steps: int) -> int:
    """The number of epochs of so many steps: some 850 steps in all, and from 4 to 20 epochs."""
    return min(20, max(4, round(850 / max(steps, 1))))


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

"""The training loop: what fit() does once raw data are sequences and labels are numbers.

Everything random comes from one seed and leaves torch's own generators as they were. The weights kept are the best
seen on the validation set, or the last ones without one, also when training is interrupted.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..classifier import SequenceClassifier
from .batches import bucketed, by_length, waste
from .evaluation import averages
from .progress import Progress
from .ragged import Ragged

__all__ = [
    "METRICS",
    "SCHEDULES",
    "Examples",
    "Options",
    "TrainingError",
    "best_epoch_of",
    "learning_rate_share",
    "logits_of",
    "seeded",
    "train",
]

METRICS = ("loss", "accuracy", "balanced_accuracy", "macro_f1")
SCHEDULES = ("cosine", "one_cycle", "constant")
_MOST_RESTORES = 5
_EXPLODED = 50  # times the loss of guessing


class TrainingError(RuntimeError):
    """Training went wrong in a way that more of it would not mend."""


@dataclass(frozen=True)
class Examples:
    sequences: Ragged
    targets: Tensor  # (count,) int64
    weights: Tensor | None = None  # (count,) float32, of mean 1

    def __len__(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class Options:
    """What fit() passes on; the estimators document each."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.01
    schedule: str = "cosine"
    warmup: float = 0.1
    max_grad_norm: float | None = 1.0
    patience: int | None = None
    metric: str = "loss"
    amp: bool = False
    on_nan: str = "raise"
    seed: int | None = 0
    verbose: bool | None = None
    log_dir: str | None = None


def learning_rate_share(schedule: str, done: float, warmup: float) -> float:
    """The share of the highest learning rate after ``done`` of all steps, from 0 to 1.

    Example::

        >>> from seqcls_fast.toolkit.training import learning_rate_share
        >>> [round(learning_rate_share("cosine", done, warmup=0.1), 2) for done in (0.05, 0.1, 0.55, 1.0)]
        [0.5, 1.0, 0.5, 0.0]
    """
    if schedule == "one_cycle":  # a long cosine up and a longer one down
        rise = max(warmup, 0.3)
        if done < rise:
            return 0.04 + 0.96 * (1 - math.cos(math.pi * done / rise)) / 2
        return (1 + math.cos(math.pi * (done - rise) / (1 - rise))) / 2
    if done < warmup:
        return done / warmup
    if schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * (done - warmup) / (1 - warmup))) / 2 if warmup < 1 else 1.0


def logits_of(
    model: SequenceClassifier, sequences: Ragged, batch_size: int, device: torch.device, amp: bool = False
) -> Tensor:
    """``(count, classes)`` float32 on the CPU, in the order of the sequences; the model's mode is left as it was."""
    training = model.training
    model.eval()
    if len(sequences) > batch_size:
        model.prepare_inference()
    parts, order = [], by_length(sequences.lengths, batch_size)
    try:
        with torch.inference_mode(), _autocast(device, amp):
            for rows in order:
                x, lengths = sequences.pad(rows)
                parts.append(model(x.to(device), lengths.to(device)).float().cpu())
    finally:
        model.train(training)
        model.forget_tables()
    if not parts:
        return torch.zeros(0, model.num_classes)
    found = torch.cat(parts)
    return torch.empty_like(found).index_copy_(0, torch.cat(order), found)


def train(
    model: SequenceClassifier,
    examples: Examples,
    options: Options,
    device: torch.device,
    validation: Examples | None,
    history: list[dict[str, Any]],
) -> None:
    """Trains in place and adds a record of each epoch to ``history``; :func:`best_epoch_of` says whose weights stay."""
    with seeded(options.seed, device) as generator:
        _Run(model, examples, options, device, validation, history, generator).epochs()


def best_epoch_of(history: list[dict[str, Any]], metric: str) -> int:
    """The first best one on the validation set, else the last."""
    name = f"val_{metric}"
    if name not in history[-1]:
        return len(history)
    best = min if metric == "loss" else max
    return best(history, key=lambda record: record[name])["epoch"]


class _Run:
    def __init__(
        self, model: SequenceClassifier, examples: Examples, options: Options, device: torch.device,
        validation: Examples | None, history: list[dict[str, Any]], generator: torch.Generator,
    ) -> None:  # fmt: skip
        self.model, self.examples, self.options, self.device = model, examples, options, device
        self.validation, self.history, self.generator = validation, history, generator
        decayed = [p for p in model.parameters() if p.dim() > 1]
        rest = [p for p in model.parameters() if p.dim() <= 1]  # biases
        groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, fused=device.type in ("cpu", "cuda"))
        self.steps_per_epoch = math.ceil(len(examples) / options.batch_size)
        self.step, self.rate, self.restores = 0, options.learning_rate, 0
        self.safe: dict[str, Any] | None = None  # to go back to
        self.candidate: dict[str, Any] | None = None  # the same an epoch later, if its weights prove sound
        self.best: dict[str, Tensor] | None = None  # with a validation, the weights of the best epoch
        self.guessing: float | None = None  # the first batch's loss

    def epochs(self) -> None:
        options = self.options
        restores = options.on_nan == "restore"
        self.safe = self._snapshot() if restores else None
        log = _tensorboard(options.log_dir)
        total = self.steps_per_epoch * options.epochs
        with Progress(options.epochs, total, options.verbose) as progress:
            try:
                while len(self.history) < options.epochs:
                    try:
                        record = self._epoch(progress)
                    except _Diverged as what:
                        self._restore(what, progress)
                        continue
                    self.history.append(record)
                    finished = self._finished(record)
                    self.candidate = self._snapshot() if restores else None
                    progress.epoch(record)
                    log(record)
                    if finished:
                        progress.note(f"stopped: no better {options.metric} in {options.patience} epochs")
                        break
            finally:  # an interrupt, too, leaves the best weights
                if self.best is not None:
                    self.model.load_state_dict(self.best)
                    if self.history:
                        progress.note(f"kept the weights of epoch {best_epoch_of(self.history, options.metric)}")
                self.model.eval()

    def _epoch(self, progress: Progress) -> dict[str, Any]:
        start, options, lengths = time.perf_counter(), self.options, self.examples.sequences.lengths
        self.model.train()
        batches = bucketed(lengths, options.batch_size, self.generator)
        loss_sum, right, seen, tokens = 0.0, 0, 0, 0
        self.step = len(self.history) * self.steps_per_epoch  # also when an epoch is run again
        for rows in batches:
            loss, hits = self._batch(rows)
            loss_sum += loss * len(rows)
            right, seen, tokens = right + hits, seen + len(rows), tokens + int(lengths[rows].sum())
            progress.step(loss=loss_sum / seen, tokens=tokens, seconds=time.perf_counter() - start)
        seconds = time.perf_counter() - start
        record = {
            "epoch": len(self.history) + 1, "loss": loss_sum / seen, "accuracy": right / seen,
            "lr": self.optimizer.param_groups[0]["lr"], "seconds": seconds,
            "tokens_per_second": tokens / seconds, "padding": waste(lengths, batches),
        }  # fmt: skip
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            raise _Diverged("a weight is no longer finite at its end")
        if self.validation is not None:
            record |= {f"val_{name}": value for name, value in self._evaluate(self.validation).items()}
            if not math.isfinite(record["val_loss"]):
                raise _Diverged(f"the validation's loss is {record['val_loss']}")
        return record

    def _batch(self, rows: Tensor) -> tuple[float, int]:
        options = self.options
        done = (self.step + 1) / (self.steps_per_epoch * options.epochs + 1)  # the last step counts too
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * learning_rate_share(options.schedule, done, options.warmup)
        x, lengths = self.examples.sequences.pad(rows)
        targets = self.examples.targets[rows].to(self.device)
        with _autocast(self.device, options.amp):
            logits = self.model(x.to(self.device), lengths.to(self.device))
        losses = cross_entropy(logits.float(), targets, reduction="none")
        loss = plain = losses.mean()
        if self.examples.weights is not None:
            losses = losses * self.examples.weights[rows].to(self.device)
            loss = losses.mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), options.max_grad_norm or math.inf)
        self._look_at(float(plain.detach()), float(norm))  # a rare class's weight is no explosion
        if self.candidate is not None:  # the last epoch's weights have proven sound
            self.safe, self.candidate = self.candidate, None
        self.optimizer.step()
        self.step += 1
        return float(loss.detach()), int((logits.detach().argmax(1) == targets).sum())

    def _look_at(self, loss: float, norm: float) -> None:
        if self.guessing is None and math.isfinite(loss):
            self.guessing = max(loss, 0.1)
        if not math.isfinite(loss) or not math.isfinite(norm):
            what = "the loss" if not math.isfinite(loss) else "the gradient"
            raise _Diverged(f"{what} is {loss if what == 'the loss' else norm}")
        if self.guessing is not None and loss > _EXPLODED * self.guessing:
            raise _Diverged(f"the loss is {loss:.3g}, more than {_EXPLODED} times what it began with")

    def _restore(self, what: Exception, progress: Progress) -> None:
        safe, self.candidate = self.safe, None
        rate = self.optimizer.param_groups[0]["lr"]
        where = f"epoch {len(self.history) + 1}, step {self.step % self.steps_per_epoch + 1}: {what}"
        if safe is None:
            raise TrainingError(
                f"{where} (learning rate {rate:.3g}); try a lower learning_rate or max_grad_norm, look for extreme "
                f"values in the data, or pass on_nan='restore' to go back and train on at half the rate"
            ) from None
        if self.restores == _MOST_RESTORES:
            raise TrainingError(f"{where}, for the {_MOST_RESTORES + 1}th time, at learning rate {rate:.3g}") from None
        self.restores += 1
        self.rate /= 2
        self.model.load_state_dict(safe["model"])
        self.optimizer.load_state_dict(copy.deepcopy(safe["optimizer"]))  # which it then writes to
        self.best = safe["best"]
        del self.history[safe["epochs"] :]
        progress.note(f"{where}; back to the end of epoch {len(self.history)}, at half the learning rate")

    def _snapshot(self) -> dict[str, Any]:
        state = self.optimizer.state_dict()
        kept = {k: {n: _copy(v) for n, v in values.items()} for k, values in state["state"].items()}
        optimizer = state | {"state": kept}
        return {
            "model": _copies(self.model), "optimizer": optimizer, "epochs": len(self.history), "best": self.best,
        }  # fmt: skip

    def _evaluate(self, examples: Examples) -> dict[str, float]:
        logits = logits_of(self.model, examples.sequences, self.options.batch_size, self.device, self.options.amp)
        targets, classes = examples.targets, logits.size(1)
        pairs = targets * classes + logits.argmax(1)
        confusion = pairs.bincount(minlength=classes**2).view(classes, classes).numpy()
        found = averages(confusion.diagonal(), confusion.sum(1), confusion.sum(0))
        return {"loss": float(cross_entropy(logits, targets))} | {name: float(value) for name, value in found.items()}

    def _finished(self, record: dict[str, Any]) -> bool:
        """Keeps the best weights so far; whether there was no better epoch for as long as patience allows."""
        if self.validation is None:
            return False
        best_epoch = best_epoch_of(self.history, self.options.metric)
        if best_epoch == record["epoch"]:
            self.best = _copies(self.model)
        return self.options.patience is not None and record["epoch"] - best_epoch >= self.options.patience


class _Diverged(Exception):
    pass


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _copies(model: SequenceClassifier) -> dict[str, Tensor]:
    return {name: _copy(t) for name, t in model.state_dict().items()}


def _autocast(device: torch.device, amp: bool) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if amp else nullcontext()


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[torch.Generator]:
    """A generator of its own, and torch's seeded meanwhile, for first weights and dropout; not so without a seed."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
        yield generator
        return
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield generator.manual_seed(seed)


def _tensorboard(log_dir: str | None) -> Callable[[dict[str, Any]], None]:
    if log_dir is None:
        return lambda record: None
    from ._extras import need

    writer = need("torch.utils.tensorboard", "log_dir").SummaryWriter(log_dir)

    def log(record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name != "epoch":
                writer.add_scalar(
                    name.replace("val_", "validation/") if "val_" in name else f"training/{name}",
                    value,
                    record["epoch"],
                )
        writer.flush()

    return log

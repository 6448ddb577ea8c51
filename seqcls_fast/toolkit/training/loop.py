"""The training loop: what fit() runs once raw data are encoded sequences and labels are numbers.

Everything random is drawn from (seed, epoch, step). So a training that is resumed after any step ends with the weights
of one that was never stopped, and every process knows the batches of the others. Torch's own generators are left as
they were. The best weights on the validation set are kept, or the last ones if there is none; also after an interrupt.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...classifier import SequenceClassifier
from ..data.batches import seed_of
from ..data.datasets import Batch, Data
from ..data.ragged import Inputs
from ..data.text import PADDING, UNKNOWN
from ..evaluation.metrics import averages
from ..ranks import ALONE, Ranks
from .checkpoint import CheckpointError, Checkpoints
from .logits import autocast, is_out_of_memory, logits_of
from .options import METRICS, History, Options, best_epoch_of, learning_rate_share
from .progress import Progress, tensorboard_log
from .resume import MOST_RESTORES, check_fits
from .table import Table
from .threads import threads_for, work_of

__all__ = ["TrainingError", "seeded", "train"]

_EXPLODED = 50  # a loss this many times that of the first batch ends the training


class TrainingError(RuntimeError):
    """The loss or the weights became NaN, infinite or far too large."""


def train(
    model: SequenceClassifier,
    data: Data,
    options: Options,
    device: torch.device,
    validation: Data | None,
    history: History,
    *,
    ranks: Ranks = ALONE,
    checkpoints: Checkpoints | None = None,
    saved: Any = None,
    stop: Callable[[History], bool] | None = None,
) -> None:
    """Trains in place and adds a record of each epoch to ``history``. The weights of :func:`best_epoch_of` are kept.

    ``saved`` is the state of a checkpoint to resume from. ``stop`` is called after each epoch: True ends the training.
    """
    with seeded(options.seed, device):
        training = _Training(model, data, options, device, validation, history, ranks, checkpoints, stop)
        if saved is not None:
            training.resume(saved)
        training.run()


@dataclass
class _Sums:
    """Totals of the current epoch so far, over all processes."""

    steps: int = 0
    loss: float = 0.0
    right: int = 0
    rows: int = 0
    tokens: int = 0
    padded: int = 0  # tokens and padding
    seconds: float = 0.0


@dataclass
class _Training:
    """A training that is running: everything that its next step depends on."""

    model: SequenceClassifier
    data: Data
    options: Options
    device: torch.device
    validation: Data | None
    history: History
    ranks: Ranks
    checkpoints: Checkpoints | None
    stop: Callable[[History], bool] | None
    sums: _Sums = field(default_factory=_Sums)
    restores: int = 0
    micro_batches: int = 1  # into which a batch is split; more than one after memory was short
    finished: bool = False
    first_loss: float | None = None  # loss of the first batch, before anything was learnt; at least 0.1
    restore_point: dict[str, Any] | None = None  # snapshot that is restored when training diverges
    next_restore_point: dict[str, Any] | None = None  # newer snapshot, promoted after the next finite step
    best: dict[str, Tensor] | None = None  # weights of the best epoch on the validation set

    def __post_init__(self) -> None:
        options = self.options
        self.table = Table.of(self.model, options.wide_rate)
        own = None if self.table is None else self.table.weight
        self.parameters = [p for p in self.model.parameters() if p is not own]
        decayed = [p for p in self.parameters if p.dim() > 1]
        rest = [p for p in self.parameters if p.dim() <= 1]  # biases
        groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, fused=fused)
        self.steps_per_epoch = self.data.steps(options.batch_size)

    def run(self) -> None:
        options, restores, writer = self.options, self.options.on_nan == "restore", self.ranks.writer
        if restores and self.restore_point is None:
            self.restore_point = self._snapshot()
        if self.checkpoints is not None and writer:
            self.checkpoints.write(self._state())  # an error now is better than after hours of training
        total = self.steps_per_epoch * options.epochs
        with (
            tensorboard_log(options.log_dir if writer else None, len(self.history)) as log,
            Progress(options.epochs, total, options.verbose if writer else False, self._steps_done) as progress,
        ):
            try:
                while not self.finished and len(self.history) < options.epochs:
                    try:
                        record = self._epoch(progress)
                    except _Diverged as reason:
                        self._restore(reason, progress)
                        continue
                    self.history.append(record)
                    self.sums = _Sums()
                    self.finished = self._was_last(record, progress)
                    self.next_restore_point = self._snapshot() if restores else None
                    progress.epoch(record)
                    log(record)
                if self.checkpoints is not None and writer:
                    self.checkpoints.write_or_warn(self._state())
            finally:  # the best weights are kept after an interrupt, too
                if self.best is not None:
                    self.model.load_state_dict(self.best)
                    if self.history:
                        progress.note(f"kept the weights of epoch {best_epoch_of(self.history, options.metric)}")
                self.model.eval()
                if self.table is not None:
                    self.table.close()

    def _epoch(self, progress: Progress) -> dict[str, Any]:
        options, sums, epoch = self.options, self.sums, len(self.history)
        self.model.train()
        start = time.perf_counter() - sums.seconds
        left = self.steps_per_epoch - sums.steps  # 0 if the checkpoint was written after the last step of the epoch
        for batch in self.data.epoch(options.batch_size, options.seed, epoch, sums.steps, self.ranks) if left else ():
            with self._threads_for(batch.examples.sequences.lengths[batch.rows], training=True):
                self._step(batch)
            sums.seconds = time.perf_counter() - start
            progress.step(loss=sums.loss / sums.rows, tokens=sums.tokens, seconds=sums.seconds)
            if self.checkpoints is not None and self.ranks.writer and self.checkpoints.due():
                self.checkpoints.write_or_warn(self._state())
        record = {
            "epoch": epoch + 1, "loss": sums.loss / sums.rows, "accuracy": sums.right / sums.rows,
            "lr": self.optimizer.param_groups[0]["lr"], "seconds": sums.seconds,
            "tokens_per_second": sums.tokens / max(sums.seconds, 1e-9),
            "padding": 1 - sums.tokens / sums.padded if sums.padded else 0.0,
        }  # fmt: skip
        if self.micro_batches > 1:
            record["accumulated"] = self.micro_batches
        if not all(bool(p.isfinite().all()) for p in self.model.parameters()):
            raise _Diverged("a weight is no longer finite at the end of the epoch")
        if self.validation is not None:
            record |= {f"val_{name}": value for name, value in self._evaluate(self.validation).items()}
            if not math.isfinite(record["val_loss"]):
                raise _Diverged(f"the validation's loss is {record['val_loss']}")
        return record

    def _threads_for(self, lengths: Tensor, training: bool) -> AbstractContextManager[None]:
        return threads_for(work_of(self.model, int(lengths.sum()), training), self.device)

    @property
    def _steps_done(self) -> int:
        return len(self.history) * self.steps_per_epoch + self.sums.steps

    # -- a step -------------------------------------------------------------------------------------------------------

    def _step(self, batch: Batch) -> None:
        options, sums = self.options, self.sums
        done = (self._steps_done + 1) / (self.steps_per_epoch * options.epochs + 1)  # + 1: the last rate is above 0
        share = learning_rate_share(options.schedule, done, options.warmup) / 2**self.restores
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * share
        before = self.micro_batches
        figures = self._gradients_in_memory(batch)
        figures[-1] = self.micro_batches - before
        *gradients, figures = self.ranks.sum_([*(p.grad for p in self.parameters if p.grad is not None), figures])
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, options.max_grad_norm or math.inf)
        loss, plain, right, tokens, padded, more = figures.tolist()
        if more:  # some process needed more; all use that many from now on, as one number is kept in checkpoints
            self.micro_batches = max(self.ranks.all(self.micro_batches))
        table = None if self.table is None else self.table.gradient(self.ranks)
        self._check_finite(plain / batch.count, float(norm))  # the unweighted loss: a large weight is not an explosion
        if self.next_restore_point is not None:  # the step from its weights was finite
            self.restore_point, self.next_restore_point = self.next_restore_point, None
        self.optimizer.step()
        if self.table is not None and table is not None:
            self.table.step(*table, share, batch.count)
        sums.steps += 1
        sums.loss += loss
        sums.rows += batch.count
        sums.right += int(right)
        sums.tokens += int(tokens)
        sums.padded += int(padded)

    def _gradients_in_memory(self, batch: Batch) -> Tensor:
        """As :meth:`_gradients`, in smaller and smaller micro-batches until they fit in memory; other ranks wait."""
        while True:
            try:
                return self._gradients(batch)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                rows = math.ceil(len(batch.rows) / self.micro_batches)
                if rows <= 1:
                    raise MemoryError(
                        "there is too little memory for a single sequence; try a smaller max_length or hidden_size"
                    ) from error
            self.model.zero_grad()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.micro_batches *= 2
            warnings.warn(
                f"batch_size: there is too little memory for {rows} sequences at once, so batches are taken in "
                f"{self.micro_batches} pieces from now on, whose gradients are added up",
                RuntimeWarning,
                stacklevel=2,
            )

    def _gradients(self, batch: Batch) -> Tensor:
        """Sets the parameters' gradients to this process's share of the gradient of the mean loss over the batch.

        Returns sums over these rows: weighted loss, loss, right answers, tokens, tokens with padding; and a 0,
        which :meth:`_step` replaces.
        """
        key = (self.options.seed, "dropout", len(self.history), self.sums.steps, self.ranks.rank)
        _seed(seed_of(*key), self.device)
        self.model.zero_grad()
        examples = batch.examples
        figures = torch.zeros(6, dtype=self.parameters[0].dtype, device=self.device)
        for rows in batch.rows.split(max(1, math.ceil(len(batch.rows) / self.micro_batches))):
            if not len(rows):
                continue
            inputs = examples.sequences.inputs(rows).to(self.device)
            targets = examples.targets[rows].to(self.device)
            inputs = _thinned(inputs, self.options)
            with autocast(self.device, self.options.amp):
                logits = inputs.through(self.model)
            losses = cross_entropy(
                logits.float() if self.options.amp else logits, targets, reduction="none",
                label_smoothing=self.options.label_smoothing,
            )  # fmt: skip
            plain = loss = losses.sum()
            if examples.weights is not None:
                loss = (losses * examples.weights[rows].to(self.device)).sum()
            (loss / batch.count).backward()
            right = (logits.detach().argmax(1) == targets).sum()
            padded = torch.tensor(inputs.x.size(0) * inputs.x.size(1))
            known = [loss.detach(), plain.detach(), right, inputs.lengths.sum(), padded]
            figures[:-1] += torch.stack([figure.to(figures) for figure in known])
        for parameter in self.parameters:  # a process may have no rows of this batch
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return figures

    def _check_finite(self, loss: float, norm: float) -> None:
        if self.first_loss is None and math.isfinite(loss):
            self.first_loss = max(loss, 0.1)
        if not math.isfinite(loss):
            raise _Diverged(f"the loss is {loss}")
        if not math.isfinite(norm):
            raise _Diverged(f"the gradient is {norm}")
        if self.first_loss is not None and loss > _EXPLODED * self.first_loss:
            raise _Diverged(f"the loss is {loss:.3g}, more than {_EXPLODED} times that of the first batch")

    # -- after an epoch -----------------------------------------------------------------------------------------------

    def _evaluate(self, data: Data) -> dict[str, float]:
        classes = self.model.num_classes
        confusion, loss = torch.zeros(classes**2, dtype=torch.int64), torch.zeros((), dtype=torch.float64)
        at_once = max(1, self.options.batch_size // self.micro_batches)
        for examples in data.pieces(self.ranks):
            sequences = examples.sequences
            with self._threads_for(sequences.lengths.sort(descending=True).values[:at_once], training=False):
                logits = logits_of(self.model, sequences, at_once, self.device, self.options.amp)
            loss += cross_entropy(logits, examples.targets, reduction="sum")
            confusion += (examples.targets * classes + logits.argmax(1)).bincount(minlength=classes**2)
        totals = self.ranks.sum_([tensor.to(self.device) for tensor in (confusion.double(), loss)])
        counts = totals[0].to("cpu", torch.int64).view(classes, classes).numpy()
        found = averages(counts.diagonal(), counts.sum(1), counts.sum(0))
        return {"loss": float(totals[1]) / int(counts.sum())} | {name: float(value) for name, value in found.items()}

    def _was_last(self, record: dict[str, Any], progress: Progress) -> bool:
        """Keeps the weights if they are the best so far. Returns whether training must end."""
        if self.validation is not None:
            best_epoch = best_epoch_of(self.history, self.options.metric)
            if best_epoch == record["epoch"]:
                self.best = _copies(self.model)
            if self.options.patience is not None and record["epoch"] - best_epoch >= self.options.patience:
                progress.note(f"stopped: no better {self.options.metric} in {self.options.patience} epochs")
                return True
        return self.stop is not None and self.ranks.from_writer(bool(self.stop(self.history)))

    # -- restoring an earlier state, and resuming from a checkpoint ----------------------------------------------------

    def _restore(self, reason: Exception, progress: Progress) -> None:
        """Goes back to the restore point, at half the learning rate; a TrainingError if there is none."""
        point, self.next_restore_point = self.restore_point, None
        rate = self.optimizer.param_groups[0]["lr"]
        where = f"epoch {len(self.history) + 1}, step {min(self.sums.steps + 1, self.steps_per_epoch)}: {reason}"
        if point is None:
            raise TrainingError(
                f"{where} (learning rate {rate:.3g}); try a lower learning_rate or max_grad_norm, look for extreme "
                f"values in the data, or pass on_nan='restore' to go back and train on at half the rate"
            ) from None
        if self.restores == MOST_RESTORES:
            raise TrainingError(f"{where}, for the {MOST_RESTORES + 1}th time, at learning rate {rate:.3g}") from None
        self.restores += 1
        self.sums = _Sums()
        self._load(point)
        del self.history[point["epochs"] :]
        progress.note(f"{where}; back to the end of epoch {len(self.history)}, at half the learning rate")

    def _snapshot(self) -> dict[str, Any]:
        optimizer = copy.deepcopy(self.optimizer.state_dict())
        return {"model": _copies(self.model), "optimizer": optimizer, "epochs": len(self.history), "best": self.best}

    def _load(self, state: dict[str, Any]) -> None:
        """The weights and the optimizer of a snapshot or checkpoint."""
        self.model.load_state_dict(state["model"])
        groups = self.optimizer.state_dict()["param_groups"]  # steps change only the learning rate in these
        for group, saved in zip(groups, state["optimizer"]["param_groups"], strict=True):
            group["lr"] = saved["lr"]
        moments = copy.deepcopy(state["optimizer"]["state"])  # steps write to these
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.best = state["best"]

    def _state(self) -> dict[str, Any]:
        """The content of a checkpoint."""
        return {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "best": self.best,
            "history": self.history, "sums": asdict(self.sums),
        } | {name: getattr(self, name) for name in _CARRIED}  # fmt: skip

    def resume(self, state: dict[str, Any]) -> None:
        """Takes over the state of a checkpoint; a CheckpointError if it is not one of this training."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        names = set() if self.validation is None else {f"val_{name}" for name in METRICS}
        try:
            check_fits(state, self.model.state_dict(), parameters, self.steps_per_epoch, names)
            self._load(state)
        except ValueError as error:
            raise CheckpointError(f"resume: expected a checkpoint of this training but got {error}") from None
        self.history[:] = state["history"]
        self.sums = _Sums(**state["sums"])
        for name in _CARRIED:
            setattr(self, name, state[name])


# Attributes that checkpoints hold under their own names.
_CARRIED = ("restores", "micro_batches", "finished", "first_loss", "restore_point", "next_restore_point")


class _Diverged(Exception):
    """Why a step or an epoch cannot be used."""


def _thinned(inputs: Inputs, options: Options) -> Inputs:
    """The inputs with some of their ids replaced by that of unknown words, which is so trained, and without some of the
    weighted ids of their wide part."""
    x, lengths, wide = inputs
    if options.word_dropout:
        dropped = torch.rand(x.shape, device=x.device) < options.word_dropout
        x = x.masked_fill(dropped & (x != PADDING), UNKNOWN)
    if options.wide_dropout and isinstance(wide, tuple):
        ids, weights = wide
        wide = (ids, weights.masked_fill(torch.rand(weights.shape, device=x.device) < options.wide_dropout, 0))
    return Inputs(x, lengths, wide)


def _copies(model: SequenceClassifier) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's generators, for initial weights and dropout, and restores them afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        _seed(seed, device)
        yield


def _seed(seed: int, device: torch.device) -> None:
    """Like torch.manual_seed(), which would seed every GPU and not only this one."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.init()
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)

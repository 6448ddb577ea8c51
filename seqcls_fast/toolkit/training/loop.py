"""The training loop: what fit() does once raw data are sequences and labels are numbers.

Everything random is drawn from (seed, epoch, step), so that a training continues after any step as if nothing had been,
and every process that takes part knows the others' batches. Torch's own generators are left as they were. The weights
kept are the best seen on the validation set, or the last ones without one, also when training is interrupted.
"""

from __future__ import annotations

import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...classifier import SequenceClassifier
from ..data.batches import by_length, seed_of
from ..data.datasets import Data, Part
from ..data.ragged import Ragged
from ..evaluation.evaluate import averages
from ..ranks import ALONE, Ranks
from .checkpoint import CheckpointError, Checkpoints
from .progress import Progress
from .resume import MOST_RESTORES, check_fits

__all__ = [
    "METRICS",
    "SCHEDULES",
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
_EXPLODED = 50  # times the loss of guessing

History = list[dict[str, Any]]


class TrainingError(RuntimeError):
    """Training went wrong in a way that more of it would not mend."""


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
    seed: int = 0
    verbose: bool | None = None
    log_dir: str | None = None


def learning_rate_share(schedule: str, done: float, warmup: float) -> float:
    """The share of the highest learning rate after ``done`` of all steps, from 0 to 1.

    Example::

        >>> from seqcls_fast.toolkit.training.loop import learning_rate_share
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
    order = by_length(sequences.lengths, batch_size)

    def found_for(rows: Tensor) -> Tensor:
        """In halves where there is too little memory."""
        try:
            x, lengths = sequences.pad(rows)
            return model(x.to(device), lengths.to(device)).float().cpu()
        except (MemoryError, RuntimeError) as error:
            if len(rows) == 1 or not _out_of_memory(error):
                raise
        half = (len(rows) + 1) // 2
        return torch.cat([found_for(rows[:half]), found_for(rows[half:])])

    try:
        with torch.inference_mode(), _autocast(device, amp):
            parts = [found_for(rows) for rows in order]
    finally:
        model.train(training)
        model.forget_tables()
    if not parts:
        return torch.zeros(0, model.num_classes)
    found = torch.cat(parts)
    return torch.empty_like(found).index_copy_(0, torch.cat(order), found)


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
    """Trains in place and adds a record of each epoch to ``history``; :func:`best_epoch_of` says whose weights stay.

    ``saved`` is the state of a checkpoint to go on from; ``stop`` is asked after each epoch whether it was the last.
    """
    with seeded(options.seed, device):
        run = _Run(model, data, options, device, validation, history, ranks, checkpoints, stop)
        if saved is not None:
            run.go_on_from(saved)
        run.epochs()


def best_epoch_of(history: History, metric: str) -> int:
    """The first best one on the validation set, else the last."""
    name = f"val_{metric}"
    if name not in history[-1]:
        return len(history)
    best = min if metric == "loss" else max
    return best(history, key=lambda record: record[name])["epoch"]


@dataclass
class _Sums:
    """Of the epoch under way, over all processes."""

    steps: int = 0
    loss: float = 0.0
    right: int = 0
    rows: int = 0
    tokens: int = 0
    padded: int = 0  # tokens and padding
    seconds: float = 0.0


@dataclass
class _Run:
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
    pieces: int = 1  # in which a batch is taken, more than one where the memory asked for it
    finished: bool = False
    guessing: float | None = None  # the first batch's loss
    safe: dict[str, Any] | None = None  # to go back to
    candidate: dict[str, Any] | None = None  # the same an epoch later, if its weights prove sound
    best: dict[str, Tensor] | None = None  # with a validation, the weights of the best epoch

    def __post_init__(self) -> None:
        options = self.options
        self.parameters = list(self.model.parameters())
        decayed = [p for p in self.parameters if p.dim() > 1]
        rest = [p for p in self.parameters if p.dim() <= 1]  # biases
        groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(groups, lr=options.learning_rate, fused=fused)
        self.steps_per_epoch = self.data.steps(options.batch_size)

    def epochs(self) -> None:
        options, restores, writer = self.options, self.options.on_nan == "restore", self.ranks.writer
        if restores and self.safe is None:
            self.safe = self._snapshot()
        if self.checkpoints is not None and writer:
            self.checkpoints.write(self._state())  # what cannot be written to should be known before hours of work
        total = self.steps_per_epoch * options.epochs
        with (
            _tensorboard(options.log_dir if writer else None, len(self.history)) as log,
            Progress(options.epochs, total, options.verbose if writer else False, self._steps_done) as progress,
        ):
            try:
                while not self.finished and len(self.history) < options.epochs:
                    try:
                        record = self._epoch(progress)
                    except _Diverged as what:
                        self._restore(what, progress)
                        continue
                    self.history.append(record)
                    self.sums = _Sums()
                    self.finished = self._was_last(record, progress)
                    self.candidate = self._snapshot() if restores else None
                    progress.epoch(record)
                    log(record)
                if self.checkpoints is not None and writer:
                    self.checkpoints.write_or_warn(self._state())
            finally:  # an interrupt, too, leaves the best weights
                if self.best is not None:
                    self.model.load_state_dict(self.best)
                    if self.history:
                        progress.note(f"kept the weights of epoch {best_epoch_of(self.history, options.metric)}")
                self.model.eval()

    def _epoch(self, progress: Progress) -> dict[str, Any]:
        options, sums, epoch = self.options, self.sums, len(self.history)
        self.model.train()
        start = time.perf_counter() - sums.seconds
        left = self.steps_per_epoch - sums.steps  # 0 where a checkpoint was the epoch's last
        for part in self.data.epoch(options.batch_size, options.seed, epoch, sums.steps, self.ranks) if left else ():
            self._step(part)
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
        if self.pieces > 1:
            record["accumulated"] = self.pieces
        if not all(bool(p.isfinite().all()) for p in self.parameters):
            raise _Diverged("a weight is no longer finite at its end")
        if self.validation is not None:
            record |= {f"val_{name}": value for name, value in self._evaluate(self.validation).items()}
            if not math.isfinite(record["val_loss"]):
                raise _Diverged(f"the validation's loss is {record['val_loss']}")
        return record

    @property
    def _steps_done(self) -> int:
        return len(self.history) * self.steps_per_epoch + self.sums.steps

    # -- a step -------------------------------------------------------------------------------------------------------

    def _step(self, part: Part) -> None:
        options, sums = self.options, self.sums
        done = (self._steps_done + 1) / (self.steps_per_epoch * options.epochs + 1)  # the last step counts too
        rate = options.learning_rate / 2**self.restores * learning_rate_share(options.schedule, done, options.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        pieces = self.pieces
        figures = self._gradients_in_memory(part)
        figures[-1] = self.pieces - pieces
        *gradients, figures = self.ranks.sum_([*(p.grad for p in self.parameters if p.grad is not None), figures])
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, options.max_grad_norm or math.inf)
        loss, plain, right, tokens, padded, more_pieces = figures.tolist()
        if more_pieces:  # of any process: all take as many from now on, so that a checkpoint knows them
            self.pieces = max(self.ranks.all(self.pieces))
        self._look_at(plain / part.count, float(norm))  # without weights: a rare class's is no explosion
        if self.candidate is not None:  # the last epoch's weights have proven sound
            self.safe, self.candidate = self.candidate, None
        self.optimizer.step()
        sums.steps += 1
        sums.loss += loss
        sums.rows += part.count
        sums.right += int(right)
        sums.tokens += int(tokens)
        sums.padded += int(padded)

    def _gradients_in_memory(self, part: Part) -> Tensor:
        """In smaller and smaller pieces, as long as there is too little memory; other processes wait meanwhile."""
        while True:
            try:
                return self._gradients(part)
            except (MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                rows = math.ceil(len(part.rows) / self.pieces)
                if rows <= 1:
                    raise MemoryError(
                        "there is too little memory for a single sequence; try a smaller max_length or hidden_size"
                    ) from error
            self.optimizer.zero_grad()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.pieces *= 2
            warnings.warn(
                f"batch_size: there is too little memory for {rows} sequences at once, so batches are taken in "
                f"{self.pieces} pieces from now on, whose gradients are added up",
                RuntimeWarning,
                stacklevel=2,
            )

    def _gradients(self, part: Part) -> Tensor:
        """Those of this process's rows, left in the parameters, as their share of the mean over the whole batch.

        Returns sums over the rows: of the weighted loss, of the loss, of hits, of tokens, of those with padding; and 0.
        """
        key = (self.options.seed, "dropout", len(self.history), self.sums.steps, self.ranks.rank)
        _seed(seed_of(*key), self.device)
        self.optimizer.zero_grad()
        examples = part.examples
        figures = torch.zeros(6, dtype=self.parameters[0].dtype, device=self.device)
        for rows in part.rows.split(max(1, math.ceil(len(part.rows) / self.pieces))):
            if not len(rows):
                continue
            x, lengths = examples.sequences.pad(rows)
            targets = examples.targets[rows].to(self.device)
            with _autocast(self.device, self.options.amp):
                logits = self.model(x.to(self.device), lengths.to(self.device))
            losses = cross_entropy(logits.float() if self.options.amp else logits, targets, reduction="none")
            plain = loss = losses.sum()
            if examples.weights is not None:
                loss = (losses * examples.weights[rows].to(self.device)).sum()
            (loss / part.count).backward()
            right = (logits.detach().argmax(1) == targets).sum()
            known = [loss.detach(), plain.detach(), right, lengths.sum(), torch.tensor(x.size(0) * x.size(1))]
            figures[:-1] += torch.stack([figure.to(figures) for figure in known])
        for parameter in self.parameters:  # a process without rows
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return figures

    def _look_at(self, loss: float, norm: float) -> None:
        if self.guessing is None and math.isfinite(loss):
            self.guessing = max(loss, 0.1)
        if not math.isfinite(loss) or not math.isfinite(norm):
            what = "the loss" if not math.isfinite(loss) else "the gradient"
            raise _Diverged(f"{what} is {loss if what == 'the loss' else norm}")
        if self.guessing is not None and loss > _EXPLODED * self.guessing:
            raise _Diverged(f"the loss is {loss:.3g}, more than {_EXPLODED} times what it began with")

    # -- after an epoch -----------------------------------------------------------------------------------------------

    def _evaluate(self, data: Data) -> dict[str, float]:
        classes = self.model.num_classes
        confusion, loss = torch.zeros(classes**2, dtype=torch.int64), torch.zeros((), dtype=torch.float64)
        at_once = max(1, self.options.batch_size // self.pieces)
        for examples in data.pieces(self.ranks):
            logits = logits_of(self.model, examples.sequences, at_once, self.device, self.options.amp)
            loss += cross_entropy(logits, examples.targets, reduction="sum")
            confusion += (examples.targets * classes + logits.argmax(1)).bincount(minlength=classes**2)
        totals = self.ranks.sum_([tensor.to(self.device) for tensor in (confusion.double(), loss)])
        counts = totals[0].to("cpu", torch.int64).view(classes, classes).numpy()
        found = averages(counts.diagonal(), counts.sum(1), counts.sum(0))
        return {"loss": float(totals[1]) / int(counts.sum())} | {name: float(value) for name, value in found.items()}

    def _was_last(self, record: dict[str, Any], progress: Progress) -> bool:
        """Keeps the best weights so far; whether there was no better epoch for as long as patience allows."""
        if self.validation is not None:
            best_epoch = best_epoch_of(self.history, self.options.metric)
            if best_epoch == record["epoch"]:
                self.best = _copies(self.model)
            if self.options.patience is not None and record["epoch"] - best_epoch >= self.options.patience:
                progress.note(f"stopped: no better {self.options.metric} in {self.options.patience} epochs")
                return True
        return self.stop is not None and self.ranks.from_writer(bool(self.stop(self.history)))

    # -- going back, and going on -------------------------------------------------------------------------------------

    def _restore(self, what: Exception, progress: Progress) -> None:
        safe, self.candidate = self.safe, None
        rate = self.optimizer.param_groups[0]["lr"]
        where = f"epoch {len(self.history) + 1}, step {min(self.sums.steps + 1, self.steps_per_epoch)}: {what}"
        if safe is None:
            raise TrainingError(
                f"{where} (learning rate {rate:.3g}); try a lower learning_rate or max_grad_norm, look for extreme "
                f"values in the data, or pass on_nan='restore' to go back and train on at half the rate"
            ) from None
        if self.restores == MOST_RESTORES:
            raise TrainingError(f"{where}, for the {MOST_RESTORES + 1}th time, at learning rate {rate:.3g}") from None
        self.restores += 1
        self.sums = _Sums()
        self._put_back(safe)
        del self.history[safe["epochs"] :]
        progress.note(f"{where}; back to the end of epoch {len(self.history)}, at half the learning rate")

    def _snapshot(self) -> dict[str, Any]:
        optimizer = copy.deepcopy(self.optimizer.state_dict())
        return {"model": _copies(self.model), "optimizer": optimizer, "epochs": len(self.history), "best": self.best}

    def _put_back(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        groups = self.optimizer.state_dict()["param_groups"]  # of which a step changes the rate alone
        for group, saved in zip(groups, state["optimizer"]["param_groups"], strict=True):
            group["lr"] = saved["lr"]
        moments = copy.deepcopy(state["optimizer"]["state"])  # which it then writes to
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.best = state["best"]

    def _state(self) -> dict[str, Any]:
        """All that the next step depends on, and what history tells of the steps before."""
        return {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "best": self.best,
            "history": self.history, "sums": asdict(self.sums),
        } | {name: getattr(self, name) for name in _CARRIED}  # fmt: skip

    def go_on_from(self, state: dict[str, Any]) -> None:
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        names = set() if self.validation is None else {f"val_{name}" for name in METRICS}
        try:
            check_fits(state, self.model.state_dict(), parameters, self.steps_per_epoch, names)
            self._put_back(state)
        except ValueError as error:
            raise CheckpointError(f"resume: expected a checkpoint of this training but got {error}") from None
        self.history[:] = state["history"]
        self.sums = _Sums(**state["sums"])
        for name in _CARRIED:
            setattr(self, name, state[name])


_CARRIED = ("restores", "pieces", "finished", "guessing", "safe", "candidate")


class _Diverged(Exception):
    pass


def _out_of_memory(error: BaseException) -> bool:
    """CUDA's allocator has a type of its own; the CPU's has words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("can't allocate memory", "not enough memory", "bad_alloc", "out of memory", "STATUS_ALLOC_FAILED")
    return any(word in str(error) for word in words)


def _copies(model: SequenceClassifier) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in model.state_dict().items()}


def _autocast(device: torch.device, amp: bool) -> Any:
    return torch.autocast(device.type, torch.bfloat16) if amp else nullcontext()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's generators seeded, for first weights and dropout, and as they were before afterwards."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        _seed(seed, device)
        yield


def _seed(seed: int, device: torch.device) -> None:
    """Not torch.manual_seed(), which seeds every GPU there is."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.init()
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)


@contextmanager
def _tensorboard(log_dir: str | None, epochs: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    if log_dir is None:
        yield lambda record: None
        return
    from .._extras import need

    writer = need("torch.utils.tensorboard", "log_dir").SummaryWriter(
        log_dir, purge_step=epochs + 1 if epochs else None
    )

    def log(record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name != "epoch":
                writer.add_scalar(
                    name.replace("val_", "validation/") if "val_" in name else f"training/{name}",
                    value,
                    record["epoch"],
                )
        writer.flush()

    try:
        yield log
    finally:
        writer.close()

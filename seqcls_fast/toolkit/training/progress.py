"""The progress of a training: a bar in a terminal, a line per epoch, records for TensorBoard."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from .._extras import need
from .._terminal import MESSAGE, escaped

__all__ = ["Progress", "tensorboard_log"]


class Progress:
    """The bar or the lines of one training.

    ``verbose``: None shows a bar and a line per epoch if stderr is a terminal, True prints the lines elsewhere too,
    False shows nothing.
    """

    def __init__(self, epochs: int, steps: int, verbose: bool | None, done: int = 0) -> None:
        self.epochs, self.steps, self.done = epochs, steps, done
        self.lines = verbose is not False and (verbose is True or sys.stderr.isatty())
        self.bar: Any = None
        self.task_id: Any = None  # of the bar
        if verbose is not False and sys.stderr.isatty():
            self.bar = _rich_bar()

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
            epoch = min(self.done * self.epochs // max(self.steps, 1) + 1, self.epochs)
            words = f"epoch {epoch}/{self.epochs}"
            self.task_id = self.bar.add_task(words, total=self.steps, completed=self.done, shown="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(self, *, loss: float, tokens: int, seconds: float) -> None:
        if self.bar is not None:
            shown = f"loss {loss:.4f}  {tokens / max(seconds, 1e-9):,.0f} tokens/s"
            self.bar.update(self.task_id, advance=1, shown=shown)

    def epoch(self, record: dict[str, Any]) -> None:
        number = record["epoch"]
        if self.bar is not None:
            self.bar.update(self.task_id, completed=self.steps * number // self.epochs)
            self.bar.update(self.task_id, description=f"epoch {min(number + 1, self.epochs)}/{self.epochs}")
        names = [name for name in ("loss", "accuracy", "val_loss", "val_accuracy") if name in record]
        figures = "  ".join(f"{name.replace('_', ' ')} {record[name]:.4f}" for name in names)
        speed = f"{record['tokens_per_second']:,.0f} tokens/s, padding {record['padding']:.0%}"
        self.note(f"epoch {number:>3}/{self.epochs}  {figures}  {speed}")

    def note(self, text: str) -> None:
        text = escaped(text, MESSAGE)
        if self.bar is not None:
            self.bar.console.print(text, highlight=False, markup=False, emoji=False)
        elif self.lines:
            print(text, file=sys.stderr, flush=True)


def _rich_bar() -> Any:
    """A progress bar of rich; None if rich is not installed."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
    except ImportError:
        return None
    texts = [TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[shown]")]
    return Bar(texts[0], BarColumn(), texts[1], TimeRemainingColumn(), console=Console(stderr=True), transient=True)


@contextmanager
def tensorboard_log(log_dir: str | None, epochs: int) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A function that writes an epoch's record to ``log_dir``; it does nothing if that is None.

    A resumed training has ``epochs`` behind it; later records of the one that was stopped are removed.
    """
    if log_dir is None:
        yield lambda record: None
        return
    writer = need("torch.utils.tensorboard", "log_dir").SummaryWriter(
        log_dir, purge_step=epochs + 1 if epochs else None
    )

    def log(record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name != "epoch":
                place = name.replace("val_", "validation/") if "val_" in name else f"training/{name}"
                writer.add_scalar(place, value, record["epoch"])
        writer.flush()

    try:
        yield log
    finally:
        writer.close()

"""What training shows: a bar in a terminal, a line per epoch where asked for, nothing else."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from .._terminal import MESSAGE, escaped

__all__ = ["Progress"]


class Progress:
    """``verbose``: None shows a bar where stderr is a terminal, True shows at least a line per epoch, False nothing."""

    def __init__(self, epochs: int, steps: int, verbose: bool | None, done: int = 0) -> None:
        self.epochs, self.steps, self.done = epochs, steps, done
        self.lines = verbose is not False and (verbose is True or sys.stderr.isatty())
        self.bar: Any = None
        self.task: Any = None
        if verbose is not False and sys.stderr.isatty():
            self.bar = _rich_bar()

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
            epoch = min(self.done * self.epochs // max(self.steps, 1) + 1, self.epochs)
            words = f"epoch {epoch}/{self.epochs}"
            self.task = self.bar.add_task(words, total=self.steps, completed=self.done, shown="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(self, *, loss: float, tokens: int, seconds: float) -> None:
        if self.bar is not None:
            shown = f"loss {loss:.4f}  {tokens / max(seconds, 1e-9):,.0f} tokens/s"
            self.bar.update(self.task, advance=1, shown=shown)

    def epoch(self, record: dict[str, Any]) -> None:
        number = record["epoch"]
        if self.bar is not None:
            self.bar.update(self.task, completed=self.steps * number // self.epochs)
            self.bar.update(self.task, description=f"epoch {min(number + 1, self.epochs)}/{self.epochs}")
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
    """None where rich is not installed: lines do then."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar
    except ImportError:
        return None
    texts = [TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[shown]")]
    return Bar(texts[0], BarColumn(), texts[1], TimeRemainingColumn(), console=Console(stderr=True), transient=True)

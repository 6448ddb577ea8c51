"""Data for the commands, calls of main() in this process, and the settings of a process of its own."""

from __future__ import annotations

import csv
import io
import os
import random
import sys
from pathlib import Path

import pytest

from seqcls_fast import __main__

RUN = [sys.executable, "-m", "seqcls_fast"]
# With PYTHONUNBUFFERED, no output would be left for Python to write when it ends, which some tests are about.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | {
    "OMP_NUM_THREADS": "1"
}
GOOD, BAD, OTHER = ("good", "great", "fine"), ("bad", "awful", "poor"), ("the", "a", "film", "plot", "actor")
SMALL = ["--hidden-size", "8", "--embedding-dim", "8", "--epochs", "4", "--max-length", "12"]


def reviews(count: int, seed: int) -> list[tuple[str, str]]:
    draw, rows = random.Random(seed), []
    for number in range(count):
        words = [draw.choice(OTHER) for _ in range(draw.randint(2, 6))] + [f"n{seed}x{number}"]
        words[draw.randrange(len(words))] = draw.choice(BAD if number % 2 else GOOD)
        rows.append((" ".join(words), "neg" if number % 2 else "pos"))
    return rows


def write_csv(path: Path, header: tuple[str, ...], rows: list[tuple[str, str]]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert __main__.main(arguments) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The sentence that a failed command prints to stderr."""
    capsys.readouterr()
    assert __main__.main(arguments) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.err.count("\n") == 1, captured.err
    return captured.err.strip()


def misused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_info:
        __main__.main(arguments)
    assert exit_info.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err


def weights(folder: str | Path) -> bytes:
    return Path(folder, "model.safetensors").read_bytes()


def stdin(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="ascii"))

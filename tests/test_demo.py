"""`make demo` at its smallest: it runs, and what it trained beats guessing by more than chance explains."""

from __future__ import annotations

import re
import subprocess
import sys
from math import sqrt
from pathlib import Path

COMMAND = [sys.executable, "-m", "examples.demo", "--small"]
ROOT = Path(__file__).parents[1]


def test_demo_learns_and_compares() -> None:
    result = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    match = re.search(r"held-out accuracy ([\d.]+) on (\d+) series \(majority class ([\d.]+)\)", result.stdout)
    assert match, result.stdout
    accuracy, count, majority = float(match[1]), int(match[2]), float(match[3])
    # Guessing without looking at the series is right `majority` of the time; six standard deviations of that above it.
    assert accuracy > majority + 6 * sqrt(majority * (1 - majority) / count)
    assert re.search(r"^speed: [\d.]+x that of torch\.nn p", result.stdout, re.MULTILINE), result.stdout

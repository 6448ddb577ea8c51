"""Series to measure quality on: those that aeon and scikit-learn carry, and tasks made here that are known for being
hard to learn.

The carried ones are split as their publishers did. The made ones come from a fixed generator, so they are the same on
every machine. A series is an array (steps, channels) of float32.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["SETS", "SeriesSet", "adding", "build", "carried", "copying", "digits", "parity", "strokes"]

Rows = tuple[list[np.ndarray], list[str]]


class SeriesSet(NamedTuple):
    name: str
    train: Rows
    test: Rows


# -- carried by packages ----------------------------------------------------------------------------------------------


def carried(name: str) -> tuple[Rows, Rows]:
    """A set of aeon's folder of data, read by its files alone: its series of unequal lengths are kept so."""
    spec = importlib.util.find_spec("aeon")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError(f"{name}: aeon, which carries it, is not installed")
    folder = Path(next(iter(spec.submodule_search_locations)), "datasets", "data", name)
    train, test = (read_ts(folder / f"{name}_{part}.ts") for part in ("TRAIN", "TEST"))
    return train, test


def read_ts(path: Path) -> Rows:
    """The series of a .ts file: channels are divided by colons, steps by commas, and the label comes last."""
    series, labels = [], []
    lines = iter(path.read_text(encoding="utf-8").splitlines())
    next(line for line in lines if line.strip().lower() == "@data")
    for line in filter(str.strip, lines):
        *channels, label = line.strip().split(":")
        series.append(np.array([[float(x) for x in channel.split(",")] for channel in channels], np.float32).T)
        labels.append(label.strip())
    return series, labels


def digits() -> tuple[Rows, Rows]:
    """scikit-learn's handwritten digits. The 8 lines of a picture are the steps; the last pictures are for testing."""
    from sklearn.datasets import load_digits

    found = load_digits()
    series, labels = list(found.images.astype(np.float32)), [str(label) for label in found.target]
    return (series[:1200], labels[:1200]), (series[1200:], labels[1200:])


# -- made here --------------------------------------------------------------------------------------------------------


def made(
    draw: Callable[[np.random.Generator, bool], tuple[np.ndarray, str]], train: int, test: int
) -> tuple[Rows, Rows]:
    """Rows of one generator, those for testing drawn with True."""
    rng = np.random.default_rng(23)
    parts = [[draw(rng, testing) for _ in range(count)] for count, testing in ((train, False), (test, True))]
    first, second = (([x.astype(np.float32) for x, _ in part], [y for _, y in part]) for part in parts)
    return first, second


def adding(rng: np.random.Generator, _: bool, steps: int = 50) -> tuple[np.ndarray, str]:
    """Is the sum of the two numbers that are marked, one in each half, above 1?"""
    numbers, marks = rng.random(steps), np.zeros(steps)
    marks[[rng.integers(steps // 2), rng.integers(steps // 2, steps)]] = 1
    return np.stack([numbers, marks], 1), "above" if numbers @ marks > 1 else "below"


def copying(rng: np.random.Generator, _: bool, symbols: int = 8, most: int = 60) -> tuple[np.ndarray, str]:
    """Which symbol was the first? What follows are symbols too, of 20 to 60 steps."""
    ids = rng.integers(symbols, size=rng.integers(20, most + 1))
    return np.eye(symbols)[ids], f"symbol {ids[0]}"


def parity(rng: np.random.Generator, testing: bool) -> tuple[np.ndarray, str]:
    """Is the number of ones even? Learnt from 2 to 12 bits, and asked of 13 to 24."""
    bits = rng.integers(2, size=rng.integers(13, 25) if testing else rng.integers(2, 13))
    return bits[:, None], "odd" if bits.sum() % 2 else "even"


# The corners that a pen passes, in a square from 0 to 1.
FIGURES = {
    "circle": [(np.cos(a) / 2 + 0.5, np.sin(a) / 2 + 0.5) for a in np.linspace(0, 2 * np.pi, 13)],
    "triangle": [(0, 0), (1, 0), (0.5, 1), (0, 0)],
    "square": [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)],
    "zigzag": [(0, 0), (0.33, 1), (0.66, 0), (1, 1)],
    "wave": [(a, np.sin(2 * np.pi * a) / 2 + 0.5) for a in np.linspace(0, 1, 13)],
    "eight": [(np.sin(a) / 2 + 0.5, np.sin(2 * a) / 2 + 0.5) for a in np.linspace(0, 2 * np.pi, 25)],
    "hook": [(0, 1), (0, 0.2), (0.3, 0), (0.6, 0.2)],
    "cross": [(0, 0), (1, 1), (1, 0), (0, 1)],
}


def strokes(rng: np.random.Generator, _: bool) -> tuple[np.ndarray, str]:
    """Which figure does the pen draw? Turned a little, squeezed, at a changing speed and from either end."""
    name = str(rng.choice(list(FIGURES)))
    corners = np.array(FIGURES[name], float) + rng.normal(0, 0.06, (len(FIGURES[name]), 2))
    corners = corners[:: rng.choice([-1, 1])]
    pace = np.sort(np.r_[0, rng.random(rng.integers(18, 58)), 1]) * (len(corners) - 1)
    path = np.stack([np.interp(pace, np.arange(len(corners)), corners[:, k]) for k in (0, 1)], 1)
    angle = rng.normal(0, 0.3)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    path = (path - 0.5) @ turn * rng.uniform(0.5, 1.5, 2) + rng.normal(0, 0.03, path.shape)
    return path - path[0], name


# -- the sets ---------------------------------------------------------------------------------------------------------

CARRIED = (
    "ACSF1", "ArrowHead", "BasicMotions", "GunPoint", "ItalyPowerDemand", "JapaneseVowels", "OSULeaf",
    "PickupGestureWiimoteZ",
)  # fmt: skip
MADE: dict[str, Callable[[], tuple[Rows, Rows]]] = {
    "adding": lambda: made(adding, 500, 1000),
    "copying": lambda: made(copying, 500, 1000),
    "parity": lambda: made(parity, 1000, 1000),
    "strokes": lambda: made(strokes, 400, 1000),
}
SETS = {**{name: partial(carried, name) for name in CARRIED}, "digits": digits, **MADE}
WORDS = {
    "ACSF1": "power that devices use; from aeon",
    "ArrowHead": "outlines of arrow heads; from aeon",
    "BasicMotions": "a watch's accelerometer and gyroscope; from aeon",
    "GunPoint": "a hand that draws a gun or points; from aeon",
    "ItalyPowerDemand": "a day of power, in summer or winter; from aeon",
    "JapaneseVowels": "the speaker of a vowel, unequal lengths; from aeon",
    "OSULeaf": "outlines of leaves; from aeon",
    "PickupGestureWiimoteZ": "gestures, unequal lengths; from aeon",
    "digits": "pictures of handwritten digits, a line a step; from scikit-learn",
    "adding": "is the sum of two marked numbers out of 50 above 1? made here",
    "copying": "which of 8 symbols came 20 to 60 steps ago? made here",
    "parity": "is the number of ones even? learnt from 2 to 12 bits, asked of 13 to 24; made here",
    "strokes": "which of 8 figures does a pen draw? made here",
}


def build(name: str) -> SeriesSet:
    """One of :data:`SETS`; a RuntimeError where its package is missing."""
    return SeriesSet(name, *SETS[name]())


def summaries(series: list[np.ndarray]) -> Iterator[np.ndarray]:
    """Numbers that describe a series whatever its length: what a person tries before any network.

    Of each channel the mean, deviation, least, largest, first and last value, the mean step and the mean of its size.
    """
    for x in series:
        steps = np.diff(x, axis=0) if len(x) > 1 else np.zeros_like(x)
        parts = [x.mean(0), x.std(0), x.min(0), x.max(0), x[0], x[-1], steps.mean(0), np.abs(steps).mean(0)]
        yield np.concatenate([*parts, [len(x)]])

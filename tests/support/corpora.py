"""Small labelled corpora, made on the spot, that a working classifier learns."""

from __future__ import annotations

import random

import numpy as np
import torch

GOOD = ["good", "great", "lovely", "happy", "fine", "superb", "nice", "warm", "bright", "kind"]
BAD = ["bad", "awful", "sad", "poor", "dull", "cruel", "cold", "dark", "weak", "grim"]
PLAIN = ["the", "a", "film", "day", "book", "time", "was", "is", "very", "so", "this", "that"]


def sentences(seed: int = 0, count: int = 120) -> tuple[list[str], list[str]]:
    """Texts of three to five words, one of which decides the class."""
    rng = random.Random(seed)
    texts, labels = [], []
    for index in range(count):
        words = [rng.choice(PLAIN) for _ in range(rng.randint(2, 4))] + [rng.choice(GOOD if index % 2 else BAD)]
        rng.shuffle(words)
        texts.append(" ".join(words))
        labels.append("pos" if index % 2 else "neg")
    return texts, labels


def waves(seed: int = 0, count: int = 80) -> tuple[list[np.ndarray], list[int]]:
    """Noisy rising or falling lines of different lengths, beside a second feature that is noise alone."""
    rng = np.random.default_rng(seed)
    series, labels = [], []
    for index in range(count):
        steps = int(rng.integers(5, 15))
        slope = 1.0 if index % 2 else -1.0
        line = slope * np.arange(steps) / steps + rng.normal(scale=0.1, size=steps)
        series.append(np.stack([line, 100 + rng.normal(size=steps)], 1))
        labels.append(index % 2)
    return series, labels


def waste(lengths: torch.Tensor, batches: list[torch.Tensor]) -> float:
    """The share of padding in the batches."""
    return 1 - int(lengths.sum()) / sum(len(rows) * int(lengths[rows].max()) for rows in batches)

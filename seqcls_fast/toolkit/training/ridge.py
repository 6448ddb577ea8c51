"""Linear models in closed form: ridge regression of ±1 for each class, as MiniRocket's authors use it.

What the model would say of a row that it was not fitted on is known in closed form too. These scores choose the
penalty, and how many times they are multiplied to be logits, so that no row need be held out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ridge", "fit_ridge", "log_losses", "logit_scale"]

Floats = NDArray[np.float64]

_PENALTIES = np.logspace(-5, 2, 15)  # times the number of features
_SCALES = 2.0 ** np.arange(-4, 7.1, 0.25)


@dataclass(frozen=True)
class Ridge:
    weights: Floats  # (features, classes)
    bias: Floats  # (classes,)
    left_out: Floats  # (rows, classes): the scores of each row by a model of the other rows
    error: float  # the mean square of what they miss


def fit_ridge(x: Floats, targets: NDArray[np.int64], classes: int, weights: Floats | None = None) -> Ridge:
    """Fits ``x @ weights + bias`` to 1 for a row's class and -1 for the others.

    Args:
        x: ``(rows, features)``, each of mean 0 and deviation 1 or so.
        targets: the number of each row's class.
        classes: how many there are.
        weights: of the rows; None for equal ones.
    """
    wanted = np.where(targets[:, None] == np.arange(classes), 1.0, -1.0)
    share = np.ones(len(x)) if weights is None else np.maximum(weights, 1e-6 * weights.max())
    share = share / share.sum()
    root = np.sqrt(share * len(x))[:, None]
    middle, mean = share @ x, share @ wanted
    rows, rest = (x - middle) * root, (wanted - mean) * root
    u, squares = _left(rows)
    along = u.T @ rest
    best: tuple[float, float, Floats] | None = None
    for penalty in _PENALTIES * x.shape[1]:
        kept = squares / (squares + penalty)
        # The intercept adds to each row's influence on its own score what its weight says.
        influence = np.einsum("nk,k->n", u * u, kept) + share
        missed = (rest - u @ (kept[:, None] * along)) / np.maximum(1 - influence, 1e-9)[:, None] / root
        error = float(share @ (missed**2).mean(1))
        if best is None or error < best[0]:
            best = error, penalty, wanted - missed
    assert best is not None
    found = rows.T @ (u @ (along / (squares + best[1])[:, None]))
    return Ridge(found, mean - middle @ found, best[2], best[0])


def _left(x: Floats) -> tuple[Floats, Floats]:
    """The left singular vectors of x in columns, and the squares of its singular values, without those that are 0."""
    if len(x) <= x.shape[1]:
        squares, u = np.linalg.eigh(x @ x.T)
    else:
        squares, v = np.linalg.eigh(x.T @ x)
        u = x @ v / np.sqrt(np.maximum(squares, 1e-30))
    there = squares > 1e-9 * max(squares[-1], 1e-30)
    return u[:, there], squares[there]


def log_losses(logits: Floats, targets: NDArray[np.int64]) -> Floats:
    """The loss of each row, with targets that are smoothed by about one row, against infinite logits."""
    count, classes = logits.shape
    shifted = logits - logits.max(1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    smooth = 1 / (count + classes)
    losses: Floats = -((1 - smooth) * logs[np.arange(count), targets] + smooth * logs.mean(1))
    return losses


def logit_scale(scores: Floats, targets: NDArray[np.int64]) -> float:
    """The number by which scores are multiplied to be logits of the least loss."""
    losses = [float(log_losses(scale * scores, targets).mean()) for scale in _SCALES]
    return float(_SCALES[int(np.argmin(losses))])

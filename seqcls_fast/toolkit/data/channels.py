"""Features that are made of a series itself: its values by its own mean and deviation, their changes, and the time.

Series lie one after another in one array ``(N, F)``, as in the encoder; ``lengths`` says how many steps each has.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["changes", "of_mean_0", "times"]

Floats = NDArray[np.float64]
Lengths = NDArray[np.int64]

_CONSTANT = 1e-10  # a deviation that is so small a share of the largest value is rounding


def of_mean_0(values: Floats, lengths: Lengths) -> Floats:
    """Each series with mean 0 and deviation 1; a feature that is constant in it becomes 0, other NaN stay.

    Example::

        >>> import numpy as np
        >>> from seqcls_fast.toolkit.data.channels import of_mean_0
        >>> of_mean_0(np.array([[1.0], [3.0], [7.0]]), np.array([2, 1]))[:, 0].round(6).tolist()
        [-1.0, 1.0, 0.0]
    """
    some = lengths[lengths > 0]
    if not len(some):
        return values
    starts = some.cumsum() - some

    def mean(of: Floats) -> Floats:
        """The mean of each series, at each of its steps."""
        there = ~np.isnan(of)
        sums = np.add.reduceat(np.where(there, of, 0.0), starts)
        found: Floats = (sums / np.add.reduceat(there, starts, dtype=np.int64).clip(1)).repeat(some, 0)
        return found

    largest = np.fmax.reduceat(np.abs(values), starts).repeat(some, 0)
    shares = values / np.where(largest > 0, largest, 1.0)  # so that no square overflows
    offset = shares - mean(shares)
    deviation = np.sqrt(mean(offset**2))
    return np.where(deviation > _CONSTANT, offset / np.where(deviation > _CONSTANT, deviation, 1.0), 0.0)


def changes(values: Floats, lengths: Lengths) -> Floats:
    """What each step adds to the one before; 0 for the first step of a series."""
    found = np.diff(values, axis=0, prepend=values[:1])
    found[(lengths.cumsum() - lengths)[lengths > 0]] = 0
    return found


def times(lengths: Lengths) -> Floats:
    """``(N, 1)``, which rises from -1 to 1 along each series; 0 for a series of one step."""
    step = np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
    last = np.repeat(lengths - 1, lengths)
    found: Floats = np.where(last > 0, 2 * step / last.clip(1) - 1, 0.0)[:, None]
    return found

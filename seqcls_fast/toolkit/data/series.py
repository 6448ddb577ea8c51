"""Numeric series as features: standardised, with an explicit policy for missing values.

All series lie one after another in one float64 array while they are checked and scaled, so that a few numpy calls do
for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from .._extras import need
from .._terminal import escaped, kind_of, shown
from ..schema import anything, mapping, record
from .channels import changes, of_mean_0, times
from .columns import items
from .errors import seal, unseal
from .ragged import Ragged
from .steps import as_steps, at

if TYPE_CHECKING:
    import numpy as np
else:
    np = need("numpy", "SeriesEncoder")

__all__ = ["NORMALS", "POLICIES", "SeriesEncoder", "as_steps"]

_AT_ONCE = 1024  # series that fit() takes from an iterator at once

_CONTENT = record({"parameters": mapping(anything), "mean": anything, "scale": anything})

POLICIES = ("error", "zero", "mean", "forward", "mask")
NORMALS = ("data", "series")


class SeriesEncoder:
    """Turns series into features of mean 0 and deviation 1, in the training data or in each series.

    A feature that is constant there is centred and not divided. NaN (or None) is a missing value, infinity always an
    error; steps beyond ``max_length`` are checked too.

    Args:
        standardize: False leaves the values as they are.
        missing: what replaces a missing value. ``"error"``: nothing, it raises a ValueError. ``"zero"``: 0 in the
            data's own units. ``"mean"``: the feature's mean in the training data. ``"forward"``: the value before it in
            the series, or the mean if there is none. ``"mask"``: the mean, and after the features come as many more,
            which are 1 where the value is missing and 0 elsewhere.
        max_length: how many steps of a series are kept, from its start; None for all.
        normalize: with ``standardize`` the means and deviations are those of the training data (``"data"``), or of the
            series at hand (``"series"``), which hides how large its values are. A missing value is then replaced by the
            mean of its series, where the mean replaces it.
        differences: whether the changes from step to step become further features, after all others.
        time: whether the time becomes a last feature, which rises from -1 to 1 along each series.

    Example::

        >>> from seqcls_fast.toolkit.data.series import SeriesEncoder
        >>> encoder = SeriesEncoder(missing="forward").fit([[1.0, 2.0], [3.0]])
        >>> encoder.encode([[2.0, None, 2.0]]).values.tolist()
        [[0.0], [0.0], [0.0]]
        >>> encoder.features_in, encoder.features_out
        (1, 1)
    """

    def __init__(
        self, *, standardize: bool = True, missing: str = "error", max_length: int | None = None,
        normalize: str = "data", differences: bool = False, time: bool = False,
    ) -> None:  # fmt: skip
        for name, value in {"standardize": standardize, "differences": differences, "time": time}.items():
            if not isinstance(value, bool):
                raise TypeError(f"{name}: expected a bool but got {kind_of(value)}")
        if normalize not in NORMALS:
            raise ValueError(f"normalize: expected one of {', '.join(NORMALS)} but got {shown(normalize)}")
        if missing not in POLICIES:
            raise ValueError(f"missing: expected one of {', '.join(POLICIES)} but got {shown(missing)}")
        if max_length is not None:
            if not isinstance(max_length, int) or isinstance(max_length, bool):
                raise TypeError(f"max_length: expected an int or None but got {kind_of(max_length)}")
            if max_length < 1:
                raise ValueError(f"max_length: expected at least 1 but got {shown(max_length)}")
        self.standardize, self.missing, self.max_length = standardize, missing, max_length
        self.normalize, self.differences, self.time = normalize, differences, time
        self._mean: np.ndarray | None = None  # (F,), float64
        self._scale: np.ndarray | None = None

    def fit(self, series: Iterable[Any]) -> SeriesEncoder:
        """Learns each feature's mean and deviation from arrays ``(T_i, F)``, or ``(T_i,)`` for one feature.

        An iterator is read in pieces of 1024 series, whose means and deviations are then combined.
        """
        found: _Moments | None = None
        first, features = 0, None
        with np.errstate(all="ignore"):  # an overflow raises a ValueError below
            for piece in _pieces(series):
                values, _ = self._flat(piece, features, first)
                first += len(piece)
                if values.size:
                    features = values.shape[1]
                    found = _moments(values) if found is None else found.combined(_moments(values))
            if found is None:
                raise ValueError("series: expected at least one step to learn from but got none")
            self._mean, self._scale = found.mean_and_scale()
        return self

    def encode(self, series: Sequence[Any]) -> Ragged:
        """The features of all steps, float32 ``(N, features_out)``."""
        mean, scale = self._fitted()
        values, lengths = self._flat(series, len(mean))
        missing = np.isnan(values)
        if self.missing == "zero":
            values[missing] = 0
        elif self.missing == "forward":
            _carry_forward(values, missing, lengths)
        if self.standardize and self.normalize == "series":
            values = of_mean_0(values, lengths)
            values[np.isnan(values)] = 0
        else:
            values = np.where(np.isnan(values), mean, values)
            if self.standardize:
                with np.errstate(over="ignore"):
                    values = (values - mean) / scale
        with np.errstate(all="ignore"):
            further = [changes(values, lengths)] if self.differences else []
        if self.missing == "mask":
            values = np.concatenate([values, missing], 1)
        if self.time:
            further.append(times(lengths))
        values = np.concatenate([values, *further], 1)
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float32)
        if not np.isfinite(narrow).all():
            where, value = _first(~np.isfinite(narrow), lengths), values[~np.isfinite(narrow)][0]
            raise ValueError(f"series[{where[0]}]: expected values that float32 holds but got {value:g} {at(where)}")
        return Ragged(torch.from_numpy(narrow), torch.from_numpy(lengths))

    def prefixes(self, series: Any, counts: Sequence[int]) -> list[Any]:
        """The series, cut after each of these numbers of steps."""
        steps = as_steps(series, "series")
        return [steps[:count] for count in counts]

    @property
    def features_in(self) -> int:
        """How many features a step of the data has."""
        return len(self._fitted()[0])

    @property
    def features_out(self) -> int:
        """How many features a step of :meth:`encode`'s result has."""
        return self.features_own + self.features_in * self.differences + self.time

    @property
    def features_own(self) -> int:
        """How many of them, from the first on, are values of the series, or mark a missing one."""
        return self.features_in * (2 if self.missing == "mask" else 1)

    def to_json(self) -> str:
        """The fitted encoder as text, for :meth:`from_json`."""
        mean, scale = self._fitted()
        return seal("SeriesEncoder", {"parameters": self._parameters(), "mean": mean.tolist(), "scale": scale.tolist()})

    @classmethod
    def from_json(cls, text: str) -> SeriesEncoder:
        """The encoder that :meth:`to_json` wrote; a ValueError for any other text."""
        content = unseal("SeriesEncoder", text)
        try:
            _CONTENT(content, "content")
            encoder = cls(**content["parameters"])
            mean, scale = content["mean"], content["scale"]
            for numbers in (mean, scale):
                if not isinstance(numbers, list) or not all(type(x) is float and math.isfinite(x) for x in numbers):
                    raise ValueError("a mean or scale that is no list of finite numbers")
            if not mean or len(mean) != len(scale):
                raise ValueError(f"{len(mean)} means and {len(scale)} scales")
            if min(scale) <= 0:
                raise ValueError(f"the scale {min(scale)}")
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"SeriesEncoder: expected text from to_json() but got {escaped(error)}") from None
        encoder._mean, encoder._scale = np.array(mean), np.array(scale)
        return encoder

    def __repr__(self) -> str:
        return f"SeriesEncoder({', '.join(f'{name}={value!r}' for name, value in self._parameters().items())})"

    def _parameters(self) -> dict[str, Any]:
        names = ("standardize", "missing", "max_length", "normalize", "differences", "time")
        return {name: getattr(self, name) for name in names}

    def _fitted(self) -> tuple[np.ndarray, np.ndarray]:
        if self._mean is None or self._scale is None:
            raise RuntimeError("SeriesEncoder: expected fit() to be called first but nothing was learnt yet")
        return self._mean, self._scale

    def _flat(self, series: Sequence[Any], features: int | None, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """All steps, checked, as one new array (N, F), and the lengths; both cut to ``max_length``.

        Error messages number the series from ``start`` on.
        """
        rows = items(series, "series", "a list of arrays (T, features)")
        arrays = [as_steps(one, f"series[{index}]") for index, one in enumerate(rows, start)]
        for index, array in enumerate(arrays, start):
            if array.shape == (0, 1):
                continue  # an empty list fits any number of features
            if features is None:
                features = array.shape[1]
            if array.shape[1] != features:
                expected = f"{features} feature{'' if features == 1 else 's'}"
                raise ValueError(f"series[{index}]: expected {expected} but got {array.shape[1]}")
        lengths = np.array([len(array) for array in arrays], dtype=np.int64)
        values = np.concatenate([np.zeros((0, features or 0)), *(array for array in arrays if len(array))])
        for name, found in (("inf", np.isinf(values)), ("nan", np.isnan(values) & (self.missing == "error"))):
            if found.any():
                where, value = _first(found, lengths), values[found][0]
                wanted = "a finite value" if name == "inf" else "no missing value"
                why = ', which missing="error" refuses' if name == "nan" else ""
                raise ValueError(f"series[{start + where[0]}]: expected {wanted} but got {value} {at(where)}{why}")
        if self.max_length is not None:
            values = values[_step_of(lengths) < self.max_length]
            lengths = lengths.clip(max=self.max_length)
        return values, lengths


def _first(found: np.ndarray, lengths: np.ndarray) -> tuple[int, int, int]:
    """Series, step and feature of the first True in ``found``, (N, F)."""
    row, feature = np.argwhere(found)[0]
    index = int(np.searchsorted(lengths.cumsum(), row, side="right"))
    return index, int(row - lengths[:index].sum()), int(feature)


def _step_of(lengths: np.ndarray) -> np.ndarray:
    """For each of the N steps its number within its series."""
    return np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)


def _carry_forward(values: np.ndarray, missing: np.ndarray, lengths: np.ndarray) -> None:
    """Replaces NaN by the last value before it in its series; NaN before the first value stays."""
    rows = np.arange(len(values))
    last = np.maximum.accumulate(np.where(missing, -1, rows[:, None]), axis=0)
    inside = missing & (last >= (rows - _step_of(lengths))[:, None])
    values[inside] = np.take_along_axis(values, last.clip(0), 0)[inside]


def _pieces(series: Any) -> Iterator[Any]:
    if not isinstance(series, Iterator):
        yield series
        return
    while piece := list(islice(series, _AT_ONCE)):
        yield piece


@dataclass
class _Moments:
    """Statistics of each feature, without its missing values: ``(F,)`` each."""

    count: np.ndarray
    low: np.ndarray  # minimum; inf if all values are missing
    high: np.ndarray  # maximum
    mean: np.ndarray
    deviation: np.ndarray

    def combined(self, other: _Moments) -> _Moments:
        """The statistics of both, by Chan, Golub and LeVeque's formula with deviations, not squares."""
        count = self.count + other.count
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        left, right = self.count / count.clip(1), other.count / count.clip(1)
        mean = np.where(low < high, self.mean * left + other.mean * right, np.where(count > 0, low, 0.0))
        apart = (other.mean / 2 - self.mean / 2) * (2 * np.sqrt(left * right))
        within = np.hypot(self.deviation * np.sqrt(left), other.deviation * np.sqrt(right))
        return _Moments(count, low, high, mean, np.hypot(within, apart))

    def mean_and_scale(self) -> tuple[np.ndarray, np.ndarray]:
        """The mean, and the deviation as a divisor: 1 for a constant feature, whose deviation is exactly 0."""
        scale = np.where(self.deviation == 0, 1.0, self.deviation)
        fine = np.isfinite(self.mean) & np.isfinite(scale)
        if not fine.all():
            feature = int(np.argmin(fine))
            raise ValueError(
                f"series: expected values that float64 can average but got larger ones in feature {feature}"
            )
        return self.mean, scale


def _moments(values: np.ndarray) -> _Moments:
    """Statistics of values (N, F). Offsets are squared as fractions of the largest, against over- and underflow."""
    there = ~np.isnan(values)
    count = there.sum(0)
    low = np.where(there, values, np.inf).min(0)
    high = np.where(there, values, -np.inf).max(0)
    middle = np.where(low < high, low / 2 + high / 2, np.where(count > 0, low, 0.0))
    offset = np.where(there, values - middle, 0.0)
    mean = middle + offset.sum(0) / count.clip(1)
    offset = np.where(there, values - mean, 0.0)
    largest = np.abs(offset).max(0)
    largest[~(low < high) | (largest == 0)] = 1.0
    return _Moments(count, low, high, mean, largest * np.sqrt(((offset / largest) ** 2).sum(0) / count.clip(1)))

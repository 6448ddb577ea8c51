"""How rows are read and encoded: pools of some fifty batches for an epoch, or pieces in the order of the files.

A few numbers determine each of them, so that this process or a worker process can make it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._terminal import escaped
from ..ranks import Ranks
from . import labels
from .batches import POOL_BATCHES, bucketed, generator_of
from .errors import DataError, renumbered
from .ragged import Arrays, Ragged
from .records import Table
from .survey import PIECE_ROWS, RowSource

__all__ = ["Piece", "Pieces", "Pool", "PoolBatch", "Pools"]

POOL_ROWS = 1 << 14
_POOL_VALUES = 1 << 24  # characters or numbers; a pool of long sequences has fewer rows


@dataclass(frozen=True)
class PoolBatch:
    """The rows of a batch that one process takes, and the pool that they are in."""

    sequences: Ragged  # all rows of the pool that this process takes, as are targets and weights
    targets: Tensor  # int64
    weights: Tensor | None  # float32, as the file has them
    rows: Tensor  # the indices of those that are in the batch
    count: int  # rows of the batch, over all processes


class Piece(NamedTuple):
    """Consecutive rows of the files, encoded."""

    first: int  # number of the first row in the stream
    sequences: Ragged
    targets: Tensor | None
    weights: Tensor | None


class Pool(NamedTuple):
    """The rows of a pool that one process takes, batch after batch, as numpy arrays."""

    sequences: Arrays
    targets: Any  # an array, never None, because a pool has labels
    weights: np.ndarray | None
    sizes: list[int]  # by batch, how many rows this process takes
    counts: list[int]  # by batch, how many rows all processes take

    def batches(self, skip: int) -> Iterator[PoolBatch]:
        """The batches after the first ``skip``."""
        sequences, weights = Ragged.from_arrays(self.sequences), tensor(self.weights)
        targets = torch.from_numpy(self.targets)
        rows = torch.arange(len(sequences)).split(self.sizes)
        for mine, count in zip(rows[skip:], self.counts[skip:], strict=True):
            yield PoolBatch(sequences, targets, weights, mine, count)


@dataclass(frozen=True)
class Pools:
    """The pools of all epochs, for one process.

    In each epoch the blocks are shuffled, and their rows, one block after the other, are cut into pools.
    """

    source: RowSource
    encoder: Any
    classes: tuple[Any, ...]
    batch_size: int
    seed: int
    rank: int
    world: int
    epochs: int

    @property
    def steps(self) -> int:
        """Batches in a pool."""
        survey = self.source.survey()
        wanted = POOL_BATCHES * max(1, POOL_ROWS // (POOL_BATCHES * self.batch_size))
        return max(1, min(wanted, _POOL_VALUES * survey.rows // (self.batch_size * max(1, survey.values))))

    @property
    def count(self) -> int:
        """Pools in an epoch."""
        batches = -(-self.source.survey().rows // self.batch_size)
        return -(-batches // self.steps)

    def items(self, start: tuple[int, int], worker: int, workers: int) -> Iterator[Pool]:
        """One worker's pools: every ``workers``-th from the pool ``start`` (epoch, number) to the end."""
        first, pool = start
        turns = cycle(range(workers))
        for epoch in range(first, self.epochs):
            order = self._order(epoch)
            for number in range(pool, self.count):
                if next(turns) == worker:
                    yield self._pool(order, epoch, number)
            pool = 0

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the blocks in an epoch, and the row of the epoch at which each ends."""
        kept = self.source.survey().kept
        order = torch.randperm(len(kept), generator=generator_of("blocks", self.seed, epoch)).numpy()
        return order, kept[order].cumsum()

    def _pool(self, order: tuple[np.ndarray, np.ndarray], epoch: int, pool: int) -> Pool:
        table = self._table(order, epoch, pool)
        lengths = torch.tensor(_lengths(table.texts_or_series, self.encoder))
        batches = bucketed(lengths, self.batch_size, generator_of("pool", self.seed, epoch, pool))
        mine = [Ranks(self.rank, self.world).share(rows) for rows in batches]
        table = table.take(torch.cat(mine).tolist())
        return Pool(
            *_encoded(self.source, self.encoder, self.classes, table, 0),
            [len(rows) for rows in mine], [len(rows) for rows in batches],
        )  # fmt: skip

    def _table(self, order: tuple[np.ndarray, np.ndarray], epoch: int, pool: int) -> Table:
        """The rows of a pool: the rest of one block, then whole blocks, then the beginning of another."""
        numbers, ends = order
        first, stop = (self.steps * self.batch_size * k for k in (pool, pool + 1))
        stop = min(stop, self.source.survey().rows)
        tables = []
        at = int(np.searchsorted(ends, first, side="right"))
        while first < stop:
            number, end = int(numbers[at]), int(ends[at])
            start = end - int(self.source.survey().kept[number])
            if end > start:
                tables.append(self.source.take(number, first - start, min(stop, end) - start, self.seed, epoch))
            first, at = end, at + 1
        return _joined(tables)


@dataclass(frozen=True)
class Pieces:
    """All rows in the order of the files, in pieces of :data:`PIECE_ROWS` rows, for one process."""

    source: RowSource
    encoder: Any
    classes: tuple[Any, ...] | None
    rank: int
    world: int

    def items(self, worker: int, workers: int) -> Iterator[tuple[Any, ...]]:
        """One worker's pieces as numpy arrays: every ``workers``-th piece of this process."""
        size, start = PIECE_ROWS[self.source.kind], 0
        tables: list[Table] = []
        for rows, content in self.source.contents():
            stop = start + len(rows)
            while start < stop:
                number, end = start // size, min(stop, (start // size + 1) * size)
                if number % self.world == self.rank and number // self.world % workers == worker:
                    there = len(rows) - (stop - start)
                    tables.append(content().take(rows[there : there + end - start]))
                    if end % size == 0:
                        yield self._piece(number * size, tables)
                        tables = []
                start = end
        if tables:
            yield self._piece(start // size * size, tables)

    def _piece(self, first: int, tables: list[Table]) -> tuple[Any, ...]:
        return first, *_encoded(self.source, self.encoder, self.classes, _joined(tables), first)


def tensor(values: np.ndarray | None) -> Tensor | None:
    return None if values is None else torch.from_numpy(values)


def _lengths(sequences: list[Any], encoder: Any) -> list[int]:
    """Lengths after encoding, estimated without encoding. They only decide which rows share a batch."""
    if getattr(encoder, "kind", None) == "word":
        lengths = [_words(text) for text in sequences]
    else:
        lengths = list(map(len, sequences))
    most = getattr(encoder, "max_length", None)
    return lengths if most is None else [min(length, most) for length in lengths]


def _words(text: str) -> int:
    """Rough word count: count separators; for scripts without spaces, count characters."""
    count = text.count(" ") + text.count(",") + text.count(".")
    return count if text.isascii() else count + (len(text.encode()) - len(text)) // 2  # Chinese: 3 bytes a character


def _encoded(
    source: RowSource, encoder: Any, classes: tuple[Any, ...] | None, table: Table, first: int
) -> tuple[Arrays, np.ndarray | None, np.ndarray | None]:
    """Sequences, targets and weights."""
    try:
        sequences = encoder.encode(table.texts_or_series)
    except ValueError as error:
        raise DataError(f"{escaped(source.path)}: {renumbered(error, first)}") from None
    targets = None
    if classes is not None and table.labels is not None:
        targets = labels.to_targets(table.labels, labels.as_array(classes), escaped(source.path)).numpy()
    return (
        sequences.arrays(),
        targets,
        None if table.weights is None else np.array(table.weights, np.float32),
    )


def _joined(tables: list[Table]) -> Table:
    def joined(columns: list[list[Any] | None]) -> list[Any] | None:
        return None if columns[0] is None else [value for column in columns if column for value in column]

    return Table(
        joined([table.texts_or_series for table in tables]) or [],
        joined([table.labels for table in tables]), joined([table.weights for table in tables]),
    )  # fmt: skip

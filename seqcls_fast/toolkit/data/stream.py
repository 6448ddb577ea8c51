"""Data larger than memory: labelled sequences in files, which are read and encoded while they are used.

One pass, the survey, finds blocks of rows that can be read in any order. The order of an epoch depends on seed and
epoch alone: the blocks are shuffled; their rows, one block after the other, are cut into pools of some fifty batches;
and a pool is shuffled and sorted by length, as data in memory are. So an epoch can begin at any step by reading one
pool.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np

from .._terminal import shown
from . import labels
from .pools import Piece, Pieces, Pool, PoolBatch, Pools, tensor
from .ragged import Ragged
from .readers import Files
from .records import Layout
from .survey import RowSource, SplitRule, Survey
from .workers import made_ahead

__all__ = ["Stream"]


class Stream:
    """Labelled sequences that are read while they are used; ``fit()`` and others take it in the place of X and y.

    In memory are at most a few pools of 16,384 rows, one or two row groups for Parquet, and 40 bytes for each block of
    256 rows. A file that changes meanwhile is an error.

    Args:
        path: a file, or a folder of files of any formats and sizes (as in
            :func:`~seqcls_fast.toolkit.data.readers.read`). Labels are compared
            as they are read: CSV has text where JSON lines and Parquet may have numbers.
        text, label, weight, format, kind, delimiter: as in :func:`~seqcls_fast.toolkit.data.readers.read`.

    Example::

        >>> import pathlib, tempfile
        >>> from seqcls_fast.toolkit.stream import Stream
        >>> from seqcls_fast.toolkit.data.text import TextEncoder
        >>> folder = tempfile.TemporaryDirectory()
        >>> _ = pathlib.Path(folder.name, "a.csv").write_text("text,label\\ngood film,1\\nbad,0\\nso good,1\\n")
        >>> stream, encoder = Stream(folder.name), TextEncoder()
        >>> survey = stream.survey(encoder)
        >>> survey.rows, survey.labels, encoder.vocab_size
        (3, {'1': 2, '0': 1}, 6)
        >>> for batch in stream.epoch(encoder, 2, seed=0, epoch=0, workers=0):
        ...     print(batch.sequences.lengths[batch.rows].tolist(), batch.targets[batch.rows].tolist())
        [2] [1]
        [1, 2] [0, 1]
        >>> folder.cleanup()
    """

    def __init__(
        self, path: str | os.PathLike[str], *, text: str = "text", label: str | None = "label",
        weight: str | None = None, format: str | None = None, kind: str = "text", delimiter: str | None = None,
    ) -> None:  # fmt: skip
        self.path, self.kind, self.label, self.weight = os.fspath(path), kind, label, weight
        self._rules: tuple[SplitRule, ...] = ()
        self._source = RowSource(self.path, kind, Files(path, Layout(text, label, weight, format, kind, delimiter)))
        self._prefetch: _Prefetch | None = None

    def split(self, share: float, seed: int) -> tuple[Stream, Stream]:
        """The rows to keep and those to hold out, about ``share`` of all, drawn for each row; nothing is read yet."""
        if not 0 < share < 1:
            raise ValueError(f"share: expected a number between 0 and 1 but got {shown(share)}")
        sides = []
        for held in (False, True):
            rule = SplitRule(seed, share, held)
            side = Stream.__new__(Stream)
            side.__dict__ |= self.__dict__ | {
                "_rules": (*self._rules, rule), "_source": self._source.side(rule), "_prefetch": None
            }  # fmt: skip
            sides.append(side)
        return sides[0], sides[1]

    def survey(self, encoder: Any = None) -> Survey:
        """One pass over the files, which also fits ``encoder``, if there is one, to the rows of this stream.

        The result is kept, as is the encoder as it was fitted. Both sides of a split are surveyed in the same pass.
        """
        return self._source.survey(encoder)

    def steps(self, batch_size: int) -> int:
        """Batches in an epoch."""
        return -(-self.survey().rows // batch_size)

    def epoch(
        self, encoder: Any, batch_size: int, seed: int, epoch: int, *, classes: np.ndarray | None = None,
        start_step: int = 0, rank: int = 0, world: int = 1, workers: int = 1, epochs: int | None = None,
    ) -> Iterator[PoolBatch]:  # fmt: skip
        """The batches of an epoch, every row once, in an order that depends on ``seed`` and ``epoch`` alone.

        Args:
            encoder: a fitted encoder.
            batch_size: rows in a batch; the last one may have fewer.
            seed, epoch: the numbers that the order is drawn from.
            classes: the labels, in the order of their numbers; None for those of the survey.
            start_step: the number of the first batch.
            rank, world: the number of this process, and how many there are. Each reads all rows and encodes its own.
            workers: processes that read and encode ahead, two pools at most (or one each); 0 for none.
            epochs: how many epochs there will be, so that workers can begin the next one; None for this one alone.
        """
        if classes is None:
            classes = labels.classes_of(list(self.survey().labels))
        last = max(epoch + 1, epochs or 0)
        pools = Pools(self._source, encoder, tuple(classes.tolist()), batch_size, seed, rank, world, last)
        first, skip = divmod(start_step, pools.steps)
        prefetch, self._prefetch = self._prefetch, None
        if prefetch is None or prefetch.pools != pools or prefetch.next != (epoch, first):
            prefetch = _Prefetch(pools, made_ahead(partial(pools.items, (epoch, first)), workers))
        for pool in islice(prefetch.items, pools.count - first):
            yield from pool.batches(skip)
            skip = 0
        if epoch + 1 < last:
            prefetch.next = (epoch + 1, 0)
            self._prefetch = prefetch

    def pieces(
        self, encoder: Any, rank: int = 0, world: int = 1, workers: int = 1, classes: np.ndarray | None = None
    ) -> Iterator[Piece]:
        """All rows once, in the order of the files, in pieces of 4096 texts or 1024 series.

        This process gets every ``world``-th piece. Without ``classes`` there are no targets. No survey is needed; after
        one, the pieces of other processes are not read.
        """
        pieces = Pieces(self._source, encoder, None if classes is None else tuple(classes.tolist()), rank, world)
        for first, arrays, targets, weights in made_ahead(pieces.items, workers):
            yield Piece(first, Ragged.from_arrays(arrays), tensor(targets), tensor(weights))

    def close(self) -> None:
        """Ends the workers that are ahead. They also end after the last epoch, and when the stream is deleted."""
        self._prefetch = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prefetch": None}

    def __repr__(self) -> str:
        sides = "".join(f", {'held out' if rule.held else 'kept'} at {rule.share:g}" for rule in self._rules)
        return f"Stream({self.path!r}{sides})"


@dataclass
class _Prefetch:
    """Pools that workers may be making ahead."""

    pools: Pools
    items: Iterator[Pool]
    next: tuple[int, int] = (-1, 0)  # epoch and number of the pool that comes next

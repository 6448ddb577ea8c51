"""Data larger than memory: labelled sequences in files, which are read and encoded while they are used.

One pass, the survey, cuts the files into blocks that can be read from anywhere. An epoch's order is a function of seed
and epoch alone: the blocks are shuffled, the rows that this puts end to end are cut into pools of some fifty batches,
and a pool is shuffled and sorted by length as data in memory are. Any step is reached by reading no more than its pool.
"""

from __future__ import annotations

import os
import pickle
import re
import sys
import threading
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import cycle, islice
from signal import SIG_IGN, SIGINT, signal
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .._terminal import MESSAGE, escaped, kind_of, shown
from ..ranks import Ranks
from . import labels
from .batches import _POOL, bucketed, generator_of
from .errors import DataError
from .leakage import Fingerprints, Sketch
from .ragged import Ragged
from .readers import Block, Content, Files, Layout, Table

__all__ = ["Part", "Piece", "Stream", "Survey"]

POOL_ROWS = 1 << 14
_POOL_VALUES = 1 << 24  # characters or numbers: of long sequences a pool holds fewer
# A fork has everything at once and needs no guarded __main__; what runs in a worker starts no threads of torch's.
_START = "fork" if sys.platform == "linux" else None
_PIECE_ROWS = {"text": 4096, "series": 1024}


@dataclass(frozen=True)
class Part:
    """What one process takes of a batch."""

    sequences: Ragged  # all that it takes of the pool
    targets: Tensor  # of these, int64
    weights: Tensor | None  # float32, as the file has them
    rows: Tensor  # which of these are its part of the batch
    count: int  # rows of the batch, over all processes


class Piece(NamedTuple):
    """Some rows in their order."""

    first: int  # the number of its first row in the stream
    sequences: Ragged
    targets: Tensor | None
    weights: Tensor | None


@dataclass
class Survey:
    """What a pass over the files found."""

    blocks: np.ndarray  # (count, 4) int64: the fields of each Block
    kept: np.ndarray  # (count,) int64: how many of its rows belong to the stream
    rows: int
    values: int  # characters of all texts, or numbers of all series
    labels: dict[Any, int]  # how often each occurs; 0 where only the other part of a split has it
    weights: dict[Any, float]  # what all rows of a label weigh
    sketch: Sketch
    files: list[tuple[str, int, int]]  # name, size in bytes and time of change in ns
    digest: str  # of texts or series, labels and weights; the same however they lie in files

    @property
    def seen(self) -> Fingerprints:
        """A sample of what was read, to find it again in other data."""
        return self.sketch.fingerprints()


class _Rule(NamedTuple):
    """Which part of a split is meant."""

    seed: int
    share: float
    held: bool


@dataclass
class _Shared:
    """What streams split from one another know of their files."""

    surveys: dict[tuple[_Rule, ...], Survey | None] = field(default_factory=dict)  # None: not looked through yet
    fitted: dict[tuple[tuple[_Rule, ...], str], str] = field(default_factory=dict)  # encoders as JSON


class Stream:
    """Labelled sequences that are read while they are used: for ``fit()`` and others, in the place of X and y.

    Memory is that of some pools of 16,384 rows, of one to two row groups for Parquet, and of 40 bytes for each block of
    256 rows. Files must not change meanwhile, which is looked after.

    Args:
        path: a file, or a folder of files of any formats and sizes (as in
            :func:`~seqcls_fast.toolkit.data.readers.read`). Labels are compared
            as they are read: CSV has text where JSON lines and Parquet may have numbers.
        text, label, weight, format, kind, delimiter: as in :func:`~seqcls_fast.toolkit.data.readers.read`.

    Example::

        >>> import pathlib, tempfile
        >>> from seqcls_fast.toolkit.data.stream import Stream
        >>> from seqcls_fast.toolkit.data.text import TextEncoder
        >>> folder = tempfile.TemporaryDirectory()
        >>> _ = pathlib.Path(folder.name, "a.csv").write_text("text,label\\ngood film,1\\nbad,0\\nso good,1\\n")
        >>> stream, encoder = Stream(folder.name), TextEncoder()
        >>> survey = stream.survey(encoder)
        >>> survey.rows, survey.labels, encoder.vocab_size
        (3, {'1': 2, '0': 1}, 6)
        >>> for part in stream.epoch(encoder, 2, seed=0, epoch=0, workers=0):
        ...     print(part.sequences.lengths[part.rows].tolist(), part.targets[part.rows].tolist())
        [2] [1]
        [1, 2] [0, 1]
        >>> folder.cleanup()
    """

    def __init__(
        self, path: str | os.PathLike[str], *, text: str = "text", label: str | None = "label",
        weight: str | None = None, format: str | None = None, kind: str = "text", delimiter: str | None = None,
    ) -> None:  # fmt: skip
        self.path, self.kind, self.label, self.weight = os.fspath(path), kind, label, weight
        self._files = Files(path, Layout(text, label, weight, format, kind, delimiter))
        self._rules: tuple[_Rule, ...] = ()
        self._shared = _Shared()
        self._run: _Run | None = None

    def split(self, share: float, seed: int) -> tuple[Stream, Stream]:
        """The rows to keep and those to hold out, about ``share`` of all, drawn for each row; nothing is read yet."""
        if not 0 < share < 1:
            raise ValueError(f"share: expected a number between 0 and 1 but got {shown(share)}")
        parts = []
        for held in (False, True):
            part = Stream.__new__(Stream)
            part.__dict__ |= self.__dict__ | {"_rules": (*self._rules, _Rule(seed, share, held)), "_run": None}
            self._shared.surveys.setdefault(part._rules)
            parts.append(part)
        return parts[0], parts[1]

    def survey(self, encoder: Any = None) -> Survey:
        """One pass over the files, which fits ``encoder``, if there is one, to the rows of this stream meanwhile.

        It is remembered, and so is what it taught an encoder of these settings; both parts of a split share a pass.
        """
        surveys, fitted, key = self._shared.surveys, self._shared.fitted, (self._rules, repr(encoder))
        known = surveys.get(self._rules)
        if known is None or (encoder is not None and key not in fitted):
            tallies = {rules: _Tally() for rules in {self._rules, *(r for r, found in surveys.items() if not found)}}
            before = dict(self._files.stamps)
            try:
                sequences = self._surveyed(tallies)
                if encoder is None:
                    deque(sequences, maxlen=0)
                else:
                    encoder.fit(sequences)
            except BaseException:
                if not surveys.get(self._rules):
                    self._files.stamps = before  # who mends a file may look through it again
                raise
            if encoder is not None:
                fitted[key] = encoder.to_json()
            known = surveys[self._rules]
        elif encoder is not None:
            vars(encoder).update(vars(type(encoder).from_json(fitted[key])))
        assert known is not None
        if not known.rows:
            part = " in each part of the split" if self._rules else ""
            raise DataError(f"{escaped(self.path)}: expected at least one example{part} but got none")
        return known

    def steps(self, batch_size: int) -> int:
        """Of every epoch."""
        return -(-self.survey().rows // batch_size)

    def epoch(
        self, encoder: Any, batch_size: int, seed: int, epoch: int, *, classes: np.ndarray | None = None,
        start_step: int = 0, rank: int = 0, world: int = 1, workers: int = 1, epochs: int | None = None,
    ) -> Iterator[Part]:  # fmt: skip
        """The batches of an epoch, every row once, in an order that depends on ``seed`` and ``epoch`` alone.

        Args:
            encoder: a fitted one.
            batch_size, seed, epoch: of which the order is a function.
            classes: the labels in the order of their numbers; None for those of the survey.
            start_step: the step to begin with.
            rank, world: which process of how many this is. All of them parse every row and encode their own.
            workers: processes that read and encode ahead, two pools at most (or one for each); 0 does so in between.
            epochs: how many epochs there will be, so that the workers go on with the next one; None for this one alone.
        """
        if classes is None:
            classes = labels.classes_of(list(self.survey().labels))
        last = max(epoch + 1, epochs or 0)
        source = _Pools(self, encoder, tuple(classes.tolist()), batch_size, seed, rank, world, last)
        pool, skip = divmod(start_step, source.steps)
        run, self._run = self._run, None
        if run is None or run.source != source or run.next != (epoch, pool):
            run = _Run(source, _ahead(partial(source.items, (epoch, pool)), workers))
        for item in islice(run.items, source.count - pool):
            yield from item.parts(skip)
            skip = 0
        if epoch + 1 < last:
            run.next = (epoch + 1, 0)
            self._run = run

    def pieces(
        self, encoder: Any, rank: int = 0, world: int = 1, workers: int = 1, classes: np.ndarray | None = None
    ) -> Iterator[Piece]:
        """All rows once, in the order of the files, in pieces of 4096 texts or 1024 series.

        Every ``world``-th piece is this process's. Without ``classes`` there are no targets. No survey is needed; after
        one, other processes' pieces are passed over unread.
        """
        source = _Pieces(self, encoder, None if classes is None else tuple(classes.tolist()), rank, world)
        for first, values, lengths, targets, weights in _ahead(source.items, workers):
            yield Piece(first, _ragged(values, lengths), _tensor(targets), _tensor(weights))

    def close(self) -> None:
        """Ends workers that wait for a next epoch; they end by themselves with the last one, and with the stream."""
        self._run = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_run": None}

    def __repr__(self) -> str:
        part = "".join(f", {'held out' if rule.held else 'kept'} at {rule.share:g}" for rule in self._rules)
        return f"Stream({self.path!r}{part})"

    # -- the survey ---------------------------------------------------------------------------------------------------

    def _surveyed(self, tallies: dict[tuple[_Rule, ...], _Tally]) -> Iterator[Any]:
        """This stream's sequences, while all tallies are made; the surveys follow when there are no more."""
        blocks, all_labels = array("q"), dict[Any, None]()
        features = None
        for number, (block, content) in enumerate(self._files.blocks()):
            blocks.extend(block)
            masks = {rules: _mask(rules, number, block.rows) for rules in tallies}
            for rules, mask in masks.items():
                tallies[rules].kept.append(block.rows if mask is None else int(mask.sum()))
            for start in range(0, block.rows, _PIECE_ROWS[self.kind]):
                rows = range(start, min(block.rows, start + _PIECE_ROWS[self.kind]))
                table = content.take(rows)
                all_labels.update(dict.fromkeys(table.labels or []))
                if self.kind == "series":
                    features = self._check_features(table, features, block)
                for rules, mask in masks.items():
                    part = table if mask is None else table.take(np.flatnonzero(mask[rows.start : rows.stop]).tolist())
                    tallies[rules].add(part)
                    if rules == self._rules:
                        yield from part.texts_or_series
        self._check_labels(all_labels)
        self._end_survey(tallies, np.array(blocks, np.int64).reshape(-1, len(Block._fields)), list(all_labels))

    def _end_survey(self, tallies: dict[tuple[_Rule, ...], _Tally], blocks: np.ndarray, all_labels: list[Any]) -> None:
        root = self.path if os.path.isdir(self.path) else os.path.dirname(self.path)
        files = [
            (os.path.relpath(path, root or "."), *self._files.stamps[k]) for k, path in enumerate(self._files.paths)
        ]
        for rules, tally in tallies.items():
            self._shared.surveys[rules] = Survey(
                blocks, np.array(tally.kept, np.int64), tally.rows, tally.values,
                {label: tally.labels[label] for label in all_labels},
                {label: tally.weights.get(label, 0.0) for label in all_labels},
                tally.sketch, files, tally.digest(),
            )  # fmt: skip

    def _check_labels(self, found: dict[Any, None]) -> None:
        texts = {label for label in found if isinstance(label, str)}
        for label in found:
            if not isinstance(label, str) and str(label) in texts:
                both = f"both {shown(label)} and {shown(str(label))}"
                raise DataError(f"{escaped(self.path)}: expected labels of one kind but got {both}")

    def _check_features(self, table: Table, features: int | None, block: Block) -> int | None:
        for series in table.texts_or_series:
            if series.shape == (0, 1):
                continue  # an empty list has any number of features
            features = features or series.shape[1]
            if series.shape[1] != features:
                file = escaped(self._files.paths[block.file])
                raise DataError(
                    f"{file}: expected series of {features} features, as the first one has, "
                    f"but got one of {series.shape[1]} in the {block.rows} from {block.line} on"
                )
        return features

    # -- reading ------------------------------------------------------------------------------------------------------

    def _rows(self, number: int, count: int) -> Sequence[int]:
        """Of a block, those that are the stream's."""
        mask = _mask(self._rules, number, count)
        return range(count) if mask is None else np.flatnonzero(mask).tolist()

    def _taken(self, number: int, start: int, stop: int, *key: int) -> Table:
        """Some of the stream's rows of a block, in a shuffled order if they are not all of them."""
        block = Block(*self.survey().blocks[number].tolist())
        rows = self._rows(number, block.rows)
        if (start, stop) != (0, len(rows)):
            order = torch.randperm(len(rows), generator=generator_of("rows", *key, number))[start:stop].tolist()
            rows = [rows[i] for i in order]
        return self._files.content(block).take(rows)

    def _contents(self) -> Iterator[tuple[int, Sequence[int], Callable[[], Content]]]:
        """The number, rows and content of each block, in order."""
        survey = self._shared.surveys.get(self._rules)
        if survey is None:
            for number, (block, content) in enumerate(self._files.blocks()):
                yield number, self._rows(number, block.rows), lambda content=content: content  # type: ignore[misc]
        else:
            for number, fields in enumerate(survey.blocks.tolist()):
                block = Block(*fields)
                yield number, self._rows(number, block.rows), partial(self._files.content, block)


class _Tally:
    """What the survey finds of one stream, out of tables of any sizes."""

    def __init__(self) -> None:
        self.kept = array("q")
        self.rows, self.values = 0, 0
        self.labels: Counter[Any] = Counter()
        self.weights: dict[Any, float] = {}
        self.sketch = Sketch()
        self._digests = [blake2b(digest_size=16) for _ in range(4)]  # of lengths, contents, labels and weights

    def add(self, table: Table) -> None:
        sequences, lengths, contents = table.texts_or_series, array("q"), b""
        if sequences and isinstance(sequences[0], str):
            lengths.extend(map(len, sequences))
            self.values += sum(lengths)
            contents = "".join(sequences).encode()
        elif sequences:
            lengths.extend(size for series in sequences for size in (series.shape if series.size else (0, 1)))
            self.values += sum(series.size for series in sequences)
            contents = b"".join(np.ascontiguousarray(series).tobytes() for series in sequences)
        parts = [lengths.tobytes(), contents, b"", b""]
        if table.labels is not None:
            self.labels.update(table.labels)
            parts[2] = "".join(f"{label!r}\n" for label in table.labels).encode()
            weights = table.weights if table.weights is not None else [1.0] * len(table)
            for label, weight in zip(table.labels, weights, strict=True):
                self.weights[label] = self.weights.get(label, 0.0) + weight
        if table.weights is not None:
            parts[3] = array("d", table.weights).tobytes()
        for digest, part in zip(self._digests, parts, strict=True):
            digest.update(part)
        self.rows += len(table)
        self.sketch.add(sequences)

    def digest(self) -> str:
        return blake2b(b"".join(digest.digest() for digest in self._digests), digest_size=16).hexdigest()


def _mask(rules: tuple[_Rule, ...], block: int, rows: int) -> np.ndarray | None:
    """Which rows of a block are a stream's; None for all."""
    mask = None
    for depth, (seed, share, held) in enumerate(rules):
        drawn = torch.rand(rows, dtype=torch.float64, generator=generator_of("split", seed, depth, block))
        these = (drawn < share).numpy() == held
        mask = these if mask is None else mask & these
    return mask


# -- what is made of the rows, here or in a worker: arrays of numpy, which travel by value and not in shared memory ---


class _Pool(NamedTuple):
    """What one process takes of a pool, batch after batch."""

    values: np.ndarray
    lengths: np.ndarray
    targets: Any  # there are labels
    weights: np.ndarray | None
    sizes: list[int]  # of its part of each batch
    counts: list[int]  # of the batches

    def parts(self, skip: int) -> Iterator[Part]:
        sequences, weights = _ragged(self.values, self.lengths), _tensor(self.weights)
        targets = torch.from_numpy(self.targets)
        rows = torch.arange(len(sequences)).split(self.sizes)
        for mine, count in zip(rows[skip:], self.counts[skip:], strict=True):
            yield Part(sequences, targets, weights, mine, count)


@dataclass(frozen=True)
class _Pools:
    """All pools of epochs to come."""

    stream: Stream
    encoder: Any
    classes: tuple[Any, ...]
    batch_size: int
    seed: int
    rank: int
    world: int
    epochs: int

    @property
    def steps(self) -> int:
        """Of a pool."""
        survey = self.stream.survey()
        wanted = _POOL * max(1, POOL_ROWS // (_POOL * self.batch_size))
        return max(1, min(wanted, _POOL_VALUES * survey.rows // (self.batch_size * max(1, survey.values))))

    @property
    def count(self) -> int:
        """Of an epoch's pools."""
        return -(-self.stream.steps(self.batch_size) // self.steps)

    def items(self, start: tuple[int, int], worker: int, workers: int) -> Iterator[_Pool]:
        first, pool = start
        turns = cycle(range(workers))
        for epoch in range(first, self.epochs):
            order = self._order(epoch)
            for number in range(pool, self.count):
                if next(turns) == worker:
                    yield self._made(order, epoch, number)
            pool = 0

    def _order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The blocks of an epoch, and where each ends in its rows."""
        kept = self.stream.survey().kept
        order = torch.randperm(len(kept), generator=generator_of("blocks", self.seed, epoch)).numpy()
        return order, kept[order].cumsum()

    def _made(self, order: tuple[np.ndarray, np.ndarray], epoch: int, pool: int) -> _Pool:
        table = self._table(order, epoch, pool)
        lengths = torch.tensor(_lengths(table.texts_or_series, self.encoder))
        batches = bucketed(lengths, self.batch_size, generator_of("pool", self.seed, epoch, pool))
        mine = [Ranks(self.rank, self.world).share(rows) for rows in batches]
        table = table.take(torch.cat(mine).tolist())
        return _Pool(
            *_encoded(self.stream, self.encoder, self.classes, table, 0),
            [len(rows) for rows in mine], [len(rows) for rows in batches],
        )  # fmt: skip

    def _table(self, order: tuple[np.ndarray, np.ndarray], epoch: int, pool: int) -> Table:
        numbers, ends = order
        first, stop = (self.steps * self.batch_size * k for k in (pool, pool + 1))
        stop = min(stop, self.stream.survey().rows)
        tables = []
        at = int(np.searchsorted(ends, first, side="right"))
        while first < stop:
            number, end = int(numbers[at]), int(ends[at])
            start = end - int(self.stream.survey().kept[number])
            if end > start:
                tables.append(self.stream._taken(number, first - start, min(stop, end) - start, self.seed, epoch))
            first, at = end, at + 1
        return _joined(tables)


@dataclass(frozen=True)
class _Pieces:
    stream: Stream
    encoder: Any
    classes: tuple[Any, ...] | None
    rank: int
    world: int

    def items(self, worker: int, workers: int) -> Iterator[tuple[Any, ...]]:
        """Those of a worker: of the process's pieces, every ``workers``-th."""
        size, start = _PIECE_ROWS[self.stream.kind], 0
        tables: list[Table] = []
        for _, rows, content in self.stream._contents():
            stop = start + len(rows)
            while start < stop:
                number, end = start // size, min(stop, (start // size + 1) * size)
                if number % self.world == self.rank and number // self.world % workers == worker:
                    there = len(rows) - (stop - start)
                    tables.append(content().take(rows[there : there + end - start]))
                    if end % size == 0:
                        yield self._made(number * size, tables)
                        tables = []
                start = end
        if tables:
            yield self._made(start // size * size, tables)

    def _made(self, first: int, tables: list[Table]) -> tuple[Any, ...]:
        return first, *_encoded(self.stream, self.encoder, self.classes, _joined(tables), first)


def _lengths(sequences: list[Any], encoder: Any) -> list[int]:
    """How long they will be once they are encoded, as far as that can be told without doing so."""
    if getattr(encoder, "kind", None) == "word":
        lengths = [_words(text) for text in sequences]
    else:
        lengths = list(map(len, sequences))
    most = getattr(encoder, "max_length", None)
    return lengths if most is None else [min(length, most) for length in lengths]


def _words(text: str) -> int:
    """About how many there are: by what parts them; where nothing does, a character has two bytes more than one."""
    count = text.count(" ") + text.count(",") + text.count(".")
    return count if text.isascii() else count + (len(text.encode()) - len(text)) // 2


def _encoded(
    stream: Stream, encoder: Any, classes: tuple[Any, ...] | None, table: Table, first: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Values, lengths, targets and weights."""
    try:
        sequences = encoder.encode(table.texts_or_series)
    except ValueError as error:  # which numbers the rows of this table
        said = re.sub(r"\[([0-9]{1,18})\]", lambda found: f"[{first + int(found[1])}]", str(error), count=1)
        raise DataError(f"{escaped(stream.path)}: {said}") from None
    targets = None
    if classes is not None and table.labels is not None:
        targets = labels.to_targets(table.labels, labels.as_array(classes), escaped(stream.path)).numpy()
    return (
        sequences.values.numpy(),
        sequences.lengths.numpy(),
        targets,
        None if table.weights is None else np.array(table.weights, np.float32),
    )


def _ragged(values: np.ndarray, lengths: np.ndarray) -> Ragged:
    return Ragged(torch.from_numpy(values), torch.from_numpy(lengths))


def _tensor(values: np.ndarray | None) -> Tensor | None:
    return None if values is None else torch.from_numpy(values)


def _joined(tables: list[Table]) -> Table:
    def joined(columns: list[list[Any] | None]) -> list[Any] | None:
        return None if columns[0] is None else [value for column in columns if column for value in column]

    return Table(
        joined([table.texts_or_series for table in tables]) or [],
        joined([table.labels for table in tables]), joined([table.weights for table in tables]),
    )  # fmt: skip


# -- workers ----------------------------------------------------------------------------------------------------------


@dataclass
class _Run:
    """Pools that workers may be making ahead, and the one that comes next."""

    source: _Pools
    items: Iterator[_Pool]
    next: tuple[int, int] = (-1, 0)


def _ahead(items: Callable[[int, int], Iterator[Any]], workers: int) -> Iterator[Any]:
    """The items in order, made here or by processes that are two items ahead, or one each."""
    if not workers:
        yield from items(0, 1)
        return
    loader: DataLoader[Any] = DataLoader(
        _Items(items), batch_size=None, num_workers=workers, prefetch_factor=max(1, 2 // workers),
        collate_fn=_unchanged, worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # else it would use up a number of torch's own
        multiprocessing_context=_START,
    )  # fmt: skip
    for item in loader:
        if isinstance(item, Exception):
            raise item
        yield item


class _Items(IterableDataset[Any]):
    """One worker's. What goes wrong is an item too: the loader would wrap it in the text of a traceback."""

    def __init__(self, items: Callable[[int, int], Iterator[Any]]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        assert info is not None
        try:
            yield from self.items(info.id, info.num_workers)
        except Exception as error:
            try:
                pickle.loads(pickle.dumps(error))
            except Exception:
                error = RuntimeError(f"{kind_of(error)}: {escaped(error, MESSAGE)}")
            yield error


def _unchanged(item: Any) -> Any:
    return item


def _begin_worker(_: int) -> None:
    """An interrupt is for the process that is waited for; whose death ends the worker, whatever it is doing."""
    signal(SIGINT, SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)

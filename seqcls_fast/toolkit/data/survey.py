"""The survey: one pass over a stream's files, which finds their blocks, counts their rows and fits the encoder.

Whether a row is on one side of a train/held-out split is drawn from the split's seed and the number of the row's block.
So both sides are surveyed in one pass, and later any block can be read by itself.
"""

from __future__ import annotations

import os
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch

from .._terminal import escaped, shown
from .batches import generator_of
from .errors import DataError
from .leakage import Fingerprints, Sketch
from .readers import Files
from .records import Block, Content, Table

__all__ = ["PIECE_ROWS", "RowSource", "SplitRule", "Survey"]

PIECE_ROWS = {"text": 4096, "series": 1024}  # rows in memory at once when all are read in order


@dataclass
class Survey:
    """The result of the pass over the files, for the rows of one stream."""

    blocks: np.ndarray  # (count, 4) int64: the fields of each Block
    kept: np.ndarray  # (count,) int64: how many of a block's rows belong to the stream
    rows: int
    values: int  # characters of all texts, or numbers of all series
    labels: dict[Any, int]  # how often each occurs; 0 if only the other side of a split has it
    weights: dict[Any, float]  # by label, the sum of the weights of its rows
    sketch: Sketch
    files: list[tuple[str, int, int]]  # name, size in bytes and time of change in ns
    digest: str  # hash of texts or series, labels and weights; the same however they are spread over files

    @property
    def seen(self) -> Fingerprints:
        """Fingerprints of a sample of the rows, by which they are recognised in other data."""
        return self.sketch.fingerprints()


class SplitRule(NamedTuple):
    """One side of a train/held-out split."""

    seed: int
    share: float  # of the rows that is held out
    held: bool  # whether this is the side that is held out


Rules = tuple[SplitRule, ...]


@dataclass
class _Shared:
    """The surveys and fitted encoders of all streams that were split from one another."""

    surveys: dict[Rules, Survey | None] = field(default_factory=dict)  # None until the next pass
    fitted: dict[tuple[Rules, str], dict[str, Any]] = field(default_factory=dict)  # of encoders, by rules and settings


class RowSource:
    """The rows that a stream reads: all rows of some files, or one side of a split of them, given by ``rules``."""

    def __init__(self, path: str, kind: str, files: Files) -> None:
        self.path, self.kind, self.files = path, kind, files
        self._rules: Rules = ()
        self._shared = _Shared()

    def side(self, rule: SplitRule) -> RowSource:
        """The rows on one side of a split. Nothing is read; both sides are surveyed by the next pass."""
        side = RowSource(self.path, self.kind, self.files)
        side._rules, side._shared = (*self._rules, rule), self._shared
        self._shared.surveys.setdefault(side._rules)
        return side

    def survey(self, encoder: Any = None) -> Survey:
        """The survey; also fits the encoder. Files are read only if this survey or this fit is not known yet."""
        surveys, fitted, key = self._shared.surveys, self._shared.fitted, (self._rules, repr(encoder))
        known = surveys.get(self._rules)
        if known is None or (encoder is not None and key not in fitted):
            tallies = {rules: _Tally() for rules in {self._rules, *(r for r, found in surveys.items() if not found)}}
            before = dict(self.files.stamps)
            try:
                sequences = self._sequences(tallies)
                if encoder is None:
                    deque(sequences, maxlen=0)
                else:
                    encoder.fit(sequences)
            except BaseException:
                if not surveys.get(self._rules):
                    self.files.stamps = before  # so that a file which is mended after an error can be read again
                raise
            if encoder is not None:
                fitted[key] = dict(vars(encoder))
            known = surveys[self._rules]
        elif encoder is not None:
            vars(encoder).update(fitted[key])
        assert known is not None
        if not known.rows:
            side = " on each side of the split" if self._rules else ""
            raise DataError(f"{escaped(self.path)}: expected at least one example{side} but got none")
        return known

    def take(self, number: int, start: int, stop: int, *key: int) -> Table:
        """The rows of a block from ``start`` to ``stop``; shuffled, by a seed made of ``key``, if they are not all."""
        block = Block(*self.survey().blocks[number].tolist())
        rows = self._rows(number, block.rows)
        if (start, stop) != (0, len(rows)):
            order = torch.randperm(len(rows), generator=generator_of("rows", *key, number))[start:stop].tolist()
            rows = [rows[i] for i in order]
        return self.files.content(block).take(rows)

    def contents(self) -> Iterator[tuple[Sequence[int], Callable[[], Content]]]:
        """For each block in order: which of its rows belong to the stream, and a function that reads it.

        Without a survey the files are read from their start, and every block with them.
        """
        survey = self._shared.surveys.get(self._rules)
        if survey is None:
            for number, (block, content) in enumerate(self.files.blocks()):
                yield self._rows(number, block.rows), lambda content=content: content  # type: ignore[misc]
        else:
            for number, fields in enumerate(survey.blocks.tolist()):
                block = Block(*fields)
                yield self._rows(number, block.rows), partial(self.files.content, block)

    def _rows(self, number: int, count: int) -> Sequence[int]:
        """Which of the ``count`` rows of a block belong to the stream."""
        mask = _mask(self._rules, number, count)
        return range(count) if mask is None else np.flatnonzero(mask).tolist()

    def _sequences(self, tallies: dict[Rules, _Tally]) -> Iterator[Any]:
        """The sequences of this stream. When all have been read, the surveys of all tallies are complete."""
        blocks, all_labels = array("q"), dict[Any, None]()
        features = None
        for number, (block, content) in enumerate(self.files.blocks()):
            blocks.extend(block)
            masks = {rules: _mask(rules, number, block.rows) for rules in tallies}
            for rules, mask in masks.items():
                tallies[rules].kept.append(block.rows if mask is None else int(mask.sum()))
            for start in range(0, block.rows, PIECE_ROWS[self.kind]):
                rows = range(start, min(block.rows, start + PIECE_ROWS[self.kind]))
                table = content.take(rows)
                all_labels.update(dict.fromkeys(table.labels or []))
                if self.kind == "series":
                    features = self._check_features(table, features, block)
                for rules, mask in masks.items():
                    side = table if mask is None else table.take(np.flatnonzero(mask[rows.start : rows.stop]).tolist())
                    tallies[rules].add(side)
                    if rules == self._rules:
                        yield from side.texts_or_series
        self._check_labels(all_labels)
        self._finish(tallies, np.array(blocks, np.int64).reshape(-1, len(Block._fields)), list(all_labels))

    def _finish(self, tallies: dict[Rules, _Tally], blocks: np.ndarray, all_labels: list[Any]) -> None:
        """Makes each tally a survey."""
        root = self.path if os.path.isdir(self.path) else os.path.dirname(self.path)
        files = [(os.path.relpath(path, root or "."), *self.files.stamps[k]) for k, path in enumerate(self.files.paths)]
        for rules, tally in tallies.items():
            self._shared.surveys[rules] = Survey(
                blocks, np.array(tally.kept, np.int64), tally.rows, tally.values,
                {label: tally.labels[label] for label in all_labels},
                {label: tally.weights.get(label, 0.0) for label in all_labels},
                tally.sketch, files, tally.digest(),
            )  # fmt: skip

    def _check_labels(self, found: dict[Any, None]) -> None:
        """Refuses the label 1 beside the label "1": one file has numbers where another has text."""
        texts = {label for label in found if isinstance(label, str)}
        for label in found:
            if not isinstance(label, str) and str(label) in texts:
                both = f"both {shown(label)} and {shown(str(label))}"
                raise DataError(f"{escaped(self.path)}: expected labels of one kind but got {both}")

    def _check_features(self, table: Table, features: int | None, block: Block) -> int | None:
        """The number of features, which all series must share."""
        for series in table.texts_or_series:
            if series.shape == (0, 1):
                continue  # an empty list fits any number of features
            features = features or series.shape[1]
            if series.shape[1] != features:
                file = escaped(self.files.paths[block.file])
                raise DataError(
                    f"{file}: expected series of {features} features, as the first one has, "
                    f"but got one of {series.shape[1]} among the {block.rows} from {self.files.place(block)} on"
                )
        return features


class _Tally:
    """The survey of one stream while it is made. It does not depend on how the rows are grouped into tables."""

    def __init__(self) -> None:
        self.kept = array("q")
        self.rows, self.values = 0, 0
        self.labels: Counter[Any] = Counter()
        self.weights: dict[Any, float] = {}
        self.sketch = Sketch()
        self._hashes = [blake2b(digest_size=16) for _ in range(4)]  # of lengths, contents, labels and weights

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
        hashed = [lengths.tobytes(), contents, b"", b""]
        if table.labels is not None:
            self.labels.update(table.labels)
            hashed[2] = "".join(f"{label!r}\n" for label in table.labels).encode()
            weights = table.weights if table.weights is not None else [1.0] * len(table)
            for label, weight in zip(table.labels, weights, strict=True):
                self.weights[label] = self.weights.get(label, 0.0) + weight
        if table.weights is not None:
            hashed[3] = array("d", table.weights).tobytes()
        for each, data in zip(self._hashes, hashed, strict=True):
            each.update(data)
        self.rows += len(table)
        self.sketch.add(sequences)

    def digest(self) -> str:
        return blake2b(b"".join(each.digest() for each in self._hashes), digest_size=16).hexdigest()


def _mask(rules: Rules, block: int, rows: int) -> np.ndarray | None:
    """Which rows of a block are on the side that the rules name; None for all."""
    mask = None
    for depth, (seed, share, held) in enumerate(rules):
        drawn = torch.rand(rows, dtype=torch.float64, generator=generator_of("split", seed, depth, block))
        chosen = (drawn < share).numpy() == held
        mask = chosen if mask is None else mask & chosen
    return mask

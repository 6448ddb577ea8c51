"""What `make fuzz-files` does with the bytes of a file: a target for each kind of file that the library reads.

A target does what a user would do with such a file. Any bytes must lead to a result, or to an exception of the
documented type whose message is a short printable sentence. Everything else is a Fault, or another exception.

A model's folder is one input: a line `==== NAME` begins each of its files. So that a changed input is not refused for
its checksum alone, checksums and the length of the weights' header are put in by the target (see `_whole`).
"""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import seqcls_fast as sf
from seqcls_fast.cli import options
from seqcls_fast.cli.shared import UsageError
from seqcls_fast.toolkit import estimators, store
from seqcls_fast.toolkit.data.errors import DataError, seal
from seqcls_fast.toolkit.data.readers import Files
from seqcls_fast.toolkit.data.records import Layout
from seqcls_fast.toolkit.data.series import SeriesEncoder
from seqcls_fast.toolkit.data.text import TextEncoder
from seqcls_fast.toolkit.training.checkpoint import CheckpointError, Checkpoints
from seqcls_fast.toolkit.training.loop import TrainingError
from seqcls_fast.toolkit.training.resume import check_content
from support.corpora import sentences
from support.interruptions import small
from support.memory import most_memory
from support.nonsense import PYTHONS

SECONDS, BYTES = 5, 1 << 28  # the most that one input may take: time of the CPU, and growth of memory
FILE = b"==== "
TEXTS = ["a good film", "", "bad, bad", "\u4e2d\u6587 ol\u00e9"]
DATA = sentences(0, 60)


class Fault(AssertionError):
    """What a file must not lead to."""


@contextmanager
def refusal(*kinds: type[Exception]) -> Iterator[None]:
    """Lets exceptions of these types pass, if they say what is wrong in one sentence."""
    try:
        yield
    except kinds as error:
        words = str(error)
        says = "expected" in words or isinstance(error, TrainingError)
        if not says or not words.isprintable() or len(words) >= 2000 or PYTHONS.search(words):
            raise Fault(f"no sentence: {type(error).__name__}: {words[:500]!r}") from error


@contextmanager
def bounded() -> Iterator[None]:
    """A Fault if what is done inside takes too much time or memory."""
    most, start = most_memory(), time.process_time()
    yield
    if (took := time.process_time() - start) > SECONDS:
        raise Fault(f"it took {took:.1f} s")
    if (grown := most_memory() - most) > BYTES:
        raise Fault(f"it took {grown >> 20} MB")


def run(name: str, data: bytes) -> None:
    """Gives the bytes to a target. Raises a Fault or another exception if the target's promise is broken."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, warnings.catch_warnings(), bounded():
        warnings.simplefilter("ignore")
        TARGETS[name](data, Path(folder))


# ---- Files of data


def _reads(*layouts: Layout) -> Callable[[bytes, Path], None]:
    """Reads a file with each of the layouts, as a whole and in blocks."""

    def target(data: bytes, folder: Path) -> None:
        for layout in layouts:
            path = folder / f"data.{layout.format}"
            path.write_bytes(data)
            _read(path, layout)

    return target


def _read(path: Path, layout: Layout) -> None:
    whole = blocks = None
    with refusal(DataError):
        files = Files(path, layout)
        whole = [[record[name] for name in layout.wanted] for record in files.records(0)]
    if layout.format != "ts":
        with refusal(DataError):
            blocks = [row for _, content in files.blocks() for row in _rows(content, layout)]
        if layout.format == "parquet" and whole is None:
            return  # a column that only the whole reads, since it is not wanted, may hold what Python cannot
        if (whole is None) != (blocks is None):
            raise Fault(f"refused {'as a whole' if whole is None else 'in blocks'} alone")
        if whole is not None and not _equal(whole, blocks):
            raise Fault(f"{shortened(whole)} as a whole but {shortened(blocks)} in blocks")
        if blocks:  # and each block by itself
            again = [row for block, _ in list(files.blocks()) for row in _rows(files.content(block), layout)]
            if not _equal(whole, again):
                raise Fault(f"{shortened(whole)} as a whole but {shortened(again)} from single blocks")
    if whole:
        with refusal(ValueError):
            _encode([row[0] for row in whole[:50]], layout.kind)


def _rows(content: Any, layout: Layout) -> Iterator[list[Any]]:
    table = content.take(range(len(content)))
    columns = [table.texts_or_series]
    columns += [table.labels] if layout.label is not None else []
    columns += [table.weights] if layout.weight is not None else []
    for row in zip(*columns, strict=True):
        yield list(row)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, np.ndarray):
        if not len(one) and not len(other):
            return True  # an empty series fits any number of features
        return one.shape == other.shape and np.array_equal(one, other, equal_nan=True)
    return type(one) is type(other) and one == other


def shortened(value: Any) -> str:
    return repr(value)[:300]


def _encode(sequences: list[Any], kind: str) -> None:
    if kind == "series":
        SeriesEncoder(missing="mask").fit(sequences).encode(sequences)
        return
    texts = [text[:500] for text in sequences]
    TextEncoder("bpe" if len(texts) % 2 else "word", max_vocab=300).fit(texts).encode(texts)


# ---- Saved models


def _encoder(data: bytes, folder: Path) -> None:
    """The JSON of an encoder. Content without a checksum gets one, as a forger would write it."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        content = None
    text = data.decode(errors="replace")
    if isinstance(content, dict) and "sha256" not in content:
        text = _sealed(content)
    for kind in (TextEncoder, SeriesEncoder):
        with refusal(ValueError):
            encoder = kind.from_json(text)
            again = kind.from_json(encoder.to_json())
            inputs = TEXTS if kind is TextEncoder else [np.zeros((3, encoder.features_in))]
            one, other = (each.encode(inputs) for each in (encoder, again))
            if not one.values.equal(other.values) or not one.lengths.equal(other.lengths):
                raise Fault("an encoder that differs when it is saved and read again")


def _sealed(content: dict[str, Any]) -> str:
    fields = {name: each for name, each in content.items() if name not in ("kind", "version")}
    kind = content.get("kind")
    return seal(kind, fields) if _finite(content) and isinstance(kind, str) else json.dumps(content)


def _finite(content: Any) -> bool:
    try:
        json.dumps(content, allow_nan=False)
    except (ValueError, RecursionError):
        return False
    return True


def parts_of(data: bytes) -> dict[str, bytes]:
    """The files of an input, by name; only names that a model's folder can have."""
    known = {name.encode(): name for name in (store.CONFIG, store.WEIGHTS, *store.EXTRA)}
    found = {}
    for part in (b"\n" + data).split(b"\n" + FILE)[1:]:
        name, _, content = part.partition(b"\n")
        if name in known:
            found[known[name]] = content
    return found


def joined(parts: dict[str, bytes]) -> bytes:
    return b"\n".join(FILE + name.encode() + b"\n" + content for name, content in parts.items())


def _whole(weights: bytes) -> bytes:
    """Weights whose header is written as a line of JSON, without its length in front."""
    header, newline, values = weights.partition(b"\n")
    return struct.pack("<Q", len(header)) + header + values if newline and weights[:1] == b"{" else weights


def _forged(config: bytes, weights: bytes) -> bytes:
    config = config.replace(b'"sha256": "?"', b'"sha256": "%b"' % hashlib.sha256(weights).hexdigest().encode())
    try:
        content = json.loads(config)
    except (ValueError, RecursionError):
        return config
    if isinstance(content, dict) and isinstance(content.get("encoder"), dict):
        content["encoder"] = _sealed(content["encoder"])
        return json.dumps(content).encode()
    return config


def _store(data: bytes, folder: Path) -> None:
    """A saved model: it is loaded, used, saved, and loaded again."""
    parts = parts_of(data)
    if store.WEIGHTS in parts:
        parts[store.WEIGHTS] = _whole(parts[store.WEIGHTS])
    if store.CONFIG in parts:
        parts[store.CONFIG] = _forged(parts[store.CONFIG], parts.get(store.WEIGHTS, b""))
    model = folder / "model"
    model.mkdir()
    for name, content in parts.items():
        (model / name).write_bytes(content)
    series = b'"kind": "series"' in parts.get(store.CONFIG, b"")
    kind: Any = sf.SeriesClassifier if series else sf.TextClassifier
    with refusal(store.StoreError, FileNotFoundError):
        loaded = kind.load(model)
    if "loaded" not in locals():
        return
    inputs = [np.zeros((3, loaded.encoder_.features_in))] if series else TEXTS
    expected = None
    with refusal(ValueError):  # values near the largest float may overflow in the model
        expected = loaded.predict_proba(inputs)
        loaded.predict(inputs)
    loaded.save(folder / "again")
    again = kind.load(folder / "again")
    if expected is not None and not np.array_equal(expected, again.predict_proba(inputs), equal_nan=True):
        raise Fault("a model that differs when it is saved and loaded again")


def _checkpoint(data: bytes, folder: Path) -> None:
    """A checkpoint: training resumes from it, for the one epoch that is left."""
    weights = _whole(_with_text(data))
    name = f"checkpoint-00000001-{hashlib.sha256(weights).hexdigest()[:16]}.safetensors"
    (folder / name).write_bytes(weights)
    fine = False
    with refusal(CheckpointError):
        fine = Checkpoints(folder, 0).newest(check_content) is not None
    if fine:
        with refusal(CheckpointError, TrainingError):
            small(folder, on_nan="restore", epochs=2).fit(*DATA, validation=0.3, resume=True)


def _with_text(data: bytes) -> bytes:
    """The header's text about the state may be written as JSON inside JSON, which is easier to read and to change."""
    header, newline, values = data.partition(b"\n")
    try:
        content = json.loads(header)
        state = content["__metadata__"]["checkpoint"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return data
    if isinstance(state, dict):
        content["__metadata__"]["checkpoint"] = json.dumps(state)
    return json.dumps(content).encode() + newline + values


def _options(data: bytes, folder: Path) -> None:
    """The file of `train --config`."""
    (folder / "options.json").write_bytes(data)
    with refusal(ValueError, TypeError, UsageError):
        chosen = options.from_file(folder / "options.json")
        chosen.to_json()
        chosen.command_line("out")
        estimator = getattr(estimators, options.ESTIMATORS[chosen.kind])(**chosen.parameters)
        estimator._check_parameters()


TARGETS: dict[str, Callable[[bytes, Path], None]] = {
    "csv": _reads(
        Layout(format="csv"),
        Layout(format="csv", label=None, delimiter=";"),
        Layout(format="tsv", weight="weight"),
    ),
    "jsonl": _reads(Layout(format="jsonl", weight="weight"), Layout(format="jsonl", kind="series")),
    "ts": _reads(Layout(format="ts", kind="series"), Layout(format="ts", kind="series", label=None)),
    "parquet": _reads(
        Layout(format="parquet"),
        Layout(format="parquet", kind="series"),
        Layout(format="parquet", label=None, weight="weight"),
    ),
    "encoder": _encoder,
    "store": _store,
    "checkpoint": _checkpoint,
    "options": _options,
}

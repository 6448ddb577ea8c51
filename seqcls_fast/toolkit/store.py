"""A trained model as a folder: weights as safetensors, the rest as JSON, a model card for people.

A folder is written whole or not at all, and loading runs no code from it. A folder may come from a stranger, so all of
it is checked: config.json against a description, then the names and shapes in the weights' header against those that
config.json asks for, and only then is memory taken for the weights. Files that a command adds (how the model was
trained, a search's table) are kept by load() and save().
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .._files import found, make_folder, open_regular, put_in_place, unfinished, write_through
from ._extras import need
from ._terminal import escaped, shown
from .schema import Check, anything, counts, flag, listed, loads, mapping, number, optional, plain, record, text, whole

__all__ = [
    "COMMAND",
    "CONFIG",
    "SEARCH",
    "WEIGHTS",
    "Saved",
    "StoreError",
    "check_history",
    "check_target",
    "load_extra",
    "load_folder",
    "opened",
    "save_folder",
]

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
COMMAND, SEARCH = "command.json", "search.json"  # added by the command line
EXTRA = (COMMAND, SEARCH)
FORMAT = 1

_MOST_HEADER = 1 << 20  # bytes of the header that names the tensors, which a thousand layers do not exceed
_MOST_EXTRA = 1 << 25
_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "I64": torch.int64,
}  # the dtypes that save() writes, by safetensors' names

Shape = tuple[int, ...]


class StoreError(ValueError):
    """A folder that save() did not write, or that has changed since."""


# -- descriptions of the files -----------------------------------------------------------------------------------------

SEED = whole(-(2**63), 2**64 - 1)
_SHARE = number(-1e-6, 1 + 1e-6)  # with room for rounding
_SCORES: dict[str, Check] = {"precision": _SHARE, "recall": _SHARE, "f1": _SHARE}
_AVERAGE = record(_SCORES)
_INTERVALS = mapping(listed(number(), least=2))
_EPOCHS = listed(record({"epoch": whole(1), "loss": number(), "accuracy": _SHARE}, others=number()))


def check_history(value: Any, name: str) -> None:
    """The check of a training's history: a record for each epoch, in order."""
    _EPOCHS(value, name)
    if [each["epoch"] for each in value] != list(range(1, len(value) + 1)):
        raise ValueError(f"{name}: expected the epochs from 1 on but got others")


HELD = record({"rows": whole(0), "digest": text}, {"share": _SHARE})
_DATA = record(
    {"rows": whole(0), "digest": text, "validation": optional(HELD)},
    {"ranks": whole(1), "threads": whole(1), "refit": whole(1), "earlier": whole(0)},
)
_FIGURES = ("roc_auc", "pr_auc", "log_loss", "brier", "expected_calibration_error")
_ADDED = record({"value": number(-1, 1), "interval": listed(number(), least=2)})
_BASELINE = record({"accuracy": _SHARE, "macro_f1": _SHARE, "added": mapping(_ADDED)})
_REPORT = record(
    {
        "examples": whole(1), "labels": listed(text), "accuracy": _SHARE, "balanced_accuracy": _SHARE,
        "macro": _AVERAGE, "micro": _AVERAGE, "weighted": _AVERAGE,
        "per_class": mapping(record({**_SCORES, "support": whole(0)}, {"intervals": _INTERVALS})),
        "confusion_matrix": listed(counts),
        **dict.fromkeys(_FIGURES, optional(number(-1e-6))), "confidence": _SHARE,
        "intervals": _INTERVALS, "warnings": listed(text),
    },
    {
        "before_calibration": optional(mapping(number())), "threshold": optional(plain(4)),
        "interval_methods": mapping(text), "baseline": optional(_BASELINE),
    },
)  # fmt: skip
_SIZES = record(
    {"channels": whole(1, 1 << 20), "dilations": listed(whole(1, 1 << 20)), "counts": listed(whole(1, 1 << 20))}
)
_DESCRIPTION = record(
    {
        "sha256": text, "kind": text, "parameters": mapping(plain(20)), "classes": listed(anything), "encoder": text,
        "history": check_history, "best_epoch": whole(1),
    },
    {
        "seed": optional(SEED), "data": optional(_DATA), "validation_report": optional(_REPORT),
        "temperature": anything, "threshold": anything, "convolutions": optional(_SIZES),
    },
    others=anything,
)  # fmt: skip
_SPLIT = record({}, {"rows": whole(0), "share": _SHARE, "seed": SEED, "file": text})


def _check_split(value: Any, name: str) -> None:
    _SPLIT(value, name)
    if "share" in value and "seed" not in value:
        raise ValueError(f"{name}: expected a seed with a share but got none")


_HEADER = mapping(record({"dtype": text, "shape": counts, "data_offsets": listed(whole(0), least=2)}))
_DESCRIPTIONS = {
    COMMAND: record(
        {"command": text},
        {
            "settings": mapping(plain(20)), "sha256": mapping(text), "rows": whole(0), "ranks": whole(1),
            "split": optional(_check_split),
            "threads": whole(1, 1024), "resumed": flag, "device": text,
            "versions": record({"seqcls_fast": text}, others=text),
        },
    ),
    SEARCH: record(
        {"saved": whole(1), "trials": listed(mapping(plain(20)))}, {"metric": text, "seed": plain(0)}, others=plain(20)
    ),
}  # fmt: skip


def _most_config(weights: int, shapes: Mapping[str, Shape], classes: int) -> int:
    """The most bytes of config.json, whose vocabulary grows with the network, and whose matrix with the classes.

    ``weights`` are the bytes of the file of weights, which also holds a baseline and a wide part, which say nothing of
    the vocabulary.
    """
    network = sum(
        4 * math.prod(shape)
        for name, shape in shapes.items()
        if name.startswith("model.") and not name.startswith(("model.wide.", "model.convolutions."))
    )
    return (1 << 25) + 64 * min(weights, network) + 16 * min(classes, 1 << 12) ** 2


# -- saving -----------------------------------------------------------------------------------------------------------


def save_folder(
    folder: str | os.PathLike[str], config: dict[str, Any], tensors: dict[str, Tensor], card: str, extra: dict[str, Any]
) -> None:
    """Replaces the folder once everything is on disk. A folder that holds anything else is refused.

    ``extra`` maps names in ``EXTRA`` to the content of these files, in types of JSON.
    """
    target = check_target(folder)
    for name, tensor in tensors.items():
        _check_finite(tensor, f"save: {name}")
    weights = need("safetensors.torch", "save").save({name: t.contiguous() for name, t in tensors.items()})
    header = int.from_bytes(weights[:8], "little")
    most = _most_config(
        len(weights), {name: tuple(tensor.shape) for name, tensor in tensors.items()}, len(config["classes"])
    )
    config = {"format": FORMAT, "sha256": hashlib.sha256(weights).hexdigest()} | config
    parts = {CONFIG: json.dumps(config, indent=1).encode(), WEIGHTS: weights}
    if header > _MOST_HEADER or len(parts[CONFIG]) > most:
        raise ValueError(f"save: expected fewer layers, classes or words, as load() would refuse {escaped(target)}")
    texts = {name: json.dumps(each, indent=2, ensure_ascii=False) + "\n" for name, each in extra.items()}
    for name, words in {CARD: card, **texts}.items():
        parts[name] = words.encode(errors="backslashreplace")  # a lone surrogate is escaped, as in JSON
    make_folder(target.parent)
    with unfinished(target) as fresh:
        check_target(target)  # again, as it may have become a file meanwhile
        for name, data in parts.items():
            write_through(fresh / name, data)
        put_in_place(fresh, target)


def check_target(folder: str | os.PathLike[str]) -> Path:
    """The resolved path of a folder that a model can be saved to. An error says why it cannot."""
    target = Path(os.path.realpath(folder))
    if target == Path.cwd() or target in Path.cwd().parents:
        raise ValueError(f"save: expected another folder than the current one but got {escaped(target)}")
    if target.exists() and not _replaceable(target):
        raise FileExistsError(
            f"save: expected a new folder or one that holds a saved model alone but got {escaped(target)}"
        )
    return target


def _replaceable(target: Path) -> bool:
    """Whether the folder is empty or holds a saved model and nothing else."""
    if not target.is_dir():
        return False
    there = list(target.iterdir())
    if {path.name for path in there} - {CONFIG, WEIGHTS, CARD, *EXTRA} or any(map(Path.is_dir, there)):
        return False
    if not there:
        return True
    try:
        with _open(target / CONFIG) as file:
            config = _json(file, target / CONFIG, sys.maxsize)
    except (FileNotFoundError, StoreError):
        return False
    return isinstance(config, dict) and {"format", "sha256"} <= config.keys()


# -- loading ----------------------------------------------------------------------------------------------------------


@dataclass
class Saved:
    """A folder whose files are open, so that it can be read to the end even if another model takes its place."""

    where: Path  # of config.json, for messages
    config: dict[str, Any]
    extra: dict[str, Any]  # the content of the files of ``EXTRA`` that are there
    header: dict[str, tuple[str, Shape]]  # safetensors' name of the dtype, and the shape, of each tensor
    _weights: BinaryIO

    def error(self, words: str) -> StoreError:
        return StoreError(f"{escaped(self.where)}: {words}")

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Turns the errors of a block that reads the folder into a StoreError that names it."""
        try:
            yield
        except StoreError:
            raise
        except (LookupError, TypeError, ValueError, RuntimeError, OverflowError, AttributeError) as error:
            first_line = (str(error) or type(error).__name__).partition("\n")[0]
            raise self.error(f"expected what save() writes but got {escaped(first_line, 1000)}") from None

    def check(self, wanted: Mapping[str, tuple[torch.dtype, Shape | None]]) -> None:
        """Raises a ValueError unless these are the tensors' names, dtypes and shapes.

        None stands for any shape of one dimension.
        """
        for name, (dtype, shape) in wanted.items():
            if name not in self.header:
                raise ValueError(f"no tensor {name}")
            got, sizes = self.header[name]
            if _DTYPES.get(got) != dtype or (sizes != shape if shape is not None else len(sizes) != 1):
                expected = f"{dtype} {'(N,)' if shape is None else shape}"
                raise ValueError(f"{name}: expected {expected} but got {shown(got)[1:-1]} {shown(sizes)}")
        if more := sorted(self.header.keys() - wanted.keys()):
            raise ValueError(f"{WEIGHTS}: expected no other tensors but got {shown(more, 200)}")

    def tensors(self) -> dict[str, Tensor]:
        """Reads the weights, which takes memory for them."""
        self._weights.seek(0)
        data = self._weights.read()
        path = self.where.with_name(WEIGHTS)
        if hashlib.sha256(data).hexdigest() != self.config["sha256"]:
            raise StoreError(_changed(path))
        try:
            tensors: dict[str, Tensor] = need("safetensors.torch", "load").load(data)
        except Exception as error:
            raise StoreError(f"{escaped(path)}: expected tensors but got {escaped(error)}") from None
        for name, tensor in tensors.items():
            _check_finite(tensor, f"{escaped(path)}: {escaped(name, 80)}")
        return tensors


@contextmanager
def opened(folder: str | os.PathLike[str]) -> Iterator[Saved]:
    """Opens a saved model and checks everything that can be checked without reading its weights."""
    for last in (*[False] * 99, True):
        source = Path(folder)
        source = source if source.exists() else found(Path(os.path.realpath(source)))
        before = _identity(source)
        with ExitStack() as files:
            try:
                saved = _read(source, files)
            except (FileNotFoundError, StoreError):
                if last or _identity(source) == before:
                    raise
                continue
            if last or _identity(source) == before:  # a save in between could mix the files of two models
                yield saved
                return


def _identity(folder: Path) -> tuple[int, ...] | None:
    """Numbers that tell a folder from a later one of the same name, which may reuse the inode but not its time."""
    try:
        about = folder.stat()
    except OSError:
        return None
    return about.st_dev, about.st_ino, about.st_mtime_ns


def _read(source: Path, files: ExitStack) -> Saved:
    opened = {}
    for name in (CONFIG, WEIGHTS):
        try:
            opened[name] = files.enter_context(_open(source / name))
        except (FileNotFoundError, NotADirectoryError):
            words = f"load: expected {name} in {escaped(source)}, as save() writes it"
            raise FileNotFoundError(words) from None
    weights = opened[WEIGHTS]
    header = _header(weights, source / WEIGHTS)
    classes = (*header.get("model.head.bias", ("", ()))[1], 0)[0]
    shapes = {name: shape for name, (_, shape) in header.items()}
    most = _most_config(os.fstat(weights.fileno()).st_size, shapes, classes)
    config = _json(opened[CONFIG], source / CONFIG, most)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        got = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise StoreError(f"{escaped(source / CONFIG)}: expected format {FORMAT} but got {shown(got)}")
    _check(_DESCRIPTION, config, source / CONFIG)
    extra = {}
    for name, description in _DESCRIPTIONS.items():
        with suppress(FileNotFoundError), _open(source / name) as file:
            extra[name] = _json(file, source / name, _MOST_EXTRA)
            _check(description, extra[name], source / name)
    return Saved(source / CONFIG, config, extra, header, weights)


def _header(file: BinaryIO, path: Path) -> dict[str, tuple[str, Shape]]:
    size, start = os.fstat(file.fileno()).st_size, file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or 8 + length > size:
        raise StoreError(_changed(path))
    if length > _MOST_HEADER:
        raise StoreError(f"{escaped(path)}: expected a header of at most {_MOST_HEADER} bytes but got {length}")
    content = _parsed(file.read(length), path, "tensors")
    if isinstance(content, dict):
        content.pop("__metadata__", None)
    _check(_HEADER, content, path)
    end = max((entry["data_offsets"][-1] for entry in content.values()), default=0)
    if 8 + length + end != size:
        raise StoreError(_changed(path))
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in content.items()}


def load_folder(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors, without a check that they fit together."""
    with opened(folder) as saved:
        return saved.config, saved.tensors()


def load_extra(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of the files of ``EXTRA`` that are there, by name."""
    with opened(folder) as saved:
        return saved.extra


def _open(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except ValueError as error:
        raise StoreError(f"{escaped(path)}: {error}") from None


def _json(file: BinaryIO, path: Path, most: int) -> Any:
    size = os.fstat(file.fileno()).st_size
    if size > most:
        raise StoreError(f"{escaped(path)}: expected at most {most} bytes but got {size}")
    return _parsed(file.read(size), path, "JSON as save() writes it")


def _parsed(data: bytes, path: Path, expected: str) -> Any:
    try:
        return loads(data)
    except ValueError as error:
        raise StoreError(f"{escaped(path)}: expected {expected} but got {escaped(error)}") from None


def _check(description: Check, value: Any, path: Path) -> None:
    try:
        description(value, path.stem)
    except ValueError as error:
        raise StoreError(f"{escaped(path)}: expected what save() writes but got {escaped(error, 1000)}") from None


def _check_finite(tensor: Tensor, name: str) -> None:
    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
        value = tensor[~tensor.isfinite()][0].item()
        raise StoreError(f"{name}: expected finite weights but got {value}")


def _changed(path: Path) -> str:
    return f"{escaped(path)}: expected the {WEIGHTS} that was saved, but it is truncated or changed"

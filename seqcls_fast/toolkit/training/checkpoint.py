"""Checkpoints of a training: everything that its next step depends on, in one file each.

A file is written under another name, flushed to the disk and then renamed, so that it is never there in part. Its name
holds a checksum of its content; if that shows damage, the checkpoint before it is used. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from ..._files import locked, make_folder, open_regular, sync_folder, write_through
from .._extras import need
from .._terminal import escaped, shown
from ..schema import Check, anything, listed, loads, record, text

__all__ = ["CheckpointError", "Checkpoints"]

_FORMAT = 2  # 1 had other names for the snapshots
_KEPT = 2  # checkpoints
_NAME = re.compile(r"checkpoint-[0-9]{8,}-[0-9a-f]{16}\.safetensors")
_COST = 50  # wait this many times as long as writing one took, so that writing takes at most 2 % of the time


class CheckpointError(ValueError):
    """Checkpoints cannot be read, or belong to another training."""


class Checkpoints:
    """The checkpoints in a folder. A new one is due after ``every`` seconds; if that is 0, after every step.

    Example::

        >>> import tempfile, torch
        >>> from seqcls_fast.toolkit.training.checkpoint import Checkpoints
        >>> folder = tempfile.mkdtemp()
        >>> Checkpoints(folder, every=0).write({"step": 3, "weights": {"a": torch.ones(2)}})
        >>> Checkpoints(folder, every=0).newest()["state"]
        {'step': 3, 'weights': {'a': tensor([1., 1.])}}
    """

    def __init__(self, folder: str | os.PathLike[str], every: float) -> None:
        self.folder, self.every = Path(folder), every
        self.about: dict[str, Any] = {}  # the data, seed and settings of the training, written into each checkpoint
        self._written = max((_number(path) for path in self._there()), default=0)
        self._since, self._took, self._failed = time.monotonic(), 0.0, False

    def __bool__(self) -> bool:
        return bool(self._there())

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Within this context, another training that wants to use the folder gets a BlockingIOError."""
        make_folder(self.folder)
        with locked(self.folder / ".lock", self.folder, wait=False):
            yield

    def due(self) -> bool:
        return time.monotonic() - self._since >= (max(self.every, _COST * self._took) if self.every else 0)

    def write(self, state: Any) -> None:
        """Writes a checkpoint. If that raises an OSError, earlier checkpoints are intact."""
        make_folder(self.folder)
        start = time.monotonic()
        tensors: dict[str, Tensor] = {}
        content = json.dumps({"format": _FORMAT, "state": _packed({"about": self.about, "state": state}, tensors, {})})
        data = need("safetensors.torch", "checkpoint_dir").save(tensors, {"checkpoint": content})
        name = f"checkpoint-{self._written + 1:08}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
        fresh = self.folder / f".{name}"
        try:
            fresh.unlink(missing_ok=True)
            write_through(fresh, data)
            os.replace(fresh, self.folder / name)
            sync_folder(self.folder)
        except BaseException as error:
            fresh.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(self.folder)
            raise
        self._written += 1
        # Keep this one and the one before it. Remove files with this number or a higher one, which could not be read
        # and would be taken for newer ones, and files that begin with a dot, which killed processes have left.
        there = self._there()
        kept = [self.folder / name, *[path for path in there if _number(path) < self._written][1 - _KEPT :]]
        for path in [*(path for path in there if path not in kept), *self.folder.glob(".checkpoint-*")]:
            with suppress(OSError):  # a file too many does no harm
                path.unlink()
        self._since = time.monotonic()
        self._took = self._since - start

    def write_or_warn(self, state: Any) -> None:
        """As :meth:`write`, with a warning in place of an OSError: a full disk need not end the training."""
        try:
            self.write(state)
            self._failed = False
        except OSError as error:
            self._since = time.monotonic()
            if not self._failed:
                self._failed = True
                warnings.warn(
                    f"checkpoint_dir: no checkpoint could be written to {self.folder} ({error.strerror or error}); "
                    "training goes on, and the last one is intact",
                    RuntimeWarning,
                    stacklevel=2,
                )

    def newest(self, check: Check | None = None) -> Any:
        """The content of the newest checkpoint that is undamaged and passes the check; None without any."""
        there = self._there()
        for path in reversed(there):
            try:
                found = _read(path, check)
            except CheckpointError as error:
                if path == there[0]:
                    raise
                warnings.warn(f"{error}; the one before it is used", RuntimeWarning, stacklevel=2)
            else:
                self._written = _number(path)  # the next one replaces those that could not be read
                return found
        return None

    def _there(self) -> list[Path]:
        """The files, from the oldest to the newest."""
        if not self.folder.is_dir():
            return []
        return sorted((path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)), key=_number)


def _number(path: Path) -> int:
    return int(path.name.split("-")[1])


def _read(path: Path, check: Check | None) -> Any:
    try:
        with open_regular(path) as file:
            data = file.read()
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{escaped(path)}: {getattr(error, 'strerror', None) or error}") from None
    except MemoryError:
        size = path.stat().st_size
        raise CheckpointError(
            f"{escaped(path)}: expected a checkpoint that fits in memory but got {size} bytes"
        ) from None
    if hashlib.sha256(data).hexdigest()[:16] != path.stem.split("-")[2]:
        words = "expected the checkpoint that was written, but it is truncated or changed"
        raise CheckpointError(f"{escaped(path)}: {words}")
    safetensors = need("safetensors", "checkpoint_dir")
    try:
        tensors = need("safetensors.torch", "checkpoint_dir").load(data)
        header = loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        _HEADER(header, "header")
        content = loads(header["__metadata__"]["checkpoint"])
        _CONTENT(content, "checkpoint")
        if content["format"] != _FORMAT:
            raise ValueError(f"format {shown(content['format'])}")
        found = _unpacked(content["state"], tensors)
        if check is not None:
            check(found, "checkpoint")
        return found
    except (LookupError, TypeError, ValueError, RecursionError, AttributeError, safetensors.SafetensorError) as error:
        words = f"expected a checkpoint of format {_FORMAT} but got {escaped(error, 1000)}"
        raise CheckpointError(f"{escaped(path)}: {words}") from None


def _packed(value: Any, tensors: dict[str, Tensor], names: dict[int, str]) -> Any:
    """The value as JSON, with tensors replaced by names; a tensor that occurs twice is stored once."""
    if isinstance(value, Tensor):
        if id(value) not in names:
            names[id(value)] = str(len(tensors))
            tensors[names[id(value)]] = value.detach().to("cpu", copy=False).contiguous()
        return {"tensor": names[id(value)]}
    if isinstance(value, dict):
        return {"dict": [[key, _packed(each, tensors, names)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return [_packed(each, tensors, names) for each in value]
    return value


def _unpacked(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unpacked(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        name = value["tensor"]
        if not isinstance(name, str) or name not in tensors:
            raise ValueError(f"tensor: expected the name of one in the file but got {shown(name)}")
        return tensors[name]
    _PAIRS(value, "state")
    return {key: _unpacked(each, tensors) for key, each in value["dict"]}


def _pair(value: Any, name: str) -> None:
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str | int):
        raise ValueError(f"{name}: expected a name and a value but got {shown(value)}")


_HEADER = record({"__metadata__": record({"checkpoint": text})}, others=anything)
_CONTENT = record({"format": anything, "state": anything})
_PAIRS = record({"dict": listed(_pair)})

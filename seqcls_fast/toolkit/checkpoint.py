"""Checkpoints of a training: all that its next step depends on, each in one file that is there whole or not at all.

A file is written under another name, brought to the disk and then renamed; its own name holds the checksum of its
content, so that damage is found, and the one before it is kept to go back to. Nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from ._extras import need
from .store import write_through

__all__ = ["CheckpointError", "Checkpoints"]

_FORMAT = 1
_KEPT = 2
_NAME = re.compile(r"checkpoint-(\d{8})-([0-9a-f]{16})\.safetensors")
_COST = 50  # times what writing one took lie between two, so that they take at most 2 % of the time


class CheckpointError(ValueError):
    """Checkpoints that cannot be read, or belong to another training."""


class Checkpoints:
    """Those in a folder, one of which is written when ``every`` seconds have passed; 0 writes one after every step.

    Example::

        >>> import tempfile, torch
        >>> from seqcls_fast.toolkit.checkpoint import Checkpoints
        >>> folder = tempfile.mkdtemp()
        >>> Checkpoints(folder, every=0).write({"step": 3, "weights": {"a": torch.ones(2)}})
        >>> Checkpoints(folder, every=0).newest()["state"]
        {'step': 3, 'weights': {'a': tensor([1., 1.])}}
    """

    def __init__(self, folder: str | os.PathLike[str], every: float) -> None:
        self.folder, self.every = Path(folder), every
        self.about: dict[str, Any] = {}  # goes into each: what the training is of
        self._written = max((int(_number(path)) for path in self._there()), default=0)
        self._since, self._took, self._failed = time.monotonic(), 0.0, False

    def __bool__(self) -> bool:
        return bool(self._there())

    def due(self) -> bool:
        return time.monotonic() - self._since >= (max(self.every, _COST * self._took) if self.every else 0)

    def write(self, state: Any) -> None:
        """Raises an OSError where that fails; what was written before is intact then."""
        start = time.monotonic()
        tensors: dict[str, Tensor] = {}
        text = json.dumps({"format": _FORMAT, "state": _packed({"about": self.about, "state": state}, tensors, {})})
        data = need("safetensors.torch", "checkpoint_dir").save(tensors, {"checkpoint": text})
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"checkpoint-{self._written + 1:08}-{hashlib.sha256(data).hexdigest()[:16]}.safetensors"
        fresh = self.folder / f".{name}"
        try:
            write_through(fresh, data)
            os.replace(fresh, self.folder / name)
            _sync_folder(self.folder)
        except BaseException as error:
            fresh.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(self.folder)
            raise
        self._written += 1
        for path in [*self._there()[:-_KEPT], *self.folder.glob(".checkpoint-*")]:  # the latter of killed processes
            with suppress(OSError):  # what is too much does no harm
                path.unlink()
        self._since = time.monotonic()
        self._took = self._since - start

    def write_or_warn(self, state: Any) -> None:
        """A full disk is no reason to lose the training that goes on in memory."""
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

    def newest(self) -> Any:
        """The state of the last one that is whole, or None without any."""
        there = self._there()
        for path in reversed(there):
            try:
                return _read(path)
            except CheckpointError as error:
                if path == there[0]:
                    raise
                warnings.warn(f"{error}; the one before it is used", RuntimeWarning, stacklevel=2)
        return None

    def _there(self) -> list[Path]:
        """From the oldest to the newest."""
        if not self.folder.is_dir():
            return []
        return sorted((path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)), key=_number)


def _number(path: Path) -> str:
    return path.name.split("-")[1]


def _read(path: Path) -> Any:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest()[:16] != path.stem.split("-")[2]:
        raise CheckpointError(f"{path}: expected the checkpoint that was written, but it is truncated or changed")
    safetensors = need("safetensors", "checkpoint_dir")
    tensors = need("safetensors.torch", "checkpoint_dir").load(data)
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        content = json.loads(header["__metadata__"]["checkpoint"])
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']}")
        return _unpacked(content["state"], tensors)
    except (LookupError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path}: expected a checkpoint of format {_FORMAT} but got {error}") from None


def _sync_folder(folder: Path) -> None:
    """So that the new name outlives a loss of power, where folders can be opened and synchronised."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _packed(value: Any, tensors: dict[str, Tensor], names: dict[int, str]) -> Any:
    """As JSON, with tensors by name; one that occurs twice is kept once."""
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
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _unpacked(each, tensors) for key, each in value["dict"]}
    return value

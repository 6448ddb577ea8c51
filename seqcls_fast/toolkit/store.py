"""A trained model as a folder: weights as safetensors, the rest as JSON, a model card for people.

A folder is written whole or not at all, and loading runs no code from it. What a command adds (how the model was
trained, a search's table) stays beside the model through load() and save().
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from ._extras import need

__all__ = [
    "COMMAND",
    "CONFIG",
    "SEARCH",
    "WEIGHTS",
    "StoreError",
    "check_target",
    "load_extra",
    "load_folder",
    "save_folder",
    "write_through",
]

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
COMMAND, SEARCH = "command.json", "search.json"  # the command line's
EXTRA = (COMMAND, SEARCH)
FORMAT = 1


class StoreError(ValueError):
    """A folder that is not, or no longer, what save() wrote."""


def save_folder(
    folder: str | os.PathLike[str], config: dict[str, Any], tensors: dict[str, Tensor], card: str, extra: dict[str, Any]
) -> None:
    """Replaces the folder once everything is on disk; one that holds anything else is left alone.

    ``extra`` maps names of ``EXTRA`` to what they hold, as JSON has it.
    """
    target = check_target(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    weights = need("safetensors.torch", "save").save({name: t.contiguous() for name, t in tensors.items()})
    config = {"format": FORMAT, "sha256": hashlib.sha256(weights).hexdigest()} | config
    parts = {CONFIG: json.dumps(config, indent=1).encode(), WEIGHTS: weights, CARD: card.encode()}
    parts |= {name: (json.dumps(extra[name], indent=2, ensure_ascii=False) + "\n").encode() for name in extra}
    fresh = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    fresh.mkdir()
    try:
        for name, data in parts.items():
            write_through(fresh / name, data)
        _swap(fresh, target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def write_through(path: Path, data: bytes) -> None:
    """Returns when it is on the disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def check_target(folder: str | os.PathLike[str]) -> Path:
    """Where a model can be saved, or a sentence about why it cannot."""
    target = Path(folder).resolve()
    if target == Path.cwd() or target in Path.cwd().parents:
        raise ValueError(f"save: expected another folder than the current one but got {target}")
    if target.exists() and not _replaceable(target):
        raise FileExistsError(f"save: expected a new folder or one that holds a saved model alone but got {target}")
    return target


def _replaceable(target: Path) -> bool:
    """Whether nothing would be lost but a model that save() wrote."""
    if not target.is_dir() or {path.name for path in target.iterdir()} - {CONFIG, WEIGHTS, CARD, *EXTRA}:
        return False
    try:
        config = json.loads((target / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return not any(target.iterdir())
    except (ValueError, RecursionError):
        return False
    return isinstance(config, dict) and {"format", "sha256"} <= config.keys()


def _swap(fresh: Path, target: Path) -> None:
    """Puts `fresh` in the place of `target`, which comes back if that fails."""
    if not target.exists():
        os.rename(fresh, target)
        return
    old = fresh.with_name(fresh.name + "-old")
    os.rename(target, old)
    try:
        os.rename(fresh, target)
    except BaseException:
        os.rename(old, target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def load_folder(folder: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    source = Path(folder)
    for name in (CONFIG, WEIGHTS):
        if not (source / name).is_file():
            raise FileNotFoundError(f"load: expected {name} in {source}, as save() writes it")
    config = _json(source / CONFIG)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        got = config.get("format") if isinstance(config, dict) else type(config).__name__
        raise StoreError(f"{source / CONFIG}: expected format {FORMAT} but got {got!r}")
    data = (source / WEIGHTS).read_bytes()
    if hashlib.sha256(data).hexdigest() != config.get("sha256"):
        raise StoreError(f"{source / WEIGHTS}: expected the {WEIGHTS} that was saved, but it is truncated or changed")
    try:
        tensors: dict[str, Tensor] = need("safetensors.torch", "load").load(data)
    except Exception as error:
        raise StoreError(f"{source / WEIGHTS}: expected tensors but got {error}") from error
    return config, tensors


def load_extra(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What stands beside the model: the files of ``EXTRA`` that are there."""
    found = {name: _json(Path(folder, name)) for name in EXTRA if Path(folder, name).is_file()}
    for name, value in found.items():
        if not isinstance(value, dict):
            raise StoreError(f"{Path(folder, name)}: expected an object but got {type(value).__name__}")
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: expected JSON as save() writes it but got {error}") from error

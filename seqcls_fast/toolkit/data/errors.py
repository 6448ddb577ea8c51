"""What unreadable data raises, and the JSON of saved encoders, which carries a checksum.

The checksum tells damage and careless edits from what was written, not a forger from its author: whoever reads the
fields still checks each one, and nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from .._terminal import escaped, shown
from ..schema import loads

__all__ = ["DataError", "seal", "unseal"]

_VERSION = 1


class DataError(ValueError):
    """A file cannot be read as what it should be; the sentence names the file and, where there is one, the line."""


def seal(kind: str, fields: dict[str, Any]) -> str:
    """The fields as JSON, with the kind of object they make and a checksum."""
    content = {"kind": kind, "version": _VERSION, **fields}
    return json.dumps({**content, "sha256": _digest(content)}, ensure_ascii=False, allow_nan=False)


def unseal(kind: str, text: str) -> dict[str, Any]:
    """What :func:`seal` was given, or a ValueError that says what was found instead."""
    if not isinstance(text, str):
        raise TypeError(f"text: expected the JSON of a {kind} but got {type(text).__name__}")
    try:
        content = loads(text)
    except ValueError as error:
        raise ValueError(f"{kind}: expected what to_json() writes but got no JSON: {escaped(error)}") from None
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise ValueError(f"{kind}: expected what to_json() writes but got other JSON")
    if content.get("version") != _VERSION:
        raise ValueError(f"{kind}: expected version {_VERSION} but got {shown(content.get('version'))}")
    try:
        changed = content.pop("sha256", None) != _digest(content)
    except RecursionError:  # Python writes JSON less deeply than it reads it
        changed = True
    if changed:
        raise ValueError(f"{kind}: expected the content that its checksum was made of but got another: it was changed")
    del content["kind"], content["version"]
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

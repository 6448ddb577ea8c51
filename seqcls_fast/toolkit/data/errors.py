"""The error for unreadable data, and the JSON of saved encoders, which has a checksum.

The checksum shows damage and careless edits, but anybody can forge it. So the reader still checks every field, and
nothing is ever unpickled.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ..._files import digest
from .._terminal import escaped, shown
from ..schema import loads

__all__ = ["DataError", "renumbered", "seal", "unseal"]

_VERSION = 1


class DataError(ValueError):
    """A file does not have the expected content. The message names the file and, if there is one, the line."""


def renumbered(error: Exception, first: int) -> str:
    """A message that numbers rows from 0 on, with the numbers of rows that begin with ``first``."""
    return re.sub(r"\[([0-9]{1,18})\]", lambda found: f"[{first + int(found[1])}]", str(error), count=1)


def seal(kind: str, fields: dict[str, Any]) -> str:
    """The fields of an object as JSON, with its kind and a checksum."""
    content = {"kind": kind, "version": _VERSION, **fields}
    return json.dumps({**content, "sha256": digest(content)}, ensure_ascii=False, allow_nan=False)


def unseal(kind: str, text: str) -> dict[str, Any]:
    """The fields that :func:`seal` was given; a ValueError if the text is not of that kind or was changed."""
    if not isinstance(text, str):
        raise TypeError(f"text: expected the JSON of a {kind} but got {type(text).__name__}")
    try:
        content = loads(text)
    except ValueError as error:
        raise ValueError(f"{kind}: expected text from to_json() but got no JSON: {escaped(error)}") from None
    if not isinstance(content, dict) or content.get("kind") != kind:
        raise ValueError(f"{kind}: expected text from to_json() but got other JSON")
    if content.get("version") != _VERSION:
        raise ValueError(f"{kind}: expected version {_VERSION} but got {shown(content.get('version'))}")
    try:
        changed = content.pop("sha256", None) != digest(content)
    except RecursionError:  # json.dumps() allows less nesting than json.loads()
        changed = True
    if changed:
        raise ValueError(f"{kind}: expected content that fits its checksum, but it was changed")
    del content["kind"], content["version"]
    return content

"""What a worker tells its parent: a line of JSON on stdout, after a mark, so that other output is no message.

    {"step": TEXT}                      it has done a step of its start
    {"parts": [[STAGE, NAME, KIND], ...], "facts": {...}}    it is ready
    {"found": {...}}                    what the part at hand has found so far
    {"done": {...}, "last": BOOL}       the result of the part, which has ended; "last": so does the worker
    {"beat": true}                      the part is at work

A parent writes "NAME SECONDS" to a worker's stdin to have a part run. primitives.cu speaks the same.
"""

from __future__ import annotations

import json
import math
from typing import Any

MARK = "@@benchmarks.gpu "


def tell(**message: Any) -> None:
    print(MARK + json.dumps(plain(message)), flush=True)


def plain(value: Any) -> Any:
    """A value with text instead of infinities and NaNs, which JSON does not have."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def read(line: str) -> dict[str, Any] | None:
    """The message in a line, or None if the line is none or was cut, as by the death of its writer."""
    if not line.startswith(MARK):
        return None
    try:
        message = json.loads(line.removeprefix(MARK))
    except ValueError:
        return None
    return message if isinstance(message, dict) else None

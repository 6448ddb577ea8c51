"""The results file of gpu_check.py: what ran on what, and one entry per part, whole at any moment.

A part that is there is not run again, unless it failed, was skipped, or says that it is for each machine anew. Results
of other sources or of another machine are not kept beside new ones.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

SAME = ("csrc", "device", "torch", "cuda", "cudnn")  # facts that all parts of a file must share


def csrc_hash(root: Path) -> str:
    """As in the files of bench_layers.py."""
    sources = sorted(path for path in (root / "csrc").rglob("*") if path.is_file())
    whole = b"".join(str(path.relative_to(root)).encode() + path.read_bytes() for path in sources)
    return hashlib.sha256(whole).hexdigest()[:12]


def file_name(device: str) -> str:
    return f"gpu-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


class Results:
    """A file that is written anew after every part, by renaming, so that a kill leaves the last whole one."""

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self.path, self.run, self.parts = path, run, {}
        self.dropped = ""  # why what the file held was not kept
        old = self._read()
        if old is None:
            return
        other = [name for name in SAME if old["run"].get(name) != run.get(name)]
        if other:
            self.dropped = ", ".join(f"{name} {old['run'].get(name)} before, now {run.get(name)}" for name in other)
        else:
            self.parts = old["parts"]

    def _read(self) -> dict[str, Any] | None:
        try:
            old = json.loads(self.path.read_text())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise SystemExit(f"{self.path}: expected JSON written by gpu_check.py: {error}") from None
        if not isinstance(old, dict) or not {"run", "parts"} <= old.keys():
            raise SystemExit(f"{self.path}: expected a file written by gpu_check.py")
        return old

    @property
    def finished(self) -> set[str]:
        return {name for name, part in self.parts.items() if not part.keys() & {"failed", "skipped", "anew"}}

    def failures(self, prefix: str = "") -> dict[str, str]:
        return {n: part["failed"] for n, part in self.parts.items() if "failed" in part and n.startswith(prefix)}

    def put(self, name: str, part: dict[str, Any]) -> None:
        self.parts[name] = part
        self.write()

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [f" {json.dumps(name)}: {json.dumps(part)}" for name, part in sorted(self.parts.items())]
        text = f'{{"run": {json.dumps(self.run, indent=1)},\n"parts": {{\n' + ",\n".join(lines) + "\n}}\n"
        partial = self.path.with_name(f".{self.path.name}.partial")
        partial.write_text(text)
        os.replace(partial, self.path)

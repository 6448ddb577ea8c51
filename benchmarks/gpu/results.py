"""The results file of `python -m benchmarks.gpu`: the facts of the run and an entry per part, complete at any moment.

A part with an entry is not run again, unless it failed or was skipped, or unless its entry has "anew", as each machine
has to run it. Results of other sources or of another machine are dropped.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

SAME = ("csrc", "device", "torch", "cuda", "cudnn")  # facts that all parts of a file must share


def file_name(device: str) -> str:
    return f"gpu-{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.json"


class Results:
    """A file that is replaced after every part, so that it is complete even if the process is killed."""

    def __init__(self, path: Path, run: dict[str, Any]) -> None:
        self.path, self.run, self.parts = path, run, {}
        self.dropped = ""  # why the results in the file were not kept
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
            raise SystemExit(f"{self.path}: expected JSON written by `python -m benchmarks.gpu`: {error}") from None
        if not isinstance(old, dict) or not {"run", "parts"} <= old.keys():
            raise SystemExit(f"{self.path}: expected a file written by `python -m benchmarks.gpu`")
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

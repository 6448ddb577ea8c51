"""The results file of `python -m benchmarks.gpu`: the facts of the run and an entry per part, complete at any moment.

A part with an entry is not run again, unless it failed, was skipped, or was cut short. Results of other sources or of
another machine are kept in a file beside it, and so is a file that is none of ours.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

NAME = "gpu.json"
SAME = ("csrc", "device", "torch", "cuda", "cudnn")  # facts that all parts of a file must share
UNFINISHED = ("failed", "skipped", "cut")


class Results:
    """A file in a folder that is replaced after every part, so that it is whole even if the process is killed.

    Where it cannot be written, as on a full disk, each entry goes to `say` instead, and the next one tries again.
    """

    def __init__(self, folder: Path, run: dict[str, Any], say: Callable[[str], None] = print) -> None:
        self.path, self.run, self.parts, self.say = folder / NAME, run, {}, say
        self.complaint = ""  # why the file could not be written, when that was last said
        try:
            folder.mkdir(parents=True, exist_ok=True)
            old = json.loads(self.path.read_text())
            self.parts, before = dict(old["parts"]), dict(old["run"])
        except FileNotFoundError:
            before = {}
        except OSError as error:
            raise SystemExit(f"--out: expected a folder that can be written but got {folder}: {error}") from None
        except (ValueError, KeyError, TypeError):
            self.parts, before = {}, {}
            self._set_aside("it was not written by this command")
        self._keep_if_same(before, run)
        self.run = before | run if self.parts else run
        self.write()

    def describe(self, facts: dict[str, Any]) -> None:
        """Adds facts that were not known before. Results that other facts belong to are set aside."""
        self._keep_if_same(self.run, facts)
        self.run = self.run | facts
        self.write()

    def _keep_if_same(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        other = [name for name in SAME if name in before and name in now and before[name] != now[name]]
        if other and self.parts:
            self._set_aside(", ".join(f"{name} {before[name]} before, now {now[name]}" for name in other))
            self.parts = {}

    def _set_aside(self, why: str) -> None:
        number = next(n for n in range(1, 1000) if not self.path.with_name(f"{NAME}.old{n}").exists())
        kept = self.path.with_name(f"{NAME}.old{number}")
        self.path.rename(kept)
        self.say(f"{self.path}: started anew, and the file that was there is now {kept.name}: {why}")

    @property
    def finished(self) -> set[str]:
        return {name for name, part in self.parts.items() if not part.keys() & set(UNFINISHED)}

    def failures(self) -> dict[str, str]:
        return {name: part["failed"] for name, part in self.parts.items() if "failed" in part}

    def put(self, name: str, part: dict[str, Any]) -> None:
        self.parts[name] = part
        if not self.write():
            self.say(json.dumps({name: part}))

    def write(self) -> bool:
        """Whether the file could be written."""
        lines = [f" {json.dumps(name)}: {json.dumps(part)}" for name, part in sorted(self.parts.items())]
        text = f'{{"run": {json.dumps(self.run, indent=1)},\n"parts": {{\n' + ",\n".join(lines) + "\n}}\n"
        return self.save(self.path, text)

    def save(self, path: Path, text: str) -> bool:
        """Puts a file in the place of the one before, whole or not at all."""
        partial = path.with_name(f"{path.name}.partial")
        try:
            partial.write_text(text)
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            if str(error) != self.complaint:
                self.say(f"{path} could not be written, so what it lacks is printed here: {error}")
            self.complaint = str(error)
            return False
        self.complaint = ""
        return True

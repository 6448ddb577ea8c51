"""Compiles sources into object files, for setup.py and for csrc/runtime/build.py, and each again only when it must be.

An object is current when the same command made it, which is written beside it, and when no file is newer that the
compiler read then (which -MMD lists). Commands name the headers of Python where a source needs them alone, so that
builds for several releases of Python share all other objects.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def jobs() -> int:
    """How many compilers run at a time."""
    return int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)


def run(*command: str | Path) -> None:
    words = [str(word) for word in command]
    print(shlex.join(words), flush=True)
    subprocess.run(words, cwd=ROOT, check=True)


def is_current(built: Path, how: str, inputs: Iterable[Path]) -> bool:
    """Whether a file was made in this way, and after its inputs changed last. Where not, the file is removed."""
    said = built.with_name(f"{built.name}.how")
    try:
        made = built.stat().st_mtime
        current = said.read_text() == how and all(path.stat().st_mtime < made for path in inputs)
    except OSError:  # the file, or one of its inputs, does not exist
        current = False
    if not current:
        built.unlink(missing_ok=True)
        said.write_text(how)
    return current


def files_read(listed: Path) -> list[Path]:
    """The files in a list that the compiler wrote, which has the form of a rule of make."""
    return [ROOT / word for word in shlex.split(listed.read_text().replace("\\\n", " ").partition(":")[2])]


def compile_object(built: Path, source: Path, *command: str) -> Path:
    """Compiles a source with the compiler and the flags of `command`, unless its object is current."""
    words = [*command, "-c", str(source.relative_to(ROOT))]
    listed = built.with_suffix(".d")
    built.parent.mkdir(parents=True, exist_ok=True)
    if not is_current(built, shlex.join(words), files_read(listed) if listed.exists() else [listed]):
        partial = built.with_suffix(".partial.o")  # so that a file half written is never taken for an object
        run(*words, "-MMD", "-MF", listed.resolve(), "-o", partial.resolve())
        partial.replace(built)
    return built

"""The inputs that `make fuzz-files` starts from and that the tests replay: tests/fuzz/corpus.tar.xz, TARGET/HASH.

They are the smallest inputs of a long run that together take every step, from a line to the next, that any of its
inputs took in the library's own files. `python tests/fuzz/fuzz_files.py --minimise` writes the archive anew.
"""

from __future__ import annotations

import hashlib
import io
import sys
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import seqcls_fast

ARCHIVE = Path(__file__).with_name("corpus.tar.xz")
PACKAGE = Path(seqcls_fast.__file__).parent
FILES = {  # of the package, those whose code a target is to reach
    "csv": ("toolkit/data/formats.py", "toolkit/data/records.py", "toolkit/data/readers.py"),
    "jsonl": ("toolkit/data/formats.py", "toolkit/data/records.py", "toolkit/data/series.py"),
    "ts": ("toolkit/data/formats.py", "toolkit/data/records.py"),
    "parquet": ("toolkit/data/parquet.py", "toolkit/data/records.py"),
    "encoder": ("toolkit/data/errors.py", "toolkit/data/text.py", "toolkit/data/series.py", "toolkit/schema.py"),
    "store": ("toolkit/store.py", "toolkit/schema.py", "toolkit/fitted.py", "toolkit/parameter_checks.py"),
    "checkpoint": ("toolkit/training/checkpoint.py", "toolkit/training/resume.py", "toolkit/schema.py"),
    "options": ("cli/options.py", "toolkit/parameter_checks.py", "toolkit/schema.py"),
}
Step = tuple[str, int, int]  # a file, a line, and the line before it in the same function


def name_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def load() -> dict[str, list[bytes]]:
    """The inputs of each target."""
    found: dict[str, list[bytes]] = defaultdict(list)
    with tarfile.open(ARCHIVE) as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            found[member.name.partition("/")[0]].append(content.read())
    return dict(found)


def save(corpus: dict[str, list[bytes]]) -> None:
    with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
        for target, inputs in corpus.items():
            for data in inputs:
                member = tarfile.TarInfo(f"{target}/{name_of(data)}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


def steps_of(run: Callable[[], Any], files: Iterable[str]) -> set[Step]:
    """The steps from line to line that a call takes in these files of the package."""
    wanted = {str(PACKAGE / file): file for file in files}
    found: set[Step] = set()

    def enter(frame: FrameType, event: str, argument: Any) -> Any:
        file = wanted.get(frame.f_code.co_filename)
        if file is None:
            return None
        before = frame.f_code.co_firstlineno

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal before
            if event == "line":
                found.add((file, frame.f_lineno, before))
                before = frame.f_lineno
            return line

        return line

    previous = sys.gettrace()
    sys.settrace(enter)
    try:
        run()
    finally:
        sys.settrace(previous)
    return found


def minimised(target: str, inputs: Iterable[bytes], run: Callable[[str, bytes], None]) -> tuple[list[bytes], set[Step]]:
    """The smallest inputs that take every step that any input takes, and these steps."""
    kept, all_steps = [], set()
    for data in sorted(set(inputs), key=lambda data: (len(data), data)):
        steps = steps_of(lambda data=data: run(target, data), FILES[target])  # type: ignore[misc]
        if steps - all_steps:
            kept.append(data)
            all_steps |= steps
    return kept, all_steps


def lines_in_functions(file: str) -> set[int]:
    """The lines of a file's functions; those outside run once, when the file is imported."""
    path = PACKAGE / file
    found: set[int] = set()
    waiting = [compile(path.read_text(encoding="utf-8"), str(path), "exec")]
    while waiting:
        code = waiting.pop()
        waiting += [each for each in code.co_consts if isinstance(each, CodeType)]
        if code.co_flags & 2:  # the code of a function, not of a module or class
            found |= {line for *_, line in code.co_lines() if line and line != code.co_firstlineno}
    return found

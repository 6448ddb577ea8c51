"""csrc/compile.py compiles what has changed and nothing else, with a compiler that is a shell script."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Writes its arguments into the object, lists the source and a header as read, and fails where the source says so.
COMPILER = """\
#!/bin/sh
for word; do
  case "$before" in -o) output=$word ;; -c) source=$word ;; -MF) listed=$word ;; esac
  before=$word
done
printf 'one.o: %s \\\\\n csrc/with\\\\ space.h\n' "$source" > "$listed"
grep -q broken "$source" && echo half > "$output" && exit 2
echo "$@" > "$output"
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the script that stands for the compiler needs a shell")


@pytest.fixture
def compile_one(tmp_path: Path) -> Callable[..., bool]:
    """Compiles csrc/one.cpp if need be, and says whether it was. `touched` is the one file newer than the object."""
    sources = [tmp_path / "csrc" / name for name in ("one.cpp", "two.cpp", "with space.h")]
    sources[0].parent.mkdir()
    for path in sources:
        path.write_text("")
    shutil.copy(ROOT / "csrc/compile.py", tmp_path / "csrc")
    (tmp_path / "compiler").write_text(COMPILER)
    (tmp_path / "compiler").chmod(0o755)
    compile_object = runpy.run_path(str(tmp_path / "csrc/compile.py"))["compile_object"]
    built = tmp_path / "objects/one.o"

    def call(*flags: str, touched: str = "") -> bool:
        for path in (path for path in (*sources, built) if path.exists()):
            age = 0 if path.name == touched else 50 if path == built else 100
            os.utime(path, (time.time() - age,) * 2)
        before = built.stat().st_mtime_ns if built.exists() else None
        assert compile_object(built, sources[0], str(tmp_path / "compiler"), *flags) == built
        return built.stat().st_mtime_ns != before

    return call


def test_objects_are_kept_until_something_changes(compile_one: Callable[..., bool], tmp_path: Path) -> None:
    assert compile_one("-O2")
    words = (tmp_path / "objects/one.o").read_text().split()
    assert words[:3] == ["-O2", "-c", "csrc/one.cpp"]
    assert not compile_one("-O2")
    assert compile_one("-O2", touched="one.cpp")
    assert not compile_one("-O2", touched="two.cpp")
    assert compile_one("-O2", touched="with space.h")
    assert compile_one("-O3")
    (tmp_path / "objects/one.d").unlink()
    assert compile_one("-O3")
    (tmp_path / "csrc/with space.h").unlink()
    assert compile_one("-O3")


def test_a_failed_compilation_leaves_no_object(compile_one: Callable[..., bool], tmp_path: Path) -> None:
    assert compile_one()
    (tmp_path / "csrc/one.cpp").write_text("broken")
    with pytest.raises(subprocess.CalledProcessError):
        compile_one(touched="one.cpp")
    assert not (tmp_path / "objects/one.o").exists()

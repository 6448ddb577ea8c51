"""The source distribution: all files that git tracks, and so all that its own Makefile calls; nothing else.

That the distributions can be installed is checked by tools/package_check.py, which `make package-check` runs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATED = re.compile(r"PKG-INFO|setup\.cfg|.*\.egg-info/.*")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in a source distribution that setup.py makes, with no file written into the tree."""
    folder = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", folder, "sdist", "--dist-dir", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        if hasattr(tarfile, "data_filter"):
            file.extractall(folder, filter="data")
        else:  # Python 3.11.3 and earlier
            file.extractall(folder)
    return folder / archive.name.removesuffix(".tar.gz")


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_holds_what_git_tracks_and_nothing_else(unpacked: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("no clone, so that git does not say what belongs to the project")

    def listed(*options: str) -> set[str]:
        command = ["git", "ls-files", "-z", *options]
        names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
        return {name for name in names if name and (ROOT / name).exists()}

    tracked, new = listed(), listed("--others", "--exclude-standard")
    held = {name for name in files_below(unpacked) if not GENERATED.fullmatch(name)}
    assert (sorted(tracked - held), sorted(held - tracked - new)) == ([], [])
    assert [name for name in sorted(held) if (ROOT / name).read_bytes() != (unpacked / name).read_bytes()] == []


def test_holds_what_its_makefile_names(unpacked: Path) -> None:
    """Every word of the Makefile that is a path here, as it is or below tests/, is one in the distribution, too."""
    text = (unpacked / "Makefile").read_text()
    words = set(re.findall(r"(?<![\w./-])\.?[\w][\w./-]*[\w]", text))
    words |= {word.replace(".", "/") for word in re.findall(r"-m (benchmarks[\w.]*)", text)}
    named = {f"{start}{word}" for word in words for start in ("", "tests/", "tests/layers/")}
    made = (".venv", "build", "dist", ".benchmarks", ".hypothesis", ".mypy_cache", ".pytest_cache", ".ruff_cache")
    here = {
        name for name in named if (ROOT / name).exists() and not name.startswith(made) and "__pycache__" not in name
    }
    assert {".ci/greps", "setup.py", "tools/cuda_check.py", "tests/layers/test_ops.py", "benchmarks/gpu"} <= here
    assert [name for name in sorted(here) if not (unpacked / name).exists()] == []


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_every_target_finds_what_it_needs(unpacked: Path) -> None:
    """make -n says what it would run, and fails where a file is missing that nothing makes."""
    text = (unpacked / "Makefile").read_text().replace("\\\n", "")
    targets = " ".join(re.findall(r"^\.PHONY:(.*)", text, re.MULTILINE)).split()
    assert {"test", "lint", "check", "fuzz", "torch-floor", "package-check"} <= set(targets)
    done = subprocess.run(["make", "-n", *targets], cwd=unpacked, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (unpacked / ".ci/run").stat().st_mode & 0o100
    script = (unpacked / ".ci/run").read_text()
    assert "make --no-print-directory check" in script


@pytest.mark.skipif(shutil.which("git") is None, reason="the rules are searched for with git grep")
def test_its_rules_are_checked_there(unpacked: Path, tmp_path: Path) -> None:
    """.ci/greps works in a folder without a repository, and notices a line that breaks a rule."""
    copy = shutil.copytree(unpacked, tmp_path / "copy")
    done = subprocess.run([copy / ".ci/greps"], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    with (copy / "csrc/core/math.h").open("a") as file:
        file.write("#include <torch/torch.h>\n")
    done = subprocess.run([copy / ".ci/greps"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "csrc/core/math.h" in done.stderr

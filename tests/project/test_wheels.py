"""tools/wheels.py, tools/wheel_test.py and tools/matrix.py: what they refuse, each time with a sentence and a status.

That wheels are built, fit for other systems, and work is checked by `make wheels` itself.
"""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

import matrix
import wheel_test
import wheels

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "seqcls_fast"
HERE = "{}.{}".format(*sys.version_info[:2])
TAG = wheels.tag_of(HERE)
Usage = namedtuple("Usage", "free")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="wheels are built here on Linux alone")


def made(
    folder: Path, *modules: str, tag: str = TAG, platform: str = "linux_x86_64", more: str = "",
    version: str = wheels.VERSION,
) -> Path:  # fmt: skip
    """A wheel with the package's Python files and with modules that are empty."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"seqcls_fast-{version}-{tag}-{tag}-{platform}.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for pattern in ("*.py", "*.pyi", "py.typed"):
            for path in PACKAGE.rglob(pattern):
                file.writestr(str(path.relative_to(ROOT)), "")
        for module in modules:
            file.writestr(f"seqcls_fast/{module}.cpython-{tag[2:]}-x86_64-linux-gnu.so", "")
        file.writestr("seqcls_fast-0.1.0.dist-info/METADATA", "")
        if more:
            file.writestr(more, "")
    return wheel


def test_a_sound_wheel_has_no_faults(tmp_path: Path) -> None:
    assert wheels.faults(made(tmp_path, "_C", "_runtime", "_eager_2_13_0")) == []


@pytest.mark.parametrize(
    ("modules", "more", "sentence"),
    [
        (("_C",), "", "expected seqcls_fast/_runtime for this Python but there is none"),
        (("_runtime",), "", "expected seqcls_fast/_C for this Python but there is none"),
        (("_C", "_runtime"), "seqcls_fast/old.py", "expected the files of seqcls_fast/ but differ: seqcls_fast/old.py"),
    ],
)
def test_what_is_wrong_with_a_wheel_is_said(tmp_path: Path, modules: tuple[str, ...], more: str, sentence: str) -> None:
    wheel = made(tmp_path, *modules, more=more)
    assert wheels.faults(wheel) == [sentence]
    with pytest.raises(SystemExit, match=re.escape(f"{wheel.name}: {sentence}")):
        wheels.repair(wheel, tmp_path / "out")


def test_a_path_of_this_machine_is_refused(tmp_path: Path) -> None:
    wheel = made(tmp_path, "_C", "_runtime")
    with zipfile.ZipFile(wheel, "a") as file:
        file.writestr("seqcls_fast/_eager.so", f"failed at {ROOT}/csrc/a.h:7")
    assert wheels.faults(wheel) == [f"expected no path of this machine but seqcls_fast/_eager.so has {ROOT}/"]


def test_a_large_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = made(tmp_path, "_C", "_runtime")
    monkeypatch.setattr(wheels, "MOST_BYTES", 100)
    assert wheels.faults(wheel) == [f"expected at most 100 bytes but got {wheel.stat().st_size}"]


def test_repair_needs_a_wheel_and_auditwheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="expected a wheel but there is no "):
        wheels.repair(tmp_path / "none.whl", tmp_path)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(SystemExit, match="expected auditwheel, which pip installs, beside this interpreter"):
        wheels.repair(made(tmp_path, "_C", "_runtime"), tmp_path / "out")


def test_what_auditwheel_refuses_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel that another tool leaves in the folder does not count, and the tool's own words are shown."""
    (tmp_path / "auditwheel").write_text("#!/bin/sh\necho too recent versioned symbols\nexit 1\n")
    (tmp_path / "auditwheel").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    earlier = made(tmp_path / "out", platform="manylinux_2_28_x86_64")
    with pytest.raises(SystemExit, match=r"(?s)too recent versioned symbols.*exit status 1"):
        wheels.repair(made(tmp_path, "_C", "_runtime"), tmp_path / "out")
    assert not earlier.exists()


def test_interpreters_are_found_or_their_absence_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert wheels.found_here([HERE]) == {HERE: Path(sys.executable)}
    with pytest.raises(SystemExit, match=r"expected CPython 3\.4 on the PATH or in pyenv, but there is none"):
        wheels.found_here([HERE, "3.4"])
    assert capsys.readouterr().err == ""


def test_a_release_that_nobody_named_may_be_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wheels, "RELEASES", ("3.4", HERE))
    assert list(wheels.found_here(None)) == [HERE]
    assert capsys.readouterr().err == (
        "expected CPython 3.4 on the PATH or in pyenv, but there is none: no wheel for it\n"
    )
    monkeypatch.setattr(wheels, "RELEASES", ("3.4",))
    with pytest.raises(SystemExit, match=r"expected CPython 3\.4"):
        wheels.found_here(None)


def test_a_build_needs_a_compiler_and_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "WORK", tmp_path)
    monkeypatch.setattr(wheels.shutil, "disk_usage", lambda path: Usage(5 << 20))
    with pytest.raises(SystemExit, match=r"expected 1024 MiB of free disk but got 5$"):
        wheels.build_all([HERE], [], tmp_path)
    monkeypatch.setenv("CXX", "no-compiler")
    with pytest.raises(SystemExit, match=r"expected a C\+\+ compiler as c\+\+, or in CXX, but there is none"):
        wheels.build_all([HERE], [], tmp_path)


def test_only_a_wheel_for_the_running_python_is_tried(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=rf"expected a wheel for CPython {HERE} but got seqcls_fast-.*-cp34-"):
        wheel_test.try_out(made(tmp_path, tag="cp34"), tmp_path, [])
    with pytest.raises(
        SystemExit, match=rf"one wheel of version .* for CPython {HERE}, .* but got seqcls_fast-.*-cp34-"
    ):
        wheels.test_all([HERE], [], [], made(tmp_path / "out", tag="cp34", platform="manylinux_2_28_x86_64").parent)


def test_only_the_wheel_of_this_version_is_taken(tmp_path: Path) -> None:
    mine = made(tmp_path, platform="manylinux_2_28_x86_64")
    for version in ("0.0.9", "99.0"):
        made(tmp_path, platform="manylinux_2_28_x86_64", version=version)
    assert wheels.wheel_of(HERE, tmp_path) == mine
    made(tmp_path, platform="manylinux_2_28_aarch64")
    with pytest.raises(SystemExit, match=r"expected one wheel of version .*_aarch64\.whl, .*_x86_64\.whl$"):
        wheels.wheel_of(HERE, tmp_path)
    mine.unlink()
    with pytest.raises(SystemExit, match=r"expected one wheel of version .* but got none$"):
        wheels.wheel_of(HERE, tmp_path / "empty")


def test_a_wheel_has_entries_for_some_torch(tmp_path: Path) -> None:
    wheel = made(tmp_path, "_C", "_eager_2_13_0")
    assert [release for release in ("2.12.1", "2.13", "2.13.0") if wheel_test.has_entry(wheel, release)] == ["2.13.0"]


def test_a_program_prints_its_sentence_alone() -> None:
    command = [sys.executable, ROOT / "tools/wheels.py", "repair", "none.whl"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stderr) == (1, f"expected a wheel but there is no {ROOT / 'none.whl'}\n")


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two pairs for the matrix, with a wheel in tmp_path."""
    made(tmp_path, platform="manylinux_2_28_x86_64")
    found = [f"{HERE}-2.11.0", f"{HERE}-2.13.0"]
    monkeypatch.setattr(matrix, "PAIRS", tuple(found))
    monkeypatch.setattr(matrix, "WORK", tmp_path / "work")
    monkeypatch.setattr(sys, "argv", ["matrix.py", "--wheels", str(tmp_path)])
    return found


def test_the_matrix_goes_on_where_it_stopped(
    pairs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[str] = []

    def try_pair(pair: str, *_: object) -> dict[str, object]:
        tried.append(pair)
        if len(tried) == 2:
            raise KeyboardInterrupt
        return {"passed": len(tried) != 3, "seconds": 7, "megabytes": 5000}

    monkeypatch.setattr(matrix, "try_pair", try_pair)
    with pytest.raises(KeyboardInterrupt):
        matrix.main()
    assert matrix.main() == 1  # the second pair alone, which fails
    assert matrix.main() == 0  # once more, which passes
    assert matrix.main() == 0  # nothing is left
    assert tried == [pairs[0], pairs[1], pairs[1], pairs[1]]
    said = capsys.readouterr().out
    assert f"{pairs[1]}: FAILED, 7 s, 5000 MB installed for it\n" in said
    assert said.endswith(f"{pairs[1]}: passed, 7 s, 5000 MB installed for it\n")
    made(tmp_path, platform="manylinux_2_28_x86_64", more="seqcls_fast/new.py")
    assert matrix.main() == 0  # another wheel
    assert tried[4:] == pairs


def test_what_the_matrix_refuses(pairs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix.shutil, "disk_usage", lambda path: Usage(5 << 20))
    with pytest.raises(SystemExit, match=rf"{pairs[0]}: expected 8192 MiB of free disk but got 5$"):
        matrix.main()
    monkeypatch.setattr(matrix, "PAIRS", ("3.4-2.11.0",))
    with pytest.raises(SystemExit, match=r"for CPython 3\.4, as `make wheels` leaves it, but got seqcls_fast-.*\.whl$"):
        matrix.main()
    made(tmp_path, tag="cp34", platform="manylinux_2_28_x86_64")
    with pytest.raises(SystemExit, match=r"3\.4-2\.11\.0: expected CPython 3\.4 on the PATH or in pyenv"):
        matrix.main()
    monkeypatch.setattr(sys, "argv", ["matrix.py", "--pairs", "3.9-1.0.0"])
    with pytest.raises(SystemExit, match=r"--pairs: expected some of 3\.4-2\.11\.0 but got 3\.9-1\.0\.0"):
        matrix.main()


def test_pairs_are_of_pythons_that_have_wheels() -> None:
    assert {pair.split("-")[0] for pair in matrix.PAIRS} == set(wheels.RELEASES)


def test_cibuildwheel_calls_targets_of_the_makefile() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    settings = text[text.index("[tool.cibuildwheel]") : text.index("[tool.pytest")]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    called = re.findall(r'"make (?:-C \{project\} )?([a-z-]+)', settings)
    assert {"wheel-torch", "wheel-needs", "wheel-repair", "wheel-try"} == set(called) <= set(targets)
    assert len(called) == settings.count("make ")
    assert all(f"{wheels.tag_of(release)}-*" in settings for release in wheels.RELEASES)

"""Builds the wheels of x86-64 Linux, and makes them fit for other systems. `make wheels` runs it.

    python tools/wheels.py build [--pythons 3.10 3.13] [--eager-for FOLDER ...] [--out dist]
    python tools/wheels.py repair WHEEL [--out dist]
    python tools/wheels.py test [--with-torch PYTHON ...] [--tests FILE ...] [--out dist]

build makes a wheel for each release of CPython that is found here. No other Python needs torch for that: setup.py takes
the headers of this one's, and what includes none of Python's is compiled once for all wheels. repair checks a wheel and
gives it the tag of PLATFORM; cibuildwheel calls it too. test uses each wheel with torch in the interpreters that are
named, and without torch in the others.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERSION = runpy.run_path(str(ROOT / "seqcls_fast/_version.py"))["__version__"]
RELEASES = ("3.10", "3.11", "3.12", "3.13")
PLATFORM = "manylinux_2_28"  # that of torch's own wheels
OF_TORCH = ("libc10", "libtorch")  # libraries that torch has in memory before ours are loaded
MOST_BYTES = 10_000_000
LEAST_FREE = 1 << 30
WORK = ROOT / "build/wheels"
NEEDS = ("setuptools>=77", "wheel", "packaging", "numpy")  # to build, and to try the runtime


def run(*command: str | Path, **changes: str) -> str:
    """What a command prints. If it fails, so does this program, with its output."""
    environment = os.environ | changes
    done = subprocess.run(
        command, cwd=ROOT, env=environment, text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}exit status {done.returncode}")
    return done.stdout


def tag_of(release: str) -> str:
    return f"cp{release.replace('.', '')}"


def interpreter(release: str) -> Path | None:
    """A CPython of a release such as "3.12": this one, one on the PATH, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = [sys.executable, shutil.which(f"python{release}")]
    candidates += [str(path) for path in sorted(pyenv.glob(f"{release}.*/bin/python"), reverse=True)]
    question = "import sys; print(sys.implementation.name, '%d.%d' % sys.version_info[:2])"
    for candidate in filter(None, candidates):
        done = subprocess.run([candidate, "-c", question], capture_output=True, text=True, check=False)
        if done.returncode == 0 and done.stdout.split() == ["cpython", release]:
            return Path(candidate)
    return None


def wheel_of(release: str, folder: Path) -> Path:
    """The wheel of this version for a release of CPython; wheels of other versions may lie beside it."""
    found = sorted(folder.glob(f"seqcls_fast-{VERSION}-{tag_of(release)}-*-{PLATFORM}_*.whl"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found or sorted(folder.glob("*.whl"))) or "none"
        raise SystemExit(f"{folder}: expected one wheel of version {VERSION} for CPython {release}, as `make wheels` "
                         f"leaves it, but got {names}")  # fmt: skip
    return found[0]


def workshop(release: str, python: Path) -> Path:
    """The interpreter of an environment with what a wheel is built with, made once."""
    folder = WORK / tag_of(release) / "environment"
    if not (folder / ".made").exists():
        shutil.rmtree(folder, ignore_errors=True)
        run(python, "-m", "venv", folder)
        run(folder / "bin/python", "-m", "pip", "--quiet", "install", *NEEDS)
        (folder / ".made").touch()
    return folder / "bin/python"


def torch_here() -> list[Path]:
    """The folder of this interpreter's torch, if it has one."""
    spec = find_spec("torch")
    return [Path(spec.origin).resolve().parent] if spec and spec.origin else []


def build(release: str, python: Path, eager_for: list[str]) -> Path:
    """The wheel for one Python, as setup.py makes it."""
    folder = WORK / tag_of(release)
    made = folder / "made"
    for old in (folder / "lib", folder / "parts", made):
        shutil.rmtree(old, ignore_errors=True)
    changes = {"SEQCLS_CUDA": "0", "SEQCLS_EAGER_FOR": os.pathsep.join(eager_for) or "0"}
    for torch in torch_here():
        changes["SEQCLS_TORCH"] = str(torch)
    linker = runpy.run_path(str(ROOT / "csrc/flags.py"))["COMPILER"]
    changes |= dict.fromkeys(("LDSHARED", "LDCXXSHARED"), f"{' '.join(linker)} -shared")  # no path of this Python
    run(workshop(release, python), "setup.py", "--quiet", "egg_info", "--egg-base", folder,
        "build", "--build-lib", folder / "lib", "bdist_wheel", "--bdist-dir", folder / "parts", "--dist-dir", made,
        **changes)  # fmt: skip
    (wheel,) = made.glob("*.whl")
    return wheel


def faults(wheel: Path) -> list[str]:
    """A sentence for each thing that is wrong with a wheel."""
    found = []
    if (size := wheel.stat().st_size) > MOST_BYTES:
        found.append(f"expected at most {MOST_BYTES} bytes but got {size}")
    paths = {f"{path}/" for path in (ROOT, Path.home(), *torch_here())}
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if ".dist-info/" not in name}
        for name in sorted(names):
            if held := sorted(path for path in paths if path.encode() in file.read(name)):
                found.append(f"expected no path of this machine but {name} has {', '.join(held)}")
    package = ROOT / "seqcls_fast"
    expected = {str(path.relative_to(ROOT)) for glob in ("*.py", "*.pyi", "py.typed") for path in package.rglob(glob)}
    if strange := {name for name in names if not name.endswith(".so")} ^ expected:
        found.append(f"expected the files of seqcls_fast/ but differ: {', '.join(sorted(strange))}")
    tag = wheel.name.split("-")[2].removeprefix("cp")
    for module in ("_C", "_runtime") if "-win" not in wheel.name else ():
        if not any(re.fullmatch(rf"seqcls_fast/{module}\.cpython-{tag}-.*\.so", name) for name in names):
            found.append(f"expected seqcls_fast/{module} for this Python but there is none")
    return found


def program(name: str) -> Path:
    """A program that pip has installed, beside this interpreter or elsewhere on the PATH."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        raise SystemExit(f"expected {name}, which pip installs, beside this interpreter or on the PATH")
    return Path(found)


def repair(wheel: Path, out: Path) -> Path:
    """Has auditwheel check the symbols that a wheel needs, and writes it with the tag of PLATFORM."""
    if not wheel.exists():
        raise SystemExit(f"expected a wheel but there is no {wheel}")
    if sentences := faults(wheel):
        raise SystemExit(f"{wheel.name}: {'; '.join(sentences)}")
    out.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"-linux_(\w+)\.whl$", rf"-{PLATFORM}_\1.whl", wheel.name)
    (out / name).unlink(missing_ok=True)
    if "-linux_" in wheel.name:
        auditwheel, tag = program("auditwheel"), name.removesuffix(".whl").split("-")[-1]
        excluded = [word for library in OF_TORCH for word in ("--exclude", f"{library}*.so")]
        run(auditwheel, "repair", "--plat", tag, "--only-plat", *excluded, "--wheel-dir", out, wheel,
            PATH=f"{auditwheel.parent}{os.pathsep}{os.environ['PATH']}")  # fmt: skip
    elif "-macosx_" in wheel.name:
        excluded = [word for library in OF_TORCH for word in ("--exclude", library)]
        run(program("delocate-wheel"), *excluded, "--wheel-dir", out, wheel)
    else:
        shutil.copy2(wheel, out)
    if not (out / name).exists():
        raise SystemExit(
            f"{wheel.name}: expected {name} in {out} but got {sorted(path.name for path in out.iterdir())}"
        )
    return out / name


def found_here(releases: list[str] | None) -> dict[str, Path]:
    """The interpreters to build for. One that is asked for must exist, of the others only one."""
    found = {release: interpreter(release) for release in releases or RELEASES}
    missing = [release for release, python in found.items() if python is None]
    here = {release: python for release, python in found.items() if python is not None}
    if missing:
        sentence = f"expected CPython {', '.join(missing)} on the PATH or in pyenv, but there is none"
        if releases or not here:
            raise SystemExit(sentence)
        print(f"{sentence}: no wheel for it", file=sys.stderr)
    return here


def build_all(releases: list[str] | None, eager_for: list[str], out: Path) -> None:
    if not runpy.run_path(str(ROOT / "csrc/flags.py"))["HAVE_COMPILER"]:
        raise SystemExit("expected a C++ compiler as c++, or in CXX, but there is none")
    WORK.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(WORK).free) < LEAST_FREE:
        raise SystemExit(f"{WORK}: expected {LEAST_FREE >> 20} MiB of free disk but got {free >> 20}")
    for release, python in found_here(releases).items():
        wheel = repair(build(release, python, eager_for), out)
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB", flush=True)


def test_all(releases: list[str] | None, with_torch: list[str], tests: list[str], out: Path) -> None:
    """Uses the wheel of each Python. What an interpreter with torch writes, those without torch read."""
    folder, here = WORK / "models", found_here(releases)
    wheels = {release: wheel_of(release, out) for release in here}
    question = "import sys, torch; print('%d.%d' % sys.version_info[:2])"
    of_release = {python: run(python, "-c", question).strip() for python in with_torch}
    for python, release in of_release.items():
        if release in here:
            print(run(python, "tools/wheel_test.py", wheels[release], folder, *tests), end="", flush=True)
    libraries = os.pathsep.join(str(torch / "lib") for torch in torch_here())
    for release in sorted(set(here) - set(of_release.values())):
        python = workshop(release, here[release])
        print(run(python, "tools/wheel_test.py", wheels[release], folder, LD_LIBRARY_PATH=libraries), end="")


def main() -> None:
    parser = argparse.ArgumentParser(description="Build wheels for x86-64 Linux.")
    commands = parser.add_subparsers(dest="command", required=True)
    building = commands.add_parser("build", help="a wheel for each Python that is found")
    testing = commands.add_parser("test", help="use the wheels")
    for command in (building, testing):
        command.add_argument("--pythons", nargs="*", help="releases such as 3.12; all that are found without it")
    testing.add_argument("--with-torch", nargs="*", default=[], help="interpreters that have a torch")
    testing.add_argument("--tests", nargs="*", default=[], help="files of tests, for those with torch")
    building.add_argument("--eager-for", nargs="*", default=[], help="folders of torch that get an eager entry")
    repairing = commands.add_parser("repair", help="check a wheel and give it its tag")
    repairing.add_argument("wheel", type=Path)
    for command in (building, repairing, testing):
        command.add_argument("--out", type=Path, default=ROOT / "dist")
    options = parser.parse_args()
    if options.command == "build":
        build_all(options.pythons, options.eager_for, options.out.resolve())
    elif options.command == "test":
        test_all(options.pythons, options.with_torch, options.tests, options.out.resolve())
    else:
        print(repair(options.wheel.resolve(), options.out.resolve()))


if __name__ == "__main__":
    main()

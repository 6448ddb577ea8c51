"""Installs the package as a user would, into environments that hold nothing else. `make package-check` runs it.

    python tools/package_check.py [--compile]
    python tools/package_check.py --floor [ARGUMENT OF PYTEST ...]

An environment sees no package of this interpreter but links to torch and what it requires, and later to what the extra
`toolkit` declares: so a requirement that pyproject.toml leaves out is noticed, and nothing is downloaded. --floor
(`make extras-floor`) has pip fetch the oldest versions that the extras allow, and runs the tests that need them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "seqcls-fast"
TESTED = ("toolkit", "export")  # the extras whose oldest versions are tested
TOOLS = ("pytest", "pytest-xdist", "hypothesis", "expecttest")
TESTS = ("tests/toolkit", "tests/cli", "tests/transforms/test_export_onnx.py", "tests/layers/test_oracle_onnx.py")
TESTS_NEED = ("onnxruntime>=1.26.0", "tensorboard")  # beside TOOLS; with numpy, of which pip keeps the oldest version
ALONE = """
import importlib.util, pathlib, sys
import torch, seqcls_fast as sf
folder = pathlib.Path(sf.__file__).parent
assert folder.is_relative_to(sys.prefix), folder
assert (folder / "py.typed").exists() and (folder / "_C.pyi").exists()
strangers = ("numpy", "sklearn", "tokenizers", "pytest", "pybind11")
assert [name for name in strangers if importlib.util.find_spec(name)] == []
output, h_n = sf.GRU(3, 4)(torch.randn(5, 2, 3))
output.sum().backward()
try:
    sf.TextClassifier().fit(["one", "two"] * 4, [0, 1] * 4)
except ImportError as error:
    assert "seqcls-fast[toolkit]" in str(error), error
else:
    raise AssertionError("expected TextClassifier to ask for the extra")
assert (sf.ops.available_impls()[-1] not in ("reference", "torch")) == (sys.argv[1] == "compiled")
"""


def run(*command: str | Path, cwd: Path = ROOT, changes: dict[str, str] | None = None) -> None:
    """Runs a command without what the caller's environment says about Python."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | (changes or {})
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")


def required(names: Iterable[str]) -> dict[str, metadata.Distribution]:
    """The installed distributions of some requirements, with all that they require in turn."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        known = f"{wanted.name.lower()}[{','.join(sorted(wanted.extras))}]"
        if known in found:
            continue
        found[known] = metadata.distribution(wanted.name)
        for each in map(Requirement, found[known].requires or ()):
            if each.marker is None or any(each.marker.evaluate({"extra": name}) for name in ("", *wanted.extras)):
                waiting.append(each)
    return found


class Environment:
    """A virtual environment into which pip installs nothing but the package."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.folder, self.python, self.links = folder, folder / "bin/python", folder / "links"
        self.links.mkdir()
        (self.site,) = folder.glob("lib/python*/site-packages")
        (self.site / "links.pth").write_text(f"{self.links}\n")

    def link(self, *names: str) -> None:
        """Shows the distributions of some requirements, with all that they require."""
        for each in required(names).values():
            for top in {file.parts[0] for file in each.files or ()} - {"..", "__pycache__"}:
                link = self.links / top
                if not link.is_symlink():
                    link.symlink_to(str(each.locate_file(top)))

    def install(self, *arguments: str | Path) -> None:
        run(sys.executable, "-m", "pip", "--quiet", "--python", self.python, "install", *arguments)

    def check(self, *command: str | Path) -> None:
        """Runs a program of the environment in an empty folder, so that the sources are not imported."""
        with tempfile.TemporaryDirectory() as nowhere:
            run(self.folder / "bin" / command[0], *command[1:], cwd=Path(nowhere))


def wheel_of_the_tree(folder: Path) -> Path:
    """A wheel with the extension that was built in the tree, so that nothing is compiled once more."""
    package, library = ROOT / "seqcls_fast", folder / "lib"
    built = sorted(package.glob("_C*.so"))
    if len(built) != 1:
        raise SystemExit(f"seqcls_fast/: expected one extension, as `make build` leaves it, but got {len(built)}")
    (library / package.name).mkdir(parents=True)
    shutil.copy2(built[0], library / package.name)
    settings = folder / "wheel.cfg"
    settings.write_text(f"[build]\nbuild_lib = {library}\n")
    run(sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", folder, "build_py", "bdist_wheel",
        "--skip-build", "--bdist-dir", folder / "parts", "--dist-dir", folder,
        changes={"DIST_EXTRA_CONFIG": str(settings)})  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {str(path.relative_to(ROOT)) for glob in ("*.py", "*.pyi", "py.typed") for path in package.rglob(glob)}
    if {name for name in held if not name.endswith(".so")} != expected:
        raise SystemExit(f"{wheel.name}: expected the files of seqcls_fast/ but differ {sorted(held ^ expected)}")
    return wheel


def wheel_of_the_source(folder: Path, compile_it: bool) -> Path:
    """A wheel that pip makes from the source distribution: for one instruction set, or without the extension."""
    run(sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", folder, "sdist", "--dist-dir", folder)
    (source,) = folder.glob("*.tar.gz")
    settings = folder / "build.cfg"
    settings.write_text("[build_ext]\nisas = base\n")
    compiler = {} if compile_it else {"CXX": "no-compiler"}
    run(sys.executable, "-m", "pip", "--quiet", "wheel", "--no-build-isolation", "--no-deps", "--no-index",
        "--wheel-dir", folder, source, changes={"DIST_EXTRA_CONFIG": str(settings)} | compiler)  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    return wheel


def declared(folder: Path, *extras: str) -> list[Requirement]:
    """What some extras require, by the metadata in the folder; what is installed here may be of an earlier revision."""
    (made,) = [*folder.glob("*.egg-info"), *folder.glob("seqcls_fast-*.dist-info")]
    every = map(Requirement, metadata.Distribution.at(made).requires or ())
    found = [each for each in every if each.marker and any(each.marker.evaluate({"extra": name}) for name in extras)]
    for each in found:
        each.marker = None
    return found


def check_wheel(folder: Path) -> str:
    """The tree's wheel: the package alone, then with the extra `toolkit`."""
    folder.mkdir()
    wheel, environment = wheel_of_the_tree(folder), Environment(folder / "environment")
    environment.link("torch")
    environment.install("--no-index", wheel)  # pip refuses if a requirement is missing
    environment.check("python", "-c", ALONE, "compiled")
    environment.check(PACKAGE, "info")
    environment.link(*map(str, declared(environment.site, "toolkit")))
    environment.install("--no-index", f"{PACKAGE}[toolkit] @ {wheel.as_uri()}")
    data, model = folder / "data.csv", folder / "model"
    data.write_text("text,label\n" + "a good film,good\na dull film,bad\n" * 20)
    environment.check(PACKAGE, "train", data, "--epochs", "2", "--hidden-size", "8", "--out", model)
    environment.check(PACKAGE, "evaluate", model, data, "--html", folder / "report.html")
    return f"{wheel.name}: the package alone, and its extra toolkit, install and work"


def check_source(folder: Path, compile_it: bool) -> str:
    """The source distribution: the package alone."""
    folder.mkdir()
    wheel, environment = wheel_of_the_source(folder, compile_it), Environment(folder / "environment")
    environment.link("torch")
    environment.install("--no-index", wheel)
    environment.check("python", "-c", ALONE, "compiled" if compile_it else "without")
    return f"the source distribution, as {wheel.name}: the package alone installs and works"


def check_floor(folder: Path, arguments: list[str]) -> int:
    """The tests of the extras, with the oldest version of each requirement."""
    run(sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", folder)
    oldest = []
    for each in declared(folder, *TESTED):
        (version,) = [part.version for part in each.specifier if part.operator in (">=", "~=")]
        oldest.append(f"{each.name}=={version}")
    print(*oldest, flush=True)
    environment = Environment(folder / "environment")
    environment.link("torch", *TOOLS)
    environment.install(*oldest, *TESTS_NEED)
    command = [str(environment.python), "-m", "pytest", "-p", "no:cacheprovider", *arguments, *TESTS]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description="Install the package into clean environments and use it there.")
    parser.add_argument("--compile", action="store_true", help="compile the source distribution, too (minutes)")
    parser.add_argument("--floor", action="store_true", help="test with the oldest versions that the extras allow")
    options, arguments = parser.parse_known_args()
    if arguments and not options.floor:
        parser.error(f"expected no arguments without --floor but got {' '.join(arguments)}")
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor() as pool:
        folder = Path(name)
        if options.floor:
            return check_floor(folder, arguments)
        checks = [
            pool.submit(check_wheel, folder / "wheel"),
            pool.submit(check_source, folder / "source", options.compile),
        ]
        for check in checks:
            print(check.result())
    return 0


if __name__ == "__main__":
    sys.exit(main())

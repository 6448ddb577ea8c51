"""Installs the package as a user would, into environments that hold nothing else. `make package-check` runs it.

    python tools/package_check.py [--compile]
    python tools/package_check.py --floor [ARGUMENT OF PYTEST ...]

An environment sees no package of this interpreter but links to numpy, then to torch and what it requires, and later to
what the extra `toolkit` declares: so a requirement that pyproject.toml leaves out is noticed, and nothing is
downloaded. --floor (`make extras-floor`) has pip fetch the oldest versions that the package and its extras allow, and
runs the tests that need them.
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
USE = ROOT / "tools/wheel_use.py"
RUNTIME_ALONE = """
import importlib.util, subprocess, sys
import seqcls_fast as sf
assert importlib.util.find_spec("torch") is None
def sentence(of, name):
    try:
        exec(of)
    except ImportError as error:
        words = " needs torch: pip install 'seqcls-fast[torch]' (seqcls_fast.runtime runs saved models without it)"
        assert str(error) == name + words, error
    else:
        raise AssertionError(f"{of}: expected an error")
assert sf.evaluate_predictions([0, 1], [0, 1]).accuracy == 1
for name in set(sf.__all__) - {"__version__", "Report", "evaluate_predictions"}:
    sentence(f"sf.{name}", f"seqcls_fast.{name}")
for name in ("nn", "ops", "reference", "export"):
    sentence(f"import seqcls_fast.{name}", "This part of seqcls_fast")
sf.runtime.Model
command = [sys.executable, "-m", "seqcls_fast"]
for line in ("train x.csv --out m", "evaluate m x.csv", "trace m x", "calibrate m x", "reproduce m", "bench", "info",
             "export m --out x.onnx", "plan --cell gru --hidden 8"):
    words = line.split()
    done = subprocess.run([*command, *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, ""), (words, done)
    assert done.stderr.startswith(f"seqcls-fast {words[0]} needs torch: pip install"), (words, done)
    assert done.stderr.count("\\n") == 1, (words, done)
"""
ALONE = """
import importlib.util, pathlib, sys
import torch, seqcls_fast as sf
folder = pathlib.Path(sf.__file__).parent
assert folder.is_relative_to(sys.prefix), folder
assert (folder / "py.typed").exists() and (folder / "_C.pyi").exists()
strangers = ("sklearn", "tokenizers", "pytest", "pybind11")
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
    """A wheel with the extensions that were built in the tree, so that nothing is compiled once more."""
    package, library = ROOT / "seqcls_fast", folder / "lib"
    (library / package.name).mkdir(parents=True)
    for module in ("_C", "_runtime"):
        built = sorted(package.glob(f"{module}.*.so"))
        if len(built) != 1:
            raise SystemExit(f"seqcls_fast/{module}: expected one, as `make build` leaves it, but got {len(built)}")
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
    """What the package and some extras require, by the metadata in the folder; what is installed here may be of an
    earlier revision."""
    (made,) = [*folder.glob("*.egg-info"), *folder.glob("seqcls_fast-*.dist-info")]
    every = list(map(Requirement, metadata.Distribution.at(made).requires or ()))
    chosen, found = ["", *extras], []
    for extra in chosen:  # which grows: an extra may require another one
        for each in every:
            if each.name == PACKAGE and each.marker is not None and each.marker.evaluate({"extra": extra}):
                chosen += sorted(each.extras - {*chosen})
    for each in every:
        if each.name != PACKAGE and (not each.marker or any(each.marker.evaluate({"extra": name}) for name in chosen)):
            each.marker = None
            found.append(each)
    return found


def check_wheel(folder: Path) -> str:
    """The tree's wheel: with numpy alone, then with torch, then with the extra `toolkit`."""
    folder.mkdir()
    wheel, environment = wheel_of_the_tree(folder), Environment(folder / "environment")
    alone = Environment(folder / "without torch")
    for each, more in ((alone, ()), (environment, ("torch",))):
        each.link("numpy", *more)
        each.install("--no-index", wheel)  # pip refuses if a requirement is missing
    environment.check("python", "-c", ALONE, "compiled")
    environment.check(PACKAGE, "info")
    environment.check("python", USE, folder / "models")
    alone.check("python", USE, folder / "models")
    alone.check("python", "-c", RUNTIME_ALONE)
    environment.link(*map(str, declared(environment.site, "toolkit")))
    environment.install("--no-index", f"{PACKAGE}[toolkit] @ {wheel.as_uri()}")
    data, model = folder / "data.csv", folder / "model"
    data.write_text("text,label\n" + "a good film,good\na dull film,bad\n" * 20)
    environment.check(PACKAGE, "train", data, "--epochs", "2", "--hidden-size", "8", "--out", model)
    environment.check(PACKAGE, "evaluate", model, data, "--html", folder / "report.html")
    alone.check(PACKAGE, "predict", model, data, "--text", "text", "--out", folder / "labels.csv")
    return f"{wheel.name}: with numpy alone, with torch, and with its extra toolkit, it installs and works"


def check_source(folder: Path, compile_it: bool) -> str:
    """The source distribution: the package with torch."""
    folder.mkdir()
    wheel, environment = wheel_of_the_source(folder, compile_it), Environment(folder / "environment")
    environment.link("numpy", "torch")
    environment.install("--no-index", wheel)
    environment.check("python", "-c", ALONE, "compiled" if compile_it else "without")
    return f"the source distribution, as {wheel.name}: with torch it installs and works"


def check_floor(folder: Path, arguments: list[str]) -> int:
    """The tests of the extras, with the oldest version of each requirement."""
    run(sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", folder)
    oldest = []
    for each in declared(folder, *TESTED):
        if each.name == "torch":
            continue  # that of this interpreter; `make torch-floor` tests the oldest
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

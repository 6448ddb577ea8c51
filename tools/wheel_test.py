"""Installs a wheel into an environment that holds nothing else, and uses it there. `make wheels` runs it.

    PYTHON tools/wheel_test.py WHEEL FOLDER [TEST FILE ...]

The environment links to packages of PYTHON, so that nothing is downloaded: torch and what tests need, or numpy alone
where PYTHON has no torch. FOLDER keeps models between calls: one with torch must come first.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from package_check import ROOT, Environment

TOOLS = ("pytest", "hypothesis", "expecttest")
OPTIONAL = ("onnx", "onnxscript", "onnxruntime")  # for some tests


def fits(wheel: Path) -> bool:
    """Whether a wheel is for the running Python."""
    return wheel.name.split("-")[2] == f"cp{sys.version_info.major}{sys.version_info.minor}"


def has_entry(wheel: Path, release: str) -> bool:
    """Whether a wheel has an eager entry for a release of torch."""
    with zipfile.ZipFile(wheel) as file:
        return any(name.startswith(f"seqcls_fast/_eager_{release.replace('.', '_')}.") for name in file.namelist())


def try_out(wheel: Path, folder: Path, tests: list[str]) -> int:
    if not wheel.exists() or not fits(wheel):
        version = ".".join(map(str, sys.version_info[:2]))
        raise SystemExit(f"expected a wheel for CPython {version} but got {wheel.name}")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        environment = Environment(place / "environment")
        has_torch = find_spec("torch") is not None
        environment.link("numpy", *(("torch", *TOOLS, *filter(find_spec, OPTIONAL)) if has_torch else ()))
        environment.install("--no-index", "--no-deps", wheel)
        (place / "empty").mkdir()  # the working directory, so that the sources are not imported
        python, settings = environment.python, f"{ROOT / 'pyproject.toml'}"
        commands = [[python, ROOT / "tools/wheel_use.py", folder]]
        if has_torch and tests:
            pytest = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", settings, "--rootdir", ROOT]
            if not has_entry(wheel, metadata.version("torch").split("+")[0]):  # calls run in Python
                pytest += ["--entry", "python"]
                tests = [file for file in tests if Path(file).name != "test_eager.py"]
            commands.append([python, *pytest, *tests])
        for command in commands:
            variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
            if status := subprocess.run(command, cwd=place / "empty", env=variables, check=False).returncode:
                return status
    return 0


if __name__ == "__main__":
    sys.exit(
        try_out(
            Path(sys.argv[1]).resolve(),
            Path(sys.argv[2]).resolve(),
            [str(Path(file).resolve()) for file in sys.argv[3:]],
        )
    )

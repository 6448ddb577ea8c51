"""Tests the wheels with several releases of Python and torch. `make matrix` runs it after `make wheels`.

    python tools/matrix.py [--pairs 3.13-2.14.1 ...] [--have PYTHON ...] [--needs NAME ...] [--tests FILE ...]

One torch is installed at a time, with the libraries that it requires (5 GB), and removed after its tests. A pair that
has passed with the same wheel is left out, so that a run goes on where it stopped. --have names interpreters with a
torch; where they are of a pair, nothing is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

from wheels import ROOT, interpreter, wheel_of

# Python and torch: the oldest torch and the newest with the oldest and the newest Python, and each torch once.
PAIRS = ("3.10-2.11.0", "3.10-2.14.1", "3.11-2.11.0", "3.11-2.13.0", "3.11-2.14.1", "3.12-2.12.1", "3.13-2.13.0",
         "3.13-2.14.1")  # fmt: skip
WORK = ROOT / "build/matrix"
LEAST_FREE = 8 << 30  # torch, and the files that pip unpacks meanwhile
ABOUT = "import sys, torch; print('%d.%d-' % sys.version_info[:2] + torch.__version__.split('+')[0])"


def installed(pair: str, needs: list[str]) -> Path:
    """The interpreter of a new environment with the torch of a pair, and what the tests need."""
    release, torch = pair.split("-")
    python = interpreter(release)
    if python is None:
        raise SystemExit(f"{pair}: expected CPython {release} on the PATH or in pyenv, but there is none")
    if (free := shutil.disk_usage(WORK).free) < LEAST_FREE:
        raise SystemExit(f"{pair}: expected {LEAST_FREE >> 20} MiB of free disk but got {free >> 20}")
    folder = WORK / "environment"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([python, "-m", "venv", folder], check=True)
    pip = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--no-cache-dir"]
    if subprocess.run([*pip, f"torch=={torch}", *needs], check=False).returncode:
        raise SystemExit(f"{pair}: pip could not install torch {torch} for CPython {release}")
    return folder / "bin/python"


def size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def try_pair(pair: str, wheel: Path, have: dict[str, Path], needs: list[str], tests: list[str]) -> dict[str, object]:
    """Tests one pair, and tells the time, the disk that it took and whether all tests passed."""
    start, made = time.monotonic(), pair not in have
    try:
        python = installed(pair, needs) if made else have[pair]
        disk = size(WORK / "environment") if made else 0
        command = [python, ROOT / "tools/wheel_test.py", wheel, WORK / "models", *tests]
        passed = subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    finally:
        shutil.rmtree(WORK / "environment", ignore_errors=True)
    return {"passed": passed, "seconds": round(time.monotonic() - start), "megabytes": disk // 1_000_000}


def main() -> int:
    parser = argparse.ArgumentParser(description="Test the wheels with several releases of Python and torch.")
    parser.add_argument("--pairs", nargs="*", default=[], help=f"all without it: {' '.join(PAIRS)}")
    parser.add_argument("--have", nargs="*", default=[], help="interpreters that have a torch")
    parser.add_argument("--needs", nargs="*", default=[], help="what the tests need beside torch, in pip's words")
    parser.add_argument("--tests", nargs="*", default=[], help="files of tests, for each pair")
    parser.add_argument("--wheels", type=Path, default=ROOT / "dist")
    options = parser.parse_args()
    pairs = options.pairs or list(PAIRS)
    if unknown := set(pairs) - set(PAIRS):
        raise SystemExit(f"--pairs: expected some of {', '.join(PAIRS)} but got {', '.join(sorted(unknown))}")
    WORK.mkdir(parents=True, exist_ok=True)
    about = [(subprocess.run([one, "-c", ABOUT], capture_output=True, text=True, check=True).stdout.strip(), Path(one))
             for one in options.have]  # fmt: skip
    kept = WORK / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for pair in pairs:
        wheel = wheel_of(pair.split("-")[0], options.wheels)
        made_of = [hashlib.sha256(wheel.read_bytes()).hexdigest(), *sorted(options.tests)]
        before = results.get(pair, {})
        if before.get("made_of") != made_of or not before["passed"]:
            print(f"== {pair}", flush=True)
            results[pair] = {"made_of": made_of, **try_pair(pair, wheel, dict(about), options.needs, options.tests)}
            kept.write_text(json.dumps(results, indent=1))
    for pair in pairs:
        said = "passed" if results[pair]["passed"] else "FAILED"
        print(f"{pair}: {said}, {results[pair]['seconds']} s, {results[pair]['megabytes']} MB installed for it")
    return 0 if all(results[pair]["passed"] for pair in pairs) else 1


if __name__ == "__main__":
    sys.exit(main())

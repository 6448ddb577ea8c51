"""Python processes that tests start: they find the package and the tests' support as the tests do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SUPPORT = Path(__file__).resolve().parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent


def torchrun(
    processes: int, *command: str, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(TESTS), str(ROOT)])
    known = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *command]
    return subprocess.run(words, env=known, capture_output=True, text=True, timeout=300, check=False)

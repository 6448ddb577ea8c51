"""`python -m seqcls_fast`, also installed as `seqcls-fast`. The commands are in cli/."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn

from .cli.main import main

__all__ = ["main"]


def _end(status: int) -> NoReturn:
    """Ends the process. One of several ends at once: a thread of gloo may still hold a tensor, and if it lets go of it
    while Python shuts down, the process is aborted."""
    if os.environ.get("WORLD_SIZE", "1") != "1":  # main() has told if it is no number
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    _end(main())

"""`python -m seqcls_fast`, also installed as `seqcls-fast`. The commands are in cli/."""

from __future__ import annotations

import sys

from .cli.main import main

__all__ = ["main"]

if __name__ == "__main__":
    sys.exit(main())

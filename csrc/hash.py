"""The hash of the sources, which setup.py compiles into the extension: it says whether a build is that of a tree.

It lies here because every copy of the sources that can be built has it; setup.py and benchmarks/rows.py run it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path


def csrc_hash(root: Path) -> str:
    """The hash of all files under root/csrc, names included."""
    sources = sorted(path for path in (root / "csrc").rglob("*") if path.is_file() and path.suffix != ".pyc")
    content = b"".join(str(path.relative_to(root)).encode() + path.read_bytes() for path in sources)
    return hashlib.sha256(content).hexdigest()[:12]

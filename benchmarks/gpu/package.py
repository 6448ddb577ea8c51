"""The package that `make gpu-package` makes (tools/gpu_package.py), as the run sees it: is it whole, is it for here.

package.json holds what it was built for and the hash of every file. A source tree has none, and is not checked.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

NAME = "package.json"


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def describe(root: Path, facts: dict[str, Any]) -> None:
    """Writes package.json for all files below a folder."""
    files = {str(p.relative_to(root)): digest(p) for p in sorted(root.rglob("*")) if p.is_file() and p.name != NAME}
    (root / NAME).write_text(json.dumps(facts | {"files": files}, indent=1) + "\n")


def interpreter() -> str:
    return f"{sys.implementation.name} {sys.version_info[0]}.{sys.version_info[1]}"


def complaint(root: Path) -> str:
    """Why the package in a folder cannot be used here; empty if it can."""
    try:
        found = json.loads((root / NAME).read_text())
        files, built_for = dict(found["files"]), str(found["python"])
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{root / NAME}: expected what `make gpu-package` writes, but it cannot be read: {error!r}"
    if built_for != interpreter():
        return f"this package is for {built_for}, but this interpreter is {interpreter()}: build one for it"
    bad = [name for name, hashed in files.items() if not (root / name).is_file() or digest(root / name) != hashed]
    if bad:
        more = f" and {len(bad) - 3} others" if len(bad) > 3 else ""
        return f"this package is damaged: {', '.join(bad[:3])}{more} are missing or not as they were packed"
    return ""

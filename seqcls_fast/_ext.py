"""Loads the compiled extension once.

``C`` is the extension module, or None if it is missing. torch's own recurrent layers (``_torch_layer.py``) then do the
work; one warning says so, and ``why_missing`` holds the reason.
"""

from __future__ import annotations

import sys
import warnings
from types import ModuleType

import torch  # noqa: F401  (its shared libraries must be loaded before the extension's)


def _load() -> tuple[ModuleType | None, str | None]:
    if sys.platform == "win32":
        return None, "Windows has no compiled build of seqcls_fast yet"
    try:
        from . import _C
    except ImportError as error:
        return None, str(error)
    return _C, None


C, why_missing = _load()

if C is None:
    warnings.warn(
        f"seqcls_fast runs torch's own recurrent layers and not its kernels: the compiled extension is missing "
        f"({why_missing}). Install with a C++20 compiler present to build it.",
        UserWarning,
        stacklevel=2,
    )

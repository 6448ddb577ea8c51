"""Registers ``torch.ops.seqcls_fast`` once both torch and seqcls_fast are imported, in whichever order.

A program that holds our operators (exported, traced, or packaged by AOTInductor) is loaded by C++ code of torch, which
cannot ask Python for them. ``import seqcls_fast`` must not wait for torch.
"""

from __future__ import annotations

import warnings

from ._after_import import after_import

__all__ = ["register_operators"]


def register_operators() -> None:
    """Registers the operators now if torch is imported, else at the end of its import."""
    after_import("torch", _register)


def _register() -> None:
    from importlib.util import find_spec

    if find_spec(f"{__package__}._C") is None:
        return  # there are no operators, of which the first layer will warn
    try:
        from . import ops  # noqa: F401
    except Exception as error:  # the import of torch must not fail
        warnings.warn(f"torch.ops.seqcls_fast is missing, since seqcls_fast.ops fails: {error}", stacklevel=2)

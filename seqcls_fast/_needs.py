"""A sentence for what needs torch, where it is missing. The runtime alone does without."""

from __future__ import annotations

__all__ = ["has_torch", "need_torch", "without_torch"]


def without_torch(what: str) -> str:
    """The sentence."""
    return f"{what} needs torch: pip install 'seqcls-fast[torch]' (seqcls_fast.runtime runs saved models without it)"


def need_torch(what: str) -> None:
    """Imports torch; where it is missing, an ImportError says what needs it, and how it is installed."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torch":  # torch is installed, but something that it needs itself is not
            raise
        raise ImportError(without_torch(what), name="torch") from error


def has_torch() -> bool:
    """Whether torch is installed. It is not imported."""
    from importlib.util import find_spec

    try:
        return find_spec("torch") is not None
    except (ModuleNotFoundError, ValueError):  # the latter where it is hidden by None in sys.modules
        return False

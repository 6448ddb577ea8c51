"""Registers ``torch.ops.seqcls_fast`` once both torch and seqcls_fast are imported, in whichever order.

A program that holds our operators (exported, traced, or packaged by AOTInductor) is loaded by C++ code of torch, which
cannot ask Python for them. ``import seqcls_fast`` must not wait for torch, so where torch is not imported yet a finder
in ``sys.meta_path`` waits for its import and adds ours to the end of it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

__all__ = ["register_operators"]


def register_operators() -> None:
    """Registers the operators now if torch is imported, else at the end of its import."""
    if "torch" in sys.modules:
        _register()
    elif not any(isinstance(finder, _TorchFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TorchFinder())


def _register() -> None:
    if find_spec(f"{__package__}._C") is None:
        return  # there are no operators, of which the first layer will warn
    try:
        from . import ops  # noqa: F401
    except Exception as error:  # the import of torch must not fail
        warnings.warn(f"torch.ops.seqcls_fast is missing, since seqcls_fast.ops fails: {error}", stacklevel=2)


class _TorchFinder(MetaPathFinder):
    """Finds torch as the other finders do, with a loader that calls :func:`_register` when torch is complete."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "torch":
            return None
        specs = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in specs if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            vars(loader).pop("exec_module", None)
            execute(module)
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                _register()

        loader.exec_module = exec_module
        return spec

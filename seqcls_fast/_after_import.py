"""Runs a function when a module is imported, without importing it: now, or at the end of its import.

A finder at the front of ``sys.meta_path`` waits for the import. It finds the module as the other finders do, and goes
when the module is complete.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["after_import"]


def after_import(name: str, run: Callable[[], None]) -> None:
    """Calls ``run()`` now if the module ``name`` is imported, else once at the end of its import."""
    if sys.modules.get(name) is not None:  # None hides a module that is installed
        run()
    elif not any(isinstance(finder, _Finder) and (finder.name, finder.run) == (name, run) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder(name, run))


class _Finder:
    def __init__(self, name: str, run: Callable[[], None]) -> None:
        self.name, self.run = name, run

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != self.name:
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
                self.run()

        loader.exec_module = exec_module
        return spec

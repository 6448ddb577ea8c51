"""The libraries of the ``[toolkit]`` extra, each imported where it is first needed."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__all__ = ["need"]

_PACKAGES = {"sklearn": "scikit-learn"}  # where a library is installed under another name


def need(module: str, what: str) -> ModuleType:
    """The module, or a sentence that says who needs it and how to get it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != library:
            raise  # it is there, and lacks something itself
        package = _PACKAGES.get(library, library)
        raise ImportError(f"{what} needs {package}: pip install 'seqcls-fast[toolkit]'", name=library) from error

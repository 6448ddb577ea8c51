"""Imports the libraries of the ``[toolkit]`` extra where they are first needed."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

__all__ = ["need"]

_PACKAGES = {"sklearn": "scikit-learn"}  # libraries whose package has another name


def need(module: str, what: str) -> ModuleType:
    """Imports a module. If its library is missing, the error says what needs it and how to install it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        if error.name is not None and error.name.partition(".")[0] != library:
            raise  # the library is installed, but something that it needs itself is not
        package = _PACKAGES.get(library, library)
        raise ImportError(f"{what} needs {package}: pip install 'seqcls-fast[toolkit]'", name=library) from error

"""Imports the libraries of the ``[toolkit]`` extra where they are first needed, and keeps tokenizers from threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

__all__ = ["need", "without_threads"]

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


@contextmanager
def without_threads() -> Iterator[None]:
    """Keeps tokenizers from starting threads, which do not survive a fork; some releases warn of that."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before

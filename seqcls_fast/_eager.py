"""Loads the eager entry: calls that nothing but autograd looks at run in C++, which takes a few microseconds less.

The library (``csrc/eager``) works with one release of torch alone, so there may be several, each named after its
release. ``why_off`` tells why none is used; everything then runs in Python, as do calls that its functions answer with
``NotImplemented``. Callers ask ``torch.compiler.is_compiling()`` first: Dynamo would break a graph at these functions.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from . import _autograd
from ._ext import C, why_missing

__all__ = ["cell", "layer", "layers", "off", "use_impl", "why_off"]


def _declined(*_: Any) -> Any:
    """Stands for each of the library's functions where there is none."""
    return NotImplemented


layers: Callable[..., Any] = _declined
cell: Callable[..., Any] = _declined
layer: Callable[..., Any] = _declined
use_impl: Callable[[str], Any] = _declined
_turn: Callable[[bool], Any] = _declined


def _load() -> str | None:
    """Takes the functions of the library for this torch. Returns the reason if there is none."""
    global layers, cell, layer, use_impl, _turn
    if C is None:
        return why_missing
    release = torch.__version__.split("+")[0]
    name = f"_eager_{release.replace('.', '_')}"
    try:
        library = importlib.import_module(f"{__package__}.{name}")
        if library.torch_version != release:
            return f"{name} was built for torch {library.torch_version}"
        library.connect(C.exports, _autograd.backward_of_call)
    except ModuleNotFoundError:
        return f"this build has none for torch {release}"
    except (AttributeError, ImportError, RuntimeError, ValueError) as error:  # missing symbols, other sources
        return f"{name}: {error}"
    layers, cell, layer = library.layers, library.cell, library.layer
    use_impl, _turn = library.use_impl, library.turn
    return None


why_off = _load()


@contextmanager
def off() -> Iterator[None]:
    """Inside the block, in all threads, every call runs in Python. For tests and measurements."""
    before = _turn(False)
    try:
        yield
    finally:
        _turn(before)

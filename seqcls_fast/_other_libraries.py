"""The libraries that are known to look at the class of a layer, so that ``convert`` must take care.

They are recognised by name and never imported: a model that holds a module of theirs has imported them already.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from torch import nn

from ._layer_classes import class_before

_Modules = Iterable[tuple[str, nn.Module]]
_ASKERS = {"torchrl": {"LSTMModule", "GRUModule"}}  # by library: classes that branch on isinstance(layer, nn.LSTM)


def askers_in(modules: _Modules) -> dict[int, str]:
    """By ``id`` of each layer whose holder branches on isinstance: the holder's class and where it is."""
    held: dict[int, str] = {}
    for name, parent in modules:
        if any(base.__name__ in _ASKERS.get(_library(base), ()) for base in type(parent).__mro__):
            holder = f"{_library(type(parent))}'s {type(parent).__name__}" + (f" at {name!r}" if name else "")
            held.update((id(child), holder) for child in parent.children())
    return held


def wrapped_by_opacus(modules: _Modules) -> set[int]:
    """The ``id`` of every module inside a model to which opacus has added its hooks, chosen by each layer's type."""
    return {
        id(module)
        for _, parent in modules
        if "autograd_grad_sample_hooks" in vars(parent)
        or any(_library(base) == "opacus" and "GradSampleModule" in base.__name__ for base in type(parent).__mro__)
        for module in parent.modules()
    }


def tell_opacus(mine: type) -> None:
    """Lets opacus' ModuleValidator treat a converted layer, of class ``mine``, as the layer of torch's that it was.

    opacus looks the exact type of a layer up in two tables, so isinstance is of no use to it. Without an entry,
    validate() would pass a model whose training fails later, and fix() would leave the layer as it is.
    """
    validator = getattr(sys.modules.get("opacus.validators"), "ModuleValidator", None)
    for table in (getattr(validator, "VALIDATORS", {}), getattr(validator, "FIXERS", {})):
        theirs = class_before(mine)
        if theirs in table:
            table.setdefault(mine, table[theirs])


def _library(kind: type) -> str:
    return kind.__module__.partition(".")[0]

"""The classes that ``convert`` gives to layers: ours, or one that is ours and the layer's former class at once.

``isinstance`` holds for every base of such a joint class. It lists a subclass of torch's before ours, and ours before
torch's: so a subclass keeps its own methods, and the ``super().forward`` that it calls is ours.
"""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any

from torch import nn

from . import nn as ours

NAMES = ("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell")
TO_OURS: dict[type, type] = {getattr(nn, name): getattr(ours, name) for name in NAMES}
TO_TORCH = {mine: theirs for theirs, mine in TO_OURS.items()}

_LISTS = {"_all_weights", "_flat_weights", "_flat_weights_names"}  # torch's lists of the weights, which ours ignores
_IGNORED = _LISTS | {
    # called by torch's forward, not by ours
    "_init_flat_weights", "_update_flat_weights", "_weights_have_changed", "check_forward_args", "check_hidden_size",
    "check_input", "get_expected_cell_size", "get_expected_hidden_size", "permute_hidden",
    # called when the joint class is made, or replaced there
    "__init_subclass__", "__reduce__", "__reduce_ex__",
}  # fmt: skip


def torch_base(kind: type) -> type | None:
    """The class of torch's that ``kind`` is or derives from."""
    return next((base for base in kind.__mro__ if base in TO_OURS), None)


@functools.cache
def joint_class(theirs: type) -> type:
    """The class that is ours and ``theirs`` at once; ``theirs`` is one of torch's or a subclass of one."""
    base = torch_base(theirs)
    assert base is not None
    namespace: dict[str, Any] = {"_theirs": theirs, "__reduce_ex__": _reduce_ex, "__module__": __name__}
    if theirs is base:
        bases = TO_OURS[base], base
        namespace["__init__"] = base.__init__  # type: ignore[misc]  # for a subclass's super().__init__
    else:
        bases = theirs, joint_class(base)
    return types.new_class(theirs.__name__, bases, exec_body=lambda body: body.update(namespace))


def class_before(kind: type) -> type | None:
    """The class that a layer, which has the class ``kind`` now, had before it was converted."""
    return vars(kind).get("_theirs") or TO_TORCH.get(kind)


def _reduce_ex(module: nn.Module, protocol: Any) -> Any:
    """For pickle and copy, which cannot import a class that is made at run time."""
    reduced = object.__reduce_ex__(module, protocol)
    theirs = vars(type(module)).get("_theirs")  # None for a subclass, which pickle finds by its name
    return (_new, (theirs,), *reduced[2:]) if theirs else reduced


def _new(theirs: type) -> nn.Module:
    kind: Any = joint_class(theirs)
    return kind.__new__(kind)


def why_not_joint(module: nn.Module, kind: type) -> str | None:
    """Why a layer of the class ``kind``, a subclass, might do something else with our forward below its own methods."""
    base = torch_base(kind)
    if base is None:
        return "its class is none of torch's layers and derives from none of them"
    shared = {*base.__mro__, *(kin for kin in kind.__mro__ if kin.__module__ in ("abc", "typing"))}
    for name, value in [item for kin in kind.__mro__ if kin not in shared for item in vars(kin).items()]:
        used = _names_in(value)
        if name == "forward" and not {"super", "forward"} <= used:
            return "its class has a forward of its own that calls no super().forward"
        if name in _IGNORED or name.startswith(("weight_", "bias_")):
            return f"its class overrides {name}, which our layers do not call"
        if used & _LISTS:
            return f"{name} of its class uses {min(used & _LISTS)}, which our layers ignore"
    private = {name for kin in TO_OURS[base].__mro__ if kin not in base.__mro__ for name in vars(kin)} - {*dir(base)}
    clash = sorted(name for name in private & {*dir(module)} if not name.startswith("__"))
    return f"it has an attribute {clash[0]}, which is the name of one of ours" if clash else None


def _names_in(value: object) -> set[str]:
    """The global names and attributes that a function, or one under decorators, uses."""
    code = getattr(inspect.unwrap(value), "__code__", None) if callable(value) else None
    return {*code.co_names} if code else set()

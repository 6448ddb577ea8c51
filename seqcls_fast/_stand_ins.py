"""Calls of a module with objects that stand for tensors: proxies of ``torch.fx``, others with ``__torch_function__``.

torch.nn's layers are leaves to ``torch.fx``, because its tracer looks where a class was defined; ours are not. So they
record the node themselves, once a proxy has reached ``forward``. Only calls with a wrong type of argument come here.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.fx.proxy import Proxy, TraceError
from torch.overrides import handle_torch_function

from ._checks import class_of, refuse_types

__all__ = ["call_with_stand_ins", "is_stand_in"]


def is_stand_in(value: Any) -> bool:
    """Whether the value is no tensor but acts as one in torch's functions."""
    return not isinstance(value, Tensor) and hasattr(type(value), "__torch_function__")


def call_with_stand_ins(module: nn.Module, input: Any, hx: Any, **options: Any) -> Any:
    """What the objects that stand for tensors make of ``module(input, hx, **options)``. Raises if there are none."""
    found = list(_stand_ins((input, hx, *options.values())))
    if not found:
        refuse_types(module, input, hx)
    args = (input,) if hx is None else (input, hx)
    forward: Any = class_of(module).forward
    options = {name: value for name, value in options.items() if value is not forward.__kwdefaults__[name]}
    for stand_in in found:
        if isinstance(stand_in, Proxy):
            return _record(module, stand_in, args, options)
    return handle_torch_function(MethodType(forward, module), found, *args, **options)


def _stand_ins(values: Any) -> Iterator[Any]:
    """The stand-ins among the values, and in the tuples and lists among them."""
    for value in values:
        if isinstance(value, tuple | list):
            yield from _stand_ins(value)
        elif is_stand_in(value):
            yield value


def _record(module: nn.Module, proxy: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """A node that calls the module. It runs hooks and a forward of its own too, so neither may have run by now."""
    kind = class_of(module)
    find_path = getattr(proxy.tracer, "path_of_module", None)  # only tracers of a module have it
    path = find_path(module) if find_path else ""
    if not path:
        raise TraceError(f"torch.fx cannot trace seqcls_fast.{kind.__name__} itself: trace a module that holds it")
    inherits = getattr(module.forward, "__func__", None) is kind.forward
    if not inherits or module._forward_pre_hooks or module._forward_hooks:
        raise TraceError(
            f"torch.fx would run the {'hooks' if inherits else 'own forward'} of {path!r} twice, once while it traces: "
            f"pass it a Tracer whose is_leaf_module() is True for {path!r}"
        )
    return proxy.tracer.create_proxy("call_module", path, args, options)

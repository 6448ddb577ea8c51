"""Frozen weights: a module's recurrent layers are packed once, and no later call in inference reads the weights.

A call looks only at whether its parameters are those that were packed: the same objects, with the same version counters
and addresses. Calls that cannot use packed weights (see ``Frozen.packed_for``) run as if nothing were frozen.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from . import ops
from ._autograd import needs_graph
from ._head import in_graph, kernels_for
from ._inputs import autocasts

__all__ = ["Freezable", "Frozen", "can_freeze", "flat", "freeze", "frozen", "unfreeze", "with_both_biases"]

_Module = TypeVar("_Module", bound=nn.Module)
_Seen = tuple[Tensor | None, int | None, int | None]  # a weight, its version and its address where they can be compared


class Freezable(nn.Module):
    """A module whose weights can be frozen: the base class of our layers and cells."""

    # In the __dict__ of a frozen module, and nowhere else. (A subclass may well have a flag named `_frozen`.)
    _frozen_weights: Frozen | None = None

    def _to_pack(self) -> tuple[str, int, list[list[str]]]:
        """The cell, the number of directions, and for each layer the names of its weights, as the operators take them.
        A weight that is None is left out."""
        raise NotImplementedError

    def _packed(self, inputs: Iterable[Tensor], weights: Sequence[Tensor | None]) -> Sequence[Tensor] | None:
        """The packed weights of each layer for a call with these tensors, or None if it reads the weights."""
        found = self._frozen_weights  # read once: another thread may unfreeze the module
        return None if found is None else found.packed_for(self, inputs, weights)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        state.pop("_frozen_weights", None)  # copies are not frozen: their weights are other tensors
        return state

    def _replicate_for_data_parallel(self) -> Any:
        replica: Any = super()._replicate_for_data_parallel()
        replica.__dict__.pop("_frozen_weights", None)
        return replica


class Frozen:
    """The packed weights of a module, and what the weights were when they were packed.

    ``strict``: whether a call that finds a weight changed, or wants gradients, is refused. If not, it runs unfrozen.
    ``tables``: used instead of the first layer's weights of the input, which then takes ids (see ``classifier.py``).
    """

    def __init__(self, module: Freezable, strict: bool = True, tables: Sequence[Tensor] = ()) -> None:
        cell, directions, layers = module._to_pack()
        self.strict = strict
        self.names = [name for names in layers for name in names]
        self.impl: str | None  # the implementation they are packed for; None: no call can use packed weights
        self.packed: tuple[Tensor, ...] = ()  # one for each layer
        found = [*tables, *(_parameter(module, name) for name in self.names[len(tables) :])]
        with torch.no_grad():
            self.impl = kernels_for(*found) if all(w is None or w.numel() for w in found) else None
            if self.impl is not None:
                rest = iter(found)
                for k, names in enumerate(layers):
                    weights = [next(rest) for _ in names]
                    self.packed += (_pack(weights, cell, directions, self.impl, bool(tables) and k == 0),)
        self.seen = tuple(_look_at(weight) for weight in found)
        # While these live, no other memory gets an address of a weight that was packed.
        self._storages = [w.untyped_storage() for w in found if w is not None and _has_memory(w)]

    def packed_for(
        self, module: Freezable, inputs: Iterable[Tensor], weights: Sequence[Tensor | None]
    ) -> Sequence[Tensor] | None:
        """The packed weights, or None for a call that must read the weights: in a traced graph, under transforms and
        autocast, and with another implementation than they were packed for."""
        if in_graph():
            return None
        changed = self._changed(weights)
        if changed is not None or needs_graph((*inputs, *weights)):
            if not self.strict:
                return None
            kind = type(module).__name__
            if changed is not None:
                raise RuntimeError(
                    f"{kind}.{changed}: expected the weight as it was when the module was frozen, but it was changed "
                    f"or replaced: call seqcls_fast.freeze(module) again, or seqcls_fast.unfreeze(module)"
                )
            raise RuntimeError(
                f"{kind}: expected a call without gradients, as the module is frozen: use torch.no_grad() or "
                f"torch.inference_mode(), or call seqcls_fast.unfreeze(module)"
            )
        if not self.packed or self.impl != ops.compiled_impl() or autocasts("cpu") or forward_ad._current_level >= 0:
            return None
        return self.packed

    def _changed(self, weights: Sequence[Tensor | None]) -> str | None:
        """The name of the first weight that is not what it was when it was packed."""
        for weight, name, (seen, version, address) in zip(weights, self.names, self.seen, strict=True):
            if weight is not seen:
                return name
            if weight is not None and (version is not None and weight._version != version):
                return name
            if weight is not None and (address is not None and weight.data_ptr() != address):
                return name
        return None


def freeze(module: _Module) -> _Module:
    """Packs the weights of every recurrent layer and cell of ours in ``module``, for inference that is faster.

    Calls then read the packed weights alone. A call of a small layer takes a fraction of its time, and the first call
    is as fast as the later ones. The packed weights take about as much memory as the weights, which stay:
    :func:`unfreeze` gives it back.

    A call of a frozen layer is refused if a weight was replaced or changed in place since, or if the call would record
    gradients. Changes that torch does not count are not noticed: writing through ``p.data``, numpy or shared memory.
    Call ``freeze`` again after each change. A copy of a frozen module is not frozen, nor is one that was pickled.

    Args:
        module: any module. What is none of our layers or cells stays as it is.

    Returns:
        The module.

    Raises:
        RuntimeError: if a weight is no plain parameter (a parametrization, pruning). Nothing is frozen then.

    Example::

        >>> import torch, seqcls_fast as sf
        >>> cell = sf.freeze(sf.LSTMCell(8, 16))
        >>> with torch.inference_mode():
        ...     h, c = cell(torch.randn(1, 8))
    """
    for layer, found in _freeze_all(module, "freeze"):
        _set(layer, found)
    return module


def unfreeze(module: _Module) -> _Module:
    """Undoes :func:`freeze`, and gives back the memory of the packed weights.

    Args:
        module: any module.

    Returns:
        The module.

    Example::

        >>> import seqcls_fast as sf
        >>> cell = sf.unfreeze(sf.freeze(sf.GRUCell(8, 16)))
    """
    for layer in _layers_in(module, "unfreeze"):
        _set(layer, None)
    return module


@contextmanager
def frozen(module: _Module) -> Iterator[_Module]:
    """Inside the block, ``module`` is frozen (:func:`freeze`). At its end it is again as it was before, frozen or not.

    The module is frozen in all threads. Blocks may be nested, and those of several threads may overlap.

    Args:
        module: any module.

    Example::

        >>> import torch, seqcls_fast as sf
        >>> decoder = sf.GRUCell(8, 16)
        >>> h = torch.zeros(1, 16)
        >>> with torch.inference_mode(), sf.frozen(decoder):
        ...     for _ in range(50):
        ...         h = decoder(torch.randn(1, 8), h)
    """
    layers, block = _freeze_all(module, "frozen"), object()
    with _LOCK:
        for layer, found in layers:
            _BLOCKS.setdefault(id(layer), []).append([block, layer._frozen_weights])
            _set(layer, found)
    try:
        yield module
    finally:
        with _LOCK:
            for layer, _ in layers:
                _leave(layer, block)


# By id() of a layer the blocks of frozen() that it is in, in the order in which they began; each with what the layer's
# _frozen_weights shall be at its end.
_BLOCKS: dict[int, list[list[Any]]] = {}
_LOCK = threading.Lock()


def _leave(layer: Freezable, block: object) -> None:
    blocks = _BLOCKS[id(layer)]
    (k,) = (k for k, (other, _) in enumerate(blocks) if other is block)
    _, before = blocks.pop(k)
    if k < len(blocks):  # a block of another thread began later and goes on
        blocks[k][1] = before
    else:
        _set(layer, before)
    if not blocks:
        del _BLOCKS[id(layer)]


def _set(layer: nn.Module, found: Frozen | None) -> None:
    if found is None or not isinstance(layer, Freezable):  # revert() may have made it torch's
        layer.__dict__.pop("_frozen_weights", None)
    else:
        layer.__dict__["_frozen_weights"] = found


def _layers_in(module: nn.Module, verb: str) -> list[Freezable]:
    if not isinstance(module, nn.Module):
        raise TypeError(f"{verb}: expected a torch.nn.Module but got {type(module).__name__}")
    return [layer for layer in module.modules() if isinstance(layer, Freezable)]


def _freeze_all(module: nn.Module, verb: str) -> list[tuple[Freezable, Frozen]]:
    return [(layer, Frozen(layer)) for layer in _layers_in(module, verb)]


def can_freeze(module: nn.Module) -> bool:
    """Whether the module is one of ours whose weights are plain parameters."""
    return isinstance(module, Freezable) and all(
        name in module._parameters for names in module._to_pack()[2] for name in names
    )


def _parameter(module: nn.Module, name: str) -> Tensor | None:
    if name not in module._parameters:
        raise RuntimeError(
            f"{type(module).__name__}.{name}: expected a plain parameter, as a frozen weight stays as it is, but it is "
            f"computed at every call: remove its parametrization or pruning first"
        )
    return module._parameters[name]


def _pack(weights: Sequence[Tensor | None], cell: str, directions: int, impl: str, ids: bool) -> Tensor:
    given = [w for w in with_both_biases(weights) if w is not None]
    packed: Tensor = torch.ops.seqcls_fast.pack_weights.default(given, cell, directions, impl, ids)
    return packed


def with_both_biases(weights: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """The weights of a cell. If one bias alone was set to None, it is zeros, as for torch."""
    *matrices, b_ih, b_hh = weights
    if b_ih is None and b_hh is not None:
        return [*matrices, torch.zeros_like(b_hh), b_hh]
    if b_ih is not None and b_hh is None:
        return [*matrices, b_ih, torch.zeros_like(b_ih)]
    return weights


def flat(weights: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """The weights of all layers in one list."""
    return [weight for layer in weights for weight in layer]


def _has_memory(weight: Tensor) -> bool:
    return type(weight) in (Tensor, nn.Parameter)


def _look_at(weight: Tensor | None) -> _Seen:
    if weight is None:
        return None, None, None
    version = None if weight.is_inference() else weight._version
    return weight, version, weight.data_ptr() if _has_memory(weight) else None

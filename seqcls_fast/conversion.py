"""``convert`` and ``revert``: turn torch.nn's recurrent layers inside a model into ours, in place, and back.

A layer stays the same object and only its ``__class__`` changes, which works because our classes share torch's base
classes and attributes. So parameters, hooks, optimizers, tied weights and other references to the layer stay valid.
The classes are made in ``_layer_classes``; ``_other_libraries`` knows the libraries that look at a layer's class.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ._layer_classes import NAMES, TO_OURS, TO_TORCH, class_before, joint_class, torch_base, why_not_joint
from ._other_libraries import askers_in, tell_opacus, wrapped_by_opacus

__all__ = ["ConvertReport", "Left", "convert", "revert"]

_MARK = "_converted_from_torch"  # a key of the layer's __dict__, which deepcopy and pickle keep
_WRAPPERS = {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule"}
_ADAPTER = re.compile(r"LoRA|LORA|Lora(?![a-z])|Adapter|(^|_)(lora|adapter)")  # but not ExplorationPolicy


@dataclass(frozen=True)
class Left:
    """A recurrent layer that stayed as it was."""

    name: str  # qualified, "" for the model itself
    type: str
    reason: str


@dataclass(frozen=True)
class ConvertReport:
    """What :func:`convert` or :func:`revert` did; printed as a short table.

    Attributes:
        swapped: the class before the exchange by qualified name (``""`` for the model itself), in the model's order.
        left: the recurrent layers that stayed, each with its ``name``, ``type`` and ``reason``.

    Example::

        >>> import torch, seqcls_fast as sf
        >>> class Peephole(torch.nn.LSTM):
        ...     def forward(self, input, hx=None):
        ...         ...
        >>> print(sf.convert(torch.nn.ModuleList([torch.nn.GRU(3, 4), Peephole(3, 4)])))
        1 swapped, 1 left
          0  torch.nn.GRU  swapped
          1  ...Peephole   left: its class has a forward of its own that calls no super().forward
    """

    swapped: dict[str, str]
    left: tuple[Left, ...]

    def __str__(self) -> str:
        rows = [(name, kind, "swapped") for name, kind in self.swapped.items()]
        rows += [(layer.name, layer.type, f"left: {layer.reason}") for layer in self.left]
        rows = [(name or "(the model)", kind, what) for name, kind, what in rows]
        widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
        table = [f"  {name:{widths[0]}}  {kind:{widths[1]}}  {what}" for name, kind, what in rows]
        return "\n".join([f"{len(self.swapped)} swapped, {len(self.left)} left", *table])


def convert(model: nn.Module, *, keep_isinstance: bool | None = None) -> ConvertReport:
    """Turns every :class:`torch.nn.RNN`, ``GRU``, ``LSTM`` and cell inside ``model`` into ours, in place.

    The layers stay the same objects, so hooks, parametrizations, tied weights, state dicts and an optimizer built
    before all go on working, and :func:`revert` undoes it. A subclass that leaves the recurrence to torch's ``forward``
    is swapped too, and the layer keeps its class's own methods. What cannot be swapped safely is left and reported:
    other subclasses, quantized, scripted or complex layers, layers inside a LoRA or another adapter, layers that opacus
    has wrapped, and layers whose ``forward`` was replaced.

    By default, code that looks for ``torch.nn.LSTM`` no longer finds a converted layer, unless the layer has a class
    derived from it. So convert after initialising weights by ``isinstance``, and revert before ``torch.jit.script`` and
    ``torch.ao.quantization.quantize_dynamic``, which leaves a converted layer in float (a warning says so). A model
    pickled whole needs seqcls_fast to be loaded; its state dict does not.

    Args:
        model: any module, which may itself be a layer. Convert before wrapping it for distributed training.
        keep_isinstance: whether ``isinstance(layer, torch.nn.LSTM)`` still holds for a converted LSTM, and the same for
            the other classes. Where it holds, ``torch.compile`` treats the layer as torch's own: unless
            ``torch._dynamo.config.allow_rnn`` is set, it runs the layer outside of its graph, and refuses it under
            ``fullgraph=True``. So the default, None, keeps it if ``allow_rnn`` is set, as newer releases of torch
            do by default, and else only for layers in modules that are known to ask for it (torchrl's ``LSTMModule``
            and ``GRUModule``). With False these are left. It does not change layers that are converted already.

    Returns:
        ConvertReport: what was swapped and what was left. Converting twice swaps nothing the second time.

    Raises:
        RuntimeError: if ``model`` is or contains a ``DistributedDataParallel`` or FSDP module. Nothing is changed then.

    Example::

        >>> import torch, seqcls_fast as sf
        >>> model = torch.nn.ModuleDict({"encoder": torch.nn.LSTM(8, 16), "decoder": torch.nn.GRUCell(8, 16)})
        >>> print(sf.convert(model))
        2 swapped, 0 left
          encoder  torch.nn.LSTM     swapped
          decoder  torch.nn.GRUCell  swapped
        >>> isinstance(model["encoder"], sf.LSTM)
        True
    """
    if keep_isinstance is not None and not isinstance(keep_isinstance, bool):
        raise TypeError(f"keep_isinstance: expected a bool or None but got {type(keep_isinstance).__name__}")
    modules = _modules_of(model, "convert")
    adapters, askers, wrapped = _adapters_in(modules), askers_in(modules), wrapped_by_opacus(modules)
    keep = _dynamo_takes_torchs_layers() if keep_isinstance is None else keep_isinstance

    def decide(module: nn.Module) -> tuple[type | None, str | None]:
        """The class that the module shall have, or why it must stay; neither for what is no layer of torch's."""
        kind, asker = _class_of(module), askers.get(id(module))
        reason = _why_left(module, adapters, wrapped)
        if not reason and kind in TO_OURS and asker and keep_isinstance is False:
            reason = f"it is held by {asker}, which asks for torch's class by isinstance: use keep_isinstance=True"
        if reason or isinstance(module, tuple(TO_TORCH)) or not torch_base(kind):
            return None, reason
        return TO_OURS[kind] if kind in TO_OURS and not (keep or asker) else joint_class(kind), None

    return _exchange([(name, module, *decide(module)) for name, module in modules], marks=True)


def revert(model: nn.Module) -> ConvertReport:
    """Undoes :func:`convert`: layers that it swapped are torch's again, those built as ours stay ours.

    Args:
        model: a module that was converted, or contains such modules.

    Returns:
        ConvertReport: what was swapped back, and layers left because their ``forward`` was replaced since.

    Raises:
        RuntimeError: if ``model`` is or contains a ``DistributedDataParallel`` or FSDP module. Nothing is changed then.

    Example::

        >>> import torch, seqcls_fast as sf
        >>> model = torch.nn.Sequential(torch.nn.LSTM(8, 16))
        >>> _ = sf.convert(model)
        >>> print(sf.revert(model))
        1 swapped, 0 left
          0  seqcls_fast.LSTM  swapped
        >>> type(model[0])
        <class 'torch.nn.modules.rnn.LSTM'>
    """
    modules = [(name, module) for name, module in _modules_of(model, "revert") if _MARK in module.__dict__]
    plan = [(name, module, class_before(_class_of(module)), _why_bound(module)) for name, module in modules]
    return _exchange(plan, marks=False)


def _dynamo_takes_torchs_layers() -> bool:
    """Whether torch.compile traces modules for which isinstance(module, nn.LSTM) holds."""
    from torch._dynamo import config  # takes a second, which other uses of this file shall not

    return getattr(config, "allow_rnn", True)


def _exchange(plan: list[tuple[str, nn.Module, type | None, str | None]], marks: bool) -> ConvertReport:
    """Gives each module its new class, where it has one and no reason to stay. ``marks``: for convert, not revert."""
    left = [Left(name, _describe(module), reason) for name, module, _, reason in plan if reason]
    chosen = [(name, module, new_class) for name, module, new_class, reason in plan if new_class and not reason]
    swapped = {name: _describe(module) for name, module, _ in chosen}
    for module, new_class in [(module, _class_over(module, new_class)) for _, module, new_class in chosen]:
        module.__class__ = new_class  # nothing in this loop raises, so a model is never half converted
        if marks:
            module.__dict__[_MARK] = True
        else:
            del module.__dict__[_MARK]
            module.__dict__.pop("_frozen_weights", None)  # torch's layers cannot be frozen
    for _, module, new_class in chosen:
        _renew_flat_weights(module)
        if marks:
            tell_opacus(new_class)
    return ConvertReport(swapped, tuple(left))


def _modules_of(model: nn.Module, verb: str) -> list[tuple[str, nn.Module]]:
    """Every module once, under its first name. Raises for modules that forbid the exchange."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module but got {type(model).__name__}")
    modules = list(model.named_modules())
    for name, module in modules:
        for base in type(module).__mro__:  # by name: torch.distributed is missing from some builds
            if base.__name__ in _WRAPPERS and base.__module__.startswith("torch."):
                place = f" at {name!r}" if name else ""
                raise RuntimeError(
                    f"model: expected one not yet wrapped but got a {base.__name__}{place}: {verb} before wrapping"
                )
    return modules


def _class_of(module: nn.Module) -> type:
    """The module's class. torch.nn.utils.parametrize gives a module a class of its own; this is then its base."""
    own = type(module)
    return own.__bases__[0] if own.__module__ == parametrize.__name__ else own


def _class_over(module: nn.Module, base: type) -> type:
    """``base``, or the module's parametrized class with its properties rebuilt over ``base``."""
    own = type(module)
    if _class_of(module) is own:
        return base
    namespace = {key: value for key, value in vars(own).items() if key not in ("__dict__", "__weakref__")}
    return type(own.__name__, (base,), namespace)


def _adapters_in(modules: Iterable[tuple[str, nn.Module]]) -> dict[int, str]:
    """By ``id`` of each layer inside a LoRA or another adapter: the adapter's class and where it is."""
    held = {}
    for name, parent in modules:
        adapter = any(_ADAPTER.search(base.__name__) for base in type(parent).__mro__)
        for key, child in parent.named_children():
            if adapter or key == "base_layer":
                held[id(child)] = f"{type(parent).__name__} at {name!r}" if name else type(parent).__name__
    return held


def _why_left(module: nn.Module, adapters: dict[int, str], wrapped: set[int]) -> str | None:
    """Why a recurrent layer must stay; None if it need not, is ours already, or is no recurrent layer."""
    kind = _class_of(module)
    if isinstance(module, torch.jit.ScriptModule):
        return "it is scripted or traced, with torch's layer compiled in" if module.original_name in NAMES else None
    if kind.__module__.startswith("torch.ao.nn"):
        return "it is quantized or prepared for that" if kind.__name__ in NAMES else None
    if isinstance(module, tuple(TO_TORCH)) or not isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return None
    if any(_ADAPTER.search(base.__name__) for base in kind.__mro__):
        return "it is an adapter, which may rely on torch's class"
    if id(module) in adapters:
        return f"it is wrapped by {adapters[id(module)]}, which may rely on torch's class"
    if id(module) in wrapped:
        return "opacus has added its hooks, chosen by the layer's class: call its ModuleValidator.fix() before that"
    if any(parameter.is_complex() for parameter in module.parameters()):
        return "its parameters are complex"
    return _why_bound(module) or (None if kind in TO_OURS else why_not_joint(module, kind))


def _why_bound(module: nn.Module) -> str | None:
    """Why an exchange of the class would not change what the module runs."""
    return "its forward was replaced on the instance and would go on running" if "forward" in module.__dict__ else None


def _describe(module: nn.Module) -> str:
    """The class as users write it; the former class for one that is ours and a subclass of torch's."""
    kind = _class_of(module)
    if isinstance(module, torch.jit.ScriptModule):
        return f"torch.jit.ScriptModule of {module.original_name}"
    before = class_before(kind)
    if kind in TO_OURS or before in TO_OURS:
        return f"{'seqcls_fast' if before else 'torch.nn'}.{kind.__name__}"
    kind = before or kind
    return f"{kind.__module__}.{kind.__qualname__}"


def _renew_flat_weights(module: nn.Module) -> None:
    """Updates torch's list of the module's weights, which only torch's forward reads.

    A parametrized or pruned weight is not computed here: spectral_norm would count that as a training step, and
    deepcopy refuses a weight with a graph. An empty tensor stands in its place until torch's next forward replaces it.
    """
    if isinstance(module, nn.RNNBase):
        kept = [module._parameters.get(name) for name in module._flat_weights_names]
        weights: list[Any] = [torch.empty(0, device="cpu") if weight is None else weight for weight in kept]
        module._flat_weights, module._flat_weight_refs = weights, [weakref.ref(weight) for weight in weights]
        module.flatten_parameters()  # for cuDNN; in our classes it does nothing

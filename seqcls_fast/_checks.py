"""Argument checks of the modules, with torch.nn's messages and exception types where torch.nn has them.

They stand apart from ``_recurrent.py`` so that its forward passes stay readable. Only what the operator cannot know is
checked here: the module's own sizes, and what kind of object ``hx`` is. The operator checks lengths and weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ._inputs import NUMBERS, autocasts

__all__ = [
    "GUARDS",
    "as_lengths",
    "as_states",
    "check_input",
    "check_state",
    "class_of",
    "refuse_projection",
    "refuse_rank",
    "refuse_types",
]


def _dtypes_agree(x: Tensor, other: Tensor) -> bool:
    """Whether the dtypes are equal, or autocast will make them equal (it leaves float64 alone)."""
    if x.dtype == other.dtype:
        return True
    return autocasts(x.device.type) and torch.float64 not in (x.dtype, other.dtype)


def check_input(x: Tensor, weight: Tensor, mismatch: type[Exception]) -> None:
    """Raises if the input's dtype or device is not that of the weights."""
    if not _dtypes_agree(x, weight):
        raise mismatch(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({x.dtype})"
        )
    if x.dtype not in NUMBERS:
        raise ValueError(f"input: expected {', '.join(map(str, NUMBERS))} but got {x.dtype}")
    if x.device != weight.device:
        raise RuntimeError(
            "Input and parameter tensors are not at the same device, "
            f"found input tensor at {x.device} and parameter tensor at {weight.device}"
        )


def check_state(state: Tensor, x: Tensor) -> None:
    """Raises if the state's dtype or device is not that of the input."""
    if not _dtypes_agree(x, state):
        raise RuntimeError(f"hx: expected the input's dtype {x.dtype} but got {state.dtype}")
    if state.device != x.device:
        raise RuntimeError(
            "Input and hidden tensors are not at the same device, "
            f"found input tensor at {x.device} and hidden tensor at {state.device}"
        )


def as_states(hx: Any, lstm: bool) -> Sequence[Tensor] | None:
    """``hx`` as a sequence of one or two tensors, or None if it is anything else."""
    if not lstm:
        return (hx,) if isinstance(hx, Tensor) else None
    are_two = isinstance(hx, tuple | list) and len(hx) == 2 and all(isinstance(state, Tensor) for state in hx)
    return hx if are_two else None


def refuse_types(module: nn.Module, input: Any, hx: Any) -> NoReturn:
    """Raises an error about the type of ``input`` or else, if that is right, of ``hx``."""
    layer, kind = isinstance(module, nn.RNNBase), class_of(module).__name__
    are_values = layer and isinstance(input, tuple) and [isinstance(part, Tensor) for part in input] == [True, True]
    if not are_values and not isinstance(input, (Tensor, PackedSequence) if layer else Tensor):
        allowed = "a tensor or a PackedSequence" if layer else "a tensor"
        if layer and isinstance(input, tuple):
            kinds = ", ".join(type(part).__name__ for part in input)
            raise TypeError(f"input: expected {allowed}, or two tensors (values, cu_seqlens), but got ({kinds})")
        raise TypeError(f"input: expected {allowed} but got {type(input).__name__}")
    if not kind.startswith("LSTM"):
        raise TypeError(f"hx: expected a tensor or None but got {type(hx).__name__}")
    if not isinstance(hx, tuple | list):
        raise TypeError(f"hx: expected a tuple (h_0, c_0) or None but got {type(hx).__name__}")
    kinds = ", ".join(type(state).__name__ for state in hx)
    raise TypeError(f"hx: expected a tuple (h_0, c_0) of two tensors but got ({kinds})")


def refuse_rank(dim: int, states: Sequence[Tensor]) -> NoReturn:
    """Raises an error about states that do not have ``dim`` dimensions, as the input has."""
    kind = "batched 3-D" if dim == 3 else "unbatched 2-D"
    got = ", ".join(f"{state.dim()}-D" for state in states)
    if len(states) == 2:
        raise RuntimeError(f"For {kind} input, hx and cx should also be {dim}-D but got ({got}) tensors")
    raise RuntimeError(f"For {kind} input, hx should also be {dim}-D but got {got} tensor")


def as_lengths(lengths: Any, batched: bool) -> Tensor:
    """``lengths`` as a tensor with a batch dimension; its shape, dtype and values are checked by the op."""
    if not isinstance(lengths, Tensor):
        try:
            empty = isinstance(lengths, Sequence) and not lengths  # torch would make an empty list float32
            lengths = torch.as_tensor(lengths, dtype=torch.int64 if empty else None)
        except (TypeError, ValueError, RuntimeError):
            kind = type(lengths).__name__
            raise RuntimeError(
                f"lengths: expected a tensor or a list of ints but got a {kind} that is neither"
            ) from None
    return lengths.unsqueeze(0) if lengths.dim() == 0 and not batched else lengths


def refuse_projection(proj_size: int) -> None:
    if proj_size != 0:
        raise ValueError(f"proj_size argument is only supported for LSTM, not RNN or GRU, but got {proj_size!r}")


def class_of(module: nn.Module) -> type[nn.Module]:
    """Our class of the module, which may be of a subclass."""
    return next(base for base in type(module).__mro__ if base.__module__ == "seqcls_fast.nn")


def _refuse_script(module: nn.Module, _: object) -> NoReturn:
    kind = class_of(module).__name__
    raise RuntimeError(
        f"torch.jit.script cannot compile seqcls_fast.{kind}: use torch.jit.trace, torch.export or torch.compile, "
        f"or load its state_dict into torch.nn.{kind}"
    )


def _warn_float(module: nn.Module, _: object) -> None:
    """Warns that torch's quantization will not quantize this module: it replaces torch.nn's own classes alone."""
    kind = class_of(module).__name__
    warnings.warn(
        f"seqcls_fast.{kind} stays in float: torch.ao.quantization swaps torch.nn.{kind} itself and no subclass of its "
        f"base, so call seqcls_fast.revert(model) first if it should be quantized",
        stacklevel=3,
    )


def _check_flat_weights(module: Any, weights: Any) -> None:
    """Raises if one of the weights is another tensor than the parameter of its name. torch would compute with it until
    the parameter changes; our modules read the parameters."""
    for k, (name, weight) in enumerate(zip(module._flat_weights_names, weights or (), strict=False)):
        parameter = module._parameters.get(name)  # none yet in a replica, and none if the weight is parametrized
        if weight is not parameter and parameter is not None and weight is not None:
            raise RuntimeError(
                f"_flat_weights: expected the module's own parameters but entry {k} is another tensor than its {name}: "
                f"assign to module.{name} instead"
            )


GUARDS: dict[str, Callable[[Any, Any], None]] = {  # called before an attribute of that name is set
    "qconfig": _warn_float,  # set on every module by torch.ao.quantization
    "__overloads__": _refuse_script,  # set on every module whose forward torch.jit.script is about to compile
    "_flat_weights": _check_flat_weights,
}

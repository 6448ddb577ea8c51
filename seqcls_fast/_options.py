"""The options of our layers that torch.nn's do not have, as one record: their checks, their weights, what a call needs.

A layer without options has none of this: its ``_layer_options`` are None.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ._cells import Rates
from ._inputs import shape_of
from ._noise import new_seed
from ._shapes import CELLS
from .ops import LayerOptions

__all__ = ["Options", "as_resets", "class_of_cell", "first_values", "initial_states", "options_of"]


# The options that make another cell: the end of its name, the option, and the value that the option then has.
_CELL_OPTIONS = (
    ("layer_norm", "layer_norm", True),
    ("peephole", "peephole", True),
    ("reset_before", "reset_after", False),
)


@dataclass(frozen=True)
class Options:
    """The options of a layer, as its constructor takes them."""

    layer_norm: bool = False
    zoneout: tuple[float, float] = (0.0, 0.0)
    recurrent_dropout: float = 0.0
    recurrent_dropout_kind: str = "state"
    weight_drop: float = 0.0
    peephole: bool = False
    reset_after: bool = True
    learn_initial_state: bool = False

    def cell(self, plain: str) -> str:
        """The name of the operators' cell for the cell that is ``plain`` without options."""
        for suffix, option, value in _CELL_OPTIONS:
            if getattr(self, option) is value:
                return f"{plain}_{suffix}"
        return plain

    def rates(self, training: bool) -> Rates:
        """How much is zoned out and dropped. In evaluation nothing is dropped."""
        dropped = self.recurrent_dropout if training else 0.0
        state = self.recurrent_dropout_kind == "state"
        return Rates(*self.zoneout, *((dropped, 0.0) if state else (0.0, dropped)))

    def of_call(self, module: nn.Module, resets: Tensor | None, device: torch.device) -> LayerOptions:
        """What a call of a layer's operator needs, but for what differs from layer to layer."""
        rates = self.rates(module.training)
        seed = new_seed(device) if module.training and any(rates) else None
        return LayerOptions(resets, seed, rates=rates if any(rates) else None)

    def of_layer(self, module: Any, k: int, of_call: LayerOptions) -> LayerOptions:
        """The same for layer ``k`` of a module."""
        h, c = (*self.reset_states(module, k), None, None)[:2]
        seed = of_call.seed if of_call.seed is None or not k else of_call.seed + k
        return of_call._replace(seed=seed, h_reset=h, c_reset=c)

    def reset_states(self, module: Any, k: int) -> list[Tensor]:
        """The learnt states of layer ``k``: h (and c), one row for each direction. None of them if none are learnt."""
        if not self.learn_initial_state:
            return []
        states = ("h_reset", "c_reset") if CELLS[module._cell_name].has_c else ("h_reset",)
        return [getattr(module, f"{state}_l{k}") for state in states]

    def drop_weights(self, module: nn.Module, weights: list[Tensor], directions: int) -> list[Tensor]:
        """The weights of a layer, by kind, in training with a part of ``w_hh`` set to zero."""
        if not self.weight_drop or not module.training:
            return weights
        dropped = [nn.functional.dropout(w, self.weight_drop) for w in weights[directions : 2 * directions]]
        return [*weights[:directions], *dropped, *weights[2 * directions :]]

    def add_parameters(self, module: Any) -> None:
        """Registers the parameters of the options, after torch's, with their first values."""
        like, hidden = module.weight_hh_l0, module.hidden_size
        directions, widths = 2 if module.bidirectional else 1, (module.proj_size or hidden, hidden)
        cell = CELLS[module._cell_name]
        if self.layer_norm and like.is_complex():
            raise ValueError(
                f"layer_norm: expected False with {like.dtype}, which torch cannot normalise, but got True"
            )
        shapes: dict[str, tuple[int, ...]] = {}
        for k in range(module.num_layers):
            for suffix in ("", "_reverse")[:directions]:
                for weight in cell.further:
                    of_weight = (weight.rows, hidden) if weight.is_matrix else (weight.rows * hidden,)
                    shapes[f"{weight.name}_l{k}{suffix}"] = of_weight
            if self.learn_initial_state:
                states = zip(("h_reset", "c_reset")[: 1 + cell.has_c], widths, strict=False)
                shapes |= {f"{name}_l{k}": (directions, width) for name, width in states}
        bound = 1 / math.sqrt(hidden)
        for name, shape in shapes.items():
            module.register_parameter(name, nn.Parameter(nn.init.uniform_(like.new_empty(shape), -bound, bound)))
        first_values(module.named_parameters())


def initial_states(module: Any, batch: int, like: Tensor) -> list[Tensor]:
    """The states of all layers for ``batch`` rows where ``hx`` is None, as ``hx`` holds them: learnt, or zeros."""
    options: Options | None = module._layer_options
    if options is not None and options.learn_initial_state:
        layers = zip(*(options.reset_states(module, k) for k in range(module.num_layers)), strict=True)
        return [torch.cat(states).unsqueeze(1).expand(-1, batch, -1) for states in layers]
    count = module.num_layers * (2 if module.bidirectional else 1)
    widths = (module.proj_size or module.hidden_size, module.hidden_size)
    return [like.new_zeros(count, batch, width) for width in widths[: 1 + CELLS[module._cell_name].has_c]]


def first_values(named: Iterable[tuple[str, Tensor]]) -> None:
    """Gains begin at one; their biases and the learnt states at zero. Other weights keep torch's first values."""
    for name, parameter in named:
        if name.startswith("weight_ln"):
            nn.init.ones_(parameter)
        elif name.startswith(("bias_ln", "h_reset", "c_reset")):
            nn.init.zeros_(parameter)


def class_of_cell(cell: str) -> tuple[str, dict[str, Any]]:
    """The name of the class whose layers have this cell of the operators, and the arguments that choose the cell."""
    arguments: dict[str, Any] = {}
    for suffix, option, value in _CELL_OPTIONS:
        if cell.endswith(f"_{suffix}"):
            cell, arguments = cell.removesuffix(f"_{suffix}"), {option: value}
    if cell.startswith("rnn_"):  # a module has the name of its cell, but RNN has two cells
        return "RNN", {"nonlinearity": cell.removeprefix("rnn_")} | arguments
    return cell.upper(), arguments


def options_of(kind: str, **given: Any) -> Options | None:
    """The options of a new layer, checked; None if it has none. ``kind``: the name of its class."""
    flags = ("layer_norm", "peephole", "reset_after", "learn_initial_state")
    for name in flags:
        if name in given and not isinstance(given[name], bool):
            raise TypeError(f"{name}: expected True or False but got {reprlib.repr(given[name])}")
    given["zoneout"] = _zoneout(kind, given["zoneout"])
    for name in ("recurrent_dropout", "weight_drop"):
        given[name] = _rate(name, given[name])
    options = Options(**given)
    if options.recurrent_dropout_kind not in ("state", "candidate"):
        raise ValueError(
            f"recurrent_dropout_kind: expected 'state' or 'candidate' but got "
            f"{reprlib.repr(options.recurrent_dropout_kind)}"
        )
    if options.recurrent_dropout_kind == "candidate" and kind == "RNN":
        raise ValueError(
            "recurrent_dropout_kind: expected 'state' for RNN, which has no candidate, but got 'candidate'"
        )
    if options.layer_norm and options.peephole:
        raise ValueError(
            "peephole: expected False with layer_norm=True, as no paper says how they combine, but got True"
        )
    if options.layer_norm and not options.reset_after:
        raise ValueError(
            "reset_after: expected True with layer_norm=True, as no paper says how they combine, but got False"
        )
    return None if options == Options() else options


def _rate(name: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (math.isfinite(value) and 0 <= value < 1):
        kind = TypeError if not is_number else ValueError
        raise kind(f"{name}: expected a number from 0 to below 1 but got {reprlib.repr(value)}")
    return float(value)


def _zoneout(kind: str, value: Any) -> tuple[float, float]:
    has_c = kind == "LSTM"
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise ValueError(f"zoneout: expected a number or (for h, for c) but got {reprlib.repr(value)}")
        h, c = (_rate("zoneout", part) for part in value)
        if c and not has_c:
            raise ValueError(f"zoneout: expected 0 for c, which {kind} does not have, but got {c}")
        return h, c
    rate = _rate("zoneout", value)
    return rate, rate if has_c else 0.0


def as_resets(resets: Any, input: Tensor | PackedSequence) -> Tensor:
    """``resets`` as the operator takes it: booleans of the shape of the input without its features."""
    if isinstance(input, PackedSequence):
        rows: Sequence[int] = input.data.shape[:1]
        if isinstance(resets, PackedSequence):
            _check_same_order(resets, input)
            resets = resets.data
    else:
        rows = input.shape[:-1]
        if isinstance(resets, PackedSequence):
            raise TypeError("resets: expected a tensor, as the input is one, but got a PackedSequence")
    if not isinstance(resets, Tensor):
        try:
            resets = torch.as_tensor(resets, device=input.data.device)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"resets: expected a tensor of booleans but got {type(resets).__name__}") from None
    if resets.dtype != torch.bool:
        raise TypeError(f"resets: expected torch.bool but got {resets.dtype}")
    if resets.shape != rows:
        raise RuntimeError(
            f"resets: expected shape {tuple(rows)}, that of the input without its features, but got {shape_of(resets)}"
        )
    if resets.device != input.data.device:
        raise RuntimeError(f"resets: expected a tensor on {input.data.device}, like the input, but got {resets.device}")
    return resets


def _check_same_order(resets: PackedSequence, input: PackedSequence) -> None:
    def same(a: Tensor | None, b: Tensor | None) -> bool:
        return a is b or (a is not None and b is not None and a.shape == b.shape and bool((a == b).all()))

    if not same(resets.batch_sizes, input.batch_sizes):
        raise RuntimeError("resets: expected a PackedSequence with the batch_sizes of the input's but got others")
    if not same(resets.sorted_indices, input.sorted_indices):
        raise RuntimeError("resets: expected a PackedSequence with its rows in the input's order but got another order")

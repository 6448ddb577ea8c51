"""The base classes of the modules in ``nn.py``: ``RecurrentLayers`` of RNN, GRU and LSTM, and that of the cells.

Parameters, initialisation, state dicts and pickling are those of ``torch.nn.RNNBase``. Its copies of the weights
(``_flat_weights``) are never used: the weights are looked up at every call, so that tying, parametrizations,
pruning, ``functional_call`` and optimizers that write through ``p.data`` all take effect at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import _eager, ops
from ._checks import GUARDS, as_lengths, as_states, check_input, check_state, class_of, refuse_rank
from ._frozen import Freezable, flat, with_both_biases
from ._nested import as_jagged, jagged_resets
from ._options import Options, as_resets, first_values, initial_states
from ._shapes import CELLS
from ._stand_ins import call_with_stand_ins, is_stand_in

__all__ = ["RecurrentCell", "RecurrentLayers"]

_OF_TORCH = ("RNN_TANH", "RNN_RELU", "GRU", "LSTM")  # the modes of torch.nn.RNNBase
_CELL_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
_HAS_C = {cell.upper(): constants.has_c for cell, constants in CELLS.items()}  # by mode


def _current(module: nn.Module, names: Sequence[str]) -> list[Any]:
    """``getattr`` for each name, with a short cut for plain parameters that saves 0.4 us a weight."""
    own = module._parameters
    return [own[name] if name in own else getattr(module, name) for name in names]


@lru_cache(maxsize=256)
def _weight_names(num_layers: int, bidirectional: bool, bias: bool, projected: bool, cell: str) -> list[list[str]]:
    kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if bias else []), *(["weight_hr"] if projected else [])]
    kinds += [weight.name for weight in CELLS[cell].further]
    suffixes = ["", "_reverse"] if bidirectional else [""]
    return [[f"{kind}_l{k}{suffix}" for kind in kinds for suffix in suffixes] for k in range(num_layers)]


class _Guarded(Freezable):
    """A module that checks the attributes by which torch, or a user, asks for what our modules cannot do."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in GUARDS:
            GUARDS[name](self, value)
        super().__setattr__(name, value)


class RecurrentLayers(_Guarded, nn.RNNBase):
    """Everything of RNN, GRU and LSTM but their constructors. The cell's name is ``mode`` in lower case, and what an
    option adds to it."""

    recompute_gates: bool = False
    """Set it to True on a module or a class to train in less memory: the forward keeps no gates, and the backward
    computes them again. Results and gradients have the same bits."""

    _layer_options: Options | None = None  # those that torch.nn's layers do not have

    def __init__(self, mode: str, *arguments: Any, options: Options | None = None) -> None:
        super().__init__(mode if mode in _OF_TORCH else "RNN_TANH", *arguments)
        if options is not None:
            self._layer_options = options
            options.add_parameters(self)
        if mode not in _OF_TORCH:  # RNNBase cannot make its weights, which differ from RNN's in the number of gates
            self.mode = mode
            rows = CELLS[mode.lower()].gates * self.hidden_size
            for name, weight in list(self.named_parameters()):
                setattr(self, name, nn.Parameter(weight.new_empty(rows, *weight.shape[1:])))
            self.reset_parameters()

    @property
    def _cell_name(self) -> str:
        """The name of the operators' cell."""
        plain = self.mode.lower()
        return plain if self._layer_options is None else self._layer_options.cell(plain)

    def reset_parameters(self) -> None:
        """Draws the first values of all parameters, as torch.nn does."""
        super().reset_parameters()
        if self._layer_options is not None:
            first_values(self.named_parameters())

    def extra_repr(self) -> str:
        text = super().extra_repr()
        if self._layer_options is None:
            return text
        usual = Options()
        own = {name: value for name, value in vars(self._layer_options).items() if value != getattr(usual, name)}
        return ", ".join([text, *(f"{name}={value!r}" for name, value in own.items())])

    def flatten_parameters(self) -> None:
        """Does nothing: no call needs the weights in one piece. It exists so that code written for torch.nn runs."""

    def forward(
        self,
        input: Tensor | PackedSequence | tuple[Tensor, Tensor],
        hx: Tensor | tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        resets: Tensor | PackedSequence | None = None,
        want_output: bool = True,
    ) -> tuple[Any, Any]:
        if self._layer_options is None and resets is None and not torch.compiler.is_compiling():
            found = _eager.layers(self, input, hx, lengths, want_output)
            if found is not NotImplemented:
                return found
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise RuntimeError("lengths: expected None with a PackedSequence, which carries its own lengths")
            return self._forward_packed(input, hx, resets, want_output)
        if isinstance(input, tuple) or (isinstance(input, Tensor) and input.is_nested):
            return self._forward_jagged(input, hx, lengths, resets, want_output)
        if not isinstance(input, Tensor):
            return call_with_stand_ins(  # type: ignore[unreachable]
                self, input, hx, lengths=lengths, resets=resets, want_output=want_output
            )
        shape = input.shape
        dim = len(shape)
        if dim != 2 and dim != 3:
            raise ValueError(f"{type(self).__name__}: Expected input to be 2D or 3D, got {dim}D instead")
        batched = dim == 3
        x = input if batched else input.unsqueeze(1)
        batch_first = self.batch_first and batched
        states = () if hx is None else as_states(hx, _HAS_C[self.mode])
        if states is None or is_stand_in(lengths) or is_stand_in(resets):
            return call_with_stand_ins(self, input, hx, lengths=lengths, resets=resets, want_output=want_output)
        for state in states:
            if state.dim() != dim:
                refuse_rank(dim, states)
        if not batched:
            states = [state.unsqueeze(1) for state in states]
        if lengths is not None:
            lengths = as_lengths(lengths, batched)
        weights = self._weights()
        batch = 1 if not batched else shape[0 if batch_first else 1]
        self._check(x, shape[-1], weights[0][0], states, batch)
        packed = self._packed((x, *states), flat(weights)) if self._frozen_weights else None
        if resets is not None:
            resets = as_resets(resets, input)
            resets = resets if batched else resets.unsqueeze(1)
        output, states = self._run(x, weights, states, lengths, None, batch_first, want_output, packed, resets)
        if not batched:
            output = output.squeeze(1) if want_output else None
            states = [state.squeeze(1) for state in states]
        return output, tuple(states) if _HAS_C[self.mode] else states[0]

    def _forward_packed(self, input: PackedSequence, hx: Any, resets: Any, want_output: bool) -> tuple[Any, Any]:
        """The operator takes the rows of a PackedSequence as they are; only the states change their order."""
        x, batch_sizes, order, restore = input
        if x.dim() != 2:
            raise RuntimeError(f"input must have 2 dimensions, got {x.dim()}")
        states = () if hx is None else as_states(hx, _HAS_C[self.mode])
        if states is None:
            return call_with_stand_ins(self, input, hx, resets=resets, want_output=want_output)
        weights = self._weights()
        # While Dynamo traces, batch_sizes has no values; the operator then compares the states with it.
        batch = 0 if not states else states[0].size(1) if torch.compiler.is_compiling() else int(batch_sizes[0])
        self._check(x, x.size(1), weights[0][0], states, batch)
        if order is not None:
            states = [state.index_select(1, order) for state in states]
        packed = self._packed((x, *states), flat(weights)) if self._frozen_weights else None
        if resets is not None:
            resets = as_resets(resets, input)
        output, states = self._run(x, weights, states, None, batch_sizes, False, want_output, packed, resets)
        if restore is not None:
            states = [state.index_select(1, restore) for state in states]
        if want_output:
            output = PackedSequence(output, batch_sizes, order, restore)
        return output, tuple(states) if _HAS_C[self.mode] else states[0]

    def _forward_jagged(self, input: Any, hx: Any, lengths: Any, resets: Any, want_output: bool) -> tuple[Any, Any]:
        """A batch without padding, row after row. The operator takes its steps in packed order; a row without steps
        takes no part."""
        states = () if hx is None else as_states(hx, _HAS_C[self.mode])
        are_tensors = isinstance(input, Tensor) or (len(input) == 2 and all(isinstance(t, Tensor) for t in input))
        if states is None or not are_tensors or is_stand_in(resets):
            return call_with_stand_ins(self, input, hx, lengths=lengths, resets=resets, want_output=want_output)
        rows = as_jagged(input, lengths)
        values, batch = rows.values, rows.rank.size(0)
        if any(state.dim() != 3 for state in states):
            refuse_rank(3, states)
        weights = self._weights()
        self._check(values, values.size(1), weights[0][0], states, batch)
        packed = self._packed((values, *states), flat(weights)) if self._frozen_weights else None
        if resets is not None:
            resets = rows.packed(as_resets(jagged_resets(resets, rows), values))
        # A traced graph must run any batch, so it takes the way of those that have rows of both kinds.
        traced = torch.compiler.is_compiling() or torch._C._is_tracing()
        if not states and (traced or len(rows.empty)):
            states = initial_states(self, batch, weights[0][0])
        if traced or len(rows.filled):
            output, finals = self._run(
                rows.packed(values), weights, [state.index_select(1, rows.filled) for state in states], None,
                rows.batch_sizes, False, want_output, packed, resets,
            )  # fmt: skip
            if traced or len(rows.empty):
                pairs = zip(finals, states, strict=True)
                finals = [torch.cat([end, start.index_select(1, rows.empty).to(end.dtype)], 1) for end, start in pairs]
            finals = [final.index_select(1, rows.rank) for final in finals]
        else:  # one step of padding
            x = nn.functional.pad(values, (0, 0, 0, batch)).unsqueeze(0)
            output, finals = self._run(x, weights, states, rows.rank.new_zeros(batch), None, False, want_output, packed)
            output = output[0, :0] if want_output else None
        return rows.like_input(output), tuple(finals) if _HAS_C[self.mode] else finals[0]

    def _run(
        self,
        x: Tensor,
        weights: list[list[Tensor]],
        states: Sequence[Tensor],
        lengths: Tensor | None,
        batch_sizes: Tensor | None,
        batch_first: bool,
        want_output: bool,
        packed: Sequence[Tensor | None] | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Any, Sequence[Tensor]]:
        """Runs the layers one after another. Returns the last output and the final h (and c) of all layers. ``packed``:
        the packed weights of each layer, if it is frozen."""
        cell, last, options = self._cell_name, self.num_layers - 1, self._layer_options
        directions = 2 if self.bidirectional else 1
        if options is not None and options.learn_initial_state and not states:
            states = initial_states(self, _batch_of(x, batch_sizes, batch_first), weights[0][0])
        h0, c0 = (*states, None, None)[:2]
        of_call = of_layer = None
        if options is not None:
            of_call = options.of_call(self, resets, x.device)
        elif resets is not None:
            of_call = of_layer = ops.LayerOptions(resets)
        if last:  # one part for each layer, with all its directions
            h0s = [None] * len(weights) if h0 is None else h0.split(directions)
            c0s = [None] * len(weights) if c0 is None else c0.split(directions)
        finals = []
        for k, layer in enumerate(weights):
            if last:
                h0, c0 = h0s[k], c0s[k]
            if options is not None and of_call is not None:
                of_layer = options.of_layer(self, k, of_call)
                dropped = options.drop_weights(self, layer, directions)
                if dropped is not layer:
                    layer, packed = dropped, None
            output, h_n, c_n = ops.run_layer(
                x, layer, directions, h0, c0, cell, lengths, batch_sizes, batch_first, want_output or k < last,
                self.recompute_gates, packed=packed[k] if packed else None, options=of_layer,
            )  # fmt: skip
            finals.append((h_n,) if c_n is None else (h_n, c_n))
            if k < last and output is not None:
                x = nn.functional.dropout(output, self.dropout) if self.dropout and self.training else output
        return output, [torch.cat(state) for state in zip(*finals, strict=True)] if last else finals[0]

    def _weights(self) -> list[list[Tensor]]:
        """The current weights of each layer, in the operator's order: by kind, and within a kind by direction."""
        # Dynamo ignores lru_cache and warns about it, so it gets the plain function.
        names_of = _weight_names.__wrapped__ if torch.compiler.is_compiling() else _weight_names
        names = names_of(self.num_layers, self.bidirectional, self.bias, bool(self.proj_size), self._cell_name)
        return [_current(self, layer) for layer in names]

    def _to_pack(self) -> tuple[str, int, list[list[str]]]:
        names = _weight_names(self.num_layers, self.bidirectional, self.bias, bool(self.proj_size), self._cell_name)
        return self._cell_name, 2 if self.bidirectional else 1, names

    def _check(self, x: Tensor, features: int, weight: Tensor, states: Sequence[Tensor], batch: int) -> None:
        check_input(x, weight, ValueError)
        if features != self.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {features}"
            )
        if not states:
            return
        count = self.num_layers * (2 if self.bidirectional else 1)
        for k, state in enumerate(states):
            width = (not k and self.proj_size) or self.hidden_size
            name = f"hidden[{k}]" if _HAS_C[self.mode] else "hidden"
            if state.shape != (count, batch, width):
                raise RuntimeError(f"Expected {name} size {(count, batch, width)}, got {list(state.shape)}")
            check_state(state, x)


def _batch_of(x: Tensor, batch_sizes: Tensor | None, batch_first: bool) -> int:
    return x.size(0 if batch_first else 1) if batch_sizes is None else int(batch_sizes[0])


class RecurrentCell(_Guarded, nn.RNNCellBase):
    """One step: a layer whose sequence has one element."""

    def _step(self, cell: str, input: Any, hx: Any, resets: Any = None) -> Any:
        """The new h, or h and c, from an input ``(B, I)`` or ``(I,)`` and states with the same number of dimensions.
        ``resets``: ``(B,)`` or without dimensions, True where the states are zeros instead."""
        if resets is None and not torch.compiler.is_compiling():
            found = _eager.cell(self, cell, input, hx)
            if found is not NotImplemented:
                return found
        if not isinstance(input, Tensor):
            return call_with_stand_ins(self, input, hx, resets=resets)
        dim = input.dim()
        if dim != 1 and dim != 2:
            raise ValueError(f"{type(self).__name__}: Expected input to be 1D or 2D, got {dim}D instead")
        states = () if hx is None else as_states(hx, CELLS[cell].has_c)
        if states is None or is_stand_in(resets):
            return call_with_stand_ins(self, input, hx, resets=resets)
        weights = _current(self, _CELL_WEIGHTS)
        self._check(input, weights[0], states)
        packed = self._packed((input, *states), weights) if self._frozen_weights else None
        # Add the dimensions that a layer has and a cell has not: T of x, D of the states, and B of an unbatched input.
        add, drop = ((None,), 0) if dim == 2 else ((None, None), (0, 0))
        h0, c0 = (*(state[add] for state in states), None, None)[:2]
        options = None if resets is None else ops.LayerOptions(as_resets(resets, input)[add])
        _, h, c = ops.run_layer(
            input[add], [w for w in with_both_biases(weights) if w is not None], 1, h0, c0, cell, None, None, False,
            want_output=False,
            # no kernel runs a cell without inputs or without units
            impl="auto" if weights[0].numel() else "reference", packed=packed[0] if packed else None, options=options,
        )  # fmt: skip
        return h[drop] if c is None else (h[drop], c[drop])

    def _to_pack(self) -> tuple[str, int, list[list[str]]]:
        name = class_of(self).__name__.removesuffix("Cell").lower()
        return f"rnn_{self.nonlinearity}" if name == "rnn" else name, 1, [list(_CELL_WEIGHTS)]

    def _check(self, x: Tensor, weight: Tensor, states: Sequence[Tensor]) -> None:
        for k, state in enumerate(states):
            if state.dim() != 1 and state.dim() != 2:
                name = f"hx[{k}]" if len(states) == 2 else "hidden"
                kind = type(self).__name__
                raise ValueError(f"{kind}: Expected {name} to be 1D or 2D, got {state.dim()}D instead")
        if x.size(-1) != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {x.size(-1)} expected {self.input_size}")
        for k, state in enumerate(states):
            width, dim = state.size(-1), x.dim()
            if state.dim() != dim:
                raise RuntimeError(
                    f"For {dim}-D input, hidden{k} should also be {dim}-D but got a {state.dim()}-D tensor"
                )
            if dim == 2 and state.size(0) != x.size(0):
                raise RuntimeError(f"Input batch size {x.size(0)} doesn't match hidden{k} batch size {state.size(0)}")
            if width != self.hidden_size:
                raise RuntimeError(f"hidden{k} has inconsistent hidden_size: got {width}, expected {self.hidden_size}")
        check_input(x, weight, RuntimeError)
        for state in states:
            check_state(state, x)

"""``RNN``, ``GRU``, ``LSTM`` and their cells: torch.nn's modules on fused kernels, replaced by changing one import.

Parameters, initialisation, state dicts and pickling are those of ``torch.nn.RNNBase``. Its copies of the weights
(``_flat_weights``) are never used: the weights are looked up at every call, so that tying, parametrizations,
pruning, ``functional_call`` and optimizers that write through ``p.data`` all take effect at once. The file is long
because half of it is docstrings: the code is one class for layers and one for cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import ops
from ._checks import (
    as_lengths,
    as_states,
    check_input,
    check_state,
    refuse_projection,
    refuse_rank,
    refuse_script,
    warn_float,
)
from ._shapes import CELLS

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

_Device = torch.device | str | int | None
_OF_TORCH = ("RNN_TANH", "RNN_RELU", "GRU", "LSTM")  # the modes of torch.nn.RNNBase
_HAS_C = {cell.upper(): constants.has_c for cell, constants in CELLS.items()}  # by mode


def _current(module: nn.Module, names: Sequence[str]) -> list[Any]:
    """``getattr`` for each name, with a short cut for plain parameters that saves 0.4 us a weight."""
    own = module._parameters
    return [own[name] if name in own else getattr(module, name) for name in names]


@lru_cache(maxsize=256)
def _weight_names(num_layers: int, bidirectional: bool, bias: bool, projected: bool) -> list[list[str]]:
    kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if bias else []), *(["weight_hr"] if projected else [])]
    suffixes = ["", "_reverse"] if bidirectional else [""]
    return [[f"{kind}_l{k}{suffix}" for kind in kinds for suffix in suffixes] for k in range(num_layers)]


class _RecurrentLayers(nn.RNNBase):
    """Everything of RNN, GRU and LSTM but their constructors. The cell's name is ``mode`` in lower case."""

    recompute_gates: bool = False
    """Set it to True on a module or a class to train in less memory: the forward keeps no gates, and the backward
    computes them again. Results and gradients have the same bits."""

    def __init__(self, mode: str, *options: Any) -> None:
        super().__init__(mode if mode in _OF_TORCH else "RNN_TANH", *options)
        if mode not in _OF_TORCH:  # RNNBase cannot make its weights, which differ from RNN's in the number of gates
            self.mode = mode
            rows = CELLS[mode.lower()].gates * self.hidden_size
            for name, weight in list(self.named_parameters()):
                setattr(self, name, nn.Parameter(weight.new_empty(rows, *weight.shape[1:])))
            self.reset_parameters()

    def flatten_parameters(self) -> None:
        """Does nothing: no call needs the weights in one piece. It exists so that code written for torch.nn runs."""

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_script(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "qconfig":  # set on every module by torch.ao.quantization
            warn_float(self)
        super().__setattr__(name, value)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        want_output: bool = True,
    ) -> tuple[Any, Any]:
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise RuntimeError("lengths: expected None with a PackedSequence, which carries its own lengths")
            return self._forward_packed(input, hx, want_output)
        if not isinstance(input, Tensor):
            raise TypeError(f"input: expected a tensor or a PackedSequence but got {type(input).__name__}")
        shape = input.shape
        dim = len(shape)
        if dim != 2 and dim != 3:
            raise ValueError(f"{type(self).__name__}: Expected input to be 2D or 3D, got {dim}D instead")
        batched = dim == 3
        x = input if batched else input.unsqueeze(1)
        batch_first = self.batch_first and batched
        states: Sequence[Tensor] = ()
        if hx is not None:
            states = as_states(hx, _HAS_C[self.mode])
            if any(state.dim() != dim for state in states):
                refuse_rank(dim, states)
            if not batched:
                states = [state.unsqueeze(1) for state in states]
        if lengths is not None:
            lengths = as_lengths(lengths, batched)
        weights = self._weights()
        batch = 1 if not batched else shape[0 if batch_first else 1]
        self._check(x, shape[-1], weights[0][0], states, batch)
        output, states = self._run(x, weights, states, lengths, None, batch_first, want_output)
        if not batched:
            output = output.squeeze(1) if want_output else None
            states = [state.squeeze(1) for state in states]
        return output, tuple(states) if _HAS_C[self.mode] else states[0]

    def _forward_packed(self, input: PackedSequence, hx: Any, want_output: bool) -> tuple[Any, Any]:
        """The operator takes the rows of a PackedSequence as they are; only the states change their order."""
        x, batch_sizes, order, restore = input
        if x.dim() != 2:
            raise RuntimeError(f"input must have 2 dimensions, got {x.dim()}")
        states = () if hx is None else as_states(hx, _HAS_C[self.mode])
        weights = self._weights()
        # While Dynamo traces, batch_sizes has no values; the operator then compares the states with it.
        batch = 0 if not states else states[0].size(1) if torch.compiler.is_compiling() else int(batch_sizes[0])
        self._check(x, x.size(1), weights[0][0], states, batch)
        if order is not None:
            states = [state.index_select(1, order) for state in states]
        output, states = self._run(x, weights, states, None, batch_sizes, False, want_output)
        if restore is not None:
            states = [state.index_select(1, restore) for state in states]
        if want_output:
            output = PackedSequence(output, batch_sizes, order, restore)
        return output, tuple(states) if _HAS_C[self.mode] else states[0]

    def _run(
        self,
        x: Tensor,
        weights: list[list[Tensor]],
        states: Sequence[Tensor],
        lengths: Tensor | None,
        batch_sizes: Tensor | None,
        batch_first: bool,
        want_output: bool,
    ) -> tuple[Any, Sequence[Tensor]]:
        """Runs the layers one after another. Returns the last output and the final h (and c) of all layers."""
        cell, last = self.mode.lower(), self.num_layers - 1
        directions = 2 if self.bidirectional else 1
        h0, c0 = (*states, None, None)[:2]
        if last:  # one part for each layer, with all its directions
            h0s = [None] * len(weights) if h0 is None else h0.split(directions)
            c0s = [None] * len(weights) if c0 is None else c0.split(directions)
        finals = []
        for k, layer in enumerate(weights):
            if last:
                h0, c0 = h0s[k], c0s[k]
            output, h_n, c_n = ops.run_layer(
                x, layer, directions, h0, c0, cell, lengths, batch_sizes, batch_first, want_output or k < last,
                self.recompute_gates,
            )  # fmt: skip
            finals.append((h_n,) if c_n is None else (h_n, c_n))
            if k < last and output is not None:
                x = nn.functional.dropout(output, self.dropout) if self.dropout and self.training else output
        return output, [torch.cat(state) for state in zip(*finals, strict=True)] if last else finals[0]

    def _weights(self) -> list[list[Tensor]]:
        """The current weights of each layer, in the operator's order: by kind, and within a kind by direction."""
        # Dynamo ignores lru_cache and warns about it, so it gets the plain function.
        names_of = _weight_names.__wrapped__ if torch.compiler.is_compiling() else _weight_names
        names = names_of(self.num_layers, self.bidirectional, self.bias, bool(self.proj_size))
        return [_current(self, layer) for layer in names]

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


class RNN(_RecurrentLayers):
    r"""A multi-layer Elman RNN with :math:`\tanh` or :math:`\text{ReLU}`, a drop-in for :class:`torch.nn.RNN`.

    .. math::
        h_t = \tanh(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    Args:
        input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional, device, dtype:
            as in :class:`torch.nn.RNN`.

    Inputs: input, hx=None, \*, lengths=None, want_output=True
        * **input**: :math:`(L, N, H_{in})`, :math:`(N, L, H_{in})` with ``batch_first=True``, :math:`(L, H_{in})`
          unbatched, or a :class:`~torch.nn.utils.rnn.PackedSequence`.
        * **hx**: :math:`(D * \text{num\_layers}, N, H_{out})`, without :math:`N` for unbatched input. Default: zeros.
        * **lengths**: the number of steps of each row of a padded input, :math:`(N)` integers in any order, zeros
          allowed, as a tensor on any device or a list. What lies beyond a row's length is never read.
        * **want_output**: ``False`` if only the final states are wanted; **output** is then None.

    Outputs: output, h_n
        * **output**: the states of the last layer, :math:`(L, N, D * H_{out})` or as **input** is laid out;
          0 beyond a row's length.
        * **h_n**: :math:`(D * \text{num\_layers}, N, H_{out})`, the state at each row's end, which is **hx** where the
          length is 0.

    Examples::

        >>> import torch, seqcls_fast as sf
        >>> rnn = sf.RNN(10, 20, 2, nonlinearity="relu")
        >>> output, h_n = rnn(torch.randn(5, 3, 10), lengths=[5, 0, 2])
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: _Device = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: int = 0,
    ) -> None:
        refuse_projection(proj_size)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        sizes = (input_size, hidden_size, num_layers)
        super().__init__(
            f"RNN_{nonlinearity.upper()}", *sizes, bias, batch_first, dropout, bidirectional, 0, device, dtype
        )
        self.nonlinearity = nonlinearity


class GRU(_RecurrentLayers):
    r"""A multi-layer gated recurrent unit, a drop-in for :class:`torch.nn.GRU` (the reset gate acts after the product).

    .. math::
        \begin{aligned}
            r_t &= \sigma(W_{ir} x_t + b_{ir} + W_{hr} h_{t-1} + b_{hr}) \\
            z_t &= \sigma(W_{iz} x_t + b_{iz} + W_{hz} h_{t-1} + b_{hz}) \\
            n_t &= \tanh(W_{in} x_t + b_{in} + r_t \odot (W_{hn} h_{t-1} + b_{hn})) \\
            h_t &= (1 - z_t) \odot n_t + z_t \odot h_{t-1}
        \end{aligned}

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype:
            as in :class:`torch.nn.GRU`.

    Inputs: input, hx=None, \*, lengths=None, want_output=True
        As for :class:`RNN`.

    Outputs: output, h_n
        As for :class:`RNN`.

    Examples::

        >>> import torch, seqcls_fast as sf
        >>> gru = sf.GRU(10, 20, batch_first=True, bidirectional=True)
        >>> _, h_n = gru(torch.randn(3, 5, 10), lengths=torch.tensor([2, 5, 4]), want_output=False)
        >>> h_n.shape
        torch.Size([2, 3, 20])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: _Device = None,
        dtype: torch.dtype | None = None,
        *,
        proj_size: int = 0,
    ) -> None:
        refuse_projection(proj_size)
        sizes = (input_size, hidden_size, num_layers)
        super().__init__("GRU", *sizes, bias, batch_first, dropout, bidirectional, 0, device, dtype)


class LSTM(_RecurrentLayers):
    r"""A multi-layer long short-term memory, a drop-in for :class:`torch.nn.LSTM`.

    .. math::
        \begin{aligned}
            i_t &= \sigma(W_{ii} x_t + b_{ii} + W_{hi} h_{t-1} + b_{hi}) \\
            f_t &= \sigma(W_{if} x_t + b_{if} + W_{hf} h_{t-1} + b_{hf}) \\
            g_t &= \tanh(W_{ig} x_t + b_{ig} + W_{hg} h_{t-1} + b_{hg}) \\
            o_t &= \sigma(W_{io} x_t + b_{io} + W_{ho} h_{t-1} + b_{ho}) \\
            c_t &= f_t \odot c_{t-1} + i_t \odot g_t \\
            h_t &= o_t \odot \tanh(c_t)
        \end{aligned}

    With ``proj_size > 0`` the state is projected after every step, :math:`h_t = W_{hr} (o_t \odot \tanh(c_t))`.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype:
            as in :class:`torch.nn.LSTM`.

    Inputs: input, (h_0, c_0)=None, \*, lengths=None, want_output=True
        As for :class:`RNN`, with **h_0** as **hx** there (its :math:`H_{out}` is ``proj_size`` if that is not 0)
        and **c_0** :math:`(D * \text{num\_layers}, N, H_{cell})`.

    Outputs: output, (h_n, c_n)
        As for :class:`RNN`, with **h_n** and **c_n** shaped as **h_0** and **c_0**.

    Examples::

        >>> import torch, seqcls_fast as sf
        >>> lstm = sf.LSTM(10, 20, 2, proj_size=5)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10), (torch.randn(2, 3, 5), torch.randn(2, 3, 20)))
        >>> output.shape, h_n.shape, c_n.shape
        (torch.Size([5, 3, 5]), torch.Size([2, 3, 5]), torch.Size([2, 3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: _Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        sizes = (input_size, hidden_size, num_layers)
        super().__init__("LSTM", *sizes, bias, batch_first, dropout, bidirectional, proj_size, device, dtype)


class _RecurrentCell(nn.RNNCellBase):
    """One step: a layer whose sequence has one element."""

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_script(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "qconfig":  # set on every module by torch.ao.quantization
            warn_float(self)
        super().__setattr__(name, value)

    def _step(self, cell: str, input: Tensor, hx: Any) -> tuple[Tensor, Tensor | None]:
        """The new h and c, from an input ``(B, I)`` or ``(I,)`` and states with the same number of dimensions."""
        if not isinstance(input, Tensor):
            raise TypeError(f"input: expected a tensor but got {type(input).__name__}")
        dim = input.dim()
        if dim != 1 and dim != 2:
            raise ValueError(f"{type(self).__name__}: Expected input to be 1D or 2D, got {dim}D instead")
        states = () if hx is None else as_states(hx, CELLS[cell].has_c)
        w_ih, w_hh, b_ih, b_hh = _current(self, ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        self._check(input, w_ih, states)
        # Add the dimensions that a layer has and a cell has not: T of x, D of the states, and B of an unbatched input.
        add, drop = ((None,), 0) if dim == 2 else ((None, None), (0, 0))
        h0, c0 = (*(state[add] for state in states), None, None)[:2]
        _, h, c = ops.rnn_layer(
            input[add],
            (w_ih,),
            (w_hh,),
            () if b_ih is None else (b_ih,),
            () if b_hh is None else (b_hh,),
            h0=h0,
            c0=c0,
            cell=cell,
            want_output=False,
        )
        return h[drop], None if c is None else c[drop]

    def _check(self, x: Tensor, weight: Tensor, states: Sequence[Tensor]) -> None:
        for k, state in enumerate(states):
            if state.dim() != 1 and state.dim() != 2:
                name = f"hx[{k}]" if len(states) == 2 else "hidden"
                kind = type(self).__name__
                raise ValueError(f"{kind}: Expected {name} to be 1D or 2D, got {state.dim()}D instead")
        check_input(x, weight, RuntimeError)
        if x.size(-1) != self.input_size:
            raise RuntimeError(f"input has inconsistent input_size: got {x.size(-1)} expected {self.input_size}")
        for k, state in enumerate(states):
            width, dim = state.size(-1), x.dim()
            if state.dim() != dim:
                raise RuntimeError(
                    f"For {dim}-D input, hidden{k} should also be {dim}-D but got a {state.dim()}-D tensor"
                )
            if width != self.hidden_size:
                raise RuntimeError(f"hidden{k} has inconsistent hidden_size: got {width}, expected {self.hidden_size}")
            if dim == 2 and state.size(0) != x.size(0):
                raise RuntimeError(f"Input batch size {x.size(0)} doesn't match hidden{k} batch size {state.size(0)}")
            check_state(state, x)


class RNNCell(_RecurrentCell):
    r"""An Elman RNN cell, a drop-in for :class:`torch.nn.RNNCell`.

    Args:
        input_size, hidden_size, bias, nonlinearity, device, dtype: as in :class:`torch.nn.RNNCell`.

    Inputs: input, hx=None
        :math:`(N, H_{in})` and :math:`(N, H_{out})`, both without :math:`N` for unbatched input. Default: zeros.

    Outputs: h'
        The next state, shaped as **hx**.

    Examples::

        >>> import torch, seqcls_fast as sf
        >>> cell, h = sf.RNNCell(10, 20), None
        >>> for x in torch.randn(6, 3, 10):
        ...     h = cell(x, h)
        >>> h.shape
        torch.Size([3, 20])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: _Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 1, device, dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return self._step(f"rnn_{self.nonlinearity}", input, hx)[0]


class GRUCell(_RecurrentCell):
    r"""A gated recurrent unit cell, a drop-in for :class:`torch.nn.GRUCell`.

    Args:
        input_size, hidden_size, bias, device, dtype: as in :class:`torch.nn.GRUCell`.

    Inputs: input, hx=None
        As for :class:`RNNCell`.

    Outputs: h'
        As for :class:`RNNCell`.

    Examples::

        >>> import torch, seqcls_fast as sf
        >>> cell = sf.GRUCell(10, 20)
        >>> cell(torch.randn(3, 10), torch.zeros(3, 20)).shape
        torch.Size([3, 20])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: _Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 3, device, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        return self._step("gru", input, hx)[0]


class LSTMCell(_RecurrentCell):
    r"""A long short-term memory cell, a drop-in for :class:`torch.nn.LSTMCell`.

    Args:
        input_size, hidden_size, bias, device, dtype: as in :class:`torch.nn.LSTMCell`.

    Inputs: input, (h_0, c_0)=None
        As for :class:`RNNCell`, with two states of the same shape.

    Outputs: (h_1, c_1)
        The next states.

    Examples::

        >>> import torch, seqcls_fast as sf
        >>> cell = sf.LSTMCell(10, 20)
        >>> h, c = cell(torch.randn(10))
        >>> h.shape, c.shape
        (torch.Size([20]), torch.Size([20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: _Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 4, device, dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        return self._step("lstm", input, hx)  # type: ignore[return-value]

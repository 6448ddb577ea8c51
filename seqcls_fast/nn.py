"""``RNN``, ``GRU``, ``LSTM`` and their cells: torch.nn's modules on fused kernels, replaced by changing one import.

Half of the file is docstrings: a class holds its constructor, and its forward comes from a base class in
``_recurrent.py``. docs/cells.md says more about the options.
"""

from __future__ import annotations

from . import _with_torch  # noqa: F401

# isort: split
import torch
from torch import Tensor, nn

from ._checks import refuse_projection
from ._options import options_of
from ._recurrent import RecurrentCell, RecurrentLayers

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell"]

_Device = torch.device | str | int | None


class RNN(RecurrentLayers):
    r"""A multi-layer Elman RNN with :math:`\tanh` or :math:`\text{ReLU}`, a drop-in for :class:`torch.nn.RNN`.

    .. math::
        h_t = \tanh(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh})

    Args:
        input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional, device, dtype:
            as in :class:`torch.nn.RNN`.
        layer_norm: whether the two products of a step are normalised over their units, each with a gain of its own,
            before the biases are added: :math:`h_t = \tanh(LN(W_{ih} x_t) + b_{ih} + LN(W_{hh} h_{t-1}) + b_{hh})` with
            :math:`LN(v) = g \odot (v - \text{mean}) / \sqrt{\text{var} + 10^{-5}}`. The gains are
            ``weight_ln_ih_l{k}`` and ``weight_ln_hh_l{k}``, which begin at 1.
        zoneout: the probability :math:`p` with which a unit keeps its previous state at a step in training. In
            evaluation the new state is :math:`(1 - p) h_t + p h_{t-1}`. An LSTM may have a pair, for h and for c.
        recurrent_dropout, recurrent_dropout_kind: the probability with which values are dropped in training, the others
            being divided by :math:`1 - p`. ``"state"``: of the state that :math:`W_{hh}` multiplies, the same units
            at all steps of a call. ``"candidate"``, for GRU and LSTM: of :math:`n_t` or :math:`g_t`, others each step.
        weight_drop: the probability with which an element of :math:`W_{hh}` is dropped in training, for a whole call.
        learn_initial_state: whether the state that a row starts from where **hx** is None, and that **resets** lead
            back to, is learnt: ``h_reset_l{k}`` :math:`(D, H_{out})`, which begins at 0 (for an LSTM also
            ``c_reset_l{k}`` :math:`(D, H_{cell})`).

    Inputs: input, hx=None, \*, lengths=None, resets=None, want_output=True
        * **input**: :math:`(L, N, H_{in})`, :math:`(N, L, H_{in})` with ``batch_first=True``, :math:`(L, H_{in})`
          unbatched, or a :class:`~torch.nn.utils.rnn.PackedSequence`. Without padding: a jagged nested tensor
          :math:`(N, *, H_{in})`, or a pair of the values :math:`(\text{steps}, H_{in})` of all rows, one after another,
          and ``cu_seqlens`` :math:`(N + 1)`, where each row begins and the last one ends.
        * **hx**: :math:`(D * \text{num\_layers}, N, H_{out})`, without :math:`N` for unbatched input. Default: zeros.
        * **lengths**: the number of steps of each row of a padded input, :math:`(N)` integers in any order, zeros
          allowed, as a tensor on any device or a list. What lies beyond a row's length is never read.
        * **resets**: booleans of the shape of **input** without its features, True where the state before that step is
          the initial one again: zeros, or the learnt state, and not **hx**. One at t cuts between t - 1 and t in both
          directions, so the reverse direction starts again at t - 1. No gradient flows over the cut.
        * **want_output**: ``False`` if only the final states are wanted; **output** is then None.

    Outputs: output, h_n
        * **output**: the states of the last layer, :math:`(L, N, D * H_{out})` or as **input** is laid out (a nested
          tensor, or a pair with the same ``cu_seqlens``); 0 beyond a row's length.
        * **h_n**: :math:`(D * \text{num\_layers}, N, H_{out})`, the state at each row's end, which is **hx** where the
          length is 0.

    Examples::

        >>> import torch, seqcls_fast as sf
        >>> rnn = sf.RNN(10, 20, 2, nonlinearity="relu")
        >>> output, h_n = rnn(torch.randn(5, 3, 10), lengths=[5, 0, 2])
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
        >>> (values, cu_seqlens), h_n = rnn((torch.randn(7, 10), torch.tensor([0, 5, 5, 7])))
        >>> values.shape, h_n.shape
        (torch.Size([7, 20]), torch.Size([2, 3, 20]))
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
        proj_size: int = 0,
        device: _Device = None,
        dtype: torch.dtype | None = None,
        *,
        layer_norm: bool = False,
        zoneout: float | tuple[float, float] = 0.0,
        recurrent_dropout: float = 0.0,
        recurrent_dropout_kind: str = "state",
        weight_drop: float = 0.0,
        learn_initial_state: bool = False,
    ) -> None:
        refuse_projection(proj_size)
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        sizes = (input_size, hidden_size, num_layers)
        options = options_of(
            "RNN", layer_norm=layer_norm, zoneout=zoneout, recurrent_dropout=recurrent_dropout,
            recurrent_dropout_kind=recurrent_dropout_kind, weight_drop=weight_drop,
            learn_initial_state=learn_initial_state,
        )  # fmt: skip
        super().__init__(
            f"RNN_{nonlinearity.upper()}", *sizes, bias, batch_first, dropout, bidirectional, 0, device, dtype,
            options=options,
        )  # fmt: skip
        self.nonlinearity = nonlinearity


class GRU(RecurrentLayers):
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
        reset_after: False for the GRU of the first paper and of Keras (its ``reset_after=False``): the reset gate acts
            before the product: :math:`n_t = \tanh(W_{in} x_t + b_{in} + W_{hn} (r_t \odot h_{t-1}) + b_{hn})`.
        layer_norm: as for :class:`RNN`; the products of :math:`r` and :math:`z` are normalised together, those of
            :math:`n` apart. Not together with ``reset_after=False``.
        zoneout, recurrent_dropout, recurrent_dropout_kind, weight_drop, learn_initial_state: as for :class:`RNN`.

    Inputs: input, hx=None, \*, lengths=None, resets=None, want_output=True
        As for :class:`RNN`.

    Outputs: output, h_n
        As for :class:`RNN`.

    Examples::

        >>> import torch, seqcls_fast as sf
        >>> gru = sf.GRU(10, 20, batch_first=True, bidirectional=True)
        >>> _, h_n = gru(torch.randn(3, 5, 10), lengths=torch.tensor([2, 5, 4]), want_output=False)
        >>> h_n.shape
        torch.Size([2, 3, 20])
        >>> agent = sf.GRU(10, 20, layer_norm=True, learn_initial_state=True)
        >>> output, h_n = agent(torch.randn(5, 3, 10), resets=torch.rand(5, 3) < 0.1)  # where episodes begin
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
        *,
        reset_after: bool = True,
        layer_norm: bool = False,
        zoneout: float | tuple[float, float] = 0.0,
        recurrent_dropout: float = 0.0,
        recurrent_dropout_kind: str = "state",
        weight_drop: float = 0.0,
        learn_initial_state: bool = False,
    ) -> None:
        refuse_projection(proj_size)
        sizes = (input_size, hidden_size, num_layers)
        options = options_of(
            "GRU", layer_norm=layer_norm, zoneout=zoneout, recurrent_dropout=recurrent_dropout,
            recurrent_dropout_kind=recurrent_dropout_kind, weight_drop=weight_drop,
            learn_initial_state=learn_initial_state, reset_after=reset_after,
        )  # fmt: skip
        super().__init__("GRU", *sizes, bias, batch_first, dropout, bidirectional, 0, device, dtype, options=options)


class LSTM(RecurrentLayers):
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
        peephole: whether gates also see the memory: :math:`i_t` and :math:`f_t` add :math:`p_i \odot c_{t-1}` and
            :math:`p_f \odot c_{t-1}` to their sums, and :math:`o_t` adds :math:`p_o \odot c_t`. The weights are
            ``weight_peephole_l{k}`` :math:`(3, H_{cell})`, of i, f and o. Not together with ``layer_norm``.
        layer_norm: as for :class:`RNN`, over all four gates at once; :math:`c_t` is normalised where :math:`h_t` reads
            it, :math:`h_t = o_t \odot \tanh(LN(c_t))`, with ``weight_ln_c_l{k}`` and ``bias_ln_c_l{k}``.
        zoneout, recurrent_dropout, recurrent_dropout_kind, weight_drop, learn_initial_state: as for :class:`RNN`.

    Inputs: input, (h_0, c_0)=None, \*, lengths=None, resets=None, want_output=True
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
        >>> sf.LSTM(10, 20, peephole=True, zoneout=(0.1, 0.05))
        LSTM(10, 20, zoneout=(0.1, 0.05), peephole=True)
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
        *,
        peephole: bool = False,
        layer_norm: bool = False,
        zoneout: float | tuple[float, float] = 0.0,
        recurrent_dropout: float = 0.0,
        recurrent_dropout_kind: str = "state",
        weight_drop: float = 0.0,
        learn_initial_state: bool = False,
    ) -> None:
        sizes = (input_size, hidden_size, num_layers)
        options = options_of(
            "LSTM", layer_norm=layer_norm, zoneout=zoneout, recurrent_dropout=recurrent_dropout,
            recurrent_dropout_kind=recurrent_dropout_kind, weight_drop=weight_drop,
            learn_initial_state=learn_initial_state, peephole=peephole,
        )  # fmt: skip
        super().__init__(
            "LSTM", *sizes, bias, batch_first, dropout, bidirectional, proj_size, device, dtype, options=options
        )

    # For subclasses that override forward as they would override torch.nn.LSTM's. Our own forward calls none of them.

    def get_expected_cell_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, int, int]:
        """The shape of ``c_0``, as in :class:`torch.nn.LSTM`."""
        count, batch, _ = self.get_expected_hidden_size(input, batch_sizes)
        return count, batch, self.hidden_size

    def check_forward_args(  # type: ignore[override]
        self, input: Tensor, hidden: tuple[Tensor, Tensor], batch_sizes: Tensor | None
    ) -> None:
        """Raises if ``input``, ``h_0`` or ``c_0`` has a wrong shape, as in :class:`torch.nn.LSTM`."""
        self.check_input(input, batch_sizes)
        sizes = self.get_expected_hidden_size(input, batch_sizes), self.get_expected_cell_size(input, batch_sizes)
        for k, size in enumerate(sizes):
            self.check_hidden_size(hidden[k], size, f"Expected hidden[{k}] size {{}}, got {{}}")

    def permute_hidden(  # type: ignore[override]
        self, hx: tuple[Tensor, Tensor], permutation: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Both states with their rows in the order of ``permutation``, as in :class:`torch.nn.LSTM`."""
        if permutation is None:
            return hx
        return hx[0].index_select(1, permutation), hx[1].index_select(1, permutation)


class RNNCell(RecurrentCell):
    r"""An Elman RNN cell, a drop-in for :class:`torch.nn.RNNCell`.

    Args:
        input_size, hidden_size, bias, nonlinearity, device, dtype: as in :class:`torch.nn.RNNCell`.

    Inputs: input, hx=None, \*, resets=None
        :math:`(N, H_{in})` and :math:`(N, H_{out})`, both without :math:`N` for unbatched input. Default: zeros.
        **resets**: booleans :math:`(N)`, True for rows whose state is zeros in place of **hx**.

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

    __constants__ = nn.RNNCell.__constants__
    nonlinearity: str

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

    def forward(self, input: Tensor, hx: Tensor | None = None, *, resets: Tensor | None = None) -> Tensor:
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return self._step(f"rnn_{self.nonlinearity}", input, hx, resets)


class GRUCell(RecurrentCell):
    r"""A gated recurrent unit cell, a drop-in for :class:`torch.nn.GRUCell`.

    Args:
        input_size, hidden_size, bias, device, dtype: as in :class:`torch.nn.GRUCell`.

    Inputs: input, hx=None, \*, resets=None
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

    def forward(self, input: Tensor, hx: Tensor | None = None, *, resets: Tensor | None = None) -> Tensor:
        return self._step("gru", input, hx, resets)


class LSTMCell(RecurrentCell):
    r"""A long short-term memory cell, a drop-in for :class:`torch.nn.LSTMCell`.

    Args:
        input_size, hidden_size, bias, device, dtype: as in :class:`torch.nn.LSTMCell`.

    Inputs: input, (h_0, c_0)=None, \*, resets=None
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

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None, *, resets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self._step("lstm", input, hx, resets)

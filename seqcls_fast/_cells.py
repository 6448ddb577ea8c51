"""The table of cells for code that runs without the extension: ``--help``, and installs without a compiler.

Everything else uses ``_shapes.CELLS``, the same table as the extension has it from csrc/core/cells.h. A test holds the
two equal.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["BUILT_IN", "Cell", "Further", "Rates"]


class Further(NamedTuple):
    """A weight that a cell has beyond those of torch.nn."""

    name: str
    rows: int  # of hidden_size values
    is_matrix: bool  # its shape is (rows, hidden_size), and not (rows * hidden_size,)


class Cell(NamedTuple):
    """The constants of a cell that Python needs."""

    gates: int  # w_ih and w_hh have gates * hidden_size rows
    saved: int  # values that training keeps for the backward pass, per unit and step
    has_c: bool  # whether there is a second state, c
    further: tuple[Further, ...] = ()
    is_option: bool = False  # whether it is another cell with an option


class Rates(NamedTuple):
    """How many units the random options of a layer change, each a number from 0 to below 1."""

    zoneout_h: float = 0.0  # the share of units that keep their previous h
    zoneout_c: float = 0.0  # and their previous c
    state_dropout: float = 0.0  # the share of the previous h that W_hh does not see
    candidate_dropout: float = 0.0  # the share of g (LSTM) or n (GRU) that is dropped


def _norm(gates: int, has_c: bool) -> tuple[Further, ...]:
    of_c = (Further("weight_ln_c", 1, False), Further("bias_ln_c", 1, False)) if has_c else ()
    return Further("weight_ln_ih", gates, False), Further("weight_ln_hh", gates, False), *of_c


BUILT_IN = {  # in the order of csrc/core/cells.h
    "rnn_tanh": Cell(1, 0, False),
    "rnn_relu": Cell(1, 0, False),
    "gru": Cell(3, 4, False),
    "lstm": Cell(4, 5, True),
    "rnn_tanh_layer_norm": Cell(1, 3, False, _norm(1, False), True),
    "rnn_relu_layer_norm": Cell(1, 3, False, _norm(1, False), True),
    "gru_layer_norm": Cell(3, 11, False, _norm(3, False), True),
    "lstm_layer_norm": Cell(4, 14, True, _norm(4, True), True),
    "lstm_peephole": Cell(4, 5, True, (Further("weight_peephole", 3, True),), True),
    "gru_reset_before": Cell(3, 4, False, (), True),
}

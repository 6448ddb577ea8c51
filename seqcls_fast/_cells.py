"""The table of cells for code that runs without the extension: ``--help``, and installs without a compiler.

Everything else uses ``_shapes.CELLS``, the same table as the extension has it from csrc/core/cells.h. A test holds the
two equal.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["BUILT_IN", "Cell"]


class Cell(NamedTuple):
    """The constants of a cell that Python needs."""

    gates: int  # w_ih and w_hh have gates * hidden_size rows
    saved: int  # values that training keeps for the backward pass, per unit and step
    has_c: bool  # whether there is a second state, c


BUILT_IN = {  # in the order of csrc/core/cells.h
    "rnn_tanh": Cell(1, 0, False),
    "rnn_relu": Cell(1, 0, False),
    "gru": Cell(3, 4, False),
    "lstm": Cell(4, 5, True),
}

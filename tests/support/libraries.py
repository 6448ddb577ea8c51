"""The layers of torch.nn and ours under the same names, for tests of torch's that are run on both.

Each test is a control of itself: what fails with torch.nn's classes is no demand on ours.
"""

from types import ModuleType

import pytest
from torch import nn

import seqcls_fast as sf

LAYERS = ("RNN", "GRU", "LSTM")
CELLS = ("RNNCell", "GRUCell", "LSTMCell")
LIBRARIES: dict[str, ModuleType] = {"torch": nn, "ours": sf}


def both() -> pytest.MarkDecorator:
    """Runs a test with `library` being torch.nn and being seqcls_fast."""
    return pytest.mark.parametrize("library", [pytest.param(nn, id="torch"), pytest.param(sf, id="ours")])

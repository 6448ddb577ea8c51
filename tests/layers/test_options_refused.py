"""What the operators say of arguments of a layer's options that are wrong: one sentence that names the argument."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from seqcls_fast import _ext
from seqcls_fast._cells import BUILT_IN

pytestmark = pytest.mark.skipif(_ext.C is None, reason=f"the compiled extension is missing: {_ext.why_missing}")

T, B, I, H, D = 4, 3, 5, 6, 2


def forward(cell: str, **options: Any) -> list[Tensor]:
    rows = BUILT_IN[cell].gates * H
    shapes = [(rows, I), (rows, H), (rows,), (rows,)]
    shapes += [(kind.rows, H) if kind.is_matrix else (kind.rows * H,) for kind in BUILT_IN[cell].further]
    weights = options.pop("weights", [torch.rand(shape) for shape in shapes for _ in range(D)])
    return torch.ops.seqcls_fast.rnn_forward(
        torch.rand(T, B, I), weights, None, None, None, None, cell, D, False, True, False, "auto", **options
    )


RESETS = torch.zeros(T, B, dtype=torch.bool)
RATE = "expected a number from 0 to below 1 but got "


@pytest.mark.parametrize(
    ("cell", "options", "sentence"),
    [
        ("gru", {"resets": RESETS.T}, "resets: expected shape (4, 3) but got (3, 4)"),
        ("gru", {"resets": RESETS[:, :1]}, "resets: expected shape (4, 3) but got (4, 1)"),
        ("gru", {"resets": RESETS.byte()}, "resets: expected dtype bool but got"),
        ("lstm", {"h_reset": torch.zeros(D, B, H)}, "h_reset: expected shape (2, 6) but got (2, 3, 6)"),
        ("lstm", {"h_reset": torch.zeros(D, H).double()}, "h_reset: expected dtype float32 but got float64"),
        ("lstm", {"c_reset": torch.zeros(H, D)}, "c_reset: expected shape (2, 6) but got (6, 2)"),
        ("gru", {"c_reset": torch.zeros(D, H)}, "c_reset: expected None for cell gru"),
        ("gru", {"seed": torch.zeros(1, dtype=torch.int64)}, "seed: expected shape () but got (1,)"),
        ("gru", {"seed": torch.tensor(1.0)}, "seed: expected dtype int64 but got float32"),
        *(
            ("lstm", {name: value}, f"{name}: {RATE}{text}")
            for name in ("zoneout_h", "zoneout_c", "state_dropout", "candidate_dropout")
            for value, text in ((1.0, "1"), (-0.1, "-0.1"), (math.nan, "nan"), (math.inf, "inf"), (1e300, "1e+300"))
        ),
        ("gru", {"zoneout_c": 0.1}, "zoneout_c: expected 0 for cell gru but got 0.1"),
        ("rnn_tanh", {"candidate_dropout": 0.1}, "candidate_dropout: expected 0 for cell rnn_tanh but got 0.1"),
        ("lstm_peephole", {"weights": [torch.rand(24, 5)] * 4}, "weights: expected 3 to 6 tensors per direction"),
    ],
)
def test_sentence(cell: str, options: dict[str, Any], sentence: str) -> None:
    assert forward(cell)
    with pytest.raises(RuntimeError, match=f"^{re.escape(sentence)}"):
        forward(cell, **options)


def test_memory_that_is_gone() -> None:
    given = {"resets": RESETS, "h_reset": torch.zeros(D, H), "c_reset": torch.zeros(D, H), "seed": torch.tensor(1)}
    for name, t in given.items():
        gone = t.clone()
        gone.untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match=f"^{name}: expected memory for shape"):
            forward("lstm", **given | {name: gone})

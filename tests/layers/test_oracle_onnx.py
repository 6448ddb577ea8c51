"""Results compared with onnxruntime's RNN, GRU and LSTM operators, and with the plain numpy of onnx's own tests.

Neither shares code with torch. onnxruntime has float32 and rows of different lengths, onnx's tests have float64.

The conversions below follow the specification of the ONNX operators: gates in the order i o f c and z r h, the
directions in the first dimension, both biases in one row, output (T, D, B, H).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from support.cases import CELLS, GATES, Case, build, only
from support.checks import compare, layer

np = pytest.importorskip("numpy")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

OPERATORS = {"rnn_tanh": "RNN", "rnn_relu": "RNN", "gru": "GRU", "lstm": "LSTM"}
OPERATORS |= {"gru_reset_before": "GRU", "lstm_peephole": "LSTM"}
ORDER = {"RNN": [0], "GRU": [1, 0, 2], "LSTM": [0, 3, 1, 2]}  # our gates in ONNX's order
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "rnn_tanh": {"activations": ["Tanh"]},
    "rnn_relu": {"activations": ["Relu"]},
    "gru": {"linear_before_reset": 1},
    "lstm": {},
    "gru_reset_before": {"linear_before_reset": 0},
    "lstm_peephole": {},
}


def reordered(t: Tensor, cell: str) -> Tensor:
    """The blocks of rows of a weight or bias, one per gate, in ONNX's order."""
    blocks = t.chunk(GATES[cell])
    return torch.cat([blocks[g] for g in ORDER[OPERATORS[cell]]])


def onnx_inputs(case: Case, inputs: dict[str, Tensor], lengths: Tensor | None) -> dict[str, Any]:
    def stacked(name: str) -> Tensor:
        return torch.stack([reordered(inputs[f"{name}[{d}]"], case.cell) for d in range(case.directions)])

    feeds = {"X": inputs["x"], "W": stacked("w_ih"), "R": stacked("w_hh")}
    if case.bias:
        feeds["B"] = torch.cat([stacked("b_ih"), stacked("b_hh")], 1)
    if lengths is not None:
        feeds["sequence_lens"] = lengths.int()
    if case.state:
        feeds["initial_h"] = inputs["h0"]
        if OPERATORS[case.cell] == "LSTM":
            feeds["initial_c"] = inputs["c0"]
    if case.cell == "lstm_peephole":  # of i f o, in ONNX of i o f
        feeds["P"] = torch.stack([inputs[f"weight_peephole[{d}]"][[0, 2, 1]].flatten() for d in range(case.directions)])
    return {name: t.contiguous().numpy() for name, t in feeds.items()}


def run_onnx(case: Case, feeds: dict[str, Any]) -> dict[str, Tensor]:
    attributes = dict(ATTRIBUTES[case.cell], hidden_size=case.H)
    if case.directions == 2:
        attributes["direction"] = "bidirectional"
        if "activations" in attributes:
            attributes["activations"] = attributes["activations"] * 2
    is_lstm = OPERATORS[case.cell] == "LSTM"
    order = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"][: None if is_lstm else 6]
    results = ["Y", "Y_h", "Y_c"][: 3 if is_lstm else 2]
    kinds = {"sequence_lens": onnx.TensorProto.INT32}
    node = onnx.helper.make_node(
        OPERATORS[case.cell], [name if name in feeds else "" for name in order], results, **attributes
    )
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node],
        "layer",
        [value(name, kinds.get(name, onnx.TensorProto.FLOAT), list(t.shape)) for name, t in feeds.items()],
        [value(name, onnx.TensorProto.FLOAT, [None] * (4 if name == "Y" else 3)) for name in results],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    found = dict(zip(("output", "h_n", "c_n"), map(torch.from_numpy, session.run(results, feeds)), strict=False))
    found["output"] = found["output"].permute(0, 2, 1, 3).flatten(2)  # (T, D, B, H) -> (T, B, D * H)
    return found


SHAPES = [
    Case(cell, *shape, directions=2) for cell in OPERATORS for shape in ((1, 1, 3, 4), (6, 5, 7, 9), (13, 4, 20, 33))
]
CASES = [
    *only(*SHAPES, lengths="random"),
    *only(*SHAPES, lengths="one_long", directions=1),
    *only(*SHAPES, bias=False),
    *only(*SHAPES, state=False, lengths="equal"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_onnxruntime(case: Case, impl: str) -> None:
    """No length is 0 here: for such a row onnxruntime returns final states of 0, while torch and ours return the
    initial states (test_length_zero_keeps_the_state)."""
    problem = build(case)
    inputs = {name: t.float() for name, t in problem.inputs.items()}
    wanted = run_onnx(case, onnx_inputs(case, inputs, problem.lengths))
    found = layer(inputs, cell=case.cell, lengths=problem.lengths, impl=impl)
    compare(found, {name: t.double() for name, t in wanted.items()}, case)


EXACT = only(*(case for case in SHAPES if case.cell in CELLS), dtype="float64")
EXACT += only(*EXACT, directions=1, bias=False, state=False)


@pytest.mark.parametrize("case", EXACT, ids=str)
def test_matches_the_backend_tests_of_onnx(case: Case, impl: str) -> None:
    """Their expected values come from classes of a few lines of numpy, here called with random weights."""
    operator = OPERATORS[case.cell]
    formula = getattr(import_module(f"onnx.backend.test.case.node.{operator.lower()}"), f"{operator}Helper")
    if case.cell == "rnn_relu":
        formula = type("Relu", (formula,), {"f": lambda self, x: np.maximum(x, 0)})
    inputs = build(case).inputs
    direction = "bidirectional" if case.directions == 2 else "forward"
    results = formula(**onnx_inputs(case, inputs, None), direction=direction, linear_before_reset=1).step()
    wanted = dict(zip(("output", "h_n", "c_n"), map(torch.from_numpy, results), strict=False))
    wanted["output"] = wanted["output"].permute(0, 2, 1, 3).flatten(2)  # (T, D, B, H) -> (T, B, D * H)
    compare(layer(inputs, cell=case.cell, impl=impl), wanted, case)


@pytest.mark.parametrize("cell", CELLS)
def test_length_zero_keeps_the_state(cell: str, impl: str) -> None:
    case = Case(cell, T=4, B=5, directions=2)
    inputs = {name: t.float() for name, t in build(case).inputs.items()}
    found = layer(inputs, cell=cell, lengths=torch.tensor([0, 3, 0, 4, 0]), impl=impl)
    for name in ("h0", "c0") if cell == "lstm" else ("h0",):
        assert torch.equal(found[name[0] + "_n"][:, ::2], inputs[name][:, ::2])
        assert not torch.equal(found[name[0] + "_n"][:, 1], inputs[name][:, 1])
    assert not found["output"][:, ::2].any()
    without = {name: t for name, t in inputs.items() if name not in ("h0", "c0")}
    assert not layer(without, cell=cell, lengths=torch.zeros(5, dtype=torch.int64), impl=impl)["h_n"].any()

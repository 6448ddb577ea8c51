"""``to_onnx`` of layers with options: onnxruntime's results are the model's, or an option is refused by name.

Exported with dynamic T and B, and run with other shapes than the example's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqcls_fast as sf
from seqcls_fast import _ext
from seqcls_fast.export import to_onnx
from support.tolerances import assert_close_by_name

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(_ext.C is None, reason="exported programs hold the compiled op")

TERMS = 16  # to_onnx promises 2e-6 of a result's scale in float32
T, B, I, H = 5, 3, 4, 6
X = torch.zeros(T, B, I)
EXACT: dict[str, tuple[str, dict[str, Any]]] = {
    "peephole": ("LSTM", {"peephole": True}),
    "reset before": ("GRU", {"reset_after": False}),
    "dropped states": ("LSTM", {"recurrent_dropout": 0.3}),
    "dropped candidates": ("GRU", {"recurrent_dropout": 0.3, "recurrent_dropout_kind": "candidate"}),
    "dropped weights": ("RNN", {"weight_drop": 0.5, "nonlinearity": "relu"}),
    "learnt states": ("LSTM", {"learn_initial_state": True}),
    "learnt state of a GRU": ("GRU", {"learn_initial_state": True, "reset_after": False}),
}


def run(file: Path, *inputs: Tensor) -> dict[int, Tensor]:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
    feeds = {value.name: t.numpy() for value, t in zip(session.get_inputs(), inputs, strict=True)}
    return {k: torch.from_numpy(result) for k, result in enumerate(session.run(None, feeds))}


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("name", EXACT)
def test_options_that_onnx_has(name: str, ragged: bool, bidirectional: bool, tmp_path: Path) -> None:
    kind, options = EXACT[name]
    model = getattr(sf, kind)(I, H, 2, bidirectional=bidirectional, **options)
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.7, 0.7)
    path, shapes = tmp_path / "model.onnx", {"input": {0: "T", 1: "B"}}
    kwargs = {"lengths": torch.tensor([5, 1, 0])} if ragged else {}
    program = to_onnx(
        model, (X,), path, kwargs=kwargs, dynamic_shapes=shapes | ({"lengths": {0: "B"}} if ragged else {})
    )
    onnx.checker.check_model(str(path), full_check=True)
    nodes = [node for node in program.model.graph if node.op_type == kind]
    assert len(nodes) == 2
    for node in nodes:  # the weights lie in the file as ONNX reads them
        assert all(value is None or value.is_initializer() for value in (*node.inputs[1:4], *node.inputs[7:]))
    model.eval()
    for t, b, lengths in ((T, B, [5, 1, 0]), (9, 4, [0, 9, 3, 8]), (1, 1, [1])):
        x, steps = torch.randn(t, b, I), torch.tensor(lengths)
        with torch.no_grad():
            output, final = model(x, lengths=steps if ragged else None)
        wanted = dict(enumerate((output, *(final if isinstance(final, tuple) else (final,)))))
        assert_close_by_name(run(path, x, *([steps] if ragged else [])), wanted, TERMS)


def test_the_reference_evaluator_of_onnx_agrees_about_peepholes_and_the_order_of_the_reset() -> None:
    from onnx.reference import ReferenceEvaluator

    for model in (sf.LSTM(I, H, peephole=True), sf.GRU(I, H, reset_after=False)):
        program, x = to_onnx(model, (X,)), torch.randn(T, B, I)
        (name,) = (value.name for value in program.model.graph.inputs)
        found = ReferenceEvaluator(program.model_proto).run(None, {name: x.numpy()})
        with torch.no_grad():
            output, final = model.eval()(x)
        wanted = dict(enumerate((output, *(final if isinstance(final, tuple) else (final,)))))
        # The final states are compared: the evaluator lays out all steps in another way than the standard does.
        finals = {k: torch.from_numpy(t) for k, t in enumerate(found) if k}
        assert_close_by_name(finals, {k: t for k, t in wanted.items() if k}, TERMS)


class WithResets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = sf.GRU(I, H)

    def forward(self, x: Tensor, resets: Tensor) -> Tensor:
        return self.layer(x, resets=resets)[1]


class Functional(nn.Module):
    """A model that calls rnn_layer and holds none of our modules, so the export cannot check them before."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        cell = self.options.get("cell", "gru")
        weights = [torch.ones(3 * H, I)], [torch.ones(3 * H, H)]
        return sf.rnn_layer(x, *weights, **{"cell": cell} | self.options)[1]


GAINS = [[torch.ones(3 * H)], [torch.ones(3 * H)]]
NO_ROWS = "expected a padded input with lengths= but got a batch without padding"
REFUSED: dict[str, tuple[nn.Module, tuple[Any, ...], str]] = {
    "layer norm": (nn.Sequential(sf.LSTM(I, H, layer_norm=True)), (X,),
                   "0: ONNX's layers normalise nothing; expected layer_norm=False but got True"),
    "zoneout": (sf.LSTM(I, H, zoneout=(0.1, 0.2)), (X,),
                "model: ONNX's layers have no zoneout; expected 0 but got (0.1, 0.2)"),
    "resets": (WithResets(), (X, X[..., 0] > 0), "layer: ONNX's layers have no resets; expected resets=None"),
    "values": (sf.GRU(I, H), ((X[0], torch.tensor([0, B])),), f"model: {NO_ROWS}"),
    "functional layer norm": (Functional(cell="gru_layer_norm", further=GAINS), (X,),
                              "cell: expected one that ONNX has, rnn_tanh, rnn_relu, gru,"),
    "functional resets": (Functional(resets=X[..., 0] > 0), (X,), "resets: ONNX's layers have none; expected None"),
    "functional zoneout": (Functional(rates=(0.5, 0.0, 0.0, 0.0)), (X,), "rates: ONNX's layers have no zoneout"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_options_that_onnx_lacks(name: str, tmp_path: Path) -> None:
    model, args, sentence = REFUSED[name]
    with pytest.raises(NotImplementedError) as caught:
        to_onnx(model, args, tmp_path / "model.onnx")
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)
    assert not any(tmp_path.iterdir())
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())

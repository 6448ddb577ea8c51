"""Layers with options in compiled and exported programs: the masks follow the seed, which a program draws anew."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqcls_fast as sf
from seqcls_fast import ops

LAYERS: dict[str, Any] = {
    "rnn": lambda: sf.RNN(3, 5, layer_norm=True, learn_initial_state=True),
    "gru": lambda: sf.GRU(3, 5, 2, layer_norm=True, zoneout=0.2, bidirectional=True),
    "gru-before": lambda: sf.GRU(3, 5, reset_after=False, recurrent_dropout=0.3, recurrent_dropout_kind="candidate"),
    "lstm": lambda: sf.LSTM(3, 5, layer_norm=True, recurrent_dropout=0.3, learn_initial_state=True),
    "lstm-peephole": lambda: sf.LSTM(3, 5, peephole=True, proj_size=2, zoneout=(0.1, 0.2), bidirectional=True),
    "lstm-plain": lambda: sf.LSTM(3, 5, 2),
}
X, LENGTHS = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([6, 0, 3, 5])
RESETS = torch.rand(6, 4, generator=torch.Generator().manual_seed(1)) < 0.3


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()


class Model(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, resets: Tensor, lengths: Tensor) -> Tensor:
        output: Tensor = self.layer(x, resets=resets, lengths=lengths)[0]
        return output.sin()


@pytest.mark.parametrize("kind", LAYERS)
def test_compiled_in_evaluation(kind: str) -> None:
    model = Model(LAYERS[kind]()).eval()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    wanted, found = model(X, RESETS, LENGTHS), compiled(X, RESETS, LENGTHS)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    parameters = list(model.parameters())
    for d, w in zip(
        torch.autograd.grad(found.sum(), parameters, allow_unused=True, materialize_grads=True),
        torch.autograd.grad(wanted.sum(), parameters, allow_unused=True, materialize_grads=True),
        strict=True,
    ):
        torch.testing.assert_close(d, w, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_compiled_in_training(kind: str) -> None:
    """Each call of the program draws a seed as the call without it does: the same masks, and others the next time."""
    model = Model(LAYERS[kind]())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(X, RESETS, LENGTHS)
    found, wanted = [], []
    for results, function in ((found, compiled), (wanted, model)):
        torch.manual_seed(4)
        results += [function(X, RESETS, LENGTHS) for _ in range(2)]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    is_random = any(model.layer._layer_options.rates(True)) if model.layer._layer_options else False
    assert torch.equal(found[0], found[1]) is not is_random


@pytest.mark.parametrize("kind", LAYERS)
def test_exported_saved_and_loaded(kind: str) -> None:
    model = Model(LAYERS[kind]()).eval()
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    shapes = ({0: time, 1: batch}, {0: time, 1: batch}, {0: batch})
    program = torch.export.export(model, (X, RESETS, LENGTHS), dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    x, resets, lengths = torch.randn(8, 3, 3), torch.rand(8, 3) < 0.4, torch.tensor([2, 8, 0])
    torch.testing.assert_close(loaded(x, resets, lengths), model(x, resets, lengths), rtol=0, atol=1e-6)
    assert sum(node.target == torch.ops.seqcls_fast.rnn_layer.default for node in program.graph.nodes) >= 1


@pytest.mark.parametrize("kind", LAYERS)
def test_operators_hold_their_promises(kind: str, compiled: str) -> None:
    """torch.library.opcheck: schema, fake kernel and autograd of the operator that a call with options becomes."""
    layer = LAYERS[kind]()
    seen: list[tuple[Any, ...]] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.seqcls_fast.rnn_forward.default:
                seen.append((args, dict(kwargs or {})))
            return function(*args, **(kwargs or {}))

    with ops.use_impl(compiled), torch.no_grad(), Watch():
        layer(X, resets=RESETS, lengths=LENGTHS)
    assert seen
    for args, kwargs in seen:
        torch.library.opcheck(
            torch.ops.seqcls_fast.rnn_forward.default, args, kwargs, test_utils=("test_schema", "test_faketensor")
        )

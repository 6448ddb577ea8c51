"""SequenceClassifier with the cells that are another cell with an option: its encoder, ids, prepared tables and export.

The encoder is compared with a layer built by hand.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import seqcls_fast as sf
from seqcls_fast import classifier
from seqcls_fast._cells import BUILT_IN

B, T, I, H, V, C = 6, 9, 5, 7, 12, 3
LENGTHS = torch.tensor([9, 1, 4, 0, 7, 2])
BY_HAND: dict[str, tuple[str, dict[str, Any]]] = {
    "rnn_tanh_layer_norm": ("RNN", {"layer_norm": True}),
    "rnn_relu_layer_norm": ("RNN", {"layer_norm": True, "nonlinearity": "relu"}),
    "gru_layer_norm": ("GRU", {"layer_norm": True}),
    "lstm_layer_norm": ("LSTM", {"layer_norm": True}),
    "lstm_peephole": ("LSTM", {"peephole": True}),
    "gru_reset_before": ("GRU", {"reset_after": False}),
}
EACH = pytest.mark.parametrize("cell", BY_HAND)


def made(cell: str, **options: Any) -> sf.SequenceClassifier:
    model = sf.SequenceClassifier(I, H, C, cell=cell, num_layers=2, bidirectional=True, **options)
    for name, parameter in model.named_parameters():
        if name.startswith("encoder"):
            torch.nn.init.normal_(parameter)  # gains and biases of norms too
    return model


def test_every_cell_of_the_table_is_tested() -> None:
    assert set(BY_HAND) == {name for name, cell in BUILT_IN.items() if cell.is_option}


@EACH
def test_the_encoder_is_the_layer_with_that_option(cell: str) -> None:
    kind, options = BY_HAND[cell]
    model = made(cell)
    assert model.cell == cell
    assert repr(model.encoder).startswith(f"{kind}(")
    layer = getattr(sf, kind)(I, H, 2, batch_first=True, bidirectional=True, **options)
    layer.load_state_dict(model.encoder.state_dict())
    x = torch.randn(B, T, I)
    _, final = layer(x, lengths=LENGTHS)
    h_n = final[0] if kind == "LSTM" else final
    wanted = model.head(torch.cat([h_n[-2], h_n[-1]], 1))
    torch.testing.assert_close(model(x, LENGTHS), wanted)


@EACH
@pytest.mark.parametrize("pooling", ["last", "attention"])
def test_ids_are_embedded_features(cell: str, pooling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of projections, as kernels take it, gives the logits and gradients of embedded features."""
    ids = torch.randint(1, V, (B, T)).masked_fill(torch.arange(T) >= LENGTHS[:, None], 0)
    model = made(cell, vocab_size=V, pooling=pooling)
    found: list[Tensor] = []
    for steps_per_id in (0, 1e9):  # with a table, and without
        monkeypatch.setattr(classifier, "_STEPS_PER_ID", steps_per_id)
        logits = model(ids)
        found.append(torch.cat([logits.flatten(), *map(torch.flatten, grads(logits, model))]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    model.eval()
    with torch.no_grad():
        wanted = model(ids)
        torch.testing.assert_close(model.prepare_inference()(ids), wanted)
        assert model._tables is not None
    assert model.train()._tables is None


def grads(logits: Tensor, model: sf.SequenceClassifier) -> tuple[Tensor, ...]:
    return torch.autograd.grad(logits.cos().sum(), list(model.parameters()), allow_unused=True, materialize_grads=True)


@EACH
def test_copies_and_state_dicts(cell: str) -> None:
    model, x = made(cell), torch.randn(B, T, I)
    other = made(cell)
    other.load_state_dict(model.state_dict())
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), other):
        assert torch.equal(copied(x, LENGTHS), model(x, LENGTHS))


@EACH
def test_onnx_or_a_sentence(cell: str, tmp_path: Any) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from seqcls_fast.export import to_onnx

    model, x = made(cell).eval(), torch.randn(B, T, I)
    path = tmp_path / "model.onnx"
    if cell.endswith("layer_norm"):
        with pytest.raises(NotImplementedError, match=r"^encoder: ONNX's layers normalise nothing"):
            to_onnx(model, (x, LENGTHS), path)
        return
    to_onnx(model, (x, LENGTHS), path, dynamic_shapes={"x": {0: "batch", 1: "time"}, "lengths": {0: "batch"}})
    (found,) = runtime.InferenceSession(path).run(None, {"x": x[:4].numpy(), "lengths": LENGTHS[:4].numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x[:4], LENGTHS[:4]).detach(), rtol=1e-4, atol=1e-5)


@EACH
def test_estimators_take_the_name(cell: str, tmp_path: Any) -> None:
    pytest.importorskip("sklearn")

    texts = ["good film", "bad film", "good plot", "bad plot"] * 3
    labels = ["yes", "no"] * 6
    fitted = sf.TextClassifier(cell=cell, hidden_size=4, embedding_dim=3, epochs=1, verbose=False).fit(texts, labels)
    fitted.save(tmp_path / "model")
    again = sf.TextClassifier.load(tmp_path / "model")
    assert again.predict_proba(texts).tolist() == fitted.predict_proba(texts).tolist()

"""SequenceClassifier: the poolings, padding (which never changes a logit), the table of projections, and export."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import seqcls_fast as sf
from seqcls_fast import classifier, ops
from seqcls_fast.classifier import CELLS, POOLINGS

B, T, I, H, V, C = 6, 9, 5, 7, 12, 3
LENGTHS = torch.tensor([9, 1, 4, 0, 7, 2])
PLAIN = [name for name, cell in CELLS.items() if not cell.is_option]  # test_classifier_cells.py has the others
POOLED = pytest.mark.parametrize("pooling", POOLINGS)
TWO_WAYS = pytest.mark.parametrize("bidirectional", [False, True])


def text_model(**options: Any) -> sf.SequenceClassifier:
    torch.manual_seed(0)
    return sf.SequenceClassifier(I, H, C, vocab_size=V, **options)


def padded_ids(value: int = 0) -> Tensor:
    torch.manual_seed(1)
    ids = torch.randint(1, V, (B, T))
    return ids.masked_fill(torch.arange(T) >= LENGTHS[:, None], value)


def pooled_by_hand(model: sf.SequenceClassifier, x: Tensor, lengths: Tensor) -> Tensor:
    """The logits computed with torch.nn's layer, one row at a time, each without its padding."""
    kind = {"gru": nn.GRU, "lstm": nn.LSTM}.get(model.cell, nn.RNN)
    options = {} if kind is not nn.RNN else {"nonlinearity": model.cell[4:]}
    encoder = kind(I, H, model.num_layers, batch_first=True, bidirectional=model.bidirectional, **options)
    encoder.load_state_dict(model.encoder.state_dict())
    logits = []
    for row, length in zip(x, lengths.tolist(), strict=True):
        pooled = torch.zeros(H * (1 + model.bidirectional))
        if length:
            output, final = encoder(row[None, :length])
            h_n = final[0] if isinstance(final, tuple) else final
            if model.pooling == "last":
                pooled = torch.cat([state[0] for state in h_n[-1 - model.bidirectional :]])
            elif model.pooling == "mean":
                pooled = output[0].mean(0)
            elif model.pooling == "max":
                pooled = output[0].amax(0)
            else:
                assert model.attention is not None
                pooled = model.attention(output[0]).softmax(0).T.mm(output[0])[0]
        logits.append(model.head(pooled))
    return torch.stack(logits)


@POOLED
@TWO_WAYS
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("cell", PLAIN)
def test_features_as_torch_layers_pool_them(pooling: str, bidirectional: bool, num_layers: int, cell: str) -> None:
    torch.manual_seed(0)
    model = sf.SequenceClassifier(
        I, H, C, cell=cell, pooling=pooling, bidirectional=bidirectional, num_layers=num_layers
    )
    x = torch.randn(B, T, I)
    spoiled = x.masked_fill((torch.arange(T) >= LENGTHS[:, None])[..., None], torch.nan)
    wanted = pooled_by_hand(model, x, LENGTHS)
    torch.testing.assert_close(model(spoiled, LENGTHS), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(spoiled, LENGTHS.tolist()), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(x), pooled_by_hand(model, x, torch.full((B,), T)), rtol=1e-5, atol=1e-6)


@POOLED
@TWO_WAYS
@pytest.mark.parametrize("steps_per_id", [0, 1e9], ids=["table", "embedded"])
def test_ids_as_embedded_features(
    pooling: str, bidirectional: bool, steps_per_id: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways to project ids give the same logits and gradients; the embedding of the padding has no gradient."""
    monkeypatch.setattr(classifier, "_STEPS_PER_ID", steps_per_id)
    model = text_model(pooling=pooling, bidirectional=bidirectional, num_layers=2)
    ids = padded_ids()
    ids[0, 3] = 0  # the id of the padding counts as a step where it is within a row
    assert model.embedding is not None
    wanted = pooled_by_hand(model, model.embedding(ids), LENGTHS)
    found = model(ids, LENGTHS)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    own = dict(model.named_parameters())
    gradients = torch.autograd.grad(found.cos().sum(), list(own.values()), allow_unused=True)
    named = dict(zip(own, gradients, strict=True))
    assert named["embedding.weight"] is not None
    assert not named["embedding.weight"][0].any()
    plain = sf.SequenceClassifier(I, H, C, pooling=pooling, bidirectional=bidirectional, num_layers=2)
    plain.load_state_dict({name: t for name, t in model.state_dict().items() if "embedding" not in name})
    other = torch.autograd.grad(
        plain(model.embedding(ids), LENGTHS).cos().sum(), [*plain.parameters(), own["embedding.weight"]]
    )
    for name, gradient in zip([*dict(plain.named_parameters()), "embedding.weight"], other, strict=True):
        torch.testing.assert_close(named[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@POOLED
@TWO_WAYS
def test_padding_never_changes_a_logit(pooling: str, bidirectional: bool) -> None:
    model = text_model(pooling=pooling, bidirectional=bidirectional)
    wanted = model(padded_ids(), LENGTHS)
    torch.testing.assert_close(model(padded_ids()), wanted)  # a row ends at its last id that is not padding
    longer = torch.cat([padded_ids(), torch.zeros(B, 30, dtype=torch.int64)], 1)
    for more in (longer, longer.int()):
        torch.testing.assert_close(model(more), wanted, rtol=1e-6, atol=1e-6)
    junk = padded_ids(V + 5)  # ids outside the vocabulary, beyond the lengths
    torch.testing.assert_close(model(junk, LENGTHS), wanted)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = model(padded_ids()[row : row + 1, : max(length, 1)], LENGTHS[row : row + 1])
        torch.testing.assert_close(alone[0], wanted[row], rtol=1e-5, atol=1e-6)


def test_row_without_steps_has_the_head_s_bias() -> None:
    for pooling in POOLINGS:
        model = text_model(pooling=pooling, bidirectional=True, num_layers=2)
        found = model(padded_ids(), LENGTHS)[3]
        assert torch.equal(found, model.head.bias)
        assert torch.equal(model(torch.zeros(2, 4, dtype=torch.int64))[1], model.head.bias)


def test_padding_within_a_row_is_a_step() -> None:
    model = text_model()
    ids = torch.tensor([[3, 0, 5, 0, 0], [0, 0, 0, 0, 7]])
    assert torch.equal(model(ids), model(ids, [3, 5]))


def test_no_padding_id() -> None:
    model = text_model(padding_idx=None)
    ids = padded_ids()
    torch.testing.assert_close(model(ids), model(ids, torch.full((B,), T)))
    assert not torch.allclose(model(ids), model(ids, LENGTHS))


def test_the_prepared_table_and_when_it_goes() -> None:
    model = text_model(bidirectional=True).eval()
    ids = padded_ids()
    wanted = model(ids, LENGTHS)
    assert model.prepare_inference() is model
    assert model._tables is not None
    with torch.no_grad():
        torch.testing.assert_close(model(ids, LENGTHS), wanted)
    with torch.no_grad():  # where kernels take ids, the result comes from the table and not from the embedding
        model._tables[0][:, int(ids[0, 0])] += 1
        assert torch.allclose(model(ids, LENGTHS)[0], wanted[0]) != ops.takes_ids(ids)
    torch.testing.assert_close(model(ids, LENGTHS), wanted)  # with gradients the table is not used
    assert pickle.loads(pickle.dumps(model))._tables is None
    assert copy.deepcopy(model)._tables is None
    for change in (
        lambda: model.train().eval(),
        lambda: model.load_state_dict(model.state_dict()),
        lambda: model.double().float(),
    ):
        model.prepare_inference()
        change()
        assert model._tables is None
    model.prepare_inference().eval()
    assert model._tables is not None
    with pytest.raises(RuntimeError, match="prepare_inference: expected a model in eval mode"):
        model.train().prepare_inference()
    assert sf.SequenceClassifier(I, H, C).eval().prepare_inference()._tables is None


def test_dropout_acts_in_training_alone() -> None:
    model = text_model(dropout=0.5, num_layers=2)
    ids = padded_ids()
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_programs_of_the_front_page() -> None:
    assert sf.SequenceClassifier(input_size=10, hidden_size=20, num_classes=3)(torch.randn(5, 7, 10)).shape == (5, 3)
    torch.manual_seed(0)
    x, y = torch.randn(5, 10, 2), torch.tensor([0, 1, 0, 1, 1])
    model = sf.SequenceClassifier(input_size=2, hidden_size=16, num_classes=2)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    _, h_n = sf.GRU(16, 32, batch_first=True)(nn.Embedding(20, 16)(torch.randint(20, (8, 10))))
    assert nn.Linear(32, 3)(h_n[-1]).shape == (8, 3)


@POOLED
@pytest.mark.parametrize("ids", [False, True])
def test_compiled(pooling: str, ids: bool) -> None:
    torch.manual_seed(0)
    model = sf.SequenceClassifier(I, H, C, pooling=pooling, vocab_size=V if ids else None)
    x = padded_ids() if ids else torch.randn(B, T, I)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, LENGTHS), model(x, LENGTHS))
    compiled(x, LENGTHS).sum().backward()


@POOLED
@pytest.mark.parametrize("ids", [False, True])
def test_exported(pooling: str, ids: bool) -> None:
    torch.manual_seed(0)
    model = sf.SequenceClassifier(I, H, C, pooling=pooling, bidirectional=True, vocab_size=V if ids else None).eval()
    x = padded_ids() if ids else torch.randn(B, T, I)
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    shapes = {"x": {0: batch, 1: time}, "lengths": {0: batch}}
    program = torch.export.export(model, (x, LENGTHS), dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    torch.testing.assert_close(loaded(x, LENGTHS), model(x, LENGTHS))
    torch.testing.assert_close(loaded(x[:2, :4], LENGTHS[:2].clamp(max=4)), model(x[:2, :4], LENGTHS[:2].clamp(max=4)))


@POOLED
@pytest.mark.parametrize("ids", [False, True])
def test_onnx(pooling: str, ids: bool, tmp_path: Any) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from seqcls_fast.export import to_onnx

    torch.manual_seed(0)
    model = sf.SequenceClassifier(I, H, C, pooling=pooling, bidirectional=True, vocab_size=V if ids else None).eval()
    x = padded_ids() if ids else torch.randn(B, T, I)
    shapes = {"x": {0: "batch", 1: "time"}, "lengths": {0: "batch"}}
    to_onnx(model, (x, LENGTHS), tmp_path / "model.onnx", dynamic_shapes=shapes)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {"x": x.numpy(), "lengths": LENGTHS.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x, LENGTHS).detach(), rtol=1e-4, atol=1e-5)
    (found,) = session.run(None, {"x": x[:2, :4].numpy(), "lengths": LENGTHS[:2].clamp(max=4).numpy()})
    wanted = model(x[:2, :4], LENGTHS[:2].clamp(max=4)).detach()
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-5)


WRONG: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, "input_size: expected at least 1 but got 0", {"input_size": 0}),
    (TypeError, "hidden_size: expected an int but got float", {"hidden_size": 7.0}),
    (TypeError, "num_classes: expected an int but got bool", {"num_classes": True}),
    (ValueError, "vocab_size: expected at least 1 but got 0", {"vocab_size": 0}),
    (ValueError, f"cell: expected one of {', '.join(CELLS)} but got 'mamba'", {"cell": "mamba"}),
    (ValueError, "pooling: expected one of last, mean, max, attention but got 'sum'", {"pooling": "sum"}),
    (ValueError, "dropout: expected a probability from 0 to below 1 but got 1.0", {"dropout": 1.0}),
    (ValueError, "padding_idx: expected None or an id from 0 to 11 but got 12", {"vocab_size": 12, "padding_idx": 12}),
]


@pytest.mark.parametrize(("kind", "sentence", "options"), WRONG, ids=[name for _, name, _ in WRONG])
def test_constructor_refuses(kind: type[Exception], sentence: str, options: dict[str, Any]) -> None:
    with pytest.raises(kind, match=f"^{sentence}$"):
        sf.SequenceClassifier(**{"input_size": I, "hidden_size": H, "num_classes": C} | options)


def test_input_refused() -> None:
    features, ids = sf.SequenceClassifier(I, H, C), text_model()
    with pytest.raises(RuntimeError, match="Expected 5, got 6"):
        features(torch.randn(B, T, 6))
    with pytest.raises(ValueError, match=r"x: expected \(B, T, 5\) but got \(6, 9\)"):
        features(torch.randn(B, T))
    with pytest.raises(TypeError, match="x: expected a tensor but got list"):
        features([[1.0]])
    with pytest.raises(TypeError, match=r"x: expected integers, the ids of tokens, but got torch.float32"):
        ids(torch.randn(B, T))
    with pytest.raises(ValueError, match=r"x: expected ids \(B, T\) but got \(6,\)"):
        ids(torch.ones(B).long())
    with pytest.raises(RuntimeError, match="lengths: expected one per row"):
        ids(padded_ids(), [1, 2])
    with pytest.raises(RuntimeError, match="lengths: expected values from 0 to T = 9"):
        ids(padded_ids(), [1, 2, 3, 4, 5, 10])
    ids.head = nn.Linear(30, C)
    with pytest.raises(RuntimeError, match="head: expected in_features 7, as the encoder gives, but got 30"):
        ids(padded_ids())


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64], ids=str)
@pytest.mark.parametrize("pays", [0, 1e9])
def test_ids_whichever_way_they_are_projected(pays: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids have any integer dtype. Ids outside the vocabulary are refused, except beyond the lengths."""
    monkeypatch.setattr(classifier, "_STEPS_PER_ID", pays)
    model = text_model(pooling="max")
    wanted = model(padded_ids(), LENGTHS)
    torch.testing.assert_close(model(padded_ids(99).to(dtype), LENGTHS), wanted)
    with pytest.raises(RuntimeError, match=r"x: expected ids from 0 to 11.* but got 99"):
        model(padded_ids(99).to(dtype))


def test_packed_layers_agree() -> None:
    """The classifier agrees with torch.nn's layer on a PackedSequence."""
    model = text_model(pooling="mean")
    some = LENGTHS > 0
    assert model.embedding is not None
    packed = pack_padded_sequence(
        model.embedding(padded_ids()[some]), LENGTHS[some], batch_first=True, enforce_sorted=False
    )
    gru = nn.GRU(I, H, batch_first=True)
    gru.load_state_dict(model.encoder.state_dict())
    output, lengths = pad_packed_sequence(gru(packed)[0], batch_first=True)
    wanted = model.head(output.sum(1) / lengths[:, None])
    torch.testing.assert_close(model(padded_ids(), LENGTHS)[some], wanted, rtol=1e-5, atol=1e-6)

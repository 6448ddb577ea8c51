"""The wide part of SequenceClassifier: the formula, the bits of a row in any batch, its gradient, and wrong input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqcls_fast as sf
from seqcls_fast import _ext
from seqcls_fast.toolkit.twin import TorchTwin

IDS = 50


def make(**more: Any) -> sf.SequenceClassifier:
    torch.manual_seed(0)
    model = sf.SequenceClassifier(4, 5, 3, vocab_size=9, **more).eval()
    if model.wide is not None:
        nn.init.normal_(model.wide.weight)
    if "wide_ids" in more:
        nn.init.uniform_(model.wide.scale, 0.5, 2.0)
    return model


def example(rows: int = 6, count: int = 7) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x, lengths = torch.randint(1, 9, (rows, 8), generator=generator), torch.randint(9, (rows,), generator=generator)
    ids = torch.randint(IDS, (rows, count), generator=generator)
    return x, lengths, (ids, torch.rand(rows, count, generator=generator))


def without(model: sf.SequenceClassifier) -> sf.SequenceClassifier:
    """The same model without its wide part."""
    plain = sf.SequenceClassifier(4, 5, 3, vocab_size=9).eval()
    plain.load_state_dict({name: t for name, t in model.state_dict().items() if not name.startswith("wide.")})
    return plain


def test_ids_add_their_rows() -> None:
    model, (x, lengths, (ids, weights)) = make(wide_ids=IDS), example()
    expected = without(model)(x, lengths)
    for row in range(len(x)):
        scaled = weights[row] * model.wide.scale[ids[row]]
        expected[row] += (scaled / scaled.norm()) @ model.wide.weight[ids[row]]
    torch.testing.assert_close(model(x, lengths, wide=(ids, weights)), expected)


def test_features_add_a_product() -> None:
    model, (x, lengths, _) = make(wide_features=2), example()
    wide = torch.randn(len(x), 2)
    expected = without(model)(x, lengths) + wide @ model.wide.weight.T
    torch.testing.assert_close(model(x, lengths, wide=wide), expected)


def test_training_begins_with_the_encoder_alone() -> None:
    torch.manual_seed(0)
    model, (x, lengths, wide) = sf.SequenceClassifier(4, 5, 3, vocab_size=9, wide_ids=IDS), example()
    assert torch.equal(model(x, lengths, wide=wide), without(model)(x, lengths))


@pytest.mark.skipif(_ext.C is None, reason=f"the compiled extension is missing: {_ext.why_missing}")
@pytest.mark.parametrize("kind", ["wide_ids", "wide_features"])
def test_a_row_has_the_same_bits_in_any_batch(kind: str) -> None:
    x, lengths, (ids, weights) = example(64, 37)
    counts = torch.randint(38, (64,))
    weights = weights * (torch.arange(37) < counts[:, None])  # what lies beyond is padding
    ids = ids * (weights > 0)
    features = torch.randn(64, 33)
    model = make(**{kind: {"wide_ids": IDS, "wide_features": 33}[kind]})
    with torch.no_grad():
        whole = model(x, lengths, wide=(ids, weights) if kind == "wide_ids" else features)
        for row in range(64):
            count = max(1, int(counts[row]))
            one = (ids[row : row + 1, :count], weights[row : row + 1, :count])
            alone = model(x[row : row + 1], lengths[row : row + 1],
                          wide=one if kind == "wide_ids" else features[row : row + 1])  # fmt: skip
            assert torch.equal(alone[0], whole[row]), row


def test_a_sequence_without_ids_has_no_share() -> None:
    model, (x, lengths, (ids, weights)) = make(wide_ids=IDS), example()
    assert torch.equal(model(x, lengths, wide=(ids, weights * 0)), without(model)(x, lengths))


def test_the_sparse_gradient_is_the_dense_one() -> None:
    model, (x, lengths, wide) = make(wide_ids=IDS), example()
    found = []
    for model.wide.sparse in (False, True):
        model.zero_grad()
        model(x, lengths, wide=wide).square().sum().backward()
        found.append(model.wide.weight.grad)
    assert (found[0].is_sparse, found[1].is_sparse) == (False, True)
    torch.testing.assert_close(found[1].to_dense(), found[0])


def test_exported_program_agrees() -> None:
    model, (x, lengths, wide) = make(wide_ids=IDS), example()
    batch, time, grams = (torch.export.Dim(name) for name in ("batch", "time", "grams"))
    shapes = {"x": {0: batch, 1: time}, "lengths": {0: batch}, "wide": ({0: batch, 1: grams},) * 2}
    program = torch.export.export(model, (x, lengths), {"wide": wide}, dynamic_shapes=shapes)
    x, lengths, wide = example(9, 11)
    torch.testing.assert_close(program.module()(x, lengths, wide=wide), model(x, lengths, wide=wide))


def test_embedding_dropout_drops_a_value_in_all_steps_of_a_row() -> None:
    torch.manual_seed(0)
    model = sf.SequenceClassifier(50, 5, 3, vocab_size=9, embedding_dropout=0.5)
    x = torch.randint(1, 9, (4, 300))  # so many steps that inference would take the table of projections
    ratio = model._embedded(x) / model.embedding(x)
    assert torch.equal(ratio.amin(1), ratio.amax(1))
    assert set(ratio.unique().tolist()) == {0.0, 2.0}
    inputs: list[Tensor] = []
    model.encoder.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    model(x)
    assert (inputs[0] == 0).any()  # and not the table, which knows no dropout
    assert torch.equal(model.eval()._embedded(x), model.embedding(x))


def test_the_twin_has_it_too() -> None:
    model, (x, lengths, wide) = make(wide_ids=IDS), example()
    lengths = lengths.clamp(min=1)
    torch.testing.assert_close(TorchTwin(model)(x, lengths, wide=wide), model(x, lengths, wide=wide))


@pytest.mark.parametrize(
    ("options", "wide", "error", "words"),
    [
        ({}, torch.ones(6, 2), ValueError, "wide: expected None for a model without a wide part but got an input"),
        ({"wide_ids": IDS}, None, TypeError, "wide: expected two tensors, ids and weights .* but got NoneType"),
        ({"wide_ids": IDS}, (torch.ones(6, 1),), TypeError, "wide: expected two tensors.* but got 1 values"),
        ({"wide_ids": IDS}, (torch.ones(6, 1),) * 2, TypeError, "wide: expected integer ids and .* got torch.float32"),
        ({"wide_ids": IDS}, (torch.ones(5, 1).long(), torch.ones(5, 1)), ValueError, r"wide: expected .* \(6, N\)"),
        ({"wide_ids": IDS}, (torch.ones(6, 2).long(), torch.ones(6, 1)), ValueError, r"\(6, 2\) and \(6, 1\)"),
        ({"wide_ids": IDS}, (torch.full((6, 1), 50), torch.ones(6, 1)), RuntimeError, "ids from 0 to 49 but got 50"),
        ({"wide_ids": IDS}, (torch.full((6, 1), -1), torch.ones(6, 1)), RuntimeError, "ids from 0 to 49 but got -1"),
        ({"wide_features": 2}, None, TypeError, r"wide: expected a tensor \(B, 2\) but got NoneType"),
        ({"wide_features": 2}, torch.ones(6, 3), ValueError, r"numbers \(6, 2\) but got torch.float32 \(6, 3\)"),
        ({"wide_features": 2}, torch.ones(6, 2).long(), ValueError, "floating-point numbers .* but got torch.int64"),
    ],
)
def test_wrong_input(options: dict[str, int], wide: Any, error: type[Exception], words: str) -> None:
    model, (x, lengths, _) = make(**options), example()
    with pytest.raises(error, match=words):
        model(x, lengths, wide=wide)


def test_wrong_sizes() -> None:
    with pytest.raises(ValueError, match="wide_features: expected None with wide_ids but got 3"):
        sf.SequenceClassifier(4, 5, 3, wide_ids=4, wide_features=3)
    with pytest.raises(ValueError, match="wide_ids: expected at least 1 but got 0"):
        sf.SequenceClassifier(4, 5, 3, wide_ids=0)
    with pytest.raises(TypeError, match="wide_features: expected an int but got float"):
        sf.SequenceClassifier(4, 5, 3, wide_features=2.0)


def test_the_sparse_gradient_has_a_row_for_each_id_that_occurs() -> None:
    model, (x, lengths, (ids, weights)) = make(wide_ids=IDS), example()
    weights[:, 4:] = 0  # as padding has
    weights[2] = 0
    found = {}
    for sparse in (False, True):
        model.wide.sparse = sparse
        model.zero_grad(set_to_none=True)
        logits = model(x, lengths, wide=(ids, weights))
        logits.square().sum().backward()
        found[sparse] = logits.detach(), model.wide.weight.grad
    assert torch.equal(found[True][0], found[False][0])
    torch.testing.assert_close(found[True][1].to_dense(), found[False][1])
    occurring = {*ids[:, :4][weights[:, :4] != 0].tolist(), int(ids[2, 0])}  # a bag must have an id
    assert sorted(found[True][1]._indices()[0].tolist()) == sorted(occurring)

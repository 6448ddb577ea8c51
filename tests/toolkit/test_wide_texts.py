"""TextClassifier with hashed n-grams, dropped words and an internal validation: what fit() does by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

import seqcls_fast as sf
from seqcls_fast._wide import WeightedIds
from seqcls_fast.toolkit import fit
from seqcls_fast.toolkit.data.ngrams import HashedText
from seqcls_fast.toolkit.data.ragged import Inputs
from seqcls_fast.toolkit.data.text import PADDING, UNKNOWN, TextEncoder
from seqcls_fast.toolkit.parameter_checks import parameters_from_json
from seqcls_fast.toolkit.training.loop import TrainingError, _thinned
from seqcls_fast.toolkit.training.options import Options, epochs_for
from support.corpora import sentences

QUICK: dict[str, Any] = {"hidden_size": 8, "embedding_dim": 8, "epochs": 2, "baseline": False, "verbose": False}
X, Y = sentences(0, 240)


def test_the_table_suits_the_data() -> None:
    texts = [f"number {k}" for k in range(3000)]
    few, many = TextEncoder(wide=True).fit(["a b"] * 9), TextEncoder(wide=True).fit(texts)
    assert few.ngrams == 9 * 9  # two words, their pair, and three n-grams of characters of each
    sizes = []
    for encoder, classes, to_come in ((few, 2, 0), (many, 2, 0), (many, 1 << 16, 0), (few, 2, 4096)):
        encoder.choose_bits(classes, to_come)
        sizes.append(encoder.bits)
    assert sizes == [6, 16, 8, 18]  # four for each of 9 and of 16,101 n-grams; 2^24 numbers; 64 for each of 4,096 texts


def test_ids_are_rare_by_the_texts_learnt_from() -> None:
    texts = ["good film", "good story", "bad film"]
    encoder = TextEncoder(wide=True).fit(iter(texts))
    encoder.bits = 18  # so many that no two n-grams share an id
    ids = HashedText(encoder.bits).bags(texts).ids.values
    counts = torch.bincount(ids, minlength=1 << encoder.bits).clamp(max=3)
    expected = (4 / (1 + counts)).log() + 1
    expected[: len(expected) // 2] *= 2
    torch.testing.assert_close(encoder.scale(), expected.float())
    again = TextEncoder.from_json(encoder.to_json())
    assert (again.bits, again.to_json()) == (encoder.bits, encoder.to_json())


def test_an_encoder_with_other_bits_is_refused() -> None:
    for made, other in ((TextEncoder(wide=True), '"bits": null'), (TextEncoder(wide=True), '"bits": 40')):
        text = made.fit(["a b"]).to_json()
        from seqcls_fast.toolkit.data import errors

        content = errors.loads(text)
        content.pop("sha256"), content.pop("kind"), content.pop("version")
        content["bits"] = {'"bits": null': None, '"bits": 40': 40}[other]
        with pytest.raises(ValueError, match="TextEncoder: expected text from to_json"):
            TextEncoder.from_json(errors.seal("TextEncoder", content))


def test_saved_and_loaded(tmp_path: Path) -> None:
    clf = sf.TextClassifier(**QUICK).fit(X, Y)
    assert isinstance(clf.model_.wide, WeightedIds)
    clf.save(tmp_path / "model")
    again = sf.TextClassifier.load(tmp_path / "model")
    assert np.array_equal(again.predict_proba(X), clf.predict_proba(X))
    assert torch.equal(again.model_.wide.scale, clf.model_.wide.scale)


def test_without() -> None:
    clf = sf.TextClassifier(**QUICK, wide=False).fit(X, Y)
    assert clf.model_.wide is None
    assert clf.encoder_.encode(["a"]).wide is None


def test_models_saved_before_had_none_of_it() -> None:
    found = parameters_from_json({"embedding_dim": 8, "epochs": 20})
    assert [found[name] for name in ("wide", "word_dropout", "holdout", "refit")] == [False, 0.0, None, False]


def test_unknown_words_are_trained() -> None:
    ids, lengths = torch.tensor([[5, 6, 7, PADDING]] * 200), torch.full((200,), 3)
    wide = (torch.arange(4).repeat(200, 1), torch.ones(200, 4))
    torch.manual_seed(0)
    x, _, (same, weights) = _thinned(Inputs(ids, lengths, wide), Options(1, 1, 0.1, word_dropout=0.3, wide_dropout=0.5))
    assert (x[:, 3] == PADDING).all()
    assert set(x.unique().tolist()) == {PADDING, UNKNOWN, 5, 6, 7}
    assert 0.2 < float((x[:, :3] == UNKNOWN).float().mean()) < 0.4
    assert torch.equal(same, wide[0])
    assert 0.4 < float(weights.mean()) < 0.6
    before = sf.TextClassifier(**QUICK | {"epochs": 1}, word_dropout=0.0, holdout=None).fit(X, Y)
    after = sf.TextClassifier(**QUICK | {"epochs": 1}, word_dropout=0.3, holdout=None).fit(X, Y)
    fresh = sf.TextClassifier(**QUICK | {"epochs": 1, "learning_rate": 1e-12}, holdout=None, weight_decay=0).fit(X, Y)
    rows = [clf.model_.embedding.weight[UNKNOWN] for clf in (fresh, before, after)]
    assert (rows[1] - rows[0]).abs().max() < 1e-2 < (rows[2] - rows[0]).abs().max()


def test_a_share_is_held_out_by_default() -> None:
    held = sf.TextClassifier(**QUICK, refit=False).fit(X, Y)
    assert (held.data_["rows"], held.data_["validation"]["rows"]) == (216, 24)
    assert held.validation_report_["examples"] == 24
    assert "val_loss" in held.history_[0]
    for clf in (sf.TextClassifier(**QUICK, holdout=None).fit(X, Y), sf.TextClassifier(**QUICK).fit(X[:199], Y[:199])):
        assert clf.data_["validation"] is None
    asked = sf.TextClassifier(**QUICK).fit(X, Y, validation=0.5)
    assert asked.data_["validation"]["rows"] == 120
    assert "refit" not in asked.data_
    with pytest.raises(ValueError, match="patience: expected None without validation"):
        sf.TextClassifier(**QUICK, patience=1).fit(X[:100], Y[:100])


def test_refitted_on_all() -> None:
    """As a training on all of the data, of as many epochs as were best; but with the shares of the first training."""
    clf = sf.TextClassifier(**QUICK).fit(X, Y)
    assert clf.data_["refit"] == 240
    plain = sf.TextClassifier(**QUICK | {"epochs": clf.best_epoch_}, holdout=None).fit(X, Y)
    for name, tensor in plain.model_.state_dict().items():
        found = clf.model_.state_dict()[name]
        if name in ("wide.weight", "head.weight"):  # each is multiplied by its share
            factors = (found / tensor)[tensor.abs() > 1e-6]
            torch.testing.assert_close(factors, factors[:1].expand_as(factors), rtol=1e-5, atol=0)
        elif name != "head.bias":  # to which both add
            assert torch.equal(found, tensor), name
    assert clf.encoder_.to_json() == plain.encoder_.to_json()
    assert clf.validation_report_["examples"] == 24  # of the model before
    assert "then again" in clf.fitted_.about["training"]


def test_smoothed_labels_are_less_sure() -> None:
    sure, smoothed = (
        sf.TextClassifier(**QUICK | {"epochs": 20}, wide=False, label_smoothing=share)
        .fit(X[:100], Y[:100])
        .predict_proba(X[:100])
        for share in (0.0, 0.4)
    )
    assert smoothed.max(1).mean() < sure.max(1).mean() - 0.05


def test_epochs_by_the_number_of_steps() -> None:
    assert [epochs_for(steps) for steps in (1, 40, 100, 169, 188, 10_000)] == [20, 20, 8, 5, 5, 4]


@pytest.mark.parametrize(
    ("parameters", "error", "words"),
    [
        ({"wide": 1}, TypeError, "wide: expected a bool but got"),
        ({"refit": "yes"}, TypeError, "refit: expected a bool but got"),
        (
            {"word_dropout": 1.0},
            ValueError,
            "word_dropout: expected a share of the tokens, from 0 to below 1, but got 1",
        ),
        ({"wide_dropout": -0.1}, ValueError, "wide_dropout: expected a share of the n-grams"),
        ({"embedding_dropout": None}, ValueError, "embedding_dropout: expected a probability"),
        ({"label_smoothing": "0.1"}, ValueError, "label_smoothing: expected a share.*did you mean 0.1"),
        ({"holdout": 1.5}, ValueError, "holdout: expected None or a share of the data"),
        ({"epochs": 0}, ValueError, "epochs: expected at least 1 but got 0"),
    ],
)
def test_wrong_parameters(parameters: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        sf.TextClassifier(**parameters).fit(X, Y)


def test_classes_of_few_texts_are_not_held_out() -> None:
    texts = [f"text number {k}" for k in range(240)]
    with pytest.warns(UserWarning, match="expected labels that repeat"):
        model = sf.TextClassifier(**QUICK).fit(texts, [f"label {k}" for k in range(240)])
    assert model.fitted_.data["validation"] is None
    pairs = sf.TextClassifier(**QUICK).fit(texts, [f"label {k // 2}" for k in range(240)])
    assert pairs.fitted_.data["validation"] is None, "a text of each class would be half of them"


def test_a_model_is_kept_though_it_diverges_on_all_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*_: Any) -> None:
        raise TrainingError("the loss is nan")

    monkeypatch.setattr(fit, "_refitted", diverge)
    with pytest.warns(RuntimeWarning, match="refit: the model without the held-out data is kept, as the loss is nan"):
        model = sf.TextClassifier(**QUICK).fit(X, Y)
    assert model.fitted_.data["validation"]["rows"] == 24


def test_other_optimizers_can_go_on() -> None:
    model = sf.TextClassifier(**QUICK).fit(X, Y)
    assert not model.model_.wide.sparse

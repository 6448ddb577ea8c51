"""The linear model beside the network: its features, what it learns, where it is kept, and what reports say of it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

import seqcls_fast as sf
from seqcls_fast import evaluate_predictions
from seqcls_fast.toolkit import baseline as baseline_module
from seqcls_fast.toolkit import fit as fitting
from seqcls_fast.toolkit.baseline import Baseline, features_for, tensors_for
from seqcls_fast.toolkit.data.datasets import Examples, Raw
from seqcls_fast.toolkit.data.features import SeriesSummary
from seqcls_fast.toolkit.data.ngrams import HashedText
from seqcls_fast.toolkit.data.series import SeriesEncoder
from seqcls_fast.toolkit.data.text import TextEncoder
from seqcls_fast.toolkit.evaluation.beside import beside
from seqcls_fast.toolkit.evaluation.intervals import added_accuracy, added_macro_f1
from seqcls_fast.toolkit.ranks import Ranks
from seqcls_fast.toolkit.stream import Stream
from support.corpora import sentences, waves

QUICK: dict[str, Any] = {"hidden_size": 4, "epochs": 2, "verbose": False}


def text(**options: Any) -> sf.TextClassifier:
    return sf.TextClassifier(**QUICK | {"embedding_dim": 4} | options)


def series(**options: Any) -> sf.SeriesClassifier:
    return sf.SeriesClassifier(**QUICK | options)


def written(path: Path, X: list[str], y: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": a, "label": b}) + "\n" for a, b in zip(X, y, strict=True)))
    return path


# -- features ---------------------------------------------------------------------------------------------------------


def counted(text: str) -> int:
    """The number of n-grams of a text, by a loop."""
    words = "".join(c if c.isalnum() else " " for c in text).split()
    found = len(words) + max(0, len(words) - 1)
    for chunk in text.split():
        padded = f" {chunk} "
        found += sum(max(0, len(padded) - n + 1) for n in (2, 3, 4, 5))
    return found


@pytest.mark.parametrize(
    "example", ["", " ", "a", "good", "a good film", "don't!  x\ty\n", "中文 größe 😀", "x" * 70, "\ud800 half"]
)
def test_every_n_gram_is_an_id(example: str) -> None:
    features = HashedText(16, normalization=None)
    (alone,) = features.encode([example]).split()
    assert len(alone) == counted(example.lower())
    assert alone.numel() == 0 or 0 <= int(alone.min()) <= int(alone.max()) < 1 << 16
    beside_others = features.encode(["other words", example, "", "more of them"]).split()[1]
    assert sorted(beside_others.tolist()) == sorted(alone.tolist())


def test_ids_tell_texts_apart() -> None:
    features = HashedText(30)
    ids = [
        frozenset(found.tolist()) for found in features.encode(["ab cd", "cd ab", "abcd", "AB cd", "ab  cd"]).split()
    ]
    assert ids[0] == ids[3] == ids[4]
    assert ids[0] ^ ids[1]  # the pair of words
    assert len({*ids}) == 3
    assert ids[0] != frozenset(HashedText(30, lowercase=False).encode(["AB cd"]).values.tolist())
    assert HashedText(30).encode(["ﬁlm"]).values.tolist() == HashedText(30).encode(["film"]).values.tolist()  # NFKC
    many = HashedText(30).encode([" ".join(f"w{k}" for k in range(1000))])
    assert len(set(many.values.tolist())) > 2000  # no two words, or pairs of them, share an id


def test_a_long_text_is_cut() -> None:
    assert int(HashedText(16).encode(["a b " * 10_000]).lengths[0]) == counted("a b " * 2500)


def test_summaries_of_series() -> None:
    encoder = SeriesEncoder(standardize=False).fit([np.zeros((1, 2))])
    features = SeriesSummary(encoder)
    rng = np.random.default_rng(0)
    X = [rng.normal(size=(steps, 2)) for steps in (9, 1, 30, 0)]
    found = features.encode(X).values.numpy()
    assert found.shape == (4, features.count)
    for row, x in zip(found[:3], X[:3], strict=True):
        part = np.arange(len(x)) * 8 // len(x)
        parts = np.stack([x[part == k].mean(0) if (part == k).any() else x.mean(0) for k in range(8)])
        slope = np.polyfit(np.arange(len(x)), x, 1)[0] if len(x) > 1 else np.zeros(2)
        changes = np.diff(x, axis=0, prepend=x[:1])
        expected = [
            x.mean(0), x.std(0), x.min(0), x.max(0), x[0], x[-1], slope, np.abs(changes).mean(0),
            np.sqrt((changes**2).mean(0)), parts.ravel(),
        ]  # fmt: skip
        np.testing.assert_allclose(row, [np.log1p(len(x)), *np.concatenate(expected)], rtol=1e-5, atol=1e-6)
    assert found[3].tolist() == [0.0] * features.count


def test_n_grams_are_weighted_as_by_scikit_learn() -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text")
    sparse = pytest.importorskip("scipy.sparse")
    features = HashedText(12)
    rows = features.encode(["a film a film", "a good film", "", "bad"])
    ends = np.concatenate([[0], rows.lengths.cumsum(0).numpy()])
    counts = sparse.csr_matrix((np.ones(len(rows.values)), rows.values.numpy(), ends), (4, features.count)).toarray()
    _, scale = baseline_module._document_frequencies(iter([baseline_module._matrix(rows, features)]))
    found = baseline_module._scaled(baseline_module._matrix(rows, features), None, scale)
    expected = text.TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    np.testing.assert_allclose(found.toarray(), expected.toarray(), rtol=1e-12)


def test_sizes_are_bounded() -> None:
    encoder = TextEncoder().fit(["a b"])
    for classes, bits in ((2, 16), (64, 16), (65, 15), (4096, 10)):
        features = features_for(encoder, classes)
        assert features.count == 1 << bits
        assert tensors_for(features, classes)["baseline.weights"] == (torch.float16, (1 << bits, classes))


# -- what it learns, and what it leaves alone --------------------------------------------------------------------------


def test_it_learns() -> None:
    X, y = sentences(0, 400)
    baseline = text(epochs=1).fit(X, y).baseline_
    other, labels = sentences(7, 200)
    assert (baseline.predict(other) == labels).mean() > 0.95
    shares = baseline.predict_proba(other)
    np.testing.assert_allclose(shares.sum(1), 1)
    assert baseline.classes.tolist() == ["neg", "pos"]
    assert baseline.predict([]).shape == (0,)
    assert np.array_equal(np.concatenate([baseline.predict_proba([x]) for x in other[:9]]), shares[:9])
    values, targets = waves()
    assert (series().fit(values, targets).baseline_.predict(waves(3)[0]) == waves(3)[1]).mean() > 0.95


def test_many_classes_and_many_rows() -> None:
    """More rows than are read at once, so that the passes read them again."""
    draw = random.Random(0)
    X = [f"{draw.choice('abcdefg')}{k % 5} word{k % 5} n{k}" for k in range(3000)]
    baseline = text(epochs=1, batch_size=256).fit(X, [k % 5 for k in range(3000)]).baseline_
    assert baseline.predict(["x word3 y", "word1"]).tolist() == [3, 1]


def test_the_network_is_trained_as_without_it() -> None:
    for model, data in ((text, sentences()), (series, waves())):
        torch.manual_seed(3)
        np.random.seed(3)
        states = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
        one = model(dropout=0.5).fit(*data, validation=0.2)
        assert torch.equal(torch.random.get_rng_state(), states[0])
        assert np.random.get_state()[1].tolist() == states[1]  # type: ignore[index]
        other = model(dropout=0.5, baseline=False).fit(*data, validation=0.2)
        assert other.baseline_ is None
        weights = zip(one.model_.state_dict().values(), other.model_.state_dict().values(), strict=True)
        assert all(map(torch.equal, *zip(*weights, strict=True)))
        assert "beside a simple linear model" not in str(other.evaluate(*data))
        assert other.evaluate(*data).to_dict()["baseline"] is None


def test_a_seed_decides_about_it() -> None:
    X, y = sentences()
    one, same, other = (text(seed=seed).fit(X, y).baseline_.tensors() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["baseline.weights"], other["baseline.weights"])


def test_weights_of_rows_count() -> None:
    X, y = ["good film", "good film", "bad film"] * 20, [1, 0, 0] * 20
    plain = text().fit(X, y).baseline_.predict_proba(["good film"])[0, 1]
    heavy = text().fit(X, y, sample_weight=[5.0, 1.0, 1.0] * 20).baseline_.predict_proba(["good film"])[0, 1]
    assert plain < 0.6 < heavy
    assert text(class_weight={1: 5.0}).fit(X, y).baseline_.predict_proba(["good film"])[0, 1] > 0.6


def test_held_out_rows_teach_it_nothing(tmp_path: Path) -> None:
    X, y = ["good"] * 40 + ["bad"] * 40, ["pos"] * 40 + ["neg"] * 40
    outside = (["marvellous"] * 20, ["pos"] * 20)
    model = text().fit(X, y, validation=outside)
    share = model.baseline_.predict_proba(["marvellous"])[0, 1]
    assert abs(share - text().fit(X, y).baseline_.predict_proba(["marvellous"])[0, 1]) < 1e-12


def test_streams(tmp_path: Path) -> None:
    X, y = sentences(0, 400)
    path = written(tmp_path / "a.jsonl", X, y)
    model = text(workers=0, epochs=1).fit(Stream(path), validation=0.25)
    assert model.validation_report_["baseline"]["accuracy"] > 0.9
    other = Stream(written(tmp_path / "b.jsonl", *sentences(5, 100)), label=None)
    assert model.baseline_.predict(other).tolist() == model.baseline_.predict(sentences(5, 100)[0]).tolist()
    report = model.evaluate(Stream(path))
    assert report.baseline is not None
    assert report.baseline.accuracy == (model.baseline_.predict(X) == y).mean()
    held = written(tmp_path / "held.jsonl", *sentences(6, 50))
    both = text(workers=0, epochs=1).fit(Stream(path), validation=held).validation_report_["baseline"]
    assert both["accuracy"] > 0.9


@pytest.mark.parametrize("world", [1, 3])
def test_rows_of_ranks_are_in_one_order(world: int, tmp_path: Path) -> None:
    """The network's predictions of a rank's rows, and the baseline's, are compared row by row."""
    X, y = sentences(0, 50)
    encoder = TextEncoder().fit(X)
    examples = Examples(encoder.encode(X), torch.arange(50))
    raw = Raw(X, examples, HashedText(16))
    for rank in range(world):
        ranks = Ranks(rank, world)
        expected = torch.cat([piece.targets for piece in examples.pieces(ranks)])
        assert torch.equal(torch.cat([piece.targets for piece in raw.pieces(ranks)]), expected)
    baseline = text().fit(X, y).baseline_
    order = torch.cat([examples.order(Ranks(rank, world)) for rank in range(world)])
    expected = (baseline.predict(X) == "pos")[order.numpy()].astype(int)
    assert baseline.targets_of(raw, Ranks(0, world)).tolist() == expected.tolist()


def test_batches_of_raw_rows() -> None:
    X, _ = sentences(0, 50)
    examples = Examples(TextEncoder().fit(X).encode(X), torch.arange(50), torch.linspace(0.5, 1.5, 50))
    raw = Raw(X, examples, HashedText(16))
    seen = []
    for batch in raw.epoch(16, 0, 1, 0, Ranks(0, 1)):
        assert torch.equal(batch.examples.weights, examples.weights[batch.examples.targets])  # type: ignore[index]
        ids = batch.examples.sequences.split()
        for row, target in zip(batch.rows.tolist(), batch.examples.targets.tolist(), strict=True):
            assert ids[row].tolist() == HashedText(16).encode([X[target]]).values.tolist()
        seen += batch.examples.targets.tolist()
    assert sorted(seen) == list(range(50))
    assert seen != sorted(seen)
    later = [batch.examples.targets.tolist() for batch in raw.epoch(16, 0, 1, 2, Ranks(0, 1))]
    assert [each for batch in later for each in batch] == seen[32:]
    assert (len(raw), raw.steps(16), raw.digest()) == (50, 4, examples.digest())


# -- where it is kept --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "series"])
def test_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    X, y = sentences() if kind == "text" else waves()
    model = (text if kind == "text" else series)().fit(X, y, validation=0.25)
    model.save(tmp_path / "m")
    loaded = type(model).load(tmp_path / "m")
    assert np.array_equal(loaded.baseline_.predict_proba(X), model.baseline_.predict_proba(X))
    assert loaded.evaluate(X, y).to_dict()["baseline"] == model.evaluate(X, y).to_dict()["baseline"]
    card = (tmp_path / "m" / "README.md").read_text()
    assert "Beside a simple linear model on the same examples:\n" in card
    assert f"| accuracy | {model.validation_report_['baseline']['accuracy']:.4f} | " in card
    without = (text if kind == "text" else series)(baseline=False).fit(X, y)
    without.save(tmp_path / "other")
    assert type(model).load(tmp_path / "other").baseline_ is None
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("m", "other")]
    if kind == "text":
        assert sizes[0] - sizes[1] < 3 * 131_072 + 131_072 + 20_000  # 128 KB for each class, and 256 KB
    else:
        assert sizes[0] - sizes[1] < 10_000


def test_spoiled_files_are_refused(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    import hashlib

    model = series().fit(*waves())
    for name, tensor in (
        ("baseline.bias", torch.zeros(3)),
        ("baseline.weights", torch.zeros(2, 2)),
        ("baseline.scale", None),
        ("baseline.bias", torch.full((2,), torch.nan)),
    ):
        model.save(tmp_path / "m")
        path = tmp_path / "m" / "model.safetensors"
        tensors = safetensors.load(path.read_bytes())
        if tensor is None:
            del tensors[name]
        else:
            tensors[name] = tensor
        path.write_bytes(safetensors.save(tensors))
        config = json.loads((tmp_path / "m" / "config.json").read_text())
        config["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (tmp_path / "m" / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=name):
            sf.SeriesClassifier.load(tmp_path / "m")


def test_an_interrupt_leaves_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    X, y = sentences()
    whole = text(checkpoint_dir=tmp_path / "whole").fit(X, y)

    def interrupted(*_: Any) -> Baseline:
        raise KeyboardInterrupt

    model = text(checkpoint_dir=tmp_path / "c")
    with monkeypatch.context() as patch:
        patch.setattr(fitting, "fit_baseline", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.fit(X, y)
    assert model.baseline_ is None
    assert np.array_equal(model.predict_proba(X), whole.predict_proba(X))
    model.save(tmp_path / "m")
    again = text(checkpoint_dir=tmp_path / "c").fit(X, y, resume=True)
    assert np.array_equal(again.predict_proba(X), whole.predict_proba(X))
    assert np.array_equal(again.baseline_.predict_proba(X), whole.baseline_.predict_proba(X))


# -- what is said of it ------------------------------------------------------------------------------------------------


def test_the_comparison_by_hand() -> None:
    true, pred, other = (np.array(each) for each in ([0, 0, 1, 1, 2, 2], [0, 0, 1, 0, 2, 2], [0, 1, 1, 1, 2, 0]))
    found = beside(true, pred, other, 3, 2000, 0.95, 0)
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.added["accuracy"][0] == pytest.approx(1 / 6)
    metrics = pytest.importorskip("sklearn.metrics")
    f1 = [metrics.f1_score(true, each, average="macro") for each in (pred, other)]
    assert found.macro_f1 == pytest.approx(f1[1])
    assert found.added["macro_f1"][0] == pytest.approx(f1[0] - f1[1])
    # two gained and one lost of six: Bonett and Price's (2 + 1) / 8 and (1 + 1) / 8
    difference = 3 / 8 - 2 / 8
    half = 1.959964 * ((3 / 8 + 2 / 8 - difference**2) / 8) ** 0.5
    np.testing.assert_allclose(found.added["accuracy"][1], [difference - half, difference + half], rtol=1e-6)


def test_intervals_hold_the_difference() -> None:
    """Of samples from a population with a known difference, nearly 95 % have an interval that holds it."""
    rng = np.random.default_rng(0)
    held = {"accuracy": 0, "macro_f1": 0}
    K = 3
    big = rng.integers(0, K, 200_000)
    net, linear = (np.where(rng.random(len(big)) < p, big, rng.integers(0, K, len(big))) for p in (0.7, 0.6))
    truth = {name: value for name, (value, _) in beside(big, net, linear, K, 1, 0.95, 0).added.items()}
    for trial in range(200):
        rows = rng.integers(0, len(big), 150)
        right = net[rows] == big[rows], linear[rows] == big[rows]
        low, high = added_accuracy(*right, 0.95)
        held["accuracy"] += low <= truth["accuracy"] <= high
        low, high = added_macro_f1(big[rows], net[rows], linear[rows], K, 200, 0.95, trial)
        held["macro_f1"] += low <= truth["macro_f1"] <= high
    assert all(0.9 <= count / 200 <= 0.995 for count in held.values()), held


def report_of(network: int, linear: int, count: int = 100) -> sf.Report:
    """A report on examples of two classes, of which the network and the linear model have so many right."""
    true = [k % 2 for k in range(count)]
    pred, other = ([t if k < right else 1 - t for k, t in enumerate(true)] for right in (network, linear))
    return evaluate_predictions(true, pred, labels=[0, 1], baseline=other)


def test_a_network_that_loses_is_warned_of() -> None:
    (said,) = [each for each in report_of(60, 90).warnings if "linear model" in each]
    assert said.startswith(
        "accuracy of 60.0 % is below the 90.0 % of a simple linear model (baseline_): -30.0 points (-"
    )
    (said,) = [each for each in report_of(91, 90).warnings if "linear model" in each]
    assert said.startswith("accuracy of 91.0 % is not clearly better than the 90.0 % of a simple linear model")
    assert not [each for each in report_of(95, 60).warnings if "linear model" in each]


def test_reports_name_it() -> None:
    report = report_of(95, 60)
    assert "\nbeside a simple linear model (baseline_):\naccuracy " in str(report)
    assert " 0.600, to which the network adds +0.350 (+0.2" in str(report)
    found = json.loads(json.dumps(report.to_dict()))["baseline"]
    assert found["accuracy"] == 0.6
    assert found["added"]["accuracy"]["value"] == pytest.approx(0.35)
    assert report_of(95, 60).to_dict() == report.to_dict()
    pytest.importorskip("matplotlib")
    assert "<h2>Beside a simple linear model</h2>" in report.to_html()
    assert "+0.350<small>" in report.to_html()


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="baseline: expected 2 labels, as many as y_true, but got 1"):
        evaluate_predictions([0, 1], [0, 1], baseline=[1])
    with pytest.raises(ValueError, match="baseline: expected one of the 2 labels but got 7"):
        evaluate_predictions([0, 1], [0, 1], baseline=[1, 7])
    with pytest.raises(TypeError, match="baseline: expected a bool but got str"):
        text(baseline="yes").fit(*sentences())

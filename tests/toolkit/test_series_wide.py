"""The wide part of SeriesClassifier: ridge regression, the mixture with the network, and what a saved model holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seqcls_fast import SeriesClassifier
from seqcls_fast.convolutions import RandomConvolutions
from seqcls_fast.toolkit.data.datasets import Examples
from seqcls_fast.toolkit.data.ragged import Ragged
from seqcls_fast.toolkit.data.series import SeriesEncoder
from seqcls_fast.toolkit.store import StoreError
from seqcls_fast.toolkit.stream import Stream
from seqcls_fast.toolkit.training.ridge import fit_ridge, log_losses, logit_scale
from seqcls_fast.toolkit.training.scores import fit_wide, in_parts
from seqcls_fast.toolkit.training.wide import _shares

QUICK = {"hidden_size": 4, "epochs": 2, "convolutions": 500, "verbose": False}


def shapes(count: int = 60, shift: float = 0.0) -> tuple[list[np.ndarray], list[str]]:
    """Noise of unequal lengths with a bump in it, which is fast or slow."""
    rng = np.random.default_rng(0)
    series, labels = [], []
    for k in range(count):
        length, one = int(rng.integers(25, 60)), k % 2
        wave = np.sin(np.arange(length) * (1.5 if one else 0.5) + rng.uniform(0, 6))
        series.append(np.stack([wave + 0.3 * rng.normal(size=length) + shift * k, rng.normal(size=length)], 1))
        labels.append("fast" if one else "slow")
    return series, labels


@pytest.mark.parametrize(("rows", "features"), [(12, 30), (40, 6)])
@pytest.mark.parametrize("weighted", [False, True])
def test_scores_of_rows_left_out_are_those_of_models_without_them(rows: int, features: int, weighted: bool) -> None:
    rng = np.random.default_rng(0)
    x, targets = rng.normal(size=(rows, features)), np.arange(rows) % 3
    weights = rng.uniform(0.5, 2, rows) if weighted else np.ones(rows)
    found = fit_ridge(x, targets, 3, weights)
    wanted = np.where(targets[:, None] == np.arange(3), 1.0, -1.0)
    share = weights / weights.sum() * rows  # as in the whole data, so that the penalty means the same

    def of(penalty: float, kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, middle = np.average(x[kept], 0, share[kept]), np.average(wanted[kept], 0, share[kept])
        scaled = (x[kept] - mean) * share[kept, None]
        w = np.linalg.solve(
            scaled.T @ (x[kept] - mean) + penalty * np.eye(features), scaled.T @ (wanted[kept] - middle)
        )
        return w, middle - mean @ w

    errors = []
    for penalty in np.logspace(-5, 2, 15) * features:
        left_out = np.empty((rows, 3))
        for row in range(rows):
            w, b = of(penalty, np.arange(rows) != row)
            left_out[row] = x[row] @ w + b
        errors.append((np.average(((left_out - wanted) ** 2).mean(1), weights=weights), penalty, left_out))
    error, penalty, left_out = min(errors, key=lambda each: each[0])
    np.testing.assert_allclose(found.left_out, left_out, rtol=1e-6, atol=1e-8)
    assert found.error == pytest.approx(error)
    w, b = of(penalty, np.arange(rows) >= 0)
    np.testing.assert_allclose(found.weights, w, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.bias, b, rtol=1e-6, atol=1e-8)


def test_scale_of_scores_has_the_least_loss() -> None:
    scores, targets = np.array([[1.0, -1.0]] * 4), np.array([0, 0, 0, 1])
    # log(3) / 2 = 0.55 but for the smoothing of so few rows, and the steps of 2^(1/4)
    assert logit_scale(scores, targets) == 2**-1.25
    assert logit_scale(np.tile(scores, (100, 1)), np.tile(targets, 100)) == 2**-0.75
    assert np.isfinite(log_losses(scores * 1e6, targets)).all()


def test_shares_follow_the_validation_data() -> None:
    targets = np.arange(300) % 3
    right = np.where(targets[:, None] == np.arange(3), 3.0, 0.0)
    noise = np.random.default_rng(0).normal(size=right.shape)
    assert _shares(right, noise, targets)[0] == 1
    assert _shares(noise, right, targets)[0] == 0
    assert _shares(right, right.copy(), targets)[0] == 0.25  # no gain: the usual share
    rng = np.random.default_rng(0)
    network, wide = (right + rng.normal(0, 5, right.shape) for _ in range(2))
    wide[:9] -= 5 * right[:9]  # the network is better by what may be chance
    assert _shares(network[:60], wide[:60], targets[:60])[0] == 0.25


def test_few_rows_say_nothing_about_shares() -> None:
    targets = np.arange(29) % 3
    right = np.where(targets[:, None] == np.arange(3), 3.0, 0.0)
    assert _shares(right, -right, targets) == (0.25, 1.0)


def test_unequal_lengths_that_a_small_network_does_not_learn() -> None:
    series, labels = shapes(140)
    alone = SeriesClassifier(**QUICK | {"convolutions": 0}).fit(series[:60], labels[:60])
    both = SeriesClassifier(**QUICK).fit(series[:60], labels[:60])
    assert alone.score(series[60:], labels[60:]) < 0.9
    assert both.score(series[60:], labels[60:]) > 0.97
    assert both.validation_report_["accuracy"] > 0.9
    assert both.data_["validation"]["share"] == 0.2


def test_same_bits_again_after_saving_and_for_each_row(tmp_path: Path) -> None:
    series, labels = shapes()
    first, second = (SeriesClassifier(**QUICK).fit(series, labels) for _ in range(2))
    found = first.predict_proba(series)
    assert np.array_equal(found, second.predict_proba(series))
    assert np.array_equal(found[:1], first.predict_proba(series[:1]))
    first.save(tmp_path / "model")
    assert np.array_equal(SeriesClassifier.load(tmp_path / "model").predict_proba(series), found)
    other = SeriesClassifier(**QUICK, seed=1).fit(series, labels)
    assert not torch.equal(other.model_.convolutions.convolutions.biases, first.model_.convolutions.convolutions.biases)


def test_resumed_trainings_end_with_the_same_model(tmp_path: Path) -> None:
    series, labels = shapes()
    whole = SeriesClassifier(**QUICK).fit(series, labels)
    parts = SeriesClassifier(**QUICK, checkpoint_dir=tmp_path / "c", checkpoint_every=0)
    with pytest.raises(KeyboardInterrupt):
        parts.fit(series, labels, stop=_interrupt)
    parts.fit(series, labels, resume=True)
    assert np.array_equal(whole.predict_proba(series), parts.predict_proba(series))


def _interrupt(history: list[Any]) -> bool:
    raise KeyboardInterrupt


def test_streams_have_a_wide_part_too(tmp_path: Path) -> None:
    series, labels = shapes()
    path = tmp_path / "series.jsonl"
    rows = zip(series, labels, strict=True)
    path.write_text("\n".join(json.dumps({"series": x.tolist(), "label": label}) for x, label in rows))
    streamed = SeriesClassifier(**QUICK).fit(Stream(path, kind="series"), validation=(series, labels))
    assert streamed.model_.convolutions is not None
    assert streamed.score(series, labels) > 0.97
    again = SeriesClassifier(**QUICK, workers=0).fit(Stream(path, kind="series"), validation=(series, labels))
    assert np.array_equal(streamed.predict_proba(series), again.predict_proba(series))


def test_sizes_from_a_stranger_are_refused(tmp_path: Path) -> None:
    series, labels = shapes()
    SeriesClassifier(**QUICK).fit(series, labels).save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    for sizes in (
        {"channels": 3}, {"dilations": [1]}, {"counts": [1, 1]}, {"dilations": [0] * 6}, {"dilations": 5}, {"more": 1},
        {"counts": [1 << 20] * 4000, "dilations": [1] * 4000}, {"channels": 1 << 20},
    ):  # fmt: skip
        path.write_text(json.dumps(config | {"convolutions": config["convolutions"] | sizes}))
        with pytest.raises(StoreError, match="expected"):
            SeriesClassifier.load(tmp_path / "model")
    path.write_text(json.dumps(config | {"convolutions": None}))
    with pytest.raises(StoreError, match="expected no other tensors"):
        SeriesClassifier.load(tmp_path / "model")


def test_the_trace_shows_the_scores() -> None:
    series, labels = shapes()
    clf = SeriesClassifier(**QUICK).fit(series, labels)
    trace = clf.trace(series[0])
    stages = {stage.name: stage.values for stage in trace.stages}
    head = clf.model_.head(stages["pooled"])
    torch.testing.assert_close(stages["logits"], head + stages["convolutions"])
    np.testing.assert_allclose(trace.probabilities[-1].numpy(), clf.predict_proba(series[:1])[0], rtol=1e-5)


def test_the_trace_predicts_series_that_end_early() -> None:
    series, labels = shapes()
    clf = SeriesClassifier(**QUICK, normalize="series").fit(series, labels)
    trace = clf.trace(series[0])
    for count, probabilities in zip(trace.steps, trace.probabilities.numpy(), strict=True):
        expected = clf.predict_proba([series[0][:count]])[0]
        np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def test_weights_of_rows_count() -> None:
    series, labels = shapes()
    encoder = SeriesEncoder().fit(series)
    targets = torch.tensor([int(label == "fast") for label in labels])
    wrong = targets.clone()
    wrong[:20] = 1 - wrong[:20]
    weights = torch.ones(60)
    weights[:20] = 1e-6
    found = [
        fit_wide([Examples(encoder.encode(series), given, some)], 2, 2, 500, 0).scores
        for given, some in ((wrong, weights), (wrong, None))
    ]
    x, lengths = encoder.encode(series).pad(torch.arange(60))
    right = [float((scores(x, lengths).argmax(1) == targets).float().mean()) for scores in found]
    assert right[0] > 0.97
    assert right[1] < 0.9


@pytest.mark.parametrize(("shift", "chosen"), [(0.0, "data"), (50.0, "series")])
def test_how_series_are_scaled_is_chosen(shift: float, chosen: str) -> None:
    series, labels = shapes(shift=shift)
    if not shift:  # here the classes differ by their level alone
        series = [x + 2 * (label == "fast") for x, label in zip(shapes(1)[0] * 60, labels, strict=True)]
    clf = SeriesClassifier(**QUICK).fit(series, labels)
    assert clf.encoder_.normalize == chosen
    assert SeriesClassifier(**QUICK, normalize="data").fit(series, labels).encoder_.normalize == "data"


def test_very_few_series_are_not_held_out() -> None:
    series, labels = shapes(19)
    clf = SeriesClassifier(**QUICK).fit(series, labels)
    assert clf.data_["validation"] is None
    assert clf.score(*shapes(40)) > 0.9


@pytest.mark.parametrize("steps", [0, 1])
def test_series_without_steps_or_with_one(steps: int) -> None:
    series, labels = shapes(30)
    clf = SeriesClassifier(**QUICK).fit([*series, np.zeros((steps, 2))], [*labels, "slow"])
    assert np.isfinite(clf.predict_proba([np.zeros((steps, 2))])).all()


def test_biases_and_dilations_are_those_of_all_lengths() -> None:
    rng = np.random.default_rng(0)
    lengths = [9] * 300 + [400] * 300
    series = [rng.normal(size=(length, 1)) for length in lengths]
    encoder = SeriesEncoder().fit(series)
    data = [Examples(encoder.encode(series), torch.arange(600) % 2)]
    convolutions = fit_wide(data, 1, 2, 1_000, 0).scores.convolutions
    assert max(convolutions.dilations) > 9
    short = RandomConvolutions(1, convolutions.dilations, convolutions.counts)
    short.draw([torch.from_numpy(one).float() for one in series[:300]], 0)
    assert not torch.equal(convolutions.biases, short.biases)


def test_parts_of_long_series_are_small() -> None:
    sequences = Ragged(torch.zeros(3 << 21, 1), torch.tensor([1 << 21] * 3))
    assert [part.tolist() for part in in_parts(sequences)] == [[0, 1], [2]]
    assert in_parts(Ragged(torch.zeros(0, 2), torch.zeros(3, dtype=torch.int64)))[0].tolist() == [0, 1, 2]


def test_what_the_wide_part_has_seen_is_told() -> None:
    series, labels = shapes()
    model = SeriesClassifier(**QUICK, seed=0).fit(series, labels)
    assert model.fitted_.data["refit"] == len(series)
    assert "then the convolutions on all 60" in model.fitted_.about["training"]
    assert any(
        "duplicates of training examples" in words for words in model.evaluate(series[:40], labels[:40]).warnings
    )
    assert model.fitted_.seen == SeriesClassifier(**QUICK, seed=0, holdout=None).fit(series, labels).fitted_.seen


def test_series_at_fault_are_named_by_their_own_numbers() -> None:
    series, labels = shapes()
    series[5][3, 0] = np.nan
    with pytest.raises(ValueError, match=r"\[5\]"):
        SeriesClassifier(**QUICK, holdout=None).fit(series, labels)


def test_streams_of_series_hold_nothing_out(tmp_path: Path) -> None:
    series, labels = shapes()
    with (tmp_path / "series.jsonl").open("w") as file:
        for one, label in zip(series, labels, strict=True):
            file.write(json.dumps({"series": one.tolist(), "label": label}) + "\n")
    model = SeriesClassifier(**QUICK).fit(Stream(tmp_path / "series.jsonl", kind="series"))
    assert model.fitted_.data["rows"] == len(series)
    assert model.fitted_.data["validation"] is None

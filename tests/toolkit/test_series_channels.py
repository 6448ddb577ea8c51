"""Series by their own mean and deviation, changes and time as features, and the order of the axes."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from seqcls_fast import SeriesClassifier
from seqcls_fast.toolkit.data.series import SeriesEncoder
from seqcls_fast.toolkit.inputs import SeriesInputs

QUICK = {"hidden_size": 4, "epochs": 1, "convolutions": 84, "verbose": False}


def test_each_series_has_mean_0_and_deviation_1() -> None:
    rng = np.random.default_rng(0)
    series = [rng.normal(5 * k, 10.0**k, (3 + k, 2)) for k in range(4)] + [np.zeros((0, 2)), np.full((3, 2), 0.1)]
    series[3] *= 1e300
    found = SeriesEncoder(normalize="series").fit(series).encode(series).split()
    for each in found[:4]:
        np.testing.assert_allclose(each.mean(0), [0, 0], atol=1e-6)
        np.testing.assert_allclose(each.std(0, correction=0), [1, 1], rtol=1e-5)
    assert len(found[4]) == 0
    assert not found[5].any()  # 0.1 in thirds has a deviation that is rounding
    alone = SeriesEncoder(normalize="series").fit(series).encode(series[1:2]).values
    assert alone.equal(found[1])


@pytest.mark.parametrize(
    ("missing", "expected"),
    [("mean", [-1, 0, 1]), ("mask", [-1, 0, 1]), ("forward", [-(0.5**0.5), -(0.5**0.5), 2**0.5])],
)
def test_a_missing_value_is_the_mean_of_its_series(missing: str, expected: list[float]) -> None:
    encoder = SeriesEncoder(normalize="series", missing=missing).fit([[100.0, 300.0]])
    np.testing.assert_allclose(encoder.encode([[1.0, None, 3.0]]).values[:, 0], expected, rtol=1e-6, atol=1e-7)
    assert not encoder.encode([[None, None]]).values[:, 0].any()


def test_changes_and_time_come_after_the_values() -> None:
    encoder = SeriesEncoder(standardize=False, missing="mask", differences=True, time=True).fit([[[1.0, 2.0]]])
    found = encoder.encode([[[1.0, 5.0], [4.0, np.nan], [4.0, 7.0]], [[3.0, 3.0]], np.zeros((0, 2))])
    assert found.values.tolist() == [
        [1, 5, 0, 0, 0, 0, -1], [4, 2, 0, 1, 3, -3, 0], [4, 7, 0, 0, 0, 5, 1], [3, 3, 0, 0, 0, 0, 0],
    ]  # fmt: skip
    assert (encoder.features_in, encoder.features_own, encoder.features_out) == (2, 4, 7)
    again = SeriesEncoder.from_json(encoder.to_json())
    assert again.to_json() == encoder.to_json()
    assert again.features_out == 7


def test_channels_first_are_turned_round(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(24, 3, 10)), [0, 1] * 12
    first = SeriesClassifier(**QUICK, layout="channels_time").fit(X, y, validation=(X, y))
    turned = X.transpose(0, 2, 1)
    plain = SeriesClassifier(**QUICK).fit(turned, y, validation=(turned, y))
    assert first.n_features_in_ == 3
    assert np.array_equal(first.predict_proba(X), plain.predict_proba(turned))
    first.save(tmp_path / "model")
    loaded = SeriesClassifier.load(tmp_path / "model")
    assert np.array_equal(loaded.predict_proba(list(X)), plain.predict_proba(turned))
    assert np.array_equal(loaded.baseline_.predict(X), plain.baseline_.predict(turned))
    ragged = [[[1.0, 2.0, 3.0]], np.ones((1, 2)), [5.0, 6.0]]
    found = SeriesInputs("channels_time").sequences(ragged)
    assert [np.shape(each) for each in found] == [(3, 1), (2, 1), (2, 1)]


@pytest.mark.parametrize(("shape", "layout"), [((1, 30), "time_channels"), ((100, 3), "channels_time")])
def test_shapes_that_suggest_the_other_layout_are_warned_of(shape: tuple[int, int], layout: str) -> None:
    X, y = np.random.default_rng(0).normal(size=(20, *shape)), [0, 1] * 10
    other = {"time_channels": "channels_time", "channels_time": "time_channels"}[layout]
    with pytest.warns(UserWarning, match=f'pass layout="{other}"'):
        SeriesClassifier(**QUICK, layout=layout).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        SeriesClassifier(**QUICK, layout=other).fit(X, y)
        usual = [x[:, : 5 + k] for k, x in enumerate(np.zeros((4, 2, 90)))]
        assert SeriesInputs("channels_time").doubts(usual) == SeriesInputs().doubts([[1.0] * 90] * 4) == []


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"layout": "nct"}, "layout: expected one of time_channels, channels_time but got 'nct'"),
        ({"normalize": True}, "normalize: expected one of auto, data, series but got True"),
        ({"convolutions": -1}, "convolutions: expected at least 0 but got -1"),
        ({"differences": "yes"}, "differences: expected a bool but got str"),
    ],
)
def test_bad_parameters_get_a_sentence(parameters: dict, sentence: str) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        SeriesClassifier(**QUICK | parameters).fit([[1.0], [2.0]] * 4, [0, 1] * 4)
    assert str(error.value) == sentence

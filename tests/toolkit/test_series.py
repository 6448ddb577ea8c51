"""Series as features: the statistics, the policies for missing values, bad input, and saved encoders."""

from __future__ import annotations

import copy
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from seqcls_fast.toolkit.data.errors import seal, unseal
from seqcls_fast.toolkit.data.series import POLICIES, SeriesEncoder, as_steps

NAN, INF = math.nan, math.inf
SETTINGS = settings(max_examples=80, derandomize=True, deadline=None)


def values(encoder: SeriesEncoder, *series: Any) -> list[list[float]]:
    return encoder.encode(series).values.tolist()


def test_standardises_by_the_training_data() -> None:
    rng = np.random.default_rng(0)
    train = [rng.normal([3, -2], [2, 0.1], size=(n, 2)) for n in (5, 0, 1, 9)]
    encoder = SeriesEncoder().fit(train)
    together = np.concatenate(train)
    new = rng.normal(size=(4, 2))
    ragged = encoder.encode([*train, new])
    expected = (np.concatenate([together, new]) - together.mean(0)) / together.std(0)
    assert ragged.values.dtype == torch.float32
    assert ragged.lengths.tolist() == [5, 0, 1, 9, 4]
    np.testing.assert_allclose(ragged.values.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_input_is_left_alone() -> None:
    series = np.array([[1.0, NAN], [2.0, 3.0]])
    before = series.copy()
    for missing in POLICIES[1:]:
        SeriesEncoder(missing=missing).fit([series]).encode([series])
    np.testing.assert_array_equal(series, before)


def test_without_standardising() -> None:
    encoder = SeriesEncoder(standardize=False, missing="mean").fit([[1, 3]])
    assert values(encoder, [5, None]) == [[5], [2]]


@pytest.mark.parametrize("constant", [0.0, 0.1, 1e300, -7.3, 5e-324])
def test_constant_features_are_not_divided(constant: float) -> None:
    encoder = SeriesEncoder().fit([[[constant, i] for i in range(7)]] * 3)
    assert encoder._mean is not None
    assert encoder._scale is not None
    assert (encoder._mean[0], encoder._scale[0]) == (constant, 1)
    assert values(encoder, [[constant, 3]]) == [[0, 0]]
    assert encoder.encode([[[constant + 2.5, 3]]]).values[0, 0] == pytest.approx(2.5 if abs(constant) < 10 else 0)


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1.0, 1e200, 1e307])
def test_extreme_scales(scale: float) -> None:
    encoder = SeriesEncoder().fit([[scale * x for x in (-1.0, 1.0, -1.0, 1.0)]])
    assert values(encoder, [scale, -scale]) == [[pytest.approx(1)], [pytest.approx(-1)]]


def test_statistics_are_float64() -> None:
    """A deviation so much smaller than the mean that float32 could not represent it."""
    encoder = SeriesEncoder().fit([np.array([1e9, 1e9 + 1, 1e9 + 2])])
    assert values(encoder, [1e9 + 2]) == [[pytest.approx(math.sqrt(1.5))]]


@SETTINGS
@given(arrays.arrays(np.float64, (8, 3), elements=st.floats(-1e6, 1e6)), st.integers(0, 8))
def test_statistics_against_numpy(data: np.ndarray, cut: int) -> None:
    encoder = SeriesEncoder().fit([data[:cut], data[cut:]])
    assert encoder._mean is not None
    assert encoder._scale is not None
    np.testing.assert_allclose(encoder._mean, data.mean(0), rtol=1e-9, atol=1e-9)
    varying = data.min(0) < data.max(0)
    expected = np.where(varying, data.std(0), 1)
    small = varying & (expected < 1e-6)  # numpy's deviation underflows there
    np.testing.assert_allclose(encoder._scale[~small], expected[~small], rtol=1e-6)


TRAIN = [[[0.0, 10.0], [NAN, 30.0]], [[4.0, NAN]]]  # means 2 and 20, deviations 2 and 10


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        ("zero", [[-1, -2], [1, -2], [-1, 1], [-1, -2]]),
        ("mean", [[0, 0], [1, 0], [0, 1], [0, 0]]),
        ("forward", [[0, 0], [1, 0], [1, 1], [0, 0]]),
        ("mask", [[0, 0, 1, 1], [1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 1, 1]]),
    ],
)
def test_missing_values(missing: str, expected: list[list[float]]) -> None:
    """The last series begins with missing values: nothing is carried into it from the series before."""
    encoder = SeriesEncoder(missing=missing).fit(TRAIN)
    assert values(encoder, [[NAN, NAN], [4, NAN], [NAN, 30]], [], [[None, None]]) == expected
    assert (encoder.features_in, encoder.features_out) == (2, len(expected[0]))


def test_long_gaps_are_carried_over() -> None:
    encoder = SeriesEncoder(missing="forward", standardize=False).fit([[1.0, 2.0]])
    assert values(encoder, [7, None, None, 8, None], [None, 9]) == [[7], [7], [7], [8], [8], [1.5], [9]]


def test_a_feature_never_there() -> None:
    encoder = SeriesEncoder(missing="mean").fit([[[1.0, NAN], [3.0, NAN]]])
    assert values(encoder, [[1, NAN], [3, 5]]) == [[-1, 0], [1, 5]]


@pytest.mark.parametrize("at", range(6))
def test_the_place_of_a_fault(at: int) -> None:
    """Errors name the right step at the start and end of every series, with empty series between them."""
    index, step = [(1, 0), (1, 1), (4, 0), (5, 0), (5, 1), (5, 2)][at]
    series: list[Any] = [[], [0, 0], [], [], [0], [0, 0, 0], []]
    series[index][step] = INF
    with pytest.raises(ValueError, match=rf"^series\[{index}\]: .* at step {step}, feature 0$"):
        SeriesEncoder().fit(series)


def test_missing_values_are_refused() -> None:
    sentence = (
        r'^series\[1\]: expected no missing value but got nan at step 2, feature 1, which missing="error" refuses$'
    )
    series = [[[1, 2]], [[1, 2], [3, 4], [5, None]]]
    with pytest.raises(ValueError, match=sentence):
        SeriesEncoder().fit(series)
    with pytest.raises(ValueError, match=sentence):
        SeriesEncoder().fit([[[1, 2]]]).encode(series)


@pytest.mark.parametrize("missing", POLICIES)
@pytest.mark.parametrize("value", [INF, -INF])
def test_infinity_is_refused(missing: str, value: float) -> None:
    """Steps beyond max_length are checked, too."""
    sentence = rf"^series\[2\]: expected a finite value but got {value} at step 1, feature 0$"
    series = [[], [[1, 2]], [[1, 2], [value, 4]]]
    with pytest.raises(ValueError, match=sentence):
        SeriesEncoder(missing=missing).fit(series)
    with pytest.raises(ValueError, match=sentence):
        SeriesEncoder(missing=missing, max_length=1).fit([[[1, 2]]]).encode(series)


def test_what_float32_does_not_hold_is_refused() -> None:
    encoder = SeriesEncoder(standardize=False).fit([[1.0]])
    with pytest.raises(
        ValueError, match=r"^series\[1\]: expected values that float32 holds but got 1e\+39 at step 1, f"
    ):
        encoder.encode([[1.0], [1.0, 1e39]])
    with pytest.raises(ValueError, match="float32 holds"):
        SeriesEncoder().fit([[1.0, 1.0 + 1e-15]]).encode([[1e300]])
    with pytest.raises(ValueError, match="float64 can average but got larger ones in feature 1"):
        SeriesEncoder().fit([[[0, 1.7e308], [0, -1.7e308], [0, 1.7e308], [0, 1.7e308]] * 2])


def test_max_length_keeps_the_first() -> None:
    encoder = SeriesEncoder(max_length=2).fit([[1, 3, 100], [5]])
    assert encoder._mean == 3
    assert encoder.encode([[3, 3, 3], [], [3]]).lengths.tolist() == [2, 0, 1]
    plain = SeriesEncoder(standardize=False, max_length=2).fit([[0]])
    assert values(plain, [1, 2, 3], [4]) == [[1], [2], [4]]


def test_kinds_of_series() -> None:
    encoder = SeriesEncoder(standardize=False).fit([[0.0]])
    for series in (
        [1, 2],
        (1, 2),
        [[1], [2]],
        np.array([1, 2], dtype=np.int8),
        np.array([1, 2], dtype=np.float16),
        torch.tensor([1, 2], dtype=torch.bfloat16),
        torch.tensor([[1.0], [2.0]], requires_grad=True),
        np.array([1, 2], dtype=object),
    ):
        assert values(encoder, series) == [[1], [2]]
    assert values(encoder, [True, False]) == [[1], [0]]
    assert encoder.encode(np.zeros((3, 4))).lengths.tolist() == [4, 4, 4]
    assert encoder.encode(torch.zeros(3, 4, 1)).lengths.tolist() == [4, 4, 4]


def test_empty_series_and_none() -> None:
    encoder = SeriesEncoder(missing="mask").fit([np.zeros((3, 2))])
    ragged = encoder.encode([])
    assert len(ragged) == 0
    assert ragged.values.shape == (0, 4)
    ragged = encoder.encode([[], np.zeros((0, 2))])
    assert ragged.lengths.tolist() == [0, 0]
    assert ragged.values.shape == (0, 4)


@pytest.mark.parametrize(
    ("series", "sentence"),
    [
        ([], "series: expected at least one step to learn from but got none"),
        ([[], []], "series: expected at least one step to learn from but got none"),
        ([[[1, 2]], [[1, 2, 3]]], r"series\[1\]: expected 2 features but got 3"),
        ([[1], [[1, 2]]], r"series\[1\]: expected 1 feature but got 2"),
        ([[[1, 2]], np.zeros((0, 3))], r"series\[1\]: expected 2 features but got 3"),
        ([[[1, 2], [3]]], r"series\[0\]: expected 2 features as at step 0 but got 1 feature at step 1"),
        ([[1, 2, [3]]], r"series\[0\]: expected a single number as at step 0 but got 1 feature at step 2"),
        ([["a", "b"]], r"series\[0\]: expected numbers but got text"),
        (["ab"], r"series\[0\]: expected numbers but got text"),
        (
            [[[1, 2], [3, [4]]]],
            r"series\[0\]: expected an array \(steps, features\) but got lists of different sizes .*",
        ),
        ([json.loads("[" * 70 + "]" * 70)], r"series\[0\]: expected an array \(steps, features\) but got lists of .*"),
        ([[1, None], [1, None, "x"]], r"series\[1\]: expected numbers but got 'x' at step 2, feature 0"),
        ([[[1, None], [{}, 1]]], r"series\[0\]: expected numbers but got dict at step 1, feature 0"),
        ([[[1, None], ["x", 1]]], r"series\[0\]: expected numbers but got 'x' at step 1, feature 0"),
        ([[1j]], r"series\[0\]: expected numbers but got complex numbers"),
        ([np.array(["2020"], dtype="M8[D]")], r"series\[0\]: expected numbers but got datetime64\[D\]"),
        ([1.0, 2.0], r"series\[0\]: expected an array \(steps, features\) but got a single number"),
        ([np.zeros((2, 3, 4))], r"series\[0\]: expected an array \(steps, features\) but got 3 dimensions"),
        ([[[]]], r"series\[0\]: expected at least one feature but got none"),
        ([[10**400]], r"series\[0\]: expected a finite value but got inf at step 0, feature 0"),
        ([[1], None], r"series\[1\]: expected an array \(steps, features\) but got a missing value"),
    ],
)
def test_bad_series(series: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}$"):
        SeriesEncoder().fit(series)


@pytest.mark.parametrize("series", ["abc", 3, None])
def test_what_is_no_list_of_series(series: Any) -> None:
    with pytest.raises(TypeError, match=f"^series: expected a list of arrays .* but got (a )?{type(series).__name__}$"):
        SeriesEncoder().fit(series)


def test_features_as_in_training() -> None:
    encoder = SeriesEncoder().fit([np.zeros((3, 2))])
    with pytest.raises(ValueError, match=r"^series\[1\]: expected 2 features but got 1$"):
        encoder.encode([np.zeros((3, 2)), [1.0]])


@pytest.mark.parametrize(
    ("error", "sentence", "parameters"),
    [
        (TypeError, "standardize: expected a bool but got int", {"standardize": 1}),
        (ValueError, "missing: expected one of error, .* but got 'drop'", {"missing": "drop"}),
        (TypeError, "max_length: expected an int or None but got str", {"max_length": "3"}),
        (TypeError, "max_length: expected an int or None but got bool", {"max_length": True}),
        (ValueError, "max_length: expected at least 1 but got 0", {"max_length": 0}),
    ],
)
def test_wrong_parameters(error: type[Exception], sentence: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(error, match=f"^{sentence}$"):
        SeriesEncoder(**parameters)


def test_before_fit() -> None:
    encoder = SeriesEncoder()
    for call in (lambda: encoder.encode([[1.0]]), lambda: encoder.features_in, encoder.to_json):
        with pytest.raises(RuntimeError, match="expected fit"):
            call()
    with pytest.raises(ValueError, match="missing value"):
        encoder.fit([[NAN]])
    with pytest.raises(RuntimeError, match="expected fit"):
        encoder.encode([[1.0]])


@SETTINGS
@given(
    arrays.arrays(np.float64, (5, 2), elements=st.floats(-1e30, 1e30)), st.sampled_from(POLICIES), st.booleans(),
)  # fmt: skip
def test_json_round_trip(data: np.ndarray, missing: str, standardize: bool) -> None:
    encoder = SeriesEncoder(missing=missing, standardize=standardize, max_length=4).fit([data])
    again = SeriesEncoder.from_json(encoder.to_json())
    assert again.to_json() == encoder.to_json()
    assert repr(again) == repr(encoder)
    assert torch.equal(again.encode([data]).values, encoder.encode([data]).values)


def test_copies_and_pickles() -> None:
    encoder = SeriesEncoder().fit([[1.0, 2.0]])
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert other.to_json() == encoder.to_json()


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("mean", [], "0 means"),
        ("mean", [0.0, 1.0], "2 means and 1 scales"),
        ("mean", ["a"], "no list of finite numbers"),
        ("mean", [True], "no list of finite numbers"),
        ("mean", 1.0, "no list of finite numbers"),
        ("scale", [0.0], "the scale 0.0"),
        ("scale", [-1.0], "the scale -1.0"),
        ("scale", None, "no list of finite numbers"),
        ("parameters", {"missing": "drop"}, "missing: expected one of"),
        ("parameters", {"other": 1}, "other"),
        ("parameters", None, "expected text from to_json"),
    ],
)
def test_tampered_json(field: str, value: Any, sentence: str) -> None:
    content = unseal("SeriesEncoder", SeriesEncoder().fit([[1.0, 2.0]]).to_json())
    with pytest.raises(ValueError, match=sentence):
        SeriesEncoder.from_json(seal("SeriesEncoder", {**content, field: value}))
    del content[field]
    with pytest.raises(ValueError, match=field):
        SeriesEncoder.from_json(seal("SeriesEncoder", content))


def test_damaged_json() -> None:
    written = SeriesEncoder().fit([[1.0, 2.0]]).to_json()
    with pytest.raises(ValueError, match="checksum"):
        SeriesEncoder.from_json(written.replace("1.5", "1.25"))
    with pytest.raises(ValueError, match="no JSON"):
        SeriesEncoder.from_json(written[:40])
    changed = json.loads(written)
    changed["scale"] = [INF]
    with pytest.raises(ValueError, match="checksum"):
        SeriesEncoder.from_json(json.dumps(changed))


def test_as_steps_names_what_it_was_given() -> None:
    with pytest.raises(ValueError, match=r"^line 3: expected numbers but got text$"):
        as_steps(["x"], "line 3")
    assert as_steps([None, 2], "line 3").tolist() == [[pytest.approx(NAN, nan_ok=True)], [2]]

"""The intervals of a report: against published values, scipy, resampled examples, and how often they hold the truth."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

np = pytest.importorskip("numpy")
metrics = pytest.importorskip("sklearn.metrics")
stats = pytest.importorskip("scipy.stats")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import seqcls_fast as sf  # noqa: E402
from seqcls_fast.toolkit.card import model_card  # noqa: E402
from seqcls_fast.toolkit.evaluation import intervals as module  # noqa: E402
from seqcls_fast.toolkit.evaluation.evaluate import evaluate_predictions  # noqa: E402
from seqcls_fast.toolkit.evaluation.intervals import METHODS, added_up, intervals, wilson  # noqa: E402

Z = 1.959963984540054  # of 95 %


def predictions(confusion: Any) -> tuple[list[int], list[int]]:
    true, pred = np.nonzero(np.asarray(confusion))
    times = np.asarray(confusion)[true, pred]
    return np.repeat(true, times).tolist(), np.repeat(pred, times).tolist()


# -- Wilson's interval of a share


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [  # Newcombe, Statistics in Medicine 17 (1998), 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_values(hits: int, count: int, low: float, high: float) -> None:
    found = wilson(np.array(hits), np.array(count), 0.95)
    assert (round(float(found[0]), 4), round(float(found[1]), 4)) == (low, high)


@settings(max_examples=100, deadline=None)
@given(count=st.integers(1, 10**7), share=st.floats(0, 1), confidence=st.floats(0.01, 0.9999))
def test_scipy(count: int, share: float, confidence: float) -> None:
    hits = round(count * share)
    low, high = wilson(np.array(hits), np.array(count), confidence)
    assert 0 <= low <= hits / count <= high <= 1
    expected = stats.binomtest(hits, count).proportion_ci(confidence, method="wilson")
    assert (float(low), float(high)) == pytest.approx(tuple(expected), abs=1e-12)


def test_none_or_all_of_them() -> None:
    """By hand: n / (n + z^2) where all are right, z^2 / (n + z^2) where none is, and nothing is known of no example."""
    counts = np.array([1, 20, 10**9])
    low, high = wilson(counts, counts, 0.95)
    assert low == pytest.approx(counts / (counts + Z**2))
    assert high.tolist() == [1, 1, 1]
    low, high = wilson(0 * counts, counts, 0.95)
    assert high == pytest.approx(Z**2 / (counts + Z**2))
    assert low.tolist() == [0, 0, 0]
    assert [float(end) for end in wilson(np.array(0), np.array(0), 0.95)] == [0, 1]


def test_exact_coverage_of_20_examples() -> None:
    """The figures of docs/classifiers.md, from the binomial distribution itself."""
    hits, shares = np.arange(21), np.linspace(0.001, 0.999, 999)
    low, high = wilson(hits, np.full(21, 20), 0.95)
    coverage = [stats.binom.pmf(hits, 20, share)[(low <= share) & (share <= high)].sum() for share in shares]
    assert np.mean(coverage) == pytest.approx(0.953, abs=0.001)
    assert min(coverage) == pytest.approx(0.852, abs=0.001)
    assert 0.005 < min(shares[np.argmin(coverage)], 1 - shares[np.argmin(coverage)]) < 0.015


# -- averages over classes


def test_published_difference_of_shares() -> None:
    """56 of 70 and 48 of 80, by method 10 of pages 873-890 there: (a - b + 1) / 2 is the mean of a and 1 - b."""
    hits, counts = np.array([56, 80 - 48]), np.array([70, 80])
    low, high = added_up(hits / counts, *wilson(hits, counts, 0.95))
    assert (round(2 * low - 1, 4), round(2 * high - 1, 4)) == (0.0524, 0.3339)


def test_one_class_has_the_interval_of_its_recall() -> None:
    report = evaluate_predictions(["a"] * 30, ["a"] * 29 + ["b"])
    assert report.intervals["accuracy"] == pytest.approx(report.per_class["a"].intervals["recall"])
    low, high = report.intervals["balanced_accuracy"]
    assert low <= report.intervals["accuracy"][0]
    assert high >= report.intervals["accuracy"][1]


def test_bootstrap_is_that_of_resampled_examples() -> None:
    rng = np.random.default_rng(1)
    true = rng.integers(0, 3, 150)
    pred = np.where(rng.random(150) < 0.5, true, rng.integers(0, 3, 150))
    pred[:50] = 0  # makes precision differ from recall
    confusion = metrics.confusion_matrix(true, pred)
    drawn = module._bootstrap(confusion, 4000, 0.95, 0)
    scorers = {
        "accuracy": metrics.accuracy_score,
        "balanced_accuracy": metrics.balanced_accuracy_score,
        "macro_f1": lambda t, p: metrics.f1_score(t, p, average="macro"),
    }
    found: dict[str, list[float]] = {name: [] for name in scorers}
    for _ in range(600):
        rows = rng.integers(0, 150, 150)
        for name, scorer in scorers.items():
            found[name].append(scorer(true[rows], pred[rows]))
    report = evaluate_predictions(true, pred, bootstrap=4000)
    assert report.intervals.keys() == drawn.keys() == scorers.keys()
    for name, values in found.items():
        spread = float(np.std(values))
        assert drawn[name] == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.4 * spread)
        # with some errors in every class all intervals agree about
        assert report.intervals[name] == pytest.approx(drawn[name], abs=0.5 * spread)


def test_bootstrap_in_blocks() -> None:
    """400 classes have thousands of cells, so the resamples are drawn in several goes, and all of them count."""
    rng = np.random.default_rng(2)
    true = rng.integers(0, 400, 5000)
    pred = np.where(rng.random(5000) < 0.4, true, rng.integers(0, 400, 5000))
    confusion = metrics.confusion_matrix(true, pred, labels=range(400))
    accuracy = confusion.trace() / 5000
    low, high = module._bootstrap(confusion, 1000, 0.95, 0)["accuracy"]
    assert low < accuracy < high
    assert high - low == pytest.approx(2 * Z * math.sqrt(accuracy * (1 - accuracy) / 5000), rel=0.15)


def test_seed_and_confidence() -> None:
    examples = predictions([[450, 50], [40, 460]])
    first = evaluate_predictions(*examples)
    assert evaluate_predictions(*examples).intervals == first.intervals
    assert evaluate_predictions(*examples, seed=1).intervals != first.intervals
    narrow = evaluate_predictions(*examples, confidence=0.5)
    for wide_ones, narrow_ones in (
        (first.intervals, narrow.intervals),
        *((first.per_class[k].intervals, narrow.per_class[k].intervals) for k in (0, 1)),
    ):
        assert wide_ones.keys() == narrow_ones.keys()
        for name, (low, high) in wide_ones.items():
            assert low < narrow_ones[name][0] < narrow_ones[name][1] < high
    none = evaluate_predictions(*examples, bootstrap=0)
    assert none.intervals == none.per_class[0].intervals == none.to_dict()["interval_methods"] == {}
    assert "interval" not in str(none)


# -- never a point


@settings(max_examples=60, deadline=None)
@given(
    cells=st.lists(st.lists(st.integers(0, 12), min_size=3, max_size=3), min_size=3, max_size=3),
    perfect=st.booleans(),
    resamples=st.sampled_from([1, 50]),
)
def test_every_interval_holds_its_metric_and_more(cells: list[list[int]], perfect: bool, resamples: int) -> None:
    confusion = np.array(cells) * (np.eye(3, dtype=np.int64) if perfect else 1)
    if not confusion.sum():
        return
    report = evaluate_predictions(*predictions(confusion), labels=range(3), bootstrap=resamples)
    values = {"accuracy": report.accuracy, "balanced_accuracy": report.balanced_accuracy, "macro_f1": report.macro.f1}
    pairs = [(values[name], interval) for name, interval in report.intervals.items()]
    for k, scores in report.per_class.items():
        pairs += [(getattr(scores, name), interval) for name, interval in scores.intervals.items()]
        assert ("recall" in scores.intervals) == (confusion[k].sum() > 0)
        assert ("precision" in scores.intervals) == (confusion[:, k].sum() > 0)
        assert ("f1" in scores.intervals) == (confusion[k].sum() + confusion[:, k].sum() > 0)
    for value, (low, high) in pairs:
        assert 0 <= low <= value + 1e-12
        assert value - 1e-12 <= high <= 1
        assert high - low > 0.02  # at most 108 examples


def test_scores_of_a_class_by_hand() -> None:
    """10 of 12 found, 15 predicted: recall is 10 of 12, precision 10 of 15, and F1 2 s / (1 + s) with s = 10 of 17."""
    report = evaluate_predictions(*predictions([[10, 2], [5, 83]]))
    for name, count in (("recall", 12), ("precision", 15), ("f1", 17)):
        ends = stats.binomtest(10, count).proportion_ci(0.95, method="wilson")
        expected = [2 * end / (1 + end) for end in ends] if name == "f1" else list(ends)
        assert report.per_class[0].intervals[name] == pytest.approx(expected)


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("size", [1, 5, 20])
def test_a_perfect_class_is_not_certain_beside_one_with_errors(size: int, side: int) -> None:
    """The bootstrap knows nothing of what the next example of the perfect class would be."""
    confusion = np.array([[size, 0], [0, 0]])
    confusion[1] = [50, 450]
    found = intervals(confusion[::-1, ::-1] if side else confusion, 1000, 0.95, 0).overall["balanced_accuracy"]
    worst = 1 - size / (size + Z**2)  # how far the recall of the perfect class may be below 1
    assert found[0] < 0.95 - worst / 2 + 1e-9


# -- how often the truth is inside


SHAPES = {
    "two classes of 10": ([[0.465, 0.035], [0.035, 0.465]], 20),
    "two classes of 20, hardly an error": ([[0.495, 0.005], [0.005, 0.495]], 40),
    "two classes of 50": ([[0.45, 0.05], [0.05, 0.45]], 100),
    "a rare class": ([[0.94, 0.01], [0.005, 0.045]], 100),
    "three classes, one of them rare": ([[0.45, 0.05, 0], [0.05, 0.43, 0], [0.0005, 0.0005, 0.019]], 300),
    "ten classes of 10": ((np.eye(10) * 0.98 + (1 - np.eye(10)) * 0.02 / 9) / 10, 100),
}


@pytest.mark.parametrize("name", SHAPES)
def test_coverage(name: str) -> None:
    """Of 400 draws of test data at least 92 % have the true value in an interval of 95 % (with the bootstrap alone: 32
    to 45 % for balanced accuracy where errors are rare, 38 % with a rare class)."""
    shares, size = np.asarray(SHAPES[name][0]), SHAPES[name][1]
    shares = shares / shares.sum()
    support, predicted, hits = shares.sum(1), shares.sum(0), shares.diagonal()
    truth = {
        "accuracy": hits.sum(),
        "balanced_accuracy": (hits / support).mean(),
        "macro_f1": (2 * hits / (support + predicted)).mean(),
    }
    rng = np.random.default_rng(7)
    inside = dict.fromkeys(truth, 0)
    for draw in range(400):
        confusion = rng.multinomial(size, shares.ravel()).reshape(shares.shape)
        found = intervals(confusion, 200, 0.95, draw).overall
        for each, value in truth.items():
            inside[each] += found[each][0] <= value <= found[each][1]
    assert all(count >= 0.92 * 400 for count in inside.values()), inside


# -- wherever they are shown


def test_a_perfect_score_in_every_form() -> None:
    report = evaluate_predictions(["a", "b"] * 10, ["a", "b"] * 10, [[1, 0], [0, 1]] * 10)
    text = str(report)
    assert re.search(r"^accuracy +1\.000 \(0\.839 to 1\.000\)$", text, re.MULTILINE)
    assert re.search(r"^a +1\.000 +1\.000 \(0\.722 to 1\.000\) +1\.000 +10$", text, re.MULTILINE)
    assert "(1.000 to 1.000)" not in text
    assert "95 % intervals are Wilson's" in text
    found = report.to_dict()
    assert found["intervals"]["accuracy"] == pytest.approx([20 / (20 + Z**2), 1])
    assert found["per_class"]["b"]["intervals"]["recall"] == pytest.approx([10 / (10 + Z**2), 1])
    assert found["interval_methods"] == METHODS
    assert METHODS["accuracy"] == METHODS["recall"] == "wilson"
    assert METHODS["macro_f1"].startswith("bootstrap")
    pytest.importorskip("matplotlib")
    page = report.to_html()
    assert "<dt>accuracy</dt><dd>1.000<small>0.839 to 1.000</small></dd>" in page
    assert page.count("<td>1.000<small>0.722 to 1.000</small></td>") == 4  # precision and recall of both classes
    assert "1.000 to 1.000" not in page
    assert "95\u00a0% intervals are Wilson&#x27;s" in page or "95\u00a0% intervals are Wilson's" in page


def test_a_perfect_score_on_the_card() -> None:
    clf = sf.TextClassifier(hidden_size=8, epochs=8, seed=0, verbose=False)
    clf.fit(
        ["good film", "bad story"] * 30,
        ["pos", "neg"] * 30,
        validation=(["a good film", "a bad story"] * 10, ["pos", "neg"] * 10),
    )
    assert clf.validation_report_["accuracy"] == 1
    card = model_card(clf.fitted_, type(clf))
    assert "| accuracy | 1.0000 (0.8389 to 1.0000) |" in card
    assert "| `neg` | 1.0000 (0.7225 to 1.0000) | 1.0000 (0.7225 to 1.0000) | 1.0000 (0.8389 to 1.0000) | 10 |" in card
    assert "(1.0000 to 1.0000)" not in card
    assert "The 95 % intervals are Wilson's" in card
    report = clf.validation_report_
    del report["interval_methods"]  # as in a model that was saved before they were written down
    for scores in report["per_class"].values():
        del scores["intervals"]
    card = model_card(clf.fitted_, type(clf))
    assert "| `neg` | 1.0000 | 1.0000 | 1.0000 | 10 |" in card
    assert "Wilson" not in card

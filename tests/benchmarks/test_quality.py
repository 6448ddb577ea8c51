"""The question of quality on a tiny set with made-up classifiers: its checks, figures, files, and the page."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss

from benchmarks import __main__ as program
from benchmarks import quality_peers, quality_report, quality_rows, quality_series, quality_tasks, report, rows
from benchmarks.quality_peers import Engine
from benchmarks.quality_rows import Loaded, Score, Spread
from benchmarks.quality_sets import Row, TextSet
from benchmarks.quality_tasks import Task
from benchmarks.questions import quality

LABELS = ["a", "b", "c"] * 20
TASK = Task("tiny", "text", "digest", ([f"text {k}" for k in range(60)], LABELS), (["text"] * 9, ["a", "b", "c"] * 3))


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second of each measurement, which no test needs."""
    monkeypatch.setattr(quality.gc, "collect", lambda: 0)


class Constant:
    """Says the same of every row: the probabilities, or the first class."""

    def __init__(self, seed: int, probabilities: list[float] | None = None) -> None:
        self.seed, self.row = seed, probabilities
        if probabilities is not None:
            self.predict_proba = lambda X: np.array([self.row] * len(X))

    def fit(self, X: Any, y: Any) -> Constant:
        self.classes_ = np.unique(y)
        return self

    def predict(self, X: Any) -> Any:
        return np.repeat(self.classes_[:1], len(X))


def engine(name: str = "peer", make: Callable[[int], Any] = Constant, **more: Any) -> Engine:
    return Engine(name, "text", make, **{"packages": ("sklearn",), **more})


def score(name: str = "tiny", engine: str = "ours", seed: int = 0, **more: Any) -> Score:
    found = {
        "accuracy": 0.5, "f1": 0.4, "log_loss": 1.0, "calibration": 0.1, "fit": 1.0, "predict": 0.1, "one": 1e-3,
        "busy": False, "kind": "text", "digest": "d", "train": 60, "test": 9, "classes": 3, "version": "v",
    }  # fmt: skip
    return Score(set=name, engine=engine, seed=seed, **(found | more))


# -- figures ----------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4) / 2, 500)
    probabilities[:, 3] *= 0.01  # a class that is hardly ever predicted
    probabilities /= probabilities.sum(1, keepdims=True)
    classes, labels = list("abcd"), [str(label) for label in rng.choice(list("abc"), 500)]
    accuracy, f1, loss, calibration = quality.figures(probabilities, None, classes, labels)
    guesses = [classes[k] for k in probabilities.argmax(1)]
    assert accuracy == pytest.approx(np.mean([a == b for a, b in zip(guesses, labels, strict=True)]))
    assert f1 == pytest.approx(f1_score(labels, guesses, average="macro"))
    assert loss == pytest.approx(log_loss(labels, probabilities, labels=classes), rel=1e-3)
    assert calibration is not None
    assert calibration > 0.1
    assert quality.figures(None, guesses, classes, labels) == (accuracy, f1, None, None)


def test_calibration() -> None:
    """Of predictions with 0.75 in which 3 of 4 are right, nothing is off; with 0.95 it is 0.2."""
    labels = ["a", "a", "a", "b"] * 5
    for sure, expected in ((0.75, 0.0), (0.95, 0.2)):
        found = quality.figures(np.array([[sure, 1 - sure]] * 20), None, ["a", "b"], labels)
        assert found[3] == pytest.approx(expected)
    assert quality.figures(np.array([[1.0, 0.0]]), None, ["a", "b"], ["a"])[2:] == (0.0, 0.0)


# -- checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (Row("another text", "x", "s1"), "the source 's1' is in two parts"),
        (Row("a text", "x", "s2"), "the text 'a text' is in two parts"),
        (Row("another text", "x", "s2"), "the test has 1 rows, which are too few"),
    ],
)
def test_sets_that_are_refused(second: Row, message: str) -> None:
    with pytest.raises(RuntimeError, match=f"tiny: {message}"):
        quality_tasks.check_parts(TextSet("tiny", {"train": [Row("a text", "x", "s1")], "test": [second]}))


def test_a_label_of_the_test_alone_is_refused() -> None:
    with pytest.raises(RuntimeError, match="tiny: the test has labels that training has not: d"):
        quality_tasks.checked(dataclasses.replace(TASK, test=(["t"], ["d"])))


class Swaps(Constant):
    def fit(self, X: Any, y: Any) -> Constant:
        X[0], X[1] = X[1], X[0]
        return super().fit(X, y)


class Forgets(Constant):
    def fit(self, X: Any, y: Any) -> Constant:
        return super().fit(X, [label for label in y if label != "c"])


class Short(Constant):
    def predict(self, X: Any) -> Any:
        return super().predict(X)[1:]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Swaps, "it changed the rows that it was given"),
        (Forgets, "it knows other classes than those of the training: a, b"),
        (Short, r"expected an answer of shape \(9,\) but got \(8,\)"),
        (lambda seed: Constant(seed, [0.5, 0.2, 0.2]), "expected probabilities that add up to 1"),
        (lambda seed: Constant(seed, [1.5, -0.7, 0.2]), "expected probabilities that add up to 1"),
    ],
)
def test_answers_that_are_refused(make: Any, message: str) -> None:
    task = dataclasses.replace(TASK, train=(list(TASK.train[0]), LABELS))
    with pytest.raises(RuntimeError, match=message):
        quality.measured(task, engine(make=make), 0)


def test_one_measurement() -> None:
    found = quality.measured(TASK, engine(make=lambda seed: Constant(seed, [0.6, 0.2, 0.2])), 2)
    assert (found.set, found.train, found.test, found.classes, found.seed) == ("tiny", 60, 9, 3, 2)
    assert found.accuracy == pytest.approx(1 / 3)
    assert found.log_loss == pytest.approx(-(np.log(0.6) + 2 * np.log(0.2)) / 3)
    assert "scikit-learn " in found.version
    assert quality.measured(TASK, engine(), 0).log_loss is None


# -- the run ----------------------------------------------------------------------------------------------------------


def test_what_is_known_is_not_measured_again(tmp_path: Path) -> None:
    engines = [
        engine("ours", seeds=3),
        engine(),
        engine("absent", packages=("no_such_package",)),
        engine("small", most=0.01),
    ]
    planned = quality.plan([TASK], engines, 2, set())
    assert [(e.name, seed) for _, e, seed in planned] == [("ours", 0), ("ours", 1), ("peer", 0)]
    file = tmp_path / "quality-cpu.json"
    with file.open("w") as output:
        rows.write_run({"time": "1"}, output)
        for found in quality.measure([TASK], planned[:2], []):
            assert isinstance(found, Score)
            quality_rows.write(found, output)
        output.write('{"score": {"set": "ti')  # cut off
    known = quality_rows.load(file)
    assert known.run == {"time": "1"}
    assert [found.key for found in known.scores] == [("tiny", "ours", 0), ("tiny", "ours", 1)]
    left = quality.plan([TASK], engines, 2, {found.state for found in known.scores})
    assert [(e.name, seed) for _, e, seed in left] == [("peer", 0)]
    other = dataclasses.replace(TASK, digest="of other rows")
    assert len(quality.plan([other], engines, 2, {found.state for found in known.scores})) == 3


def test_the_version_of_ours_is_that_of_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "csrc_hash", lambda root: "of csrc")
    (tmp_path / "seqcls_fast").mkdir()
    (tmp_path / "seqcls_fast" / "m.py").write_text("x = 1\n")
    before = quality_rows.our_version(tmp_path)
    assert quality_rows.our_version(tmp_path) == before
    (tmp_path / "seqcls_fast" / "m.py").write_text("x = 2\n")
    assert quality_rows.our_version(tmp_path) != before


def test_an_engine_that_fails_is_named_and_not_asked_again() -> None:
    def fails(seed: int) -> Any:
        raise ValueError("no such thing\nat all")

    planned = quality.plan([TASK], [engine("other", fails, seeds=3), engine()], 3, set())
    first, second = quality.measure([TASK], planned, [])
    assert first == "tiny: other failed: ValueError: no such thing\nat all"
    assert isinstance(second, Score)


def test_forecast() -> None:
    planned = quality.plan([TASK], [engine(seconds=10.0), engine("other", seconds=10.0)], 1, set())
    assert quality.forecast(planned, []) == pytest.approx(2 * 0.6)
    assert quality.forecast(planned, [score(engine="other", fit=5.0, predict=1.0)]) == pytest.approx(0.6 + 6)


def test_a_small_task_has_labels_that_both_parts_know() -> None:
    sorted_by_class = dataclasses.replace(TASK, train=(TASK.train[0], sorted(LABELS)))
    small = quality_tasks.smaller(sorted_by_class, 6)
    assert len(small.train[1]) == len(small.test[1]) == 6
    assert set(small.test[1]) <= set(small.train[1]) == {"a", "b", "c"}
    assert small.digest != TASK.digest


def test_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def absent(name: str) -> Task:
        raise RuntimeError(f"{name}: no such texts here")

    monkeypatch.setattr(quality, "BUILDERS", {"tiny": lambda name: TASK, "gone": absent})
    monkeypatch.setattr(quality_peers, "ENGINES", (engine("ours"), engine("none", packages=("no_such_package",))))
    monkeypatch.setattr(program, "bind", lambda threads: None)
    monkeypatch.setattr(quality.torch, "set_num_threads", lambda threads: None)
    file = tmp_path / "quality-cpu.json"
    assert program.main(["quality", "--json", str(file)]) == 0
    out = capsys.readouterr().out
    assert "absent: gone: no such texts here" in out
    assert "absent: text: none: no_such_package is not installed" in out
    assert "1 rows to measure" in out
    assert program.main(["quality", "--json", str(file), "--forecast"]) == 0
    assert "0 rows to measure" in capsys.readouterr().out
    loaded = quality_rows.load(file)
    assert len(loaded.scores) == 1
    assert loaded.run["absent"]["gone"] == "no such texts here"
    with pytest.raises(SystemExit, match="--sets: expected names out of tiny, gone but got other"):
        program.main(["quality", "--sets", "other"])


# -- series -----------------------------------------------------------------------------------------------------------


def test_a_file_of_series(tmp_path: Path) -> None:
    file = tmp_path / "s.ts"
    file.write_text("# about\n@problemName s\n@data\n1,2,3:4,5,6:one\n\n7,8:9,10:two\n")
    series, labels = quality_series.read_ts(file)
    assert labels == ["one", "two"]
    assert series[0].tolist() == [[1, 4], [2, 5], [3, 6]]
    assert series[1].tolist() == [[7, 9], [8, 10]]


@pytest.mark.parametrize("name", [*quality_series.MADE, "digits"])
def test_series_are_the_same_every_time(name: str) -> None:
    first, second = (quality_tasks.series_task(name) for _ in range(2))
    assert first.digest == second.digest
    assert set(first.test[1]) == set(first.train[1])
    assert not {x.tobytes() for x in first.train[0]} & {x.tobytes() for x in first.test[0]}
    assert all(x.dtype == np.float32 and x.ndim == 2 for x in first.train[0])


def test_the_made_tasks_ask_what_they_say() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        x, label = quality_series.adding(rng, False)
        assert x[:, 1].sum() == 2
        assert label == ("above" if x[x[:, 1] == 1, 0].sum() > 1 else "below")
        x, label = quality_series.copying(rng, False)
        assert label == f"symbol {x[0].argmax()}"
        for testing, allowed in ((False, range(2, 13)), (True, range(13, 25))):
            x, label = quality_series.parity(rng, testing)
            assert len(x) in allowed
            assert label == ("odd" if x.sum() % 2 else "even")


def test_padding() -> None:
    series = [np.array([[1, 2]]), np.array([[3, 4], [5, 6], [7, 8]])]
    assert quality_peers.padded(series, 2).tolist() == [[[1, 0], [2, 0]], [[3, 5], [4, 6]]]


def test_aeon_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality_series.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="GunPoint: aeon, which carries it, is not installed"):
        quality_series.build("GunPoint")


# -- the page ---------------------------------------------------------------------------------------------------------

RUN = {
    "time": "2026-01-01T00:00:00+00:00", "machine": "A CPU", "python": "3.11", "torch": "2.13",
    "absent": {"debian-long": "too few texts"}, "engines": {"text: ours": "`C()`", "text: LinearSVC tuned": "words"},
    "most": {}, "made": [], "sets": {"debian-sections": "lines", "tiny": "few"}, "chosen_on": ["debian-sections"],
}  # fmt: skip


def text_of(*scores: Score, version: str = "v") -> str:
    return "\n".join(quality_report.page(Loaded(list(scores), RUN), version))


def test_every_loss_is_bold_and_in_words() -> None:
    peer = {"engine": "LinearSVC tuned", "version": "scikit-learn 9", "log_loss": None, "calibration": None}
    text = text_of(
        score(accuracy=0.70, f1=0.6), score(seed=1, accuracy=0.72, f1=0.6),
        score(**peer, accuracy=0.75, f1=0.5, fit=0.5),
        score("debian-sections", fit=26.0, accuracy=0.8), score("debian-sections", **peer, accuracy=0.7, fit=0.5),
    )  # fmt: skip
    assert "- **tiny**: accuracy 71.0 (70.0 to 72.0), behind LinearSVC tuned 75.0." in text
    assert "| tiny | 71.0 (70.0 to 72.0) | **75.0** |" in text
    assert "| debian-sections | 80.0 | 70.0 |" in text
    assert "- **debian-sections**" not in text
    assert "**training** takes ours more CPU time on the mean than LinearSVC tuned." in text
    assert "on every set | **on 1 of 2** | tiny: 3.7 points short |" in text
    assert "accuracy above that of LinearSVC tuned on the mean | yes | the mean: 3.0 points to spare |" in text
    assert "in at most 25 s | **no** | debian-sections: 1.0 CPU seconds short |" in text
    assert "series: within 1 point of MiniRocket on the mean | not measured | |" in text
    assert "- debian-long: too few texts." in text
    assert "text: LinearSVC tuned: scikit-learn 9" in text
    assert "(defaults were chosen on its part dev)" in text
    assert "earlier version" not in text
    assert "earlier version" in text_of(score(), version="another")


def test_the_mean_is_beside_that_of_ours_on_the_same_sets() -> None:
    some = [score(accuracy=0.5), score("debian-sections", accuracy=0.7), score(engine="LinearSVC tuned", accuracy=0.4)]
    assert "| mean | 60.0 | 40.0 |\n| ours on the same sets |  | 50.0 |" in text_of(*some)
    all_of_them = text_of(*some[::2])
    assert "| mean | 50.0 | 40.0 |" in all_of_them
    assert "on the same sets" not in all_of_them


def test_peers_of_other_rows_do_not_count() -> None:
    text = text_of(score(), score(engine="LinearSVC tuned", digest="other", accuracy=0.9))
    assert "90.0" not in text


def test_a_set_that_is_too_easy_is_named() -> None:
    text = text_of(score(), score(engine="LinearSVC tuned", accuracy=0.99))
    assert "**tiny is too easy to tell classifiers apart:** LinearSVC tuned is right in 99.0 %." in text


def test_the_report_writes_the_page(tmp_path: Path) -> None:
    speed = {"time": "1", "machine": "A CPU", "threads": 1, "torch": "2", "python": "3", "peers": {}, "limits": []}
    speed |= {"seqcls_fast": "0", "impl": "avx2", "commit": "abc", "csrc": "c"}
    with (tmp_path / "a-cpu.json").open("w") as file:
        rows.write_run(speed, file)
        rows.write(rows.Row("layers", "inference", "GRU (1, 2, 3, 4)", 1, {"ours": rows.Side([1.0] * 5)}), file)
    with (tmp_path / "quality-a-cpu.json").open("w") as file:
        rows.write_run(RUN, file)
        quality_rows.write(score(), file)
        file.write(json.dumps({"score": dataclasses.asdict(score(engine="LinearSVC tuned"))}) + "\n")
    (tmp_path / "performance.md").write_text(f"{report.BEGIN}\n{report.END}\n")
    (tmp_path / "quality.md").write_text(f"before\n{quality_report.BEGIN}\nold\n{quality_report.END}\nafter\n")
    report.main(["--results", str(tmp_path), "--docs", str(tmp_path)])
    text = (tmp_path / "quality.md").read_text()
    assert text.startswith(f"before\n{quality_report.BEGIN}\n**A CPU**, 2026-01-01")
    assert text.endswith(f"{quality_report.END}\nafter\n")
    assert "old" not in text.replace("threshold", "")
    assert not (tmp_path / "machines" / "quality-a-cpu.md").exists()


def test_spread() -> None:
    assert Spread.of([1.0, 3.0, 2.0]) == (2.0, 1.0, 3.0)

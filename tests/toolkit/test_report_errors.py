"""What a report shows of single examples: the surest errors and the most confused classes; and what was evaluated."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")

import seqcls_fast as sf
from seqcls_fast import evaluate_predictions
from seqcls_fast.toolkit.evaluation.mistakes import described
from seqcls_fast.toolkit.stream import Stream
from support.corpora import sentences, waves

TRUE = ["a", "a", "b", "b", "c", "c"]
PRED = ["a", "b", "a", "b", "a", "a"]
PROBA = [[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.5, 0.1, 0.4], [0.9, 0.0, 0.1]]
TEXTS = [f"text {k}" for k in range(6)]


def report_of(**options: object) -> sf.Report:
    return evaluate_predictions(TRUE, PRED, PROBA, **options)  # type: ignore[arg-type]


def test_by_hand() -> None:
    report = report_of(train_texts=["other"], test_texts=TEXTS)
    assert [(e.index, e.true, e.predicted, e.probability, e.example) for e in report.errors] == [
        (5, "c", "a", 0.9, "text 5"), (1, "a", "b", 0.7, "text 1"), (2, "b", "a", 0.6, "text 2"),
        (4, "c", "a", 0.5, "text 4"),
    ]  # fmt: skip
    pairs = [(p.true, p.predicted, p.count, p.share, [e.index for e in p.examples]) for p in report.confused]
    assert pairs == [("c", "a", 2, 1.0, [5, 4]), ("a", "b", 1, 0.5, [1]), ("b", "a", 1, 0.5, [2])]


def test_what_is_not_known_is_left_out() -> None:
    assert {each.example for each in report_of().errors} == {None}
    bare = evaluate_predictions(TRUE, PRED)
    assert bare.errors == []  # nothing says which is the surest
    assert [e.probability for e in bare.confused[0].examples] == [None, None]
    right = evaluate_predictions(TRUE, TRUE)
    assert (right.errors, right.confused, right.about) == ([], [], {})
    assert not {"most confused", "confident errors"} & {line.partition(":")[0] for line in str(right).splitlines()}


def test_no_more_than_a_page() -> None:
    rng = np.random.default_rng(0)
    true, pred = rng.integers(0, 9, (2, 500))
    proba = np.full((500, 9), 0.05)
    proba[np.arange(500), pred] = 0.6
    report = evaluate_predictions(true, pred, proba, labels=range(9))
    assert (len(report.errors), len(report.confused)) == (10, 5)
    assert all(len(pair.examples) <= 2 for pair in report.confused)
    counts = [pair.count for pair in report.confused]
    off = report.confusion - np.diag(report.confusion.diagonal())
    assert counts == sorted(off.ravel().tolist(), reverse=True)[:5]


def test_in_words_numbers_and_a_page() -> None:
    report = report_of(train_texts=["other"], test_texts=[*TEXTS[:5], "<b>\x1b[2J" + "long " * 100])
    text = str(report)
    assert "\nmost confused:\n  c taken for a: 2 times, 100.0 % of c\n    #5  <b>\\x1b[2Jlong long" in text
    assert "\n  0.700  b for a  #1  text 1\n" in text
    assert max(len(line) for line in text.splitlines() if "#" in line) <= 110
    found = json.loads(json.dumps(report.to_dict()))
    assert found["most_confident_errors"][1] == {
        "index": 1, "true": "a", "predicted": "b", "probability": 0.7, "example": "text 1"
    }  # fmt: skip
    assert found["most_confused"][0]["examples"][1]["example"] == "text 4"
    pytest.importorskip("matplotlib")
    page = report.to_html()
    assert "<h2>Most confident errors</h2>" in page
    assert "<h2>Most confused classes</h2>" in page
    assert "&lt;b&gt;\\x1b[2Jlong" in page
    assert "text 4" in page


def test_series_are_described() -> None:
    assert described(np.arange(6.0).reshape(3, 2)) == "3 steps of 2 features: 0.00 1.00 2.00 3.00 4.00 5.00"
    assert described(np.ones(9)) == "9 steps of 1 feature: 1.00 1.00 1.00 1.00 1.00 1.00 ..."
    assert described(np.ones((1, 1))) == "1 step of 1 feature: 1.00"


def test_what_was_evaluated(tmp_path: Path) -> None:
    X, y = sentences()
    model = sf.TextClassifier(epochs=2, hidden_size=8, verbose=False).fit(X, y, validation=0.2)
    report = model.evaluate(X, y)
    assert list(report.about) == ["model", "training", "settings", "date", "versions", "data"]
    assert report.about["model"].startswith(
        "TextClassifier: gru, one layer of 8 units, in both directions, max pooling, "
    )
    assert report.about["training"].startswith("2 epochs")
    assert report.about["training"].endswith(f"on 96 examples (digest {model.data_['digest']})")
    assert report.about["settings"] == "epochs=2, hidden_size=8, verbose=False"
    assert abs(datetime.now().astimezone() - datetime.fromisoformat(report.about["date"])).total_seconds() < 600
    assert report.about["data"] == "120 examples"
    assert f"\nmodel: {report.about['model']}\n" in str(report)
    assert report.to_dict()["about"] == report.about
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"{x},{label}\n" for x, label in zip(X, y, strict=True)))
    assert model.evaluate(path).about["data"] == f"120 examples of {path}"
    assert model.evaluate(Stream(path)).about["data"] == f"120 examples of Stream({str(path)!r})"
    assert [error.example for error in model.evaluate(Stream(path)).errors] == [None] * len(report.errors)


def test_a_saved_model_holds_no_examples(tmp_path: Path) -> None:
    X, y = waves()
    model = sf.SeriesClassifier(hidden_size=4, epochs=1, verbose=False).fit(X, y, validation=0.5)
    model.save(tmp_path / "m")
    report = json.loads((tmp_path / "m" / "config.json").read_text())["validation_report"]
    assert not {"most_confident_errors", "most_confused", "about"} & report.keys()
    again = sf.SeriesClassifier.load(tmp_path / "m").evaluate(X, y)
    assert again.about["settings"] == "epochs=1, hidden_size=4, verbose=False"
    for error in again.errors:
        assert error.example == described(X[error.index])

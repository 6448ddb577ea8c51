"""predict_proba gives a sequence the same probabilities, bit for bit, alone, in batches, in any order, and streamed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

import seqcls_fast as sf
from seqcls_fast import _ext
from seqcls_fast.classifier import CELLS, POOLINGS
from seqcls_fast.toolkit.stream import Stream
from support.corpora import sentences, waves

pytestmark = pytest.mark.skipif(_ext.C is None, reason=f"the compiled extension is missing: {_ext.why_missing}")

MODELS = [(p, c, (i + j) % 2 == 0) for i, p in enumerate(POOLINGS) for j, c in enumerate(CELLS)]
COUNT = 300  # more than one batch of prediction, so that there is a table of projections too


def texts() -> list[str]:
    found, _ = sentences(7, COUNT)
    found[:3] = ["", "a word that nobody knows", " ".join(found)]  # of no step, unknown, and of 1500 steps
    return found


def series() -> list[np.ndarray]:
    found, _ = waves(7, COUNT)
    found[:2] = [np.ones((1, 2)), np.concatenate(found[:30])]
    return found


def fit(kind: str, pooling: str, cell: str, bidirectional: bool, **options: Any) -> Any:
    options = {"hidden_size": 33, "epochs": 1, "verbose": False} | options
    options |= {"pooling": pooling, "cell": cell, "bidirectional": bidirectional}
    if kind == "text":
        return sf.TextClassifier(embedding_dim=9, **options).fit(*sentences())
    return sf.SeriesClassifier(**options).fit(*waves())


def assert_same(found: np.ndarray, wanted: np.ndarray, what: object) -> None:
    differ = (found.view(np.int64) != wanted.view(np.int64)).any(1)
    assert not differ.any(), f"{what}: {differ.sum()} of {len(wanted)} rows have other bits"


@pytest.mark.parametrize("kind", ["text", "series"])
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize(("pooling", "cell", "bidirectional"), MODELS)
def test_alone_in_batches_and_in_another_order(
    pooling: str, cell: str, bidirectional: bool, amp: bool, kind: str
) -> None:
    model = fit(kind, pooling, cell, bidirectional, amp=amp)
    X: list[Any] = texts() if kind == "text" else series()
    whole = model.predict_proba(X)
    for row in (*range(20), COUNT - 1):
        assert_same(model.predict_proba([X[row]]), whole[row : row + 1], f"row {row} alone")
    for size in (2, 7, 200, 257):
        assert_same(model.predict_proba(X[:size]), whole[:size], f"{size} rows")
    order = np.random.default_rng(0).permutation(COUNT)
    assert_same(model.predict_proba([X[i] for i in order]), whole[order], "another order")
    torch.set_num_threads(2)
    assert_same(model.predict_proba(X), whole, "two threads")


def test_streamed_calibrated_and_traced(tmp_path: Path) -> None:
    model = fit("text", "attention", "gru", True)
    model.calibrate(*sentences(3))
    model.choose_threshold(*sentences(4), label="pos", recall=0.5)
    X = texts()[3:]
    whole, labels = model.predict_proba(X), model.predict(X)
    (tmp_path / "new.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in X), encoding="utf-8")
    assert_same(model.predict_proba(Stream(tmp_path, label=None)), whole, "streamed")
    model.save(tmp_path / "model")
    assert_same(sf.TextClassifier.load(tmp_path / "model").predict_proba(X[:5]), whole[:5], "loaded")
    for row in range(5):
        assert model.predict([X[row]])[0] == labels[row]
        trace = model.trace(X[row])
        assert_same(trace.probabilities[-1:].numpy(), whole[row : row + 1], "the trace's last prefix")
        stages = {stage.name: stage.values for stage in trace.stages}
        assert_same(stages["softmax"].numpy(), whole[row : row + 1], "the trace's stage")

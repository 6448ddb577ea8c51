"""`export` and `bench`: a saved model in other programs, and beside torch.nn."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from seqcls_fast import _ext
from seqcls_fast.classifier import CELLS, POOLINGS, SequenceClassifier
from seqcls_fast.cli import shared
from seqcls_fast.ops import available_impls
from seqcls_fast.toolkit import estimators, parameter_table, twin
from seqcls_fast.toolkit.twin import TorchTwin
from support.commands import refused, told


@pytest.mark.skipif(_ext.C is None, reason="exporting needs the compiled extension")
@pytest.mark.parametrize("kind", ["text", "series"])
@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
def test_export(
    made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str, kind: str
) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxscript")
        runtime = pytest.importorskip("onnxruntime")
    of_text = ("ngrams",) if kind == "text" else ()
    path, folder = tmp_path / f"m{suffix}", made.model if kind == "text" else made.series_model
    answer = json.loads(told(capsys, "export", folder, "--to", str(path), "--json"))
    model = getattr(estimators, parameter_table.ESTIMATORS[kind]).load(folder)
    assert answer["classes"] == model.classes_.tolist()
    data = ["a good film", "bad", "the plot of the film"] if kind == "text" else [np.ones((n, 2)) for n in (4, 1, 11)]
    x, lengths, wide = model.encoder_.encode(data).inputs([0, 1, 2])
    given = {} if wide is None else {"wide": (wide[0].long(), wide[1])}
    assert bool(given) == (kind == "text")
    if suffix == ".onnx":
        session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        extra = session.get_modelmeta().custom_metadata_map
        named = {
            "x": x,
            "lengths": lengths,
            **dict(zip(("wide_ids", "wide_weights"), given.get("wide", ()), strict=False)),
        }
        logits = torch.from_numpy(session.run(["logits"], {name: each.numpy() for name, each in named.items()})[0])
    else:
        files = {f"{name}.json": "" for name in ("classes", "temperature", "threshold", "about", *of_text)}
        logits = torch.export.load(path, extra_files=files).module()(x, lengths, **given)
        extra = {name.removesuffix(".json"): content for name, content in files.items()}
    assert json.loads(extra["classes"]) == answer["classes"]
    if of_text:
        assert json.loads(extra["ngrams"])["bits"] == model.encoder_.bits
    assert (json.loads(extra["temperature"]), json.loads(extra["threshold"])) == (1, None)
    assert json.loads(extra["about"])["model"] == model.fitted_.about["model"]
    np.testing.assert_allclose(logits.detach().double().softmax(1).numpy(), model.predict_proba(data), atol=1e-5)


def test_export_for_the_runtime(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from seqcls_fast.runtime import Model

    path, series = tmp_path / "m.sfm", [np.ones((n, 2)) for n in (4, 1, 11)]
    told(capsys, "export", made.series_model, "--out", str(path))
    expected = estimators.SeriesClassifier.load(made.series_model).predict_proba(series)
    assert Model.open(path, available_impls()[-1]).predict_proba(series).tobytes() == expected.tobytes()
    plain = {"convolutions": 0, "normalize": "data", "differences": False, "time": False}
    estimator = estimators.SeriesClassifier(hidden_size=4, epochs=1, **plain)
    estimator.fit([each + k for k in range(4) for each in series], [k % 2 for k in range(4) for _ in series])
    estimator.save(tmp_path / "model")
    told(capsys, "export", str(tmp_path / "model"), "--out", str(path))
    expected = estimator.predict_proba(series)
    found = Model.open(path, available_impls()[-1]).predict_proba(series)
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("cell", [name for name, cell in CELLS.items() if not cell.is_option])
def test_bench_compares_the_same_model(cell: str, pooling: str) -> None:
    options: dict[str, Any] = {"cell": cell, "pooling": pooling, "bidirectional": pooling != "mean", "num_layers": 2}
    model = SequenceClassifier(5, 6, 3, vocab_size=30, **options).eval()
    x, lengths, _ = shared.random_batch(model, 9, longest=40)
    with torch.no_grad():
        expected = model(x, lengths)
        torch.testing.assert_close(TorchTwin(model)(x, lengths), expected, rtol=1e-4, atol=1e-5)


def test_bench(made: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    for model in ([], [made.series_model]):
        answer = json.loads(told(capsys, "bench", *model, "--rounds", "1", "--rows", "4", "--threads", "1", "--json"))
        assert list(answer["seconds"]) == ["training step", "inference", "one row"]
        assert all(set(times) == {"seqcls_fast", "torch.nn"} for times in answer["seconds"].values())
    assert "torch.nn packed" in told(capsys, "bench", made.model, "--rounds", "1", "--rows", "4")


def test_bench_refuses_to_compare_different_models(
    made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Other(TorchTwin):
        def __init__(self, model: Any) -> None:
            super().__init__(model)
            with torch.no_grad():
                self.model.head.bias += torch.arange(model.num_classes)

    monkeypatch.setattr(twin, "TorchTwin", Other)
    assert "expected equal first losses" in refused(capsys, "bench", made.model, "--rounds", "1", "--rows", "4")

"""The machine of a text's n-grams: what it solves, how it is mixed with the network, and when there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")

from sklearn.svm import LinearSVC

import seqcls_fast as sf
from seqcls_fast import _ext
from seqcls_fast.toolkit.fit import Shared
from seqcls_fast.toolkit.stream import Stream
from seqcls_fast.toolkit.training import svm
from seqcls_fast.toolkit.training.prepare import FitData
from seqcls_fast.toolkit.training.ridge import log_losses
from seqcls_fast.toolkit.training.svm import Machine, SparseRows, fit_machine, mixing_of, suits
from support.corpora import sentences
from support.interruptions import Killed, kill_after

QUICK: dict[str, Any] = {"hidden_size": 8, "embedding_dim": 8, "epochs": 2, "baseline": False, "verbose": False}
X, Y = sentences(0, 240)
CLASSES, IDS = 3, 40


def rows_of(count: int, seed: int = 0) -> SparseRows:
    """Sparse rows of the size 1, some of them empty, whose class their features say in part."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, CLASSES, count)
    dense = (rng.random((count, IDS)) < 0.2) * rng.uniform(0.5, 2, (count, IDS))
    dense[:, :CLASSES] += 0.4 * (targets[:, None] == np.arange(CLASSES))
    dense[::17] = 0
    dense /= np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1e-9)
    owners, ids = np.nonzero(dense)
    starts = np.concatenate([[0], np.bincount(owners, minlength=count).cumsum()])
    weights = rng.choice([0.5, 1.0, 2.0], count).astype(np.float32)
    values = dense[owners, ids].astype(np.float32)
    return SparseRows(starts.astype(np.int64), ids.astype(np.int32), values, targets.astype(np.int64), weights)


def dense_of(rows: SparseRows) -> np.ndarray:
    found = np.zeros((len(rows), IDS))
    found[np.repeat(np.arange(len(rows)), np.diff(rows.starts)), rows.ids] = rows.values
    return found


@pytest.fixture(params=["extension", "numpy"])
def solver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either of the two that fit a machine; the numbers of passes and the tolerance are those of a full solution."""
    if request.param == "extension" and _ext.C is None:
        pytest.skip("the extension is not built")
    if request.param == "numpy":
        monkeypatch.setattr(svm, "C", None)
    monkeypatch.setattr(svm, "_PASSES", 1000)
    monkeypatch.setattr(svm, "_TOLERANCE", 1e-4)
    return str(request.param)


def test_as_liblinear(solver: str) -> None:
    rows = rows_of(120)
    found = fit_machine(rows, IDS, CLASSES, seed=0)
    other = LinearSVC(C=2.0, intercept_scaling=0.5, tol=1e-8, max_iter=100_000)
    other.fit(dense_of(rows), rows.targets, sample_weight=rows.weights)
    np.testing.assert_allclose(found.weights.T, other.coef_, atol=2e-3)
    np.testing.assert_allclose(found.bias, other.intercept_, atol=2e-3)


def test_the_slope_is_zero_at_the_solution(solver: str) -> None:
    """The derivative of |w|^2 / 2 + sum of cost * max(0, 1 - y (x w + b))^2, where b is a half of one more weight."""
    rows = rows_of(120, seed=1)
    found = fit_machine(rows, IDS, CLASSES, seed=0)
    x, signs = dense_of(rows), np.where(rows.targets[:, None] == np.arange(CLASSES), 1.0, -1.0)
    missed = np.maximum(0, 1 - signs * (x @ found.weights + found.bias))
    pull = 2 * 2.0 * rows.weights[:, None] * missed * signs
    np.testing.assert_allclose(found.weights, x.T @ pull, atol=2e-3)
    np.testing.assert_allclose(found.bias, 0.25 * pull.sum(0), atol=2e-3)


def test_a_row_counts_by_its_weight(solver: str) -> None:
    rows = rows_of(60)
    weights = np.ones(60, np.float32)
    weights[:10], weights[10:20] = 0, 2
    kept = np.concatenate([np.arange(10, 60), np.arange(10, 20)])
    other = rows.take(kept)
    found = fit_machine(SparseRows(*(rows.starts, rows.ids, rows.values, rows.targets, weights)), IDS, CLASSES, 0)
    expected = fit_machine(
        SparseRows(other.starts, other.ids, other.values, other.targets, np.ones(60, np.float32)), IDS, CLASSES, 0
    )
    np.testing.assert_allclose(found.weights, expected.weights, atol=2e-3)
    np.testing.assert_allclose(found.bias, expected.bias, atol=2e-3)


@pytest.mark.skipif(_ext.C is None, reason="the extension is not built")
def test_the_same_bits_whatever_the_threads() -> None:
    rows, found = rows_of(200), []
    before = torch.get_num_threads()
    for threads in (1, 4):
        torch.set_num_threads(threads)
        found.append(fit_machine(rows, IDS, CLASSES, seed=3))
    torch.set_num_threads(before)
    assert found[0].weights.tobytes() == found[1].weights.tobytes()
    assert found[0].bias.tobytes() == found[1].bias.tobytes()
    assert fit_machine(rows, IDS, CLASSES, seed=4).weights.tobytes() != found[0].weights.tobytes()


@pytest.mark.skipif(_ext.C is None, reason="the extension is not built")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"starts": [0, 2]}, "starts, costs, values: expected 3, 2 and 3 numbers but got 2, 2 and 3"),
        ({"starts": [0, 4, 3]}, "starts: expected rising numbers from 0 to 3"),
        ({"starts": [1, 2, 3]}, "starts: expected rising numbers from 0 to 3"),
        ({"ids": [0, 5, 1]}, "ids: expected numbers from 0 to below 5"),
        ({"ids": [0, -1, 1]}, "ids: expected numbers from 0 to below 5"),
        ({"targets": [0, 2]}, "targets: expected numbers from 0 to below 2"),
        ({"costs": [1, -1]}, "costs: expected finite numbers from 0 on"),
        ({"costs": [1, np.nan]}, "costs: expected finite numbers from 0 on"),
        ({"values": [1, np.inf, 1]}, "values: expected finite numbers"),
        ({"features": 1 << 41}, "features: expected at most 1099511627776 weights"),
    ],
)
def test_wrong_rows_are_refused(changes: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {
        "starts": [0, 2, 3], "ids": [0, 4, 1], "values": [1, 2, 3], "targets": [0, 1], "costs": [1, 1], "features": 5,
        "classes": 2, "passes": 1, "tolerance": 0.1, "seed": 0,
    } | changes  # fmt: skip
    kinds = {"starts": np.int64, "ids": np.int32, "values": np.float32, "targets": np.int64, "costs": np.float32}
    given |= {name: np.array(given[name], kind) for name, kind in kinds.items()}
    with pytest.raises(RuntimeError, match=words):
        _ext.C.linear_svm(**given)


def test_shares_follow_what_was_held_out() -> None:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 3, 300)
    says, noise = (targets[:, None] == np.arange(3)) * 1.0 + rng.normal(0, 0.5, (300, 3)), rng.normal(size=(300, 3))
    one, other = mixing_of(noise, 0.1 * says, targets), mixing_of(10 * says, noise, targets)
    assert abs(one.network) < 0.1 < 10 < one.machine
    assert abs(other.machine) < 0.1 * (10 * other.network)
    more = (targets[:, None] == np.arange(3)) * 1.0 + rng.normal(0, 0.5, (300, 3))
    both = mixing_of(10 * more, says, targets)
    assert both.machine > 0 < both.network
    loss = log_losses(both.machine * says + both.network * 10 * more, targets).mean()
    for scores in (says, more):
        assert loss < min(log_losses(scale * scores, targets).mean() for scale in (0.5, 1, 2, 4))
    same = mixing_of(says, says, targets)  # any share has the same loss, so the network gets the least
    assert same.machine == pytest.approx(9 * same.network)


def logits(clf: sf.TextClassifier, texts: list[str]) -> np.ndarray:
    return np.asarray(clf.fitted_.logits(texts).double().numpy())


def test_the_network_is_that_of_a_training_without_n_grams() -> None:
    both = sf.TextClassifier(**QUICK, refit=False).fit(X, Y)
    alone = sf.TextClassifier(**QUICK, refit=False, wide=False).fit(X, Y)
    for name, tensor in alone.model_.state_dict().items():
        if not name.startswith("head."):
            assert torch.equal(both.model_.state_dict()[name], tensor), name
    share = (both.model_.head.weight / alone.model_.head.weight).flatten()
    torch.testing.assert_close(share, share[:1].expand_as(share))
    all_rows = [sf.TextClassifier(**QUICK, wide=wide).fit(X, Y).model_.head.weight for wide in (True, False)]
    torch.testing.assert_close((all_rows[0] / all_rows[1]).flatten(), share)  # a refit has the same shares
    assert both.history_[0]["val_loss"] == alone.history_[0]["val_loss"]
    assert float(both.model_.wide.weight.detach().abs().max()) > 0
    assert np.argmax(logits(both, X), 1).tolist() == [both.classes_.tolist().index(y) for y in Y]


def test_the_machine_is_fitted_to_all_rows_in_the_end() -> None:
    for more in ({}, {"holdout": None}):
        clf = sf.TextClassifier(**QUICK, **more).fit(X, Y)
        assert (clf.predict(X) == np.array(Y)).all()


def test_without_the_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = logits(sf.TextClassifier(**QUICK).fit(X, Y), X)
    monkeypatch.setattr(svm, "C", None)
    np.testing.assert_allclose(logits(sf.TextClassifier(**QUICK).fit(X, Y), X), expected, rtol=0.05, atol=0.2)


def test_weights_of_texts_and_classes() -> None:
    """A class that weighs more is predicted more often for texts that say nothing."""
    texts, says = [f"word{k % 7} same" for k in range(210)], ["a" if k % 3 else "b" for k in range(210)]
    shares = []
    for weight in (None, {"a": 1.0, "b": 6.0}):
        clf = sf.TextClassifier(**QUICK, holdout=None, class_weight=weight).fit(texts, says)
        shares.append(clf.predict_proba(["same"])[0, 1])
    assert shares[1] > shares[0]


def test_few_texts_have_a_machine_too() -> None:
    clf = sf.TextClassifier(**QUICK).fit(X[:6], Y[:6])
    assert float(clf.model_.wide.weight.detach().abs().max()) > 0
    assert np.isfinite(clf.predict_proba(X)).all()


@pytest.mark.parametrize("more", [{"refit": False}, {}], ids=["held out", "on all"])
def test_a_killed_training_ends_with_the_same_bits(more: dict[str, Any], tmp_path: Path) -> None:
    settings = QUICK | {"checkpoint_every": 0.0} | more
    expected = sf.TextClassifier(**settings).fit(X, Y)
    with pytest.MonkeyPatch.context() as patch:
        kill_after(5, patch)
        with pytest.raises(Killed):
            sf.TextClassifier(**settings, checkpoint_dir=tmp_path).fit(X, Y)
    again = sf.TextClassifier(**settings, checkpoint_dir=tmp_path).fit(X, Y, resume=True)
    for name, tensor in expected.model_.state_dict().items():
        assert torch.equal(again.model_.state_dict()[name], tensor), name


def test_an_interrupt_leaves_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    clf = sf.TextClassifier(**QUICK)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("seqcls_fast.toolkit.fit.add_machine", stop)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(X, Y)
    assert not clf.model_.wide.weight.detach().any()
    alone = sf.TextClassifier(**QUICK, wide=False, refit=False).fit(X, Y)
    np.testing.assert_allclose(clf.predict_proba(X), alone.predict_proba(X), atol=1e-6)


def test_a_stream_has_one_too(tmp_path: Path) -> None:
    import json

    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps({"text": x, "label": y}) for x, y in zip(X, Y, strict=True)))
    clf = sf.TextClassifier(**QUICK, workers=0).fit(Stream(file))
    assert float(clf.model_.wide.weight.detach().abs().max()) > 0
    assert (clf.predict(X) == np.array(Y)).mean() > 0.95


def test_n_grams_that_are_left_out_are_trained_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("no machine was asked for")

    monkeypatch.setattr("seqcls_fast.toolkit.fit.add_machine", refuse)
    clf = sf.TextClassifier(**QUICK, wide_dropout=0.1).fit(X, Y)
    assert float(clf.model_.wide.weight.detach().abs().max()) > 0


def test_too_many_texts_are_trained_in_steps() -> None:
    parameters = {"wide": True, "wide_dropout": 0.0}
    assert suits(parameters, 1 << 24, 1 << 17, 64)
    assert not suits(parameters, (1 << 24) + 1, 1 << 17, 2)
    assert not suits(parameters, 1 << 17, 1 << 17, 257)
    assert not suits(parameters, 1 << 24, 1 << 17, 65)
    assert not suits(parameters | {"wide": False}, 1, 1, 2)


def test_a_model_is_trained_on_in_steps() -> None:
    clf = sf.TextClassifier(**QUICK).fit(X, Y)
    before = clf.model_.wide.weight.detach().clone()
    clf.set_params(warm_start=True, epochs=1).fit(X[:20], Y[:20])
    moved = (clf.model_.wide.weight.detach() != before).any(1)
    assert 0 < int(moved.sum()) < len(moved)


def test_trials_share_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, fitted, whole = Shared(), [], svm.fit_machine

    def counted(*arguments: Any) -> Machine:
        fitted.append(1)
        return whole(*arguments)

    monkeypatch.setattr(svm, "fit_machine", counted)
    found = []
    for size in (8, 4, 8):
        clf = sf.TextClassifier(**QUICK | {"hidden_size": size}, refit=False)
        clf._fit(FitData(X, Y, 0.2), False, None, shared)
        found.append(logits(clf, X))
    assert len(fitted) == 1
    assert np.array_equal(found[0], found[2])

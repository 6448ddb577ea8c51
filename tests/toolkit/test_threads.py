"""How many of torch's threads a training uses: one for little work, and the same bits whatever torch was set to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

pytest.importorskip("sklearn")

import seqcls_fast as sf
from seqcls_fast.toolkit.training import threads
from seqcls_fast.toolkit.training.threads import LITTLE, threads_for, work_of
from support.corpora import sentences

CPU = torch.device("cpu")


def fit(**options: Any) -> sf.TextClassifier:
    X, y = sentences(count=60)
    settings = {"hidden_size": 8, "epochs": 2, "seed": 0, "verbose": False} | options
    return sf.TextClassifier(**settings).fit(X, y, validation=0.25)


@contextmanager
def threads_seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[bool, set[int]]]:
    """The numbers of threads with which models compute: for True in training, for False in evaluation."""
    seen: dict[bool, set[int]] = {True: set(), False: set()}
    forward, step = sf.SequenceClassifier.forward, torch.optim.AdamW.step

    def watched(self: Any, *arguments: Any, **wide: Any) -> Any:
        seen[self.training].add(torch.get_num_threads())
        return forward(self, *arguments, **wide)

    def watched_step(self: Any) -> Any:
        seen[True].add(torch.get_num_threads())
        return step(self)

    with monkeypatch.context() as patches:
        patches.setattr(sf.SequenceClassifier, "forward", watched)
        patches.setattr(torch.optim.AdamW, "step", watched_step)
        yield seen


def test_work_by_hand() -> None:
    """Of a layer over 5 features: a GRU of 7 units has 3 * 7 * (5 + 7) weights in each direction."""
    model = sf.SequenceClassifier(5, 7, 2, vocab_size=11, bidirectional=True)
    weights = 2 * 3 * 7 * (5 + 7)
    parameters = 11 * 5 + weights + 2 * 2 * 3 * 7 + 14 * 2 + 2
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert work_of(model, 100, training=False) == 100 * weights
    assert work_of(model, 100, training=True) == 3 * 100 * weights + threads.UPDATE * parameters


def test_one_thread_for_little_work_and_the_number_of_before_afterwards() -> None:
    torch.set_num_threads(3)
    with threads_for(LITTLE - 1, CPU):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3
    with threads_for(LITTLE, CPU):
        assert torch.get_num_threads() == 3
    with threads_for(0, torch.device("cuda")):  # the work is done elsewhere
        assert torch.get_num_threads() == 3
    with pytest.raises(KeyboardInterrupt), threads_for(0, CPU):
        raise KeyboardInterrupt
    assert torch.get_num_threads() == 3


def test_a_small_training_uses_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    with threads_seen(monkeypatch) as seen:
        model = fit()
    assert seen[True] == {1}
    assert 1 in seen[False]  # and 2 in the report at the end, which is made once
    assert torch.get_num_threads() == 2
    assert model.data_["threads"] == 2  # what `reproduce` sets, from which the same choices follow


def test_a_large_training_uses_all(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    monkeypatch.setattr(threads, "LITTLE", 1)
    with threads_seen(monkeypatch) as seen:
        fit()
    assert seen == {True: {2}, False: {2}}


def test_the_number_of_before_after_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Any) -> None:
        raise KeyboardInterrupt

    torch.set_num_threads(2)
    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit()
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("pooling", ["last", "attention"])
def test_the_bits_of_a_small_training_do_not_depend_on_the_threads(pooling: str) -> None:
    trained = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        trained.append(fit(pooling=pooling, bidirectional=True))
    for other in trained[1:]:
        for name, weight in trained[0].model_.state_dict().items():
            assert torch.equal(weight, other.model_.state_dict()[name]), name
        losses = [[record["val_loss"] for record in each.history_] for each in (trained[0], other)]
        assert losses[0] == losses[1]

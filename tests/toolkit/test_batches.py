"""Ragged sequences and their batches: every row once, zeros as padding, the same order for the same seed."""

from __future__ import annotations

import pytest
import torch

from seqcls_fast.toolkit.data.batches import bucketed, by_length
from seqcls_fast.toolkit.data.ragged import Ragged
from seqcls_fast.toolkit.training.options import SCHEDULES, learning_rate_share
from support.corpora import waste


def test_pad() -> None:
    ragged = Ragged.of([torch.ones(3, 2), torch.full((1, 2), 2.0), torch.zeros(0, 2)])
    x, lengths = ragged.pad([1, 0, 2])
    assert x.tolist() == [[[2.0, 2.0], [0.0, 0.0], [0.0, 0.0]], [[1.0, 1.0]] * 3, [[0.0, 0.0]] * 3]
    assert lengths.tolist() == [1, 3, 0]
    assert ragged.pad([2])[0].tolist() == [[[0.0, 0.0]]]  # at least one step
    assert ragged.pad([])[0].shape == (0, 1, 2)
    for empty in (Ragged.of([]), Ragged.of([[], []])):
        x, lengths = empty.pad(torch.arange(len(empty)))
        assert x.dtype == torch.int64
        assert x.shape == (len(empty), 1)
        assert not x.any()
    with pytest.raises(ValueError, match="lengths: expected a sum of 3 but got 4"):
        Ragged(torch.zeros(3), torch.tensor([4]))


def test_buckets() -> None:
    lengths = torch.randint(1, 100, (5000,), generator=torch.Generator().manual_seed(0))
    batches = bucketed(lengths, 16, torch.Generator().manual_seed(1))
    assert sorted(torch.cat(batches).tolist()) == list(range(5000))
    assert {len(batch) for batch in batches} <= {16, 8}  # 5000 = 312 * 16 + 8
    again = bucketed(lengths, 16, torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))
    other = bucketed(lengths, 16, torch.Generator().manual_seed(2))
    assert not all(torch.equal(a, b) for a, b in zip(batches, other, strict=True))
    assert waste(lengths, batches) < 0.05 < 0.3 < waste(lengths, list(torch.arange(5000).split(16)))
    starts = torch.tensor([float(lengths[batch].float().mean()) for batch in batches])
    assert starts[:50].std() > 10  # batches of short and of long sequences alternate


def test_batches_of_predictions() -> None:
    lengths = torch.tensor([5, 0, 100_000, 90_000, 7, 3])
    batches = by_length(lengths, 4)
    assert [batch.tolist() for batch in batches] == [[2], [3], [4, 0, 5, 1]]
    assert by_length(torch.zeros(0, dtype=torch.int64), 4) == []


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(schedule: str) -> None:
    rates = [learning_rate_share(schedule, step / 1000, warmup=0.1) for step in range(1001)]
    assert max(rates) == pytest.approx(1, abs=1e-4)
    assert min(rates) >= 0
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == (1.0 if schedule == "constant" else pytest.approx(0, abs=1e-9))
    assert learning_rate_share(schedule, 0.5, warmup=0.0) > 0.4

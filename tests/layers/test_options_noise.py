"""The random masks: each word against a transcription in whole numbers, and the statistics of many of them.

The seeds are fixed, so a test passes always or never. The bounds are five standard deviations of fair draws.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from seqcls_fast import _noise
from support import papers

SEEDS = (0, 1, -1, 12345, 2**63 - 1, -(2**63), 2**32, -(2**31), 0x243F6A88)
KINDS = range(4)
DRAWS = (3, 7, 11)  # rows, steps, units


def kept(seed: int, masked: int = 0, direction: int = 0, sizes: tuple[int, ...] = DRAWS, rate: float = 0.5) -> Tensor:
    return _noise.kept(torch.tensor(seed), masked, direction, *sizes, rate)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_word(seed: int) -> None:
    rows, steps, units = DRAWS
    for masked, direction, rate in itertools.product(KINDS, (0, 1), (0.0, 1e-9, 0.1, 0.5, 0.75, 1 - 2**-40)):
        wanted = [
            [
                [papers.is_kept(papers.word(seed, masked, direction, b, t, u), rate) for u in range(units)]
                for b in range(rows)
            ]
            for t in range(steps)
        ]
        assert torch.equal(kept(seed, masked, direction, rate=rate), torch.tensor(wanted)), (masked, direction, rate)


def test_words_that_were_written_down() -> None:
    """The generator must never change, or a seeded run gives other results after an update."""
    places = [(0, 0, 0, 0, 0, 0), (1, 2, 1, 3, 4, 5), (-1, 3, 0, 100, 1000, 511), (2**63 - 1, 1, 1, 0, 1, 0)]
    assert [papers.word(*place) for place in places] == [0x98C0CEEE, 0x6AAD6A59, 0x1CDD1515, 0x1520692D]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("seed", SEEDS)
def test_mean(seed: int, rate: float) -> None:
    rows, steps, units = sizes = (40, 50, 64)
    deviation = (rate * (1 - rate) / (rows * steps * units)) ** 0.5
    for masked, direction in itertools.product(KINDS, (0, 1)):
        mask = kept(seed, masked, direction, sizes, rate).double()
        assert abs(mask.mean().item() - (1 - rate)) < 5 * deviation
        for dim, count in ((0, steps), (1, rows), (2, units)):  # no step, row or unit is drawn more often
            others = tuple({0, 1, 2} - {dim})
            off = (mask.mean(others) - (1 - rate)).abs().max().item()
            assert off < 5 * deviation * count**0.5, (masked, direction, dim)


def correlation(a: Tensor, b: Tensor) -> float:
    """In standard deviations of independent draws with rate one half."""
    a, b = a.double().flatten() * 2 - 1, b.double().flatten() * 2 - 1
    return abs((a * b).sum().item()) / a.numel() ** 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_neighbours_are_independent(seed: int) -> None:
    sizes = (40, 50, 64)
    mask = kept(seed, sizes=sizes)
    for distance in (1, 2, 3, 8, 16, 32):
        for dim in range(3):
            length = mask.size(dim) - distance
            if length > 0:
                one, other = mask.narrow(dim, 0, length), mask.narrow(dim, distance, length)
                assert correlation(one, other) < 5, (distance, dim)
    for dims in ((0, 1), (0, 2), (1, 2)):  # the diagonals, where two numbers of a place change together
        one, other = mask, mask
        for dim in dims:
            one, other = one.narrow(dim, 0, one.size(dim) - 1), other.narrow(dim, 1, other.size(dim) - 1)
        assert correlation(one, other) < 5, dims
    assert correlation(mask, mask.transpose(0, 1).reshape(mask.shape)) < 5  # row and step may not be exchanged


@pytest.mark.parametrize("seed", [s for s in SEEDS if s < 2**63 - 4])
def test_other_seeds_kinds_and_directions_are_independent(seed: int) -> None:
    """Layer k of a module draws from the seed plus k."""
    sizes = (40, 50, 64)
    masks = [kept(seed + k, sizes=sizes) for k in range(4)]
    masks += [kept(seed, masked, direction, sizes) for masked, direction in itertools.product(KINDS, (0, 1))][1:]
    masks.append(kept(seed ^ 1 << 32, sizes=sizes))  # the upper half of a seed counts too
    for one, other in itertools.combinations(masks, 2):
        assert correlation(one, other) < 5


def test_a_place_has_one_word() -> None:
    """A mask does not depend on how many rows, steps or units are drawn."""
    whole = kept(5, 3, 1, (6, 7, 8), 0.3)
    assert torch.equal(kept(5, 3, 1, (2, 3, 4), 0.3), whole[:3, :2, :4])


def test_seeds_follow_torch() -> None:
    cpu = torch.device("cpu")
    torch.manual_seed(1)
    first = [int(_noise.new_seed(cpu)) for _ in range(100)]
    torch.manual_seed(1)
    assert [int(_noise.new_seed(cpu)) for _ in range(100)] == first
    assert len(set(first)) == 100
    assert min(first) < -(2**62)
    assert max(first) > 2**62

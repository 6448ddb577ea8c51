"""Random convolution features: against a plain computation, in C++ and in PyTorch with the same bits."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

import seqcls_fast.convolutions as convolutions
from seqcls_fast.convolutions import KERNELS, ConvolutionScores, RandomConvolutions, dilations_for, summaries

LENGTHS = [60, 59, 33, 17, 16, 9, 8, 2, 1, 0]


@pytest.fixture(params=["extension", "pytorch"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pytorch":
        monkeypatch.setattr(convolutions, "C", None)
    elif convolutions.C is None:
        pytest.skip("the extension is not built")
    return str(request.param)


def whole_numbers(channels: int) -> Tensor:
    """Rows of LENGTHS whose sums are exact in float32, with NaN beyond their ends."""
    x = torch.randint(-9, 9, (len(LENGTHS), max(LENGTHS), channels), generator=torch.Generator().manual_seed(1)).float()
    for row, length in enumerate(LENGTHS):
        x[row, length:] = torch.nan
    return x


def drawn(channels: int, features: int = 84 * 7) -> RandomConvolutions:
    generator = torch.Generator().manual_seed(2)
    series = [torch.randn(length, channels, generator=generator) for length in (60, 1, 0, 20)]
    return RandomConvolutions(channels, *dilations_for(60, features)).draw(series, seed=3)


def by_hand(one: np.ndarray, module: RandomConvolutions) -> list[float]:
    """The features of a series (T, channels), with dense kernels and numpy's convolution."""
    found, place = [], 0
    for g, (dilation, count) in enumerate(zip(module.dilations, module.counts, strict=True)):
        for k, three in enumerate(combinations(range(9), 3)):
            kernel = np.full(9, -1.0)
            kernel[list(three)] = 2.0
            dilated = np.zeros(8 * dilation + 1)
            dilated[::dilation] = kernel
            signal = one @ module.uses[g, k].double().numpy()
            result = np.convolve(np.pad(signal, 4 * dilation), dilated[::-1], "valid") if len(one) else signal
            if (g + k) % 2 == 1 and len(one) > 8 * dilation:
                result = result[4 * dilation : len(result) - 4 * dilation]
            for bias in module.biases[place : place + count].double().numpy():
                found.append(float(np.mean(result > bias)) if len(one) else 0.0)
            place += count
    return found


@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_shares_of_convolutions_above_biases(by: str, channels: int) -> None:
    x, module = whole_numbers(channels), drawn(channels)
    module.biases.round_().add_(0.5)  # far from what a convolution of whole numbers can be
    found = module(x, torch.tensor(LENGTHS))
    for row, length in enumerate(LENGTHS):
        expected = torch.tensor(by_hand(x[row, :length].double().numpy(), module)).float()
        torch.testing.assert_close(found[row], expected, rtol=1e-6, atol=0)


def test_the_extension_has_the_bits_of_pytorch() -> None:
    if convolutions.C is None:
        pytest.skip("the extension is not built")
    for channels in (1, 2, 12):
        module, x = drawn(channels, 2000), torch.randn(len(LENGTHS), 60, channels)
        assert torch.equal(module(x, torch.tensor(LENGTHS)), module.in_pytorch(x, torch.tensor(LENGTHS)))


def test_bits_do_not_depend_on_threads_or_on_other_rows(by: str) -> None:
    x, lengths = whole_numbers(2) / 3, torch.tensor(LENGTHS)
    module = ConvolutionScores(drawn(2), 3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = module.features(x, lengths)
        torch.set_num_threads(3)
        assert torch.equal(module.features(x, lengths), expected)
    finally:
        torch.set_num_threads(before)
    for row, length in enumerate(LENGTHS):
        assert torch.equal(module.features(x[row : row + 1, :length], lengths[row : row + 1])[0], expected[row])
    assert expected.isfinite().all()
    assert not expected[-1].any()


def test_a_seed_decides_about_channels_and_biases() -> None:
    series = [torch.randn(30, 4) for _ in range(3)]
    modules = [RandomConvolutions(4, [1, 2], [2, 1]).draw(series, seed) for seed in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(modules[0].buffers(), modules[1].buffers(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(modules[0].buffers(), modules[2].buffers(), strict=True))
    assert set(modules[0].uses.sum(2).flatten().tolist()) == {1.0, 2.0, 3.0, 4.0}


@pytest.mark.parametrize("length", [0, 1, 8, 9, 10, 100, 10_000])
@pytest.mark.parametrize("features", [1, 84, 999, 9_996])
def test_dilations_fit_the_length(length: int, features: int) -> None:
    dilations, counts = dilations_for(length, features)
    assert KERNELS * sum(counts) == KERNELS * max(1, features // KERNELS)
    assert dilations == sorted(set(dilations))
    assert dilations[0] == 1
    assert min(counts) >= 1
    assert 8 * dilations[-1] < max(length, 9)


def test_summaries_are_those_of_each_series() -> None:
    x = torch.randn(len(LENGTHS), 60, 2, dtype=torch.float64)
    found = summaries(x, torch.tensor(LENGTHS)).double()
    for row, length in enumerate(LENGTHS):
        one = x[row, :length]
        if not length:
            assert not found[row].any()
            continue
        time = torch.arange(length) - (length - 1) / 2
        slope = (one * time[:, None]).mean(0) / max(float((time**2).mean()), 1e-12)
        changes = one.diff(dim=0, prepend=one[:1])
        edges = [length * part // 8 for part in range(9)]
        parts = [one[a:b].mean(0) if b > a else one.mean(0) for a, b in pairwise(edges)]
        expected = [one.mean(0), one.std(0, correction=0), one.amin(0), one.amax(0), one[0], one[-1], slope]
        expected += [changes.abs().mean(0), (changes**2).mean(0).sqrt(), *parts, torch.tensor([length + 1.0]).log()]
        torch.testing.assert_close(found[row], torch.cat(expected), rtol=1e-5, atol=1e-6)


def test_exported_programs_compute_the_same() -> None:
    module = ConvolutionScores(drawn(2, 84 * 3), 3).eval()
    x, lengths = torch.randn(len(LENGTHS), 60, 2), torch.tensor(LENGTHS)
    batch, time = torch.export.Dim("batch"), torch.export.Dim("time")
    program = torch.export.export(module, (x, lengths), dynamic_shapes=({0: batch, 1: time}, {0: batch}))
    for rows, steps in ((10, 60), (4, 70)):
        some, of = torch.randn(rows, steps, 2), lengths[:rows]
        torch.testing.assert_close(program.module()(some, of), module(some, of), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["lengths", "uses", "biases", "dilations"])
def test_the_extension_refuses_sizes_that_do_not_fit(name: str) -> None:
    if convolutions.C is None:
        pytest.skip("the extension is not built")
    given = {
        "x": np.zeros((2, 5, 1), np.float32), "lengths": np.array([5, 5]), "dilations": np.array([1]),
        "counts": np.array([1]), "uses": np.ones(84, np.float32), "biases": np.zeros(84, np.float32),
    }  # fmt: skip
    assert convolutions.C.random_convolutions(**given, threads=1).shape == (2, 84)
    wrong = {"lengths": np.array([5, 6]), "dilations": np.array([1, 2])}.get(name, given[name][:-1])
    with pytest.raises(RuntimeError, match="expected"):
        convolutions.C.random_convolutions(**given | {name: wrong}, threads=1)


def test_a_dilation_beyond_the_length_costs_no_memory(by: str) -> None:
    module = RandomConvolutions(1, [1 << 20], [1]).draw([torch.randn(9, 1)], seed=0)
    near = RandomConvolutions(1, [16], [1])
    near.load_state_dict(module.state_dict())
    x, lengths = torch.randn(2, 9, 1), torch.tensor([9, 4])
    assert torch.equal(module(x, lengths), near(x, lengths))


def test_input_that_needs_a_gradient(by: str) -> None:
    x, module = torch.randn(2, 30, 2), drawn(2)
    found = module(x.clone().requires_grad_())
    assert torch.equal(found, module(x))
    assert not found.requires_grad

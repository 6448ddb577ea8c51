"""Random convolution features of series, in the manner of MiniRocket (Dempster, Schmidt and Webb, 2021).

A feature is the share of a series' steps at which a dilated convolution is above a bias. A kernel has nine weights: 2
at three places and -1 at the other six. csrc/series computes the features on a CPU. The same in PyTorch, with the same
bits, serves other devices, exported graphs and installs without the extension. A share says little of how large the
values are, so that summaries of the series go with the shares into ``ConvolutionScores``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from . import _head
from ._ext import C

__all__ = ["KERNELS", "ConvolutionScores", "RandomConvolutions", "dilations_for", "summaries"]

TAPS = 9
PLACES = tuple(combinations(range(TAPS), 3))  # of the weights 2, for each kernel
KERNELS = len(PLACES)
_MOST_DILATIONS = 32
_MOST_CHANNELS = 9  # that a kernel adds up
_PARTS = 8  # equal parts of a series whose means are summaries
_AT_ONCE = 1 << 25  # numbers of an intermediate result, where PyTorch computes
_GOLDEN = (5**0.5 - 1) / 2


def dilations_for(length: int, features: int) -> tuple[list[int], list[int]]:
    """Dilations for series of ``length`` steps, and how many biases the kernels of each have, for about ``features``.

    Example::

        >>> from seqcls_fast.convolutions import dilations_for
        >>> dilations_for(length=40, features=84 * 6)
        ([1, 2, 3, 4], [3, 1, 1, 1])
    """
    each = max(1, features // KERNELS)
    most, count = math.log2((max(length, TAPS) - 1) / (TAPS - 1)), min(each, _MOST_DILATIONS)
    drawn = [int(2 ** (most * k / max(1, count - 1))) for k in range(count)]
    dilations = sorted(set(drawn))
    counts = [drawn.count(dilation) * each // count for dilation in dilations]
    for k in range(each - sum(counts)):
        counts[k % len(counts)] += 1
    return dilations, counts


class RandomConvolutions(nn.Module):
    r"""Series as shares of their steps at which convolutions are above biases.

    Args:
        channels: features of a step.
        dilations: steps between two taps of a kernel.
        counts: the number of biases that each kernel of a dilation has.

    Inputs: x, lengths=None
        * **x**: :math:`(B, T, \text{channels})`.
        * **lengths**: the number of steps of each row; what lies beyond is never read.

    Outputs: features
        :math:`(B, 84 \sum \text{counts})`, from 0 to 1; zeros for a row without steps.

    Example::

        >>> import torch
        >>> from seqcls_fast.convolutions import RandomConvolutions
        >>> convolutions = RandomConvolutions(2, [1, 2], [3, 1]).draw([torch.randn(20, 2) for _ in range(5)], seed=0)
        >>> convolutions(torch.randn(4, 20, 2), torch.tensor([20, 3, 1, 0])).shape
        torch.Size([4, 336])
    """

    uses: Tensor
    biases: Tensor

    def __init__(self, channels: int, dilations: Sequence[int], counts: Sequence[int]) -> None:
        super().__init__()
        if len(dilations) != len(counts):
            raise ValueError(f"counts: expected one for each of {len(dilations)} dilations but got {len(counts)}")
        self.channels, self.dilations, self.counts = channels, tuple(dilations), tuple(counts)
        self.register_buffer("uses", torch.ones(len(self.dilations), KERNELS, channels))
        self.register_buffer("biases", torch.zeros(KERNELS * sum(self.counts)))

    @property
    def sizes(self) -> dict[str, int | list[int]]:
        """The arguments of the constructor, in types of JSON."""
        return {"channels": self.channels, "dilations": list(self.dilations), "counts": list(self.counts)}

    def draw(self, series: Sequence[Tensor], seed: int) -> RandomConvolutions:
        """Draws the channels that each kernel reads, and the biases: quantiles of convolutions of these series."""
        generator = torch.Generator().manual_seed(seed)

        def integer(below: int) -> int:
            return int(torch.randint(below, (), generator=generator))

        if self.channels > 1:
            self.uses.zero_()
            most = math.log2(min(self.channels, _MOST_CHANNELS))
            for uses in self.uses.flatten(0, 1):
                count = int(2 ** (most * float(torch.rand((), generator=generator))) + 0.5)
                uses[torch.randperm(self.channels, generator=generator)[:count]] = 1
        known = [one for one in series if len(one)]
        if not known:
            return self
        place = 0
        for g, (dilation, count) in enumerate(zip(self.dilations, self.counts, strict=True)):
            for kernel in range(KERNELS):
                one = known[integer(len(known))].float()
                sums = _added(one[None], self.uses[g, kernel : kernel + 1])
                found = _convolved(sums, dilation, [kernel])[0, 0]
                wanted = torch.arange(place + 1, place + 1 + count, dtype=torch.float64) * _GOLDEN % 1
                self.biases[place : place + count] = found.double().quantile(wanted).float()
                place += count
        return self

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = x.detach().float()
        if lengths is None:
            lengths = torch.full((x.size(0),), x.size(1), dtype=torch.int64, device=x.device)
        with torch.no_grad():
            if _head.in_graph():
                return self.in_pytorch(x, lengths)
            if C is not None and x.is_cpu:
                sizes = [torch.tensor(self.dilations), torch.tensor(self.counts)]
                given = [x, lengths.long(), *sizes, self.uses.float(), self.biases.float()]
                arrays = [each.contiguous().numpy() for each in given]
                return torch.from_numpy(C.random_convolutions(*arrays, torch.get_num_threads()))
            rows = max(1, _AT_ONCE // (KERNELS * max(TAPS, *self.counts) * max(1, x.size(1))))
            pieces = zip(x.split(rows), lengths.split(rows), strict=True)
            return torch.cat([self.in_pytorch(*piece) for piece in pieces])

    def in_pytorch(self, x: Tensor, lengths: Tensor) -> Tensor:
        """What :meth:`forward` returns, in operators of PyTorch alone."""
        steps = torch.arange(x.size(1), device=x.device)
        lengths = lengths.to(x.device)[:, None]  # (B, 1)
        there = steps < lengths  # (B, T)
        x = torch.where(there[..., None], x, 0.0)
        odd = torch.arange(KERNELS, device=x.device) % 2
        found, place = [], 0
        for g, (dilation, count) in enumerate(zip(self.dilations, self.counts, strict=True)):
            results = _convolved(_added(x, self.uses[g]), dilation, range(KERNELS))
            margin = TAPS // 2 * dilation
            # Every other kernel reads no padding, where the series is long enough for that.
            inside = ((steps >= margin) & (steps < lengths - margin)) | (lengths <= 2 * margin)  # (B, T)
            valid = there[:, None] & (inside[:, None] | ((odd + g) % 2 == 0)[:, None])  # (B, 84, T)
            positions = valid.sum(2).clamp(min=1).float()
            biases = self.biases[place : place + KERNELS * count].view(KERNELS, count)
            above = (results[:, :, None] > biases[..., None]) & valid[:, :, None]  # (B, 84, count, T)
            found.append((above.sum(3).float() / positions[..., None]).flatten(1))
            place += KERNELS * count
        return torch.cat(found, 1)

    def extra_repr(self) -> str:
        return f"{self.channels}, dilations={list(self.dilations)}, counts={list(self.counts)}"


def _added(x: Tensor, uses: Tensor) -> Tensor:
    """The channels of ``(B, T, channels)`` that each of some kernels reads, added up in order: ``(B, kernels, T)``."""
    total = x.new_zeros(x.size(0), len(uses), x.size(1))
    for c in range(x.size(2)):
        total = total + uses[:, c, None] * x[:, None, :, c]
    return total


def _convolved(sums: Tensor, dilation: int, kernels: Sequence[int]) -> Tensor:
    """``(B, kernels, T)``: each kernel's convolution of what it reads. The order of the additions is that of csrc."""
    steps = sums.size(2)
    if not _head.in_graph():  # beyond the longest row all taps but the middle one read zeros
        dilation = min(dilation, max(1, steps))
    margin = TAPS // 2 * dilation
    padded = torch.nn.functional.pad(sums, (margin, margin))
    taps = [padded[:, :, j * dilation : j * dilation + steps] for j in range(TAPS)]
    total = taps[0]
    for tap in taps[1:]:
        total = total + tap
    stacked = torch.stack(taps, 2)  # (B, kernels, 9, T)
    rows = torch.arange(len(kernels))
    first, second, third = (stacked[:, rows, torch.tensor([PLACES[k][n] for k in kernels])] for n in range(3))
    return 3.0 * ((first + second) + third) - total


class ConvolutionScores(nn.Module):
    r"""A linear model on random convolutions of series and on summaries of them.

    Args:
        convolutions: reads the first of the features of a step.
        classes: how many scores a series has.

    Inputs: x, lengths=None
        as of :class:`RandomConvolutions`; a step may have further features, which are left alone.

    Outputs: scores
        :math:`(B, \text{classes})`.

    Example::

        >>> import torch
        >>> from seqcls_fast.convolutions import ConvolutionScores, RandomConvolutions
        >>> scores = ConvolutionScores(RandomConvolutions(2, [1, 2], [3, 1]), classes=4)
        >>> scores(torch.randn(5, 20, 2)).shape
        torch.Size([5, 4])
    """

    def __init__(self, convolutions: RandomConvolutions, classes: int) -> None:
        super().__init__()
        self.convolutions = convolutions
        count = KERNELS * sum(convolutions.counts) + (2 * _PARTS + 1) * convolutions.channels + 1
        self.register_buffer("middle", torch.zeros(count))
        self.register_buffer("scale", torch.ones(count))
        self.register_buffer("weight", torch.ones(()))
        self.linear = nn.Linear(count, classes, device="meta")  # which draws no random numbers
        self.linear.weight = nn.Parameter(torch.zeros(classes, count), requires_grad=False)
        self.linear.bias = nn.Parameter(torch.zeros(classes), requires_grad=False)

    middle: Tensor
    scale: Tensor
    weight: Tensor

    def weighted(self, weight: float) -> ConvolutionScores:
        """Sets the number that scores are multiplied by."""
        self.weight.fill_(weight)
        return self

    def features(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """What the linear model reads, before it is standardised: ``(B, features)``."""
        if lengths is None:
            lengths = torch.full((x.size(0),), x.size(1), dtype=torch.int64, device=x.device)
        x = x[..., : self.convolutions.channels].float()
        if x.size(1) == 0:
            x = torch.nn.functional.pad(x, (0, 0, 0, 1))
        return torch.cat([self.convolutions(x, lengths), summaries(x, lengths)], 1)

    def standardised(self, features: Tensor) -> Tensor:
        return ((features - self.middle) * self.scale).clamp(-5, 5)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        read = self.standardised(self.features(x, lengths)).to(self.linear.weight.dtype)
        return self.weight * _head.linear(self.linear, read)


def summaries(x: Tensor, lengths: Tensor) -> Tensor:
    """A series ``(T, C)`` as ``17 * C + 1`` numbers: mean, deviation, extremes, first and last value, slope, mean size
    and deviation of the changes, and the means of eight parts, of each feature; and the length.

    Running sums make the bits of a row independent of the rows beside it.
    """
    with torch.no_grad():
        x, steps = x.float(), torch.arange(x.size(1), device=x.device)
        lengths = lengths.to(x.device).long()
        there = (steps < lengths[:, None])[..., None]
        lows = torch.where(there, x, torch.inf).amin(1)
        highs = torch.where(there, x, -torch.inf).amax(1)
        # onnxruntime chooses among float32 alone, so that the float64 below are multiplied by 0 or 1 instead.
        x, inside = torch.where(there, x, 0.0).double(), there.double()
        count = lengths.clamp(min=1)[:, None]  # (B, 1)
        last = (count - 1)[..., None].expand(-1, 1, x.size(2))

        def sums(values: Tensor) -> Tensor:
            return values.cumsum(1)

        def mean(values: Tensor) -> Tensor:
            return sums(values).gather(1, last)[:, 0] / count

        total, middle = sums(x), mean(x)
        offset = (x - middle[:, None]) * inside
        time = (steps[:, None] - (count[..., None] - 1) / 2) * inside.expand_as(x)
        slope = mean(offset * time) / mean(time * time).clamp(min=1e-12)
        earlier = torch.nn.functional.pad(x, (0, 0, 1, 0))[:, : x.size(1)]
        changes = (x - earlier) * (there & (steps > 0)[:, None]).double()
        edges = [count * part // _PARTS for part in range(_PARTS + 1)]  # of the parts
        before = torch.nn.functional.pad(total, (0, 0, 1, 0))
        reached = [before.gather(1, edge[..., None].expand_as(last))[:, 0] for edge in edges]
        parts = []
        for k in range(_PARTS):
            size = edges[k + 1] - edges[k]
            # A part without steps has a sum of 0.
            parts.append((reached[k + 1] - reached[k]) / size.clamp(min=1) + middle * (size == 0).double())
        found = [
            middle, mean(offset**2).sqrt(), lows, highs, x[:, 0], x.gather(1, last)[:, 0], slope,
            mean(changes.abs()), mean(changes**2).sqrt(), *parts,
        ]  # fmt: skip
        some = (lengths > 0)[:, None]
        summary = torch.cat([each.float() for each in found], 1)
        # In double, whose logarithms are the same after rounding wherever they are computed: csrc/series has them too.
        size = (lengths.double() + 1).log()[:, None].float()
        return torch.cat([torch.where(some, summary, 0.0), size], 1)

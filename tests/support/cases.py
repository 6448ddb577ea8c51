"""The layers that tests run, as data: the fields of a case, the lists of cases, and the numbers of each.

covering() makes the lists: every pair of values of any two fields occurs together in at least one case. That finds the
faults that one or two fields cause with a thousandth of the cases of a full grid. The numbers of a case depend on the
case alone and are exact in its dtype, so that the float64 reference gets the same numbers as the kernel.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from seqcls_fast._cells import BUILT_IN, Rates

CELLS = tuple(name for name, cell in BUILT_IN.items() if not cell.is_option)
GATES = {cell: constants.gates for cell, constants in BUILT_IN.items()}
FLOATS = ("float32", "float64")
HALVES = ("bfloat16", "float16")
ROUNDED = (*HALVES, "tf32")  # "tf32": float32 whose products CUDA may round to TF32
LENGTHS = ("none", "random", "zeros", "equal", "all_zero", "one_long")
# features_first: the features are not innermost; expanded: stride 0 over time; strided: rows of a larger tensor.
LAYOUTS = ("time_first", "batch_first", "packed", "strided", "features_first", "expanded")
RESETS = ("none", "some", "all", "first")  # a tenth of the steps, every step, the first step of every row
NOISE = {
    "none": Rates(),
    "zoneout": Rates(0.3, 0.2),
    "zoneout_eval": Rates(0.3, 0.2),
    "state": Rates(state_dropout=0.25),
    "candidate": Rates(candidate_dropout=0.25),
    "all": Rates(0.3, 0.2, 0.25, 0.25),
}


@dataclass(frozen=True)
class Case:
    """One call of rnn_layer. `T` is the padded length; `lengths` names a pattern, see lengths_of()."""

    cell: str = "gru"
    T: int = 3
    B: int = 2
    I: int = 5
    H: int = 7
    directions: int = 1
    bias: bool = True
    proj: bool = False
    state: bool = True
    lengths: str = "none"
    dtype: str = "float32"
    layout: str = "time_first"
    want_output: bool = True
    ids: bool = False  # x holds ids, each in the place of I features
    # The options of a layer. They are no part of a case's seed: the other numbers do not depend on them.
    resets: str = field(default="none", repr=False)  # names a pattern, see resets_of()
    learnt: bool = field(default=False, repr=False)  # the reset states are given
    noise: str = field(default="none", repr=False)  # of NOISE

    @property
    def G(self) -> int:
        return GATES[self.cell]

    @property
    def P(self) -> int:
        """proj_size, 0 without a projection of the hidden state."""
        return (self.H + 1) // 2 if self.proj else 0

    @property
    def out(self) -> int:
        """Width of one direction of the output."""
        return self.P or self.H

    @property
    def torch_dtype(self) -> torch.dtype:
        return torch.float32 if self.dtype == "tf32" else getattr(torch, self.dtype)

    @property
    def seed(self) -> int:
        return crc32(repr(self).encode())

    @property
    def has_options(self) -> bool:
        return BUILT_IN[self.cell].is_option or self.resets != "none" or self.noise != "none"

    @property
    def rates(self) -> Rates:
        h, c, state, candidate = NOISE[self.noise]
        has_candidate = not self.cell.startswith("rnn")
        return Rates(h, c if BUILT_IN[self.cell].has_c else 0.0, state, candidate if has_candidate else 0.0)

    @property
    def noise_seed(self) -> Tensor | None:
        if self.noise in ("none", "zoneout_eval"):
            return None
        return torch.tensor((self.seed * 0x9E3779B97F4A7C15) % 2**64 - 2**63)

    @property
    def cost(self) -> int:
        """Multiply-adds of the forward pass."""
        return self.T * self.B * self.directions * self.G * self.H * (self.I + self.out)

    @property
    def valid(self) -> bool:
        if self.proj and (not BUILT_IN[self.cell].has_c or self.H < 2):
            return False
        if self.noise == "candidate" and not self.rates.candidate_dropout:
            return False
        if self.cell == "rnn_relu_layer_norm" and self.dtype in ROUNDED and not self.bias:
            return False  # only a bias keeps normalised sums off the kink
        return not (self.layout == "packed" and self.lengths in ("zeros", "all_zero"))  # a packed row has a first step

    def __str__(self) -> str:
        flags = [f"d{self.directions}", self.lengths, self.layout]
        flags += ["" if self.bias else "nobias", f"p{self.P}" if self.proj else "", "h0" if self.state else ""]
        flags += ["" if self.want_output else "noout", "ids" if self.ids else ""]
        flags += [f"{self.resets}reset" if self.resets != "none" else "", "learnt" if self.learnt else ""]
        flags += [self.noise if self.noise != "none" else ""]
        return "-".join([self.cell, self.dtype, f"T{self.T}B{self.B}I{self.I}H{self.H}", *filter(None, flags)])


SIZES = (1, 2, 3, 5, 7, 13, 16, 17, 31, 33, 47, 64, 65, 100, 130)
AXES: Mapping[str, tuple[Any, ...]] = {
    "cell": CELLS,
    "T": (1, 2, 3, 5, 7, 16, 33, 65, 130),
    "B": SIZES,
    "I": SIZES,
    "H": SIZES,
    "directions": (1, 2),
    "bias": (True, False),
    "proj": (False, False, False, True),  # drawn less often, as it needs an LSTM
    "state": (True, False),
    "lengths": LENGTHS,
    "dtype": FLOATS + HALVES,
    "layout": LAYOUTS,
    "want_output": (True, False),
    "ids": (False, False, True),
}
OPTION_SIZES = (1, 2, 3, 5, 7, 13, 16, 17, 31, 33, 64, 65)
OPTION_AXES = AXES | {
    "cell": tuple(BUILT_IN),
    "T": (1, 2, 3, 5, 7, 16, 33),
    "B": OPTION_SIZES,
    "I": OPTION_SIZES,
    "H": OPTION_SIZES,
    "resets": RESETS,
    "learnt": (False, True),
    "noise": tuple(NOISE),
}

Values = dict[str, Any]


def covering(
    axes: Mapping[str, tuple[Any, ...]], fits: Callable[[Values], bool], easy: Sequence[Values], seed: int = 0
) -> list[Values]:
    """Valid choices of a value for each axis, chosen greedily until any two values of two axes occur together.

    A pair that no valid choice has is left out. Whether one has it is tried with the other values of each of ``easy``,
    and with the first value of each axis.
    """
    rng = random.Random(seed)
    first = {name: values[0] for name, values in axes.items()}
    missing = {
        (a, u, b, v)
        for a, b in itertools.combinations(axes, 2)
        for u in axes[a]
        for v in axes[b]
        if any(fits(first | values | {a: u, b: v}) for values in easy)
    }
    order = sorted(missing, key=repr)
    rng.shuffle(order)
    chosen: list[Values] = []
    for pair in order:
        if pair not in missing:
            continue
        a, u, b, v = pair
        candidates = (c | {a: u, b: v} for c in _random_choices(axes, rng))
        best = max(itertools.islice(filter(fits, candidates), 24), key=lambda c: sum(p in missing for p in _pairs(c)))
        missing.difference_update(_pairs(best))
        chosen.append(best)
    return chosen


def _pairs(values: Values) -> Iterator[tuple[str, Any, str, Any]]:
    for (a, u), (b, v) in itertools.combinations(values.items(), 2):
        yield a, u, b, v


def _random_choices(axes: Mapping[str, tuple[Any, ...]], rng: random.Random) -> Iterator[Values]:
    while True:
        yield {name: rng.choice(values) for name, values in axes.items()}


@lru_cache
def pairwise(max_cost: int = 8_000_000, seed: int = 0) -> tuple[Case, ...]:
    """A few hundred valid cases of at most `max_cost` in which any two values of two axes meet."""

    def fits(values: Values) -> bool:
        case = Case(**values)
        return case.valid and case.cost <= max_cost

    return tuple(Case(**values) for values in covering(AXES, fits, ({"H": 2}, {"H": 2, "cell": "lstm"}), seed))


@lru_cache
def with_options(max_cost: int = 1_000_000, seed: int = 0) -> tuple[Case, ...]:
    """The same for layers with options: cells that are options, resets and noise."""

    def fits(values: Values) -> bool:
        case = Case(**values)
        return case.valid and case.cost <= max_cost

    easy = [{"H": 2}, {"H": 2, "cell": "lstm"}]
    return tuple(Case(**values) for values in covering(OPTION_AXES, fits, easy, seed))


# Beyond the pairwise grid: widths past every blocking factor of a kernel, and the shapes people use.
LARGE = (
    Case("lstm", T=3, B=9, I=300, H=257, directions=2, lengths="random"),
    Case("gru", T=4, B=33, I=64, H=512, lengths="zeros", layout="batch_first"),
    Case("rnn_tanh", T=5, B=70, I=520, H=40, bias=False, want_output=False),
    Case("rnn_relu", T=300, B=3, I=2, H=9, lengths="one_long", directions=2),
    Case("lstm", T=2, B=257, I=33, H=96, lengths="random", dtype="bfloat16", proj=True),
    Case("gru", T=3, B=7, I=300, H=260, dtype="bfloat16", layout="packed", lengths="random"),
    Case("gru", T=40, B=31, I=3, H=100, directions=2, lengths="zeros", ids=True),  # each id occurs hundreds of times
    Case("lstm", T=3, B=9, I=5000, H=65, layout="batch_first", dtype="float16", ids=True),  # most ids never occur
)

# Few rows of a wide layer in one direction, which several threads can only share by splitting the units.
WIDE = (
    Case("lstm", T=6, B=1, I=20, H=300),
    Case("gru", T=5, B=7, I=33, H=257, lengths="zeros", state=False),
    Case("rnn_tanh", T=9, B=4, I=5, H=520, layout="packed", lengths="random", dtype="bfloat16"),
    Case("rnn_relu", T=3, B=2, I=130, H=512, lengths="one_long", want_output=False, dtype="float64"),
    Case("gru", T=7, B=2, I=16, H=272, layout="strided", dtype="float16"),
    Case("lstm", T=4, B=3, I=31, H=300, lengths="random", proj=True),
    Case("gru", T=4, B=2, I=31, H=300, lengths="random", ids=True),
)


@dataclass(frozen=True)
class Problem:
    """The numbers of a case in float64, padded and time-first whatever its layout; exact in the case's dtype."""

    inputs: dict[str, Tensor]  # x, w_ih[0], ..., h0, c0: everything that has a gradient, or is int64
    lengths: Tensor | None  # (B,), any order; descending for a packed layout
    cotangents: dict[str, Tensor]  # incoming gradients of output, h_n, c_n
    resets: Tensor | None = None  # (T, B)


def build(case: Case) -> Problem:
    g = torch.Generator().manual_seed(case.seed)
    scale = case.H**-0.5

    def exact(t: Tensor) -> Tensor:
        return t.to(case.torch_dtype).double()

    def normal(*shape: int) -> Tensor:
        return exact(torch.randn(shape, generator=g, dtype=torch.float64))

    def uniform(*shape: int) -> Tensor:
        return exact((torch.rand(shape, generator=g, dtype=torch.float64) * 2 - 1) * scale)

    D, B, H, rows = case.directions, case.B, case.H, case.G * case.H
    x = torch.randint(case.I, (case.T, B), generator=g) if case.ids else normal(case.T, B, case.I)
    inputs = {"x": x[:1].expand_as(x).clone() if case.layout == "expanded" else x}
    widths = {"w_ih": (rows, case.I), "w_hh": (rows, case.out)}
    widths |= {"b_ih": (rows,), "b_hh": (rows,)} if case.bias else {}
    widths |= {"w_hr": (case.P, H)} if case.proj else {}
    inputs |= {f"{name}[{d}]": uniform(*shape) for name, shape in widths.items() for d in range(D)}
    if case.state:
        inputs |= {"h0": normal(D, B, case.out)} | ({"c0": normal(D, B, H)} if BUILT_IN[case.cell].has_c else {})
    inputs |= _further(case, exact)
    if case.cell.startswith("rnn_relu"):
        _keep_off_the_kink(inputs, case)
    cotangents = {"output": normal(case.T, B, D * case.out)} if case.want_output else {}
    cotangents |= {"h_n": normal(D, B, case.out)} | ({"c_n": normal(D, B, H)} if BUILT_IN[case.cell].has_c else {})
    return Problem(inputs, lengths_of(case, g), cotangents, resets_of(case))


def _further(case: Case, exact: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """The weights that options add, and the reset states, from a generator of their own."""
    g = torch.Generator().manual_seed(case.seed + 1)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=g, dtype=torch.float64) * 2 - 1

    inputs, H, D = {}, case.H, case.directions
    for kind in BUILT_IN[case.cell].further:
        shape = (kind.rows, H) if kind.is_matrix else (kind.rows * H,)
        for d in range(D):  # gains are positive and below 1, so that a step contracts
            values = uniform(*shape)
            inputs[f"{kind.name}[{d}]"] = exact(0.6 + 0.4 * values if kind.name.startswith("weight_ln") else values / 2)
    if case.learnt:
        inputs["h_reset"] = exact(uniform(D, case.out))
        if BUILT_IN[case.cell].has_c:
            inputs["c_reset"] = exact(uniform(D, H))
    return inputs


def resets_of(case: Case) -> Tensor | None:
    """(T, B). Where `some` steps are reset, the first two of the last row are among them."""
    if case.resets == "none":
        return None
    if case.resets == "all":
        return torch.ones(case.T, case.B, dtype=torch.bool)
    g = torch.Generator().manual_seed(case.seed + 2)
    resets = torch.rand(case.T, case.B, generator=g) < (0.1 if case.resets == "some" else 0.0)
    if case.resets == "first":
        resets[0] = True
    else:
        resets[:2, -1:] = True
    return resets


def _keep_off_the_kink(inputs: dict[str, Tensor], case: Case) -> None:
    """Makes every relu clearly positive or clearly negative in 16 bits. Where h is rounded to few bits, a relu near 0
    may have another sign than in the float64 reference, and its gradient would then differ by its full size. float32
    and float64 keep their mixed signs."""
    if case.dtype not in ROUNDED:
        return
    normed = case.cell.endswith("_layer_norm")
    for name, t in inputs.items():
        if name in ("x", "h0", "h_reset"):
            t.abs_()
        elif normed and name.startswith("w"):
            continue
        else:
            sign = torch.where(torch.arange(case.H) % 3 == 1, -1.0, 1.0).double()
            shrink = case.H**-0.5 if name.startswith("w_hh") else 1.0  # positive rows sum up: keep them below 1
            least = 3.0 if normed else 0.0  # each of the two normalised sums is nearly always smaller
            t.copy_(((least + t.abs() * shrink) * sign.view(-1, *[1] * (t.dim() - 1))).to(case.torch_dtype).double())


def lengths_of(case: Case, g: torch.Generator) -> Tensor | None:
    T, B = case.T, case.B
    if case.lengths == "none":
        return torch.full((B,), T) if case.layout == "packed" else None
    lengths = torch.randint(0 if case.lengths == "zeros" else 1, T + 1, (B,), generator=g)
    if case.lengths == "zeros":
        lengths[:: max(2, B // 3)] = 0
    elif case.lengths == "equal":
        lengths[:] = (T + 1) // 2
    elif case.lengths == "all_zero":
        lengths[:] = 0
    elif case.lengths == "one_long":
        lengths[:] = 1
        lengths[B // 2] = T
    return lengths.sort(descending=True).values if case.layout == "packed" else lengths


def only(*cases: Case, **axes: Any) -> list[Case]:
    """`cases` with some fields set: `only(*LARGE, dtype="float64")`."""
    assert set(axes) <= {f.name for f in fields(Case)}
    return [c for c in (replace(case, **axes) for case in cases) if c.valid]

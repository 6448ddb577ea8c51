"""The recurrent kernels in the PTX, and for each a layer that plan.h runs with it.

A kernel is named by cell, precision, regime, tiling and whether it is the variant with options; its forward and its
backward are two kernels of one layer. A layer whose H is the smallest that takes the tiling has the most padding; one
whose H is the largest has none.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

from ptx.build import kernels
from seqcls_fast import _ext
from seqcls_fast._cells import BUILT_IN
from support.cases import FLOATS, HALVES, Case

DTYPES = {"Bf16": "bfloat16", "Fp16": "float16", "Tf32x3": "float32", "Tf32": "tf32"}
PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "tf32x3", "tf32": "tf32"}
CELLS = {"TanhActivation": "rnn_tanh", "ReluActivation": "rnn_relu", "Gru": "gru", "Lstm": "lstm"}
OF_ROWS = (*(f"{cell}_layer_norm" for cell in CELLS.values()), "gru_reset_before")  # without a cluster regime
OPTION_DTYPES = ("bfloat16", "float32")  # of the sample of kernels with options
REGIMES = ("onchip", "cluster", "grid", "stepwise")
DEVICE = {"architecture": 90, "multiprocessors": 132, "shared_bytes": 232448, "cluster": 16, "warps": 16}
MANGLED = re.compile(
    r"_ZN2sf4cuda5recurINS0_5ShapeI(?P<norm>NS_6NormedI)?(?:NS_5ElmanI)?NS_\d+(?P<cell>[A-Z][a-zA-Z]+?)E+NS0_\d+(?P<precision>Bf16|Fp16|Tf32x3|Tf32)E"
    r"Li(?P<splits>\d+)ELi(?P<k_tiles>\d+)ELNS0_4PassE(?P<backward>[01])ELb(?P<options>[01])EEENS0_\d+(?P<regime>Onchip|Cluster|Grid)EEE"
)


class Recurrent(NamedTuple):
    cell: str
    dtype: str
    regime: str
    splits: int
    k_tiles: int
    options: bool = False

    def __str__(self) -> str:
        name = f"{self.cell}-{self.dtype}-{self.regime}-{self.splits}x{self.k_tiles}"
        return f"{name}-options" if self.options else name

    @property
    def layer(self) -> str:
        """The cell of a layer that runs it and uses all of it."""
        return "lstm_peephole" if self.options and self.cell == "lstm" else self.cell


@cache
def recurrent() -> dict[Recurrent, tuple[str, str]]:
    """The mangled names of the forward and the backward of every recurrent kernel."""
    found: dict[Recurrent, dict[str, str]] = {}
    for name in kernels():
        parts = MANGLED.match(name)
        if parts is None:
            assert "5recurI" not in name, f"{name}: expected a name that MANGLED describes"
            continue
        kernel = Recurrent(
            CELLS.get(parts["cell"], "gru_reset_before") + ("_layer_norm" if parts["norm"] else ""),
            DTYPES[parts["precision"]],
            parts["regime"].lower(),
            int(parts["splits"]),
            int(parts["k_tiles"]),
            parts["options"] == "1",
        )
        found.setdefault(kernel, {})[parts["backward"]] = name
    return {kernel: (passes["0"], passes["1"]) for kernel, passes in found.items()}


def plan(kernel: Recurrent, H: int, B: int, directions: int, back: bool) -> dict[str, Any]:
    assert _ext.C is not None
    precision = PRECISIONS[kernel.dtype]
    return _ext.C.plan(kernel.layer, H, B, precision, directions, back, kernel.regime, DEVICE, kernel.options)


def runs(kernel: Recurrent, H: int, B: int = 1, directions: int = 1) -> bool:
    """Whether both passes of such a layer take the kernel."""
    for back in (False, True):
        found = plan(kernel, H, B, directions, back)
        if not found["fits"] or (found["splits"], found["k_tiles"]) != (kernel.splits, kernel.k_tiles):
            return False
        if kernel.regime != "onchip" and found["blocks"] == 1:
            return False
    return True


@cache
def sizes(kernel: Recurrent) -> tuple[int, int]:
    """The smallest and the largest H whose layer takes the kernel."""
    found = [H for H in range(1, 1025) if runs(kernel, H)]
    assert found, f"{kernel}: expected a hidden size that plan.h runs with it"
    return found[0], found[-1]


def cases(kernel: Recurrent) -> Iterator[Case]:
    """Two layers that run the kernel: one ragged, with padding and several tiles, in two directions; one without."""
    smallest, largest = sizes(kernel)
    common: dict[str, Any] = {"dtype": kernel.dtype, "I": 3}
    noise = ("all", "zoneout") if kernel.options else ("none", "none")
    several = {"B": 19, "T": 4, "lengths": "zeros", "directions": 2}
    while not runs(kernel, smallest, several["B"], several["directions"]):
        several |= {"B": 9} if several["B"] == 19 else {"directions": 1}
    yield Case(kernel.layer, H=smallest, resets="some", learnt=True, noise=noise[0], **common, **several)
    yield Case(kernel.cell, H=largest, T=5, B=3, lengths="random", layout="packed", noise=noise[1], **common)


def implementation(kernel: Recurrent) -> str:
    return f"ptx-{kernel.regime}{'-tf32' if kernel.dtype == 'tf32' else ''}"


def sample() -> list[Recurrent]:
    """For each cell, precision and regime the kernel of the smallest tiling, which runs fastest; with options in two of
    the precisions."""
    first: dict[tuple[str, str, str, bool], Recurrent] = {}
    for kernel in sorted(recurrent(), key=lambda kernel: kernel.splits * kernel.k_tiles):
        if not kernel.options or kernel.dtype in OPTION_DTYPES:
            first.setdefault((kernel.cell, kernel.dtype, kernel.regime, kernel.options), kernel)
    return list(first.values())


def others() -> list[tuple[str, Case]]:
    """Layers that run every other kernel: stepwise, for every dtype; ids; rows that must be copied; many launches."""
    found = []
    for cell, dtype in itertools.product(CELLS.values(), (*PRECISIONS, "float64")):
        stepwise = f"ptx-stepwise{'-tf32' if dtype == 'tf32' else ''}"
        found.append((stepwise, Case(cell, dtype=dtype, H=17, B=9, T=4, I=3, lengths="zeros", directions=2)))
        found.append((stepwise, Case(cell, dtype=dtype, H=17, B=3, T=29, I=2, lengths="random", ids=True)))
        if cell == "lstm":
            found.append((stepwise, Case(cell, dtype=dtype, H=17, B=9, T=4, I=3, lengths="random", proj=True)))
            found.append(
                (stepwise, Case(cell, dtype=dtype, H=9, B=5, T=4, layout="packed", lengths="random", proj=True))
            )
    for cell, dtype in itertools.product(BUILT_IN, (*HALVES, *FLOATS)):
        options: dict[str, Any] = {"resets": "some", "learnt": True, "noise": "all", "lengths": "random"}
        found.append(("ptx-stepwise", Case(cell, dtype=dtype, H=17, B=5, T=4, I=3, directions=2, **options)))
    for regime, cell in itertools.product(REGIMES[:3], CELLS.values()):
        dtype, H = ("bfloat16", 20) if regime == "onchip" else ("tf32", 132)
        name = f"ptx-{regime}-chunked{'-tf32' if dtype == 'tf32' else ''}"
        found.append((name, Case(cell, dtype=dtype, H=H, B=9, T=13, I=3, lengths="zeros", directions=2)))
        found.append((name, Case(cell, dtype=dtype, H=H, B=3, T=6, I=4, lengths="random", ids=True, layout="packed")))
    found.append(("ptx-onchip", Case("lstm", dtype="bfloat16", H=17, B=9, T=5, I=3, layout="features_first")))
    found.append(("ptx-onchip", Case("gru", dtype="float16", H=17, B=9, T=5, I=3, layout="strided", bias=False)))
    found.append(("ptx-onchip", Case("lstm", dtype="bfloat16", H=64, B=90, T=3, lengths="random", state=False)))
    found.append(("ptx-onchip", Case("lstm", dtype="float32", B=0)))
    return found

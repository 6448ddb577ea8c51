"""How far two computations of the same tensor may differ: the one place where tests get their tolerances from.

Nothing here is tuned. A result that went through ``terms`` roundings is off by at most about ``terms * u`` of its
scale, u being the unit roundoff of its dtype; two such results differ by twice that, and 2 * u is ``finfo.eps``.
The scale of a tensor is its largest expected magnitude, so a tensor that should be all zero must be exactly zero.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

TF32_EPS = 2.0**-10  # of 11 bits, as finfo.eps


def tolerance(dtype: torch.dtype, terms: int, tf32: bool = False) -> float:
    """The relative difference that ``terms`` roundings in ``dtype`` explain, or in TF32, whose values are float32's.

    Count the longest chain: a dot product of n terms is n roundings, a recurrence of T steps multiplies by T, a
    weight gradient adds one per row it sums. 16-bit dtypes and TF32 sum in float32, so only their roundings of h
    count: T.
    """
    return terms * (TF32_EPS if tf32 else torch.finfo(dtype).eps)


def assert_close_by_name(
    actual: Mapping[str, Tensor | None],
    expected: Mapping[str, Tensor | None],
    terms: int,
    dtype: torch.dtype | None = None,
) -> None:
    """Compare tensors name by name in float64, and list every one that is off with its error and its bound.

    ``dtype`` is the one whose roundings count (default: that of each actual tensor). Shapes, None, NaN and inf must
    match.
    """
    assert actual.keys() == expected.keys(), f"names differ: {sorted(actual.keys() ^ expected.keys())}"
    faults = []
    for name, want in expected.items():
        got = actual[name]
        if got is None or want is None:
            if got is not want:
                faults.append(f"{name}: expected {_describe(want)}, got {_describe(got)}")
        elif got.shape != want.shape:
            faults.append(f"{name}: expected {_describe(want)}, got {_describe(got)}")
        elif want.numel():
            got64, want64 = got.detach().double().cpu(), want.detach().double().cpu()
            finite = want64.isfinite()
            if not torch.equal(got64[~finite].nan_to_num(nan=0.5), want64[~finite].nan_to_num(nan=0.5)):
                faults.append(f"{name}: NaN or inf differ from the expected ones")
                continue
            got64, want64 = got64[finite], want64[finite]
            scale = want64.abs().max().item() if want64.numel() else 0.0
            bound = tolerance(dtype or got.dtype, terms) * scale
            error = (got64 - want64).abs().max().item() if want64.numel() else 0.0
            if not error <= bound:  # a NaN in got is an error too
                faults.append(f"{name}: max error {error:.3g} above {bound:.3g} ({terms} roundings, scale {scale:.3g})")
    assert not faults, "\n".join(faults)


def _describe(tensor: Tensor | None) -> str:
    return "None" if tensor is None else f"shape {tuple(tensor.shape)}"

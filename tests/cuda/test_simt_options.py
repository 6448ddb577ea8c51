"""The CUDA backend on CPU tensors (simt/), as in test_simt.py: layers with options, against the float64 reference.

Every option runs in every regime, but those for which the units of a row meet within a step have no cluster regime.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from seqcls_fast import _self_test
from seqcls_fast._autograd import Spec
from seqcls_fast._cells import BUILT_IN, Rates
from simt.build import load_plugin, why_no_plugin
from support.cases import LAYOUTS, LENGTHS, NOISE, RESETS, Case, Values, build, covering
from support.checks import arguments, check, gradients, keywords, layer, measured
from test_simt import EASY, PRECISIONS, REGIMES, Run, fits, run_of, same_bits

pytestmark = pytest.mark.skipif(why_no_plugin() is not None, reason=str(why_no_plugin()))

PLAIN = tuple(name for name, cell in BUILT_IN.items() if not cell.is_option)
OF_ROWS = tuple(name for name in BUILT_IN if name.endswith("_layer_norm") or name == "gru_reset_before")
OF_UNITS = tuple(name for name in BUILT_IN if name not in OF_ROWS)  # each unit of a step alone
SHARED: dict[str, tuple[Any, ...]] = {
    "size": ("", "-full"),
    "B": (1, 3, 9, 19),
    "I": (1, 6),
    "directions": (1, 2),
    "bias": (True, False),
    "proj": (False, False, True),
    "state": (True, False),
    "lengths": LENGTHS,
    "layout": LAYOUTS,
    "want_output": (True, False),
    "ids": (False, False, True),
    "learnt": (True, False),
}
RESET_AXES = SHARED | {
    "kernel": tuple(itertools.product(PLAIN, (*PRECISIONS, "float64"), REGIMES)),
    "H": (1, 7, 33, 65),
    "T": (1, 2, 5, 13),
    "resets": tuple(name for name in RESETS if name != "none"),
}
OPTION_AXES = SHARED | {
    "kernel": tuple(itertools.product(BUILT_IN, (*PRECISIONS, "float64"), REGIMES)),
    "H": (3, 7, 33, 65),  # of one unit a test would measure how saturated it is
    "T": (1, 2, 5, 13),
    "resets": RESETS,
    "noise": tuple(NOISE),
}


def regimes_of(cell: str, *more: str) -> tuple[str, ...]:
    """Those that keep the weights of a cell on the chip."""
    return tuple(regime for regime in (*REGIMES[:-1], *more) if cell in OF_UNITS or regime != "cluster")


@cache
def runs() -> list[Run]:
    """Every kernel with every value of the other axes, and any two of these values together. Then what pairs of values
    do not make certain: resets that meet several launches and tiles, and every cell under all noise at once."""
    several_blocks = {"H": 33}
    chosen = [run_of(values) for values in covering(RESET_AXES, valid, EASY)]
    chosen += [run_of(values) for values in covering(OPTION_AXES, valid, (*EASY, several_blocks))]
    busy = {"B": 9, "I": 3, "H": 33, "directions": 2, "resets": "some", "learnt": True}
    chosen += [Run(f"simt-{r}", Case(c, T=29, lengths="zeros", **busy)) for r in REGIMES for c in PLAIN]
    chosen += [Run("simt-stepwise", Case(c, T=9, lengths="random", noise=n, **busy)) for c in BUILT_IN for n in NOISE]
    for cell, noise in itertools.product(BUILT_IN, NOISE):
        case = Case(cell, T=9, lengths="random", noise=noise, **busy)
        chosen += [Run(f"simt-{regime}", case) for regime in regimes_of(cell)]
    for cell in BUILT_IN:  # a team works through many tiles; a warp holds a part of the cells of its units
        many = {"T": 5, "B": 99, "I": 2, "H": 33, "resets": "some", "learnt": True, "noise": "all", "lengths": "random"}
        chosen += [Run(f"simt-{regime}", Case(cell, dtype="float16", **many)) for regime in regimes_of(cell)]
        wide = {"H": 200, "T": 3, "B": 9, "I": 2, "dtype": "bfloat16", "noise": "all", "resets": "some"}
        chosen += [Run(f"simt-{regime}-full", Case(cell, **wide)) for regime in regimes_of(cell)[1:]]
        chosen.append(Run("simt-auto-crowded", Case(cell, T=9, lengths="zeros", noise="all", **busy)))
    chosen += [Run("simt-grid", Case("lstm", T=6, B=99, I=2, H=33, resets="some", layout="batch_first", learnt=True))]
    for cell in OF_ROWS:  # a block has two tiles, and so a second product or a meeting behind that of the first
        chosen.append(Run("simt-onchip", Case(cell, T=4, B=19, I=3, H=7, directions=2, lengths="zeros")))
    # a row wider than a block of threads
    chosen += [Run("simt-stepwise", Case(c, T=2, B=2, I=2, H=300)) for c in BUILT_IN if c.endswith("_norm")]
    return [run for run in chosen if run.case.valid]


def valid(values: Values) -> bool:
    """Of one feature a normalised sum keeps the sign alone: the gradient of x would be what sums leave that cancel."""
    case = run_of(values).case
    return fits(values) and case.valid and not (case.I == 1 and case.cell.endswith("_layer_norm"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "run" in metafunc.fixturenames:
        metafunc.parametrize("run", runs() if why_no_plugin() is None else [], ids=str)


@pytest.fixture(scope="module", autouse=True)
def _plugin() -> None:
    load_plugin()


def test_matches_reference(run: Run) -> None:
    check(run.case, run.impl)


@pytest.mark.parametrize("cell", PLAIN)
def test_resets_have_the_same_bits_in_every_regime(cell: str) -> None:
    case = Case(cell, T=6, B=19, I=3, H=33, directions=2, lengths="zeros", resets="some", learnt=True)
    wanted = measured(case, "simt-onchip")
    for name in ("onchip-full", "cluster", "grid"):
        same_bits(measured(case, f"simt-{name}"), wanted)


@pytest.mark.parametrize("noise", ["none", "all"])
@pytest.mark.parametrize("cell", BUILT_IN)
def test_options_have_the_same_bits_in_every_regime(cell: str, noise: str) -> None:
    options = {"resets": "some", "learnt": True, "noise": noise}
    case = Case(cell, T=6, B=19, I=3, H=33, directions=2, lengths="zeros", **options)
    wanted = measured(case, "simt-onchip")
    for name in regimes_of(cell, "onchip-full")[1:]:
        same_bits(measured(case, f"simt-{name}"), wanted)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("cell", PLAIN)
def test_a_mask_without_resets_changes_no_bit(cell: str, regime: str) -> None:
    case = Case(cell, T=5, B=9, I=3, H=33, directions=2, lengths="zeros")
    problem = build(case)
    found = []
    for masks in ({}, {"resets": torch.zeros(case.T, case.B, dtype=torch.bool)}):
        inputs = arguments(case, problem)
        results = layer(inputs, **keywords(case, problem), **masks, impl=f"simt-{regime}")
        cotangents = {name: t.float() for name, t in problem.cotangents.items()}
        found.append({name: t.detach() for name, t in results.items()} | gradients(results, inputs, cotangents))
    for one in found:  # d x may be NaN in the padding
        one["d x"] = one["d x"].nan_to_num()
    same_bits(*found)


@pytest.mark.parametrize("cell", OF_ROWS)
def test_clusters_refuse_options_for_which_the_units_of_a_row_meet(cell: str) -> None:
    what = "layer normalisation" if cell.endswith("_norm") else "a GRU that resets before the product"
    for noise in ("none", "all"):
        with pytest.raises(RuntimeError, match=f"{what} has no kernel for clusters$"):
            measured(Case(cell, noise=noise), "simt-cluster")


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("cell", PLAIN)
def test_rates_that_change_nothing_change_no_bit(cell: str, regime: str) -> None:
    """The kernels with options give what the plain ones give: here nothing is ever drawn."""
    case = Case(cell, T=5, B=9, I=3, H=33, directions=2, lengths="zeros", resets="some", noise="zoneout_eval")
    plain = measured(replace(case, noise="none"), f"simt-{regime}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NOISE, "zoneout_eval", Rates(1e-30))
        same_bits(measured(case, f"simt-{regime}"), plain)


@pytest.mark.parametrize("regime", REGIMES)
def test_masks_follow_from_the_seed(regime: str) -> None:
    case, impl = Case("lstm", T=5, B=4, I=3, H=33, noise="all"), f"simt-{regime}"
    same_bits(measured(case, impl), measured(case, impl))
    assert not torch.equal(measured(case, impl)["output"], measured(replace(case, noise="none"), impl)["output"])


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("layer", _self_test._LAYERS, ids=lambda layer: f"{layer[0]}-{layer[1]}".replace("torch.", ""))
def test_the_check_before_a_first_call_passes_with_resets(
    layer: tuple[str, torch.dtype, bool, float], regime: str
) -> None:
    cell, dtype, tf32, rounding = layer
    spec = Spec(1, cell, False, True, f"simt-{regime}", tf32)
    found, wanted = _self_test.compare(spec, 33, dtype, torch.device("cpu"), resets=True)
    assert {"d h_reset", "d h0", "d w_hh"} <= found.keys()
    assert _self_test.differences(found, wanted, rounding) == ""


@pytest.mark.parametrize(
    ("cell", "regime"),
    [(c, r) for c in _self_test._OPTIONS for r in regimes_of(c, "stepwise")],
)
def test_the_check_before_a_first_call_passes_with_options(cell: str, regime: str) -> None:
    spec = Spec(1, cell, False, True, f"simt-{regime}").replace(rates=_self_test.rates_of(cell))
    found, wanted = _self_test.compare(spec, 33, torch.float32, torch.device("cpu"), resets=True)
    assert {f"d {kind.name}" for kind in BUILT_IN[cell].further} <= found.keys()
    assert _self_test.differences(found, wanted, _self_test._OPTION_ROUNDING) == ""

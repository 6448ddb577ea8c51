"""The CUDA backend on CPU tensors (simt/): every regime against the float64 reference, in memory filled with NaN.

The planner says which cases a regime can run, with the limits of the devices of plugin.cpp. `--simt-full` runs every
combination of the axes that decide which code runs.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from seqcls_fast import _ext
from simt.build import load_plugin, why_no_plugin
from support.cases import CELLS, LAYOUTS, LENGTHS, Case, Values, build, covering
from support.checks import NAN, Named, arguments, check, compare, gradients, keywords, lay_out, layer, measured

pytestmark = pytest.mark.skipif(why_no_plugin() is not None, reason=str(why_no_plugin()))

REGIMES = ("onchip", "cluster", "grid", "stepwise")
PRECISIONS = {"bfloat16": "bf16", "float16": "fp16", "float32": "tf32x3", "tf32": "tf32"}
# The devices of plugin.cpp, smallest first. With "-full" in a name, the last alone is tried.
DEVICES = (
    {"architecture": 90, "multiprocessors": 4, "shared_bytes": 65536, "cluster": 4, "warps": 2},
    {"architecture": 90, "multiprocessors": 40, "shared_bytes": 232448, "cluster": 16, "warps": 2},
    {"architecture": 90, "multiprocessors": 64, "shared_bytes": 232448, "cluster": 16, "warps": 16},
)

AXES: dict[str, tuple[Any, ...]] = {
    "kernel": tuple(itertools.product(CELLS, (*PRECISIONS, "float64"), REGIMES)),
    "size": ("", "-full"),  # of the device
    "H": (1, 7, 33, 65, 100, 130, 200),
    "B": (1, 3, 8, 9, 19, 33),
    "T": (1, 2, 5, 13),
    "I": (1, 6),
    "directions": (1, 2),
    "bias": (True, False),
    "proj": (False, False, True),
    "state": (True, False),
    "lengths": LENGTHS,
    "layout": LAYOUTS,
    "want_output": (True, False),
    "ids": (False, False, True),
}
EASY = ({"H": 7}, {"H": 7, "kernel": ("lstm", "bfloat16", "stepwise")})
MAX_COST = 60_000_000  # multiply-adds of a forward pass, padded to tiles; a few seconds


class Run(NamedTuple):
    impl: str
    case: Case

    def __str__(self) -> str:
        return f"{self.impl}-{self.case}"


def plan_of(
    cell: str,
    dtype: str,
    regime: str,
    H: int,
    B: int = 1,
    directions: int = 1,
    back: bool = False,
    device: Values = DEVICES[-1],
    noisy: bool = False,
) -> Values:
    assert _ext.C is not None
    return _ext.C.plan(cell, H, B, PRECISIONS[dtype], directions, back, regime, device, noisy)


@cache
def can_run(
    kernel: tuple[str, str, str], H: int, B: int = 1, directions: int = 1, size: str = "", noisy: bool = False
) -> bool:
    """Whether a regime can run each pass of a layer on one of the devices. noisy: zoneout or a dropout changes it."""
    _, dtype, regime = kernel
    if regime == "stepwise":
        return True
    devices = DEVICES[-1:] if size else DEVICES
    return dtype != "float64" and all(
        any(plan_of(*kernel, H, B, directions, back, device, noisy)["fits"] for device in devices)
        for back in (False, True)
    )


def run_of(values: Values) -> Run:
    axes = dict(values)
    (cell, dtype, regime), size = axes.pop("kernel"), axes.pop("size")
    return Run(f"simt-{regime}{size}{'-tf32' if dtype == 'tf32' else ''}", Case(cell, dtype=dtype, **axes))


def fits(values: Values) -> bool:
    kernel, case = values["kernel"], run_of(values).case
    if kernel[2] == "stepwise" and values["size"]:  # stepwise does the same on every device
        return False
    if not case.valid or (case.proj and kernel[2] != "stepwise"):
        return False
    tiles = -(-case.B // 8) * 8
    products = {"float32": 3, "float64": 3}.get(case.dtype, 1)
    cost = products * case.T * tiles * case.directions * case.G * case.H * (case.I + case.H)
    noisy = case.noise != "none"
    return cost <= MAX_COST and can_run(kernel, case.H, case.B, case.directions, values["size"], noisy)


@cache
def pairwise() -> list[Run]:
    """Every kernel together with every value of the other axes, and any two of these values together."""
    return [run_of(values) for values in covering(AXES, fits, EASY)]


def product() -> Iterator[Run]:
    """Every combination of the chosen axes; the values of the other axes are drawn at random."""
    rng = random.Random(0)
    chosen = ("kernel", "size", "H", "B", "directions")
    rest = [name for name in AXES if name not in chosen]
    for values in itertools.product(*(AXES[name] for name in chosen)):
        drawn = ({name: rng.choice(AXES[name]) for name in rest} for _ in range(100))
        found = next(filter(fits, (dict(zip(chosen, values, strict=True)) | more for more in drawn)), None)
        if found is not None:
            yield run_of(found)


def tiling_of(kernel: tuple[str, str, str], H: int) -> tuple[int, int]:
    plan = plan_of(*kernel, H)
    return plan["splits"], plan["k_tiles"]


@cache
def others() -> list[Run]:
    """Kernels that no H of AXES uses, at an H that is neither the smallest nor the largest they serve."""
    runs = []
    for kernel in AXES["kernel"]:
        if kernel[2] == "stepwise" or kernel[1] == "float64":
            continue
        seen = {tiling_of(kernel, H) for H in AXES["H"]}
        for H in range(3, 1024, 16):
            if can_run(kernel, H, 3, size="-full") and (tiling := tiling_of(kernel, H)) not in seen:
                seen.add(tiling)
                axes = {"size": "-full", "H": H, "T": 3, "B": 3, "lengths": "random"}
                runs.append(run_of({"kernel": kernel} | axes))
    return runs


SPECIAL = [
    *(Run(f"simt-{r}", Case("lstm", T=300, B=3, I=2, H=33, dtype="bfloat16", lengths="one_long")) for r in REGIMES),
    # a team works through many tiles, whose rows end at different steps of one launch
    *(Run(f"simt-{r}", Case("gru", T=13, B=99, I=3, H=33, lengths="random", layout="packed")) for r in REGIMES),
    *(Run(f"simt-{r}", Case("lstm", T=9, B=140, I=3, H=33, dtype="float16", lengths="zeros")) for r in REGIMES),
    # several launches, each of several steps
    *(Run(f"simt-{r}", Case(c, T=29, B=9, I=3, H=33, directions=2, lengths="zeros")) for r in REGIMES for c in CELLS),
    *(Run(f"simt-{r}", Case("lstm", B=0, directions=2)) for r in REGIMES),
    *(Run(f"simt-{r}", Case("gru", T=2, B=0, lengths="random", ids=True)) for r in REGIMES),
    # runs of equal ids within one segment (csrc/cuda/kernels/ids.cuh), across two, and over several
    *(Run("simt-onchip", Case("lstm", T=29, B=9, I=I, H=20, lengths="zeros", ids=True)) for I in (1, 2, 9, 400)),
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "run" in metafunc.fixturenames:
        runs: list[Run] = []
        if why_no_plugin() is None:
            runs = [*SPECIAL, *(product() if metafunc.config.getoption("simt_full") else pairwise()), *others()]
        metafunc.parametrize("run", runs, ids=str)


@pytest.fixture(scope="module", autouse=True)
def _plugin() -> None:
    load_plugin()


def test_selection_has_every_kernel() -> None:
    wanted = {kernel for kernel in AXES["kernel"] if can_run(kernel, 1) or can_run(kernel, 33)}
    runs = {(run.case.cell, run.case.dtype, run.impl.split("-")[1]) for run in pairwise()}
    assert runs == wanted
    assert len(wanted) == len(CELLS) * (len(PRECISIONS) * len(REGIMES) + 1)  # float64: stepwise alone


def test_matches_reference(run: Run) -> None:
    check(run.case, run.impl)


def test_what_the_selection_leaves_out_is_refused() -> None:
    """The plugin refuses the cases that the planner says a regime cannot run."""
    refused = {}
    for kernel, H in itertools.product(AXES["kernel"], AXES["H"]):
        _, dtype, regime = kernel
        if can_run(kernel, H) or (dtype == "float64" and H > 1):
            continue
        if H <= 16 and regime in ("cluster", "grid"):
            continue  # refused too, for there is nothing to share: see REFUSED
        run = run_of({"kernel": kernel, "size": "", "T": 1, "B": 1, "H": H})
        with pytest.raises(RuntimeError, match=f"^impl: {regime} cannot run this layer .hidden_size {H}, batch 1.: "):
            measured(run.case, run.impl)
        refused[kernel] = H
    assert {kernel[2] for kernel, H in refused.items() if H > 1} == {"onchip"}


ONCHIP = "the recurrent weights do not fit one multiprocessor"
ALONE = "one multiprocessor holds the recurrent weights, so there are no blocks to share them"
REFUSED = [
    ("simt-onchip", Case("lstm", H=300, dtype="bfloat16"), ONCHIP),
    ("simt-onchip-full", Case("lstm", H=129, dtype="bfloat16"), ONCHIP),
    ("simt-cluster-full", Case("lstm", H=520, dtype="bfloat16"), "the recurrent weights do not fit one cluster"),
    (
        "simt-grid",
        Case("lstm", H=520, directions=2, dtype="bfloat16"),
        "the recurrent weights do not fit all multiprocessors at once",
    ),
    ("simt-grid", Case("gru", H=300), "the recurrent weights do not fit the registers of any kernel"),
    (
        "simt-grid",
        Case("gru", B=4000, H=250, dtype="bfloat16"),
        "so many rows do not fit all multiprocessors at once",
    ),
    ("simt-cluster", Case("gru", H=7), ALONE),
    ("simt-grid-full", Case("lstm", H=128, dtype="bfloat16"), ALONE),
    ("simt-grid", Case("gru", dtype="float64"), "float64 has no kernel that keeps its weights on the chip"),
    ("simt-cluster", Case("lstm", proj=True), "projected states have no kernel that keeps its weights on the chip"),
]


@pytest.mark.parametrize(("name", "case", "reason"), REFUSED, ids=lambda value: str(value).replace(" ", "_"))
def test_a_regime_that_cannot_run_a_layer_says_why(name: str, case: Case, reason: str) -> None:
    sentence = f"impl: {name.split('-')[1]} cannot run this layer (hidden_size {case.H}, batch {case.B}): {reason}"
    with pytest.raises(RuntimeError, match=f"^{re.escape(sentence)}$"):
        measured(case, name)


def test_unknown_names_are_refused() -> None:
    case = Case()
    inputs = {name: t.float() for name, t in build(case).inputs.items()}
    with pytest.raises(ValueError, match=r"impl: expected one of auto, .* but got 'simt-onship'"):
        layer(inputs, cell="gru", impl="simt-onship")
    x, *weights = list(inputs.values())[:3]
    options = (None, None, None, None, "gru", 1, False, True, True)
    with pytest.raises(RuntimeError, match=r"impl: .* but got 'simt-grid-half'"):
        torch.ops.seqcls_fast.rnn_forward(x, weights, *options, "simt-grid-half")


@pytest.mark.parametrize("regime", REGIMES)
def test_allow_tf32_is_an_argument_of_the_ops(regime: str) -> None:
    """It is what -tf32 in a name says, in the forward, the backward and the gradients of weights."""
    case = Case("gru", T=3, B=4, I=3, H=33)
    inputs = {name: t.float() for name, t in build(case).inputs.items()}
    x, h0 = inputs.pop("x"), inputs.pop("h0")
    library, weights = torch.ops.seqcls_fast, list(inputs.values())
    fixed = (x, weights, h0, None, None, None)

    def run(impl: str, allow_tf32: bool) -> Named:
        forward = library.rnn_forward(*fixed, "gru", 1, False, True, True, impl, allow_tf32)
        h_n, output, saved = forward
        tail = (output, saved, "gru", 1, False, True, True, 0, impl, allow_tf32)
        backward = library.rnn_backward(output.cos(), h_n.sin(), None, *fixed, *tail)
        return dict(zip(("h_n", "output", "d x", "d h0", *inputs), (h_n, output, *backward), strict=True))

    rounded, exact = run(f"simt-{regime}-tf32", False), run(f"simt-{regime}", False)
    same_bits(run(f"simt-{regime}", True), rounded)
    assert all(not torch.equal(t, exact[name]) for name, t in rounded.items())


@pytest.mark.parametrize("regime", ["cluster", "grid"])
def test_waiting_in_vain_is_an_error(regime: str) -> None:
    with pytest.raises(RuntimeError, match="gave up waiting for the other blocks of its team"):
        measured(Case("gru", T=9, B=3, H=33), f"simt-{regime}-hurried")


@pytest.mark.parametrize("cell", CELLS)
def test_too_few_multiprocessors_now(cell: str) -> None:
    """A plan whose blocks the device cannot hold at the launch is replaced, unless its regime was asked for."""
    case = Case(cell, T=9, B=9, I=3, H=33, directions=2, lengths="zeros")
    check(case, "simt-auto-crowded")
    same_bits(measured(case, "simt-auto-crowded"), measured(case, "simt-stepwise"))
    with pytest.raises(RuntimeError, match="blocks at once on 1 multiprocessors"):
        measured(case, "simt-grid-crowded")


def same_bits(found: Named, wanted: Named) -> None:
    assert found.keys() == wanted.keys()
    different = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert different == []


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_regimes_and_repeats_agree_to_the_bit(cell: str, dtype: str) -> None:
    """The regimes differ in how operands travel, but sum in the same order. The simulator runs threads in another order
    each time. Stepwise forms its products otherwise, so it is compared only with itself."""
    case = Case(cell, T=6, B=19, I=3, H=33, directions=2, lengths="zeros", dtype=dtype)
    suffix = "-tf32" if dtype == "tf32" else ""
    wanted = measured(case, f"simt-onchip{suffix}")
    for name in ("onchip", "onchip-full", "cluster", "grid"):
        same_bits(measured(case, f"simt-{name}{suffix}"), wanted)
    wide = replace(case, H=150, T=3)  # a large device takes several blocks for it
    same_bits(measured(wide, f"simt-cluster-full{suffix}"), measured(wide, f"simt-grid-full{suffix}"))
    stepwise = measured(case, f"simt-stepwise{suffix}")
    same_bits(measured(case, f"simt-stepwise{suffix}"), stepwise)


EACH_REGIME = pytest.mark.parametrize("regime", REGIMES)


@EACH_REGIME
@pytest.mark.parametrize("cell", CELLS)
def test_recomputed_gates_are_the_same(cell: str, regime: str) -> None:
    case = Case(cell, T=6, B=9, I=3, H=33, directions=2, lengths="random", dtype="bfloat16")
    problem = build(case)
    options = keywords(case, problem) | {"impl": f"simt-{regime}"}
    found = []
    for recompute in (False, True):
        inputs = arguments(case, problem)
        cotangents = {name: t.to(case.torch_dtype) for name, t in problem.cotangents.items()}
        results = layer(inputs, recompute=recompute, **options)
        found.append({name: t.detach() for name, t in results.items()} | gradients(results, inputs, cotangents))
    for one in found:  # d x may be NaN in the padding
        one["d x"] = one["d x"].nan_to_num()
    same_bits(*found)


@EACH_REGIME
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_wanted_alone(cell: str, regime: str) -> None:
    """The gradient of each input has the same bits whether or not other gradients are wanted."""
    case = Case(cell, T=5, B=9, I=3, H=33, directions=2, lengths="zeros", layout="batch_first")
    problem = build(case)
    options = keywords(case, problem) | {"impl": f"simt-{regime}"}
    wanted = measured(case, f"simt-{regime}")
    cotangents = {name: t.float() for name, t in problem.cotangents.items()}
    cotangents["output"] = lay_out(problem.cotangents["output"], case, problem.lengths, is_input=False)
    for kind in {name.split("[")[0] for name in problem.inputs}:
        every = arguments(case, problem)
        alone = {name: t for name, t in every.items() if name.split("[")[0] == kind}
        inputs = {name: t.requires_grad_(name in alone) for name, t in every.items()}
        found = gradients(layer(inputs, **options), alone, cotangents)
        if "d x" in found:
            found["d x"] = found["d x"].transpose(0, 1)
        same_bits(found, {name: wanted[name] for name in found})


@EACH_REGIME
@pytest.mark.parametrize("cell", CELLS)
def test_incoming_gradients_alone(cell: str, regime: str) -> None:
    case = Case(cell, T=5, B=9, I=3, H=33, directions=2, lengths="zeros", dtype="bfloat16")
    problem = build(case)
    inputs = {name: t.to(case.torch_dtype).requires_grad_() for name, t in problem.inputs.items()}
    exact = {name: t.clone().requires_grad_() for name, t in problem.inputs.items()}
    options = keywords(case, problem)
    for name, t in problem.cotangents.items():
        found = gradients(layer(inputs, impl=f"simt-{regime}", **options), inputs, {name: t.to(case.torch_dtype)})
        compare(found, gradients(layer(exact, **options), exact, {name: t}), case)


@EACH_REGIME
@pytest.mark.parametrize("case", [Case(cell, T=5, B=6, I=3, H=33, directions=2, lengths="zeros") for cell in CELLS])
def test_gradients_per_sample(case: Case, regime: str) -> None:
    """torch.func folds three samples of two rows into the batch and keeps their gradients apart."""
    problem = build(replace(case, proj=case.cell == "lstm" and regime == "stepwise"))
    weights = {name: t.float() for name, t in problem.inputs.items() if "[" in name}
    rows = {name: t.float().unflatten(1, (3, 2)) for name, t in problem.inputs.items() if "[" not in name}
    cotangents = {name: t.float().unflatten(1, (3, 2)) for name, t in problem.cotangents.items()}
    lengths = problem.lengths
    assert lengths is not None

    def loss(weights: Named, rows: Named, cotangents: Named, lengths: Tensor, **options: Any) -> Tensor:
        results = layer(weights | rows, cell=case.cell, lengths=lengths, **options)
        return torch.stack([(t * cotangents[name]).sum() for name, t in results.items()]).sum()

    function = vmap(grad(partial(loss, impl=f"simt-{regime}"), (0, 1)), (None, 1, 1, 0))
    found = function(weights, rows, cotangents, lengths.view(3, 2))
    for k in range(3):
        exact = {name: t.double() for name, t in (weights | {key: t[:, k] for key, t in rows.items()}).items()}
        leaves = {name: t.requires_grad_() for name, t in exact.items()}
        results = layer(leaves, cell=case.cell, lengths=lengths.view(3, 2)[k])
        wanted = gradients(results, leaves, {name: t[:, k].double() for name, t in cotangents.items()})
        compare({f"d {name}": t[k] for name, t in (found[0] | found[1]).items()}, wanted, case)


@EACH_REGIME
@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_nan_and_inf(cell: str, dtype: str, regime: str, request: pytest.FixtureRequest) -> None:
    """NaN and inf appear where they do in float64, and do not spread to other rows of the tile."""
    if dtype == "float32" and regime != "stepwise":
        reason = "the low part of an inf is inf - inf, so that three products for one make NaN of it"
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    case = Case(cell, T=4, B=7, I=3, H=33, directions=2, dtype=dtype)
    inputs = build(case).inputs
    inputs["x"][1, 1, 2] = NAN
    inputs["x"][2, 2] = torch.tensor([math.inf, 1, 0])
    inputs["x"][0, 3, 1] = -math.inf
    inputs["h0"][:, 4, 1] = NAN
    inputs["h0"][0, 5, 2] = math.inf
    rounded = {name: t.to(case.torch_dtype) for name, t in inputs.items()}
    found = layer(rounded, cell=cell, impl=f"simt-{regime}{'-tf32' if dtype == 'tf32' else ''}")
    for name, t in layer(inputs, cell=cell).items():
        for kind in (torch.isnan, torch.isposinf, torch.isneginf):
            elsewhere = (kind(found[name]) != kind(t)).nonzero()
            assert not len(elsewhere), f"{name}: {kind.__name__} differs first at {elsewhere[0].tolist()}"


@EACH_REGIME
def test_packed_rows_that_do_not_lie_side_by_side(regime: str) -> None:
    """Input whose features are the outermost dimension, and a gradient of stride 0, are copied within their bounds."""
    case = Case("lstm", T=40, B=9, I=3, H=33, directions=2, lengths="one_long", layout="packed", dtype="bfloat16")
    problem = build(case)
    options = keywords(case, problem)
    found: list[Named] = []
    for dtype, impl in ((torch.float64, {}), (case.torch_dtype, {"impl": f"simt-{regime}"})):
        placed = arguments(case, problem)
        inputs = {name: t.detach().to(dtype) for name, t in placed.items()}
        inputs["x"] = inputs["x"].t().contiguous().t()
        assert not inputs["x"].is_contiguous()
        leaves = {name: t.requires_grad_() for name, t in inputs.items()}
        results = layer(leaves, **options, **impl)
        found.append(gradients({"sum": results["output"].sum()}, leaves, {"sum": torch.ones((), dtype=dtype)}))
    compare(found[1], found[0], case)

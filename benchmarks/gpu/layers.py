"""Checks one layer on the GPU against the float64 reference, beside torch.nn's: its results and every gradient.

The cases, their tensors and tolerances are those of the tests (tests/support). Padding is NaN, and a pass full of NaN
is run first, so that memory which is used again holds NaN too. Every other way of making the same call must give the
same bits.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from support import checks
from support.cases import Case, Problem, build
from support.checks import Named
from support.tolerances import tolerance

from .device import DTYPES, tf32_switch

CASE_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "tf32": "tf32", "fp32": "float32", "fp64": "float64"}
IDS_SIZE = 33
MODULES = {"rnn_tanh": nn.RNN, "rnn_relu": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


def variants(cell: str, precision: str, hidden: int) -> dict[str, Case]:
    """The cases of a cell at a size: a padded batch in one direction, a ragged one with empty rows in both.

    Ids are checked at one size alone, because the regimes' kernels do not see them.
    """
    base = Case(cell=cell, T=24, B=19, I=24, H=hidden, dtype=CASE_DTYPES[precision])
    ragged = replace(base, directions=2, lengths="zeros")
    return {"padded": base, "ragged": ragged} | ({"ids": replace(ragged, ids=True)} if hidden == IDS_SIZE else {})


class Layer:
    """A case on a device. `run` computes our results and gradients by name."""

    def __init__(self, device: Any, case: Case, regime: str) -> None:
        self.device, self.case, self.regime = device, case, regime
        self.problem = build(case)
        self.options = checks.keywords(case, self.problem) | {"impl": regime}
        self.inputs = checks.arguments(case, self.problem, device.torch_device)
        self.cotangents = checks.cotangents_of(case, self.problem, device.torch_device)
        self.on_device = None if self.problem.lengths is None else self.options["lengths"].to(device.torch_device)

    def run(
        self,
        *,
        spoiled: bool = False,
        lengths_on_cpu: bool = False,
        recompute: bool = False,
        backward: bool = True,
    ) -> Named:
        inputs, options = self.inputs, self.options | {"recompute": recompute}
        if self.on_device is not None and not lengths_on_cpu:
            options["lengths"] = self.on_device
        if spoiled:
            inputs = {n: checks.leaf(torch.full_like(t, math.nan)) if t.requires_grad else t for n, t in inputs.items()}
        if not backward:
            with torch.no_grad():
                return checks.layer(inputs, **options)
        results = checks.layer(inputs, **options)
        found = checks.gradients(results, inputs, self.cotangents)
        return {name: t.detach() for name, t in results.items()} | found


@lru_cache(maxsize=4)
def wanted(case: Case) -> Named:
    return checks.expected(case)


def nn_results(device: Any, case: Case, precision: str) -> Named:
    """The results and gradients of torch.nn's module, without the rows of length 0, which it refuses."""
    problem = build(case)
    rows = _rows(problem)
    inputs = {}
    for name, t in problem.inputs.items():
        t = t.index_select(1, rows) if name in ("x", "h0", "c0") else t
        t = t if t.is_floating_point() else one_hot(t, case.I)
        inputs[name] = t.to(device.torch_device, DTYPES[precision]).requires_grad_()
    options: dict[str, Any] = {"bidirectional": case.directions == 2, "device": "meta"}
    if case.cell == "rnn_relu":
        options["nonlinearity"] = "relu"
    module = MODULES[case.cell](case.I, case.H, **options)
    names = {"w_ih": "weight_ih_l0", "w_hh": "weight_hh_l0", "b_ih": "bias_ih_l0", "b_hh": "bias_hh_l0"}
    own = {
        f"{names[name[:4]]}{'_reverse' if name.endswith('[1]') else ''}": t.detach()
        for name, t in inputs.items()
        if "[" in name
    }
    module = module.to_empty(device=device.torch_device).to(DTYPES[precision])
    module.load_state_dict(own)
    module.flatten_parameters()
    states = inputs.get("h0")
    if case.cell == "lstm" and states is not None:
        states = (states, inputs["c0"])
    x: Any = inputs["x"]
    if problem.lengths is not None:
        x = pack_padded_sequence(x, problem.lengths.index_select(0, rows), enforce_sorted=False)
    output, finals = module(x, states)
    if problem.lengths is not None:
        output, _ = pad_packed_sequence(output, total_length=case.T)
    h_n, *c_n = finals if isinstance(finals, tuple) else (finals,)
    results = {"output": output, "h_n": h_n} | ({"c_n": c_n[0]} if c_n else {})
    cotangents = {n: t.index_select(1, rows).to(results[n]) for n, t in problem.cotangents.items()}
    beyond = None if problem.lengths is None else checks.padding(problem.lengths[rows], case.T)
    if beyond is not None:
        cotangents["output"][beyond.to(device.torch_device)] = 0
    parameters = dict(module.named_parameters())
    leaves = {
        name: parameters[f"{names[name[:4]]}{'_reverse' if name.endswith('[1]') else ''}"] if "[" in name else t
        for name, t in inputs.items()
    }
    if case.ids:
        del leaves["x"]
    return {name: t.detach() for name, t in results.items()} | checks.gradients(results, leaves, cotangents)


def _rows(problem: Problem) -> Tensor:
    """The rows of the batch whose length is not 0."""
    some = next(iter(problem.inputs.values()))
    return torch.arange(some.size(1)) if problem.lengths is None else problem.lengths.nonzero().flatten()


def errors(found: Named, case: Case, rows: Tensor | None = None) -> dict[str, float]:
    """The largest distance of every tensor from float64, relative to its largest element; infinite for a NaN.

    Gradients of weights are taken relative to the largest element of all of them, because a single one may be a sum
    that cancels. `rows`: the rows of the batch that `found` has.
    """
    expected = {name: t for name, t in wanted(case).items() if name in found}
    largest = {name: float(t.abs().max()) if t.numel() else 0.0 for name, t in expected.items()}
    weights = {name for name in expected if name.startswith(("d w", "d b"))}
    largest |= dict.fromkeys(weights, max((largest[name] for name in weights), default=0.0))
    distances = {}
    for name, e in expected.items():
        if rows is not None and name not in weights:
            e = e.index_select(1, rows)
        distance = float((found[name].double().cpu() - e).abs().max()) if e.numel() else 0.0
        distances[name] = math.inf if math.isnan(distance) else distance / (largest[name] or 1.0)
    return distances


def bound(case: Case, name: str) -> float:
    """The tolerance of the tests."""
    return tolerance(case.torch_dtype, checks.roundings(case, name), tf32=case.dtype == "tf32")


def too_far(ours: dict[str, float], theirs: dict[str, float], case: Case) -> list[str]:
    """A sentence for each tensor that is wrong: its error exceeds both the tolerance and twice that of torch.nn."""
    return [
        f"{name}: error {error:.1e}, torch.nn's {theirs.get(name, math.nan):.1e}, tolerance {limit:.1e}"
        for name, error in ours.items()
        if not error <= max(limit := bound(case, name), 2 * theirs.get(name, 0.0))
    ]


def differing(a: Named, b: Named) -> list[str]:
    return [name for name in a if not torch.equal(a[name], b[name])]


def inconsistencies(layer: Layer, first: Named) -> list[str]:
    """A sentence for each way of making the call that does not give the same bits as the first, as it must.

    Calls on two streams at once must be right, but may have other bits: cuBLAS promises equal bits on one stream alone.
    """
    device, case, found = layer.device, layer.case, []

    def same(what: str, again: Named) -> None:
        if names := differing(first, again):
            found.append(f"{what}: other bits in {', '.join(names)}")

    same("a second call", layer.run())
    same("gates computed anew", layer.run(recompute=True))
    if layer.on_device is not None:
        same("lengths on the CPU", layer.run(lengths_on_cpu=True))
        beyond = checks.padding(layer.problem.lengths, case.T)
        for name in {"output", "d x"} & first.keys():
            if first[name].cpu()[beyond].any():
                found.append(f"{name}: not exactly 0 beyond the lengths")
    replay, results = device.capture(layer.run)
    for tensor in results.values():
        tensor.zero_()
    replay()
    device.synchronize()
    same("a CUDA graph", results)
    for number, again in enumerate(device.at_once([layer.run] * 2)):
        found += [f"stream {number} of two at once: {each}" for each in too_far(errors(again, case), {}, case)]
    return found


@lru_cache(maxsize=8)  # the regimes of a case run one after the other
def nn_errors(device: Any, case: Case, precision: str) -> tuple[dict[str, float], str]:
    """The errors of torch.nn, or why it refuses: cuDNN cannot run some cases that ours can."""
    try:
        return errors(nn_results(device, case, precision), case, _rows(build(case))), ""
    except RuntimeError as error:
        return {}, str(error).splitlines()[0]


def check_variants(device: Any, precision: str, regime: str, cases: dict[str, Case], backward: bool, full: bool) -> Any:
    """The errors of each case in a regime, beside torch.nn's: of the forward alone, or of the gradients too.

    Yields the answer after each case, so that what is known is saved even if a later one hangs.
    """
    answer: dict[str, Any] = {}
    failures: list[str] = []
    with tf32_switch(precision):
        for variant, case in cases.items():
            layer = Layer(device, case, regime)
            layer.run(spoiled=True, backward=backward)
            first = layer.run(backward=backward)
            ours = errors(first, case)
            theirs, refusal = nn_errors(device, case, precision)
            mine = {name: error for name, error in theirs.items() if name in ours}
            answer[variant] = {"nn": max(mine.values())} if mine else {"nn refuses": refusal}
            answer[variant][regime] = max(ours.values())
            wrong = too_far(ours, theirs, case) or (inconsistencies(layer, first) if full else [])
            failures += [f"{variant} {regime}: {each}" for each in wrong]
            told = " ".join(f"{k} {e:.1e}" if isinstance(e, float) else k for k, e in answer[variant].items())
            answer["line"] = f"{answer.get('line', '')}; {variant} {told}".removeprefix("; ")
            yield answer | ({"failed": "; ".join(failures)} if failures else {})


def check_layer(device: Any, cell: str, precision: str, hidden: int, regime: str) -> Any:
    """A part of the correctness stage: every variant, with gradients, and every way of making the same call."""
    return check_variants(device, precision, regime, variants(cell, precision, hidden), True, True)


def check_pass(device: Any, cell: str, precision: str, hidden: int, regime: str, backward: bool) -> Any:
    """A part of the layers stage: one pass of a small ragged layer in both directions."""
    return check_variants(device, precision, regime, {"ragged": small(cell, precision, hidden)}, backward, False)


def small(cell: str, precision: str, hidden: int) -> Case:
    """A layer of few steps, with tiles that are not full and rows of length 0."""
    dtype = CASE_DTYPES[precision]
    return Case(cell=cell, T=5, B=9, I=8, H=hidden, directions=2, lengths="zeros", dtype=dtype)


def smallest(device: Any, cell: str, precision: str, regime: str) -> int | None:
    """The least size at which a regime runs, and spans several blocks if the regime does so."""
    sizes = (33, 130, 200, 260, 520)
    fit = (hidden for hidden in sizes if regime in fitting(device, small(cell, precision, hidden), precision))
    return next(fit, None)


def fitting(device: Any, case: Case, precision: str) -> list[str]:
    """The regimes that both passes can be forced into. No plan chooses a cluster or grid of a single block."""
    found = []
    for regime in device.regimes:
        passes = [
            device.plan(case.cell, case.H, case.B, precision, case.directions, backward, regime)
            for backward in (False, True)
        ]
        spans = all(plan["blocks"] > 1 for plan in passes)
        if all(plan["fits"] for plan in passes) and (spans or regime not in ("cluster", "grid")):
            found.append(regime)
    return found

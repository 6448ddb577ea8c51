"""Valid calls of the operators for fuzz_ops.py, each a pure function of a seed and a number.

The layers come from cases.py, so that reference.py can compute the expected results. Their tensors have all kinds of
strides, with NaN in all memory that must not be read.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from seqcls_fast import _ext, ops
from seqcls_fast._cells import BUILT_IN, Rates
from support.cases import CELLS, FLOATS, HALVES, LENGTHS, NOISE, RESETS, Case, Problem, build
from support.checks import (
    Named,
    batch_sizes,
    gradients,
    guarded,
    lay_out,
    layer,
    leaf,
    poison,
    poisoned_memory,
    time_first,
)

RATES = Rates._fields
OPTIONS = ("resets", "h_reset", "c_reset", "seed", *RATES)
FORWARD = (
    "x", "weights", "h0", "c0", "lengths", "batch_sizes", "cell", "directions", "batch_first", "want_output",
    "want_saved", "impl", "allow_tf32", "packed", *OPTIONS,
)  # fmt: skip
LAYER = tuple(name for name in FORWARD if name not in ("want_saved", "packed"))
BACKWARD = (
    "d_output", "d_h_n", "d_c_n", *FORWARD[:6], "output", "saved", "cell", "directions", "batch_first", "want_d_x",
    "want_d_weights", "samples", "impl", "allow_tf32", *OPTIONS,
)  # fmt: skip
PACK = ("weights", "cell", "directions", "impl", "ids")
SCHEMAS = {"rnn_forward": FORWARD, "rnn_layer": LAYER, "rnn_backward": BACKWARD, "pack_weights": PACK}
Slot = tuple[str, int]
FURTHER = dict.fromkeys(kind.name for cell in BUILT_IN.values() for kind in cell.further)
KINDS = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr", *FURTHER)  # of weights, in the order of the list
STATES = ("h0", "c0", "h_reset", "c_reset")

IMPLS = [name for name in ops.available_impls() if name not in ("reference", "torch")]  # those that operators know
STEPS = (1, 1, 2, 3, 4, 7)
SIZES = (1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33)
LARGE_STEPS = (1, 3, 7, 40, 100)
LARGE = (1, 3, 16, 40, 65, 100, 130, 257, 300)
# least and most multiply-adds; from 800,000 on, a call is divided between two threads
SMALL_COSTS, LARGE_COSTS = (0, 30_000), (30_000, 4_000_000)


@dataclass
class Call:
    """One call and the case it was made from; `changes` says what was made wrong, if anything was."""

    seed: int
    number: int
    function: str
    arguments: dict[str, Any]  # in the order of the function's parameters
    threads: int = 1
    case: Case = field(default_factory=Case)
    problem: Problem | None = None
    changes: list[str] = field(default_factory=list)

    @property
    def is_operator(self) -> bool:
        return self.function in SCHEMAS

    def run(self) -> Any:
        if self.is_operator:
            results = getattr(torch.ops.seqcls_fast, self.function).default(*self.arguments.values())
            return [results] if self.function == "pack_weights" else results
        return getattr(_ext.C, self.function)(*self.arguments.values())

    def tensors(self) -> dict[Slot, Tensor]:
        """Every tensor among the arguments, by its name and its place in the list of weights (or 0)."""
        found = {}
        for name, value in self.arguments.items():
            for place, t in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(t, Tensor):
                    found[name, place] = t
        return found

    def set(self, slot: Slot, value: Any) -> None:
        name, place = slot
        if isinstance(self.arguments[name], list):
            self.arguments[name][place] = value
        else:
            self.arguments[name] = value

    def __str__(self) -> str:
        lines = [f"call {self.number} of seed {self.seed}: {self.function}, {self.threads} threads"]
        lines += [f"  changed: {change}" for change in self.changes]
        for name, value in self.arguments.items():
            values = value if isinstance(value, list) else [value]
            lines += [f"  {name}: {_described(v)}" for v in values[:12]]
            lines += [f"  {name}: {len(values)} in all"] if len(values) > 12 else []
        return "\n".join(lines)


def _described(value: Any) -> str:
    """A description that does not read the memory of a tensor, which may have been freed."""
    if not isinstance(value, Tensor):
        try:
            text = repr(value)
        except RecursionError:  # a list with a tensor of many dimensions raises it
            text = f"a {type(value).__name__}"
        return text if len(text) < 120 else f"{text[:100]}... ({len(text)} characters)"
    words = [type(value).__name__, str(value.dtype)]
    try:
        few = value.dim() < 20
        words += [str(tuple(value.shape)), f"strides {value.stride()}"] if few else [f"{value.dim()} dimensions"]
        words.append(f"offset {value.storage_offset()}, storage of {value.untyped_storage().nbytes()} bytes")
    except (RuntimeError, NotImplementedError):
        words.append(str(value.layout))
    return " ".join(words)


def place(t: Tensor, rng: random.Random) -> Tensor:
    """Copies `t` to memory with a random order of dimensions, gaps, offset and alignment. A dimension along which all
    numbers are equal may have stride 0."""
    order = list(range(t.dim()))
    if rng.random() < 0.5:
        rng.shuffle(order)
    strides, written, extent = [0] * t.dim(), t, 1
    for d in order:
        size = t.size(d)
        if size > 1 and t.numel() and rng.random() < 0.8 and bool((t == t.narrow(d, 0, 1)).all()):
            written = written.narrow(d, 0, 1)
            continue
        strides[d] = extent
        extent = extent * max(size, 1) * rng.choice((1, 1, 1, 2)) + rng.choice((0, 0, 0, 3))
    offset, tail = rng.choice((0, 0, 1, 5, 16)), rng.choice((0, 0, 1, 7))
    reach = 1 + sum(stride * (size - 1) for stride, size in zip(strides, t.shape, strict=True)) if t.numel() else 0
    buffer = torch.full((offset + reach + tail,), poison(t), dtype=t.dtype)
    buffer.as_strided(written.shape, strides, offset).copy_(written)
    return buffer.as_strided(t.shape, strides, offset)


def draw_case(rng: random.Random, costs: tuple[int, int] | None) -> Case:
    """A random case. Most are small; some are large enough for two threads, or for more than one tile. Nearly half of
    them have options."""
    large = costs is not None or rng.random() < 0.06
    steps, sizes = (LARGE_STEPS, LARGE) if large else (STEPS, SIZES)
    least, most = costs or (LARGE_COSTS if large else SMALL_COSTS)
    while True:
        options = rng.random() < 0.45
        cell, ids = rng.choice(tuple(BUILT_IN) if options else CELLS), rng.random() < 0.3
        empty = not large and rng.random() < 0.03
        case = Case(
            cell,
            T=rng.choice(steps),
            B=0 if empty else rng.choice(sizes),
            I=rng.choice(sizes),
            H=rng.choice(sizes),
            directions=rng.choice((1, 2)),
            bias=rng.random() < 0.7,
            proj=BUILT_IN[cell].has_c and rng.random() < 0.3,
            state=rng.random() < 0.7,
            lengths=rng.choice(("none", "random") if empty else LENGTHS),
            dtype=rng.choice(FLOATS + HALVES),
            layout=rng.choice(("time_first", "batch_first", "time_first" if empty else "packed")),
            want_output=rng.random() < 0.7,
            ids=ids,
            resets=rng.choice(RESETS) if options else "none",
            learnt=options and rng.random() < 0.5,
            noise=rng.choice(tuple(NOISE)) if options and rng.random() < 0.6 else "none",
        )
        if case.valid and _off_the_kink(case).valid and least <= case.cost <= most:
            return case


def _off_the_kink(case: Case) -> Case:
    """The case from which the numbers are made. Those of 16-bit cases avoid 0 as an input of relu, where a rounding
    would switch gradients on or off."""
    exact = case.cell.startswith("rnn_relu") and case.dtype in FLOATS
    return replace(case, dtype="bfloat16") if exact else case


def draw_problem(case: Case, rng: random.Random) -> Problem:
    """Numbers for a case. Some tensors are constant along a dimension, and one of two states may be missing."""
    problem = build(_off_the_kink(case))
    inputs = dict(problem.inputs)
    for pair in (STATES[:2], STATES[2:]):
        if pair[1] in inputs and rng.random() < 0.3:
            del inputs[rng.choice(pair)]
    for name, t in inputs.items():
        d = rng.randrange(t.dim())
        signs_matter = case.cell.startswith("rnn_relu") and d == 0 and "[" in name  # they keep units on one side of 0
        # a norm of equal sums turns what is rounded of them into numbers of any size
        signs_matter = signs_matter or (case.cell.endswith("_layer_norm") and not name.startswith("h"))
        if rng.random() < 0.12 and t.numel() and not signs_matter:
            inputs[name] = t.narrow(d, 0, 1).expand_as(t).clone()
            if name.startswith("w_hh"):  # so that h does not grow from step to step
                inputs[name] *= 2.0 ** -math.ceil(math.log2(case.H) / 2)
    names = [name for name in problem.cotangents if rng.random() < 0.7] or ["h_n"]
    cotangents = {name: problem.cotangents[name] for name in names}
    return Problem(inputs, problem.lengths, cotangents, problem.resets)


def forward_arguments(case: Case, problem: Problem, rng: random.Random) -> dict[str, Any]:
    inputs, lengths = problem.inputs, problem.lengths
    dtype = case.torch_dtype
    packed = case.layout == "packed"
    listed = [t for kind in KINDS for name, t in inputs.items() if name.startswith(f"{kind}[")]
    states = {name: None if inputs.get(name) is None else place(inputs[name].to(dtype), rng) for name in STATES}
    given = lengths is not None and not packed
    impls = (*IMPLS, "auto")
    return {
        "x": place(lay_out(inputs["x"], case, lengths), rng),
        "weights": [place(t.to(dtype), rng) for t in listed],
        "h0": states["h0"],
        "c0": states["c0"],
        "lengths": place(lengths, rng) if given and lengths is not None else None,
        "batch_sizes": place(batch_sizes(lengths), rng) if packed and lengths is not None else None,
        "cell": case.cell,
        "directions": case.directions,
        "batch_first": case.layout == "batch_first",
        "want_output": case.want_output,
        "want_saved": rng.random() < 0.4,
        "impl": impls[rng.randrange(60) % len(impls)],  # the same random number is drawn on every machine
        "allow_tf32": rng.random() < 0.2,  # has no effect on the CPU
        "packed": None,
        "resets": None if problem.resets is None else place(lay_out(problem.resets, case, lengths), rng),
        "h_reset": states["h_reset"],
        "c_reset": states["c_reset"],
        "seed": None if case.noise_seed is None else place(case.noise_seed, rng),
        **draw_rates(case, rng)._asdict(),
    }


def draw_rates(case: Case, rng: random.Random) -> Rates:
    """The rates of the case, or some at the ends of what is allowed."""
    ends = (0.0, 5e-324, 1e-10, 0.5, 1 - 2**-53)
    return Rates(*(rng.choice(ends) if rate and rng.random() < 0.3 else rate for rate in case.rates))


def backward_arguments(case: Case, problem: Problem, fixed: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Arguments of rnn_backward, with the results of a forward with the same inputs."""
    dtype = case.torch_dtype
    with poisoned_memory():
        results = torch.ops.seqcls_fast.rnn_forward.default(*(fixed | {"want_saved": True}).values())
    incoming: dict[str, Tensor | None] = {f"d_{name}": None for name in ("output", "h_n", "c_n")}
    for name, t in problem.cotangents.items():
        laid_out = lay_out(t, case, problem.lengths, is_input=False) if name == "output" else t.to(dtype)
        incoming[f"d_{name}"] = place(laid_out, rng)
    # few samples, since the reference runs a backward pass for each of them
    most = min(300 // case.T, 10**7 // max(case.cost, 1) if case.cost <= LARGE_COSTS[1] else 300)
    divisors = [n for n in range(1, case.B + 1) if case.B % n == 0 and n <= most] or [1, *([] if case.B else [2, 5])]
    own = {
        "output": place(results[-2], rng),
        "saved": rng.choice((results[-1], guarded(results[-1]))),
        "want_d_x": not case.ids and rng.random() < 0.8,
        "want_d_weights": rng.random() < 0.8,
        "samples": rng.choice(divisors) if case.layout != "packed" and rng.random() < 0.3 else 0,
    }
    together = incoming | fixed | own
    return {name: together[name] for name in BACKWARD}


def valid_call(seed: int, number: int, rng: random.Random, costs: tuple[int, int] | None = None) -> Call:
    case = draw_case(rng, costs)
    problem = draw_problem(case, rng)
    function = rng.choice(("rnn_forward", "rnn_layer", "rnn_backward"))
    arguments = forward_arguments(case, problem, rng)
    of_pack = {name: arguments[name] for name in PACK[:-1]} | {"ids": case.ids}
    if function == "rnn_backward":
        arguments = backward_arguments(case, problem, arguments, rng)
    elif function == "rnn_layer":
        arguments = {name: arguments[name] for name in LAYER}
    elif rng.random() < 0.08:
        function, arguments = "pack_weights", of_pack
    elif not arguments["want_saved"] and rng.random() < 0.4:
        arguments["packed"] = torch.ops.seqcls_fast.pack_weights.default(*of_pack.values())
    return Call(seed, number, function, arguments, rng.choice((1, 1, 2)), case, problem)


# ---- Results of a valid call


def result_names(call: Call) -> list[str]:
    given, inputs = call.arguments, call.problem.inputs if call.problem else {}
    if call.function == "pack_weights":
        return ["packed"]
    if call.function != "rnn_backward":
        saved = given.get("want_saved", False)
        names = ["h_n", *(["c_n"] if BUILT_IN[call.case.cell].has_c else [])]
        return names + (["output"] if given["want_output"] or saved else []) + (["saved"] if saved else [])
    names = ["d x"] if given["want_d_x"] else []
    names += [f"d {name}" for name in STATES if name in inputs]
    weights = [f"d {name}" for kind in KINDS for name in inputs if name.startswith(f"{kind}[")]
    return names + (weights if given["want_d_weights"] else [])


def expected(call: Call) -> Named:
    """Results of the float64 reference, time-first. With samples, gradients of weights and of reset states are one for
    each sample: those for the incoming gradients of its rows alone."""
    problem, given = call.problem, call.arguments
    assert problem is not None
    if call.function == "pack_weights":
        return {}
    backward = call.function == "rnn_backward"
    inputs = {name: leaf(t) if backward else t for name, t in problem.inputs.items()}
    noise = {"rates": Rates(*(given[name] for name in RATES)), "seed": given["seed"]}
    results = layer(inputs, cell=call.case.cell, lengths=problem.lengths, resets=problem.resets, **noise)
    if not backward:
        return results
    samples = given["samples"]
    wanted = gradients(results, inputs, problem.cotangents, retain_graph=True)
    sample_of = torch.arange(call.case.B).view(1, -1, 1) // (call.case.B // samples or 1) if samples else None
    parts = [
        gradients(results, inputs, {k: t * (sample_of == s) for k, t in problem.cotangents.items()}, retain_graph=True)
        for s in range(samples)
    ]
    for name in wanted.keys() - {"d x", "d h0", "d c0"} if samples else ():
        wanted[name] = torch.stack([part[name] for part in parts])
    return wanted


def least_scale(call: Call, wanted: Named) -> dict[str, float]:
    """A lower bound for the scale to which the errors of each result are compared. Terms may cancel, so the scale is
    that of the terms: earlier states and activations (at most 1) for states, other gradients for gradients. Both are
    multiplied by the usual size of a gate's sum, whose inputs are about 1 and whose weights are at most H**-0.5. A norm
    of two sums divides what is rounded of them by no less than the root of its epsilon, 1e-5."""
    assert call.problem is not None
    case, inputs = call.case, call.problem.inputs
    backward = call.function == "rnn_backward"
    sources = {name: inputs[name] for name in STATES if name in inputs}
    sources = (wanted | call.problem.cotangents) if backward else sources
    largest = max((float(t.abs().max()) for t in sources.values() if t.numel()), default=0.0)
    sums = max(1.0, math.sqrt(((1 if case.ids else case.I) + case.out) / case.H))
    if case.cell.endswith("_layer_norm") and case.H < 3:
        sums *= 1e-5**-0.5
    return dict.fromkeys(wanted, sums * (largest if backward else max(largest, 1.0)))


def sensitivity(call: Call, wanted: Named) -> dict[str, float]:
    """How much each result of a layer changes where every input changes by its own size, to first order: see
    sensitivity() in checks.py."""
    problem, case = call.problem, call.case
    assert problem is not None
    step, g = 1e-6, torch.Generator().manual_seed(case.seed)
    moved = {
        name: t * (1 + step * (2 * torch.randint(2, t.shape, generator=g) - 1)) if t.is_floating_point() else t
        for name, t in problem.inputs.items()
    }
    other = expected(replace(call, problem=replace(problem, inputs=moved)))
    return {name: float((other[name] - t).abs().max()) / step if t.numel() else 0.0 for name, t in wanted.items()}


def found(call: Call, results: list[Tensor]) -> Named:
    """The results of a call by name, time-first, without `saved` and packed weights, whose gaps are not written."""
    named = dict(zip(result_names(call), results, strict=True))
    for name in ("saved", "packed"):
        named.pop(name, None)
    assert call.problem is not None
    for name in {"output", "d x"} & named.keys():
        named[name] = time_first(named[name], call.case, call.problem.lengths)
    return named


def spoiled(call: Call) -> list[Any]:
    """The arguments with NaN in every floating-point tensor. A call with them leaves NaN in all memory that it used."""

    def spoil(value: Any) -> Any:
        if isinstance(value, list):
            return [spoil(v) for v in value]
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return torch.full_like(value, math.nan, memory_format=torch.contiguous_format) if floating else value

    return [spoil(value) for value in call.arguments.values()]

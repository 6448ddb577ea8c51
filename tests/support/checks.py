"""Runs a case on one implementation in NaN-filled memory and compares results and gradients with the float64 reference.

Inputs lie at odd offsets inside buffers full of NaN; the padding of the input and of the incoming gradient is NaN; new
torch memory is NaN; and buffers that are used again hold the values of an earlier call full of NaN.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from seqcls_fast import _torch_layer, ops, reference
from seqcls_fast._cells import BUILT_IN
from support.cases import ROUNDED, Case, Problem, build
from support.tolerances import tolerance

NAN = float("nan")
FAR = 1 << 40  # in the place of NaN for ids: no column has this id
Named = dict[str, Tensor]


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Fresh torch memory holds NaN (torch does this in deterministic mode only)."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


def poison(t: Tensor) -> float:
    return NAN if t.is_floating_point() else FAR


def guarded(t: Tensor, margin: int = 67) -> Tensor:
    """A contiguous copy of `t` with NaN before and after it, aligned to no more than one element."""
    buffer = torch.full((t.numel() + 2 * margin,), poison(t), dtype=t.dtype, device=t.device)
    inside = buffer[margin : margin + t.numel()].view(t.shape)
    return inside.copy_(t)


def padding(lengths: Tensor | None, T: int) -> Tensor | None:
    """(T, B) mask of the steps beyond each row's length."""
    return None if lengths is None else torch.arange(T)[:, None] >= lengths.long()[None, :]


def batch_sizes(lengths: Tensor) -> Tensor:
    """The batch sizes of a PackedSequence with these descending lengths."""
    return (torch.arange(int(lengths.max()))[:, None] < lengths[None, :]).sum(1)


def lay_out(t: Tensor, case: Case, lengths: Tensor | None, is_input: bool = True) -> Tensor:
    """(T, B, F) float64, or (T, B) ids -> the case's layout and dtype, NaN wherever nothing may be read."""
    if t.dim() == 2:
        return lay_out(t[:, :, None], case, lengths, is_input).squeeze(-1)
    t = t.to(case.torch_dtype) if t.is_floating_point() else t
    if case.layout == "packed":
        assert lengths is not None
        return guarded(torch.cat([step[:n] for step, n in zip(t, batch_sizes(lengths).tolist(), strict=False)]))
    if case.layout == "expanded" and is_input:
        return guarded(t[:1]).expand_as(t)
    beyond = padding(lengths, case.T)
    if beyond is not None:
        t = t.masked_fill(beyond[:, :, None].to(t.device), poison(t))
    if case.layout == "batch_first":
        return guarded(t.transpose(0, 1))
    if case.layout == "features_first":
        return guarded(t.permute(2, 1, 0)).permute(2, 1, 0)
    if case.layout == "strided":
        buffer = torch.full((case.T + 2, case.B + 1, t.size(2) + 3), poison(t), dtype=t.dtype, device=t.device)
        return buffer[1:-1, :-1, 2:-1].copy_(t)
    return guarded(t)


def time_first(t: Tensor, case: Case, lengths: Tensor | None) -> Tensor:
    """The inverse of lay_out: (T, B, F), zero beyond the rows of a packed tensor."""
    if case.layout == "packed":
        assert lengths is not None
        padded = t.new_zeros(case.T, case.B, t.size(1))
        for step, rows in zip(padded, t.split(batch_sizes(lengths).tolist()), strict=False):
            step[: len(rows)] = rows
        return padded
    return t.transpose(0, 1) if case.layout == "batch_first" else t


def arguments(case: Case, problem: Problem, device: torch.device | str = "cpu") -> Named:
    """Leaves that require a gradient, in the case's dtype and layout. They are laid out on their device, since a copy
    to another one would be aligned and without margins."""
    inputs = {name: t.to(device) for name, t in problem.inputs.items()}
    placed = {name: guarded(t.to(case.torch_dtype)) for name, t in inputs.items() if name != "x"}
    placed["x"] = lay_out(inputs["x"], case, problem.lengths)
    if case.ids and case.seed % 3:  # a table, whose rows are w_ih's columns
        placed |= {name: guarded(t.t()).t() for name, t in placed.items() if name.startswith("w_ih")}
    return {name: leaf(placed[name]) for name in problem.inputs}


def cotangents_of(case: Case, problem: Problem, device: torch.device | str = "cpu") -> Named:
    """The incoming gradients, laid out in the same way."""
    placed = {name: t.to(device) for name, t in problem.cotangents.items()}
    return {
        name: lay_out(t, case, problem.lengths, is_input=False) if name == "output" else guarded(t.to(case.torch_dtype))
        for name, t in placed.items()
    }


def leaf(t: Tensor) -> Tensor:
    return t.detach().requires_grad_(t.is_floating_point())


def keywords(case: Case, problem: Problem) -> dict[str, Any]:
    options: dict[str, Any] = {"cell": case.cell, "want_output": case.want_output}
    options["batch_first"] = case.layout == "batch_first"
    if case.layout == "packed":
        assert problem.lengths is not None
        options["batch_sizes"] = batch_sizes(problem.lengths)
    elif problem.lengths is not None:
        options["lengths"] = problem.lengths.to((torch.int64, torch.int32)[case.seed % 2])
    if problem.resets is not None:
        options["resets"] = lay_out(problem.resets, case, problem.lengths, is_input=False)
    return options | noise_of(case)


def noise_of(case: Case) -> dict[str, Any]:
    return {} if case.noise == "none" else {"rates": case.rates, "seed": case.noise_seed}


def flat_arguments(case: Case, impl: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of rnn_layer by name, and its options."""
    problem = build(case)
    leaves = {name: t.detach() for name, t in arguments(case, problem).items()}
    options = keywords(case, problem)
    tensors: dict[str, Any] = {"x": leaves["x"]}
    for name in ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr"):
        tensors[name] = [t for key, t in leaves.items() if key.startswith(f"{name}[")]
    tensors |= {name: leaves.get(name) for name in ("h0", "c0")}
    tensors |= {name: options.get(name) for name in ("lengths", "batch_sizes")}
    if tensors["lengths"] is not None:
        tensors["lengths"] = tensors["lengths"].long()
    return tensors, {"cell": case.cell, "batch_first": options["batch_first"], "impl": impl}


def forward_arguments(tensors: dict[str, Any]) -> tuple[Any, ...]:
    """The tensors as rnn_forward takes them: weights in one list, sorted by kind."""
    weights = [t for name in ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr") for t in tensors[name]]
    return tensors["x"], weights, *(tensors[name] for name in ("h0", "c0", "lengths", "batch_sizes"))


def layer(inputs: Named, **options: Any) -> Named:
    """rnn_layer by names: options hold its keywords, `impl` too; without `impl`, reference.rnn_layer."""
    listed = {
        name: [t for key, t in inputs.items() if key.startswith(f"{name}[")]
        for name in ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr")
    }
    further = [
        [t for key, t in inputs.items() if key.startswith(f"{kind.name}[")]
        for kind in (BUILT_IN[options["cell"]].further if options["cell"] in BUILT_IN else ())
    ]
    states = {name: inputs[name] for name in ("h0", "c0", "h_reset", "c_reset") if name in inputs}
    function = ops.rnn_layer if "impl" in options else reference.rnn_layer
    results = function(inputs["x"], **listed, further=further, **states, **options)
    return {name: t for name, t in zip(("output", "h_n", "c_n"), results, strict=True) if t is not None}


def gradients(results: Named, inputs: Named, cotangents: Named, **options: Any) -> Named:
    """d input for every input but ids by name, zero where the graph does not reach it."""
    inputs = {name: t for name, t in inputs.items() if t.is_floating_point()}
    wanted = [results[name] for name in cotangents]
    found = torch.autograd.grad(
        wanted, list(inputs.values()), list(cotangents.values()), allow_unused=True, materialize_grads=True, **options
    )
    return {f"d {name}": t for name, t in zip(inputs, found, strict=True)}


def assert_same_bits(found: Named, wanted: Named, what: object = "") -> None:
    assert found.keys() == wanted.keys()
    for name, t in wanted.items():
        integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[t.element_size()]
        a, b = found[name].detach().contiguous().view(integers), t.detach().contiguous().view(integers)
        assert a.shape == b.shape, f"{what} {name}: {tuple(a.shape)} instead of {tuple(b.shape)}"
        assert torch.equal(a, b), f"{what} {name}: {int((a != b).sum())} of {a.numel()} elements have other bits"


@lru_cache(maxsize=2)  # the implementations of one case run one after the other
def expected(case: Case) -> Named:
    """Results and gradients of the float64 reference, time-first."""
    return _in_float64(case, build(case).inputs)


def _in_float64(case: Case, inputs: Named) -> Named:
    problem = build(case)
    inputs = {name: leaf(t.clone()) for name, t in inputs.items()}
    options = {"lengths": problem.lengths, "resets": problem.resets, "want_output": case.want_output} | noise_of(case)
    results = layer(inputs, cell=case.cell, **options)
    return {name: t.detach() for name, t in results.items()} | gradients(results, inputs, problem.cotangents)


@lru_cache(maxsize=2)
def sensitivity(case: Case) -> dict[str, float]:
    """How much a tensor changes where every input changes by its own size, to first order. A norm divides by what is
    left of sums when their mean is taken off, so rounding its inputs can change its results by more than their size.
    The same holds for a relu in 16 bits, whose weights have one sign in each row (:func:`support.cases.build`): of a
    gradient of mixed signs its sums may leave a thousandth."""
    one_sign = case.cell.startswith("rnn_relu") and case.dtype in ROUNDED
    if not case.cell.endswith("_layer_norm") and not one_sign:
        return {}
    step, g = 1e-6, torch.Generator().manual_seed(case.seed)
    moved = {
        name: t * (1 + step * (2 * torch.randint(2, t.shape, generator=g) - 1)) if t.is_floating_point() else t
        for name, t in build(case).inputs.items()
    }
    wanted, found = expected(case), _in_float64(case, moved)
    return {name: float((found[name] - t).abs().max()) / step if t.numel() else 0.0 for name, t in wanted.items()}


def spoil_scratch(impl: str) -> None:
    """Leaves NaN in the memory in which kernels work, by layers of other shapes, so that each kind of values that a
    case keeps there lies where another kind was."""
    for hidden, rows in itertools.product((16, 48, 64), (1, 4, 16, 32)):
        case = Case("lstm", T=2, B=rows, I=4, H=hidden)
        spoiled = {name: leaf(torch.full_like(t, NAN, dtype=torch.float32)) for name, t in build(case).inputs.items()}
        layer(spoiled, cell="lstm", impl=impl)["h_n"].sum().backward()


def measured(case: Case, impl: str) -> Named:
    """Results and gradients of `impl` in the case's dtype, time-first."""
    problem = build(case)
    options = keywords(case, problem) | {"impl": impl}
    lengths = problem.lengths
    with poisoned_memory():
        inputs = arguments(case, problem)
        cotangents = cotangents_of(case, problem)
        spoiled = {name: leaf(torch.full_like(t, NAN)) if t.requires_grad else t for name, t in inputs.items()}
        gradients(layer(spoiled, **options), spoiled, cotangents)  # buffers that are used again now hold NaN
        # The simulators of CUDA (tests/cuda) fill all scratch memory with NaN themselves.
        if case.has_options and impl not in ("reference", "torch") and not impl.startswith(("simt-", "ptx-")):
            spoil_scratch(impl)
        results = layer(inputs, **options)
        found = {name: t.detach() for name, t in results.items()} | gradients(results, inputs, cotangents)
    for name in {"output", "d x"} & found.keys():
        found[name] = time_first(found[name], case, lengths)
    return found


def rounds_sums(impl: str, dtype: torch.dtype) -> bool:
    """Whether the layer rounds every sum, every gate and an LSTM's c to 16 bits, as torch's own does where it does not
    compute in float32. Our promises about 16-bit layers do not hold there."""
    return impl == "torch" and dtype.itemsize == 2 and not _torch_layer.runs_wide(dtype)


def roundings(case: Case, name: str, impl: str = "") -> int:
    """How many roundings of the case's dtype an element may show, relative to the largest one of its tensor.

    Errors of a sum of n numbers walk at random: 4 standard deviations are 4 * sqrt(n), and 16 cover the activations.
    The weights of a case contract, so steps add little; 16-bit dtypes and TF32 sum in float32 and round what is stored
    or multiplied; where all sums are rounded too, nine values a step are (two products, what is added to them, gates),
    whose errors, at random, add up to three times those of one.
    """
    if case.dtype in ROUNDED:
        return (4 + case.T // 32) * (3 if rounds_sums(impl, case.torch_dtype) else 1)
    chain = case.I + case.G * case.H + (case.T * case.B if name.startswith(("d w", "d b")) else 0)
    if name in ("d h_reset", "d c_reset"):
        chain += case.T * case.B
    if name in ("d h0", "d c0", "d h_reset", "d c_reset"):
        chain += 9 * case.T  # they passed every step's slope 1 - h * h, three times less exact than h
    return 16 + 4 * isqrt(chain)


def compare(
    found: Named, wanted: Named, case: Case, impl: str = "", least_scale: Mapping[str, float] | None = None
) -> None:
    """Every tensor of `wanted`, relative to its largest element; those that may be a few numbers that cancel, weights'
    gradients and small ones of inputs, relative to the largest gradient of all weights (and inputs). A scale is at
    least that of `least_scale`."""
    assert found.keys() == wanted.keys()
    largest = {name: float(t.abs().max()) if t.numel() else 0.0 for name, t in wanted.items()}
    weights = {name for name in wanted if name.startswith(("d w", "d b"))}
    inputs = {"d x", "d h0", "d c0", "d h_reset", "d c_reset"} & wanted.keys()
    pairs = case.H < 3 and case.cell.endswith("_layer_norm")  # normed, two sums are -1 and 1, whose gradients cancel
    few = {name for name in inputs if wanted[name].numel() < 4 or pairs}
    largest |= dict.fromkeys(weights, max((largest[name] for name in weights), default=0.0))
    largest |= dict.fromkeys(few, max((largest[name] for name in weights | inputs), default=0.0))
    for name, e in wanted.items():
        a, scale = found[name], max(largest[name], (least_scale or {}).get(name, 0.0))
        assert a.shape == e.shape, f"{name}: {tuple(a.shape)} instead of {tuple(e.shape)}"
        assert a.dtype == case.torch_dtype, f"{name}: {a.dtype} instead of {case.dtype}"
        relative = tolerance(case.torch_dtype, roundings(case, name, impl), tf32=case.dtype == "tf32")
        bound = relative * scale + torch.finfo(case.torch_dtype).tiny
        torch.testing.assert_close(
            a.double(), e, rtol=0, atol=bound, msg=lambda m, name=name, s=scale: f"{name} (scale {s:.3g}): {m}"
        )


def check(case: Case, impl: str) -> None:
    found, wanted = measured(case, impl), expected(case)
    compare(found, wanted, case, impl, sensitivity(case))
    check_padding(found, case)


def check_padding(found: Named, case: Case) -> None:
    beyond = padding(build(case).lengths, case.T)
    if beyond is not None:
        for name in {"output", "d x"} & found.keys():
            assert not found[name][beyond].any(), f"{name} is not exactly 0 beyond the lengths"

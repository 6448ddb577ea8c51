"""What gpu_check.py times: rows of the grid against torch.nn, and the latencies a step is made of.

Both sides get the same weights, input and dtype, time-major as cuDNN likes it best, and the input projection counts.
A ragged batch starts padded, its lengths where each side wants them (torch.nn: the CPU); torch.nn packs inside the
eager call and has its input packed before a CUDA graph. A row passes a gate against float64 first: a few rows of the
batch, and with every other incoming gradient 0 also the gradients of the weights.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import seqcls_fast as sf

from . import layers as gpu_layers
from .device import DTYPES, Run, interleave, slope, tf32_switch
from .grid import CELLS, HIDDEN, Row
from .report import best_ratio

NAMES = {"rnn_tanh": "RNN", "gru": "GRU", "lstm": "LSTM"}
GATE_ROWS = 8
Values = dict[str, Tensor]


def _last(result: Any) -> Tensor:
    state = result[1]
    return state[0] if isinstance(state, tuple) else state


class Side:
    """One module with its own input; calling it does the timed work once."""

    def __init__(self, module: nn.Module, x: Tensor, forward: Callable[[nn.Module, Any], Values], row: Row) -> None:
        self.module, self.x, self.forward, self.row = module, x, forward, row
        self.cotangents: Values = {}

    def __call__(self) -> Values:
        if not self.row.training:
            with torch.inference_mode():
                return self.forward(self.module, self.x)
        leaves = {"x": self.x, **dict(self.module.named_parameters())}
        for leaf in leaves.values():
            leaf.grad = None
        results = self.forward(self.module, self.x)
        torch.autograd.backward(list(results.values()), [self.cotangents[name] for name in results])
        grads = {f"d {name}": leaf.grad for name, leaf in leaves.items()}
        return {name: t.detach() for name, t in results.items()} | grads


class Problem:
    """The numbers of a row on a device, and its sides."""

    def __init__(self, row: Row, device: Any) -> None:
        self.row, self.device = row, device
        g = torch.Generator().manual_seed(1)
        self.dtype = DTYPES[row.precision]
        self.x = self._place(torch.randn(row.steps, row.batch, row.hidden, generator=g))
        self.lengths = torch.randint(max(1, row.steps // 10), row.steps + 1, (row.batch,), generator=g)
        torch.manual_seed(0)
        module = getattr(nn, NAMES[row.cell])(row.hidden, row.hidden, bidirectional=row.directions == 2)
        self.weights = {name: self._place(p.detach()) for name, p in module.state_dict().items()}
        width = row.directions * row.hidden
        shapes = {"h_n": (row.directions, row.batch, row.hidden)}
        if not row.ragged:
            shapes = {"output": (row.steps, row.batch, width)}
        self.cotangents = {n: self._place(torch.randn(shape, generator=g)) for n, shape in shapes.items()}

    def _place(self, t: Tensor) -> Tensor:
        return t.to(self.device.torch_device, self.dtype)

    def module(self, library: Any, dtype: torch.dtype | None = None) -> nn.Module:
        row = self.row
        module = getattr(library, NAMES[row.cell])(row.hidden, row.hidden, bidirectional=row.directions == 2)
        module = module.to(self.device.torch_device, dtype or self.dtype)
        module.load_state_dict(self.weights)
        module.flatten_parameters()
        return module.train(row.training)

    def side(self, module: nn.Module, forward: Callable[[nn.Module, Any], Values]) -> Side:
        side = Side(module, self.x.clone().requires_grad_(self.row.training), forward, self.row)
        side.cotangents = self.cotangents
        return side

    def sides(self, graph: bool = False) -> dict[str, Side]:
        """Ours and every way of torch.nn's. "ours packed" is what a user has who changed nothing but the class."""
        if not self.row.ragged:
            return {
                "nn": self.side(self.module(nn), _padded),
                "ours": self.side(self.module(sf), _padded),
            }
        lengths, here = self.lengths, self.lengths.to(self.device.torch_device)
        sides = {
            "nn packed": self.side(self.module(nn), partial(_packed, lengths)),
            "ours packed": self.side(self.module(sf), partial(_packed, lengths)),
            "ours": self.side(self.module(sf), lambda m, x: {"h_n": _last(m(x, lengths=here, want_output=False))}),
        }
        if graph:  # what packing copies from the CPU cannot be captured
            for name in ("nn packed", "ours packed"):
                packed = pack_padded_sequence(self.x, lengths, enforce_sorted=False)
                sides[name].x = packed.data.requires_grad_(self.row.training)
                sides[name].forward = lambda m, x, packed=packed: {"h_n": _last(m(packed))}
        if self.row.directions == 1:  # the reverse direction would begin in the padding
            rows, last = torch.arange(self.row.batch, device=here.device), here - 1
            sides["nn padded"] = self.side(self.module(nn), lambda m, x: {"h_n": m(x)[0][last, rows][None]})
        return sides

    def of_rows(self, rows: Tensor, values: Values) -> Values:
        """What `values` says of some rows of the batch; gradients of weights whole."""
        return {n: t if t.dim() != 3 or t.size(1) == len(rows) else t.index_select(1, rows) for n, t in values.items()}

    def only_rows(self, rows: Tensor) -> Values:
        """The cotangents with 0 for every other row."""
        return {
            n: torch.zeros_like(t).index_copy_(1, rows, t.index_select(1, rows)) for n, t in self.cotangents.items()
        }

    def of_nn(self, rows: Tensor, dtype: torch.dtype) -> Values:
        """torch.nn's results of some rows alone."""
        side = Side(
            self.module(nn, dtype), self.x[:, rows].to(dtype).requires_grad_(self.row.training), _padded, self.row
        )
        if self.row.ragged:
            lengths = self.lengths[rows.cpu()]
            side.forward = partial(_packed, lengths)
        side.cotangents = {n: t.index_select(1, rows).to(dtype) for n, t in self.cotangents.items()}
        return side()


def _padded(module: nn.Module, x: Tensor) -> Values:
    return {"output": module(x)[0]}


def _packed(lengths: Tensor, module: nn.Module, x: Tensor) -> Values:
    return {"h_n": _last(module(pack_padded_sequence(x, lengths, enforce_sorted=False)))}


def gate(problem: Problem, ours: Side) -> dict[str, Any]:
    """Errors of ours and of torch.nn against float64, with "failed" where ours is neither close nor twice as close."""
    row = problem.row
    rows = torch.linspace(0, row.batch - 1, min(row.batch, GATE_ROWS)).long().to(problem.device.torch_device)
    ours.cotangents = problem.only_rows(rows)
    found = problem.of_rows(rows, ours())
    ours.cotangents = problem.cotangents
    truth, theirs = problem.of_nn(rows, torch.float64), problem.of_nn(rows, problem.dtype)
    # where roundings of every step count, errors beyond 32 steps' are left to the comparison with torch.nn's
    steps = row.steps if row.precision == "fp32" else min(row.steps, 32)
    dtype = gpu_layers.CASE_DTYPES[row.precision]
    case = gpu_layers.Case(cell=row.cell, T=steps, B=len(rows), I=row.hidden, H=row.hidden, dtype=dtype)
    mine, other = distances(found, truth), distances(theirs, truth)
    wrong = gpu_layers.too_far(mine, other, case)
    answer: dict[str, Any] = {"error": max(mine.values()), "nn error": max(other.values())}
    return answer | ({"failed": f"wrong: {'; '.join(wrong)}"} if wrong else {})


def distances(found: Values, truth: Values) -> dict[str, float]:
    """Largest distance over largest element; of weights' gradients, over that of all of them."""
    largest = {name: float(t.abs().max()) for name, t in truth.items()}
    weights = [name for name in truth if "weight" in name or "bias" in name]
    largest |= dict.fromkeys(weights, max((largest[name] for name in weights), default=0.0))
    far = {name: float((found[name].double() - t).abs().max()) / (largest[name] or 1.0) for name, t in truth.items()}
    return {name: float("inf") if d != d else d for name, d in far.items()}


def measure_row(device: Any, row: Row, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """One part of a grid stage: the gate, then samples of every side, eager and as CUDA graphs."""
    with tf32_switch(row.precision):
        problem = Problem(row, device)
        sides = problem.sides()
        answer = gate(problem, sides["ours"])
        if "failed" in answer:
            return answer
        answer["regime"] = "/".join(
            device.plan(row.cell, row.hidden, row.batch, row.precision, row.directions, backward, "auto")["regime"]
            for backward in ((False, True) if row.training else (False,))
        )
        answer["times"] = {"eager": interleave(sides, device.seconds, clock=clock)}
        del sides
        replays: dict[str, Run] = {}
        for name, side in problem.sides(graph=True).items():
            try:
                replays[name] = device.capture(side)[0]
            except RuntimeError as error:
                reason = f"no CUDA graph of {name}: {str(error).splitlines()[0]}"
                answer["failed" if name == "ours" else "not captured"] = reason
                device.tidy()
        answer["times"]["graph"] = interleave(replays, device.seconds, clock=clock)
    medians = {mode: {n: statistics.median(t) for n, t in sides.items()} for mode, sides in answer["times"].items()}
    answer["medians"], answer["ratio"] = medians, {mode: best_ratio(sides) for mode, sides in medians.items()}
    answer["line"] = _row_line(answer)
    return answer


def _row_line(answer: dict[str, Any]) -> str:
    words = [f"{answer['regime']:<16}"]
    for mode, medians in answer["medians"].items():
        told = ", ".join(f"{name} {1e6 * t:.1f}" for name, t in medians.items())
        words.append(f"{mode} {answer['ratio'][mode]:.2f}x ({told} us)")
    return f"{'  '.join(words)}  error {answer['error']:.1e}, nn {answer['nn error']:.1e}"


# -- latencies --------------------------------------------------------------------------------------------------------


def launches(device: Any, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """An empty kernel, eager and in a graph of 100; and what a call costs the CPU, at one step of one row."""
    many = 100

    def burst() -> None:
        for _ in range(many):
            device.empty_kernel()

    answer: dict[str, Any] = {"empty kernel us": 1e6 * device.seconds(burst, 20) / many}
    answer["empty kernel in a graph us"] = 1e6 * device.seconds(device.capture(burst)[0], 20) / many
    for training in (False, True):
        row = Row("lstm", "bf16", 8, training, False, 1, 1, 1)
        for name, side in Problem(row, device).sides().items():
            answer[f"{name} {'training' if training else 'inference'} call us"] = _host_us(side, device, clock)
    answer["line"] = ", ".join(f"{name} {value:.2f}" for name, value in answer.items())
    return answer


def _host_us(run: Run, device: Any, clock: Callable[[], float]) -> float:
    samples = []
    for _ in range(7):
        device.synchronize()
        start = clock()
        for _ in range(50):  # few enough that no queue fills
            run()
        samples.append((clock() - start) / 50)
    return 1e6 * statistics.median(samples)


def step_times(device: Any, cell: str, precision: str, hidden: int, batch: int = 16) -> dict[str, Any]:
    """Microseconds a step of every regime that fits, forward and back, beside the plan's floor; and of torch.nn."""
    answer: dict[str, Any] = {}
    layer = (cell, hidden, batch, precision, 1)
    case = gpu_layers.Case(cell=cell, B=batch, H=hidden, dtype=gpu_layers.CASE_DTYPES[precision])
    for regime in [*gpu_layers.fitting(device, case, precision), "nn"]:
        with tf32_switch(precision):
            times = [slope(device, partial(_recurrence, device, layer, regime, training)) for training in (False, True)]
        entry = {"forward us": 1e6 * times[0], "backward us": 1e6 * (times[1] - times[0])}
        for name, backward in (("forward", False), ("backward", True)):
            plan = {} if regime == "nn" else device.plan(*layer, backward, regime)
            if plan.get("mma_cycles"):
                entry[f"{name} floor us"] = max(plan["mma_cycles"], plan["mufu_cycles"]) / device.clock_ghz() / 1e3
        answer[regime] = entry
    answer["line"] = "; ".join(
        f"{regime} {e['forward us']:.2f} + {e['backward us']:.2f} us a step"
        + (f" (floor {e['forward floor us']:.2f} + {e['backward floor us']:.2f})" if "forward floor us" in e else "")
        for regime, e in answer.items()
    )
    return answer


def _recurrence(device: Any, layer: tuple[str, int, int, str, int], regime: str, training: bool, steps: int) -> Run:
    """A call of one layer over `steps` steps, by torch.nn or by ours in one regime."""
    cell, hidden, batch, precision, directions = layer
    problem = Problem(Row(cell, precision, hidden, training, False, batch, steps, directions), device)
    side = problem.sides()["nn" if regime == "nn" else "ours"]
    if regime == "nn":
        return side

    def forced() -> Values:
        with sf.use_impl(regime):
            return side()

    return forced


def clusters_at_once(device: Any) -> dict[str, Any]:
    """Microseconds a step of clusters of 10 blocks, by how many are launched: a jump shows how many run at once."""
    answer: dict[str, Any] = {}
    for clusters in range(1, 14):
        layer = ("gru", 300, 8 * clusters, "bf16", 1)
        plan = device.plan(*layer, False, "cluster")
        if not plan["fits"] or plan["tiles"] != 1:
            break
        us = 1e6 * slope(device, partial(_recurrence, device, layer, "cluster", False))
        answer[f"{plan['teams']} of {plan['blocks']}"] = us
    answer["line"] = ", ".join(f"{name} {us:.2f}" for name, us in answer.items()) or "no clusters here"
    return answer


def latencies(device: Any) -> dict[str, Callable[[], dict[str, Any]]]:
    """The parts of the latency stage."""
    parts: dict[str, Callable[[], dict[str, Any]]] = {"launch": partial(launches, device)}
    for cell in CELLS:
        for precision in ("bf16", "fp32"):
            for hidden in HIDDEN[1:3] + HIDDEN[4:]:
                parts[f"{cell}-{precision}-H{hidden}"] = partial(step_times, device, cell, precision, hidden)
    return parts | {"clusters": partial(clusters_at_once, device)}

"""Times the points of the grid against torch.nn, and the latencies that a step consists of.

All sides get the same weights, input and dtype, time-major because that suits cuDNN best, and the input projection is
timed too. A ragged batch starts padded, with its lengths on the device that a side wants (torch.nn: the CPU). torch.nn
packs it inside the eager call; for a CUDA graph it is packed before. Nothing is timed unless our results agree with
float64: those of a few rows of the batch, and the gradients of the weights when only these rows have a gradient.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import seqcls_fast as sf
from seqcls_fast.toolkit.timing import Call, turns

from ..layer_cases import Values, last_hidden
from . import layers
from .device import DTYPES, tf32_switch
from .grid import CELLS, HIDDEN, GridPoint
from .report import best_ratio

NAMES = {"rnn_tanh": "RNN", "gru": "GRU", "lstm": "LSTM"}
CHECKED_ROWS = 8  # rows of the batch whose results are checked
Forward = Callable[[nn.Module, Any], Values]

# -- the timing of several sides --------------------------------------------------------------------------------------


def interleave(
    sides: Mapping[str, Call],
    seconds: Callable[[Call, int], float],
    *,
    rounds: int = 7,
    sample: float = 0.01,
    allowance: float = 1.5,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds per call of every side, one sample per round, all sides in turns.

    A sample lasts about `sample` seconds. After `allowance` seconds no round begins, except for the first few.
    """
    deadline = clock() + allowance
    calls = {}
    for name, call in sides.items():
        seconds(call, 1)
        once = seconds(call, 2)
        calls[name] = max(1, min(200, math.ceil(sample / max(once, 1e-7))))
    samples: dict[str, list[float]] = {name: [] for name in sides}
    for _, name in turns(sides, rounds, deadline=deadline, clock=clock):
        samples[name].append(float(f"{seconds(sides[name], calls[name]):.4g}"))
    return samples


def slope(device: Any, call_of: Callable[[int], Call], steps: tuple[int, int] = (256, 512)) -> float:
    """Seconds per time step, from the difference between two lengths that are replayed from graphs."""
    replays = {str(T): device.capture(call_of(T))[0] for T in steps}
    samples = interleave(replays, device.seconds, rounds=5)
    few, many = (statistics.median(samples[str(T)]) for T in steps)
    return (many - few) / (steps[1] - steps[0])


# -- points of the grid -----------------------------------------------------------------------------------------------


class TimedModule:
    """A module with an input of its own. Calling it does the timed work once."""

    def __init__(self, module: nn.Module, x: Tensor, forward: Forward, point: GridPoint) -> None:
        self.module, self.x, self.forward, self.point = module, x, forward, point
        self.cotangents: Values = {}

    def __call__(self) -> Values:
        if not self.point.training:
            with torch.inference_mode():
                return self.forward(self.module, self.x)
        leaves = {"x": self.x, **dict(self.module.named_parameters())}
        for leaf in leaves.values():
            leaf.grad = None
        results = self.forward(self.module, self.x)
        torch.autograd.backward(list(results.values()), [self.cotangents[name] for name in results])
        grads = {f"d {name}": leaf.grad for name, leaf in leaves.items()}
        return {name: t.detach() for name, t in results.items()} | grads


class Comparison:
    """The weights and input of a point, made on the device, and the sides that are timed."""

    def __init__(self, point: GridPoint, device: Any) -> None:
        self.point, self.device = point, device
        self.dtype = DTYPES[point.precision]
        here = device.torch_device
        g = torch.Generator(device=here).manual_seed(1)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=g, device=here).to(self.dtype)

        self.x = normal(point.steps, point.batch, point.hidden)
        least, rows = max(1, point.steps // 10), (point.batch,)
        self.lengths = torch.randint(least, point.steps + 1, rows, generator=torch.Generator().manual_seed(1))
        torch.manual_seed(0)
        module = getattr(nn, NAMES[point.cell])(
            point.hidden, point.hidden, bidirectional=point.directions == 2, device=here
        )
        self.weights = {name: p.detach().to(self.dtype) for name, p in module.state_dict().items()}
        states, width = (point.directions, point.batch, point.hidden), point.directions * point.hidden
        self.cotangents = (
            {"h_n": normal(*states)} if point.ragged else {"output": normal(point.steps, point.batch, width)}
        )

    def module(self, library: Any, dtype: torch.dtype | None = None) -> nn.Module:
        point = self.point
        sizes, both = (point.hidden, point.hidden), point.directions == 2
        module = getattr(library, NAMES[point.cell])(*sizes, bidirectional=both, device="meta")
        module = module.to_empty(device=self.device.torch_device).to(dtype or self.dtype)
        module.load_state_dict(self.weights)
        module.flatten_parameters()
        return module.train(point.training)

    def side(self, module: nn.Module, forward: Forward) -> TimedModule:
        side = TimedModule(module, self.x.clone().requires_grad_(self.point.training), forward, self.point)
        side.cotangents = self.cotangents
        return side

    def sides(self, graph: bool = False) -> dict[str, TimedModule]:
        """Ours and every way of using torch.nn. "ours packed" is for users who changed nothing but the class."""
        if not self.point.ragged:
            return {
                "nn": self.side(self.module(nn), _padded),
                "ours": self.side(self.module(sf), _padded),
            }
        lengths, here = self.lengths, self.lengths.to(self.device.torch_device)
        sides = {
            "nn packed": self.side(self.module(nn), partial(_packed, lengths)),
            "ours packed": self.side(self.module(sf), partial(_packed, lengths)),
            "ours": self.side(self.module(sf), partial(_by_lengths, here)),
        }
        if graph:  # packing copies from the CPU, which cannot be captured
            for name in ("nn packed", "ours packed"):
                packed = pack_padded_sequence(self.x, lengths, enforce_sorted=False)
                sides[name].x = packed.data.requires_grad_(self.point.training)
                sides[name].forward = lambda m, x, packed=packed: {"h_n": last_hidden(m(packed))}
        if self.point.directions == 1:  # a reverse direction would begin in the padding
            rows, last = torch.arange(self.point.batch, device=here.device), here - 1
            sides["nn padded"] = self.side(self.module(nn), lambda m, x: {"h_n": m(x)[0][last, rows][None]})
        return sides

    def of_rows(self, rows: Tensor, values: Values) -> Values:
        """The values of some rows of the batch. Gradients of weights stay as they are."""
        return {n: t if t.dim() != 3 or t.size(1) == len(rows) else t.index_select(1, rows) for n, t in values.items()}

    def only_rows(self, rows: Tensor) -> Values:
        """The cotangents, with 0 for all other rows of the batch."""
        return {
            n: torch.zeros_like(t).index_copy_(1, rows, t.index_select(1, rows)) for n, t in self.cotangents.items()
        }

    def of_nn(self, rows: Tensor, dtype: torch.dtype) -> Values:
        """torch.nn's results of a batch of these rows alone."""
        side = TimedModule(
            self.module(nn, dtype), self.x[:, rows].to(dtype).requires_grad_(self.point.training), _padded, self.point
        )
        if self.point.ragged:
            lengths = self.lengths[rows.cpu()]
            side.forward = partial(_packed, lengths)
        side.cotangents = {n: t.index_select(1, rows).to(dtype) for n, t in self.cotangents.items()}
        return side()


def _padded(module: nn.Module, x: Tensor) -> Values:
    return {"output": module(x)[0]}


def _packed(lengths: Tensor, module: nn.Module, x: Tensor) -> Values:
    return {"h_n": last_hidden(module(pack_padded_sequence(x, lengths, enforce_sorted=False)))}


def _by_lengths(lengths: Tensor, module: nn.Module, x: Tensor) -> Values:
    return {"h_n": last_hidden(module(x, lengths=lengths, want_output=False))}


def check_results(comparison: Comparison, ours: TimedModule) -> dict[str, Any]:
    """The errors of ours and of torch.nn against float64, with "failed" if ours is wrong by the rule of layers.py."""
    point = comparison.point
    rows = torch.linspace(0, point.batch - 1, min(point.batch, CHECKED_ROWS)).long().to(comparison.device.torch_device)
    ours.cotangents = comparison.only_rows(rows)
    found = comparison.of_rows(rows, ours())
    ours.cotangents = comparison.cotangents
    truth, theirs = comparison.of_nn(rows, torch.float64), comparison.of_nn(rows, comparison.dtype)
    # except for fp32 the tolerance is that of at most 32 steps; beyond, only twice torch.nn's error is allowed
    steps = point.steps if point.precision == "fp32" else min(point.steps, 32)
    dtype = layers.CASE_DTYPES[point.precision]
    case = layers.Case(cell=point.cell, T=steps, B=len(rows), I=point.hidden, H=point.hidden, dtype=dtype)
    mine, other = distances(found, truth), distances(theirs, truth)
    wrong = layers.too_far(mine, other, case)
    answer: dict[str, Any] = {"error": max(mine.values()), "nn error": max(other.values())}
    return answer | ({"failed": f"wrong: {'; '.join(wrong)}"} if wrong else {})


def distances(found: Values, truth: Values) -> dict[str, float]:
    """The largest distances, relative to the largest element of a tensor; for gradients of weights, of all of them."""
    largest = {name: float(t.abs().max()) for name, t in truth.items()}
    weights = [name for name in truth if "weight" in name or "bias" in name]
    largest |= dict.fromkeys(weights, max((largest[name] for name in weights), default=0.0))
    far = {name: float((found[name].double() - t).abs().max()) / (largest[name] or 1.0) for name, t in truth.items()}
    return {name: float("inf") if d != d else d for name, d in far.items()}


def measure_point(
    device: Any, point: GridPoint, clock: Callable[[], float] = time.perf_counter
) -> Iterator[dict[str, Any]]:
    """Checks the results of a point, then times every side, eager and as CUDA graphs. Yields what is known so far."""
    with tf32_switch(point.precision):
        comparison = Comparison(point, device)
        sides = comparison.sides()
        answer = check_results(comparison, sides["ours"]) | {"regime": point.planned(device), "times": {}}
        if "failed" in answer:
            yield answer
            return
        yield told(answer, "eager", interleave(sides, device.seconds, clock=clock))
        del sides
        replays: dict[str, Call] = {}
        for name, side in comparison.sides(graph=True).items():
            try:
                replays[name] = device.capture(side)[0]
            except RuntimeError as error:
                reason = f"no CUDA graph of {name}: {str(error).splitlines()[0]}"
                answer["failed" if name == "ours" else "not captured"] = reason
                device.tidy()
        yield told(answer, "graph", interleave(replays, device.seconds, clock=clock))


def told(answer: dict[str, Any], mode: str, times: dict[str, list[float]]) -> dict[str, Any]:
    """The answer with the times of a mode, and with a line of all its modes."""
    answer["times"][mode] = times
    words = [f"{answer['regime']:<16}"]
    for mode, sides in answer["times"].items():
        medians = {name: statistics.median(samples) for name, samples in sides.items()}
        shown = ", ".join(f"{name} {1e6 * t:.1f}" for name, t in medians.items())
        words.append(f"{mode} {best_ratio(medians):.2f}x ({shown} us)")
    return answer | {"line": f"{'  '.join(words)}  error {answer['error']:.1e}, nn {answer['nn error']:.1e}"}


# -- latencies --------------------------------------------------------------------------------------------------------


def launches(device: Any, clock: Callable[[], float] = time.perf_counter) -> dict[str, Any]:
    """The time of an empty kernel, eager and in a graph of 100, and the CPU's time for a call of one step."""
    many = 100

    def burst() -> None:
        for _ in range(many):
            device.empty_kernel()

    answer: dict[str, Any] = {"empty kernel us": 1e6 * device.seconds(burst, 20) / many}
    answer["empty kernel in a graph us"] = 1e6 * device.seconds(device.capture(burst)[0], 20) / many
    for training in (False, True):
        point = GridPoint("lstm", "bf16", 8, training, False, 1, 1, 1)
        for name, side in Comparison(point, device).sides().items():
            answer[f"{name} {'training' if training else 'inference'} call us"] = _host_us(side, device, clock)
    answer["line"] = ", ".join(f"{name} {value:.2f}" for name, value in answer.items())
    return answer


def _host_us(call: Call, device: Any, clock: Callable[[], float]) -> float:
    samples = []
    for _ in range(7):
        device.synchronize()
        start = clock()
        for _ in range(50):  # few enough that the launches do not have to wait
            call()
        samples.append((clock() - start) / 50)
    return 1e6 * statistics.median(samples)


def step_times(device: Any, cell: str, precision: str, hidden: int, batch: int = 16) -> dict[str, Any]:
    """Microseconds per step of torch.nn and of every regime that fits, forward and backward.

    Beside them stands the floor: the arithmetic of a step, as the plan counts its cycles.
    """
    answer: dict[str, Any] = {}
    layer = (cell, hidden, batch, precision, 1)
    case = layers.Case(cell=cell, B=batch, H=hidden, dtype=layers.CASE_DTYPES[precision])
    for regime in [*layers.fitting(device, case, precision), "nn"]:
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


def _recurrence(device: Any, layer: tuple[str, int, int, str, int], regime: str, training: bool, steps: int) -> Call:
    """A call that runs a layer over `steps` steps, with torch.nn or with ours in one regime."""
    cell, hidden, batch, precision, directions = layer
    comparison = Comparison(GridPoint(cell, precision, hidden, training, False, batch, steps, directions), device)
    side = comparison.sides()["nn" if regime == "nn" else "ours"]
    if regime == "nn":
        return side

    def forced() -> Values:
        with sf.use_impl(regime):
            return side()

    return forced


def clusters_at_once(device: Any) -> dict[str, Any]:
    """Microseconds per step by the number of clusters, of 10 blocks each: they jump when not all run at once."""
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

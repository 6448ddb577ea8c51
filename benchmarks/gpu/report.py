"""The report that `python -m benchmarks.gpu` ends with: errors, latencies, ratios, the points that lose, the bars.

All of it comes from the parts of a results file. Eager calls and CUDA graphs are judged apart. A ratio is that of the
better way of using torch.nn, but ragged points are also compared with packed input alone.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .grid import ALWAYS, CELLS, HIDDEN, PRECISIONS, GridPoint


@dataclass
class Timed:
    """A point in one mode: median seconds per call of "ours" and of the others, of which torch.nn's begin with "nn"."""

    point: GridPoint
    mode: str  # eager, graph
    medians: dict[str, float]
    regime: str

    @property
    def ratio(self) -> float:
        """The ratio of the better way of using torch.nn."""
        return best_ratio(self.medians)

    def over(self, rival: str, ours: str = "ours") -> float:
        return self.medians[rival] / self.medians[ours]

    def __str__(self) -> str:
        told = ", ".join(f"{name} {1e6 * t:.1f}" for name, t in self.medians.items())
        return f"{self.point} {self.mode}: {self.ratio:.2f}x ({told} us; {self.regime})"


def best_ratio(medians: dict[str, float]) -> float:
    """The seconds of torch.nn, in its better way, divided by ours; NaN if a side is missing."""
    rivals = [t for name, t in medians.items() if name.startswith("nn")]
    return min(rivals) / medians["ours"] if rivals and "ours" in medians else math.nan


def timed(parts: dict[str, Any]) -> list[Timed]:
    """Every point that has times of both sides, from the parts of a results file."""
    found = []
    for name, part in parts.items():
        if not name.startswith("grid/") or "times" not in part:
            continue
        point = GridPoint.parse(name.removeprefix("grid/"))
        for mode, sides in part["times"].items():
            one = Timed(point, mode, {side: statistics.median(times) for side, times in sides.items()}, part["regime"])
            if not math.isnan(one.ratio):
                found.append(one)
    return found


@dataclass(frozen=True)
class Bar:
    name: str
    target: float
    applies: Callable[[Timed], bool]
    value: Callable[[Timed], float]
    at_most: bool = False  # whether the value may be at most the target, not at least
    unit: str = "x"

    def judge(self, all_rows: Iterable[Timed]) -> str:
        """A line that says whether the bar is met, by how much, and which point is the worst."""
        ours = [t for t in all_rows if self.applies(t)]
        if not ours:
            return f"not measured  {self.name}"
        worst, best = (max, min) if self.at_most else (min, max)
        at = worst(ours, key=self.value)
        value, missed = self.value(at), sum(not self.met(self.value(t)) for t in ours)
        mean = math.exp(statistics.fmean(math.log(self.value(t)) for t in ours))
        verdict = "met" if not missed else "MISSED"
        off = abs(value - self.target) / self.target
        side = "above" if value > self.target else "below"
        spread = f"mean {mean:.2f}{self.unit}, best {self.value(best(ours, key=self.value)):.2f}{self.unit}"
        return (
            f"{verdict:<12}  {self.name}: worst {value:.2f}{self.unit}, {100 * off:.0f} % {side} the bar, at "
            f"{at.point} {at.mode}; {len(ours) - missed} of {len(ours)} meet it; {spread}"
        )

    def met(self, value: float) -> bool:
        return value <= self.target if self.at_most else value >= self.target


def _ratio(t: Timed) -> float:
    return t.ratio


def _padded_training(t: Timed, lowest: int, highest: int) -> bool:
    return t.point.training and not t.point.ragged and lowest <= t.point.hidden <= highest


BARS = (
    Bar("forward + backward, H <= 128: 3x", 3, lambda t: _padded_training(t, 1, 128), _ratio),
    Bar(
        "forward + backward, GRU and LSTM, 192 <= H <= 512: 2.5x",
        2.5,
        lambda t: _padded_training(t, 192, 512) and t.point.cell != "rnn_tanh",
        _ratio,
    ),
    Bar(
        "forward + backward, ragged against packed: 10x",
        10,
        lambda t: t.point.training and "nn packed" in t.medians,
        lambda t: t.over("nn packed"),
    ),
    Bar(
        "forward + backward, both packed: 10x",
        10,
        lambda t: t.point.training and {"nn packed", "ours packed"} <= t.medians.keys(),
        lambda t: t.over("nn packed", "ours packed"),
    ),
    Bar(
        "forward, LSTM bf16, H = 768, B = 16, T = 1024: 1.96 us a step",
        1.96,
        lambda t: t.point == ALWAYS[0],
        lambda t: 1e6 * t.medians["ours"] / t.point.steps,
        at_most=True,
        unit=" us",
    ),
    Bar("no point below 1x", 1, lambda t: True, _ratio),
)


def table(points: Iterable[Timed]) -> list[str]:
    """A line per row of the grid with its times in each mode, the rows at which torch.nn is furthest ahead first."""
    rows: dict[GridPoint, list[Timed]] = {}
    for t in points:
        rows.setdefault(t.point, []).append(t)
    lines = []
    for point, modes in sorted(rows.items(), key=lambda row: min(t.ratio for t in row[1])):
        told = "; ".join(
            f"{t.mode} {t.ratio:.2f}x ({', '.join(f'{name} {1e6 * s:.1f}' for name, s in t.medians.items())})"
            for t in modes
        )
        lost = "LOST " if any(t.ratio < 1 for t in modes) else "     "
        lines.append(f"{lost}{point} {modes[0].regime}: {told}")
    return lines


def summary(points: Sequence[Timed]) -> list[str]:
    """A line per size and mode, with the geometric mean and the lowest ratio of each cell and precision."""
    heads = [f"{cell} {precision}" for cell in CELLS for precision in PRECISIONS]
    lines = [f"{'':<34}" + "".join(f"{head:>15}" for head in heads)]
    for ragged, training, mode in itertools.product((False, True), (False, True), ("eager", "graph")):
        for hidden in HIDDEN:
            cells = []
            for head in heads:
                ratios = [
                    t.ratio
                    for t in points
                    if t.mode == mode
                    and (t.point.ragged, t.point.training, t.point.hidden) == (ragged, training, hidden)
                    and f"{t.point.cell} {t.point.precision}" == head
                ]
                mean = math.exp(statistics.fmean(map(math.log, ratios))) if ratios else None
                cells.append("-" if mean is None else f"{mean:.2f} ({min(ratios):.2f})")
            if any(cell != "-" for cell in cells):
                kind = f"{'ragged' if ragged else 'padded'} {'training' if training else 'inference'} {mode} H{hidden}"
                lines.append(f"{kind:<34}" + "".join(f"{cell:>15}" for cell in cells))
    return lines if len(lines) > 1 else []


def errors(parts: dict[str, Any]) -> list[str]:
    """A line per precision and regime: the worst error against float64, and torch.nn's at the same layer."""
    worst: dict[str, tuple[float, str]] = {}
    for name, part in sorted(parts.items()):
        cell, _, rest = name.partition("/")[2].partition("-")
        if not name.startswith(("correctness/", "layers/")) or cell == "module":
            continue
        for variant in ("padded", "ragged"):
            entry = part.get(variant, {})
            theirs = float(entry.get("nn", math.nan))
            for regime in entry.keys() - {"nn", "nn refuses"}:
                error, key = float(entry[regime]), f"{rest.partition('-')[0]:<5} {regime}"
                if error >= worst.get(key, (-1.0, ""))[0]:
                    worst[key] = (error, f"torch.nn's {theirs:.1e}, at {cell}-{rest} {variant}")
    return [f"{key:<15} {error:.1e}, {beside}" for key, (error, beside) in sorted(worst.items())]


def latencies(parts: dict[str, Any]) -> list[str]:
    """A line per layer and pass: microseconds per step of each regime and, in brackets, the part above the floor."""
    lines = []
    for name, part in sorted(parts.items()):
        regimes = {r: e for r, e in part.items() if isinstance(e, dict) and "forward us" in e}
        if not name.startswith("latency/") or not regimes:
            continue
        for which in ("forward", "backward"):
            words = []
            for regime, entry in regimes.items():
                us, floor = entry[f"{which} us"], entry.get(f"{which} floor us")
                words.append(f"{regime} {us:.2f}" + ("" if floor is None else f" ({us - floor:+.2f})"))
            if {"cluster", "grid"} <= regimes.keys():
                apart = regimes["grid"][f"{which} us"] - regimes["cluster"][f"{which} us"]
                words.append(f"grid's exchange over cluster's {apart:+.2f}")
            lines.append(f"{name.removeprefix('latency/'):<20} {which:<9} {', '.join(words)}")
    return lines


def lines_of(parts: dict[str, Any], prefix: str) -> list[str]:
    """What the parts of a stage have told."""
    told = {name.partition("/")[2]: part.get("line") for name, part in sorted(parts.items()) if name.startswith(prefix)}
    return [f"{name}: {line}" for name, line in told.items() if line]


def verdict(parts: dict[str, Any], run: dict[str, Any]) -> list[str]:
    """The lines of the report. The table comes last, its losing rows first."""
    points = timed(parts)
    lines: list[str] = []
    for head, body in (
        ("primitives:", lines_of(parts, "primitives/")),
        ("worst errors against float64, over the largest element:", errors(parts)),
        ("tools:", [line for tool in ("memcheck", "racecheck", "ncu") for line in lines_of(parts, f"{tool}/")]),
        ("microseconds a step (above the floor of the arithmetic):", latencies(parts)),
        ("torch.nn / ours, geometric mean (lowest):", summary(points)),
        ("bars:", [bar.judge(points) for bar in BARS]),
    ):
        lines += ["", head, *(f"  {line}" for line in body)] if body else []
    lost = len({t.point for t in points if t.ratio < 1})
    rows = len({t.point for t in points})
    head = f"your GPU, {run.get('device', 'not known')}, beside torch.nn: {lost} of {rows} rows lost; us of a call"
    return [*lines, "", head, *table(points)]

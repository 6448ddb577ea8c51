"""The results of measurements, a row each, and the files that hold them as lines of JSON.

A file holds the times of single samples; medians, ratios and intervals are computed from them when they are reported.
Needs the standard library alone.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import re
import runpy
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
RESAMPLES = 300
QUALITY = "quality-"  # begins the names of the files of quality_rows.py, which have another format
FROZEN = "ours frozen"  # the side with frozen weights, until a row of its own has it
FLOOR = "torch.sum of as many bytes"  # the side that reads what the weights take, which is nobody's result


@dataclass
class Side:
    """The samples of one engine: an entry per round, None if the machine was busy at every try."""

    rounds: list[float | None] = field(default_factory=list)  # seconds per call, or bytes
    least: float | None = None  # of the samples taken while the machine was busy
    error: float | None = None  # distance from float64
    note: str = ""  # why there is no time, or in which way it is special

    def add(self, value: float, good: bool) -> None:
        """Adds a round of a single sample, which is good if the machine was not busy."""
        self.rounds.append(value if good else None)
        if not good:
            self.least = min(value, self.least or value)

    @property
    def good(self) -> list[float]:
        return [value for value in self.rounds if value is not None]

    @property
    def measured(self) -> bool:
        return bool(self.good) or self.least is not None

    @property
    def starred(self) -> bool:
        """Whether fewer than two samples are good: a single one may be luck, as no probe runs during a sample."""
        return self.measured and len(self.good) < 2 and self.least is not None

    @property
    def value(self) -> float:
        """The median of the good samples, or the least of all if fewer than two are good."""
        if len(self.good) >= 2 or self.least is None:
            return statistics.median(self.good)
        return min([*self.good, self.least])


@dataclass
class Row:
    """One line of a table: several sides of one thing, "ours" among them."""

    question: str  # the file that asked: layers, latency, ...
    what: str  # the table it is in: inference, ragged training, ...
    name: str  # the name of its line: "GRU (8, 10, 16, 32)"
    threads: int
    sides: dict[str, Side]
    unit: str = "s"  # "s" or "bytes"; less is better
    bounds: dict[str, float] = field(default_factory=dict)  # the least seconds, for each thing that limits the speed
    gflop: float | None = None
    goals: dict[str, float] = field(default_factory=dict)  # the least ratio that was aimed at, for some of the sides

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.question, self.what, self.name, self.threads

    @property
    def share(self) -> float | None:
        """The share of the bound that ours reaches."""
        ours = self.sides["ours"]
        return max(self.bounds.values()) / ours.value if self.bounds and ours.measured else None

    def rivals(self) -> list[str]:
        no_rivals = ("ours", FLOOR)
        return [name for name, side in self.sides.items() if side.measured and not name.startswith(no_rivals)]

    def ratio(self, name: str) -> Ratio:
        """A side's time or bytes divided by those of "ours"."""
        return Ratio.of(self.sides[name], self.sides["ours"])


class Ratio(NamedTuple):
    """The ratio of two sides' medians over the rounds that are good for both, and its 95 % bootstrap interval.

    With fewer than three such rounds it is the ratio of the two sides' values, without an interval.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, slow: Side, fast: Side) -> Ratio:
        both = zip(slow.rounds, fast.rounds, strict=False)  # a side that was called once has fewer rounds
        pairs = [(a, b) for a, b in both if a is not None and b is not None]
        if len(pairs) < 3:
            return cls(slow.value / fast.value, math.nan, math.nan)

        def ratio(some: Sequence[tuple[float, float]]) -> float:
            return statistics.median(a for a, _ in some) / statistics.median(b for _, b in some)

        rng = random.Random(0)
        drawn = sorted(ratio(rng.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES))
        edge = round(0.025 * RESAMPLES)
        return cls(ratio(pairs), drawn[edge], drawn[-1 - edge])


def both_rows(row: Row) -> list[Row]:
    """Two rows of a row with a frozen side: the row without it, and one in which the frozen side is ours.

    Both have the same samples of the other sides. So a comparison that is lost with frozen weights, or without, is
    counted and listed as any other.
    """
    others = {name: side for name, side in row.sides.items() if name not in ("ours", FROZEN)}
    plain, frozen = row.sides["ours"], row.sides[FROZEN]
    return [
        dataclasses.replace(row, sides={"ours": plain, **others}),
        dataclasses.replace(
            row, what=f"{row.what}, frozen", sides={"ours": frozen, "ours not frozen": plain, **others}
        ),
    ]


# -- files ------------------------------------------------------------------------------------------------------------


def csrc_hash(root: Path = ROOT) -> str:
    """The hash of all files under csrc/, names included: results of another hash are those of other kernels."""
    return runpy.run_path(str(ROOT / "csrc/hash.py"))["csrc_hash"](root)


def file_of(machine: str) -> Path:
    """The file of a CPU model."""
    return RESULTS / (re.sub(r"[^a-z0-9]+", "-", machine.lower()).strip("-") + ".json")


def write_run(facts: dict[str, Any], to: TextIO) -> None:
    print(json.dumps({"run": facts}), file=to, flush=True)


def write_answered(question: str, to: TextIO) -> None:
    """Says that all rows of a question of this run are there."""
    print(json.dumps({"answered": question}), file=to, flush=True)


def write(row: Row, to: TextIO) -> None:
    """Appends a row, its times rounded to five digits."""

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.5g}")
        if isinstance(value, dict):
            return {key: rounded(each) for key, each in value.items()}
        return [rounded(each) for each in value] if isinstance(value, list) else value

    print(json.dumps({"row": rounded(dataclasses.asdict(row))}), file=to, flush=True)


@dataclass
class Measured:
    """A row and the facts of the run that measured it."""

    row: Row
    run: dict[str, Any]

    @property
    def stale(self) -> bool:
        return self.run["csrc"] != csrc_hash()


def files(results: Path = RESULTS) -> list[Path]:
    """The files of speeds on CPUs; other files there have another format."""
    named = (file for file in sorted(results.glob("*.json")) if not file.name.startswith(("gpu-", QUALITY)))
    return [file for file in named if file.read_text().startswith('{"run":')]


def load(path: Path) -> list[Measured]:
    """The rows of a file, the last one of each key."""
    found: dict[tuple[str, str, str, int], Measured] = {}
    run: dict[str, Any] = {}
    for entry in _entries(path):
        if "run" in entry:
            run = entry["run"]
        elif "row" in entry:
            sides = {name: Side(**side) for name, side in entry["row"].pop("sides").items()}
            row = Row(**entry["row"], sides=sides)
            found[row.key] = Measured(row, run)
    return list(found.values())


def answered(path: Path, facts: dict[str, Any]) -> set[str]:
    """The questions that were answered to the end by runs of the same commit, number of threads and libraries."""
    same = ("commit", "csrc", "threads", "torch", "peers", "impl")
    found: set[str] = set()
    counts = False
    for entry in _entries(path) if path.exists() else ():
        if "run" in entry:
            counts = all(entry["run"].get(name) == facts[name] for name in same)
        elif "answered" in entry and counts:
            found.add(entry["answered"])
    return found


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in path.read_text().splitlines())


def cut_unfinished_line(path: Path) -> None:
    """Removes the end of a file that a killed run left in the middle of a line."""
    if path.is_file():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            path.write_bytes(content[: content.rfind(b"\n") + 1])


# -- text -------------------------------------------------------------------------------------------------------------


def number(value: float, digits: int = 3) -> str:
    """A number with at least `digits` significant digits and no exponent."""
    decimals = max(0, digits - 1 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{decimals}f}"


def amount(value: float, unit: str) -> str:
    steps = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if unit == "bytes" else (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))
    name, size = next((step for step in steps if value >= step[1]), steps[-1])
    return f"{number(value / size)} {name}"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def mean_of(ratios: Sequence[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def described(row: Row) -> str:
    """A row as one line of a terminal."""
    ours = row.sides["ours"]
    words = [f"{row.what}, {row.name}, {row.threads}t:"]
    if not ours.measured:
        return " ".join([*words, ours.note])
    words.append(f"{amount(ours.value, row.unit)}{'*' if ours.starred else ''}")
    if row.share is not None:
        words.append(f"({percent(row.share)})")
    for name, side in row.sides.items():
        if name == "ours":
            continue
        if not side.measured:
            words.append(f"| {name}: {side.note}")
            continue
        ratio = row.ratio(name)
        interval = "" if math.isnan(ratio.low) else f" ({number(ratio.low)} to {number(ratio.high)})"
        lost = " LOST" if ratio.value < 1 and name in row.rivals() else ""
        words.append(f"| {name} {number(ratio.value)}x{'*' if side.starred else ''}{interval}{lost}")
    return " ".join(words)


def lost(rows: Iterable[Row]) -> list[tuple[Row, str, Ratio]]:
    """(row, side, ratio) of every side that took less than ours, the furthest ahead first."""
    found = [(row, name, row.ratio(name)) for row in rows if row.sides["ours"].measured for name in row.rivals()]
    return sorted((each for each in found if each[2].value < 1), key=lambda each: each[2].value)

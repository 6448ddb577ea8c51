"""Writes the README's performance section and its charts from benchmarks/results/*.json, and from nothing else.

Every row that a peer wins is listed, before any table. A row measured with other kernels than those of the tree is
marked, by the hash of csrc/. Needs the standard library alone.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from . import charts, rows
from .rows import Measured, Row, amount, mean_of, number, percent

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
WORST_BEGIN, WORST_END = "<!-- worst:begin -->", "<!-- worst:end -->"
CALL = "a call's own cost"
REASONS = {
    "import_time": "torch itself is what is imported",
    "per_sample": "what torch.func costs whatever the sizes",
    "compile_time": "what the first call of a layer costs",
}
ENOUGH = 0.7  # of the bound; below it a row gets a reason
QUESTIONS = {
    "layers": "Layers",
    "latency": "Latency of one sequence",
    "tokens": "Token ids",
    "classifier": "The classifier, end to end",
    "scaling": "Scaling",
    "per_sample": "Per-sample gradients",
    "compile_time": "Time to the first result",
    "import_time": "Start of a process",
    "memory": "Memory",
}
METHOD = (
    "`make bench` measures and `make report` writes this section; no figure in it is typed. Every engine runs the same "
    "numbers in the same dtype on the same CPUs, in one process, block by block in turns, after its result was held "
    "against float64; blocks during which the machine was disturbed are measured again, and nothing else is left out. "
    "**a / b**: one thread / two. Ratios are *theirs / ours*, of medians: above 1 ours is faster, and what is below is "
    "bold. The bound is what the products take at the machine's multiply-add peak plus the activations, or the reading "
    "of weights and data if that takes longer. `*`: disturbed, the least of what was seen, good to 20 %. `+`: measured "
    "with another version of the kernels."
)


class Report:
    """The measurements of one machine."""

    def __init__(self, found: Sequence[Measured]) -> None:
        self.found = [m for m in found if m.row.sides["ours"].measured]
        self.rows = [m.row for m in self.found]
        self.stale = {m.row.key for m in found if m.stale}
        self.runs = {m.row.threads: m.run for m in sorted(found, key=lambda m: m.run["time"])}
        self.wrong = [m.row for m in found if not m.row.sides["ours"].measured]
        self.threads = sorted({row.threads for row in self.rows})
        self._by_key = {row.key: row for row in self.rows}

    # -- text of one value ----------------------------------------------------------------------------------------

    def mark(self, row: Row, *sides: str) -> str:
        return ("*" if any(row.sides[name].starred for name in ("ours", *sides)) else "") + (
            "+" if row.key in self.stale else ""
        )

    def ratio(self, row: Row, name: str) -> str:
        side = row.sides.get(name)
        if side is None:
            return "-"
        if not side.measured:
            return "wrong" if side.note.startswith("WRONG") else "refused"
        value = row.ratio(name).value
        text = number(value) + self.mark(row, name)
        return f"**{text}**" if value < 1 and name in row.rivals() else text

    # -- why ------------------------------------------------------------------------------------------------------

    def call_cost(self, row: Row) -> float:
        """What one call takes that computes next to nothing: that of the tiniest shape."""
        what = "training" if "training" in row.what else "inference"
        cell = row.name.split()[0]
        tiny = self._by_key.get(("layers", what, f"{cell} (1, 1, 8, 8)", row.threads))
        layers = 2 if "stacked" in row.what else 1
        return layers * tiny.sides["ours"].value if tiny is not None else 0.0

    def reason(self, row: Row) -> str:
        """Why a row of a layer stays below its bound, as far as the measurements tell."""
        ours, limit = row.sides["ours"].value, max(row.bounds, key=row.bounds.__getitem__, default="")
        cost = self.call_cost(row)
        if row.question in REASONS:
            return REASONS[row.question]
        if row.what == "first call":
            return "weights are packed and memory is touched for the first time, which some peers do on loading a model"
        if row.question == "latency" or cost > 0.4 * ours:
            return f"a call's own cost: {amount(cost, 's')} of {amount(ours, 's')}" if 0 < cost < ours else CALL
        if not row.bounds:
            return ""
        if (row.share or 0) >= ENOUGH:
            return f"{percent(row.share)} of the bound is reached"
        shape = [int(size) for size in re.findall(r"\d+", row.name)]
        if limit != "traffic" and len(shape) == 4 and shape[0] <= 8:
            return "few rows: a step's weights are read for a handful of products, and its activations wait for them"
        if "training" in row.what:
            return "saved values and gradients pass through the caches several times"
        if row.threads > 1:
            return "threads start and end together, and rows do not divide evenly"
        return "activations, and the edges of tiles"

    # -- sections -------------------------------------------------------------------------------------------------

    def heading(self) -> Iterator[str]:
        for threads, run in sorted(self.runs.items()):
            if threads == min(self.runs):
                peers = ", ".join(f"{name} {version}" for name, version in run["peers"].items())
                yield (
                    f"**{run['machine']}**, {run['time'][:10]}: torch {run['torch']}, {peers}, Python {run['python']}; "
                    f"seqcls_fast {run['seqcls_fast']} ({run['impl']}, commit {run['commit']}, csrc {run['csrc']}).\n"
                )
            yield from (f"- {line}" for line in run["limits"])
        for row in self.wrong:
            yield f"- **WRONG**: {row.what}, {row.name}: {row.sides['ours'].note}"
        yield ""

    def summary(self) -> Iterator[str]:
        """Geometric means and lowest rows, per table: against the best way of torch's, and the best of all peers."""
        yield "| | rows | best of torch: mean | lowest | best of all: mean | lowest | lost |"
        yield "|---|---|---|---|---|---|---|"
        for question, what in dict.fromkeys((row.question, row.what) for row in self.rows):
            compared = [r for r in self.rows if (r.question, r.what) == (question, what) and r.rivals()]
            if not compared or question == "scaling":
                continue
            cells = []
            for only in ("torch", ""):
                best = [
                    min(row.ratio(name).value for name in names)
                    for row in compared
                    if (names := [name for name in row.rivals() if name.startswith(only)])
                ]
                cells += [f"{number(mean_of(best))}x", f"{number(min(best))}x"] if best else ["-", "-"]
            losses = sum(any(row.ratio(name).value < 1 for name in row.rivals()) for row in compared)
            yield f"| {what} | {len(compared)} | {' | '.join(cells)} | {losses or 'none'} |"
        yield ""

    def losses(self) -> Iterator[str]:
        lost = rows.lost(self.rows)
        if not lost:
            yield "No row is lost to any peer.\n"
            return
        total = sum(len(row.rivals()) for row in self.rows)
        yield f"**Where a peer is faster**: {len(lost)} of {total} comparisons, all of them here.\n"
        yield "<details open><summary>every lost comparison</summary>\n"
        yield "| theirs / ours | 95 % interval | peer | row | threads | why |"
        yield "|---|---|---|---|---|---|"
        for row, name, ratio in lost:
            interval = "-" if math.isnan(ratio.low) else f"{number(ratio.low)} to {number(ratio.high)}"
            yield (
                f"| **{number(ratio.value)}**{self.mark(row, name)} | {interval} | {name} | {row.what}: {row.name} | "
                f"{row.threads} | {self.reason(row)} |"
            )
        yield "\n</details>\n"

    def tables(self) -> Iterator[str]:
        for question, title in QUESTIONS.items():
            asked = [row for row in self.rows if row.question == question]
            if not asked:
                continue
            yield f"<details><summary>{title}: every row</summary>\n"
            for what in dict.fromkeys(row.what for row in asked):
                yield from self.table([row for row in asked if row.what == what])
            if question == "scaling":
                yield from self.exponents(asked)
            yield "</details>\n"

    def table(self, some: Sequence[Row]) -> Iterator[str]:
        """A line per case: ours, the share of the bound, and every other side's ratio, at each thread count."""
        others = dict.fromkeys(name for row in some for name in row.sides if name != "ours")
        others = sorted(others, key=lambda name: list(charts.MARKS).index(name) if name in charts.MARKS else -1)
        bounded = any(row.bounds for row in some)
        errors = any(row.sides["ours"].error is not None for row in some)
        head = ["", "ours", *(["of the bound"] if bounded else []), *others, *(["error"] if errors else [])]
        yield f"**{some[0].what}**\n"
        yield f"| {' | '.join(head)} |"
        yield "|---" * len(head) + "|"
        for name in dict.fromkeys(row.name for row in some):
            line = [row for row in some if row.name == name]
            cells = [
                name,
                " / ".join(f"{amount(row.sides['ours'].value, row.unit)}{self.mark(row)}" for row in line),
            ]
            cells += [" / ".join(percent(row.share) for row in line)] if bounded else []
            cells += [" / ".join(self.ratio(row, other) for row in line) for other in others]
            cells += [self.error(line[0])] if errors else []
            yield f"| {' | '.join(cells)} |"
        yield ""
        low = [row for row in some if row.share is not None and row.share < ENOUGH and row.threads == self.threads[0]]
        for why in dict.fromkeys(re.sub(r": .*", "", self.reason(row)) for row in low):
            names = [row.name for row in low if self.reason(row).startswith(why)]
            yield f"- below {percent(ENOUGH)} of the bound, {why}: {'; '.join(names)}"
        yield ""

    @staticmethod
    def error(row: Row) -> str:
        """Ours, and in brackets the least accurate peer's."""
        others = [side.error for name, side in row.sides.items() if name != "ours" and side.error is not None]
        return f"{row.sides['ours'].error:.0e}" + (f" ({max(others):.0e})" if others else "")

    def exponents(self, asked: Sequence[Row]) -> Iterator[str]:
        """Fitted to the larger half of the sizes, where a call's own cost no longer counts."""
        yield "Exponents of the time, fitted to the larger half of the sizes:\n"
        for curve in self.curves(asked):
            cell, axis, threads, sizes = curve
            names = [name for name in sizes[max(sizes)].sides if sizes[max(sizes)].sides[name].measured]
            fits = []
            for name in names:
                points = [
                    (size, row.sides[name].value)
                    for size, row in sorted(sizes.items())
                    if name in [*row.rivals(), "ours"]
                ]
                points = points[len(points) // 2 :]
                if len(points) > 1:
                    fits.append(f"{name} {slope(points):.2f}")
            yield f"- {cell} against {axis}, {threads} thread{'s' if threads > 1 else ''}: {', '.join(fits)}"
        yield ""

    @staticmethod
    def curves(asked: Iterable[Row]) -> Iterator[tuple[str, str, int, dict[float, Row]]]:
        """(cell, axis, threads, size -> row) of the rows of the scaling question."""
        found: dict[tuple[str, str, int], dict[float, Row]] = {}
        for row in asked:
            cell, axis, size = re.fullmatch(r"(\w+) (\w) = (\d+)", row.name).groups()  # type: ignore[union-attr]
            found.setdefault((cell, axis, row.threads), {})[float(size)] = row
        return ((*key, sizes) for key, sizes in found.items() if len(sizes) > 1)

    # -- charts ---------------------------------------------------------------------------------------------------

    def charts(self) -> dict[str, str]:
        """Name -> SVG, at the fewest threads there are."""
        found = {}
        for what in ("inference", "training", "ragged inference", "ragged training"):
            lines = {
                row.name: {name: row.ratio(name).value for name in row.rivals() if name in charts.MARKS}
                for row in self.rows
                if (row.question, row.what, row.threads) == ("layers", what, self.threads[0]) and row.rivals()
            }
            if lines:
                found[what.replace(" ", "-")] = charts.dots(f"{what}, one thread", lines)
        panels: dict[str, dict[str, dict[float, float]]] = {}
        for cell, axis, threads, sizes in self.curves(row for row in self.rows if row.question == "scaling"):
            if cell == "GRU" and threads == self.threads[0]:
                panel = panels.setdefault(axis, {})
                for size, row in sizes.items():
                    for name in ["ours", *row.rivals()]:
                        panel.setdefault(name, {})[size] = row.sides[name].value
        if panels:
            title = "GRU, one thread; (B, T, I, H) = (32, 64, 64, 128) but for one size"
            found["scaling"] = charts.curves(title, panels)
        return found

    def text(self, drawn: Iterable[str], folder: str) -> str:
        pictures = [f"![{name}, theirs / ours]({folder}/{name}.svg)" for name in drawn]
        parts = [*self.heading(), *self.summary(), *pictures, "", *self.losses(), *self.tables()]
        return "\n".join(parts)

    def worst(self, count: int = 10) -> str:
        """The rows of layers furthest behind a peer, then those furthest from their bound."""
        lost = rows.lost(row for row in self.rows if row.question == "layers")
        picked: dict[tuple[str, str, str, int], str] = {}
        for row, name, ratio in lost:
            text = f"{number(ratio.value)} of ours is what {name} takes"
            picked.setdefault(row.key, f"| {row.what}: {row.name}, {row.threads}t | {text} | {self.reason(row)} |")
        far = sorted((row for row in self.rows if row.share is not None), key=lambda row: row.share or 0)
        for row in far:
            text = f"{percent(row.share)} of the bound"
            picked.setdefault(row.key, f"| {row.what}: {row.name}, {row.threads}t | {text} | {self.reason(row)} |")
        return "\n".join(["| row | | why |", "|---|---|---|", *list(picked.values())[:count]])


def slope(points: Sequence[tuple[float, float]]) -> float:
    return statistics.linear_regression(*zip(*((math.log(x), math.log(y)) for x, y in points), strict=True)).slope


def between(file: Path, begin: str, end: str, text: str) -> None:
    """Replaces what stands between two markers of a file."""
    old = file.read_text()
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise SystemExit(f"{file}: expected one {begin} and after it one {end}")
    file.write_text(f"{old[: old.index(begin)]}{begin}\n{text}\n{old[old.index(end) :]}")


def reports(results: Path) -> list[tuple[str, Report]]:
    """(name of its file, report) of every CPU, the one measured last first; files of others begin otherwise."""
    found = [
        (file.stem, Report(rows.load(file)))
        for file in sorted(results.glob("*.json"))
        if file.read_text().startswith('{"run":') and not file.name.startswith("gpu-")
    ]
    return sorted(
        ((name, report) for name, report in found if report.rows),
        key=lambda each: max(run["time"] for run in each[1].runs.values()),
        reverse=True,
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=rows.RESULTS, help="the folder of the JSON files")
    parser.add_argument("--readme", type=Path, default=rows.ROOT / "README.md")
    parser.add_argument("--contributing", type=Path, default=rows.ROOT / "CONTRIBUTING.md")
    arguments = parser.parse_args(argv)
    parts = [METHOD, ""]
    found = reports(arguments.results)
    if not found:
        raise SystemExit(f"{arguments.results}: expected rows written by `python -m benchmarks`, found none")
    for place, (name, report) in enumerate(found):
        folder = arguments.results / name
        drawn = report.charts()
        folder.mkdir(exist_ok=True)
        for title, svg in drawn.items():
            (folder / f"{title}.svg").write_text(svg)
        shown = folder.relative_to(rows.ROOT) if folder.is_relative_to(rows.ROOT) else folder
        text = report.text(drawn, shown.as_posix())
        if place:
            machine = next(iter(report.runs.values()))["machine"]
            text = f"<details><summary>{machine}</summary>\n\n{text}\n</details>"
        parts.append(text)
    between(arguments.readme, BEGIN, END, "\n".join(parts))
    between(arguments.contributing, WORST_BEGIN, WORST_END, found[0][1].worst())
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Writes docs/performance.md, docs/quality.md, docs/machines and the charts, all from benchmarks/results/*.json.

The performance page says where we are faster and where another library is, on the machine that was measured last. Each
machine has a page with every row, and before the tables a list of every comparison that is lost. A row that was
measured with other kernels than the tree's, by the hash of csrc/, is marked. Needs the standard library alone.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import statistics
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from . import charts, goals, quality_report, quality_rows, reasons, rows
from .reasons import ENOUGH
from .rows import Measured, Ratio, Row, amount, mean_of, number, percent

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
MOST_NAMES = 20  # in the list below a table; of more rows only the number is said
QUESTIONS = {
    "layers": "Layers",
    "random_shapes": "Shapes that nobody chose",
    "latency": "Latency of one sequence",
    "cells": "Cells",
    "one_step": "One step at a time",
    "policies": "Loops around cells",
    "resets": "States that reset",
    "options": "Options of the layers",
    "tokens": "Token ids",
    "classifier": "The classifier, end to end",
    "scaling": "Scaling",
    "per_sample": "Per-sample gradients",
    "compile_time": "Time to the first result",
    "import_time": "Start of a process",
    "memory": "Memory",
    "runtime": "The runtime, without torch",
}
LAYERS = ("layers", "random_shapes")
READ = (
    "The performance page says [how this was measured and how to read it](../performance.md#how-to-read-the-tables). "
    "Written by `make report`."
)
STALE = "**All of it was measured with an earlier version of the kernels.**"


class Report:
    """The measurements of one machine."""

    def __init__(self, found: Sequence[Measured]) -> None:
        self.found = [m for m in found if m.row.sides["ours"].measured]
        self.rows = [m.row for m in self.found]
        self.stale = {m.row.key for m in self.found if m.stale}
        self.all_stale = len(self.stale) == len(self.found) > 0
        self.runs = {m.row.threads: m.run for m in sorted(found, key=lambda m: m.run["time"])}
        self.wrong = [m.row for m in found if not m.row.sides["ours"].measured]
        self.threads = sorted({row.threads for row in self.rows})
        self._by_key = {row.key: row for row in self.rows}

    # -- text of one value ----------------------------------------------------------------------------------------

    def mark(self, row: Row, *sides: str) -> str:
        return ("*" if any(row.sides[name].starred for name in ("ours", *sides)) else "") + (
            "+" if row.key in self.stale and not self.all_stale else ""
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

    def reason(self, row: Row) -> str:
        return reasons.reason(row, self._by_key)

    def lost(self) -> list[tuple[Row, str, Ratio]]:
        return rows.lost(self.rows)

    # -- sections -------------------------------------------------------------------------------------------------

    def machine(self) -> str:
        return str(next(iter(self.runs.values()))["machine"])

    def versions(self) -> str:
        run = self.runs[min(self.runs)]
        peers = ", ".join(f"{name} {version}" for name, version in run["peers"].items())
        text = (
            f"**{run['machine']}**, {run['time'][:10]}: torch {run['torch']}, {peers}, Python {run['python']}; "
            f"seqcls_fast {run['seqcls_fast']} ({run['impl']}, commit {run['commit']}, csrc {run['csrc']})."
        )
        return f"{text} {STALE}" if self.all_stale else text

    def heading(self) -> Iterator[str]:
        yield f"{self.versions()}\n"
        for _, run in sorted(self.runs.items()):
            yield from (f"- {line}" for line in run["limits"])
        for row in self.wrong:
            yield f"- **WRONG**: {row.what}, {row.name}: {row.sides['ours'].note}"
        yield ""

    def summary(self) -> Iterator[str]:
        """Geometric means and lowest ratios, per table: against the best way of torch's, and the best of all peers."""
        yield "| | cases | best of torch: mean | lowest | best of all: mean | lowest | cases lost |"
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

    def count(self) -> str:
        total = sum(len(row.rivals()) for row in self.rows)
        return f"{len(self.lost())} of {total} comparisons"

    def losses(self) -> Iterator[str]:
        """Every lost comparison, the furthest behind first."""
        yield "## Where another library is faster\n"
        if not self.lost():
            yield "No row is lost to any peer.\n"
            return
        yield f"In {self.count()}, all of them here.\n"
        yield "| library | speed relative to ours | 95 % interval | in | threads | why |"
        yield "|---|---|---|---|---|---|"
        for row, name, ratio in self.lost():
            interval = "-" if math.isnan(ratio.low) else f"{number(1 / ratio.high)} to {number(1 / ratio.low)}"
            yield (
                f"| {name} | {times_as_fast(ratio.value)}{self.mark(row, name)} | {interval} | "
                f"{row.what}: {row.name} | {row.threads} | {self.reason(row)} |"
            )
        yield ""

    def losses_by_reason(self) -> Iterator[str]:
        groups: dict[str, list[tuple[Row, str, Ratio]]] = {}
        for found in self.lost():
            groups.setdefault(self.reason(found[0]).split(": ")[0], []).append(found)
        yield "| why | comparisons | libraries | furthest behind |"
        yield "|---|---|---|---|"
        for why, lost in sorted(groups.items(), key=lambda group: -len(group[1])):
            row, name, ratio = lost[0]
            names = ", ".join(dict.fromkeys(name for _, name, _ in lost))
            worst = f"{row.what}: {row.name}, {counted(row.threads)}: {name} is {times_as_fast(ratio.value)}"
            yield f"| {why} | {len(lost)} | {names} | {worst} |"
        yield ""

    def tables(self) -> Iterator[str]:
        for question, title in QUESTIONS.items():
            asked = [row for row in self.rows if row.question == question]
            if not asked:
                continue
            yield f"## {title}\n"
            for what in dict.fromkeys(row.what for row in asked):
                yield from self.table([row for row in asked if row.what == what])
                yield from self.versions_of_sides(question, what)
            if question == "scaling":
                yield from self.exponents(asked)

    def table(self, some: Sequence[Row]) -> Iterator[str]:
        """A line per case: ours, the share of the bound, and every other side's ratio, at each thread count."""
        others = dict.fromkeys(name for row in some for name in row.sides if name != "ours")
        others = sorted(others, key=lambda name: list(charts.MARKS).index(name) if name in charts.MARKS else -1)
        bounded = any(row.bounds for row in some)
        errors = any(row.sides["ours"].error is not None for row in some)
        head = ["", "ours", *(["of the bound"] if bounded else []), *others, *(["error"] if errors else [])]
        yield f"### {some[0].what[0].upper()}{some[0].what[1:]}\n"
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
            text = "; ".join(names) if len(names) <= MOST_NAMES else f"{len(names)} of the {len(some)} rows"
            yield f"- Below {percent(ENOUGH)} of the bound ({why}): {text}."
        yield ""

    def versions_of_sides(self, question: str, what: str) -> Iterator[str]:
        """The version and the day of sides that a run may lack, whose last rows then stay."""
        yield from dict.fromkeys(
            f"- {name} {side.note}, measured on {m.run['time'][:10]}.\n"
            for m in self.found
            for name, side in m.row.sides.items()
            if (m.row.question, m.row.what) == (question, what) and side.measured and side.note.startswith("at ")
        )

    @staticmethod
    def error(row: Row) -> str:
        """The error of ours, and in brackets that of the least accurate peer."""
        others = [side.error for name, side in row.sides.items() if name != "ours" and side.error is not None]
        return f"{row.sides['ours'].error:.0e}" + (f" ({max(others):.0e})" if others else "")

    def exponents(self, asked: Sequence[Row]) -> Iterator[str]:
        """Fitted to the larger half of the sizes, where the fixed cost of a call no longer counts."""
        yield "The time grows with this power of a size (fitted to the larger half of the sizes):\n"
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
            yield f"- {cell} against {axis}, {counted(threads)}: {', '.join(fits)}"
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

    def questions(self) -> list[str]:
        return list(dict.fromkeys(row.question for row in self.rows))

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

    def page(self, pictures: Sequence[str]) -> str:
        """The page of the machine: everything that was measured there."""
        titles = [QUESTIONS[question] for question in QUESTIONS if any(row.question == question for row in self.rows)]
        contents = " · ".join(f"[{title}](#{title.lower().replace(',', '').replace(' ', '-')})" for title in titles)
        parts = [f"# {self.machine()}", "", READ, "", *self.heading(), f"Tables: {contents}", ""]
        parts += ["## Summary", "", *self.summary(), *goals.section(self.rows)]
        return wrapped([*parts, *pictures, "", *self.losses(), *self.tables()]).rstrip() + "\n"

    def overview(self, pictures: Sequence[str], link: str) -> str:
        """What the performance page says of the machine."""
        parts = [self.versions(), "", f"[Every row, and the speed of the machine itself]({link}).", "", *self.summary()]
        parts += [*pictures, "", "## Where another library is faster", ""]
        if not self.lost():
            return wrapped([*parts, "No row is lost to any peer."])
        parts += [f"In {self.count()}; [every one of them]({link}#where-another-library-is-faster).", ""]
        parts += [*self.losses_by_reason(), "### The ten layers that are furthest behind", ""]
        return wrapped([*parts, self.worst()])

    def worst(self, count: int = 10) -> str:
        """The rows of layers furthest behind a peer, then those furthest from their bound."""
        found: dict[tuple[str, str, str, int], tuple[Row, str]] = {}
        for row, name, ratio in rows.lost(row for row in self.rows if row.question in LAYERS):
            found.setdefault(row.key, (row, f"{name} is {times_as_fast(ratio.value)}"))
        bounded = [row for row in self.rows if row.share is not None and row.question in (*LAYERS, "scaling")]
        for row in sorted(bounded, key=lambda row: row.share or 0):
            found.setdefault(row.key, (row, f"{percent(row.share)} of the bound"))
        lines = [
            f"| {row.what}: {row.name}, {counted(row.threads)} | {text} | {self.reason(row)} |"
            for row, text in list(found.values())[:count]
        ]
        return "\n".join(["| row | | why |", "|---|---|---|", *lines])


def wrapped(lines: Iterable[str]) -> str:
    """Lines of Markdown as text, of which sentences and lists are wrapped; tables and pictures cannot be."""
    found = []
    for line in lines:
        if len(line) > 120 and line[0] not in "|!":
            indent = "  " if line.startswith("- ") else ""
            line = textwrap.fill(line, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        found.append(line)
    return "\n".join(found)


def times_as_fast(ratio: float) -> str:
    """How much faster a side is that takes this share of our time."""
    return f"{number(1 / ratio)} times as fast"


def counted(threads: int) -> str:
    return f"{threads} thread{'s' if threads > 1 else ''}"


def slope(points: Sequence[tuple[float, float]]) -> float:
    return statistics.linear_regression(*zip(*((math.log(x), math.log(y)) for x, y in points), strict=True)).slope


def between(file: Path, begin: str, end: str, text: str) -> None:
    """Replaces the text between two markers of a file."""
    old = file.read_text()
    if old.count(begin) != 1 or old.count(end) != 1 or old.index(begin) > old.index(end):
        raise SystemExit(f"{file}: expected one {begin} and after it one {end}")
    file.write_text(f"{old[: old.index(begin)]}{begin}\n{text}\n{old[old.index(end) :]}")


def reports(results: Path) -> list[tuple[str, Report]]:
    """(name of its file, report) of every CPU, first the one that most questions were asked, of equals the one measured
    last."""
    found = [(file.stem, Report(rows.load(file))) for file in rows.files(results)]
    return sorted(
        ((name, report) for name, report in found if report.rows),
        key=lambda each: (len(each[1].questions()), max(run["time"] for run in each[1].runs.values())),
        reverse=True,
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=rows.RESULTS, help="the folder of the JSON files")
    parser.add_argument("--docs", type=Path, default=rows.ROOT / "docs", help="the folder of performance.md")
    arguments = parser.parse_args(argv)
    found = reports(arguments.results)
    if not found:
        raise SystemExit(f"{arguments.results}: expected rows written by `python -m benchmarks`, found none")
    machines = arguments.docs / "machines"
    machines.mkdir(exist_ok=True)
    for name, report in found:
        folder = arguments.results / name
        folder.mkdir(exist_ok=True)
        for title, svg in report.charts().items():
            (folder / f"{title}.svg").write_text(svg)
        (machines / f"{name}.md").write_text(report.page(pictures(report, folder, machines)))
    (name, first), *others = found
    parts = [first.overview(pictures(first, arguments.results / name, arguments.docs), f"machines/{name}.md")]
    if others:
        parts += ["", "## Other machines", ""]
        parts += [
            f"- [{report.machine()}](machines/{name}.md): {', '.join(report.questions()).replace('_', ' ')}"
            for name, report in others
        ]
    between(arguments.docs / "performance.md", BEGIN, END, "\n".join(parts))
    if loaded := quality_report.newest(arguments.results):
        text = wrapped(quality_report.page(loaded, quality_rows.our_version())).rstrip()
        between(arguments.docs / "quality.md", quality_report.BEGIN, quality_report.END, text)
    return 0


def pictures(report: Report, folder: Path, page: Path) -> list[str]:
    """The charts of a machine as Markdown, for a page in the folder ``page``."""
    to = Path(os.path.relpath(folder, page)).as_posix()
    return [f"![{name}: time relative to seqcls_fast]({to}/{name}.svg)" for name in report.charts()]


if __name__ == "__main__":
    sys.exit(main())

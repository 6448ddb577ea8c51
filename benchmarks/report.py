"""Tables and verdicts from the rows bench_layers.py measures, and the README section made of them.

`python benchmarks/report.py benchmarks/results/NAME.json` rewrites what stands between the bench markers of README.md,
and with `--section per-sample` the table of that name; no number there is typed. Of rows measured twice the latest
counts, and only rows of the newest build (csrc hash) do.
Needs the standard library alone. The bars are the project's goals on an AVX-512 machine.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CELLS = ("RNN", "GRU", "LSTM")
BAR_SHAPES = (  # B, T, I, H; the goals are set on these, and a geometric mean is judged over all of them
    (1, 50, 50, 64),
    (8, 10, 16, 32),
    (32, 100, 64, 128),
    (64, 100, 128, 128),
    (64, 256, 128, 256),
    (128, 50, 50, 64),
    (256, 128, 64, 64),
    (32, 512, 128, 512),
)
RATIO_BARS = {  # torch / ours at one thread: geometric mean, lowest row
    "inference": {"RNN": (5.5, 3.1), "GRU": (5.0, 2.7), "LSTM": (1.75, 1.1)},
    "training": {"RNN": (3.5, 2.3), "GRU": (3.8, 2.3), "LSTM": (1.6, 1.2)},
    "ragged-inference": {"RNN": (4.0, 3.0), "GRU": (3.6, 3.0), "LSTM": (2.2, 1.7)},
    "ragged-training": {"RNN": (4.5, 3.2), "GRU": (4.5, 3.2), "LSTM": (2.6, 1.7)},
}
BF16_BAR = 1.57  # ours float32 / ours bfloat16 where H >= 128 and B >= 32
OTHERS = {"bf16": "float32", "avx2": "auto", "per-sample": "loop"}  # of ours, shown beside it
THREAD_NOISE = 0.03  # a ratio at two threads may be this much lower than at one, or its spread if that is more


@dataclass
class Row:
    """One line of a table; times in seconds. `other_*` is another of ours, see OTHERS."""

    what: str
    cell: str
    shape: Sequence[int]  # B, T, I, H
    threads: int
    torch_s: float | None  # None: not timed
    ours_s: float | None  # None: the gate found a wrong result
    ratio: float | None = None  # torch / ours
    low: float | None = None  # quartiles of the per-round ratios
    high: float | None = None
    torch_side: str = "torch"  # the better of packed and padded
    once: Sequence[str] = ()  # sides far behind the better one: a single call
    gflops: float | None = None
    share: float | None = None  # roofline / ours
    wide_share: float | None = None  # avx2: the same with activations at twice the clocks
    other_s: float | None = None
    other_ratio: float | None = None  # other / ours
    torch_error: float = 0.0
    our_error: float = 0.0
    starred: bool = False  # fewer than two undisturbed blocks on one side
    rounds: int = 0

    @property
    def key(self) -> tuple[Any, ...]:
        return self.what, self.cell, tuple(self.shape), self.threads

    @property
    def error_ratio(self) -> float:
        return self.our_error / self.torch_error if self.torch_error > 0 else (math.inf if self.our_error > 0 else 1.0)

    @property
    def place(self) -> str:
        return f"{self.cell} ({', '.join(map(str, self.shape))})"


# -- tables -----------------------------------------------------------------------------------------------------------


def _number(value: float | None, digits: int = 3) -> str:
    """At least `digits` significant digits, never an exponent."""
    if value is None:
        return "-"
    decimals = max(0, digits - 1 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:.{decimals}f}"


def _time(seconds: float | None, row: Row) -> str:
    return _number(None if seconds is None else seconds * (1e6 if row.what == "overhead" else 1e3))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return "WRONG" if row.ours_s is None else "-"
    text = f"{_number(row.ratio)}x" + ("*" if row.starred else "")
    return f"**{text}**" if row.ratio < 1 else text


def columns(row: Row) -> dict[str, str]:
    """Header -> text of one row."""
    unit = "us" if row.what == "overhead" else "ms"
    cells = {"cell": row.cell, "B, T, I, H": ", ".join(map(str, row.shape))}
    if row.what != "avx2":
        side = row.torch_side.removeprefix("torch").strip()
        cells[f"torch {unit}"] = f"{_time(row.torch_s, row)} {side}".strip()
    cells[f"ours {unit}"] = _time(row.ours_s, row) + ("*" if row.starred else "")
    if row.what != "avx2":
        cells["torch / ours"] = _ratio(row)
        cells["quartiles"] = "-" if row.low is None else f"{_number(row.low)} - {_number(row.high)}"
    if row.what in OTHERS:
        name = OTHERS[row.what]
        cells[f"ours {name} ms"] = _time(row.other_s, row)
        cells[f"{name} / {row.what}"] = "-" if row.other_ratio is None else f"{_number(row.other_ratio)}x"
    if row.what != "overhead":
        cells["GFLOP/s"] = "-" if row.gflops is None else f"{row.gflops:.0f}"
        cells["roofline"] = _percent(row.share)
    if row.what == "avx2":
        cells["activations x2"] = _percent(row.wide_share)
    cells["torch error"], cells["our error"] = f"{row.torch_error:.1e}", f"{row.our_error:.1e}"
    cells["ours / torch"] = f"{row.error_ratio:.2f}"
    return cells


def table(rows: Sequence[Row]) -> str:
    """A Markdown table of rows of one kind, aligned so that it reads as text."""
    lines = [list(columns(rows[0])), *(list(columns(row).values()) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    return "\n".join([text[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *text[1:]])


# -- bars -------------------------------------------------------------------------------------------------------------


def share_bar(row: Row) -> float | None:
    """The share of the roofline a row has to reach, if one was set; judged at one thread."""
    batch, _, _, hidden = row.shape
    if row.what == "inference" and batch >= 32:
        return 0.88 if row.cell == "RNN" or hidden >= 512 else 0.95
    if row.what == "training" and batch >= 32 and hidden >= 128:
        return 0.80
    return 0.85 if row.what == "avx2" and hidden >= 128 else None


def error_bar(row: Row) -> float:
    """Our error over torch's. Gradients get 2, outputs 2.5 where both errors are tiny, bfloat16 1."""
    if row.what == "bf16":
        return 1.0
    return 2.5 if "training" not in row.what and max(row.our_error, row.torch_error) < 1e-6 else 2.0


def misses(row: Row, one_thread: Row | None = None) -> list[str]:
    """What this row falls short of, one phrase each, with the reason as far as the roofline explains it."""
    if row.ours_s is None:
        return [f"wrong result: error {row.our_error:.1e}"]
    found = []
    if row.threads == 1 and tuple(row.shape) in BAR_SHAPES:
        found += _speed_misses(row)
    if row.what == "overhead" and row.ratio is not None and row.ratio < 1:
        found.append(f"{_number(row.ratio)}x, bar 1x")
    if row.error_ratio > error_bar(row):
        found.append(f"error {row.error_ratio:.2f} times torch's, bar {error_bar(row):g}")
    if one_thread is not None and _lower_by_more_than_noise(row, one_thread):
        found.append(f"{_number(row.ratio)}x at {row.threads} threads, {_number(one_thread.ratio)}x at one")
    return found


def _speed_misses(row: Row) -> list[str]:
    found = []
    lowest = RATIO_BARS.get(row.what, {}).get(row.cell, (0.0, 0.0))[1]
    if row.ratio is not None and row.share is not None and row.ratio < lowest:
        needed = _percent(row.share * lowest / row.ratio)
        found.append(
            f"{_number(row.ratio)}x, bar {lowest:g}x (needs {needed} of the roofline, has {_percent(row.share)})"
        )
    bar = share_bar(row)
    if bar is not None and row.share is not None and row.share < bar:
        found.append(f"{_percent(row.share)} of the roofline, bar {_percent(bar)}")
    large = row.what == "bf16" and row.shape[0] >= 32 and row.shape[3] >= 128
    if large and row.other_ratio is not None and row.other_ratio < BF16_BAR:
        found.append(
            f"{_number(row.other_ratio)}x our float32, bar {BF16_BAR}x (at {_percent(row.share)} of the roofline)"
        )
    return found


def _lower_by_more_than_noise(row: Row, one: Row) -> bool:
    if row.what not in RATIO_BARS or row.ratio is None or one.ratio is None:
        return False
    spread = (one.ratio - (one.low or one.ratio)) + ((row.high or row.ratio) - row.ratio)
    noise = max(0.2 if row.starred or one.starred else THREAD_NOISE, spread / one.ratio)
    return row.ratio < one.ratio * (1 - noise)


def verdict(rows: Sequence[Row], one_thread: Iterable[Row] = ()) -> list[str]:
    """Markdown list items below a table: means against their bars, then every missed row."""
    lines = []
    bars = RATIO_BARS.get(rows[0].what, {})
    for cell in CELLS if rows[0].what not in ("avx2", "overhead") else ():
        ratios = [(row.ratio, row.place) for row in rows if row.cell == cell and row.ratio is not None]
        if not ratios:
            continue
        mean = math.exp(sum(math.log(ratio) for ratio, _ in ratios) / len(ratios))
        lowest, place = min(ratios)
        goals = ["", ""]
        if cell in bars and rows[0].threads == 1:
            measured = {tuple(row.shape) for row in rows if row.cell == cell and row.ratio is not None}
            whole = measured == set(BAR_SHAPES)
            verdicts = [
                ("pass" if value >= bar else "MISS") for value, bar in zip((mean, lowest), bars[cell], strict=True)
            ]
            goals = [
                f" (bar {bar:g}x: {v if whole else 'not all shapes'})"
                for bar, v in zip(bars[cell], verdicts, strict=True)
            ]
        at = place.removeprefix(cell).strip()
        lines.append(
            f"- {cell}: geometric mean {_number(mean)}x{goals[0]}, lowest {_number(lowest)}x at {at}{goals[1]}"
        )
    alone = {row.key[:3]: row for row in one_thread if row.threads == 1}
    missed = []
    for row in rows:
        one = alone.get(row.key[:3]) if row.threads > 1 else None
        missed += [f"- MISS {row.place}{'*' if row.starred else ''}: {phrase}" for phrase in misses(row, one)]
    lines += missed or ["- no row misses a bar"]
    if any(row.starred for row in rows):
        lines.append("- `*`: fewer than two undisturbed blocks on one side; its smallest block counts, good to 20 %")
    lines += [f"- {side} at {row.place}: far behind, a single call" for row in rows for side in row.once]
    return lines


def titled(what: str, threads: int) -> str:
    return f"{what.replace('-', ' ')}, {threads} thread{'s' if threads > 1 else ''}"


def tables(rows: Sequence[Row]) -> str:
    """Every table with its verdict, as Markdown."""
    parts = []
    for what, threads in dict.fromkeys((row.what, row.threads) for row in rows):
        some = [row for row in rows if (row.what, row.threads) == (what, threads)]
        parts.append(f"### {titled(what, threads)}\n\n{table(some)}\n\n" + "\n".join(verdict(some, rows)))
    return "\n\n".join(parts) + "\n"


# -- README -----------------------------------------------------------------------------------------------------------


def load(paths: Sequence[Path]) -> tuple[dict[str, Any], list[Row]]:
    """(the newest run, its build's rows): JSON lines, a "run" line before the rows it measured."""
    runs: list[dict[str, Any]] = []
    rows: list[tuple[str, Row]] = []
    for path in paths:
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if "run" in entry:
                runs.append(entry["run"])
            else:
                rows.append((runs[-1]["csrc"], Row(**entry["row"])))
    if not rows:
        raise SystemExit(f"{', '.join(map(str, paths))}: expected rows written by bench_layers.py --json, found none")
    newest = max(runs, key=lambda run: run["time"])
    return newest, list({row.key: row for csrc, row in rows if csrc == newest["csrc"]}.values())


def summary(rows: Sequence[Row]) -> str:
    """A small table per question: a line per shape, torch / ours (share of the roofline) per cell and thread count."""
    parts = []
    for what in dict.fromkeys(row.what for row in rows):
        some = {row.key: row for row in rows if row.what == what}
        heads = list(dict.fromkeys((row.threads, row.cell) for row in some.values()))
        lines = ["| B, T, I, H | " + " | ".join(f"{cell}, {threads}t" for threads, cell in heads) + " |"]
        lines.append("|---" * (len(heads) + 1) + "|")
        for shape in dict.fromkeys(tuple(row.shape) for row in some.values()):
            found = [some.get((what, cell, shape, threads)) for threads, cell in heads]
            lines.append(f"| {', '.join(map(str, shape))} | " + " | ".join(map(_summary_cell, found)) + " |")
        below = []
        for threads in dict.fromkeys(threads for threads, _ in heads):
            judged = verdict([row for row in some.values() if row.threads == threads], rows)
            below += [f"{threads} thread{'s' if threads > 1 else ''}:\n", *judged, ""]
        goals = ["<details><summary>beside the project's own goals</summary>\n", *below, "</details>\n"]
        parts.append("\n".join([f"#### {what.replace('-', ' ')}\n", *lines, "", *goals]))
    return "\n".join(parts)


def _summary_cell(row: Row | None) -> str:
    if row is None:
        return "-"
    if row.what == "avx2":
        return _percent(row.share)
    return _ratio(row) + (f" ({_percent(row.share)})" if row.share is not None else "")


SECTIONS = {
    "bench": "torch.nn / ours: how many times faster, and in brackets the share of the roofline reached.",
    "per-sample": (
        "Gradients of each sample of a batch by `vmap(grad(functional_call))`, against torch.nn's by the faster of "
        "the same (LSTM alone) and a loop over the samples: torch.nn / ours, and in brackets the share of the "
        "roofline. The batch holds the samples. A few tiny ones are quicker in a loop of ours, as torch.func's own "
        "cost decides."
    ),
}


def readme_section(section: str, run: dict[str, Any], rows: Sequence[Row]) -> str:
    shown = [row for row in rows if (row.what == "per-sample") == (section == "per-sample")]
    head = (
        f"{SECTIONS[section]} {run['machine']}; "
        f"torch {run['torch']}, seqcls_fast {run['seqcls_fast']} ({run['impl']}, commit {run['commit']}, "
        f"csrc {run['csrc']}), {run['time'][:10]}. Bold: slower than torch; `*`: on a disturbed machine, good to 20 %. "
        "Written by `benchmarks/report.py`."
    )
    begin, end = _markers(section)
    return f"{begin}\n{head}\n\n{summary(shown)}{end}"


def _markers(section: str) -> tuple[str, str]:
    return f"<!-- {section}:begin -->", f"<!-- {section}:end -->"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the README's benchmark section from measured rows.")
    parser.add_argument("json", nargs="+", type=Path, help="files written by bench_layers.py --json, of one machine")
    readme = Path(__file__).resolve().parent.parent / "README.md"
    parser.add_argument("--readme", type=Path, default=readme, help="the file that holds the markers")
    parser.add_argument("--section", choices=SECTIONS, default="bench", help="which part of it to write")
    arguments = parser.parse_args(argv)
    text, (begin, end) = arguments.readme.read_text(), _markers(arguments.section)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise SystemExit(f"{arguments.readme}: expected one {begin} and after it one {end}")
    before, after = text[: text.index(begin)], text[text.index(end) + len(end) :]
    arguments.readme.write_text(before + readme_section(arguments.section, *load(arguments.json)) + after)
    return 0


if __name__ == "__main__":
    sys.exit(main())

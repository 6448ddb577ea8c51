"""The section of a machine's page that says what was aimed at, and how near the rows come to it.

A goal is the least ratio of a side's time to ours. A question writes it into its rows, so a later change of a goal does
not change what is said of earlier rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .rows import Row, number


def section(rows: Iterable[Row]) -> Iterator[str]:
    """A line for each goal of a table and each thread count, or nothing where no row has a goal."""
    found: dict[tuple[str, int, str, float], list[float]] = {}
    for row in rows:
        for name, goal in row.goals.items():
            if name in row.sides and row.sides[name].measured:
                found.setdefault((row.what, row.threads, name, goal), []).append(row.ratio(name).value)
    if not found:
        return
    yield "## Goals\n"
    yield "What was aimed at before it was measured, and the row that is furthest from it.\n"
    yield "| table | threads | beside | goal | furthest from it | rows that reach it |"
    yield "|---|---|---|---|---|---|"
    for (what, threads, name, goal), ratios in found.items():
        least, reached = min(ratios), sum(ratio >= goal for ratio in ratios)
        if name.startswith("ours"):  # our layer without the thing that is measured, which takes less time
            texts = f"at most {number(1 / goal)} times its time | {number(1 / least)} times"
        else:
            texts = f"at least {number(goal)} times as fast | {number(least)} times"
        yield f"| {what} | {threads} | {name} | {texts} | {reached} of {len(ratios)} |"
    yield ""

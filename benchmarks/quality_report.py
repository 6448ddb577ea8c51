"""Writes docs/quality.md between its markers from the rows that `python -m benchmarks quality` measured.

Every figure that a peer has better than ours is bold in its table and listed in words. A peer counts where it was given
the very rows that ours was, by the digest of the set. Needs the standard library alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from . import quality_rows
from .quality_rows import OURS, Loaded, Spread

BEGIN, END = "<!-- quality:begin -->", "<!-- quality:end -->"
TUNED, TOO_EASY = "LinearSVC tuned", 0.98
TITLES = {"text": "Text", "series": "Series"}


class Measure(NamedTuple):
    field: str
    words: str
    unit: str
    scale: float
    digits: int
    more: bool  # whether more is better

    def text(self, value: float) -> str:
        return f"{self.scale * value:.{self.digits}f}"


MEASURES = (
    Measure("accuracy", "accuracy", "%", 100, 1, True),
    Measure("f1", "macro F1", "%", 100, 1, True),
    Measure("log_loss", "log loss", "", 1, 3, False),
    Measure("calibration", "calibration error", "points", 100, 1, False),
)
TIMES = (
    Measure("fit", "training", "CPU seconds", 1, 1, False),
    Measure("each", "a row among all of the test", "CPU microseconds", 1e6, 0, False),
    Measure("one", "a row alone", "CPU milliseconds", 1e3, 2, False),
)


class Kind:
    """The rows of texts, or of series."""

    def __init__(self, loaded: Loaded, kind: str) -> None:
        scores = [score for score in loaded.scores if score.kind == kind]
        digests = {score.set: score.digest for score in scores if score.engine == OURS}
        scores = [score for score in scores if score.digest == digests.get(score.set)]
        self.run, self.kind = loaded.run, kind
        self.scores = {(score.set, score.engine): [] for score in scores}  # type: dict[tuple[str, str], list[Score]]
        for score in scores:
            self.scores[score.set, score.engine].append(score)
        order = list(loaded.run["sets"])
        self.sets = sorted(digests, key=lambda name: order.index(name) if name in order else len(order))
        named = [key.removeprefix(f"{kind}: ") for key in loaded.run["engines"] if key.startswith(f"{kind}: ")]
        self.engines = [name for name in named if any((each, name) in self.scores for each in self.sets)]

    def values(self, name: str, engine: str, field: str) -> Spread | None:
        found = [
            score.predict / score.test if field == "each" else getattr(score, field)
            for score in self.scores.get((name, engine), ())
        ]
        return None if not found or None in found else Spread.of(found)

    def mean(self, engine: str, field: str, names: Iterable[str]) -> float | None:
        found = [spread.mean for name in names if (spread := self.values(name, engine, field))]
        return statistics.fmean(found) if found else None

    def margins(self, peer: str, measure: Measure, allowed: float = 0.0, only: Sequence[str] = ()) -> dict[str, float]:
        """By how much ours is better than a peer on each set that both have, and ``allowed`` more."""
        found = {}
        for name in only or self.sets:
            ours, other = (self.values(name, engine, measure.field) for engine in (OURS, peer))
            if ours and other:
                found[name] = (ours.mean - other.mean) * (1 if measure.more else -1) + allowed
        return found

    # -- sections -----------------------------------------------------------------------------------------------------

    def table(self, measure: Measure) -> Iterator[str]:
        engines = [name for name in self.engines if any(self.values(each, name, measure.field) for each in self.sets)]
        unit = f", {measure.unit}" if measure.unit else ""
        yield f"### {TITLES[self.kind]}: {measure.words}{unit}\n"
        yield f"| | {' | '.join(engines)} |"
        yield "|---" * (len(engines) + 1) + "|"
        for name in self.sets:
            yield f"| {name} | {' | '.join(self.cell(name, engine, measure) for engine in engines)} |"
        means, same = ["mean"], ["ours on the same sets"]
        for engine in engines:
            there = [name for name in self.sets if self.values(name, engine, measure.field)]
            theirs, ours = (self.mean(each, measure.field, there) for each in (engine, OURS))
            lost = theirs is not None and ours is not None and (theirs > ours if measure.more else theirs < ours)
            text = "-" if theirs is None else measure.text(theirs)
            means.append(f"**{text}**" if lost else text)
            same.append("" if engine == OURS or ours is None else measure.text(ours))
        yield f"| {' | '.join(means)} |"
        if set(same[1:]) - {"", means[1]}:  # some were not asked about every set that ours was
            yield f"| {' | '.join(same)} |"
        yield ""

    def cell(self, name: str, engine: str, measure: Measure) -> str:
        spread = self.values(name, engine, measure.field)
        if spread is None:
            return "-"
        texts = [measure.text(value) for value in spread]
        text = texts[0] if texts[1] == texts[2] else f"{texts[0]} ({texts[1]} to {texts[2]})"
        lost = engine != OURS and self.margins(engine, measure, only=[name]).get(name, 0) < 0
        busy = measure in TIMES and any(score.busy for score in self.scores[name, engine])
        return (f"**{text}**" if lost else text) + ("*" if busy else "")

    def losses(self) -> Iterator[str]:
        """A line for each set on which a peer is better in something."""
        for name in self.sets:
            lines = []
            for measure in MEASURES:
                found = {peer: self.margins(peer, measure, only=[name]).get(name, 0.0) for peer in self.engines}
                ahead = sorted((peer for peer in found if found[peer] < 0), key=found.__getitem__)
                if ahead:
                    peers = [f"{peer} {self.cell(name, peer, measure).replace('**', '')}" for peer in ahead]
                    lines.append(f"{measure.words} {self.cell(name, OURS, measure)}, behind {', '.join(peers)}")
            if lines:
                yield f"- **{name}**: {'; '.join(lines)}."
        for measure in TIMES:
            ours = {engine: self.margins(engine, measure) for engine in self.engines if engine != OURS}
            faster = [engine for engine, found in ours.items() if found and statistics.fmean(found.values()) < 0]
            if faster:
                yield f"- **{measure.words}** takes ours more CPU time on the mean than {', '.join(faster)}."
        yield ""


# -- goals ------------------------------------------------------------------------------------------------------------


def goals(text: Kind, series: Kind) -> Iterator[str]:
    """What was aimed at before it was measured, and how near the rows come to it."""
    accuracy, f1, log_loss, _ = MEASURES
    made = set(series.run.get("made", ()))
    carried = [name for name in series.sets if name not in made]
    lines: list[tuple[str, Measure, dict[str, float]]] = []

    def mean_of(found: dict[str, float]) -> dict[str, float]:
        return {"the mean": statistics.fmean(found.values())} if found else {}

    def within(kind: Kind, field: str, most: float, only: Sequence[str] = ()) -> dict[str, float]:
        spreads = {name: kind.values(name, OURS, field) for name in only or kind.sets}
        return {name: most - spread.mean for name, spread in spreads.items() if spread}

    for measure in (accuracy, f1):
        lost = text.margins(TUNED, measure, 0.003)
        lines.append((f"text: {measure.words} at least that of {TUNED} less 0.3 points, on every set", measure, lost))
        words = f"text: {measure.words} above that of {TUNED} on the mean"
        lines.append((words, measure, mean_of(text.margins(TUNED, measure))))
        words = f"text: {measure.words} above fastText's on every set"
        lines.append((words, measure, text.margins("fastText", measure)))
    for peer in ("LogisticRegression", "LogisticRegression tuned"):
        lines.append((f"text: log loss below that of {peer} on every set", log_loss, text.margins(peer, log_loss)))
    fit, each, one = TIMES
    short = [name for name in text.sets if name == "debian-sections"]
    seconds = within(text, "fit", 25.0, short) if short else {}
    lines.append(("text: training on debian-sections in at most 25 s", fit, seconds))
    lines.append(("text: one text alone in at most 0.4 ms", one, within(text, "one", 4e-4)))
    lines.append(("text: 30,000 texts a second", each, within(text, "each", 1 / 30_000)))
    rocket = series.margins("MiniRocket", accuracy, 0.01, carried) if carried else {}
    lines.append(("series: within 1 point of MiniRocket on the mean", accuracy, mean_of(rocket)))
    for peer in ("LSTM-FCN", "1-NN DTW"):
        found = series.margins(peer, accuracy, only=carried) if carried else {}
        lines.append((f"series: ahead of {peer} on the mean", accuracy, mean_of(found)))
        words = f"series: nowhere more than 1 point below {peer}"
        lines.append((words, accuracy, {name: value + 0.01 for name, value in found.items()}))
    yield "| goal | reached | furthest from it |"
    yield "|---|---|---|"
    for words, measure, found in lines:
        if not found:
            yield f"| {words} | not measured | |"
            continue
        reached, worst = sum(value >= 0 for value in found.values()), min(found, key=found.__getitem__)
        count = ("yes" if reached else "**no**") if len(found) == 1 else f"on {reached} of {len(found)}"
        count = f"**{count}**" if 1 < len(found) != reached else count
        side = "to spare" if found[worst] >= 0 else "short"
        unit = "points" if measure.unit == "%" else measure.unit
        yield f"| {words} | {count} | {worst}: {measure.text(abs(found[worst]))} {unit} {side} |".replace("  ", " ")
    yield ""


# -- the page ---------------------------------------------------------------------------------------------------------


def page(loaded: Loaded, version: str) -> Iterator[str]:
    run = loaded.run
    text, series = Kind(loaded, "text"), Kind(loaded, "series")
    ours = {score.version for score in loaded.scores if score.engine == OURS}
    yield f"**{run['machine']}**, {run['time'][:10]}: torch {run['torch']}, Python {run['python']}; one thread.\n"
    if ours != {version}:
        yield "**Some of ours was measured with an earlier version of the package.**\n"
    yield "## What was aimed at\n"
    yield from goals(text, series)
    yield "## Where another classifier is better\n"
    for kind in (text, series):
        if kind.sets:
            yield f"{TITLES[kind.kind]}: the means of the seeds, the furthest ahead first.\n"
            yield from kind.losses()
    yield "## All figures\n"
    for kind in (text, series):
        for measure in (*MEASURES, *TIMES):
            yield from kind.table(measure) if kind.sets else ()
    yield from what_was_used(loaded, text, series)


def what_was_used(loaded: Loaded, text: Kind, series: Kind) -> Iterator[str]:
    run = loaded.run
    yield "## The sets\n"
    yield "| | what | rows of training | of test | classes |"
    yield "|---|---|---|---|---|"
    for kind in (text, series):
        for name in kind.sets:
            some = kind.scores[name, OURS][0]
            mark = " (defaults were chosen on its part dev)" if name in run["chosen_on"] else ""
            yield f"| {name} | {run['sets'].get(name, '')}{mark} | {some.train} | {some.test} | {some.classes} |"
    yield ""
    tuned = {name: spread.mean for name in text.sets if (spread := text.values(name, TUNED, "accuracy"))}
    for name, value in tuned.items():
        if value > TOO_EASY:
            yield f"**{name} is too easy to tell classifiers apart:** {TUNED} is right in {100 * value:.1f} %.\n"
    yield "## The settings\n"
    versions = {f"{score.kind}: {score.engine}": score.version for score in loaded.scores if score.engine != OURS}
    for key, words in run["engines"].items():
        limit = f"; asked of sets of at most {run['most'][key]:g} thousand steps" if key in run["most"] else ""
        yield f"- {key}: {versions.get(key, words)}{limit}."
    yield ""
    if run["absent"]:
        yield "Not measured there:\n"
        yield from (f"- {name}: {reason}." for name, reason in run["absent"].items())


def newest(results: Path) -> Loaded | None:
    """The rows of the machine that was measured last."""
    found = [quality_rows.load(file) for file in results.glob(f"{quality_rows.PREFIX}*.json")]
    found = [each for each in found if any(score.engine == OURS for score in each.scores)]
    return max(found, key=lambda each: each.run["time"], default=None)

"""A report as one HTML page: numbers, warnings, tables and pictures in a file that loads nothing from elsewhere.

Pictures are inline SVG whose text stays text, so that labels in any script are drawn with the reader's own fonts. In a
dark colour scheme CSS inverts the pictures and rotates the hues back, so that no second set of pictures is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from .._terminal import printable
from . import plots
from .metrics import ClassScores

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .results import Results

__all__ = ["page"]

_STYLE = """
:root { color-scheme: light dark; --text: #1c1c1e; --soft: #5f6368; --line: #d9dce1; --back: #ffffff; --card: #f5f6f8;
  --note: #fff4dc; --edge: #b45309; }
@media (prefers-color-scheme: dark) { :root { --text: #ececf0; --soft: #a6abb3; --line: #3c4048; --back: #131416;
  --card: #1e2024; --note: #3a2c0c; --edge: #f0b429; } svg { filter: invert(1) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 70rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
p { margin: .2rem 0 1rem; color: var(--soft); }
.numbers { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem; margin: 0; }
.numbers div { background: var(--card); border-radius: .5rem; padding: .6rem .8rem; }
dt, small { color: var(--soft); font-size: .85rem; } dd { margin: 0; font-size: 1.4rem; } small { display: block; }
ul { list-style: none; margin: 0; padding: 0; }
li { background: var(--note); border-left: .3rem solid var(--edge); padding: .5rem .8rem; margin: .4rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
tr > :first-child { text-align: left; white-space: normal; min-width: 6rem; } tbody th { font-weight: normal; }
.words th, .words td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.averages th { font-style: italic; } .averages tr:first-child > * { border-top: 2px solid var(--line); }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
figure { margin: 0; min-width: 0; } figure.all { grid-column: 1 / -1; overflow-x: auto; }
figure.all svg { min-width: 40rem; }
figcaption { color: var(--soft); font-size: .9rem; margin-bottom: .3rem; }
figure svg { display: block; max-width: 100%; height: auto; margin: 0 auto; }
@media (max-width: 30rem) {
  th, td { padding: .3rem .25rem; font-size: .85rem; } tr > :first-child { min-width: 4rem; } }
"""
# The page may run no script and load nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(report: Results, history: Sequence[Mapping[str, Any]] | None = None, lengths: Any = None) -> str:
    """The page. ``history`` adds learning curves, ``lengths`` a histogram of the sequences' lengths."""
    count = int(report.confusion.sum())
    classes = len(report.labels)
    pictures = "\n".join(
        _picture(figure, caption, f"p{k}-", "all" if wide else "")
        for k, (figure, caption, wide) in enumerate(_pictures(report, history, lengths))
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>Evaluation report</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Evaluation report</h1>
<p>{count} examples, {classes} {"class" if classes == 1 else "classes"}.
{_about_intervals(report)}{_about_calibration(report)}</p>
{_warnings(report)}
{_numbers(report)}
{_beside(report)}
<h2>Scores by class</h2>
{_table(report)}
{_confused(report)}
{_errors(report)}
<h2>Pictures</h2>
<div class="pictures">
{pictures}
</div>
{_about(report)}
</body>
</html>
"""


def _about_intervals(report: Results) -> str:
    if not report.intervals:
        return ""
    return f"{report.about_intervals}.".replace(" %", "\u00a0%")


def _about_calibration(report: Results) -> str:
    before = "" if report.before is None else " Figures before are those without calibration and threshold."
    return before + ("" if report.rule is None else f" Threshold: {_text(str(report.rule))}.")


def _warnings(report: Results) -> str:
    if not report.warnings:
        return ""
    items = "\n".join(f"<li>{_text(warning)}</li>" for warning in report.warnings)
    return f'<h2>Before you trust these numbers</h2>\n<ul class="warnings">\n{items}\n</ul>\n<h2>Overall</h2>'


def _numbers(report: Results) -> str:
    cards = []
    for name, value, interval in report.summary():
        before = "" if report.before is None else f"<small>before {report.before[name]:.3f}</small>"
        cards.append(f"<div><dt>{name}</dt><dd>{value:.3f}{_between(interval)}{before}</dd></div>")
    return '<dl class="numbers">\n' + "\n".join(cards) + "\n</dl>"


def _between(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"<small>{interval[0]:.3f} to {interval[1]:.3f}</small>"


def _table(report: Results) -> str:
    rows = []
    for name, score, support in report.rows():
        ends = score.intervals if isinstance(score, ClassScores) else {}
        numbers = "".join(
            f"<td>{getattr(score, each):.3f}{_between(ends.get(each))}</td>" for each in ("precision", "recall", "f1")
        )
        rows.append(f'<tr><th scope="row">{_text(name)}</th>{numbers}<td>{support}</td></tr>')
    classes = len(report.labels)
    head = "".join(f'<th scope="col">{name}</th>' for name in ("class", "precision", "recall", "f1", "support"))
    return (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n' + "\n".join(rows[:classes])
        + '\n</tbody>\n<tbody class="averages">\n' + "\n".join(rows[classes:]) + "\n</tbody>\n</table></div>"
    )  # fmt: skip


def _beside(report: Results) -> str:
    if report.baseline is None:
        return ""
    rows = [
        [name, f"{value:.3f}", f"{added:+.3f}<small>{ends[0]:+.3f} to {ends[1]:+.3f}</small>"]
        for name, value, added, ends in report.baseline.rows()
    ]
    return _listed("Beside a simple linear model", ("", "linear model", "the network adds"), rows)


def _confused(report: Results) -> str:
    rows = []
    for pair in report.confused:
        shown = "<br>".join(f"#{each.index} {_text(each.example or '')}" for each in pair.examples)
        cells = (printable(pair.true), printable(pair.predicted), str(pair.count), f"{100 * pair.share:.1f} %")
        rows.append([*map(_text, cells), shown])
    header = ("class", "taken for", "times", "of the class", "such as")
    return _listed("Most confused classes", header, rows)


def _errors(report: Results) -> str:
    rows = [
        [*map(_text, (f"{each.probability:.3f}", printable(each.predicted), printable(each.true), f"#{each.index}")),
         _text(each.example or "")]
        for each in report.errors
    ]  # fmt: skip
    return _listed("Most confident errors", ("probability", "answer", "class", "example", ""), rows)


def _about(report: Results) -> str:
    return _listed("About", ("", ""), [[_text(name), _text(words)] for name, words in report.about.items()])


def _listed(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A section with a table of cells that are HTML already; nothing if there are no rows."""
    if not rows:
        return ""
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<h2>{title}</h2>\n<div class="wide"><table class="words">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _pictures(report: Results, history: Any, lengths: Any) -> list[tuple[Figure, str, bool]]:
    """Each figure, with its caption and whether it takes the whole width of the page."""
    many = len(report.labels) > 12
    found = [(plots.confusion(report), "Confusion matrix: which classes are taken for which", many)]
    if report.proba is not None:
        found.append((plots.reliability(report), "Reliability: whether probabilities match frequencies", False))
        if report.roc_auc is not None:
            found.append((plots.roc(report), "ROC: examples found against false alarms", False))
            found.append((plots.precision_recall(report), "Precision and recall at every threshold", False))
    if history is not None and len(history):
        found.append((plots.learning_curves(history), "Learning curves", True))
    if lengths is not None and len(lengths):
        found.append((plots.length_histogram(lengths), "Lengths of the sequences", False))
    return found


def _picture(figure: Figure, caption: str, prefix: str, kind: str) -> str:
    drawn = plots.svg(figure, prefix, transparent=True).replace(
        "<svg ", f'<svg role="img" aria-label="{_text(caption)}" ', 1
    )
    return f'<figure class="{kind}"><figcaption>{_text(caption)}</figcaption>\n{drawn}\n</figure>'


def _text(text: str) -> str:
    return escape(text.encode("utf-8", "backslashreplace").decode())

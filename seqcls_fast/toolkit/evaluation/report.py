"""``Report``: the results of an evaluation as a table for a terminal and as a page with pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Any

from .._terminal import MESSAGE, beginning, columns, escaped, printable
from .metrics import ClassScores
from .mistakes import Mistake
from .results import Results

__all__ = ["Report"]


class Report(Results):
    """The result of :func:`~seqcls_fast.evaluate_predictions`.

    ``print(report)`` shows a table, :meth:`to_html` makes a page with pictures.

    ``names`` are the labels as strings, the keys of ``to_dict()["per_class"]``. ``confusion[i, j]`` counts the examples
    of class i that were predicted as class j. Metrics that need probabilities are None without any, and where the
    examples are all of one class. ``before`` has the numbers of :meth:`summary` as they were without calibration and
    threshold, and is None where the model has neither. ``rule`` is its threshold. ``baseline`` compares it with a
    simple linear model. ``errors`` are the surest errors, ``confused`` the pairs of classes that are confused most
    often, and ``about`` says what was evaluated and when.
    """

    def to_html(self, *, history: Sequence[dict[str, Any]] | None = None, lengths: Any = None) -> str:
        """One page with every number and picture, which loads nothing from elsewhere.

        ``history`` (an estimator's ``history_``) adds learning curves, ``lengths`` a histogram of sequence lengths.
        """
        from .html import page  # which needs matplotlib

        return page(self, history, lengths)

    def __str__(self) -> str:
        rows = self.rows()
        wide = max(len("balanced accuracy"), *(columns(name) for name, _, _ in rows))
        title = "" if not self.intervals else f" ({100 * self.confidence:g} % interval)"
        room = max(len(title), len(" (0.000 to 1.000)")) if title else 0
        lines = [f"{'':{wide}}  precision  recall{title:{room}}      f1  support"]
        for k, (name, score, support) in enumerate(rows):
            if k == len(self.names):
                lines.append("")
            between = _between(score.intervals.get("recall")) if isinstance(score, ClassScores) and room else ""
            numbers = f"{score.precision:9.3f}  {score.recall:6.3f}{between:{room}}  {score.f1:6.3f}  {support:7}"
            lines.append(f"{name}{' ' * (wide - columns(name))}  {numbers}")
        lines.append("")
        if self.before is not None:
            lines.append(f"{'calibration':{wide}}  {'before':>9}  {'after':>9}")
        for name, value, interval in self.summary():
            before = "" if self.before is None else f"  {self.before[name]:9.3f}"
            lines.append(f"{name:{wide}}{before}  {value:9.3f}{_between(interval)}")
        if self.baseline is not None:
            lines += ["", "beside a simple linear model (baseline_):"]
            for name, value, added, (low, high) in self.baseline.rows():
                words = f"to which the network adds {added:+.3f} ({low:+.3f} to {high:+.3f})"
                lines.append(f"{name:{wide}}  {value:9.3f}, {words}")
        if self.intervals:
            lines += ["", *wrap(self.about_intervals, 80)]
        if self.rule is not None:
            lines += ["", f"threshold: {self.rule}"]
        if len(self.names) <= 12:
            cell = max(6, *(len(str(count)) for count in self.confusion.flat))
            lines += ["", "rows: true class, columns: predicted, in the order above"]
            for (name, _, _), counts in zip(rows, self.confusion, strict=False):
                lines.append(f"{name}{' ' * (wide - columns(name))}" + "".join(f"  {count:{cell}}" for count in counts))
        lines += [*self._confused(), *self._errors(), *self._about()]
        if self.warnings:
            lines += ["", *(f"warning: {warning}" for warning in self.warnings)]
        return "\n".join(lines)

    def _confused(self) -> Iterator[str]:
        if self.confused:
            yield from ("", "most confused:")
        for pair in self.confused:
            true, predicted = printable(pair.true), printable(pair.predicted)
            yield f"  {true} taken for {predicted}: {pair.count} times, {100 * pair.share:.1f} % of {true}"
            for each in pair.examples:
                yield f"    #{each.index}{_example(each)}"

    def _errors(self) -> Iterator[str]:
        if self.errors:
            yield from ("", "most confident errors, by the probability of the answer:")
        for each in self.errors:
            named = f"{printable(each.predicted)} for {printable(each.true)}"
            yield f"  {each.probability:.3f}  {named}  #{each.index}{_example(each)}"

    def _about(self) -> Iterator[str]:
        if self.about:
            yield ""
        for name, words in self.about.items():
            yield f"{name}: {escaped(words, MESSAGE)}"


def _example(mistake: Mistake) -> str:
    return "" if mistake.example is None else f"  {beginning(mistake.example, 80)}"


def _between(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"

"""``Report``: the results of an evaluation as a table for a terminal and as a page with pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .._terminal import columns
from .results import Results

__all__ = ["Report"]


class Report(Results):
    """The result of :func:`~seqcls_fast.evaluate_predictions`.

    ``print(report)`` shows a table, :meth:`to_html` makes a page with pictures.

    ``names`` are the labels as strings, the keys of ``to_dict()["per_class"]``. ``confusion[i, j]`` counts the examples
    of class i that were predicted as class j. Metrics that need probabilities are None without any, and where the
    examples are all of one class. ``before`` has the numbers of :meth:`summary` as they were without calibration and
    threshold, and is None where the model has neither. ``rule`` is its threshold.
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
        lines = [f"{'':{wide}}  precision  recall      f1  support"]
        for k, (name, score, support) in enumerate(rows):
            if k == len(self.names):
                lines.append("")
            numbers = f"{score.precision:9.3f}  {score.recall:6.3f}  {score.f1:6.3f}  {support:7}"
            lines.append(f"{name}{' ' * (wide - columns(name))}  {numbers}")
        lines.append("")
        if self.before is not None:
            lines.append(f"{'calibration':{wide}}  {'before':>9}  {'after':>9}")
        for name, value, interval in self.summary():
            between = (
                "" if interval is None else f"  {interval[0]:.3f} to {interval[1]:.3f} ({100 * self.confidence:g} %)"
            )
            before = "" if self.before is None else f"  {self.before[name]:9.3f}"
            lines.append(f"{name:{wide}}{before}  {value:9.3f}{between}")
        if self.rule is not None:
            lines += ["", f"threshold: {self.rule}"]
        if len(self.names) <= 12:
            cell = max(6, *(len(str(count)) for count in self.confusion.flat))
            lines += ["", "rows: true class, columns: predicted, in the order above"]
            for (name, _, _), counts in zip(rows, self.confusion, strict=False):
                lines.append(f"{name}{' ' * (wide - columns(name))}" + "".join(f"  {count:{cell}}" for count in counts))
        if self.warnings:
            lines += ["", *(f"warning: {warning}" for warning in self.warnings)]
        return "\n".join(lines)

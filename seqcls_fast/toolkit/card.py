"""The model card, which is saved beside a model: the model, its data, its metrics, and how to use it.

Everything in it comes from the ``Fitted``, so that a model that is loaded, calibrated and saved again keeps its card.
Labels, names of files and other text from outside is put in code spans, where Markdown and HTML mean nothing.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from typing import Any

import torch

from .. import ops
from .._version import __version__
from ._terminal import MESSAGE, NAME, escaped, printable
from .about import changed_parameters, parameter_count
from .evaluation.intervals import about
from .fitted import Fitted
from .store import COMMAND, SEARCH

__all__ = ["metrics_of", "model_card", "versions"]

_MOST_CLASSES = 20
_SCORES = ("precision", "recall", "f1")
_LONGEST_COMMAND = 20_000  # characters
Metric = tuple[float, tuple[float, float] | None]  # a value and its interval


def versions() -> dict[str, str]:
    """The version of everything that a model's weights depend on."""
    found = {"seqcls_fast": __version__, "torch": str(torch.__version__), "python": platform.python_version()}
    for name in ("numpy", "tokenizers"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found | {"implementation": ops.available_impls()[-1], "platform": platform.platform()}


def metrics_of(report: dict[str, Any]) -> dict[str, Metric]:
    """The metrics of all classes together in the output of Report.to_dict()."""
    values = {
        "accuracy": report["accuracy"], "balanced accuracy": report["balanced_accuracy"],
        "macro f1": report["macro"]["f1"], "roc auc": report["roc_auc"], "pr auc": report["pr_auc"],
        "log loss": report["log_loss"], "brier": report["brier"],
        "calibration error": report["expected_calibration_error"],
    }  # fmt: skip
    intervals = {name.replace("_", " "): tuple(interval) for name, interval in report["intervals"].items()}
    return {name: (value, intervals.get(name)) for name, value in values.items() if value is not None}


def model_card(fitted: Fitted, estimator: type) -> str:
    """The card in Markdown. ``estimator`` is the class whose ``load()`` reads the model."""
    name, command = estimator.__name__, fitted.extra.get(COMMAND, {})
    used = command.get("versions") or versions()
    size = parameter_count(fitted.model)
    classes = fitted.classes.tolist()
    named = ", ".join(_label(label) for label in classes[:_MOST_CLASSES])
    if len(classes) > _MOST_CLASSES:
        named += f" and {len(classes) - _MOST_CLASSES} more"
    changed = [_code(each) for each in changed_parameters(fitted.inputs.kind, fitted.parameters)]
    example = '["some text"]' if fitted.inputs.kind == "text" else "[series]  # arrays (steps, features)"
    return "\n".join(
        [
            f"# A {name}",
            "",
            f"Trained with seqcls_fast {used['seqcls_fast']}. {size:,} parameters, {len(classes)} classes: {named}.",
            "",
            "```python",
            f"from seqcls_fast import {name}",
            f"clf = {name}.load(FOLDER)",
            f"clf.predict({example})",
            "```",
            "",
            f"Parameters other than the defaults: {', '.join(changed) or 'none'}.",
            "",
            *_data(fitted, command),
            *_training(fitted),
            *_validation(fitted.validation_report),
            *_calibration(fitted),
            "The figures say how the model did on these data. Whether it does as well on others, and on every group of",
            "people or things that the data describe, has to be measured there: `clf.evaluate(X, y)`.",
            "",
            *_origin(fitted, command, used),
        ]
    )


def _code(text: Any, limit: int = NAME) -> str:
    """A code span. Bars are escaped, as in a table a bar ends the cell, even after a backslash."""
    words = escaped(text, limit).replace("|", r"\x7c")
    ticks = "`" * (1 + max(map(len, re.findall("`+", words)), default=0))  # one more than any run of them in the text
    return f"{ticks} {words} {ticks}" if len(ticks) > 1 else f"`{words}`"


def _label(label: Any) -> str:
    return _code(printable(label))


def _table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[str]:
    lines = [header, ("---",) * len(header), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines] + [""]


def _data(fitted: Fitted, command: dict[str, Any]) -> list[str]:
    data = fitted.data
    if data is None:
        return []
    rows = [("training", data["rows"], _code(data["digest"]))]
    if "earlier" in data:
        rows.append(("training before that", data["earlier"], ""))
    held = data["validation"]
    if held is not None:
        share = f" (a share of {held['share']:g})" if "share" in held else ""
        rows.append(("validation" + share, held["rows"], _code(held["digest"])))
    split = command.get("split") or {}
    if "share" in split and held is not None:
        rows[-1] = (f"validation (a share of {split['share']:g}, drawn with seed {split['seed']})", *rows[-1][1:])
    files = [f"- {_code(name)}, SHA-256 {_code(digest)}" for name, digest in command.get("sha256", {}).items()]
    return [
        "## Data",
        "",
        *_table(("data", "examples", "digest of the encoded examples"), rows),
        *([*files, ""] if files else []),
    ]


def _training(fitted: Fitted) -> list[str]:
    last = fitted.history[fitted.best_epoch - 1]
    names = ["loss", "accuracy"]
    if fitted.validation_report is None:  # a report has these metrics, with intervals
        names += ["val_loss", "val_accuracy", "val_balanced_accuracy", "val_macro_f1"]
    return [
        "## Figures",
        "",
        f"After {last['epoch']} epochs (figures without val are of the training data):",
        "",
        *_table(("", ""), [(name.replace("_", " "), f"{last[name]:.4f}") for name in names if name in last]),
    ]


def _validation(report: dict[str, Any] | None) -> list[str]:
    if report is None:
        return []
    rows = [(name, _with_interval(value, interval)) for name, (value, interval) in metrics_of(report).items()]
    each = [
        (
            _label(name),
            *(_with_interval(scores[each], scores.get("intervals", {}).get(each)) for each in _SCORES),
            scores["support"],
        )
        for name, scores in list(report["per_class"].items())[:_MOST_CLASSES]
    ]
    return [
        f"On the {report['examples']} examples of the validation, with {100 * report['confidence']:g} % intervals:",
        "",
        *_table(("", ""), rows),
        *_table(("class", *_SCORES, "examples"), each),
        *_beside(report.get("baseline")),
        *([f"The {about(report['confidence'])}.", ""] if report.get("interval_methods") else []),
        *(f"- Warning: {_code(warning, MESSAGE)}." for warning in report["warnings"]),
        *([""] if report["warnings"] else []),
    ]


def _beside(baseline: dict[str, Any] | None) -> list[str]:
    if baseline is None:
        return []
    rows = [
        (name.replace("_", " "), f"{baseline[name]:.4f}", f"{added['value']:+.4f} ({low:+.4f} to {high:+.4f})")
        for name, added in baseline["added"].items()
        for low, high in [added["interval"][:2]]
    ]
    return ["Beside a simple linear model on the same examples:", "", *_table(("", "linear", "the network adds"), rows)]


def _with_interval(value: float, interval: Sequence[float] | None) -> str:
    return f"{value:.4f}" + (f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else "")


def _calibration(fitted: Fitted) -> list[str]:
    lines = []
    if fitted.temperature != 1:
        lines.append(f"- Logits are divided by a temperature of {fitted.temperature:.4g}.")
    if fitted.threshold is not None:
        lines.append(f"- Predicted is {_code(fitted.threshold)}.")
    return ["Calibrated afterwards, which the figures above do not show:", "", *lines, ""] if lines else []


def _origin(fitted: Fitted, command: dict[str, Any], used: dict[str, Any]) -> list[str]:
    data = fitted.data or {}
    used = used | {name: command.get(name, data.get(name)) for name in ("device", "threads", "ranks")}
    lines = [
        "## Origin",
        "",
        *_table(("", ""), [(name, _code(value)) for name, value in used.items() if value is not None]),
    ]
    if SEARCH in fitted.extra:
        table = fitted.extra[SEARCH]
        lines += [
            f"Trial {table['saved']} of {len(table['trials'])} of a random search (`{SEARCH}`). The validation",
            "chose it, so that its figures there are a little too good.",
            "",
        ]
    if command:
        lines += [
            "```sh",
            escaped(command["command"], _LONGEST_COMMAND),  # one line, so that it cannot end the block
            "```",
            "",
            "`seqcls-fast reproduce FOLDER` trains it again and compares.",
            "",
        ]
    return lines

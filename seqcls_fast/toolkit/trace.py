"""``Trace``: every stage of one prediction, and the class probabilities after each token.

The probabilities after k tokens are those of the text cut after k tokens. The model runs on a batch that repeats the
ids, with the lengths 0, 1, ..., T. That is right for both directions and every pooling.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._head import linear, softmax
from .._wide import logits_of
from ._extras import need
from ._terminal import bar, beginning, columns, escaped, kind_of, numbers, printable, visible
from .data.ragged import Inputs, Ragged
from .data.steps import as_steps
from .evaluation.decision import decide
from .fitted import Fitted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..classifier import SequenceClassifier

__all__ = ["Stage", "Trace", "trace"]

PAD_TO = 8  # ids are padded to a multiple of it, to show them as in a batch with longer rows
PREFIXES = 512  # the most prefixes that are run, so of a series of 10,000 steps every 20th
BATCH_STEPS = 1 << 17  # the most rows times steps of one batch of prefixes
SHOWN = 48  # the most lines of the printed table
NAMED = 60  # the most steps whose tokens the picture names


@dataclass(frozen=True, eq=False)
class Stage:
    """The example after one stage of the model, as ``values`` of a ``shape``."""

    name: str
    values: Tensor
    note: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)


@dataclass(frozen=True, eq=False)
class Trace:
    """The stages of a prediction, as text by print(), as JSON by ``to_dict()``, as a picture by ``figure()``.

    Attributes:
        kind: ``"text"`` or ``"series"``.
        raw: the example as it was given.
        tokens: the token read at each step, or the values of a series before they are standardised.
        stages: :class:`Stage` by stage: ids (for text), embedding or standardised steps, hidden, pooled, wide or
            convolutions (for models with such a part), logits, softmax. Those before "pooled" have the step in
            dimension 1 and end with padding.
        classes: the labels, in the order of the probabilities.
        steps: the number of tokens that each row of ``probabilities`` stands for: 0, 1, ... up to all of them.
        probabilities: (len(steps), classes), of the example cut after that many tokens.
        best: the column of the class that is predicted.
    """

    kind: str
    raw: Any
    tokens: list[str]
    stages: list[Stage]
    classes: list[Any]
    steps: list[int]
    probabilities: Tensor
    best: int

    @property
    def predicted(self) -> Any:
        return self.classes[self.best]

    def to_dict(self) -> dict[str, Any]:
        """Everything in types of JSON. Each stage has a name, shape, values and note."""
        return {
            "kind": self.kind,
            "raw": self.raw if isinstance(self.raw, str) else _array(self.raw).tolist(),
            "tokens": self.tokens,
            "stages": [
                {"name": stage.name, "shape": list(stage.shape), "values": stage.values.tolist(), "note": stage.note}
                for stage in self.stages
            ],
            "classes": [_label(label) for label in self.classes],
            "predicted": _label(self.predicted),
            "steps": self.steps,
            "probabilities": self.probabilities.tolist(),
        }

    def __str__(self) -> str:
        unit = "tokens" if self.kind == "text" else "steps"
        width = max(len(stage.name) for stage in self.stages)
        lines = [f"{unit:<{width}}  {len(self.tokens)}: {beginning(' '.join(map(visible, self.tokens)), 90)}"]
        if isinstance(self.raw, str):
            lines.insert(0, f"{'text':<{width}}  {beginning(_quoted(self.raw), 96)}")
        for stage in self.stages:
            shape = f"({', '.join(map(str, stage.shape))})"
            lines.append(f"{stage.name:<{width}}  {shape:<14}  {self._content(stage)}".rstrip())
        return "\n".join([*lines, "", *self._table()])

    def _content(self, stage: Stage) -> str:
        """The values of a stage as far as they fit in a line, and its note."""
        if stage.name in ("wide", "logits", "softmax"):
            pairs = islice(zip(self.classes, stage.values[0].tolist(), strict=True), 90)  # more do not fit in a line
            told = "  ".join(f"{printable(label)} {value:.3f}" for label, value in pairs)
        elif stage.name == "ids":
            told = " ".join(str(value) for value in stage.values[0].tolist())
        elif stage.values.dim() == 2:
            told = numbers(stage.values[0].tolist(), 6)
        else:
            told = ""
        return "  ".join(part for part in (beginning(told, 90), stage.note) if part)

    def _table(self) -> Iterator[str]:
        """A line per prefix: its last token, the first values of its stages, and a bar."""
        wide = [stage for stage in self.stages if stage.values.dim() == 3]
        ids = next((stage.values[0].tolist() for stage in self.stages if stage.name == "ids"), None)
        header = ["", "token" if self.kind == "text" else "step", "id" if ids else ""]
        header += [stage.name for stage in wide] + [f"P({printable(self.predicted)})"]
        rows = []
        for row, step in enumerate(self.steps):
            cells = [str(step), beginning(visible(self.tokens[step - 1]), 20) if step else "(nothing yet)"]
            cells.append(str(ids[step - 1]) if ids and step else "")
            cells += [numbers(stage.values[0, step - 1].tolist(), 3) if step else "" for stage in wide]
            share = float(self.probabilities[row, self.best])
            leader = int(self.probabilities[row].argmax())
            behind = "" if leader == self.best else f"  {printable(self.classes[leader])} leads"
            rows.append([*cells, f"{share:.3f} {bar(share)}{behind}"])
        if len(rows) > SHOWN:
            left = len(rows) - SHOWN
            rows[SHOWN // 2 : -(SHOWN // 2)] = [["", f"... {left} more ..."] + [""] * (len(header) - 2)]
        widths = [max(columns(line[i]) for line in (header, *rows)) for i in range(len(header))]
        for line in (header, *rows):
            padded = (cell + " " * (width - columns(cell)) for cell, width in zip(line, widths, strict=True))
            yield "  ".join(padded).rstrip()

    def figure(self) -> Figure:
        """The probabilities over tokens, a curve per class. Of many classes the less likely ones share a curve."""
        return _figure(self)


def trace(fitted: Fitted, x: Any) -> Trace:
    """Every stage of the prediction for one text or one series."""
    encoder, model = fitted.encoder, fitted.model
    text = fitted.inputs.kind == "text"
    if text and not isinstance(x, str):
        raise TypeError(f"x: expected one text, a str, but got {kind_of(x)}")
    ragged = encoder.encode([x])
    length = int(ragged.lengths[0])
    parameter = next(model.parameters())
    values, lengths, wide = ragged.inputs([0]).to(parameter.device)
    padding = PAD_TO - values.size(1) % PAD_TO if text else 0
    values = torch.cat([values, values.new_zeros(1, padding, *values.shape[2:])], 1)
    if not text:
        values = values.to(parameter.dtype)
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()
            stages = list(_stages(fitted, Inputs(values, lengths, wide)))
            count = min(length, PREFIXES)
            steps = [0, *(round(k * length / count) for k in range(1, count + 1))]
            # A series that ends there has a mean and a time of its own, and a text other n-grams.
            cut = wide is not None or not text
            beside = encoder.encode([*encoder.prefixes(x, steps[:-1]), x]) if cut else None
            logits = torch.cat(list(_prefixes(model, values, steps, beside))).double()
            probabilities = softmax(logits.cpu(), fitted.temperature)
    finally:
        model.train(was_training)
    tokens = encoder.tokens(x) if text else _steps(x)[:length]
    classes = fitted.classes.tolist()
    best = int(decide(probabilities[-1:].numpy(), classes, fitted.threshold)[0])
    return Trace(fitted.inputs.kind, x, tokens, stages, classes, steps, probabilities, best)


def _stages(fitted: Fitted, inputs: Inputs) -> Iterator[Stage]:
    """The steps of :meth:`SequenceClassifier.forward` and of the decision after it, with every intermediate result."""
    model: SequenceClassifier = fitted.model
    x, lengths, wide = inputs
    unused = x.size(1) - int(lengths[0])
    if model.embedding is not None:
        yield Stage("ids", x.cpu(), f"the last {unused} are padding" if unused else "")
        x = model.embedding(x)
        yield Stage("embedding", x.float().cpu(), "a vector for each id")
    else:
        yield Stage("features", x.float().cpu(), "as the encoder scaled them")
    output, final = model.encoder(x, lengths=lengths)
    both = f", {model.hidden_size} units read on and {model.hidden_size} back" if model.bidirectional else ""
    yield Stage("hidden", output.float().cpu(), f"{model.cell} after each step{both}")
    h_n = final if isinstance(final, Tensor) else final[0]
    # A private method, as a copy of the pooling here could come to differ from the model's.
    pooled = model._pool(None if model.pooling == "last" else output, h_n, lengths)
    yield Stage("pooled", pooled.float().cpu(), f"{model.pooling} of the hidden states")
    logits = linear(model.head, pooled)
    beside = logits_of(model.wide, wide, 1)
    if beside is not None:
        what = "weighted ids of the whole text" if isinstance(wide, tuple) else "features of the whole series"
        yield Stage("wide", beside.float().cpu(), f"logits from {what}")
        logits = logits + beside
    if model.convolutions is not None:
        scores = model.convolutions(x, lengths)
        yield Stage("convolutions", scores.float().cpu(), "logits from random convolutions of the whole series")
        logits = logits + scores
    yield Stage("logits", logits.float().cpu())
    notes = [] if fitted.temperature == 1 else [f"of the logits / {fitted.temperature:.4g}, the temperature"]
    if fitted.threshold is not None:
        label, value = fitted.threshold.label, fitted.threshold.value
        notes.append(f"{printable(label)} is predicted from {value:.4g} on")
    yield Stage("softmax", softmax(logits.double().cpu(), fitted.temperature), "; ".join(notes))


def _prefixes(
    model: SequenceClassifier, x: Tensor, steps: Sequence[int], beside: Ragged | None
) -> Iterator[Tensor]:  # fmt: skip
    """Logits after each of ``steps``. A batch has prefixes of similar lengths and is cut to the longest of them.

    ``beside`` has the prefixes by themselves: series, or texts with their wide parts.
    """
    start = 0
    while start < len(steps):
        count = max(1, BATCH_STEPS // max(1, steps[-1]))
        lengths = torch.tensor(steps[start : start + count], device=x.device)
        longest = max(1, int(lengths[-1]))
        rows = range(start, start + len(lengths))
        found = None if beside is None else beside.inputs(rows).to(x.device)
        if found is None or not x.is_floating_point():
            wide = None if found is None else found.wide
            found = Inputs(x[:, :longest].expand(len(lengths), -1, *x.shape[2:]), lengths, wide)
        yield found._replace(x=found.x.to(x.dtype)).through(model)
        start += count


def _steps(series: Any) -> list[str]:
    """Each step of a series in a few characters."""
    return [numbers(row.reshape(-1).tolist(), 3) for row in _array(series)]


def _array(series: Any) -> Tensor:
    return torch.as_tensor(as_steps(series, "x"))


# -- text -------------------------------------------------------------------------------------------------------------


def _label(label: Any) -> Any:
    return label if isinstance(label, str | int | float | bool) else str(label)


def _quoted(text: str) -> str:
    """The beginning of a text in quotes, longer than a line."""
    return escaped(repr(text[:1000]), 10_000)


# -- the picture ------------------------------------------------------------------------------------------------------


def _figure(trace: Trace) -> Figure:
    need("matplotlib", "Trace.figure()")
    from matplotlib.figure import Figure

    from .evaluation.plots import COLORS, DASHES, families

    width = max(6.4, 2.5 + 0.22 * min(len(trace.steps), NAMED))
    figure = Figure(figsize=(width, 4.4), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    words: dict[str, Any] = {"family": families(), "parse_math": False}  # a dollar in a token begins no formula
    order = trace.probabilities[-1].argsort(descending=True, stable=True).tolist()
    shown = order if len(order) <= len(COLORS) else order[: len(COLORS) - 1]
    curves = [(str(trace.classes[k]), trace.probabilities[:, k]) for k in shown]
    if len(shown) < len(order):
        rest = trace.probabilities[:, order[len(shown) :]].sum(1)
        curves.append((f"the other {len(order) - len(shown)}", rest))
    marker = "o" if len(trace.steps) <= NAMED else ""
    for (_, curve), color, dash in zip(curves, COLORS, DASHES, strict=False):
        axes.plot(trace.steps, curve.tolist(), color=color, linestyle=dash, marker=marker, markersize=4)
    axes.set(ylim=(-0.02, 1.02), ylabel="probability")
    axes.grid(alpha=0.25)
    if trace.kind == "text" and len(trace.steps) <= NAMED:
        names = ["(nothing yet)", *(beginning(visible(token), 20) for token in trace.tokens)]
        axes.set_xticks(trace.steps, [names[step] for step in trace.steps], rotation=45, ha="right", **words)
        axes.set_xlabel("after reading")
    else:
        axes.set_xlabel(f"{'tokens' if trace.kind == 'text' else 'steps'} read")
    keys = [str(k) for k in range(len(curves))]
    legend = axes.legend(axes.lines, keys, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for entry, (name, _) in zip(legend.get_texts(), curves, strict=True):
        # Set here, as matplotlib leaves out a curve whose own label begins with "_".
        entry.set(text=beginning(visible(name), 32), **words)
    axes.set_title(beginning(_quoted(trace.raw), 70) if trace.kind == "text" else "a series", **words)
    return figure

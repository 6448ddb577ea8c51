"""Pictures of a training run, of a report and of the data, each a matplotlib Figure, and ``save`` for files.

Figures are made without pyplot, so that none is registered, shown or left open, and any thread may draw. The colours
are those of Okabe and Ito, which colour-blind readers can tell apart. Curves differ in their dashes too.
"""

from __future__ import annotations

import io
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..._files import replacing
from .._extras import need

need("matplotlib", "plots")
import matplotlib as mpl  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib import font_manager  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.colors import PowerNorm  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

from .._terminal import NAME, printable, shown  # noqa: E402
from .metrics import average_precision, operating_points, roc_auc  # noqa: E402

if TYPE_CHECKING:
    from .results import Results

__all__ = [
    "confusion",
    "learning_curves",
    "length_histogram",
    "precision_recall",
    "reliability",
    "roc",
    "save",
    "svg",
]

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
GREY = "#767676"
_Corner = Literal["lower left", "lower right"]
# Used after matplotlib's own DejaVu Sans, which has no Chinese, Japanese or Korean, where the machine has them.
_WIDE_FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "PingFang SC", "Microsoft YaHei"),
    *("Arial Unicode MS", "Noto Sans Arabic", "Noto Sans Devanagari", "Noto Emoji"),
)


def learning_curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss per epoch in training and validation, and beside it the other metrics of the history.

    Examples::

        >>> from seqcls_fast.toolkit.evaluation import plots
        >>> history = [{"epoch": 1, "loss": 0.7, "val_loss": 0.8}, {"epoch": 2, "loss": 0.4, "val_loss": 0.6}]
        >>> figure = plots.learning_curves(history)
        >>> [axes.get_title() for axes in figure.axes]
        ['loss']
    """
    names = dict.fromkeys(name for epoch in history for name, value in epoch.items() if _is_number(value))
    losses: list[str] = [name for name in ("loss", "val_loss") if name in names]
    metrics = [name for name in names if name not in losses and (name.startswith("val_") or f"val_{name}" in names)]
    metrics = metrics or [name for name in names if name == "accuracy"]
    panels = [("loss", losses)]
    if metrics:
        panels.append(("metrics", metrics[: len(COLORS)]))
    figure = _figure(4.6 * len(panels) + 0.4, 3.6)
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        for k, name in enumerate(curves):
            rows = [(epoch.get("epoch", i), epoch[name]) for i, epoch in enumerate(history, 1) if name in epoch]
            x, y = np.array([row for row in rows if _is_number(row[1])], np.float64).T
            style = "o" if len(x) == 1 else None
            axes.plot(x, y, color=COLORS[k], linestyle=DASHES[k], label=_label(_words(name, title)), marker=style)
            if name == "val_loss" and np.isfinite(y).any():
                best = int(np.argmin(np.where(np.isfinite(y), y, np.inf)))
                axes.plot(x[best], y[best], "o", color=COLORS[k], label=f"lowest, epoch {x[best]:g}")
        if curves:
            axes.legend()
        else:
            _say(axes, "no epochs yet")
    return figure


def confusion(report: Results) -> Figure:
    """Rows are true classes, columns predicted ones. Colours are shares of a row, numbers are counts of examples.

    The colours follow the square root of the share, so that few errors can be seen, too.
    """
    counts, K = report.confusion, len(report.names)
    names = [_label(name) for name in report.names]
    longest = max(len(name) for name in names)
    side = min((1.0 if K <= 4 else 0.55 if K <= 12 else 0.34) * K, 18)
    figure = _figure(max(side + 1.4 + 0.08 * longest, 4.0), max(side + 0.8 + 0.08 * longest, 3.4), "compressed")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    every = range(0, K, -(-K // 60))  # a tick per class up to 60, so that labels never touch
    slanted = K <= 12 and longest > 5
    axes.set_xticks(every, [names[k] for k in every], rotation=90 if K > 12 else 45 if slanted else 0)
    if slanted:
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(every, [names[k] for k in every])
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set(fontsize=10 if K <= 12 else 8, fontfamily=families())
    axes.set(xlabel="predicted", ylabel="true")
    if K <= 40:
        for i, j in zip(*np.nonzero(counts >= (K > 12)), strict=True):  # a large matrix shows no zeros
            text = _short(int(counts[i, j])) + (f"\n{shares[i, j]:.0%}" if K <= 4 else "")
            color = "white" if shares[i, j] > 0.3 else "#222222"
            axes.text(j, i, text, ha="center", va="center", color=color, fontsize=10 if K <= 12 else 7)
    if K > 4:
        figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.7, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
    return figure


def reliability(report: Results) -> Figure:
    """Accuracy by the probability of the likeliest class, above a histogram of these probabilities.

    For a calibrated model the accuracy before calibration is shown, too.
    """
    bins, before = report.bins(), report.before_bins
    figure = _figure(4.6, 4.8)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    used = bins.counts > 0
    width = 1 / len(bins.counts)
    centres = (np.arange(len(bins.counts)) + 0.5) * width
    upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfectly calibrated")
    upper.bar(centres[used], bins.accuracy[used], width * 0.92, color=COLORS[5], label="accuracy")
    upper.plot(bins.confidence[used], bins.accuracy[used], "o", color=COLORS[0], markersize=4, label="mean of the bin")
    title = f"calibration error {bins.error:.3f}"
    if before is not None:
        title += f", before {before.error:.3f}"
        there = before.counts > 0
        style = {"color": COLORS[1], "markerfacecolor": "none", "markersize": 6, "label": "before calibration"}
        upper.plot(before.confidence[there], before.accuracy[there], "D", **style)
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02), title=title)
    figure.legend(loc="outside lower center", ncols=3 if before is None else 2, fontsize=8)
    lower.bar(centres, bins.counts, width * 0.92, color=GREY)
    lower.set(xlabel="probability of the likeliest class", ylabel="examples")
    lower.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    return figure


def roc(report: Results) -> Figure:
    """True positive rate over false positive rate, for the second class of two, or for each class against the rest."""
    figure, axes = _square("false positive rate", "true positive rate (recall)")
    curves = []
    for name, positive, scores in report.one_vs_rest():
        true, false = operating_points(positive, scores)
        x, y = np.append(0, false / false[-1]), np.append(0, true / true[-1])
        curves.append((roc_auc(true, false), name, *_thinned(x, y)))
    axes.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="chance")
    _curves(axes, curves, report.roc_auc, "roc auc", "lower right")
    return figure


def precision_recall(report: Results) -> Figure:
    """Precision over recall as steps, for the second class of two, or for each class against the rest."""
    figure, axes = _square("recall", "precision")
    curves, shares = [], []
    for name, positive, scores in report.one_vs_rest():
        true, false = operating_points(positive, scores)
        x, y = np.append(0, true / true[-1]), true / (true + false)
        curves.append((average_precision(true, false), name, *_thinned(x, np.append(y[0], y))))
        shares.append(float(positive.mean()))
    if len(shares) == 1:
        axes.axhline(shares[0], color=GREY, linestyle="--", linewidth=1, label=f"chance {shares[0]:.2f}")
    _curves(axes, curves, report.pr_auc, "pr auc", "lower left", drawstyle="steps-pre")
    return figure


def length_histogram(lengths: Any) -> Figure:
    """A histogram of lengths, with the median and the length that 95 % of the sequences do not exceed."""
    values = np.asarray(lengths).reshape(-1)
    figure = _figure(5.2, 3.2)
    axes = figure.subplots()
    axes.set(xlabel="length", ylabel="sequences")
    if not len(values):
        _say(axes, "no sequences")
        return figure
    low, high = int(values.min()), int(values.max())
    step = max(1, -(-(high - low + 1) // 50))  # a whole number of lengths per bar, or bars would have gaps
    axes.hist(values, bins=[edge - 0.5 for edge in range(low, high + step + 1, step)], color=COLORS[5])
    for value, name, color, dash in (
        (np.median(values), "median", COLORS[0], "-"),
        (np.quantile(values, 0.95, method="inverted_cdf"), "95 %", COLORS[1], "--"),
    ):
        axes.axvline(float(value), color=color, linestyle=dash, label=f"{name}: {value:g}")
    axes.plot([], [], " ", label=f"longest: {high}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Writes a .png or .svg file, whole or not at all. A file of that name stays until the new one is complete."""
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".png", ".svg"):
        raise ValueError(f"path: expected a name that ends in .png or .svg but got {shown(path.name, NAME)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: expected an existing folder but got {shown(str(path.parent), NAME)}")
    if suffix == ".svg":
        content = ('<?xml version="1.0" encoding="utf-8"?>\n' + svg(figure)).encode()
    else:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight", pad_inches=0.05)
        content = buffer.getvalue()
    with replacing(path) as written:
        written.write_bytes(content)


def svg(figure: Figure, prefix: str = "p", transparent: bool = False) -> str:
    """The figure as one <svg> element whose text stays text. Ids start with ``prefix``, to differ within a page."""
    buffer = io.StringIO()
    # The font type can only be set in matplotlib's settings, which the context restores. A glyph that is missing from
    # matplotlib's font does no harm, as the reader's fonts draw the text.
    with mpl.rc_context({"svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(
            buffer, format="svg", metadata={"Date": None}, transparent=transparent, bbox_inches="tight", pad_inches=0.05
        )
    text = buffer.getvalue()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    ids: dict[str, str] = {}
    for found in re.findall(r'\bid="([^"]*)"', text):
        ids.setdefault(found, f"{prefix}{len(ids)}")
    return re.sub(r'(\bid="|href="#|url\(#)([^")]*)', lambda match: match[1] + ids.get(match[2], match[2]), text)


def _figure(width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained") -> Figure:
    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def _square(x: str, y: str) -> tuple[Figure, Axes]:
    figure = _figure(4.8, 4.6)
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y, xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    axes.set_aspect("equal")
    return figure, axes


def _curves(axes: Axes, curves: list[Any], mean: float | None, metric: str, corner: _Corner, **style: Any) -> None:
    """Draws a curve per class. If there are more than colours, only the worst have a name and a colour."""
    if mean is None:
        _say(axes, "undefined: a single class in y_true")
        return
    curves.sort(key=lambda curve: curve[0])
    named = len(curves) if len(curves) <= len(COLORS) else len(COLORS) - 1
    better = len(curves) - named
    for k, (_, _, x, y) in enumerate(curves[named :: -(-better // 60) or 1]):  # at most about 60
        label = f"{better} better ones" if not k else None
        axes.plot(x, y, color="#bbbbbb", linewidth=0.8, label=label, **style)
    for k, (area, name, x, y) in reversed(list(enumerate(curves[:named]))):
        axes.plot(x, y, color=COLORS[k], linestyle=DASHES[k], label=f"{area:.3f} {_label(name)}", **style)
    axes.set_title(f"{metric} {mean:.3f}" + (" (mean over classes)" if len(curves) > 1 else ""))
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc=corner, prop={"family": families(), "size": 8})


def _thinned(x: Any, y: Any) -> tuple[Any, Any]:
    """Leaves out points within a 500th of the axes from the one before, which keeps the file of many examples small."""
    cell = np.round(x * 500) * 1000 + np.round(y * 500)
    kept = np.append(True, np.diff(cell) != 0)
    kept[-1] = True
    return x[kept], y[kept]


def _say(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, color=GREY)


def _label(name: str) -> str:
    """The name of a class in a picture, cut, with dollars escaped, which would begin a formula."""
    text = printable(name)
    return (text if len(text) <= 24 else text[:23] + "…").replace("$", r"\$")


def _words(name: str, title: str) -> str:
    part, rest = ("validation", name[4:]) if name.startswith("val_") else ("training", name)
    return part if title == rest else f"{part} {rest}".replace("_", " ")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _short(count: int) -> str:
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k" if count < 1_000_000 else f"{count / 1e6:.1f}M"


@lru_cache(maxsize=1)
def families() -> list[str]:
    there = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _WIDE_FONTS if name in there)]

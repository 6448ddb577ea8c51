"""The pictures: matplotlib's artists and the pixels show the right values; files are written whole or not at all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

np = pytest.importorskip("numpy")
mpl = pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.image import imread  # noqa: E402

from seqcls_fast.toolkit.evaluation import plots  # noqa: E402
from seqcls_fast.toolkit.evaluation.evaluate import evaluate_predictions  # noqa: E402
from seqcls_fast.toolkit.evaluation.metrics import operating_points  # noqa: E402

HISTORY = [
    {"epoch": 1, "loss": 1.0, "accuracy": 0.4, "lr": 1e-3, "seconds": 2.0, "val_loss": 0.9, "val_accuracy": 0.5},
    {"epoch": 2, "loss": 0.5, "accuracy": 0.7, "lr": 1e-3, "seconds": 2.0, "val_loss": 0.6, "val_accuracy": 0.6},
    {"epoch": 3, "loss": 0.2, "accuracy": 0.9, "lr": 1e-4, "seconds": 2.0, "val_loss": 0.8, "val_accuracy": 0.7},
]


def report_of(classes: int, count: int = 400, names: Any = None, **options: Any) -> Any:
    rng = np.random.default_rng(classes)
    true = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes))
    logits[np.arange(count), true] += 2
    proba = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    names = names or [f"class-{k:02d}" for k in range(classes)]
    words = [[names[k] for k in ids] for ids in (true, proba.argmax(1))]
    return evaluate_predictions(*words, proba, labels=names, bootstrap=0, **options)


def drawn(figure: Any) -> Any:
    """Pixels, drawn as they would be for a file."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())


def texts(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.texts]


def legend(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def figures() -> list[Any]:
    report = report_of(3)
    pictures = [plots.confusion, plots.reliability, plots.roc, plots.precision_recall]
    return [*(draw(report) for draw in pictures), plots.learning_curves(HISTORY), plots.length_histogram([1, 2, 2, 9])]


# -- what they show


def test_learning_curves() -> None:
    losses, scores = plots.learning_curves(HISTORY).axes
    training, validation, best = losses.lines
    assert training.get_ydata().tolist() == [1.0, 0.5, 0.2]
    assert validation.get_ydata().tolist() == [0.9, 0.6, 0.8]
    assert (best.get_xdata(), best.get_ydata()) == ([2], [0.6])
    assert legend(losses) == ["training", "validation", "lowest, epoch 2"]
    assert legend(scores) == ["training accuracy", "validation accuracy"]  # neither lr nor seconds
    assert training.get_linestyle() != validation.get_linestyle()


def test_learning_curves_with_gaps() -> None:
    history = [{"epoch": 1, "loss": 1.0}, {"epoch": 2, "loss": 0.5, "val_loss": None}, {"epoch": 3, "val_loss": 0.7}]
    (axes,) = plots.learning_curves(history).axes
    assert axes.lines[0].get_xdata().tolist() == [1, 2]
    assert axes.lines[1].get_xdata().tolist() == [3]
    assert axes.lines[1].get_marker() == "o"  # a line through one point would be invisible
    nan = [{"epoch": 1, "loss": 1.0, "val_loss": float("nan")}, {"epoch": 2, "loss": 1.0, "val_loss": 2.0}]
    assert legend(plots.learning_curves(nan).axes[0])[-1] == "lowest, epoch 2"
    assert texts(plots.learning_curves([]).axes[0]) == ["no epochs yet"]


def test_confusion() -> None:
    true, pred = ["a"] * 10 + ["b"] * 4, ["a"] * 9 + ["b"] * 5
    axes = plots.confusion(evaluate_predictions(true, pred)).axes[0]
    assert texts(axes) == ["9\n90%", "1\n10%", "0\n0%", "4\n100%"]
    assert np.asarray(axes.images[0].get_array()).tolist() == [[0.9, 0.1], [0.0, 1.0]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")


def test_text_of_a_cell_stands_out() -> None:
    axes = plots.confusion(report_of(3)).axes[0]
    shares = np.asarray(axes.images[0].get_array()).reshape(-1)
    for share, text in zip(shares, axes.texts, strict=True):
        cell = axes.images[0].cmap(axes.images[0].norm(share))[:3]
        light = [
            np.dot([0.2126, 0.7152, 0.0722], np.power(c, 2.2)) for c in (cell, mpl.colors.to_rgb(text.get_color()))
        ]
        assert (max(light) + 0.05) / (min(light) + 0.05) > 3  # WCAG's contrast of large text


@pytest.mark.parametrize("classes", [1, 2, 5, 12, 13, 30, 100])
def test_labels_never_overlap(classes: int) -> None:
    names = [f"a-long-name-of-class-{k}" for k in range(classes)]
    figure = plots.confusion(report_of(classes, names=names))
    drawn(figure)
    axes = figure.axes[0]
    assert len(axes.get_xticklabels()) == (50 if classes == 100 else classes)
    for labels, side in ((axes.get_yticklabels(), 1), (axes.get_xticklabels(), 0)):
        at = [axes.transData.transform([label.get_position()] * 2)[0][side] for label in labels]
        height = labels[0].get_fontsize() * figure.dpi / 72
        assert np.all(np.abs(np.diff(at)) >= height)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label):
        box = label.get_window_extent()
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= figure.bbox.x1 + 1


def test_numbers_of_30_classes_fit_their_cells() -> None:
    figure = plots.confusion(report_of(30, 20_000))
    drawn(figure)
    axes = figure.axes[0]
    cell = axes.get_window_extent().width / 30
    assert max(text.get_window_extent().width for text in axes.texts) < cell


def test_reliability() -> None:
    report = report_of(4)
    upper, lower = plots.reliability(report).axes
    bins = report.bins()
    assert [bar.get_height() for bar in upper.patches] == bins.accuracy[bins.counts > 0].tolist()
    assert sum(bar.get_height() for bar in lower.patches) == 400
    assert upper.get_title() == f"calibration error {report.expected_calibration_error:.3f}"


def test_roc_and_precision_recall_of_two() -> None:
    report = report_of(2)
    chance, curve = plots.roc(report).axes[0].lines
    x, y = curve.get_data()
    area = np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2)
    assert area == pytest.approx(report.roc_auc, abs=0.01)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert chance.get_label() == "chance"
    base, curve = plots.precision_recall(report).axes[0].lines
    x, y = curve.get_data()
    assert np.sum(np.diff(x) * y[1:]) == pytest.approx(report.pr_auc, abs=0.01)
    assert base.get_ydata()[0] == pytest.approx(report.support[1] / 400)


def test_curves_of_many_classes() -> None:
    axes = plots.roc(report_of(30)).axes[0]
    shown = legend(axes)
    assert len(axes.lines) == 31
    assert shown[-2:] == ["24 better ones", "chance"]
    areas = [float(label.split()[0]) for label in shown[:-2]]
    assert areas == sorted(areas)  # the worst first
    every = sorted(plots.roc_auc(*operating_points(*curve)) for _, *curve in report_of(30).one_vs_rest())
    assert areas == pytest.approx(every[:6], abs=1e-3)
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == 8  # six, the grey ones and chance


@pytest.mark.parametrize("name", ["$x_$", "a$b", "_hidden", "", "\ud800", "two\nlines", "x" * 99, r"\frac", "<b>&"])
def test_labels_are_shown_as_they_are(name: str) -> None:
    report = report_of(2, names=["a", name])
    for draw in (plots.confusion, plots.roc, plots.precision_recall):
        figure = draw(report)
        drawn(figure)
        root = ElementTree.fromstring(plots.svg(figure))
        shown = "|".join("".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text"))
        assert (name if name.isprintable() and 0 < len(name) < 24 else plots.printable(name)[:20]) in shown


def test_a_million_examples_are_a_small_file() -> None:
    report = report_of(2, 200_000)
    for draw in (plots.roc, plots.precision_recall):
        assert len(plots.svg(draw(report))) < 60_000


def test_length_histogram() -> None:
    figure = plots.length_histogram(torch.tensor([3] * 95 + [4, 5, 6, 7, 100]))
    (axes,) = figure.axes
    assert sum(bar.get_height() for bar in axes.patches) == 100
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["median: 3", "95 %: 3", "longest: 100"]
    bars = plots.length_histogram([0, 1, 1, 2]).axes[0].patches
    assert [bar.get_height() for bar in bars] == [1, 2, 1]
    assert bars[0].get_x() + bars[0].get_width() / 2 == 0
    assert texts(plots.length_histogram([]).axes[0]) == ["no sequences"]


def test_without_probabilities() -> None:
    report = evaluate_predictions([0, 1], [0, 1])
    for draw in (plots.reliability, plots.roc, plots.precision_recall):
        with pytest.raises(ValueError, match="report: expected one made with proba"):
            draw(report)


def test_single_class() -> None:
    report = evaluate_predictions([0, 0], [0, 0], [[0.8, 0.2]] * 2, labels=[0, 1])
    for draw in (plots.roc, plots.precision_recall):
        figure = draw(report)
        assert texts(figure.axes[0]) == ["undefined: a single class in y_true"]
        drawn(figure)


# -- rendering and files


@pytest.mark.parametrize("suffix", [".png", ".svg", ".PNG"])
def test_every_picture_is_rendered(tmp_path: Path, suffix: str) -> None:
    for k, figure in enumerate(figures()):
        path = tmp_path / f"{k}{suffix}"
        plots.save(figure, path)
        if suffix == ".svg":
            root = ElementTree.parse(path).getroot()
            assert root.tag.endswith("svg")
            assert any(element.tag.endswith("text") for element in root.iter())
        else:
            pixels = imread(path)
            assert min(pixels.shape[:2]) > 300
            assert (pixels[:, :, :3].mean(2) < 0.5).mean() > 0.003  # something dark is on it
    assert len(list(tmp_path.iterdir())) == 6


def test_pixels_of_the_confusion_matrix() -> None:
    """Dark on the diagonal, light beside it: the rows are drawn in the order of the labels."""
    figure = plots.confusion(evaluate_predictions(["a"] * 9 + ["b"] * 9, ["a"] * 9 + ["b"] * 9))
    pixels = drawn(figure)
    axes = figure.axes[0]
    for i in range(2):
        for j in range(2):
            x, y = axes.transData.transform((j + 0.3, i + 0.3)).astype(int)
            assert (pixels[len(pixels) - y, x, 0] < 60) == (i == j)


def test_no_global_state() -> None:
    before = dict(mpl.rcParams)
    for figure in figures():
        plots.svg(figure)
    assert dict(mpl.rcParams) == before
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or not pyplot.get_fignums()


def test_svg_is_the_same_every_time() -> None:
    report = report_of(3)
    first = plots.svg(plots.roc(report), "x")
    assert first == plots.svg(plots.roc(report), "x")
    assert first.startswith("<svg")
    assert 'id="x0"' in first
    assert "metadata" not in first


def test_save_replaces_whole_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = plots.length_histogram([1, 2])
    path = tmp_path / "picture.svg"
    path.write_text("old")

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(OSError, match="No space left"):
            plots.save(figure, path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    plots.save(figure, str(path))
    assert path.read_text().startswith("<?xml")
    assert list(tmp_path.iterdir()) == [path]


def test_save_refuses(tmp_path: Path) -> None:
    figure = plots.length_histogram([1, 2])
    with pytest.raises(ValueError, match=r"path: expected a name that ends in \.png or \.svg but got 'a\.pdf'"):
        plots.save(figure, tmp_path / "a.pdf")
    with pytest.raises(FileNotFoundError, match="path: expected an existing folder"):
        plots.save(figure, tmp_path / "nowhere" / "a.png")

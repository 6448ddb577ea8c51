"""Text from outside is shown as text: in a terminal, in a page, and in messages, which are short lines.

Labels, texts and the names of files and columns here hold what a terminal, rich, Markdown, HTML or a spreadsheet would
obey.
"""

from __future__ import annotations

import copy
import csv
import html.parser
import io
import json
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sklearn")

import seqcls_fast as sf
from seqcls_fast import __main__
from seqcls_fast.cli.predict import _harmless
from seqcls_fast.cli.shared import UsageError
from seqcls_fast.toolkit import store
from seqcls_fast.toolkit.card import model_card
from seqcls_fast.toolkit.data import labels, leakage, readers
from seqcls_fast.toolkit.data.series import SeriesEncoder, as_steps
from seqcls_fast.toolkit.data.stream import Stream
from seqcls_fast.toolkit.data.text import TextEncoder
from seqcls_fast.toolkit.evaluation import calibration
from seqcls_fast.toolkit.evaluation.evaluate import evaluate_predictions
from seqcls_fast.toolkit.training import progress

# Signs that turn text red, set a title, end the line, reverse the rest, clear the screen, or are invisible.
ESC = "\x1b[31mred\x1b]0;title\x07\r\n\u202etxt.\x9b2J\u200b"
MARKUP = "[red]<img src=x onerror=alert(1)> **b** [a](http://x) `c` ``d`` | \\| e :smile: <!-- $x$ http://y"
NASTY = ESC + MARKUP
HUGE = ESC * 40_000
QUICK: dict[str, Any] = {"hidden_size": 4, "embedding_dim": 4, "epochs": 1, "verbose": False}
LEAST = 2000  # every message has fewer characters


def check(text: str, most: int | None = None) -> str:
    """Checks that a terminal shows these lines as they are, and returns them."""
    bad = [line for line in text.split("\n") if not line.isprintable()]
    assert not bad, ascii(bad[0])
    assert most is None or len(text) < most, len(text)
    return text


def message(call: Callable[[], Any]) -> str:
    with pytest.raises((ValueError, TypeError, OSError, RuntimeError, ImportError)) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    return check(text, LEAST)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [f"good film {number}" if number % 2 else f"bad film {number} {NASTY}" for number in range(40)]


@pytest.fixture(scope="module")
def fitted(texts: list[str]) -> sf.TextClassifier:
    return sf.TextClassifier(**QUICK).fit(texts, [NASTY, "plain"] * 20, validation=0.2)


# -- messages ---------------------------------------------------------------------------------------------------------

Call = Callable[[Any, Any], Any]


def fitting(name: str, make: Callable[[Any], Any] = lambda value: value) -> Call:
    """Calls fit() with a parameter that contains the value."""
    return lambda model, value: sf.TextClassifier(**QUICK | {name: make(value)}).fit(["a", "b"], ["plain", NASTY])


def jsonl(value: dict[str, Any]) -> io.StringIO:
    return io.StringIO(json.dumps(value))


def named(name: str) -> io.BytesIO:
    file = io.BytesIO(b"text,label\n")
    file.name = name
    return file


PARAMETERS = ("cell", "schedule", "metric", "on_nan", "device", "pooling", "tokenizer", "epochs", "batch_size")
PARAMETERS += ("checkpoint_every", "learning_rate", "workers", "hidden_size", "max_length", "class_weight")
CALLS: dict[str, Call] = {
    **{name: fitting(name) for name in PARAMETERS},
    "class_weight of a label": fitting("class_weight", lambda value: {value * 2: 1.0}),
    "class_weight as text": fitting("class_weight", lambda value: {"plain": value}),
    "validation": lambda model, value: model.__class__(**QUICK).fit(["a", "b"], [0, 1], validation=value),
    "one class": lambda model, value: model.__class__(**QUICK).fit(["a", "b"], [value, value]),
    "unknown label": lambda model, value: labels.to_targets([value], np.array(["plain"])),
    "label of a threshold": lambda model, value: model.choose_threshold(["a"], ["plain"], label=value * 2, recall=0.5),
    "label of no example": lambda model, value: model.choose_threshold(["a"], ["plain"], label=NASTY, recall=0.5),
    "precision": lambda model, value: calibration.threshold([True], [0.5], precision=value),
    "columns": lambda model, value: model.predict(type("Frame", (), {"columns": [value, value]})()),
    "type": lambda model, value: model.predict([type(value.replace("\0", ""), (), {})()]),
    "labels twice": lambda model, value: evaluate_predictions([1], [1], labels=[value, value]),
    "a label of none": lambda model, value: evaluate_predictions([1], [value], labels=[1]),
    "a fingerprint": lambda model, value: leakage.fingerprints([{value}]),
    "series of texts": lambda model, value: as_steps([value], "x"),
    "series of objects": lambda model, value: as_steps([None, value], "x"),
    "fields of an array": lambda model, value: as_steps(np.zeros(2, [(ascii(value), int)]), "x"),
    "missing": lambda model, value: SeriesEncoder(missing=value),
    "kind": lambda model, value: TextEncoder(value),
    "normalization": lambda model, value: TextEncoder(normalization=value),
    "encoder": lambda model, value: TextEncoder.from_json(value),
    "version of an encoder": lambda model, value: TextEncoder.from_json(
        json.dumps({"kind": "TextEncoder", "version": value})
    ),
    "format": lambda model, value: readers.read("x.csv", format=value),
    "kind of a file": lambda model, value: readers.read("x.csv", kind=value),
    "delimiter": lambda model, value: readers.read("x.csv", delimiter=value),
    "weight of ts": lambda model, value: readers.read("x.ts", kind="series", weight=value),
    "suffix": lambda model, value: readers.read(f"x.{value}"),
    "no file": lambda model, value: model.predict(Path(f"{value}.csv")),
    "an empty buffer": lambda model, value: readers.read(named(f"{value}.csv")),
    "no text": lambda model, value: readers.read(jsonl({value: None}), format="jsonl", label=None, text=value),
    "no label": lambda model, value: readers.read(jsonl({"text": "a", value: None}), format="jsonl", label=value),
    "no weight": lambda model, value: readers.read(
        jsonl({"text": "a", "label": 1, value: value}), format="jsonl", weight=value
    ),
    "half a character": lambda model, value: readers.read(
        jsonl({value: "\ud800"}), format="jsonl", label=None, text=value
    ),
    "a model's cell": lambda model, value: sf.SequenceClassifier(2, 3, 2, cell=value),
    "a model's pooling": lambda model, value: sf.SequenceClassifier(2, 3, 2, pooling=value),
    "what to trace": lambda model, value: model.trace({value: 1}),
}


@pytest.mark.parametrize("value", [NASTY, HUGE], ids=["nasty", "huge"])
@pytest.mark.parametrize("name", CALLS)
def test_a_message_is_one_line_of_text(name: str, value: str, fitted: sf.TextClassifier) -> None:
    message(lambda: CALLS[name](fitted, value))


@pytest.mark.parametrize("size", [-(10**30), -(10**5000)], ids=["30 digits", "5000 digits"])
def test_a_message_about_a_huge_number(size: int) -> None:
    for call in (
        lambda: sf.TextClassifier(epochs=size).fit(["a", "b"], [0, 1]),
        lambda: TextEncoder(max_length=size),
        lambda: SeriesEncoder(max_length=size),
        lambda: evaluate_predictions([1], [1], bootstrap=size),
    ):
        assert "expected" in message(call)


def test_messages_about_files_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / ESC
    folder.mkdir()
    message(lambda: Stream(folder))  # which holds none
    (folder / f"{ESC}.csv").write_text(f"text,label\n{'x' * 5000},{ESC!r}\n", newline="")
    message(lambda: Stream(folder, text=NASTY).survey())
    message(lambda: Stream(folder, label=None, format="jsonl").survey())
    (folder / "a.jsonl").write_text(json.dumps({"text": "a", "label": 1}) + "\n")
    (folder / "b.jsonl").write_text(json.dumps({"text": "a", "label": "1"}) + "\n")
    (folder / f"{ESC}.csv").unlink()
    message(lambda: Stream(folder).survey())  # labels of two kinds
    message(lambda: Stream(folder, kind="series").survey())
    (folder / "series.jsonl").write_text('{"series": [[null]], "label": 1}\n')
    message(
        lambda: list(Stream(folder / "series.jsonl", kind="series").pieces(SeriesEncoder().fit([[1.0]]), workers=0))
    )
    stream = Stream(folder / "a.jsonl")
    stream.survey()
    (folder / "a.jsonl").write_text(json.dumps({"text": "changed", "label": 1}) + "\n")
    message(lambda: list(stream.pieces(TextEncoder().fit(["a"]), workers=0)))


def test_warnings_are_one_line_of_text(fitted: sf.TextClassifier, texts: list[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = copy.deepcopy(fitted).choose_threshold(texts[:8], [NASTY, "plain"] * 4, label=NASTY, recall=0.5)
        model.calibrate(texts[:8], [NASTY, "plain"] * 4)
    assert len(caught) >= 3
    for each in caught:
        check(str(each.message), LEAST)


# -- what is printed --------------------------------------------------------------------------------------------------


def test_a_trace_and_a_report_are_text(fitted: sf.TextClassifier, texts: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = copy.deepcopy(fitted).choose_threshold(texts[:8], [NASTY, "plain"] * 4, label=NASTY, recall=0.5)
    for text in (texts[0], HUGE, ESC, ""):
        found = model.trace(text)
        assert "\\x1b" in check(str(found))  # the label's
        assert found.raw == text
        for each in found.figure().findobj(lambda artist: hasattr(artist, "get_text")):
            check(each.get_text())
    assert r"\u3164" in str(fitted.trace("a\u3164b"))  # a letter that nothing is drawn for
    report = model.evaluate(texts, [NASTY, "plain"] * 20)
    assert "\\x1b" in check(str(report))
    for warning in report.warnings:
        check(warning, LEAST)
    check(str(sf.evaluate_predictions([1, "1", NASTY], ["1", 1, "x"])))


class Page(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_html_report_shows_labels_as_text(fitted: sf.TextClassifier, texts: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = copy.deepcopy(fitted).choose_threshold(texts[:8], [NASTY, "plain"] * 4, label=NASTY, recall=0.5)
    named = ["<img src=x>", "</title><script>", "a<b", "&amp;", NASTY]
    for report in (model.evaluate(texts, [NASTY, "plain"] * 20), evaluate_predictions(named, named[::-1])):
        text = check(report.to_html(history=model.history_).replace("\xa0", " "))
        page = Page(text)
        assert not page.tags & {"img", "script", "a", "b", "code"}
        assert not {"<img", "<script"} & set(text.split())
    assert any("<img src=x>" in words for words in page.words)


def test_a_model_card_shows_what_comes_from_data_as_text(texts: list[str]) -> None:
    markdown_it = pytest.importorskip("markdown_it")
    names = [
        "<img src=x>",
        "`<i>`",
        "``<i>``",
        "**b**",
        "a|b",
        "\\|<b>",
        "[a](http://x)",
        "![a](http://x)",
        ESC,
        "<!--",
    ]
    model = sf.TextClassifier(**QUICK, class_weight={names[0]: 2.0}).fit(texts, names * 4, validation=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.choose_threshold(texts[:10], names, label=names[0], recall=0.5)
    model.extra_ = {
        store.COMMAND: {
            "command": f"seqcls-fast train '{NASTY}\n```\n<script>' --text '{HUGE}'", "sha256": {MARKUP: "a" * 64},
            "device": NASTY, "threads": 1, "ranks": 1, "split": None, "versions": {"seqcls_fast": "1", "torch": NASTY},
        }
    }  # fmt: skip
    card = check(model_card(model.fitted_, type(model)))
    page = Page(markdown_it.MarkdownIt("commonmark").enable("table").render(card))
    made = {"h1", "h2", "p", "pre", "code", "table", "thead", "tbody", "tr", "th", "td", "ul", "li"}
    assert page.tags <= made
    words = "".join(page.words)
    for part in (*names[:4], r"a\x7cb", r"\\x7c<b>", *names[6:8], r"\x1b[31m", "<!--", r"```\n<script>", "Warning: "):
        assert part in words
    for line in card.splitlines():  # a bar in a label does not begin a cell
        if line.startswith("| `"):
            assert line.count("|") == 6, line


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def nasty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [(f"good {k}", NASTY) if k % 2 else (f"bad {k}", "=cmd") for k in range(40)]
    with open(f"{ESC}.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([(f"t{ESC}", f"l{ESC}"), *rows])
    return tmp_path


SMALL = ["--hidden-size", "4", "--embedding-dim", "4", "--epochs", "1", "--verbose"]


def test_commands_print_text(nasty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, columns = f"{ESC}.csv", ["--text", f"t{ESC}", "--label", f"l{ESC}"]
    model = f"{ESC} model"
    for arguments in (
        ["train", data, *columns, *SMALL, "--validation-share", "0.2", "--out", model],
        ["evaluate", model, data, *columns],
        ["evaluate", model, data, *columns, "--json"],
        ["calibrate", model, data, *columns],
        ["calibrate", model, data, *columns, "--for", NASTY, "--recall", "0.5", "--json"],
        ["trace", model, NASTY],
        ["trace", model, NASTY, "--json"],
        ["predict", model, data, "--text", f"t{ESC}", "--out", f"{ESC}.out"],
        ["predict", model, data, "--text", f"t{ESC}", "--format", "jsonl"],
        ["predict", model, data, "--text", f"t{ESC}", "--json"],
        ["export", model, "--to", f"{ESC}.pt2"],
        ["reproduce", model],
    ):
        assert __main__.main(arguments) == 0, arguments[0]
        captured = capsys.readouterr()
        check(captured.out)
        check(captured.err)
    check(Path(model, store.CARD).read_text(encoding="utf-8"))


def test_failures_of_commands_are_lines_of_text(nasty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = "n" * 10_000
    for arguments in (
        ["train", f"{ESC}.csv", "--out", "model"],
        ["train", f"{ESC}.csv", "--out", "model", "--debug"],
        ["train", f"{ESC}no.csv", "--out", "model"],
        ["train", f"{long}.csv", "--out", "model"],
        ["train", f"{ESC}.csv", "--text", f"t{ESC}", "--label", f"l{ESC}", "--out", f"{ESC}.csv"],
        ["train", f"{ESC}.csv", "--config", f"{ESC}.csv", "--out", "model"],
        ["train", f"{ESC}.csv", "--report", f"{ESC}/x.html", "--validation-share", "0.1", "--out", "model"],
        ["evaluate", f"{ESC} no model", f"{ESC}.csv"],
        ["predict", long],
        ["reproduce", ESC],
    ):
        assert __main__.main(arguments) == 1
        error = check(capsys.readouterr().err)
        assert "--debug" in arguments or (error.count("\n") == 1 and len(error) < LEAST)


@pytest.mark.parametrize("word", [NASTY, "n" * 10_000], ids=["nasty", "huge"])
def test_arguments_that_are_refused_are_shown_as_text(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        [word],
        ["train", "x.csv", "--out", "m", f"--{word}"],
        ["train", "x.csv", "--out", "m", "--epochs", word],
        ["train", "x.csv", "--out", "m", "--kind", word],
        ["train", "x.csv", "--out", "m", "--validation-share", word],
        ["predict", "model", "x.csv", word],
        ["predict", "model", "--batch", word],
        ["calibrate", "model", "x.csv", "--for", "x", "--recall", word],
        ["export", "model", "--to", word],
        ["plan", "--cell", "gru", "--hidden", word],
    ):
        with pytest.raises(SystemExit):
            __main__.main(arguments)
        last = check(capsys.readouterr().err).splitlines()[-1]
        assert len(last) < LEAST
        assert "error: " in last


def test_whatever_happens_commands_print_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages of other libraries, which escape nothing, are escaped too."""

    def fail(path: str) -> None:
        warnings.warn(HUGE, stacklevel=1)
        raise UsageError(HUGE) if path == "misused" else ValueError(HUGE)

    monkeypatch.setattr("seqcls_fast.cli.bench.load", fail)
    for arguments in (["model"], ["model", "--debug"], ["misused"]):
        with suppress(SystemExit):
            assert __main__.main(["bench", *arguments]) == 1
        error = check(capsys.readouterr().err)
        assert "warning: " in error
        assert all(len(line) < LEAST for line in error.splitlines())


# -- progress ---------------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_progress_bar_takes_no_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("COLUMNS", "1000")
    with progress.Progress(1, 1, None) as bar:
        bar.bar.stop()  # the bar itself is drawn with escape sequences
        stderr.seek(0)
        stderr.truncate()
        bar.note(NASTY)
    text = check(stderr.getvalue())
    for part in ("\\x1b[31mred", "[red]", ":smile:"):
        assert part in text


def test_lines_of_progress_take_no_orders(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Progress(1, 1, True) as bar:
        bar.note(HUGE)
    assert len(check(capsys.readouterr().err)) < LEAST


# -- predictions as CSV -----------------------------------------------------------------------------------------------

FORMULAS = {
    "=cmd|' /C calc'!A0": "'=cmd|' /C calc'!A0", "+x": "'+x", "-x": "'-x", "@sum(1)": "'@sum(1)", "\t=1": "\t'=1",
    "\r=1": "\r'=1", "\n=1": "\n'=1", "\uff1d1": "'\uff1d1", "-1+cmd|x": "'-1+cmd|x", "'=1": "''=1", "''=1": "'''=1",
    "a;=b": "a;'=b", "a\r\n@b": "a\r\n'@b", ' "=1': "' \"=1", "-1;=x": "'-1;'=x", "a;-1": "a;'-1",
    "--1": "'--1", "-": "'-",
}  # fmt: skip
ORDINARY = ["pos", "-1", "+1", "-1.5e3", "-.5", "a=b", "it's", "'quoted'", "", "é", "a,b", 'a"b', "a;b", "a\tb", "<b>"]


def predicted(names: list[Any], tmp_path: Path, *more: str) -> tuple[bytes, list[list[str]]]:
    """The file that predict writes for a model of these labels, and its rows."""
    model = sf.TextClassifier(**QUICK | {"epochs": 30, "hidden_size": 8}).fit(
        [f"w{k}" for k in range(len(names))] * 10, names * 10
    )
    model.save(tmp_path / "model")
    (tmp_path / "new.txt").write_text("".join(f"w{k}\n" for k in range(len(names))))
    arguments = ["predict", str(tmp_path / "model"), str(tmp_path / "new.txt"), "--out", str(tmp_path / "out"), *more]
    assert __main__.main(arguments) == 0
    data = (tmp_path / "out").read_bytes()
    return data, list(csv.reader(io.StringIO(data.decode(), newline="")))


def test_no_label_is_a_formula_in_csv(tmp_path: Path) -> None:
    data, (header, *rows) = predicted([*FORMULAS, *ORDINARY], tmp_path)
    written = {row[0] for row in rows}
    assert written <= {*FORMULAS.values(), *ORDINARY}
    assert len(written) > 20  # the model learned most of them
    assert len(set(header)) == 1 + len(FORMULAS) + len(ORDINARY)
    assert {"probability_=cmd|' /C calc'!A0", "probability_a;'=b", "probability_-1"} < set(header)
    for sign in ",;\t":  # each may end a field, by the spreadsheet's settings
        for row in csv.reader(io.StringIO(data.decode(), newline=""), delimiter=sign):
            for field in row:
                start = field.lstrip('\t\r\n "')
                assert not start.startswith(("+", "-", "=", "@")) or float(start.split(",")[0].strip('"'))


def test_labels_are_told_apart_in_csv() -> None:
    assert {label: _harmless(label) for label in FORMULAS} == FORMULAS
    assert [_harmless(label) for label in ORDINARY] == ORDINARY
    assert len({*FORMULAS.values(), *ORDINARY}) == len(FORMULAS) + len(ORDINARY)
    assert [_harmless(label) for label in (-1, -0.5, True, ("=", 1))] == ["-1", "-0.5", "True", "('=', 1)"]


def test_raw_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, (_, *rows) = predicted(["=cmd|x", "a;=b"], tmp_path, "--raw")
    assert {row[0] for row in rows} <= {"=cmd|x", "a;=b"}
    with pytest.raises(SystemExit):
        __main__.main(["predict", str(tmp_path / "model"), "--raw", "--format", "jsonl"])
    assert "--raw: expected with --format csv but got jsonl" in capsys.readouterr().err


def test_ordinary_labels_are_written_as_before(tmp_path: Path) -> None:
    data, _ = predicted(["neg", "pos"], tmp_path)
    assert data.startswith(b"label,probability_neg,probability_pos\nneg,0.")
    assert b'"' not in data
    data, _ = predicted([-1, 1], tmp_path)
    assert data.startswith(b"label,probability_-1,probability_1\n-1,0.")


def test_a_terminal_is_shown_escapes_and_a_pipe_the_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predicted([ESC, "x"], tmp_path)
    arguments = ["predict", str(tmp_path / "model"), str(tmp_path / "new.txt")]
    for stdout in (Terminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stdout", stdout)
        assert __main__.main(arguments) == 0
        if stdout.isatty():
            assert "\\x1b[31mred" in check(stdout.getvalue())
        else:
            assert f'"{ESC}"' in stdout.getvalue().replace("\r\n\n", "\r\n")


@pytest.mark.parametrize("more", [["--format", "jsonl"], ["--json"]])
def test_json_holds_the_labels_that_it_escapes(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predicted([NASTY, "größe 汉"], tmp_path)
    monkeypatch.setattr(sys, "stdout", stdout := io.StringIO())
    assert __main__.main(["predict", str(tmp_path / "model"), str(tmp_path / "new.txt"), *more]) == 0
    text = check(stdout.getvalue())
    assert "größe 汉" in text
    lines = json.loads(text)["predictions"] if "--json" in more else [json.loads(line) for line in text.splitlines()]
    assert all(set(line["probabilities"]) == {NASTY, "größe 汉"} for line in lines)

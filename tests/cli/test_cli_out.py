"""--out of the commands that print their result, and what is said of unknown options and choices."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from seqcls_fast.cli import main
from support.commands import misused, refused, told


@pytest.mark.parametrize(
    "words", ["info", "info --json", "plan --cell gru --hidden 8", "trace {model} good", "evaluate {model} {test}"]
)
def test_the_result_goes_to_a_file(
    words: str, made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = words.format(model=made.model, test=made.test).split()
    arguments += made.columns if arguments[0] == "evaluate" else []
    printed = told(capsys, *arguments)
    path = tmp_path / "result.txt"
    assert told(capsys, *arguments, "--out", str(path)) == ""
    assert path.read_text(encoding="utf-8") == printed != ""
    nowhere = str(tmp_path / "no" / "result.txt")
    assert "expected a folder that exists" in refused(capsys, *arguments, "--out", nowhere)


def test_a_failure_leaves_the_file(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "result.txt"
    path.write_text("before")
    refused(capsys, "evaluate", made.model, str(tmp_path / "missing.csv"), "--out", str(path))
    assert path.read_text() == "before"


def test_pages_and_pictures_by_their_names(
    made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, picture, drawing = (tmp_path / name for name in ("r.html", "t.png", "t.svg"))
    assert "accuracy" in told(capsys, "evaluate", made.model, made.test, *made.columns, "--out", str(page))
    assert page.read_text().startswith("<!DOCTYPE html>")
    for path, beginning in ((picture, b"\x89PNG"), (drawing, b"<?xml")):
        told(capsys, "trace", made.model, "good", "--out", str(path))
        assert path.read_bytes().startswith(beginning)


def test_the_names_before(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("--out", "--to"):
        path = tmp_path / f"m{name}.pt2"
        assert json.loads(told(capsys, "export", made.model, name, str(path), "--json"))["file"] == str(path)
        assert path.exists()
    for name in ("--out", "--keep"):
        arguments = main.make_parser().parse_args(["reproduce", "model", name, "again"])
        assert arguments.keep == "again"


@pytest.mark.parametrize(
    ("words", "end"),
    [
        ("train a.csv --out m --epoch 3", "unrecognized arguments: --epoch 3; did you mean '--epochs'?"),
        ("train a.csv --out m --epoch=3", "unrecognized arguments: --epoch=3; did you mean '--epochs'?"),
        ("train a.csv --out m --no-lowercas", "--no-lowercas; did you mean '--no-lowercase'?"),
        ("train a.csv --output m", "required: --out; --output: did you mean '--out'?"),
        ("predict m --xyz", "unrecognized arguments: --xyz"),
        ("train a.csv --out m --kind Text", "; did you mean 'text'?"),
        ("plan --cell GRU --hidden 8", "; did you mean 'gru'?"),
    ],
)
def test_near_names(words: str, end: str, capsys: pytest.CaptureFixture[str]) -> None:
    err = misused(capsys, *words.split())
    assert err.startswith(f"usage: seqcls-fast {words.split()[0]}")
    assert err.endswith(end + "\n")


def test_near_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert misused(capsys, "trian", "a.csv").endswith("; did you mean 'train'?\n")


def test_near_names_in_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.json"
    config.write_text('{"data": "a.csv", "epoch": 3}')
    said = refused(capsys, "train", "--config", str(config), "--out", str(tmp_path / "m"))
    assert said.endswith("expected the names of train's options but got 'epoch'; did you mean 'epochs'?")

"""The command line as a whole: --help, usage errors, and the message of each failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from seqcls_fast import __main__
from seqcls_fast.cli import info, shared
from support.commands import ENVIRONMENT, RUN, SMALL, misused, refused, told

COMMANDS = ("train", "evaluate", "predict", "trace", "calibrate", "reproduce", "export", "bench", "info", "plan")
BLOCKED = ("torch", "numpy", "sklearn", "tokenizers", "safetensors", "matplotlib", "rich", "pyarrow")


def test_help_imports_no_library() -> None:
    code = f"""
import contextlib, io, sys
for name in {BLOCKED}:
    sys.modules[name] = None  # which makes importing it fail
from seqcls_fast.__main__ import main
for command in {COMMANDS}:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        try:
            main([command, "--help"])
        except SystemExit as end:
            assert end.code == 0, command
    assert "examples:" in text.getvalue() and f"seqcls-fast {{command}}" in text.getvalue(), command
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        __main__.main(["--help"])
    out = capsys.readouterr().out
    assert all(f"\n    {command}" in out for command in COMMANDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("train data.csv --out m --epochs many", "argument --epochs: expected int or none but got 'many'"),
        ("train data.csv --out m --epochs 2.5", "argument --epochs: expected int or none but got '2.5'"),
        ("train data.csv --out m --learning-rate x", "expected float or none but got 'x'"),
        ("train data.csv --out m --validation-share 1", "expected a share between 0 and 1 but got '1'"),
        ("train data.csv --out m --validation-share 0.1 --validation v", "expected one of them but got both"),
        ("train data.csv --out m --missing mean", "--missing: expected with --kind series but got --kind text"),
        ("train data.ts --out m --tokenizer bpe", "--tokenizer: expected with --kind text but got --kind series"),
        ("train data.csv --out m --report r.html", "--report: expected with --validation or --validation-share"),
        ("train --out m", "data: expected a file but got none"),
        ("train data.csv", "--out"),
        ("export m --to m.txt", "--out: expected a name that ends in .onnx, .pt2 or .sfm but got 'm.txt'"),
        ("predict m --format xml", "'xml'"),
        ("predict m --batch 0", "expected a number of at least 1 but got '0'"),
        ("trace m", "example"),
    ],
)
def test_mistakes_exit_2(capsys: pytest.CaptureFixture[str], options: str, message: str) -> None:
    err = misused(capsys, *options.split())
    assert err.startswith(f"usage: seqcls-fast {options.split()[0]}")
    assert message in err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ""),
        (b"text,label\n", "expected at least one example but got none"),
        (b"text,label\ngood,pos\nfine,pos\n", "expected at least two classes but got one"),
        (b"text,label\ngood,pos\nfine,\n", "line 3: expected a label"),
        (b"text,label\ngood,pos\n\xff\xfe,neg\n", "line 3: expected UTF-8"),
        (b"txt,label\ngood,pos\n", "expected a column 'text' but got 'txt', 'label'"),
    ],
)
def test_bad_data(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, message: str) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(content)
    assert message in refused(capsys, "train", str(path), "--out", str(tmp_path / "m"))
    assert not (tmp_path / "m").exists()


def test_failures_are_a_sentence(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nowhere = str(tmp_path / "nowhere" / "file")
    for arguments in (
        ["train", nowhere, "--out", str(tmp_path / "m")],
        [
            "train",
            made.train,
            *made.columns,
            "--validation-share",
            "0.1",
            "--report",
            nowhere,
            "--out",
            str(tmp_path / "m"),
        ],
        ["train", made.train, *made.columns, "--cell", "gruu", "--out", str(tmp_path / "m")],
        ["evaluate", made.model, nowhere],
        ["evaluate", made.model, made.test, "--html", nowhere],
        ["predict", nowhere],
        ["predict", made.model, made.test, "--text", "review", "--out", nowhere],
        ["trace", made.model, "good", "--picture", nowhere + ".png"],
        ["trace", made.model, "good", "--picture", str(tmp_path / "t.gif")],
        ["export", made.model, "--to", nowhere + ".onnx"],
        ["bench", nowhere],
    ):
        assert "expected" in (message := refused(capsys, *arguments)) or nowhere in message
    assert not any(tmp_path.iterdir())


def test_without_the_toolkits_libraries(
    made: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)
    install = "needs numpy: pip install 'seqcls-fast[toolkit]'"
    assert refused(capsys, "train", made.train, "--out", "m") == f"seqcls-fast train {install}"
    assert refused(capsys, "predict", made.model, made.test) == f"a saved model {install}"


def test_a_damaged_model(made: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "m"
    told(capsys, "train", made.train, *made.columns, *SMALL, "--epochs", "1", "--out", str(folder))
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    assert "truncated or changed" in refused(capsys, "predict", str(folder), made.test)


def test_debug_shows_where(made: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["predict", made.model, "nowhere.csv", "--debug"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert "FileNotFoundError" in err


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    """As on a full disk: each write to a file fails, also the one that Python tries when it ends."""
    import resource

    with (tmp_path / "out").open("wb") as file:
        result = subprocess.run(
            [*RUN, "info"], stdout=file, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, timeout=120,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        )  # fmt: skip
    assert (result.returncode, result.stderr) == (1, "File too large\n")


def test_warnings_are_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    original = info.collect

    def warning() -> dict[str, Any]:
        warnings.warn("it is late", stacklevel=2)
        return original()

    monkeypatch.setattr(info, "collect", warning)
    assert __main__.main(["info"]) == 0
    assert capsys.readouterr().err == "warning: it is late\n"


def test_our_own_mistakes_say_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise KeyError("threads")

    monkeypatch.setattr(info, "collect", broken)
    assert refused(capsys, "info") == "unexpected KeyError: 'threads' (--debug shows where)"


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    shared.print_json(
        {"a": float("nan"), 1: [np.float64("inf"), np.int64(2)], "p": Path("x"), "t": torch.tensor([1.0])}
    )
    out = capsys.readouterr().out
    assert json.loads(out, parse_constant=pytest.fail) == {"a": None, "1": [None, 2], "p": "x", "t": [1.0]}

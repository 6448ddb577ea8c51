"""`info`, and the command line without torch: `--version`, `--help`, and the exit code of wrong arguments."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

from seqcls_fast import __main__, __version__, _ext, ops

# A module set to None in sys.modules cannot be imported: the command must not even try.
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None; from seqcls_fast.__main__ import main; main(sys.argv[1:])"


def test_json_is_the_truth(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["info", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["version"] == __version__
    assert info["torch"] == torch.__version__
    assert info["torch_cuda"] == torch.version.cuda
    assert info["threads"] == torch.get_num_threads()
    assert info["impls"] == list(ops.available_impls())
    assert info["chosen"] in info["impls"]
    assert (info["extension"] == "loaded") == (_ext.C is not None)
    assert info["layers"]["cpu"] == ("torch" if _ext.C is None else "kernels")
    assert info["layers"]["cuda"] == ("kernels" if info["build"].get("cuda") else "torch")


def test_missing_extension_says_why(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ext, "C", None)
    monkeypatch.setattr(_ext, "why_missing", "no compiler was found")
    monkeypatch.setattr(ops, "available_impls", lambda: ("reference", "torch"))
    assert __main__.main(["info"]) == 0
    out = capsys.readouterr().out
    assert "missing: no compiler was found" in out
    assert "torch (available: reference, torch)" in out
    lines = [line for line in out.splitlines() if line.startswith("layers on ")]
    assert [line[:15] for line in lines] == ["layers on a CPU", "layers on CUDA "]
    assert all(line.endswith("torch's own, whose bits may depend on batch, chunks and threads") for line in lines)


def test_module_runs() -> None:
    command = [sys.executable, "-m", "seqcls_fast", "info"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert f"{'seqcls_fast':<16}{__version__}" in result.stdout.splitlines()
    assert result.stderr == ""


def test_a_number_of_processes_that_is_none() -> None:
    command = [sys.executable, "-m", "seqcls_fast", "info"]
    known = {**os.environ, "WORLD_SIZE": "many"}
    result = subprocess.run(command, env=known, capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert "'many'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["--version"], f"seqcls_fast {__version__}\n"), (["info", "--help"], "--json"), (["plan", "--help"], "--regime")],
)
def test_answers_without_torch(arguments: list[str], expected: str) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert expected in result.stdout


@pytest.mark.parametrize(("arguments", "message"), [(["inof"], "'info'"), ([], "COMMAND")])
def test_mistakes_exit_2(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as exit_info:
        __main__.main(arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err

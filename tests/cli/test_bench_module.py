"""`bench PACKAGE.MODULE:NAME`: a module that the user wrote beside itself converted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from seqcls_fast import conversion
from support.commands import misused, refused, told

MODELS = """
import torch
from torch import nn

class Encoder(nn.Module):
    def __init__(self, hidden=5):
        super().__init__()
        self.rnn = nn.LSTM(3, hidden, batch_first=True, dropout=0.5, num_layers=2)
        self.head = nn.Linear(hidden, 2)

    def forward(self, x):
        output, (h_n, _) = self.rnn(x)
        return {"logits": self.head(output[:, -1]), "state": [h_n]}

class Needs(nn.Module):
    def __init__(self, size, *, width):
        super().__init__()

def of_ids():
    return nn.Sequential(nn.Embedding(7, 3), nn.GRU(3, 4))

class Raises(nn.Module):
    def __init__(self):
        raise OSError("no such weights")

class Ends(nn.Module):
    def __init__(self):
        raise SystemExit(0)

class Huge(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(3, 1 << 24)

class NotCopied(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(3, 4)
        self.twice = self.rnn.weight_ih_l0 * 2

    def forward(self, x):
        return self.rnn(x)[0]

class NotTrained(NotCopied):
    def __init__(self):
        nn.Module.__init__(self)
        self.rnn = nn.RNN(3, 4)

    def forward(self, x):
        if self.training:
            raise KeyError("no target")
        return super().forward(x)

class Changing(NotTrained):
    calls = 0

    def forward(self, x):
        Changing.calls += 1
        return [self.rnn(x)[0]] * (1 + Changing.calls % 2)

def lazy():
    return nn.Sequential(nn.LazyLinear(3), nn.GRU(3, 4))

frozen = nn.GRU(3, 4).requires_grad_(False)
linear = nn.Linear(3, 4)
number = 3

class inner:
    made = nn.RNN(3, 4)

def a_number():
    return number
"""
FAST = ["--rounds", "1", "--threads", "1"]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the folder that the command runs in."""
    name = f"models_of_{tmp_path.name}"  # no test may find that of another one imported
    (tmp_path / f"{name}.py").write_text(MODELS)
    (tmp_path / f"{name}_broken.py").write_text("raise OSError('no such disk')")
    (tmp_path / f"{name}_program.py").write_text("import sys; sys.exit('usage: program FILE')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.mark.parametrize(
    ("name", "arguments", "swapped"),
    [
        ("Encoder", ["--input", "4,6,3"], {"rnn": "torch.nn.LSTM"}),
        ("of_ids", ["--input", "4,6", "--ids", "7"], {"1": "torch.nn.GRU"}),
        ("inner.made", ["--input", "4,6,3"], {"": "torch.nn.RNN"}),
        ("lazy", ["--input", "4,6,7"], {"1": "torch.nn.GRU"}),
    ],
)
def test_both_are_timed(
    models: str, capsys: pytest.CaptureFixture[str], name: str, arguments: list[str], swapped: dict[str, str]
) -> None:
    answer = json.loads(told(capsys, "bench", f"{models}:{name}", *arguments, *FAST, "--json"))
    assert answer["swapped"] == swapped
    assert answer["left"] == []
    assert list(answer["seconds"]) == ["training step", "inference"]
    for times in answer["seconds"].values():
        assert list(times) == ["as it is", "converted"]
        assert min(times.values()) > 0
    text = told(capsys, "bench", f"{models}:{name}", *arguments, *FAST)
    assert text.startswith("1 swapped, 0 left\n")
    assert "training step" in text


def test_the_users_model_stays_as_it_is(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    told(capsys, "bench", f"{models}:inner.made", "--input", "2,2,3", *FAST)
    import importlib

    assert type(importlib.import_module(models).inner.made) is torch.nn.RNN


def test_a_model_that_is_not_trained_is_timed_in_inference(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    answer = json.loads(told(capsys, "bench", f"{models}:frozen", "--input", "4,6,3", *FAST, "--json"))
    assert list(answer["seconds"]) == ["inference"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("_broken:Encoder", "can be imported but got OSError: no such disk"),
        ("_missing:Encoder", "can be imported but got ModuleNotFoundError"),
        (":Encode", "there is no 'Encode'"),
        (":Needs", "needs size, width; write a function"),
        (":number", "or what makes one, but got int"),
        (":a_number", "expected a call to return a torch.nn.Module but got int"),
        ("_program:Encoder", "can be imported but got SystemExit: usage: program FILE"),
        (":Raises", "expected a call without arguments to return a model but it raises OSError: no such weights"),
        (":Ends", "expected a call without arguments to return a model but it raises SystemExit: 0"),
        (":Huge", ":Huge: expected a model that fits into memory but got"),
        (":NotCopied", ":NotCopied: expected a model that copy.deepcopy can copy but it raises RuntimeError: Only"),
        (":NotTrained", "a training step with an input of (4, 6, 3) to work but it raises KeyError: 'no target'"),
        (":Changing", ":Changing: expected outputs of [(4, 6, 4)"),
        (":linear", "a layer that convert() can swap but found none"),
    ],
)
def test_what_cannot_be_used_is_a_sentence(
    models: str, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    assert message in refused(capsys, "bench", models + name, "--input", "4,6,3", *FAST)


def test_inputs_that_do_not_fit_are_a_sentence(models: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = f"{models}:Encoder"
    assert "for (4, 6, 2) of torch.float32 it raises" in refused(capsys, "bench", model, "--input", "4,6,2", *FAST)
    for first in (1_000_000_000, 1 << 80):
        huge = refused(capsys, "bench", model, "--input", f"{first},1000000,3", *FAST)
        assert huge == f"--input: expected sizes that fit into memory but got ({first}, 1000000, 3)"
    assert "expected the sizes of the input" in misused(capsys, "bench", model)
    for wrong in ("4,six,3", "4,0,3", "", "4,-1", "4,²"):
        assert "expected sizes of at least 1" in misused(capsys, "bench", model, f"--input={wrong}")
    assert "--input: expected PACKAGE.MODULE:NAME with it but got no model" in misused(
        capsys, "bench", "--input", "4,6"
    )
    assert "--ids: expected PACKAGE.MODULE:NAME" in misused(capsys, "bench", "folder", "--ids", "4")


def test_models_that_differ_are_not_timed(
    models: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def convert(model: Any) -> Any:
        report = original(model)
        with torch.no_grad():
            model.head.bias += 1
        return report

    original = conversion.convert
    monkeypatch.setattr(conversion, "convert", convert)
    message = refused(capsys, "bench", f"{models}:Encoder", "--input", "4,6,3", *FAST)
    assert "expected equal outputs but they differ by 1" in message

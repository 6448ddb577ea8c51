"""The library of the eager entry: which torch it works with, and what is told where there is none.

What its calls compute is tested by every other test of the layers, and in both ways by test_calls_*.py.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import seqcls_fast as sf
from seqcls_fast import _eager, _ext, ops

RELEASE = torch.__version__.split("+")[0]
FUNCTIONS = ("layers", "cell", "layer", "use_impl", "_turn")


@pytest.fixture
def other_torch(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A library for torch 9.9.9, which is the torch that runs. After the test the real library is used again."""
    library = SimpleNamespace(torch_version="9.9.9", connect=lambda *_: None)
    for name in FUNCTIONS:
        monkeypatch.setattr(_eager, name, _eager._declined)
    monkeypatch.setattr(torch, "__version__", "9.9.9+cu999")
    monkeypatch.setitem(sys.modules, "seqcls_fast._eager_9_9_9", library)
    return library


def test_this_build_has_one() -> None:
    assert _eager.why_off is None
    with torch.no_grad():
        assert _eager.layers(sf.GRU(3, 4), torch.randn(5, 2, 3), None, None, True) is not NotImplemented
        assert _eager.cell(sf.GRUCell(3, 4), "gru", torch.randn(2, 3), None) is not NotImplemented


def test_off_is_for_a_block() -> None:
    gru, x = sf.GRU(3, 4), torch.randn(5, 2, 3)
    with _eager.off():
        with _eager.off():
            assert _eager.layers(gru, x, None, None, True) is NotImplemented
        assert _eager.layers(gru, x, None, None, True) is NotImplemented
    assert _eager.layers(gru, x, None, None, True) is not NotImplemented


def test_a_torch_without_a_library(other_torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "seqcls_fast._eager_9_9_9")
    assert _eager._load() == "this build has none for torch 9.9.9"
    assert _eager.layers is _eager._declined
    output, _ = sf.GRU(3, 4)(torch.randn(5, 2, 3))
    assert output.shape == (5, 2, 4)


def test_a_library_for_another_torch_is_refused(other_torch: Any) -> None:
    other_torch.torch_version = "9.9.8"
    assert _eager._load() == "_eager_9_9_9 was built for torch 9.9.8"
    assert _eager.layers is _eager._declined


def test_a_library_of_other_sources_is_refused(other_torch: Any) -> None:
    def connect(*_: Any) -> None:
        raise RuntimeError("it was built from other sources")

    other_torch.connect = connect
    assert _eager._load() == "_eager_9_9_9: it was built from other sources"
    assert _eager.layers is _eager._declined


def test_it_refuses_what_is_not_the_extension() -> None:
    """The real library, asked to connect to something else, stays connected as it was."""
    name = f"seqcls_fast._eager_{RELEASE.replace('.', '_')}"
    library: Any = sys.modules[name]
    with pytest.raises(ValueError, match="PyCapsule_GetPointer"):
        library.connect(object(), print)
    with pytest.raises(TypeError, match="expected 2 arguments but got 1"):
        library.connect(_ext.C)
    with pytest.raises(TypeError, match="expected 5 arguments but got 0"):
        library.layers()
    assert library.torch_version == RELEASE
    assert sf.GRU(3, 4)(torch.randn(5, 2, 3))[0].grad_fn.name() == "LayerBackward"


@pytest.mark.parametrize("thing", [None, 3, "LSTM", object(), torch.nn.Linear(3, 4), type("Empty", (), {})()])
def test_strange_modules_are_declined(thing: Any) -> None:
    x = torch.randn(5, 2, 3)
    assert _eager.layers(thing, x, None, None, True) is NotImplemented
    assert _eager.cell(thing, "gru", x[0], None) is NotImplemented


@pytest.mark.parametrize("name", ["num_layers", "mode", "input_size", "bias", "proj_size", "dropout", "training"])
@pytest.mark.parametrize("value", [None, "word", -1, 2**40, 2**70, object()])
def test_strange_attributes_do_not_crash(name: str, value: Any) -> None:
    """The call is declined, or runs with what Python takes for the same truth."""
    module = sf.LSTM(3, 4, 2)
    module.__dict__[name] = value
    _eager.layers(module, torch.randn(5, 2, 3), None, None, True)
    del module.__dict__[name]
    assert _eager.layers(module, torch.randn(5, 2, 3), None, None, True) is NotImplemented


@pytest.mark.parametrize("weights", [(), [], [1], [None] * 4, [torch.zeros(12, 3)], [torch.zeros(2, 2)] * 300])
@pytest.mark.parametrize("directions", [1, 2, -1, 0, 2**40, 2**70, "1", None])
def test_strange_weights_of_a_layer(weights: Any, directions: Any) -> None:
    tail = (None, None, "gru", None, None, False, True, None, *ops.LayerOptions())
    assert _eager.layer(torch.randn(5, 2, 3), weights, directions, *tail) is NotImplemented


@pytest.mark.parametrize(
    "rates", [None, (), (0.0,) * 3, (0.0, 0.0, 0.0, 0), (0.0, 0.0, 0.0, "0"), (2.0,) * 4, [0.0] * 4]
)
def test_strange_rates_of_a_layer(rates: Any) -> None:
    weights = [torch.randn(12, 3), torch.randn(12, 4)]
    tail = (None, None, "gru", None, None, False, True, None, None, None, None, None, rates)
    assert _eager.layer(torch.randn(5, 2, 3), weights, 1, *tail) is NotImplemented

"""RNNCell, GRUCell and LSTMCell against torch.nn's: results, every gradient, and the text of errors."""

import copy
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqcls_fast as sf
from support.checks import rounds_sums
from support.tolerances import assert_close_by_name
from support.twins import B, H, I, Tensors, gradients, x_of

KINDS: dict[str, tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]] = {
    "rnn_tanh": (sf.RNNCell, nn.RNNCell, {}),
    "rnn_relu": (sf.RNNCell, nn.RNNCell, {"nonlinearity": "relu"}),
    "gru": (sf.GRUCell, nn.GRUCell, {}),
    "lstm": (sf.LSTMCell, nn.LSTMCell, {}),
}
CELLS = ("RNNCell", "GRUCell", "LSTMCell")
STEPS = 3
TERMS = 2 * STEPS * (I + H + 10) + STEPS * B


def unroll(cell: nn.Module, x: Tensor, hx: Any) -> Tensors:
    """The state after every step, and every gradient."""
    states, result = (), {}
    for t, x_t in enumerate(x):
        hx = cell(x_t, hx)
        states = hx if isinstance(hx, tuple) else (hx,)
        result |= {f"state {k} after step {t}": state for k, state in enumerate(states)}
    return result


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_hx", [True, False])
@pytest.mark.parametrize("batch", [B, 0, None])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_unrolled_cells_are_torchs(kind: str, bias: bool, batch: int | None, with_hx: bool, dtype: torch.dtype) -> None:
    sf_class, nn_class, options = KINDS[kind]
    torch.manual_seed(5)
    theirs = nn_class(I, H, bias, **options, dtype=dtype)
    torch.manual_seed(5)
    ours = sf_class(I, H, bias, **options, dtype=dtype)
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    theirs.double()
    outer = () if batch is None else (batch,)
    x, h, c = (x_of(*shape, seed=k).to(dtype) for k, shape in
               enumerate([(STEPS, *outer, I), (*outer, H), (*outer, H)]))  # fmt: skip
    found: list[Tensors] = []
    for cell, wide in ((ours, dtype), (theirs, torch.float64)):
        inputs = {name: t.to(wide).requires_grad_() for name, t in (("x", x), ("h", h), ("c", c))}
        hx = (inputs["h"], inputs["c"]) if kind == "lstm" else inputs["h"]
        results = unroll(cell, inputs["x"], hx if with_hx else None)
        found.append(results | gradients(results, cell, **inputs))
    # in bfloat16 a cell rounds each state, and its gradient, at every step and use; torch's rounds more often, see
    # checks.roundings
    terms = 8 * STEPS * (3 if rounds_sums(sf.available_impls()[-1], dtype) else 1)
    assert_close_by_name(*found, terms if dtype == torch.bfloat16 else TERMS)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
@pytest.mark.parametrize("sizes", [(0, H), (I, 0), (0, 0)])
@pytest.mark.parametrize("batch", [B, 0, None])
@pytest.mark.parametrize("kind", KINDS)
def test_cells_without_inputs_or_units_are_torchs(kind: str, batch: int | None, sizes: tuple[int, int]) -> None:
    sf_class, nn_class, options = KINDS[kind]
    ours, theirs = (library(*sizes, **options, dtype=torch.float64) for library in (sf_class, nn_class))
    theirs.load_state_dict(ours.state_dict())
    outer = () if batch is None else (batch,)
    x = x_of(STEPS, *outer, sizes[0]).requires_grad_()
    h = x_of(*outer, sizes[1]).requires_grad_()
    for hx in (None, (h, h) if kind == "lstm" else h):
        found = [results | gradients(results, cell, x=x, h=h) for cell in (ours, theirs)
                 for results in [unroll(cell, x, hx)]]  # fmt: skip
        assert_close_by_name(*found, TERMS)


@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm"])
def test_complex_cells_are_torchs(kind: str) -> None:
    sf_class, nn_class, options = KINDS[kind]
    ours, theirs = (library(I, H, **options, dtype=torch.complex128) for library in (sf_class, nn_class))
    theirs.load_state_dict(ours.state_dict())
    x = torch.complex(x_of(STEPS, B, I), x_of(STEPS, B, I, seed=9)).requires_grad_()
    found = [results | gradients(results, cell, x=x) for cell in (ours, theirs) for results in [unroll(cell, x, None)]]
    assert_close_by_name(
        *({name: torch.view_as_real(t) for name, t in one.items() if t is not None} for one in found), TERMS
    )


def test_complex_relu_is_torchs_error() -> None:
    for library in (sf, nn):
        with pytest.raises(NotImplementedError, match="not supported for complex"):
            library.RNNCell(I, H, nonlinearity="relu", dtype=torch.complex64)(zeros(B, I, dtype=torch.complex64))


@pytest.mark.parametrize("name", ["bias_ih", "bias_hh"])
@pytest.mark.parametrize("kind", KINDS)
def test_one_bias_alone_may_be_none(kind: str, name: str) -> None:
    sf_class, nn_class, options = KINDS[kind]
    ours, theirs = (library(I, H, **options, dtype=torch.float64) for library in (sf_class, nn_class))
    theirs.load_state_dict(ours.state_dict())
    x = x_of(STEPS, B, I).requires_grad_()
    for cell in (ours, theirs):
        setattr(cell, name, None)
    mine, reference = (unroll(cell, x, None) for cell in (ours, theirs))
    assert_close_by_name(mine, reference, TERMS)
    assert_close_by_name(gradients(mine, ours, x=x), gradients(reference, theirs, x=x), TERMS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_is_a_layer_of_one_step(kind: str) -> None:
    sf_class, _, options = KINDS[kind]
    cell = sf_class(I, H, **options)
    layer = getattr(sf, sf_class.__name__.removesuffix("Cell"))(I, H, **options)
    layer.load_state_dict({f"{name}_l0": p for name, p in cell.state_dict().items()})
    x = x_of(B, I).float()
    states = cell(x)
    _, expected = layer(x.unsqueeze(0))
    for state, want in zip(*(s if isinstance(s, tuple) else (s,) for s in (states, expected)), strict=True):
        assert torch.equal(state, want[0])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_cells_are_modules_like_torchs(kind: str) -> None:
    sf_class, nn_class, options = KINDS[kind]
    ours, theirs = sf_class(I, H, **options), nn_class(I, H, **options)
    assert isinstance(ours, nn.RNNCellBase)
    assert repr(ours) == repr(theirs)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = x_of(B, I).float()
    first = ours(x)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        again = twin(x)
        for a, b in zip(*(s if isinstance(s, tuple) else (s,) for s in (first, again)), strict=True):
            assert torch.equal(a, b)
    with torch.no_grad():
        for p in ours.parameters():
            p.data.mul_(2)
    changed = ours(x)
    assert not torch.equal(*(s[0] if isinstance(s, tuple) else s for s in (first, changed)))
    for scripted in (ours, nn.Sequential(ours)):
        with pytest.raises(
            RuntimeError, match=rf"^torch[.]jit[.]script cannot compile seqcls_fast[.]{type(ours).__name__}:"
        ):
            torch.jit.script(scripted)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype)


# the last field: whether torch.nn raises the same error
ERRORS: list[tuple[tuple[str, ...], tuple[Any, ...], type[Exception], str, bool]] = [
    (CELLS, (zeros(1, B, I),), ValueError, "Expected input to be 1D or 2D, got 3D instead", True),
    (CELLS, (zeros(),), ValueError, "Expected input to be 1D or 2D, got 0D instead", True),
    (CELLS, (zeros(B, 7),), RuntimeError, "input has inconsistent input_size: got 7 expected 3", True),
    (CELLS[:2], (zeros(B, I), zeros(1, B, H)), ValueError, "Expected hidden to be 1D or 2D, got 3D instead", True),
    (CELLS[:2], (zeros(B, I), zeros(B, 5)), RuntimeError,
     "hidden0 has inconsistent hidden_size: got 5, expected 6", True),
    (CELLS[:2], (zeros(B, I), zeros(2, H)), RuntimeError,
     "Input batch size 4 doesn't match hidden0 batch size 2", True),
    (CELLS[2:], (zeros(B, I), (zeros(B, H), zeros(1, B, H))), ValueError,
     "Expected hx[1] to be 1D or 2D, got 3D instead", True),
    (CELLS[2:], (zeros(B, I), (zeros(B, H), zeros(B, 5))), RuntimeError,
     "hidden1 has inconsistent hidden_size: got 5, expected 6", True),
    (CELLS[2:], (zeros(B, I), (zeros(B, H), zeros(2, H))), RuntimeError,
     "Input batch size 4 doesn't match hidden1 batch size 2", True),
    # of several errors the one that torch.nn finds first
    (CELLS, (zeros(B, 7, dtype=torch.float64),), RuntimeError, "input has inconsistent input_size", True),
    (CELLS[:2], (zeros(B, I, dtype=torch.float64), zeros(B, 5)), RuntimeError,
     "hidden0 has inconsistent hidden_size", True),
    (CELLS[:2], (zeros(B, I), zeros(2, 5)), RuntimeError, "Input batch size 4 doesn't match hidden0", True),
    (CELLS[:2], (zeros(B, 7), zeros(1, B, 5)), ValueError, "Expected hidden to be 1D or 2D", True),
    (CELLS[2:], (zeros(B, I), (zeros(B, H, dtype=torch.float64), zeros(B, 5))), RuntimeError,
     "hidden1 has inconsistent hidden_size", True),
    (CELLS, (zeros(B, I, dtype=torch.float64),), RuntimeError, "dtype", True),
    (CELLS[:2], (zeros(B, I), zeros(B, H, dtype=torch.float64)), RuntimeError, "dtype", True),
    (CELLS[:2], (zeros(I), zeros(1, H)), RuntimeError,
     "For 1-D input, hidden0 should also be 1-D but got a 2-D tensor", False),
    (CELLS, (None,), TypeError, "input: expected a tensor but got NoneType", False),
    (CELLS[:2], (zeros(B, I), (zeros(B, H),)), TypeError, "hx: expected a tensor or None but got tuple", False),
    (CELLS[2:], (zeros(B, I), zeros(B, H)), TypeError, "hx: expected a tuple (h_0, c_0) or None but got Tensor", False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "args", "error", "sentence", "like_torch"),
    [pytest.param(name, *row, id=f"{name}: {row[2][:50]}") for names, *row in ERRORS for name in names],
)
def test_errors(name: str, args: tuple[Any, ...], error: type[Exception], sentence: str, like_torch: bool) -> None:
    for library in (sf, nn) if like_torch else (sf,):
        with pytest.raises(error, match=re.escape(sentence)) as raised:
            getattr(library, name)(I, H)(*args)
        assert raised.type is error


def test_unknown_nonlinearity() -> None:
    for library in (sf, nn):
        with pytest.raises(RuntimeError, match="Unknown nonlinearity: gelu"):
            library.RNNCell(I, H, nonlinearity="gelu")(zeros(B, I))

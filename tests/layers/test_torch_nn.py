"""torch's own tests of recurrent layers and cells in its test/test_nn.py and beside it, run on torch.nn and on ours.

Written anew, each under the name that it has in torch. What torch tests on CUDA alone but holds on a CPU is tested
here; left out are tests of cuDNN, of PackedSequence itself, and those that compare a device with a CPU.
The file is long because torch has that many tests in one file, and a reader looks for them by name.
"""

import copy
import gc
import io
import sys
import weakref
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune, rnn

from support.libraries import LAYERS, both
from support.tolerances import assert_close_by_name

BOTH = both()
EACH_LAYER = pytest.mark.parametrize("name", LAYERS)


def all_tensors(value: Any) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else tuple(t for item in value for t in all_tensors(item))


def assert_close(actual: Any, expected: Any, terms: int, dtype: torch.dtype | None = None) -> None:
    """The tensors in two results, in order, differ by at most `terms` roundings."""
    numbered = ({str(k): t for k, t in enumerate(all_tensors(value))} for value in (actual, expected))
    assert_close_by_name(*numbered, terms, dtype)


def states_of(module: Any, *states: Tensor) -> Any:
    """`hx` for a layer or a cell: a tuple for LSTMs."""
    return states if type(module).__name__.startswith("LSTM") else states[0]


# constructors


@BOTH
def test_RNN_nonlinearity(library: ModuleType) -> None:
    assert library.RNN(1, 10).nonlinearity == "tanh"
    assert library.RNN(1, 10, nonlinearity="relu").nonlinearity == "relu"
    with pytest.raises(ValueError, match="Unknown nonlinearity"):
        library.RNN(1, 10, nonlinearity="garbage")


@BOTH
def test_RNN_nonlinearity_passed_as_arg(library: ModuleType) -> None:
    assert library.RNN(2, 3, 1, "relu").nonlinearity == "relu"


@BOTH
@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_projections_errors_on_gru_and_rnn(library: ModuleType, name: str) -> None:
    with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM, not RNN or GRU"):
        getattr(library, name)(30, 20, 2, proj_size=10)


# cells


@BOTH
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_RNN_cell_and_LSTM_cell(library: ModuleType, name: str, bias: bool) -> None:
    """A cell is applied six times in a row and differentiated."""
    cell, x = getattr(library, name)(10, 20, bias=bias), torch.randn(3, 10)
    state = states_of(cell, torch.randn(3, 20), torch.randn(3, 20))
    for _ in range(6):
        state = cell(x, state)
    sum(all_tensors(state)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in cell.parameters())


@both()
@pytest.mark.parametrize(
    ("name", "options"), [("RNNCell", {"nonlinearity": "relu"}), ("RNNCell", {}), ("GRUCell", {}), ("LSTMCell", {})]
)
def test_RNN_cell_forward_zero_hidden_size(library: ModuleType, name: str, options: dict[str, Any]) -> None:
    cell = getattr(library, name)(10, 0, **options)
    for state in all_tensors(cell(torch.randn(3, 10), states_of(cell, torch.randn(3, 0), torch.randn(3, 0)))):
        assert state.shape == (3, 0)


@BOTH
@pytest.mark.parametrize(("rows", "width", "features"), [(1, 20, 10), (3, 1, 10), (3, 20, 1)])
@pytest.mark.parametrize("name", ["RNNCell", "GRUCell", "LSTMCell"])
def test_RNN_cell_no_broadcasting(library: ModuleType, name: str, rows: int, width: int, features: int) -> None:
    """Neither a state of one row, nor one of one unit, nor an input of one feature is repeated to fit."""
    cell, x = getattr(library, name)(10, 20), torch.randn(3, features)
    good, bad = torch.randn(3, 20), torch.randn(rows, width)
    for states in ((bad, good), (good, bad)) if name == "LSTMCell" else ((bad,),):
        with pytest.raises(RuntimeError):
            cell(x, states_of(cell, *states))


@BOTH
def test_LSTM_cell_forward_input_size(library: ModuleType) -> None:
    with pytest.raises(RuntimeError):
        library.LSTMCell(10, 20)(torch.randn(3, 11), (torch.randn(3, 20), torch.randn(3, 20)))


@BOTH
def test_LSTM_cell_forward_hidden_size(library: ModuleType) -> None:
    cell, x, good, bad = library.LSTMCell(10, 20), torch.randn(3, 10), torch.randn(3, 20), torch.randn(3, 21)
    for states in ((bad, good), (good, bad)):
        with pytest.raises(RuntimeError):
            cell(x, states)


@BOTH
def test_lstmcell_backward_only_one_output_grad(library: ModuleType) -> None:
    cell = library.LSTMCell(2, 3).double()
    for k in range(2):
        x = torch.randn(1, 2, dtype=torch.float64, requires_grad=True)
        cell(x)[k].sum().backward()
        assert x.grad is not None
        assert x.grad.abs().sum() > 0


# errors of layers

SIZES = {"T": 6, "B": 4, "I": 3, "layers": 2, "H": 5}


def bad_layer_calls(name: str, proj_size: int) -> Iterator[tuple[Tensor, Any]]:
    """One size of the input or of a state is wrong. 7 divides no size and no size divides it."""
    x = torch.randn(SIZES["T"], SIZES["B"], SIZES["I"])
    h = torch.randn(SIZES["layers"], SIZES["B"], proj_size or SIZES["H"])
    c = torch.randn(SIZES["layers"], SIZES["B"], SIZES["H"])

    def but(t: Tensor, dim: int) -> Tensor:
        return torch.randn(*t.shape[:dim], 7, *t.shape[dim + 1 :])

    for dim in (1, 2):
        yield but(x, dim), (h, c) if name == "LSTM" else h
    for dim in range(3):
        if name == "LSTM":
            yield from ((x, (but(h, dim), c)), (x, (h, but(c, dim))), (x, (but(h, dim), but(c, dim))))
        else:
            yield x, but(h, dim)
    if proj_size:
        yield x, (c, c)


@BOTH
@pytest.mark.parametrize(("name", "proj_size"), [("RNN", 0), ("GRU", 0), ("LSTM", 0), ("LSTM", 2)])
def test_rnn_args_check_and_projections_lstm_args_check(library: ModuleType, name: str, proj_size: int) -> None:
    more = {"proj_size": proj_size} if proj_size else {}
    module = getattr(library, name)(SIZES["I"], SIZES["H"], SIZES["layers"], **more)
    calls = list(bad_layer_calls(name, proj_size))
    assert len(calls) == {"RNN": 5, "GRU": 5, "LSTM": 11 + bool(proj_size)}[name]
    for x, hx in calls:
        with pytest.raises(RuntimeError):
            module(x, hx)


@BOTH
@pytest.mark.parametrize(("name", "proj_size"), [("RNN", 0), ("GRU", 0), ("LSTM", 0), ("LSTM", 2)])
def test_rnn_check_device_and_projections_lstm_check_device(library: ModuleType, name: str, proj_size: int) -> None:
    """With torch's meta device in place of a second GPU."""
    more = {"proj_size": proj_size} if proj_size else {}
    module = getattr(library, name)(3, 5, 2, **more)
    x, h, c = torch.randn(6, 4, 3), torch.randn(2, 4, proj_size or 5), torch.randn(2, 4, 5)
    with pytest.raises(RuntimeError, match="Input and parameter tensors are not at the same device"):
        module(x.to("meta"))
    with pytest.raises(RuntimeError, match="Input and hidden tensors are not at the same device"):
        module(x, states_of(module, h.to("meta"), c.to("meta")))
    if name == "LSTM":
        with pytest.raises(RuntimeError, match="Input and hidden tensors are not at the same device"):
            module(x, (h, c.to("meta")))


@BOTH
@EACH_LAYER
@pytest.mark.parametrize("bidirectional", [True, False])
def test_error_RNN_seq_len_zero(library: ModuleType, name: str, bidirectional: bool) -> None:
    """The type of the error is torch's; our sentence says `at least one step`."""
    module = getattr(library, name)(5, 6, bidirectional=bidirectional, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"Expected sequence length to be larger than 0 in RNN|at least one step"):
        module(torch.ones(0, 10, 5, dtype=torch.float64))


@BOTH
def test_autocast_rnn(library: ModuleType) -> None:
    """A float32 input to a bfloat16 LSTM is an error, and none under autocast."""
    lstm, x, states = library.LSTM(1, 1, 2).bfloat16(), torch.randn(1, 2, 1), (torch.randn(2, 2, 1),) * 2
    with pytest.raises(ValueError, match="dtype"):
        lstm(x, states)
    with torch.autocast("cpu"):
        assert lstm(x, states)[0].dtype == torch.bfloat16


# results of layers


@BOTH
@EACH_LAYER
def test_rnn_initial_hidden_state(library: ModuleType, name: str) -> None:
    module, x, h = getattr(library, name)(30, 20, 2), torch.randn(10, 32, 30), torch.zeros(2, 32, 20)
    assert_close(module(x, states_of(module, h, h)), module(x), 0)


@BOTH
@pytest.mark.parametrize("bidirectional", [True, False])
def test_projections_lstm_initial_hidden_state(library: ModuleType, bidirectional: bool) -> None:
    lstm = library.LSTM(30, 20, 2, bidirectional=bidirectional, proj_size=10)
    rows, x = 4 if bidirectional else 2, torch.randn(10, 32, 30)
    assert_close(lstm(x, (torch.zeros(rows, 32, 10), torch.zeros(rows, 32, 20))), lstm(x), 0)


@BOTH
@EACH_LAYER
def test_RNN_input_size_zero(library: ModuleType, name: str) -> None:
    """A batch without rows, with its backward."""
    output, _ = getattr(library, name)(3, 4)(torch.zeros(5, 0, 3))
    assert output.shape == (5, 0, 4)
    output.sum().backward()


@BOTH
@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.parametrize("with_hx", [True, False])
@pytest.mark.parametrize(
    ("enforce_sorted", "lengths"),
    [
        (True, [5]),
        (False, [5]),
        (True, [10, 10, 6, 2, 2, 1, 1]),
        (False, [10, 10, 6, 2, 2, 1, 1]),
        (False, [2, 1, 3, 2, 10, 5, 3]),
    ],
)
def test_variable_sequence(
    library: ModuleType, enforce_sorted: bool, lengths: list[int], with_hx: bool, proj_size: int
) -> None:
    """A packed batch through two layers and both directions gives what each of its rows gives alone."""
    lstm = library.LSTM(3, 4, 2, bidirectional=True, proj_size=proj_size)
    x, batch = torch.randn(max(lengths), len(lengths), 3, requires_grad=True), len(lengths)
    hx = (torch.randn(4, batch, proj_size or 4), torch.randn(4, batch, 4)) if with_hx else None
    alone = [
        lstm(x[:length, k : k + 1], hx and tuple(state[:, k : k + 1].contiguous() for state in hx))
        for k, length in enumerate(lengths)
    ]
    padded = [nn.functional.pad(output, (0, 0, 0, 0, 0, max(lengths) - len(output))) for output, _ in alone]
    states_alone = zip(*(states for _, states in alone), strict=True)
    expected = (torch.cat(padded, 1), *(torch.cat(state, 1) for state in states_alone))

    packed, states = lstm(rnn.pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted), hx)
    output, lengths_found = rnn.pad_packed_sequence(packed)
    assert lengths_found.tolist() == lengths
    work = 2 * 2 * 10 * (3 * 4 + 10) + 10 * batch
    assert_close((output, states), expected, work)
    wrt = [x, *lstm.parameters()]
    assert_close(*(torch.autograd.grad(result.sum(), wrt) for result in (output, expected[0])), work)


@BOTH
@pytest.mark.parametrize(("name", "proj_size"), [("RNN", 0), ("GRU", 0), ("LSTM", 0), ("LSTM", 10)])
def test_cudnn_weight_tying(library: ModuleType, name: str, proj_size: int) -> None:
    """Both directions have one bias: a step of an optimizer and a change of dtype change it for both."""
    more = {"proj_size": proj_size} if proj_size else {}
    module = getattr(library, name)(10, 20, batch_first=True, bidirectional=True, **more)
    module.bias_ih_l0_reverse = module.bias_ih_l0
    x = torch.randn(5, 4, 10)
    hx = states_of(module, torch.randn(2, 5, proj_size or 20), torch.randn(2, 5, 20))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    before = module(x, hx)[0]
    before.sum().backward()
    optimizer.step()
    narrow = module(x, hx)
    assert not torch.equal(narrow[0], before)
    module.double()
    assert module.bias_ih_l0_reverse is module.bias_ih_l0
    apart = copy.deepcopy(module)
    apart.bias_ih_l0_reverse = nn.Parameter(apart.bias_ih_l0.detach().clone())
    wide = states_of(module, *(state.double() for state in all_tensors(hx)))
    assert_close(narrow, module(x.double(), wide), 4 * (3 * 20 + 10), torch.float32)
    assert_close(module(x.double(), wide), apart(x.double(), wide), 0)


# gradients


@BOTH
@EACH_LAYER
def test_rnn_retain_variables(library: ModuleType, name: str) -> None:
    """Every backward through a graph that is kept gives the same bits."""
    module = getattr(library, name)(10, 20, num_layers=2, dtype=torch.float64)
    x = torch.randn(5, 6, 10, dtype=torch.float64, requires_grad=True)
    output, _ = module(x)
    wrt = [x, *module.parameters()]
    first = torch.autograd.grad(output.sum(), wrt, retain_graph=True)
    for _ in range(4):
        assert_close(torch.autograd.grad(output.sum(), wrt, retain_graph=True), first, 0)


@BOTH
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
def test_LSTM_and_GRU_grad_and_gradgrad(library: ModuleType, check: Callable[..., bool], name: str, bias: bool) -> None:
    """Every entry of the derivatives, not a random direction of them."""
    module = getattr(library, name)(4, 4, bias=bias, dtype=torch.float64)
    x = torch.rand(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert check(lambda x: all_tensors(module(x)), x, check_batched_grad=False)


@BOTH
def test_LSTM_differentiable_backward_using_oneDNN(library: ModuleType) -> None:
    """Second derivatives through 20 layers, with oneDNN and without it."""
    lstm, x = library.LSTM(3, 3, 20, batch_first=True), torch.rand(10, 12, 3)
    found = []
    for enabled in (False, True):
        with torch.backends.mkldnn.flags(enabled=enabled):
            leaf = x.clone().requires_grad_()
            output, _ = lstm(leaf)
            (first,) = torch.autograd.grad(output, leaf, torch.ones_like(output), create_graph=True)
            first.sum().backward()
            found.append((first, leaf.grad))
    assert_close(*found, 2 * 20 * 12 * (3 * 3 + 10))


@BOTH
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("bias", "batch_first"), [(True, False), (False, True)])
def test_mkldnn_lstm(library: ModuleType, training: bool, bidirectional: bool, bias: bool, batch_first: bool) -> None:
    """torch's test_mkldnn.py, test_lstm: results and gradients with oneDNN and without it, dropout included."""
    lstm = library.LSTM(5, 7, 2, bias, batch_first, 0.5, bidirectional).train(training)
    x, rows = torch.randn(3, 4, 5), 4 if bidirectional else 2
    states = torch.randn(2, rows, 3 if batch_first else 4, 7)
    found = []
    for enabled in (False, True):
        torch.manual_seed(2023)
        leaves = [t.clone().requires_grad_() for t in (x, *states)]
        with torch.backends.mkldnn.flags(enabled=enabled):
            results = all_tensors(lstm(leaves[0], tuple(leaves[1:])))
            grads = [torch.autograd.grad(t.sum(), [leaves[0], *lstm.parameters()], retain_graph=True, allow_unused=True)
                     for t in results]  # fmt: skip
        found.append((results, [[g for g in each if g is not None] for each in grads]))
    assert_close(*found, 2 * 2 * 4 * (3 * 7 + 10) + 16)


@BOTH
def test_rnn_backward_to_input_but_not_parameters(library: ModuleType) -> None:
    """torch's test_autograd.py."""
    lstm, x = library.LSTM(2, 3).requires_grad_(False), torch.randn(1, 1, 2, requires_grad=True)
    output, _ = lstm(x)
    output.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


# the list of weights


def parameters_among(module: Any) -> int:
    return sum(isinstance(p, nn.Parameter) for p in module._flat_weights)


@BOTH
@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize(
    ("name", "options", "count"), [("weight_ih_l0", {}, 4), ("weight_hr_l0", {"proj_size": 16}, 5)]
)
def test_rnn_weight_norm(library: ModuleType, name: str, options: dict[str, int], count: int) -> None:
    lstm = nn.utils.weight_norm(library.LSTM(32, 32, **options), name=name)
    assert parameters_among(lstm) == count - 1
    lstm = nn.utils.remove_weight_norm(lstm, name=name)
    assert parameters_among(lstm) == count
    assert lstm._parameters[name] is dict(lstm.named_parameters())[name]
    assert {name, f"{name}_v", f"{name}_g"} & dict(lstm.named_parameters()).keys() == {name}
    assert {f"{name}_v", f"{name}_g"} & lstm._parameters.keys() == set()


@BOTH
def test_rnn_pruning(library: ModuleType) -> None:
    """torch's test_pruning.py."""
    lstm, name = library.LSTM(32, 32), "weight_ih_l0"
    prune.l1_unstructured(lstm, name, 0.5)
    assert parameters_among(lstm) == 3
    prune.remove(lstm, name)
    assert parameters_among(lstm) == 4
    assert lstm._parameters[name] is dict(lstm.named_parameters())[name]
    assert f"{name}_orig" not in dict(lstm.named_parameters())


@BOTH
def test_partial_flat_weights(library: ModuleType) -> None:
    """A layer that lacks a weight can change its dtype, and works once the weight is set again."""
    lstm, x = library.LSTM(10, 6, 2), torch.randn(3, 2, 10)
    expected, weight = lstm(x), lstm.weight_hh_l0
    del lstm.weight_hh_l0
    assert not hasattr(lstm, "weight_hh_l0")
    lstm.double()
    lstm.weight_hh_l0 = nn.Parameter(weight.double())
    assert_close(lstm(x.double()), expected, 2 * 3 * (2 * 6 + 10 + 10), torch.float32)


# saving


@BOTH
def test_save_lstm_compatibility(library: ModuleType) -> None:
    """The state of an LSTM that an early release of torch pickled has no proj_size."""
    lstm, x = library.LSTM(2, 3), torch.randn(32, 5, 2)
    expected = lstm(x)
    state = lstm.__dict__.copy()
    del state["proj_size"]
    loaded = library.LSTM(2, 3)
    loaded.__setstate__(state)
    assert_close(loaded(x), expected, 0)


@BOTH
def test_load_state_dict_ref_cycle(library: ModuleType) -> None:
    """torch's test_load_state_dict.py: load_state_dict leaves no cycle of references."""
    lstm = library.LSTM(16, 16, bidirectional=True)
    state = copy.deepcopy(lstm).state_dict()
    values = [weakref.ref(value) for value in state.values()]
    gc.disable()  # what is in a cycle lives on
    try:
        lstm.load_state_dict(state)
        del state
        assert [value() for value in values] == [None] * len(values)
        module = weakref.ref(lstm)
        del lstm
        assert module() is None
    finally:
        gc.enable()


@BOTH
def test_serialization_byteorder_mark(library: ModuleType) -> None:
    """torch's test_serialization.py."""
    file = io.BytesIO()
    torch.save(library.LSTM(3, 3).state_dict(), file)
    file.seek(0)
    with torch.serialization._open_zipfile_reader(file) as archive:
        assert archive.get_record("byteorder").decode() == sys.byteorder

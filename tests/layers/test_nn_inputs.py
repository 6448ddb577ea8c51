"""Inputs of RNN, GRU and LSTM: packed, ragged, unbatched, empty and strided input, dropout, and the errors.

Results are compared with torch.nn's. torch.nn has no `lengths` and no `want_output`: with `lengths` each row is
compared with torch.nn on that row alone, and without output the states are compared with those of a call with output.
"""

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import seqcls_fast as sf
from support.tolerances import assert_close_by_name
from support.twins import OURS, TERMS, B, H, I, T, Tensors, assert_same, gradients, hx_of, named, pair, x_of

STACK = {"num_layers": 2, "bidirectional": True}


def leaf_states(hx: Any) -> dict[str, Tensor]:
    """The states of `hx` by name, as leaves that require a gradient."""
    states = hx if isinstance(hx, tuple) else (hx,)
    return {name: state.requires_grad_() for name, state in zip(("h_0", "c_0"), states, strict=False)}


# packed


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("with_hx", [True, False])
@pytest.mark.parametrize("options", [{}, STACK, {"batch_first": True}])
@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_packed_sequences(sf_class: type, nn_class: type, options: dict[str, Any], with_hx: bool, sort: bool) -> None:
    ours, theirs = pair(sf_class, nn_class, I, H, **options)
    x = x_of().requires_grad_()
    packed = pack_padded_sequence(x, torch.tensor([5, 4, 4, 1] if sort else [2, 5, 1, 3]), enforce_sorted=sort)
    hx = hx_of(ours) if with_hx else None
    wrt = {"x": x} | (leaf_states(hx) if with_hx else {})
    mine, reference = ours(packed, hx), theirs(packed, hx)
    assert isinstance(mine[0], PackedSequence)
    for got, want in zip(mine[0][1:], reference[0][1:], strict=True):  # batch_sizes and both orders
        assert got is want is None or torch.equal(got, want)
    assert_close_by_name(named(*mine), named(*reference), TERMS)
    assert_close_by_name(gradients(named(*mine), ours, **wrt), gradients(named(*reference), theirs, **wrt), TERMS)
    nothing, states = ours(packed, hx, want_output=False)
    assert nothing is None
    assert_close_by_name(named(None, states), named(None, mine[1]), 0)


@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_packed_from_a_list_and_through_a_second_module(sf_class: type, nn_class: type) -> None:
    first, second = pair(sf_class, nn_class, I, H), pair(sf_class, nn_class, H, H)
    packed = pack_sequence([x_of(n, I, seed=n) for n in (2, 4, 3)], enforce_sorted=False)
    mine, reference = (b(a(packed)[0])[0] for a, b in zip(first, second, strict=True))
    (padded, lengths), (expected, _) = pad_packed_sequence(mine), pad_packed_sequence(reference)
    assert lengths.tolist() == [2, 4, 3]
    assert_close_by_name({"padded": padded}, {"padded": expected}, 2 * TERMS)


# lengths


@pytest.mark.parametrize("options", [{}, STACK, {"batch_first": True}, {"num_layers": 2, "bias": False}])
@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_lengths_are_each_row_alone(sf_class: type, nn_class: type, options: dict[str, Any]) -> None:
    ours, theirs = pair(sf_class, nn_class, I, H, **options)
    lengths = [2, 0, 5, 3]
    x, hx = x_of().requires_grad_(), hx_of(ours)
    states = leaf_states(hx)
    beyond = torch.arange(T).unsqueeze(1) >= torch.tensor(lengths)
    poisoned = torch.where(beyond.unsqueeze(2), torch.nan, x)
    batch_first = options.get("batch_first", False)
    mine = named(*ours(poisoned.transpose(0, 1) if batch_first else poisoned, hx, lengths=torch.tensor(lengths)))
    if batch_first:
        mine["output"] = mine["output"].transpose(0, 1)

    rows: list[Tensors] = []
    for row, length in enumerate(lengths):
        alone = {name: state[:, row : row + 1] for name, state in states.items()}
        if length == 0:
            ends = tuple(alone.values())
            rows.append(named(x.new_zeros(0, mine["output"].size(2)), ends if len(ends) == 2 else ends[0]))
        else:
            unbatched = tuple(state.squeeze(1) for state in alone.values())
            output, ends = theirs(x[:length, row], unbatched if len(unbatched) == 2 else unbatched[0])
            rows.append(
                named(output, tuple(s.unsqueeze(1) for s in ends) if len(unbatched) == 2 else ends.unsqueeze(1))
            )
    pad = nn.functional.pad
    expected: Tensors = {"output": torch.stack([pad(r["output"], (0, 0, 0, T - len(r["output"]))) for r in rows], 1)}
    for key in ("h_n", "c_n"):
        expected[key] = None if rows[0][key] is None else torch.cat([r[key] for r in rows], 1)
    assert_close_by_name(mine, expected, TERMS)
    wrt = {"x": x} | states
    found = gradients(mine, ours, **wrt)
    assert_close_by_name(found, gradients(expected, theirs, **wrt), TERMS)
    assert not found["d_x"][beyond].any()


@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_every_way_to_give_lengths(sf_class: type, nn_class: type) -> None:
    module = sf_class(I, H)
    x = x_of().float()
    expected = named(*module(x, lengths=torch.tensor([2, 0, 5, 3])))
    for lengths in ([2, 0, 5, 3], (2, 0, 5, 3), torch.tensor([2, 0, 5, 3], dtype=torch.int32),
                    torch.tensor([2, 9, 0, 9, 5, 9, 3, 9])[::2]):  # fmt: skip
        assert_close_by_name(named(*module(x, lengths=lengths)), expected, 0)
    full = named(*module(x, lengths=[T] * B))
    assert_close_by_name(full, named(*module(x)), 0)
    one = named(*module(x[:, 2], lengths=torch.tensor(3)))
    for lengths in (torch.tensor([3]), [3], 3):
        assert_close_by_name(named(*module(x[:, 2], lengths=lengths)), one, 0)
    assert one["output"].shape == (T, H)
    assert not one["output"][3:].any()
    assert one["output"][2].all()


BAD_LENGTHS = [
    ([1, 2, 3, T + 1], "values from 0 to T = 5 but got 1 to 6"),
    ([1, -1, 3, 4], "values from 0 to T = 5 but got -1 to 4"),
    ([1, 2, 3], r"one per row of the batch, shape \(4,\) but got \(3,\)"),
    (torch.ones(4, 1, dtype=torch.int64), r"shape \(4,\) but got \(4, 1\)"),
    (2, r"shape \(4,\) but got \(\)"),
    ([1.0, 2.0, 3.0, 4.0], "integers but got torch.float32"),
    (["1", "2", "3", "4"], "a tensor or a list of ints but got a list"),
]


@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
@pytest.mark.parametrize(("lengths", "sentence"), BAD_LENGTHS)
def test_bad_lengths(sf_class: type, nn_class: type, lengths: Any, sentence: str) -> None:
    for batch_first in (False, True):
        x = torch.zeros((B, T, I) if batch_first else (T, B, I))
        with pytest.raises(RuntimeError, match=f"lengths: expected .*{sentence}"):
            sf_class(I, H, batch_first=batch_first)(x, lengths=lengths)


@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_lengths_only_where_they_mean_something(sf_class: type, nn_class: type) -> None:
    module = sf_class(I, H)
    with pytest.raises(RuntimeError, match="lengths: expected None with a PackedSequence"):
        module(pack_sequence([torch.zeros(2, I)]), lengths=[2])
    with pytest.raises(RuntimeError, match="lengths: expected one per row"):
        module(torch.zeros(T, I), lengths=[2, 3])
    with pytest.raises(TypeError):  # lengths is keyword-only
        module(torch.zeros(T, B, I), None, [2, 3, 1, 1])


@pytest.mark.parametrize("options", [{}, STACK, {"batch_first": True}])
@pytest.mark.parametrize("lengths", [None, [3, 0, 5, 2]])
@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_want_output_false_changes_no_state_and_no_gradient(
    sf_class: type, nn_class: type, options: dict[str, Any], lengths: list[int] | None
) -> None:
    module, _ = pair(sf_class, nn_class, I, H, **options)
    x = x_of(*((B, T, I) if options.get("batch_first") else (T, B, I))).requires_grad_()
    output, states = module(x, lengths=lengths)
    nothing, lean = module(x, lengths=lengths, want_output=False)
    assert output is not None
    assert nothing is None
    full, lean = named(None, states), named(None, lean)
    assert_close_by_name(lean, full, 0)
    assert_close_by_name(gradients(lean, module, x=x), gradients(full, module, x=x), 0)
    nothing, unbatched = module(x[0] if options.get("batch_first") else x[:, 0], want_output=False)
    assert nothing is None
    assert named(None, unbatched)["h_n"].dim() == 2


# shapes and strides


@pytest.mark.parametrize("with_hx", [True, False])
@pytest.mark.parametrize("options", [STACK, {"batch_first": True}])
@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_unbatched(sf_class: type, nn_class: type, options: dict[str, Any], with_hx: bool) -> None:
    ours, theirs = pair(sf_class, nn_class, I, H, **options)
    assert_same(ours, theirs, x_of(T, I), *([hx_of(ours, None)] if with_hx else []))


@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_one_step(sf_class: type, nn_class: type) -> None:
    ours, theirs = pair(sf_class, nn_class, I, H, **STACK)
    assert_same(ours, theirs, x_of(1, B, I), hx_of(ours))
    assert_same(ours, theirs, x_of(1, 1, I), hx_of(ours, 1))


@pytest.mark.parametrize("lengths", [None, []])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_empty_batch(sf_class: type, nn_class: type, batch_first: bool, lengths: list[int] | None) -> None:
    ours, theirs = pair(sf_class, nn_class, I, H, **STACK, batch_first=batch_first)
    x = x_of(*((0, T, I) if batch_first else (T, 0, I))).requires_grad_()
    mine, reference = named(*ours(x, hx_of(ours, 0), lengths=lengths)), named(*theirs(x, hx_of(ours, 0)))
    assert_close_by_name(mine, reference, 0)
    found = gradients(mine, ours, x=x)
    assert found["d_x"].shape == x.shape
    assert not found["d_weight_hh_l0"].any()


@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_empty_sequence_is_refused(sf_class: type, nn_class: type) -> None:
    for kind, words in (
        (sf_class, "x: expected at least one step"),
        (nn_class, "Expected sequence length to be larger"),
    ):
        for x in (torch.zeros(0, B, I), torch.zeros(0, I)):
            with pytest.raises(RuntimeError, match=words):
                kind(I, H)(x)


LAYOUTS = {
    "transposed": lambda: x_of(B, T, I).transpose(0, 1),
    "features strided": lambda: x_of(T, B, 2 * I)[..., ::2],
    "features last in memory": lambda: x_of(I, B, T).permute(2, 1, 0),
    "rows expanded": lambda: x_of(T, 1, I).expand(T, B, I),
    "time expanded": lambda: x_of(1, B, I).expand(T, B, I),
    "value expanded": lambda: x_of(1, 1, 1).expand(T, B, I),
    "offset": lambda: x_of(T + 2, B, I)[2:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_strides(sf_class: type, nn_class: type, layout: str, batch_first: bool) -> None:
    ours, theirs = pair(sf_class, nn_class, I, H, **STACK, batch_first=batch_first)
    x = LAYOUTS[layout]().detach().requires_grad_()
    view = x.transpose(0, 1) if batch_first else x
    narrow = {name: state[:, :1].clone() for name, state in leaf_states(hx_of(ours)).items()}
    wide = tuple(state.requires_grad_().expand(-1, B, -1) for state in map(Tensor.detach, narrow.values()))
    hx = wide if len(wide) == 2 else wide[0]
    mine, reference = named(*ours(view, hx)), named(*theirs(view, hx))
    assert_close_by_name(mine, reference, TERMS)
    assert_close_by_name(gradients(mine, ours, x=x), gradients(reference, theirs, x=x), TERMS)
    assert_close_by_name(named(*ours(view)), named(*theirs(view.contiguous())), TERMS)


@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_stride_0_gradients(sf_class: type, nn_class: type) -> None:
    ours, theirs = pair(sf_class, nn_class, I, H, **STACK)
    grads = []
    for module in (ours, theirs):
        output, states = module(x_of())
        (output.sum() + sum(s.sum() for s in (states if isinstance(states, tuple) else [states]))).backward()
        grads.append({name: p.grad for name, p in module.named_parameters()})
    assert_close_by_name(*grads, TERMS)


@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_a_stream_in_chunks_equals_the_whole(sf_class: type, nn_class: type) -> None:
    module = sf_class(I, H, num_layers=2)
    x = x_of().float()
    whole = named(*module(x))
    outputs, states = [], None
    for chunk in x.split([2, 1, 2]):
        output, states = module(chunk, states)
        outputs.append(output)
    assert_close_by_name(named(torch.cat(outputs), states), whole, TERMS)


# dropout


def test_dropout_scales_and_zeroes_between_layers_only() -> None:
    """The second layer copies its input, so its output shows the dropout mask."""
    p, hidden = 0.3, 200
    module = sf.RNN(hidden, hidden, 2, "relu", bias=False, dropout=p)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(torch.eye(hidden) if "_ih_" in name else torch.zeros(hidden, hidden))
    x = torch.rand(20, 10, hidden) + 1
    output, _ = module(x)
    kept = output != 0
    count, deviation = x.numel(), (x.numel() * p * (1 - p)) ** 0.5
    assert abs((~kept).sum().item() - count * p) < 5 * deviation  # one seed in two million fails; the seed is fixed
    assert_close_by_name({"output": output}, {"output": torch.where(kept, x / (1 - p), 0)}, 2)
    assert not torch.equal(kept[0], kept[1])  # each step has its own mask
    module.eval()
    assert torch.equal(module(x)[0], x)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_dropout_draws_what_torch_draws(sf_class: type, nn_class: type, packed: bool) -> None:
    """The same seed draws the same masks as in torch.nn (in time-first layout), so results and gradients are equal."""
    ours, theirs = pair(sf_class, nn_class, I, H, num_layers=3, bidirectional=True, dropout=0.5)
    x: Any = pack_padded_sequence(x_of(), torch.tensor([5, 4, 4, 1])) if packed else x_of()
    results: list[Tensors] = []
    for module, seed in ((ours, 7), (theirs, 7), (ours, 7), (ours, 8)):
        torch.manual_seed(seed)
        found = named(*module(x))
        results.append(found | gradients(found, module) | {"next draw": torch.rand(1)})
    mine, reference, again, other = results
    assert_close_by_name(mine, reference, 2 * TERMS)
    assert_close_by_name(mine, again, 0)
    assert not torch.equal(mine["h_n"], other["h_n"])


@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_dropout_is_mutable_and_off_in_eval(sf_class: type, nn_class: type) -> None:
    ours, theirs = pair(sf_class, nn_class, I, H, num_layers=2, dropout=0.5)
    ours.eval()
    theirs.eval()
    assert_same(ours, theirs, x_of())
    ours.train()
    theirs.train()
    assert not torch.equal(ours(x_of())[0], ours(x_of())[0])
    ours.dropout = theirs.dropout = 0.0
    assert_same(ours, theirs, x_of())
    ours.dropout = theirs.dropout = 1.0
    assert_same(ours, theirs, x_of())


def test_dropout_with_lengths_leaves_the_padding_zero() -> None:
    module = sf.GRU(I, H, 2, dropout=0.5)
    output, _ = module(x_of().float(), lengths=[2, 0, 5, 3])
    assert not output[2:, 0].any()
    assert not output[:, 1].any()
    assert output[:, 2].any()


@pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"])
def test_autocast_is_one_rule(name: str) -> None:
    """torch.nn lacks this: for every kind of input, all tensors are cast, and results have the autocast dtype."""
    module = getattr(sf, name)(I, H)
    narrow = copy.deepcopy(module).bfloat16()
    x = x_of().float()
    if name.endswith("Cell"):
        hx = (x_of(B, H), x_of(B, H)) if name == "LSTMCell" else x_of(B, H)
        x, kinds = x[0], []
    else:
        hx = hx_of(module)
        kinds = [(x[:, 0], None, {}), (x, None, {"lengths": [2, 0, 5, 3]})]
        kinds.append((pack_padded_sequence(x, torch.tensor([5, 4, 4, 1])), None, {}))
    # a 16-bit input, float32 states, and 16-bit states with a float32 input
    kinds += [(x, None, {}), (x.bfloat16(), None, {}), (x, torch.float32, {}), (x, torch.bfloat16, {})]
    for given, dtype, options in kinds:
        with torch.autocast("cpu", torch.bfloat16):
            found = module(given, None if dtype is None else cast(hx, dtype), **options)
        expected = narrow(given.to(torch.bfloat16), None if dtype is None else cast(hx, torch.bfloat16), **options)
        for got, want in zip(flat(found), flat(expected), strict=True):
            assert got.dtype == torch.bfloat16
            assert torch.equal(got, want)


def cast(hx: Any, dtype: torch.dtype) -> Any:
    return tuple(state.to(dtype) for state in hx) if isinstance(hx, tuple) else hx.to(dtype)


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, PackedSequence):
        return [value.data]
    return [value] if isinstance(value, Tensor) else [t for item in value for t in flat(item)]


# errors: torch.nn raises the same type with the same text, except in the table BETTER


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=device)


Call = tuple[Any, ...]  # the arguments of forward
ANY = ("RNN", "GRU", "LSTM")
DEEP = PackedSequence(zeros(4, 1, I), torch.tensor([2, 2]))
LIKE_TORCH: list[tuple[tuple[str, ...], Call, type[Exception], str]] = [
    (("LSTM", "GRU"), (zeros(1, 2, 3, 3),), ValueError, "Expected input to be 2D or 3D, got 4D instead"),
    (("RNN",), (zeros(1, 2, 3, 3),), ValueError, "RNN: Expected input to be 2D or 3D, got 4D"),
    (ANY, (zeros(3),), ValueError, "Expected input to be 2D or 3D, got 1D"),
    (ANY, (zeros(T, B, 7),), RuntimeError, "input.size(-1) must be equal to input_size. Expected 3, got 7"),
    (ANY, (zeros(T, 7),), RuntimeError, "input.size(-1) must be equal to input_size. Expected 3, got 7"),
    (ANY, (zeros(T, B, I, dtype=torch.float64),), ValueError, "RNN input dtype (torch.float64) does not match weight "
     "dtype (torch.float32). Convert input: input.to(torch.float32), or convert model: model.to(torch.float64)"),
    (ANY, (zeros(T, B, I, dtype=torch.int64),), ValueError, "RNN input dtype (torch.int64) does not match"),
    (ANY, (zeros(T, B, I, device="meta"),), RuntimeError,
     "Input and parameter tensors are not at the same device, found input tensor at meta and parameter tensor at cpu"),
    (("RNN", "GRU"), (zeros(T, 2, I), zeros(1, 3, H)), RuntimeError, "Expected hidden size (1, 2, 6), got [1, 3, 6]"),
    (("RNN", "GRU"), (zeros(T, 2, I), zeros(2, 2, H)), RuntimeError, "Expected hidden size (1, 2, 6), got [2, 2, 6]"),
    (("RNN", "GRU"), (zeros(T, 2, I), zeros(1, 2, 5)), RuntimeError, "Expected hidden size (1, 2, 6), got [1, 2, 5]"),
    (("RNN", "GRU"), (zeros(T, I), zeros(2, H)), RuntimeError, "Expected hidden size (1, 1, 6), got [2, 1, 6]"),
    (("LSTM",), (zeros(T, 2, I), (zeros(1, 3, H), zeros(1, 2, H))), RuntimeError,
     "Expected hidden[0] size (1, 2, 6), got [1, 3, 6]"),
    (("LSTM",), (zeros(T, 2, I), (zeros(1, 2, H), zeros(1, 1, H))), RuntimeError,
     "Expected hidden[1] size (1, 2, 6), got [1, 1, 6]"),
    (("RNN", "GRU"), (zeros(T, B, I), zeros(1, H)), RuntimeError,
     "For batched 3-D input, hx should also be 3-D but got 2-D tensor"),
    (("RNN", "GRU"), (zeros(T, I), zeros(1, 1, H)), RuntimeError,
     "For unbatched 2-D input, hx should also be 2-D but got 3-D tensor"),
    (("LSTM",), (zeros(T, B, I), (zeros(1, H), zeros(1, B, H))), RuntimeError,
     "For batched 3-D input, hx and cx should also be 3-D but got (2-D, 3-D) tensors"),
    (("LSTM",), (zeros(T, I), (zeros(1, 1, H), zeros(1, 1, H))), RuntimeError,
     "For unbatched 2-D input, hx and cx should also be 2-D but got (3-D, 3-D) tensors"),
    (("RNN", "GRU"), (zeros(T, B, I), zeros(1, B, H, device="meta")), RuntimeError,
     "Input and hidden tensors are not at the same device, found input tensor at cpu and hidden tensor at meta"),
    (("RNN", "GRU"), (pack_sequence([zeros(3, I), zeros(2, I)]), zeros(1, 3, H)), RuntimeError,
     "Expected hidden size (1, 2, 6), got [1, 3, 6]"),
    (("RNN", "GRU"), (DEEP,), RuntimeError, "input must have 2 dimensions, got 3"),
    (("RNN", "GRU"), (pack_sequence([zeros(3, 7)]),), RuntimeError, "must be equal to input_size. Expected 3, got 7"),
]  # fmt: skip

BETTER: list[tuple[tuple[str, ...], Call, type[Exception], str]] = [
    (ANY, (None,), TypeError, "input: expected a tensor or a PackedSequence but got NoneType"),
    (ANY, (zeros(T, B, I).numpy(),), TypeError, "input: expected a tensor or a PackedSequence but got ndarray"),
    (("RNN", "GRU"), (zeros(T, B, I), (zeros(1, B, H),)), TypeError, "hx: expected a tensor or None but got tuple"),
    (("RNN", "GRU"), (zeros(T, B, I), zeros(1, B, H).numpy()), TypeError,
     "hx: expected a tensor or None but got ndarray"),
    (("LSTM",), (zeros(T, B, I), zeros(1, B, H)), TypeError, "hx: expected a tuple (h_0, c_0) or None but got Tensor"),
    (("LSTM",), (zeros(T, B, I), (zeros(1, B, H),)), TypeError,
     "hx: expected a tuple (h_0, c_0) of two tensors but got (Tensor)"),
    (("LSTM",), (zeros(T, B, I), (zeros(1, B, H), None)), TypeError,
     "hx: expected a tuple (h_0, c_0) of two tensors but got (Tensor, NoneType)"),
    (("RNN", "GRU"), (zeros(T, B, I), zeros(1, B, H, dtype=torch.float64)), RuntimeError,
     "hx: expected the input's dtype torch.float32 but got torch.float64"),
    (("LSTM",), (zeros(T, B, I), (zeros(1, B, H), zeros(1, B, H, dtype=torch.float64))), RuntimeError,
     "hx: expected the input's dtype torch.float32 but got torch.float64"),
    (("LSTM",), (DEEP,), RuntimeError, "input must have 2 dimensions, got 3"),
    (("LSTM",), (pack_sequence([zeros(3, 7)]),), RuntimeError, "must be equal to input_size. Expected 3, got 7"),
    (("LSTM",), (pack_sequence([zeros(3, I), zeros(2, I)]), (zeros(1, 2, H), zeros(1, 1, H))), RuntimeError,
     "Expected hidden[1] size (1, 2, 6), got [1, 1, 6]"),
    (("LSTM",), (pack_sequence([zeros(2, I), zeros(3, I)], enforce_sorted=False), (zeros(1, 7, H), zeros(1, 7, H))),
     RuntimeError, "Expected hidden[0] size (1, 2, 6), got [1, 7, 6]"),
]  # fmt: skip


def kinds_of(table: list[tuple[tuple[str, ...], Call, type[Exception], str]]) -> list[Any]:
    return [pytest.param(name, *row, id=f"{name}: {row[-1][:60]}") for names, *row in table for name in names]


@pytest.mark.parametrize(("name", "args", "error", "sentence"), kinds_of(LIKE_TORCH))
def test_errors_are_torchs(name: str, args: Call, error: type[Exception], sentence: str) -> None:
    for library in (sf, nn):
        with pytest.raises(error, match=re.escape(sentence)) as raised:
            getattr(library, name)(I, H)(*args)
        assert raised.type is error


@pytest.mark.parametrize(("name", "args", "error", "sentence"), kinds_of(BETTER))
def test_errors_where_torch_has_no_sentence(name: str, args: Call, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=re.escape(sentence)):
        getattr(sf, name)(I, H)(*args)


def real(tensors: Tensors) -> Tensors:
    """Complex tensors as real ones with a further dimension."""
    return {name: None if t is None else torch.view_as_real(t.resolve_conj()) for name, t in tensors.items()}


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_complex_layers_are_torchs(sf_class: type, nn_class: type, dtype: torch.dtype, ragged: bool, impl: str) -> None:
    ours, theirs = sf_class(I, H, 2, dtype=dtype), nn_class(I, H, 2, dtype=torch.complex128)
    theirs.load_state_dict(ours.state_dict())
    x = torch.complex(x_of(), x_of(seed=9))
    mine, reference = x.to(dtype).requires_grad_(), x.clone().requires_grad_()
    with sf.use_impl(impl):
        found = named(*ours(mine, lengths=[2, 5, 0, 3] if ragged else None))
        d_found = gradients(found, ours, x=mine)
    if ragged:  # row by row: torch.nn's gradients of packed complex rows do not exist
        rows = [named(*theirs(reference[:n, b : b + 1])) for b, n in enumerate([2, 5, 1, 3])]
        padded = [nn.functional.pad(row["output"], (0, 0, 0, 0, 0, T - len(row["output"]))) for row in rows]
        kept = torch.tensor([1, 1, 0, 1]).unsqueeze(1)  # the third row is empty
        expected = {name: None if rows[0][name] is None else
                    torch.cat(padded if name == "output" else [row[name] for row in rows], 1) * kept
                    for name in rows[0]}  # fmt: skip
    else:
        expected = named(*theirs(reference))
    assert_close_by_name(real(found), real(expected), 4 * TERMS)
    assert_close_by_name(real(d_found), real(gradients(expected, theirs, x=reference)), 4 * TERMS)


@pytest.mark.filterwarnings("ignore:Complex")
@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_other_dtypes_are_refused(sf_class: type, nn_class: type) -> None:
    module = sf_class(I, H, dtype=torch.float16).to(torch.complex32)
    with pytest.raises(
        ValueError, match=r"input: expected torch[.]float32, .*, torch[.]complex128 but got torch[.]complex32"
    ):
        module(torch.zeros(T, B, I, dtype=torch.complex32))


class Scripted(torch.jit.ScriptModule):
    """A model that torch compiles when it is made, without asking its modules whether they can be compiled."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    @torch.jit.script_method
    def forward(self, x: Tensor):  # type: ignore[no-untyped-def]
        return self.layer(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(("sf_class", "nn_class"), OURS)
def test_script_is_refused_and_trace_works(sf_class: type, nn_class: type) -> None:
    module = sf_class(I, H, num_layers=2)
    for scripted in (module, nn.Sequential(module)):
        with pytest.raises(RuntimeError, match=f"torch.jit.script cannot compile seqcls_fast.{sf_class.__name__}"):
            torch.jit.script(scripted)
    with pytest.raises(RuntimeError, match=f"^torch.jit.script cannot compile seqcls_fast.{sf_class.__name__}:"):
        Scripted(module)
    x = x_of().float()
    with torch.no_grad():
        traced = torch.jit.trace(module, (x,))
        kernels = "base" in sf.available_impls()  # without, the trace holds the reference's loop over time
        assert_close_by_name(named(*traced(x[:, :2])), named(*module(x[:, :2])), 0 if kernels else TERMS)
        if kernels:
            longer = torch.cat([x, x])
            assert_close_by_name(named(*traced(longer)), named(*module(longer)), 0)

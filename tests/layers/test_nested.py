"""Batches without padding, jagged nested tensors and (values, cu_seqlens), against padded batches with lengths.

Results and gradients have the bits of the padded call. Nothing but the values of the rows is read.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqcls_fast as sf

I, H = 3, 17
LENGTHS = {
    "some rows are empty": [3, 0, 5, 1, 0, 4],
    "no row is empty": [2, 5, 1],
    "one row": [4],
    "one step": [0, 1],
    "rows of one length": [3, 3, 3],
    "all rows are empty": [0, 0],
    "no rows": [],
}
LAYERS = [("RNN", {}), ("GRU", {"bidirectional": True}), ("LSTM", {"bidirectional": True}), ("LSTM", {"proj_size": 5})]


def offsets_of(lengths: list[int], dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths, dtype=torch.int64).cumsum(0).tolist()], dtype=dtype)


def real_steps(lengths: list[int]) -> Tensor:
    """(B, T), where the rows have steps. T is at least 1."""
    return torch.arange(max([1, *lengths])) < torch.tensor(lengths, dtype=torch.int64)[:, None]


def padded(values: Tensor, lengths: list[int], beyond: float = float("nan")) -> Tensor:
    """(B, T, ...) with the rows' values, and NaN beyond them."""
    real = real_steps(lengths)
    fill = values.new_full((*real.shape, *values.shape[1:]), beyond if values.is_floating_point() else True)
    return fill.index_put((real,), values)


def as_tuple(states: Any) -> tuple[Tensor, ...]:
    return states if isinstance(states, tuple) else (states,)


def states_of(layer: Any, batch: int) -> Any:
    count, dtype = layer.num_layers * (1 + layer.bidirectional), layer.weight_hh_l0.dtype
    h = torch.randn(count, batch, layer.proj_size or H, dtype=dtype, requires_grad=True)
    return (h, torch.randn(count, batch, H, dtype=dtype, requires_grad=True)) if layer.mode == "LSTM" else h


def results(layer: Any, lengths: list[int], values: Tensor, hx: Any, kind: str, resets: Tensor | None = None) -> Any:
    """The output's values, and the final states. ``kind`` is how the rows are given."""
    offsets = offsets_of(lengths)
    if kind == "padded":
        x = padded(values, lengths)
        resets = None if resets is None else padded(resets, lengths)
        output, final = layer(x, hx, lengths=lengths, resets=resets)
        return output[real_steps(lengths)], *as_tuple(final)
    if kind == "values":
        (output, given), final = layer((values, offsets), hx, resets=resets)
        assert given is offsets
        return output, *as_tuple(final)
    nested = torch.nested.nested_tensor_from_jagged(values, offsets)
    if resets is not None:
        resets = torch.nested.nested_tensor_from_jagged(resets, nested.offsets())
    output, final = layer(nested, hx, resets=resets)
    assert output.layout == torch.jagged
    assert output.shape[:2] == nested.shape[:2], "the output must fit the input in torch's functions"
    return output.values(), *as_tuple(final)


def with_gradients(layer: Any, values: Tensor, hx: Any, found: tuple[Tensor, ...]) -> list[Tensor]:
    """The results and their gradients, for the same incoming gradients at every call."""
    leaves = [values, *(as_tuple(hx) if hx is not None else ()), *layer.parameters()]
    draw = torch.Generator().manual_seed(3)
    incoming = [torch.randn(t.shape, generator=draw, dtype=torch.float64).to(t.dtype) for t in found]
    return [*found, *torch.autograd.grad(found, leaves, incoming, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("kind", ["values", "nested"])
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize(("name", "options"), LAYERS)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_bits_are_those_of_the_padded_call(
    lengths: list[int], name: str, options: dict[str, Any], given: bool, kind: str, compiled: str
) -> None:
    layer = getattr(sf, name)(I, H, 2, batch_first=True, **options)
    values = torch.randn(sum(lengths), I, requires_grad=True)
    hx = states_of(layer, len(lengths)) if given else None
    with sf.use_impl(compiled):
        wanted = with_gradients(layer, values, hx, results(layer, lengths, values, hx, "padded"))
        found = with_gradients(layer, values, hx, results(layer, lengths, values, hx, kind))
    for k, (a, b) in enumerate(zip(found, wanted, strict=True)):
        assert a.shape == b.shape
        assert torch.equal(a, b), k


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64])
def test_other_dtypes_and_batch_first_do_not_matter(dtype: torch.dtype, impl: str) -> None:
    lengths = LENGTHS["some rows are empty"]
    first = sf.GRU(I, H, batch_first=True, dtype=dtype)
    second = sf.GRU(I, H, dtype=dtype)
    second.load_state_dict(first.state_dict())
    values = torch.randn(sum(lengths), I, dtype=dtype)
    with sf.use_impl(impl):
        x = padded(values, lengths, 0.0) if dtype.is_complex else padded(values, lengths)
        output, final = first(x, lengths=lengths)
        for layer in (first, second):
            (found, _), h_n = layer((values, offsets_of(lengths, torch.int32)))
            torch.testing.assert_close(found, output[real_steps(lengths)])
            torch.testing.assert_close(h_n, final)


@pytest.mark.parametrize("kind", ["values", "nested"])
@pytest.mark.parametrize("learnt", [False, True])
@pytest.mark.parametrize("lengths", [[3, 0, 5, 1], [0, 0]])
def test_resets_and_learnt_states(lengths: list[int], learnt: bool, kind: str, impl: str) -> None:
    layer = sf.LSTM(I, H, 2, bidirectional=True, batch_first=True, learn_initial_state=learnt, dtype=torch.float64)
    for name, parameter in layer.named_parameters():
        if "reset" in name:
            nn.init.normal_(parameter)
    values = torch.randn(sum(lengths), I, dtype=torch.float64, requires_grad=True)
    resets = torch.rand(sum(lengths)) < 0.4
    with sf.use_impl(impl):
        wanted = with_gradients(layer, values, None, results(layer, lengths, values, None, "padded", resets))
        found = with_gradients(layer, values, None, results(layer, lengths, values, None, kind, resets))
    torch.testing.assert_close(found, wanted)


def test_the_last_states_alone() -> None:
    layer, lengths = sf.LSTM(I, H), LENGTHS["some rows are empty"]
    values = torch.randn(sum(lengths), I)
    _, wanted = layer((values, offsets_of(lengths)))
    output, found = layer((values, offsets_of(lengths)), want_output=False)
    assert output is None
    assert all(map(torch.equal, found, wanted))
    assert layer((values[:0], torch.tensor([0, 0])), want_output=False)[0] is None


def test_a_view_that_leaves_steps_out() -> None:
    layer, x = sf.GRU(I, H, batch_first=True), torch.randn(3, 5, I)
    start, lengths = torch.tensor([0, 1, 2]), torch.tensor([2, 4, 0])
    output, h_n = layer(torch.nested.narrow(x, 1, start, lengths, layout=torch.jagged))
    moved = torch.stack([row.roll(-int(k), 0) for row, k in zip(x, start, strict=True)])
    wanted, final = layer(moved, lengths=lengths)
    assert torch.equal(output.values(), wanted[torch.arange(5) < lengths[:, None]])
    assert torch.equal(h_n, final)


def test_values_of_any_strides_and_a_frozen_layer() -> None:
    layer, lengths = sf.GRU(I, H), LENGTHS["some rows are empty"]
    wide = torch.randn(2 * I, sum(lengths)).t()[:, ::2]
    with torch.no_grad():
        (wanted, _), _ = layer((wide.contiguous(), offsets_of(lengths)))
        (found, _), _ = layer((wide, offsets_of(lengths)))
        (kept, _), _ = sf.freeze(layer)((wide, offsets_of(lengths)))
    assert torch.equal(found, wanted)
    assert torch.equal(kept, wanted)
    with pytest.raises(RuntimeError, match="expected a call without gradients, as the module is frozen"):
        layer((wide, offsets_of(lengths)))


def test_under_autocast_states_of_empty_rows_have_its_dtype() -> None:
    layer, lengths = sf.GRU(I, H), LENGTHS["some rows are empty"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (output, _), h_n = layer((torch.randn(sum(lengths), I), offsets_of(lengths)))
    assert output.dtype == h_n.dtype == torch.bfloat16


def test_hooks_deepcopy_and_torch_fx() -> None:
    lengths = LENGTHS["some rows are empty"]
    values, offsets = torch.randn(sum(lengths), I), offsets_of(lengths)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = sf.GRU(I, H)

        def forward(self, values: Tensor, offsets: Tensor) -> Tensor:
            (output, _), _ = self.layer((values, offsets))
            return output

    model = Model()
    wanted = model(values, offsets)
    assert torch.equal(copy.deepcopy(model)(values, offsets), wanted)
    traced = torch.fx.Tracer().trace(model)
    assert [node.op for node in traced.nodes][2] == "call_module"
    calls: list[Any] = []
    handle = model.layer.register_forward_hook(lambda *call: calls.append(call))
    assert torch.equal(model(values, offsets), wanted)
    handle.remove()
    assert len(calls) == 1


@pytest.mark.parametrize("kind", ["values", "nested"])
def test_torch_compile_in_one_graph(kind: str) -> None:
    layer = sf.LSTM(I, H, 2, bidirectional=True)
    torch._dynamo.reset()
    layer_alone = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for lengths in ([3, 0, 5, 5], [1, 2, 3], [4, 4, 0, 0, 2]):
        values = torch.randn(sum(lengths), I, requires_grad=True)
        wanted = with_gradients(layer, values, None, results(layer, lengths, values, None, "values"))
        x: Any = values, offsets_of(lengths)
        output, final = layer_alone(torch.nested.nested_tensor_from_jagged(*x) if kind == "nested" else x)
        output = output.values() if kind == "nested" else output[0]
        found = with_gradients(layer, values, None, (output, *final))
        assert all(map(torch.equal, found, wanted))


class OfPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = sf.GRU(I, H)

    def forward(self, values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        (output, _), h_n = self.layer((values, offsets))
        return output, h_n


@pytest.mark.filterwarnings("ignore:Converting a tensor")
def test_a_traced_module_takes_any_rows() -> None:
    model = OfPair()
    traced = torch.jit.trace(model, (torch.randn(6, I), offsets_of([3, 1, 2])), check_trace=False)
    for lengths in ([4, 0, 5, 1], [1], [2, 2]):
        inputs = torch.randn(sum(lengths), I), offsets_of(lengths)
        assert all(map(torch.equal, traced(*inputs), model(*inputs)))


def test_transforms_of_the_values() -> None:
    model, offsets = OfPair(), offsets_of([3, 0, 6])
    values, tangent = torch.randn(4, 9, I), torch.randn(9, I)

    def output(values: Tensor) -> Tensor:
        return model(values, offsets)[0]

    torch.testing.assert_close(torch.vmap(output)(values), torch.stack([output(each) for each in values]))
    one = torch.func.grad(lambda v: output(v).sum())
    torch.testing.assert_close(torch.vmap(one)(values), torch.stack([one(each) for each in values]))
    _, forward = torch.func.jvp(output, (values[0],), (tangent,))
    torch.testing.assert_close(forward.sum(), (one(values[0]) * tangent).sum())
    x = values[0].clone().requires_grad_()
    (first,) = torch.autograd.grad(output(x).square().sum(), x, create_graph=True)
    assert torch.autograd.grad(first.sum(), x)[0].abs().sum() > 0


def test_torch_export_with_any_number_of_rows() -> None:
    model, Dim = OfPair(), torch.export.Dim
    shapes = {0: Dim("N")}, {0: Dim("offsets", min=3)}
    example = torch.randn(9, I), offsets_of([3, 0, 6])
    program = torch.export.export(model, example, dynamic_shapes=shapes).module()
    for lengths in ([3, 0, 6], [4, 4, 0, 0, 2], [1, 2]):
        values, offsets = torch.randn(sum(lengths), I), offsets_of(lengths)
        assert all(map(torch.equal, program(values, offsets), model(values, offsets)))


VALUES = torch.zeros(5, I)
NESTED = torch.nested.nested_tensor_from_jagged(VALUES, torch.tensor([0, 2, 5]))
BAD: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ((VALUES, torch.tensor([0, 2, 4])), {}, RuntimeError,
     "cu_seqlens: expected offsets from 0 to 5, the number of rows of values, but got 0 to 4"),
    ((VALUES, torch.tensor([1, 2, 5])), {}, RuntimeError, "cu_seqlens: expected offsets from 0 to 5"),
    ((VALUES, torch.tensor([0, 4, 2, 5])), {}, RuntimeError,
     "cu_seqlens: expected offsets that ascend but got 4 before 2"),
    ((VALUES, torch.tensor([0, 9, 5])), {}, RuntimeError, "expected offsets that ascend but got 9 before 5"),
    ((VALUES, torch.tensor([0.0, 5.0])), {}, TypeError,
     "cu_seqlens: expected torch.int32 or torch.int64 but got torch.float32"),
    ((VALUES, torch.tensor([], dtype=torch.int64)), {}, RuntimeError,
     "cu_seqlens: expected shape (B + 1,) but got (0,)"),
    ((VALUES, torch.tensor([[0, 5]])), {}, RuntimeError, "cu_seqlens: expected shape (B + 1,) but got (1, 2)"),
    ((VALUES, torch.zeros(2, dtype=torch.int64, device="meta")), {}, RuntimeError,
     "cu_seqlens: expected a tensor on cpu, like values, but got meta"),
    ((VALUES.double(), torch.tensor([0, 5])), {}, ValueError, "RNN input dtype (torch.float64) does not match"),
    ((VALUES[:, :2], torch.tensor([0, 5])), {}, RuntimeError, "must be equal to input_size. Expected 3, got 2"),
    ((VALUES[None], torch.tensor([0, 5])), {}, RuntimeError,
     "values: expected shape (N, features), row after row, but got (1, 5, 3)"),
    ((VALUES, [0, 5]), {}, TypeError, "or two tensors (values, cu_seqlens), but got (Tensor, list)"),
    ((VALUES,), {}, TypeError, "or two tensors (values, cu_seqlens), but got (Tensor)"),
    ((VALUES, torch.tensor([0, 2, 5])), {"lengths": [2, 3]}, RuntimeError,
     "lengths: expected None with (values, cu_seqlens), which has its own lengths"),
    (NESTED, {"lengths": [2, 3]}, RuntimeError,
     "lengths: expected None with a nested tensor, which has its own lengths"),
    ((VALUES, torch.tensor([0, 2, 5])), {"hx": torch.zeros(1, 3, H)}, RuntimeError,
     "Expected hidden size (1, 2, 17), got [1, 3, 17]"),
    ((VALUES, torch.tensor([0, 2, 5])), {"hx": torch.zeros(1, H)}, RuntimeError, "hx should also be 3-D but got 2-D"),
    ((VALUES, torch.tensor([0, 2, 5])), {"hx": (torch.zeros(1, 2, H),)}, TypeError,
     "hx: expected a tensor or None but got tuple"),
    ((VALUES, torch.tensor([0, 2, 5])), {"resets": torch.zeros(2, 3, dtype=torch.bool)}, RuntimeError,
     "resets: expected shape (5,), that of the input without its features, but got (2, 3)"),
    (NESTED, {"resets": torch.nested.nested_tensor_from_jagged(torch.zeros(5), NESTED.offsets())}, TypeError,
     "resets: expected torch.bool but got torch.float32"),
    (NESTED, {"resets": torch.nested.nested_tensor_from_jagged(torch.zeros(5).bool(), torch.tensor([0, 3, 5]))},
     RuntimeError, "resets: expected a nested tensor with the offsets of the input's but got others"),
    (NESTED, {"resets": NESTED}, RuntimeError, "resets: expected a jagged nested tensor (B, *) without gaps"),
    (NESTED.transpose(1, 2), {}, RuntimeError, "whose steps are its second dimension, but they are the third"),
    (torch.nested.nested_tensor_from_jagged(VALUES[:, 0], NESTED.offsets()), {}, ValueError,
     "input: expected a nested tensor (B, *, features) but got 2 dimensions"),
    (torch.nested.nested_tensor([VALUES], layout=torch.strided), {}, RuntimeError,
     "input: expected a nested tensor of layout torch.jagged but got one of torch.strided"),
]  # fmt: skip


@pytest.mark.parametrize(("x", "options", "error", "sentence"), BAD, ids=[row[3][:50] for row in BAD])
def test_wrong_parts_are_refused(x: Any, options: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=re.escape(sentence)):
        sf.GRU(I, H)(x, **options)


def test_offsets_without_values_are_refused() -> None:
    with pytest.raises(RuntimeError, match="cu_seqlens: expected a tensor that has values"):
        sf.GRU(I, H, device="meta")((VALUES.to("meta"), torch.tensor([0, 5], device="meta")))


def test_cells_take_no_batch_without_padding() -> None:
    with pytest.raises(TypeError, match="input: expected a tensor but got tuple"):
        sf.GRUCell(I, H)((VALUES, torch.tensor([0, 5])))
    with pytest.raises((TypeError, ValueError), match="input"):
        sf.GRUCell(I, H)(NESTED)

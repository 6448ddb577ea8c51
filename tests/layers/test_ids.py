"""Ids as input instead of features: results equal those of one-hot rows bit for bit, and wrong ids are refused. Results
and gradients are also compared in test_backends.py and test_gradients.py, where ids are an axis of the cases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.nn.functional import one_hot

from seqcls_fast import _ext, ops
from simt.build import load_plugin, why_no_plugin
from support.cases import CELLS, Case, build
from support.checks import FAR, arguments, gradients, keywords, layer

Named = dict[str, Tensor]
CASES = [Case(cell, T=9, B=7, I=11, H=33, directions=2, lengths="zeros", ids=True) for cell in CELLS]
CASES += [
    Case("lstm", T=9, B=7, I=11, H=33, lengths="random", layout="packed", proj=True, ids=True),
    Case("gru", T=5, B=2, I=3, H=300, layout="batch_first", bias=False, ids=True),
    Case("lstm", T=5, B=1, I=1, H=40, dtype="float64", ids=True),
    Case("rnn_tanh", T=5, B=9, I=6, H=40, dtype="float16", lengths="one_long", ids=True),
]


def features(inputs: Named, case: Case) -> Named:
    """The same inputs with a one-hot row of features for each id. Ids in the padding may have any value."""
    ids = inputs["x"].clamp(0, case.I - 1)
    return inputs | {"x": one_hot(ids, case.I).to(case.torch_dtype)}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_has_the_bits_of_one_hot_rows(case: Case, compiled: str) -> None:
    """Sums of zeros and one weight are exact. bfloat16 is left out: its dot products treat subnormal numbers as 0."""
    problem = build(case)
    inputs, options = arguments(case, problem), keywords(case, problem) | {"impl": compiled}
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with torch.no_grad():
            found, wanted = layer(inputs, **options), layer(features(inputs, case), **options)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_have_the_same_bits_whatever_the_threads(case: Case, compiled: str) -> None:
    problem = build(case)
    inputs, options = arguments(case, problem), keywords(case, problem) | {"impl": compiled}
    cotangents = {name: t.detach().cos() for name, t in layer(inputs, **options).items()}
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(gradients(layer(inputs, **options), inputs, cotangents))
    assert all(torch.equal(one[name], found[0][name]) for one in found for name in one)


def test_gradient_of_a_table_has_its_strides(compiled: str) -> None:
    """The gradient of a table comes back in the embedding's layout, so nothing is transposed."""
    ids, table = torch.randint(11, (5, 3)), torch.randn(23, 12, requires_grad=True)
    output, _, _ = ops.rnn_layer(ids, [table.t()], [torch.randn(12, 4)], cell="gru", impl=compiled)
    assert output is not None
    output.sum().backward()
    assert table.grad is not None
    assert table.grad.is_contiguous()
    assert table.grad[ids.unique()].any(1).all()
    assert not table.grad[11:].any()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_any_integers(dtype: torch.dtype, impl: str) -> None:
    ids, w_ih, w_hh = torch.randint(11, (5, 3)), torch.randn(12, 11), torch.randn(12, 4)
    wanted = ops.rnn_layer(one_hot(ids, 11).float(), [w_ih], [w_hh], cell="gru", impl=impl)
    found = ops.rnn_layer(ids.to(dtype), [w_ih], [w_hh], cell="gru", impl=impl)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("bad", [-1, 11, FAR, -FAR])
@pytest.mark.parametrize("train", [False, True])
def test_an_id_without_a_column_is_refused(bad: int, train: bool, impl: str) -> None:
    ids, w_ih, w_hh = torch.randint(11, (5, 3)), torch.randn(12, 11), torch.randn(12, 4, requires_grad=train)
    ids[3, 1] = bad
    options: dict[str, Any] = {"cell": "gru", "impl": impl}
    with pytest.raises(RuntimeError, match=f"^x: expected ids from 0 to 10, the columns of w_ih, but got {bad}$"):
        ops.rnn_layer(ids, [w_ih], [w_hh], **options)
    _, h_n, _ = ops.rnn_layer(ids, [w_ih], [w_hh], lengths=torch.tensor([5, 3, 5]), **options)  # the bad id is padding
    assert h_n.isfinite().all()


def test_ids_changed_before_the_backward_are_looked_at_again(compiled: str) -> None:
    """Autograd notices most changes of an input, but not this one. The id must still not be read out of bounds."""
    ids, w_ih, w_hh = torch.randint(11, (5, 3)), torch.randn(12, 11, requires_grad=True), torch.randn(12, 4)
    output, _, _ = ops.rnn_layer(ids, [w_ih], [w_hh], cell="gru", impl=compiled)
    ids.data[0, 0] = FAR
    assert output is not None
    with pytest.raises(RuntimeError, match="x: expected ids from 0 to 10"):
        output.sum().backward()


def test_no_rows(impl: str) -> None:
    ids, w_ih, w_hh = torch.zeros(5, 0, dtype=torch.int64), torch.randn(12, 11, requires_grad=True), torch.randn(12, 4)
    output, h_n, _ = ops.rnn_layer(ids, [w_ih], [w_hh], cell="gru", lengths=torch.zeros(0).long(), impl=impl)
    assert output is not None
    assert output.shape == (5, 0, 4)
    assert h_n.shape == (1, 0, 4)
    h_n.sum().backward()
    assert w_ih.grad is not None
    assert not w_ih.grad.any()


WRONG = {
    r"x: expected \(T, B\) of ids but got shape \(5, 3, 2\)": {"x": torch.zeros(5, 3, 2, dtype=torch.int64)},
    "lengths: expected None unless x is padded": {
        "x": torch.zeros(5, dtype=torch.int64),
        "lengths": torch.ones(5).long(),
    },
    r"x: expected packed rows \(N\) of ids but got shape \(5, 3\)": {"batch_sizes": torch.tensor([3, 2])},
    "x: expected dtype float32": {"x": torch.zeros(5, 3, dtype=torch.bool)},
    "weights: expected dtype float32": {"w_ih": [torch.zeros(12, 11).long()], "w_hh": [torch.zeros(12, 4).long()]},
    "w_ih: expected dtype float32 but got float64": {"w_ih": [torch.zeros(12, 11).double()]},
    "w_ih: expected at least one column": {"w_ih": [torch.zeros(12, 0)]},
    "x: expected at least one step": {"x": torch.zeros(0, 3, dtype=torch.int64)},
    "expected 3 .* hidden_size rows": {"w_ih": [torch.zeros(11, 12)]},
}


@pytest.mark.skipif(_ext.C is None, reason=f"the compiled extension is missing: {_ext.why_missing}")
@pytest.mark.parametrize("sentence", WRONG)
def test_refused(sentence: str, compiled: str) -> None:
    sound = {"x": torch.zeros(5, 3, dtype=torch.int64), "w_ih": [torch.zeros(12, 11)], "w_hh": [torch.zeros(12, 4)]}
    with pytest.raises(RuntimeError, match=sentence):
        ops.rnn_layer(**sound | WRONG[sentence], cell="gru", impl=compiled)  # type: ignore[arg-type]


@pytest.mark.skipif(why_no_plugin() is not None, reason=str(why_no_plugin()))
@pytest.mark.parametrize("bad", [-1, 11, FAR])
@pytest.mark.parametrize("regime", ["onchip", "stepwise"])
def test_kernels_on_cuda_read_nothing_for_an_id_without_a_column(regime: str, bad: int) -> None:
    """Kernels cannot raise. They write an error code, which the next call raises; the simulator raises it at once."""
    load_plugin()
    ids, w_ih, w_hh = torch.randint(11, (5, 3)), torch.randn(12, 11), torch.randn(12, 4)
    ids[3, 1] = bad
    with pytest.raises(
        RuntimeError, match="x: expected every id of this or an earlier call to be the index of a column"
    ):
        ops.rnn_layer(ids, [w_ih], [w_hh], cell="gru", impl=f"simt-{regime}")


@pytest.mark.parametrize("cell", CELLS)
def test_reference_takes_them_as_one_hot_rows(cell: str) -> None:
    """The reference gives the same results and gradients for ids and for one-hot rows, with biases and padding."""
    case = Case(cell, T=6, B=9, I=4, H=7, directions=2, lengths="zeros", dtype="float64", ids=True)
    problem = build(case)
    inputs, options = arguments(case, problem), keywords(case, problem)
    rows = features(inputs, case)
    found, wanted = layer(inputs, **options), layer(rows, **options)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-15)
    del rows["x"]
    ours = gradients(found, inputs, problem.cotangents)
    torch.testing.assert_close(ours, gradients(wanted, rows, problem.cotangents), rtol=0, atol=1e-13)


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("ids", [False, True])
def test_compiled_with_any_number_of_columns(ids: bool, marked: bool, compiled: str) -> None:
    """One compiled graph serves every number of features or ids, and its gradients are right."""
    torch._dynamo.reset()  # the function was compiled before, for other implementations
    frames = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=frames, fullgraph=True, dynamic=None if marked else True)
    def run(x: Tensor, table: Tensor, w_hh: Tensor) -> Tensor:
        output, _, _ = ops.rnn_layer(x, [table.t()], [w_hh], cell="gru", impl=compiled)
        assert output is not None
        return output

    w_hh = torch.randn(12, 4)
    for columns in (11, 13, 17):
        table = torch.randn(columns, 12, requires_grad=True)
        x = torch.randint(columns, (5, 3)) if ids else torch.randn(5, 3, columns)
        if marked:
            torch._dynamo.mark_dynamic(table, 0)
            if not ids:
                torch._dynamo.mark_dynamic(x, 2)
        (gradient,) = torch.autograd.grad(run(x, table, w_hh).sum(), [table])
        output, _, _ = ops.rnn_layer(x, [table.t()], [w_hh], cell="gru", impl=compiled)
        assert output is not None
        (wanted,) = torch.autograd.grad(output.sum(), [table])
        torch.testing.assert_close(gradient, wanted)
    assert frames.frame_count == 1

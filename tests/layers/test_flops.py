"""``torch.utils.flop_counter`` counts the products that our operators do, two operations for each multiply-add.

Compared with the count of torch.nn in float64, whose layers torch counts product by product on a CPU, and with counts
by hand where torch.nn has no such call or does other products.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.flop_counter import FlopCounterMode

import seqcls_fast as sf
from seqcls_fast import _ext
from support.twins import B, H, I, T, hx_of, pair, x_of

needs_extension = pytest.mark.skipif(_ext.C is None, reason=f"the compiled extension is missing: {_ext.why_missing}")
GATES = {sf.RNN: 1, sf.GRU: 3, sf.LSTM: 4}
ANY = pytest.mark.parametrize(
    ("sf_class", "nn_class", "P"),
    [(sf.RNN, nn.RNN, 0), (sf.GRU, nn.GRU, 0), (sf.LSTM, nn.LSTM, 0), (sf.LSTM, nn.LSTM, 2)],
    ids=["RNN", "GRU", "LSTM", "LSTM-projected"],
)
LENGTHS = (5, 0, 3, 1)


def count(function: Callable[[], Any]) -> tuple[int, Any]:
    with FlopCounterMode(display=False) as counter:
        result = function()
    return counter.get_total_flops(), result


def by_hand(
    sf_class: Any, P: int, lengths: Any = LENGTHS, h0: bool = False, d_x: bool = False, features: int = I
) -> tuple[int, int]:
    """The operations of one direction forward, and backward with the gradients of the weights, row by row."""
    rows, out = GATES[sf_class] * H, P or H
    forward = backward = 0
    for length in lengths:
        for step in range(length):
            products = rows * features + rows * out + P * H
            forward += 2 * products
            backward += 2 * products  # of the weights
            backward += 2 * P * H + (2 * rows * features if d_x else 0)
            if step or h0:
                backward += 2 * rows * out  # passed on to the step before
    return forward, backward


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("with_hx", [False, True])
@pytest.mark.parametrize(("x_grad", "weight_grad"), [(True, True), (True, False), (False, True)])
@ANY
def test_padded_rows_count_as_in_torch(
    sf_class: Any, nn_class: Any, P: int, x_grad: bool, weight_grad: bool, with_hx: bool, bidirectional: bool,
    compiled: str,
) -> None:  # fmt: skip
    options = {"proj_size": P} if P else {}
    found = []
    for module in pair(sf_class, nn_class, I, H, 2, bidirectional=bidirectional, **options):
        module.requires_grad_(weight_grad)
        hx = hx_of(module) if with_hx else None
        for state in hx if isinstance(hx, tuple) else () if hx is None else (hx,):
            state.requires_grad_()
        with sf.use_impl(compiled):
            forward, (output, _) = count(lambda m=module, hx=hx: m(x_of().requires_grad_(x_grad), hx))
            backward, _ = count(lambda output=output: output.sum().backward())
        found.append((forward, backward))
    assert found[0] == found[1]
    assert min(found[0]) > 0


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("with_hx", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@ANY
def test_ragged_rows_count_their_own_steps(
    sf_class: Any, nn_class: Any, P: int, packed: bool, with_hx: bool, bidirectional: bool, compiled: str
) -> None:
    lengths = tuple(max(n, 1) for n in LENGTHS) if packed else LENGTHS
    module = sf_class(I, H, batch_first=True, bidirectional=bidirectional, **{"proj_size": P} if P else {}).double()
    x, hx = x_of(B, T, I).requires_grad_(), hx_of(module) if with_hx else None
    wanted = by_hand(sf_class, P, lengths, with_hx, d_x=True)
    with sf.use_impl(compiled):
        if packed:
            rows = pack_padded_sequence(x, torch.tensor(lengths), batch_first=True, enforce_sorted=False)
            forward, (result, _) = count(lambda: module(rows, hx))
            output = result.data
        else:
            forward, (output, _) = count(lambda: module(x, hx, lengths=lengths))
            assert count(lambda: module(x, hx, lengths=lengths, want_output=False))[0] == forward
        backward, _ = count(lambda: output.sum().backward())
    directions = 2 if bidirectional else 1
    assert (forward, backward) == tuple(directions * n for n in wanted)


def test_ids_are_no_product(compiled: str) -> None:
    w_ih, w_hh = torch.randn(3 * H, I, requires_grad=True), torch.randn(3 * H, H, requires_grad=True)
    ids = torch.randint(I, (T, B))
    with sf.use_impl(compiled):
        forward, (output, _, _) = count(
            lambda: sf.rnn_layer(ids, [w_ih], [w_hh], cell="gru", lengths=torch.tensor(LENGTHS))
        )
        backward, _ = count(lambda: output.sum().backward())
    assert (forward, backward) == by_hand(sf.GRU, 0, features=0)


def test_recomputed_gates_count_again(compiled: str) -> None:
    module = sf.LSTM(I, H)
    module.recompute_gates = True
    with sf.use_impl(compiled):
        forward, (output, _) = count(lambda: module(x_of().float(), lengths=LENGTHS))
        backward, _ = count(lambda: output.sum().backward())
    wanted = by_hand(sf.LSTM, 0)
    assert (forward, backward) == (wanted[0], sum(wanted))


@pytest.mark.parametrize("kind", ["exported", "traced"])
def test_programs_count(kind: str, compiled: str) -> None:
    """Such a program keeps nothing for the backward, which runs the forward once more."""
    module, x = sf.GRU(I, H), x_of().float()
    with sf.use_impl(compiled):
        traced = kind == "traced"
        program: Any = torch.jit.trace(module, (x,), check_trace=False) if traced else torch.export.export(module, (x,))
        forward, (output, _) = count(lambda: (program if traced else program.module())(x))
        backward, _ = count(lambda: output.sum().backward())
    wanted = by_hand(sf.GRU, 0, [T] * B)
    assert (forward, backward) == (wanted[0], sum(wanted))


@needs_extension
def test_fake_tensors_count_all_steps() -> None:
    """A fake tensor has no values: rows count as having all their steps."""
    with FakeTensorMode():
        module = sf.GRU(I, H)
        x, lengths = torch.empty(T, B, I), torch.empty(B, dtype=torch.int64)
        forward, (output, _) = count(lambda: module(x, lengths=lengths))
        backward, _ = count(lambda: output.sum().backward())
        tensors = {"h0": torch.empty(1, B, H), "batch_sizes": torch.empty(T, dtype=torch.int64)}
        rows, weights = torch.empty(9, I), ([module.weight_ih_l0], [module.weight_hh_l0])
        packed, _ = count(lambda: sf.rnn_layer(rows, *weights, **tensors, cell="gru"))
    assert (forward, backward) == by_hand(sf.GRU, 0, [T] * B)
    assert packed == by_hand(sf.GRU, 0, [9])[0]


def test_mapped_batches_count(compiled: str) -> None:
    module, x = sf.GRU(I, H), torch.randn(3, T, B, I)
    with sf.use_impl(compiled):
        found, _ = count(lambda: torch.func.vmap(lambda t: module(t)[0])(x))
    assert found == 3 * by_hand(sf.GRU, 0, [T] * B)[0]


FIRST = "import sys, torch, seqcls_fast as sf; sf.GRU"
CASES = {
    "counter later": f"{FIRST}; print('torch.utils.flop_counter' in sys.modules); import torch.utils.flop_counter as c",
    "counter first": f"import torch.utils.flop_counter as c; {FIRST}; print(False)",
}


@needs_extension
@pytest.mark.parametrize("name", CASES)
def test_registered_without_an_import_of_the_counter(name: str) -> None:
    code = (
        f"{CASES[name]}\nlayer = sf.GRU({I}, {H})\nwith torch.no_grad(), c.FlopCounterMode(display=False) as counter:\n"
        f"    layer(torch.randn({T}, {B}, {I}))\nprint(counter.get_total_flops())\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["False", str(by_hand(sf.GRU, 0, [T] * B)[0])]


@needs_extension
@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_the_head_of_a_classifier(pooling: str) -> None:
    """Our operators count as the products of torch's that they replace; the reference forms those of attention."""
    model = sf.SequenceClassifier(I, H, 3, cell="gru", pooling=pooling).eval()
    x, lengths = torch.randn(B, T, I), torch.tensor(LENGTHS)
    attended = 4 * H if pooling == "attention" else 0  # of a step
    with torch.no_grad():
        whole, _ = count(lambda: model(x))
    assert whole == count(lambda: model(x))[0]
    assert whole == by_hand(sf.GRU, 0, [T] * B)[0] + 2 * B * H * 3 + B * T * attended
    output, weight = torch.randn(B, T, H), torch.randn(1, H) if pooling == "attention" else None
    ops = torch.ops.seqcls_fast
    assert count(lambda: ops.linear(torch.randn(B, H), torch.randn(3, H), None, "auto"))[0] == 2 * B * H * 3
    assert count(lambda: ops.pool_steps(output, None, pooling, weight, None, "auto"))[0] == B * T * attended
    assert count(lambda: ops.pool_steps(output, lengths, pooling, weight, None, "auto"))[0] == sum(LENGTHS) * attended

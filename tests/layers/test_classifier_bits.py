"""SequenceClassifier in inference: a row has the same bits alone, in any batch and order, with any padding, on any
number of threads, with a table of projections or without. With gradients torch's own operators run, and agree."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import seqcls_fast as sf
from seqcls_fast import _ext, classifier, ops
from seqcls_fast.classifier import CELLS, POOLINGS
from support.cases import FLOATS, HALVES
from support.checks import NAN

pytestmark = pytest.mark.skipif(_ext.C is None, reason=f"the compiled extension is missing: {_ext.why_missing}")

DTYPES = [getattr(torch, name) for name in FLOATS + HALVES]
SIZES = [(5, 2), (32, 3), (200, 20), (33, 500)]  # hidden units and classes
ROWS, T, V = 200, 23, 40
MODELS = [
    ("ids" if (i + j // 2 + two_ways) % 2 else "features", pooling, cell, two_ways, *SIZES[(i + j + two_ways) % 4])
    for i, pooling in enumerate(POOLINGS)
    for j, cell in enumerate(CELLS)
    for two_ways in (False, True)
]


def make(kind: str, pooling: str, cell: str, bidirectional: bool, hidden: int, classes: int) -> sf.SequenceClassifier:
    options: dict[str, Any] = {"vocab_size": V} if kind == "ids" else {}
    return sf.SequenceClassifier(
        6, hidden, classes, pooling=pooling, cell=cell, bidirectional=bidirectional, num_layers=2, **options
    ).eval()


def batch(kind: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows of ragged lengths, and what may not be read beyond them."""
    lengths = torch.randint(T + 1, (ROWS,))
    lengths[:4] = torch.tensor([T, 0, 1, 2])
    x = torch.randint(1, V, (ROWS, T)) if kind == "ids" else torch.randn(ROWS, T, 6).to(dtype)
    return spoiled(x, lengths), lengths


def spoiled(x: Tensor, lengths: Tensor) -> Tensor:
    beyond = torch.arange(x.size(1)) >= lengths[:, None]
    return x.masked_fill(beyond, V + 3) if x.dim() == 2 else x.masked_fill(beyond[:, :, None], NAN)


def padded(x: Tensor, lengths: Tensor, more: int) -> Tensor:
    return spoiled(torch.cat([x, x.new_zeros(len(x), more, *x.shape[2:])], 1), lengths)


def assert_same(found: Tensor, wanted: Tensor, what: object) -> None:
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[wanted.element_size()]
    differ = (found.contiguous().view(integers) != wanted.contiguous().view(integers)).any(1)
    assert not differ.any(), f"{what}: {int(differ.sum())} of {len(wanted)} rows have other bits"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model", MODELS, ids=str)
@torch.no_grad()
def test_a_row_in_any_batch(model: tuple[Any, ...], dtype: torch.dtype, compiled: str) -> None:
    network = make(*model).to(dtype)
    x, lengths = batch(model[0], dtype)
    with ops.use_impl(compiled):
        whole = network(x, lengths)
        for row in (*range(6), ROWS - 1):
            n = max(int(lengths[row]), 1)
            assert_same(network(x[row : row + 1, :n], lengths[row : row + 1]), whole[row : row + 1], f"row {row} alone")
        for size in (2, 7):
            assert_same(network(x[:size], lengths[:size]), whole[:size], f"{size} rows")
        order = torch.randperm(ROWS)
        assert_same(network(x[order], lengths[order]), whole[order], "another order")
        for more in (1, 30):
            assert_same(network(padded(x, lengths, more), lengths), whole, f"{more} more steps")
        torch.set_num_threads(2)
        assert_same(network(x, lengths), whole, "two threads")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [6, 300])
@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_the_table_has_the_bits_of_projected_steps(
    cell: str, width: int, dtype: torch.dtype, compiled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = sf.SequenceClassifier(width, 33, 3, vocab_size=V, cell=cell, bidirectional=True).to(dtype).eval()
    ids, lengths = batch("ids", dtype)
    with ops.use_impl(compiled):
        monkeypatch.setattr(classifier, "_STEPS_PER_ID", 1e9)
        wanted = network(ids, lengths)
        monkeypatch.setattr(classifier, "_STEPS_PER_ID", 0)
        assert (network._tables_for(ids) is None) == (dtype in (torch.bfloat16, torch.float16))
        assert_same(network(ids, lengths), wanted, "a table made for the call")
        network.prepare_inference()
        assert_same(network(ids, lengths), wanted, "a table made before")
        assert_same(network(ids[:1], lengths[:1]), wanted[:1], "one row, a table made before")


@pytest.mark.parametrize("pooling", POOLINGS)
@torch.no_grad()
def test_under_autocast(pooling: str, compiled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = make("ids", pooling, "gru", True, 33, 3)
    ids, lengths = batch("ids", torch.float32)
    with ops.use_impl(compiled), torch.autocast("cpu", torch.bfloat16):
        whole = network.prepare_inference()(ids, lengths)
        assert whole.dtype == torch.bfloat16
        for row in range(6):
            assert_same(network(ids[row : row + 1], lengths[row : row + 1]), whole[row : row + 1], row)


@pytest.mark.parametrize("kind", ["ids", "features"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_with_gradients_torchs_operators_agree(pooling: str, kind: str, compiled: str) -> None:
    """In eval mode too gradients are those of the reference; they are never silently zero."""
    network = make(kind, pooling, "lstm", True, 7, 3).double()
    x, lengths = batch(kind, torch.float64)
    with ops.use_impl(compiled):
        found = network(x, lengths)
        with torch.no_grad():
            torch.testing.assert_close(network(x, lengths), found.detach(), rtol=1e-12, atol=1e-13)
    with ops.use_impl("reference"):
        clean = x.masked_fill(torch.arange(T) >= lengths[:, None], 0) if kind == "ids" else x.nan_to_num(0)
        wanted = network(clean, lengths)
    parameters = dict(network.named_parameters())
    pairs = (torch.autograd.grad(logits.cos().sum(), list(parameters.values())) for logits in (found, wanted))
    for name, a, b in zip(parameters, *pairs, strict=True):
        assert a.any() or name == "attention.bias", name  # one number added to all scores changes no share
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")

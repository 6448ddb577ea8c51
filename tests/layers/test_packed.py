"""The operators of frozen weights: ``pack_weights``, and ``packed`` of ``rnn_forward``.

With packed weights a call has the bits that it has without them, and reads no weight. Bytes that were packed for
another layer, instruction set or build are refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import seqcls_fast as sf
from seqcls_fast import _ext
from support.cases import CELLS, Case
from support.checks import flat_arguments, forward_arguments

pytestmark = pytest.mark.skipif(_ext.C is None, reason=f"the compiled extension is missing: {_ext.why_missing}")

CASES = [
    *(Case(cell, T=4, B=3, H=17, directions=2, lengths="random") for cell in CELLS),
    *(Case("lstm", B=2, H=33, proj=True, dtype=dtype) for dtype in ("float32", "float64", "bfloat16", "float16")),
    Case("gru", dtype="bfloat16", bias=False, state=False, layout="packed"),
    Case("gru", T=1, B=1, I=130, H=300, dtype="float64"),
    Case("rnn_tanh", dtype="float16", directions=2, layout="batch_first", want_output=False),
    *(Case(cell, directions=2, ids=True, lengths="random") for cell in CELLS),
]


def call_of(case: Case, impl: str) -> tuple[Any, ...]:
    """The arguments of rnn_forward in inference."""
    tensors, options = flat_arguments(case, impl)
    tail = (case.cell, case.directions, options["batch_first"], case.want_output, False, impl, False)
    return (*forward_arguments(tensors), *tail)


def pack(call: tuple[Any, ...], impl: str | None = None) -> Tensor:
    x, weights, *_, cell, directions, _, _, _, own, _ = call
    op = torch.ops.seqcls_fast.pack_weights.default
    packed: Tensor = op(weights, cell, directions, impl or own, not x.is_floating_point())
    return packed


def forward(*args: Any) -> list[Tensor]:
    found: list[Tensor] = torch.ops.seqcls_fast.rnn_forward.default(*args)
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_packed_weights_give_the_same_bits_and_no_weight_is_read(case: Case, compiled: str) -> None:
    x, weights, *rest = call = call_of(case, compiled)
    packed = pack(call)
    assert packed.dtype == torch.uint8
    assert packed.dim() == 1
    assert packed.data_ptr() % 64 == 0
    kept = case.directions if case.ids else 0  # of ids, w_ih is read as it is
    spoiled = [*weights[:kept], *(torch.full_like(w, torch.nan) for w in weights[kept:])]
    for found in (forward(*call, packed), forward(x, spoiled, *rest, packed)):
        for a, b in zip(found, forward(*call), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("case", CASES[:6], ids=str)
def test_opcheck(case: Case, compiled: str) -> None:
    call = call_of(case, compiled)
    library = torch.ops.seqcls_fast
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(library.rnn_forward.default, (*call, pack(call)), test_utils=checks)
    args = (call[1], case.cell, case.directions, compiled, case.ids)
    torch.library.opcheck(library.pack_weights.default, args, test_utils=checks[:2])


CASE = Case("lstm", I=5, H=7)


def others() -> Iterator[tuple[str, Case]]:
    """Layers that differ from CASE in one way, and what the refusal says about them."""
    yield "gru with 5 features", replace(CASE, cell="gru", I=5)
    yield "lstm with 6 features", replace(CASE, I=6)
    yield "hidden_size 8", replace(CASE, H=8)
    yield "proj_size 4", replace(CASE, proj=True)
    yield "2 directions", replace(CASE, directions=2)
    yield "float64", replace(CASE, dtype="float64")
    yield "with ids", replace(CASE, ids=True)


@pytest.mark.parametrize(("words", "other"), [*others()])
def test_weights_packed_for_another_layer_are_refused(words: str, other: Case, compiled: str) -> None:
    call, wrong = call_of(CASE, compiled), pack(call_of(other, compiled))
    with pytest.raises(RuntimeError, match=f"packed: expected weights packed for lstm .*, but got .*{words}"):
        forward(*call, wrong)


def test_weights_packed_for_another_instruction_set_are_refused() -> None:
    impls = sf.available_impls()[2:]
    for one, other in itertools.pairwise(impls):
        call = call_of(CASE, one)
        with pytest.raises(RuntimeError, match=f"by '{one}', but got .* by '{other}'"):
            forward(*call, pack(call, other))


def test_what_is_no_packed_weights_is_refused(compiled: str) -> None:
    call = call_of(CASE, compiled)
    packed = pack(call)
    wrong: list[tuple[str, Any]] = [
        ("expected a contiguous one-dimensional uint8 tensor on the CPU", packed.float()),
        ("expected a contiguous one-dimensional uint8 tensor on the CPU", packed.view(torch.int8)),
        ("expected a contiguous one-dimensional uint8 tensor on the CPU", packed[None]),
        ("expected a contiguous one-dimensional uint8 tensor on the CPU", packed.repeat(2)[::2]),
        ("but got 0 bytes", packed[:0]),
        ("but got 63 bytes", packed[:63]),
        (f"packed: expected {len(packed)} bytes but got {len(packed) - 1}", packed[:-1]),
        (f"packed: expected {len(packed)} bytes but got {len(packed) + 64}", torch.cat([packed, packed[:64]])),
        ("expected memory aligned to 64 bytes", torch.cat([packed[:16], packed])[16:]),
        ("but got bytes that this build did not pack", torch.zeros_like(packed)),
        ("but got bytes that this build did not pack", torch.full_like(packed, 255)),
        ("but got other bytes", torch.cat([packed[:32], packed[:32] * 0 + 255, packed[64:]])),
    ]
    for words, t in wrong:
        with pytest.raises(RuntimeError, match=words):
            forward(*call, t)
    freed = packed.clone()
    freed.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="packed: expected memory for shape"):
        forward(*call, freed)


def test_training_takes_no_packed_weights(compiled: str) -> None:
    call = call_of(CASE, compiled)
    with pytest.raises(RuntimeError, match="want_saved: expected False with packed"):
        forward(*call[:10], True, *call[11:], pack(call))


def test_pack_weights_refuses_bad_arguments(compiled: str) -> None:
    _, weights, *_ = call_of(CASE, compiled)
    pack_weights = torch.ops.seqcls_fast.pack_weights.default
    for words, args in (
        ("weights: expected 2 to 5 tensors per direction for cell lstm but got 1", (weights[:1], "lstm", 1, compiled)),
        ("directions: expected 1 or 2 but got 3", (weights, "lstm", 3, compiled)),
        ("cell: expected one of .* but got 'mgu'", (weights, "mgu", 1, compiled)),
        ("w_ih: expected 3 \\* hidden_size rows but got", (weights, "gru", 1, compiled)),
        ("impl: expected one of auto, .* but got 'sse'", (weights, "lstm", 1, "sse")),
        ("w_ih: expected dtype float32 but got float64", ([weights[0].double(), *weights[1:]], "lstm", 1, compiled)),
        ("weights: expected dtype .* but got int64", ([w.long() for w in weights], "lstm", 1, compiled)),
        ("w_hh: expected shape", ([weights[0], weights[1][:, :-1], *weights[2:]], "lstm", 1, compiled)),
    ):
        with pytest.raises(RuntimeError, match=words):
            pack_weights(*args)

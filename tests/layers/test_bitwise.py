"""Results that must be equal bit for bit: a row's forward result in any batch, padding, layout and number of threads;
a sequence in one call or in chunks; and every result from one run to the next.

Only the compiled implementations promise the first two. The reference and torch's own layer call torch's matmul, whose
bits depend on the size of the batch.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from seqcls_fast import ops
from support.cases import CELLS, FLOATS, HALVES, Case, build, only
from support.checks import Named, assert_same_bits, batch_sizes, gradients, guarded, layer

# (T, B, I, H): sizes that no vector width divides, more rows than a tile has, few rows with many units
SHAPES = [(7, 9, 5, 33), (11, 6, 16, 64), (4, 19, 130, 100), (3, 5, 1, 3), (5, 2, 40, 257)]
GRID = [
    Case(cell, *shape, directions=2, lengths="zeros", dtype=dtype)
    for cell in CELLS
    for dtype in FLOATS + HALVES
    for shape in SHAPES
]
PROJECTED = only(*(c for c in GRID if c.cell == "lstm" and c.T != 3), proj=True, bias=False)
FEW = [c for c in GRID if c.B in (9, 2) and c.dtype in ("float32", "bfloat16")]
FEW += only(*(c for c in FEW if c.B == 2), directions=1)


def numbers(case: Case) -> tuple[Named, Tensor]:
    problem = build(case)
    assert problem.lengths is not None
    return {name: t.to(case.torch_dtype) for name, t in problem.inputs.items()}, problem.lengths


def forward(inputs: Named, case: Case, impl: str, **options: Any) -> Named:
    with torch.no_grad():
        return layer(inputs, cell=case.cell, impl=impl, **options)


def rows(named: Named, index: list[int]) -> Named:
    """Some rows of the batch, in every tensor that has a batch dimension."""
    return {name: t[:, index] if name in ("x", "h0", "c0", "output", "h_n", "c_n") else t for name, t in named.items()}


@pytest.mark.parametrize("case", GRID + PROJECTED, ids=str)
def test_row_alone_and_in_other_batches(case: Case, compiled: str) -> None:
    inputs, lengths = numbers(case)
    whole = forward(inputs, case, compiled, lengths=lengths)
    everyone = list(range(case.B))
    for index in [*([b] for b in everyone), everyone[::-1], everyone[1:], everyone[::2]]:
        part = forward(rows(inputs, index), case, compiled, lengths=lengths[index])
        assert_same_bits(part, rows(whole, index), f"rows {index}")


@pytest.mark.parametrize("case", GRID + PROJECTED, ids=str)
def test_every_way_to_ask(case: Case, compiled: str) -> None:
    """No bit depends on padding, layout, alignment, want_output, or whether inputs require gradients."""
    inputs, lengths = numbers(case)
    whole = forward(inputs, case, compiled, lengths=lengths)
    states = {name: t for name, t in whole.items() if name != "output"}

    longer = inputs | {"x": torch.cat([inputs["x"], inputs["x"]])}
    padded = forward(longer, case, compiled, lengths=lengths)
    assert not padded["output"][case.T :].any()
    assert_same_bits(padded | {"output": padded["output"][: case.T]}, whole, "padded")

    assert_same_bits(forward(inputs, case, compiled, lengths=lengths, want_output=False), states, "want_output=False")
    unaligned = {name: guarded(t) for name, t in inputs.items()}
    assert_same_bits(forward(unaligned, case, compiled, lengths=lengths), whole, "unaligned")
    scattered = inputs | {"x": inputs["x"].permute(2, 1, 0).contiguous().permute(2, 1, 0)}
    assert_same_bits(forward(scattered, case, compiled, lengths=lengths), whole, "strided")
    batch_first = forward(
        inputs | {"x": inputs["x"].transpose(0, 1)}, case, compiled, lengths=lengths, batch_first=True
    )
    assert_same_bits(batch_first | {"output": batch_first["output"].transpose(0, 1)}, whole, "batch_first")
    for want_output in (True, False):
        leaves = {name: t.detach().requires_grad_() for name, t in inputs.items()}
        with_graph = layer(leaves, cell=case.cell, impl=compiled, lengths=lengths, want_output=want_output)
        assert_same_bits(with_graph, whole if want_output else states, f"with a graph, want_output={want_output}")

    full = torch.full((case.B,), case.T)
    unpadded = forward(inputs, case, compiled)
    assert_same_bits(forward(inputs, case, compiled, lengths=full), unpadded, "full lengths")


@pytest.mark.parametrize("case", GRID + PROJECTED, ids=str)
def test_packed_as_lengths(case: Case, compiled: str) -> None:
    inputs, lengths = numbers(case)
    order = (lengths.clamp(min=1)).argsort(descending=True, stable=True).tolist()
    inputs, lengths = rows(inputs, order), lengths.clamp(min=1)[order]
    whole = forward(inputs, case, compiled, lengths=lengths)
    sizes = batch_sizes(lengths)

    def pack(t: Tensor) -> Tensor:
        return torch.cat([t[step, :n] for step, n in enumerate(sizes.tolist())])

    packed = forward(inputs | {"x": pack(inputs["x"])}, case, compiled, batch_sizes=sizes)
    assert_same_bits(packed, whole | {"output": pack(whole["output"])})


@pytest.mark.parametrize("batch", [1, 2, 5, 40])
@pytest.mark.parametrize("hidden", [33, 256, 300])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS)
def test_thread_count(cell: str, dtype: str, hidden: int, batch: int, compiled: str) -> None:
    for directions in (1, 2):
        case = Case(cell, T=4, B=batch, I=20, H=hidden, directions=directions, lengths="random", dtype=dtype)
        inputs, lengths = numbers(case)
        torch.set_num_threads(1)
        wanted = forward(inputs, case, compiled, lengths=lengths)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert_same_bits(forward(inputs, case, compiled, lengths=lengths), wanted, f"{threads} threads")


CHUNKS = [(1,) * 11, (4, 7), (10, 1), (2, 3, 6)]
STREAMS = [c for c in GRID if c.T == 11 and not (c.cell == "lstm" and c.dtype in HALVES)]  # c_n is rounded to 16 bits
STREAMS += [Case("lstm", 11, 3, 5, 33, proj=True, dtype=dtype) for dtype in FLOATS]


@pytest.mark.parametrize("case", only(*STREAMS, directions=1, lengths="none"), ids=str)
def test_stream_in_chunks(case: Case, compiled: str) -> None:
    inputs = {name: t.to(case.torch_dtype) for name, t in build(case).inputs.items()}
    whole = forward(inputs, case, compiled)
    for sizes in CHUNKS:
        carried, outputs = dict(inputs), []
        for chunk in inputs["x"].split(sizes):
            result = forward(carried | {"x": chunk}, case, compiled)
            outputs.append(result["output"])
            carried |= {name.replace("_n", "0"): t for name, t in result.items() if name != "output"}
        assert_same_bits(result | {"output": torch.cat(outputs)}, whole, f"chunks {sizes}")


@pytest.mark.parametrize("dtype", FLOATS + HALVES)
def test_changed_weights_are_seen(dtype: str, compiled: str) -> None:
    """Packed weights may be kept between calls, found by content: even one changed element must be seen."""
    case = Case("lstm", T=3, B=2, I=7, H=21, directions=2, proj=True, dtype=dtype)
    inputs = {name: t.to(case.torch_dtype) for name, t in build(case).inputs.items()}
    for _ in range(2):
        before = forward(inputs, case, compiled)
    for name, t in inputs.items():
        if "[" not in name:
            continue
        for place in (0, t.numel() // 2, -1):
            values, old = t.view(-1).numpy() if dtype in FLOATS else t.view(-1), t.view(-1)[place].clone()
            values[place] = -3.0  # through numpy: torch does not count this change as a new version
            fresh = {key: guarded(value) for key, value in inputs.items()}
            after = forward(inputs, case, compiled)
            assert not torch.equal(after["output"], before["output"]), f"{name} changed unseen at {place}"
            assert_same_bits(after, forward(fresh, case, compiled), name)
            values[place] = old
    assert_same_bits(forward(inputs, case, compiled), before, "restored")


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("cell", CELLS)
def test_next_step_reads_what_was_stored(cell: str, dtype: str, impl: str) -> None:
    """In 16 bits h is rounded once in each step, and the next step starts from the rounded h; c stays in float32. So
    when each step is repeated in float64 from the stored h, nearly every element rounds to the same number. torch's
    own layer does not promise this: in some 16-bit dtypes it rounds every sum, in the others it runs in float32."""
    if impl == "torch":
        pytest.skip("torch's own layer rounds more often in 16 bits, or not between steps")
    case = Case(cell, T=6, B=8, I=5, H=33, dtype=dtype)
    inputs = build(case).inputs
    narrow = {name: t.to(case.torch_dtype) for name, t in inputs.items()}
    stored = layer(narrow, cell=cell, impl=impl)["output"]
    state = {name: inputs[name] for name in ("h0", "c0") if name in inputs}
    for t, found in enumerate(stored):
        replayed = layer(inputs | state | {"x": inputs["x"][t : t + 1]}, cell=cell)
        off = replayed["output"][0].to(case.torch_dtype) != found
        assert off.float().mean() < 0.05, f"step {t}: {int(off.sum())} of {off.numel()} elements differ"
        state = {"h0": found.double()[None]} | ({"c0": replayed["c_n"]} if cell == "lstm" else {})


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("case", FEW, ids=str)
def test_repeatable(case: Case, threads: int, impl: str) -> None:
    """Results and gradients are the same again after other work, which leaves other numbers in reused buffers."""
    torch.set_num_threads(threads)
    inputs, lengths = numbers(case)
    cotangents = {name: t.to(case.torch_dtype) for name, t in build(case).cotangents.items()}

    def once(scale: float = 1.0) -> Named:
        leaves = {name: (t * scale).requires_grad_() for name, t in inputs.items()}
        results = layer(leaves, cell=case.cell, impl=impl, lengths=lengths)
        return results | gradients(results, leaves, cotangents)

    first = once()
    for _ in range(3):
        once(0.5)
        assert_same_bits(once(), first)


def test_auto_is_one_of_them() -> None:
    """impl="auto" and use_impl only choose one of the implementations: the bits are those of that one."""
    case = Case("gru", *SHAPES[0], lengths="zeros")
    inputs, lengths = numbers(case)

    def output(impl: str) -> Tensor:
        return forward(inputs, case, impl, lengths=lengths)["output"]

    auto = output("auto")
    assert any(torch.equal(auto, output(name)) for name in ops.available_impls())
    for name in ops.available_impls():
        with ops.use_impl(name):
            assert torch.equal(output("auto"), output(name))
    assert torch.equal(output("auto"), auto)

"""AMX: the kernels of csrc/cpu/kernels/amx.cpp with emulated tiles, under the tests that every instruction set passes;
the emulation itself; and the real object, which is compiled and read, but not run.

`pytest --impl amx-emulated` runs any other test of the kernels with it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from amx import build
from layers import test_bitwise as bitwise
from simt.build import build as build_program
from simt.build import why_no_plugin
from support.cases import LARGE, WIDE, Case, pairwise
from support.cases import build as problem
from support.checks import check, expected

pytestmark = pytest.mark.skipif(why_no_plugin() is not None, reason=str(why_no_plugin()))

HALF = [case for case in (*pairwise(), *pairwise(seed=1), *LARGE, *WIDE) if case.dtype == "bfloat16"]
# What tiles do not do, and what they are not for: more than two tiles of rows, more than four blocks.
OTHERS = [
    Case("gru", T=3, B=5, I=7, H=33),
    Case("lstm", T=3, B=5, I=7, H=33, dtype="float16"),
    Case("lstm_peephole", T=3, B=5, I=7, H=33, dtype="bfloat16"),
    Case("gru", T=5, B=5, I=7, H=33, dtype="bfloat16", noise="state"),
]
TILES = [
    *(Case(cell, T=3, B=B, I=31, H=65, dtype="bfloat16") for cell in ("gru", "lstm", "rnn_tanh") for B in (1, 16, 33)),
    Case("lstm", T=40, B=7, I=64, H=130, dtype="bfloat16", lengths="random", directions=2),
    Case("gru", T=9, B=40, I=33, H=48, dtype="bfloat16", resets="some", learnt=True),
    Case("lstm", T=7, B=50, I=40, H=72, dtype="bfloat16", proj=True, lengths="zeros"),
]
THREADS = [case for case in (*LARGE, *WIDE) if case.dtype == "bfloat16"]
BITS = [case for case in (*bitwise.GRID, *bitwise.PROJECTED) if case.dtype == "bfloat16" and case.T != 11]


@pytest.fixture(scope="module")
def tiles() -> Any:
    return build.load_plugin()


@pytest.mark.parametrize("case", [*HALF, *TILES], ids=str)
def test_matches_reference(case: Case, tiles: Any) -> None:
    before = tiles.products()
    check(case, build.NAME)
    lengths = problem(case).lengths
    assert (tiles.products() > before) == (lengths is None or bool(lengths.any()))


@pytest.mark.parametrize("case", OTHERS, ids=str)
def test_what_tiles_do_not_do(case: Case, tiles: Any) -> None:
    before = tiles.products()
    check(case, build.NAME)
    assert tiles.products() == before


@pytest.mark.parametrize("case", THREADS, ids=str)
def test_with_threads(case: Case, tiles: Any) -> None:
    expected(case)  # computed here and kept, so that the reference runs on one thread
    for threads in (2, 3):
        torch.set_num_threads(threads)
        check(case, build.NAME)


@pytest.mark.parametrize("case", BITS, ids=str)
def test_same_bits(case: Case, tiles: Any) -> None:
    bitwise.test_row_alone_and_in_other_batches(case, build.NAME)
    bitwise.test_every_way_to_ask(case, build.NAME)


@pytest.mark.parametrize("cell", ["rnn_tanh", "gru", "lstm"])
def test_gradients_repeat(cell: str, tiles: Any) -> None:
    """The same gradients each time, and with any number of threads those of one: see tests/layers/test_bitwise.py."""
    case = Case(cell, T=33, B=21, I=19, H=50, dtype="bfloat16", lengths="zeros")
    first = bitwise_gradients(case, 1)
    for threads in (1, 2, 3):
        again = bitwise_gradients(case, threads)
        bitwise.assert_same_bits(again, first, f"{threads} threads")


def bitwise_gradients(case: Case, threads: int) -> dict[str, torch.Tensor]:
    torch.set_num_threads(threads)
    inputs, lengths = bitwise.numbers(case)
    leaves = {name: t.clone().requires_grad_() for name, t in inputs.items()}
    results = bitwise.layer(leaves, cell=case.cell, impl=build.NAME, lengths=lengths)
    cotangents = {name: torch.ones_like(t) for name, t in results.items()}
    return {**{n: t.detach() for n, t in results.items()}, **bitwise.gradients(results, leaves, cotangents)}


def test_denormal_numbers_are_zeros(tiles: Any) -> None:
    """The instruction treats them so, whatever mode the CPU is in; sums of floats beside it do not."""
    case = Case("rnn_relu", T=1, B=1, I=32, H=16, dtype="bfloat16", bias=False, state=False)
    inputs, _ = bitwise.numbers(replace(case, lengths="random"))
    tiny = {name: torch.full_like(t, 2.0**-130 if name == "x" else 1.0) for name, t in inputs.items()}
    assert not bitwise.forward(tiny, case, build.NAME)["h_n"].any()
    normal = tiny | {"x": torch.full_like(tiny["x"], 2.0**-120)}
    assert (bitwise.forward(normal, case, build.NAME)["h_n"] == 2.0**-115).all()


# ---- The emulation

FAULTS = {
    "unconfigured": "without a configuration",
    "released": "without a configuration",
    "palette": "the palette is not 1",
    "start": "the first row is not 0",
    "reserved": "a reserved byte",
    "beyond": "a tile beyond the eight",
    "rows": "an impossible size",
    "bytes": "an impossible size",
    "half": "an impossible size",
    "absent": "a tile is used that is not configured",
    "same": "the same tile",
    "fit": "do not fit each other",
}


@pytest.fixture(scope="module")
def detectors() -> Path:
    return build_program([Path(__file__).parent / "detectors.cpp"], "amx_detectors")


def test_values_of_the_instructions(detectors: Path) -> None:
    done = subprocess.run([detectors], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "right\n")


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_end_the_program(fault: str, detectors: Path) -> None:
    done = subprocess.run([detectors, fault], capture_output=True, text=True, check=False)
    assert done.returncode < 0
    assert FAULTS[fault] in done.stderr


# ---- The real object

TILE = re.compile(r"\b(tdpbf16ps|tileloadd|tilestored|tilezero|ldtilecfg|tilerelease)\b")


def test_the_loop_of_the_real_object(tmp_path: Path) -> None:
    """Four products for four loads, and little else; no tile is stored and loaded again within it."""
    known = build.setup()
    flags = known["_flags"]
    if "amx_bf16" not in flags["ISAS"]:
        pytest.skip("compiles for another CPU")
    if shutil.which("objdump") is None:
        pytest.skip("no objdump")
    built = build.ROOT / "build/temp/kernels_amx_bf16.o"  # current where the extension was built here
    command = known["cxx"](*known["CXX_FLAGS"], *flags["kernel_flags"]("amx_bf16"))
    if not built.exists():
        built = tmp_path / "kernels_amx_bf16.o"
    known["_compile"]["compile_object"](built, flags["kernel_source"]("amx_bf16"), *command)
    text = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", built], capture_output=True, text=True, check=True
    ).stdout
    loops = list(loops_of(text))
    assert loops
    best = [loop for loop in loops if sum("tdpbf16ps" in line for line in loop) == 4]
    assert best, "no loop has four products"
    for loop in best:
        names = [match[1] for line in loop if (match := TILE.search(line))]
        assert sorted(set(names)) == ["tdpbf16ps", "tileloadd"]
        assert names.count("tileloadd") == 4
        assert len(loop) <= 20, "\n".join(loop)
    scopes = {name: len(re.findall(rf"\b{name}\b", text)) for name in ("ldtilecfg", "tilerelease")}
    assert scopes["ldtilecfg"] == 16  # four cells, each with forward, backward and two gradients
    assert scopes["tilerelease"] > 0  # the ends of several functions may share one


def loops_of(text: str) -> Iterator[list[str]]:
    """The innermost loops that have a product of tiles: from the target of a jump backwards to the jump."""
    lines = [line.split("\t", 1) for line in text.splitlines() if re.match(r"\s+[0-9a-f]+:\t", line)]
    places = {int(address.strip(" :"), 16): k for k, (address, _) in enumerate(lines)}
    spans = []
    for k, (_, words) in enumerate(lines):
        jump = re.match(r"j[a-z]+\s+([0-9a-f]+)\b", words)
        start = places.get(int(jump[1], 16)) if jump else None
        if start is not None and start < k and not words.startswith("jmp"):
            spans.append((start, k))
    with_products = [s for s in spans if any("tdpbf16ps" in words for _, words in lines[s[0] : s[1] + 1])]
    for start, end in with_products:
        if not any(start <= a and b <= end and (a, b) != (start, end) for a, b in with_products):
            yield [words for _, words in lines[start : end + 1]]

"""The table of docs/transforms.md, made by running every row on torch.nn's layers and on ours.

    python tests/transforms/transforms.py [--check]

writes the table; --check runs ours alone, writes nothing and exits with 1 if anything fails. The checks of the rows
are in transform_checks.py.
"""

from __future__ import annotations

import argparse
import logging
import platform
import re
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import transform_checks as checks
from transform_cases import Library, Ours, TorchNN, Wrong

import seqcls_fast as sf

CELLS = ("RNN", "GRU", "LSTM")


class Row(NamedTuple):
    """One line of the table. The flags say which tests leave it out."""

    name: str
    check: Callable[[Library, str], None]
    slow: bool = False  # takes seconds, or is equal for all implementations: tested on one
    kernels: bool = False  # not promised without kernels: the reference loops over time in Python
    cpu: bool = False  # torch.nn's result depends on the CPU


ROWS = [
    Row("`torch.compile(fullgraph=True)`, inference", checks.compile_inference),
    Row("`torch.compile(fullgraph=True)`, training", checks.compile_training),
    Row("`torch.compile(fullgraph=True)`, training, inductor", checks.compile_inductor, slow=True),
    Row("compiled, dynamic T and B without recompiling", checks.compile_dynamic, kernels=True),
    Row("compiled, ragged batch", checks.compile_ragged),
    Row("compiled, `PackedSequence` in and out", checks.compile_packed),
    Row("`torch.export`, dynamic T and B", checks.export_dynamic, kernels=True),
    Row("`torch.export`, ragged batch", checks.export_ragged, kernels=True),
    Row("AOTInductor package, dynamic T and B", checks.aot_inductor, slow=True, kernels=True),
    Row("ONNX in onnxruntime, dynamic T and B", checks.onnx_dynamic, slow=True, kernels=True),
    Row("ONNX in onnxruntime, ragged batch with empty rows", checks.onnx_ragged, slow=True, kernels=True),
    Row("`torch.jit.trace`, saved, loaded, at another T and B", checks.jit_trace, kernels=True),
    Row("`torch.fx.symbolic_trace`, traced once more", checks.fx_trace),
    Row("`torch.fx.symbolic_trace`, ragged batch", checks.fx_ragged),
    Row("`vmap` over inputs", checks.vmap_inputs),
    Row("`vmap` over inputs and lengths", checks.vmap_ragged),
    Row("per-sample gradients, `vmap(grad(...))`", checks.per_sample_gradients),
    Row("per-sample gradients, ragged samples", checks.per_sample_ragged),
    Row("ensembles, `stack_module_state`", checks.ensemble),
    Row("`torch.func.jvp`", checks.jvp),
    Row("dual numbers, `autograd.forward_ad`", checks.dual_numbers),
    Row("`torch.func.linearize`", checks.linearize),
    Row("`torch.func.jacfwd`", checks.jacfwd),
    Row("`torch.func.jacrev`", checks.jacrev),
    Row("`torch.func.hessian`", checks.hessian),
    Row("double backward, float64", checks.double_backward_float64),
    Row("double backward, float32", checks.double_backward_float32),
    Row("double backward, ragged batch", checks.double_backward_ragged),
    Row("autocast: all results in bfloat16, padded and ragged", checks.autocast, cpu=True),
    Row("`GradScaler` step under float16 autocast", checks.grad_scaler, cpu=True),
    Row("bfloat16 module trains", checks.bfloat16, cpu=True),
    Row("float16 module trains", checks.float16, cpu=True),
    Row("output changed in place before backward", checks.in_place),
    Row("second backward through a retained graph", checks.retained_graph),
    Row("activation checkpointing", checks.checkpointing),
    Row("deterministic mode: the same bits every time", checks.deterministic, cpu=True),
    Row("empty rows in a ragged batch", checks.zero_lengths),
    Row("a stream in chunks has the bits of the whole", checks.chunks, kernels=True, cpu=True),
    Row("a row has the same bits in any batch", checks.batch_independence, kernels=True, cpu=True),
    Row("`functional_call` with other weights", checks.other_weights),
]
BEGIN, END = "<!-- transforms:begin -->", "<!-- transforms:end -->"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "transforms.md"


def outcome(row: Row, library: Library, cell: str) -> str:
    """The text for the table: ``yes``, or ``no`` and the reason."""
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row.check(library, cell)
    except Wrong as wrong:
        return f"no ({wrong.word})"
    except Exception as error:
        return f"no ({type(error).__name__})"
    return "yes"


def entry(outcomes: dict[str, str]) -> str:
    """One field of the table: cells are grouped by outcome, and not named where all have the same."""
    groups: dict[str, list[str]] = {}
    for cell, said in outcomes.items():
        groups.setdefault(said, []).append(cell)
    if len(groups) == 1:
        return next(iter(groups))
    return "; ".join(f"{', '.join(cells)}: {said}" for said, cells in groups.items())


def read_entry(text: str) -> dict[str, str]:
    """The inverse of :func:`entry`."""
    if ": " not in text:
        return dict.fromkeys(CELLS, text)
    groups = (part.split(": ") for part in text.split("; "))
    return {cell: said for cells, said in groups for cell in cells.split(", ")}


class Table(NamedTuple):
    """The table of the page: torch's version, the machine, and the fields of each row by cell."""

    torch: str
    machine: str
    theirs: dict[str, dict[str, str]]
    ours: dict[str, dict[str, str]]


def this_machine() -> str:
    return f"{platform.system()} {platform.machine()}"


def read_table() -> Table:
    section = PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    version, machine = re.findall(r"torch (\d+\.\d+\.\d+)\S*, .*, ([^,]+), CPU only", section)[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")]
    theirs, ours = ({line[0]: read_entry(line[column]) for line in lines[2:]} for column in (1, 2))
    return Table(version, machine, theirs, ours)


def write_table(results: dict[str, tuple[dict[str, str], dict[str, str]]]) -> None:
    source = (
        f"torch {torch.__version__.split('+')[0]}, seqcls_fast {sf.__version__}, Python {platform.python_version()}, "
        f"{this_machine()}, CPU only, torch's default settings. Written by `tests/transforms/transforms.py` from a "
        "run. `yes`: the results, gradients included where there are any, agree with torch.nn's in float64, eager, one "
        "row of the batch at a time. `no` names the exception, or says what was wrong with the result. Where no cell "
        "is named, RNN, GRU and LSTM agree."
    )
    lines = [
        *textwrap.wrap(source, 120, break_long_words=False, break_on_hyphens=False),
        "",
        "| | torch.nn | seqcls_fast |",
        "|---|---|---|",
        *(f"| {name} | {entry(theirs)} | {entry(ours)} |" for name, (theirs, ours) in results.items()),
    ]
    head, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    text = "\n".join([BEGIN, *lines, END])
    PAGE.write_text(head + text + rest.split(END)[1], encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Run every transform on torch.nn's layers and ours.")
    parser.add_argument("--check", action="store_true", help="only ours, and write nothing; 1 if anything fails")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # exporters that fail print long messages
    results = {}
    for row in ROWS:
        theirs = {} if options.check else {cell: outcome(row, TorchNN, cell) for cell in CELLS}
        ours = {cell: outcome(row, Ours, cell) for cell in CELLS}
        results[row.name] = theirs, ours
        print(f"{row.name}: {entry(ours)}" + ("" if options.check else f" (torch.nn: {entry(theirs)})"), flush=True)
    if not options.check:
        write_table(results)
    return int(any(said != "yes" for _, ours in results.values() for said in ours.values()))


if __name__ == "__main__":
    sys.exit(main())

"""Conditions under which a layer must work: offsets beyond 2^31, NaN and inf, long sequences in little memory, several
Python threads on one module, a fork. All but NaN and inf are tested on the compiled implementations only, because they
concern their code."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import seqcls_fast as sf
from support.cases import CELLS, GATES, HALVES, Case, build
from support.checks import gradients, layer, roundings
from support.tolerances import tolerance

ROOT = Path(__file__).resolve().parents[2]


def run_script(text: str, *args: str, timeout: float = 120) -> str:
    """Runs Python code in another process, in the project's folder."""
    done = subprocess.run(
        [sys.executable, "-c", text, *args], cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout


FAR = 2**30 + 7  # elements between two rows: the third row begins beyond 2^31


@pytest.mark.alone
@pytest.mark.parametrize("axis", ["time", "batch", "features", "packed"])
def test_strides_beyond_int32(axis: str, tmp_path: Path, compiled: str) -> None:
    """x lies in a sparse file of 8 GiB, which takes disk space only for the pages that are written."""
    case = Case("gru", T=3, B=3, I=3, H=9)
    inputs = {name: t.float() for name, t in build(case).inputs.items()}
    options: dict[str, Any] = {"cell": "gru", "impl": compiled}
    if axis == "packed":
        options["batch_sizes"] = torch.tensor([2, 1])
        inputs["x"] = inputs["x"][0]
        inputs["h0"] = inputs["h0"][:, :2].contiguous()
    shape = inputs["x"].shape
    strides = {"time": (FAR, 7, 1), "batch": (7, FAR, 1), "features": (5, 1, FAR), "packed": (FAR, 1)}[axis]
    file = torch.from_file(str(tmp_path / "sparse"), shared=True, size=2 * FAR + 64, dtype=torch.float32)
    far = file.as_strided(shape, strides).copy_(inputs["x"])
    assert 2 * max(far.stride()) > 2**31

    def run(x: Tensor) -> dict[str, Tensor]:
        leaves = {name: t.detach().requires_grad_() for name, t in (inputs | {"x": x}).items()}
        results = layer(leaves, **options)
        return results | gradients(results, leaves, {name: torch.ones_like(t) for name, t in results.items()})

    torch.testing.assert_close(run(far), run(inputs["x"]), rtol=0, atol=0)


def torch_layer(cell: str, case: Case, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """torch.nn's own layer on the same numbers."""
    kind = {"gru": nn.GRU, "lstm": nn.LSTM}.get(cell, nn.RNN)
    options = {} if cell in ("gru", "lstm") else {"nonlinearity": cell[4:]}
    dtype = inputs["x"].dtype
    module = kind(case.I, case.H, bias=case.bias, bidirectional=case.directions == 2, dtype=dtype, **options)
    names = {"w_ih": "weight_ih_l0", "w_hh": "weight_hh_l0", "b_ih": "bias_ih_l0", "b_hh": "bias_hh_l0"}
    with torch.no_grad():
        for name, t in inputs.items():
            if "[" in name:
                getattr(module, names[name[:-3]] + ("_reverse" if name.endswith("[1]") else "")).copy_(t)
        states = (inputs["h0"], inputs["c0"]) if cell == "lstm" else inputs["h0"]
        output, h_n = module(inputs["x"], states)
    return {"output": output} | (dict(zip(("h_n", "c_n"), h_n, strict=True)) if cell == "lstm" else {"h_n": h_n})


def unusual(case: Case) -> dict[str, Tensor]:
    """Inputs with NaN, inf or huge numbers, each in another row of the batch; row 0 is ordinary."""
    inputs = {name: t.to(case.torch_dtype) for name, t in build(case).inputs.items()}
    inputs["x"][1, 1, 2] = float("nan")
    inputs["x"][2, 2, 0] = float("inf")
    inputs["x"][0, 3, 1] = -float("inf")
    inputs["x"][3, 4] = float("inf")
    inputs["x"][1, 5, 3] = 1e4  # in one feature: where several cancel, a sum keeps the rounding errors of 1e4
    inputs["h0"][:, 6, 1] = float("nan")
    inputs["h0"][:, 7, 2] = float("inf")
    if "c0" in inputs:
        inputs["c0"][:, 8, 0] = -float("inf")
        inputs["c0"][:, 9, -1] = float("nan")
    return inputs


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("hidden", [3, 16, 37])
def test_nan_and_inf_as_torch(cell: str, dtype: str, hidden: int, impl: str) -> None:
    case = Case(cell, T=5, B=11, I=6, H=hidden, directions=2, dtype=dtype)
    inputs = unusual(case)
    halves = dtype in HALVES  # compared with float32: torch may overflow where ours does not
    found = layer(inputs, cell=cell, impl=impl)
    wanted = torch_layer(cell, case, {name: t.float() if halves else t for name, t in inputs.items()})
    for name, want in wanted.items():
        got = found[name].to(want.dtype)
        want = want.to(case.torch_dtype).to(want.dtype)
        for kind in (torch.isnan, torch.isposinf, torch.isneginf):
            elsewhere = (kind(got) != kind(want)).nonzero()
            assert not len(elsewhere), (
                f"{name}: {kind.__name__} differs first at (t, row, unit) {elsewhere[0].tolist()}"
            )
        finite = want.isfinite()
        largest = want.where(finite, 0).abs().amax((0, 2), keepdim=True)  # for each row, since some hold 1e4
        off = (got - want).where(finite, 0).abs() / largest.clamp(min=torch.finfo(want.dtype).tiny)
        assert off.max() <= tolerance(case.torch_dtype, roundings(case, name, impl)), name


@pytest.mark.parametrize("cell", CELLS)
def test_nan_stays_in_its_row(cell: str, impl: str) -> None:
    """NaN in one row leaves the input gradients of ordinary rows as they are; gradients of the weights become NaN."""
    case = Case(cell, T=5, B=11, I=6, H=19, directions=2)
    inputs = {name: t.requires_grad_() for name, t in unusual(case).items()}
    results = layer(inputs, cell=cell, impl=impl)
    found = gradients(results, inputs, {name: torch.ones_like(t) for name, t in results.items()})
    clean = {name: t[:, :1] if name in ("x", "h0", "c0") else t for name, t in inputs.items()}
    results = layer(clean, cell=cell, impl=impl)
    wanted = gradients(results, clean, {name: torch.ones_like(t) for name, t in results.items()})
    for name in ("d x", "d h0"):
        torch.testing.assert_close(found[name][:, :1], wanted[name], rtol=1e-4, atol=1e-5)
    assert found["d w_ih[0]"].isnan().any()
    assert found["d w_hh[1]"].isnan().any()


MEMORY = """
import re, sys, torch
from pathlib import Path
from seqcls_fast import ops
impl, gates = sys.argv[1], {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}
torch.set_num_threads(1)
T, I, H = 200_000, 8, 32

def peak():  # MiB; ru_maxrss would start from that of the parent process
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

def growth(T, batch, cell, want_output=False, dtype=torch.float32):
    x = torch.ones(1, batch, I, dtype=dtype).expand(T, -1, -1)
    w_ih, w_hh = torch.ones(gates[cell] * H, I, dtype=dtype) / H, torch.ones(gates[cell] * H, H, dtype=dtype) / H
    before = peak()
    with torch.inference_mode():
        ops.rnn_layer(x, [w_ih] * 2, [w_hh] * 2, cell=cell, want_output=want_output, impl=impl)
    return peak() - before

for cell in gates:
    for batch, dtype in ((1, torch.float32), (3, torch.float32), (1, torch.bfloat16)):
        growth(100, batch, cell, dtype=dtype)
        grown = growth(T, batch, cell, dtype=dtype)
        assert grown < 4, f"{cell}, B = {batch}, {dtype}: {grown:.1f} MiB more for {T} steps"
seen = growth(T, 1, "gru", want_output=True)
assert seen > 0.8 * T * 2 * H * 4 / 2**20, f"this check sees no growth where there is some: {seen:.1f} MiB"
"""


@pytest.mark.alone
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of the memory from /proc")
def test_inference_without_output_needs_no_memory_per_step(compiled: str) -> None:
    """want_output=False needs memory of O(B * H). x has stride 0 over time and takes no memory either, so the process
    must not grow with T. The same holds for a batch of one row."""
    run_script(MEMORY, compiled)


# GNU OpenMP does not work after a fork: torch's kernels hang in a child of a process that used OpenMP threads. Every
# tensor here has fewer than 32768 elements, for which torch uses one thread, so that only our kernels use two.
FORK = """
import os, signal, sys, torch
import seqcls_fast as sf
torch.set_num_threads(2)
torch.manual_seed(0)
module = getattr(sf, sys.argv[2])(64, 48, bidirectional=True)
x, lengths, ones = torch.randn(8, 32, 64), torch.randint(0, 9, (32,)), torch.ones(8, 32, 96)

def work():
    with sf.use_impl(sys.argv[1]):
        output, _ = module(x, lengths=lengths)
        return [output.detach(), *torch.autograd.grad(output, list(module.parameters()), ones)]

first = work()
child = os.fork()
if child == 0:
    signal.alarm(20)  # a hang becomes a signal, which the parent reports
    os._exit(0 if all(map(torch.equal, first, work())) else 3)
_, status = os.waitpid(child, 0)
assert all(map(torch.equal, first, work())), "the parent computes something else after a fork"
sys.exit(abs(os.waitstatus_to_exitcode(status)))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no os.fork")
@pytest.mark.parametrize("module", ["GRU", "LSTM"])
def test_fork_after_use(module: str, compiled: str) -> None:
    """Forward and backward run with two threads in a child of a process that has already used two threads."""
    run_script(FORK, compiled, module)


@pytest.mark.alone
@pytest.mark.parametrize(
    ("kind", "hidden", "bidirectional"),
    [("RNN", 40, True), ("GRU", 40, True), ("LSTM", 40, True), ("GRU", 300, False), ("LSTM", 300, False)],
)
def test_concurrent_calls_on_one_module(kind: str, hidden: int, bidirectional: bool, compiled: str) -> None:
    """Several Python threads run forward and backward at different sizes and share the packed weights. A wide layer
    with few rows divides its units among threads, which wait for each other at every step."""
    torch.set_num_threads(2)
    module = getattr(sf, kind)(13, hidden, num_layers=2, bidirectional=bidirectional, batch_first=True)
    xs = [torch.randn(b, t, 13) for b, t in ((1, 9), (4, 17), (33, 5), (2, 40), (16, 16), (7, 1))]

    def work(x: Tensor) -> list[Tensor]:
        with sf.use_impl(compiled):
            x = x.clone().requires_grad_()
            output, _ = module(x)
            return [output, *torch.autograd.grad(output.square().sum(), [x, *module.parameters()])]

    def infer(x: Tensor) -> list[Tensor]:
        with sf.use_impl(compiled), torch.inference_mode():
            return [module(x)[0]]

    wanted = [work(x) for x in xs]
    jobs = [(function, k) for _ in range(4) for k in range(len(xs)) for function in (work, infer)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: job[0](xs[job[1]]), jobs))
    for (_, k), tensors in zip(jobs, found, strict=True):
        for a, b in zip(tensors, wanted[k], strict=False):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_equal_bytes_of_other_shapes_are_other_weights(compiled: str) -> None:
    """Packed weights are found by their content and their shape. Here 2 rows of 7 and 2 rows of 8 have the same numbers
    and then zeros, and take the same number of vectors in every instruction set."""
    numbers = torch.arange(1.0, 15) / 50
    for w_ih in (numbers.view(2, 7), torch.cat([numbers, torch.zeros(2)]).view(2, 8)):
        inputs = {"x": torch.ones(2, 1, w_ih.size(1)), "w_ih[0]": w_ih, "w_hh[0]": torch.eye(2)}
        found, wanted = (layer(inputs, cell="rnn_tanh", impl=impl)["h_n"] for impl in (compiled, "reference"))
        torch.testing.assert_close(found, wanted)


@pytest.mark.alone
def test_other_python_threads_go_on(compiled: str) -> None:
    """Python's global lock is released while a kernel runs."""
    x, w_ih, w_hh = torch.ones(1, 1, 64).expand(200_000, -1, -1), torch.ones(256, 64) / 64, torch.ones(256, 64) / 64
    woken = 0
    with ThreadPoolExecutor(1) as pool, torch.inference_mode():
        running = pool.submit(sf.rnn_layer, x, [w_ih], [w_hh], cell="lstm", want_output=False, impl=compiled)
        start = time.perf_counter()
        while not running.done():
            time.sleep(0.001)
            woken += 1
        waited = time.perf_counter() - start
    assert woken > 10, f"woken {woken} times in {waited:.2f} s"


def test_gates_table_is_the_library_s() -> None:
    """cases.GATES is made from the table for installs without the extension. It must list the same cells."""
    with pytest.raises(ValueError, match=", ".join(GATES)):
        sf.rnn_layer(torch.zeros(1, 1, 1), [torch.zeros(1, 1)], [torch.zeros(1, 1)], cell="none")

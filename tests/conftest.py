"""Shared fixtures. `impl` runs a test once for each implementation that works on this machine, `compiled` once for each
compiled one, and `checked` for each one that checks sizes with our own sentences, which is all but the reference.
`entry` runs it once for each of the two ways that a call may take from Python to the operators.

The report's header lists the implementations; test_backends.test_implementations_are_there asserts the minimum.
`--impl NAME` narrows the fixtures to one, which may be a simt-... of tests/cuda/simt: the CUDA kernels on the CPU, or
amx-emulated of tests/amx: AMX on any CPU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import amx.build
from seqcls_fast import _ext, ops
from simt.build import load_plugin, why_no_plugin
from support.calls import WHY_NOT_EAGER, python_way

# For `import benchmarks`. At the end of the path, since the package under test may be one that was built elsewhere.
sys.path.append(str(Path(__file__).resolve().parents[1]))
# torch keeps compiled programs on disk, under keys that do not depend on the fake kernels of our operators. So a test
# could run a program that was compiled with other sources.
os.environ.update(TORCHINDUCTOR_FX_GRAPH_CACHE="0", TORCHINDUCTOR_AUTOGRAD_CACHE="0")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--impl",
        default=None,
        help="run only this implementation, one of seqcls_fast.available_impls(), a simt-..., amx-emulated, or auto",
    )
    parser.addoption(
        "--entry",
        choices=("eager", "python"),
        default=None,
        help="run the tests of both ways of calling with one of them, and with python all other tests too",
    )
    parser.addoption("--simt-full", action="store_true", help="test_simt.py: the whole product of cases (an hour)")
    parser.addoption("--ptx-full", action="store_true", help="test_ptx.py: every recurrent kernel, and every fault")
    parser.addoption("--torch-full", action="store_true", help="test_torch_modules.py: all inputs, not a sample")


def pytest_report_header(config: pytest.Config) -> str:
    return f"seqcls_fast: {', '.join(ops.available_impls())}" + (f" ({_ext.why_missing})" if _ext.why_missing else "")


# After pytest's own parametrisation, so that the implementations of one case follow each other and share its reference.
@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = metafunc.config.getoption("impl")
    impls = ops.available_impls()
    if chosen == "auto":
        chosen = impls[-1]
    if chosen is not None:
        if chosen.startswith("simt-") and why_no_plugin() is None:
            impls += load_plugin()
        if chosen == amx.build.NAME and why_no_plugin() is None:
            impls += tuple(amx.build.load_plugin().names)
        if chosen not in impls:
            raise pytest.UsageError(f"--impl: expected one of {', '.join(impls)} but got {chosen!r}")
        impls = (chosen,)
    if "entry" in metafunc.fixturenames:
        way = metafunc.config.getoption("entry")
        metafunc.parametrize("entry", ("eager", "python") if way is None else (way,), indirect=True)
    if "impl" in metafunc.fixturenames:
        metafunc.parametrize("impl", impls)
    # pytest shows a test without implementations as skipped; the header has the reason
    if "checked" in metafunc.fixturenames:
        metafunc.parametrize("checked", [name for name in impls if name != "reference"])
    if "compiled" in metafunc.fixturenames:
        metafunc.parametrize("compiled", [name for name in impls if name not in ("reference", "torch")])


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Every test starts from one seed, one thread and float32, and leaves torch's global state as it found it."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)


@pytest.fixture(autouse=True)
def _one_way(request: pytest.FixtureRequest) -> Iterator[None]:
    with python_way() if request.config.getoption("entry") == "python" else nullcontext():
        yield


@pytest.fixture
def calls_by_python() -> Iterator[None]:
    """As on a GPU, where calls of the modules arrive at ops.run_layer."""
    with python_way():
        yield


@pytest.fixture
def entry(request: pytest.FixtureRequest) -> Iterator[str]:
    """The two ways of a call to our kernels: through the eager entry in C++, and through Python alone."""
    if _ext.C is None:
        pytest.skip(f"the compiled extension is missing: {_ext.why_missing}")
    if request.param == "python":
        with python_way():
            yield request.param
    elif WHY_NOT_EAGER is not None:
        pytest.skip(WHY_NOT_EAGER)
    else:
        yield request.param


@pytest.fixture(params=[False, True], ids=["plain", "kept"])
def kept(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether Dynamo takes torch's own layers, and so whether convert() keeps isinstance by default."""
    with torch._dynamo.config.patch(allow_rnn=request.param):
        yield request.param

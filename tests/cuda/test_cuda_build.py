"""The extension built with CUDA, tested without a GPU: registered ops, fake kernels, and unchanged results on the CPU.

`make cuda-build` runs these tests in build/cuda/lib, the folder of that build. Its results on the CPU are compared bit
by bit with those of the source tree's own build, under the same torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from seqcls_fast import _ext

ROOT = Path(__file__).parents[2]
OPS = ("rnn_forward", "rnn_layer", "rnn_backward")
T, B, I, H = 4, 3, 5, 7
GATES = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}

HAS_CUDA = _ext.C is not None and bool(_ext.C.build_info()["cuda"])
# `make cuda-build` sets SEQCLS_CUDA, and then nothing is skipped
pytestmark = pytest.mark.skipif(
    not HAS_CUDA and os.environ.get("SEQCLS_CUDA") != "1",
    reason="this extension was built without CUDA: make cuda-build",
)


def layer(cell: str, dtype: torch.dtype, device: str = "cpu") -> tuple[Tensor, list[Tensor]]:
    """The input and the weights of a bidirectional layer."""
    torch.manual_seed(1)
    shapes = [(GATES[cell] * H, I), (GATES[cell] * H, H), (GATES[cell] * H,), (GATES[cell] * H,)]
    x = torch.randn(T, B, I).to(dtype).to(device)
    return x, [torch.randn(shape).div(3).to(dtype).to(device) for shape in shapes for _ in range(2)]


def run(cell: str, x: Tensor, weights: list[Tensor], impl: str) -> dict[str, list[Tensor]]:
    """The results of each op."""
    ops = torch.ops.seqcls_fast
    none = (None, None, None, None)  # h0, c0, lengths, batch_sizes
    forward = ops.rnn_forward(x, weights, *none, cell, 2, False, True, True, impl)
    output, saved = forward[-2:]
    return {
        "rnn_forward": forward,
        "rnn_layer": ops.rnn_layer(x, weights, *none, cell, 2, False, True, impl),
        "rnn_backward": ops.rnn_backward(
            output, None, None, x, weights, *none, output, saved, cell, 2, False, True, True, 0, impl
        ),
    }


def digests() -> dict[str, str]:
    """A hash of the results of each cell, dtype and CPU implementation, without `saved`, whose padding is undefined."""
    assert _ext.C is not None
    found = {}
    for cell in GATES:
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            for impl in _ext.C.impls():
                results = run(cell, *layer(cell, dtype), impl)
                results["rnn_forward"].pop()
                tensors = [t for part in results.values() for t in part]
                data = b"".join(bytes(t.contiguous().view(torch.uint8).flatten().tolist()) for t in tensors)
                found[f"{cell} {dtype} {impl}"] = hashlib.sha256(data).hexdigest()
    return found


def test_it_is_there() -> None:
    assert HAS_CUDA, _ext.why_missing or "the extension was built without CUDA"


@pytest.mark.parametrize("op", OPS)
def test_registered_for_cuda(op: str) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"seqcls_fast::{op}", "CUDA")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", GATES)
def test_fake_kernels_agree(cell: str, dtype: torch.dtype) -> None:
    """On CUDA the results have the CPU's shapes, and the values saved for the backward have the input's dtype."""
    real = run(cell, *layer(cell, dtype), "auto")
    with FakeTensorMode():
        fake = run(cell, *layer(cell, dtype, "cuda"), "auto")
    for op, tensors in fake.items():
        assert [t.shape for t in tensors] == [t.shape for t in real[op]], op
        assert {t.device.type for t in tensors} == {"cuda"}, op
        assert {t.dtype for t in tensors} == {dtype}, op


def test_fake_kernels_refuse_two_devices() -> None:
    with FakeTensorMode():
        x, weights = layer("gru", torch.float32, "cuda")
        with pytest.raises(RuntimeError, match="device"):
            torch.ops.seqcls_fast.rnn_layer(x.cpu(), weights, None, None, None, None, "gru", 2, False, True, "auto")


def test_cpu_results_are_those_of_the_cpu_build() -> None:
    script = (
        f"import sys; sys.path += [{str(ROOT / 'tests')!r}, {str(ROOT / 'tests/cuda')!r}]\n"
        "import test_cuda_build as t; t.main()"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300, check=True)
    there: dict[str, Any] = json.loads(result.stdout)
    if there["cuda"] is not False:
        pytest.skip("the tree itself has no CPU build to compare with")
    assert digests() == there["digests"]


def test_info_says_what_was_built() -> None:
    command = [sys.executable, "-m", "seqcls_fast", "info"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    archs = os.environ.get("TORCH_CUDA_ARCH_LIST")
    build = next(line for line in result.stdout.splitlines() if line.startswith("build "))
    assert "cuda True" in build
    assert archs or "cuda_archs 80,90a" in build


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_needs_no_cuda_library_and_exports_none() -> None:
    """CUDA's runtime is linked in and hidden: the module imports without CUDA, and torch uses its own runtime."""
    assert _ext.C is not None
    module = str(_ext.C.__file__)

    def read(option: str) -> list[list[str]]:
        command = ["readelf", "--wide", option, module]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        return [line.split() for line in result.stdout.splitlines()]

    needed = [words[-1] for words in read("--dynamic") if "(NEEDED)" in words]
    assert "[libtorch.so]" in needed
    assert [name for name in needed if re.search("cuda|cublas", name)] == []
    symbols = [words for words in read("--dyn-syms") if len(words) == 8]  # number, value, size, ..., section, name
    assert [words[7] for words in symbols if words[6] == "UND" and "cudaLaunch" in words[7]] == []
    assert [words[7] for words in symbols if words[6] != "UND" and words[7].startswith("cuda")] == []


def main() -> None:
    cuda = None if _ext.C is None else bool(_ext.C.build_info()["cuda"])
    print(json.dumps({"cuda": cuda, "digests": digests() if cuda is False else {}}))

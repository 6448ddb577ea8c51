"""Programs in C with the library: the example, and one in which every allocation and system call is deadly."""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from c_library import BUILD, ROOT, isas, library

import seqcls_fast as sf
from seqcls_fast.export import to_runtime

COMPILER = shlex.split(os.environ.get("CC", "cc"))
pytestmark = pytest.mark.skipif(shutil.which(COMPILER[0]) is None, reason="no C compiler")


@lru_cache
def alone() -> Path:
    library()
    program = BUILD / f"alone-{os.getpid()}"
    options = ["-std=c11", "-O1", "-fno-builtin", "-Wall", "-Wextra", "-Werror", "-pthread"]
    sources = [str(ROOT / "tests/runtime/alone.c"), f"-I{BUILD}", str(BUILD / "libseqcls.a"), "-lstdc++", "-lm"]
    subprocess.run([*COMPILER, *options, *sources, "-o", str(program)], check=True)
    return program


def models() -> dict[str, Any]:
    return {
        "lstm": sf.LSTM(3, 20, num_layers=2),
        "projected": sf.LSTM(3, 20, proj_size=5, learn_initial_state=True),
        "normed gru": sf.GRU(3, 20, layer_norm=True, zoneout=0.1),
        "two directions": sf.GRU(3, 20, bidirectional=True),
        "classifier": sf.SequenceClassifier(5, 20, 4, pooling="mean"),
        "ids": sf.SequenceClassifier(5, 20, 4, vocab_size=9, pooling="max"),
        "attention": sf.SequenceClassifier(5, 20, 4, pooling="attention"),
    }


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is of Linux")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(models()))
def test_a_stream_allocates_nothing_and_makes_no_system_call(name: str, dtype: str, tmp_path: Path) -> None:
    to_runtime(models()[name], tmp_path / "model.sfm", dtype)
    done = subprocess.run([alone(), tmp_path / "model.sfm"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done


@pytest.mark.skipif(sys.platform != "linux", reason="seccomp is of Linux")
@pytest.mark.parametrize(("how", "died"), [("malloc", {signal.SIGILL, signal.SIGTRAP}), ("call", {signal.SIGSYS})])
def test_the_program_notices_them(how: str, died: set[int], tmp_path: Path) -> None:
    to_runtime(sf.GRU(3, 4), tmp_path / "model.sfm")
    done = subprocess.run([alone(), tmp_path / "model.sfm", how], capture_output=True, check=False)
    assert -done.returncode in died


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("nm") is None, reason="reads ELF files with nm")
def test_the_library_is_small_and_shows_no_other_name_of_ours() -> None:
    """Two megabytes with every instruction set; no symbol that a linker could merge between instruction sets."""
    library()
    assert (BUILD / "libseqcls.so").stat().st_size <= 2_000_000

    def symbols(*options: str | Path) -> list[list[str]]:
        found = subprocess.run(["nm", "--format=posix", *options], capture_output=True, text=True, check=True).stdout
        return [line.split() for line in found.splitlines()]

    exported = {words[0] for words in symbols("--dynamic", "--defined-only", BUILD / "libseqcls.so")}
    assert len(exported) == 15
    assert {name for name in exported if not name.startswith("seqcls_")} == set()
    assert "-Wl,--gc-sections" in (BUILD / "libseqcls.so.how").read_text()  # another command links it again
    # A linker may merge those of "base" with those of the other objects, which every CPU runs as well.
    for path in (BUILD / "objects").glob("kernels_avx*.o"):
        assert [words for words in symbols(path) if words[1] in "WVu"] == [], path


def make(target: str) -> None:
    library()
    command = ["make", "--no-print-directory", target, f"PYTHON={sys.executable}", f"RUNTIME=--isas={','.join(isas())}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_the_audio_example_computes_the_module(cell: str, tmp_path: Path) -> None:
    make("example-audio")
    torch.manual_seed(0)
    layer, head = getattr(sf, cell)(1, 20, num_layers=2, batch_first=True), torch.nn.Linear(20, 1)
    to_runtime(layer, tmp_path / "model.sfm")
    weights = torch.cat([head.weight.flatten(), head.bias]).detach().numpy()
    (tmp_path / "head.bin").write_bytes(weights.tobytes())
    samples = torch.randn(1, 300, 1)  # some blocks, and a shorter one
    program = [BUILD / "audio", tmp_path / "model.sfm"]
    done = subprocess.run(
        [*program, tmp_path / "head.bin"], input=samples.numpy().tobytes(), capture_output=True, check=True
    )
    with torch.no_grad():
        expected = head(layer(samples)[0]).numpy().reshape(-1)
    np.testing.assert_allclose(np.frombuffer(done.stdout, np.float32), expected, atol=1e-6)
    (tmp_path / "short.bin").write_bytes(weights[:5].tobytes())
    failing = subprocess.run([*program, tmp_path / "short.bin"], capture_output=True, text=True, check=False)
    assert (failing.returncode, failing.stdout) == (1, "")
    assert "head: expected a weight for each output of the layers, and a bias" in failing.stderr
    to_runtime(sf.SequenceClassifier(1, 8, 2), tmp_path / "model.sfm")
    failing = subprocess.run([*program, tmp_path / "head.bin"], capture_output=True, text=True, check=False)
    assert failing.returncode == 1
    assert "model: expected layers in one direction that take one sample a step" in failing.stderr


BLOCKS = """
#define main main_of_the_example
#include "audio.cpp"
#undef main
int main(int, char** arguments) {
  std::vector<float> samples(3000);
  samples.resize(std::fread(samples.data(), sizeof(float), samples.size(), stdin));
  Effect effect(arguments[1], arguments[2], 64);
  const int64_t sizes[] = {1, 63, 0, 64, 65, 7, 128, 500, 1000, 3000}, all = static_cast<int64_t>(samples.size());
  for (int64_t at = 0, k = 0, size; at < all; at += size) {
    size = std::min(sizes[k++ % 10], all - at);
    effect.process(samples.data() + at, samples.data() + at, size);
  }
  std::fwrite(samples.data(), sizeof(float), samples.size(), stdout);
}
"""


def test_the_audio_example_takes_blocks_of_any_size(tmp_path: Path) -> None:
    make("example-audio")
    layer, samples = sf.GRU(1, 20), torch.randn(2500).numpy()
    to_runtime(layer, tmp_path / "model.sfm")
    torch.randn(21).numpy().tofile(tmp_path / "head.bin")
    (tmp_path / "blocks.cpp").write_text(BLOCKS)
    words = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", str(tmp_path / "blocks.cpp"), f"-I{ROOT / 'examples'}"]
    words += [f"-I{BUILD}", str(BUILD / "libseqcls.a"), "-o", str(tmp_path / "blocks")]
    subprocess.run([*shlex.split(os.environ.get("CXX") or "c++"), *words], check=True)
    found = [
        subprocess.run(
            [program, tmp_path / "model.sfm", tmp_path / "head.bin"], input=samples.tobytes(), capture_output=True,
            check=True,
        ).stdout
        for program in (BUILD / "audio", tmp_path / "blocks")
    ]  # fmt: skip
    assert len(found[0]) == samples.nbytes
    assert found[0] == found[1]


def test_the_example_streams(tmp_path: Path) -> None:
    make("example-stream")
    torch.manual_seed(0)
    model = sf.SequenceClassifier(3, 8, 2).eval()
    to_runtime(model, tmp_path / "model.sfm")
    x = torch.randn(1, 6, 3)
    lines = "\n".join(" ".join(f"{value:.9g}" for value in step) for step in x[0].tolist())
    program = [BUILD / "stream", tmp_path / "model.sfm"]
    done = subprocess.run(program, input=lines, capture_output=True, text=True, check=True)
    found = np.array([[float(word) for word in line.split()] for line in done.stdout.splitlines()])
    with torch.no_grad():
        expected = np.concatenate([model(x[:, : t + 1]).softmax(1).numpy() for t in range(6)])
    np.testing.assert_allclose(found, expected, atol=1e-6)
    failing = subprocess.run([BUILD / "stream", tmp_path], input="", capture_output=True, text=True, check=False)
    assert failing.returncode == 1
    assert "it is not a regular file" in failing.stderr
    to_runtime(sf.SequenceClassifier(3, 8, 2, vocab_size=5), tmp_path / "ids.sfm")
    program = [BUILD / "stream", tmp_path / "ids.sfm"]
    failing = subprocess.run(program, input="1", capture_output=True, text=True, check=False)
    assert failing.returncode == 1
    assert "model: expected one that takes numbers but got one of ids" in failing.stderr


def test_an_empty_name_of_a_compiler_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "")
    assert runpy.run_path(str(ROOT / "csrc/flags.py"))["COMPILER"] == ["c++"]

"""Fuzzes the runtime's reader of files with both sanitizers: `make fuzz-runtime SECONDS=300`.

It builds the library and fuzz_runtime.cpp, writes small models as seeds, and runs. tests/fuzz/runtime.tar.xz holds the
first file of each outcome that it has found; test_fuzz_runtime.py opens them all.
"""

from __future__ import annotations

import argparse
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

import seqcls_fast as sf
from seqcls_fast.export import to_runtime

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "runtime-asan"


def seeds(folder: Path) -> list[Path]:
    """A small file of each kind."""
    torch.manual_seed(0)
    plain: dict[str, Any] = {"convolutions": 0, "normalize": "data", "differences": False, "time": False}
    series = sf.SeriesClassifier(hidden_size=2, epochs=1, missing="mask", max_length=4, pooling="mean", **plain)
    series.fit([[[1.0, 2.0]], [[3.0, 4.0], [5.0, 7.0]]] * 4, [0, 1] * 4)
    whole = sf.SeriesClassifier(hidden_size=2, epochs=1, convolutions=84, normalize="series", holdout=None)
    whole.fit([[[1.0, 2.0]], [[3.0, 4.0], [5.0, 7.0]]] * 4, [0, 1] * 4)
    models = {
        "gru": sf.GRU(2, 3),
        "lstm": sf.LSTM(2, 3, num_layers=2, bidirectional=True, proj_size=2, learn_initial_state=True),
        "options": sf.LSTM(1, 2, layer_norm=True, zoneout=0.1),
        "ids": sf.SequenceClassifier(2, 2, 2, vocab_size=5, pooling="attention"),
        "classifier": sf.SequenceClassifier(2, 2, 3, pooling="max", cell="lstm_peephole"),
        "series": series,
        "whole series": whole,
        **{name: texts(tokenizer=name) for name in ("word", "char", "bpe")},
    }
    paths = []
    for name, model in models.items():
        for dtype in ("float32", "bfloat16"):
            paths.append(folder / f"{name}-{dtype}.sfm")
            to_runtime(model, paths[-1], dtype)
    return paths


def texts(**parameters: Any) -> Any:
    small: dict[str, Any] = {"hidden_size": 2, "embedding_dim": 2, "epochs": 1, "holdout": None, "max_vocab": 270}
    estimator = sf.TextClassifier(**small, **parameters)
    return estimator.fit(["a b", "c d", "\u65e5 x"] * 2, [0, 1, 0, 1, 0, 1])


def built() -> Path:
    build = runpy.run_path(str(ROOT / "csrc/runtime/build.py"))
    build["build"](BUILD, ["base"], True)
    program, source = BUILD / "fuzz_runtime", ROOT / "tests/fuzz/fuzz_runtime.cpp"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", *build["SANITIZE"]]
    library = str(BUILD / "libseqcls.a")
    subprocess.run([*build["FLAGS"]["COMPILER"], *flags, str(source), library, "-o", str(program)], check=True)
    return program


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the runtime's reader of files.")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", default="-", help="a folder for the first file of each outcome")
    options = parser.parse_args()
    program = built()
    limits = {"ASAN_OPTIONS": "allocator_may_return_null=1:max_allocation_size_mb=2048"}
    with tempfile.TemporaryDirectory() as folder:
        command = [program, str(options.seconds), str(options.seed), options.keep, *seeds(Path(folder))]
        return subprocess.run(command, check=False, env=os.environ | limits).returncode


if __name__ == "__main__":
    sys.exit(main())

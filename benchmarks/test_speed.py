"""The cases of layers for pytest-benchmark, at one thread: `pytest benchmarks --benchmark-only`.

A group holds the engines of one case. `--benchmark-autosave` keeps a run, and `--benchmark-compare` compares a later
run with it.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("pytest_benchmark")
import torch

from seqcls_fast.toolkit.timing import timed

from . import harness, layer_cases, peers
from .layer_cases import SHAPES, Case

ENGINES = ["ours", *(peer.name for peer in peers.PEERS if peer.installed and peer.name != "torch.compile")]


def _cases() -> list[Any]:
    shapes = SHAPES[1:7]  # larger shapes take seconds and are left to `python -m benchmarks`
    return [
        pytest.param(
            case, name, id=f"{case.what}-{case.cell}-{'x'.join(map(str, case.shape))}-{name}".replace(" ", "-")
        )
        for case in layer_cases.grid(shapes=shapes)
        for name in ENGINES
        if name == "ours" or name in [peer.name for peer in peers.peers_of(case)]
    ]


@pytest.mark.parametrize(("case", "name"), _cases())
def test_layer(benchmark: Any, case: Case, name: str) -> None:
    torch.set_num_threads(1)
    benchmark.group = str(case)
    with layer_cases.grad_mode(case):
        engine = harness.engines(case, 1, [name])[name]
        seconds, result = timed(engine.run)
        error = layer_cases.error_of(case, engine.values(result))
        assert error <= case.error_bound
        benchmark.extra_info.update(error=error, gflop=layer_cases.gflop_of(case))
        if seconds > 0.1:
            benchmark.pedantic(engine.run, rounds=3)
        else:
            benchmark(engine.run)

"""Runs Keras with a backend, or torchrl, on the cases of their question. test_bench_options.py starts it for each.

They have a process of their own for the reason that peer_run.py gives.

    PYTHONPATH=. python tests/benchmarks/option_peer_run.py torchrl
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import partial

from benchmarks import keras_engines, layer_cases
from benchmarks.layer_cases import Case, Shape
from benchmarks.questions import options, resets
from benchmarks.torch_engines import Engine


def check(case: Case, engine: Engine, error_of: partial[float]) -> None:
    with engine.around():
        assert error_of(engine.values(engine.run())) <= case.error_bound, case


def run_torchrl() -> Iterator[Case]:
    for cell in ("GRU", "LSTM"):
        for training in (False, True):
            case = Case(cell, Shape(5, 12, 6, 9), training=training, state=True)
            problem = layer_cases.build(case)
            for density in (0.0, 0.2):
                marks = resets.resets_of(case.shape, density)
                with layer_cases.grad_mode(case):
                    expected = resets.reference(problem, marks)
                    error_of = partial(layer_cases.distance_from, expected, gradients=training)
                    for backend in resets.TORCHRL.values():
                        check(case, resets.torchrl_engine(problem, marks, backend), error_of)
            yield case


def run_keras(backend: str) -> Iterator[Case]:
    before = {name for name in sys.modules if name.startswith("keras")}, os.environ.get("KERAS_BACKEND")
    for kind in (kind for kind in options.KINDS if kind.in_keras):
        for training in (True,) if kind.is_random else (False, True):
            case = Case(kind.cell, Shape(5, 7, 6, 9), training=training)
            problem = options.build(kind, case)
            with layer_cases.grad_mode(case):
                error_of = partial(options.error_of, options.reference(problem, kind))
                check(case, keras_engines.engine(problem, backend, **kind.in_keras), error_of)
            yield case
    assert ({name for name in sys.modules if name.startswith("keras")}, os.environ.get("KERAS_BACKEND")) == before


def main(name: str) -> None:
    ran = list(run_torchrl() if name == "torchrl" else run_keras(name))
    assert len(ran) >= 4


if __name__ == "__main__":
    main(sys.argv[1])

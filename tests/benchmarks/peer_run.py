"""Runs one engine of the benchmarks on every kind of case, against float64. test_bench_cases.py starts it for each.

Each engine has a process of its own here, because such libraries change the state of the process: OpenVINO replaces the
thread's signal stack, and JAX starts threads and warns at every fork from then on. The benchmarks have all engines in
one process, so the state that can be restored must be the same after each case as before.

    PYTHONPATH=. python tests/benchmarks/peer_run.py NAME
"""

from __future__ import annotations

import ctypes
import faulthandler
import gc
import os
import signal
import sys
from dataclasses import replace

import torch

from benchmarks import layer_cases, peers
from benchmarks.layer_cases import Case, Shape

SHAPE = Shape(5, 7, 6, 9)
KINDS = list(dict.fromkeys(replace(case, shape=SHAPE) for case in layer_cases.grid(quick=True)))
for cell in layer_cases.CELLS:
    KINDS += [Case(cell, SHAPE, training=training, state=True) for training in (False, True)]
    KINDS += [Case(cell, SHAPE._replace(T=1), training=training, single=True) for training in (False, True)]
    KINDS += [Case(cell, SHAPE, graph=True), Case(cell, SHAPE, graph=True, state=True)]


def process_state() -> dict[str, object]:
    """The state of this thread and process that native code can change and other code relies on."""
    libc = ctypes.CDLL(None)
    record = (ctypes.c_void_p * 32)()  # larger than a stack_t or a sigaction, which both begin with an address
    libc.sigaltstack(None, record)
    state: dict[str, object] = {"alternate signal stack": record[0]}
    for number in signal.valid_signals():
        libc.sigaction(int(number), None, record)
        state[f"handler of signal {int(number)}"] = record[0]
    # a denormal result and a denormal operand: a thread's floating-point settings can turn either into zero
    products = torch.tensor([1e-30, 1e-40]) * torch.tensor([1e-10, 1e10])
    state["denormals are kept"] = (products > 0).tolist()
    state["rounding"] = libc.fegetround()
    state["threads of torch"] = torch.get_num_threads()
    if hasattr(os, "sched_getaffinity"):
        state["CPUs"] = os.sched_getaffinity(0)
    return state


def changes(before: dict[str, object]) -> dict[str, tuple[object, object]]:
    now = process_state()
    return {name: (before[name], now[name]) for name in before if before[name] != now[name]}


def main(name: str) -> None:
    faulthandler.enable()  # gives this thread a signal stack, as pytest does
    torch.set_num_threads(1)
    before = process_state()
    [peer] = [peer for peer in peers.PEERS if peer.name == name]
    ran = 0
    for case in KINDS:
        if peer.refuses(case):
            continue
        with layer_cases.grad_mode(case):
            engine = peer.build(layer_cases.build(case), 1)
            values = engine.values(engine.run())
        assert values.keys() >= layer_cases.reference(case).keys()
        assert layer_cases.error_of(case, values) <= case.error_bound, case
        assert not changes(before), (case, changes(before))
        ran += 1
    assert ran
    del engine, values
    gc.collect()  # destructors may change something as well
    assert not changes(before), changes(before)


if __name__ == "__main__":
    main(sys.argv[1])

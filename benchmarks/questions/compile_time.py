"""Seconds from weights to the first result: building, converting, tracing or compiling, and one call.

Nothing compiled before is used again. torch.compile of a hand-written loop unrolls it, so that its time grows with T.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

import seqcls_fast as sf

from .. import harness, layer_cases, peers
from ..harness import Session
from ..layer_cases import Case, Problem, Shape
from ..rows import Row, Side


def measure(session: Session) -> Iterator[Row]:
    for training in (False,) if session.quick else (False, True):
        for T in (5,) if training or session.quick else (5, 10):
            yield _row(session, Case("GRU", Shape(8, T, 16, 32), training=training))


def _row(session: Session, case: Case) -> Row:
    problem = layer_cases.build(case)
    ways: dict[str, Callable[[], object]] = {
        "ours": lambda: peers.build_ours(problem, session.threads).run(),
        "ours compiled": partial(_compiled, problem),
    }
    for peer in peers.PEERS:
        asked = session.peers is None or peer.name in session.peers
        if asked and peer.installed and (peer.name == "torch.compile" or not peer.refuses(case)):
            ways[peer.name] = lambda peer=peer: peer.build(problem, session.threads).run()
    sides = {name: Side() for name in ways}
    torch._inductor.config.force_disable_caches = True
    for number in range(harness.MIN_ROUNDS):
        for name, way in ways.items():
            if number == 0 or not name.endswith(("compile", "compiled")):  # seconds long: once is enough
                torch._dynamo.reset()
                sides[name].rounds.append(harness.timed_once(way)[0])
    return Row("compile_time", f"to the first result, {case.what}", f"{case.cell} {case.shape}", session.threads, sides)


def _compiled(problem: Problem) -> None:
    """Our layer in a function of torch.compile's, which holds one operator whatever T."""
    module = torch.compile(problem.module(sf), fullgraph=True)
    h = layer_cases.last_hidden(module(problem.x.clone().requires_grad_(problem.case.training)))
    if problem.case.training:
        h.sum().backward()

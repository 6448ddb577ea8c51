"""Seconds from weights to the first result: building, converting, tracing or compiling, and one call.

Nothing that was compiled before is used again. torch.compile unrolls a hand-written loop, so its time grows with T.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

import seqcls_fast as sf
from seqcls_fast.toolkit.timing import MIN_ROUNDS, timed, turns

from .. import layer_cases, peers
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
    for number, name in turns(ways, MIN_ROUNDS):
        if number == 0 or not name.endswith(("compile", "compiled")):  # compiling takes seconds: once is enough
            torch._dynamo.reset()
            sides[name].rounds.append(timed(ways[name])[0])
    return Row("compile_time", f"to the first result, {case.what}", f"{case.cell} {case.shape}", session.threads, sides)


def _compiled(problem: Problem) -> None:
    """Calls our layer compiled by torch.compile, which sees one operator, however large T is."""
    module = torch.compile(problem.module(sf), fullgraph=True)
    h = layer_cases.last_hidden(module(problem.x.clone().requires_grad_(problem.case.training)))
    if problem.case.training:
        h.sum().backward()

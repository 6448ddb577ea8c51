"""Models that call a cell in a loop, as people write them: torch.nn's, and the same after convert(), frozen and not.

A policy of reinforcement learning sees one observation at a time. A decoder with attention writes one token at a time,
the likeliest, and in training it is given the tokens. What surrounds the cells is torch's on every side. A training
step ends with one of SGD, because weights that change have to be packed anew.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import seqcls_fast as sf

from .. import layer_cases
from ..harness import Session
from ..layer_cases import ERROR_BOUND, Values
from ..peers import Engine
from ..rows import FROZEN, Row, both_rows

BATCHES = (1, 16)
OBSERVED, UNITS, ACTIONS, STEPS = 16, 64, 8, 16
VOCABULARY, HIDDEN, SOURCE, TOKENS = 1000, 128, 20, 50


class Policy(nn.Module):
    """Two hidden layers, a cell that remembers, and the logits of the actions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(OBSERVED, UNITS), nn.Tanh(), nn.Linear(UNITS, UNITS), nn.Tanh())
        self.cell = nn.LSTMCell(UNITS, UNITS)
        self.head = nn.Linear(UNITS, ACTIONS)

    def forward(self, observations: Tensor) -> Tensor:  # (T, B, OBSERVED) -> (T, B, ACTIONS)
        state, logits = None, []
        for observation in observations:
            state = self.cell(self.body(observation), state)
            logits.append(self.head(state[0]))
        return torch.stack(logits)


class Decoder(nn.Module):
    """Embeds the last token, attends to the encoder's states with h, and takes a step of the cell from both."""

    def __init__(self, cell: type[nn.GRUCell | nn.LSTMCell]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        self.attention = nn.Linear(HIDDEN, HIDDEN)
        self.cell, self.has_c = cell(2 * HIDDEN, HIDDEN), cell is nn.LSTMCell
        self.head = nn.Linear(2 * HIDDEN, VOCABULARY)

    def forward(self, encoded: Tensor, tokens: Tensor | None = None) -> Tensor:
        """(T, B, VOCABULARY) from (B, S, HIDDEN). Without ``tokens`` (T, B) the likeliest one is taken as the next."""
        h = encoded.new_zeros(len(encoded), HIDDEN)
        state = (h, h) if self.has_c else h
        token, logits = torch.zeros(len(encoded), dtype=torch.long), []
        for t in range(TOKENS):
            scores = torch.bmm(encoded, self.attention(h).unsqueeze(2))
            context = torch.bmm(scores.softmax(1).transpose(1, 2), encoded).squeeze(1)
            state = self.cell(torch.cat([self.embedding(token), context], 1), state)
            h = state[0] if self.has_c else state
            logits.append(self.head(torch.cat([h, context], 1)))
            token = logits[-1].argmax(1) if tokens is None else tokens[t]
        return torch.stack(logits)


@dataclass(frozen=True)
class Task:
    name: str
    model: nn.Module  # of torch.nn
    inputs: tuple[Tensor, ...]
    targets: Tensor  # (T, B)
    hint: tuple[Tensor, ...] = ()  # further inputs in training

    def engine(self, model: nn.Module, training: bool, dtype: torch.dtype = torch.float32, **around: Any) -> Engine:
        """Calls the model, and in training the backward of the mean cross-entropy, and a step of the optimizer.

        The step is so small that the gradients of the next call are the same within the bound on errors.
        """
        model, inputs = model.to(dtype).train(training), [tensor.to(dtype) for tensor in self.inputs]
        if not training:
            return Engine(partial(model, *inputs), lambda logits: {"logits": logits}, **around)
        parameters, targets = dict(model.named_parameters()), self.targets.flatten()
        optimizer = torch.optim.SGD(parameters.values(), lr=1e-6, fused=True)

        def train() -> None:
            optimizer.zero_grad()
            cross_entropy(model(*inputs, *self.hint).flatten(0, 1), targets).backward()
            optimizer.step()

        return Engine(train, lambda _: {f"d {name}": weight.grad for name, weight in parameters.items()}, **around)

    def engines(self, training: bool) -> dict[str, Engine]:
        found = {"ours": self.engine(converted(self.model), training)}
        if not training:
            frozen = converted(self.model)
            found[FROZEN] = self.engine(frozen, training, around=partial(sf.frozen, frozen))
        return found | {"torch": self.engine(copy.deepcopy(self.model), training)}

    def reference(self, training: bool) -> Values:
        engine = self.engine(copy.deepcopy(self.model), training, torch.float64)
        return engine.values(engine.run())


def converted(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    report = sf.convert(model)
    if report.left or not report.swapped:
        raise RuntimeError(f"expected every cell to be converted but got\n{report}")
    return model


def tasks(quick: bool = False) -> Iterator[Task]:
    for B in BATCHES[:1] if quick else BATCHES:
        torch.manual_seed(0)
        name = f"MLP and LSTMCell, {STEPS} observations, B = {B}"
        yield Task(name, Policy(), (torch.randn(STEPS, B, OBSERVED),), torch.randint(ACTIONS, (STEPS, B)))
        for cell in (nn.GRUCell, nn.LSTMCell):
            tokens = torch.randint(VOCABULARY, (TOKENS, B))
            name = f"{cell.__name__} decoder with attention, {TOKENS} tokens, B = {B}"
            yield Task(name, Decoder(cell), (torch.randn(B, SOURCE, HIDDEN),), tokens, (tokens,))


def measure(session: Session) -> Iterator[Row]:
    for training in (False, True):
        for task in tasks(session.quick):
            yield from _rows(session, task, training)


def _rows(session: Session, task: Task, training: bool) -> list[Row]:
    row = Row(
        "policies", f"loops around cells, {'training' if training else 'inference'}", task.name, session.threads, {}
    )
    with torch.set_grad_enabled(training):
        error_of = partial(layer_cases.distance_from, task.reference(training), gradients=training)
        session.fill(row, task.engines(training), error_of, ERROR_BOUND["gradient" if training else "forward"])
    return [row] if training else both_rows(row)

"""Token ids: a table of the vocabulary's projections, against an embedding whose result is projected at every step.

"ours" does what SequenceClassifier chooses: in inference it uses the table that prepare_inference() keeps, in training
a table if the vocabulary is small enough. "ours embedding" never uses a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import seqcls_fast as sf
from seqcls_fast import classifier
from seqcls_fast.toolkit.twin import TorchTwin

from ..harness import Session
from ..layer_cases import Shape
from ..rows import Row, Side
from .classifier import AGREE, error_between, infer, train

SHAPES = (Shape(32, 100, 50, 64), Shape(64, 100, 128, 128))
VOCABULARIES = (100, 10_000)


def measure(session: Session) -> Iterator[Row]:
    for cell in ("gru", "lstm"):
        for shape in SHAPES[:1] if session.quick else SHAPES:
            for size in VOCABULARIES[:1] if session.quick else VOCABULARIES:
                yield from _rows(session, cell, shape, size)


def _rows(session: Session, cell: str, shape: Shape, size: int) -> Iterator[Row]:
    torch.manual_seed(0)
    ids = torch.randint(1, size, (shape.B, shape.T))
    batches = [(ids, torch.full((shape.B,), shape.T))]
    ours = sf.SequenceClassifier(shape.I, shape.H, 5, cell=cell, vocab_size=size)
    models = {"ours": ours, "ours embedding": _Embedding(ours), "torch": TorchTwin(ours, packed=False)}
    name = f"{cell.upper()} {shape}, {size} ids"
    results = {key: infer(model, batches)() for key, model in models.items()}
    for what, make in (("inference", infer), ("training", train)):
        row = Row("tokens", f"tokens, {what}", name, session.threads, {key: Side() for key in models})
        calls = {key: make(model, batches) for key, model in models.items()}
        errors = {key: error_between(result, results["ours"]) for key, result in results.items()}
        if max(errors.values()) <= AGREE:
            row.sides = session.time(calls)
        else:
            row.sides["ours"].note = f"WRONG: logits differ by {max(errors.values()):.1e}"
        yield row


class _Embedding(torch.nn.Module):
    """The same model, which embeds and projects every step even where a table would save time."""

    def __init__(self, model: sf.SequenceClassifier) -> None:
        super().__init__()
        self.model = sf.SequenceClassifier(
            model.input_size, model.hidden_size, model.num_classes, cell=model.cell, vocab_size=model.vocab_size
        )
        self.model.load_state_dict(model.state_dict())

    def forward(self, *inputs: Any) -> torch.Tensor:
        before, classifier._STEPS_PER_ID = classifier._STEPS_PER_ID, 10**12
        try:
            return self.model(*inputs)
        finally:
            classifier._STEPS_PER_ID = before

"""The whole classifier against the same model on torch.nn's layer: training, inference, one text, and tokenising.

The texts are ragged: word counts are log-normal (median 30, at most 200), and the words are Zipf-distributed over
10,000. torch.nn's layer is given packed rows ("torch packed") and padded ones ("torch"). All sides share weights,
batches, pooling, head and optimizer, and nothing is timed unless their logits agree. "inference, sorted" takes batches
of rows of similar length, as the estimators make them, where raggedness costs torch.nn least.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import seqcls_fast as sf
from seqcls_fast.toolkit.twin import TorchTwin

from ..harness import Session
from ..rows import Row, Side

B, E, H, V, CLASSES, BATCHES = 64, 50, 64, 10_000, 5, 8
AGREE = 1e-4  # the largest difference between logits of two sides that compute the same
Batch = tuple[Tensor, Tensor]  # ids (B, T) and lengths (B,)


def corpus(texts: int) -> list[str]:
    g = torch.Generator().manual_seed(1)
    counts = (30 * torch.randn(texts, generator=g).mul(0.6).exp()).round().clamp(1, 200).long()
    words = torch.multinomial(1 / torch.arange(1.0, V + 1), int(counts.sum()), replacement=True, generator=g)
    letters = "abcdefghijklmnopqrstuvwxyz"  # no digits: one would begin another word
    names = ["".join(letters[i // 26**k % 26] for k in (2, 1, 0)) for i in words.tolist()]
    ends = counts.cumsum(0).tolist()
    return [" ".join(names[end - count : end]) for end, count in zip(ends, counts.tolist(), strict=True)]


def error_between(one: list[Tensor], other: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def infer(model: nn.Module, batches: list[Batch]) -> Callable[[], list[Tensor]]:
    """A call that computes the logits of all batches, with a copy of the model in eval mode."""
    model = copy.deepcopy(model).eval()
    if isinstance(model, sf.SequenceClassifier):
        model.prepare_inference()

    @torch.inference_mode()
    def run() -> list[Tensor]:
        return [model(ids, lengths) for ids, lengths in batches]

    return run


def train(model: nn.Module, batches: list[Batch]) -> Callable[[], None]:
    """A call that takes a training step on each batch, with a copy of the model."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    targets = [torch.arange(len(lengths)) % CLASSES for _, lengths in batches]

    def run() -> None:
        for (ids, lengths), target in zip(batches, targets, strict=True):
            optimizer.zero_grad()
            cross_entropy(model(ids, lengths), target).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

    return run


def measure(session: Session) -> Iterator[Row]:
    if importlib.util.find_spec("tokenizers") is None:
        print("classifier: needs the toolkit extra, which is not installed")
        return
    from seqcls_fast.toolkit.data.batches import by_length
    from seqcls_fast.toolkit.data.text import TextEncoder

    texts = corpus(256 if session.quick else 2048)
    encoder = TextEncoder("word").fit(texts)
    data = encoder.encode(texts)
    for cell in ("gru", "lstm"):
        torch.manual_seed(0)
        ours = sf.SequenceClassifier(E, H, CLASSES, cell=cell, vocab_size=encoder.vocab_size)
        models = {
            "ours": ours,
            "torch packed": TorchTwin(ours),
            "torch": TorchTwin(ours, packed=False),
        }
        texts_in_order = torch.arange(len(data))
        chosen = {
            "training": texts_in_order.split(B)[:BATCHES],
            "inference": texts_in_order.split(B)[:BATCHES],
            "inference, sorted": by_length(data.lengths, B)[:BATCHES],
            "one text": texts_in_order.split(1)[:32],
        }
        for what, indices in chosen.items():
            yield _row(session, what, cell, models, [data.pad(each) for each in indices])

    def predict(model: nn.Module) -> None:
        encoded = encoder.encode(texts)
        with torch.inference_mode():
            for indices in by_length(encoded.lengths, 256):
                model(*encoded.pad(indices))

    ready = ours.eval().prepare_inference()
    sides = {"ours": lambda: predict(ready), "ours tokenising": lambda: encoder.encode(texts)}
    yield Row("classifier", "classifier", f"LSTM, {len(texts)} texts as strings", session.threads, session.time(sides))


def _row(session: Session, what: str, cell: str, models: dict[str, Any], batches: list[Batch]) -> Row:
    row = Row("classifier", "classifier", f"{cell.upper()}, {what}", session.threads, {})
    logits = {name: infer(model, batches)() for name, model in models.items()}
    errors = {name: error_between(result, logits["ours"]) for name, result in logits.items()}
    if max(errors.values()) > AGREE:
        row.sides = {"ours": Side(note=f"WRONG: logits differ by {max(errors.values()):.1e}")}
        return row
    make = train if what == "training" else infer
    row.sides = session.time({name: make(model, batches) for name, model in models.items()})
    return row

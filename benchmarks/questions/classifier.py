"""The whole classifier against the same model over torch.nn: training, inference, one text, and tokenising.

Ragged texts: word counts are log-normal (median 30, at most 200), words Zipf-distributed over 10,000. torch.nn's side
has two ways, packed and padded with the last states picked out. All sides share weights, batches, pooling, head and
optimizer; the logits must agree before anything is timed. "inference, sorted" is on batches of about one length, as the
estimators make them, where torch.nn pays least for raggedness.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence

import seqcls_fast as sf

from ..harness import Session
from ..rows import Row, Side

B, E, H, V, CLASSES, BATCHES = 64, 50, 64, 10_000, 5, 8
AGREE = 1e-4  # logits of two sides
Batch = tuple[Tensor, Tensor]  # ids (B, T) and lengths (B,)


def corpus(texts: int) -> list[str]:
    g = torch.Generator().manual_seed(1)
    counts = (30 * torch.randn(texts, generator=g).mul(0.6).exp()).round().clamp(1, 200).long()
    words = torch.multinomial(1 / torch.arange(1.0, V + 1), int(counts.sum()), replacement=True, generator=g)
    letters = "abcdefghijklmnopqrstuvwxyz"  # (a digit would begin another word)
    names = ["".join(letters[i // 26**k % 26] for k in (2, 1, 0)) for i in words.tolist()]
    ends = counts.cumsum(0).tolist()
    return [" ".join(names[end - count : end]) for end, count in zip(ends, counts.tolist(), strict=True)]


class TorchClassifier(nn.Module):
    """The same model on torch.nn's layers."""

    def __init__(self, model: sf.SequenceClassifier, packed: bool) -> None:
        super().__init__()
        self.packed = packed
        self.embedding = nn.Embedding(model.vocab_size, model.input_size, model.padding_idx)
        self.encoder = {"gru": nn.GRU, "lstm": nn.LSTM}[model.cell](
            model.input_size, model.hidden_size, batch_first=True
        )
        self.head = nn.Linear(model.hidden_size, model.num_classes)
        self.load_state_dict(model.state_dict())

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        x = self.embedding(ids)
        if self.packed:
            final = self.encoder(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))[1]
            return self.head((final[0] if isinstance(final, tuple) else final)[-1])
        return self.head(self.encoder(x)[0][torch.arange(len(ids)), lengths - 1])


def error_between(one: list[Tensor], other: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


def infer(model: nn.Module, batches: list[Batch]) -> Callable[[], list[Tensor]]:
    """The logits of all batches, by a copy of the model that is ready for inference."""
    model = copy.deepcopy(model).eval()
    if isinstance(model, sf.SequenceClassifier):
        model.prepare_inference()

    @torch.inference_mode()
    def run() -> list[Tensor]:
        return [model(ids, lengths) for ids, lengths in batches]

    return run


def train(model: nn.Module, batches: list[Batch]) -> Callable[[], None]:
    """A step of the optimizer on each batch, of a copy of the model."""
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
            "torch packed": TorchClassifier(ours, packed=True),
            "torch": TorchClassifier(ours, packed=False),
        }
        given = torch.arange(len(data))
        orders = {
            "training": given.split(B),
            "inference": given.split(B),
            "inference, sorted": by_length(data.lengths, B),
            "one text": given.split(1)[:32],
        }
        for what, order in orders.items():
            batches = [data.pad(rows) for rows in (order if what == "one text" else order[:BATCHES])]
            yield _row(session, what, cell, models, batches)

    def predict(model: nn.Module) -> None:
        encoded = encoder.encode(texts)
        with torch.inference_mode():
            for rows in by_length(encoded.lengths, 256):
                model(*encoded.pad(rows))

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

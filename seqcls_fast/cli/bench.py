"""`bench`: the speed of a model beside the same model on torch.nn's layers.

Nothing is timed before both compute the same loss.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from .shared import add_command, count, load, print_json, random_batch

__all__ = ["add"]

EXAMPLES = """\
examples:
  seqcls-fast bench                     a bidirectional GRU on ragged ids, beside torch.nn's
  seqcls-fast bench model --threads 1   a saved model's sizes
"""


def add(commands: Any) -> None:
    purpose = "compare a training step and inference with the same model on torch.nn's layers"
    parser = add_command(commands, "bench", purpose, EXAMPLES, _bench)
    parser.add_argument("model", nargs="?", help="directory that train wrote (default: a model of common sizes)")
    parser.add_argument("--rows", type=count, default=64, metavar="B", help="rows of a batch (default: %(default)s)")
    parser.add_argument("--rounds", type=count, default=15, help="of the timing (default: %(default)s)")
    parser.add_argument("--threads", type=count, help="torch's intra-op threads (default: torch's choice)")


def _bench(arguments: argparse.Namespace) -> None:
    import torch

    from ..classifier import SequenceClassifier

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.model:
        model = copy.deepcopy(load(arguments.model)[0].model_).cpu()
    else:
        model = SequenceClassifier(50, 64, 4, vocab_size=10_000, bidirectional=True, pooling="max")
    for module in model.modules():  # dropout would draw different values in each
        if hasattr(module, "dropout"):
            module.dropout = 0.0
    x, lengths = random_batch(model, arguments.rows, longest=200)
    y = torch.randint(model.num_classes, (arguments.rows,))
    peer = copy.deepcopy(model)
    models = {"seqcls_fast": model, "torch.nn": _with_torch(peer)}
    steps = {name: _step(each, torch.optim.Adam(each.parameters()), x, lengths, y) for name, each in models.items()}
    losses = {name: step() for name, step in steps.items()}
    if not math.isclose(*losses.values(), rel_tol=1e-3, abs_tol=1e-4):
        raise RuntimeError(f"bench: expected equal first losses but got {losses}, so no timing is shown")
    answer = {"training step": _interleaved(steps, arguments.rounds)}
    for each in models.values():
        each.eval()
    model.prepare_inference()
    for name, rows in {"inference": (x, lengths), "one row": (x[:1, :30], lengths[:1].clamp(max=30))}.items():
        with torch.inference_mode():
            answer[name] = _interleaved({key: partial(each, *rows) for key, each in models.items()}, arguments.rounds)
    described = {
        "model": f"{model.cell}, {model.num_layers} x {model.hidden_size}{' both ways' * model.bidirectional}",
        "rows": arguments.rows, "steps": int(lengths.sum()), "threads": torch.get_num_threads(), "seconds": answer,
    }  # fmt: skip
    if arguments.json:
        print_json(described)
        return
    print(f"{described['model']}, {arguments.rows} rows of 1 to 200 steps, {described['threads']} threads")
    print(f"{'median, in ms':<16}{'seqcls_fast':>12}{'torch.nn packed':>18}{'ratio':>8}")
    for name, seconds in answer.items():
        ours, theirs = seconds.values()
        print(f"{name:<16}{1e3 * ours:12.3f}{1e3 * theirs:18.3f}{theirs / ours:8.1f}")


def _with_torch(model: Any) -> Any:
    """Puts torch.nn's encoder, which takes packed sequences, into the classifier."""
    from torch import nn
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    from ..classifier import SequenceClassifier

    class Packed(SequenceClassifier):
        def _encode(self, x: Any, lengths: Any) -> tuple[Any, Any]:
            rows = x if self.embedding is None else self.embedding(x)
            packed = pack_padded_sequence(rows, lengths, batch_first=True, enforce_sorted=False)
            output, final = self.encoder(packed)
            wanted = self.pooling != "last"
            output = pad_packed_sequence(output, batch_first=True, total_length=x.size(1))[0] if wanted else None
            return output, final if self.cell != "lstm" else final[0]

    options = {"nonlinearity": model.cell.removeprefix("rnn_")} if model.cell.startswith("rnn") else {}
    kind = getattr(nn, "RNN" if options else model.cell.upper())
    encoder = kind(
        model.input_size, model.hidden_size, model.num_layers, batch_first=True, bidirectional=model.bidirectional,
        **options,
    )  # fmt: skip
    encoder.load_state_dict(model.encoder.state_dict())
    model.encoder, model.__class__ = encoder, Packed
    return model


def _step(model: Any, optimizer: Any, x: Any, lengths: Any, y: Any) -> Callable[[], float]:
    from torch.nn.functional import cross_entropy

    model.train()

    def step() -> float:
        optimizer.zero_grad()
        loss = cross_entropy(model(x, lengths), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _interleaved(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each. The runs take turns, so that a busy machine slows all of them alike."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, once in runs.items():
            start = time.perf_counter()
            once()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}

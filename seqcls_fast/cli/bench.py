"""`bench`: the speed of a classifier beside the same classifier on torch.nn's layers.

Nothing is timed before both compute the same loss. A model that the user wrote is timed by bench_module.py.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

from .bench_module import bench_module, input_sizes, is_module_name
from .shared import UsageError, add_command, add_out, count, load, median_seconds, print_json, random_batch

__all__ = ["add"]

EXAMPLES = """\
examples:
  seqcls-fast bench                     a bidirectional GRU on ragged ids, beside torch.nn's
  seqcls-fast bench model --threads 1   a saved model's sizes
  seqcls-fast bench models.speech:Encoder --input 32,100,40   a module of yours, beside itself converted
  seqcls-fast bench models.text:make --input 32,50 --ids 10000   one that takes token ids
"""


def add(commands: Any) -> None:
    purpose = "compare a training step and inference with the same model on torch.nn's layers"
    parser = add_command(commands, "bench", purpose, EXAMPLES, _bench)
    add_out(parser)
    words = "directory that train wrote, or PACKAGE.MODULE:NAME of a torch.nn.Module, or of a class or function that "
    parser.add_argument("model", nargs="?", help=f"{words}makes one (default: a classifier of common sizes)")
    parser.add_argument("--input", metavar="SIZES", help="of the input of PACKAGE.MODULE:NAME, as in 32,100,8")
    parser.add_argument("--ids", type=count, metavar="N", help="its input is ids below N, not random numbers")
    parser.add_argument("--rows", type=count, default=64, metavar="B", help="rows of a batch (default: %(default)s)")
    parser.add_argument("--rounds", type=count, default=15, help="of the timing (default: %(default)s)")
    parser.add_argument("--threads", type=count, help="torch's intra-op threads (default: torch's choice)")


def _bench(arguments: argparse.Namespace) -> None:
    import torch

    from ..classifier import SequenceClassifier
    from ..toolkit.twin import TorchTwin

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if is_module_name(arguments.model):
        if arguments.input is None:
            raise UsageError(f"--input: expected the sizes of the input of {arguments.model}, as in 32,100,8")
        sizes = input_sizes(arguments.input)
        return bench_module(arguments.model, sizes, arguments.ids, arguments.rounds, arguments.json)
    for option in ("input", "ids"):
        if getattr(arguments, option) is not None:
            raise UsageError(
                f"--{option}: expected PACKAGE.MODULE:NAME with it but got {arguments.model or 'no model'}"
            )
    torch.manual_seed(0)
    if arguments.model:
        model = copy.deepcopy(load(arguments.model)[0].model_).cpu()
    else:
        model = SequenceClassifier(50, 64, 4, vocab_size=10_000, bidirectional=True, pooling="max")
    for module in model.modules():  # dropout would draw different values in each
        for name in ("dropout", "embedding_dropout"):
            if hasattr(module, name):
                setattr(module, name, 0.0)
    batch = random_batch(model, arguments.rows, longest=200)
    y = torch.randint(model.num_classes, (arguments.rows,))
    models = {"seqcls_fast": model, "torch.nn": TorchTwin(model)}
    steps = {name: _step(each, torch.optim.Adam(each.parameters()), batch, y) for name, each in models.items()}
    losses = {name: step() for name, step in steps.items()}
    if not math.isclose(*losses.values(), rel_tol=1e-3, abs_tol=1e-4):
        raise RuntimeError(f"bench: expected equal first losses but got {losses}, so no timing is shown")
    answer = {"training step": median_seconds(steps, arguments.rounds)}
    for each in models.values():
        each.eval()
    model.prepare_inference()
    for name, inputs in {"inference": batch, "one row": random_batch(model, 1, longest=30)}.items():
        with torch.inference_mode():
            calls = {key: partial(inputs.through, each) for key, each in models.items()}
            answer[name] = median_seconds(calls, arguments.rounds)
    described = {
        "model": f"{model.cell}, {model.num_layers} x {model.hidden_size}{' both ways' * model.bidirectional}",
        "rows": arguments.rows, "steps": int(batch.lengths.sum()), "threads": torch.get_num_threads(),
        "seconds": answer,
    }  # fmt: skip
    if arguments.json:
        print_json(described)
        return
    print(f"{described['model']}, {arguments.rows} rows of 1 to 200 steps, {described['threads']} threads")
    print(f"{'median, in ms':<16}{'seqcls_fast':>12}{'torch.nn packed':>18}{'ratio':>8}")
    for name, seconds in answer.items():
        ours, theirs = seconds.values()
        print(f"{name:<16}{1e3 * ours:12.3f}{1e3 * theirs:18.3f}{theirs / ours:8.1f}")


def _step(model: Any, optimizer: Any, batch: Any, y: Any) -> Callable[[], float]:
    from torch.nn.functional import cross_entropy

    model.train()

    def step() -> float:
        optimizer.zero_grad()
        loss = cross_entropy(batch.through(model), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step

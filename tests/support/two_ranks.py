"""The script that each process of test_ranks.py runs, once for all tests: trainings in float64.

Rank 0 writes the results to the folder named on the command line.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import seqcls_fast as sf
from seqcls_fast.toolkit.data.batches import bucketed, generator_of
from seqcls_fast.toolkit.data.datasets import Examples
from seqcls_fast.toolkit.data.ragged import Bags, Ragged
from seqcls_fast.toolkit.ranks import Ranks, current, join
from seqcls_fast.toolkit.training.checkpoint import Checkpoints
from seqcls_fast.toolkit.training.loop import train
from seqcls_fast.toolkit.training.options import Options, learning_rate_share
from support.corpora import sentences
from support.interruptions import Killed, kill_after, limit_rows

CASES: dict[str, dict[str, Any]] = {
    "gru": {"cell": "gru", "pooling": "max"},
    "lstm-both-ways": {"cell": "lstm", "pooling": "attention", "bidirectional": True},
    "rnn-deep": {"cell": "rnn_tanh", "pooling": "last", "num_layers": 2},
}
WIDE: dict[str, dict[str, Any]] = {  # AdamW of torch does not take their gradients, so that by_torch() has no answer
    "wide-ids": {"cell": "gru", "wide_ids": 40}, "wide-features": {"cell": "gru", "wide_features": 4}
}  # fmt: skip
OPTIONS = Options(epochs=3, batch_size=8, learning_rate=1e-2, seed=5, metric="accuracy", verbose=False)


def examples(seed: int, count: int, weighted: bool, wide: str = "") -> Examples:
    """With 33 sequences the last batch has one row, so that the second process has none. Some sequences are empty."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 9, (count,), generator=generator)
    values = torch.randn(int(lengths.sum()), 3, dtype=torch.float64, generator=generator)
    targets = torch.randint(0, 3, (count,), generator=generator)
    weights = torch.rand(count, dtype=torch.float64, generator=generator) + 0.5 if weighted else None
    beside: Any = None
    if wide == "wide-features":
        beside = torch.randn(count, 4, dtype=torch.float64, generator=generator)
    elif wide == "wide-ids":
        counts = torch.randint(1, 7, (count,), generator=generator)
        ids = torch.randint(0, 40, (int(counts.sum()),), generator=generator)
        sizes = torch.rand(len(ids), dtype=torch.float64, generator=generator)
        beside = Bags(Ragged(ids, counts), Ragged(sizes, counts))
    return Examples(Ragged(values, lengths, beside), targets, weights)


def model(case: str) -> sf.SequenceClassifier:
    torch.manual_seed(7)
    return sf.SequenceClassifier(3, 5, 3, dtype=torch.float64, **(CASES | WIDE)[case])


def trained(
    case: str, ranks: Ranks, *, weighted: bool = True, validated: bool = True, **more: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    net, history = model(case), []
    wide = case if case in WIDE else ""
    held = examples(2, 13, False, wide) if validated else None
    train(net, examples(1, 33, weighted, wide), OPTIONS, torch.device("cpu"), held, history, ranks=ranks, **more)
    return {name: t.clone() for name, t in net.state_dict().items()}, history


def by_torch(case: str, ranks: Ranks) -> dict[str, Any]:
    """The same by DistributedDataParallel, which averages over the processes."""
    net, data = model(case), examples(1, 33, True)
    parallel = DistributedDataParallel(net)  # it makes some processes end by SIGABRT, see the last line
    groups = [
        {"params": [p for p in net.parameters() if p.dim() > 1], "weight_decay": OPTIONS.weight_decay},
        {"params": [p for p in net.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=OPTIONS.learning_rate)
    steps = data.steps(OPTIONS.batch_size) * OPTIONS.epochs
    done = 0
    for epoch in range(OPTIONS.epochs):
        for rows in bucketed(data.sequences.lengths, OPTIONS.batch_size, generator_of(OPTIONS.seed, "batches", epoch)):
            done += 1
            share = learning_rate_share(OPTIONS.schedule, done / (steps + 1), OPTIONS.warmup)
            for group in optimizer.param_groups:
                group["lr"] = OPTIONS.learning_rate * share
            mine = rows[ranks.rank :: ranks.world]
            weights = data.weights[mine]
            if not len(mine):
                mine, weights = rows[:1], torch.zeros(1, dtype=torch.float64)
            x, lengths = data.sequences.pad(mine)
            losses = cross_entropy(parallel(x, lengths), data.targets[mine], reduction="none") * weights
            optimizer.zero_grad()
            (losses.sum() * ranks.world / len(rows)).backward()
            nn.utils.clip_grad_norm_(net.parameters(), OPTIONS.max_grad_norm)
            optimizer.step()
    return {name: t.clone() for name, t in net.state_dict().items()}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with join() as ranks:
        assert (ranks.world, current()) == (2, ranks)
        told: dict[str, Any] = {}

        def write(name: str, weights: dict[str, Any], history: Any = None) -> None:
            assert all(other == first for first, *rest in [ranks.all(_bits(weights))] for other in rest), name
            if ranks.writer:
                save_file(weights, folder / f"{name}.safetensors")
                told[name] = history

        for case in CASES:
            write(case, *trained(case, ranks))
            write(f"{case}-last", *trained(case, ranks, validated=False))
            write(f"{case}-torch", by_torch(case, ranks))
        for case in WIDE:
            write(case, *trained(case, ranks))
        write("plain", *trained("gru", ranks, weighted=False))
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            if ranks.rank == 1:
                limit_rows(patch, 2, torch.OutOfMemoryError("CUDA out of memory."))
            weights, history = trained("gru", ranks)
            write("memory", weights, ranks.all([record.get("accumulated") for record in history]))
            warned = ranks.gather([str(warning.message) for warning in said])
        write("stopped", *trained("gru", ranks, stop=lambda history: ranks.writer and len(history) == 2))
        with pytest.MonkeyPatch.context() as patch:
            kill_after(7, patch)
            checkpoints = Checkpoints(folder / "killed", 0)
            with pytest.raises(Killed):
                trained("gru", ranks, checkpoints=checkpoints)
        alone = Checkpoints(folder / "alone", 0).newest()["state"]  # of a training in one process
        write("resumed", *trained("gru", ranks, saved=alone))
        estimator(folder, ranks, told)
        if ranks.writer:
            told["warned"] = warned
            (folder / "told.json").write_text(json.dumps(told))


def estimator(folder: Path, ranks: Ranks, told: dict[str, Any]) -> None:
    X, y = sentences(0, 100)
    options = {"hidden_size": 8, "embedding_dim": 8, "epochs": 5, "batch_size": 8, "dropout": 0.0, "verbose": True}
    options |= {"embedding_dropout": 0.0, "word_dropout": 0.0}  # each rank would drop others
    classifier = sf.TextClassifier(**options, checkpoint_dir=folder / f"of-rank-{ranks.rank}", log_dir=folder / "logs")
    classifier.fit(X, y, validation=0.2)
    said = ranks.gather(
        {
            "weights": _bits(classifier.model_.state_dict()), "report": classifier.validation_report_,
            "accuracy": classifier.history_[-1]["val_accuracy"], "ranks": classifier.data_["ranks"],
            "seeds": [sf.TextClassifier(**options | {"seed": None, "verbose": False}).fit(X, y).seed_],
        }
    )  # fmt: skip
    told["estimator"] = said
    try:
        sf.TextClassifier(**options).fit(X[ranks.rank :], y[ranks.rank :])
    except ValueError as error:
        told["different"] = ranks.gather(str(error))


def _bits(weights: dict[str, Any]) -> list[str]:
    return [tensor.numpy().tobytes().hex() for tensor in weights.values()]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # or DistributedDataParallel's threads may "terminate without an active exception"

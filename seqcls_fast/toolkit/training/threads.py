"""How many of torch's threads a step of training uses on a CPU: one where its work is small.

At the end of each parallel operation the threads wait for each other. On a busy machine one of them may have to wait
for its turn on a core, a few milliseconds each time, and a step has some twenty such operations. The number depends on
the work alone, never on times, so that a seed gives the same weights again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..._wide import WeightedIds
from ...classifier import SequenceClassifier

__all__ = ["LITTLE", "threads_for", "work_of"]

LITTLE = 100_000_000  # multiply-adds, about 2 ms of one core: a second one can save half of that at most
UPDATE = 50  # AdamW moves 28 bytes for each parameter, for which a core takes as long as for that many multiply-adds


def work_of(model: SequenceClassifier, tokens: int, training: bool) -> int:
    """The multiply-adds of a batch of so many tokens, in training with backward and update."""
    forward = tokens * sum(weight.numel() for weight in model.encoder.parameters() if weight.dim() > 1)
    if not training:
        return forward
    table = model.wide.weight if isinstance(model.wide, WeightedIds) else None  # of which a step moves few rows
    return 3 * forward + UPDATE * sum(weight.numel() for weight in model.parameters() if weight is not table)


@contextmanager
def threads_for(work: int, device: torch.device) -> Iterator[None]:
    """Within the block torch computes with one thread if the work is little, else with as many as before."""
    threads = torch.get_num_threads()
    if threads == 1 or work >= LITTLE or device.type != "cpu":
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)

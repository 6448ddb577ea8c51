"""Training in several processes (ranks), by torch.distributed: gradients and totals are summed, rank 0 writes files.

Every process holds the whole model and takes its share of each batch. In a step it sends one message: a tensor with
its gradients, loss and counts, which are summed over all processes. DistributedDataParallel does the same for the
gradients, and the tests require equal weights from both. It is not used because all gradients of a recurrent layer are
ready at the very end, so that it could overlap nothing, and because here a process that is short of memory can split
its rows into smaller micro-batches while the others wait for its message.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from ._terminal import shown

__all__ = ["ALONE", "Ranks", "current", "join", "restarted"]


@dataclass(frozen=True)
class Ranks:
    """This process is number ``rank`` of ``world``. All processes call each method together, except :meth:`share`."""

    rank: int = 0
    world: int = 1

    @property
    def writer(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's share of rows that are sorted by length; all shares are about equally long."""
        return rows[self.rank :: self.world]

    def sum_(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums over all processes, with one message."""
        if self.world == 1:
            return list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        sums = flat.split([tensor.numel() for tensor in tensors])
        return [each.view_as(tensor) for each, tensor in zip(sums, tensors, strict=True)]

    def from_writer(self, value: Any) -> Any:
        """The value that the writer has."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, 0)
        return values[0]

    def all(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def gather(self, value: Any) -> list[Any] | None:
        """The values of all processes on the writer, None on the others."""
        if self.world == 1:
            return [value]
        values: list[Any] | None = [None] * self.world if self.writer else None
        dist.gather_object(value, values)
        return values


ALONE = Ranks()


def current() -> Ranks:
    """This process in torch.distributed's process group, or :data:`ALONE` if there is none."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return ALONE


def restarted() -> bool:
    """Whether torchrun has started the processes again after one of them died, under ``--max-restarts``."""
    return dist.is_available() and dist.is_torchelastic_launched() and os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"


@contextmanager
def join(device: str = "auto") -> Iterator[Ranks]:
    """Joins the process group that torchrun has set up, and leaves it at the end; alone if torchrun is not used.

    ``device``: "auto" or a torch device. GPUs, one for each process, communicate by NCCL, CPUs by gloo.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched() or dist.is_initialized():
        yield current()
        return
    on_gpu = torch.cuda.is_available() and (device == "auto" or torch.device(device).type == "cuda")
    if on_gpu:
        here, there = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if device != "auto" and torch.device(device).index is not None:
            wanted = "auto or cuda, as each process takes one GPU"
            raise ValueError(f"device: expected {wanted}, but got {shown(device)}")
        if here > there:
            raise ValueError(f"nproc-per-node: expected at most {there} processes, one for each GPU, but got {here}")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield current()
    finally:
        dist.destroy_process_group()

"""The processes that train together, by torch.distributed: gradients and figures are summed, one of them writes.

Every process holds the whole model and takes its share of each batch. A step is one message: what a process found for
its rows, gradients and figures alike, goes into one tensor, which is summed. DistributedDataParallel does the same for
the gradients, and the tests hold the two to equal weights. It is written out here because a recurrent layer's gradients
are all ready at the very end, so that nothing is there to overlap, and because a process that ran out of memory can
then take its rows in smaller pieces while the others wait for its one message.
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

__all__ = ["ALONE", "Ranks", "current", "join"]


@dataclass(frozen=True)
class Ranks:
    """This process among all: number ``rank`` of ``world``. Every method but :meth:`share` is called by all of them."""

    rank: int = 0
    world: int = 1

    @property
    def writer(self) -> bool:
        """Whether this is the one that writes files and speaks."""
        return self.rank == 0

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of rows that are sorted by length: every part is about as long as the others."""
        return rows[self.rank :: self.world]

    def sum_(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The sums over all processes, by one message."""
        if self.world == 1:
            return list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]

    def from_writer(self, value: Any) -> Any:
        """The writer's value."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, 0)
        return values[0]

    def all(self, value: Any) -> list[Any]:
        """The values of all processes, in their order."""
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
    """By torch.distributed's process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    return ALONE


@contextmanager
def join(device: str = "auto") -> Iterator[Ranks]:
    """The process group that torchrun's environment describes, for as long as the block lasts; alone without one.

    ``device``: "auto" or a torch device. GPUs talk through NCCL and each process takes one; CPUs talk through gloo.
    """
    if not dist.is_available() or not dist.is_torchelastic_launched() or dist.is_initialized():
        yield current()
        return
    on_gpu = torch.cuda.is_available() and (device == "auto" or torch.device(device).type == "cuda")
    if on_gpu:
        here, there = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if device != "auto" and torch.device(device).index is not None:
            wanted = "auto or cuda, of which each process takes one"
            raise ValueError(f"device: expected {wanted}, but got {shown(device)}")
        if here > there:
            raise ValueError(f"nproc-per-node: expected at most {there} processes, one for each GPU, but got {here}")
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield current()
    finally:
        dist.destroy_process_group()

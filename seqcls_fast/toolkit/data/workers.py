"""Worker processes that make items ahead of the process that uses them, by torch's DataLoader.

Items are made of numpy arrays, which are sent by value; torch tensors would be sent through shared memory.
"""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from signal import SIG_IGN, SIGINT, signal
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from .._terminal import MESSAGE, escaped, kind_of

__all__ = ["made_ahead"]

# A forked worker starts at once and needs no `if __name__ == "__main__"` in the user's script. Forking is safe here
# because our code in a worker starts none of torch's threads.
_START = "fork" if sys.platform == "linux" else None


def made_ahead(items: Callable[[int, int], Iterator[Any]], workers: int) -> Iterator[Any]:
    """The items in order, made by ``workers`` processes, which are two items ahead (or one each). 0: by this process.

    ``items(worker, workers)`` yields every ``workers``-th item, those of one worker.
    """
    if not workers:
        yield from items(0, 1)
        return
    loader: DataLoader[Any] = DataLoader(
        _Items(items), batch_size=None, num_workers=workers, prefetch_factor=max(1, 2 // workers),
        collate_fn=_unchanged, worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # else the loader would draw from torch's own generator
        multiprocessing_context=_START,
    )  # fmt: skip
    for item in loader:
        if isinstance(item, Exception):
            raise item
        yield item


class _Items(IterableDataset[Any]):
    """The items of one worker. An error becomes the last item, since the loader would turn it into a traceback."""

    def __init__(self, items: Callable[[int, int], Iterator[Any]]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        assert info is not None
        try:
            yield from self.items(info.id, info.num_workers)
        except Exception as error:
            try:
                pickle.loads(pickle.dumps(error))
            except Exception:
                error = RuntimeError(f"{kind_of(error)}: {escaped(error, MESSAGE)}")
            yield error


def _unchanged(item: Any) -> Any:
    return item


def _begin_worker(_: int) -> None:
    """Workers ignore Ctrl-C and exit when their parent dies."""
    signal(SIGINT, SIG_IGN)
    threading.Thread(target=_exit_with, args=(os.getppid(),), daemon=True).start()


def _exit_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)

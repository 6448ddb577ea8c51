"""The logits of a model for any number of sequences, in batches that are halved where memory is short."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ...classifier import SequenceClassifier
from ..data.batches import by_length
from ..data.ragged import Ragged

__all__ = ["autocast", "is_out_of_memory", "logits_of"]


def logits_of(
    model: SequenceClassifier, sequences: Ragged, batch_size: int, device: torch.device, amp: bool = False
) -> Tensor:
    """``(count, classes)`` float32 on the CPU, in the order of the sequences; the model's mode is left as it was."""
    training = model.training
    if training:  # asking each module costs a tenth of a prediction for one text
        model.eval()
    order = by_length(sequences.lengths, batch_size)

    def found_for(rows: Tensor) -> Tensor:
        """The logits of some rows; of each half of them by itself if memory is short."""
        try:
            return sequences.inputs(rows).to(device).through(model).float().cpu()
        except (MemoryError, RuntimeError) as error:
            if len(rows) == 1 or not is_out_of_memory(error):
                raise
        half = (len(rows) + 1) // 2
        return torch.cat([found_for(rows[:half]), found_for(rows[half:])])

    try:
        with torch.inference_mode(), autocast(device, amp):
            if len(sequences) > batch_size:
                model.prepare_inference()
            logits = [found_for(rows) for rows in order]
    finally:
        if training:
            model.train()
        model.forget_tables()
    if not logits:
        return torch.zeros(0, model.num_classes)
    if len(sequences) == 1:
        return logits[0]
    found = torch.cat(logits)
    return torch.empty_like(found).index_copy_(0, torch.cat(order), found)


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA's allocator raises an exception of its own; other allocators are known by their messages."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("can't allocate memory", "not enough memory", "bad_alloc", "out of memory", "STATUS_ALLOC_FAILED")
    return any(word in str(error) for word in words)


def autocast(device: torch.device, amp: bool) -> Any:
    """A context in which the model computes in bfloat16, if ``amp`` is True."""
    return torch.autocast(device.type, torch.bfloat16) if amp else nullcontext()

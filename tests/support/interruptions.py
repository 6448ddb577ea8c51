"""Trainings that end early: killed after a number of steps, or short of memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import seqcls_fast as sf
from seqcls_fast.toolkit.training import loop


class Killed(BaseException):
    pass


def small(folder: Path | None, **more: Any) -> sf.TextClassifier:
    return sf.TextClassifier(
        **{
            "hidden_size": 8, "embedding_dim": 8, "batch_size": 16, "epochs": 3, "dropout": 0.3,
            "checkpoint_dir": folder, "checkpoint_every": 0, **more,
        }
    )  # fmt: skip


def kill_after(steps: int, patch: pytest.MonkeyPatch) -> None:
    """Makes training raise Killed after that many steps. Its files are then as after a killed process."""
    whole, done = loop._Training._step, [0]

    def step(self: Any, batch: Any) -> None:
        if done[0] == steps:
            raise Killed
        done[0] += 1
        whole(self, batch)

    patch.setattr(loop._Training, "_step", step)


def limit_rows(
    patch: pytest.MonkeyPatch, most: int, error: Exception, where: str = "forward", training: bool = True
) -> None:
    """Makes batches of more than ``most`` rows fail with ``error``, an out-of-memory error of the CPU or of CUDA."""
    forward = sf.SequenceClassifier.forward

    def limited(self: Any, x: torch.Tensor, lengths: Any = None, **more: Any) -> torch.Tensor:
        if self.training is training and x.size(0) > most and where == "forward":
            raise error
        logits = forward(self, x, lengths, **more)
        if self.training is training and x.size(0) > most:

            def refuse(gradient: torch.Tensor) -> None:
                raise error

            logits.register_hook(refuse)
        return logits

    patch.setattr(sf.SequenceClassifier, "forward", limited)

"""Checks a checkpoint before training resumes from it, since anybody who can write to the folder can have forged it.

Shapes matter most: a fused optimizer reads and writes its state without checking that it is as large as the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .._terminal import escaped, shown
from ..schema import Check, flag, listed, mapping, number, optional, record, text, whole
from ..store import HELD, SEED, check_history

__all__ = ["MOST_RESTORES", "check_content", "check_fits"]

MOST_RESTORES = 5


def _tensor(value: Any, name: str) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a tensor but got {shown(value)}")


_WEIGHTS = mapping(_tensor)
_GROUP = record({"lr": number(0)}, others=lambda value, name: None)
_OPTIMIZER = record({"state": mapping(_WEIGHTS), "param_groups": listed(_GROUP)})
_SNAPSHOT = record({"model": _WEIGHTS, "optimizer": _OPTIMIZER, "epochs": whole(0), "best": optional(_WEIGHTS)})
_COUNTS: dict[str, Check] = dict.fromkeys(("steps", "right", "rows", "tokens", "padded"), whole(0))
_STATE = record({
    "model": _WEIGHTS, "optimizer": _OPTIMIZER, "best": optional(_WEIGHTS), "history": check_history,
    "sums": record(_COUNTS | {"loss": number(), "seconds": number(0)}), "restores": whole(0, MOST_RESTORES),
    "micro_batches": whole(1), "finished": flag, "first_loss": optional(number(0)),
    "restore_point": optional(_SNAPSHOT), "next_restore_point": optional(_SNAPSHOT),
})  # fmt: skip
_ABOUT = record({
    "rows": whole(0), "digest": text, "validation": optional(HELD), "seed": SEED, "parameters": mapping(text)
})  # fmt: skip

check_content = record({"about": _ABOUT, "state": _STATE})


def check_fits(
    state: dict[str, Any], weights: Mapping[str, Tensor], parameters: Sequence[Tensor], steps: int, names: set[str]
) -> None:
    """Raises a ValueError unless the state fits this training.

    ``parameters`` are in the optimizer's order, ``steps`` is their number in an epoch, and every epoch's record must
    hold the ``names``.
    """
    history, sums = state["history"], state["sums"]
    if state["finished"] and not history:
        raise ValueError("finished: expected at least one epoch but got none")
    for index, each in enumerate(history):
        if not names <= each.keys():
            raise ValueError(f"history[{index}]: expected {', '.join(sorted(names))} but got {shown(list(each), 200)}")
    if sums["steps"] > steps or sums["rows"] < sums["steps"]:
        raise ValueError(f"sums: expected at most {steps} steps, each of at least one row, but got {shown(sums, 200)}")
    for snapshot in (state, state["restore_point"], state["next_restore_point"]):
        if snapshot is None:
            continue
        if snapshot.get("epochs", 0) > len(history):
            raise ValueError(f"epochs: expected at most {len(history)} but got {snapshot['epochs']}")
        for found in (snapshot["model"], snapshot["best"]):
            if found is not None:
                _check_like(found, weights)
        result = snapshot["best"] or (snapshot["model"] if snapshot.get("finished") else {})
        for name, tensor in result.items():  # no further step would notice them
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"{escaped(name, 80)}: expected finite weights but got NaN or infinity")
        for index, moments in snapshot["optimizer"]["state"].items():
            if not isinstance(index, int) or not 0 <= index < len(parameters):
                raise ValueError(f"optimizer: expected the state of {len(parameters)} weights but got {shown(index)}")
            like = parameters[index]
            _check_like(moments, {"step": torch.zeros(()), "exp_avg": like, "exp_avg_sq": like})


def _check_like(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    if found.keys() != wanted.keys():
        raise ValueError(f"tensors: expected {shown(list(wanted), 200)} but got {shown(list(found), 200)}")
    for name, tensor in found.items():
        like = wanted[name]
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            expected, got = (f"{each.dtype} {tuple(each.shape)}" for each in (like, tensor))
            raise ValueError(f"{escaped(name, 80)}: expected {expected} but got {got}")

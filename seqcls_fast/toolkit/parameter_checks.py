"""Checks the parameters of the estimators' constructors, turns them into JSON and back, finds the machine's devices."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ._terminal import kind_of, shown
from .data import labels
from .training.options import METRICS, SCHEDULES

__all__ = [
    "check_parameters", "device_of", "is_available", "lasting_parameters", "parameters_from_json", "parameters_to_json",
]  # fmt: skip

_PASSING = ("device", "verbose", "log_dir", "checkpoint_dir", "checkpoint_every", "workers")


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Raises a ValueError or TypeError for a parameter that fit() cannot use."""
    device = parameters["device"]
    if not is_available(device):
        raise ValueError(f"device: expected auto or a device that this machine has but got {shown(device)}")
    for name, least in {"epochs": 1, "hidden_size": 1, "num_layers": 1, "workers": 0}.items():
        _require_int(name, parameters[name], least)
    every = parameters["checkpoint_every"]
    if isinstance(every, bool) or not isinstance(every, int | float) or not 0 <= every < math.inf:
        raise ValueError(f"checkpoint_every: expected seconds, at least 0, but got {shown(every)}")
    for name in ("batch_size", "patience", "max_length"):
        if parameters[name] is not None:
            _require_int(name, parameters[name], 1)
    for name, choices in {"schedule": SCHEDULES, "metric": METRICS, "on_nan": ("raise", "restore")}.items():
        if parameters[name] not in choices:
            raise ValueError(f"{name}: expected one of {', '.join(choices)} but got {shown(parameters[name])}")
    for name in ("learning_rate", "max_grad_norm"):
        value = parameters[name]
        if value is not None and not (isinstance(value, int | float) and 0 < value < math.inf):
            raise ValueError(f"{name}: expected None or a number above 0 but got {shown(value)}")
    decay, warmup = parameters["weight_decay"], parameters["warmup"]
    if not (isinstance(decay, int | float | np.floating) and 0 <= decay < math.inf):
        raise ValueError(f"weight_decay: expected a number of at least 0 but got {shown(decay)}")
    if not (isinstance(warmup, int | float | np.floating) and 0 <= warmup < 1):
        raise ValueError(f"warmup: expected a share of the steps, from 0 to below 1, but got {shown(warmup)}")


def _require_int(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an int but got {kind_of(value)}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least} but got {shown(value)}")


def is_available(device: Any) -> bool:
    """Whether ``device`` is "auto" or a device of this machine."""
    if device == "auto":
        return True
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        return False
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return found.type == "cpu" or (found.type == "cuda" and (found.index or 0) < count)


def device_of(device: Any) -> torch.device:
    """The device that the parameter ``device`` stands for."""
    if device != "auto":
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def lasting_parameters(parameters: Mapping[str, Any]) -> dict[str, str]:
    """The parameters that a training must keep when it is resumed, as text. Others may differ from run to run."""
    return {name: repr(value) for name, value in parameters.items() if name not in _PASSING}


def parameters_to_json(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters in types of JSON, which has no paths, no devices and no keys but strings."""
    plain = {name: os.fspath(v) if isinstance(v, os.PathLike) else v for name, v in parameters.items()}
    plain["device"] = str(plain["device"])
    if isinstance(plain["class_weight"], dict):
        weights = plain["class_weight"]
        keys = labels.to_json(labels.as_array(list(weights)))
        plain["class_weight"] = {"labels": keys, "weights": [float(weight) for weight in weights.values()]}
    return plain


def parameters_from_json(parameters: dict[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`parameters_to_json`."""
    weights = parameters.get("class_weight")
    if isinstance(weights, dict):
        keys, values = weights.get("labels"), weights.get("weights")
        if not isinstance(keys, list) or not isinstance(values, list) or len(keys) != len(values):
            raise ValueError(f"class_weight: expected as many labels as weights but got {shown(weights)}")
        weights = dict(zip(labels.from_json(keys).tolist(), values, strict=True))
    return parameters | {"class_weight": weights}

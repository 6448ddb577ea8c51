"""Checks the parameters of the estimators' constructors, turns them into JSON and back, finds the machine's devices."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from ..classifier import CELLS, POOLINGS
from ._terminal import did_you_mean, kind_of, shown
from .data import labels
from .data.series import NORMALS, POLICIES
from .data.text import KINDS
from .data.tokenizer_file import is_tokenizer_file
from .inputs import LAYOUTS
from .training.options import METRICS, SCHEDULES

__all__ = [
    "check_kept", "check_parameters", "device_of", "is_available", "lasting_parameters",
    "parameters_from_json", "parameters_to_json",
]  # fmt: skip

_PASSING = ("device", "verbose", "log_dir", "checkpoint_dir", "checkpoint_every", "workers", "baseline")
# What the network, its first weights, or the encoder of its data are made with.
_SHAPING = (
    "cell", "hidden_size", "embedding_dim", "num_layers", "bidirectional", "pooling", "wide", "tokenizer", "vectors",
    "lowercase", "normalization", "max_length", "max_vocab", "min_frequency", "standardize", "missing", "normalize",
    "differences", "time",
)  # fmt: skip
# Of models that were saved before there were these parameters.
_NOT_YET: dict[str, dict[str, Any]] = {
    "text": {
        "wide": False, "wide_dropout": 0.0, "word_dropout": 0.0, "embedding_dropout": 0.0, "label_smoothing": 0.0,
        "holdout": None, "refit": False,
    },
    "series": {
        "layout": "time_channels", "normalize": "data", "differences": False, "time": False, "convolutions": 0,
        "holdout": None,
    },
}  # fmt: skip
_CHOICES: dict[str, tuple[str, ...]] = {
    "cell": tuple(CELLS), "pooling": POOLINGS, "tokenizer": KINDS, "missing": POLICIES, "normalize": ("auto", *NORMALS),
    "layout": LAYOUTS, "schedule": SCHEDULES, "metric": METRICS, "on_nan": ("raise", "restore"),
}  # fmt: skip
_SIZES = {  # least and most
    "hidden_size": (1, 1 << 16), "embedding_dim": (1, 1 << 16), "num_layers": (1, 1 << 10), "workers": (0, 1 << 10),
    "convolutions": (0, 1 << 20),
}  # fmt: skip
# What other libraries call the same, or the nearest that there is here.
_ELSEWHERE = {
    "rnn": "rnn_tanh", "wordpiece": "bpe", "sentencepiece": "bpe", "unigram": "bpe", "subword": "bpe", "avg": "mean",
    "average": "mean", "ffill": "forward", "f1": "macro_f1", "f1_macro": "macro_f1", "acc": "accuracy",
}  # fmt: skip


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Raises a ValueError or TypeError for a parameter that fit() cannot use."""
    device = parameters["device"]
    if not is_available(device):
        wanted = "auto or a device that this machine has"
        raise ValueError(f"device: expected {wanted} but got {shown(device)}{_about_gpus(device)}")
    for name, (least, most) in _SIZES.items():
        if name in parameters:
            _require_int(name, parameters[name], least, most)
    if not isinstance(parameters["baseline"], bool):
        raise TypeError(f"baseline: expected a bool but got {kind_of(parameters['baseline'])}")
    for name in ("wide", "refit", "warm_start"):
        if not isinstance(parameters.get(name, False), bool):
            raise TypeError(f"{name}: expected a bool but got {kind_of(parameters[name])}")
    for name in ("batch_size", "patience", "max_length", "epochs"):
        if parameters[name] is not None or (name == "epochs" and "wide" not in parameters):
            _require_int(name, parameters[name], 1)
    for name in ("bidirectional", "amp", "verbose"):
        if parameters[name] not in (True, False) and not (name == "verbose" and parameters[name] is None):
            raise TypeError(f"{name}: expected a bool but got {shown(parameters[name])}")
    for name in ("log_dir", "checkpoint_dir"):
        if not isinstance(parameters[name], str | os.PathLike | None):
            raise TypeError(f"{name}: expected None or the path of a folder but got {kind_of(parameters[name])}")
    seed = parameters["seed"]
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not -(2**63) <= seed < 2**64):
        raise ValueError(f"seed: expected None or an int of 64 bits but got {shown(seed)}{_as_number(seed)}")
    if not isinstance(parameters.get("vectors"), str | os.PathLike | None):
        raise TypeError(f"vectors: expected None or the path of a file but got {kind_of(parameters['vectors'])}")
    for name, choices in _CHOICES.items():
        if name == "tokenizer" and is_tokenizer_file(parameters.get(name)):
            continue
        if name in parameters and parameters[name] not in choices:
            near = did_you_mean(parameters[name], choices, _ELSEWHERE) or _as_file(name, parameters[name])
            raise ValueError(f"{name}: expected one of {', '.join(choices)} but got {shown(parameters[name])}{near}")
    for name, low, below, words in (
        ("checkpoint_every", 0.0, math.inf, "seconds, at least 0,"),
        ("weight_decay", 0, math.inf, "a number of at least 0"),
        ("warmup", 0, 1, "a share of the steps, from 0 to below 1,"),
        ("word_dropout", 0, 1, "a share of the tokens, from 0 to below 1,"),
        ("wide_dropout", 0, 1, "a share of the n-grams, from 0 to below 1,"),
        ("dropout", 0, 1, "a probability, from 0 to below 1,"),
        ("embedding_dropout", 0, 1, "a probability, from 0 to below 1,"),
        ("label_smoothing", 0, 1, "a share, from 0 to below 1,"),
        ("holdout", math.ulp(0), 1, "None or a share of the data, from above 0 to below 1,"),
        ("learning_rate", math.ulp(0), math.inf, "None or a number above 0"),
        ("max_grad_norm", math.ulp(0), math.inf, "None or a number above 0"),
    ):
        if name not in parameters:  # of the other estimator
            continue
        value = parameters[name]
        if value is not None or not words.startswith("None"):
            _require_number(name, value, low, below, words)


def check_kept(now: Mapping[str, Any], before: Mapping[str, Any], method: str) -> None:
    """Raises a ValueError unless a model that was made with the parameters ``before`` can be trained on with others."""
    for name in _SHAPING:
        kept, found = _without_path(before.get(name)), _without_path(now.get(name))
        if found != kept:
            raise ValueError(
                f"{method}: expected {name}={shown(kept)}, as the model was made with, but got {shown(found)}; a new "
                "estimator begins anew"
            )


def _as_file(name: str, value: Any) -> str:
    """The end of a message about a tokenizer that may be another file, a folder, or the name of a model elsewhere."""
    is_name = name == "tokenizer" and (
        isinstance(value, os.PathLike) or (isinstance(value, str) and re.search(r"[/\\.\-]", value))
    )
    return "; for a tokenizer of Hugging Face's pass the path of its tokenizer.json" if is_name else ""


def _require_int(name: str, value: Any, least: int, most: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name}: expected an int but got {kind_of(value)}{_as_number(value)}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least} but got {shown(value)}")
    if value > most:
        raise ValueError(f"{name}: expected at most {most} but got {shown(value)}")


def _require_number(name: str, value: Any, least: float, below: float, words: str) -> None:
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not is_number or not least <= value < below:
        hint = "; 0 is no decay" if name == "weight_decay" and value is None else _as_number(value)
        raise ValueError(f"{name}: expected {words} but got {shown(value)}{hint}")


def _as_number(value: Any) -> str:
    """The end of a message about a text where a number was expected."""
    if isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{0,9}\.?[0-9]{0,9}(e-?[0-9]{1,3})?\s*", value):
        with suppress(ValueError):
            return f"; did you mean {float(value):g}, without quotes?"
    return ""


def _about_gpus(device: Any) -> str:
    """The end of a message about a device that is not there."""
    name = str(device).partition(":")[0].lower()
    if name in ("gpu", "cuda") and not torch.cuda.is_available():
        return "; torch finds no GPU on this machine" + (", which it would call 'cuda'" if name == "gpu" else "")
    return did_you_mean(device, ("auto", "cpu", "cuda"), {"gpu": "cuda"})


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


def _without_path(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def parameters_to_json(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters in types of JSON, which has no paths, no devices and no keys but strings."""
    plain = {name: _without_path(value) for name, value in parameters.items()}
    plain["device"] = str(plain["device"])
    if isinstance(plain["class_weight"], dict):
        weights = plain["class_weight"]
        keys = labels.to_json(labels.as_array(list(weights)))
        plain["class_weight"] = {"labels": keys, "weights": [float(weight) for weight in weights.values()]}
    return plain


def parameters_from_json(parameters: dict[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`parameters_to_json`. What a model was saved without, it did not have either."""
    weights = parameters.get("class_weight")
    if isinstance(weights, dict):
        keys, values = weights.get("labels"), weights.get("weights")
        if not isinstance(keys, list) or not isinstance(values, list) or len(keys) != len(values):
            raise ValueError(f"class_weight: expected as many labels as weights but got {shown(weights)}")
        weights = dict(zip(labels.from_json(keys).tolist(), values, strict=True))
    earlier = _NOT_YET["text" if "embedding_dim" in parameters else "series"]
    return earlier | parameters | {"class_weight": weights}

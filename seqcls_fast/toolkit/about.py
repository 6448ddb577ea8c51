"""A trained model in a few lines, for reports and the model card: its network, settings, training data and versions."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import torch

from .._version import __version__
from ..classifier import SequenceClassifier
from ._terminal import NAME, shown
from .parameter_table import ESTIMATORS, parameters_of

__all__ = ["about_model", "changed_parameters", "parameter_count"]


def changed_parameters(kind: str, parameters: Mapping[str, Any]) -> list[str]:
    """The parameters of an estimator that differ from its defaults, as they are passed to the constructor."""
    defaults = parameters_of(kind)
    return [f"{name}={shown(value, NAME)}" for name, value in parameters.items() if value != defaults[name].default]


def parameter_count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def about_model(
    kind: str, parameters: Mapping[str, Any], model: SequenceClassifier, data: dict[str, Any] | None, epochs: int,
    best_epoch: int,
) -> dict[str, str]:  # fmt: skip
    """Lines by name. ``data`` describes the training data, as the model card has them."""
    layers = "one layer" if model.num_layers == 1 else f"{model.num_layers} layers"
    ways = ", in both directions" if model.bidirectional else ""
    beside = "" if model.wide_ids is None else f", {model.wide_ids:,} ids of n-grams beside it"
    beside = beside if model.convolutions is None else ", random convolutions beside it"
    kept = "" if best_epoch == epochs else f", of which the weights of epoch {best_epoch} were kept"
    found = {
        "model": f"{ESTIMATORS[kind]}: {model.cell}, {layers} of {model.hidden_size} units{ways}, {model.pooling} "
        f"pooling{beside}, {parameter_count(model):,} parameters",
        "training": f"{epochs} {'epoch' if epochs == 1 else 'epochs'}{kept}",
        "settings": ", ".join(changed_parameters(kind, parameters)) or "the defaults",
        "date": datetime.now().astimezone().isoformat(" ", "seconds"),
        "versions": f"seqcls_fast {__version__}, torch {torch.__version__}",
    }
    if data is not None:
        found["training"] += f" on {data['rows']:,} examples (digest {data['digest']})"
        if "earlier" in data:
            found["training"] += f", after an earlier training on {data['earlier']:,}"
        if "refit" in data:
            part = "the convolutions" if model.wide_ids is None else f"again for {best_epoch}"
            found["training"] += f", then {part} on all {data['refit']:,}, of which this model is"
    return found

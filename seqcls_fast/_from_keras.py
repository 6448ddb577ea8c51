"""``from_keras``: a layer of ours with the weights of a layer of Keras, which is never imported.

A layer is read through its two methods that give plain data, so a saved list of weights and a saved configuration do
as well. What a layer of ours does not do in the same way is refused by its name.
"""

from __future__ import annotations

import reprlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ._other_weights import I_F_G_O, Z_R_N, as_weight, fill
from .nn import GRU, LSTM, RNN

__all__ = ["from_keras"]

_LAYERS = ("SimpleRNN", "GRU", "LSTM")
_BY_GATES = {1: ("SimpleRNN", RNN, (0,)), 3: ("GRU", GRU, Z_R_N), 4: ("LSTM", LSTM, I_F_G_O)}
_Settings = Mapping[str, Any]


def from_keras(source: Any, config: _Settings | None = None) -> RNN | GRU | LSTM:
    """A layer with the weights of a layer of Keras: ``SimpleRNN``, ``GRU``, ``LSTM``, or a ``Bidirectional`` of one.

    It gives the same results, and ``recurrent_dropout`` is taken over; other settings that change the results are
    refused. Keras draws a mask of the state for each gate, ours is one for all gates, so training with it differs.

    Args:
        source: the layer, after its first call; or the list of its weights, ``layer.get_weights()``.
        config: with a list of weights, the settings ``layer.get_config()``. Default: those of a new layer of Keras.

    Returns:
        A layer with ``batch_first=True``. Its output is that of Keras with ``return_sequences=True`` up to each row's
        length, and ``h_n`` is the output without it. A mask that is True for the first steps of each row and False for
        the others becomes ``lengths``.

    Example::

        >>> import torch, seqcls_fast as sf
        >>> kernel, recurrent_kernel, bias = torch.ones(3, 8), torch.ones(2, 8), torch.zeros(8)
        >>> sf.from_keras([kernel, recurrent_kernel, bias])
        LSTM(3, 2, batch_first=True)
    """
    given, settings = (source, config) if isinstance(source, list | tuple) else _of_layer(source, config)
    weights = [as_weight("source", weight) for weight in given]
    directions = (2 if len(weights) > 3 else 1) if settings is None else 1 + ("layer" in settings)
    forward, backward = _by_direction(settings or {})
    each = len(weights) // directions
    if each not in (2, 3) or each * directions != len(weights) or weights[1].dim() != 2:
        raise ValueError(
            f"source: expected kernel, recurrent_kernel and bias of {directions} directions but got arrays of shapes "
            f"{_shapes(weights)}"
        )
    (inputs, _), (hidden, rows) = weights[0].shape, weights[1].shape
    kind, layer, order = _BY_GATES.get(rows // max(hidden, 1), ("", RNN, ()))
    options = _options(kind, forward)
    if backward is not None:
        if not backward.get("go_backwards", True):
            raise ValueError("backward_layer: expected go_backwards=True but got False")
        other = _options(kind, {**backward, "go_backwards": False})
        if other != options:
            raise ValueError(f"backward_layer: expected {options}, as for the forward layer, but got {other}")
    if kind == "GRU":
        options["reset_after"] = weights[2].dim() == 2 if each == 3 else bool(forward.get("reset_after", True))
    bias = (2, rows) if options.get("reset_after") else (rows,)
    for d in range(directions):
        found = _shapes(weights[d * each : (d + 1) * each])
        wanted = [(inputs, len(order) * hidden), (hidden, len(order) * hidden), bias][:each]
        if not kind or found != wanted:
            raise ValueError(
                "source: expected shapes (I, G * H), (H, G * H) and (G * H,), or (2, 3 * H) for a GRU with "
                f"reset_after, with 1, 3 or 4 gates G, but got {found}"
            )
    made = layer(
        inputs, hidden, bias=each == 3, batch_first=True, bidirectional=directions == 2, dtype=weights[0].dtype,
        **options,
    )  # fmt: skip
    for suffix, start in zip(("", "_reverse"), range(0, len(weights), each), strict=False):
        kernel, recurrent, *biases = weights[start : start + each]
        fill(made, suffix, order, kernel, recurrent, list(biases[0]) if biases and biases[0].dim() == 2 else biases)
    return made


def _shapes(weights: Sequence[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(weight.shape) for weight in weights]


def _of_layer(layer: Any, config: _Settings | None) -> tuple[Sequence[Any], _Settings]:
    name = type(layer).__name__
    if name not in (*_LAYERS, "Bidirectional") or not hasattr(layer, "get_weights"):
        raise TypeError(
            f"source: expected a list of weights or a layer of Keras, {', '.join(_LAYERS)} or Bidirectional, "
            f"but got {name}"
        )
    if config is not None:
        raise TypeError("config: expected None with a layer, which has its own, but got one")
    weights, config = layer.get_weights(), layer.get_config()
    if not weights:
        raise ValueError(f"source: expected a {name} with weights, which its first call makes, but got one without")
    return weights, config


def _by_direction(settings: _Settings) -> tuple[_Settings, _Settings | None]:
    """The settings of the forward layer and of the backward one, if it has its own."""
    if "layer" not in settings:
        return settings, None
    if settings.get("merge_mode", "concat") != "concat":
        raise ValueError(f"merge_mode: expected 'concat' but got {reprlib.repr(settings['merge_mode'])}")
    name = settings["layer"]["class_name"]
    if name not in _LAYERS:
        raise TypeError(f"source: expected a Bidirectional of {', '.join(_LAYERS)} but got one of {name}")
    other = settings.get("backward_layer")
    return settings["layer"]["config"], None if other is None else other["config"]


def _options(kind: str, settings: _Settings) -> dict[str, Any]:
    """The arguments of our constructor for these settings."""
    options: dict[str, Any] = {"recurrent_dropout": settings.get("recurrent_dropout", 0.0)}
    activation = settings.get("activation", "tanh")
    if kind == "SimpleRNN":
        options["nonlinearity"] = activation
    if activation != "tanh" and not (kind == "SimpleRNN" and activation == "relu"):
        wanted = "'tanh' or 'relu'" if kind == "SimpleRNN" else "'tanh'"
        raise ValueError(f"activation: expected {wanted} but got {reprlib.repr(activation)}")
    gate = settings.get("recurrent_activation", "sigmoid")
    if gate != "sigmoid":
        raise ValueError(f"recurrent_activation: expected 'sigmoid' but got {reprlib.repr(gate)}")
    if settings.get("go_backwards"):
        raise ValueError("go_backwards: expected False, with x.flip(1) as the input of the layer, but got True")
    if settings.get("stateful"):
        raise ValueError("stateful: expected False, with the last h_n as hx of the next call, but got True")
    if settings.get("dropout"):
        warnings.warn(
            f"dropout={settings['dropout']}, which drops a layer's input in training, is left out; put a "
            "torch.nn.Dropout before the layer",
            UserWarning,
            stacklevel=3,
        )
    return options

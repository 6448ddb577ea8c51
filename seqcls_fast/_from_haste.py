"""``from_haste``: a layer of ours with the weights of a layer of haste (haste_pytorch), which is never imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ._other_weights import I_G_F_O, Z_R_N, as_weight, fill, reordered
from .nn import GRU, LSTM

__all__ = ["from_haste"]

_PLAIN = {"kernel", "recurrent_kernel", "bias"}
_NORM = {"gamma", "gamma_h", "beta_h"}


def from_haste(
    state_dict: Mapping[str, Any], *, batch_first: bool = False, zoneout: float = 0.0, dropout: float = 0.0
) -> GRU | LSTM:
    """A layer with the weights of a layer of haste: ``LSTM``, ``GRU`` or ``LayerNormLSTM``.

    A ``LayerNormGRU`` is refused: it normalises its three gates together, ours r and z apart from n.

    Args:
        state_dict: that of haste's layer.
        batch_first, zoneout, dropout: as haste's constructor took them. Its zoneout acts on h alone, and its dropout is
            our ``weight_drop``.

    Example::

        >>> import torch, seqcls_fast as sf
        >>> weights = {"kernel": torch.ones(3, 8), "recurrent_kernel": torch.ones(2, 8), "bias": torch.zeros(8)}
        >>> sf.from_haste(weights, zoneout=0.1)
        LSTM(3, 2, zoneout=(0.1, 0.0))
    """
    given = {name: as_weight(name, value) for name, value in state_dict.items()}
    is_gru, is_normed = "recurrent_bias" in given, "gamma" in given
    if is_gru and is_normed:
        raise ValueError(
            "state_dict: expected that of haste's LSTM, GRU or LayerNormLSTM but got that of a LayerNormGRU, which "
            "normalises its three gates together"
        )
    wanted = _PLAIN | ({"recurrent_bias"} if is_gru else set()) | (_NORM if is_normed else set())
    if given.keys() != wanted:
        raise ValueError(
            f"state_dict: expected that of haste's LSTM, GRU or LayerNormLSTM, with {', '.join(sorted(wanted))}, but "
            f"got {', '.join(sorted(given)) or 'nothing'}"
        )
    inputs, hidden = given["kernel"].size(0), given["recurrent_kernel"].size(0)
    rows = (3 if is_gru else 4) * hidden
    shapes = {"kernel": (inputs, rows), "recurrent_kernel": (hidden, rows), "gamma": (2, rows)}
    for name, t in given.items():
        shape = shapes.get(name, (hidden,) if name in _NORM else (rows,))
        if t.shape != shape:
            raise ValueError(f"{name}: expected shape {shape} but got {tuple(t.shape)}")
    options: dict[str, Any] = {"batch_first": batch_first, "weight_drop": dropout, "dtype": given["kernel"].dtype}
    layer: GRU | LSTM
    if is_gru:
        layer = GRU(inputs, hidden, zoneout=zoneout, **options)
    else:
        layer = LSTM(inputs, hidden, zoneout=(zoneout, 0.0), layer_norm=is_normed, **options)
    order = Z_R_N if is_gru else I_G_F_O
    biases = [given[name] for name in ("bias", "recurrent_bias") if name in given]
    fill(layer, "", order, given["kernel"], given["recurrent_kernel"], biases)
    if is_normed:
        gains = zip(("weight_ln_ih_l0", "weight_ln_hh_l0"), reordered(given["gamma"], order), strict=True)
        with torch.no_grad():
            for name, values in (*gains, ("weight_ln_c_l0", given["gamma_h"]), ("bias_ln_c_l0", given["beta_h"])):
                layer.get_parameter(name).copy_(values)
    return layer

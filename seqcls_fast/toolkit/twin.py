"""A classifier's twin on torch.nn's layer: what `seqcls-fast bench`, the demo and the benchmarks compare speed with.

Everything but the recurrent layer is the classifier's own, and ragged rows go into torch's layer as one writes it by
hand: packed, or padded.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .._wide import logits_of
from ..classifier import CELLS, SequenceClassifier

__all__ = ["TorchTwin"]


class TorchTwin(nn.Module):
    """The same model with the same weights, which computes the same logits and drops out the same values.

    Args:
        model: the classifier, which stays as it is.
        packed: give torch's layer a PackedSequence. Otherwise it computes the padding too and the twin leaves it out
            of the pooling, which is only the same for a model of one direction.

    Inputs: x and lengths as for the classifier, except that torch refuses rows of length 0.
    """

    def __init__(self, model: SequenceClassifier, packed: bool = True) -> None:
        super().__init__()
        if model.bidirectional and not packed:
            raise ValueError(
                "packed: expected True for a bidirectional model, as its reverse direction begins in padding"
            )
        if CELLS[model.cell].is_option:
            raise ValueError(f"model: expected a cell that torch.nn has but got {model.cell}")
        ours = model.encoder
        name = type(ours).__name__  # the same as of torch's layer
        options = {"nonlinearity": ours.nonlinearity} if name == "RNN" else {}
        like = next(ours.parameters())
        encoder = getattr(nn, name)(
            ours.input_size, ours.hidden_size, ours.num_layers, batch_first=True, bidirectional=ours.bidirectional,
            dropout=ours.dropout, device=like.device, dtype=like.dtype, **options,
        )  # fmt: skip
        encoder.load_state_dict(ours.state_dict())
        self.packed = packed
        self.model = copy.deepcopy(model)
        self.model.add_module("encoder", encoder)  # takes the place of ours

    def forward(self, x: Tensor, lengths: Tensor, *, wide: Any = None) -> Tensor:
        model = self.model
        beside = logits_of(model.wide, wide, x.size(0))
        features = x if model.embedding is None else model._embedded(x)
        output, h_n = (self._encode_packed if self.packed else self._encode_padded)(features, lengths)
        pooled = model._pool(output, h_n, lengths)
        logits = model._logits(dropout(pooled, model.dropout, self.training) if model.dropout else pooled, x, lengths)
        return logits if beside is None else logits + beside

    def _encode_packed(self, features: Tensor, lengths: Tensor) -> tuple[Tensor | None, Tensor]:
        packed = pack_padded_sequence(features, lengths, batch_first=True, enforce_sorted=False)
        result, final = self.model.encoder(packed)
        h_n = final[0] if isinstance(final, tuple) else final
        if self.model.pooling == "last":
            return None, h_n
        return pad_packed_sequence(result, batch_first=True, total_length=features.size(1))[0], h_n

    def _encode_padded(self, features: Tensor, lengths: Tensor) -> tuple[Tensor | None, Tensor]:
        output = self.model.encoder(features)[0]
        rows = torch.arange(len(output), device=output.device)
        h_n = output[rows, lengths - 1][None]
        if self.model.pooling == "last":
            return None, h_n
        if self.model.pooling == "mean":  # sums over all steps and relies on zeros beyond a row's length
            beyond = torch.arange(output.size(1), device=output.device) >= lengths[:, None]
            output = output.masked_fill(beyond[:, :, None], 0)
        return output, h_n

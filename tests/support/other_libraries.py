"""What torchrl, opacus and pytorch-forecasting ask of a recurrent layer, for tests without these libraries.

Each stand-in has the name and the module of its original, by which ``convert`` recognises it. It asks the same about
the class of a layer, and makes the calls that follow from the answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


class _EpisodeModule(nn.Module):
    """Runs episodes of different lengths. A layer that is not torch's is taken for the library's own, with a mask."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        if isinstance(self.layer, nn.LSTM | nn.GRU):
            packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return pad_packed_sequence(self.layer(packed)[0], batch_first=True, total_length=x.size(1))[0]
        return self.layer(x, mask=torch.arange(x.size(1)) < lengths.unsqueeze(1))[0]


LSTMModule = type("LSTMModule", (_EpisodeModule,), {"__module__": "torchrl.modules.tensordict_module.rnn"})
GRUModule = type("GRUModule", (_EpisodeModule,), {"__module__": "torchrl.modules.tensordict_module.rnn"})


class ModuleValidator:
    """opacus.validators.ModuleValidator: tables by the exact type of a module."""

    VALIDATORS: ClassVar[dict[type, Callable[[nn.Module], str]]] = {nn.LSTM: lambda module: "nn.LSTM is not supported"}
    FIXERS: ClassVar[dict[type, Callable[[Any], nn.Module]]] = {
        nn.LSTM: lambda module: nn.Linear(module.input_size, module.hidden_size)
    }

    @classmethod
    def validate(cls, model: nn.Module) -> list[str]:
        return [cls.VALIDATORS[type(m)](m) for m in model.modules() if type(m) in cls.VALIDATORS]


class _Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module


GradSampleModule = type("GradSampleModule", (_Wrapper,), {"__module__": "opacus.grad_sample.grad_sample_module"})


class _LengthsOfZero(ABC, nn.RNNBase):
    """pytorch_forecasting.models.nn.rnn.RNN: a forward around torch's, for rows without any step."""

    @abstractmethod
    def init_hidden_state(self, x: Tensor) -> Any: ...

    def forward(self, x: Any, hx: Any = None, lengths: Tensor | None = None) -> Any:
        if lengths is None:
            return super().forward(x, hx=hx)  # type: ignore[misc]  # of the class after this one
        steps = lengths.clamp(min=1)
        packed = pack_padded_sequence(x, steps, batch_first=self.batch_first, enforce_sorted=False)
        output, hidden = super().forward(packed, hx=hx)  # type: ignore[misc]
        initial = self.init_hidden_state(x) if hx is None else hx
        empty = (lengths == 0)[None, :, None]
        hidden = tuple(torch.where(empty, old, new) for old, new in zip(initial, hidden, strict=True))
        return pad_packed_sequence(output, batch_first=self.batch_first)[0], hidden


class ForecastingLSTM(_LengthsOfZero, nn.LSTM):
    def init_hidden_state(self, x: Tensor) -> Any:
        zeros = x.new_zeros(self.num_layers, x.size(0 if self.batch_first else 1), self.hidden_size)
        return zeros, zeros

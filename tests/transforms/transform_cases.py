"""The models on which the rows of the table of transforms are tested: torch.nn's layers or ours, and expected results.

Expected results are those of torch.nn in float64, without compilation, one row of the batch at a time, so that they
need no transform, no batching and no padding. ``Library`` has the calls by which torch.nn's layers and ours do the
same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import seqcls_fast as sf
from support.tolerances import assert_close_by_name

T, B, I, H = 5, 4, 3, 6
# roundings: second derivatives run four times through two layers, and a step sums up to 2 * H + H products
TERMS = 4 * 2 * T * (2 * H + H + 10)
TERMS_16 = 4 * T  # 16-bit layers round h, forward and backward, in two layers


class Wrong(AssertionError):
    """The transform ran but its result is wrong; ``word`` stands for this in the table."""

    def __init__(self, message: str, word: str = "wrong") -> None:
        super().__init__(message)
        self.word = word


class TorchNN:
    """torch.nn's layers, their calls with ragged batches, and their export to ONNX."""

    @staticmethod
    def new(cell: str, *sizes: int, **options: Any) -> nn.Module:
        return getattr(nn, cell)(*sizes, **options)

    @staticmethod
    def ragged(module: nn.Module, x: Tensor, lengths: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        output, finals = module(pack_padded_sequence(x, lengths, enforce_sorted=False), hx)
        return pad_packed_sequence(output, total_length=x.size(0))[0], finals

    @staticmethod
    def to_onnx(model: nn.Module, args: tuple[Tensor, ...], path: Path, shapes: dict[str, Any]) -> None:
        torch.onnx.export(model.eval(), args, path, dynamic_shapes=shapes, dynamo=True, verbose=False)


class Ours:
    """The same for our layers."""

    @staticmethod
    def new(cell: str, *sizes: int, **options: Any) -> nn.Module:
        return getattr(sf, cell)(*sizes, **options)

    @staticmethod
    def ragged(module: nn.Module, x: Tensor, lengths: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        return module(x, hx, lengths=lengths)

    @staticmethod
    def to_onnx(model: nn.Module, args: tuple[Tensor, ...], path: Path, shapes: dict[str, Any]) -> None:
        sf.export.to_onnx(model, args, path, dynamic_shapes=shapes)


Library = type[TorchNN] | type[Ours]


def flat(value: Any) -> list[Tensor]:
    """A list of the tensors in ``output, h_n`` or ``output, (h_n, c_n)``."""
    return [value] if isinstance(value, Tensor) else [t for part in value for t in flat(part)]


class Model(nn.Module):
    """A model of one layer. It returns ``output, h_n (, c_n)`` of padded or, with lengths, ragged rows."""

    def __init__(self, library: Library, layer: nn.Module) -> None:
        super().__init__()
        self.library, self.layer = library, layer

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, ...]:
        result = self.layer(x) if lengths is None else self.library.ragged(self.layer, x, lengths)
        return tuple(flat(result))


class Case:
    """A model of two bidirectional layers, and its expected results."""

    def __init__(
        self, library: Library, cell: str, dtype: torch.dtype = torch.float32, sizes: Sequence[int] = (I, H, 2),
        bidirectional: bool = True,
    ) -> None:  # fmt: skip
        self.model = Model(library, library.new(cell, *sizes, bidirectional=bidirectional, dtype=dtype))
        self.directions = 2 if bidirectional else 1
        self.truth = getattr(nn, cell)(*sizes, bidirectional=bidirectional, dtype=torch.float64)
        self.truth.load_state_dict(self.model.layer.state_dict())
        # new tensors for each case: torch.export marks tensors, and torch.compile follows such marks
        self.x = torch.randn(T, B, sizes[0], dtype=dtype)
        self.lengths, self.some_empty = torch.tensor([3, 5, 1, 4]), torch.tensor([3, 0, 5, 0])

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.model.named_parameters()]

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in self.model.named_parameters()}

    def call(self, weights: Sequence[Tensor] | dict[str, Tensor], *args: Any) -> Any:
        """The model with other weights."""
        return functional_call(self.model, dict(zip(self.names, _values(weights), strict=True)), args)

    def expected(self, x: Tensor, lengths: Tensor | None = None, weights: Any = None) -> tuple[Tensor, ...]:
        """The expected results, computed row by row; they can be differentiated."""
        state = dict(self.truth.named_parameters())
        if weights is not None:
            state = dict(zip(state, (w.double() for w in _values(weights)), strict=True))
        steps = [x.size(0)] * x.size(1) if lengths is None else lengths.tolist()
        rows = [self._row(state, x[:length, b].double(), x.size(0)) for b, length in enumerate(steps)]
        return tuple(torch.stack(parts, dim=1) for parts in zip(*rows, strict=True))

    def _row(self, state: dict[str, Tensor], x: Tensor, total: int) -> list[Tensor]:
        if not len(x):
            finals = 2 if self.truth.mode == "LSTM" else 1
            count, hidden = self.directions * self.truth.num_layers, self.truth.hidden_size
            return [x.new_zeros(total, self.directions * hidden), *(x.new_zeros(count, hidden) for _ in range(finals))]
        output, *finals = flat(functional_call(self.truth, state, (x,)))
        return [torch.cat([output, output.new_zeros(total - len(x), output.size(1))]), *finals]

    def gradients(self, x: Tensor, lengths: Tensor | None = None, weights: Any = None) -> tuple[Tensor, ...]:
        """The expected gradients of the loss with respect to x and the weights."""
        weights = [w.detach().double().requires_grad_() for w in _values(weights or self.weights())]
        x = x.detach().double().requires_grad_()
        return torch.autograd.grad(loss(self.expected(x, lengths, weights)), [x, *weights])

    def check(
        self, function: Callable[..., Any], x: Tensor, *lengths: Tensor, terms: int = TERMS, dtype: Any = None
    ) -> None:
        """Asserts that results of ``function``, and the loss's gradients through it, are those of the model."""
        x = x.detach().requires_grad_()
        results = flat(function(x, *lengths))
        agree(results, self.expected(x.detach(), *lengths), terms, dtype)
        found = torch.autograd.grad(loss(results), [x, *self.model.parameters()])
        agree(found, self.gradients(x, *lengths), terms, dtype)


def _values(weights: Sequence[Tensor] | dict[str, Tensor]) -> Sequence[Tensor]:
    return list(weights.values()) if isinstance(weights, dict) else weights


def loss(results: Sequence[Tensor]) -> Tensor:
    """A sum over all elements, whose gradient differs from element to element."""
    return sum((t * t + t).sum() for t in (t.to(torch.promote_types(t.dtype, torch.float32)) for t in results))


def agree(found: Any, wanted: Any, terms: int = TERMS, dtype: torch.dtype | None = None) -> None:
    found, wanted = ({str(i): t for i, t in enumerate(flat(value))} for value in (found, wanted))
    try:
        assert_close_by_name(found, wanted, terms, dtype)
    except AssertionError as error:
        raise Wrong(str(error)) from None


def same_bits(found: Any, wanted: Any) -> None:
    if not all(torch.equal(a, b) for a, b in zip(flat(found), flat(wanted), strict=True)):
        raise Wrong("the bits differ", "other bits")

"""``SequenceClassifier``: embedding (for ids), a recurrent encoder, pooling over time, a linear head; and a wide part.

For ids, a table of the first layer's projections of every id, ``embedding @ weight_ih.T``, is computed if there are
several steps for each id. The layer then takes the table as its ``weight_ih`` and the ids as its input. In inference
the table has the bits of the layer's own projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, embedding

from . import _head, _wide, ops
from . import nn as layers
from ._autograd import needs_graph
from ._checks import as_lengths
from ._frozen import Frozen, can_freeze, flat, unfreeze
from ._inputs import autocasts
from ._options import class_of_cell
from ._shapes import CELLS
from .convolutions import ConvolutionScores

__all__ = ["CELLS", "POOLINGS", "SequenceClassifier"]

POOLINGS = ("last", "mean", "max", "attention")
_STEPS_PER_ID = 2  # with at least so many steps for each id, the table is cheaper than projecting each step


class SequenceClassifier(nn.Module):
    r"""Classifies sequences of features or of token ids, of any lengths.

    Args:
        input_size: number of features of a step; with ``vocab_size`` the width of the embedding.
        hidden_size: units of each layer and direction.
        num_classes: number of logits.
        cell: ``"gru"``, ``"lstm"``, ``"rnn_tanh"`` or ``"rnn_relu"``; or with an option of these layers
            ``"gru_layer_norm"``, ``"lstm_layer_norm"``, ``"rnn_tanh_layer_norm"``, ``"rnn_relu_layer_norm"``,
            ``"lstm_peephole"``, or ``"gru_reset_before"``, the GRU with ``reset_after=False``.
        vocab_size: number of token ids; None for float input.
        padding_idx: the id that rows are padded with (its embedding is zero and is not trained), or None.
        num_layers: layers of the encoder.
        bidirectional: whether it reads from both ends.
        pooling: the input of the head: ``"last"`` (the state at a row's end, or at both ends for two directions),
            ``"mean"`` or ``"max"`` over the steps, or ``"attention"`` (their mean, weighted by a learnt score).
        dropout: probability of dropping a value between layers and in front of the head, in training.
        embedding_dropout: probability of dropping a value of the embedding, in all steps of a row, in training.
        wide_ids: number of ids of a wide part, which adds to the logits a row of them for each id of a sequence (see
            ``wide`` below); None for no such part.
        wide_features: number of features of a wide part that is linear in them; None for no such part.
        device, dtype: of the parameters.

    Inputs: x, lengths=None, wide=None
        * **x**: :math:`(B, T, \text{input\_size})`, or ids :math:`(B, T)` with ``vocab_size``.
        * **lengths**: the number of steps of each row, a tensor or list of :math:`B` integers in any order, zeros
          allowed. What lies beyond is never read. Without it float rows have all T steps, and rows of ids end at their
          last id that is not ``padding_idx``.
        * **wide**: what describes each sequence as a whole. With ``wide_ids`` two tensors :math:`(B, N)`, ids in any
          order and their weights, 0 for padding; the weights of a row are multiplied by ``model.wide.scale`` (ones, if
          nobody sets them) and then divided by their Euclidean norm. With ``wide_features`` a tensor
          :math:`(B, \text{wide\_features})`.

    Outputs: logits
        :math:`(B, \text{num\_classes})`; a row without steps has the logits of a pooled state of zeros.

    Examples::

        >>> import torch, seqcls_fast as sf
        >>> model = sf.SequenceClassifier(input_size=10, hidden_size=20, num_classes=3)
        >>> model(torch.randn(5, 7, 10), lengths=[7, 3, 0, 1, 7]).shape
        torch.Size([5, 3])
        >>> model = sf.SequenceClassifier(16, 32, 3, vocab_size=20, bidirectional=True, pooling="max")
        >>> model(torch.randint(20, (8, 10))).shape
        torch.Size([8, 3])
    """

    _packed_tables: Frozen | None = None  # the encoder's weights, with the tables instead of those of its input

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_classes: int,
        *,
        cell: str = "gru",
        vocab_size: int | None = None,
        padding_idx: int | None = 0,
        num_layers: int = 1,
        bidirectional: bool = False,
        pooling: str = "last",
        dropout: float = 0.0,
        embedding_dropout: float = 0.0,
        wide_ids: int | None = None,
        wide_features: int | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_classes": num_classes}
        optional = {"vocab_size": vocab_size, "wide_ids": wide_ids, "wide_features": wide_features}
        sizes |= {"num_layers": num_layers} | {name: size for name, size in optional.items() if size is not None}
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int):
                raise TypeError(f"{name}: expected an int but got {type(size).__name__}")
            if size < 1:
                raise ValueError(f"{name}: expected at least 1 but got {size}")
        if cell not in CELLS:
            raise ValueError(f"cell: expected one of {', '.join(CELLS)} but got {cell!r:.80}")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling: expected one of {', '.join(POOLINGS)} but got {pooling!r:.80}")
        for name, share in {"dropout": dropout, "embedding_dropout": embedding_dropout}.items():
            if not 0 <= share < 1:
                raise ValueError(f"{name}: expected a probability from 0 to below 1 but got {share!r:.80}")
        if wide_ids is not None and wide_features is not None:
            raise ValueError(f"wide_features: expected None with wide_ids but got {wide_features}")
        if vocab_size is None:
            padding_idx = None
        elif padding_idx is not None and not 0 <= padding_idx < vocab_size:
            raise ValueError(
                f"padding_idx: expected None or an id from 0 to {vocab_size - 1} but got {padding_idx!r:.80}"
            )
        self.input_size, self.hidden_size, self.num_classes = input_size, hidden_size, num_classes
        self.cell, self.vocab_size, self.padding_idx, self.num_layers = cell, vocab_size, padding_idx, num_layers
        self.bidirectional, self.pooling, self.dropout = bidirectional, pooling, dropout
        self.embedding_dropout = embedding_dropout
        self.wide_ids, self.wide_features = wide_ids, wide_features

        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embedding = nn.Embedding(vocab_size, input_size, padding_idx, **where) if vocab_size else None
        name, arguments = class_of_cell(cell)
        self.encoder = getattr(layers, name)(
            input_size, hidden_size, num_layers, batch_first=True, bidirectional=bidirectional,
            dropout=dropout if num_layers > 1 else 0.0, **arguments, **where,
        )  # fmt: skip
        self.attention = nn.Linear(self._width, 1, **where) if pooling == "attention" else None
        self.head = nn.Linear(self._width, num_classes, **where)
        self.wide: nn.Module | None = None
        if wide_ids is not None:
            self.wide = _wide.WeightedIds(wide_ids, num_classes, **where)
        elif wide_features is not None:
            self.wide = nn.Linear(wide_features, num_classes, bias=False, **where)
            nn.init.zeros_(self.wide.weight)  # training begins with the encoder's logits alone
        self.convolutions: ConvolutionScores | None = None  # scores of a series, which are added to the logits
        self._tables: list[Tensor] | None = None

    def forward(self, x: Tensor, lengths: Tensor | Sequence[int] | None = None, *, wide: Any = None) -> Tensor:
        x, lengths = self._check(x, lengths)
        beside = _wide.logits_of(self.wide, wide, x.size(0))
        output, h_n = self._encode(x, lengths)
        pooled = self._pool(output, h_n, lengths)
        if self.dropout and self.training:
            pooled = dropout(pooled, self.dropout)
        logits = self._logits(pooled, x, lengths)
        return logits if beside is None else logits + beside

    def prepare_inference(self) -> SequenceClassifier:
        """Keeps for later calls in eval mode without gradients what does not depend on their input: the table of the
        first layer's projections, for ids, and the encoder's weights as the kernels read them (:func:`freeze`).

        ``train()``, ``load_state_dict()`` and ``to()`` drop both. After other changes of the weights call this again:
        the table does not notice them. Where our kernels do not run there is no table, as torch's own layer takes no
        ids, nor is there one for 16-bit weights and under autocast on a CPU.

        Example::

            >>> import torch, seqcls_fast as sf
            >>> model = sf.SequenceClassifier(16, 32, 3, vocab_size=20).eval().prepare_inference()
            >>> with torch.no_grad():
            ...     logits = model(torch.randint(20, (8, 10)))
        """
        if self.training:
            raise RuntimeError("prepare_inference: expected a model in eval mode, call eval() first")
        self.forget_tables()
        with torch.no_grad():
            if self.embedding is not None and self._has_exact_tables():
                self._tables = self._make_tables()
        if can_freeze(self.encoder) and not autocasts("cpu"):
            if self._tables is not None:
                self._packed_tables = Frozen(self.encoder, strict=False, tables=self._tables)
            elif self.encoder._frozen_weights is None:
                self.encoder._frozen_weights = Frozen(self.encoder, strict=False)
        return self

    # -- the stages ---------------------------------------------------------------------------------------------------

    def _check(self, x: Tensor, lengths: Any) -> tuple[Tensor, Tensor | None]:
        """The input and lengths as tensors on one device. The encoder checks the rest."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x: expected a tensor but got {type(x).__name__}")
        if self.embedding is None:
            if x.dim() != 3:
                raise ValueError(f"x: expected (B, T, {self.input_size}) but got {tuple(x.shape)}")
        else:
            if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
                raise TypeError(f"x: expected integers, the ids of tokens, but got {x.dtype}")
            if x.dim() != 2:
                raise ValueError(f"x: expected ids (B, T) but got {tuple(x.shape)}")
            x = x.long()
        width = self.head.in_features if isinstance(self.head, nn.Linear) else self._width
        if width != self._width:
            raise RuntimeError(f"head: expected in_features {self._width}, as the encoder gives, but got {width}")
        if lengths is not None:
            lengths = as_lengths(lengths, True).to(x.device)
        elif self.padding_idx is not None:
            steps = torch.arange(1, x.size(1) + 1, device=x.device)
            lengths = torch.where(x == self.padding_idx, 0, steps).amax(1) if x.size(1) else None
        return x, lengths

    @property
    def _width(self) -> int:
        return self.hidden_size * (2 if self.bidirectional else 1)

    def _encode(self, x: Tensor, lengths: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """The encoder's output, or None if pooling does not need it, and the final h of every layer and direction."""
        want_output = self.pooling != "last"
        if self.embedding is None:
            output, final = self.encoder(x, lengths=lengths, want_output=want_output)
        elif (tables := self._tables_for(x)) is not None:
            output, final = self._encode_ids(x, tables, lengths, want_output)
        else:
            features = self._embedded(_checked_ids(x, lengths, self.embedding.num_embeddings))
            output, final = self.encoder(features, lengths=lengths, want_output=want_output)
        return output, final if isinstance(final, Tensor) else final[0]

    def _embedded(self, ids: Tensor) -> Tensor:
        assert self.embedding is not None
        features: Tensor = self.embedding(ids)
        if self.embedding_dropout and self.training:
            kept = features.new_ones(features.size(0), 1, features.size(2))  # the same values in each step of a row
            features = features * dropout(kept, self.embedding_dropout)
        return features

    def _encode_ids(
        self, ids: Tensor, tables: list[Tensor], lengths: Tensor | None, want_output: bool
    ) -> tuple[Any, Any]:
        weights = self.encoder._weights()
        packed = self.encoder._packed((), flat(weights))  # raises if the encoder is frozen and a weight has changed
        weights[0][: len(tables)] = tables
        prepared = self._packed_tables
        if prepared is not None:
            packed = prepared.packed_for(self.encoder, (), flat(weights))
        elif packed is not None:
            packed = [None, *packed[1:]]  # its first layer was packed for features
        return self.encoder._run(ids, weights, (), lengths, None, True, want_output, packed)

    def _pool(self, output: Tensor | None, h_n: Tensor, lengths: Tensor | None) -> Tensor:
        if output is None:
            return h_n[-2:].transpose(0, 1).flatten(1) if self.bidirectional else h_n[-1]
        return _head.pool_steps(output, lengths, self.pooling, self.attention)

    def _logits(self, pooled: Tensor, x: Tensor, lengths: Tensor | None) -> Tensor:
        logits = _head.linear(self.head, pooled)
        return logits if self.convolutions is None else logits + self.convolutions(x, lengths)

    # -- the table of projections -------------------------------------------------------------------------------------

    def _tables_for(self, ids: Tensor) -> list[Tensor] | None:
        """The tables, one for each direction, if they are kept or cost less than projecting each step; else None."""
        if _head.in_graph() or not ops.takes_ids(ids) or (self.training and self.embedding_dropout):
            return None  # a graph must not depend on the sizes of the example it was made from
        if not needs_graph(self.parameters()):
            if not self._has_exact_tables():
                return None
            if self._tables is not None:
                return self._tables
        assert self.vocab_size is not None
        return self._make_tables() if _STEPS_PER_ID * self.vocab_size < ids.numel() else None

    def _has_exact_tables(self) -> bool:
        """Whether a table has the bits of projected steps. In 16 bits it would be rounded once more than they are, and
        on a CPU a row's bits would depend on whether its batch is large enough for a table."""
        assert self.embedding is not None
        weight = self.embedding.weight
        return not weight.is_cpu or not (weight.dtype.itemsize == 2 or autocasts("cpu"))

    def _make_tables(self) -> list[Tensor]:
        """For each direction the matrix whose column ``i`` is the first layer's projection of id ``i``."""
        assert self.embedding is not None
        weight = self.embedding.weight
        if self.padding_idx is not None and torch.is_grad_enabled():
            # Looking the rows up again keeps the gradient of the padding's row at zero.
            weight = embedding(torch.arange(len(weight), device=weight.device), weight, self.padding_idx)
        directions = 2 if self.bidirectional else 1
        return [_head.product(weight, w_ih).t() for w_ih in self.encoder._weights()[0][:directions]]

    def forget_tables(self) -> None:
        """Drops what :meth:`prepare_inference` keeps."""
        self._tables = self._packed_tables = None
        kept = getattr(self.encoder, "_frozen_weights", None)
        if kept is not None and not kept.strict:  # else it is the user's freeze()
            unfreeze(self.encoder)

    def train(self, mode: bool = True) -> SequenceClassifier:
        if mode:
            self.forget_tables()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> SequenceClassifier:
        self.forget_tables()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.forget_tables()
        super()._load_from_state_dict(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_tables": None, "_packed_tables": None}

    def extra_repr(self) -> str:
        return f"pooling={self.pooling!r}, dropout={self.dropout}"


def _checked_ids(ids: Tensor, lengths: Tensor | None, count: int) -> Tensor:
    """The ids with 0 in the padding. Raises for other ids outside the vocabulary, as the kernels would."""
    if lengths is not None and lengths.shape == ids.shape[:1]:
        ids = ids.masked_fill(torch.arange(ids.size(1), device=ids.device) >= lengths[:, None], 0)
    if ids.is_cpu and ids.numel() and not _head.in_graph():
        low, high = (int(value) for value in ids.aminmax())
        if low < 0 or high >= count:
            raise RuntimeError(f"x: expected ids from 0 to {count - 1} but got {low if low < 0 else high}")
    return ids

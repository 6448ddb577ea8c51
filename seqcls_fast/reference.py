"""One recurrent layer, and what follows it in a classifier, in plain PyTorch: the specification of every faster path.

It can be differentiated any number of times, so it also computes derivatives of derivatives. A row that has ended takes
no part in a step: ``torch.where`` replaces its input and states before the arithmetic and restores its states after it.
A product with a mask would not do, because 0 * NaN is NaN and the padding may hold NaN.
"""

from __future__ import annotations

from . import _with_torch  # noqa: F401

# isort: split
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding, layer_norm, linear

from . import _noise
from ._cells import BUILT_IN, Rates
from ._inputs import autocast_off, check_rank, holds_ids, values_can_be_read

__all__ = ["pool_steps", "rnn_layer", "softmax"]


def rnn_layer(
    x: Tensor,
    w_ih: Sequence[Tensor],
    w_hh: Sequence[Tensor],
    b_ih: Sequence[Tensor] = (),
    b_hh: Sequence[Tensor] = (),
    w_hr: Sequence[Tensor] = (),
    h0: Tensor | None = None,
    c0: Tensor | None = None,
    *,
    cell: str,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    batch_first: bool = False,
    want_output: bool = True,
    further: Sequence[Sequence[Tensor]] = (),
    resets: Tensor | None = None,
    h_reset: Tensor | None = None,
    c_reset: Tensor | None = None,
    rates: Rates = Rates(),  # noqa: B008 (it cannot be changed)
    seed: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """The arguments, shapes and results of :func:`seqcls_fast.ops.rnn_layer`; ``lengths`` are taken as checked.

    Example::

        >>> import torch
        >>> from seqcls_fast.reference import rnn_layer
        >>> x, w_ih, w_hh = torch.ones(3, 2, 1), torch.ones(1, 1), torch.ones(1, 1)
        >>> output, h_n, _ = rnn_layer(x, [w_ih], [w_hh], cell="rnn_relu", lengths=torch.tensor([1, 3]))
        >>> output[..., 0].T, h_n[..., 0]
        (tensor([[1., 0., 0.],
                [1., 2., 3.]]), tensor([[1., 3.]]))
    """
    check_rank(x, batch_sizes)
    storage = w_hh[0].dtype if holds_ids(x) else x.dtype
    compute = storage if storage == torch.float64 or storage.is_complex else torch.float32
    valid = None  # (T, B, 1), where x is data and not padding
    if batch_sizes is not None:  # padded here; rows come back through the same mask, in the same order
        valid = torch.arange(int(batch_sizes[0])) < batch_sizes.unsqueeze(1)
        valid = valid.unsqueeze(2).to(x.device)
        x = x.new_zeros(*valid.shape[:2], *x.shape[1:]).index_put((valid.squeeze(2),), x)
        if resets is not None:
            resets = resets.new_zeros(valid.shape[:2]).index_put((valid.squeeze(2),), resets)
    elif batch_first:
        x = x.transpose(0, 1)
        resets = None if resets is None else resets.transpose(0, 1)
    if lengths is not None:
        valid = (torch.arange(x.size(0), device=x.device).unsqueeze(1) < lengths).unsqueeze(2)
    if x.size(0) == 0:
        raise RuntimeError("x: expected at least one step but got none")
    if valid is not None:
        x = torch.where(valid if x.dim() == 3 else valid.squeeze(2), x, 0)
    if not holds_ids(x):
        x = x.to(compute)

    outputs, h_n, c_n = [], [], []
    for d in range(len(w_ih)):
        weights = [w[d].to(compute) if w else None for w in (w_ih, w_hh, b_ih, b_hh, w_hr, *further)]
        width = w_hh[d].size(1), (w_hr or w_hh)[d].size(1)  # of h and of c
        h, c = (
            w_hh[0].new_zeros(x.size(1), n, dtype=compute) if s is None else s[d].to(compute)
            for s, n in zip((h0, c0), width, strict=True)
        )
        start = [
            h.new_zeros(n) if s is None else s[d].to(compute) for s, n in zip((h_reset, c_reset), width, strict=True)
        ]
        with autocast_off(x.device.type):
            masks = _Masks(rates, seed, d, (x.size(0), x.size(1)), width, compute)
            steps, h, c = _one_direction(cell, x, h, c, weights, valid, storage, d == 1, resets, start, masks)
        outputs.append(steps)
        h_n.append(h)
        c_n.append(c)

    output = None
    if want_output:
        output = torch.cat(outputs, 2).to(storage)
        if valid is not None:
            output = torch.where(valid, output, 0)
        if batch_sizes is not None and valid is not None:
            output = output[valid.squeeze(2)]
        elif batch_first:
            output = output.transpose(0, 1)
    return output, torch.stack(h_n).to(storage), torch.stack(c_n).to(storage) if BUILT_IN[cell].has_c else None


class _Masks:
    """The masks of one direction in training; in evaluation none, but zoneout then mixes the states."""

    def __init__(
        self, rates: Rates, seed: Tensor | None, direction: int, sizes: tuple[int, int], width: tuple[int, int],
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        (steps, rows), (out, hidden) = sizes, width

        def kept(masked: int, rate: float, steps: int, units: int) -> Tensor | None:
            if seed is None or not rate:
                return None
            return _noise.kept(seed, masked, direction, rows, steps, units, rate)

        self.rates = rates
        self.keep_h = kept(_noise.ZONEOUT_H, rates.zoneout_h, steps, out)
        self.keep_c = kept(_noise.ZONEOUT_C, rates.zoneout_c, steps, hidden)
        state = kept(_noise.STATE, rates.state_dropout, 1, out)
        candidate = kept(_noise.CANDIDATE, rates.candidate_dropout, steps, hidden)
        self.state = None if state is None else state[0].to(dtype) / (1 - rates.state_dropout)
        self.candidate = None if candidate is None else candidate.to(dtype) / (1 - rates.candidate_dropout)

    def zone_out(self, t: int, new: tuple[Tensor, Tensor], old: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = (
            _zone_out(rate, None if keep is None else keep[t], *pair)
            for rate, keep, *pair in zip(self.rates[:2], (self.keep_h, self.keep_c), new, old, strict=True)
        )
        return h, c


def _zone_out(rate: float, keep: Tensor | None, new: Tensor, old: Tensor) -> Tensor:
    if not rate:
        return new
    return (1 - rate) * new + rate * old if keep is None else torch.where(keep, new, old)


def _one_direction(
    cell: str,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weights: Sequence[Any],
    valid: Tensor | None,
    storage: torch.dtype,
    reverse: bool,
    resets: Tensor | None,
    start: Sequence[Tensor],
    masks: _Masks,
) -> tuple[Tensor, Tensor, Tensor]:
    """The states after every step ``(T, B, Hout)`` and the last ones, in the compute dtype. ``start``: the reset
    states."""
    w_ih, w_hh, b_ih, b_hh, w_hr, *further = weights
    base, norm = cell.removesuffix("_layer_norm"), cell.endswith("_layer_norm")
    b_x, b_h = (None, None) if norm else (b_ih, b_hh)  # with norms the biases come after them
    from_x = _columns(w_ih, b_x, x) if holds_ids(x) else linear(x, w_ih, b_x)  # (T, B, G * H)
    options = _Options()
    if norm:
        gain_x, gain_h, *of_c = further
        from_x = _normed(base, from_x, gain_x, b_ih)
        if of_c:
            gain_c, bias_c = of_c
            options = _Options(read_c=lambda c: layer_norm(c, c.shape[-1:], gain_c, bias_c, _EPSILON))
    elif further:
        options = _Options(seen=further[0])
    steps = [h] * x.size(0)
    for t in range(x.size(0))[:: -1 if reverse else 1]:
        old_h, old_c = h, c
        cut = t + 1 if reverse else t  # a reset at s cuts between s - 1 and s
        if resets is not None and cut < x.size(0):
            anew = resets[cut].unsqueeze(1)
            if reverse and valid is not None:
                anew = anew & valid[cut]
            h, c = torch.where(anew, start[0], h), torch.where(anew, start[1], c)
        if valid is not None:
            h, c = torch.where(valid[t], h, 0), torch.where(valid[t], c, 0)
        before = h, c
        operand = h if masks.state is None else h * masks.state
        options = options._replace(mask=None if masks.candidate is None else masks.candidate[t])
        if cell == "gru_reset_before":
            h = _gru_reset_before(from_x[t], operand, w_hh, b_h, h, options)
        else:
            from_h = linear(operand, w_hh, b_h)
            if norm:
                from_h = _normed(base, from_h, gain_h, b_hh)
            h, c = _step(base.removesuffix("_peephole"), from_x[t], from_h, h, c, options)
        if w_hr is not None:
            h = linear(h, w_hr)
        h, c = masks.zone_out(t, (h, c), before)
        h = h.to(storage).to(from_x.dtype)  # rounded as it is stored, as the next step reads it
        if valid is not None:
            h, c = torch.where(valid[t], h, old_h), torch.where(valid[t], c, old_c)
        steps[t] = h
    return torch.stack(steps), h, c


_EPSILON = 1e-5


def _normed(cell: str, sums: Tensor, gain: Tensor, bias: Tensor | None) -> Tensor:
    """The sums of all gates, normalised over the gates of each block: r and z of a GRU are one block and n another;
    other cells have one block."""
    hidden = sums.size(-1) // BUILT_IN[cell].gates
    parts = sums.split([2 * hidden, hidden] if cell == "gru" else [sums.size(-1)], -1)
    result = torch.cat([layer_norm(part, part.shape[-1:], eps=_EPSILON) for part in parts], -1) * gain
    return result if bias is None else result + bias


def _columns(w_ih: Tensor, b_ih: Tensor | None, ids: Tensor) -> Tensor:
    """``linear`` of one-hot rows, without the product: for each id its column of ``w_ih``, plus the bias."""
    if ids.numel() and values_can_be_read(ids):
        low, high = (int(value) for value in ids.aminmax())
        if low < 0 or high >= w_ih.size(1):
            bad = low if low < 0 else high
            raise RuntimeError(f"x: expected ids from 0 to {w_ih.size(1) - 1}, the columns of w_ih, but got {bad}")
    columns = embedding(ids, w_ih.t())
    return columns if b_ih is None else columns + b_ih


class _Options(NamedTuple):
    """What the options of a layer add to a step."""

    mask: Tensor | None = None  # of the candidate
    seen: Tensor | None = None  # the weights by which i, f and o see c
    read_c: Callable[[Tensor], Tensor] | None = None

    def candidate(self, v: Tensor) -> Tensor:
        return v if self.mask is None else v * self.mask

    def see_c(self, gate: int, total: Tensor, c: Tensor) -> Tensor:
        return total if self.seen is None else total + self.seen[gate] * c


def _step(cell: str, from_x: Tensor, from_h: Tensor, h: Tensor, c: Tensor, options: _Options) -> tuple[Tensor, Tensor]:
    """One step of a cell: the new h and c, from the two projections ``(B, G * H)`` and the old states."""
    if cell == "rnn_tanh":
        return torch.tanh(from_x + from_h), c
    if cell == "rnn_relu":
        return torch.relu(from_x + from_h), c
    if cell == "gru":
        (r, z, n), (r_h, z_h, n_h) = from_x.chunk(3, 1), from_h.chunk(3, 1)
        z = torch.sigmoid(z + z_h)
        n = options.candidate(torch.tanh(n + torch.sigmoid(r + r_h) * n_h))
        return n + z * (h - n), c
    if cell == "lstm":
        i, f, g, o = (from_x + from_h).chunk(4, 1)
        i, f = torch.sigmoid(options.see_c(0, i, c)), torch.sigmoid(options.see_c(1, f, c))
        c = f * c + i * options.candidate(torch.tanh(g))
        o = torch.sigmoid(options.see_c(2, o, c))
        return o * torch.tanh(c if options.read_c is None else options.read_c(c)), c
    raise ValueError(f"cell: expected one of {', '.join(BUILT_IN)} but got {reprlib.repr(cell)}")


def _gru_reset_before(
    from_x: Tensor, operand: Tensor, w_hh: Tensor, b_hh: Tensor | None, h: Tensor, options: _Options
) -> Tensor:
    hidden = h.size(1)
    w_gates, w_n = w_hh.split([2 * hidden, hidden])
    b_gates, b_n = (None, None) if b_hh is None else b_hh.split([2 * hidden, hidden])
    r, z = torch.sigmoid(from_x[:, : 2 * hidden] + linear(operand, w_gates, b_gates)).chunk(2, 1)
    n = options.candidate(torch.tanh(from_x[:, 2 * hidden :] + linear(r * operand, w_n, b_n)))
    return n + z * (h - n)


def pool_steps(output: Tensor, lengths: Tensor | None, pooling: str, scores: Tensor | None = None) -> Tensor:
    """One vector for each row: the mean or the largest of its steps, or their mean weighted by the softmax of scores.

    Args:
        output: ``(B, T, W)``, zero beyond a row's length.
        lengths: ``(B,)`` integers from 0 to T, or None where every row has T steps.
        pooling: ``"mean"``, ``"max"`` or ``"attention"``.
        scores: ``(B, T)`` for ``"attention"``.

    Example::

        >>> import torch
        >>> from seqcls_fast.reference import pool_steps
        >>> output = torch.tensor([[[1.0], [4.0], [0.0]], [[0.0], [0.0], [0.0]]])
        >>> pool_steps(output, torch.tensor([2, 0]), "mean")
        tensor([[2.5000],
                [0.0000]])
    """
    beyond = None  # (B, T)
    if lengths is not None:
        beyond = torch.arange(output.size(1), device=output.device) >= lengths[:, None]
    if pooling == "mean":
        return output.mean(1) if lengths is None else output.sum(1) / lengths.clamp(min=1)[:, None]
    if pooling == "max":
        if beyond is None:
            return output.amax(1)
        highest = output.masked_fill(beyond[:, :, None], -torch.inf).amax(1)
        return highest.masked_fill(lengths[:, None] == 0, 0)  # type: ignore[index]
    assert scores is not None
    if beyond is not None:
        scores = scores.masked_fill(beyond, torch.finfo(scores.dtype).min)
    shares = scores.softmax(1)
    if beyond is not None:
        shares = shares.masked_fill(beyond, 0)  # for rows of length 0, whose softmax is over padding alone
    return (shares[:, None, :] @ output).squeeze(1)


def softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The probabilities of the classes ``(N, classes)``: the logits are divided by the temperature first.

    Example::

        >>> import torch
        >>> from seqcls_fast.reference import softmax
        >>> softmax(torch.tensor([[0.0, 0.0]]), 2.0)
        tensor([[0.5000, 0.5000]])
    """
    return (logits / temperature).softmax(1)

"""Layers with options as the papers write them, in numpy: one row and one step at a time, without lengths or resets.

It shares nothing with seqcls_fast/reference.py. Resets and lengths are done by cutting: a row is split at its resets
and end, its pieces are run as rows of their own, and the results are joined. The masks of one row are computed word by
word, as the comments of csrc/core/noise.h say. All of it takes complex numbers, from which the tests get exact
derivatives.

Papers: Ba et al. 2016 (layer normalisation), Krueger et al. 2016 (zoneout), Gal and Ghahramani 2016 (dropout of the
state), Semeniuta et al. 2016 (of the candidate), Gers et al. 2000 (peepholes), Cho et al. 2014 (GRU).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

Array = Any
Weights = Mapping[str, Array]  # of one direction
EPSILON = 1e-5


class Draws(NamedTuple):
    """The masks of one row and direction, each 0 or 1; None where nothing is drawn."""

    zoneout_h: Array | None = None  # (T, P or H), 1 where the new h is taken
    zoneout_c: Array | None = None  # (T, H)
    state: Array | None = None  # (P or H)
    candidate: Array | None = None  # (T, H)


def sigmoid(v: Array) -> Array:
    return 1 / (1 + np.exp(-v))


def relu(v: Array) -> Array:
    return np.where(v.real > 0, v, 0)


def normalised(v: Array, gain: Array, bias: Array | float = 0.0) -> Array:
    deviations = v - v.mean()
    return gain * deviations / np.sqrt((deviations**2).mean() + EPSILON) + bias


def rnn(act: Callable[[Array], Array], norm: bool, x: Array, h: Array, h_seen: Array, w: Weights, b: Any) -> Array:
    from_x, from_h = w["w_ih"] @ x, w["w_hh"] @ h_seen
    if norm:
        from_x, from_h = normalised(from_x, w["weight_ln_ih"]), normalised(from_h, w["weight_ln_hh"])
    return act(from_x + b[0] + from_h + b[1])


def gru(kind: str, x: Array, h: Array, h_seen: Array, mask: Any, w: Weights, b: Any) -> Array:
    H = len(h)
    (w_r, w_z, w_n), (u_r, u_z, u_n) = np.split(w["w_ih"], 3), np.split(w["w_hh"], 3)
    (b_r, b_z, b_n), (d_r, d_z, d_n) = np.split(b[0], 3), np.split(b[1], 3)
    if kind == "layer_norm":
        g1, g2 = w["weight_ln_ih"], w["weight_ln_hh"]
        gates = normalised(np.concatenate([w_r @ x, w_z @ x]), g1[: 2 * H])
        gates = gates + normalised(np.concatenate([u_r @ h_seen, u_z @ h_seen]), g2[: 2 * H])
        r, z = sigmoid(gates[:H] + b_r + d_r), sigmoid(gates[H:] + b_z + d_z)
        n = np.tanh(normalised(w_n @ x, g1[2 * H :]) + b_n + r * (normalised(u_n @ h_seen, g2[2 * H :]) + d_n))
    else:
        r, z = sigmoid(w_r @ x + b_r + u_r @ h_seen + d_r), sigmoid(w_z @ x + b_z + u_z @ h_seen + d_z)
        if kind == "reset_before":
            n = np.tanh(w_n @ x + b_n + u_n @ (r * h_seen) + d_n)
        else:
            n = np.tanh(w_n @ x + b_n + r * (u_n @ h_seen + d_n))
    return (1 - z) * mask * n + z * h


def lstm(kind: str, x: Array, c: Array, h_seen: Array, mask: Any, w: Weights, b: Any) -> tuple[Array, Array]:
    if kind == "layer_norm":
        a = normalised(w["w_ih"] @ x, w["weight_ln_ih"]) + normalised(w["w_hh"] @ h_seen, w["weight_ln_hh"])
    else:
        a = w["w_ih"] @ x + w["w_hh"] @ h_seen
    i, f, g, o = np.split(a + b[0] + b[1], 4)
    p_i, p_f, p_o = w["weight_peephole"] if kind == "peephole" else (0.0, 0.0, 0.0)
    new_c = sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * mask * np.tanh(g)
    shown = normalised(new_c, w["weight_ln_c"], w["bias_ln_c"]) if kind == "layer_norm" else new_c
    h = sigmoid(o + p_o * new_c) * np.tanh(shown)
    return (w["w_hr"] @ h if "w_hr" in w else h), new_c


def step(cell: str, x: Array, h: Array, c: Array, w: Weights, rates: Any, draws: Draws, t: int) -> tuple[Array, Array]:
    base, _, kind = cell.removeprefix("rnn_").partition("_")
    b = [w.get(name, np.zeros(len(w["w_ih"]))) for name in ("b_ih", "b_hh")]
    seen = h if draws.state is None else h * draws.state / (1 - rates.state_dropout)
    mask = 1.0 if draws.candidate is None else draws.candidate[t] / (1 - rates.candidate_dropout)
    if base == "gru":
        new_h, new_c = gru(kind, x, h, seen, mask, w, b), c
    elif base == "lstm":
        new_h, new_c = lstm(kind, x, c, seen, mask, w, b)
    else:
        new_h, new_c = rnn({"tanh": np.tanh, "relu": relu}[base], kind == "layer_norm", x, h, seen, w, b), c
    # in evaluation the expected value of the mask takes its place
    m_h = 1 - rates.zoneout_h if draws.zoneout_h is None else draws.zoneout_h[t]
    m_c = 1 - rates.zoneout_c if draws.zoneout_c is None else draws.zoneout_c[t]
    return m_h * new_h + (1 - m_h) * h, m_c * new_c + (1 - m_c) * c


def row(
    cell: str, x: Array, start: tuple[Array, Array], anew: tuple[Array, Array], resets: Array, reverse: bool,
    w: Weights, rates: Any, draws: Draws,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """The states h after each step (T, P or H) of one row without padding, and the last h and c. ``start`` is the state
    that the first step in the direction reads, ``anew`` the one that each further piece starts from."""
    T = len(x)
    cuts = [t for t in range(1, T) if resets[t]]
    pieces = [range(low, high) for low, high in zip([0, *cuts], [*cuts, T], strict=True)]
    if not reverse and T and resets[0]:
        start = anew
    h, c = start
    states = [h] * T
    for number, piece in enumerate(reversed(pieces) if reverse else pieces):
        h, c = start if number == 0 else anew
        for t in reversed(piece) if reverse else piece:
            h, c = step(cell, x[t], h, c, w, rates, draws, t)
            states[t] = h
    return np.array(states).reshape(T, len(h)), h, c


def mixed(x: int) -> int:
    x &= 0xFFFFFFFF
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ (x >> 16)


def word(seed: int, masked: int, direction: int, row: int, t: int, unit: int) -> int:
    """The random 32 bits of one unit. masked: 0 zoneout of h, 1 of c, 2 the state, 3 the candidate."""
    low, high = 0x243F6A88, 0x85A308D3
    for part in (seed % 2**32, (seed >> 32) % 2**32, 2 * masked + direction, row % 2**32, t % 2**32):
        low, high = mixed(low + part), mixed(high + part)
    return mixed(mixed(unit + low) ^ high)


def is_kept(word: int, rate: float) -> bool:
    return word >= min(int(rate * 2**32 + 0.5), 2**32 - 1)


def draws_of(seed: int | None, rates: Any, direction: int, b: int, T: int, out: int, hidden: int) -> Draws:
    """The masks of row b."""

    def drawn(masked: int, rate: float, steps: int, units: int) -> Array | None:
        if seed is None or not rate:
            return None
        return np.array(
            [[float(is_kept(word(seed, masked, direction, b, t, u), rate)) for u in range(units)] for t in range(steps)]
        ).reshape(steps, units)

    state = drawn(2, rates.state_dropout, 1, out)
    return Draws(
        drawn(0, rates.zoneout_h, T, out),
        drawn(1, rates.zoneout_c, T, hidden),
        None if state is None else state[0],
        drawn(3, rates.candidate_dropout, T, hidden),
    )

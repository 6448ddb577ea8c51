"""The mutants of mutants.py: one wrong formula or boundary each, as the exact text to replace."""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str


REFERENCE = "seqcls_fast/reference.py"
OPS = "seqcls_fast/ops.py"
NN = "seqcls_fast/nn.py"

PYTHON = [
    Mutant("gru gates r and z swapped", REFERENCE, "(r, z, n), (r_h, z_h, n_h)", "(z, r, n), (z_h, r_h, n_h)"),
    Mutant("gru without reset", REFERENCE, "torch.sigmoid(r + r_h) * n_h", "n_h"),
    Mutant("gru blends the other way", REFERENCE, "n + z * (h - n)", "h + z * (n - h)"),
    Mutant("lstm gates g and o swapped", REFERENCE, "i, f, g, o = (from_x", "i, f, o, g = (from_x"),
    Mutant("lstm output without tanh", REFERENCE, "torch.sigmoid(o) * torch.tanh(c)", "torch.sigmoid(o) * c"),
    Mutant("b_hh dropped", REFERENCE, "linear(h, w_hh, b_hh)", "linear(h, w_hh)"),
    Mutant("padding multiplied away", REFERENCE, "torch.where(valid, x, 0)", "(x * valid)"),
    Mutant("reverse direction runs forward", REFERENCE, "[:: -1 if reverse else 1]", "[::1]"),
    Mutant("c goes on after the end", REFERENCE, "torch.where(valid[t], c, old_c)", "c"),
    Mutant("h not rounded between steps", REFERENCE, "h = h.to(storage).to(x.dtype)", "h = h.to(x.dtype)"),
    Mutant("output beyond the length kept", REFERENCE, "output = torch.where(valid, output, 0)", "pass"),
    Mutant("length T + 1 accepted", REFERENCE, "high > T", "high > T + 1"),
    Mutant("length -1 accepted", REFERENCE, "low < 0", "low < -1"),
    Mutant("last step of a row lost", REFERENCE, ".unsqueeze(1) < lengths)", ".unsqueeze(1) < lengths - 1)"),
    Mutant("packed states not in caller's order", NN, "state.index_select(1, restore)", "state"),
    Mutant("packed hx not sorted", NN, "state.index_select(1, order)", "state"),
    Mutant("dropout in eval", NN, "if self.dropout and self.training", "if self.dropout"),
    Mutant("inner layers without output", NN, "batch_first, want_output or k < last", "batch_first, want_output"),
    Mutant("first layer's h0 for every layer", NN, "h0, c0 = h0s[k], c0s[k]", "h0, c0 = h0s[0], c0s[k]"),
    Mutant("use_impl not undone", OPS, "_default.impl = before", "pass"),
    Mutant("impl not checked", OPS, 'if name != "auto" and name not in _IMPLS:', 'if name == "none":'),
    Mutant(
        "lengths not checked", OPS, "reference.check_lengths(lengths, x, batch_first, values=not compiled)", "lengths"
    ),
]

CELLS = "csrc/core/cells.h"
FORWARD = "csrc/cpu/forward.h"
BACKWARD = "csrc/cpu/backward.h"
WEIGHTS = "csrc/cpu/weight_grad.h"
PACK = "csrc/cpu/pack.h"
VECTORS = "csrc/cpu/vec.h"
DISPATCH = "csrc/cpu/dispatch.cpp"
BINDINGS = "csrc/bindings.cpp"

COMPILED = [
    Mutant(
        "gru gates r and z swapped (C++)",
        CELLS,
        "r = sigmoid(a[0]), z = sigmoid(a[1])",
        "r = sigmoid(a[1]), z = sigmoid(a[0])",
    ),
    Mutant("gru reset before the product", CELLS, "return gate == 2 ? 3 : gate;", "return gate;"),
    Mutant(
        "gru backward reads the wrong slot", CELLS, "d[2] * saved[3] * fma(-r, r, r)", "d[2] * saved[2] * fma(-r, r, r)"
    ),
    Mutant("gru backward drops the carry", CELLS, "carry = dh * z;", "carry = V{};"),
    Mutant(
        "lstm gates i and f swapped",
        CELLS,
        "i = sigmoid(a[0]), f = sigmoid(a[1]), g",
        "i = sigmoid(a[1]), f = sigmoid(a[0]), g",
    ),
    Mutant(
        "lstm backward without slope of tanh(c)",
        CELLS,
        "fma(dh * o, fma(-tanh_c, tanh_c, V{} + 1), carry)",
        "fma(dh, o, carry)",
    ),
    Mutant("lstm carry without forget gate", CELLS, "carry = dc * f;", "carry = dc;"),
    Mutant("b_hh dropped (C++)", PACK, "value(layer.b_hh[d], g * layer.H + unit)", "0 * value(layer.b_hh[d], 0)"),
    Mutant(
        "reverse starts at the padded end",
        FORWARD,
        "layer_.length(rows_[i]) - 1 - step : step",
        "layer_.T - 1 - step : step",
    ),
    Mutant("row goes on for one step", FORWARD, "<= step) --active", "< step) --active"),
    Mutant("last state one step late", FORWARD, "== step + 1) finish_row(i)", "== step + 2) finish_row(i)"),
    Mutant("length 0 without a state", FORWARD, "if (layer_.length(b) == 0) finish_row(i);", ""),
    Mutant(
        "one step of padding not cleared",
        FORWARD,
        "t = layer_.length(b); t < layer_.T",
        "t = layer_.length(b) + 1; t < layer_.T",
    ),
    Mutant(
        "tail mask one lane short",
        FORWARD,
        "n = static_cast<int>(s.H - unit);",
        "n = static_cast<int>(s.H - unit - 1);",
    ),
    Mutant(
        "projection of the first chunk only",
        FORWARD,
        "if (in_chunk == 0) project_chunk",
        "if (step == 0) project_chunk",
    ),
    Mutant("h not rounded between steps (C++)", FORWARD, "if (dtype_of<E>() != layer_.dtype) {", "if (false) {"),
    Mutant("relu drops NaN", VECTORS, "select(x < 0, FloatVec{}, x)", "select(x > 0, x, FloatVec{})"),
    Mutant("c_prev of the wrong step", BACKWARD, "row_of(saved, t_prev, b) + c_slot", "row_of(saved, t, b) + c_slot"),
    Mutant(
        "product of a neighbour for fresh rows", BACKWARD, "s.fresh && s.fresh[row] ? typename F::V{} : load", "load"
    ),
    Mutant("d_h_n at every step", BACKWARD, "fresh_[i] && d_h_n_.rows.data", "d_h_n_.rows.data"),
    Mutant("d_h0 without the carry", BACKWARD, "row[u] += carry_[i * padded_ + u];", "row[u] += 0;"),
    Mutant(
        "d_x with one direction",
        BACKWARD,
        "for (int d = 0; d < layer_.directions; ++d) {\n      const A* rows[kRows];",
        "for (int d = 0; d < 1; ++d) {\n      const A* rows[kRows];",
    ),
    Mutant("reverse weight gradient from the next h", WEIGHTS, "before = d_ ? t + 1 : t - 1", "before = t - 1"),
    Mutant(
        "weight gradient without its last chunk",
        WEIGHTS,
        "if (count) add_chunk(count);",
        "if (count > 1) add_chunk(count);",
    ),
    Mutant("rows in the order of the batch", DISPATCH, "return layer.lengths[a] > layer.lengths[b];", "return false;"),
    Mutant(
        "stale packed weights",
        DISPATCH,
        "m->rows * m->columns * size_of(layer.dtype)",
        "m->rows * size_of(layer.dtype)",
    ),
    Mutant("lengths beyond T accepted (C++)", BINDINGS, "low < 0 || high > T", "low < 0"),
    Mutant(
        "h0 of the first direction for both",
        BINDINGS,
        "data_of(state) + d * strides[0]",
        "data_of(state) + 0 * strides[0]",
    ),
]

MUTANTS = PYTHON + COMPILED

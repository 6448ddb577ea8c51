// One step of the backward pass: what it reads and writes, and its tiles, by vectors or by the tiles of amx.h.
#pragma once

#include "amx.h"
#include "kernel_table.h"
#include "unpacked.h"

#include "../../core/cells.h"  // after vec.h, whose vectors the formulas are compiled for

namespace sf {
namespace {

// The inputs and outputs of the tiles of one step. The product sums over `segments` parts of each row of `a`, each of
// which is K wide; the product with W_hh has one part per gate.
template <class F>
struct BackwardStep {
  using A = typename F::A;
  using E = typename F::E;
  const E** a;
  const bool* fresh;  // rows that start their backward pass here: no later step to multiply, or one that starts anew
  const A** scale;    // the product is multiplied by these values; it may be null
  A** to_reset;       // where the later step starts anew, its product is added here; it and each pointer may be null
  int segments;
  int64_t segment[kMostGates], K, rows;  // segment: where each begins in a row
  // The panels of w have a line for each value of `of_panel` parts. The parts of this product begin with `first`.
  int first, of_panel;
  const E* w;
  const E **from_output, **from_state;  // added to d(h); each array and each pointer may be null
  int64_t H;
  const A **saved, **c_prev;
  const E **h, **h_prev;
  int64_t c_scale;  // kSaved if c_prev is in a row of saved values, 1 if it has a row of its own
  E** d_gates;
  A* carry;
  int64_t carry_stride;
  A** bias;   // per row: the sums of d_gates over its steps; null unless d_gates are rounded
  E* staged;  // room for the parts of `a` where the products are tiled
};

// The product of the rows of `a` with the weights, written to memory. The code that follows is long: it reads the
// product in a loop over memory instead of being unrolled for all registers, so that it fits the instruction cache.
template <class F, int kRows, int kBlocks>
SF_FN void hidden_product(const BackwardStep<F>& s, int64_t row, int64_t block, int64_t next,
                          typename F::A (&d_h)[kRows][kBlocks * F::kLanes]) {
  using E = typename F::E;
  constexpr int kL = F::kLanes;
  typename F::V acc[kRows][kBlocks] = {};
  const int64_t part = panel_size<F>(s.K, 1), panel = s.of_panel * part;
  for (int i = 0; i < s.segments; ++i) {
    const E* rows[kRows];
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) rows[m] = s.a[row + m] + s.segment[i];
    const int64_t bytes = kBlocks * panel * static_cast<int64_t>(sizeof(E)), share = bytes / s.segments;
    const Ahead ahead{reinterpret_cast<const char*>(s.w + next * panel) + i * share, share, row, row + kRows, s.rows};
    accumulate<F, SlotOfGate, kRows, kBlocks, 1, 1>(acc, rows, s.K, s.w + block * panel + (s.first + i) * part, panel,
                                                    ahead);
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
    for (int j = 0; j < kBlocks; ++j) store(d_h[m] + j * kL, acc[m][j]);
  }
}

// d(h) of one row and block: the product unless the row is fresh, and the gradients of the output and of h_n. The
// product of a step that starts anew belongs to the reset state.
template <class F>
SF_FN typename F::V hidden_gradient(const BackwardStep<F>& s, int64_t row, int64_t column, int n,
                                    const typename F::A* product) {
  using A = typename F::A;
  typename F::V d_h = load(product);
  if (s.scale) d_h *= Plain<A>::read(s.scale[row] + column, n);
  if (s.to_reset && s.to_reset[row]) {
    A* sum = s.to_reset[row] + column;
    Plain<A>::write(sum, Plain<A>::read(sum, n) + d_h, n);
  }
  if (s.fresh && s.fresh[row]) d_h = typename F::V{};
  if (s.from_output && s.from_output[row]) d_h += F::read(s.from_output[row] + column, n);
  if (s.from_state && s.from_state[row]) d_h += F::read(s.from_state[row] + column, n);
  return d_h;
}

// Computes d_gates and the carry of one row and block.
template <class F, class Cell>
SF_FN void run_cell_back(const BackwardStep<F>& s, int64_t row, int64_t block, const typename F::A* product) {
  using V = typename F::V;
  constexpr int kL = F::kLanes;
  const int64_t unit = block * kL;
  const int n = static_cast<int>(s.H - unit);
  const V d_h = hidden_gradient<F>(s, row, unit, n, product);
  V saved[Cell::kSaved + 1], d[Cell::kSlots], h{}, h_prev{}, c_prev{};
  const auto* const saved_row = s.saved[row] + unit * Cell::kSaved;
#pragma GCC unroll 8
  for (int i = 0; i < Cell::kSaved; ++i) saved[i] = load(saved_row + i * kL);
  if constexpr (Cell::kReadsH) h = F::read(s.h[row] + unit, n);
  if constexpr (Cell::kReadsHPrev) h_prev = F::read(s.h_prev[row] + unit, n);
  if constexpr (Cell::kHasC) c_prev = load(s.c_prev[row] + unit * s.c_scale);
  auto* const carry_row = s.carry + row * s.carry_stride + unit;
  V carry = load(carry_row);
  Cell::backward(saved, h, h_prev, c_prev, d_h, carry, d);
  store(carry_row, carry);
#pragma GCC unroll 8
  for (int i = 0; i < Cell::kSlots; ++i) F::write(s.d_gates[row] + i * s.H + unit, d[i], n);
  if constexpr (F::kPack > 1) {  // d_gates are rounded
    using Sum = Plain<typename F::A>;
    for (int i = 0; i < Cell::kSlots && s.bias; ++i) {
      auto* const sum = s.bias[row] + i * s.H + unit;
      Sum::write(sum, Sum::read(sum, n) + d[i], n);
    }
  }
}

template <class F, class Cell, int kRows, int kBlocks>
__attribute__((noinline)) void backward_tile(const BackwardStep<F>& s, int64_t first_row, int64_t block, int64_t next) {
  using A = typename F::A;
  constexpr int kL = F::kLanes;
  alignas(SF_VECTOR_BYTES) A products[kRows][kBlocks * kL];
  for (int m = 0; m < kRows; ++m) {
    const int64_t row = first_row + m, unit = block * kL;
    if constexpr (Cell::kSaved > 0) prefetch<false>(s.saved[row] + unit * Cell::kSaved, kBlocks * kL * Cell::kSaved);
    if constexpr (Cell::kHasC) prefetch<false>(s.c_prev[row] + unit * s.c_scale, kBlocks * kL);
    for (int i = 0; i < Cell::kSlots; ++i) prefetch<true>(s.d_gates[row] + i * s.H + unit, kBlocks * kL);
  }
  hidden_product<F, kRows, kBlocks>(s, first_row, block, next, products);
  for (int m = 0; m < kRows; ++m) {
    for (int j = 0; j < kBlocks; ++j) run_cell_back<F, Cell>(s, first_row + m, block + j, products[m] + j * kL);
  }
}

// Writes d(projected h), or d_h0, of one row and block: d(h) without a cell after it. It is a sum or a row of a
// product.
template <class F, class To>
SF_FN void write_gradient(const BackwardStep<F>& s, int64_t row, int64_t column, int64_t columns,
                          const typename F::A* product, To* const* out) {
  const int n = static_cast<int>(columns - column);
  const typename F::V d_h = hidden_gradient<F>(s, row, column, n, product);
  if constexpr (sizeof(To) == sizeof(typename F::A)) {
    Plain<To>::write(out[row] + column, d_h, n);
  } else {
    F::write(out[row] + column, d_h, n);
  }
}

template <class F, int kRows, int kBlocks, class To>
__attribute__((noinline)) void gradient_tile(const BackwardStep<F>& s, int64_t first_row, int64_t block,
                                             int64_t columns, To* const* out) {
  alignas(SF_VECTOR_BYTES) typename F::A products[kRows][kBlocks * F::kLanes];
  hidden_product<F, kRows, kBlocks>(s, first_row, block, block, products);
  for (int m = 0; m < kRows; ++m) {
    for (int j = 0; j < kBlocks; ++j)
      write_gradient<F>(s, first_row + m, (block + j) * F::kLanes, columns, products[m] + j * F::kLanes, out);
  }
}

// The product of all rows for the blocks [begin, end), by the tiles of amx.h. Calls finish(row, block, its product).
template <class F, class Finish>
void tiled_hidden_product(const BackwardStep<F>& s, int64_t begin, int64_t end, Finish&& finish) {
  const int64_t part = panel_size<F>(s.K, 1), panel = s.of_panel * part, staged = staged_size(s.rows, s.K);
  for (int i = 0; i < s.segments; ++i) stage(s.a, s.rows, s.segment[i], s.K, s.staged + i * staged);
  for_tiled_sums<1>(
      s.rows, begin, end,
      [&](int64_t row, int tiles, int64_t block, int64_t blocks, float* sums, int64_t stride) {
        for (int64_t i = 0; i < 2 * kTileRows * stride && !s.segments; ++i) sums[i] = 0;
        for (int i = 0; i < s.segments; ++i)
          multiply_panels<SlotOfGate, 1, 1>(staged_from(s.staged + i * staged, row, s.K, tiles),
                                            s.w + block * panel + (s.first + i) * part, panel, blocks, sums, stride,
                                            i == 0);
      },
      finish);
}

}  // namespace
}  // namespace sf

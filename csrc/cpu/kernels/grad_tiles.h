// The sums of weight_grad.h: tiles of the product of d_gates with another operand, both with a row of numbers for each
// row (t, b) of the batch, and sums of rows.
#pragma once

#include "amx.h"

namespace sf {
namespace {

struct GradTile {
  static constexpr int kRows = SF_VECTOR_REGISTERS == 32 ? 8 : 4, kBlocks = 3;
};

// The sum over k of a[k][column + m] * b[k][kBlocks * kLanes], where the rows of b are b_stride apart. With kPack > 1,
// each k stands for that many rows of the gates, which lie side by side.
template <class F, int kRows, int kBlocks>
SF_FN void grad_sums(typename F::V (&acc)[kRows][kBlocks], const typename F::E* const* a, int64_t column,
                     const typename F::E* b, int64_t b_stride, int64_t K) {
  constexpr int kLine = F::kLanes * F::kPack;
  for (int64_t k = 0; k < K; ++k) {
    const typename F::E* row = a[k] + column * F::kPack;
    typename F::Weight w[kBlocks];
#pragma GCC unroll 16
    for (int j = 0; j < kBlocks; ++j) w[j] = F::weight(b + j * kLine);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const auto value = F::broadcast(row + m * F::kPack);
#pragma GCC unroll 16
      for (int j = 0; j < kBlocks; ++j) acc[m][j] = F::add(acc[m][j], value, w[j]);
    }
    b += b_stride;
  }
}

// Writes the numbers of two rows side by side: a0 b0 a1 b1 ... A row may be null, and then stands for zeros.
inline void interleave_rows(const Bits16* a, const Bits16* b, int64_t n, Bits16* to) {
  if (a && b) {
    for (int64_t i = 0; i < n; ++i) to[2 * i] = a[i], to[2 * i + 1] = b[i];
  } else {
    for (int64_t i = 0; i < n; ++i) to[2 * i] = a ? a[i] : Bits16(0), to[2 * i + 1] = b ? b[i] : Bits16(0);
  }
}

// Copies the columns [column, column + count) of K rows as tiles of the transposed rows, with zeros beyond K: each tile
// from a square whose lines are two rows side by side.
template <class F>
void tile_columns(const Bits16* const* rows, int64_t K, int64_t column, int64_t count, Bits16* to) {
  for (int64_t m = 0; m < count; m += kTileRows) {
    const int64_t n = count - m < kTileRows ? count - m : kTileRows;
    for (int64_t k = 0; k < K; k += kTileColumns, to += kTileRows * kTileColumns) {
      const auto row = [&](int64_t i) { return i < K ? rows[i] + column + m : nullptr; };
      typename F::V square[kTileRows];
      for (int64_t i = 0; i < kTileRows; ++i) {
        Bits16 pairs[kTileColumns] = {};
        interleave_rows(row(k + 2 * i), row(k + 2 * i + 1), n, pairs);
        __builtin_memcpy(&square[i], pairs, sizeof pairs);
      }
      transpose<F>(square);
      __builtin_memcpy(to, square, sizeof square);
    }
  }
}

// Adds the sums to total[m][kBlocks * kLanes].
template <class F, int kRows, int kBlocks>
__attribute__((noinline)) void grad_tile(const typename F::E* const* a, int64_t column, const typename F::E* b,
                                         int64_t K, typename F::A* total) {
  constexpr int kL = F::kLanes;
  typename F::V acc[kRows][kBlocks] = {};
  grad_sums<F, kRows, kBlocks>(acc, a, column, b, kBlocks * kL * F::kPack, K);
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
    for (int j = 0; j < kBlocks; ++j) {
      typename F::A* p = total + (m * kBlocks + j) * kL;
      store(p, load(p) + acc[m][j]);
    }
  }
}

// Writes the sums to kRows rows of a gradient, `stride` apart. Their first `n` columns are there.
template <class F, int kRows, int kBlocks>
__attribute__((noinline)) void grad_tile_once(const typename F::A* const* a, int64_t column, const typename F::A* b,
                                              int64_t b_stride, int64_t K, typename F::A* to, int64_t stride,
                                              int64_t n) {
  constexpr int kL = F::kLanes;
  typename F::V acc[kRows][kBlocks] = {};
  grad_sums<F, kRows, kBlocks>(acc, a, column, b, b_stride, K);
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
    for (int j = 0; j < kBlocks; ++j)  // zero is added as to a total, since it changes the sign of a sum of -0
      F::write(to + m * stride + j * kL, typename F::V{} + acc[m][j], static_cast<int>(n - j * kL));
  }
}

// Writes the sum of `count` rows. They are added in runs and chunks, as in add_bias() below, so that the gradient of a
// very common id loses no digits. Most ids have few rows, so the outer loop is over columns, whose sums stay in
// registers.
template <class F>
void sum_of_rows(Dtype dtype, int64_t width, const char* const* rows, int64_t count, char* to) {
  using V = typename F::V;
  using A = typename F::A;
  constexpr int kN = 4, kL = F::kLanes;
  constexpr int64_t kRun = 8, kChunk = 128;
  for (int64_t column = 0; column < width; column += kN * kL) {
    const int64_t n = width - column < kN * kL ? width - column : kN * kL;
    V total[kN] = {}, chunk[kN] = {}, run[kN] = {};
    for (int64_t k = 0; k < count; ++k) {
      const auto* row = reinterpret_cast<const typename F::E*>(rows[k]) + column;
      const bool run_ends = (k + 1) % kRun == 0 || k + 1 == count, chunk_ends = (k + 1) % kChunk == 0 || k + 1 == count;
#pragma GCC unroll 4
      for (int j = 0; j < kN; ++j) {
        if (j * kL < n) run[j] += F::read(row + j * kL, static_cast<int>(n - j * kL));
        if (run_ends) chunk[j] += run[j], run[j] = V{};
        if (chunk_ends) total[j] += chunk[j], chunk[j] = V{};
      }
    }
    A line[kN * kL];
#pragma GCC unroll 4
    for (int j = 0; j < kN; ++j) store(line + j * kL, total[j]);
    write_row<A>(dtype, line, to + column * size_of(dtype), n);
  }
}

}  // namespace
}  // namespace sf

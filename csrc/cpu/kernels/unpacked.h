// Products with weights as they lie in memory, for calls that use each weight once or a few times: packing would take
// longer than the products. The sums have the order of tile.h, and so the same bits. The rows of a weight are its
// units: in the forward they become lanes, and squares of weights are transposed in registers; in the backward the sums
// run over the rows, so that nothing is transposed.
#pragma once

#include "pack.h"

namespace sf {
namespace {

// Whether the weights of a layer can be used in place: their numbers have the type of the sums, and those of a row are
// neighbours.
template <class F>
bool readable_in_place(const Layer& l) {
  bool can = F::kPack == 1 && l.dtype == dtype_of<typename F::A>() && !l.P;
  for (int d = 0; d < l.directions; ++d) {
    can = can && (l.ids || l.w_ih[d].column_stride == 1) && l.w_hh[d].column_stride == 1;
  }
  return can;
}

// Some rows of a weight whose products are summed side by side, one lane each. Lanes beyond `count` repeat the last
// row: what they sum is not used.
template <class F>
struct Lanes {
  const typename F::A* w;
  int64_t row_stride, count;
  typename F::A* sums;  // of the first row of the batch; the next has its sums `step` further

  template <bool kWhole>
  SF_FN const typename F::A* row(int64_t i) const {
    return w + (kWhole || i < count ? i : count - 1) * row_stride;
  }
};

// Adds rows[m][at + first .. at + end) times the lines of one list, which begin with number `at`, to sums[m].
template <class F, int kRows>
SF_FN void add_lines(typename F::V (&sums)[kRows], const typename F::A* const* rows, int64_t at, int first, int end,
                     const typename F::V (&lines)[F::kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < F::kLanes; ++i) {
    if (i < first || i >= end) continue;
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) sums[m] = fma(F::broadcast(rows[m] + at + i), lines[i], sums[m]);
  }
}

// Adds rows[m][begin..end) times the weights of kLists lists of lanes to sums[][m]. The sums of several lists do not
// wait for each other.
template <class F, int kRows, int kLists, bool kWhole>
SF_FN void add_squares(typename F::V (&sums)[kLists][kRows], const typename F::A* const* rows, int64_t begin,
                       int64_t end, const Lanes<F>* lists) {
  constexpr int kL = F::kLanes;
  int64_t k = begin;
  for (; k + kL <= end; k += kL) {
#pragma GCC unroll 4
    for (int j = 0; j < kLists; ++j) {
      typename F::V lines[kL];
      read_square<F>([&](int i) { return lists[j].template row<kWhole>(i) + k; }, lines);
      add_lines<F, kRows>(sums[j], rows, k, 0, kL, lines);
    }
  }
  if (k == end) return;
#pragma GCC unroll 4
  for (int j = 0; j < kLists; ++j) {
    typename F::V lines[kL];
    if (end >= kL) {  // the last square begins earlier, so that no number beyond the row is read
      const int64_t at = end - kL;
      read_square<F>([&](int i) { return lists[j].template row<kWhole>(i) + at; }, lines);
      add_lines<F, kRows>(sums[j], rows, at, static_cast<int>(k - at), kL, lines);
    } else {
      const int n = static_cast<int>(end - k);
      for (int i = 0; i < kL; ++i) lines[i] = load(lists[j].template row<kWhole>(i) + k, n);
      transpose<F>(lines);
      add_lines<F, kRows>(sums[j], rows, k, 0, n, lines);
    }
  }
}

// Adds rows[m][0..K) times the weights of the lists to their sums. Sums of the lanes beyond `count` become zero.
template <class F, int kRows, int kLists>
__attribute__((noinline)) void add_unpacked(const typename F::A* const* rows, int64_t step, int64_t K,
                                            const Lanes<F>* lists) {
  bool whole = true;
  for (int j = 0; j < kLists; ++j) whole = whole && lists[j].count >= F::kLanes;
  for (int64_t k = 0; k < K; k += kChain) {
    typename F::V chain[kLists][kRows] = {};
    const int64_t end = k + kChain < K ? k + kChain : K;
    if (k == 0) {
#pragma GCC unroll 4
      for (int j = 0; j < kLists; ++j) {
#pragma GCC unroll 16
        for (int m = 0; m < kRows; ++m) chain[j][m] = load(lists[j].sums + m * step);
      }
    }
    if (whole) {
      add_squares<F, kRows, kLists, true>(chain, rows, k, end, lists);
    } else {
      add_squares<F, kRows, kLists, false>(chain, rows, k, end, lists);
    }
#pragma GCC unroll 4
    for (int j = 0; j < kLists; ++j) {
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) {
        typename F::A* to = lists[j].sums + m * step;
        store(to, k ? load(to) + chain[j][m] : chain[j][m]);
      }
    }
  }
  for (int j = 0; j < kLists; ++j) {
    for (int64_t i = lists[j].count; i < F::kLanes; ++i) {
      for (int m = 0; m < kRows; ++m) lists[j].sums[m * step + i] = 0;
    }
  }
}

// accumulate() for kBlocks blocks of units from `unit` on: w has a row for each gate and each of the H units.
template <class F, class Slot, int kRows, int kBlocks, int kGates, int kSlots>
SF_FN void accumulate_unpacked(typename F::V (&acc)[kRows][kBlocks * kSlots], const typename F::A* const* rows,
                               int64_t K, const typename F::A* w, int64_t row_stride, int64_t unit, int64_t H) {
  constexpr int kL = F::kLanes, kStep = kBlocks * kSlots * kL;
  alignas(SF_VECTOR_BYTES) typename F::A sums[kRows][kStep];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
    for (int v = 0; v < kBlocks * kSlots; ++v) store(sums[m] + v * kL, acc[m][v]);
  }
  constexpr int kLists = kBlocks * kGates;
  Lanes<F> lists[kLists];
  for (int j = 0; j < kLists; ++j) {
    const int64_t block = j / kGates, gate = j % kGates, first = unit + block * kL;
    lists[j] = {w + (gate * H + first) * row_stride, row_stride, H - first,
                sums[0] + (block * kSlots + Slot::slot(static_cast<int>(gate))) * kL};
  }
  for (int j = 0; j + 2 <= kLists; j += 2) add_unpacked<F, kRows, 2>(rows, kStep, K, lists + j);
  if constexpr (kLists % 2) add_unpacked<F, kRows, 1>(rows, kStep, K, lists + kLists - 1);
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
    for (int v = 0; v < kBlocks * kSlots; ++v) acc[m][v] = load(sums[m] + v * kL);
  }
}

// The same for the backward, whose tiles are whole vectors of a weight's columns.
template <class F>
bool readable_in_place_backward(const Layer& l) {
  return readable_in_place<F>(l) && l.H >= F::kLanes && (l.ids || l.I >= F::kLanes);
}

// One term of a product whose sums run over the rows of a weight: numbers offset .. offset + K of each row of the batch
// times K rows of the weight.
template <class A>
struct Term {
  const A* const* rows;
  int64_t offset, K;
  const A* w;
  int64_t row_stride;
};

// Writes the sum of the terms for kRows rows of the batch and kBlocks blocks of columns.
template <class F, int kRows, int kBlocks>
__attribute__((noinline)) void terms_tile(const Term<typename F::A>* terms, int count, int64_t row, int64_t column,
                                          typename F::A* const* out) {
  constexpr int kL = F::kLanes;
  typename F::V acc[kRows][kBlocks] = {};
  for (const auto* term = terms; term < terms + count; ++term) {
    const typename F::A* rows[kRows];
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) rows[m] = term->rows[row + m] + term->offset;
    accumulate<F, SlotOfGate, kRows, kBlocks, 1, 1>(acc, rows, term->K, term->w + column, kL, {}, term->row_stride);
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
    for (int j = 0; j < kBlocks; ++j) store(out[row + m] + column + j * kL, acc[m][j]);
  }
}

// The same for n rows and `columns` columns, a vector or more. The last tile begins so early that it ends with the last
// column: it computes some columns twice, and reads nothing beyond a row of the weight.
template <class F>
void terms_product(const Term<typename F::A>* terms, int count, int64_t n, int64_t columns, typename F::A* const* out) {
  constexpr int kBlocks = 4, kMostRows = SF_VECTOR_REGISTERS == 32 ? 6 : 3;
  const auto tiles = [&](int64_t column, auto blocks) {
    for_row_groups<kMostRows>(n, [&](int64_t row, auto m) {
      terms_tile<F, decltype(m)::value, decltype(blocks)::value>(terms, count, row, column, out);
    });
  };
  for_row_groups<kBlocks>(columns / F::kLanes, [&](int64_t block, auto n) { tiles(block * F::kLanes, n); });
  if (columns % F::kLanes) tiles(columns - F::kLanes, Int<1>{});
}

}  // namespace
}  // namespace sf

// One step of the forward pass: what it reads and writes, and its tiles, by vectors or by the tiles of amx.h.
#pragma once

#include "amx.h"
#include "kernel_table.h"
#include "unpacked.h"

#include "../../core/cells.h"  // after vec.h, whose vectors the formulas are compiled for

namespace sf {
namespace {

// The inputs and outputs of the tiles of one step.
template <class F>
struct ForwardStep {
  using A = typename F::A;
  using E = typename F::E;
  const A** start;  // per row: [blocks][kSlots][kLanes], added between the input's products and the state's
  const E **x, **h_prev;
  E** h_next;
  E** output;  // per row, a second place for h; or null
  A** saved;   // per row; or null
  A* c;
  int64_t rows, c_stride, K_x, K_h, H;
  const E *w_x, *w_h;
  int64_t first_block;  // the block that w_x and w_h begin with
  // In a call that packs no weights, w_x and w_h are the weights in memory; they have one row per gate and unit.
  int64_t row_stride_x, row_stride_h;
  E *staged_x, *staged_h;  // room for the rows of x and of h_prev where the products are tiled
};

// Computes h and c of one row and block from the sums of the slots.
template <class F, class Cell>
SF_FN void run_cell(const ForwardStep<F>& s, int64_t row, int64_t block, typename F::V* sums) {
  using V = typename F::V;
  const int64_t unit = block * F::kLanes;
  const int n = static_cast<int>(s.H - unit);
  auto* const c_row = s.c + row * s.c_stride + unit;
  V h{}, c{}, saved[Cell::kSaved + 1];
  if constexpr (Cell::kReadsHPrev) h = F::read(s.h_prev[row] + unit, n);
  if constexpr (Cell::kHasC) c = load(c_row);
  Cell::forward(sums, h, c, saved);
  if constexpr (Cell::kHasC) store(c_row, c);
  F::write(s.h_next[row] + unit, h, n);
  if (s.output) F::write(s.output[row] + unit, h, n);
  if constexpr (Cell::kSaved > 0) {
    if (s.saved) {
      auto* const to = s.saved[row] + unit * Cell::kSaved;
#pragma GCC unroll 8
      for (int i = 0; i < Cell::kSaved; ++i) store(to + i * F::kLanes, saved[i]);
    }
  }
}

// Computes one step of kRows rows from `row` on and kBlocks blocks of units from `block` on. It may prefetch a part of
// the weights of the blocks from `next` on. With kUnpacked the weights are not packed.
template <class F, class Cell, int kRows, int kBlocks, bool kUnpacked = false>
__attribute__((noinline)) void forward_tile(const ForwardStep<F>& s, int64_t row, int64_t block, int64_t next) {
  using V = typename F::V;
  using A = typename F::A;
  using E = typename F::E;
  constexpr int kG = Cell::kGates, kS = Cell::kSlots, kL = F::kLanes;
  V acc[kRows][kBlocks * kS] = {};
  const E* rows[kRows];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) rows[m] = s.x[row + m];
  const auto add = [&](auto slot, int64_t K, const E* w, int64_t row_stride) {
    using Slot = decltype(slot);
    if constexpr (kUnpacked) {
      accumulate_unpacked<F, Slot, kRows, kBlocks, kG, kS>(acc, rows, K, w, row_stride, block * kL, s.H);
    } else {
      const int64_t panel = panel_size<F>(K, kG);
      const Ahead ahead{w + (next - s.first_block) * panel, kBlocks * panel * static_cast<int64_t>(sizeof(E)), row,
                        row + kRows, s.rows};
      accumulate<F, Slot, kRows, kBlocks, kG, kS>(acc, rows, K, w + (block - s.first_block) * panel, panel, ahead);
    }
  };
  add(SlotOfGate{}, s.K_x, s.w_x, s.row_stride_x);
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
    const A* start = s.start[row + m] + block * kS * kL;
#pragma GCC unroll 16
    for (int v = 0; v < kBlocks * kS; ++v) acc[m][v] += load(start + v * kL);
    rows[m] = s.h_prev[row + m];
  }
  add(HiddenSlotOfGate<Cell>{}, s.K_h, s.w_h, s.row_stride_h);

#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
    for (int j = 0; j < kBlocks; ++j) run_cell<F, Cell>(s, row + m, block + j, &acc[m][j * kS]);
  }
}

// Computes one step of all rows, for the blocks [begin, end), by vectors.
template <class F, class Cell>
void forward_vectors(const ForwardStep<F>& s, int64_t begin, int64_t end, bool backwards) {
  const int64_t rows = s.rows;
  using Shape = TileShape<Cell::kSlots, Cell::kGates>;
  if (Shape::kFewRows && rows <= Shape::kFewRows) {
    for_blocks<2>(begin, end, backwards, [&](int64_t block, int64_t next) {
      with_constant<Shape::kFewRows ? Shape::kFewRows : 1>(
          rows, [&](auto m) { forward_tile<F, Cell, decltype(m)::value, 2>(s, 0, block, next); });
    });
    begin += (end - begin) / 2 * 2;
  }
  bool first_block = true;
  for_blocks<Shape::kBlocks>(begin, end, backwards, [&](int64_t block, int64_t next) {
    for_row_groups<Shape::kRows>(rows, [&](int64_t first, auto m) {
      constexpr int kRows = decltype(m)::value;
      if (first_block) {  // the first to read x: prefetch the rows of the next group while this one is summed
        for (int64_t row = first + kRows; row < first + 2 * kRows && row < rows; ++row)
          prefetch<false>(s.x[row], s.K_x);
      }
      forward_tile<F, Cell, kRows, Shape::kBlocks>(s, first, block, next);
    });
    first_block = false;
  });
  if constexpr (Shape::kBlocks > 1) {
    for (int64_t block = begin + (end - begin) / Shape::kBlocks * Shape::kBlocks; block < end; ++block) {
      for_row_groups<Shape::kRows>(
          rows, [&](int64_t first, auto m) { forward_tile<F, Cell, decltype(m)::value, 1>(s, first, block, block); });
    }
  }
}

// The same step for all rows and the blocks [begin, end), by the tiles of amx.h.
template <class F, class Cell>
void forward_tiled(const ForwardStep<F>& s, int64_t begin, int64_t end) {
  constexpr int kG = Cell::kGates, kS = Cell::kSlots, kL = F::kLanes;
  stage(s.x, s.K_x ? s.rows : 0, 0, s.K_x, s.staged_x);
  stage(s.h_prev, s.rows, 0, s.K_h, s.staged_h);
  const auto add = [&](auto slot, const Bits16* staged, int64_t K, const Bits16* w, int64_t row, int tiles,
                       int64_t block, int64_t blocks, float* sums, int64_t stride, bool first) {
    const int64_t panel = panel_size<F>(K, kG);
    multiply_panels<decltype(slot), kG, kS>(staged_from(staged, row, K, tiles), w + block * panel, panel, blocks, sums,
                                            stride, first);
  };
  for_tiled_sums<kS>(
      s.rows, begin, end,
      [&](int64_t row, int tiles, int64_t block, int64_t blocks, float* sums, int64_t stride) {
        if (s.K_x) add(SlotOfGate{}, s.staged_x, s.K_x, s.w_x, row, tiles, block, blocks, sums, stride, true);
        for (int64_t m = 0; m < tiles * kTileRows && row + m < s.rows; ++m) {
          const float* const start = s.start[row + m] + block * kS * kL;
          for (int64_t v = 0; v < blocks * kS; ++v) {
            float* const sum = sums + m * stride + v * kL;
            store(sum, (s.K_x && v % kS < kG ? load(sum) : FloatVec{}) + load(start + v * kL));
          }
        }
        add(HiddenSlotOfGate<Cell>{}, s.staged_h, s.K_h, s.w_h, row, tiles, block, blocks, sums, stride, false);
      },
      [&](int64_t row, int64_t block, const float* sums) {
        typename F::V a[kS];
#pragma GCC unroll 4
        for (int v = 0; v < kS; ++v) a[v] = load(sums + v * kL);
        run_cell<F, Cell>(s, row, block, a);
      });
}

// Computes one step of all rows, for the blocks [begin, end).
template <class F, class Cell>
void forward_tiles(const ForwardStep<F>& s, int64_t begin, int64_t end, bool backwards) {
  if constexpr (F::kTiled) {
    forward_tiled<F, Cell>(s, begin, end);
  } else {
    forward_vectors<F, Cell>(s, begin, end, backwards);
  }
}

}  // namespace
}  // namespace sf

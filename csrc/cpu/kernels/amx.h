// Products of bfloat16 by AMX, whose registers are tiles of 16 rows of 64 bytes. One instruction multiplies 16 rows of
// 32 values with 16 columns, and adds the products to 16 x 16 float sums: 8192 multiply-adds in 16 cycles, for 2 KiB of
// operands, which take as long to load. So up to two tiles of rows meet two vectors of columns, and each load serves
// two products: sums in tiles 0 to 3, rows in 4 and 5, columns in 6 and 7. Weights are packed as for the pairs of
// tile.h, with zeros to a multiple of 16 lines, and rows are copied ("staged") tile by tile, with zeros beyond K.
//
// The instruction adds the products of even and of odd k in sums of their own, which start at zero, and then both to
// the sum in memory. Denormal numbers are zeros. So the bits depend on K alone, as everything runs through this file,
// also a single row: it takes as long as 16 rows, which is what the vectors of tile.h would take for it.
#pragma once

#include "pack.h"

#if defined(SF_AMX_EMULATED)
#include "emulated_tiles.h"  // of tests/amx: the same functions in plain C++
#define SF_AMX
#elif defined(__AMX_BF16__)
#define SF_AMX
#endif

namespace sf {
namespace {

constexpr int kTileRows = 16, kTileColumns = 32;  // of a tile of rows, in values

// Configures the tiles of this thread, all of them with 16 rows of 64 bytes, and releases them at its end. While tiles
// are in use, a change of threads saves 8 KiB more.
class TileScope {
 public:
#if defined(SF_AMX)
  TileScope() {
    Config config{};
    config.palette = 1;
    for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = kTileRows;
    _tile_loadconfig(&config);
  }
  ~TileScope() { _tile_release(); }
#endif
  TileScope(const TileScope&) = delete;

 private:
  struct alignas(64) Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  static_assert(sizeof(Config) == 64, "the instruction reads 64 bytes");
};

struct AmxTiles : Bfloat16Rows {
  static constexpr int kPanelLines = 16;
  static constexpr bool kTiled = true;
  using Scope = TileScope;
};

// The size of `rows` staged rows of K values, in values.
constexpr int64_t staged_size(int64_t rows, int64_t K) {
  return (rows + kTileRows - 1) / kTileRows * kTileRows * ((K + kTileColumns - 1) / kTileColumns) * kTileColumns;
}

// Copies rows[0..count)[first..first + K) as [row tiles][tiles along K][kTileRows][kTileColumns]. Rows beyond `count`
// stay as they are: nobody reads what they are multiplied to.
inline void stage(const Bits16* const* rows, int64_t count, int64_t first, int64_t K, Bits16* to) {
  constexpr int64_t kTile = kTileRows * kTileColumns;
  const int64_t steps = (K + kTileColumns - 1) / kTileColumns;
  for (int64_t i = 0; i < count; ++i) {
    const Bits16* const row = rows[i] + first;
    Bits16* line = to + i / kTileRows * steps * kTile + i % kTileRows * kTileColumns;
    for (int64_t k = 0; k < K; k += kTileColumns, line += kTile) {
      if (K - k >= kTileColumns) {
        __builtin_memcpy(line, row + k, kTileColumns * sizeof(Bits16));
      } else {
        for (int64_t j = 0; j < kTileColumns; ++j) line[j] = k + j < K ? row[k + j] : Bits16(0);
      }
    }
  }
}

#if defined(SF_AMX)
// Adds to sums[row][0..16) of each column vector, or sets them if `first`: kRowTiles tiles of staged rows, `apart`
// values from each other, times kVectors vectors whose lines are `line` bytes apart. Sums have rows of `stride` bytes.
template <int kRowTiles, int kVectors>
SF_FN void multiply_tiles(const Bits16* rows, int64_t apart, const Bits16* const (&columns)[2], int64_t line,
                          int64_t steps, float* const (&sums)[2], int64_t stride, bool first) {
  constexpr bool kRows = kRowTiles == 2, kColumns = kVectors == 2;
  const int64_t below = kTileRows * stride / static_cast<int64_t>(sizeof(float));
  asm volatile("" ::: "memory");  // GCC's tile loads do not say that they read memory
  if (first) {
    _tile_zero(0);
    if (kRows) _tile_zero(1);
    if (kColumns) _tile_zero(2);
    if (kRows && kColumns) _tile_zero(3);
  } else {
    _tile_loadd(0, sums[0], stride);
    if (kRows) _tile_loadd(1, sums[0] + below, stride);
    if (kColumns) _tile_loadd(2, sums[1], stride);
    if (kRows && kColumns) _tile_loadd(3, sums[1] + below, stride);
  }
  for (int64_t step = 0; step < steps; ++step) {
    const Bits16* const a = rows + step * kTileRows * kTileColumns;
    const int64_t at = step * kTileRows * line / static_cast<int64_t>(sizeof(Bits16));
    _tile_loadd(4, a, 64);
    _tile_loadd(6, columns[0] + at, line);
    _tile_dpbf16ps(0, 4, 6);
    if (kRows) {
      _tile_loadd(5, a + apart, 64);
      _tile_dpbf16ps(1, 5, 6);
    }
    if (kColumns) {
      _tile_loadd(7, columns[1] + at, line);
      _tile_dpbf16ps(2, 4, 7);
      if (kRows) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, sums[0], stride);
  if (kRows) _tile_stored(1, sums[0] + below, stride);
  if (kColumns) _tile_stored(2, sums[1], stride);
  if (kRows && kColumns) _tile_stored(3, sums[1] + below, stride);
}
#else
template <int kRowTiles, int kVectors>
void multiply_tiles(const Bits16*, int64_t, const Bits16* const (&)[2], int64_t, int64_t, float* const (&)[2], int64_t,
                    bool);  // never called
#endif

// Some staged rows of K values: one tile of them or two.
struct StagedRows {
  const Bits16* data;
  int64_t K;
  int row_tiles;
};

// Adds the products of staged rows with the panels of `blocks` blocks to sums[row][block][kSlots][16], or sets them if
// `first`. Gate g of a panel goes to Slot::slot(g).
template <class Slot, int kGates, int kSlots>
void multiply_panels(const StagedRows& rows, const Bits16* panels, int64_t block_stride, int64_t blocks, float* sums,
                     int64_t stride, bool first) {
  constexpr int64_t kL = AmxTiles::kLanes, kLineBytes = kGates * 64;
  const int64_t steps = (rows.K + kTileColumns - 1) / kTileColumns, apart = steps * kTileRows * kTileColumns;
  const auto column = [&](int64_t v) { return panels + v / kGates * block_stride + v % kGates * kL * 2; };
  const auto sum = [&](int64_t v) {
    return sums + (v / kGates * kSlots + Slot::slot(static_cast<int>(v % kGates))) * kL;
  };
  const int64_t vectors = blocks * kGates, bytes = stride * static_cast<int64_t>(sizeof(float));
  for (int64_t v = 0; v < vectors; v += 2) {
    const bool two = v + 1 < vectors;
    const Bits16* const of[2] = {column(v), two ? column(v + 1) : nullptr};
    float* const to[2] = {sum(v), two ? sum(v + 1) : nullptr};
    if (rows.row_tiles == 2) {
      two ? multiply_tiles<2, 2>(rows.data, apart, of, kLineBytes, steps, to, bytes, first)
          : multiply_tiles<2, 1>(rows.data, apart, of, kLineBytes, steps, to, bytes, first);
    } else {
      two ? multiply_tiles<1, 2>(rows.data, apart, of, kLineBytes, steps, to, bytes, first)
          : multiply_tiles<1, 1>(rows.data, apart, of, kLineBytes, steps, to, bytes, first);
    }
  }
}

// Calls sum(first row, row tiles, first block, blocks, sums, stride) for groups of at most 32 of the rows and of a few
// of the blocks [begin, end), and after each finish(row, block, the row's sums [kSlots][16] of the block).
template <int kSlots, class Sum, class Finish>
void for_tiled_sums(int64_t rows, int64_t begin, int64_t end, Sum&& sum, Finish&& finish) {
  constexpr int64_t kL = AmxTiles::kLanes, kBlocks = kSlots > 2 ? 1 : 4, kStride = kBlocks * kSlots * kL;
  alignas(64) float sums[2 * kTileRows * kStride];
  for (int64_t block = begin; block < end; block += kBlocks) {
    const int64_t blocks = end - block < kBlocks ? end - block : kBlocks;
    for (int64_t row = 0; row < rows; row += 2 * kTileRows) {
      const int64_t count = rows - row < 2 * kTileRows ? rows - row : 2 * kTileRows;
      sum(row, count > kTileRows ? 2 : 1, block, blocks, sums, kStride);
      for (int64_t m = 0; m < count; ++m)
        for (int64_t j = 0; j < blocks; ++j) finish(row + m, block + j, sums + m * kStride + j * kSlots * kL);
    }
  }
}

// Staged rows from row `first` on.
inline StagedRows staged_from(const Bits16* staged, int64_t first, int64_t K, int row_tiles) {
  return {staged + staged_size(first, K), K, row_tiles};
}

// A product that no cell follows: out[row][blocks [begin, end)][kSlots][16] = in[row][0..K) times the panels, + start,
// which may be null. It stages the rows.
template <int kGates, int kSlots>
void product_tiled(const Bits16* const* in, int64_t rows, int64_t K, const Bits16* panels, int64_t begin, int64_t end,
                   const float* start, float* const* out, Bits16* staged) {
  constexpr int64_t kL = AmxTiles::kLanes;
  const int64_t panel = panel_size<AmxTiles>(K, kGates);
  stage(in, rows, 0, K, staged);
  for_tiled_sums<kSlots>(
      rows, begin, end,
      [&](int64_t row, int tiles, int64_t block, int64_t blocks, float* sums, int64_t stride) {
        multiply_panels<SlotOfGate, kGates, kSlots>(staged_from(staged, row, K, tiles), panels + block * panel, panel,
                                                    blocks, sums, stride, true);
      },
      [&](int64_t row, int64_t block, const float* sums) {
#pragma GCC unroll 4
        for (int v = 0; v < kSlots; ++v) {
          const int64_t at = (block * kSlots + v) * kL;
          const FloatVec sum = v < kGates ? load(sums + v * kL) : FloatVec{};
          store(out[row] + at, start ? sum + load(start + at) : sum);
        }
      });
}

}  // namespace
}  // namespace sf

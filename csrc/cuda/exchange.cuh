// What the regimes share: the geometry of a kernel, the operand in shared memory, and the slice of it that a warp
// has ready for other blocks. A regime is an Exchange: wait() until the whole operand of a batch tile is here, put()
// what a cell gives for the next step, send() it.
#pragma once

#include "precision.cuh"
#include "sweep.h"

namespace sf::cuda {

// The constants of one kernel. An operand is what the product reads: h going forward, the gradients of all gates back.
template <class Cell_, class Math_, int kSplits_, int kHiddenTiles, Pass kPass_>
struct Shape {
  using Cell = Cell_;
  using Math = Math_;
  using Element = typename Math::Element;
  static constexpr Pass kPass = kPass_;
  static constexpr Precision kPrecision = Math::kPrecision;
  static constexpr Tiling kTiling{kSplits_, kHiddenTiles};
  static constexpr int kSplits = kSplits_, kGates = Cell::kGates;
  static constexpr int kPlanes = planes(kPrecision), kPadded = padded_hidden(kTiling, kPrecision);
  static constexpr int kOperands = operands(kPass, kGates), kMTiles = m_tiles(kPass, kGates);
  static constexpr int kKTiles = kHiddenTiles * kOperands;                           // of one warp and m-tile
  static constexpr int kChains = kMTiles >= 4 ? 1 : kMTiles >= 2 ? 2 : 4;            // an HMMA waits 24 cycles, 6 apart
  static constexpr int kOwners = owners(kSplits), kCells = cells_per_lane(kSplits);  // see Lane
  static constexpr int kUnits = kSplits == 1 ? 16 : 8, kColumns = kSplits < 4 ? 8 : 4;  // of a warp's slice
  static constexpr int kPieceElements = 16 / sizeof(Element);
  static constexpr int kPitch = kOperands * kPadded + kPieceElements;  // elements from row to row of the operand
  static constexpr int kThreads = 32 * max_warps(kTiling, kGates, kPrecision);
  static_assert(kKTiles % 2 == 0, "k-tiles are loaded in pairs");
  static_assert(kPadded % kGroupUnits == 0, "a group has 16 units");
};

// Where a thread stands. Element r of a D fragment is unit g + 8 (r / 2) of the group, batch row 2q + r % 2 of the
// tile; of a group's warps, warp j holds the cells r = j kCells .. j kCells + kCells - 1, and a fifth and later none.
template <class S>
struct Lane {
  int lane = thread_id() & 31, warp = thread_id() >> 5;
  int g = lane >> 2, q = lane & 3;
  int group_in_block = warp / S::kSplits, split = warp % S::kSplits;
  int block;  // rank in the team
  int group;  // in the team

  SF_DEVICE explicit Lane(const Sweep& a)
      : block(block_id() % a.blocks), group(block * a.block_groups + group_in_block) {}
  SF_DEVICE bool owns() const { return split < S::kOwners; }
  SF_DEVICE int unit(int cell) const { return group * kGroupUnits + g + 8 * ((split * S::kCells + cell) >> 1); }
  SF_DEVICE int column(int cell) const { return 2 * q + ((split * S::kCells + cell) & 1); }
  // of the warp's slice: its first unit, and its i-th batch row
  SF_DEVICE int slice_unit() const {
    return group * kGroupUnits + (S::kSplits == 1 ? 0 : 8 * (split * S::kCells >> 1));
  }
  SF_DEVICE int slice_column(int i) const { return S::kSplits < 4 ? i : 2 * i + (split & 1); }
};

// (2 steps, tiles, planes, 8 rows, kPitch): step s is read from half s & 1, step s + 1 written to the other.
template <class S>
struct Operand {
  using Element = typename S::Element;
  Shared<Element> region;
  int tiles;

  SF_DEVICE Operand(Carve& carve, const Sweep& a)
      : region(carve.take<Element>(2 * a.tiles * S::kPlanes * kTileRows * S::kPitch)), tiles(a.tiles) {}
  SF_DEVICE int size() const { return 2 * tiles * S::kPlanes * kTileRows * S::kPitch; }
  SF_DEVICE int row(int64_t step, int tile, int plane, int column) const {
    return (((static_cast<int>(step & 1) * tiles + tile) * S::kPlanes + plane) * kTileRows + column) * S::kPitch;
  }
  SF_DEVICE void store(int64_t step, int tile, int column, int operand, int unit, float value) const {
    Element e[S::kPlanes];
    S::Math::split(value, e);
    SF_UNROLL
    for (int plane = 0; plane < S::kPlanes; ++plane)
      region.store(row(step, tile, plane, column) + operand * S::kPadded + unit, e[plane]);
  }
};

// A warp's slice of the next operand on its way to other blocks: (planes, operands, 8 columns, kUnits), in pieces of 16
// bytes that lie side by side here and there.
template <class S>
struct Slice {
  using Element = typename S::Element;
  static constexpr int kRowPieces = S::kUnits / S::kPieceElements;
  static constexpr int kPieces = S::kPlanes * S::kOperands * S::kColumns * kRowPieces;
  static constexpr int kSize = S::kPlanes * S::kOperands * kTileRows * S::kUnits;
  Shared<Element> region;
  int base;

  struct Piece {
    int from;                          // element of the region
    int plane, column, operand, unit;  // where it belongs
  };

  SF_DEVICE Slice(Carve& carve, const Lane<S>& at)
      : region(carve.take<Element>(block_threads() / 32 * kSize)), base(at.warp * kSize) {}
  SF_DEVICE int index(int plane, int operand, int column, int unit) const {
    return base + ((plane * S::kOperands + operand) * kTileRows + column) * S::kUnits + unit;
  }
  SF_DEVICE void store(const Lane<S>& at, int column, int operand, int unit, float value) const {
    Element e[S::kPlanes];
    S::Math::split(value, e);
    SF_UNROLL
    for (int plane = 0; plane < S::kPlanes; ++plane)
      region.store(index(plane, operand, column, unit - at.slice_unit()), e[plane]);
  }
  SF_DEVICE Piece piece(const Lane<S>& at, int i) const {
    const int in_row = i % kRowPieces * S::kPieceElements, column = at.slice_column(i / kRowPieces % S::kColumns);
    const int operand = i / (kRowPieces * S::kColumns) % S::kOperands;
    const int plane = i / (kRowPieces * S::kColumns * S::kOperands);
    return {index(plane, operand, column, in_row), plane, column, operand, at.slice_unit() + in_row};
  }
};

}  // namespace sf::cuda

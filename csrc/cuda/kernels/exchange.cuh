// What the regimes share: the geometry of a kernel, the operand in shared memory, and the slice of it that a warp has
// ready for other blocks. A regime is an Exchange: wait() until the whole operand of a batch tile is here, put() what
// a cell gives for the next step, send() it.
#pragma once

#include "precision.cuh"
#include "../launch_args.h"

namespace sf::cuda {

// Values that are moved as one.
template <class T, int kCount>
struct alignas(kCount == 3 ? sizeof(T) : sizeof(T) * kCount) Vector {
  T v[kCount];
};

// The constants of one kernel. An operand is what the product reads: h going forward, the gradients of all gates
// back.
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
  static constexpr int kKTiles = kHiddenTiles * kOperands;                 // of one warp and m-tile
  static constexpr int kChains = kMTiles >= 4 ? 1 : kMTiles >= 2 ? 2 : 4;  // an HMMA waits 24 cycles, 6 apart
  static constexpr int kOwners = owners(kSplits),
                       kCells = cells_per_lane(kSplits);  // see Lane
  static constexpr int kUnits = kSplits == 1 ? 16 : 8,
                       kColumns = kSplits < 4 ? 8 : 4;  // of a warp's slice
  // of a lane's cells: in how many columns, side by side, and in how many halves of 8 units
  static constexpr int kLaneColumns = kSplits < 4 ? 2 : 1, kLaneHalves = kSplits == 1 ? 2 : 1;
  static constexpr SF_DEVICE int column_of(int cell) { return kLaneColumns == 2 ? cell & 1 : 0; }
  static constexpr SF_DEVICE int half_of(int cell) { return kLaneHalves == 2 ? cell >> 1 : 0; }
  static constexpr SF_DEVICE int cell_of(int half, int column) { return half * kLaneColumns + column; }
  static constexpr int kPieceElements = 16 / sizeof(Element);
  static constexpr int kPitch = kOperands * kPadded + kPieceElements;  // elements from row to row of the operand
  static constexpr int kThreads = 32 * max_warps(kTiling, kGates, kPrecision);
  // Products add to what the input gives, but where they are to be as exact as float32: tensor cores cut sums off.
  static constexpr bool kStartsFromInput = kSplits == 1 && kPlanes == 1;
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

// (2 steps, tiles, planes, 8 rows, kPitch): step s is read from half s & 1, step s + 1 written to the other. In a row
// all of a unit's values lie side by side, then those of the next.
template <class S>
struct Operand {
  using Element = typename S::Element;
  Shared<Element> region;
  int tiles;

  SF_DEVICE Operand(Carve& carve, const Sweep& a)
      : region(carve.take<Element>(2 * a.tiles * S::kPlanes * kTileRows * S::kPitch)), tiles(a.tiles) {}
  SF_DEVICE int size() const { return 2 * tiles * S::kPlanes * kTileRows * S::kPitch; }
  SF_DEVICE int row(int step, int tile, int plane, int column) const {
    return (((step & 1) * tiles + tile) * S::kPlanes + plane) * kTileRows * S::kPitch + column * S::kPitch;
  }
};

// Values of one unit as operand elements, to each plane's place.
template <class S, class PlaceOf>
SF_DEVICE void store_split(Shared<typename S::Element> region, const float (&values)[S::kOperands], PlaceOf place_of) {
  using Element = typename S::Element;
  Vector<Element, S::kOperands> parts[S::kPlanes];
  SF_UNROLL
  for (int i = 0; i < S::kOperands; ++i) {
    Element e[S::kPlanes];
    S::Math::split(values[i], e);
    SF_UNROLL
    for (int plane = 0; plane < S::kPlanes; ++plane) parts[plane].v[i] = e[plane];
  }
  SF_UNROLL
  for (int plane = 0; plane < S::kPlanes; ++plane) {
    const int at = place_of(plane);
    if constexpr (S::kOperands == 3) {
      SF_UNROLL
      for (int i = 0; i < 3; ++i) region.store(at + i, parts[plane].v[i]);
    } else {
      region.store_as(at, parts[plane]);
    }
  }
}

// A warp's slice of the next operand on its way to other blocks: (planes, 8 columns, kUnits * kOperands), in pieces
// of 16 bytes that lie side by side here and there.
template <class S>
struct Slice {
  using Element = typename S::Element;
  static constexpr int kRow = S::kUnits * S::kOperands, kRowPieces = kRow / S::kPieceElements;
  static constexpr int kPieces = S::kPlanes * S::kColumns * kRowPieces;
  static constexpr int kSize = S::kPlanes * kTileRows * kRow;
  Shared<Element> region;
  int base;

  struct Piece {
    int from;                       // element of the region
    int plane, column, in_operand;  // where it belongs
  };

  SF_DEVICE Slice(Carve& carve, const Lane<S>& at)
      : region(carve.take<Element>(block_threads() / 32 * kSize)), base(at.warp * kSize) {}
  SF_DEVICE void store(const Lane<S>& at, int column, int unit, const float (&values)[S::kOperands]) const {
    store_split<S>(region, values, [&](int plane) {
      return base + (plane * kTileRows + column) * kRow + (unit - at.slice_unit()) * S::kOperands;
    });
  }
  SF_DEVICE Piece piece(const Lane<S>& at, int i) const {
    const int in_row = i % kRowPieces * S::kPieceElements, column = at.slice_column(i / kRowPieces % S::kColumns);
    const int plane = i / (kRowPieces * S::kColumns);
    return {base + (plane * kTileRows + column) * kRow + in_row, plane, column,
            at.slice_unit() * S::kOperands + in_row};
  }
};

}  // namespace sf::cuda

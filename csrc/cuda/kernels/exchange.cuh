// The parts that the regimes share: a kernel's constants, the position of a thread, the operand in shared memory, and
// the slice of the next operand that a warp sends to other blocks. Each regime is an Exchange: wait() returns when the
// whole operand of a batch tile has come, put() takes the values of one cell for the next operand, and send() sends
// them. kHoldsEveryTile says whether the operands of all tiles lie in shared memory at once.
#pragma once

#include <type_traits>

#include "precision.cuh"
#include "../launch_args.h"

namespace sf::cuda {

// The batch row at a position in the order of the batch rows, or -1 beyond the last.
SF_DEVICE int batch_row(const LaunchArgs& a, int position) {
  return position >= a.B ? -1 : a.order ? static_cast<int>(a.order[position]) : position;
}

// Values that one instruction loads or stores.
template <class T, int kCount>
struct alignas(kCount == 3 ? sizeof(T) : sizeof(T) * kCount) Vector {
  T v[kCount];
};

// The constants of one kernel. The operand of a step is the matrix that R is multiplied by: h in the forward, the
// gradients of all gates in the backward.
template <class Cell_, class Math_, int kSplits_, int kHiddenTiles, Pass kPass_, bool kOptions_ = false>
struct Shape {
  // With a norm, a step computes the cell without it, and normalises before and after (steps_norm.cuh). A cell whose
  // product waits for r has two products in a step, and so two operands (steps_reset.cuh).
  static constexpr bool kNorm = OptionsOf<Cell_>::kNorm, kResetsFirst = OptionsOf<Cell_>::kResetsFirst;
  static constexpr bool kMeets = kNorm || kResetsFirst;  // units wait for each other within a step
  static constexpr int kProducts = kResetsFirst ? 2 : 1;
  static constexpr int kFreshH = kNorm ? Cell_::kSaved : 0;  // where in a row of saved values is the h that a cell gave
  using Cell = std::conditional_t<kNorm, typename OptionsOf<Cell_>::Base, Cell_>;
  using Math = Math_;
  using Element = typename Math::Element;
  static constexpr Pass kPass = kPass_;
  static constexpr bool kOptions = kOptions_;  // see options.cuh
  static constexpr Precision kPrecision = Math::kPrecision;
  static constexpr Tiling kTiling{kSplits_, kHiddenTiles};
  static constexpr int kSplits = kSplits_, kGates = Cell::kGates;
  static constexpr int kPlanes = planes(kPrecision), kPadded = padded_hidden(kTiling, kPrecision);
  static constexpr int kOperands = operands(kPass, kGates), kMTiles = m_tiles(kPass, kGates);
  static constexpr int kKTiles = kHiddenTiles * kOperands;  // per warp and m-tile
  // Independent sums of one element, since a product takes 24 cycles but one may start every 6.
  static constexpr int kChains = kMTiles >= 4 ? 1 : kMTiles >= 2 ? 2 : 4;
  static constexpr int kOwners = owners(kSplits), kCells = cells_per_lane(kSplits);     // see Lane
  static constexpr int kUnits = kSplits == 1 ? 16 : 8, kColumns = kSplits < 4 ? 8 : 4;  // of a warp's slice
  // A lane's cells lie in kLaneColumns neighbouring columns and in kLaneHalves halves of 8 units.
  static constexpr int kLaneColumns = kSplits < 4 ? 2 : 1, kLaneHalves = kSplits == 1 ? 2 : 1;
  static constexpr SF_DEVICE int column_of(int cell) { return kLaneColumns == 2 ? cell & 1 : 0; }
  static constexpr SF_DEVICE int half_of(int cell) { return kLaneHalves == 2 ? cell >> 1 : 0; }
  static constexpr SF_DEVICE int cell_of(int half, int column) { return half * kLaneColumns + column; }
  static constexpr int kPacketElements = 16 / sizeof(Element);
  static constexpr int kPitch = kOperands * kPadded + kPacketElements;  // elements from row to row of the operand
  static constexpr int kThreads = 32 * max_warps(kTiling, kGates, kPrecision, kNorm ? Options::kNorm : Options::kMasks);
  // Whether the sums of the products start from the projected input. Not for Tf32x3, since tensor cores truncate sums,
  // and not where a sum is normalised first or a product comes later.
  static constexpr bool kStartsFromInput = kSplits == 1 && kPlanes == 1 && !kNorm && !kResetsFirst;
  static_assert(norm_blocks(kGates) == NormBlocks<kGates>::kNormBlocks, "plan.h and cells.h say the same");
  static_assert(kKTiles % 2 == 0, "k-tiles are loaded in pairs");
  static_assert(kPadded % kGroupUnits == 0, "a group has 16 units");
};

// The position of a thread. A cell is one unit of one batch row. Element r of the fragment D is the cell of the group's
// unit g + 8 (r / 2) and of the tile's batch row 2q + r % 2. Warp j of a group holds the cells of kCells elements, from
// element j kCells on; the fifth warp and later ones hold none.
template <class S>
struct Lane {
  int lane = thread_id() & 31, warp = thread_id() >> 5;
  int g = lane >> 2, q = lane & 3;
  int group_in_block = warp / S::kSplits, split = warp % S::kSplits;
  int block;  // number of the block in its team
  int group;  // number of the group in its team

  SF_DEVICE explicit Lane(const LaunchArgs& a)
      : block(block_id() % a.blocks), group(block * a.block_groups + group_in_block) {}
  SF_DEVICE bool owns() const { return split < S::kOwners; }
  SF_DEVICE int unit(int cell) const { return group * kGroupUnits + g + 8 * ((split * S::kCells + cell) >> 1); }
  SF_DEVICE int column(int cell) const { return 2 * q + ((split * S::kCells + cell) & 1); }
  // The first unit and the i-th batch row of the warp's slice.
  SF_DEVICE int slice_unit() const {
    return group * kGroupUnits + (S::kSplits == 1 ? 0 : 8 * (split * S::kCells >> 1));
  }
  SF_DEVICE int slice_column(int i) const { return S::kSplits < 4 ? i : 2 * i + (split & 1); }
};

// The floats per batch tile and cell that a thread keeps in shared memory from step to step. The layout, (tiles,
// kCount, threads, cells), lets a warp read without bank conflicts.
template <class S, int kCount>
struct LaneValues {
  Shared<float> region;
  int threads = block_threads();

  SF_DEVICE LaneValues(SharedAllocator& allocator, int tiles)
      : region(allocator.take<float>(tiles * kCount * S::kCells * block_threads())) {}
  SF_DEVICE int index(int tile, int which) const {
    return ((tile * kCount + which) * threads + thread_id()) * S::kCells;
  }
  SF_DEVICE Vector<float, S::kCells> load(int tile, int which) const {
    return region.template load_as<Vector<float, S::kCells>>(index(tile, which));
  }
  SF_DEVICE void store(int tile, int which, const Vector<float, S::kCells>& v) const {
    region.store_as(index(tile, which), v);
  }
};

// The two states of a lane's cells in one tile, see recurrence.cuh.
template <class S>
struct TileStates {
  const LaneValues<S, 2>& states;
  int tile;

  SF_DEVICE Vector<float, S::kCells> load(int which) const { return states.load(tile, which); }
  SF_DEVICE void store(int which, const Vector<float, S::kCells>& v) const { states.store(tile, which, v); }
};

// The operands of a block's tiles in shared memory, (2 halves, tiles, planes, 8 rows, kPitch). The operand of step s is
// in half s & 1. In a row, all values of a unit lie side by side. With kEveryTile false there is room for two operands
// alone, which the tiles use in turn: that of the tile at hand, and that of the tile before.
template <class S, bool kEveryTile = true>
struct Operand {
  using Element = typename S::Element;
  Shared<Element> region;
  int tiles;

  SF_DEVICE Operand(SharedAllocator& allocator, const LaunchArgs& a)
      : region(allocator.take<Element>(operands(a.tiles) * S::kPlanes * kTileRows * S::kPitch)), tiles(a.tiles) {}
  SF_DEVICE int size() const { return operands(tiles) * S::kPlanes * kTileRows * S::kPitch; }
  SF_DEVICE int row(int step, int tile, int plane, int column) const {
    const int place = kEveryTile ? (step & 1) * tiles + tile : (S::kProducts == 2 ? step : step * tiles + tile) & 1;
    return (place * S::kPlanes + plane) * kTileRows * S::kPitch + column * S::kPitch;
  }

 private:
  static SF_DEVICE int operands(int tiles) { return kEveryTile ? 2 * tiles : 2; }
};

// Stores the values of one cell as operand elements. place_of(plane) is where the elements of a plane begin.
template <class S, class PlaceOf>
SF_DEVICE void store_split(Shared<typename S::Element> region, const float (&values)[S::kOperands], PlaceOf place_of) {
  using Element = typename S::Element;
  Vector<Element, S::kOperands> elements[S::kPlanes];
  SF_UNROLL
  for (int i = 0; i < S::kOperands; ++i) {
    Element e[S::kPlanes];
    S::Math::split(values[i], e);
    SF_UNROLL
    for (int plane = 0; plane < S::kPlanes; ++plane) elements[plane].v[i] = e[plane];
  }
  SF_UNROLL
  for (int plane = 0; plane < S::kPlanes; ++plane) {
    const int at = place_of(plane);
    if constexpr (S::kOperands == 3) {
      SF_UNROLL
      for (int i = 0; i < 3; ++i) region.store(at + i, elements[plane].v[i]);
    } else {
      region.store_as(at, elements[plane]);
    }
  }
}

// A warp's slice of the next operand, (planes, 8 columns, kUnits * kOperands), from which it is sent to other blocks in
// packets of 16 bytes. The bytes of a packet lie side by side in the slice and in the operand.
template <class S>
struct Slice {
  using Element = typename S::Element;
  static constexpr int kRow = S::kUnits * S::kOperands, kRowPackets = kRow / S::kPacketElements;
  static constexpr int kPackets = S::kPlanes * S::kColumns * kRowPackets;
  static constexpr int kSize = S::kPlanes * kTileRows * kRow;
  Shared<Element> region;
  int base;

  struct Packet {
    int from;                       // its first element in the region
    int plane, column, in_operand;  // its place in the operand
  };

  SF_DEVICE Slice(SharedAllocator& allocator, const Lane<S>& at)
      : region(allocator.take<Element>(block_threads() / 32 * kSize)), base(at.warp * kSize) {}
  SF_DEVICE void store(const Lane<S>& at, int column, int unit, const float (&values)[S::kOperands]) const {
    store_split<S>(region, values, [&](int plane) {
      return base + (plane * kTileRows + column) * kRow + (unit - at.slice_unit()) * S::kOperands;
    });
  }
  SF_DEVICE Packet packet(const Lane<S>& at, int i) const {
    const int in_row = i % kRowPackets * S::kPacketElements, column = at.slice_column(i / kRowPackets % S::kColumns);
    const int plane = i / (kRowPackets * S::kColumns);
    return {base + (plane * kTileRows + column) * kRow + in_row, plane, column,
            at.slice_unit() * S::kOperands + in_row};
  }
};

}  // namespace sf::cuda

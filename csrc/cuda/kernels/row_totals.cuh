// Sums over all units of a row of the batch tile, in the middle of a step: what layer normalisation needs. A warp adds
// up its slice of units, for each row two numbers, a part. A part goes to every block, and there a warp adds up the
// parts of a row in the order of the units, so that a result depends on neither the regime nor the batch.
//
// All lanes of a warp add up together, also in a warp that holds no cells or has no row left. Before sm_90 the compiler
// makes calls for a sum of lanes where it cannot see that a branch, or the end of a loop, is the same for all of them.
//
// A variance is not made of a sum of squares, which cancels where the mean is large. A slice takes the squares of what
// differs from its own mean; the squares of what the means of the slices differ by from the mean of all are added.
// This is as exact as two passes over the row, and needs one exchange instead of two.
//
// In shared memory one place is enough for the parts and for the totals: the barrier of each says that the other was
// read. The words in which blocks exchange parts have two, since a fast block may be ahead by a meeting, but not by
// two: it posts the parts of the meeting after the next when it has all of the next one, which each block posts when it
// has fetched all of this one.
#pragma once

#include "exchange.cuh"
#include "norm.cuh"

namespace sf::cuda {

// The sum of the values of the lanes whose numbers differ in the bits from kFirst up to kBeyond.
template <int kFirst, int kBeyond>
SF_DEVICE float sum_of_lanes(float v) {
  SF_UNROLL
  for (int mask = kFirst; mask < kBeyond; mask *= 2) v += shuffle_xor(v, mask);
  return v;
}
constexpr int power_of_two_from(int n) { return n <= 1 ? 1 : 2 * power_of_two_from((n + 1) / 2); }

// Gains of the sums of h, and the gain and the bias of c, for the units of a block: (units, pitch), (units, 2).
template <class S>
struct SharedGains {
  static constexpr int kPitch = S::kGates == 1 ? 1 : 4;
  Shared<float> of_h, of_c;
  int lane_unit;  // the number of the lane's first unit in the block

  SF_DEVICE SharedGains(SharedAllocator& allocator, const LaunchArgs& a, const Lane<S>& at, int direction)
      : of_h(allocator.take<float>(kPitch * a.block_groups * kGroupUnits)),
        of_c(allocator.take<float>(S::Cell::kHasC ? 2 * a.block_groups * kGroupUnits : 0)),
        lane_unit(at.unit(0) - at.block * a.block_groups * kGroupUnits) {
    using Storage = typename S::Math::Storage;
    const auto* gains = static_cast<const Storage*>(a.norm.gains[direction]);
    for (int i = thread_id(); i < a.block_groups * kGroupUnits; i += block_threads()) {
      const int unit = at.block * a.block_groups * kGroupUnits + i;
      for (int g = 0; g < kPitch; ++g)
        of_h.store(kPitch * i + g, unit < a.H && g < S::kGates ? S::Math::widen(gains[g * a.H + unit]) : 0);
      for (int which = 0; which < 2 && S::Cell::kHasC; ++which)
        of_c.store(2 * i + which,
                   unit < a.H ? S::Math::widen(static_cast<const Storage*>(a.norm.of_c[which][direction])[unit]) : 0);
    }
  }
  SF_DEVICE Vector<float, kPitch> h(int half) const {
    return of_h.template load_as<Vector<float, kPitch>>(kPitch * (lane_unit + 8 * half));
  }
  SF_DEVICE Vector<float, 2> c(int half) const {
    return of_c.template load_as<Vector<float, 2>>(2 * (lane_unit + 8 * half));
  }
};

template <class S, class RowParts>
struct RowTotals {
  static constexpr int kMostSlices = S::kPadded / S::kUnits;
  static constexpr int kLaneParts = (kMostSlices + 31) / 32;                             // parts that a lane adds up
  static constexpr int kLanes = power_of_two_from(kMostSlices < 32 ? kMostSlices : 32);  // lanes that have any
  using Blocks = NormBlocks<S::kGates>;

  SharedGains<S> gains;
  Shared<float> part;  // (blocks of gates, 8 rows, slices, 2)
  RowParts parts;
  Shared<float> totals;  // (blocks of gates, 8 rows, 2)
  const LaunchArgs& a;
  int direction;

  SF_DEVICE RowTotals(SharedAllocator& allocator, const LaunchArgs& args, const Lane<S>& at, int direction_)
      : gains(allocator, args, at, direction_),
        part(allocator.take<float>(row_part_words(S::kGates, args.norm.slices))),
        parts(part, args),
        totals(allocator.take<float>(Blocks::kNormBlocks * kTileRows * 2)),
        a(args),
        direction(direction_) {}

  SF_DEVICE bool is_last(int slice) const { return slice == a.norm.slices - 1; }
  SF_DEVICE float inverse_units(int slice) const { return is_last(slice) ? a.norm.inverse_last : 1.0f / S::kUnits; }

  // The gates of a block, of which there is one where kBlocks is one.
  template <int kBlocks, int kValues>
  static SF_DEVICE constexpr int values_of(int block) {
    return kBlocks == 1 ? kValues : Blocks::gates_of(block);
  }

  // The mean and the inverse deviation of a row's values, of which a cell has kValues, in kBlocks blocks.
  template <int kBlocks, int kValues>
  SF_DEVICE void measure(const Lane<S>& at, const bool (&in_layer)[S::kLaneHalves],
                         const float (&v)[S::kCells][kValues], float2 (&found)[S::kLaneColumns][kBlocks]) {
    float2 mine[S::kLaneColumns][kBlocks];
    SF_UNROLL
    for (int column = 0; column < S::kLaneColumns; ++column) SF_UNROLL
    for (int block = 0; block < kBlocks; ++block) {
      const auto add_up = [&](auto&& f) {
        float sum = 0;
        SF_UNROLL
        for (int half = 0; half < S::kLaneHalves; ++half) SF_UNROLL
        for (int i = 0; i < kValues; ++i)
          if ((kBlocks == 1 || Blocks::block_of(i) == block) && in_layer[half] && at.owns())
            sum += f(v[S::cell_of(half, column)][i]);
        return sum_of_lanes<4, 32>(sum);
      };
      const float sum = add_up([](float x) { return x; });
      const float mean = sum * inverse_units(at.slice_unit() / S::kUnits) * (1.0f / values_of<kBlocks, kValues>(block));
      mine[column][block] = {sum, add_up([&](float x) { return (x - mean) * (x - mean); })};
    }
    meet<kBlocks, kValues, true>(at, mine, found);
  }
  // The means of a row's pairs of values, of which a cell has one for each block.
  template <int kBlocks, int kValues>
  SF_DEVICE void average(const Lane<S>& at, const float2 (&v)[S::kCells][kBlocks],
                         float2 (&found)[S::kLaneColumns][kBlocks]) {
    float2 mine[S::kLaneColumns][kBlocks];
    SF_UNROLL
    for (int column = 0; column < S::kLaneColumns; ++column) SF_UNROLL
    for (int block = 0; block < kBlocks; ++block) {
      float2 sum{0, 0};
      SF_UNROLL
      for (int half = 0; half < S::kLaneHalves && at.owns(); ++half) {
        sum.x += v[S::cell_of(half, column)][block].x;
        sum.y += v[S::cell_of(half, column)][block].y;
      }
      mine[column][block] = {sum_of_lanes<4, 32>(sum.x), sum_of_lanes<4, 32>(sum.y)};
    }
    meet<kBlocks, kValues, false>(at, mine, found);
  }

 private:
  static SF_DEVICE int total_at(int block, int row) { return 2 * (block * kTileRows + row); }
  SF_DEVICE int part_at(int block, int row, int slice) const {
    return 2 * ((block * kTileRows + row) * a.norm.slices + slice);
  }
  template <int kBlocks, int kValues, bool kMeasures>
  SF_DEVICE void meet(const Lane<S>& at, const float2 (&mine)[S::kLaneColumns][kBlocks],
                      float2 (&found)[S::kLaneColumns][kBlocks]) {
    if (at.owns() && at.g == 0 && at.slice_unit() < a.H) SF_UNROLL
    for (int column = 0; column < S::kLaneColumns; ++column) SF_UNROLL
    for (int block = 0; block < kBlocks; ++block)
      parts.put(part_at(block, at.column(column), at.slice_unit() / S::kUnits), mine[column][block]);
    parts.wait();
    // Each warp goes through the loop as often; one that has no row left adds up the last row, and keeps nothing.
    for (int first = 0; first < kTileRows; first += block_threads() / 32) SF_UNROLL
    for (int block = 0; block < kBlocks; ++block) {
      const bool has_row = first + at.warp < kTileRows;
      const int row = has_row ? first + at.warp : kTileRows - 1;
      float2 of_slice[kLaneParts];
      SF_UNROLL
      for (int i = 0; i < kLaneParts; ++i) {
        const int slice = at.lane + 32 * i;
        of_slice[i] = slice < a.norm.slices ? part.template load_as<float2>(part_at(block, row, slice)) : float2{0, 0};
      }
      const float values = values_of<kBlocks, kValues>(block), share = 1.0f / values;
      float sum = 0, second = 0;
      SF_UNROLL
      for (int i = 0; i < kLaneParts; ++i) sum += of_slice[i].x;
      const float mean = sum_of_lanes<1, kLanes>(sum) * a.norm.inverse_H * share;
      SF_UNROLL
      for (int i = 0; i < kLaneParts; ++i) {
        const int slice = at.lane + 32 * i;
        const float apart = of_slice[i].x * inverse_units(slice) * share - mean;
        const float units = static_cast<float>(is_last(slice) ? a.norm.last_units : S::kUnits);
        if (slice < a.norm.slices) second += kMeasures ? of_slice[i].y + values * units * apart * apart : of_slice[i].y;
      }
      second = sum_of_lanes<1, kLanes>(second) * a.norm.inverse_H * share;
      if (at.lane == 0 && has_row)
        totals.store_as(total_at(block, row), float2{mean, kMeasures ? inverse_deviation(second) : second});
    }
    cta_sync();
    SF_UNROLL
    for (int column = 0; column < S::kLaneColumns; ++column) SF_UNROLL
    for (int block = 0; block < kBlocks; ++block)
      found[column][block] = totals.template load_as<float2>(total_at(block, at.column(column)));
  }
};

}  // namespace sf::cuda

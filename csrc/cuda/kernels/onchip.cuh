// The onchip regime: one block holds all of R. Cells write the next operand to the shared memory from which the product
// reads it, and one barrier per product separates the two.
#pragma once

#include "exchange.cuh"

namespace sf::cuda {

template <class S>
struct Onchip {
  static constexpr bool kHoldsEveryTile = true;
  Operand<S> operand;

  SF_DEVICE Onchip(SharedAllocator& allocator, const LaunchArgs& a, const Lane<S>&) : operand(allocator, a) {}
  SF_DEVICE void begin() const { cta_sync(); }
  SF_DEVICE void wait(const Lane<S>&, int step, int, int tile) const {
    if ((tile == 0 || S::kProducts == 2) && step > 0) cta_sync();
  }
  SF_DEVICE void put(const Lane<S>&, int step, int tile, int column, int unit, const float (&v)[S::kOperands]) const {
    store_split<S>(operand.region, v,
                   [&](int plane) { return operand.row(step, tile, plane, column) + unit * S::kOperands; });
  }
  SF_DEVICE void send(const Lane<S>&, int, int) const {}
  SF_DEVICE void end() const {}

  // The parts of sums over rows, see row_totals.cuh: (places, slices, 2). One set is enough: a barrier lies between the
  // last read of a meeting and the first write of the next.
  struct RowParts {
    Shared<float> region;
    const int& slices;

    SF_DEVICE RowParts(SharedAllocator& allocator, const LaunchArgs& a, const Lane<S>&)
        : region(allocator.take<float>(row_part_words(S::kGates, a.norm.slices))), slices(a.norm.slices) {}
    SF_DEVICE void put(int, int place, int slice, float2 v) const { region.store_as(2 * (place * slices + slice), v); }
    SF_DEVICE void begin_reading() const { cta_sync(); }
    template <int kCount>
    SF_DEVICE void get(int, int place, int lane, float2 (&found)[kCount]) const {
      SF_UNROLL
      for (int i = 0; i < kCount; ++i) {
        const int slice = lane + 32 * i;
        found[i] = slice < slices ? region.template load_as<float2>(2 * (place * slices + slice)) : float2{0, 0};
      }
    }
  };
};

}  // namespace sf::cuda

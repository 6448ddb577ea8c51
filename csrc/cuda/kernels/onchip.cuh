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

  // Puts the parts of sums over rows where they are read, see row_totals.cuh.
  struct RowParts {
    Shared<float> region;

    SF_DEVICE RowParts(Shared<float> parts, const LaunchArgs&) : region(parts) {}
    SF_DEVICE void put(int at, float2 v) const { region.store_as(at, v); }
    SF_DEVICE void wait() const { cta_sync(); }
  };
};

}  // namespace sf::cuda

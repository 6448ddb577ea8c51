// Regime 1: one block holds all of R; the next operand is written where the product reads it, and one barrier a step
// stands between.
#pragma once

#include "exchange.cuh"

namespace sf::cuda {

template <class S>
struct Onchip {
  Operand<S> operand;

  SF_DEVICE Onchip(Carve& carve, const Sweep& a, const Lane<S>&) : operand(carve, a) {}
  SF_DEVICE void begin() const { cta_sync(); }
  SF_DEVICE void wait(const Lane<S>&, int step, int, int tile) const {
    if (tile == 0 && step > 0) cta_sync();
  }
  SF_DEVICE void put(const Lane<S>&, int step, int tile, int column, int unit, const float (&v)[S::kOperands]) const {
    store_split<S>(operand.region, v,
                   [&](int plane) { return operand.row(step, tile, plane, column) + unit * S::kOperands; });
  }
  SF_DEVICE void send(const Lane<S>&, int, int) const {}
  SF_DEVICE void end() const {}
};

}  // namespace sf::cuda

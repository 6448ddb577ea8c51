// find_kernel() finds the recurrent kernel for a plan. Its search names every kernel that a plan can choose, so that
// the source file that includes this header compiles all of them, and no other.
#pragma once

#include <utility>

#include "cluster.cuh"
#include "grid.cuh"
#include "kernels.h"
#include "onchip.cuh"
#include "recurrence.cuh"

namespace sf::cuda {

#ifdef SF_EVERY_REGIME  // set for tests/cuda/simt, whose devices are so small that any tiling may take several blocks
constexpr bool kEveryRegime = true;
#else
constexpr bool kEveryRegime = false;
#endif

template <class Cell, class Math, Pass kPass, int kIndex>
RecurrentKernel kernel_of(Tiling wanted, Regime regime) {
  constexpr Tiling kTiling = tilings(Cell::kGates, Math::kPrecision).first[kIndex];
  using S = Shape<Cell, Math, kTiling.splits, kTiling.k_tiles, kPass>;
  if (wanted.splits != kTiling.splits || wanted.k_tiles != kTiling.k_tiles) return nullptr;
  if constexpr (kEveryRegime || reachable(Cell::kGates, Math::kPrecision, kTiling, Regime::kOnchip)) {
    if (regime == Regime::kOnchip) return recur<S, Onchip>;
  }
  if constexpr (kEveryRegime || reachable(Cell::kGates, Math::kPrecision, kTiling, Regime::kCluster)) {
    if (regime == Regime::kCluster) return recur<S, Cluster>;
  }
  if constexpr (kEveryRegime || reachable(Cell::kGates, Math::kPrecision, kTiling, Regime::kGrid)) {
    if (regime == Regime::kGrid) return recur<S, Grid>;
  }
  return nullptr;
}

template <class Cell, class Math, Pass kPass, int... kIndex>
RecurrentKernel kernel_of_any(Tiling tiling, Regime regime, std::integer_sequence<int, kIndex...>) {
  RecurrentKernel found = nullptr;
  ((found = found ? found : kernel_of<Cell, Math, kPass, kIndex>(tiling, regime)), ...);
  return found;
}

template <class Math>
RecurrentKernel find_kernel(int cell, Pass pass, Tiling tiling, Regime regime) {
  switch (cell) {
#define SF_CASE(name, Cell)                                                                           \
  case kCell_##name: {                                                                                \
    constexpr std::make_integer_sequence<int, tilings(Cell::kGates, Math::kPrecision).count> kAll{};  \
    return pass == Pass::kForward ? kernel_of_any<Cell, Math, Pass::kForward>(tiling, regime, kAll)   \
                                  : kernel_of_any<Cell, Math, Pass::kBackward>(tiling, regime, kAll); \
  }
    SF_CELLS(SF_CASE)
#undef SF_CASE
  }
  return nullptr;
}

}  // namespace sf::cuda

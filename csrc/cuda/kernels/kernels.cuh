// find_kernel() finds the recurrent kernel for a plan. Its search names every kernel that a plan can choose, so that
// the source file that includes this header compiles all of them, and no other.
#pragma once

#include <type_traits>
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

template <class Cell, class Math, Pass kPass, bool kOptions, int kIndex>
RecurrentKernel kernel_of(Tiling wanted, Regime regime) {
  constexpr Tiling kTiling = tilings(Cell::kGates, Math::kPrecision).first[kIndex];
  using S = Shape<Cell, Math, kTiling.splits, kTiling.k_tiles, kPass, kOptions>;
  if (wanted.splits != kTiling.splits || wanted.k_tiles != kTiling.k_tiles) return nullptr;
  if constexpr (kEveryRegime || reachable(Cell::kGates, Math::kPrecision, kTiling, Regime::kOnchip)) {
    if (regime == Regime::kOnchip) return recur<S, Onchip>;
  }
  if constexpr (!S::kMeets && (kEveryRegime || reachable(Cell::kGates, Math::kPrecision, kTiling, Regime::kCluster))) {
    if (regime == Regime::kCluster) return recur<S, Cluster>;
  }
  if constexpr (kEveryRegime || reachable(Cell::kGates, Math::kPrecision, kTiling, Regime::kGrid)) {
    if (regime == Regime::kGrid) return recur<S, Grid>;
  }
  return nullptr;
}

template <class Cell, class Math, Pass kPass, bool kOptions, int... kIndex>
RecurrentKernel kernel_of_any(Tiling tiling, Regime regime, std::integer_sequence<int, kIndex...>) {
  RecurrentKernel found = nullptr;
  ((found = found ? found : kernel_of<Cell, Math, kPass, kOptions, kIndex>(tiling, regime)), ...);
  return found;
}

template <class Cell, class Math, bool kOptions>
RecurrentKernel kernel_of_cell(Pass pass, Tiling tiling, Regime regime) {
  constexpr std::make_integer_sequence<int, tilings(Cell::kGates, Math::kPrecision).count> kAll{};
  return pass == Pass::kForward ? kernel_of_any<Cell, Math, Pass::kForward, kOptions>(tiling, regime, kAll)
                                : kernel_of_any<Cell, Math, Pass::kBackward, kOptions>(tiling, regime, kAll);
}

// The cell whose kernel runs an option: the variant with options looks at run time whether there are peepholes.
template <class Cell>
using RecurrentCell = std::conditional_t<OptionsOf<Cell>::kPeephole, typename OptionsOf<Cell>::Base, Cell>;

template <class Math>
RecurrentKernel find_kernel(int cell, Pass pass, Tiling tiling, Regime regime, Options options) {
  switch (cell) {
#define SF_CASE(name, Cell)                                                                    \
  case kCell_##name:                                                                           \
    return options == Options::kNone ? kernel_of_cell<Cell, Math, false>(pass, tiling, regime) \
                                     : kernel_of_cell<Cell, Math, true>(pass, tiling, regime);
    SF_CELLS(SF_CASE)
#undef SF_CASE
#define SF_CASE(name, Cell) \
  case kCell_##name:        \
    return kernel_of_cell<RecurrentCell<Cell>, Math, true>(pass, tiling, regime);
    SF_OPTION_CELLS(SF_CASE)
#undef SF_CASE
  }
  return nullptr;
}

}  // namespace sf::cuda

// The kernel that copies R into the order in which a recurrent kernel loads it into its registers, as fragments. Rows
// and columns beyond H are zeros, so that the recurrent kernels need no checks of bounds in their products.
#pragma once

#include "elements.cuh"
#include "../launch_args.h"

namespace sf::cuda {

// R, or R^T in the backward, in the order in which WeightFragments loads it: (directions, blocks, warps, m-tiles,
// k-tiles, planes, 32 lanes).
struct PackWeights {
  Matrix w_hh[kMaxDirections];
  uint4* to;
  int directions, gates, warps, blocks, splits, hidden_tiles;
  Pass pass;
  int64_t H;
};

template <class Math>
SF_KERNEL(kBlockThreads)
pack_weights(SF_PARAMETER PackWeights a) {
  using Element = typename Math::Element;
  constexpr int kPlanes = planes(Math::kPrecision), kTileUnits = k_tile_units(Math::kPrecision);
  constexpr int kPerRegister = 4 / sizeof(Element);
  const int k_tiles = a.hidden_tiles * operands(a.pass, a.gates), tiles = m_tiles(a.pass, a.gates);
  const int64_t count = static_cast<int64_t>(a.directions) * a.blocks * a.warps * tiles * k_tiles * 32;
  for (int64_t i = global_thread(); i < count; i += all_threads()) {
    const int lane = static_cast<int>(i % 32), k_tile = static_cast<int>(i / 32 % k_tiles);
    const int m_tile = static_cast<int>(i / 32 / k_tiles % tiles);
    const int64_t warp = i / 32 / k_tiles / tiles;
    const int split = static_cast<int>(warp % a.warps % a.splits);
    const int group = static_cast<int>(warp / a.warps % a.blocks * (a.warps / a.splits) + warp % a.warps / a.splits);
    const Matrix& w = a.w_hh[warp / a.warps / a.blocks];
    uint32_t words[kPlanes][4];
    for (int reg = 0; reg < 4; ++reg) {
      Element elements[kPlanes][kPerRegister];
      for (int e = 0; e < kPerRegister; ++e) {
        const int64_t unit = group * kGroupUnits + lane / 4 + 8 * (reg & 1);
        const int in_k = (split * k_tiles + k_tile) * kTileUnits + (lane % 4 + 4 * (reg >> 1)) * kPerRegister + e;
        const bool forward = a.pass == Pass::kForward;
        const int values = operands(a.pass, a.gates);
        const int64_t other = in_k / values;  // the unit whose value or gradient this weight is multiplied by
        const int64_t gate = forward ? m_tile : in_k % values;
        const int64_t row = gate * a.H + (forward ? unit : other), column = forward ? other : unit;
        float value = 0;
        if (unit < a.H && other < a.H) {
          const auto* data = reinterpret_cast<const typename Math::Storage*>(w.data);
          value = Math::widen(data[row * w.row_stride + column * w.column_stride]);
        }
        Element split_value[kPlanes];
        Math::split(value, split_value);
        for (int plane = 0; plane < kPlanes; ++plane) elements[plane][e] = split_value[plane];
      }
      for (int plane = 0; plane < kPlanes; ++plane) {
        uint32_t word = 0;
        for (int e = 0; e < kPerRegister; ++e) word |= element_bits(elements[plane][e]) << (16 * e);
        words[plane][reg] = word;
      }
    }
    for (int plane = 0; plane < kPlanes; ++plane) {
      const uint4 v{words[plane][0], words[plane][1], words[plane][2], words[plane][3]};
      a.to[(i / 32 * kPlanes + plane) * 32 + lane] = v;
    }
  }
}

}  // namespace sf::cuda

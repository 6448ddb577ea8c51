// Weights as the tiles want them: per block of kLanes columns one panel [ceil(K / kPack)][groups][kLanes * kPack], read
// front to back once per tile. Lanes and ks beyond the matrix are zero.
#pragma once

#include "tile.h"

namespace sf {
namespace {

// The source: element (k, group, column).
struct PackSource {
  const char* data;
  Dtype dtype;
  int64_t k_stride, column_stride, group_stride;  // in elements
  int64_t K, columns;
  int groups;
};

template <class F>
int64_t panel_size(int64_t K, int groups) {
  return (K + F::kPack - 1) / F::kPack * groups * F::kLanes * F::kPack;
}
template <class F>
int64_t blocks_of(int64_t columns) {
  return (columns + F::kLanes - 1) / F::kLanes;
}
template <class F>
int64_t packed_size(const PackSource& s) {  // in elements of F::E
  return blocks_of<F>(s.columns) * panel_size<F>(s.K, s.groups);
}

template <class E, Dtype D>
SF_FN E pack_value(const char* data, int64_t index) {
  const auto* p = reinterpret_cast<const typename Storage<D>::Type*>(data) + index;
  if constexpr (sizeof(E) == 2) {
    return *reinterpret_cast<const E*>(p);
  } else {
    return static_cast<E>(Storage<D>::load(p));
  }
}

template <class F, Dtype D>
void pack_as(const PackSource& s, typename F::E* to) {
  using E = typename F::E;
  constexpr int kWidth = F::kLanes * F::kPack;
  const int64_t panel = panel_size<F>(s.K, s.groups), step = s.groups * kWidth;
  for (int64_t block = 0; block < blocks_of<F>(s.columns); ++block) {
    const int64_t first = block * F::kLanes;
    const int lanes = static_cast<int>(s.columns - first < F::kLanes ? s.columns - first : F::kLanes);
    for (int g = 0; g < s.groups; ++g) {
      const int64_t base = g * s.group_stride + first * s.column_stride;
      E* out = to + block * panel + g * kWidth;
#if defined(__AVX512F__)
      if constexpr (D == Dtype::kFloat32 && F::kPack == 1) {
        const __m512i index =
            _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                               _mm512_set1_epi32(static_cast<int>(s.column_stride)));
        const __mmask16 mask = static_cast<__mmask16>((1u << lanes) - 1);
        const float* from = reinterpret_cast<const float*>(s.data) + base;
        if (s.column_stride < (1 << 27)) {
          for (int64_t k = 0; k < s.K; ++k) {
            const float* p = from + k * s.k_stride;
            store(out + k * step, s.column_stride == 1
                                      ? load(p, lanes)
                                      : (FloatVec)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, index, p, 4));
          }
          continue;
        }
      }
#endif
      for (int64_t k = 0; k < (s.K + F::kPack - 1) / F::kPack * F::kPack; ++k) {
        E* line = out + k / F::kPack * step + k % F::kPack;
        const int filled = k < s.K ? lanes : 0;
        for (int lane = 0; lane < filled; ++lane) {
          line[lane * F::kPack] = pack_value<E, D>(s.data, base + k * s.k_stride + lane * s.column_stride);
        }
        for (int lane = filled; lane < F::kLanes; ++lane) line[lane * F::kPack] = E(0);
      }
    }
  }
}

template <class F>
void pack(const PackSource& s, typename F::E* to) {
  if constexpr (sizeof(typename F::A) == 8) {
    pack_as<F, Dtype::kFloat64>(s, to);
  } else if constexpr (F::kPack == 2) {
    pack_as<F, Dtype::kBFloat16>(s, to);
  } else {
    switch (s.dtype) {
      case Dtype::kFloat32:
        return pack_as<F, Dtype::kFloat32>(s, to);
      case Dtype::kBFloat16:
        return pack_as<F, Dtype::kBFloat16>(s, to);
      case Dtype::kFloat16:
        return pack_as<F, Dtype::kFloat16>(s, to);
      case Dtype::kFloat64:
        return;  // never with float as the compute type
    }
  }
}

// What each slot starts from, [blocks][kSlots][kLanes]: both biases where a gate's two sums share the slot.
template <class F, class Cell>
void pack_bias(const Layer& layer, int d, typename F::A* to) {
  using A = typename F::A;
  auto value = [&](const Matrix& bias, int64_t index) {
    A v = 0;
    if (bias.data) read_row<A>(layer.dtype, bias.data + index * bias.row_stride * size_of(layer.dtype), 1, &v, 1);
    return v;
  };
  const int64_t blocks = blocks_of<F>(layer.H);
  for (int64_t i = 0; i < blocks * Cell::kSlots * F::kLanes; ++i) to[i] = 0;
  for (int g = 0; g < Cell::kGates; ++g) {
    for (int64_t unit = 0; unit < layer.H; ++unit) {
      A* line = to + unit / F::kLanes * Cell::kSlots * F::kLanes + unit % F::kLanes;
      line[g * F::kLanes] += value(layer.b_ih[d], g * layer.H + unit);
      line[Cell::hidden_slot(g) * F::kLanes] += value(layer.b_hh[d], g * layer.H + unit);
    }
  }
}

}  // namespace
}  // namespace sf

// Packs weights for the tiles: each block of kLanes columns becomes one panel [lines][groups][kLanes * kPack], which a
// tile reads from front to back. A line holds kPack neighbouring k. Lanes and ks beyond the matrix are zero.
#pragma once

#include "tile.h"

namespace sf {
namespace {

// A weight matrix as a source of elements (k, group, column).
struct PackSource {
  const char* data;
  Dtype dtype;
  int64_t k_stride, column_stride, group_stride;  // in elements
  int64_t K, columns;
  int groups;
  int parts = 1;  // k is cut into so many equal parts, each of which has lines of its own
};

template <class Cell>
PackSource input_weights(const Layer& l, int d) {  // k runs over the input's features
  const Matrix& w = l.w_ih[d];
  return {w.data, l.dtype, w.column_stride, w.row_stride, l.H * w.row_stride, l.features(), l.H, Cell::kGates};
}
template <class Cell>
PackSource hidden_weights(const Layer& l, int d) {  // k runs over the values of the previous h
  const Matrix& w = l.w_hh[d];
  return {w.data, l.dtype, w.column_stride, w.row_stride, l.H * w.row_stride, l.out(), l.H, Cell::kGates};
}
PackSource projection(const Layer& l, int d) {
  const Matrix& w = l.w_hr[d];
  return {w.data, l.dtype, w.column_stride, w.row_stride, 0, l.H, l.P, 1};
}
// The same matrices transposed, for gradients: k runs over the rows.
template <class Cell>
PackSource input_weights_back(const Layer& l, int d) {
  const Matrix& w = l.w_ih[d];
  return {w.data, l.dtype, w.row_stride, w.column_stride, 0, Cell::kGates * l.H, l.features(), 1};
}
template <class Cell>
PackSource hidden_weights_back(const Layer& l, int d) {
  const Matrix& w = l.w_hh[d];
  return {w.data, l.dtype, w.row_stride, w.column_stride, 0, Cell::kGates * l.H, l.out(), 1, Cell::kGates};
}
PackSource projection_back(const Layer& l, int d) {
  const Matrix& w = l.w_hr[d];
  return {w.data, l.dtype, w.row_stride, w.column_stride, 0, l.P, l.H, 1};
}

template <class F>
constexpr int64_t lines_of(int64_t K) {
  constexpr int64_t kTogether = F::kPack * F::kPanelLines;
  return (K + kTogether - 1) / kTogether * F::kPanelLines;
}
template <class F>
int64_t panel_size(int64_t K, int groups) {
  return lines_of<F>(K) * groups * F::kLanes * F::kPack;
}
template <class F>
int64_t blocks_of(int64_t columns) {
  return (columns + F::kLanes - 1) / F::kLanes;
}
template <class F>
int64_t panel_size(const PackSource& s) {
  return s.parts * panel_size<F>(s.K / s.parts, s.groups);
}
template <class F>
int64_t packed_size(const PackSource& s) {  // in elements of F::E
  return blocks_of<F>(s.columns) * panel_size<F>(s);
}

// n numbers of type d from `index` on, `stride` apart, with zeros after them.
template <class F>
SF_FN typename F::V read_line(Dtype d, const char* data, int64_t index, int64_t stride, int n) {
  using A = typename F::A;
  if (d == dtype_of<A>() && stride == 1) return F::read(reinterpret_cast<const A*>(data) + index, n);
  A line[F::kLanes];
  read_row<A>(d, data + index * size_of(d), stride, line, n);
  return F::read(line, n);
}

// Transposes a square of kLanes vectors. Each round interleaves the vectors of the square's first half with those of
// its second half. After log2(kLanes) rounds the square is transposed.
template <class F>
SF_FN void transpose(typename F::V (&square)[F::kLanes]) {
  constexpr int kL = F::kLanes;
#pragma GCC unroll 4
  for (int size = 1; size < kL; size *= 2) {
    typename F::V next[kL];
#pragma GCC unroll 8
    for (int i = 0; i < kL / 2; ++i) {
      next[2 * i] = interleave_low(square[i], square[i + kL / 2]);
      next[2 * i + 1] = interleave_high(square[i], square[i + kL / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kL; ++i) square[i] = next[i];
  }
}

// Reads a square of kLanes x kLanes numbers, transposed: lane i of line k is number k of row(i). With floats, the loads
// and in-lane shuffles do most of the work, which are faster than the shuffles of transpose().
template <class F, class RowOf>
SF_FN void read_square(RowOf row, typename F::V (&lines)[F::kLanes]) {
#if defined(__AVX512F__)
  if constexpr (F::kLanes == 16) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m512 of[2][4];  // four numbers each of rows i, i + 8, i + 4, i + 12
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const auto pair = [&](int first, int second) __attribute__((always_inline)) {
          return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(row(first) + 8 * half)),
                                    _mm256_loadu_ps(row(second) + 8 * half), 1);
        };
        const __m512 low = pair(i, i + 4), high = pair(i + 8, i + 12);
        of[0][i] = _mm512_shuffle_f32x4(low, high, 0x88);
        of[1][i] = _mm512_shuffle_f32x4(low, high, 0xdd);
      }
#pragma GCC unroll 2
      for (int quarter = 0; quarter < 2; ++quarter) {
        const __m512* r = of[quarter];
        const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(r[0], r[1])),
                      high01 = _mm512_castps_pd(_mm512_unpackhi_ps(r[0], r[1])),
                      low23 = _mm512_castps_pd(_mm512_unpacklo_ps(r[2], r[3])),
                      high23 = _mm512_castps_pd(_mm512_unpackhi_ps(r[2], r[3]));
        typename F::V* to = lines + 8 * half + 4 * quarter;
        to[0] = (typename F::V)_mm512_unpacklo_pd(low01, low23);
        to[1] = (typename F::V)_mm512_unpackhi_pd(low01, low23);
        to[2] = (typename F::V)_mm512_unpacklo_pd(high01, high23);
        to[3] = (typename F::V)_mm512_unpackhi_pd(high01, high23);
      }
    }
    return;
  }
#elif defined(__AVX2__)
  if constexpr (F::kLanes == 8) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m256 of[4];  // four numbers each of rows i and i + 4
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        of[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(row(i) + 4 * half)),
                                     _mm_loadu_ps(row(i + 4) + 4 * half), 1);
      }
      const __m256d low01 = _mm256_castps_pd(_mm256_unpacklo_ps(of[0], of[1])),
                    high01 = _mm256_castps_pd(_mm256_unpackhi_ps(of[0], of[1])),
                    low23 = _mm256_castps_pd(_mm256_unpacklo_ps(of[2], of[3])),
                    high23 = _mm256_castps_pd(_mm256_unpackhi_ps(of[2], of[3]));
      typename F::V* to = lines + 4 * half;
      to[0] = (typename F::V)_mm256_unpacklo_pd(low01, low23);
      to[1] = (typename F::V)_mm256_unpackhi_pd(low01, low23);
      to[2] = (typename F::V)_mm256_unpacklo_pd(high01, high23);
      to[3] = (typename F::V)_mm256_unpackhi_pd(high01, high23);
    }
    return;
  }
#endif
#pragma GCC unroll 16
  for (int i = 0; i < F::kLanes; ++i) lines[i] = load(row(i));
  transpose<F>(lines);
}

// Packs one group of one block, one line per k, `step` elements apart.
template <class F>
void pack_lines(const PackSource& s, int64_t base, int lanes, int64_t step, typename F::A* out) {
  constexpr int kL = F::kLanes;
  if (s.column_stride == 1) {
    for (int64_t k = 0; k < s.K; ++k)
      store(out + k * step, read_line<F>(s.dtype, s.data, base + k * s.k_stride, 1, lanes));
    return;
  }
  int64_t k = 0;
  if (s.dtype == dtype_of<typename F::A>() && s.k_stride == 1 && lanes == kL) {
    for (; k + kL <= s.K; k += kL) {
      const auto* from = reinterpret_cast<const typename F::A*>(s.data) + base + k;
      typename F::V square[kL];
      read_square<F>([&](int i) { return from + i * s.column_stride; }, square);
#pragma GCC unroll 16
      for (int i = 0; i < kL; ++i) store(out + (k + i) * step, square[i]);
    }
  }
  for (; k < s.K; k += kL) {
    const int n = static_cast<int>(s.K - k < kL ? s.K - k : kL);
    typename F::V square[kL];
    for (int lane = 0; lane < kL; ++lane) {
      const int64_t index = base + k * s.k_stride + lane * s.column_stride;
      square[lane] = lane < lanes ? read_line<F>(s.dtype, s.data, index, s.k_stride, n) : typename F::V{};
    }
    transpose<F>(square);
    for (int i = 0; i < n; ++i) store(out + (k + i) * step, square[i]);
  }
}

// The same for formats with kPack > 1: a lane holds kPack elements of neighbouring k, which are copied as they are.
template <class F>
void pack_bits(const PackSource& s, int64_t base, int lanes, int64_t step, typename F::E* out) {
  using E = typename F::E;
  const int64_t K = s.K / s.parts, lines = lines_of<F>(K);
  for (int64_t part = 0; part < s.parts; ++part, out += lines * step) {
    for (int64_t k = 0; k < lines * F::kPack; ++k) {
      E* line = out + k / F::kPack * step + k % F::kPack;
      const int filled = k < K ? lanes : 0;
      const E* from = reinterpret_cast<const E*>(s.data) + base + (part * K + k) * s.k_stride;
      for (int lane = 0; lane < filled; ++lane) line[lane * F::kPack] = from[lane * s.column_stride];
      for (int lane = filled; lane < F::kLanes; ++lane) line[lane * F::kPack] = E(0);
    }
  }
}

// Packs the blocks [begin, end).
template <class F>
void pack(const PackSource& s, typename F::E* to, int64_t begin, int64_t end) {
  constexpr int kWidth = F::kLanes * F::kPack;
  const int64_t panel = panel_size<F>(s), step = s.groups * kWidth;
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * F::kLanes;
    const int lanes = static_cast<int>(s.columns - first < F::kLanes ? s.columns - first : F::kLanes);
    for (int g = 0; g < s.groups; ++g) {
      const int64_t base = g * s.group_stride + first * s.column_stride;
      typename F::E* out = to + (block - begin) * panel + g * kWidth;
      if constexpr (F::kPack == 1) {
        pack_lines<F>(s, base, lanes, step, out);
      } else {
        pack_bits<F>(s, base, lanes, step, out);
      }
    }
  }
}

template <class F>
void pack(const PackSource& s, typename F::E* to) {
  pack<F>(s, to, 0, blocks_of<F>(s.columns));
}

// Packs the biases as [blocks][kSlots][kLanes], the values that are added to the slots' sums over the input: both
// biases of a gate where its two sums share a slot.
template <class F, class Cell>
void pack_bias(const Layer& layer, int d, typename F::A* to) {
  constexpr int kL = F::kLanes;
  const int64_t blocks = blocks_of<F>(layer.H);
  for (int64_t i = 0; i < blocks * Cell::kSlots * kL; ++i) to[i] = 0;
  if (!layer.b_ih[d].data) return;
  const auto add = [&](const Matrix& bias, int64_t index, int n, typename F::A* line) {
    store(line, load(line) + read_line<Plain<typename F::A>>(layer.dtype, bias.data, index * bias.row_stride,
                                                             bias.row_stride, n));
  };
  for (int g = 0; g < Cell::kGates; ++g) {
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t unit = block * kL;
      const int n = static_cast<int>(layer.H - unit < kL ? layer.H - unit : kL);
      typename F::A* line = to + block * Cell::kSlots * kL;
      add(layer.b_ih[d], g * layer.H + unit, n, line + g * kL);
      add(layer.b_hh[d], g * layer.H + unit, n, line + Cell::hidden_slot(g) * kL);
    }
  }
}

}  // namespace
}  // namespace sf

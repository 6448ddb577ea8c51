// What the two passes of row-wise layers share: weights of the units as vectors, masks, and normalised rows.
// A row of sums is [blocks][gates][kLanes], as a product writes it; lanes beyond the hidden units are zero.
#pragma once

#include "convert.h"
#include "pack.h"
#include "scratch.h"

#include "../../core/cells.h"  // after vec.h, whose vectors the formulas are compiled for

namespace sf {
namespace {

template <class Cell>
struct RowShape : OptionsOf<Cell>, NormBlocks<OptionsOf<Cell>::Base::kGates> {
  using Base = typename OptionsOf<Cell>::Base;
  static constexpr int kGates = Base::kGates, kBaseSaved = Base::kSaved;
  // Where the parts of a row of saved values begin: the centred sums of the input and of the state, and the inverse
  // deviations of their blocks.
  static SF_FN int64_t centred_x(int64_t units) { return kBaseSaved * units; }
  static SF_FN int64_t centred_h(int64_t units) { return (kBaseSaved + kGates) * units; }
  static SF_FN int64_t inverses(int64_t units) { return (kBaseSaved + 2 * kGates) * units; }
};

// The lanes of a vector of units that lie within `width`.
template <class F>
SF_FN int lanes(int64_t unit, int64_t width) {
  return static_cast<int>(width - unit < F::kLanes ? width - unit : F::kLanes);
}

// The rows of a further weight as [blocks][rows][kLanes].
template <class F>
void read_further(const Layer& l, const Matrix& from, typename F::A* to) {
  constexpr int kL = F::kLanes;
  using A = typename F::A;
  for (int64_t block = 0; block < blocks_of<F>(l.H); ++block) {
    const int n = lanes<F>(block * kL, l.H);
    for (int64_t row = 0; row < from.rows; ++row) {
      const int64_t index = row * from.row_stride + block * kL * from.column_stride;
      store(to + (block * from.rows + row) * kL, read_line<Plain<A>>(l.dtype, from.data, index, from.column_stride, n));
    }
  }
}

// The options of a vector of units. mask: of the candidate, for a whole row, or null; weights: those by which the gates
// see c, as read_further() leaves them. `seen` is memory for them.
template <bool kPeephole, class V, class A>
SF_FN UnitOptions<V, kPeephole> unit_options(int64_t block, const A* mask, const A* weights, V (&seen)[3]) {
  constexpr int64_t kL = sizeof(V) / sizeof(A);
  if constexpr (kPeephole) {
    for (int k = 0; k < 3; ++k) seen[k] = load(weights + (block * 3 + k) * kL);
  }
  return {mask ? load(mask + block * kL) : V{} + 1, seen};
}

// Draws the mask of one row and step: `kept` where a unit is kept, 0 where it is dropped.
template <class A>
void draw_mask(const Noise& noise, Masked masked, int direction, int64_t b, int64_t t, A kept, A* to, int64_t n) {
  const NoiseKey key = noise_key(*noise.seed, masked, direction, b, t);
  const uint32_t threshold = noise_threshold(noise.rate(masked));
  for (int64_t u = 0; u < n; ++u) to[u] = noise_word(key, static_cast<uint32_t>(u)) < threshold ? A(0) : kept;
}

// The factor by which a mask of dropout scales what it keeps.
template <class A>
A kept_scale(double rate) {
  return static_cast<A>(1 / (1 - rate));
}

// Zoneout of one vector: in training `mask` says which units are new, in evaluation the states are mixed.
template <class V, class A>
SF_FN V zoned_out(V fresh, V old, const A* mask, A rate) {
  if (mask) return select(load(mask) > 0, fresh, old);
  return fma(V{} + (1 - rate), fresh, old * rate);
}

// The sum of all lanes, in their order.
template <class A, class V>
SF_FN A sum_of_lanes(V v) {
  A sum = 0;
  for (unsigned i = 0; i < sizeof(V) / sizeof(A); ++i) sum += v[i];
  return sum;
}

// v, with zeros in the lanes beyond the layer.
template <class F>
SF_FN typename F::V within(typename F::V v, int n) {
  using A = typename F::A;
  if (n >= F::kLanes) return v;
  alignas(SF_VECTOR_BYTES) A line[F::kLanes];
  store(line, v);
  return Plain<A>::read(line, n);
}

// Visits the vectors of the gates [first, last) of a row of sums: function(index of the vector, lanes within the
// layer).
template <class F, class Function>
SF_FN void for_gate_vectors(int64_t H, int gates, int first, int last, Function&& function) {
  for (int64_t block = 0; block < blocks_of<F>(H); ++block) {
    const int n = lanes<F>(block * F::kLanes, H);
    for (int g = first; g < last; ++g) function(block * gates + g, n);
  }
}

// Normalises gates of a row of sums, the units of all of them together. Writes the differences from the mean, zero
// beyond the layer, and returns the inverse of the deviation: a normalised value is the product of the two.
template <class F>
typename F::A centre(const typename F::A* from, typename F::A* to, int64_t H, int gates, int first, int last) {
  using V = typename F::V;
  using A = typename F::A;
  constexpr int kL = F::kLanes;
  const A count = static_cast<A>(H * (last - first));
  V sum{};
  for_gate_vectors<F>(H, gates, first, last, [&](int64_t i, int) { sum += load(from + i * kL); });
  const A mean = sum_of_lanes<A>(sum) / count;
  V squares{};
  for_gate_vectors<F>(H, gates, first, last, [&](int64_t i, int n) {
    const V centred = within<F>(load(from + i * kL) - mean, n);
    store(to + i * kL, centred);
    squares = fma(centred, centred, squares);
  });
  const A variance = sum_of_lanes<A>(squares) / count + static_cast<A>(kNormEpsilon);
  return 1 / (sizeof(A) == 8 ? static_cast<A>(__builtin_sqrt(variance)) : __builtin_sqrtf(variance));
}

// The gradients of the sums from those of the normalised values: inverse * (d - mean(d) - normed * mean(d * normed)).
// take(index of the vector, lanes within the layer) returns d, zero beyond the layer, which is kept in `d`;
// write(index of the vector, lanes, gradient) takes the results.
template <class F, class Take, class Write>
void centre_backward(typename F::A* d, const typename F::A* centred, typename F::A inverse, int64_t H, int gates,
                     int first, int last, Take&& take, Write&& write) {
  using V = typename F::V;
  using A = typename F::A;
  constexpr int kL = F::kLanes;
  V sum{}, products{};
  for_gate_vectors<F>(H, gates, first, last, [&](int64_t i, int n) {
    const V taken = take(i, n);
    store(d + i * kL, taken);
    sum += taken;
    products = fma(taken, load(centred + i * kL), products);
  });
  const A count = static_cast<A>(H * (last - first));
  const A mean = sum_of_lanes<A>(sum) / count, slope = sum_of_lanes<A>(products) / count * inverse * inverse;
  for_gate_vectors<F>(H, gates, first, last, [&](int64_t i, int n) {
    write(i, n, (load(d + i * kL) - mean - load(centred + i * kL) * slope) * inverse);
  });
}

}  // namespace
}  // namespace sf

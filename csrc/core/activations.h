// sigmoid, tanh and e^x for every value type. All are computed from 2^t = s (1 + q). q is kept apart from the 1, since
// their sum would lose digits where q is small. So tanh is exact to about 2 units in the last place near 0 too.
// For vectors include csrc/cpu/kernels/vec.h before this file: the functions called below are found for compiler
// vectors only if they were declared before.
#pragma once

#include "math.h"

namespace sf {

// Chebyshev fits of (2^r - 1) / r on [-1/2, 1/2]: relative error 1.2e-8 and 2.7e-19.
template <class T>
struct Exp2Poly;
template <>
struct Exp2Poly<float> {
  static constexpr double kLargest = 126;  // 2^x is a normal number for all x from -kLargest to kLargest
  static constexpr int kTerms = 6;
  static constexpr float kC[kTerms] = {0x1.62e430p-1f, 0x1.ebfbe0p-3f,  0x1.c6af6cp-5f,
                                       0x1.3b2a54p-7f, 0x1.5f0890p-10f, 0x1.44138ap-13f};
};
template <>
struct Exp2Poly<double> {
  static constexpr double kLargest = 1022;
  static constexpr int kTerms = 12;
  static constexpr double kC[kTerms] = {0x1.62e42fefa39efp-1,  0x1.ebfbdff82c58fp-3,  0x1.c6b08d704a0c6p-5,
                                        0x1.3b2ab6fba4e79p-7,  0x1.5d87fe78a3f9cp-10, 0x1.430912f86b7dbp-13,
                                        0x1.ffcbfc6da6ed1p-17, 0x1.62c02242b879cp-20, 0x1.b524ebd13a55fp-24,
                                        0x1.e4cf10dec0f59p-28, 0x1.e9ec1fcb69a7fp-32, 0x1.c4a29324a1038p-36};
};

// 2^(scale x) = s (1 + q), with scale x clamped to [-limit, limit].
template <class V>
struct Exp2Split {
  V s, q;
};
template <class V>
SF_FN Exp2Split<V> exp2_split(V x, double scale, double limit) {
  using T = typename ScalarOf<V>::Type;
  using Poly = Exp2Poly<T>;
  const T k = static_cast<T>(scale), bound = static_cast<T>(limit / (scale < 0 ? -scale : scale));
  x = clamp(x, -bound, bound);
  const V n = nearest(x * k);
  const V r = fma(x, V{} + k, -n);
  V p = V{} + Poly::kC[Poly::kTerms - 1];
#pragma GCC unroll 16
  for (int i = Poly::kTerms - 2; i >= 0; --i) p = fma(p, r, V{} + Poly::kC[i]);
  return {pow2(n), p * r};
}

constexpr double kLog2e = 1.4426950408889634;

template <class V>
SF_FN V sigmoid(V x) {  // 1 / (1 + 2^(-x log2 e)), and 0 where that is not a normal number
  using T = typename ScalarOf<V>::Type;
  constexpr double kLargest = Exp2Poly<T>::kLargest;
  const Exp2Split<V> e = exp2_split(x, -kLog2e, kLargest);
  return select(x < static_cast<T>(-kLargest / kLog2e), V{}, T(1) / (T(1) + fma(e.s, e.q, e.s)));
}

template <class V>
SF_FN V tanh(V x) {  // m / (m + 2) with m = e^(2x) - 1
  using T = typename ScalarOf<V>::Type;
  const Exp2Split<V> e = exp2_split(x, 2 * kLog2e, 64.0);
  const V m = fma(e.s, e.q, e.s - T(1));
  return m / (m + T(2));
}

template <class V>
SF_FN V exp(V x) {  // e^x for x up to kLargest / log2 e, and 0 where that is not a normal number
  using T = typename ScalarOf<V>::Type;
  constexpr double kLargest = Exp2Poly<T>::kLargest;
  const Exp2Split<V> e = exp2_split(x, kLog2e, kLargest);
  return select(x < static_cast<T>(-kLargest / kLog2e), V{}, fma(e.s, e.q, e.s));
}

}  // namespace sf

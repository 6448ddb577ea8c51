// The operations that the cells are written with, here for float and double. csrc/cpu/kernels/vec.h has the same
// operations for vectors. They are builtins of the compiler and not functions of the standard library, because this
// file is compiled once per instruction set (see csrc/cpu/kernels/kernels.cpp).
#pragma once

// A function that is always inlined, on a GPU too.
#ifdef __CUDACC__
#define SF_FN __host__ __device__ __forceinline__
#else
#define SF_FN inline __attribute__((always_inline))
#endif

namespace sf {

template <class V>
struct ScalarOf {};
template <>
struct ScalarOf<float> {
  using Type = float;
};
template <>
struct ScalarOf<double> {
  using Type = double;
};

// clamp() returns NaN for NaN. The argument of pow2() is a whole number whose power is a normal number of its type.
SF_FN float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
SF_FN double fma(double a, double b, double c) { return __builtin_fma(a, b, c); }
SF_FN float nearest(float x) { return __builtin_rintf(x); }
SF_FN double nearest(double x) { return __builtin_rint(x); }
SF_FN float pow2(float n) { return __builtin_ldexpf(1.0f, static_cast<int>(n)); }
SF_FN double pow2(double n) { return __builtin_ldexp(1.0, static_cast<int>(n)); }
SF_FN float clamp(float x, float low, float high) { return x < low ? low : x > high ? high : x; }
SF_FN double clamp(double x, double low, double high) { return x < low ? low : x > high ? high : x; }
SF_FN float max0(float x) { return x < 0 ? 0 : x; }  // NaN stays NaN
SF_FN double max0(double x) { return x < 0 ? 0 : x; }
SF_FN float select(bool yes, float a, float b) { return yes ? a : b; }
SF_FN double select(bool yes, double a, double b) { return yes ? a : b; }
SF_FN float above0(float x) { return x <= 0 ? 0 : 1; }  // 1 for NaN, like the gradient of torch's relu
SF_FN double above0(double x) { return x <= 0 ? 0 : 1; }

}  // namespace sf

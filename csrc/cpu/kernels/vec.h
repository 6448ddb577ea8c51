// Vectors of the instruction set that this file is compiled for, as vectors of the compiler: FloatVec, DoubleVec and
// the operations of core/math.h. A fused multiply-add is written as fma(). A build flag keeps the compiler from forming
// others, because a sum must have the same bits in every tile.
#pragma once

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(SF_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512BF16__) || (defined(SF_NEON) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC))
#define SF_BFLOAT16_PAIRS  // one instruction multiplies pairs of bfloat16 and adds them up
#endif

// The emulated tiles of amx.h take vectors of the width of a tile's row, made of whatever the compiler has.
#if defined(__AVX512F__) || defined(SF_AMX_EMULATED)
#define SF_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define SF_VECTOR_BYTES 32
#else
#define SF_VECTOR_BYTES 16
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
#define SF_VECTOR_REGISTERS 32
#else
#define SF_VECTOR_REGISTERS 16
#endif

#include "../../core/math.h"
#include "../../core/types.h"

namespace sf {
namespace {

typedef float FloatVec __attribute__((vector_size(SF_VECTOR_BYTES)));
typedef double DoubleVec __attribute__((vector_size(SF_VECTOR_BYTES)));
typedef int32_t IntVec __attribute__((vector_size(SF_VECTOR_BYTES)));
typedef int64_t LongVec __attribute__((vector_size(SF_VECTOR_BYTES)));
typedef uint64_t HashVec __attribute__((vector_size(SF_VECTOR_BYTES)));

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  using Type = FloatVec;
};
template <>
struct VecOf<double> {
  using Type = DoubleVec;
};

// Subtracting +0 keeps every value as it is. Adding it would turn -0 into +0, and take an instruction.
SF_FN FloatVec splat(float x) { return x - FloatVec{}; }
SF_FN DoubleVec splat(double x) { return x - DoubleVec{}; }

SF_FN FloatVec select(IntVec mask, FloatVec yes, FloatVec no) { return mask ? yes : no; }
SF_FN DoubleVec select(LongVec mask, DoubleVec yes, DoubleVec no) { return mask ? yes : no; }

#if defined(__AVX512F__)
SF_FN FloatVec fma(FloatVec a, FloatVec b, FloatVec c) { return _mm512_fmadd_ps(a, b, c); }
SF_FN DoubleVec fma(DoubleVec a, DoubleVec b, DoubleVec c) { return _mm512_fmadd_pd(a, b, c); }
SF_FN FloatVec nearest(FloatVec x) { return _mm512_roundscale_ps(x, 8); }
SF_FN DoubleVec nearest(DoubleVec x) { return _mm512_roundscale_pd(x, 8); }
SF_FN FloatVec pow2(FloatVec n) { return _mm512_scalef_ps(FloatVec{} + 1.0f, n); }
SF_FN DoubleVec pow2(DoubleVec n) { return _mm512_scalef_pd(DoubleVec{} + 1.0, n); }
// If an operand is NaN, min and max of x86 return the second one, so x must be the second.
SF_FN FloatVec clamp(FloatVec x, float low, float high) {
  return _mm512_max_ps(FloatVec{} + low, _mm512_min_ps(FloatVec{} + high, x));
}
SF_FN DoubleVec clamp(DoubleVec x, double low, double high) {
  return _mm512_max_pd(DoubleVec{} + low, _mm512_min_pd(DoubleVec{} + high, x));
}
SF_FN FloatVec max0(FloatVec x) { return _mm512_max_ps(FloatVec{}, x); }
SF_FN DoubleVec max0(DoubleVec x) { return _mm512_max_pd(DoubleVec{}, x); }
SF_FN FloatVec load(const float* p) { return _mm512_loadu_ps(p); }
SF_FN DoubleVec load(const double* p) { return _mm512_loadu_pd(p); }
SF_FN void store(float* p, FloatVec v) { _mm512_storeu_ps(p, v); }
SF_FN void store(double* p, DoubleVec v) { _mm512_storeu_pd(p, v); }
SF_FN FloatVec load(const float* p, int n) { return _mm512_maskz_loadu_ps((1u << n) - 1, p); }
SF_FN DoubleVec load(const double* p, int n) { return _mm512_maskz_loadu_pd((1u << n) - 1, p); }
SF_FN void store(float* p, FloatVec v, int n) { _mm512_mask_storeu_ps(p, (1u << n) - 1, v); }
SF_FN void store(double* p, DoubleVec v, int n) { _mm512_mask_storeu_pd(p, (1u << n) - 1, v); }
// a0 b0 a1 b1 ... of the first halves of both vectors, and of the second halves
SF_FN FloatVec interleave_low(FloatVec a, FloatVec b) {
  return _mm512_permutex2var_ps(a, _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23), b);
}
SF_FN FloatVec interleave_high(FloatVec a, FloatVec b) {
  return _mm512_permutex2var_ps(a, _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31), b);
}
SF_FN DoubleVec interleave_low(DoubleVec a, DoubleVec b) {
  return _mm512_permutex2var_pd(a, _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), b);
}
SF_FN DoubleVec interleave_high(DoubleVec a, DoubleVec b) {
  return _mm512_permutex2var_pd(a, _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15), b);
}
#elif defined(__AVX2__) && !defined(SF_AMX_EMULATED)
SF_FN FloatVec fma(FloatVec a, FloatVec b, FloatVec c) { return _mm256_fmadd_ps(a, b, c); }
SF_FN DoubleVec fma(DoubleVec a, DoubleVec b, DoubleVec c) { return _mm256_fmadd_pd(a, b, c); }
SF_FN FloatVec nearest(FloatVec x) { return _mm256_round_ps(x, 8); }
SF_FN DoubleVec nearest(DoubleVec x) { return _mm256_round_pd(x, 8); }
SF_FN FloatVec clamp(FloatVec x, float low, float high) {
  return _mm256_max_ps(FloatVec{} + low, _mm256_min_ps(FloatVec{} + high, x));
}
SF_FN DoubleVec clamp(DoubleVec x, double low, double high) {
  return _mm256_max_pd(DoubleVec{} + low, _mm256_min_pd(DoubleVec{} + high, x));
}
SF_FN FloatVec max0(FloatVec x) { return _mm256_max_ps(FloatVec{}, x); }
SF_FN DoubleVec max0(DoubleVec x) { return _mm256_max_pd(DoubleVec{}, x); }
SF_FN FloatVec load(const float* p) { return _mm256_loadu_ps(p); }
SF_FN DoubleVec load(const double* p) { return _mm256_loadu_pd(p); }
SF_FN void store(float* p, FloatVec v) { _mm256_storeu_ps(p, v); }
SF_FN void store(double* p, DoubleVec v) { _mm256_storeu_pd(p, v); }
SF_FN IntVec first_lanes(float, int n) { return IntVec{0, 1, 2, 3, 4, 5, 6, 7} < IntVec{} + n; }
SF_FN LongVec first_lanes(double, int n) { return LongVec{0, 1, 2, 3} < LongVec{} + n; }
SF_FN FloatVec load(const float* p, int n) { return _mm256_maskload_ps(p, (__m256i)first_lanes(0.f, n)); }
SF_FN DoubleVec load(const double* p, int n) { return _mm256_maskload_pd(p, (__m256i)first_lanes(0., n)); }
SF_FN void store(float* p, FloatVec v, int n) { _mm256_maskstore_ps(p, (__m256i)first_lanes(0.f, n), v); }
SF_FN void store(double* p, DoubleVec v, int n) { _mm256_maskstore_pd(p, (__m256i)first_lanes(0., n), v); }
// a0 b0 a1 b1 ... of the first halves of both vectors, and of the second halves. AVX2 itself interleaves quarters.
SF_FN FloatVec interleave_low(FloatVec a, FloatVec b) {
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x20);
}
SF_FN FloatVec interleave_high(FloatVec a, FloatVec b) {
  return _mm256_permute2f128_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b), 0x31);
}
SF_FN DoubleVec interleave_low(DoubleVec a, DoubleVec b) {
  return _mm256_permute2f128_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b), 0x20);
}
SF_FN DoubleVec interleave_high(DoubleVec a, DoubleVec b) {
  return _mm256_permute2f128_pd(_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b), 0x31);
}
#else
template <class V, class T>
SF_FN V portable_load(const T* p, int n) {
  V v{};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
template <class V, class T>
SF_FN void portable_store(T* p, V v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}
// a0 b0 a1 b1 ... from lane `first` of both vectors on
template <class V>
SF_FN V portable_interleave(V a, V b, int first) {
  V v{};
  for (unsigned i = 0; i < sizeof(V) / sizeof(a[0]) / 2; ++i) v[2 * i] = a[first + i], v[2 * i + 1] = b[first + i];
  return v;
}
constexpr int kF = SF_VECTOR_BYTES / 4, kD = SF_VECTOR_BYTES / 8;
SF_FN FloatVec load(const float* p, int n) { return portable_load<FloatVec>(p, n); }
SF_FN DoubleVec load(const double* p, int n) { return portable_load<DoubleVec>(p, n); }
SF_FN void store(float* p, FloatVec v, int n) { portable_store(p, v, n); }
SF_FN void store(double* p, DoubleVec v, int n) { portable_store(p, v, n); }
#if defined(SF_NEON)
// NEON has no type that is both its own and the compiler's, so that each operand is converted, which takes no time.
SF_FN float32x4_t neon(FloatVec v) { return (float32x4_t)v; }
SF_FN float64x2_t neon(DoubleVec v) { return (float64x2_t)v; }
SF_FN FloatVec fma(FloatVec a, FloatVec b, FloatVec c) { return (FloatVec)vfmaq_f32(neon(c), neon(a), neon(b)); }
SF_FN DoubleVec fma(DoubleVec a, DoubleVec b, DoubleVec c) { return (DoubleVec)vfmaq_f64(neon(c), neon(a), neon(b)); }
SF_FN FloatVec nearest(FloatVec x) { return (FloatVec)vrndnq_f32(neon(x)); }
SF_FN DoubleVec nearest(DoubleVec x) { return (DoubleVec)vrndnq_f64(neon(x)); }
// If an operand is NaN, so is the result of min and max here.
SF_FN FloatVec clamp(FloatVec x, float low, float high) {
  return (FloatVec)vmaxq_f32(vdupq_n_f32(low), vminq_f32(vdupq_n_f32(high), neon(x)));
}
SF_FN DoubleVec clamp(DoubleVec x, double low, double high) {
  return (DoubleVec)vmaxq_f64(vdupq_n_f64(low), vminq_f64(vdupq_n_f64(high), neon(x)));
}
SF_FN FloatVec max0(FloatVec x) { return (FloatVec)vmaxq_f32(vdupq_n_f32(0), neon(x)); }
SF_FN DoubleVec max0(DoubleVec x) { return (DoubleVec)vmaxq_f64(vdupq_n_f64(0), neon(x)); }
SF_FN FloatVec load(const float* p) { return (FloatVec)vld1q_f32(p); }
SF_FN DoubleVec load(const double* p) { return (DoubleVec)vld1q_f64(p); }
SF_FN void store(float* p, FloatVec v) { vst1q_f32(p, neon(v)); }
SF_FN void store(double* p, DoubleVec v) { vst1q_f64(p, neon(v)); }
SF_FN FloatVec interleave_low(FloatVec a, FloatVec b) { return (FloatVec)vzip1q_f32(neon(a), neon(b)); }
SF_FN FloatVec interleave_high(FloatVec a, FloatVec b) { return (FloatVec)vzip2q_f32(neon(a), neon(b)); }
SF_FN DoubleVec interleave_low(DoubleVec a, DoubleVec b) { return (DoubleVec)vzip1q_f64(neon(a), neon(b)); }
SF_FN DoubleVec interleave_high(DoubleVec a, DoubleVec b) { return (DoubleVec)vzip2q_f64(neon(a), neon(b)); }
#else
#if defined(__aarch64__)
template <class V>
SF_FN V portable_fma(V a, V b, V c) {
  for (unsigned i = 0; i < sizeof(V) / sizeof(a[0]); ++i) c[i] = fma(a[i], b[i], c[i]);
  return c;
}
SF_FN FloatVec fma(FloatVec a, FloatVec b, FloatVec c) { return portable_fma(a, b, c); }
SF_FN DoubleVec fma(DoubleVec a, DoubleVec b, DoubleVec c) { return portable_fma(a, b, c); }
#else  // x86-64 without FMA rounds the product and the sum; it does so in every tile, so bits stay equal
SF_FN FloatVec fma(FloatVec a, FloatVec b, FloatVec c) { return a * b + c; }
SF_FN DoubleVec fma(DoubleVec a, DoubleVec b, DoubleVec c) { return a * b + c; }
#endif
// Adding and subtracting 1.5 * 2^(bits of the mantissa) rounds to a whole number if |x| < 2^22. The callers clamp x.
SF_FN FloatVec nearest(FloatVec x) { return (x + 0x1.8p23f) - 0x1.8p23f; }
SF_FN DoubleVec nearest(DoubleVec x) { return (x + 0x1.8p52) - 0x1.8p52; }
SF_FN FloatVec clamp(FloatVec x, float low, float high) {
  x = select(x < low, FloatVec{} + low, x);
  return select(x > high, FloatVec{} + high, x);
}
SF_FN DoubleVec clamp(DoubleVec x, double low, double high) {
  x = select(x < low, DoubleVec{} + low, x);
  return select(x > high, DoubleVec{} + high, x);
}
SF_FN FloatVec max0(FloatVec x) { return select(x < 0, FloatVec{}, x); }
SF_FN DoubleVec max0(DoubleVec x) { return select(x < 0, DoubleVec{}, x); }
SF_FN FloatVec load(const float* p) { return portable_load<FloatVec>(p, kF); }
SF_FN DoubleVec load(const double* p) { return portable_load<DoubleVec>(p, kD); }
SF_FN void store(float* p, FloatVec v) { portable_store(p, v, kF); }
SF_FN void store(double* p, DoubleVec v) { portable_store(p, v, kD); }
SF_FN FloatVec interleave_low(FloatVec a, FloatVec b) { return portable_interleave(a, b, 0); }
SF_FN FloatVec interleave_high(FloatVec a, FloatVec b) { return portable_interleave(a, b, kF / 2); }
SF_FN DoubleVec interleave_low(DoubleVec a, DoubleVec b) { return portable_interleave(a, b, 0); }
SF_FN DoubleVec interleave_high(DoubleVec a, DoubleVec b) { return portable_interleave(a, b, kD / 2); }
#endif  // SF_NEON
#endif

#if !defined(__AVX512F__)
// Writes n into the exponent's bits. NaN becomes a finite number, but q of exp2_split() stays NaN.
SF_FN FloatVec pow2(FloatVec n) { return (FloatVec)((__builtin_convertvector(n, IntVec) + 127) << 23); }
SF_FN DoubleVec pow2(DoubleVec n) { return (DoubleVec)((__builtin_convertvector(n, LongVec) + 1023) << 52); }
#endif

SF_FN FloatVec above0(FloatVec x) { return select(x <= 0, FloatVec{}, FloatVec{} + 1.0f); }
SF_FN DoubleVec above0(DoubleVec x) { return select(x <= 0, DoubleVec{}, DoubleVec{} + 1.0); }

}  // namespace

template <>
struct ScalarOf<FloatVec> {
  using Type = float;
};
template <>
struct ScalarOf<DoubleVec> {
  using Type = double;
};

}  // namespace sf

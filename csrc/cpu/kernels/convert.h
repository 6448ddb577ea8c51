// Converts rows between storage types (float, double, bfloat16, float16) and the compute type A, which is double for
// double and float for the others. Rows that are contiguous A already are used in place.
#pragma once

#include "vec.h"

#include "../../core/args.h"
#include "../../core/bfloat16.h"

namespace sf {
namespace {

SF_FN float float16_to_float(Bits16 h) {
#if defined(__F16C__)
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h)));
#else
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, rest = h & 0x7fff;
  // Multiplying by 2^112 corrects the exponent, and makes subnormal numbers normal.
  const float scaled = from_bits(rest << 13) * 0x1p112f;
  return from_bits(sign | (rest >= 0x7c00 ? 0x7f800000 | (rest & 0x3ff) << 13 : to_bits(scaled)));
#endif
}

SF_FN Bits16 float_to_float16(float value) {  // to nearest, ties to even
#if defined(__F16C__)
  return static_cast<Bits16>(_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(value), 0)));
#else
  const uint32_t bits = to_bits(value), sign = (bits >> 16) & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) return static_cast<Bits16>(sign | 0x7e00);
  if (rest >= 0x477ff000) return static_cast<Bits16>(sign | 0x7c00);
  if (rest < 0x38800000) {  // a subnormal result: adding a number whose last bit is 2^-24 rounds to that bit
    return static_cast<Bits16>(sign | (to_bits(from_bits(rest) + 0.5f) - to_bits(0.5f)));
  }
  return static_cast<Bits16>(sign | ((rest + 0xfff + ((rest >> 13) & 1)) - 0x38000000) >> 13);
#endif
}

// Eight float16 at a time, as compilers do not form these instructions from a loop. They return how many they
// converted. The runtime, which has no float16, does without them.
#if defined(__F16C__) && !defined(SF_INFERENCE)
inline int64_t float16_to_floats(const Bits16* from, float* to, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  return i;
}
inline int64_t floats_to_float16(const float* from, Bits16* to, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), _mm256_cvtps_ph(_mm256_loadu_ps(from + i), 0));
  return i;
}
inline int64_t round_to_float16(float* row, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) _mm256_storeu_ps(row + i, _mm256_cvtph_ps(_mm256_cvtps_ph(_mm256_loadu_ps(row + i), 0)));
  return i;
}
#else
inline int64_t float16_to_floats(const Bits16*, float*, int64_t) { return 0; }
inline int64_t floats_to_float16(const float*, Bits16*, int64_t) { return 0; }
inline int64_t round_to_float16(float*, int64_t) { return 0; }
#endif

template <Dtype D>
struct Storage;
template <>
struct Storage<Dtype::kFloat32> {
  using Type = float;
  SF_FN static float load(const float* p) { return *p; }
  SF_FN static float cast(float v) { return v; }
};
template <>
struct Storage<Dtype::kFloat64> {
  using Type = double;
  SF_FN static double load(const double* p) { return *p; }
  SF_FN static double cast(double v) { return v; }
};
template <>
struct Storage<Dtype::kBFloat16> {
  using Type = Bits16;
  SF_FN static float load(const Bits16* p) { return bfloat16_to_float(*p); }
  SF_FN static Bits16 cast(float v) { return float_to_bfloat16(v); }
};
template <>
struct Storage<Dtype::kFloat16> {
  using Type = Bits16;
  SF_FN static float load(const Bits16* p) { return float16_to_float(*p); }
  SF_FN static Bits16 cast(float v) { return float_to_float16(v); }
};

template <class A>
constexpr Dtype dtype_of();
template <>
constexpr Dtype dtype_of<float>() {
  return Dtype::kFloat32;
}
template <>
constexpr Dtype dtype_of<double>() {
  return Dtype::kFloat64;
}
template <>
constexpr Dtype dtype_of<Bits16>() {
  return Dtype::kBFloat16;
}

template <class A, Dtype D>
void read_as(const char* source, int64_t stride, A* to, int64_t n) {
  const auto* from = reinterpret_cast<const typename Storage<D>::Type*>(source);
  if (stride == 1) {
    int64_t done = 0;
    if constexpr (D == Dtype::kFloat16 && sizeof(A) == sizeof(float)) done = float16_to_floats(from, to, n);
    for (int64_t i = done; i < n; ++i) to[i] = static_cast<A>(Storage<D>::load(from + i));
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<A>(Storage<D>::load(from + i * stride));
  }
}

// Reads n elements of type d, `stride` apart, into contiguous A. If A is Bits16, both are bfloat16.
template <class A>
void read_row(Dtype d, const char* source, int64_t stride, A* to, int64_t n) {
  switch (d) {
    case Dtype::kFloat32:
      return read_as<A, Dtype::kFloat32>(source, stride, to, n);
    case Dtype::kFloat64:
      return read_as<A, Dtype::kFloat64>(source, stride, to, n);
    case Dtype::kBFloat16:
      return read_as<A, Dtype::kBFloat16>(source, stride, to, n);
    case Dtype::kFloat16:
      return read_as<A, Dtype::kFloat16>(source, stride, to, n);
  }
}
template <>
inline void read_row<Bits16>(Dtype, const char* source, int64_t stride, Bits16* to, int64_t n) {
  const auto* from = reinterpret_cast<const Bits16*>(source);
  for (int64_t i = 0; i < n; ++i) to[i] = from[i * stride];
}

template <class A, Dtype D>
void write_as(const A* from, char* target, int64_t n) {
  auto* to = reinterpret_cast<typename Storage<D>::Type*>(target);
  int64_t done = 0;
  if constexpr (D == Dtype::kFloat16 && sizeof(A) == sizeof(float)) done = floats_to_float16(from, to, n);
  for (int64_t i = done; i < n; ++i) to[i] = Storage<D>::cast(from[i]);
}

// Writes n contiguous A into contiguous elements of type d.
template <class A>
void write_row(Dtype d, const A* from, char* target, int64_t n) {
  if constexpr (sizeof(A) == 8) {
    write_as<A, Dtype::kFloat64>(from, target, n);
  } else {
    switch (d) {
      case Dtype::kFloat32:
        return write_as<A, Dtype::kFloat32>(from, target, n);
      case Dtype::kBFloat16:
        return write_as<A, Dtype::kBFloat16>(from, target, n);
      case Dtype::kFloat16:
        return write_as<A, Dtype::kFloat16>(from, target, n);
      case Dtype::kFloat64:
        return;  // cannot be: the compute type of double is double
    }
  }
}
template <>
inline void write_row<Bits16>(Dtype, const Bits16* from, char* target, int64_t n) {
  __builtin_memcpy(target, from, static_cast<size_t>(n) * 2);
}

// Rounds n values to the storage type, because the next step must read the values that the output holds.
template <class A>
void round_row(Dtype d, A* row, int64_t n) {
  if (d == Dtype::kBFloat16) {
    for (int64_t i = 0; i < n; ++i) row[i] = bfloat16_to_float(float_to_bfloat16(row[i]));
  } else if (d == Dtype::kFloat16) {
    int64_t done = 0;
    if constexpr (sizeof(A) == sizeof(float)) done = round_to_float16(row, n);
    for (int64_t i = done; i < n; ++i) row[i] = float16_to_float(float_to_float16(row[i]));
  }
}

// Returns rows as contiguous A: in place if they already are, else converted into one of several slots of scratch
// memory.
template <class A>
struct RowReader {
  Rows rows;
  int64_t width;
  A* scratch;  // [slots][slot_stride], unused if direct()
  int64_t slot_stride;

  bool direct() const { return rows.dtype == dtype_of<A>() && (rows.stride == 1 || width == 1); }
  const char* address(int64_t t, int64_t b) const { return rows.data + rows.offset(t, b) * size_of(rows.dtype); }
  SF_FN const A* at(int64_t t, int64_t b, int64_t slot) const {
    const char* source = address(t, b);
    if (direct()) return reinterpret_cast<const A*>(source);
    A* to = scratch + slot * slot_stride;
    read_row<A>(rows.dtype, source, rows.stride, to, width);
    return to;
  }
};

}  // namespace
}  // namespace sf

// How numbers are stored and multiplied: one type per Precision. split() turns a value into one operand element per
// plane, whose sum is the value. The activations of float, which the cells call, are here too.
#pragma once

#include "device.cuh"
#include "../plan.h"

namespace sf {

// On float, each takes two instructions of the special function unit, with errors within 1e-7. They are declared before
// the cells are included, so that a cell's calls find them and not the templates of core/activations.h.
SF_DEVICE float sigmoid(float x) { return cuda::reciprocal_approx(1.0f + cuda::exp2_approx(x * -1.4426950408889634f)); }
SF_DEVICE float tanh(float x) {
  return 2.0f * cuda::reciprocal_approx(1.0f + cuda::exp2_approx(x * -2.8853900817779268f)) - 1.0f;
}
SF_DEVICE double sigmoid(double x) { return 1.0 / (1.0 + ::exp(-x)); }
SF_DEVICE double tanh(double x) { return ::tanh(x); }

}  // namespace sf

#include "../../core/args.h"
#include "../../core/cells.h"

namespace sf::cuda {

struct Bf16 {
  static constexpr Precision kPrecision = Precision::kBf16;
  using Storage = uint16_t;
  using Element = uint16_t;
  using Compute = float;
  static SF_DEVICE float widen(Storage v) { return from_bf16(v); }
  static SF_DEVICE Storage narrow(float v) { return to_bf16(v); }
  static SF_DEVICE void split(float v, Element (&e)[1]) { e[0] = to_bf16(v); }
  using Four = uint2;  // a cell's first four saved values, as they are stored
  static SF_DEVICE Four pack(const float (&v)[5]) { return {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3])}; }
  static SF_DEVICE void unpack(Four f, float (&v)[5]) {
    v[0] = float_of(f.x << 16), v[1] = float_of(f.x & 0xFFFF0000u);
    v[2] = float_of(f.y << 16), v[3] = float_of(f.y & 0xFFFF0000u);
  }
  static SF_DEVICE void mma(float (&d)[4], const uint32_t (&a)[1][4], const uint32_t (&b)[1][2]) {
    mma_bf16(d, a[0], b[0][0], b[0][1]);
  }
};

struct Fp16 {
  static constexpr Precision kPrecision = Precision::kFp16;
  using Storage = uint16_t;
  using Element = uint16_t;
  using Compute = float;
  static SF_DEVICE float widen(Storage v) { return from_fp16(v); }
  static SF_DEVICE Storage narrow(float v) { return to_fp16(v); }
  static SF_DEVICE void split(float v, Element (&e)[1]) { e[0] = to_fp16(v); }
  using Four = uint2;
  static SF_DEVICE Four pack(const float (&v)[5]) { return {pack_fp16(v[0], v[1]), pack_fp16(v[2], v[3])}; }
  static SF_DEVICE void unpack(Four f, float (&v)[5]) {
    v[0] = from_fp16(static_cast<uint16_t>(f.x)), v[1] = from_fp16(static_cast<uint16_t>(f.x >> 16));
    v[2] = from_fp16(static_cast<uint16_t>(f.y)), v[3] = from_fp16(static_cast<uint16_t>(f.y >> 16));
  }
  static SF_DEVICE void mma(float (&d)[4], const uint32_t (&a)[1][4], const uint32_t (&b)[1][2]) {
    mma_fp16(d, a[0], b[0][0], b[0][1]);
  }
};

struct Float32 {  // how float32 is stored, in both ways to multiply it (Tf32, Tf32x3)
  using Storage = float;
  using Element = float;
  using Compute = float;
  using Four = float4;
  static SF_DEVICE Four pack(const float (&v)[5]) { return {v[0], v[1], v[2], v[3]}; }
  static SF_DEVICE void unpack(Four f, float (&v)[5]) { v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w; }
  static SF_DEVICE float widen(float v) { return v; }
  static SF_DEVICE float narrow(float v) { return v; }
};

struct Tf32 : Float32 {
  static constexpr Precision kPrecision = Precision::kTf32;
  static SF_DEVICE void split(float v, Element (&e)[1]) { e[0] = round_tf32(v); }
  static SF_DEVICE void mma(float (&d)[4], const uint32_t (&a)[1][4], const uint32_t (&b)[1][2]) {
    mma_tf32(d, a[0], b[0][0], b[0][1]);
  }
};

// A value is the sum of a high and a low TF32 number. The product of two low numbers is left out, since it is smaller
// than the rounding of float32.
struct Tf32x3 : Float32 {
  static constexpr Precision kPrecision = Precision::kTf32x3;
  static SF_DEVICE void split(float v, Element (&e)[2]) {
    e[0] = round_tf32(v);
    e[1] = round_tf32(v - e[0]);
  }
  static SF_DEVICE void mma(float (&d)[4], const uint32_t (&a)[2][4], const uint32_t (&b)[2][2]) {
    mma_tf32(d, a[1], b[0][0], b[0][1]);
    mma_tf32(d, a[0], b[1][0], b[1][1]);
    mma_tf32(d, a[0], b[0][0], b[0][1]);
  }
};

struct Float64 {  // for the stepwise regime alone
  using Storage = double;
  using Compute = double;
  static SF_DEVICE double widen(double v) { return v; }
  static SF_DEVICE double narrow(double v) { return v; }
};

SF_DEVICE uint32_t element_bits(uint16_t e) { return e; }
SF_DEVICE uint32_t element_bits(float e) { return bits_of(e); }

// Element i of the row of step t and batch row b. Rows may have any strides.
template <class T>
SF_DEVICE T* element(const Rows& rows, int64_t t, int64_t b, int64_t i) {
  return reinterpret_cast<T*>(rows.data) + rows.offset(t, b) + i * rows.stride;
}

}  // namespace sf::cuda

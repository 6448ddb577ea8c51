// Conversion between float and bfloat16, which is the upper half of a float's bits.
#pragma once

#include "math.h"
#include "types.h"

namespace sf {

typedef uint16_t Bits16;

SF_FN float from_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
SF_FN uint32_t to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

SF_FN float bfloat16_to_float(Bits16 b) { return from_bits(static_cast<uint32_t>(b) << 16); }

SF_FN Bits16 float_to_bfloat16(float value) {  // to nearest, ties to even; NaN stays NaN
  const uint32_t bits = to_bits(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<Bits16>(value != value ? (bits >> 16) | 0x40 : rounded);
}

}  // namespace sf

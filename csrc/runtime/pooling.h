// Mean and maximum of the steps of a row, step by step. A row's sums have the order of PoolPass in
// csrc/cpu/kernels/head.h, and so its bits: not more than kChain steps are added one after another.
#pragma once

#include <cstdint>

#include "../core/bfloat16.h"
#include "description.h"

namespace sf::runtime {

constexpr int64_t kPoolChain = 256;

// What is kept of a row: the number of its steps, and two rows of `width` sums (kMax: the largest values in `total`).
struct PooledRow {
  int64_t* steps;
  float *total, *part;
};

inline float value_at(const char* row, Dtype dtype, int64_t i) {
  return dtype == Dtype::kFloat32 ? reinterpret_cast<const float*>(row)[i]
                                  : bfloat16_to_float(reinterpret_cast<const Bits16*>(row)[i]);
}
inline void put_value(char* row, Dtype dtype, int64_t i, float value) {
  if (dtype == Dtype::kFloat32)
    reinterpret_cast<float*>(row)[i] = value;
  else
    reinterpret_cast<Bits16*>(row)[i] = float_to_bfloat16(value);
}

// Takes the output of one step.
inline void pool_step(PoolKind kind, const PooledRow& to, const char* output, Dtype dtype, int64_t width) {
  const bool first = (*to.steps)++ == 0;
  if (kind == PoolKind::kMax) {
    for (int64_t i = 0; i < width; ++i) {
      const float x = value_at(output, dtype, i), before = to.total[i];
      to.total[i] = first || x != x || x > before ? x : before;
    }
    return;
  }
  for (int64_t i = 0; i < width; ++i) to.part[i] += value_at(output, dtype, i);
  if (*to.steps % kPoolChain) return;
  for (int64_t i = 0; i < width; ++i) to.total[i] += to.part[i], to.part[i] = 0;
}

// Writes what the steps so far are pooled to: zeros where there are none.
inline void pooled(PoolKind kind, const PooledRow& from, char* to, Dtype dtype, int64_t width) {
  const auto steps = static_cast<float>(*from.steps);
  for (int64_t i = 0; i < width; ++i) {
    float value = from.total[i];
    if (kind == PoolKind::kMean && *from.steps % kPoolChain) value += from.part[i];
    put_value(to, dtype, i, kind == PoolKind::kMean && *from.steps ? value / steps : value);
  }
}

}  // namespace sf::runtime

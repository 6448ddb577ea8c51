// Turns the raw steps of a series into the features that the first layer reads, one row of a stream at a time.
#pragma once

#include <cmath>
#include <cstdint>

#include "description.h"
#include "pooling.h"

namespace sf::runtime {

enum class SeriesFault { kNone, kInfinite, kMissing, kTooLarge };

// What a value that is not missing becomes.
inline float scaled(const SeriesPart& series, double value, int64_t feature) {
  const auto i = static_cast<size_t>(feature);
  return static_cast<float>(series.standardize ? (value - series.mean[i]) / series.scale[i] : value);
}

// Whether the value of a feature can be taken.
inline SeriesFault fault_of(const SeriesPart& series, double value, int64_t feature) {
  if (std::isinf(value)) return SeriesFault::kInfinite;
  if (std::isnan(value))
    return series.missing == SeriesPart::Missing::kError ? SeriesFault::kMissing : SeriesFault::kNone;
  return std::isfinite(scaled(series, value, feature)) ? SeriesFault::kNone : SeriesFault::kTooLarge;
}

// Writes the features of one step. `before`: the last values of the row that were not missing, NaN where there are
// none.
template <class T>
void put_step(const SeriesPart& series, const T* step, int64_t features, double* before, char* to, Dtype dtype) {
  using Missing = SeriesPart::Missing;
  for (int64_t i = 0; i < features; ++i) {
    const bool missing = std::isnan(step[i]);
    if (!missing) before[i] = step[i];
    double value = step[i];
    if (missing) {
      const bool carried = series.missing == Missing::kForward && !std::isnan(before[i]);
      value = series.missing == Missing::kZero ? 0 : carried ? before[i] : series.mean[static_cast<size_t>(i)];
    }
    put_value(to, dtype, i, scaled(series, value, i));
    if (series.missing == Missing::kMask) put_value(to, dtype, features + i, missing);
  }
}

}  // namespace sf::runtime

// Turns the raw steps of a series into the features that the first layer reads, one row of a stream at a time.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "description.h"
#include "pooling.h"

namespace sf::runtime {

enum class SeriesFault { kNone, kInfinite, kMissing, kTooLarge };

// What a value that is not missing becomes, by the mean and deviation of the training data.
inline double scaled(const SeriesPart& series, double value, int64_t feature) {
  const auto i = static_cast<size_t>(feature);
  return series.standardize ? (value - series.mean[i]) / series.scale[i] : value;
}

// Whether the value of a feature can be taken. Half of what float32 holds is the most where there are differences, so
// that these fit too.
inline SeriesFault fault_of(const SeriesPart& series, double value, int64_t feature) {
  if (std::isinf(value)) return SeriesFault::kInfinite;
  if (std::isnan(value))
    return series.missing == SeriesPart::Missing::kError ? SeriesFault::kMissing : SeriesFault::kNone;
  if (series.by_itself()) return SeriesFault::kNone;
  const double most = scaled(series, value, feature) * (series.differences ? 2 : 1);
  return std::isfinite(static_cast<float>(most)) ? SeriesFault::kNone : SeriesFault::kTooLarge;
}

// A value, or what replaces it where it is missing. `before` is the last value that was not missing, NaN if there is
// none, and is kept. The result is NaN where it shall become the mean of its series.
template <class T>
double filled(const SeriesPart& series, T value, int64_t feature, double& before) {
  using Missing = SeriesPart::Missing;
  if (!std::isnan(value)) return before = value;
  if (series.missing == Missing::kZero) return 0;
  if (series.missing == Missing::kForward && !std::isnan(before)) return before;
  return series.by_itself() ? std::numeric_limits<double>::quiet_NaN() : series.mean[static_cast<size_t>(feature)];
}

// Writes the features of one step. `before`: of each feature the last value that was not missing and, with differences,
// the last one as it was scaled; NaN where there are none.
template <class T>
void put_step(const SeriesPart& series, const T* step, double* before, char* to, Dtype dtype) {
  const int64_t features = series.features();
  for (int64_t i = 0; i < features; ++i) {
    const double value = scaled(series, filled(series, step[i], i, before[i]), i);
    put_value(to, dtype, i, static_cast<float>(value));
    if (series.masks()) put_value(to, dtype, features + i, std::isnan(step[i]));
    if (!series.differences) continue;
    double& last = before[features + i];
    put_value(to, dtype, series.own() + i, static_cast<float>(std::isnan(last) ? 0 : value - last));
    last = value;
  }
}

}  // namespace sf::runtime

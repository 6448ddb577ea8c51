// One feature after another, in double. The sums of a series have the order of numpy's, so that they have its bits.
#include "whole_series.h"

#include <algorithm>
#include <limits>

namespace sf::runtime {
namespace {

constexpr double kConstant = 1e-10;  // a deviation that is so small a share of the largest value is rounding

// The sum of value(i) for i from `begin` on, as numpy adds numbers pairwise: up to 128 of them in eight sums.
template <class Value>
double pairwise_sum(const Value& value, int64_t begin, int64_t count) {
  constexpr int64_t kSums = 8, kBlock = 128;
  if (count > kBlock) {
    const int64_t half = count / 2 / kSums * kSums;
    return pairwise_sum(value, begin, half) + pairwise_sum(value, begin + half, count - half);
  }
  double sum = -0.0;
  int64_t i = 0;
  if (count >= kSums) {
    double sums[kSums];
    for (; i < kSums; ++i) sums[i] = value(begin + i);
    for (; i < count - count % kSums; i += kSums)
      for (int64_t k = 0; k < kSums; ++k) sums[k] += value(begin + i + k);
    sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  }
  for (; i < count; ++i) sum += value(begin + i);
  return sum;
}

// The sum of some numbers as numpy.add.reduceat() has it: the first one and the others are added last.
template <class Value>
double sum_of(const Value& value, int64_t count) {
  return count > 1 ? value(0) + pairwise_sum(value, 1, count - 1) : value(0);
}

// Scales a feature in place so that it has mean 0 and deviation 1 in this series. Missing values become 0, as do those
// of a feature that is constant.
void scale_by_itself(double* values, int64_t steps, double* offsets) {
  double largest = 0, known = 0;
  for (int64_t t = 0; t < steps; ++t) {
    if (std::isnan(values[t])) continue;
    largest = std::max(largest, std::fabs(values[t]));
    known += 1;
  }
  const double count = std::max(known, 1.0), unit = largest > 0 ? largest : 1;  // so that no square overflows
  for (int64_t t = 0; t < steps; ++t) values[t] /= unit;
  const auto or_zero = [](double value) { return std::isnan(value) ? 0 : value; };
  const double mean = sum_of([&](int64_t t) { return or_zero(values[t]); }, steps) / count;
  for (int64_t t = 0; t < steps; ++t) offsets[t] = values[t] - mean;
  const double deviation =
      std::sqrt(sum_of([&](int64_t t) { return or_zero(offsets[t] * offsets[t]); }, steps) / count);
  for (int64_t t = 0; t < steps; ++t) values[t] = deviation > kConstant ? or_zero(offsets[t] / deviation) : 0;
}

}  // namespace

template <class T>
void whole_series(const SeriesPart& series, const T* x, int64_t steps, double* space, float* out) {
  const int64_t features = series.features(), width = series.width();
  double* const values = space;  // of one feature
  const double kNone = std::numeric_limits<double>::quiet_NaN();
  for (int64_t i = 0; steps && i < features; ++i) {
    double before = kNone;
    for (int64_t t = 0; t < steps; ++t) values[t] = filled<T>(series, x[t * features + i], i, before);
    if (series.by_itself())
      scale_by_itself(values, steps, space + steps);
    else
      for (int64_t t = 0; t < steps; ++t) values[t] = scaled(series, values[t], i);
    for (int64_t t = 0; t < steps; ++t) {
      float* const to = out + t * width + i;
      *to = static_cast<float>(values[t]);
      if (series.masks()) to[features] = std::isnan(x[t * features + i]);
      if (series.differences) to[series.own()] = static_cast<float>(t ? values[t] - values[t - 1] : 0);
    }
  }
  const auto last = static_cast<double>(steps - 1);
  for (int64_t t = 0; series.time && t < steps; ++t)
    out[(t + 1) * width - 1] = static_cast<float>(last > 0 ? 2 * static_cast<double>(t) / last - 1 : 0);
}

template void whole_series(const SeriesPart&, const float*, int64_t, double*, float*);
template void whole_series(const SeriesPart&, const double*, int64_t, double*, float*);

}  // namespace sf::runtime

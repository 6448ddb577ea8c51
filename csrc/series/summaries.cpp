// Sums go from the first step to the last in double, as torch.cumsum has them. Numbers are rounded to float where the
// module does it: at the end, and for the times of the steps.
#include "summaries.h"

#include <algorithm>
#include <cmath>

namespace sf::series {
namespace {

constexpr double kLeastSpread = 1e-12;  // of the times, which a series of one step does not have

struct Summary {
  double mean, deviation, low, high, first, last, slope, change, change_deviation, parts[kParts];
};

Summary of_channel(const float* x, int64_t steps, int64_t width) {
  const auto at = [&](int64_t t) { return static_cast<double>(x[t * width]); };
  const auto count = static_cast<double>(steps);
  Summary s{};
  double sum = 0, reached[kParts + 1] = {};  // reached: the sum up to the end of each part
  s.low = s.high = s.first = at(0);
  s.last = at(steps - 1);
  for (int64_t t = 0, part = 1; t < steps; ++t) {
    sum += at(t);
    for (; part <= kParts && steps * part / kParts <= t + 1; ++part)
      if (steps * part / kParts == t + 1) reached[part] = sum;
    s.low = std::min(s.low, at(t));
    s.high = std::max(s.high, at(t));
  }
  s.mean = sum / count;
  const float middle_time = static_cast<float>(steps - 1) / 2.0f;
  double squares = 0, products = 0, times = 0, changes = 0, changes_squared = 0;
  for (int64_t t = 0; t < steps; ++t) {
    const double offset = at(t) - s.mean, time = static_cast<float>(t) - middle_time;
    const double change = t ? at(t) - at(t - 1) : 0;
    squares += offset * offset;
    products += offset * time;
    times += time * time;
    changes += std::fabs(change);
    changes_squared += change * change;
  }
  s.deviation = std::sqrt(squares / count);
  s.slope = products / count / std::max(times / count, kLeastSpread);
  s.change = changes / count;
  s.change_deviation = std::sqrt(changes_squared / count);
  for (int64_t part = 0; part < kParts; ++part) {
    const int64_t begin = steps * part / kParts, end = steps * (part + 1) / kParts;
    s.parts[part] = begin == end ? s.mean : (reached[part + 1] - reached[part]) / static_cast<double>(end - begin);
  }
  return s;
}

}  // namespace

void summarise(const float* x, int64_t steps, int64_t width, int64_t channels, float* out) {
  std::fill(out, out + summaries_of(channels), 0.0f);
  for (int64_t c = 0; steps && c < channels; ++c) {
    const Summary s = of_channel(x + c, steps, width);
    float* to = out + c;
    const auto put = [&](double value) { *to = static_cast<float>(value), to += channels; };
    for (const double value :
         {s.mean, s.deviation, s.low, s.high, s.first, s.last, s.slope, s.change, s.change_deviation})
      put(value);
    for (const double value : s.parts) put(value);
  }
  out[summaries_of(channels) - 1] = static_cast<float>(std::log(static_cast<double>(steps) + 1));
}

}  // namespace sf::series

// How the features of random_convolutions.h are computed. All sums are of float32 in one fixed order and without fused
// multiply-add, so that every instruction set gives the same bits. The sum of all nine taps serves as the part with the
// weights -1, from which a kernel differs by three taps alone.
#include "random_convolutions.h"

#include <algorithm>
#include <array>
#include <system_error>
#include <thread>
#include <vector>

// The loops below are compiled for CPUs with AVX2 too, and the loader takes the version that this CPU can run.
// Sanitizers are not ready yet when it asks.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define SF_SERIES_CLONES __attribute__((target_clones("avx2", "default"), optimize("O3")))
#else
#define SF_SERIES_CLONES
#endif

namespace sf::series {
namespace {

struct Places {
  int first, second, third;
};

constexpr std::array<Places, kKernels> make_places() {
  std::array<Places, kKernels> all{};
  int k = 0;
  for (int a = 0; a < kTaps; ++a)
    for (int b = a + 1; b < kTaps; ++b)
      for (int c = b + 1; c < kTaps; ++c) all[k++] = {a, b, c};
  return all;
}

constexpr std::array<Places, kKernels> kPlaces = make_places();

// out[t] = 3 * (the three taps of weight 2) - (all taps), for t below count; x is padded in front and behind.
SF_SERIES_CLONES void convolve(const float* __restrict x, int64_t dilation, Places places, int64_t count,
                               float* __restrict out) {
  const float* first = x + places.first * dilation;
  const float* second = x + places.second * dilation;
  const float* third = x + places.third * dilation;
  for (int64_t t = 0; t < count; ++t) {
    float all = x[t];
    all += x[t + dilation];
    all += x[t + 2 * dilation];
    all += x[t + 3 * dilation];
    all += x[t + 4 * dilation];
    all += x[t + 5 * dilation];
    all += x[t + 6 * dilation];
    all += x[t + 7 * dilation];
    all += x[t + 8 * dilation];
    out[t] = 3.0f * ((first[t] + second[t]) + third[t]) - all;
  }
}

SF_SERIES_CLONES int32_t count_above(const float* values, int64_t count, float bias) {
  int32_t above = 0;
  for (int64_t t = 0; t < count; ++t) above += values[t] > bias;
  return above;
}

SF_SERIES_CLONES void add(const float* values, int64_t count, float* sum) {
  for (int64_t t = 0; t < count; ++t) sum[t] += values[t];
}

int64_t margin_of(int64_t dilation, int64_t steps) {
  // With a dilation beyond the length all taps but the middle one read zeros, whatever it is.
  return kTaps / 2 * std::min(dilation, steps);
}

}  // namespace

int64_t features_of(const Convolutions& convolutions) {
  int64_t sum = 0;
  for (int64_t g = 0; g < convolutions.groups; ++g) sum += convolutions.counts[g];
  return kKernels * sum;
}

int64_t space_for(const Convolutions& convolutions, int64_t steps) {
  int64_t most = 0;
  for (int64_t g = 0; g < convolutions.groups; ++g) most = std::max(most, margin_of(convolutions.dilations[g], steps));
  return (convolutions.channels + 2) * steps + 2 * most;
}

void transform_row(const Convolutions& given, const float* x, int64_t steps, int64_t width, float* space, float* out) {
  if (steps == 0) {
    std::fill(out, out + features_of(given), 0.0f);
    return;
  }
  const int64_t channels = given.channels;
  float* const of_channels = space;  // (channels, steps): each channel's steps side by side
  float* const result = of_channels + channels * steps;
  float* const padded = result + steps;  // what a kernel reads, with four dilations of zeros at both ends
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t t = 0; t < steps; ++t) of_channels[c * steps + t] = x[t * width + c];
  const float* bias = given.biases;
  for (int64_t g = 0; g < given.groups; ++g) {
    const int64_t margin = margin_of(given.dilations[g], steps), dilation = margin / (kTaps / 2);
    for (int k = 0; k < kKernels; ++k) {
      std::fill(padded, padded + steps + 2 * margin, 0.0f);
      const float* uses = given.uses + (g * kKernels + k) * channels;
      for (int64_t c = 0; c < channels; ++c)
        if (uses[c] != 0) add(of_channels + c * steps, steps, padded + margin);
      // Every other kernel reads no padding, where the series is long enough for that.
      const bool inside = (g + k) % 2 == 1 && steps > 2 * margin;
      const int64_t start = inside ? margin : 0, count = inside ? steps - 2 * margin : steps;
      convolve(padded + start, dilation, kPlaces[k], count, result);
      for (int64_t q = 0; q < given.counts[g]; ++q)
        *out++ = static_cast<float>(count_above(result, count, *bias++)) / static_cast<float>(count);
    }
  }
}

void transform(const Convolutions& convolutions, const float* x, const int64_t* lengths, int64_t rows, int64_t steps,
               int threads, float* out) {
  const int64_t features = features_of(convolutions);
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, rows));
  const int64_t space = space_for(convolutions, steps), width = convolutions.channels;
  std::vector<float> spaces(static_cast<size_t>(parts * space));  // before a thread runs, which thus throws nothing
  const auto part = [&](int64_t p) {
    for (int64_t r = rows * p / parts; r < rows * (p + 1) / parts; ++r)
      transform_row(convolutions, x + r * steps * width, lengths[r], width, spaces.data() + p * space,
                    out + r * features);
  };
  std::vector<std::thread> others;
  others.reserve(static_cast<size_t>(parts));
  int64_t started = 1;
  try {
    for (; started < parts; ++started) others.emplace_back(part, started);
  } catch (const std::system_error&) {  // no more threads can be had
  }
  part(0);
  for (int64_t p = started; p < parts; ++p) part(p);
  for (std::thread& other : others) other.join();
}

}  // namespace sf::series

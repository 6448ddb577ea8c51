// Summaries of a series, which go with the shares of random_convolutions.h into a linear model: 17 numbers of each
// channel, and one of the length. They are those of summaries() in seqcls_fast/convolutions.py, with the same bits.
#pragma once

#include <cstdint>

namespace sf::series {

constexpr int kParts = 8;  // equal parts of a series whose means are summaries

constexpr int64_t summaries_of(int64_t channels) { return (2 * kParts + 1) * channels + 1; }

// x: (steps, width), of which the first `channels` numbers of each step are read; out: (summaries_of(channels),).
void summarise(const float* x, int64_t steps, int64_t width, int64_t channels, float* out);

}  // namespace sf::series

// The features of a whole series, for models whose features need all of it: the mean and deviation of the series at
// hand, and the time. The numbers are those of SeriesEncoder.encode() in seqcls_fast/toolkit/data/series.py.
#pragma once

#include <cstdint>

#include "series.h"

namespace sf::runtime {

// x: (steps, features); `space`: room for whole_series_space() numbers; out: (steps, widths_of(series)).
template <class T>
void whole_series(const SeriesPart& series, const T* x, int64_t steps, double* space, float* out);

constexpr int64_t whole_series_space(int64_t steps) { return 2 * steps; }

}  // namespace sf::runtime

// A dual variable for each row and class; weights are kept equal to the sum of the rows, each times its variable and
// its sign, and follow every change of a variable.
#include "linear_svm.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

namespace sf::linear {
namespace {

constexpr float kBias = 0.5f;  // the feature that all rows have, whose weight times this is the bias
constexpr int64_t kWidth = 4;  // numbers that are computed together, which compilers make one instruction of

// splitmix64: a sequence of random numbers.
struct Random {
  uint64_t state;
  uint64_t next() {
    uint64_t value = state += 0x9E3779B97F4A7C15u;
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
    return value ^ (value >> 31);
  }
};

// to += factor * from
void add_scaled(float factor, const float* from, int64_t count, float* to) {
  int64_t k = 0;
  for (; k + kWidth <= count; k += kWidth)
    for (int64_t j = 0; j < kWidth; ++j) to[k + j] += factor * from[k + j];
  for (; k < count; ++k) to[k] += factor * from[k];
}

}  // namespace

Done fit_linear_svm(const Rows& rows, int64_t features, int64_t classes, const Limits& limits, uint64_t seed,
                    float* weights, float* bias) {
  std::fill_n(weights, features * classes, 0.0f);
  std::fill_n(bias, classes, 0.0f);
  std::vector<float> duals(static_cast<size_t>(rows.count * classes)), steps(static_cast<size_t>(classes));
  std::vector<float> sizes(static_cast<size_t>(rows.count), kBias * kBias);  // squares of the lengths
  std::vector<int64_t> order;
  for (int64_t r = 0; r < rows.count; ++r) {
    for (int64_t i = rows.starts[r]; i < rows.starts[r + 1]; ++i)
      sizes[static_cast<size_t>(r)] += rows.values[i] * rows.values[i];
    if (rows.costs[r] > 0) order.push_back(r);
  }
  Random random{seed};
  Done done{0, 0};
  while (done.passes < limits.passes) {
    for (size_t n = order.size(); n > 1; --n) std::swap(order[n - 1], order[random.next() % n]);
    done.violation = 0;
    for (const int64_t r : order) {
      const int64_t begin = rows.starts[r], end = rows.starts[r + 1];
      float* const scores = steps.data();  // which become the steps
      std::copy_n(bias, classes, scores);
      for (int64_t i = begin; i < end; ++i)
        add_scaled(rows.values[i], weights + rows.ids[i] * classes, classes, scores);
      const float slack = 0.5f / rows.costs[r], curvature = sizes[static_cast<size_t>(r)] + slack;
      float* const own = duals.data() + r * classes;
      bool moves = false;
      for (int64_t k = 0; k < classes; ++k) {
        const float sign = k == rows.targets[r] ? 1.0f : -1.0f;
        const float slope = sign * scores[k] - 1 + slack * own[k];
        const float violation = own[k] > 0 ? std::fabs(slope) : std::max(0.0f, -slope);
        done.violation = std::max(done.violation, violation);
        const float moved = std::max(0.0f, own[k] - slope / curvature);
        steps[static_cast<size_t>(k)] = sign * (moved - own[k]);
        moves = moves || moved != own[k];
        own[k] = moved;
      }
      if (!moves) continue;
      add_scaled(kBias * kBias, steps.data(), classes, bias);
      for (int64_t i = begin; i < end; ++i)
        add_scaled(rows.values[i], steps.data(), classes, weights + rows.ids[i] * classes);
    }
    ++done.passes;
    if (done.violation <= limits.tolerance) break;
  }
  return done;
}

}  // namespace sf::linear

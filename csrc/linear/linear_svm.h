// Linear support vector machines of sparse rows, one for each class against the others: the least
//   |w|^2 / 2 + sum over rows of cost * max(0, 1 - y (w x + b))^2, where b is a half of one more weight.
// The dual problem is solved one coordinate at a time (Hsieh et al., 2008), as LIBLINEAR does. All classes take a row
// together, since the numbers of a feature then lie side by side. Needs neither torch nor Python. One thread does all
// of it, so that the same rows give the same bits whatever the number of threads; seqcls_fast/toolkit/training/svm.py
// has the same steps in numpy.
#pragma once

#include <cstdint>

namespace sf::linear {

struct Rows {
  int64_t count;
  const int64_t* starts;   // (count + 1,): where the features of each row begin
  const int32_t* ids;      // (starts[count],) below the number of features; in a row once each
  const float* values;     // (starts[count],)
  const int64_t* targets;  // (count,): the class of each row
  const float* costs;      // (count,) from 0 on; a row of 0 counts for nothing
};

struct Limits {
  int passes;       // over all rows, at most
  float tolerance;  // the largest violation of the conditions of the solution in a pass, below which it is the last
};

struct Done {
  int passes;
  float violation;  // the largest of the last pass
};

// weights: (features, classes), bias: (classes,), which are overwritten. The order of the rows in each pass depends on
// the seed.
Done fit_linear_svm(const Rows& rows, int64_t features, int64_t classes, const Limits& limits, uint64_t seed,
                    float* weights, float* bias);

}  // namespace sf::linear

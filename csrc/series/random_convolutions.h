// Random convolution features of series, in the manner of MiniRocket (Dempster, Schmidt and Webb, 2021): each feature
// is the share of a series' steps at which a dilated convolution is above a bias. Nothing of torch, Python or a backend
// is included here, so that a program without torch can compile this folder too.
//
// A kernel has nine weights: 2 at three places and -1 at the other six. There are 84 choices of three places of nine.
// seqcls_fast/convolutions.py draws dilations, channels and biases; it computes the same features, with the same bits.
#pragma once

#include <cstdint>

namespace sf::series {

constexpr int kTaps = 9;
constexpr int kKernels = 84;

struct Convolutions {
  int64_t channels;
  int64_t groups;            // dilations
  const int64_t* dilations;  // (groups,)
  const int64_t* counts;     // (groups,) biases of each kernel of a dilation
  const float* uses;         // (groups, 84, channels): 1 for a channel that is added to what the kernel reads, else 0
  const float* biases;       // (84, counts[g]) of each dilation, one after another
};

int64_t features_of(const Convolutions& convolutions);

// One series, x: (steps, width), of which the first numbers of a step are the channels. `space` has room for
// space_for() numbers; out: (features,). Nothing is allocated.
void transform_row(const Convolutions& convolutions, const float* x, int64_t steps, int64_t width, float* space,
                   float* out);
int64_t space_for(const Convolutions& convolutions, int64_t steps);

// x: (rows, steps, channels), of which row r has lengths[r] steps; out: (rows, features). A row without steps has
// zeros. Each row is computed by one thread alone, so that the number of threads changes no bit.
void transform(const Convolutions& convolutions, const float* x, const int64_t* lengths, int64_t rows, int64_t steps,
               int threads, float* out);

}  // namespace sf::series

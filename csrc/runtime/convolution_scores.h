// The scores that a linear model makes of random convolutions and summaries of a series: ConvolutionScores of
// seqcls_fast/convolutions.py. They are computed in float32 whatever the dtype of the network is.
#pragma once

#include "../cpu/host/backend.h"
#include "../series/random_convolutions.h"
#include "description.h"
#include "memory.h"
#include "tensor_file.h"

namespace sf::runtime {

class ConvolutionScores {
 public:
  // `kernels` are for float32. The description must stay where it is.
  ConvolutionScores(const Description& description, TensorFile& file, const Kernels& kernels);

  // Adds the scores of a series to logits (classes,). x: (steps, width). `space` has room for space() numbers.
  void add(const float* x, int64_t steps, int64_t width, float* space, char* scratch, float* logits) const;
  int64_t space(int64_t steps) const;
  int64_t scratch() const { return kernels_.linear_scratch(linear_); }  // bytes

 private:
  series::Convolutions convolutions_;
  const Kernels& kernels_;
  int64_t count_;  // of the numbers that the linear model reads
  const float *middle_, *scale_, *weight_;
  Linear linear_{};
  AlignedMemory packed_;
};

}  // namespace sf::runtime

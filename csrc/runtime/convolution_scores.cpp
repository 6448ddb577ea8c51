// Takes the tensors of the scores out of the file and computes them for one series at a time.
#include "convolution_scores.h"

#include <algorithm>

#include "../series/summaries.h"

namespace sf::runtime {
namespace {

constexpr float kMost = 5;  // in size, of a number that the linear model reads

Matrix matrix(const float* data, int64_t rows, int64_t columns) {
  return {reinterpret_cast<const char*>(data), rows, columns, columns, 1};
}

}  // namespace

ConvolutionScores::ConvolutionScores(const Description& d, TensorFile& file, const Kernels& kernels)
    : kernels_(kernels) {
  const ConvolutionsPart& part = d.convolutions;
  const auto groups = static_cast<int64_t>(part.dilations.size());
  const auto take = [&](const char* name, const std::vector<int64_t>& shape) {
    const std::string full = std::string("convolutions.") + name;
    return reinterpret_cast<const float*>(file.take(full, FileTensor::Kind::kFloat32, shape).data);
  };
  convolutions_ = {part.channels, groups, part.dilations.data(), part.counts.data(), nullptr, nullptr};
  const int64_t features = series::features_of(convolutions_);
  count_ = features + series::summaries_of(part.channels);
  convolutions_.uses = take("convolutions.uses", {groups, series::kKernels, part.channels});
  convolutions_.biases = take("convolutions.biases", {features});
  middle_ = take("middle", {count_});
  scale_ = take("scale", {count_});
  weight_ = take("weight", {});
  linear_.dtype = linear_.x.dtype = linear_.result.dtype = Dtype::kFloat32;
  linear_.weight = matrix(take("linear.weight", {d.classes, count_}), d.classes, count_);
  linear_.bias = matrix(take("linear.bias", {d.classes}), d.classes, 1);
  packed_ = AlignedMemory(kernels.packed_linear_size(linear_));
  kernels.pack_linear(linear_, packed_.data());
}

int64_t ConvolutionScores::space(int64_t steps) const {
  return count_ + linear_.weight.rows + series::space_for(convolutions_, steps);
}

void ConvolutionScores::add(const float* x, int64_t steps, int64_t width, float* space, char* scratch,
                            float* logits) const {
  const int64_t classes = linear_.weight.rows;
  float *const read = space, *const scores = read + count_, *const rest = scores + classes;
  series::transform_row(convolutions_, x, steps, width, rest, read);
  series::summarise(x, steps, width, convolutions_.channels, read + series::features_of(convolutions_));
  for (int64_t i = 0; i < count_; ++i) read[i] = std::clamp((read[i] - middle_[i]) * scale_[i], -kMost, kMost);
  Linear linear = linear_;
  linear.count = 1;
  linear.x.data = reinterpret_cast<char*>(read);
  linear.result.data = reinterpret_cast<char*>(scores);
  linear.x.b_stride = count_;
  linear.result.b_stride = classes;
  kernels_.linear({&linear, packed_.data(), 0, 1, scratch});
  for (int64_t k = 0; k < classes; ++k) logits[k] += *weight_ * scores[k];
}

}  // namespace sf::runtime

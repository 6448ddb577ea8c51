// Counts the arrays of a stream, and what the kernels need for any call of it.
#include "stream_memory.h"

#include <algorithm>

#include "../core/cells.h"
#include "whole_series.h"

namespace sf::runtime {
namespace {

// A call with fewer rows may need more scratch memory than one with more rows, but not from this many rows on.
constexpr int64_t kFewRows = 16;

struct KernelMemory {
  int64_t scratch = 0, shared = 0;
};

// The most memory that the kernels need in any call of these sizes.
KernelMemory kernel_memory(const Model& model, int64_t rows, int64_t steps) {
  static uint8_t some_resets = 0;
  KernelMemory most;
  for (const Layer& layer : model.layers) {
    Forward forward{};
    forward.layer = layer;
    forward.layer.T = steps;
    forward.layer.x.dtype = layer.dtype;
    forward.layer.resets.data = reinterpret_cast<char*>(&some_resets);  // only whether there are any is looked at
    for (int64_t count = 1; count <= rows; count = count < kFewRows ? count + 1 : std::max(rows, count + 1)) {
      forward.layer.B = count;
      most.scratch = std::max(most.scratch, model.kernels.forward_scratch(forward, count, false));
      most.shared = std::max(most.shared, model.kernels.forward_shared(forward, count));
    }
  }
  if (!model.description.is_classifier()) return most;
  if (model.convolutions) most.scratch = std::max(most.scratch, model.convolutions->scratch());
  most.scratch = std::max(most.scratch, model.kernels.linear_scratch(model.head));
  Softmax softmax{};
  softmax.dtype = Dtype::kFloat64;
  softmax.classes = model.description.classes;
  most.scratch = std::max(most.scratch, model.kernels.softmax_scratch(softmax));
  if (model.description.pooling != PoolKind::kAttention) return most;
  PoolSteps pooling = model.attention;
  pooling.T = steps;
  pooling.output.dtype = model.description.dtype;
  most.scratch = std::max(most.scratch, model.kernels.pool_steps_scratch(pooling));
  return most;
}

}  // namespace

StreamMemory::StreamMemory(const Model& model, int64_t rows, int64_t steps, char* base) {
  const Description& d = model.description;
  const int64_t size = size_of(d.dtype), states = rows * d.layers * d.directions, cells = rows * steps;
  const bool pools = d.pooling == PoolKind::kMean || d.pooling == PoolKind::kMax;
  const int64_t results = d.is_classifier() ? rows : 0;
  Division memory(base);
  x = memory.take<char>(cells * d.inputs * size);
  for (int i = 0; i < 2; ++i) buffers[i] = memory.take<char>(i < d.layers ? cells * d.width() * size : 0);
  h = memory.take<char>(states * padded(d.out()) * size);
  h_next = memory.take<char>(rows == 1 ? d.layers * padded(d.out()) * size : 0);
  c = memory.take<float>(kCells[d.cell].has_c ? states * padded(d.hidden) : 0);
  pooled_steps = memory.take<int64_t>(rows);
  totals = memory.take<float>(pools ? rows * d.width() : 0);
  parts = memory.take<float>(pools ? rows * d.width() : 0);
  taken = memory.take<int64_t>(rows);
  before = memory.take<double>(d.series.there() ? 2 * rows * d.features : 0);
  const bool whole = d.series.there() && (d.series.needs_whole() || d.convolutions.there());
  features = memory.take<float>(whole ? cells * d.inputs : 0);
  column = memory.take<double>(whole ? whole_series_space(steps) : 0);
  space = memory.take<float>(model.convolutions ? model.convolutions->space(steps) : 0);
  if (!whole) features = nullptr;
  pooled = memory.take<char>(results * d.width() * size);
  raw_logits = memory.take<char>(results * d.classes * size);
  logits = memory.take<float>(results * d.classes);
  probabilities = memory.take<double>(results * d.classes);
  for (int64_t** each : {&lengths, &left, &all_rows, &chosen, &order}) *each = memory.take<int64_t>(rows);
  marks = memory.take<uint8_t>(rows);
  resets = memory.take<uint8_t>(cells);
  const KernelMemory kernels = kernel_memory(model, rows, steps);
  scratch = memory.take<char>(kernels.scratch);
  shared = memory.take<char>(kernels.shared);
  bytes = memory.used();
}

}  // namespace sf::runtime

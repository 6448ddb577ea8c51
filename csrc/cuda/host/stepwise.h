// Shared by the host files that launch kernels of the stepwise regime: their arguments, and launches over whole rows.
#pragma once

#include "host.h"
#include "../kernels/norm_rows.cuh"

namespace sf::cuda {

StepwiseArgs stepwise_of(const Layer&, const Lengths&);  // defined in stepwise.cu

// A block for each row of each step.
template <class Math>
void launch_rows(DeviceStream& stream, void (*kernel)(StepwiseArgs), const StepwiseArgs& a) {
  constexpr int64_t kMaxBlocks = 2048;
  const auto blocks = static_cast<int>(std::min(a.directions * a.steps * a.B, kMaxBlocks));
  if (blocks == 0) return;
  const int shared = kRowReduceValues * static_cast<int>(sizeof(typename Math::Compute));
  stream.launch(kernel, LaunchShape{blocks, kBlockThreads, shared}, a);
}

}  // namespace sf::cuda

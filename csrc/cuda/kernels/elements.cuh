// For elementwise kernels: the threads of a block, and the elements that each thread has.
#pragma once

#include "precision.cuh"

namespace sf::cuda {

constexpr int kBlockThreads = 256;

SF_DEVICE int64_t global_thread() { return static_cast<int64_t>(block_id()) * block_threads() + thread_id(); }
SF_DEVICE int64_t all_threads() { return static_cast<int64_t>(grid_blocks()) * block_threads(); }

}  // namespace sf::cuda

// For elementwise kernels. Thread i of a launch takes the elements i, i + n, i + 2n, ..., where n is all_threads(), so
// that a launch of any size covers any number of elements.
#pragma once

#include "precision.cuh"

namespace sf::cuda {

constexpr int kBlockThreads = 256;

SF_DEVICE int64_t global_thread() { return static_cast<int64_t>(block_id()) * block_threads() + thread_id(); }
SF_DEVICE int64_t all_threads() { return static_cast<int64_t>(grid_blocks()) * block_threads(); }

}  // namespace sf::cuda

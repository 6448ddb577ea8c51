// What bindings.cpp may call of the CUDA backend: its runner, and its plans. Torch comes in as a few plain functions.
#pragma once

#include "../../bindings/runner.h"
#include "backend.h"

namespace sf::cuda {

// A torch device as a call finds it: current stream, cuBLAS handle, allocator. Memory lives as long as `keep`.
struct TorchDevice {
  int index;
  void* stream;
  void* cublas;
  void* keep;
  void* (*allocate)(void* keep, int64_t bytes);
  Sorted (*sort)(void* keep, const int64_t* keys, int64_t count);
  uint32_t* error_word;  // in pinned host memory
  bool check_launches;   // wait for each launch and report its error there
};

// Refuses a device that no architecture was built for. The plans' limits of a device are read once.
const Limits& limits_of(int device);
std::unique_ptr<Runner> make_runner(const TorchDevice&, const std::string& impl, bool allow_tf32);

}  // namespace sf::cuda

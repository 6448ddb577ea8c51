// The part of the CUDA backend that csrc/bindings calls: the runner, and the limits of a device. The functions of torch
// that it needs are passed in as plain pointers, so that no file of the backend includes headers of torch.
#pragma once

#include "../../bindings/runner.h"
#include "backend.h"

namespace sf::cuda {

// A torch device with its current stream, cuBLAS handle and allocator. Memory that it allocates lives as long as
// `keep`.
struct TorchDevice {
  int index;
  void* stream;
  void* cublas;
  void* keep;
  void* (*allocate)(void* keep, int64_t bytes);
  Sorted (*sort)(void* keep, const int64_t* keys, int64_t count);
  uint32_t* error_word;  // in pinned host memory
  bool check_launches;   // wait for each launch, so that an error is reported by the launch that caused it
};

// The limits that plans for this device observe, read once per device. Throws if no kernel was built for the device.
const Limits& limits_of(int device);
std::unique_ptr<Runner> make_runner(const TorchDevice&, const std::string& impl, bool allow_tf32);

}  // namespace sf::cuda

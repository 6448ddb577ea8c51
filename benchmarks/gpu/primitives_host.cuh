// What the parts of the program of primitives share: memory of the device, launches, and what a part has found.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "../../csrc/cuda/kernels/device.cuh"

using namespace sf::cuda;

inline bool context_lost = false;

struct Failure {
  std::string what;
};

inline void check(cudaError_t status, const char* doing) {
  if (status == cudaSuccess) return;
  context_lost = cudaDeviceSynchronize() != cudaSuccess;
  throw Failure{std::string(doing) + ": " + cudaGetErrorString(status)};
}

// Memory of the device that holds a copy of values of the host.
template <class T>
struct Buffer {
  T* data = nullptr;
  size_t count;

  explicit Buffer(const std::vector<T>& values) : count(values.size()) {
    check(cudaMalloc(&data, count * sizeof(T)), "allocating");
    check(cudaMemcpy(data, values.data(), count * sizeof(T), cudaMemcpyHostToDevice), "copying to the device");
  }
  explicit Buffer(size_t n) : Buffer(std::vector<T>(n)) {}
  Buffer(const Buffer&) = delete;
  ~Buffer() { cudaFree(data); }
  std::vector<T> values() const {
    std::vector<T> found(count);
    check(cudaMemcpy(found.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost), "copying from the device");
    return found;
  }
};

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), int blocks, int threads, int shared, int cluster, Arguments... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared);
  cudaLaunchAttribute size{};
  size.id = cudaLaunchAttributeClusterDimension;
  size.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  if (cluster > 1) {
    config.attrs = &size;
    config.numAttrs = 1;
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "asking for large clusters");
  }
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "asking for shared memory");
  check(cudaLaunchKernelEx(&config, kernel, arguments...), "launching");
  check(cudaDeviceSynchronize(), "running");
}

inline std::string number(double value) {
  char text[32];
  snprintf(text, sizeof(text), "%.5g", value);
  return text;
}

// What a part has found: numbers by name, which are printed as its line too, and why it failed.
struct Found {
  std::vector<std::pair<std::string, double>> values;
  std::string failed, skipped;

  void add(const std::string& name, double value) { values.emplace_back(name, value); }
  void expect(bool holds, const std::string& what) {
    if (!holds && failed.size() < 400) failed += (failed.empty() ? "" : "; ") + what;
  }
  std::string json() const {
    std::string text = "{", line;
    for (const auto& [name, value] : values) {
      text += "\"" + name + "\": " + (std::isfinite(value) ? number(value) : "\"" + number(value) + "\"") + ", ";
      line += (line.empty() ? "" : ", ") + name + " " + number(value);
    }
    text += "\"line\": \"" + (skipped.empty() ? line : "skipped: " + skipped) + "\"";
    if (!failed.empty()) text += ", \"failed\": \"" + failed + "\"";
    if (!skipped.empty()) text += ", \"skipped\": true";
    return text + "}";
  }
};

inline int attribute(cudaDeviceAttr name) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, 0), "asking the device");
  return value;
}

inline int architecture() {
  return 10 * attribute(cudaDevAttrComputeCapabilityMajor) + attribute(cudaDevAttrComputeCapabilityMinor);
}

enum Kind { kBf16, kFp16, kTf32 };

template <Kind kKind>
SF_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kKind == kBf16) mma_bf16(d, a, b0, b1);
  if constexpr (kKind == kFp16) mma_fp16(d, a, b0, b1);
  if constexpr (kKind == kTf32) mma_tf32(d, a, b0, b1);
}

// DeviceStream on the CPU: scratch memory with a guard page behind it, products as plain loops, and launches on the
// simulator. The host code and the kernels that use it are those of csrc/cuda.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../../../csrc/cuda/kernels/device.cuh"
#include "../../../csrc/cuda/host/device_stream.h"

namespace sf::cuda {

class SimtStream : public DeviceStream {
 public:
  explicit SimtStream(const Limits& limits, int at_once) : limits_(limits), at_once_(at_once) {}
  SimtStream(const SimtStream&) = delete;
  ~SimtStream() override {
    for (const auto& [base, size] : taken_) munmap(base, size);
  }

  const Limits& limits() const override { return limits_; }
  uint32_t* error_word() override { return &error_; }
  void zero(void* data, int64_t bytes) override { memset(data, 0, bytes); }

  Sorted sort(const int64_t* keys, int64_t count) override {
    auto* order = take_of<int64_t>(count);
    auto* sorted = take_of<int64_t>(count);
    std::iota(order, order + count, int64_t{0});
    std::stable_sort(order, order + count, [&](int64_t a, int64_t b) { return keys[a] < keys[b]; });
    for (int64_t i = 0; i < count; ++i) sorted[i] = keys[order[i]];
    return {sorted, order};
  }

  // The memory, rounded up to the alignment, ends where a page begins that cannot be read or written. It is filled with
  // bits that are NaN in every type.
  void* take(int64_t bytes) override {
    const size_t size = (bytes + 255) / 256 * 256, pages = (size + kPage - 1) / kPage * kPage;
    void* base = mmap(nullptr, pages + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED) throw std::runtime_error("simt: no memory for " + std::to_string(bytes) + " bytes");
    taken_.emplace_back(base, pages + kPage);
    char* fence = static_cast<char*>(base) + pages;
    mprotect(fence, kPage, PROT_NONE);
    return memset(fence - size, 0xFF, size);
  }

  void multiply(const Product& p) override {
    std::vector<double> a(p.m * p.k), b(p.k * p.n), row(p.n);
    for (int64_t i = 0; i < p.batch; ++i) {
      read(a, p.a, i * p.a_batch, p.a_stride, p.m, p.k, p.a_transposed, p);
      read(b, p.b, i * p.b_batch, p.b_stride, p.k, p.n, p.b_transposed, p);
      for (int64_t m = 0; m < p.m; ++m) {
        const int64_t at = i * p.c_batch + m * p.c_stride;
        for (int64_t n = 0; n < p.n; ++n) row[n] = p.accumulate ? value(p.c, p.out, at + n) : 0;
        for (int64_t k = 0; k < p.k; ++k)
          for (int64_t n = 0; n < p.n; ++n) row[n] += a[m * p.k + k] * b[k * p.n + n];
        for (int64_t n = 0; n < p.n; ++n) set(p.c, p.out, at + n, row[n]);
      }
    }
  }

  using DeviceStream::launch;
  void launch(const void* kernel, const LaunchShape& shape, void** arguments, Call call) override {
    if (shape.shared > limits_.shared_bytes)
      throw std::runtime_error("simt: the launch asks for " + std::to_string(shape.shared) +
                               " bytes of shared memory, the device has " + std::to_string(limits_.shared_bytes));
    if (shape.cluster > limits_.cluster)
      throw std::runtime_error("simt: the launch asks for clusters of " + std::to_string(shape.cluster) +
                               " blocks, the device has " + std::to_string(limits_.cluster));
    if (shape.cooperative && shape.blocks > at_once_)
      throw TooManyBlocks("simt: " + std::to_string(shape.blocks) + " blocks at once on " + std::to_string(at_once_) +
                          " multiprocessors");
    simt::launch({shape.blocks, shape.threads, shape.shared, shape.cluster, shape.cooperative},
                 [=] { call(kernel, arguments); });
  }

 private:
  static constexpr size_t kPage = 4096;

  static double value(const void* data, Dtype dtype, int64_t i) {
    if (dtype == Dtype::kFloat64) return static_cast<const double*>(data)[i];
    if (dtype == Dtype::kFloat32) return static_cast<const float*>(data)[i];
    const uint16_t bits = static_cast<const uint16_t*>(data)[i];
    return dtype == Dtype::kBFloat16 ? from_bf16(bits) : from_fp16(bits);
  }
  static void set(void* data, Dtype dtype, int64_t i, double v) {
    const float f = static_cast<float>(v);
    if (dtype == Dtype::kFloat64)
      static_cast<double*>(data)[i] = v;
    else if (dtype == Dtype::kFloat32)
      static_cast<float*>(data)[i] = f;
    else
      static_cast<uint16_t*>(data)[i] = dtype == Dtype::kBFloat16 ? to_bf16(f) : to_fp16(f);
  }
  static void read(std::vector<double>& into, const void* data, int64_t begin, int64_t stride, int64_t rows,
                   int64_t columns, bool transposed, const Product& p) {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c) {
        const double v = value(data, p.in, begin + (transposed ? c * stride + r : r * stride + c));
        into[r * columns + c] = p.tf32 && p.in == Dtype::kFloat32 ? round_tf32(static_cast<float>(v)) : v;
      }
  }

  Limits limits_;
  int at_once_;  // the multiprocessors that a cooperative launch may have, which can be fewer than the limits say
  uint32_t error_ = 0;
  std::vector<std::pair<void*, size_t>> taken_;
};

}  // namespace sf::cuda

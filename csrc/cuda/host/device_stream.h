// DeviceStream, the interface through which the host code uses a device: memory, products, sorting and launches, which
// run in order, as on a CUDA stream. runner.cu implements it with CUDA, cuBLAS and torch's allocator. tests/cuda/simt
// implements it on the CPU, so that the same host code and the same kernels run there.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "../../core/args.h"
#include "../fault.h"
#include "../plan.h"

namespace sf::cuda {

// Row-major C (m x n) = A (m x k) B (k x n), plus C if accumulate; sums in float32, in float64 for float64.
// a_transposed: A is stored as (k x m). b_transposed: B is stored as (n x k). `batch` such products are formed, whose
// matrices begin a_batch, b_batch and c_batch elements after those of the product before.
struct Product {
  int64_t m, n, k;
  const void *a, *b;
  void* c;
  int64_t a_stride, b_stride, c_stride;  // between stored rows, in elements
  Dtype in, out;
  bool a_transposed = false, b_transposed = false, accumulate = false;
  bool tf32 = false;  // float32 inputs may be rounded to TF32
  int64_t batch = 1, a_batch = 0, b_batch = 0, c_batch = 0;
};

struct LaunchShape {
  int blocks, threads;
  int shared = 0;            // bytes of shared memory
  int cluster = 1;           // blocks per cluster
  bool cooperative = false;  // all blocks must be on the device at once
};

struct Sorted {
  const int64_t *keys, *order;  // ascending keys, and the position that each had; equal keys keep their order
};

// Thrown by a launch whose blocks the device cannot hold at once now, though a plan says that it could: other programs,
// or limits of this one, leave it fewer multiprocessors. Nothing has run.
struct TooManyBlocks : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class DeviceStream {
 public:
  virtual ~DeviceStream() = default;
  virtual const Limits& limits() const = 0;
  // Scratch memory, aligned to 256 bytes, not initialised. When the call ends, later work of the stream may reuse it.
  virtual void* take(int64_t bytes) = 0;
  virtual void zero(void* data, int64_t bytes) = 0;
  virtual void multiply(const Product&) = 0;
  virtual Sorted sort(const int64_t* keys, int64_t count) = 0;
  // `call` runs the kernel in one thread. Only a stream on the CPU uses it.
  using Call = void (*)(const void* kernel, void** arguments);
  virtual void launch(const void* kernel, const LaunchShape&, void** arguments, Call call) = 0;
  // The word to which a kernel writes a Fault.
  virtual uint32_t* error_word() = 0;

  template <class T>
  T* take_of(int64_t count) {
    return static_cast<T*>(take(count * static_cast<int64_t>(sizeof(T))));
  }
  template <class Args>
  void launch(void (*kernel)(Args), const LaunchShape& shape, Args args) {
    void* arguments[] = {&args};
    launch(reinterpret_cast<const void*>(kernel), shape, arguments, [](const void* k, void** a) {
      reinterpret_cast<void (*)(Args)>(const_cast<void*>(k))(*static_cast<Args*>(a[0]));
    });
  }
};

}  // namespace sf::cuda

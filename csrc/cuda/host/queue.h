// What the host side of the CUDA backend asks for: memory, products, sorting and launches, done in order, one stream.
// The real one is over torch's allocator, cuBLAS and CUDA (queue.cu); tests/cuda/simt has one on the CPU, so that the
// same host code and the same kernels run there.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "../../core/args.h"
#include "../fault.h"
#include "../plan.h"

namespace sf::cuda {

// Row-major C (m x n) = A (m x k) B (k x n), plus C if accumulate; sums in float32, in float64 for float64.
// a_transposed: A is stored (k x m); so B. `batch` products lie one after the other at their strides.
struct Product {
  int64_t m, n, k;
  const void *a, *b;
  void* c;
  int64_t a_stride, b_stride, c_stride;  // between stored rows, in elements
  Dtype in, out;
  bool a_transposed = false, b_transposed = false, accumulate = false;
  bool tf32 = false;  // float32 may be rounded to TF32
  int64_t batch = 1, a_batch = 0, b_batch = 0, c_batch = 0;
};

struct LaunchShape {
  int blocks, threads;
  int shared = 0;            // bytes of shared memory
  int cluster = 1;           // blocks per cluster
  bool cooperative = false;  // all blocks on the device at once
};

struct Sorted {
  const int64_t *keys, *order;  // ascending, equal ones as they came; where each was
};

class Queue {
 public:
  virtual ~Queue() = default;
  virtual const Limits& limits() const = 0;
  // Scratch, 256-byte aligned, not initialised; returned when the call ends, for use by later work of the stream.
  virtual void* take(int64_t bytes) = 0;
  virtual void zero(void* data, int64_t bytes) = 0;
  virtual void multiply(const Product&) = 0;
  virtual Sorted sort(const int64_t* keys, int64_t count) = 0;
  // call runs one thread's share of the kernel where blocks are run on the CPU.
  using Call = void (*)(const void* kernel, void** arguments);
  virtual void launch(const void* kernel, const LaunchShape&, void** arguments, Call call) = 0;
  // The word a kernel raises to a Fault.
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

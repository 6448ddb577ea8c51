// Checks of torch's tensors, and new tensors. Kernels get bare pointers, so check_tensor() also proves that sizes and
// strides stay within a tensor's memory. The operators see tensors through torch's stable ABI, and the eager entry sees
// them through torch's C++ interface, which is faster; this file and those that include it are compiled for both.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "../core/args.h"
#include "../cpu/host/backend.h"
#include "checks.h"
#if defined(SF_EAGER)
#include "../eager/aten_tensors.h"
#else
#include "stable_tensors.h"
#endif

namespace sf {

using Tensors = std::vector<Tensor>;
using Maybe = std::optional<Tensor>;
using Dims = std::initializer_list<int64_t>;

// ---- Dtypes and devices

inline const char* text(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return "another dtype";
  }
}

inline std::string text(const Device& device) {
  if (device.type() == DeviceType::CPU) return "the CPU";
  if (device.type() == DeviceType::CUDA) return "cuda:" + std::to_string(device.index());
  return "another device";
}

inline Dtype dtype_of(const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Dtype::kFloat32;
    case ScalarType::Double:
      return Dtype::kFloat64;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:
      fail(name, ": expected dtype float32, float64, bfloat16 or float16 but got ", text(t.scalar_type()));
  }
}

inline ScalarType scalar_of(Dtype d) {
  constexpr ScalarType kTypes[] = {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16, ScalarType::Half};
  return kTypes[static_cast<int>(d)];
}

// ---- Checks: `name` is the argument that the error sentence is about

// The dispatcher passes None for a Tensor as an undefined tensor.
inline void check_given(const char* name, const Tensor& t) {
  if (!t.defined()) fail(name, ": expected a tensor but got None");
}

// More elements than any machine has memory for. Sizes that a call computes are sums of products of a few dimensions
// that passed this check, so none of them overflows 64 bits.
constexpr int64_t kMostElements = int64_t{1} << 48;

// A dimension of size 0 counts as 1, because the other dimensions still enter such products.
template <class Sizes>
void check_elements(const char* name, const Sizes& sizes) {
  int64_t count = 1;
  for (size_t i = 0; i < sizes.size(); ++i) {
    const int64_t size = std::max<int64_t>(sizes.begin()[i], 1);
    if (size > kMostElements / count)
      fail(name, ": expected at most ", kMostElements, " elements but got shape ", text(sizes));
    count *= size;
  }
}

// Refuses a tensor whose elements do not all lie in its storage. The storage may have been freed or made smaller since
// the tensor was made (untyped_storage().resize_), and an expanded tensor may claim any size.
inline void check_memory(const char* name, const Tensor& t) {
  const auto sizes = t.sizes(), strides = t.strides();
  check_elements(name, sizes);
  if (t.numel() == 0) return;
  const int64_t storage = storage_bytes(t);
  int64_t last = t.storage_offset();  // index of the element at the end of every dimension
  bool inside = true;
  for (size_t i = 0; inside && i < sizes.size(); ++i) {
    int64_t reach = 0;
    inside = !__builtin_mul_overflow(sizes[i] - 1, strides[i], &reach) && !__builtin_add_overflow(last, reach, &last);
  }
  const auto element = static_cast<int64_t>(t.element_size());
  if (!inside || last >= storage / element)
    fail(name, ": expected memory for shape ", text(sizes), " with strides ", text(strides), " from element ",
         t.storage_offset(), " on, but its storage holds ", storage / element, " elements");
}

template <class Expected>
void check_tensor(const char* name, const Tensor& t, const Device& device, ScalarType type, const Expected& shape) {
  if (t.device() != device)
    fail(name, ": expected a tensor on ", text(device), ", like the input, but got one on ", text(t.device()));
  if (t.scalar_type() != type) fail(name, ": expected dtype ", text(type), " but got ", text(t.scalar_type()));
  const auto sizes = t.sizes();
  bool same = sizes.size() == shape.size();
  for (size_t i = 0; same && i < shape.size(); ++i) same = sizes[i] == shape.begin()[i];
  if (!same) fail(name, ": expected shape ", text(shape), " but got ", text(sizes));
  check_memory(name, t);
}

// ---- Memory

inline char* data_of(const Tensor& t) { return static_cast<char*>(t.data_ptr()); }

constexpr int64_t kPooledBytes = 1 << 20;  // a new buffer of this size or more costs less from the pool

// A tensor, not initialised; contiguous, or as if it were transposed from a contiguous one if `transposed`: the first
// two dimensions then lie in memory in the other order. (A view made by transposing would not do, since torch refuses
// in-place changes of a view that an autograd Function returns.) Throws std::bad_alloc where there is too little memory
// on the CPU.
inline Tensor empty(const Shape& shape, Dtype dtype, const Device& device, bool transposed = false) {
  check_elements("results", shape);
  Shape strides(shape.size());
  int64_t elements = 1, stride = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    const size_t k = transposed && i < 2 ? 1 - i : i;
    strides[k] = stride;
    stride *= std::max<int64_t>(shape[k], 1);
    elements *= shape[k];
  }
  const int64_t bytes = elements * size_of(dtype);
  if (device.type() == DeviceType::CPU && bytes >= kPooledBytes)
    return tensor_on(pool_take(bytes), shape, strides, scalar_of(dtype), pool_give);
  return new_tensor(shape, strides, scalar_of(dtype), device);
}

// Bytes on the CPU, at an address that vectors may be read from.
inline Tensor empty_bytes(int64_t count) {
  const Shape shape{count}, stride{1};
  if (count >= kPooledBytes) return tensor_on(pool_take(count), shape, stride, ScalarType::Byte, pool_give);
  return new_tensor(shape, stride, ScalarType::Byte, Device(DeviceType::CPU, -1));
}

}  // namespace sf

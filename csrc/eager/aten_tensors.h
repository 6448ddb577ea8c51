// Tensors through torch's C++ interface, under the names of csrc/bindings/stable_tensors.h. A library that uses them
// works with the release of torch that it was compiled for, and with no other.
#pragma once

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>

#include <cstdint>
#include <new>
#include <string>
#include <vector>

namespace sf {

using at::Device;
using at::DeviceType;
using at::ScalarType;
using at::Tensor;
using Shape = c10::SmallVector<int64_t, 4>;

struct Name {
  std::string value;
};

inline int64_t storage_bytes(const Tensor& t) { return static_cast<int64_t>(t.storage().nbytes()); }

inline Tensor new_tensor(const Shape& shape, const Shape& strides, ScalarType type, const Device&) try {
  return at::detail::empty_strided_cpu(shape, strides, type);
} catch (const c10::Error&) {
  throw std::bad_alloc();
}

inline Tensor tensor_on(void* memory, const Shape& shape, const Shape& strides, ScalarType type,
                        void (*give_back)(void*)) {
  return at::from_blob(memory, shape, strides, give_back, at::TensorOptions(type));
}

inline Tensor as_contiguous(const Tensor& t) { return t.contiguous(); }
inline Tensor as_transposed(const Tensor& t) { return t.transpose(-1, -2); }
inline void fill_with_zeros(Tensor& t) { t.zero_(); }
inline Tensor on_device(const std::vector<int64_t>& values, const Device& device) {
  return at::tensor(values, at::kLong).to(device);
}

}  // namespace sf

// Tensors through torch's stable ABI, as tensors.h wants them: the names of their types, new ones, and what the checks
// ask of them. csrc/eager/aten_tensors.h has the same names for tensors through torch's C++ interface.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <new>
#include <optional>
#include <string>
#include <vector>

#include "stable_abi.h"

namespace sf {

using torch::headeronly::DeviceType;
using torch::headeronly::ScalarType;
using torch::stable::Device;
using torch::stable::Tensor;
using Shape = std::vector<int64_t>;

// A str argument of an op. Torch's own conversion to std::string leaks the string it makes (2.13).
struct Name {
  std::string value;
};

}  // namespace sf

namespace torch::stable::detail {
template <>
struct ToImpl<sf::Name> {
  static sf::Name call(StableIValue value, uint64_t, bool) {
    StringHandle handle = to<StringHandle>(value);
    const char* data = nullptr;
    size_t length = 0;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    sf::Name name{std::string(data, length)};
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return name;
  }
};
}  // namespace torch::stable::detail

namespace sf {

// A dtype as the C functions of the ABI take it.
inline int32_t number_of(ScalarType type) {
  return torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
}

inline int64_t storage_bytes(const Tensor& t) {
  int64_t bytes = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  return bytes;
}

// torch::stable has no function for empty_strided.
inline Tensor empty_on_device(const Shape& shape, const Shape& strides, ScalarType type, const Device& device) {
  using torch::stable::detail::from;
  const std::optional<ScalarType> dtype = type;
  const std::optional<Device> where = device;
  const std::optional<torch::headeronly::Layout> layout;
  const std::optional<bool> pinned;
  const torch::headeronly::IntHeaderOnlyArrayRef sizes(shape), steps(strides);
  std::array<StableIValue, 6> stack{from(sizes), from(steps), from(dtype), from(layout), from(where), from(pinned)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::empty_strided", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

// Throws std::bad_alloc where there is too little memory on the CPU.
inline Tensor new_tensor(const Shape& shape, const Shape& strides, ScalarType type, const Device& device) {
  if (device.type() != DeviceType::CPU) return empty_on_device(shape, strides, type, device);
  AtenTensorHandle handle;
  if (aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides.data(), number_of(type),
                               aoti_torch_device_type_cpu(), -1, &handle) != TORCH_SUCCESS)
    throw std::bad_alloc();
  return Tensor(handle);
}

// A tensor of the CPU on memory that `give_back` frees.
inline Tensor tensor_on(void* memory, const Shape& shape, const Shape& strides, ScalarType type,
                        void (*give_back)(void*)) {
  return torch::stable::from_blob(memory, shape, strides, Device(DeviceType::CPU, -1), type, give_back);
}

inline Tensor as_contiguous(const Tensor& t) { return torch::stable::contiguous(t); }
inline Tensor as_transposed(const Tensor& t) { return torch::stable::transpose(t, -1, -2); }
inline void fill_with_zeros(Tensor& t) { torch::stable::zero_(t); }

// A copy of the values on another device.
inline Tensor on_device(const std::vector<int64_t>& values, const Device& device) {
  const Shape shape{static_cast<int64_t>(values.size())}, stride{1};
  const Tensor here = torch::stable::from_blob(const_cast<int64_t*>(values.data()), shape, stride,
                                               Device(DeviceType::CPU, -1), ScalarType::Long);
  Tensor there = torch::stable::empty(shape, ScalarType::Long, std::nullopt, device);
  torch::stable::copy_(there, here, true);  // the memory is not pinned, so it is read before copy_ returns
  return there;
}

}  // namespace sf

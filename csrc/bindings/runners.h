// The implementations of runner.h's interface, and ScopedRunner, which chooses one for each call.
// The CUDA backend includes no header of torch. It receives torch's stream and cuBLAS handle from here as plain
// pointers, and torch's allocator and sort as plain functions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "cpu_runner.h"
#include "runner.h"
#include "tensors.h"
#if defined(SF_WITH_CUDA)
#include "../cuda/host/runner.h"
// A torch that was built without CUDA lacks these two functions. They are weak so that the library still loads there,
// where nothing calls them.
#pragma weak torch_get_current_cuda_blas_handle
#pragma weak aoti_torch_get_current_cuda_stream
#endif

namespace sf {

#if defined(SF_WITH_CUDA)
// Whether every launch is waited for, so that an error is raised by the call that caused it.
inline bool sync_check() {
  const char* value = std::getenv("SEQCLS_SYNC_CHECK");
  return value && std::string(value) == "1";
}

// The error code that kernels write to pinned host memory, for the next call to raise. It lives as long as the process.
inline uint32_t* error_word() {
  static uint32_t* const word = [] {
    AtenTensorHandle handle;
    const int64_t size = 1, stride = 1;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided_pinned(1, &size, &stride, number_of(ScalarType::Int),
                                                           aoti_torch_device_type_cpu(), -1, &handle));
    auto* kept = new Tensor(handle);
    auto* data = static_cast<uint32_t*>(kept->data_ptr());
    *data = 0;
    return data;
  }();
  return word;
}

// Sorts keys in ascending order; equal keys keep their order. Also returns the old position of each.
inline std::pair<Tensor, Tensor> sort_stably(const Tensor& keys) {
  using torch::stable::detail::from, torch::stable::detail::to;
  StableIValue stack[] = {from(keys), from(std::optional<bool>(true)), from(int64_t{0}), from(false)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::sort", "stable", stack, TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}
#endif

// The runner of one call. It makes the device of x the current one, and keeps the runner's scratch memory, until the
// call ends.
class ScopedRunner {
 public:
  // impl: "auto" or the name of an implementation for the device of x. allow_tf32: float32 products may be rounded to
  // TF32, which the CPU's kernels never do.
  ScopedRunner(const Tensor& x, const Name& impl, bool allow_tf32) : device_(x.device()) {
    if (device_.type() == DeviceType::CPU) {
      for (const Plugin* plugin : plugins())
        if (std::count(plugin->names.begin(), plugin->names.end(), impl.value))
          runner_ = plugin->make(impl.value, allow_tf32);
      if (!runner_) runner_ = std::make_unique<CpuRunner>(impl.value);
      return;
    }
#if defined(SF_WITH_CUDA)
    runner_ = make_cuda_runner(impl.value, allow_tf32);
#else
    fail("x: expected a tensor on the CPU, as this build has no CUDA, but got one on ", text(device_));
#endif
  }
  ScopedRunner(const ScopedRunner&) = delete;  // the runner of CUDA points to this object

  Runner& operator*() const { return *runner_; }
  Runner* operator->() const { return runner_.get(); }

 private:
#if defined(SF_WITH_CUDA)
  std::unique_ptr<Runner> make_cuda_runner(const std::string& impl, bool allow_tf32) {
    uint32_t* const error = error_word();
    // The word is cleared only where it is set: clearing it in each call could lose an error written meanwhile.
    if (*error) fail(cuda::sentence_of(std::exchange(*error, 0)));
    guard_.emplace(device_.index());
    cuda::TorchDevice found{};
    found.index = device_.index();
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(found.index, &found.stream));
    TORCH_ERROR_CODE_CHECK(torch_get_current_cuda_blas_handle(&found.cublas));
    found.keep = this;
    found.allocate = [](void* keep, int64_t bytes) {
      auto& self = *static_cast<ScopedRunner*>(keep);
      self.scratch_.push_back(
          torch::stable::empty({std::max<int64_t>(bytes, 1)}, ScalarType::Byte, std::nullopt, self.device_));
      return self.scratch_.back().data_ptr();
    };
    found.sort = [](void* keep, const int64_t* keys, int64_t count) {
      auto& self = *static_cast<ScopedRunner*>(keep);
      const auto [sorted, order] = sort_stably(
          torch::stable::from_blob(const_cast<int64_t*>(keys), Shape{count}, Shape{1}, self.device_, ScalarType::Long));
      self.scratch_.insert(self.scratch_.end(), {sorted, order});
      return cuda::Sorted{static_cast<const int64_t*>(sorted.data_ptr()),
                          static_cast<const int64_t*>(order.data_ptr())};
    };
    found.error_word = error;
    found.check_launches = sync_check();
    return cuda::make_runner(found, impl, allow_tf32);
  }
#endif

  Device device_;
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  Tensors scratch_;
  std::unique_ptr<Runner> runner_;
};

}  // namespace sf

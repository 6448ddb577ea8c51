// The runner of the kernels for CPUs. It includes nothing of torch, so that every file can use it.
#pragma once

#include <map>
#include <string>

#include "../cpu/host/backend.h"
#include "runner.h"

namespace sf {

class CpuRunner : public Runner {
 public:
  explicit CpuRunner(const std::string& impl) : kernels_(kernels_for(impl)) {}
  Dtype buffer_dtype(Dtype storage) const override {  // the dtype of the sums
    return storage == Dtype::kFloat64 ? storage : Dtype::kFloat32;
  }
  Dtype gates_dtype(const Layer& l) const override { return kernels_.gates_dtype(l); }
  void forward(const Forward& f) override { run_forward(kernels_, f); }
  void backward(const Backward& b) override { run_backward(kernels_, b); }
  void weight_grad(const WeightGrad& g) override { run_weight_grad(kernels_, g); }
  void sum_rows(const RowSums& s) override { run_sum_rows(kernels_, s); }
  const char* packs_for() const override { return kernels_.name; }
  int64_t packed_size(const Layer& l) const override { return sf::packed_size(kernels_, l); }
  void pack(const Layer& l, char* to) const override { pack_all(kernels_, l, to); }

 private:
  const Kernels& kernels_;
};

// The runner of an implementation, made once; null if `impl` is neither "auto" nor the name of one for CPUs.
inline Runner* cpu_runner(const char* impl) {
  static std::map<std::string, CpuRunner>* const all = [] {
    auto* made = new std::map<std::string, CpuRunner>;  // never destroyed: threads may still run while a process ends
    made->try_emplace("auto", "auto");
    for (const std::string& name : impl_names()) made->try_emplace(name, name);
    return made;
  }();
  const auto found = all->find(impl);
  return found == all->end() ? nullptr : &found->second;
}

}  // namespace sf

// One implementation of the ops, which bindings.cpp calls once the arguments are checked: an instruction set of the
// CPU, CUDA, or one that a plugin brings (tests/cuda/simt runs the CUDA backend on the CPU that way).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../core/args.h"

namespace sf {

class Runner {
 public:
  virtual ~Runner() = default;
  // of `saved` and `d_gates`
  virtual Dtype buffer_dtype(Dtype storage) const = 0;
  virtual void forward(const Forward&) = 0;
  virtual void backward(const Backward&) = 0;
  virtual void weight_grad(const WeightGrad&) = 0;
};

struct Plugin {  // more implementations for CPU tensors
  std::vector<std::string> names;
  std::unique_ptr<Runner> (*make)(const std::string& name);
};

// The name of the capsules that hold a Plugin. It changes with the layout of any struct that a plugin shares with us.
constexpr const char* kPluginCapsule = "seqcls_fast.Plugin.1";

inline std::vector<const Plugin*>& plugins() {
  static std::vector<const Plugin*> all;
  return all;
}

}  // namespace sf

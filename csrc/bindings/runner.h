// The interface of an implementation of the ops, which they call once their arguments are checked: an instruction set
// of the CPU, CUDA, or one that a plugin brings (tests/cuda/simt runs the CUDA backend on the CPU that way).
// runners.h has the implementations, and chooses the one that a call gets.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../core/args.h"

namespace sf {

class Runner {
 public:
  virtual ~Runner() = default;
  // The dtype of `saved` and `d_gates` for a layer whose tensors are of dtype `storage`.
  virtual Dtype buffer_dtype(Dtype storage) const = 0;
  virtual void forward(const Forward&) = 0;
  virtual void backward(const Backward&) = 0;
  virtual void weight_grad(const WeightGrad&) = 0;
};

struct Plugin {  // more implementations for CPU tensors
  std::vector<std::string> names;
  // allow_tf32: float32 products may be rounded to TF32
  std::unique_ptr<Runner> (*make)(const std::string& name, bool allow_tf32);
};

// The name of the capsules that hold a Plugin. It changes with every struct and function that a plugin shares with us.
constexpr const char* kPluginCapsule = "seqcls_fast.Plugin.2";

inline std::vector<const Plugin*>& plugins() {
  static std::vector<const Plugin*> all;
  return all;
}

}  // namespace sf

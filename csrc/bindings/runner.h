// Runner, the interface of an implementation. The ops call it after they have checked their arguments. There is one for
// the CPU, one for CUDA, and plugins may add more: tests/cuda/simt adds one that runs the CUDA backend on the CPU.
// runners.h has our implementations and chooses one for each call.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../core/args.h"

namespace sf {

class Runner {
 public:
  virtual ~Runner() = default;
  // The dtype of `saved` for a layer whose tensors are of dtype `storage`, and of `d_gates`.
  virtual Dtype buffer_dtype(Dtype storage) const = 0;
  virtual Dtype gates_dtype(const Layer& layer) const { return buffer_dtype(layer.dtype); }
  virtual void forward(const Forward&) = 0;
  virtual void backward(const Backward&) = 0;
  virtual void weight_grad(const WeightGrad&) = 0;
  virtual void sum_rows(const RowSums&) = 0;
  // Weights that are packed before a call, for Layer::packed. The name of the instruction set that they are packed for
  // is null where a runner takes none; the other functions are not called then.
  virtual const char* packs_for() const { return nullptr; }
  virtual int64_t packed_size(const Layer&) const { return 0; }
  virtual void pack(const Layer&, char*) const {}
};

struct Plugin {  // more implementations for CPU tensors
  std::vector<std::string> names;
  // allow_tf32: float32 products may be rounded to TF32
  std::unique_ptr<Runner> (*make)(const std::string& name, bool allow_tf32);
};

// The name of the capsules that hold a Plugin. Its number must be raised when a struct or function that plugins share
// with us changes.
constexpr const char* kPluginCapsule = "seqcls_fast.Plugin.5";

// What the eager entry (csrc/eager), a library of its own, takes from this one. It gets them in a capsule of this name,
// whose number must be raised as that above. It refuses the capsule unless it was built from the same sources.
struct Exports {
  const char* csrc_hash;
  Runner* (*cpu_runner)(const char* impl);
  void* (*pool_take)(int64_t bytes);
  void (*pool_give)(void* memory);
};
constexpr const char* kExportsCapsule = "seqcls_fast.Exports.3";

inline std::vector<const Plugin*>& plugins() {
  static std::vector<const Plugin*> all;
  return all;
}

}  // namespace sf

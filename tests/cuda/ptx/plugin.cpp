// The CUDA backend's host code with its kernels run from their PTX, as implementations for CPU tensors: ptx-REGIME, and
// ptx-REGIME-tf32 with allow_tf32. -chunked cuts the projected input into many launches. The device is as large as an
// H200, since only kernels that a real device can choose are compiled to PTX.
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <mutex>
#include <unordered_map>

#include "../../../csrc/bindings/runner.h"
#include "../../../csrc/cuda/host/backend.h"
#include "../simt/simt_stream.h"
#include "machine.h"
#include "tensors.h"

namespace sf::ptx {
namespace {

using cuda::Choice;
using cuda::Limits;
using cuda::Pass;

struct Kernel {
  std::string text;
  Program program;
  bool parsed = false;
  int64_t runs = 0, instructions = 0;
};
std::unordered_map<std::string, Kernel> kernels;         // by their mangled name
std::unordered_map<uint64_t, std::string> kernel_names;  // by the offset of the host's function in this library
unsigned seed = 0;

int64_t run_kernel(const std::string& name, const Launch& launch, const void* param, GlobalMemory& memory) {
  const auto found = kernels.find(name);
  if (found == kernels.end()) throw Fault("no such kernel in the PTX: " + name);
  Kernel& kernel = found->second;
  if (!kernel.parsed) {
    kernel.program = Parser(kernel.text).parse();
    kernel.parsed = true;
  }
  ++kernel.runs;
  Machine machine(name, kernel.program, launch, param, memory, ++seed);
  machine.run();
  kernel.instructions += machine.instructions();
  return machine.instructions();
}

class PtxStream : public cuda::SimtStream {
 public:
  PtxStream(const Limits& limits, GlobalMemory& memory) : SimtStream(limits, limits.multiprocessors), memory_(memory) {
    memory_.add(error_word(), 4, true, "the error word");
  }
  void* take(int64_t bytes) override {
    void* data = SimtStream::take(bytes);
    memory_.add(data, bytes, true, "scratch memory");
    return data;
  }
  using DeviceStream::launch;
  void launch(const void* kernel, const cuda::LaunchShape& shape, void** arguments, Call) override {
    Dl_info info;
    dladdr(kernel, &info);
    const auto found =
        kernel_names.find(reinterpret_cast<uint64_t>(kernel) - reinterpret_cast<uint64_t>(info.dli_fbase));
    if (found == kernel_names.end()) throw Fault("no symbol of this library is the kernel that is launched");
    if (shape.shared > limits().shared_bytes || shape.cluster > limits().cluster ||
        (shape.cooperative && shape.blocks > limits().multiprocessors))
      throw Fault("the launch is too large for the device");
    run_kernel(found->second, {shape.blocks, shape.threads, shape.shared, shape.cluster, shape.cooperative},
               arguments[0], memory_);
  }

 private:
  GlobalMemory& memory_;
};

class PtxRunner : public Runner {
 public:
  PtxRunner(std::string name, bool allow_tf32) {
    const auto remove = [&](const std::string& word) {
      const auto at = name.find(word);
      if (at == std::string::npos) return false;
      name.erase(at, word.size());
      return true;
    };
    remove("ptx-");
    if (remove("-chunked")) limits_.projected_bytes = 16384;
    allow_tf32 |= remove("-tf32");
    choice_ = cuda::choice_of(name, allow_tf32);
  }
  Dtype buffer_dtype(Dtype storage) const override { return storage; }
  void forward(const Forward& f) override {
    run(f.layer, [&](Tensors& t) { t.forward(f); }, [&](PtxStream& s) { run_forward(f, choice_, s); });
  }
  void backward(const Backward& b) override {
    run(b.layer, [&](Tensors& t) { t.backward(b); }, [&](PtxStream& s) { run_backward(b, choice_, s); });
  }
  void weight_grad(const WeightGrad& g) override {
    run(g.layer, [&](Tensors& t) { t.weight_grad(g); }, [&](PtxStream& s) { run_weight_grad(g, choice_, s); });
  }
  void sum_rows(const RowSums& s) override {
    run([&](GlobalMemory& memory) { add_row_sums(memory, s); }, [&](PtxStream& stream) { run_sum_rows(s, stream); });
  }

 private:
  template <class Add, class F>
  void run(const Layer& l, Add&& add, F&& f) {
    run(
        [&](GlobalMemory& memory) {
          Tensors tensors(memory, l);
          add(tensors);
        },
        std::forward<F>(f));
  }
  template <class Add, class F>
  void run(Add&& add, F&& f) {
    static std::mutex one_at_a_time;
    const std::lock_guard lock(one_at_a_time);
    GlobalMemory memory;
    add(memory);
    PtxStream stream(limits_, memory);
    f(stream);
    if (*stream.error_word()) throw Fault(cuda::sentence_of(*stream.error_word()));
  }

  Choice choice_;
  Limits limits_{90, 132, 232448, 16, 16, int64_t{1} << 20};
};

std::vector<std::string> names() {
  std::vector<std::string> all;
  for (const std::string& regime : cuda::regime_names())
    for (const char* chunked : {"", "-chunked"})
      for (const char* precision : {"", "-tf32"}) all.push_back("ptx-" + regime + chunked + precision);
  return all;
}
std::unique_ptr<Runner> make_runner(const std::string& name, bool allow_tf32) {
  return std::make_unique<PtxRunner>(name, allow_tf32);
}
const Plugin kPlugin{names(), make_runner};

int64_t run_alone(const std::string& name, int blocks, int threads, int shared, int cluster, bool cooperative,
                  const std::string& param, const std::vector<std::tuple<uint64_t, int64_t, bool>>& buffers) {
  GlobalMemory memory;
  for (const auto& [data, bytes, writable] : buffers)
    memory.add(reinterpret_cast<const void*>(data), bytes, writable, "a buffer");
  return run_kernel(name, {blocks, threads, shared, cluster, cooperative}, param.data(), memory);
}

}  // namespace
}  // namespace sf::ptx

PYBIND11_MODULE(_ptx, m) {
  namespace py = pybind11;
  using namespace sf::ptx;
  m.attr("plugin") = py::capsule(&kPlugin, sf::kPluginCapsule);
  m.attr("names") = kPlugin.names;
  m.def("set_kernel", [](const std::string& name, std::string text) { kernels[name] = Kernel{std::move(text), {}}; });
  m.def("set_names", [](std::unordered_map<uint64_t, std::string> all) { kernel_names = std::move(all); });
  m.def("runs", [] {
    std::map<std::string, std::pair<int64_t, int64_t>> all;
    for (const auto& [name, kernel] : kernels)
      if (kernel.runs) all[name] = {kernel.runs, kernel.instructions};
    return all;
  });
  m.def("run", [](const std::string& name, int blocks, int threads, int shared, int cluster, bool cooperative,
                  const py::bytes& param, const std::vector<std::tuple<uint64_t, int64_t, bool>>& buffers) {
    return run_alone(name, blocks, threads, shared, cluster, cooperative, param, buffers);
  });
}

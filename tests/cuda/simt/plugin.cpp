// The CUDA backend, host code and kernels, as implementations for CPU tensors: simt-REGIME, on a device so small that
// modest layers span its blocks, and simt-REGIME-full, whose blocks are as large as a real device's; -tf32 behind
// either. simt-grid-hurried gives up at its first look in vain. A finding of the shim's detectors is an exception at
// the op.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <mutex>

#include "../../../csrc/cuda/host/backend.h"
#include "../../../csrc/bindings/runner.h"
#include "simt_queue.h"

namespace sf::cuda {
namespace {

constexpr int64_t kChunk = 16384;  // bytes of projected input, so that most sequences are cut
constexpr Limits kTiny{90, 4, 65536, 4, 2, kChunk}, kSmall{90, 40, 232448, 16, 2, kChunk},
    kFull{90, 64, 232448, 16, 16, kChunk};

class SimtRunner : public Runner {
 public:
  explicit SimtRunner(std::string name) {
    name.erase(0, sizeof("simt-") - 1);
    const auto full = name.find("-full");
    full_ = full != std::string::npos;
    if (full_) name.erase(full, sizeof("-full") - 1);
    const auto hurried = name.find("-hurried");
    hurried_ = hurried != std::string::npos;
    if (hurried_) name.erase(hurried);
    choice_ = choice_of(name);
  }
  Dtype buffer_dtype(Dtype storage) const override { return storage; }
  void forward(const Forward& f) override {
    run(f.layer, Pass::kForward, [&](Queue& q) { run_forward(f, choice_, q); });
  }
  void backward(const Backward& b) override {
    run(b.layer, Pass::kBackward, [&](Queue& q) { run_backward(b, choice_, q); });
  }
  void weight_grad(const WeightGrad& g) override {
    run(g.layer, Pass::kForward, [&](Queue& q) { run_weight_grad(g, choice_, q); });
  }

 private:
  template <class F>
  void run(const Layer& l, Pass pass, F&& f) {
    static std::mutex one_at_a_time;  // the shim is one machine
    const std::lock_guard lock(one_at_a_time);
    Limits limits = limits_for(l, pass);
    if (hurried_) limits.most_peeks = 1;
    SimtQueue queue(limits);
    f(queue);
    if (*queue.error_word()) throw std::runtime_error(std::string("simt: ") + sentence_of(*queue.error_word()));
  }
  Limits limits_for(const Layer& l, Pass pass) const {
    if (full_) return kFull;
    for (const Limits& limits : {kTiny, kSmall}) {
      try {
        plan_layer(l, pass, choice_, limits);
        return limits;
      } catch (const std::runtime_error&) {  // the forced regime does not fit
      }
    }
    return kFull;
  }

  Choice choice_;
  bool full_ = false, hurried_ = false;
};

const Plugin kPlugin{
    [] {
      std::vector<std::string> names;
      for (const std::string& regime : regime_names())
        for (const char* size : {"", "-full"})
          for (const char* precision : {"", "-tf32"}) names.push_back("simt-" + regime + size + precision);
      names.push_back("simt-grid-hurried");
      return names;
    }(),
    [](const std::string& name) -> std::unique_ptr<Runner> { return std::make_unique<SimtRunner>(name); }};

}  // namespace
}  // namespace sf::cuda

PYBIND11_MODULE(_simt, m) {
  namespace py = pybind11;
  m.attr("plugin") = py::capsule(&sf::cuda::kPlugin, sf::kPluginCapsule);
  m.attr("names") = sf::cuda::kPlugin.names;
}

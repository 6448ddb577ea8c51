// The CUDA backend, host code and kernels, as implementations for CPU tensors. simt-REGIME simulates a device so small
// that even a small layer needs several of its blocks; simt-REGIME-full has blocks as large as a real device's. With
// -tf32 at the end, either has allow_tf32, for tests that can name an implementation but pass no argument. With
// -hurried a kernel stops waiting at its first failed poll; with -crowded a launch gets one multiprocessor, whatever
// the plan was made for. If the simulator finds a fault, the op throws it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <mutex>

#include "../../../csrc/cuda/host/backend.h"
#include "../../../csrc/bindings/runner.h"
#include "simt_stream.h"

namespace sf::cuda {
namespace {

constexpr int64_t kChunk = 16384;  // bytes of projected input at a time, so few that most layers take several launches
constexpr Limits kTiny{90, 4, 65536, 4, 2, kChunk}, kSmall{90, 40, 232448, 16, 2, kChunk},
    kFull{90, 64, 232448, 16, 16, kChunk}, kNoClusters{90, 40, 232448, 1, 2, kChunk};

class SimtRunner : public Runner {
 public:
  SimtRunner(std::string name, bool allow_tf32) {
    const auto remove = [&](const std::string& word) {
      const auto at = name.find(word);
      if (at == std::string::npos) return false;
      name.erase(at, word.size());
      return true;
    };
    remove("simt-");
    full_ = remove("-full");
    hurried_ = remove("-hurried");
    crowded_ = remove("-crowded");
    allow_tf32 |= remove("-tf32");
    choice_ = choice_of(name, allow_tf32);
  }
  Dtype buffer_dtype(Dtype storage) const override { return storage; }
  void forward(const Forward& f) override {
    run(f.layer, Pass::kForward, [&](DeviceStream& stream) { run_forward(f, choice_, stream); });
  }
  void backward(const Backward& b) override {
    run(b.layer, Pass::kBackward, [&](DeviceStream& stream) { run_backward(b, choice_, stream); });
  }
  void weight_grad(const WeightGrad& g) override {
    run(g.layer, Pass::kForward, [&](DeviceStream& stream) { run_weight_grad(g, choice_, stream); });
  }
  void sum_rows(const RowSums& s) override {
    run(kFull, [&](DeviceStream& stream) { run_sum_rows(s, stream); });
  }

 private:
  template <class F>
  void run(const Layer& l, Pass pass, F&& f) {
    run(limits_for(l, pass), std::forward<F>(f));
  }
  template <class F>
  void run(Limits limits, F&& f) {
    static std::mutex one_at_a_time;  // the simulator is one global machine
    const std::lock_guard lock(one_at_a_time);
    if (hurried_) limits.max_polls = 1;
    SimtStream stream(limits, crowded_ ? 1 : limits.multiprocessors);
    try {
      f(stream);
    } catch (const std::runtime_error&) {  // what follows a wait that was given up is no finding
      if (!hurried_ || !*stream.error_word()) throw;
    }
    if (*stream.error_word()) throw std::runtime_error(std::string("simt: ") + sentence_of(*stream.error_word()));
  }
  Limits limits_for(const Layer& l, Pass pass) const {
    if (full_) return kFull;
    if (crowded_) return kNoClusters;
    for (const Limits& limits : {kTiny, kSmall}) {
      try {
        plan_layer(l, pass, choice_, limits);
        return limits;
      } catch (const std::runtime_error&) {  // try a larger device if the forced regime does not fit
      }
    }
    return kFull;
  }

  Choice choice_;
  bool full_ = false, hurried_ = false, crowded_ = false;
};

std::vector<std::string> simt_names() {
  std::vector<std::string> names;
  for (const std::string& regime : regime_names())
    for (const char* size : {"", "-full"})
      for (const char* precision : {"", "-tf32"}) names.push_back("simt-" + regime + size + precision);
  for (const char* regime : {"cluster", "grid"}) names.push_back(std::string("simt-") + regime + "-hurried");
  for (const char* regime : {"auto", "grid"}) names.push_back(std::string("simt-") + regime + "-crowded");
  return names;
}

std::unique_ptr<Runner> make_simt_runner(const std::string& name, bool allow_tf32) {
  return std::make_unique<SimtRunner>(name, allow_tf32);
}

const Plugin kPlugin{simt_names(), make_simt_runner};

}  // namespace
}  // namespace sf::cuda

PYBIND11_MODULE(_simt, m) {
  namespace py = pybind11;
  m.attr("plugin") = py::capsule(&sf::cuda::kPlugin, sf::kPluginCapsule);
  m.attr("names") = sf::cuda::kPlugin.names;
}

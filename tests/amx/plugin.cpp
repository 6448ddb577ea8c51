// The kernels of csrc/cpu/kernels/amx.h with emulated tiles, as an implementation for CPU tensors: "amx-emulated".
// A task that leaves the tiles of its thread configured ends the program.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../../csrc/bindings/runner.h"
#include "../../csrc/cpu/host/backend.h"
#include "emulated_tiles.h"

namespace sf {

extern const Kernels kernels_amx_emulated;

namespace {

class EmulatedRunner : public Runner {
 public:
  Dtype buffer_dtype(Dtype storage) const override { return storage == Dtype::kFloat64 ? storage : Dtype::kFloat32; }
  Dtype gates_dtype(const Layer& l) const override { return kernels_.gates_dtype(l); }
  void forward(const Forward& f) override {
    run_forward(kernels_, f);
    check();
  }
  void backward(const Backward& b) override {
    run_backward(kernels_, b);
    check();
  }
  void weight_grad(const WeightGrad& g) override {
    run_weight_grad(kernels_, g);
    check();
  }
  void sum_rows(const RowSums& s) override { run_sum_rows(kernels_, s); }
  const char* packs_for() const override { return kernels_.name; }
  int64_t packed_size(const Layer& l) const override { return sf::packed_size(kernels_, l); }
  void pack(const Layer& l, char* to) const override { pack_all(kernels_, l, to); }

 private:
  static void check() {
    if (emulated_tiles::state.configured) emulated_tiles::fault("a task left the tiles of its thread configured");
  }
  const Kernels& kernels_ = kernels_amx_emulated;
};

const Plugin kPlugin{{"amx-emulated"}, [](const std::string&, bool) -> std::unique_ptr<Runner> {
                       return std::make_unique<EmulatedRunner>();
                     }};

}  // namespace
}  // namespace sf

PYBIND11_MODULE(_amx, m) {
  namespace py = pybind11;
  m.attr("plugin") = py::capsule(&sf::kPlugin, sf::kPluginCapsule);
  m.attr("names") = sf::kPlugin.names;
  m.def(
      "products", [] { return emulated_tiles::products.load(); },
      "How many products of tiles all threads have computed.");
}

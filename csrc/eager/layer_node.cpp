#include "layer_node.h"

#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <memory>
#include <mutex>
#include <optional>
#include <type_traits>
#include <utility>

namespace sf {
namespace {

using torch::autograd::Node;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;
using NodePointer = decltype(torch::autograd::Edge::function);  // torch 2.12 changed the kind of pointer

constexpr double kMostWithGil = 100'000;  // multiply-adds; releasing Python's lock and taking it again costs as much

PyObject* unusual_backward = nullptr;

Maybe maybe(const Tensor& t) { return t.defined() ? Maybe(t) : Maybe(); }

bool has_options(const Spec& spec, const Tensors& tensors) {
  bool found = spec.rates != decltype(spec.rates){};
  for (size_t i = kResets; i < kWeights; ++i) found = found || tensors[i].defined();
  return found;
}

// The arguments of layer_forward() and layer_backward(), which hold references.
struct Arguments {
  Arguments(const Spec& spec, const Tensors& tensors, const Tensor* packed = nullptr)
      : x(tensors[kX]),
        h0(maybe(tensors[kH0])),
        c0(maybe(tensors[kC0])),
        lengths(maybe(tensors[kLengths])),
        batch_sizes(maybe(tensors[kBatchSizes])),
        weights(tensors.begin() + kWeights, tensors.end()),
        cell{spec.cell},
        given{x,
              weights,
              h0,
              c0,
              lengths,
              batch_sizes,
              cell,
              spec.directions,
              spec.batch_first,
              spec.one_step,
              packed,
              has_options(spec, tensors) ? &options : nullptr} {
    if (given.options) {
      options = {maybe(tensors[kResets]), maybe(tensors[kHReset]), maybe(tensors[kCReset]), maybe(tensors[kSeed]),
                 spec.rates[0],           spec.rates[1],           spec.rates[2],           spec.rates[3]};
    }
  }
  Arguments(const Arguments&) = delete;

  const Tensor& x;
  const Maybe h0, c0, lengths, batch_sizes;
  Tensors weights;
  const Name cell;
  LayerOptions options;
  const LayerArguments given;
};

// h_n, c_n, output and saved, as far as layer_forward() returns them.
struct Found {
  Found(Tensors found, bool has_c, bool has_output, bool has_saved) {
    size_t next = 0;
    const auto take = [&](bool present) { return present ? std::move(found[next++]) : Tensor(); };
    h_n = take(true);
    c_n = take(has_c);
    output = take(has_output);
    saved = take(has_saved);
  }
  Tensor h_n, c_n, output, saved;
};

bool has_c(const Spec& spec) { return kCells[index_in("cell", kCellNames, spec.cell)].has_c; }

Found forward(const Spec& spec, const Arguments& arguments, bool want_output, bool want_saved) {
  RECORD_FUNCTION("seqcls_fast::rnn_forward", c10::ArrayRef<const c10::IValue>{});
  return {layer_forward(arguments.given, want_output, want_saved, *spec.runner), has_c(spec),
          !spec.one_step && (want_output || want_saved), want_saved};
}

class LayerBackward : public Node {
 public:
  std::string name() const override { return "LayerBackward"; }

  void record(const Spec& spec, const Tensors& tensors, Found& found, bool want_output) {
    spec_ = spec;
    // The steps' h: a cell's h_n, or else the output. What the user gets may be changed in place. The node keeps
    // another tensor on the same memory, and the version counter, by which it notices such a change.
    const Tensor& steps = spec.one_step ? found.h_n : found.output;
    const bool returned = spec.one_step || want_output;
    if (returned) version_ = steps.unsafeGetTensorImpl()->version_counter();
    torch::autograd::edge_list edges;
    edges.reserve(tensors.size());
    {
      // The edge to a parameter takes a lock of torch, whose owner may wait for Python's lock (torch 2.14).
      const py::gil_scoped_release released;
      for (const Tensor& t : tensors)
        edges.push_back(t.defined() && t.requires_grad() ? torch::autograd::impl::gradient_edge(t)
                                                         : torch::autograd::Edge());
    }
    set_next_edges(std::move(edges));
    saved_.reserve(tensors.size() + 2);
    for (const Tensor& t : tensors) saved_.emplace_back(t, false);
    saved_.emplace_back(returned ? steps.variable_data() : steps, false);
    saved_.emplace_back(found.saved, false);
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    Tensors tensors = unpacked();
    bool plain = !at::GradMode::is_enabled() && is_plain_thread();
    for (const Tensor& t : grads) plain = plain && (!t.defined() || is_plain(t));
    for (const Tensor& t : tensors) plain = plain && (!t.defined() || is_plain(t));
    const bool changed = version_ && version_->current_version() != 0;
    if (!plain) return by_python(grads, std::move(tensors), changed);
    Tensor saved = std::move(tensors.back());
    tensors.pop_back();
    Tensor steps = std::move(tensors.back());
    tensors.pop_back();
    const Arguments arguments(spec_, tensors);
    if (changed) {  // computes the steps once more, which gives the same bits
      Found again = forward(spec_, arguments, true, false);
      steps = spec_.one_step ? again.h_n : again.output;
    }
    bool want_d_weights = false;
    for (size_t i = kWeights; i < tensors.size(); ++i) want_d_weights = want_d_weights || task_should_compute_output(i);
    const bool want_d_x = task_should_compute_output(kX);
    RECORD_FUNCTION("seqcls_fast::rnn_backward", c10::ArrayRef<const c10::IValue>{});
    Tensors found =
        layer_backward(arguments.given, maybe(grads[0]), maybe(grads[1]), grads.size() > 2 ? maybe(grads[2]) : Maybe(),
                       steps, saved, want_d_x, want_d_weights, 0, *spec_.runner);
    variable_list result(tensors.size());
    size_t next = 0;
    const auto take = [&](size_t i, bool present) {
      if (!present) return;
      if (task_should_compute_output(i)) result[i] = std::move(found[next]);
      ++next;
    };
    take(kX, want_d_x);
    take(kH0, tensors[kH0].defined());
    take(kC0, tensors[kC0].defined());
    take(kHReset, tensors[kHReset].defined());
    take(kCReset, tensors[kCReset].defined());
    for (size_t i = kWeights; i < tensors.size(); ++i) take(i, want_d_weights);
    return result;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (SavedVariable& saved : saved_) saved.reset_data();
  }

  // torch.compile of a backward. Its graph holds the operators, which the function in Python calls.
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(name());
    args.collect(spec_.cell);
    args.collect(spec_.directions);
    args.collect(spec_.batch_first);
    args.collect(spec_.one_step);
    args.collect(spec_.impl);
    for (const double rate : spec_.rates) args.collect(rate);
    for (const SavedVariable& saved : saved_) args.collect(saved, false);
  }
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& saved) override {
    for (SavedVariable& each : saved_) saved.before(each);
    variable_list result = by_python(grads, unpacked(), true);  // a compiled graph cannot see versions
    for (SavedVariable& each : saved_) saved.after(each);
    return result;
  }

 private:
  Tensors unpacked() const {
    Tensors tensors;
    tensors.reserve(saved_.size());
    for (const SavedVariable& saved : saved_) tensors.push_back(saved.unpack());
    return tensors;
  }

  variable_list by_python(const variable_list& grads, const Tensors& tensors, bool changed) {
    const py::gil_scoped_acquire gil;
    const auto as_tuple = [](const auto& from, size_t begin, size_t end) {
      py::tuple to(end - begin);
      for (size_t i = begin; i < end; ++i) to[i - begin] = py::reinterpret_steal<py::object>(THPVariable_Wrap(from[i]));
      return to;
    };
    const size_t count = tensors.size() - 2;
    py::list needs;
    for (size_t i = 0; i < count; ++i) needs.append(task_should_compute_output(i));
    py::tuple incoming(3);
    for (size_t i = 0; i < 3; ++i)
      incoming[i] = i < grads.size() ? py::reinterpret_steal<py::object>(THPVariable_Wrap(grads[i])) : py::none();
    const py::tuple kept = as_tuple(tensors, count, count + 2);
    const py::object found = py::reinterpret_borrow<py::object>(unusual_backward)(
        spec_.directions, spec_.cell, spec_.batch_first, spec_.impl, spec_.one_step,
        py::make_tuple(spec_.rates[0], spec_.rates[1], spec_.rates[2], spec_.rates[3]), changed, needs, incoming,
        as_tuple(tensors, 0, count), kept[0], kept[1]);
    variable_list result;
    for (const py::handle each : found) result.push_back(each.is_none() ? Tensor() : THPVariable_Unpack(each.ptr()));
    return result;
  }

  Spec spec_;
  std::optional<c10::VariableVersion> version_;  // of what the user got, if that is h of the steps
  std::vector<SavedVariable> saved_;             // the layer's tensors, the steps' h, and the saved values
};

template <class Pointer>
Pointer new_node() {
  if constexpr (std::is_same_v<Pointer, std::shared_ptr<Node>>)
    return Pointer(new LayerBackward, [](auto* node) { deleteNode(node); });  // torch's function
  else
    return c10::make_intrusive<LayerBackward>();
}

}  // namespace

bool is_plain_thread() {
  const c10::impl::LocalDispatchKeySet keys = c10::impl::tls_local_dispatch_key_set();
  constexpr c10::DispatchKeySet usual{c10::DispatchKey::BackendSelect, c10::DispatchKey::ADInplaceOrView};
  return (keys.included_.raw_repr() & ~usual.raw_repr()) == 0 && keys.excluded_.has(c10::DispatchKey::AutocastCPU) &&
         !at::impl::torch_function_mode_enabled();
}

bool is_plain(const Tensor& t) {
  constexpr c10::DispatchKeySet usual{c10::DispatchKey::CPU, c10::DispatchKey::AutogradCPU,
                                      c10::DispatchKey::ADInplaceOrView, c10::DispatchKey::AutocastCPU};
  return (t.key_set().raw_repr() & ~usual.raw_repr()) == 0 && !t._fw_grad(0).defined();
}

bool run_layer(const Spec& spec, const Tensors& tensors, const Tensor& packed, bool want_output, Results& results) {
  bool needs_graph = false;
  if (at::GradMode::is_enabled() && !c10::InferenceMode::is_enabled())
    for (const Tensor& t : tensors) needs_graph = needs_graph || (t.defined() && t.requires_grad());
  if (needs_graph && packed.defined()) return false;
  const Arguments arguments(spec, tensors, packed.defined() ? &packed : nullptr);
  double weights = 0;
  for (const Tensor& t : arguments.weights) weights += static_cast<double>(t.numel());
  std::optional<Found> found;
  try {
    std::optional<py::gil_scoped_release> released;
    const auto features = static_cast<double>(std::max<int64_t>(arguments.x.size(-1), 1));
    if (weights * static_cast<double>(arguments.x.numel()) / features > kMostWithGil) released.emplace();
    found.emplace(forward(spec, arguments, want_output, needs_graph));
  } catch (const std::exception&) {
    return false;
  }
  if (needs_graph) {
    const NodePointer node = new_node<NodePointer>();
    static_cast<LayerBackward&>(*node).record(spec, tensors, *found, want_output);
    if (!want_output || spec.one_step) found->output = Tensor();
    torch::autograd::set_history(found->output, node);
    torch::autograd::set_history(found->h_n, node);
    if (found->c_n.defined()) torch::autograd::set_history(found->c_n, node);
  }
  results = {std::move(found->output), std::move(found->h_n), std::move(found->c_n)};
  return true;
}

void set_unusual_backward(PyObject* function) {
  Py_INCREF(function);
  Py_XDECREF(std::exchange(unusual_backward, function));
}

}  // namespace sf

// The Python functions of the eager entry: layers() and cell() for the modules, layer() for one layer. Each returns
// NotImplemented unless the call is plain (layer_node.h) and all its arguments are right; the caller then goes on in
// Python, where the checks are that tell what is wrong. So there is no message here, and no check is left out there.
#include "layer_node.h"

#include "attributes.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/dropout.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/headeronly/version.h>

#include <array>
#include <cctype>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

namespace sf {
namespace {

const Exports* exports = nullptr;
bool is_on = true;

// What use_impl() chose in this thread; null if the eager entry cannot run it.
struct Choice {
  std::string impl = "auto";
  Runner* runner = exports->cpu_runner("auto");
};
Choice& choice() {
  thread_local Choice chosen;
  return chosen;
}

// ---- Tensors

Tensor plain_tensor(PyObject* object) {
  if (!THPVariable_CheckExact(object)) throw Declined{};
  const Tensor& t = THPVariable_Unpack(object);
  if (!is_plain(t)) throw Declined{};
  return t;
}

Tensor plain_or_none(PyObject* object) { return object == Py_None ? Tensor() : plain_tensor(object); }

// h0, and c0 where the cell has one.
std::pair<Tensor, Tensor> states_of(PyObject* hx, bool has_c) {
  if (hx == Py_None) return {};
  if (!has_c) return {plain_tensor(hx), Tensor()};
  if (!PyTuple_CheckExact(hx) || PyTuple_GET_SIZE(hx) != 2) throw Declined{};
  return {plain_tensor(PyTuple_GET_ITEM(hx, 0)), plain_tensor(PyTuple_GET_ITEM(hx, 1))};
}

PyObject* wrapped(Tensor t) {
  if (!t.defined()) Py_RETURN_NONE;
  return THPVariable_Wrap(std::move(t));
}

// The tuple of new references to objects, of which none may be null.
template <class... Objects>
PyObject* tuple_of(Objects... objects) {
  PyObject* tuple = PyTuple_New(sizeof...(objects));
  if (!tuple || !(... && objects)) {
    (Py_XDECREF(objects), ...);
    Py_XDECREF(tuple);
    throw python_error();
  }
  Py_ssize_t next = 0;
  (PyTuple_SET_ITEM(tuple, next++, objects), ...);
  return tuple;
}

Spec chosen_spec(const std::string& cell) {
  const Choice& chosen = choice();
  if (!chosen.runner) throw Declined{};
  Spec spec;
  spec.cell = cell;
  spec.runner = chosen.runner;
  spec.impl = chosen.impl;
  return spec;
}

bool has_c(const std::string& cell) {
  for (const CellInfo& info : kCells)
    if (cell == info.name) return info.has_c;
  throw Declined{};
}

std::string text_of(PyObject* object) {
  Py_ssize_t size = 0;
  const char* text = PyUnicode_Check(object) ? PyUnicode_AsUTF8AndSize(object, &size) : nullptr;
  if (!text) {
    PyErr_Clear();
    throw Declined{};
  }
  return {text, static_cast<size_t>(size)};
}

bool flag_of(PyObject* object) {
  if (object != Py_True && object != Py_False) throw Declined{};
  return object == Py_True;
}

bool is_real(const Tensor& t) { return at::isFloatingType(t.scalar_type()); }

Results run_or_decline(const Spec& spec, const Tensors& tensors, const Tensor& packed, bool want_output) {
  Results results;
  if (!run_layer(spec, tensors, packed, want_output, results)) throw Declined{};
  return results;
}

// The packed weights of a frozen module (class Frozen of seqcls_fast/_frozen.py), while its weights are what they were
// when they were packed. A call for which anything is different is declined, and Python looks closer.
class FrozenWeights {
 public:
  FrozenWeights(const Attributes& module, const Spec& spec) {
    PyObject* frozen = module.find(names().frozen);
    if (!frozen || frozen == Py_None) return;
    const char* packs_for = spec.runner->packs_for();
    if (!packs_for || text_of(attribute(frozen, names().impl).ptr()) != packs_for) throw Declined{};
    packed_ = attribute(frozen, names().packed);
    seen_ = attribute(frozen, names().seen);
    if (!PyTuple_Check(packed_.ptr()) || !PyTuple_Check(seen_.ptr())) throw Declined{};
  }
  // To be called for each weight of the module in turn; None counts too.
  void check(PyObject* weight) {
    if (!seen_) return;
    PyObject* seen = item(seen_.ptr(), next_++);
    if (!PyTuple_Check(seen) || item(seen, 0) != weight) throw Declined{};
    if (weight == Py_None) return;
    const Tensor& t = THPVariable_Unpack(weight);
    PyObject *version = item(seen, 1), *address = item(seen, 2);
    if ((version != Py_None && PyLong_AsLongLong(version) != static_cast<int64_t>(t._version())) ||
        (address != Py_None && PyLong_AsVoidPtr(address) != t.data_ptr()))
      throw Declined{};
  }
  // Of a layer; undefined unless the module is frozen.
  Tensor operator[](int64_t layer) const { return packed_ ? plain_tensor(item(packed_.ptr(), layer)) : Tensor(); }

 private:
  static py::object attribute(PyObject* object, PyObject* name) {
    py::object found = py::reinterpret_steal<py::object>(PyObject_GetAttr(object, name));
    if (!found) {
      PyErr_Clear();
      throw Declined{};
    }
    return found;
  }
  static PyObject* item(PyObject* tuple, int64_t i) {
    if (i >= PyTuple_GET_SIZE(tuple)) throw Declined{};
    return PyTuple_GET_ITEM(tuple, i);
  }

  py::object packed_, seen_;
  int64_t next_ = 0;
};

constexpr int64_t kMostLayers = 1000;

// ---- The functions

// layers(module, input, hx, lengths, want_output): the forward of RNN, GRU and LSTM.
PyObject* layers(PyObject* const* arguments) {
  const Attributes module(arguments[0]);
  if (module.of_class(names().recompute_gates)) throw Declined{};
  std::string cell = text_of(module[names().mode]);
  for (char& c : cell) c = static_cast<char>(std::tolower(c));
  Spec spec = chosen_spec(cell);
  const bool with_c = has_c(cell);
  Tensor x = plain_tensor(arguments[1]);
  auto [h, c] = states_of(arguments[2], with_c);
  const Tensor lengths = plain_or_none(arguments[3]);
  const bool want_output = flag_of(arguments[4]);
  const int64_t rank = x.dim(), count = module.number(names().num_layers);
  const bool batched = rank == 3;
  if ((rank != 2 && rank != 3) || !is_real(x) || x.size(-1) != module.number(names().input_size) || count < 1 ||
      count > kMostLayers)
    throw Declined{};
  spec.directions = module.flag(names().bidirectional) ? 2 : 1;
  spec.batch_first = batched && module.flag(names().batch_first);
  if (h.defined() && (h.dim() != rank || h.size(0) != count * spec.directions)) throw Declined{};
  if (c.defined() && (c.dim() != rank || c.size(0) != count * spec.directions)) throw Declined{};
  if (!batched) {
    x = x.unsqueeze(1);
    if (h.defined()) h = h.unsqueeze(1);
    if (c.defined()) c = c.unsqueeze(1);
  }
  double dropout = 0;
  if (count > 1 && module.flag(names().training)) {
    dropout = module.real(names().dropout);
    if (!(dropout >= 0 && dropout <= 1)) throw Declined{};
  }
  const bool bias = module.flag(names().bias), projected = module.flag(names().proj_size);
  FrozenWeights frozen(module, spec);
  std::vector<Tensors> all(static_cast<size_t>(count));
  for (int64_t k = 0; k < count; ++k) {  // before any layer runs, as a call that began cannot be declined
    Tensors& tensors = all[static_cast<size_t>(k)];
    tensors.reserve(kWeights + 10);
    tensors.resize(kWeights);
    for (size_t kind = 0; kind < 5; ++kind) {
      if (kind == 4 ? !projected : kind > 1 && !bias) continue;
      for (int64_t d = 0; d < spec.directions; ++d) {
        PyObject* weight = module.parameter(weight_name(kind, k, d));
        tensors.push_back(plain_tensor(weight));
        frozen.check(weight);
      }
    }
    tensors[kLengths] = lengths;
  }
  Results results;
  Tensors h_n, c_n;
  for (int64_t k = 0; k < count; ++k) {
    Tensors& tensors = all[static_cast<size_t>(k)];
    const auto part = [&](const Tensor& t) {
      return count > 1 && t.defined() ? t.narrow(0, k * spec.directions, spec.directions) : t;
    };
    tensors[kX] = x;
    tensors[kH0] = part(h);
    tensors[kC0] = part(c);
    results = run_or_decline(spec, tensors, frozen[k], want_output || k + 1 < count);
    if (count > 1) {
      h_n.push_back(results.h_n);
      if (with_c) c_n.push_back(results.c_n);
    }
    if (k + 1 < count) x = dropout != 0 ? at::dropout(results.output, dropout, true) : results.output;
  }
  if (count > 1) {
    results.h_n = at::cat(h_n);
    if (with_c) results.c_n = at::cat(c_n);
  }
  if (!batched) {
    if (results.output.defined()) results.output = results.output.squeeze(1);
    results.h_n = results.h_n.squeeze(1);
    if (with_c) results.c_n = results.c_n.squeeze(1);
  }
  PyObject* states = with_c ? tuple_of(wrapped(std::move(results.h_n)), wrapped(std::move(results.c_n)))
                            : wrapped(std::move(results.h_n));
  return tuple_of(wrapped(std::move(results.output)), states);
}

// cell(module, name of the cell, input, hx): the forward of RNNCell, GRUCell and LSTMCell.
PyObject* cell(PyObject* const* arguments) {
  const Attributes module(arguments[0]);
  const std::string name = text_of(arguments[1]);
  Spec spec = chosen_spec(name);
  spec.one_step = true;
  const bool with_c = has_c(name);
  Tensors tensors;
  tensors.reserve(kWeights + 4);
  tensors.resize(kWeights);
  Tensor& x = tensors[kX] = plain_tensor(arguments[2]);
  std::tie(tensors[kH0], tensors[kC0]) = states_of(arguments[3], with_c);
  const int64_t rank = x.dim();
  if ((rank != 1 && rank != 2) || !is_real(x) || x.size(-1) != module.number(names().input_size)) throw Declined{};
  for (const Tensor& state : {tensors[kH0], tensors[kC0]})
    if (state.defined() && (state.dim() != rank || state.size(-1) != module.number(names().hidden_size)))
      throw Declined{};
  FrozenWeights frozen(module, spec);
  for (PyObject* of_cell : names().of_cell) {
    PyObject* weight = module.parameter(of_cell);
    if (weight != Py_None) tensors.push_back(plain_tensor(weight));
    frozen.check(weight);
  }
  if (tensors.size() == kWeights + 3) throw Declined{};  // one bias alone
  Results results = run_or_decline(spec, tensors, frozen[0], false);
  if (!with_c) return wrapped(std::move(results.h_n));
  return tuple_of(wrapped(std::move(results.h_n)), wrapped(std::move(results.c_n)));
}

// layer(x, weights, directions, h0, c0, cell, lengths, batch_sizes, batch_first, want_output, packed, resets, seed,
// h_reset, c_reset, rates): one layer. Returns output, h_n and c_n.
PyObject* layer(PyObject* const* arguments) {
  PyObject* weights = arguments[1];
  if (!PyList_CheckExact(weights)) throw Declined{};
  const std::string name = text_of(arguments[5]);
  has_c(name);
  Spec spec = chosen_spec(name);
  spec.directions = PyLong_AsLongLong(arguments[2]);
  if (PyErr_Occurred()) {
    PyErr_Clear();
    throw Declined{};
  }
  spec.batch_first = flag_of(arguments[8]);
  const bool want_output = flag_of(arguments[9]);
  Tensors tensors;
  tensors.reserve(kWeights + static_cast<size_t>(PyList_GET_SIZE(weights)));
  tensors.push_back(plain_tensor(arguments[0]));
  for (const int i : {3, 4, 6, 7, 11, 12, 13, 14}) tensors.push_back(plain_or_none(arguments[i]));
  PyObject* const rates = arguments[15];
  if (!PyTuple_Check(rates) || PyTuple_GET_SIZE(rates) != 4) throw Declined{};
  for (Py_ssize_t i = 0; i < 4; ++i) {
    if (!PyFloat_CheckExact(PyTuple_GET_ITEM(rates, i))) throw Declined{};
    spec.rates[static_cast<size_t>(i)] = PyFloat_AS_DOUBLE(PyTuple_GET_ITEM(rates, i));
  }
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(weights); ++i)
    tensors.push_back(plain_tensor(PyList_GET_ITEM(weights, i)));
  Results results = run_or_decline(spec, tensors, plain_or_none(arguments[10]), want_output);
  return tuple_of(wrapped(std::move(results.output)), wrapped(std::move(results.h_n)), wrapped(std::move(results.c_n)));
}

void check_count(Py_ssize_t count, Py_ssize_t wanted) {
  if (count == wanted) return;
  PyErr_Format(PyExc_TypeError, "expected %zd arguments but got %zd", wanted, count);
  throw python_error();
}

template <PyObject* (*function)(PyObject* const*), Py_ssize_t kCount>
PyObject* entry(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  check_count(count, kCount);
  try {
    if (is_on && exports && is_plain_thread()) return function(arguments);
  } catch (const Declined&) {
  }
  Py_RETURN_NOTIMPLEMENTED;
  END_HANDLE_TH_ERRORS
}

// connect(exports, unusual_backward): must be called once, before anything else.
PyObject* connect(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  check_count(count, 2);
  const auto* found = static_cast<const Exports*>(PyCapsule_GetPointer(arguments[0], kExportsCapsule));
  if (!found) throw python_error();
  if (std::string(found->csrc_hash) != SF_CSRC_HASH) throw std::runtime_error("it was built from other sources");
  exports = found;
  set_unusual_backward(arguments[1]);
  Py_RETURN_NONE;
  END_HANDLE_TH_ERRORS
}

// use_impl(name): the implementation of this thread's calls.
PyObject* use_impl(PyObject*, PyObject* name) {
  HANDLE_TH_ERRORS
  Choice& chosen = choice();
  chosen.impl = text_of(name);
  chosen.runner = exports->cpu_runner(chosen.impl.c_str());
  Py_RETURN_NONE;
  END_HANDLE_TH_ERRORS
}

// turn(on): whether the functions do anything. Returns what was set before.
PyObject* turn(PyObject*, PyObject* on) { return PyBool_FromLong(std::exchange(is_on, on == Py_True)); }

template <class Function>
PyCFunction as_method(Function* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function));
}

PyMethodDef methods[] = {
    {"layers", as_method(entry<layers, 5>), METH_FASTCALL, nullptr},
    {"cell", as_method(entry<cell, 4>), METH_FASTCALL, nullptr},
    {"layer", as_method(entry<layer, 16>), METH_FASTCALL, nullptr},
    {"connect", as_method(connect), METH_FASTCALL, nullptr},
    {"use_impl", use_impl, METH_O, nullptr},
    {"turn", turn, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition{PyModuleDef_HEAD_INIT,
                       "seqcls_fast._eager_library",
                       "The eager entry; see csrc/eager.",
                       -1,
                       methods,
                       nullptr,
                       nullptr,
                       nullptr,
                       nullptr};

}  // namespace

// Of csrc/cpu/host/backend.h, for tensors.h: large tensors come from the pool of the other library.
void* pool_take(int64_t bytes) { return exports->pool_take(bytes); }
void pool_give(void* memory) { exports->pool_give(memory); }

}  // namespace sf

extern "C" __attribute__((visibility("default"))) PyObject* SF_EAGER_INIT() {
  PyObject* module = PyModule_Create(&sf::definition);
  if (module) PyModule_AddStringConstant(module, "torch_version", TORCH_VERSION);
  return module;
}

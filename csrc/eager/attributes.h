// The attributes and parameters of a module, as borrowed references: all of them are in the module's dictionary.
// Included by module_calls.cpp alone.
#pragma once

#include <torch/csrc/python_headers.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/utils/pybind.h>

#include <array>
#include <string>
#include <vector>

namespace sf {
namespace {

struct Names {
  PyObject *parameters, *mode, *num_layers, *bidirectional, *bias, *batch_first, *dropout, *training, *input_size,
      *hidden_size, *proj_size, *recompute_gates, *frozen, *impl, *packed, *seen;
  std::array<PyObject*, 4> of_cell;
};

PyObject* interned(const std::string& text) {
  PyObject* name = PyUnicode_InternFromString(text.c_str());
  if (!name) throw python_error();
  return name;
}

const Names& names() {
  static const Names all{interned("_parameters"),
                         interned("mode"),
                         interned("num_layers"),
                         interned("bidirectional"),
                         interned("bias"),
                         interned("batch_first"),
                         interned("dropout"),
                         interned("training"),
                         interned("input_size"),
                         interned("hidden_size"),
                         interned("proj_size"),
                         interned("recompute_gates"),
                         interned("_frozen_weights"),
                         interned("impl"),
                         interned("packed"),
                         interned("seen"),
                         {interned("weight_ih"), interned("weight_hh"), interned("bias_ih"), interned("bias_hh")}};
  return all;
}

constexpr const char* kKinds[] = {"weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"};

// The name of a layer's weight.
PyObject* weight_name(size_t kind, int64_t layer, int64_t direction) {
  static std::vector<std::array<PyObject*, 10>> all;
  while (all.size() <= static_cast<size_t>(layer)) {
    std::array<PyObject*, 10> of_layer{};
    for (size_t k = 0; k < 5; ++k)
      for (size_t d = 0; d < 2; ++d)
        of_layer[2 * k + d] =
            interned(std::string(kKinds[k]) + "_l" + std::to_string(all.size()) + (d ? "_reverse" : ""));
    all.push_back(of_layer);
  }
  return all[static_cast<size_t>(layer)][2 * kind + static_cast<size_t>(direction)];
}

struct Declined {};  // thrown where a call is not one for the eager entry

// The attributes of a module, and its parameters. Numbers and truths must be Python's own, so that asking for them runs
// nobody's code.
class Attributes {
 public:
  explicit Attributes(PyObject* module)
      : module_(module), all_(py::reinterpret_steal<py::object>(PyObject_GenericGetDict(module, nullptr))) {
    if (!all_) decline();
    parameters_ = py::reinterpret_borrow<py::object>(find(names().parameters));
    if (!parameters_ || !PyDict_Check(parameters_.ptr())) throw Declined{};
  }

  PyObject* find(PyObject* name) const { return PyDict_GetItemWithError(all_.ptr(), name); }  // null: there is none
  PyObject* operator[](PyObject* name) const {
    PyObject* found = find(name);
    if (!found) throw Declined{};
    return found;
  }
  int64_t number(PyObject* name) const {
    PyObject* value = (*this)[name];
    const int64_t found = PyLong_CheckExact(value) ? PyLong_AsLongLong(value) : throw Declined{};
    if (found == -1 && PyErr_Occurred()) decline();
    return found;
  }
  double real(PyObject* name) const {
    PyObject* value = (*this)[name];
    if (!PyFloat_CheckExact(value) && !PyLong_CheckExact(value)) throw Declined{};
    const double found = PyFloat_AsDouble(value);
    if (found == -1 && PyErr_Occurred()) decline();
    return found;
  }
  bool flag(PyObject* name) const { return is_true((*this)[name]); }
  bool of_class(PyObject* name) const {  // an attribute that the class has
    const py::object value = py::reinterpret_steal<py::object>(PyObject_GetAttr(module_, name));
    if (!value) decline();
    return is_true(value.ptr());
  }
  // A parameter that is a plain tensor. A weight of another kind, such as a parametrized one, has to be computed.
  PyObject* parameter(PyObject* name) const {
    PyObject* found = PyDict_GetItemWithError(parameters_.ptr(), name);
    if (!found) throw Declined{};
    return found;
  }

 private:
  [[noreturn]] static void decline() {
    PyErr_Clear();
    throw Declined{};
  }
  static bool is_true(PyObject* value) {
    if (!PyBool_Check(value) && !PyLong_CheckExact(value)) throw Declined{};
    return PyObject_IsTrue(value) != 0;
  }

  PyObject* module_;
  py::object all_, parameters_;
};

}  // namespace
}  // namespace sf

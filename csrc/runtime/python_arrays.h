// Arrays of Python's as the functions of python.cpp take them: buffers, each of which is checked for its size and type.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace sf::runtime {

// The letters for a type in the formats of buffers.
template <class T>
constexpr const char* kFormats = nullptr;
template <>
constexpr const char* kFormats<float> = "f";
template <>
constexpr const char* kFormats<double> = "d";
template <>
constexpr const char* kFormats<int64_t> = "lq";
template <>
constexpr const char* kFormats<uint8_t> = "?B";

// An array in a buffer of Python's, given back at the end. None counts as absent. It is written to if T is not const.
template <class T>
class Array {
 public:
  Array() { view_.obj = nullptr; }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() {
    if (view_.obj) PyBuffer_Release(&view_);
  }
  // Whether `from` has `count` contiguous elements of type T. An error is set where not.
  bool take(PyObject* from, const char* name, int64_t count) {
    if (from == Py_None) return true;
    constexpr const char* formats = kFormats<std::remove_const_t<T>>;
    constexpr int kWritable = std::is_const_v<T> ? 0 : PyBUF_WRITABLE;
    if (PyObject_GetBuffer(from, &view_, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | kWritable)) return false;
    const char* const format = view_.format ? view_.format : "B";
    const int64_t have = view_.itemsize ? view_.len / view_.itemsize : 0;
    const bool is_of_type =
        std::strlen(format) == 1 && std::strchr(formats, *format) && view_.itemsize == Py_ssize_t{sizeof(T)};
    if (is_of_type && have == count) return true;
    PyErr_Format(PyExc_ValueError, "%s: expected %lld contiguous numbers of format %c but got %lld of %s", name,
                 static_cast<long long>(count), *formats, static_cast<long long>(have), format);
    return false;
  }
  // Whether it is (rows, width), or, for one row, (width,).
  bool has_shape(int64_t rows, int64_t width) const {
    const Py_ssize_t* const shape = view_.shape;
    return (view_.ndim == 2 && shape[0] == rows && shape[1] == width) ||
           (view_.ndim == 1 && rows == 1 && shape[0] == width);
  }
  T* data() const { return view_.obj ? static_cast<T*>(view_.buf) : nullptr; }

 private:
  Py_buffer view_{};
};

}  // namespace sf::runtime

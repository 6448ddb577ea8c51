// The Python module seqcls_fast._runtime: the C functions of seqcls.h for seqcls_fast/runtime.py. It includes neither
// pybind11 nor numpy: arrays come as buffers, and each is checked here for its size, so that no call can leave memory.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <atomic>
#include <vector>

#include "python_arrays.h"
#include "seqcls.h"

namespace {

using sf::runtime::Array;

constexpr const char* kModelCapsule = "seqcls_fast._runtime.model";
// Multiply-adds from which on a step takes longer than letting other threads of Python run costs.
constexpr int64_t kWorkToRelease = 20'000;

PyObject* raise(seqcls_status status) {
  PyObject* const kind = status == SEQCLS_NO_FILE          ? PyExc_OSError
                         : status == SEQCLS_NO_MEMORY      ? PyExc_MemoryError
                         : status == SEQCLS_NOT_STREAMABLE ? PyExc_RuntimeError
                                                           : PyExc_ValueError;
  PyErr_SetString(kind, seqcls_error());
  return nullptr;
}

seqcls_model* model_of(PyObject* capsule) {
  return static_cast<seqcls_model*>(PyCapsule_GetPointer(capsule, kModelCapsule));
}

struct StreamObject {
  PyObject_HEAD seqcls_stream* stream;
  PyObject* model;  // which holds the memory that the stream reads
  seqcls_info info;
  int64_t rows;
  bool releases;  // whether a step lets other threads of Python run meanwhile
  std::atomic<bool> busy;
};

// Marks a stream as in use; a second thread gets an error instead of another thread's states.
class Use {
 public:
  explicit Use(StreamObject* stream) : stream_(stream), mine_(!stream->busy.exchange(true)) {
    if (!mine_)
      PyErr_SetString(PyExc_RuntimeError, "stream: expected one call at a time but another thread is using it");
  }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;
  ~Use() {
    if (mine_) stream_->busy = false;
  }
  explicit operator bool() const { return mine_; }

 private:
  StreamObject* stream_;
  bool mine_;
};

template <class Function>
seqcls_status without_lock(bool release, Function&& function) {
  if (!release) return function();
  PyThreadState* const state = PyEval_SaveThread();
  const seqcls_status status = function();
  PyEval_RestoreThread(state);
  return status;
}

bool check_count(const char* name, Py_ssize_t given, Py_ssize_t wanted) {
  if (given == wanted) return true;
  PyErr_Format(PyExc_TypeError, "%s: expected %zd arguments but got %zd", name, wanted, given);
  return false;
}

// step(x, out): True if it ran; False if x is not an array of float32, of the right shape, that can be read in place.
PyObject* stream_step(PyObject* self, PyObject* const* given, Py_ssize_t count) {
  auto* const me = reinterpret_cast<StreamObject*>(self);
  if (!check_count("step", count, 2)) return nullptr;
  if (!me->info.is_streamable) return raise(seqcls_step(me->stream, nullptr, nullptr));
  Array<const float> x;
  Array<float> out;
  if (given[0] == Py_None || !x.take(given[0], "x", me->rows * me->info.features) ||
      !x.has_shape(me->rows, me->info.features)) {
    PyErr_Clear();
    Py_RETURN_FALSE;
  }
  if (!out.take(given[1], "out", me->rows * me->info.outputs)) return nullptr;
  const Use use(me);
  if (!use) return nullptr;
  const seqcls_status status =
      without_lock(me->releases, [&] { return seqcls_step(me->stream, x.data(), out.data()); });
  if (status) return raise(status);
  Py_RETURN_TRUE;
}

// run(count, steps, x, x_double, ids, lengths, resets, rows, out, logits, probabilities, classes)
PyObject* stream_run(PyObject* self, PyObject* const* given, Py_ssize_t count) {
  auto* const me = reinterpret_cast<StreamObject*>(self);
  if (!check_count("run", count, 12)) return nullptr;
  seqcls_call call = {};
  call.count = PyLong_AsLongLong(given[0]);
  if (PyErr_Occurred()) return nullptr;
  call.steps = PyLong_AsLongLong(given[1]);
  if (PyErr_Occurred()) return nullptr;
  if (call.count < 0 || call.count > me->rows || (given[7] == Py_None && call.count != me->rows)) {
    PyErr_Format(PyExc_ValueError, "x: expected %s%lld rows, those of the stream, but got %lld",
                 given[7] == Py_None ? "" : "at most ", static_cast<long long>(me->rows),
                 static_cast<long long>(call.count));
    return nullptr;
  }
  int64_t cells = 0, numbers = 0, outputs = 0;  // of the input, and of a result that is of each step
  if (call.steps < 0 || __builtin_mul_overflow(call.count, call.steps, &cells) ||
      __builtin_mul_overflow(cells, me->info.features, &numbers) ||
      __builtin_mul_overflow(cells, me->info.outputs, &outputs)) {
    PyErr_Format(PyExc_ValueError, "x: expected a number of steps that memory holds but got %lld",
                 static_cast<long long>(call.steps));
    return nullptr;
  }
  const int64_t of_rows = call.count * me->info.outputs;
  Array<const float> x;
  Array<const double> x_double;
  Array<const int64_t> ids, lengths, rows;
  Array<const uint8_t> resets;
  Array<float> out, logits;
  Array<double> probabilities;
  Array<int64_t> classes;
  if (!x.take(given[2], "x", numbers) || !x_double.take(given[3], "x", numbers) || !ids.take(given[4], "x", cells) ||
      !lengths.take(given[5], "lengths", call.count) || !resets.take(given[6], "resets", cells) ||
      !rows.take(given[7], "rows", call.count) ||
      !out.take(given[8], "out", me->info.is_classifier ? of_rows : outputs) ||
      !logits.take(given[9], "logits", of_rows) || !probabilities.take(given[10], "probabilities", of_rows) ||
      !classes.take(given[11], "classes", call.count))
    return nullptr;
  if (!call.count) Py_RETURN_NONE;  // no row moves; an empty array may lie at NULL, which would stand for all rows
  call.x = x.data();
  call.x_double = x_double.data();
  call.ids = ids.data();
  call.lengths = lengths.data();
  call.resets = resets.data();
  call.rows = rows.data();
  call.out = out.data();
  call.logits = logits.data();
  call.probabilities = probabilities.data();
  call.classes = classes.data();
  const Use use(me);
  if (!use) return nullptr;
  const seqcls_status status = without_lock(true, [&] { return seqcls_run(me->stream, &call); });
  if (status) return raise(status);
  Py_RETURN_NONE;
}

PyObject* stream_reset(PyObject* self, PyObject* row) {
  auto* const me = reinterpret_cast<StreamObject*>(self);
  const int64_t which = PyLong_AsLongLong(row);
  if (PyErr_Occurred()) return nullptr;
  const Use use(me);
  if (!use) return nullptr;
  if (const seqcls_status status = seqcls_reset(me->stream, which)) return raise(status);
  Py_RETURN_NONE;
}

// get_state(row, state) and set_state(row, state): arrays of bytes.
template <class Byte, class Function>
PyObject* move_state(PyObject* self, PyObject* const* given, Py_ssize_t count, const char* name, Function&& function) {
  auto* const me = reinterpret_cast<StreamObject*>(self);
  if (!check_count(name, count, 2)) return nullptr;
  const int64_t row = PyLong_AsLongLong(given[0]);
  if (PyErr_Occurred()) return nullptr;
  const size_t bytes = seqcls_state_bytes(me->stream);
  Array<Byte> state;
  if (bytes && !state.take(given[1], "state", static_cast<int64_t>(bytes))) return nullptr;
  const Use use(me);
  if (!use) return nullptr;
  if (const seqcls_status status = function(me->stream, row, state.data(), bytes)) return raise(status);
  Py_RETURN_NONE;
}
PyObject* stream_get_state(PyObject* self, PyObject* const* given, Py_ssize_t count) {
  return move_state<uint8_t>(self, given, count, "get_state", seqcls_get_state);
}
PyObject* stream_set_state(PyObject* self, PyObject* const* given, Py_ssize_t count) {
  return move_state<const uint8_t>(self, given, count, "set_state", seqcls_set_state);
}

PyObject* stream_state_bytes(PyObject* self, PyObject*) {
  return PyLong_FromSize_t(seqcls_state_bytes(reinterpret_cast<StreamObject*>(self)->stream));
}

PyObject* stream_new(PyTypeObject* type, PyObject* arguments, PyObject*) {
  PyObject* capsule = nullptr;
  long long rows = 0, steps = 0;
  if (!PyArg_ParseTuple(arguments, "OLL:Stream", &capsule, &rows, &steps)) return nullptr;
  const seqcls_model* const model = model_of(capsule);
  if (!model) return nullptr;
  auto* const me = reinterpret_cast<StreamObject*>(type->tp_alloc(type, 0));
  if (!me) return nullptr;
  seqcls_status status = seqcls_describe(model, &me->info);
  if (!status) status = without_lock(true, [&] { return seqcls_stream_new(model, rows, steps, &me->stream); });
  if (status) {
    Py_DECREF(me);
    return raise(status);
  }
  me->model = Py_NewRef(capsule);
  me->rows = rows;
  const int64_t weights = me->info.hidden * (me->info.features + me->info.hidden) * me->info.layers * 3;
  me->releases = weights > kWorkToRelease / rows;
  return reinterpret_cast<PyObject*>(me);
}

void stream_dealloc(PyObject* self) {
  PyTypeObject* const type = Py_TYPE(self);
  without_lock(true, [&] { return seqcls_stream_close(reinterpret_cast<StreamObject*>(self)->stream), SEQCLS_OK; });
  Py_XDECREF(reinterpret_cast<StreamObject*>(self)->model);
  type->tp_free(self);
  Py_DECREF(type);
}

// The handle of an opened model. It keeps `memory`, from which the model was opened, unless that is null.
PyObject* capsule_of(seqcls_status status, seqcls_model* model, PyObject* memory) {
  if (status) return raise(status);
  PyObject* const capsule = PyCapsule_New(model, kModelCapsule, [](PyObject* of) {
    seqcls_model* const closed = model_of(of);
    without_lock(true, [&] { return seqcls_close(closed), SEQCLS_OK; });
    Py_XDECREF(static_cast<PyObject*>(PyCapsule_GetContext(of)));
  });
  if (!capsule)
    seqcls_close(model);
  else if (memory)
    PyCapsule_SetContext(capsule, Py_NewRef(memory));
  return capsule;
}

PyObject* open_model(PyObject*, PyObject* arguments) {
  PyObject* path = nullptr;
  const char* isa = nullptr;
  if (!PyArg_ParseTuple(arguments, "O&s:open", PyUnicode_FSConverter, &path, &isa)) return nullptr;
  seqcls_model* model = nullptr;
  const char* const name = PyBytes_AS_STRING(path);
  const seqcls_status status = without_lock(true, [&] { return seqcls_open(name, isa, &model); });
  Py_DECREF(path);
  return capsule_of(status, model, nullptr);
}

// The same for the bytes of a file; a bytes object never changes.
PyObject* open_bytes(PyObject*, PyObject* arguments) {
  PyObject* memory = nullptr;
  const char* isa = nullptr;
  if (!PyArg_ParseTuple(arguments, "Ss:open_bytes", &memory, &isa)) return nullptr;
  seqcls_model* model = nullptr;
  const char* const data = PyBytes_AS_STRING(memory);
  const auto size = static_cast<size_t>(PyBytes_GET_SIZE(memory));
  const seqcls_status status = without_lock(true, [&] { return seqcls_open_memory(data, size, isa, &model); });
  return capsule_of(status, model, memory);
}

PyObject* describe(PyObject*, PyObject* capsule) {
  const seqcls_model* const model = model_of(capsule);
  seqcls_info info;
  if (!model) return nullptr;
  if (const seqcls_status status = seqcls_describe(model, &info)) return raise(status);
  return Py_BuildValue("{s:s,s:s,s:s,s:s,s:L,s:L,s:L,s:N,s:N,s:i,s:i,s:L,s:L}", "cell", info.cell, "dtype", info.dtype,
                       "isa", info.isa, "about", info.about, "features", static_cast<long long>(info.features),
                       "vocabulary", static_cast<long long>(info.vocabulary), "outputs",
                       static_cast<long long>(info.outputs), "is_classifier", PyBool_FromLong(info.is_classifier),
                       "is_streamable", PyBool_FromLong(info.is_streamable), "layers", info.layers, "directions",
                       info.directions, "hidden", static_cast<long long>(info.hidden), "projection",
                       static_cast<long long>(info.projection));
}

PyObject* stream_bytes(PyObject*, PyObject* arguments) {
  PyObject* capsule = nullptr;
  long long rows = 0, steps = 0;
  if (!PyArg_ParseTuple(arguments, "OLL:stream_bytes", &capsule, &rows, &steps)) return nullptr;
  const seqcls_model* const model = model_of(capsule);
  if (!model) return nullptr;
  const size_t bytes = seqcls_stream_bytes(model, rows, steps);
  if (bytes) return PyLong_FromSize_t(bytes);
  seqcls_stream* none = nullptr;
  return raise(seqcls_stream_new(model, rows, steps, &none));  // refuses the same sizes, with a status
}

PyCFunction as_function(PyObject* (*fast)(PyObject*, PyObject* const*, Py_ssize_t)) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(fast));
}

PyMethodDef stream_methods[] = {
    {"step", as_function(stream_step), METH_FASTCALL, nullptr},
    {"run", as_function(stream_run), METH_FASTCALL, nullptr},
    {"reset", stream_reset, METH_O, nullptr},
    {"get_state", as_function(stream_get_state), METH_FASTCALL, nullptr},
    {"set_state", as_function(stream_set_state), METH_FASTCALL, nullptr},
    {"state_bytes", stream_state_bytes, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};
PyType_Slot stream_slots[] = {
    {Py_tp_new, reinterpret_cast<void*>(stream_new)},
    {Py_tp_dealloc, reinterpret_cast<void*>(stream_dealloc)},
    {Py_tp_methods, stream_methods},
    {0, nullptr},
};
PyType_Spec stream_type = {"seqcls_fast._runtime.Stream", sizeof(StreamObject), 0, Py_TPFLAGS_DEFAULT, stream_slots};

// classify(model, texts, ids, lengths, probabilities, classes). The texts are in the form and case of the model; ids
// and lengths are None where the model has a tokenizer.
PyObject* classify(PyObject*, PyObject* arguments) {
  PyObject *capsule = nullptr, *list = nullptr, *given[4] = {};
  if (!PyArg_ParseTuple(arguments, "OO!OOOO:classify", &capsule, &PyList_Type, &list, &given[0], &given[1], &given[2],
                        &given[3]))
    return nullptr;
  const seqcls_model* const model = model_of(capsule);
  seqcls_info info;
  if (!model) return nullptr;
  if (const seqcls_status status = seqcls_describe(model, &info)) return raise(status);
  PyObject* const kept = PyList_AsTuple(list);  // which keeps the strings while other threads run
  if (!kept) return nullptr;
  const int64_t count = PyTuple_GET_SIZE(kept);
  std::vector<const char*> texts;
  std::vector<size_t> sizes;
  bool fine = true;
  for (int64_t i = 0; fine && i < count; ++i) {
    Py_ssize_t size = 0;
    const char* const text = PyUnicode_AsUTF8AndSize(PyTuple_GET_ITEM(kept, i), &size);
    fine = text != nullptr;
    texts.push_back(text);
    sizes.push_back(static_cast<size_t>(size));
  }
  Array<const int64_t> ids, lengths;
  Array<double> probabilities;
  Array<int64_t> classes;
  fine = fine && lengths.take(given[1], "lengths", count) &&
         probabilities.take(given[2], "probabilities", count * info.outputs) &&
         classes.take(given[3], "classes", count);
  int64_t sum = 0;
  for (int64_t i = 0; fine && lengths.data() && i < count; ++i)
    sum += lengths.data()[i] < 0 || lengths.data()[i] > (int64_t{1} << 31) ? 0 : lengths.data()[i];
  if (!fine || !ids.take(given[0], "ids", sum)) {
    Py_DECREF(kept);
    return nullptr;
  }
  seqcls_texts call = {};
  call.count = count;
  call.texts = texts.data();
  call.sizes = sizes.data();
  call.are_normal = 1;
  static const int64_t kNone = 0;  // an empty array may lie at NULL, which would stand for no ids
  call.ids = ids.data() || given[0] == Py_None ? ids.data() : &kNone;
  call.lengths = lengths.data();
  call.probabilities = probabilities.data();
  call.classes = classes.data();
  const seqcls_status status = without_lock(true, [&] { return count ? seqcls_classify(model, &call) : SEQCLS_OK; });
  Py_DECREF(kept);
  if (status) return raise(status);
  Py_RETURN_NONE;
}

PyMethodDef functions[] = {
    {"open", open_model, METH_VARARGS, "The model in a file: open(path, isa)."},
    {"open_bytes", open_bytes, METH_VARARGS, "The model in the bytes of a file: open_bytes(bytes, isa)."},
    {"classify", classify, METH_VARARGS, "Classifies texts: (model, texts, ids, lengths, probabilities, classes)."},
    {"describe", describe, METH_O, "What a model is, as a dict."},
    {"stream_bytes", stream_bytes, METH_VARARGS, "The memory that a stream takes: stream_bytes(model, rows, steps)."},
    {nullptr, nullptr, 0, nullptr},
};
PyModuleDef module = {PyModuleDef_HEAD_INIT,
                      "_runtime",
                      "libseqcls for Python; see seqcls_fast/runtime.py.",
                      -1,
                      functions,
                      nullptr,
                      nullptr,
                      nullptr,
                      nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__runtime() {
  PyObject* const made = PyModule_Create(&module);
  PyObject* const type = made ? PyType_FromSpec(&stream_type) : nullptr;
  if (!type || PyModule_AddObject(made, "Stream", type)) {
    Py_XDECREF(type);
    Py_XDECREF(made);
    return nullptr;
  }
  return made;
}

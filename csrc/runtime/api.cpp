// The C functions of seqcls.h: they check handles, and turn exceptions into a status and a sentence.
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>

#include "../core/cells.h"
#include "classify.h"
#include "refusal.h"
#include "stream.h"

namespace {

using namespace sf::runtime;

// In memory that every thread has from its beginning, so that an error in a stream allocates nothing.
[[gnu::tls_model("initial-exec")]] thread_local char sentence[400];

constexpr uint64_t kModel = 0x6c65646f6d717366,
                   kStream = 0x6d61657274717366;  // what a handle begins with while it is open

}  // namespace

struct seqcls_model {
  uint64_t kind = kModel;
  std::shared_ptr<const Model> model;
};
struct seqcls_stream {
  uint64_t kind = kStream;
  Stream stream;
  explicit seqcls_stream(std::shared_ptr<const Model> model, int64_t rows, int64_t steps)
      : stream(std::move(model), rows, steps) {}
};

namespace sf::runtime {

seqcls_status refused(seqcls_status status, const char* format, ...) {
  va_list values;
  va_start(values, format);
  std::vsnprintf(sentence, sizeof sentence, format, values);
  va_end(values);
  return status;
}

}  // namespace sf::runtime

namespace {

// Calls function() and turns its exceptions into a status; `other` is that of exceptions without one of their own.
template <class Function>
seqcls_status guarded(seqcls_status other, Function&& function) {
  try {
    return function();
  } catch (const Refusal& error) {
    return refused(error.status, "%s", error.what());
  } catch (const std::bad_alloc&) {
    return refused(SEQCLS_NO_MEMORY, "memory: expected enough for what was asked for but there is too little");
  } catch (const std::exception& error) {
    return refused(other, "%s", error.what());
  } catch (...) {
    return refused(other, "an error without words");
  }
}

seqcls_status check(const seqcls_model* model) {
  if (!model) return refused(SEQCLS_BAD_ARGUMENT, "model: expected an open model but got NULL");
  if (model->kind != kModel)
    return refused(SEQCLS_BAD_ARGUMENT, "model: expected an open model but got another pointer");
  return SEQCLS_OK;
}
seqcls_status check(const seqcls_stream* stream) {
  if (!stream) return refused(SEQCLS_BAD_ARGUMENT, "stream: expected a stream but got NULL");
  if (stream->kind != kStream) return refused(SEQCLS_BAD_ARGUMENT, "stream: expected a stream but got another pointer");
  return SEQCLS_OK;
}

// Empties the place of a result before anything else is checked, so that it holds nothing unknown after any error.
template <class Result>
seqcls_status clear(const char* name, const char* what, Result* place) {
  if (!place) return refused(SEQCLS_BAD_ARGUMENT, "%s: expected a place for the %s but got NULL", name, what);
  *place = {};
  return SEQCLS_OK;
}

template <class Make>
seqcls_status open(const char* isa, seqcls_model** to, Make&& make_file) {
  return guarded(SEQCLS_BAD_FILE, [&] {
    auto opened = std::make_unique<seqcls_model>();
    opened->model = std::make_shared<const Model>(make_file(), isa ? isa : "auto");
    *to = opened.release();
    return SEQCLS_OK;
  });
}

}  // namespace

extern "C" {

const char* seqcls_error(void) { return sentence; }

seqcls_status seqcls_open(const char* path, const char* isa, seqcls_model** model) {
  if (const seqcls_status status = clear("model", "handle", model)) return status;
  if (!path) return refused(SEQCLS_BAD_ARGUMENT, "path: expected the name of a file but got NULL");
  return open(isa, model, [&] { return std::make_unique<TensorFile>(path); });
}

seqcls_status seqcls_open_memory(const void* data, size_t size, const char* isa, seqcls_model** model) {
  if (const seqcls_status status = clear("model", "handle", model)) return status;
  if (!data) return refused(SEQCLS_BAD_ARGUMENT, "data: expected the bytes of a file but got NULL");
  if (reinterpret_cast<uintptr_t>(data) % 8)
    return refused(SEQCLS_BAD_ARGUMENT, "data: expected memory aligned to 8 bytes");
  return open(isa, model, [&] { return std::make_unique<TensorFile>(data, size); });
}

void seqcls_close(seqcls_model* model) {
  if (!model || check(model)) return;
  model->kind = 0;
  delete model;
}

seqcls_status seqcls_describe(const seqcls_model* model, seqcls_info* info) {
  if (const seqcls_status status = clear("info", "description", info)) return status;
  if (const seqcls_status status = check(model)) return status;
  const Description& d = model->model->description;
  info->cell = sf::kCellNames[d.cell];
  info->dtype = d.dtype == sf::Dtype::kFloat32 ? "float32" : "bfloat16";
  info->isa = model->model->kernels.name;
  info->about = model->model->about().c_str();
  info->features = d.features;
  info->vocabulary = d.vocabulary;
  info->outputs = d.outputs();
  info->is_classifier = d.is_classifier();
  info->is_streamable = d.is_streamable();
  info->layers = d.layers;
  info->directions = d.directions;
  info->hidden = d.hidden;
  info->projection = d.projection;
  return SEQCLS_OK;
}

seqcls_status seqcls_stream_new(const seqcls_model* model, int64_t rows, int64_t steps, seqcls_stream** stream) {
  if (const seqcls_status status = clear("stream", "handle", stream)) return status;
  if (const seqcls_status status = check(model)) return status;
  return guarded(SEQCLS_BAD_ARGUMENT, [&] {
    *stream = new seqcls_stream(model->model, rows, steps);
    return SEQCLS_OK;
  });
}

size_t seqcls_stream_bytes(const seqcls_model* model, int64_t rows, int64_t steps) {
  size_t bytes = 0;
  if (check(model)) return 0;
  guarded(SEQCLS_BAD_ARGUMENT, [&] {
    bytes = static_cast<size_t>(Stream::bytes(*model->model, rows, steps)) + sizeof(seqcls_stream) +
            model->model->layers.size() * (sizeof(sf::Forward) + sizeof(sf::StepTask));
    return SEQCLS_OK;
  });
  return bytes;
}

void seqcls_stream_close(seqcls_stream* stream) {
  if (!stream || check(stream)) return;
  stream->kind = 0;
  delete stream;
}

seqcls_status seqcls_run(seqcls_stream* stream, const seqcls_call* call) {
  if (const seqcls_status status = check(stream)) return status;
  if (!call) return refused(SEQCLS_BAD_ARGUMENT, "call: expected what to run but got NULL");
  return stream->stream.run(*call);
}

seqcls_status seqcls_step(seqcls_stream* stream, const float* x, float* out) {
  if (const seqcls_status status = check(stream)) return status;
  return stream->stream.step(x, out);
}

seqcls_status seqcls_reset(seqcls_stream* stream, int64_t row) {
  if (const seqcls_status status = check(stream)) return status;
  return stream->stream.reset(row);
}

size_t seqcls_state_bytes(seqcls_stream* stream) { return check(stream) ? 0 : stream->stream.state_bytes(); }

seqcls_status seqcls_get_state(seqcls_stream* stream, int64_t row, void* state, size_t bytes) {
  if (const seqcls_status status = check(stream)) return status;
  return stream->stream.get_state(row, state, bytes);
}

seqcls_status seqcls_set_state(seqcls_stream* stream, int64_t row, const void* state, size_t bytes) {
  if (const seqcls_status status = check(stream)) return status;
  return stream->stream.set_state(row, state, bytes);
}

seqcls_status seqcls_classify(const seqcls_model* model, const seqcls_texts* texts) {
  if (const seqcls_status status = check(model)) return status;
  if (!texts) return refused(SEQCLS_BAD_ARGUMENT, "texts: expected what to classify but got NULL");
  return guarded(SEQCLS_BAD_ARGUMENT, [&] { return classify(model->model, *texts); });
}

}  // extern "C"

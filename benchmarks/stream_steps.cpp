// Steps of a stream from C, for benchmarks/questions/runtime.py, which loads this as a library: nothing of Python runs
// between one step and the next.
#include <chrono>

#include "seqcls.h"

namespace {

using Clock = std::chrono::steady_clock;

}  // namespace

extern "C" {

// A stream of one row over the model in a file; null where there is none.
SEQCLS_API seqcls_stream* steps_open(const char* path) {
  seqcls_model* model = nullptr;
  seqcls_stream* stream = nullptr;
  if (!seqcls_open(path, nullptr, &model)) seqcls_stream_new(model, 1, 1, &stream);
  seqcls_close(model);
  return stream;
}

SEQCLS_API void steps_close(seqcls_stream* stream) { seqcls_stream_close(stream); }

// Follows the `count` rows of x, (count, features), from the first one on and over again, for `steps` steps.
SEQCLS_API void steps_run(seqcls_stream* stream, const float* x, int64_t count, int64_t features, float* out,
                          int64_t steps) {
  for (int64_t i = 0; i < steps; ++i) seqcls_step(stream, x + i % count * features, out);
}

// The same with the seconds of each step, the reading of the clock included.
SEQCLS_API void steps_time(seqcls_stream* stream, const float* x, int64_t count, int64_t features, float* out,
                           int64_t steps, double* seconds) {
  Clock::time_point before = Clock::now();
  for (int64_t i = 0; i < steps; ++i) {
    seqcls_step(stream, x + i % count * features, out);
    const Clock::time_point now = Clock::now();
    seconds[i] = std::chrono::duration<double>(now - before).count();
    before = now;
  }
}

}  // extern "C"

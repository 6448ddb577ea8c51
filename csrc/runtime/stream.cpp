// Runs the calls of a stream in pieces: each piece of steps goes through all layers before the next one begins. The
// kernels take and leave the states of the rows in place, h in the dtype of the model and c in float.
#include "stream.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "../core/cells.h"
#include "refusal.h"
#include "whole_series.h"

namespace sf::runtime {
namespace {

constexpr int64_t kMostRows = 1 << 20, kMostCells = int64_t{1} << 32;

// The column of the largest number, the first of several. A NaN is larger than all numbers, as numpy has it. `without`
// is a column to leave out.
int64_t largest(const double* values, int64_t count, int64_t without) {
  int64_t best = -1;
  for (int64_t i = 0; i < count; ++i) {
    if (i == without) continue;
    if (values[i] != values[i]) return i;
    if (best < 0 || values[i] > values[best]) best = i;
  }
  return std::max<int64_t>(best, 0);
}

}  // namespace

Stream::Stream(std::shared_ptr<const Model> model, int64_t rows, int64_t steps)
    : model_(std::move(model)),
      rows_(rows),
      steps_(steps),
      memory_(bytes(*model_, rows, steps)),
      at_(*model_, rows, steps, memory_.data()),
      step_layer_(rows == 1 && about().is_streamable() ? model_->kernels.step_of(model_->layers[0]) : nullptr) {
  const Description& d = about();
  char* h_data = at_.h;
  float* c_data = at_.c;
  for (int64_t i = 0; i < rows_; ++i) at_.all_rows[i] = i;
  forwards_.resize(model_->layers.size());
  for (size_t k = 0; k < forwards_.size(); ++k) {
    Forward& forward = forwards_[k] = {};
    forward.layer = model_->layers[k];
    forward.layer.B = rows_;
    for (int direction = 0; direction < d.directions; ++direction) {
      Rows h, c;
      h.data = h_data;
      h.dtype = d.dtype;
      h.b_stride = padded(d.out());
      h_data += rows_ * h.b_stride * size();
      forward.layer.h0[direction] = forward.h_n[direction] = h;
      if (!kCells[d.cell].has_c) continue;
      c.data = reinterpret_cast<char*>(c_data);
      c.b_stride = padded(d.hidden);
      c_data += rows_ * c.b_stride;
      forward.layer.c0[direction] = forward.c_n[direction] = c;
    }
  }
  if (step_layer_) {
    for (size_t k = 0; k < forwards_.size(); ++k) {
      char* const h_next = at_.h_next + static_cast<int64_t>(k) * padded(d.out()) * size();
      tasks_.push_back({&model_->layers[k], model_->packed[k], nullptr, forwards_[k].h_n[0].data, h_next,
                        forwards_[k].c_n[0].data, nullptr, false});
    }
    steps_in_place_ = !d.is_classifier() && !d.vocabulary && !d.series.there() && d.dtype == Dtype::kFloat32;
  }
  reset(-1);
}

int64_t Stream::bytes(const Model& model, int64_t rows, int64_t steps) {
  if (rows < 1 || rows > kMostRows) refuse(SEQCLS_BAD_ARGUMENT, "rows: expected 1 to ", kMostRows, " but got ", rows);
  if (steps < 1 || steps > kMostSteps)
    refuse(SEQCLS_BAD_ARGUMENT, "steps: expected 1 to ", kMostSteps, " but got ", steps);
  if (rows * steps > kMostCells)
    refuse(SEQCLS_NO_MEMORY, "steps: expected at most ", kMostCells, " in all rows together but got ", rows * steps);
  return StreamMemory(model, rows, steps, nullptr).bytes;
}

// ---- States

char* Stream::state_h(int64_t layer, int64_t direction, int64_t row) const {
  const Rows& h = forwards_[static_cast<size_t>(layer)].h_n[direction];
  return h.data + row * h.b_stride * size();
}
float* Stream::state_c(int64_t layer, int64_t direction, int64_t row) const {
  const Rows& c = forwards_[static_cast<size_t>(layer)].c_n[direction];
  return reinterpret_cast<float*>(c.data) + row * c.b_stride;
}
PooledRow Stream::pooled_row(int64_t row) const {
  return {at_.pooled_steps + row, at_.totals + row * about().width(), at_.parts + row * about().width()};
}

void Stream::begin_row(int64_t row) {
  const Description& d = about();
  const auto bytes_of = [&](int64_t width) { return static_cast<size_t>(width * size()); };
  for (int64_t k = 0; k < d.layers; ++k) {
    const Layer& layer = model_->layers[static_cast<size_t>(k)];
    for (int direction = 0; direction < d.directions; ++direction) {
      const Rows &h = layer.h_reset[direction], &c = layer.c_reset[direction];
      if (h.data)
        std::memcpy(state_h(k, direction, row), h.data, bytes_of(d.out()));
      else
        std::memset(state_h(k, direction, row), 0, bytes_of(d.out()));
      if (!kCells[d.cell].has_c) continue;
      float* const to = state_c(k, direction, row);
      for (int64_t i = 0; i < d.hidden; ++i) to[i] = c.data ? value_at(c.data, d.dtype, i) : 0;
    }
  }
  *pooled_row(row).steps = at_.taken[row] = 0;
  if (d.series.there())
    std::fill_n(at_.before + row * 2 * d.features, 2 * d.features, std::numeric_limits<double>::quiet_NaN());
  if (d.pooling != PoolKind::kMean && d.pooling != PoolKind::kMax) return;
  std::fill_n(pooled_row(row).total, d.width(), 0.f);
  std::fill_n(pooled_row(row).part, d.width(), 0.f);
}

seqcls_status Stream::reset(int64_t row) {
  if (row < -1 || row >= rows_)
    return refused(SEQCLS_BAD_ARGUMENT, "row: expected -1 to %lld but got %lld", static_cast<long long>(rows_ - 1),
                   static_cast<long long>(row));
  for (int64_t each = std::max<int64_t>(row, 0); each < (row < 0 ? rows_ : row + 1); ++each) begin_row(each);
  return SEQCLS_OK;
}

// ---- A call

seqcls_status Stream::run(const seqcls_call& call, const float* beside) {
  if (const seqcls_status status = check(call, beside)) return status;
  if (!about().is_streamable())
    for (int64_t i = 0; i < count_; ++i) begin_row(of_call_[i]);
  for (int64_t begin = 0; begin < call.steps; begin += steps_)
    run_piece(call, begin, std::min(steps_, call.steps - begin));
  if (about().series.max_length)
    for (int64_t i = 0; i < count_; ++i) at_.taken[of_call_[i]] += at_.lengths[of_call_[i]];
  if (about().is_classifier() && (call.out || call.logits || call.probabilities || call.classes)) finish(call, beside);
  return SEQCLS_OK;
}

int64_t Stream::steps_in_piece(int64_t i, int64_t begin, int64_t steps) const {
  return has_lengths_ ? std::clamp<int64_t>(at_.lengths[of_call_[i]] - begin, 0, steps) : steps;
}

void Stream::run_piece(const seqcls_call& call, int64_t begin, int64_t steps) {
  const Description& d = about();
  if (has_lengths_)
    for (int64_t i = 0; i < count_; ++i) at_.left[of_call_[i]] = steps_in_piece(i, begin, steps);
  const bool wants_output = d.is_classifier() ? d.pooling != PoolKind::kLast : call.out != nullptr;
  // The last layer writes to the caller's memory itself where it lies as the rows of the stream do.
  const bool in_place = wants_output && !d.is_classifier() && !call.rows && d.dtype == Dtype::kFloat32;
  Rows output;
  output.dtype = d.dtype;
  output.t_stride = d.width();
  output.b_stride = (in_place ? call.steps : steps_) * d.width();
  if (in_place)
    output.data = reinterpret_cast<char*>(call.out + begin * d.width());
  else if (wants_output)
    output.data = at_.buffers[(forwards_.size() + 1) % 2];
  const Rows x = input(call, begin, steps);
  if (step_layer_ && steps == 1 && count_ && !call.resets && steps_in_piece(0, begin, 1))
    step_layers(x.data, output.data);
  else
    run_layers(x, resets(call, begin, steps), steps, output);
  if (!wants_output) return;
  if (d.is_classifier())
    pool(output.data, steps);
  else if (!in_place)
    copy_output(call, output.data, begin, steps);
}

// The last layer writes to `output`, or nowhere; the others write to two buffers in turns.
void Stream::run_layers(Rows x, const Rows& resets, int64_t steps, const Rows& output) {
  const Description& d = about();
  for (size_t k = 0; k < forwards_.size(); ++k) {
    Forward& forward = forwards_[k];
    Rows to = output;
    if (k + 1 < forwards_.size()) to.data = at_.buffers[k % 2], to.b_stride = steps_ * d.width();
    forward.layer.T = steps;
    forward.layer.lengths = has_lengths_ ? at_.left : nullptr;
    forward.layer.x = x;
    forward.layer.resets = resets;
    for (int direction = 0; direction < d.directions; ++direction) {
      forward.output[direction] = to;
      if (to.data) forward.output[direction].data += direction * d.out() * size();
    }
    for (int direction = 0; direction < d.directions; ++direction) {
      const PackedForward& packed =
          model_->packed[k * static_cast<size_t>(d.directions) + static_cast<size_t>(direction)];
      const Task task{direction, longest_first_, count_, 0, d.hidden, nullptr, nullptr, at_.scratch, at_.shared};
      model_->kernels.forward({&forward, packed, task});
    }
    x = to;
  }
}

// One step of the only row. The memory of h and of the next h take turns.
void Stream::step_layers(const char* x, char* output) {
  tasks_.back().output = output;
  for (size_t k = 0; k < tasks_.size(); ++k) {
    StepTask& task = tasks_[k];
    task.x = x;
    step_layer_(task);
    std::swap(task.h, task.h_next);
    task.backwards = !task.backwards;
    x = forwards_[k].layer.h0[0].data = forwards_[k].h_n[0].data = task.h;
  }
}

seqcls_status Stream::step(const float* x, float* out) {
  if (steps_in_place_ && x) {
    step_layers(reinterpret_cast<const char*>(x), reinterpret_cast<char*>(out));
    return SEQCLS_OK;
  }
  if (!about().is_streamable())
    return refused(
        SEQCLS_NOT_STREAMABLE,
        "step: expected a model that reads its input once, from its beginning on, but this one %s: run whole "
        "sequences with seqcls_run()",
        about().needs_whole());
  seqcls_call call = {};
  call.steps = 1;
  call.x = x;
  call.out = out;
  return run(call);
}

// The rows that the first layer reads: the caller's own, or copies in the dtype of the model.
Rows Stream::input(const seqcls_call& call, int64_t begin, int64_t steps) {
  const Description& d = about();
  Rows x;
  x.dtype = d.dtype;
  x.t_stride = d.inputs;
  if (!d.vocabulary && !d.series.there() && !call.rows && d.dtype == Dtype::kFloat32) {
    x.data = reinterpret_cast<char*>(const_cast<float*>(call.x + begin * d.inputs));  // kernels do not write to it
    x.b_stride = call.steps * d.inputs;
    return x;
  }
  x.data = at_.x;
  x.b_stride = steps_ * d.inputs;
  for (int64_t i = 0; i < count_; ++i) {
    char* const to = at_.x + of_call_[i] * x.b_stride * size();
    const int64_t length = steps_in_piece(i, begin, steps);
    d.vocabulary ? take_embeddings(call, begin, i, length, to) : take_features(call, begin, i, length, to);
  }
  return x;
}

void Stream::take_features(const seqcls_call& call, int64_t begin, int64_t i, int64_t steps, char* to) const {
  const Description& d = about();
  const int64_t first = (i * call.steps + begin) * d.features;
  if (!d.series.there()) {
    for (int64_t k = 0; k < steps * d.features; ++k) put_value(to, d.dtype, k, call.x[first + k]);
    return;
  }
  if (at_.features) {  // the whole sequence
    float* const features = at_.features + of_call_[i] * steps_ * d.inputs;
    call.x ? whole_series(d.series, call.x + first, steps, at_.column, features)
           : whole_series(d.series, call.x_double + first, steps, at_.column, features);
    for (int64_t k = 0; k < steps * d.inputs; ++k) put_value(to, d.dtype, k, features[k]);
    return;
  }
  double* const before = at_.before + of_call_[i] * 2 * d.features;
  for (int64_t t = 0; t < steps; ++t, to += d.inputs * size()) {
    const int64_t at = first + t * d.features;
    call.x ? put_step(d.series, call.x + at, before, to, d.dtype)
           : put_step(d.series, call.x_double + at, before, to, d.dtype);
  }
}

void Stream::take_embeddings(const seqcls_call& call, int64_t begin, int64_t i, int64_t steps, char* to) const {
  const Description& d = about();
  const volatile int64_t* const ids = call.ids + i * call.steps + begin;
  const int64_t bytes = d.inputs * size();
  for (int64_t t = 0; t < steps; ++t) {
    const int64_t given = ids[t];  // read once: it was checked, but another thread may have written to it since
    const int64_t id = given >= 0 && given < d.vocabulary ? given : 0;
    std::memcpy(to + t * bytes, model_->embedding + id * bytes, static_cast<size_t>(bytes));
  }
}

Rows Stream::resets(const seqcls_call& call, int64_t begin, int64_t steps) {
  Rows anew;
  if (!call.resets) return anew;
  anew.t_stride = 1;
  anew.b_stride = steps_;
  anew.data = reinterpret_cast<char*>(at_.resets);
  for (int64_t i = 0; i < count_; ++i)
    std::memcpy(at_.resets + of_call_[i] * steps_, call.resets + i * call.steps + begin, static_cast<size_t>(steps));
  return anew;
}

void Stream::copy_output(const seqcls_call& call, const char* from, int64_t begin, int64_t steps) const {
  const Description& d = about();
  for (int64_t i = 0; i < count_; ++i) {
    const char* const row = from + of_call_[i] * steps_ * d.width() * size();
    float* const to = call.out + (i * call.steps + begin) * d.width();
    for (int64_t k = 0; k < steps * d.width(); ++k) to[k] = value_at(row, d.dtype, k);
  }
}

// ---- What follows the layers

void Stream::pool(const char* output, int64_t steps) {
  const Description& d = about();
  if (d.pooling == PoolKind::kAttention) {
    PoolSteps call = model_->attention;
    call.T = steps, call.B = rows_;
    call.lengths = forwards_[0].layer.lengths;
    call.output = forwards_.back().output[0];
    call.pooled.dtype = d.dtype;
    for (int64_t i = 0; i < count_; ++i) {  // one row at a time, as the rows of a call need not follow each other
      call.pooled.data = at_.pooled + (i - of_call_[i]) * d.width() * size();
      call.pooled.b_stride = d.width();
      model_->kernels.pool_steps({&call, model_->packed_attention.data(), of_call_[i], of_call_[i] + 1, at_.scratch});
    }
    return;
  }
  for (int64_t i = 0; i < count_; ++i) {
    const int64_t row = of_call_[i], length = has_lengths_ ? at_.left[row] : steps;
    const char* from = output + row * steps_ * d.width() * size();
    for (int64_t t = 0; t < length; ++t, from += d.width() * size())
      pool_step(d.pooling, pooled_row(row), from, d.dtype, d.width());
  }
}

void Stream::pool_row(int64_t row, char* to) const {
  const Description& d = about();
  if (d.pooling != PoolKind::kLast) return pooled(d.pooling, pooled_row(row), to, d.dtype, d.width());
  const int64_t bytes = d.out() * size();
  for (int direction = 0; direction < d.directions; ++direction)
    std::memcpy(to + direction * bytes, state_h(d.layers - 1, direction, row), static_cast<size_t>(bytes));
}

// The features of row i of the call, a whole sequence, before they are rounded to the dtype of the model.
const float* Stream::float_features(const seqcls_call& call, int64_t i) const {
  return at_.features ? at_.features + of_call_[i] * steps_ * about().inputs : call.x + i * call.steps * about().inputs;
}

// Logits and probabilities of the rows of the call.
void Stream::run_head(const seqcls_call& call, const float* beside) {
  const Description& d = about();
  Linear linear = model_->head;
  linear.count = count_;
  linear.x.data = at_.pooled;
  linear.x.b_stride = d.width();
  linear.result.data = at_.raw_logits;
  linear.result.b_stride = d.classes;
  model_->kernels.linear({&linear, model_->packed_head.data(), 0, count_, at_.scratch});
  for (int64_t i = 0; i < count_ * d.classes; ++i) at_.logits[i] = value_at(at_.raw_logits, d.dtype, i);
  for (int64_t i = 0; model_->convolutions && i < count_; ++i)
    model_->convolutions->add(float_features(call, i), steps_in_piece(i, 0, call.steps), d.inputs, at_.space,
                              at_.scratch, at_.logits + i * d.classes);
  for (int64_t i = 0; beside && i < count_ * d.classes; ++i) at_.logits[i] += beside[i];
  Softmax softmax{};
  softmax.dtype = softmax.probabilities.dtype = Dtype::kFloat64;
  softmax.count = count_;
  softmax.classes = d.classes;
  softmax.temperature = d.temperature;
  softmax.logits.data = reinterpret_cast<char*>(at_.logits);
  softmax.probabilities.data = reinterpret_cast<char*>(at_.probabilities);
  softmax.logits.b_stride = softmax.probabilities.b_stride = d.classes;
  model_->kernels.softmax({&softmax, 0, count_, at_.scratch});
}

void Stream::finish(const seqcls_call& call, const float* beside) {
  const Description& d = about();
  if (d.pooling == PoolKind::kAttention && !call.steps)
    std::memset(at_.pooled, 0, static_cast<size_t>(count_ * d.width() * size()));
  if (d.pooling != PoolKind::kAttention)
    for (int64_t i = 0; i < count_; ++i) pool_row(of_call_[i], at_.pooled + i * d.width() * size());
  run_head(call, beside);
  const int64_t numbers = count_ * d.classes;
  if (call.logits) std::copy_n(at_.logits, numbers, call.logits);
  if (call.probabilities) std::copy_n(at_.probabilities, numbers, call.probabilities);
  for (int64_t i = 0; call.out && i < numbers; ++i) call.out[i] = static_cast<float>(at_.probabilities[i]);
  for (int64_t i = 0; call.classes && i < count_; ++i) {
    const double* const row = at_.probabilities + i * d.classes;
    const bool above = d.threshold_class >= 0 && row[d.threshold_class] >= d.threshold;
    call.classes[i] = above ? d.threshold_class : largest(row, d.classes, d.threshold_class);
  }
}

}  // namespace sf::runtime

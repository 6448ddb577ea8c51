// The checks of a call, all of which come before its first row moves. What another thread could change meanwhile is
// read once.
#include <algorithm>

#include "series.h"
#include "stream.h"

namespace sf::runtime {

seqcls_status Stream::check(const seqcls_call& call, const float* beside) {
  const Description& d = about();
  if (d.text.bits && !beside)
    return refused(SEQCLS_BAD_ARGUMENT,
                   "ids: expected texts, as the model reads their n-grams too, so that it is run with "
                   "seqcls_classify(), but got ids alone");
  if (call.steps < 0 || call.steps > kMostSteps)
    return refused(SEQCLS_BAD_ARGUMENT, "steps: expected 0 to %lld but got %lld", static_cast<long long>(kMostSteps),
                   static_cast<long long>(call.steps));
  if (!d.is_streamable() && call.steps > steps_)
    return refused(SEQCLS_BAD_ARGUMENT,
                   "steps: expected at most %lld, for which the stream was made, as this model needs whole sequences, "
                   "but got %lld",
                   static_cast<long long>(steps_), static_cast<long long>(call.steps));
  if (const seqcls_status status = check_input(call)) return status;
  if (d.is_classifier() && call.resets)
    return refused(
        SEQCLS_BAD_ARGUMENT,
        "resets: expected NULL for a classifier, whose rows begin anew by seqcls_reset(), but got a pointer");
  if (!d.is_classifier() && (call.logits || call.probabilities || call.classes))
    return refused(SEQCLS_BAD_ARGUMENT, "%s: expected NULL for a model without a head but got a pointer",
                   call.logits          ? "logits"
                   : call.probabilities ? "probabilities"
                                        : "classes");
  if (const seqcls_status status = check_rows(call)) return status;
  if (const seqcls_status status = check_lengths(call)) return status;
  if (const seqcls_status status = check_values(call)) return status;
  if (has_lengths_ && count_ > 1) sort_by_length();
  return SEQCLS_OK;
}

// The input is in one of three arrays: the one that the model takes.
seqcls_status Stream::check_input(const seqcls_call& call) const {
  const Description& d = about();
  const char* const takes = d.vocabulary ? "ids" : d.series.there() ? "x or x_double" : "x";
  const bool has_numbers = d.series.there() ? (call.x != nullptr) != (call.x_double != nullptr) : call.x != nullptr;
  if (call.steps && !(d.vocabulary ? call.ids != nullptr : has_numbers))
    return refused(SEQCLS_BAD_ARGUMENT, "%s: expected a pointer to the input but got %s", takes,
                   call.x && call.x_double ? "two" : "NULL");
  const char* const given = d.vocabulary && (call.x || call.x_double)             ? call.x ? "x" : "x_double"
                            : !d.vocabulary && call.ids                           ? "ids"
                            : !d.vocabulary && !d.series.there() && call.x_double ? "x_double"
                                                                                  : nullptr;
  if (!given) return SEQCLS_OK;
  return refused(SEQCLS_BAD_ARGUMENT, "%s: expected NULL, as this model takes %s, but got a pointer", given, takes);
}

// Sets count_ and of_call_ to a copy of the call's rows.
seqcls_status Stream::check_rows(const seqcls_call& call) {
  of_call_ = longest_first_ = at_.all_rows;
  count_ = rows_;
  if (!call.rows) return SEQCLS_OK;
  if (call.count < 0 || call.count > rows_)
    return refused(SEQCLS_BAD_ARGUMENT, "count: expected 0 to %lld, the rows of the stream, but got %lld",
                   static_cast<long long>(rows_), static_cast<long long>(call.count));
  seqcls_status status = SEQCLS_OK;
  int64_t marked = 0;
  for (; marked < call.count && !status; ++marked) {
    const int64_t row = at_.chosen[marked] = const_cast<const volatile int64_t*>(call.rows)[marked];
    const bool known = row >= 0 && row < rows_;
    if (!known || at_.marks[row])
      status = refused(SEQCLS_BAD_ARGUMENT, "rows: expected rows of the stream, 0 to %lld, each once, but got %lld%s",
                       static_cast<long long>(rows_ - 1), static_cast<long long>(row), known ? " twice" : "");
    if (known) at_.marks[row] = 1;
  }
  for (int64_t i = 0; i < marked; ++i)
    if (at_.chosen[i] >= 0 && at_.chosen[i] < rows_) at_.marks[at_.chosen[i]] = 0;
  of_call_ = longest_first_ = at_.chosen;
  count_ = call.count;
  return status;
}

// Copies the lengths, cut to the steps that the model still takes of each row.
seqcls_status Stream::check_lengths(const seqcls_call& call) {
  const int64_t most = about().series.max_length;
  has_lengths_ = call.lengths || most;
  for (int64_t i = 0; has_lengths_ && i < count_; ++i) {
    const int64_t row = of_call_[i],
                  length = call.lengths ? const_cast<const volatile int64_t*>(call.lengths)[i] : call.steps;
    if (length < 0 || length > call.steps)
      return refused(SEQCLS_BAD_ARGUMENT, "lengths: expected 0 to %lld but got %lld at %lld",
                     static_cast<long long>(call.steps), static_cast<long long>(length), static_cast<long long>(i));
    const int64_t taken = about().is_streamable() ? at_.taken[row] : 0;
    at_.lengths[row] = most ? std::min(length, most - taken) : length;
  }
  return SEQCLS_OK;
}

seqcls_status Stream::check_values(const seqcls_call& call) const {
  const Description& d = about();
  if (!d.vocabulary && !d.series.there()) return SEQCLS_OK;  // any number will do, NaN too
  const int64_t each = d.vocabulary ? 1 : d.features;
  for (int64_t i = 0; i < count_; ++i) {
    const int64_t first = i * call.steps * each, length = steps_in_piece(i, 0, call.steps);
    for (int64_t k = 0; k < length * each; ++k) {
      const auto step = static_cast<long long>(k / each), row = static_cast<long long>(i);
      if (d.vocabulary) {
        const int64_t id = call.ids[first + k];
        if (id < 0 || id >= d.vocabulary)
          return refused(SEQCLS_BAD_ARGUMENT, "ids: expected 0 to %lld but got %lld in row %lld at step %lld",
                         static_cast<long long>(d.vocabulary - 1), static_cast<long long>(id), row, step);
        continue;
      }
      const SeriesFault fault = fault_of(d.series, call.x ? call.x[first + k] : call.x_double[first + k], k % each);
      if (fault == SeriesFault::kNone) continue;
      return refused(SEQCLS_BAD_ARGUMENT, "x: expected %s in row %lld at step %lld, feature %lld",
                     fault == SeriesFault::kInfinite ? "a finite value but got an infinite one"
                     : fault == SeriesFault::kMissing
                         ? "no missing value (NaN), which the model's missing=\"error\" refuses,"
                         : "a value that is finite in float32 once it is scaled",
                     row, step, static_cast<long long>(k % each));
    }
  }
  return SEQCLS_OK;
}

void Stream::sort_by_length() {
  std::copy_n(of_call_, count_, at_.order);
  std::sort(at_.order, at_.order + count_, [&](int64_t a, int64_t b) {
    return at_.lengths[a] != at_.lengths[b] ? at_.lengths[a] > at_.lengths[b] : a < b;
  });
  longest_first_ = at_.order;
}

}  // namespace sf::runtime

// The state of a row as bytes, with which it goes on in another stream of the same model, in this process or another.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "../core/cells.h"
#include "stream.h"

namespace sf::runtime {
namespace {

constexpr uint32_t kStart = 0x54535153;            // "SQST"
constexpr int64_t kMostPooled = int64_t{1} << 52;  // steps, which no stream reaches

// Copies between a state and the arrays of a stream, one after another. Without a state it only counts.
class Copy {
 public:
  Copy(char* state, bool writes) : at_(state), writes_(writes) {}
  template <class T>
  void take(T* data, int64_t count) {
    const auto bytes = static_cast<size_t>(count) * sizeof(T);
    if (at_) writes_ ? std::memcpy(at_ + used_, data, bytes) : std::memcpy(data, at_ + used_, bytes);
    used_ += bytes;
  }
  size_t used() const { return used_; }

 private:
  char* at_;
  bool writes_;
  size_t used_ = 0;
};

struct Header {
  uint32_t start, model;  // `model`: the checksum of its file
  int64_t bytes, pooled_steps, taken;
};

}  // namespace

size_t Stream::copy_state(int64_t row, char* state, bool writes) {
  const Description& d = about();
  Copy copy(state, writes);
  for (int64_t k = 0; k < d.layers; ++k) {
    copy.take(state_h(k, 0, row), d.out() * size());
    if (kCells[d.cell].has_c) copy.take(state_c(k, 0, row), d.hidden);
  }
  if (d.pooling == PoolKind::kMean || d.pooling == PoolKind::kMax) {
    copy.take(pooled_row(row).total, d.width());
    copy.take(pooled_row(row).part, d.width());
  }
  if (d.series.there()) copy.take(at_.before + row * 2 * d.features, 2 * d.features);
  return copy.used();
}

size_t Stream::state_bytes() { return about().is_streamable() ? sizeof(Header) + copy_state(0, nullptr, true) : 0; }

seqcls_status Stream::check_state(int64_t row, const void* state, size_t bytes) {
  if (const char* const why = about().needs_whole())
    return refused(SEQCLS_NOT_STREAMABLE,
                   "state: expected a model whose streams have one between calls, but this one %s", why);
  if (row < 0 || row >= rows_)
    return refused(SEQCLS_BAD_ARGUMENT, "row: expected 0 to %lld but got %lld", static_cast<long long>(rows_ - 1),
                   static_cast<long long>(row));
  if (!state) return refused(SEQCLS_BAD_ARGUMENT, "state: expected a pointer but got NULL");
  if (bytes != state_bytes())
    return refused(SEQCLS_BAD_ARGUMENT, "state: expected %zu bytes but got %zu", state_bytes(), bytes);
  return SEQCLS_OK;
}

seqcls_status Stream::get_state(int64_t row, void* state, size_t bytes) {
  if (const seqcls_status status = check_state(row, state, bytes)) return status;
  const Header header{kStart, model_->file->checksum(), static_cast<int64_t>(bytes), *pooled_row(row).steps,
                      at_.taken[row]};
  std::memcpy(state, &header, sizeof header);
  copy_state(row, static_cast<char*>(state) + sizeof header, true);
  return SEQCLS_OK;
}

seqcls_status Stream::set_state(int64_t row, const void* state, size_t bytes) {
  if (const seqcls_status status = check_state(row, state, bytes)) return status;
  Header header;
  std::memcpy(&header, state, sizeof header);
  const int64_t most = about().series.max_length;
  if (header.start != kStart || header.bytes != static_cast<int64_t>(bytes) || header.pooled_steps < 0 ||
      header.pooled_steps > kMostPooled || header.taken < 0 || (most && header.taken > most))
    return refused(SEQCLS_BAD_ARGUMENT, "state: expected bytes of seqcls_get_state() but got others");
  if (header.model != model_->file->checksum())
    return refused(SEQCLS_BAD_ARGUMENT, "state: expected one of a stream of this model but got one of another model");
  copy_state(row, const_cast<char*>(static_cast<const char*>(state)) + sizeof header, false);  // which only reads it
  *pooled_row(row).steps = header.pooled_steps;
  at_.taken[row] = header.taken;
  return SEQCLS_OK;
}

}  // namespace sf::runtime

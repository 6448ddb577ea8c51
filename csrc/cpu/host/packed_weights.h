// The packed weights of a call. They are packed anew, unless that would be a large part of the call: then they come
// from a small cache. Included by run.cpp alone.
#pragma once

#include <cstring>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "fork.h"
#include "schedule.h"

namespace sf {

using Packed = std::shared_ptr<Buffer>;

// The weights packed last, found by a hash of their values. No version counter is trusted instead: optimizers, p.data
// and numpy change values without counting.
class PackedCache {
 public:
  struct Key {
    uint64_t words[2];
    bool operator==(const Key& other) const { return words[0] == other.words[0] && words[1] == other.words[1]; }
  };
  Packed find(const Key& key) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto it = entries_.begin(); it != entries_.end(); ++it) {
      if (it->key == key) {
        entries_.splice(entries_.begin(), entries_, it);
        return it->packed;
      }
    }
    return nullptr;
  }
  void add(const Key& key, Packed packed, int64_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    entries_.push_front({key, std::move(packed), bytes});
    bytes_ += bytes;
    while (bytes_ > kMostBytes && entries_.size() > 1) {
      bytes_ -= entries_.back().bytes;
      entries_.pop_back();
    }
  }
  int64_t size() {
    std::lock_guard<std::mutex> lock(mutex_);
    return static_cast<int64_t>(entries_.size());
  }
  void clear() {
    std::lock_guard<std::mutex> lock(mutex_);
    entries_.clear();
    bytes_ = 0;
  }

 private:
  static constexpr int64_t kMostBytes = int64_t{64} << 20;
  struct Entry {
    Key key;
    Packed packed;
    int64_t bytes;
  };
  std::mutex mutex_;
  std::list<Entry> entries_;  // the entry used last comes first
  int64_t bytes_ = 0;
};

inline PackedCache& packed_cache() {
  static ForkSafe<PackedCache> instance;
  return instance.get();
}

inline bool contiguous(const Matrix& m) { return m.column_stride == 1 && m.row_stride == m.columns; }

inline int64_t bytes_of(const Matrix& m, Dtype dtype) { return m.rows * m.columns * size_of(dtype); }

// Calls function(matrix) for each weight of a layer that is packed. With ids, w_ih is not: its columns are read in
// place.
template <class L, class F>
void for_packed_weights(L& layer, F&& function) {
  for (int d = 0; d < layer.directions; ++d) {
    for (auto* m : {&layer.w_ih[d], &layer.w_hh[d], &layer.b_ih[d], &layer.b_hh[d], &layer.w_hr[d]}) {
      if (m->data && !(layer.ids && m == &layer.w_ih[d])) function(*m);
    }
  }
}

// A hash of everything that the packed weights depend on. All weights must be contiguous.
inline PackedCache::Key fingerprint(const Kernels& kernels, const Layer& layer) {
  Bytes parts[1 + 5 * kMaxDirections];
  int64_t count = 1;
  for_packed_weights(layer, [&](const Matrix& m) { parts[count++] = {m.data, bytes_of(m, layer.dtype)}; });
  const uint64_t shape[] = {static_cast<uint64_t>(layer.cell),
                            static_cast<uint64_t>(layer.dtype),
                            static_cast<uint64_t>(layer.directions),
                            static_cast<uint64_t>(layer.features()),
                            static_cast<uint64_t>(layer.H),
                            static_cast<uint64_t>(layer.P),
                            static_cast<uint64_t>(count),
                            reinterpret_cast<uint64_t>(kernels.name)};
  parts[0] = {shape, sizeof shape};
  PackedCache::Key key;
  kernels.fingerprint(parts, count, key.words);
  return key;
}

// Packing takes about as long per weight as 12 multiply-adds, and one step of one row multiplies each weight once. From
// this many steps of rows on, packing takes less than 2 % of a call, which then does without the cache.
constexpr double kRowStepsToRepack = 600;

// Whether a forward pass uses the weights in place. One step uses each weight once in every tile, so nothing is gained
// by packing all of them. In inference the cache is faster for more rows, whose sums hide the reading of the packed
// weights, unless the weights and their packed copy are too large for the caches of the CPU. Two steps of few rows read
// the weights twice, which is still less than packing them; from three steps on, packing pays.
constexpr int64_t kRowsInPlace = 2, kStepsInPlace = 2;
constexpr double kBytesInPlace = 6 << 20;
inline bool in_place(const Kernels& kernels, const Layer& layer, bool training) {
  const bool few = layer.B <= kRowsInPlace;
  if (layer.T > (few ? kStepsInPlace : 1) || !kernels.forward_in_place(layer)) return false;
  const double bytes = layer.directions * weights_of(layer) * static_cast<double>(size_of(layer.dtype));
  return training || bytes >= kBytesInPlace || (few && layer.T == 1);
}

// A copy of a layer's weights, in memory that no other thread writes to.
struct OwnWeights {
  Layer layer;
  Buffer copies;

  explicit OwnWeights(const Layer& given) : layer(given), copies(bytes_of_weights(given)) {
    char* to = copies.data();
    for_packed_weights(layer, [&](Matrix& m) {
      std::memcpy(to, m.data, static_cast<size_t>(bytes_of(m, layer.dtype)));
      m.data = to;
      to += bytes_of(m, layer.dtype);
    });
  }
  static int64_t bytes_of_weights(const Layer& layer) {
    int64_t bytes = 0;
    for_packed_weights(layer, [&](const Matrix& m) { bytes += bytes_of(m, layer.dtype); });
    return bytes;
  }
};

// The weights of a forward pass, packed; null where they are used in place.
inline Packed pack_forward(const Kernels& kernels, const Layer& layer, bool training) {
  if (in_place(kernels, layer, training)) return nullptr;
  const int64_t bytes = packed_size(kernels, layer);
  const auto pack = [&](const Layer& from) {
    auto packed = std::make_shared<Buffer>(bytes);
    pack_all(kernels, from, packed->data());
    return packed;
  };
  bool cached = !training && steps_of(layer) < kRowStepsToRepack;
  if (cached) for_packed_weights(layer, [&](const Matrix& m) { cached = cached && contiguous(m); });
  if (!cached) return pack(layer);
  if (Packed found = packed_cache().find(fingerprint(kernels, layer))) return found;
  // Another thread may write to the weights meanwhile. The key and the packed weights that later calls use are
  // therefore both made from one copy; otherwise, a key could find packed weights of other values.
  const OwnWeights own(layer);
  Packed packed = pack(own.layer);
  packed_cache().add(fingerprint(kernels, own.layer), packed, bytes);
  return packed;
}

// The weights of a backward pass, packed; null where they are used in place, or not at all. The sums run along the rows
// of the weights, so that few rows of the batch read them as fast in place.
constexpr int64_t kRowStepsInPlace = 64;
struct PackedBackwards {
  PackedBackward of[kMaxDirections] = {};

  PackedBackwards(const Kernels& kernels, const Backward& call) {
    const Layer& layer = call.layer;
    const bool can = kernels.backward_in_place(layer), w_hh = !can || layer.T > 1;
    const bool w_ih = call.d_x.data && !(can && layer.T * layer.B <= kRowStepsInPlace);
    if (!w_hh && !w_ih) return;
    const int64_t each = kernels.packed_backward_size(layer);
    buffer_.emplace(each * layer.directions);
    for (int d = 0; d < layer.directions; ++d) {
      kernels.pack_backward(layer, d, buffer_->data() + d * each, w_ih, w_hh);
      of[d] = kernels.packed_backward(layer, buffer_->data() + d * each);
      if (!w_ih) of[d].w_ih = nullptr;
      if (!w_hh) of[d].w_hh = nullptr;
    }
  }

 private:
  std::optional<Buffer> buffer_;
};

}  // namespace sf

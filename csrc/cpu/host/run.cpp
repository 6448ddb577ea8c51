// Chooses the ISA once, keeps packed weights, and splits each call over torch's intra-op threads: by batch rows, by
// direction, or, when rows are few and the layer is wide, by hidden units with a barrier per step.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <exception>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../../bindings/checks.h"
#include "../../bindings/stable_abi.h"
#include "backend.h"
#include "fork.h"

namespace sf {

extern const Kernels kernels_base;
#if defined(SF_WITH_AVX2)
extern const Kernels kernels_avx2;
#endif
#if defined(SF_WITH_AVX512)
extern const Kernels kernels_avx512;
#endif
#if defined(SF_WITH_AVX512_BF16)
extern const Kernels kernels_avx512_bf16;
#endif

namespace {

#if defined(__x86_64__)
// (F16C, which the AVX2 build also uses, came before AVX2 in every line of CPUs; Clang cannot ask for it)
#define SF_FEATURES(X) X(avx2) X(fma) X(avx512f) X(avx512dq) X(avx512bw) X(avx512vl) X(avx512bf16)
#else
#define SF_FEATURES(X)
#endif

std::vector<std::string> detect_features() {
  std::vector<std::string> found;
#define SF_TEST(name) \
  if (__builtin_cpu_supports(#name)) found.emplace_back(#name);
  SF_FEATURES(SF_TEST)
#undef SF_TEST
  return found;
}

std::vector<const Kernels*> usable_kernels() {
  const std::vector<std::string> present = detect_features();
  [[maybe_unused]] const auto have = [&](std::initializer_list<const char*> wanted) {
    return std::all_of(wanted.begin(), wanted.end(), [&](const char* name) {
      return std::find(present.begin(), present.end(), name) != present.end();
    });
  };
  std::vector<const Kernels*> found{&kernels_base};
#if defined(SF_WITH_AVX2)
  if (have({"avx2", "fma"})) found.push_back(&kernels_avx2);
#endif
#if defined(SF_WITH_AVX512)
  if (have({"avx512f", "avx512dq", "avx512bw", "avx512vl", "fma"})) found.push_back(&kernels_avx512);
#endif
#if defined(SF_WITH_AVX512_BF16)
  if (have({"avx512f", "avx512dq", "avx512bw", "avx512vl", "fma", "avx512bf16"})) {
    found.push_back(&kernels_avx512_bf16);
  }
#endif
  return found;
}

const std::vector<const Kernels*>& impls() {
  static const std::vector<const Kernels*> found = usable_kernels();
  return found;
}

// ---- Threads

constexpr double kWorkPerThread = 400'000;  // multiply-adds below which waking a thread costs more than it saves

// (as a double, for it is a product of more sizes than 64 bits may hold)
int64_t threads_for(double multiply_adds) {
  if (fork_depth() > 0) return 1;
  const double wanted = std::min<double>(torch::stable::get_num_threads(), multiply_adds / kWorkPerThread);
  return std::max<int64_t>(1, static_cast<int64_t>(wanted));
}

// body(first, last) over ranges that cover [0, n), each on a thread of its own, all of them alive at once. What a body
// throws is thrown here: torch's own parallel_for would turn it into an error without its sentence.
void parallel(int64_t n, const std::function<void(int64_t, int64_t)>& body) {
  if (n == 1) return body(0, 1);
  std::mutex mutex;
  std::exception_ptr failure;
  torch::stable::parallel_for(0, n, 1, [&](int64_t first, int64_t last) {
    try {
      body(first, last);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      failure = std::current_exception();
    }
  });
  if (failure) std::rethrow_exception(failure);
}

class SpinBarrier {
 public:
  explicit SpinBarrier(int64_t total) : total_(total) {}
  struct Member {
    SpinBarrier* barrier;
    int64_t weight, round = 0;
  };
  static void wait(void* state) {
    auto* me = static_cast<Member*>(state);
    SpinBarrier& b = *me->barrier;
    const int64_t goal = ++me->round * b.total_;
    b.arrived_.fetch_add(me->weight, std::memory_order_acq_rel);
    for (int spins = 0; b.arrived_.load(std::memory_order_acquire) < goal; ++spins) {
      if (spins > 4000) std::this_thread::yield();
#if defined(__x86_64__)
      else
        __builtin_ia32_pause();
#endif
    }
  }

 private:
  const int64_t total_;
  std::atomic<int64_t> arrived_{0};
};

class Buffer {
 public:
  explicit Buffer(int64_t bytes) : data_(static_cast<char*>(pool_take(bytes))) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { pool_give(data_); }
  char* data() const { return data_; }

 private:
  char* data_;
};

// The batch's rows, each of `samples` equal stretches of it in descending order of length.
std::vector<int64_t> longest_first(const Layer& layer, int64_t samples = 1) {
  std::vector<int64_t> rows(static_cast<size_t>(layer.B));
  for (int64_t b = 0; b < layer.B; ++b) rows[static_cast<size_t>(b)] = b;
  for (int64_t s = 0; layer.lengths && s < samples; ++s) {
    std::stable_sort(rows.begin() + layer.B * s / samples, rows.begin() + layer.B * (s + 1) / samples,
                     [&](int64_t a, int64_t b) { return layer.lengths[a] > layer.lengths[b]; });
  }
  return rows;
}

double steps_of(const Layer& layer) {
  if (!layer.lengths) return static_cast<double>(layer.T) * static_cast<double>(layer.B);
  double sum = 0;
  for (int64_t b = 0; b < layer.B; ++b) sum += static_cast<double>(layer.lengths[b]);
  return sum;
}

double weights_of(const Layer& layer) {
  return static_cast<double>(layer.gates * layer.H * (layer.features() + layer.out()) + layer.P * layer.H);
}

// A call's split: every worker runs its pieces one after the other.
struct Piece {
  int direction;
  std::vector<int64_t> rows;
};
struct Split {
  bool by_units = false;
  int64_t workers = 1;
  std::vector<std::vector<Piece>> pieces;  // per worker, when by rows
  std::vector<int64_t> rows;               // all, longest first
};

// Few rows of a wide layer: each thread streams a share of the weights instead of all of them.
bool split_by_units(const Layer& layer, int64_t workers) {
  return workers > 1 && !layer.P && layer.directions == 1 && layer.H >= 256 && layer.B <= 4 * workers;
}

Split split(const Layer& layer, double work) {
  Split s;
  s.rows = longest_first(layer);
  s.workers = threads_for(work);
  if (split_by_units(layer, s.workers)) {
    s.by_units = true;
    s.workers = std::min(s.workers, padded(layer.H) / kSavedAlign);
    return s;
  }
  s.workers = std::max<int64_t>(1, std::min(s.workers, layer.B * layer.directions));
  s.pieces.resize(static_cast<size_t>(s.workers));
  // whole directions to groups of workers where that divides evenly, so that each streams fewer weights
  const int64_t groups = s.workers % layer.directions == 0 ? layer.directions : 1;
  const int64_t members = s.workers / groups;
  for (int64_t w = 0; w < s.workers; ++w) {
    for (int d = 0; d < layer.directions; ++d) {
      if (groups > 1 && w / members != d) continue;
      Piece piece{d, {}};
      const int64_t member = w % members;
      if (layer.lengths) {  // dealt out like cards, so that long and short rows are shared
        for (int64_t i = member; i < layer.B; i += members) piece.rows.push_back(s.rows[static_cast<size_t>(i)]);
      } else {
        for (int64_t i = layer.B * member / members; i < layer.B * (member + 1) / members; ++i) {
          piece.rows.push_back(s.rows[static_cast<size_t>(i)]);
        }
      }
      s.pieces[static_cast<size_t>(w)].push_back(std::move(piece));
    }
  }
  return s;
}

// run(task) for every piece of the call. scratch(rows) and shared(rows) are sizes in bytes.
void run_split(const Layer& layer, const Split& s, const std::function<int64_t(int64_t)>& scratch, int64_t shared_size,
               const std::function<int64_t(int64_t)>& shared, const std::function<void(const Task&)>& run) {
  if (s.by_units) {
    const int64_t each = scratch(layer.B);
    Buffer buffer(each * s.workers + shared_size);
    SpinBarrier barrier(s.workers);
    const int64_t blocks = padded(layer.H) / kSavedAlign;
    parallel(s.workers, [&](int64_t first, int64_t last) {
      SpinBarrier::Member member{&barrier, last - first};
      Task task{};
      task.rows = s.rows.data();
      task.count = layer.B;
      task.unit_begin = blocks * first / s.workers * kSavedAlign;
      task.unit_end = std::min(blocks * last / s.workers * kSavedAlign, layer.H);
      task.barrier = SpinBarrier::wait;
      task.barrier_state = &member;
      task.scratch = buffer.data() + first * each;
      task.shared = buffer.data() + s.workers * each;
      run(task);
    });
    return;
  }
  parallel(s.workers, [&](int64_t first, int64_t last) {
    for (int64_t w = first; w < last; ++w) {
      for (const Piece& piece : s.pieces[static_cast<size_t>(w)]) {
        const auto rows = static_cast<int64_t>(piece.rows.size());
        const int64_t own = scratch(rows);
        Buffer buffer(own + shared(rows));
        run(Task{piece.direction, piece.rows.data(), rows, 0, layer.H, nullptr, nullptr, buffer.data(),
                 buffer.data() + own});
      }
    }
  });
}

// ---- Packed weights

using Packed = std::shared_ptr<Buffer>;

// Recently packed weights, found by what they contain: no other sign of a change can be trusted, as optimizers, p.data
// and numpy write behind torch's back.
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
  std::list<Entry> entries_;  // the most recently used first
  int64_t bytes_ = 0;
};

PackedCache& packed_cache() {
  static ForkSafe<PackedCache> instance;
  return instance.get();
}

bool contiguous(const Matrix& m) { return m.column_stride == 1 && m.row_stride == m.columns; }

int64_t bytes_of(const Matrix& m, Dtype dtype) { return m.rows * m.columns * size_of(dtype); }

// function(matrix) for each of a layer's weights that its packed form holds.
template <class L, class F>
void for_packed_weights(L& layer, F&& function) {
  for (int d = 0; d < layer.directions; ++d) {
    for (auto* m : {&layer.w_ih[d], &layer.w_hh[d], &layer.b_ih[d], &layer.b_hh[d], &layer.w_hr[d]}) {
      if (m->data && !(layer.ids && m == &layer.w_ih[d])) function(*m);
    }
  }
}

// A hash of everything the packed form depends on, where all weights are contiguous.
PackedCache::Key fingerprint(const Kernels& kernels, const Layer& layer) {
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

// Packing reads each weight once; a row and step uses each once for a multiply-add, some 12 times cheaper. From this
// many row-steps on, packing anew costs under 2 %.
constexpr double kRowStepsToRepack = 600;

// The bytes of all weights, one after the other, and a layer that has them there, where no other thread writes.
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

Packed pack_forward(const Kernels& kernels, const Layer& layer, bool training) {
  const int64_t each = kernels.packed_forward_size(layer), bytes = each * layer.directions;
  const auto pack = [&](const Layer& from) {
    auto packed = std::make_shared<Buffer>(bytes);
    for (int d = 0; d < layer.directions; ++d) kernels.pack_forward(from, d, packed->data() + d * each);
    return packed;
  };
  bool cached = !training && steps_of(layer) < kRowStepsToRepack;
  if (cached) for_packed_weights(layer, [&](const Matrix& m) { cached = cached && contiguous(m); });
  if (!cached) return pack(layer);
  if (Packed found = packed_cache().find(fingerprint(kernels, layer))) return found;
  // Another thread may write to the weights meanwhile. What is kept for later calls is packed from the bytes that its
  // key was made of, or it would be found by a key of weights that it does not hold.
  const OwnWeights own(layer);
  Packed packed = pack(own.layer);
  packed_cache().add(fingerprint(kernels, own.layer), packed, bytes);
  return packed;
}

// ---- Ids

// The ids of a call, each read and checked once, in memory of the call: the kernels read wherever an id points, and
// another thread may write to the tensor. What lies beyond a row's length is not read.
class OwnIds {
 public:
  explicit OwnIds(Layer& layer) {
    if (!layer.ids) return;
    const bool packed = layer.x.t_row != nullptr;
    ids_.resize(static_cast<size_t>(packed ? layer.packed_rows : layer.T * layer.B));
    Rows place;  // of a copied id
    place.t_row = layer.x.t_row;
    place.t_stride = packed ? 1 : layer.B;
    place.b_stride = 1;
    const auto* given = static_cast<const volatile int64_t*>(layer.ids);
    for (int64_t t = 0; t < layer.T; ++t) {
      for (int64_t b = 0; b < layer.B; ++b) {
        if (t >= layer.length(b)) continue;
        const int64_t id = given[layer.x.offset(t, b)];
        if (id < 0 || id >= layer.I)
          fail("x: expected ids from 0 to ", layer.I - 1, ", the columns of w_ih, but got ", id);
        ids_[static_cast<size_t>(place.offset(t, b))] = id;
      }
    }
    layer.ids = ids_.data();
    layer.x = place;
  }
  OwnIds(const OwnIds&) = delete;  // the layer points to it

 private:
  std::vector<int64_t> ids_;
};

// The gradients of the columns of w_ih: each is the sum over the steps whose id named it, of each sample apart. The
// steps are sorted by sample and id, those of one as they come.
void id_grad(const Kernels& kernels, const WeightGrad& call, int64_t workers) {
  const Layer& layer = call.layer;
  const int64_t each = layer.B / call.samples, columns = call.samples * layer.I;
  const auto for_steps = [&](auto&& function) {
    for (int64_t t = 0; t < layer.T; ++t)
      for (int64_t b = 0; b < layer.B; ++b)
        if (t < layer.length(b)) function(t, b, static_cast<size_t>(b / each * layer.I + layer.id(t, b)));
  };
  std::vector<int64_t> begin(static_cast<size_t>(columns) + 1);  // of each column's steps
  for_steps([&](int64_t, int64_t, size_t column) { ++begin[column + 1]; });
  for (size_t i = 1; i < begin.size(); ++i) begin[i] += begin[i - 1];
  struct Step {
    int64_t t, b;
  };
  std::vector<Step> steps(static_cast<size_t>(begin.back()));
  std::vector<int64_t> next = begin;
  for_steps([&](int64_t t, int64_t b, size_t column) { steps[static_cast<size_t>(next[column]++)] = {t, b}; });

  const int64_t row_bytes = layer.gates * layer.H * size_of(layer.dtype);
  // where a worker's columns begin, reading a row counted like writing one
  const auto share = [&](int64_t worker) {
    const int64_t goal = (columns + begin.back()) * worker / workers;
    int64_t low = 0, high = columns;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      begin[static_cast<size_t>(middle)] + middle < goal ? low = middle + 1 : high = middle;
    }
    return low;
  };
  parallel(workers, [&](int64_t first, int64_t last) {
    std::vector<const char*> rows;
    for (int d = 0; d < layer.directions; ++d) {
      const Rows& from = call.d_gates[d];
      for (int64_t column = share(first), end = share(last); column < end; ++column) {
        rows.clear();
        for (int64_t i = begin[static_cast<size_t>(column)]; i < begin[static_cast<size_t>(column) + 1]; ++i) {
          const auto [t, b] = steps[static_cast<size_t>(i)];
          rows.push_back(from.data + from.offset(t, b) * size_of(from.dtype));
        }
        kernels.sum_rows(layer, rows.data(), static_cast<int64_t>(rows.size()), call.d_w_ih[d] + column * row_bytes);
      }
    }
  });
}

}  // namespace

const Kernels& kernels_for(const std::string& impl) {
  if (impl == "auto") return *impls().back();
  std::string choices = "auto";
  for (const Kernels* k : impls()) {
    if (impl == k->name) return *k;
    choices += std::string(", ") + k->name;
  }
  fail("impl: expected one of ", choices, " but got ", quoted(impl));
}

std::vector<std::string> impl_names() {
  std::vector<std::string> names;
  for (const Kernels* k : impls()) names.emplace_back(k->name);
  return names;
}

std::vector<std::string> cpu_features() { return detect_features(); }

void run_forward(const Kernels& kernels, Forward call) {
  const Layer& layer = call.layer;
  const OwnIds ids(call.layer);
  const Packed packed = pack_forward(kernels, layer, call.saved[0].data != nullptr);
  const int64_t each = kernels.packed_forward_size(layer);
  const Split s = split(layer, steps_of(layer) * layer.directions * weights_of(layer));
  run_split(
      layer, s, [&](int64_t rows) { return kernels.forward_scratch(call, rows); },
      s.by_units ? kernels.forward_shared(call, layer.B) : 0,
      [&](int64_t rows) { return kernels.forward_shared(call, rows); },
      [&](const Task& task) {
        kernels.forward({&call, kernels.packed_forward(layer, packed->data() + task.direction * each), task});
      });
}

void run_backward(const Kernels& kernels, const Backward& call) {
  const Layer& layer = call.layer;
  const int64_t each = kernels.packed_backward_size(layer);
  Buffer packed(each * layer.directions);
  for (int d = 0; d < layer.directions; ++d) kernels.pack_backward(layer, d, packed.data() + d * each);
  const double work = steps_of(layer) * static_cast<double>(layer.gates * layer.H * layer.directions);
  const Split s = split(layer, work * static_cast<double>(layer.out()));
  run_split(
      layer, s, [&](int64_t rows) { return kernels.backward_scratch(call, rows); }, 0,
      [](int64_t) { return int64_t{0}; },
      [&](const Task& task) {
        kernels.backward({&call, kernels.packed_backward(layer, packed.data() + task.direction * each), task});
      });
  if (!call.d_x.data) return;
  const int64_t rows = layer.T * layer.B,
                workers = std::min(threads_for(work * static_cast<double>(layer.I)), std::max<int64_t>(rows, 1));
  parallel(workers, [&](int64_t first, int64_t last) {
    Buffer scratch(kernels.input_grad_scratch(call));
    InputGradTask task{&call, {}, rows * first / workers, rows * last / workers, scratch.data()};
    for (int d = 0; d < layer.directions; ++d)
      task.packed[d] = kernels.packed_backward(layer, packed.data() + d * each);
    kernels.input_grad(task);
  });
}

void run_weight_grad(const Kernels& kernels, WeightGrad call) {
  const Layer& layer = call.layer;
  const OwnIds ids(call.layer);
  const std::vector<int64_t> rows = longest_first(layer, call.samples);
  const int64_t workers = threads_for(steps_of(layer) * layer.directions * weights_of(layer));
  const int64_t whole = layer.directions * call.samples, count = layer.B / call.samples;
  // a job is one direction of a sample, or a part of its gate rows where whole ones would come out uneven
  constexpr int64_t kEnoughJobs = 8;
  const bool even = whole % workers == 0 || whole >= kEnoughJobs * workers;
  const int64_t parts = even ? 1 : workers % whole == 0 ? workers / whole : workers;
  const int64_t jobs = parts * whole;
  parallel(std::min(workers, jobs), [&](int64_t first, int64_t last) {
    const int64_t n = std::min(workers, jobs);
    Buffer scratch(kernels.weight_grad_scratch(call, parts));
    for (int64_t job = jobs * first / n; job < jobs * last / n; ++job) {
      const int64_t sample = job / parts % call.samples;
      kernels.weight_grad({&call, static_cast<int>(job / parts / call.samples), job % parts, parts, sample,
                           rows.data() + sample * count, count, scratch.data()});
    }
  });
  if (layer.ids) {
    const double read_and_written = steps_of(layer) + static_cast<double>(call.samples * layer.I);
    id_grad(kernels, call, threads_for(read_and_written * static_cast<double>(layer.gates * layer.H * 4)));
  }
}

int64_t packed_cache_size() { return packed_cache().size(); }
void packed_cache_clear() { packed_cache().clear(); }

}  // namespace sf

// How a call is divided among torch's threads: by batch rows, by direction or, when rows are few and the layer is wide,
// by hidden units. A thread computes its rows over the whole sequence and waits for no other; threads that share the
// units meet at every step. Included by run.cpp and head.cpp alone.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "../../bindings/stable_abi.h"
#include "backend.h"
#include "fork.h"

namespace sf {

constexpr double kWorkPerThread = 400'000;  // multiply-adds; for less work, waking a thread costs more than it saves

// How many threads to use for some work. After a fork torch's other threads are gone, so it is one.
inline int64_t threads_for(double multiply_adds) {
  if (fork_depth() > 0) return 1;
  const double wanted = std::min<double>(torch::stable::get_num_threads(), multiply_adds / kWorkPerThread);
  return std::max<int64_t>(1, static_cast<int64_t>(wanted));
}

// Calls body(first, last) for ranges that together cover [0, n), each on its own thread, all at the same time. An
// exception of a body is thrown again here, because torch's parallel_for would replace it by an error without its
// message.
template <class Body>
void parallel(int64_t n, const Body& body) {
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

// A barrier for threads that meet at every time step, where putting a thread to sleep would take too long.
class SpinBarrier {
 public:
  explicit SpinBarrier(int64_t total) : total_(total) {}
  // A thread that takes part. `weight` is how many of the `total` ranges of units it computes.
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

// Memory for the time of a call: its own if that is enough, which costs nothing, else from the pool.
class Buffer {
 public:
  explicit Buffer(int64_t bytes) : data_(bytes <= kOwn ? own_ : static_cast<char*>(pool_take(bytes))) {}
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (data_ != own_) pool_give(data_);
  }
  char* data() const { return data_; }

 private:
  static constexpr int64_t kOwn = 8192;
  char* data_;
  alignas(64) char own_[kOwn];
};

// The rows of the batch. Each of its `samples` equal slices is in descending order of length.
inline std::vector<int64_t> longest_first(const Layer& layer, int64_t samples = 1) {
  std::vector<int64_t> rows(static_cast<size_t>(layer.B));
  for (int64_t b = 0; b < layer.B; ++b) rows[static_cast<size_t>(b)] = b;
  for (int64_t s = 0; layer.lengths && s < samples; ++s) {
    std::stable_sort(rows.begin() + layer.B * s / samples, rows.begin() + layer.B * (s + 1) / samples,
                     [&](int64_t a, int64_t b) { return layer.lengths[a] > layer.lengths[b]; });
  }
  return rows;
}

// Some rows of one direction, which one worker computes over all steps.
struct Share {
  int direction;
  std::vector<int64_t> rows;
};

// How a call is divided among workers: by rows, or by hidden units, when each worker computes some units of all rows.
struct Split {
  bool by_units = false;
  int64_t workers = 1;
  std::vector<std::vector<Share>> shares;  // by rows, for several workers: those of each
  std::vector<int64_t> rows;               // all rows of the batch, longest first
};

// Whether to divide by hidden units. That pays with few rows and a wide layer, since each thread then reads only the
// weights of its units instead of all weights.
inline bool split_by_units(const Layer& layer, int64_t workers) {
  return workers > 1 && !layer.P && !layer.row_wise && layer.directions == 1 && layer.H >= 256 &&
         layer.B <= 4 * workers;
}

inline Split split(const Layer& layer, double work) {
  Split s;
  s.rows = longest_first(layer);
  s.workers = threads_for(work);
  if (split_by_units(layer, s.workers)) {
    s.by_units = true;
    s.workers = std::min(s.workers, padded(layer.H) / kSavedAlign);
    return s;
  }
  s.workers = std::max<int64_t>(1, std::min(s.workers, layer.B * layer.directions));
  if (s.workers == 1) return s;
  s.shares.resize(static_cast<size_t>(s.workers));
  // If the workers divide evenly, each gets rows of one direction alone, and so reads fewer weights.
  const int64_t groups = s.workers % layer.directions == 0 ? layer.directions : 1;
  const int64_t members = s.workers / groups;
  for (int64_t w = 0; w < s.workers; ++w) {
    for (int d = 0; d < layer.directions; ++d) {
      if (groups > 1 && w / members != d) continue;
      Share share{d, {}};
      const int64_t member = w % members;
      if (layer.lengths) {  // dealt like cards, there and back, so that all workers get about as many steps
        for (int64_t i = 0; i < layer.B; ++i) {
          const int64_t place = i % members, owner = i / members % 2 ? members - 1 - place : place;
          if (owner == member) share.rows.push_back(s.rows[static_cast<size_t>(i)]);
        }
      } else {
        for (int64_t i = layer.B * member / members; i < layer.B * (member + 1) / members; ++i) {
          share.rows.push_back(s.rows[static_cast<size_t>(i)]);
        }
      }
      s.shares[static_cast<size_t>(w)].push_back(std::move(share));
    }
  }
  return s;
}

// Calls run(task) for every task of the call. scratch(n) is the memory, in bytes, that each task over n rows needs for
// itself; shared(n) is the memory that all tasks over the same n rows use together.
template <class Scratch, class Shared, class Run>
void run_split(const Layer& layer, const Split& s, const Scratch& scratch, const Shared& shared, const Run& run) {
  const auto run_rows = [&](int direction, const std::vector<int64_t>& rows) {
    const auto count = static_cast<int64_t>(rows.size());
    const int64_t own = scratch(count);
    Buffer buffer(own + shared(count));
    run(Task{direction, rows.data(), count, 0, layer.H, nullptr, nullptr, buffer.data(), buffer.data() + own});
  };
  if (s.by_units) {
    const int64_t each = scratch(layer.B);
    Buffer buffer(each * s.workers + shared(layer.B));
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
  if (s.workers == 1) {
    for (int d = 0; d < layer.directions; ++d) run_rows(d, s.rows);
    return;
  }
  parallel(s.workers, [&](int64_t first, int64_t last) {
    for (int64_t w = first; w < last; ++w) {
      for (const Share& share : s.shares[static_cast<size_t>(w)]) run_rows(share.direction, share.rows);
    }
  });
}

}  // namespace sf

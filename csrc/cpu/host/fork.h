// Makes the library safe across fork(). In a child process the parent's other threads are gone: a lock that one of them
// held stays locked, and OpenMP would wait for them forever. A child therefore starts with new, empty copies of all
// data that a lock protects, and runs on one thread.
#pragma once

#include <pthread.h>

#include <atomic>

namespace sf {

// The number of forks between the process that loaded this library and this one.
inline std::atomic<int>& fork_depth() {
  static std::atomic<int> depth{0};
  static const int registered = pthread_atfork(nullptr, nullptr, [] { fork_depth().fetch_add(1); });
  (void)registered;
  return depth;
}

// One T for each process. It is never destroyed, because tensors may outlive every static object.
template <class T>
class ForkSafe {
 public:
  T& get() {
    Owned* owned = current_.load(std::memory_order_acquire);
    const int depth = fork_depth().load(std::memory_order_relaxed);
    if (owned && owned->depth == depth) return owned->value;
    auto* fresh = new Owned(depth);
    if (current_.compare_exchange_strong(owned, fresh, std::memory_order_acq_rel)) return fresh->value;
    delete fresh;  // another thread of this process was first
    return owned->value;
  }

 private:
  struct Owned {
    explicit Owned(int at) : depth(at) {}
    T value;
    const int depth;
  };
  std::atomic<Owned*> current_{nullptr};
};

}  // namespace sf

// What a fork does to us: locks may be held by threads that no longer exist, and the OpenMP pool's threads are gone.
// A child therefore starts with fresh copies of everything behind a lock, and runs on one thread.
#pragma once

#include <pthread.h>

#include <atomic>

namespace sf {

// How many forks lie between the process that loaded this library and this one.
inline std::atomic<int>& fork_depth() {
  static std::atomic<int> depth{0};
  static const int registered = pthread_atfork(nullptr, nullptr, [] { fork_depth().fetch_add(1); });
  (void)registered;
  return depth;
}

// One T per process, never destroyed: tensors may outlive every static object.
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

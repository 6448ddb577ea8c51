// Stands in for torch's header of this name where csrc/cpu/host is compiled with ThreadSanitizer. Torch runs threads
// with OpenMP, whose library is not compiled with the sanitizer, so that every use of it would be reported. Here they
// are std::thread, started and joined in each call: the same work, and the same order between caller and threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace torch::stable {

// As in OpenMP, each calling thread has its own number. `granted` is how many threads a call really gets, which may be
// fewer than it asked for.
inline thread_local uint32_t asked = 1, granted = 1;

inline uint32_t get_num_threads() { return asked; }

template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const F& f) {
  const int64_t n = end - begin, threads = std::min<int64_t>(granted, (n + grain - 1) / grain);
  const int64_t each = (n + threads - 1) / threads;
  std::vector<std::thread> others;
  for (int64_t first = begin + each; first < end; first += each)
    others.emplace_back([&f, first, last = std::min(first + each, end)] { f(first, last); });
  f(begin, std::min(begin + each, end));
  for (std::thread& other : others) other.join();
}

}  // namespace torch::stable

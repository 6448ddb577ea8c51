// Runs the parts of csrc/cpu/host that threads share, under ThreadSanitizer: the cache of packed weights, the memory
// pool, the division of work and the barrier. `make tsan` builds it with the stand-in for torch's threads. It ends with
// 1 when a result differs from that of one thread alone, and ThreadSanitizer ends it with another status for a race.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../../csrc/cpu/host/schedule.h"
#include "calls.h"

namespace {

void check(bool holds, const char* sentence) {
  if (holds) return;
  std::fprintf(stderr, "wrong: %s\n", sentence);
  std::_Exit(1);
}

bool equal(const Numbers& one, const Numbers& other) {
  return one.size() == other.size() && !std::memcmp(one.data(), other.data(), one.size() * sizeof(float));
}

// Runs body(number) in several threads at once. Each of them may use `threads` threads, and gets `granted` of them.
void at_once(int count, uint32_t threads, uint32_t granted, const std::function<void(int)>& body) {
  std::vector<std::thread> callers;
  for (int number = 0; number < count; ++number) {
    callers.emplace_back([&, number] {
      torch::stable::asked = threads;
      torch::stable::granted = granted;
      body(number);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

struct Problem {
  Sizes sizes;
  Weights weights;
  Numbers forward, backward;  // the results of one thread alone

  Problem(const Sizes& s, unsigned seed) : sizes(s), weights(s, seed) { expect(); }
  void expect() {
    Call call(sizes, weights);
    forward = call.forward(true);
    backward = call.backward();
  }
  void infer() const { check(equal(Call(sizes, weights).forward(false), forward), "the results of a forward"); }
  void train() const {
    Call call(sizes, weights);
    check(equal(call.forward(true), forward), "the results of a forward in training");
    check(equal(call.backward(), backward), "the gradients");
  }
};

// The pool and the cache are made by whoever uses them first, here by several threads at once.
void first_use() {
  at_once(4, 1, 1, [](int number) {
    if (number % 2) return pool_give(pool_take(1 << 17));
    check(packed_cache_size() == 0, "the size of a new cache");
  });
}

// Callers with the same weights and with different ones, while another thread clears the cache and trims the pool.
void many_callers() {
  const Problem problems[] = {{{kCell_gru, 1, 4, 3, 5, 20}, 1},
                              {{kCell_lstm, 2, 5, 6, 40, 48, false, true}, 2},
                              {{kCell_lstm, 2, 9, 8, 50, 64, true}, 3},
                              {{kCell_gru, 2, 12, 16, 24, 40, false, true}, 4},
                              {{kCell_lstm, 1, 1, 2, 40, 48}, 5}};  // whose weights are used in place
  for (const uint32_t threads : {1U, 3U}) {
    at_once(5, threads, threads, [&](int number) {
      for (int round = 0; round < 6; ++round) {
        if (number == 4) {
          packed_cache_size();
          pool_held();
          round % 2 ? packed_cache_clear() : pool_trim();
          std::this_thread::yield();
          continue;
        }
        problems[(number / 2 + round) % 5].infer();
        if (round % 2) problems[(number + round) % 5].train();
      }
    });
  }
}

// More packed weights than the cache keeps, and more memory than the pool keeps.
void full() {
  const Sizes sizes{kCell_lstm, 1, 2, 1, 256, 512};
  std::vector<std::unique_ptr<Problem>> problems;
  for (unsigned seed = 0; seed < 12; ++seed) problems.push_back(std::make_unique<Problem>(sizes, 10 * seed));
  at_once(2, 1, 1, [&](int number) {
    for (size_t i = 0; i < problems.size(); ++i) problems[(i + static_cast<size_t>(number) * 3) % 12]->infer();
    void* const large[] = {pool_take(int64_t{600} << 20), pool_take(int64_t{600} << 20)};
    for (void* each : large) pool_give(each);
  });
  check(packed_cache_size() < 12, "the number of packed weights that are kept");
  check(pool_held() <= int64_t{1} << 30, "the bytes that are kept");
  pool_trim();
  check(pool_held() == 0, "the bytes that are kept after trimming");
}

// Threads that share the hidden units and meet at every step. With fewer threads than asked for, one of them computes
// several ranges of units.
void shared_units() {
  const Problem gru({kCell_gru, 1, 6, 2, 24, 256}, 5), lstm({kCell_lstm, 1, 5, 3, 16, 272, false, true}, 6);
  const Problem step({kCell_lstm, 1, 1, 2, 200, 272}, 8);  // its weights are used in place
  for (const uint32_t granted : {4U, 3U, 2U}) {
    at_once(2, 4, granted, [&](int number) {
      (number ? gru : lstm).train();
      (number ? lstm : gru).infer();
      step.train();
      step.infer();
    });
  }
}

// Weights that change between the calls: no call may get packed weights of the old values.
void changed_between_calls() {
  Problem problem({kCell_gru, 1, 3, 2, 16, 32}, 7);
  for (int round = 0; round < 5; ++round) {
    problem.weights.w_hh[0][static_cast<size_t>(round)] += 0.5F;
    problem.expect();
    at_once(3, 2, 2, [&](int) { problem.infer(); });
  }
}

// Weights that another thread writes to in the middle of a call, which is allowed: the call may use the old values or
// the new ones, but later calls must not get what was packed meanwhile. Here the kernel that packs writes first, so
// that it happens at the worst moment in every run.
Weights* written_to = nullptr;

void write_and_pack(const Layer& layer, int direction, char* to) {
  written_to->w_hh[0].assign(written_to->w_hh[0].size(), 0.25F);
  kernels_for("auto").pack_forward(layer, direction, to);
}

void changed_during_a_call() {
  const Sizes sizes{kCell_gru, 1, 2, 1, 24, 32};
  Problem problem(sizes, 8);
  const Numbers before = problem.weights.w_hh[0];
  Kernels kernels = kernels_for("auto");
  kernels.pack_forward = write_and_pack;
  packed_cache_clear();
  written_to = &problem.weights;
  Call(sizes, problem.weights).forward(false, kernels);
  problem.weights.w_hh[0] = before;
  problem.infer();
}

void errors() {
  at_once(2, 3, 3, [](int) {
    int caught = 0;
    try {
      parallel(3, [](int64_t first, int64_t) { throw std::runtime_error(std::to_string(first)); });
    } catch (const std::runtime_error&) {
      ++caught;
    }
    check(caught == 1, "an exception of a thread reaches the caller");
  });
}

// A child of a process whose other threads are in the middle of calls. They wait there while the process forks, since
// the sanitizer's own allocator cannot be used in a child if another thread was in it.
std::atomic<int> inside{0};
std::atomic<bool> forked{false};

void wait_and_pack(const Layer& layer, int direction, char* to) {
  ++inside;
  while (!forked) std::this_thread::yield();
  kernels_for("auto").pack_forward(layer, direction, to);
}

void fork_during_calls() {
  const Problem problem({kCell_gru, 1, 4, 3, 5, 20}, 9);
  Kernels kernels = kernels_for("auto");
  kernels.pack_forward = wait_and_pack;
  at_once(3, 2, 2, [&](int number) {
    if (number) {
      Call call(problem.sizes, problem.weights);
      return check(equal(call.forward(true, kernels), problem.forward), "the results of a call during a fork");
    }
    while (inside < 2) std::this_thread::yield();
    const pid_t child = fork();
    if (!child) {
      alarm(100);  // ends a child that waits for ever
      check(packed_cache_size() == 0 && pool_held() == 0, "a child begins with an empty cache and an empty pool");
      problem.infer();
      problem.train();
      std::_Exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    forked = true;
    check(status == 0, "a call in a forked child");
  });
}

}  // namespace

int main() {
  first_use();  // before anything else has made the pool and the cache
  many_callers();
  full();
  shared_units();
  changed_between_calls();
  changed_during_a_call();
  errors();
  fork_during_calls();
  std::puts("every result is that of one thread alone");
}

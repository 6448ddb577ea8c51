// Runs the calls that follow the layers of a classifier: packs the weights and divides the rows among threads. Weights
// are packed anew in every call, because a head is small beside the layers before it.
#include <algorithm>
#include <functional>

#include "backend.h"
#include "schedule.h"

namespace sf {
namespace {

// Calls run(first, last, scratch) for ranges of `count` rows. work: about how many multiply-adds all of them take.
void over_rows(int64_t count, double work, int64_t scratch_bytes,
               const std::function<void(int64_t, int64_t, char*)>& run) {
  const int64_t workers = std::min(threads_for(work), count);
  if (workers < 1) return;
  parallel(workers, [&](int64_t first, int64_t last) {
    Buffer scratch(scratch_bytes);
    run(count * first / workers, count * last / workers, scratch.data());
  });
}

}  // namespace

void run_linear(const Kernels& kernels, const Linear& call) {
  if (!call.count) return;
  Buffer packed(kernels.packed_linear_size(call));
  kernels.pack_linear(call, packed.data());
  const double work = static_cast<double>(call.count) * static_cast<double>(call.weight.rows * call.weight.columns);
  over_rows(call.count, work, kernels.linear_scratch(call), [&](int64_t begin, int64_t end, char* scratch) {
    kernels.linear({&call, packed.data(), begin, end, scratch});
  });
}

void run_pool_steps(const Kernels& kernels, const PoolSteps& call) {
  if (!call.B) return;
  Buffer packed(kernels.packed_pool_steps_size(call));
  if (call.pooling == Pooling::kAttention) kernels.pack_pool_steps(call, packed.data());
  const double work = static_cast<double>(call.T * call.B) * static_cast<double>(call.W);
  over_rows(call.B, work, kernels.pool_steps_scratch(call), [&](int64_t begin, int64_t end, char* scratch) {
    kernels.pool_steps({&call, packed.data(), begin, end, scratch});
  });
}

void run_softmax(const Kernels& kernels, const Softmax& call) {
  constexpr double kWorkPerClass = 20;  // a division and an e^x
  const double work = kWorkPerClass * static_cast<double>(call.count * call.classes);
  over_rows(call.count, work, kernels.softmax_scratch(call),
            [&](int64_t begin, int64_t end, char* scratch) { kernels.softmax({&call, begin, end, scratch}); });
}

}  // namespace sf

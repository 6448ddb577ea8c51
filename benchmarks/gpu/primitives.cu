// The program of primitives: each function of csrc/cuda/kernels/device.cuh against the CPU's answer, and the times of
// the instructions that a step of a recurrence consists of. It is a worker as benchmarks/gpu/messages.py describes: the
// parts are asked for by name on stdin, so that one that hangs or crashes costs itself alone. It needs no torch, and
// is compiled by tools/gpu_package.py. The checks come first: no time is of interest where an answer is wrong.
#include <functional>
#include <iostream>

#include "primitives_checks.cuh"
#include "primitives_times.cuh"

namespace {

constexpr const char* kMark = "@@benchmarks.gpu ";

using Part = std::pair<const char*, std::function<Found()>>;

const std::vector<Part>& parts() {
  static const std::vector<Part> all{
      {"conversions", conversions},
      {"approximations", approximations},
      {"threads", threads},
      {"words", tagged_words},
      {"mma_bf16", tile<kBf16>},
      {"mma_fp16", tile<kFp16>},
      {"mma_tf32", tile<kTf32>},
      {"load_matrices", loaded_matrices},
      {"barrier_wait", bounded_wait},
      {"send-to-1-peer", [] { return peers(2); }},
      {"send-to-3-peers", [] { return peers(4); }},
      {"send-to-7-peers", [] { return peers(8); }},
      {"send-to-15-peers", [] { return peers(16); }},
      {"time-of-hmma-bf16", hmma<kBf16>},
      {"time-of-hmma-fp16", hmma<kFp16>},
      {"time-of-hmma-tf32", hmma<kTf32>},
      {"time-of-mufu", mufu},
      {"time-of-l2-round-trip", round_trip},
      {"clusters-at-once", clusters},
  };
  return all;
}

void tell(const std::string& json) {
  std::cout << kMark << json << std::endl;  // with a flush
}

}  // namespace

int main() {
  int devices = 0;
  const cudaError_t status = cudaGetDeviceCount(&devices);
  if (status != cudaSuccess || devices == 0) {
    std::cerr << "the program of primitives finds no GPU: " << cudaGetErrorString(status) << std::endl;
    return 1;
  }
  cudaFuncAttributes any{};
  if (cudaFuncGetAttributes(&any, nothing) != cudaSuccess) {
    std::cerr << "the program of primitives was built for " << SF_CUDA_ARCHS << ", but this GPU is "
              << architecture() / 10 << "." << architecture() % 10 << std::endl;
    return 1;
  }
  std::string listed;
  for (const auto& [name, run] : parts())
    listed +=
        std::string(listed.empty() ? "" : ", ") + "[\"primitives\", \"primitives/" + name + "\", \"" + name + "\"]";
  tell("{\"parts\": [" + listed + "]}");
  for (std::string name, seconds; std::cin >> name >> seconds;) {
    Found found;
    try {
      const Part* part = nullptr;
      for (const Part& each : parts())
        if (name == std::string("primitives/") + each.first) part = &each;
      if (!part) throw Failure{"no part of this program"};
      found = part->second();
    } catch (const Failure& failure) {
      found.failed = failure.what;
    }
    tell("{\"done\": " + found.json() + ", \"last\": " + (context_lost ? "true" : "false") + "}");
    if (context_lost) return 17;
  }
}

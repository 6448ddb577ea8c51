// The functions of clusters, checked and timed, and the times of the other instructions that a step consists of, in
// cycles of a multiprocessor.
#pragma once

#include "primitives_host.cuh"

namespace {

// Every block sends 32 packets to each block of its cluster, itself included, and waits for those of all, `steps`
// times. As in csrc/cuda/kernels/cluster.cuh, two halves and two barriers take turns. `wrong` counts values that
// differ.
__global__ void exchange(int blocks, int steps, int64_t* cycles, uint32_t* wrong) {
  SharedAllocator allocator;
  const Shared<uint32_t> halves = allocator.take<uint32_t>(2 * 16 * 32 * 4);
  const Barriers full = allocator.take<uint64_t>(2);
  const int rank = block_id() % blocks, lane = thread_id();
  if (lane == 0)
    for (int i = 0; i < 2; ++i) barrier_init(full, i);
  cluster_sync();
  uint32_t differing = 0;
  const int64_t begin = clock64();
  for (int step = 0; step < steps; ++step) {
    const int half = step & 1;
    if (lane == 0) barrier_expect(full, half, blocks * 32 * 16);
    const auto tag = static_cast<uint32_t>(step);
    for (int i = 0; i < blocks; ++i) {
      const int to = (rank + i) % blocks;
      const uint4 packet{tag, static_cast<uint32_t>(rank), static_cast<uint32_t>(lane), static_cast<uint32_t>(to)};
      send(halves, ((half * 16 + rank) * 32 + lane) * 4, packet, full, half, to);
    }
    if (!barrier_wait(full, half, step / 2 & 1, 1 << 20)) {
      differing += 1u << 16;
      break;
    }
    warp_sync();
    for (int from = 0; from < blocks; ++from) {
      const uint4 got = halves.load_as<uint4>(((half * 16 + from) * 32 + lane) * 4);
      differing += got.x != tag || got.y != static_cast<uint32_t>(from) || got.z != static_cast<uint32_t>(lane) ||
                   got.w != static_cast<uint32_t>(rank);
    }
    warp_sync();
  }
  const int64_t end = clock64();
  cluster_sync();
  if (lane == 0) cycles[block_id()] = end - begin;
  if (differing) atomicAdd(wrong, differing);
}

Found peers(int blocks) {
  Found found;
  if (architecture() < 90) {
    found.skipped = "this GPU has no clusters";
    return found;
  }
  constexpr int kSteps = 1000;
  const Buffer<int64_t> cycles(static_cast<size_t>(blocks));
  const Buffer<uint32_t> wrong(size_t{1});
  launch(exchange, blocks, 32, 2 * 16 * 32 * 16 + 64, blocks, blocks, kSteps, cycles.data, wrong.data);
  found.add("cycles a step", static_cast<double>(cycles.values()[0]) / kSteps);
  found.add("wrong", wrong.values()[0]);
  found.expect(wrong.values()[0] == 0, "values that came from other blocks differ");
  return found;
}

__global__ void wait_in_vain(uint32_t* out, int64_t* cycles) {
  SharedAllocator allocator;
  const Barriers barrier = allocator.take<uint64_t>(1);
  if (thread_id() == 0) barrier_init(barrier, 0);
  cta_sync();
  const int64_t begin = clock64();
  *out = barrier_wait(barrier, 0, 0, 1000) ? 1 : 2;
  *cycles = clock64() - begin;
}

Found bounded_wait() {
  Found found;
  if (architecture() < 90) {
    found.skipped = "this GPU has no clusters";
    return found;
  }
  const Buffer<uint32_t> out(size_t{1});
  const Buffer<int64_t> cycles(size_t{1});
  launch(wait_in_vain, 1, 1, 64, 1, out.data, cycles.data);
  found.add("cycles", static_cast<double>(cycles.values()[0]));
  found.expect(out.values()[0] == 2, "barrier_wait: expected it to give up, but it says that the phase has ended");
  return found;
}

__global__ void nothing() {}

// How many clusters of each size the device holds at once, for blocks that take all shared memory of a multiprocessor.
Found clusters() {
  Found found;
  if (architecture() < 90) {
    found.skipped = "this GPU has no clusters";
    return found;
  }
  const int shared = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  check(cudaFuncSetAttribute(nothing, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "asking for large clusters");
  check(cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "asking for shared memory");
  for (int blocks = 2; blocks <= 16; ++blocks) {
    cudaLaunchAttribute size{};
    size.id = cudaLaunchAttributeClusterDimension;
    size.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(256);
    config.dynamicSmemBytes = static_cast<size_t>(shared);
    config.attrs = &size;
    config.numAttrs = 1;
    int active = 0;
    if (cudaOccupancyMaxActiveClusters(&active, nothing, &config) != cudaSuccess) cudaGetLastError();
    found.add("of " + std::to_string(blocks), active);
  }
  return found;
}

constexpr int kRounds = 4096;

// One block. Each warp multiplies tiles one after the other, in `kChains` independent chains.
template <Kind kKind, int kChains>
__global__ void products(float* out, int64_t* cycles) {
  float d[kChains][4] = {};
  const uint32_t a[4] = {0, 0, 0, static_cast<uint32_t>(thread_id())};
  cta_sync();
  const int64_t begin = clock64();
  for (int i = 0; i < kRounds / kChains; ++i) SF_UNROLL
  for (int c = 0; c < kChains; ++c) multiply<kKind>(d[c], a, 0, 0);
  cta_sync();
  if (thread_id() == 0) *cycles = clock64() - begin;
  for (int c = 0; c < kChains; ++c) out[thread_id()] += d[c][0] + d[c][1] + d[c][2] + d[c][3];
}

template <Kind kKind>
Found hmma() {
  Found found;
  const Buffer<float> out(size_t{512});
  const Buffer<int64_t> cycles(size_t{1});
  launch(products<kKind, 1>, 1, 32, 0, 1, out.data, cycles.data);
  found.add("cycles of one after the other", static_cast<double>(cycles.values()[0]) / kRounds);
  for (int warps = 4; warps <= 16; warps *= 2) {
    launch(products<kKind, 4>, 1, 32 * warps, 0, 1, out.data, cycles.data);
    const double of_one = static_cast<double>(cycles.values()[0]) / kRounds / (warps / 4);
    found.add("cycles with " + std::to_string(warps) + " warps", of_one);
  }
  return found;
}

template <int kChains>
__global__ void specials(float* out, int64_t* cycles) {
  float x[kChains];
  for (int c = 0; c < kChains; ++c) x[c] = out[thread_id()] + 0.25f * static_cast<float>(c);
  cta_sync();
  const int64_t begin = clock64();
  for (int i = 0; i < kRounds / kChains; ++i) SF_UNROLL
  for (int c = 0; c < kChains; ++c) x[c] = exp2_approx(x[c]);
  cta_sync();
  if (thread_id() == 0) *cycles = clock64() - begin;
  for (int c = 0; c < kChains; ++c) out[thread_id()] = x[c] - out[thread_id()];
}

Found mufu() {
  Found found;
  const Buffer<float> out(size_t{512});
  const Buffer<int64_t> cycles(size_t{1});
  launch(specials<1>, 1, 32, 0, 1, out.data, cycles.data);
  found.add("cycles of one after the other", static_cast<double>(cycles.values()[0]) / kRounds);
  for (int warps = 4; warps <= 16; warps *= 2) {
    launch(specials<4>, 1, 32 * warps, 0, 1, out.data, cycles.data);
    const double of_one = static_cast<double>(cycles.values()[0]) / kRounds / (warps / 4);
    found.add("cycles with " + std::to_string(warps) + " warps", of_one);
  }
  return found;
}

// Two blocks answer each other through two words, which lie in lines of their own.
__global__ void ping_pong(uint64_t* words, int rounds, int64_t* cycles, uint32_t* wrong) {
  uint64_t* const mine = words + 64 * block_id();
  const uint64_t* const theirs = words + 64 * (1 - block_id());
  const int64_t begin = clock64();
  for (int round = 1; round <= rounds; ++round) {
    const auto tag = static_cast<uint32_t>(round);
    if (block_id() == 0) post(mine, ~tag, tag);
    uint64_t got = 0;
    for (int polls = 0; polls < 1 << 22 && (got = poll(theirs)) >> 32 != tag; ++polls) {
    }
    if (static_cast<uint32_t>(got) != ~tag) {
      *wrong = tag;
      return;
    }
    if (block_id() == 1) post(mine, ~tag, tag);
  }
  cycles[block_id()] = clock64() - begin;
}

Found round_trip() {
  constexpr int kTrips = 2000;
  const Buffer<uint64_t> words(size_t{128});
  const Buffer<int64_t> cycles(size_t{2});
  const Buffer<uint32_t> wrong(size_t{1});
  launch(ping_pong, 2, 1, 0, 1, words.data, kTrips, cycles.data, wrong.data);
  Found found;
  found.add("cycles there and back", static_cast<double>(cycles.values()[0]) / kTrips);
  found.expect(wrong.values()[0] == 0, "a word did not come, or came with other data");
  return found;
}

}  // namespace

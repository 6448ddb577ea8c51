// The names of csrc/cuda/kernels/device.cuh for an ordinary compiler. Threads are fibers (machine.h), and memory is
// checked (memory.h). Tensor cores sum in float32, in the order of k. Special functions are those of the C library,
// with subnormal numbers flushed to zero where the device does so. The simulator does not model the order of global
// memory, bank conflicts, or the errors of the device's approximations.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "memory.h"

#include "../../../csrc/core/bfloat16.h"

#define SF_DEVICE inline
#define SF_KERNEL(threads) inline void
#define SF_UNROLL

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

namespace sf::cuda {

using simt::Site;

inline int thread_id() { return simt::me().index; }
inline int block_threads() { return simt::world.size.threads; }
inline int block_id() { return simt::world.first_block + simt::me().block; }
inline int grid_blocks() { return simt::world.size.blocks; }

inline void cta_sync(Site at = Site::here()) { simt::sync_block(at); }
inline void warp_sync(Site at = Site::here()) { simt::sync_warp(nullptr, nullptr, "warp_sync", at); }
inline void group_sync(int id, int threads, Site at = Site::here()) { simt::sync_group(id, threads, at); }
inline void cluster_sync(Site at = Site::here()) { simt::sync_cluster(at); }

inline uint32_t bits_of(float f) { return to_bits(f); }
inline float float_of(uint32_t u) { return from_bits(u); }
inline float from_bf16(uint16_t v) { return bfloat16_to_float(v); }
inline uint16_t to_bf16(float f) { return f != f ? 0x7FFF : float_to_bfloat16(f); }  // the device has one NaN
// The biases of the exponents differ by 112. Multiplying by a power of two is exact for subnormal numbers too.
inline float from_fp16(uint16_t v) {
  const uint32_t sign = static_cast<uint32_t>(v & 0x8000) << 16, rest = static_cast<uint32_t>(v & 0x7FFF) << 13;
  const uint32_t bits = (v & 0x7C00) == 0x7C00 ? 0x7F800000 | rest : bits_of(float_of(rest) * 0x1p112f);
  return float_of(sign | bits);
}
inline uint16_t to_fp16(float f) {
  if (f != f) return 0x7FFF;
  const uint16_t sign = static_cast<uint16_t>(bits_of(f) >> 16 & 0x8000);
  const float size = std::fabs(f);
  if (size >= 0x1p16f) return sign | 0x7C00;
  if (size < 0x1p-14f)
    return sign | static_cast<uint16_t>(std::nearbyint(size * 0x1p24f));  // subnormal, or the first normal
  const uint32_t u = bits_of(size) - (112u << 23);
  return sign | static_cast<uint16_t>((u + 0xFFF + (u >> 13 & 1)) >> 13);
}
inline uint32_t pack_bf16(float low, float high) { return to_bf16(low) | static_cast<uint32_t>(to_bf16(high)) << 16; }
inline uint32_t pack_fp16(float low, float high) { return to_fp16(low) | static_cast<uint32_t>(to_fp16(high)) << 16; }
inline float round_tf32(float f) { return f != f ? float_of(0x7FFFFFFF) : float_of((bits_of(f) + 0x1000) & ~0x1FFFu); }

inline float flushed(float f) { return std::fabs(f) < 0x1p-126f ? std::copysign(0.0f, f) : f; }
inline float exp2_approx(float x) { return flushed(std::exp2(x)); }
inline float reciprocal_approx(float x) { return flushed(1.0f / flushed(x)); }
inline float inverse_root_approx(float x) { return 1.0f / std::sqrt(flushed(x)); }

template <class T>
struct Shared {
  int64_t begin = 0;
  int count = 0;

  T load(int i, Site at = Site::here()) const { return load_as<T>(i, at); }
  void store(int i, T v, Site at = Site::here()) const { store_as<T>(i, v, at); }
  template <class V>
  V load_as(int i, Site at = Site::here()) const {
    V v;
    memset(&v, 0xFF, sizeof(V));
    const int64_t byte = locate(i, sizeof(V), alignof(V), at);
    if (byte < 0) return v;
    simt::note_read(simt::me().block, byte, sizeof(V), at);
    memcpy(&v, &simt::my_block().memory[byte], sizeof(V));
    return v;
  }
  template <class V>
  void store_as(int i, V v, Site at = Site::here()) const {
    const int64_t byte = locate(i, sizeof(V), alignof(V), at);
    if (byte < 0) return;
    simt::note_write(simt::me().block, byte, sizeof(V), at, simt::me().clock, simt::me().id);
    memcpy(&simt::my_block().memory[byte], &v, sizeof(V));
  }
  int64_t locate(int i, int size, int alignment, Site at) const {
    return simt::locate(begin, count * int64_t{sizeof(T)}, i * int64_t{sizeof(T)}, size, alignment, at);
  }
};

struct SharedAllocator {
  size_t used = 0;

  template <class T>
  Shared<T> take(int count) {
    used = (used + 15) / 16 * 16;
    const Shared<T> region{static_cast<int64_t>(used), count};
    used += count * sizeof(T);
    return region;
  }
};

using Barriers = Shared<uint64_t>;
inline void barrier_init(Barriers b, int i, Site at = Site::here()) {
  if (const int64_t byte = b.locate(i, 8, 8, at); byte >= 0) simt::init_barrier(byte, at);
}
inline void barrier_expect(Barriers b, int i, int bytes, Site at = Site::here()) {
  if (const int64_t byte = b.locate(i, 8, 8, at); byte >= 0) simt::expect(byte, bytes, at);
}
inline bool barrier_wait(Barriers b, int i, int parity, int max_polls, Site at = Site::here()) {
  const int64_t byte = b.locate(i, 8, 8, at);
  return byte < 0 || simt::wait_phase(byte, parity, max_polls, at);
}
template <class T>
void send(Shared<T> to, int i, uint4 v, Barriers b, int j, int block, Site at = Site::here()) {
  const int64_t byte = to.locate(i, 16, 16, at), barrier = b.locate(j, 8, 8, at);
  if (byte >= 0 && barrier >= 0) simt::send_bytes(byte, &v, 16, barrier, block, at);
}

// Words in global memory. Reading a word says nothing about other accesses of its writer, so no clocks are passed on.
inline void post(uint64_t* to, uint32_t data, uint32_t tag) {
  const uint64_t word = static_cast<uint64_t>(tag) << 32 | data;
  simt::world.changes += *to != word;
  *to = word;
}
inline uint64_t poll(const uint64_t* from, Site at = Site::here()) {
  simt::pause(simt::Wait::kPoll, "poll", at, from);
  return *from;
}
inline void raise(volatile uint32_t* flag, Fault fault) {
  simt::world.changes += *flag < fault;
  if (*flag < fault) *flag = fault;
}

namespace simt {

struct MmaOperands {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};
constexpr int kRowWords = 8;  // 32-bit words in a row of a k-tile

struct Bf16Words {
  static constexpr int kPerWord = 2;
  static float value(uint32_t word, int i) { return from_bf16(static_cast<uint16_t>(word >> 16 * i)); }
};
struct Fp16Words {
  static constexpr int kPerWord = 2;
  static float value(uint32_t word, int i) { return from_fp16(static_cast<uint16_t>(word >> 16 * i)); }
};
struct Tf32Words {
  static constexpr int kPerWord = 1;
  static float value(uint32_t word, int) { return float_of(word & ~0x1FFFu); }
};

template <class Words>
void multiply_tiles(Thread* lanes) {
  constexpr int kWide = Words::kPerWord, kDepth = kRowWords * kWide;
  using Columns = float __attribute__((vector_size(32)));  // the 8 columns of D
  float a[16][kDepth];
  Columns b[kDepth], d[16];
  for (int l = 0; l < 32; ++l) {
    const int g = l / 4, q = l % 4;
    const MmaOperands& o = *static_cast<MmaOperands*>(lanes[l].operands);
    for (int i = 0; i < kWide; ++i) {
      for (int r = 0; r < 4; ++r) a[g + 8 * (r & 1)][(q + 4 * (r >> 1)) * kWide + i] = Words::value(o.a[r], i);
      for (int r = 0; r < 2; ++r) b[(q + 4 * r) * kWide + i][g] = Words::value(o.b[r], i);
    }
  }
  for (int m = 0; m < 16; ++m) {
    Columns sum{};
    for (int k = 0; k < kDepth; ++k) sum += a[m][k] * b[k];
    d[m] = sum;
  }
  for (int l = 0; l < 32; ++l) {
    const MmaOperands& o = *static_cast<MmaOperands*>(lanes[l].operands);
    for (int r = 0; r < 4; ++r) o.d[r] += d[l / 4 + 8 * (r >> 1)][2 * (l % 4) + (r & 1)];
  }
}

struct MatrixOperands {
  int64_t byte;
  uint32_t words[4];
  Site at;
};
inline void load_rows(Thread* lanes) {
  Thread* last = world.running;
  for (int l = 0; l < 32; ++l) {
    MatrixOperands& o = *static_cast<MatrixOperands*>(lanes[l].operands);
    world.running = &lanes[l];
    for (int m = 0; m < 4; ++m) {
      const int64_t row = static_cast<MatrixOperands*>(lanes[8 * m + l / 4].operands)->byte;
      if (row < 0) continue;
      const int64_t byte = row + 4 * (l % 4);
      note_read(lanes[l].block, byte, 4, o.at);
      memcpy(&o.words[m], &my_block().memory[byte], 4);
    }
  }
  world.running = last;
}

struct ShuffleOperands {
  float v, received;
  int mask;
};
inline void exchange_values(Thread* lanes) {
  for (int l = 0; l < 32; ++l) {
    ShuffleOperands& o = *static_cast<ShuffleOperands*>(lanes[l].operands);
    o.received = static_cast<ShuffleOperands*>(lanes[l ^ (o.mask & 31)].operands)->v;
  }
}

}  // namespace simt

inline float shuffle_xor(float v, int mask, Site at = Site::here()) {
  simt::ShuffleOperands o{v, 0, mask};
  simt::sync_warp(simt::exchange_values, &o, "shuffle_xor", at);
  return o.received;
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site at = Site::here()) {
  simt::MmaOperands o{d, a, {b0, b1}};
  simt::sync_warp(simt::multiply_tiles<simt::Bf16Words>, &o, "mma_bf16", at);
}
inline void mma_fp16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site at = Site::here()) {
  simt::MmaOperands o{d, a, {b0, b1}};
  simt::sync_warp(simt::multiply_tiles<simt::Fp16Words>, &o, "mma_fp16", at);
}
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site at = Site::here()) {
  simt::MmaOperands o{d, a, {b0, b1}};
  simt::sync_warp(simt::multiply_tiles<simt::Tf32Words>, &o, "mma_tf32", at);
}
template <class T>
uint4 load_matrices(Shared<T> s, int i, Site at = Site::here()) {
  simt::MatrixOperands o{s.locate(i, 16, 16, at), {~0u, ~0u, ~0u, ~0u}, at};
  simt::sync_warp(simt::load_rows, &o, "load_matrices", at);
  return {o.words[0], o.words[1], o.words[2], o.words[3]};
}

}  // namespace sf::cuda

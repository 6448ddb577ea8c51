// Everything that the kernels use of CUDA, under plain names. nvcc compiles the definitions in this file. Any other
// compiler takes tests/cuda/simt/simt.h instead, which has the same names, runs threads as fibers on the CPU and looks
// for races and other faults.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../fault.h"

#ifndef __CUDACC__
#include "simt.h"
#define SF_PARAMETER const
#else
#include <cuda_runtime.h>

#define SF_DEVICE __device__ __forceinline__
#define SF_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
#define SF_UNROLL _Pragma("unroll")
#define SF_PARAMETER const __grid_constant__  // a parameter stays in constant memory even where it is indexed

namespace sf::cuda {

extern __shared__ __align__(128) unsigned char shared_memory[];

SF_DEVICE int thread_id() { return static_cast<int>(threadIdx.x); }
SF_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
SF_DEVICE int block_id() { return static_cast<int>(blockIdx.x); }
SF_DEVICE int grid_blocks() { return static_cast<int>(gridDim.x); }

// Barriers of a block, a warp, a group and a cluster. A group is the warps that call group_sync with the same id, from
// 0 to 14; they have `threads` threads together.
SF_DEVICE void cta_sync() { __syncthreads(); }
SF_DEVICE void warp_sync() { __syncwarp(); }
SF_DEVICE void group_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id + 1), "r"(threads) : "memory");
}
SF_DEVICE void cluster_sync() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Conversions, and approximations by the special function unit.
SF_DEVICE uint32_t bits_of(float f) { return __float_as_uint(f); }
SF_DEVICE float float_of(uint32_t u) { return __uint_as_float(u); }
SF_DEVICE float from_bf16(uint16_t v) { return __uint_as_float(static_cast<uint32_t>(v) << 16); }
SF_DEVICE uint16_t to_bf16(float f) {
  uint16_t r;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(f));
  return r;
}
SF_DEVICE float from_fp16(uint16_t v) {
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v));
  return r;
}
SF_DEVICE uint16_t to_fp16(float f) {
  uint16_t r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r) : "f"(f));
  return r;
}
SF_DEVICE uint32_t pack_bf16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
SF_DEVICE uint32_t pack_fp16(float low, float high) {
  uint32_t r;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
}
SF_DEVICE float round_tf32(float f) {  // to the nearest, ties away from zero
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(f));
  return __uint_as_float(r);
}
SF_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
SF_DEVICE float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
SF_DEVICE float inverse_root_approx(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// A region of shared memory that holds values of type T. The simulator checks its bounds.
template <class T>
struct Shared {
  T* p;

  SF_DEVICE T load(int i) const { return p[i]; }
  SF_DEVICE void store(int i, T v) const { p[i] = v; }
  template <class V>
  SF_DEVICE V load_as(int i) const {  // a V that starts at element i
    return *reinterpret_cast<const V*>(p + i);
  }
  template <class V>
  SF_DEVICE void store_as(int i, V v) const {
    *reinterpret_cast<V*>(p + i) = v;
  }
  SF_DEVICE uint32_t address(int i) const { return static_cast<uint32_t>(__cvta_generic_to_shared(p + i)); }
};

// Divides a block's shared memory into regions, each aligned to 16 bytes. All blocks of a launch take the same regions
// in the same order, so that an offset means the same in each of them.
struct SharedAllocator {
  size_t used = 0;

  template <class T>
  SF_DEVICE Shared<T> take(int count) {
    used = (used + 15) / 16 * 16;
    const Shared<T> region{reinterpret_cast<T*>(shared_memory + used)};
    used += count * sizeof(T);
    return region;
  }
};

// Barriers in shared memory (mbarriers). A phase of one ends when its arrivals and its bytes have come. Phases count
// from 0. barrier_wait waits until the phase of the given parity has ended, and returns whether it has: it gives up
// after a time that it counts in polls, as the waits of the grid regime do. A try may take much longer than a poll, so
// the time is read from the clock of the multiprocessor.
using Barriers = Shared<uint64_t>;
SF_DEVICE uint32_t in_block(uint32_t address, int block) {  // the same address in another block of the cluster
  uint32_t r;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(address), "r"(block));
  return r;
}
SF_DEVICE void barrier_init(Barriers b, int i) {  // for one arrival per phase
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(b.address(i)) : "memory");
}
// Makes the one arrival of a phase and says how many bytes the phase waits for.
SF_DEVICE void barrier_expect(Barriers b, int i, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(b.address(i)), "r"(bytes) : "memory");
#endif
}
// The wait is relaxed, and a fence for shared memory alone follows it: with .acquire.cluster every try would invalidate
// the L1 cache (CCTL.IVALL).
SF_DEVICE bool barrier_wait(Barriers b, int i, int parity, int max_polls) {
#if __CUDA_ARCH__ >= 900
  constexpr int64_t kPollCycles = 512;
  int64_t began = 0;
  while (true) {
    uint32_t done;
    asm volatile(
        "{ .reg .pred p; "
        "mbarrier.try_wait.parity.relaxed.cluster.shared::cta.b64 p, "
        "[%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(b.address(i)), "r"(parity)
        : "memory");
    if (done) break;
    const int64_t now = clock64();
    if (began == 0) began = now;
    if (now - began > max_polls * kPollCycles) return false;
  }
  asm volatile("fence.acquire.sync_restrict::shared::cluster.cluster;" ::: "memory");
#endif
  return true;
}
// Sends 16 bytes to element i of the region in another block of the cluster. That block's barrier j counts them.
template <class T>
SF_DEVICE void send(Shared<T> to, int i, uint4 v, Barriers b, int j, int block) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], "
      "{%1,%2,%3,%4}, [%5];" ::"r"(in_block(to.address(i), block)),
      "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(in_block(b.address(j), block))
      : "memory");
#endif
}

// Words in global memory of 32 bits of data and 32 bits of tag, which are written and read as one. The tag tells a
// reader whether the data has come.
SF_DEVICE void post(uint64_t* to, uint32_t data, uint32_t tag) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(static_cast<uint64_t>(tag) << 32 | data)
               : "memory");
}
SF_DEVICE uint64_t poll(const uint64_t* from) {
  uint64_t v;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(from) : "memory");
  return v;
}
// Writes an error code to a word that the host reads without waiting for the stream. The most serious code is kept.
SF_DEVICE void raise(volatile uint32_t* flag, Fault fault) {
  if (*flag < fault) *flag = fault;
}

// Tensor cores: D = A B + D for a tile of 16 x 8. With g = l / 4 and q = l % 4, lane l holds of D rows g and g + 8, in
// columns 2q and 2q + 1. A k-tile is 32 bytes of a row in every type. Register i of A holds 4 bytes of row g + 8 (i &
// 1), from byte 4q + 16 (i >> 1) on, and register i of B 4 bytes of column g, from byte 4q + 16 i on.
SF_DEVICE void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
SF_DEVICE void mma_fp16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
SF_DEVICE void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// The value of the lane whose number differs in the bits of `mask`. All lanes of a warp call it together.
SF_DEVICE float shuffle_xor(float v, int mask) {
  float r;
  asm volatile("shfl.sync.bfly.b32 %0, %1, %2, 31, -1;" : "=f"(r) : "f"(v), "r"(mask));
  return r;
}
// Loads four matrices of 8 rows of 16 bytes. Lane l passes the element with which row l % 8 of matrix l / 8 starts.
// Register m of a lane receives the bytes 4q .. 4q + 3 of row g of matrix m.
template <class T>
SF_DEVICE uint4 load_matrices(Shared<T> s, int i) {
  uint4 v;
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "r"(s.address(i))
               : "memory");
  return v;
}

}  // namespace sf::cuda
#endif

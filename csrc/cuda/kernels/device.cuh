// The whole vocabulary of the kernels. Compiled by nvcc this file is the device; compiled by any other compiler it is
// tests/cuda/simt/simt.h, which has the same names over fibers on the CPU, with detectors. Kernels use nothing else of
// CUDA.
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
#define SF_PARAMETER const __grid_constant__  // indexed where it is, in constant memory

namespace sf::cuda {

extern __shared__ __align__(128) unsigned char shared_memory[];

SF_DEVICE int thread_id() { return static_cast<int>(threadIdx.x); }
SF_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
SF_DEVICE int block_id() { return static_cast<int>(blockIdx.x); }
SF_DEVICE int grid_blocks() { return static_cast<int>(gridDim.x); }

// -- barriers. group_sync: the `threads` threads (whole warps) that come with one id, of at most 15 in a block.
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

// -- bits
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
SF_DEVICE float round_tf32(float f) {  // nearest, ties away
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

// -- shared memory: a view of `count` Ts, whose bounds the shim checks
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

// Hands out a block's shared memory, region after region, each 16-byte aligned: the same in every block of a launch.
struct Carve {
  size_t used = 0;

  template <class T>
  SF_DEVICE Shared<T> take(int count) {
    used = (used + 15) / 16 * 16;
    const Shared<T> region{reinterpret_cast<T*>(shared_memory + used)};
    used += count * sizeof(T);
    return region;
  }
};

// -- mbarriers: element i of a region counts arrivals and bytes; wait(parity) waits for the phase of that parity
using Barriers = Shared<uint64_t>;
SF_DEVICE uint32_t in_block(uint32_t address,
                            int block) {  // the same address in another block of the cluster
  uint32_t r;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(address), "r"(block));
  return r;
}
SF_DEVICE void barrier_init(Barriers b, int i) {  // for one arrival per phase
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(b.address(i)) : "memory");
}
// The one arrival, and how many bytes are to come.
SF_DEVICE void barrier_expect(Barriers b, int i, int bytes) {
#if __CUDA_ARCH__ >= 900
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(b.address(i)), "r"(bytes) : "memory");
#endif
}
// A relaxed wait and a fence of shared memory alone: .acquire.cluster would drop L1 at every try (CCTL.IVALL).
SF_DEVICE void barrier_wait(Barriers b, int i, int parity) {
#if __CUDA_ARCH__ >= 900
  uint32_t done = 0;
  while (!done) {
    asm volatile(
        "{ .reg .pred p; "
        "mbarrier.try_wait.parity.relaxed.cluster.shared::cta.b64 p, "
        "[%1], %2; selp.u32 %0, 1, 0, p; }"
        : "=r"(done)
        : "r"(b.address(i)), "r"(parity)
        : "memory");
  }
  asm volatile("fence.acquire.sync_restrict::shared::cluster.cluster;" ::: "memory");
#endif
}
// 16 bytes to element i of the region in another block of the cluster, counted on its barrier j.
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

// -- words in global memory that carry their own flag: 32 bits of data, 32 of tag, written and read as one
SF_DEVICE void post(uint64_t* to, uint32_t data, uint32_t tag) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(static_cast<uint64_t>(tag) << 32 | data)
               : "memory");
}
SF_DEVICE uint64_t peek(const uint64_t* from) {
  uint64_t v;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(from) : "memory");
  return v;
}
// A word the host reads without waiting for the stream; it keeps the worst.
SF_DEVICE void raise(volatile uint32_t* flag, Fault fault) {
  if (*flag < fault) *flag = fault;
}

// -- tensor cores. Lane l, g = l / 4, q = l % 4: D and C rows g, g + 8, columns 2q, 2q + 1. A k-tile is 32 bytes of a
// row in every type: register i of A is row g + 8 (i & 1), bytes 4q + 16 (i >> 1); of B column g, bytes 4q + 16 i.
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
// Four 8 x 16-byte matrices: lane l brings the element where row l % 8 of matrix l / 8 starts; register m of a lane
// is bytes 4q .. 4q + 3 of row g of matrix m.
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

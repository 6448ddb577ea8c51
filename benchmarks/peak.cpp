// Measures the limits of this machine: multiply-add peak per instruction set and type, core clock, read bandwidth,
// core-to-core round trip. machine.py builds it with the system's C++ compiler and calls it through ctypes; it uses
// nothing of the package. Every kernel that measures a peak is a loop of independent chains of multiply-adds that stay
// in registers. A rate is the slowest thread's times the number of threads, so it is low if another process took the
// core of one thread.
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

using Clock = std::chrono::steady_clock;
constexpr long kRounds = 16384;  // of one chunk, about 30 us; the clock is read between chunks

// Runs work() on every thread until `seconds` have passed. Returns the chunks per second of the slowest thread, times
// the number of threads.
template <class Work>
double rate(int threads, double seconds, Work work) {
  std::atomic<int> waiting{threads};
  std::vector<double> rates(threads);
  auto run = [&](int index) {
    work(index);  // cores power their vector units up at first use
    --waiting;
    while (waiting.load() > 0) std::this_thread::yield();
    const auto start = Clock::now();
    long chunks = 0;
    double elapsed = 0;
    do {
      work(index);
      ++chunks;
      elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    } while (elapsed < seconds);
    rates[index] = chunks / elapsed;
  };
  std::vector<std::thread> others;
  for (int index = 1; index < threads; ++index) others.emplace_back(run, index);
  run(0);
  for (auto& other : others) other.join();
  double slowest = rates[0];
  for (double r : rates) slowest = r < slowest ? r : slowest;
  return slowest * threads;
}

volatile double sink;  // results are stored here so that the compiler keeps the loops

struct Kernel {
  const char* name;
  bool (*usable)();
  void (*chunk)();
  double flops;  // of one chunk
};

#if defined(__x86_64__)
// 16 chains of 512-bit registers or 12 of 256-bit ones: enough to keep all units of every x86 CPU so far busy, and few
// enough to stay in registers.
__attribute__((target("avx512f"))) void fma_avx512_f32() {
  __m512 chains[16], scale = _mm512_set1_ps(0.5f), shift = _mm512_set1_ps(0.25f);
  for (int i = 0; i < 16; ++i) chains[i] = _mm512_set1_ps(1.0f + i);
  for (long round = 0; round < kRounds; ++round)
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) chains[i] = _mm512_fmadd_ps(chains[i], scale, shift);
  for (int i = 1; i < 16; ++i) chains[0] = _mm512_add_ps(chains[0], chains[i]);
  sink = _mm512_reduce_add_ps(chains[0]);
}

__attribute__((target("avx512f"))) void fma_avx512_f64() {
  __m512d chains[16], scale = _mm512_set1_pd(0.5), shift = _mm512_set1_pd(0.25);
  for (int i = 0; i < 16; ++i) chains[i] = _mm512_set1_pd(1.0 + i);
  for (long round = 0; round < kRounds; ++round)
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) chains[i] = _mm512_fmadd_pd(chains[i], scale, shift);
  for (int i = 1; i < 16; ++i) chains[0] = _mm512_add_pd(chains[0], chains[i]);
  sink = _mm512_reduce_add_pd(chains[0]);
}

__attribute__((target("avx512f,avx512bf16"))) void dot_avx512_bf16() {
  __m512 chains[16];
  const __m512bh scale = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.5f));
  for (int i = 0; i < 16; ++i) chains[i] = _mm512_set1_ps(1.0f + i);
  for (long round = 0; round < kRounds; ++round)
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) chains[i] = _mm512_dpbf16_ps(chains[i], scale, scale);
  for (int i = 1; i < 16; ++i) chains[0] = _mm512_add_ps(chains[0], chains[i]);
  sink = _mm512_reduce_add_ps(chains[0]);
}

__attribute__((target("avx2,fma"))) void fma_avx2_f32() {
  __m256 chains[12], scale = _mm256_set1_ps(0.5f), shift = _mm256_set1_ps(0.25f);
  for (int i = 0; i < 12; ++i) chains[i] = _mm256_set1_ps(1.0f + i);
  for (long round = 0; round < kRounds; ++round)
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) chains[i] = _mm256_fmadd_ps(chains[i], scale, shift);
  for (int i = 1; i < 12; ++i) chains[0] = _mm256_add_ps(chains[0], chains[i]);
  sink = _mm256_cvtss_f32(chains[0]);
}

__attribute__((target("avx2,fma"))) void fma_avx2_f64() {
  __m256d chains[12], scale = _mm256_set1_pd(0.5), shift = _mm256_set1_pd(0.25);
  for (int i = 0; i < 12; ++i) chains[i] = _mm256_set1_pd(1.0 + i);
  for (long round = 0; round < kRounds; ++round)
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) chains[i] = _mm256_fmadd_pd(chains[i], scale, shift);
  for (int i = 1; i < 12; ++i) chains[0] = _mm256_add_pd(chains[0], chains[i]);
  sink = _mm256_cvtsd_f64(chains[0]);
}

bool has_avx512() { return __builtin_cpu_supports("avx512f"); }
bool has_bf16() { return __builtin_cpu_supports("avx512bf16"); }
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif

// The compiler's baseline (SSE2 multiply and add on x86-64, NEON fused multiply-add on aarch64).
void fma_base_f32() {
  typedef float Vec4 __attribute__((vector_size(16)));
  Vec4 chains[12];
  const Vec4 scale = {0.5f, 0.5f, 0.5f, 0.5f}, shift = {0.25f, 0.25f, 0.25f, 0.25f};
  for (int i = 0; i < 12; ++i) chains[i] = shift * static_cast<float>(4 + 4 * i);
  for (long round = 0; round < kRounds; ++round)
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) chains[i] = chains[i] * scale + shift;
  for (int i = 1; i < 12; ++i) chains[0] += chains[i];
  sink = chains[0][0];
}

constexpr std::int64_t kStep = 512;  // bytes read per round of the loops below

#if defined(__x86_64__)
__attribute__((target("avx512f"))) void read_avx512(const char* data, std::int64_t bytes) {
  __m512i sums[8] = {};
  for (std::int64_t offset = 0; offset < bytes; offset += kStep)
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) sums[i] = _mm512_xor_si512(sums[i], _mm512_load_si512(data + offset + 64 * i));
  for (int i = 1; i < 8; ++i) sums[0] = _mm512_xor_si512(sums[0], sums[i]);
  sink = static_cast<double>(_mm_cvtsi128_si64(_mm512_castsi512_si128(sums[0])));
}
#endif

void read_base(const char* data, std::int64_t bytes) {
  typedef std::uint64_t Vec2 __attribute__((vector_size(16)));
  Vec2 sums[8] = {};
  for (std::int64_t offset = 0; offset < bytes; offset += 128)
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) sums[i] ^= *reinterpret_cast<const Vec2*>(data + offset + 16 * i);
  for (int i = 1; i < 8; ++i) sums[0] ^= sums[i];
  sink = static_cast<double>(sums[0][0]);
}

const Kernel kKernels[] = {
#if defined(__x86_64__)
    {"avx512-float32", has_avx512, fma_avx512_f32, 2.0 * 16 * 16 * kRounds},
    {"avx512-float64", has_avx512, fma_avx512_f64, 2.0 * 16 * 8 * kRounds},
    {"avx512-bfloat16", has_bf16, dot_avx512_bf16, 2.0 * 16 * 32 * kRounds},
    {"avx2-float32", has_avx2, fma_avx2_f32, 2.0 * 12 * 8 * kRounds},
    {"avx2-float64", has_avx2, fma_avx2_f64, 2.0 * 12 * 4 * kRounds},
#endif
    {"base-float32", [] { return true; }, fma_base_f32, 2.0 * 12 * 4 * kRounds},
};

}  // namespace

extern "C" {

// GFLOP/s of all threads together; -1 where the CPU lacks the kernel's instructions or the name is unknown.
double peak_gflops(const char* name, int threads, double seconds) {
  for (const Kernel& kernel : kKernels)
    if (std::strcmp(kernel.name, name) == 0)
      return kernel.usable() ? 1e-9 * kernel.flops * rate(threads, seconds, [&](int) { kernel.chunk(); }) : -1.0;
  return -1.0;
}

// Core clock in GHz from a chain of 64-bit multiplies, 3 clocks each on every x86-64 core since 2008; -1 elsewhere.
double clock_ghz(double seconds) {
#if defined(__x86_64__)
  auto chunk = [](int) {
    std::uint64_t value = 3;
    for (long round = 0; round < kRounds; ++round)
      asm volatile("imulq %0, %0\n\timulq %0, %0\n\timulq %0, %0\n\timulq %0, %0" : "+r"(value));
    sink = static_cast<double>(value);
  };
  return 1e-9 * 12.0 * kRounds * rate(1, seconds, chunk);
#else
  return seconds < 0 ? 0.0 : -1.0;
#endif
}

// GB/s read by all threads together, each from a buffer of its own.
double read_gbs(std::int64_t bytes_per_thread, int threads, double seconds) {
  const std::int64_t bytes = bytes_per_thread / kStep * kStep;
  // How often a chunk reads its buffer: so often that the time of reading the clock is small beside it.
  const std::int64_t passes = 1 + (1 << 18) / bytes;
  std::vector<char*> buffers(threads);
  for (auto& buffer : buffers) {
    buffer = static_cast<char*>(std::aligned_alloc(kStep, bytes));
    std::memset(buffer, 1, bytes);
  }
  auto chunk = [&](int index) {
    for (std::int64_t pass = 0; pass < passes; ++pass) {
#if defined(__x86_64__)
      if (has_avx512()) {
        read_avx512(buffers[index], bytes);
        continue;
      }
#endif
      read_base(buffers[index], bytes);
    }
  };
  const double result = 1e-9 * bytes * passes * rate(threads, seconds, chunk);
  for (auto* buffer : buffers) std::free(buffer);
  return result;
}

// Nanoseconds for a cache line to go to another core and back, the best of `batches`. On virtual machines it changes
// within minutes (80 to 400 ns were seen), and so does the time of layers whose threads meet at every step.
double round_trip_ns(int batches) {
  constexpr int kTrips = 500;
  alignas(128) std::atomic<int> ball{0};
  std::thread other([&] {
    for (int trip = 0; trip < batches * kTrips; ++trip) {
      while (ball.load(std::memory_order_acquire) != 2 * trip + 1) {
      }
      ball.store(2 * trip + 2, std::memory_order_release);
    }
  });
  double best = 1e9;
  for (int batch = 0; batch < batches; ++batch) {
    const auto start = Clock::now();
    for (int trip = batch * kTrips; trip < (batch + 1) * kTrips; ++trip) {
      ball.store(2 * trip + 1, std::memory_order_release);
      while (ball.load(std::memory_order_acquire) != 2 * trip + 2) {
      }
    }
    const double each = 1e9 * std::chrono::duration<double>(Clock::now() - start).count() / kTrips;
    best = each < best ? each : best;
  }
  other.join();
  return best;
}
}

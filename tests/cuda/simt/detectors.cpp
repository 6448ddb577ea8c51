// Small kernels for tests/cuda/test_simt_detectors.py, which lists the finding that each must cause. `detectors NAME`
// runs one of them under several schedules, and prints the findings of the first that has any. A wrong result is
// reported like a finding. Most kernels have an argument that turns a correct kernel into a faulty one.
#include <cstdio>
#include <functional>
#include <map>
#include <string>

#include "simt_stream.h"

namespace sf::cuda {
namespace {

constexpr int kSchedules = 8;

void require(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error("wrong: " + what);
}

void ring(bool barrier) {
  SharedAllocator allocator;
  const auto s = allocator.take<float>(64);
  s.store(thread_id(), 1);
  if (barrier) cta_sync();
  s.load((thread_id() + 1) % 64);
}
void rewrite(bool barrier) {
  SharedAllocator allocator;
  const auto s = allocator.take<float>(64);
  s.store(thread_id(), 1);
  cta_sync();
  s.load((thread_id() + 1) % 64);
  if (barrier) cta_sync();
  s.store(thread_id(), 2);
}
void trade_in_warp(bool barrier) {
  SharedAllocator allocator;
  const auto s = allocator.take<float>(32);
  s.store(thread_id(), 1);
  if (barrier) warp_sync();
  s.load(thread_id() ^ 1);
}
// Each warp reads what the other warp of its pair wrote.
void trade_between_warps(int mode) {
  SharedAllocator allocator;
  const auto s = allocator.take<float>(128);
  s.store(thread_id(), 1);
  if (mode == 0) cta_sync();
  if (mode == 1) warp_sync();
  if (mode == 2) group_sync(thread_id() / 64, 64);
  if (mode == 3) group_sync(thread_id() / 32 % 2, 64);  // of warps 0 and 2, 1 and 3
  s.load(thread_id() ^ 32);
}
void pass_along_groups() {  // warp 3 is ordered after warp 0 through warps 1 and 2
  SharedAllocator allocator;
  const auto s = allocator.take<float>(32);
  const int warp = thread_id() / 32, lane = thread_id() % 32;
  if (warp == 0) s.store(lane, 1);
  for (int i = 0; i < 3; ++i)
    if (warp == i || warp == i + 1) group_sync(i, 64);
  if (warp == 3) s.load(31 - lane);
}
void matrices(bool barrier) {  // load_matrices reads what other lanes wrote, but is no barrier
  SharedAllocator allocator;
  const auto s = allocator.take<uint16_t>(256);
  s.store_as<uint4>(8 * thread_id(), {});
  if (barrier) warp_sync();
  load_matrices(s, 8 * thread_id());
}
void mma_is_no_barrier() {
  SharedAllocator allocator;
  const auto s = allocator.take<float>(32);
  s.store(thread_id(), 1);
  float d[4] = {};
  mma_bf16(d, {0, 0, 0, 0}, 0, 0);
  s.load(thread_id() ^ 1);
}
void left_by_another_block() {
  SharedAllocator allocator;
  const auto s = allocator.take<float>(64);
  if (block_id() == 0) s.store(thread_id(), 1);
  s.load(thread_id());
}
void beyond(int first, bool write) {  // beyond the region, but still in shared memory
  SharedAllocator allocator;
  allocator.take<float>(64);
  const auto s = allocator.take<float>(64);
  allocator.take<float>(64);
  s.store(thread_id(), 1);
  cta_sync();
  if (write)
    s.store(thread_id() + first, 1);
  else
    s.load(thread_id() + first);
}
void regions_are_aligned() {
  SharedAllocator allocator;
  allocator.take<uint16_t>(3);
  allocator.take<uint4>(32).store(thread_id(), {});
}
void aligned(int element) {
  SharedAllocator allocator;
  const auto s = allocator.take<uint16_t>(16);
  s.store_as<uint4>(element, {});
}

constexpr int kPatient = 1 << 24;  // failed polls
uint64_t words[4 * 64];            // in global memory, zeroed before each launch

// Clusters of two blocks of two warps. In every step each block sends the other one packet of 16 bytes per thread.
struct ExchangeMode {
  bool init_ordered = true, waits = true, waits_last = true, two_halves = true, stays = true, reads_late = false;
  int bytes = 64 * 16, parity = 0;
};
void exchange(const ExchangeMode& mode) {
  constexpr int kSteps = 4, kPackets = 64;
  SharedAllocator allocator;
  const auto s = allocator.take<uint32_t>(2 * 4 * kPackets);
  const auto full = allocator.take<uint64_t>(2);
  const int peer = 1 - block_id() % 2, t = thread_id();
  for (int i = 0; i < 4; ++i) s.store(4 * t + i, 0);
  if (t == 0)
    for (int i = 0; i < 2; ++i) barrier_init(full, i);
  if (mode.init_ordered) {
    cluster_sync();
  } else {  // the mbarriers are initialised before they are used, but no barrier orders the two
    cta_sync();
    post(&words[64 * block_id() + t], 0, 7);
    for (int i = 0; i < 64; ++i)
      while (poll(&words[64 * (block_id() ^ 1) + i]) == 0) {
      }
  }
  for (int step = 0; step < kSteps; ++step) {
    const int now = mode.two_halves ? step & 1 : 0, next = mode.two_halves ? 1 - now : 0;
    const bool last = step + 1 == kSteps;
    if (t == 0 && !last) barrier_expect(full, 1 - (step & 1), mode.bytes);
    if (step > 0 && mode.waits && (mode.waits_last || !last))
      barrier_wait(full, step & 1, ((step - 1) / 2 & 1) ^ mode.parity, kPatient);
    if (!mode.waits) cluster_sync();  // not enough: only the mbarrier orders the bytes that are sent
    const uint32_t word = s.load(4 * (now * kPackets + (t + 1) % kPackets));
    require(mode.parity || !mode.waits || word == static_cast<uint32_t>(step), "a word that was sent");
    const uint32_t v = step + 1;
    if (!last) send(s, 4 * (next * kPackets + t), {v, v, v, v}, full, 1 - (step & 1), peer);
    if (mode.reads_late) s.load(4 * (now * kPackets + (t + 1) % kPackets));
  }
  if (mode.stays) cluster_sync();
}
void wait_for_the_second_phase() {  // thread 0 waits for the first phase, thread 1 for the second
  SharedAllocator allocator;
  const auto s = allocator.take<uint4>(2);
  const auto full = allocator.take<uint64_t>(1);
  const auto until = [](uint64_t tag) {
    while (poll(words) >> 32 < tag) {
    }
  };
  if (thread_id() == 63) barrier_init(full, 0);
  cta_sync();
  if (thread_id() == 63)
    for (int i = 0; i < 2; ++i) {
      if (i == 1) until(1);
      barrier_expect(full, 0, 16);
      send(s, i, {}, full, 0, 0);
      if (i == 1) post(words, 0, 2);
    }
  if (thread_id() == 0) {
    barrier_wait(full, 0, 0, kPatient);
    s.load(0);
    post(words, 0, 1);
  }
  if (thread_id() == 1) {
    until(2);
    barrier_wait(full, 0, 1, kPatient);
    s.load(1);
  }
}
void leave_before_it_comes() {  // block 1 sends when block 0 may have ended
  SharedAllocator allocator;
  const auto s = allocator.take<uint4>(32);
  const auto full = allocator.take<uint64_t>(1);
  if (thread_id() == 0) barrier_init(full, 0);
  cluster_sync();
  if (block_id() == 1) send(s, thread_id(), {}, full, 0, 0);
}
void arm_twice() {
  SharedAllocator allocator;
  const auto full = allocator.take<uint64_t>(1);
  if (thread_id() > 0) return;
  barrier_init(full, 0);
  barrier_expect(full, 0, 16);
  barrier_expect(full, 0, 16);
}
void uninitialised_mbarrier() {
  SharedAllocator allocator;
  barrier_wait(allocator.take<uint64_t>(1), 0, 1, kPatient);
}

// The blocks form a chain, and `rank` is a block's position in it. Each block waits for the word of the block before it
// and posts a word for the next one, which is the block with this block's number plus `step`.
void pass_on(int rank, int step, uint64_t tag) {
  uint64_t* mine = &words[block_id() * 64 + thread_id()];
  uint32_t data = 1;
  if (rank > 0) {
    uint64_t word = 0;
    do word = poll(mine - 64 * step);
    while (word >> 32 != tag);
    data = static_cast<uint32_t>(word) + 1;
  }
  require(data == static_cast<uint32_t>(rank) + 1, "a word that was posted");
  post(mine, data, 7);
}
void words_order_nothing(bool barrier) {  // a word that has come does not order other accesses
  SharedAllocator allocator;
  const auto s = allocator.take<float>(64);
  s.store(thread_id(), 1);
  post(&words[thread_id()], 0, 7);
  while (poll(&words[thread_id() ^ 32]) >> 32 != 7) {
  }
  if (barrier) cta_sync();
  s.load(thread_id() ^ 32);
}
void many_words() {  // every poll fails, but the reader itself goes on, so the launch is not stuck
  for (int i = 0; i < 5000; ++i) require(poll(&words[i % 64]) >> 32 == 0, "a word nobody posted");
}
void read_then_written(bool barrier) {  // the last reader writes; without the barrier an earlier read is unordered
  SharedAllocator allocator;
  const auto s = allocator.take<float>(1);
  if (thread_id() == 0) s.store(0, 1);
  cta_sync();
  if (thread_id() == 32) {
    s.load(0);
    post(words, 0, 7);
  }
  if (thread_id() == 0) {
    while (poll(words) >> 32 != 7) {
    }
    s.load(0);
  }
  if (barrier) cta_sync();
  if (thread_id() == 0) s.store(0, 2);
}
void ping_pong() {  // posts and polls are the only progress
  for (int i = 1; i <= 1000; ++i) {
    if (i % 2 == thread_id() / 32) post(&words[thread_id()], 0, i);
    while (poll(&words[i % 2 * 32 + thread_id() % 32]) >> 32 != static_cast<uint64_t>(i)) {
    }
  }
}
void raise_flag() {
  uint32_t flag = 0;
  raise(&flag, kWaitRanOut);
  raise(&flag, kNoSuchId);
  require(flag == kWaitRanOut, "the flag");
}

// Tensor cores are compared with a plain product. Elements are numbered as in the PTX manual, with g for the group of a
// thread and t for its number in the group.
float number(int i) { return static_cast<float>((i * 37 + 11) % 64 - 32) / 16; }  // exact in every type

struct Fragments {
  float a[16][16], b[16][8], c[16][8];
  int depth;

  explicit Fragments(int depth_) : depth(depth_) {
    for (int m = 0; m < 16; ++m) {
      for (int k = 0; k < depth; ++k) a[m][k] = number(16 * m + k);
      for (int n = 0; n < 8; ++n) c[m][n] = number(1000 + 8 * m + n);
    }
    for (int k = 0; k < depth; ++k)
      for (int n = 0; n < 8; ++n) b[k][n] = number(500 + 8 * k + n * n);
  }
  float expected(int m, int n) const {
    double sum = c[m][n];
    for (int k = 0; k < depth; ++k) sum += static_cast<double>(a[m][k]) * b[k][n];
    return static_cast<float>(sum);
  }
};
template <class Mma>
void check_mma(const Fragments& f, const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Mma mma) {
  const int g = thread_id() / 4, t = thread_id() % 4;
  const int row[] = {g, g, g + 8, g + 8}, column[] = {2 * t, 2 * t + 1, 2 * t, 2 * t + 1};
  float d[4];
  for (int i = 0; i < 4; ++i) d[i] = f.c[row[i]][column[i]];
  mma(d, a, b0, b1);
  for (int i = 0; i < 4; ++i) require(d[i] == f.expected(row[i], column[i]), "an element of the product");
}
template <class Mma>
void product_of_halves(uint16_t (*narrow)(float), Mma mma) {
  const Fragments f(16);
  const int g = thread_id() / 4, t = thread_id() % 4;
  uint32_t a[4] = {}, b[2] = {};
  for (int i = 0; i < 8; ++i) {  // a0 .. a7, two to a register
    const int row = i < 2 || (i >= 4 && i < 6) ? g : g + 8, column = 2 * t + (i & 1) + (i < 4 ? 0 : 8);
    a[i / 2] |= static_cast<uint32_t>(narrow(f.a[row][column])) << 16 * (i % 2);
  }
  for (int i = 0; i < 4; ++i) {
    const int row = 2 * t + (i & 1) + (i < 2 ? 0 : 8);
    b[i / 2] |= static_cast<uint32_t>(narrow(f.b[row][g])) << 16 * (i % 2);
  }
  check_mma(f, a, b[0], b[1], mma);
}
void product_of_tf32() {
  const Fragments f(8);
  const int g = thread_id() / 4, t = thread_id() % 4;
  const uint32_t ignored = 0x1FFF;  // the low bits of a TF32 number
  const uint32_t a[4] = {bits_of(f.a[g][t]) | ignored, bits_of(f.a[g + 8][t]), bits_of(f.a[g][t + 4]) | ignored,
                         bits_of(f.a[g + 8][t + 4])};
  check_mma(f, a, bits_of(f.b[t][g]) | ignored, bits_of(f.b[t + 4][g]),
            [](auto& d, auto& a, uint32_t b0, uint32_t b1) { mma_tf32(d, a, b0, b1); });
}
void matrix_map() {  // 16-bit element e of row r of matrix m is 1000 m + 10 r + e
  SharedAllocator allocator;
  const auto s = allocator.take<uint16_t>(32 * 24);
  const int lane = thread_id(), g = lane / 4, t = lane % 4;
  for (int e = 0; e < 8; ++e) s.store(24 * lane + e, static_cast<uint16_t>(1000 * (lane / 8) + 10 * (lane % 8) + e));
  warp_sync();
  const uint4 v = load_matrices(s, 24 * lane);
  const uint32_t words_of[] = {v.x, v.y, v.z, v.w};
  for (int m = 0; m < 4; ++m) {
    const uint32_t low = 1000 * m + 10 * g + 2 * t;
    require(words_of[m] == (low | (low + 1) << 16), "a matrix's element");
  }
}

// Every value of a 16-bit type is converted to float and back, and floats between two values are rounded to the
// nearest, ties to even.
void rounding(float (*widen)(uint16_t), uint16_t (*narrow)(float), uint16_t infinity) {
  for (uint16_t v = 0; v < infinity; ++v) {
    const float low = widen(v), step = v + 1 == infinity ? low - widen(v - 1) : widen(v + 1) - low;
    const float middle = low + step / 2;
    require(narrow(low) == v && narrow(-low) == (v | 0x8000), "a number narrowed");
    require(narrow(std::nextafter(middle, 0.0f)) == v, "a number below the middle");
    require(narrow(middle) == v + (v & 1), "a number in the middle");
    require(narrow(std::nextafter(middle, INFINITY)) == v + 1, "a number above the middle");
  }
  require(narrow(1.5f * widen(infinity - 1)) == infinity, "a number too large");
  require(narrow(INFINITY) == infinity && widen(infinity) == INFINITY, "infinity");
  require(std::isnan(widen(narrow(NAN))) && std::isnan(widen(infinity + 1)), "NaN");
}
void special_functions() {
  require(round_tf32(1 + 0x1p-11f) == 1 + 0x1p-10f, "a tie away from zero");
  require(round_tf32(-1 - 0x1p-11f) == -1 - 0x1p-10f, "a tie away from zero, below it");
  require(round_tf32(std::nextafter(1 + 0x1p-11f, 0.0f)) == 1, "a number below the middle");
  require(std::isnan(round_tf32(NAN)) && round_tf32(INFINITY) == INFINITY, "NaN and infinity");
  require(exp2_approx(-126) == 0x1p-126f && exp2_approx(-126.5f) == 0 && exp2_approx(3) == 8, "exp2");
  require(reciprocal_approx(0x1p127f) == 0 && reciprocal_approx(0x1p-127f) == INFINITY && reciprocal_approx(4) == 0.25f,
          "reciprocal");
}

// The CPU's DeviceStream.
struct Increment {
  float* data;
};
SF_KERNEL(64) increment(SF_PARAMETER Increment a) {
  a.data[block_id() * block_threads() + thread_id()] += static_cast<float>(grid_blocks());
}
void run_on_stream(const LaunchShape& shape, int count) {
  SimtStream stream{Limits{90, 4, 65536, 4, 2}, 4};
  float* data = stream.take_of<float>(count);
  require(std::isnan(data[0]) && std::isnan(data[count - 1]), "memory taken is not poisoned");
  stream.zero(data, count * sizeof(float));
  stream.launch(increment, shape, Increment{data});
  for (int i = 0; i < shape.blocks * shape.threads; ++i)
    require(data[i] == static_cast<float>(shape.blocks), "the kernel's result");
}
void multiply() {  // (2 x 3) (3 x 2), every layout, into columns 1 and 2 of rows of 4
  const float a[] = {1, 2, 3, 4, 5, 6}, a_t[] = {1, 4, 2, 5, 3, 6}, b[] = {1, -1, 0.5f, 2, 0, 3},
              b_t[] = {1, 0.5f, 0, -1, 2, 3};
  const float expected[] = {2, 12, 6.5f, 24};
  SimtStream stream{Limits{}, 132};
  for (int layout = 0; layout < 8; ++layout) {
    const bool ta = layout & 1, tb = layout & 2, accumulate = layout & 4;
    float c[] = {9, 10, 10, 9, 9, 10, 10, 9};
    stream.multiply({.m = 2,
                     .n = 2,
                     .k = 3,
                     .a = ta ? a_t : a,
                     .b = tb ? b_t : b,
                     .c = c + 1,
                     .a_stride = ta ? 2 : 3,
                     .b_stride = tb ? 3 : 2,
                     .c_stride = 4,
                     .in = Dtype::kFloat32,
                     .out = Dtype::kFloat32,
                     .a_transposed = ta,
                     .b_transposed = tb,
                     .accumulate = accumulate});
    for (int i = 0; i < 4; ++i)
      require(c[4 * (i / 2) + 1 + i % 2] == expected[i] + (accumulate ? 10.0f : 0.0f), "an element of a product");
    require(c[0] == 9 && c[3] == 9 && c[4] == 9 && c[7] == 9, "what lies beside the product");
  }
}
void multiply_types() {  // batches of two 1 x 1 products, x * x
  const float x = 1 + 0x1p-11f, rounded = 1 + 0x1p-10f;
  const double wide = 1 + 0x1p-30;
  SimtStream stream{Limits{}, 132};
  Product p{};
  p.m = p.n = p.k = p.a_stride = p.b_stride = p.c_stride = p.a_batch = p.b_batch = p.c_batch = 1;
  p.batch = 2;
  const float in[] = {x, 2 * x};
  float out[2];
  p.a = p.b = in, p.c = out, p.in = p.out = Dtype::kFloat32;
  stream.multiply(p);
  require(out[0] == x * x && out[1] == 4 * x * x, "a float32 product");
  p.tf32 = true;
  stream.multiply(p);
  require(out[0] == rounded * rounded && out[1] == 4 * rounded * rounded, "a TF32 product");
  const double in64[] = {wide, wide};
  double out64[2];
  p.a = p.b = in64, p.c = out64, p.in = p.out = Dtype::kFloat64;
  stream.multiply(p);
  require(out64[0] == wide * wide && out64[1] == wide * wide, "a float64 product");
  const uint16_t in16[] = {to_bf16(3), to_bf16(0.5f)};
  p.a = p.b = in16, p.c = out, p.in = Dtype::kBFloat16, p.out = Dtype::kFloat32;
  stream.multiply(p);
  require(out[0] == 9 && out[1] == 0.25f, "a bfloat16 product");
  const uint16_t half[] = {to_fp16(3), to_fp16(1.5f)};
  uint16_t out16[2];
  p.a = p.b = half, p.c = out16, p.in = p.out = Dtype::kFloat16;
  stream.multiply(p);
  require(from_fp16(out16[0]) == 9 && from_fp16(out16[1]) == 2.25f, "a float16 product");
}
void beyond_the_fence() {
  SimtStream stream{Limits{}, 132};
  volatile float* data = stream.take_of<float>(64);
  data[64] = 1;
}

std::function<void()> on(const simt::LaunchSize& size, std::function<void()> body) {
  return [=] {
    std::fill(std::begin(words), std::end(words), 0);
    simt::launch(size, body);
  };
}

const simt::LaunchSize kWarp{1, 32, 1024}, kBlock{1, 64, 1024}, kWide{1, 128, 1024}, kClusters{4, 64, 4096, 2},
    kTogether{4, 64, 1024, 1, true};

std::vector<int> order_of_threads() {
  std::vector<int> order;
  simt::launch({1, 128}, [&] { order.push_back(thread_id()); });
  return order;
}
void schedules() {
  const std::vector<int> first = order_of_threads(), second = order_of_threads();
  require(first != second, "the same order twice");
  require(first[0] / 32 != second[0] / 32 || first[32] / 32 != second[32] / 32 || first[64] / 32 != second[64] / 32,
          "the same order of warps twice");
}
void after_a_stuck_launch() {
  try {
    simt::launch(kWide, [] {
      if (thread_id() < 32)
        cta_sync();
      else
        group_sync(thread_id() / 64, 64);  // warp 1 comes alone, warps 2 and 3 together
    });
  } catch (const std::runtime_error&) {
    for (int by = 0; by <= 2; by += 2) simt::launch(kWide, [by] { trade_between_warps(by); });
    return;
  }
  require(false, "nothing was found");
}

const std::map<std::string, std::function<void()>> kCases = {
    {"ring", on(kBlock, [] { ring(true); })},
    {"ring_without_barrier", on(kBlock, [] { ring(false); })},
    {"rewrite", on(kBlock, [] { rewrite(true); })},
    {"rewrite_without_barrier", on(kBlock, [] { rewrite(false); })},
    {"one_word_from_two", on(kBlock, [] { SharedAllocator().take<float>(64).store(thread_id() / 2, 1); })},
    {"one_word_from_two_warps", on(kBlock, [] { SharedAllocator().take<float>(64).store(thread_id() % 32, 1); })},
    {"half_a_word_each", on(kBlock, [] { SharedAllocator().take<uint16_t>(64).store(thread_id(), 1); })},
    {"trade_in_warp", on(kWarp, [] { trade_in_warp(true); })},
    {"trade_in_warp_without_sync", on(kWarp, [] { trade_in_warp(false); })},
    {"trade_by_block", on(kWide, [] { trade_between_warps(0); })},
    {"trade_by_warp_sync", on(kWide, [] { trade_between_warps(1); })},
    {"trade_by_group", on(kWide, [] { trade_between_warps(2); })},
    {"pass_along_groups", on(kWide, pass_along_groups)},
    {"trade_by_other_group", on(kWide, [] { trade_between_warps(3); })},
    {"trade_without_group", on(kWide, [] { trade_between_warps(4); })},
    {"matrices", on(kWarp, [] { matrices(true); })},
    {"matrices_without_sync", on(kWarp, [] { matrices(false); })},
    {"mma_as_barrier", on(kWarp, mma_is_no_barrier)},
    {"read_beyond", on(kBlock, [] { beyond(1, false); })},
    {"read_before", on(kBlock, [] { beyond(-1, false); })},
    {"write_beyond", on(kBlock, [] { beyond(1, true); })},
    {"write_before", on(kBlock, [] { beyond(-1, true); })},
    {"within", on(kBlock, [] { beyond(0, true); })},
    {"beyond_the_launch", on(kBlock, [] { SharedAllocator().take<float>(512).store(thread_id() + 193, 1); })},
    {"aligned", on({1, 32, 64},
                   [] {
                     if (thread_id() == 0) aligned(8);
                   })},
    {"aligned_regions", on(kWarp, regions_are_aligned)},
    {"misaligned", on({1, 32, 64},
                      [] {
                        if (thread_id() == 0) aligned(4);
                      })},
    {"unwritten", on(kBlock, [] { SharedAllocator().take<float>(1).load(0); })},
    {"left_by_another_block", on({2, 64, 1024}, left_by_another_block)},
    {"half_a_block_at_barrier", on(kBlock,
                                   [] {
                                     if (thread_id() < 32) cta_sync();
                                   })},
    {"barrier_in_both_branches", on(kBlock,
                                    [] {
                                      if (thread_id() < 32)
                                        cta_sync();
                                      else
                                        cta_sync();
                                    })},
    {"lane_missing", on(kWarp,
                        [] {
                          if (thread_id() != 7) warp_sync();
                        })},
    {"lanes_at_different_things", on(kWarp,
                                     [] {
                                       float d[4] = {};
                                       if (thread_id() == 7)
                                         mma_bf16(d, {0, 0, 0, 0}, 0, 0);
                                       else
                                         mma_fp16(d, {0, 0, 0, 0}, 0, 0);
                                     })},
    {"group_of_half_warps", on(kBlock, [] { group_sync(thread_id() / 16 % 2, 32); })},
    {"group_of_two_sizes", on(kWide, [] { group_sync(0, thread_id() < 64 ? 128 : 96); })},
    {"group_short_of_a_warp", on(kWide,
                                 [] {
                                   if (thread_id() < 96) group_sync(thread_id() / 64, 64);
                                 })},
    {"group_16", on(kBlock, [] { group_sync(15, 64); })},
    {"exchange", on(kClusters, [] { exchange({}); })},
    {"exchange_of_unordered_init", on(kClusters, [] { exchange({.init_ordered = false}); })},
    {"exchange_read_after_send", on(kClusters, [] { exchange({.reads_late = true}); })},
    {"exchange_without_wait", on(kClusters, [] { exchange({.waits = false}); })},
    {"exchange_without_last_wait", on(kClusters, [] { exchange({.waits_last = false}); })},
    {"exchange_in_one_half", on(kClusters, [] { exchange({.two_halves = false}); })},
    {"exchange_of_wrong_parity", on(kClusters, [] { exchange({.parity = 1}); })},
    {"exchange_expecting_more", on(kClusters, [] { exchange({.bytes = 65 * 16}); })},
    {"exchange_expecting_less", on(kClusters, [] { exchange({.bytes = 63 * 16}); })},
    {"exchange_left_at_once", on(kClusters, [] { exchange({.stays = false}); })},
    {"exchange_cooperative", on({4, 64, 4096, 2, true}, [] { exchange({}); })},
    {"cluster_missing_a_block", on(kClusters,
                                   [] {
                                     if (block_id() % 2) cluster_sync();
                                   })},
    {"wait_for_the_second_phase", on(kBlock, wait_for_the_second_phase)},
    {"send_to_ended_block", on({2, 32, 1024, 2}, leave_before_it_comes)},
    {"send_out_of_cluster", on({2, 32, 1024, 2}, [] { send(SharedAllocator().take<uint4>(32), 0, {}, {0, 1}, 0, 2); })},
    {"mbarrier_armed_twice", on(kWarp, arm_twice)},
    {"mbarrier_uninitialised", on(kWarp, uninitialised_mbarrier)},
    {"words", on(kTogether, [] { pass_on(3 - block_id(), -1, 7); })},
    {"words_never_posted", on(kTogether, [] { pass_on(3 - block_id(), -1, 8); })},
    {"words_to_a_later_block", on({4, 64, 1024}, [] { pass_on(block_id(), 1, 7); })},
    {"words_to_an_earlier_block", on({4, 64, 1024}, [] { pass_on(3 - block_id(), -1, 7); })},
    {"words_and_barrier", on(kBlock, [] { words_order_nothing(true); })},
    {"words_as_barrier", on(kBlock, [] { words_order_nothing(false); })},
    {"read_then_written", on(kBlock, [] { read_then_written(true); })},
    {"read_then_written_without_barrier", on(kBlock, [] { read_then_written(false); })},
    {"many_words", on(kWide, many_words)},
    {"ping_pong",
     [] {
       const int patience = std::exchange(simt::world.patience, 1 << 10);
       on(kBlock, ping_pong)();
       simt::world.patience = patience;
     }},
    {"raise", on(kWarp, raise_flag)},
    {"mma_bf16",
     on(kWarp, [] { product_of_halves(to_bf16, [](auto& d, auto& a, auto... b) { mma_bf16(d, a, b...); }); })},
    {"mma_fp16",
     on(kWarp, [] { product_of_halves(to_fp16, [](auto& d, auto& a, auto... b) { mma_fp16(d, a, b...); }); })},
    {"mma_tf32", on(kWarp, product_of_tf32)},
    {"load_matrices", on({1, 32, 2048}, matrix_map)},
    {"schedules", schedules},
    {"after_a_stuck_launch", after_a_stuck_launch},
    {"rounding_bf16", [] { rounding(from_bf16, to_bf16, 0x7F80); }},
    {"rounding_fp16", [] { rounding(from_fp16, to_fp16, 0x7C00); }},
    {"special_functions", special_functions},
    {"stream", [] { run_on_stream({.blocks = 3, .threads = 64}, 192); }},
    {"stream_beyond_the_end", [] { run_on_stream({.blocks = 3, .threads = 64}, 64); }},
    {"stream_too_many_threads", [] { run_on_stream({.blocks = 1, .threads = 1056}, 2048); }},
    {"stream_part_of_a_warp", [] { run_on_stream({.blocks = 1, .threads = 48}, 64); }},
    {"stream_too_much_shared", [] { run_on_stream({.blocks = 1, .threads = 64, .shared = 65540}, 64); }},
    {"stream_part_of_a_cluster", [] { run_on_stream({.blocks = 3, .threads = 64, .cluster = 2}, 192); }},
    {"stream_too_wide_a_cluster", [] { run_on_stream({.blocks = 8, .threads = 64, .cluster = 8}, 512); }},
    {"stream_too_many_at_once", [] { run_on_stream({.blocks = 5, .threads = 64, .cooperative = true}, 320); }},
    {"multiply", multiply},
    {"multiply_types", multiply_types},
    {"fence", beyond_the_fence},
};

}  // namespace
}  // namespace sf::cuda

int main(int argc, char** argv) {
  using sf::cuda::kCases;
  if (argc != 2 || !kCases.count(argv[1])) {
    for (const auto& [name, run] : kCases) puts(name.c_str());
    return 2;
  }
  try {
    for (int i = 0; i < sf::cuda::kSchedules; ++i) kCases.at(argv[1])();
    puts("clean");
  } catch (const std::exception& error) {
    puts(error.what());
  }
}

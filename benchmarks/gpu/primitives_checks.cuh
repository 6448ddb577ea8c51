// Each function of csrc/cuda/kernels/device.cuh but those of clusters against the CPU's answer. The answers are exact
// but for the approximations of the special function unit, whose largest error is told.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <map>
#include <random>

#include "primitives_host.cuh"

namespace {

// -- conversions and approximations -----------------------------------------------------------------------------------

uint32_t bits(float f) {
  uint32_t u;
  memcpy(&u, &f, 4);
  return u;
}
float number_of(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}

// Float numbers of every exponent, both signs, zeros, infinities, NaN and the ties of all the roundings.
std::vector<float> floats() {
  std::mt19937 random(1);
  std::vector<float> found{0.0f, -0.0f, INFINITY, -INFINITY, NAN, 65504.0f, 65519.9f, 65520.0f, 3.3895314e38f};
  for (uint32_t exponent = 0; exponent < 255; ++exponent)
    for (int i = 0; i < 64; ++i) {
      uint32_t bits = exponent << 23 | (random() & 0x7FFFFF) | (random() & 1) << 31;
      if (i % 4 == 0) bits = (bits & 0xFFFF0000) | 0x8000;  // a tie of bfloat16
      if (i % 4 == 1) bits = (bits & 0xFFFFE000) | 0x1000;  // a tie of float16 and of TF32
      float f;
      memcpy(&f, &bits, 4);
      found.push_back(f);
    }
  return found;
}

struct Converted {
  uint32_t bf16, fp16, bf16_pair, fp16_pair, tf32, same;
  float exp2, reciprocal;
};

__global__ void convert(const float* in, Converted* out, int count) {
  for (int i = block_id() * block_threads() + thread_id(); i < count; i += grid_blocks() * block_threads()) {
    const float f = in[i], g = in[(i + 1) % count];
    out[i] = {to_bf16(f),
              to_fp16(f),
              pack_bf16(f, g),
              pack_fp16(f, g),
              bits_of(round_tf32(f)),
              bits_of(float_of(bits_of(f))),
              exp2_approx(f),
              reciprocal_approx(f)};
  }
}
__global__ void widen(float* bf16, float* fp16) {
  const int i = block_id() * block_threads() + thread_id();
  bf16[i] = from_bf16(static_cast<uint16_t>(i));
  fp16[i] = from_fp16(static_cast<uint16_t>(i));
}

uint16_t bf16_of(float f) { return __bfloat16_as_ushort(__float2bfloat16_rn(f)); }
uint16_t fp16_of(float f) { return __half_as_ushort(__float2half_rn(f)); }
bool nan16(uint16_t v, uint16_t infinity) { return (v & 0x7FFF) > infinity; }
bool same16(uint32_t found, uint16_t wanted, uint16_t infinity) {
  const auto v = static_cast<uint16_t>(found);
  return v == wanted || (nan16(v, infinity) && nan16(wanted, infinity));
}

Found conversions() {
  const std::vector<float> in = floats();
  const int count = static_cast<int>(in.size());
  const Buffer<float> numbers(in);
  const Buffer<Converted> buffer(in.size());
  launch(convert, 8, 256, 0, 1, static_cast<const float*>(numbers.data), buffer.data, count);
  Found found;
  std::map<std::string, int> wrong;
  const std::vector<Converted> out = buffer.values();
  for (int i = 0; i < count; ++i) {
    const float f = in[i], g = in[(i + 1) % count];
    const Converted& c = out[i];
    wrong["to_bf16"] += !same16(c.bf16, bf16_of(f), 0x7F80);
    wrong["to_fp16"] += !same16(c.fp16, fp16_of(f), 0x7C00);
    wrong["pack_bf16"] += !same16(c.bf16_pair, bf16_of(f), 0x7F80) || !same16(c.bf16_pair >> 16, bf16_of(g), 0x7F80);
    wrong["pack_fp16"] += !same16(c.fp16_pair, fp16_of(f), 0x7C00) || !same16(c.fp16_pair >> 16, fp16_of(g), 0x7C00);
    wrong["bits_of"] += c.same != bits(f);
    // to the nearest with 10 bits of fraction, ties away from zero; the low 13 bits may be anything for a NaN
    const uint32_t rounded = std::isfinite(f) ? (bits(f) + 0x1000) & 0xFFFFE000 : bits(f);
    wrong["round_tf32"] += std::isnan(f) ? !std::isnan(number_of(c.tf32)) : c.tf32 != rounded;
  }
  const Buffer<float> bf16(65536), fp16(65536);
  launch(widen, 256, 256, 0, 1, bf16.data, fp16.data);
  const std::vector<float> wide_bf16 = bf16.values(), wide_fp16 = fp16.values();
  for (int i = 0; i < 65536; ++i) {
    const auto v = static_cast<uint16_t>(i);
    const float b = __bfloat162float(__ushort_as_bfloat16(v)), h = __half2float(__ushort_as_half(v));
    wrong["from_bf16"] += !(bits(wide_bf16[i]) == bits(b) || (std::isnan(b) && std::isnan(wide_bf16[i])));
    wrong["from_fp16"] += !(bits(wide_fp16[i]) == bits(h) || (std::isnan(h) && std::isnan(wide_fp16[i])));
  }
  for (const auto& [name, times] : wrong) {
    found.add(name + " wrong", times);
    found.expect(times == 0, name + " differs from the CPU for " + std::to_string(times) + " numbers");
  }
  return found;
}

Found approximations() {
  const std::vector<float> in = floats();
  const Buffer<float> numbers(in);
  const Buffer<Converted> buffer(in.size());
  launch(convert, 8, 256, 0, 1, static_cast<const float*>(numbers.data), buffer.data, static_cast<int>(in.size()));
  const std::vector<Converted> out = buffer.values();
  // The relative error of an answer that is a normal number. Others are flushed to zero, and those beyond are infinite.
  const auto error = [](float got, double exact) {
    if (std::isnan(exact)) return std::isnan(got) ? 0.0 : INFINITY;
    if (std::fabs(exact) < 1.17549435e-38) return got == 0.0f || std::fabs(got) <= 1.1754945e-38f ? 0.0 : INFINITY;
    if (std::fabs(exact) > 3.4028234e38) return std::isinf(got) || std::fabs(got) > 3.4e38f ? 0.0 : INFINITY;
    return std::fabs(got - exact) / std::fabs(exact);
  };
  double exp2 = 0, reciprocal = 0;
  for (size_t i = 0; i < in.size(); ++i) {
    const double x = std::fabs(in[i]) < 1.17549435e-38f ? std::copysign(0.0, in[i]) : in[i];
    exp2 = std::fmax(exp2, error(out[i].exp2, std::exp2(x)));
    reciprocal = std::fmax(reciprocal, error(out[i].reciprocal, 1 / x));
  }
  Found found;
  found.add("exp2_approx error", exp2);
  found.add("reciprocal_approx error", reciprocal);
  found.expect(exp2 < 1e-6, "exp2_approx is off by " + number(exp2));
  found.expect(reciprocal < 2e-7, "reciprocal_approx is off by " + number(reciprocal));
  return found;
}

// -- threads, shared memory, words ------------------------------------------------------------------------------------

// Each thread stores its number and reads that of another after each kind of barrier. 16 warps; groups of two.
__global__ void meet(int* out) {
  SharedAllocator allocator;
  const Shared<uint16_t> odd = allocator.take<uint16_t>(3);  // 6 bytes, so that the next region begins at 16
  const Shared<int> numbers = allocator.take<int>(512);
  const int me = thread_id(), warp = me / 32;
  int* const mine = out + (block_id() * block_threads() + me) * 5;
  numbers.store(me, me + 1000 * block_id());
  warp_sync();
  mine[0] = numbers.load(me ^ 31);
  group_sync(7 + warp / 2, 64);
  mine[1] = numbers.load(me ^ 32);
  cta_sync();
  mine[2] = numbers.load(511 - me);
  mine[3] = static_cast<int>(numbers.address(0) - odd.address(0)) + 1000 * grid_blocks();
  cta_sync();
  if (me < 128) numbers.store_as(4 * me, make_int4(me, -me, 2 * me, 7));
  cta_sync();
  mine[4] = numbers.load_as<int2>(4 * (me / 4) + 2).x - numbers.load(4 * (me / 4) + 1);
}

Found threads() {
  const Buffer<int> buffer(size_t{2} * 512 * 5);
  launch(meet, 2, 512, 4096, 1, buffer.data);
  const std::vector<int> out = buffer.values();
  Found found;
  int wrong[5] = {};
  for (int block = 0; block < 2; ++block)
    for (int me = 0; me < 512; ++me) {
      const int base = 1000 * block;
      const int wanted[5] = {(me ^ 31) + base, (me ^ 32) + base, 511 - me + base, 16 + 2000, 3 * (me / 4)};
      for (int i = 0; i < 5; ++i) wrong[i] += out[(block * 512 + me) * 5 + i] != wanted[i];
    }
  const char* const names[5] = {"warp_sync", "group_sync", "cta_sync", "Shared::address", "Shared::load_as"};
  for (int i = 0; i < 5; ++i) {
    found.add(std::string(names[i]) + " wrong", wrong[i]);
    found.expect(wrong[i] == 0,
                 std::string(names[i]) + ": " + std::to_string(wrong[i]) + " threads read another value");
  }
  return found;
}

__global__ void words(uint64_t* word, uint32_t* flag, uint64_t* seen) {
  post(word, 0x89ABCDEFu, 0x80000001u);
  *seen = poll(word);
  raise(flag, kNoSuchId);
  raise(flag, kWaitRanOut);
  raise(flag, kNoSuchId);
}

Found tagged_words() {
  const Buffer<uint64_t> word(size_t{2});
  const Buffer<uint32_t> flag(size_t{1});
  launch(words, 1, 1, 0, 1, word.data, flag.data, word.data + 1);
  Found found;
  for (const uint64_t value : word.values())
    found.expect(value == 0x8000000189ABCDEFull, "post and poll: expected the data below the tag");
  found.expect(flag.values()[0] == kWaitRanOut, "raise: expected the most serious code to stay");
  return found;
}

// -- tensor cores -----------------------------------------------------------------------------------------------------

// a: 16 rows of 32 bytes, b: 8 columns of 32 bytes, d: (16, 8), added to.
template <Kind kKind>
__global__ void one_tile(const uint32_t* a, const uint32_t* b, float* d) {
  const int g = thread_id() >> 2, q = thread_id() & 3;
  uint32_t fragment[4];
  for (int i = 0; i < 4; ++i) fragment[i] = a[(g + 8 * (i & 1)) * 8 + q + 4 * (i >> 1)];
  float sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = d[(g + 8 * (i >> 1)) * 8 + 2 * q + (i & 1)];
  multiply<kKind>(sums, fragment, b[g * 8 + q], b[g * 8 + q + 4]);
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i >> 1)) * 8 + 2 * q + (i & 1)] = sums[i];
}

// Small whole numbers, whose products and sums are exact in every type.
template <Kind kKind>
Found tile() {
  constexpr int kDepth = kKind == kTf32 ? 8 : 16;
  std::mt19937 random(2);
  const auto draw = [&] { return static_cast<float>(static_cast<int>(random() % 17) - 8); };
  const auto matrix = [&](int rows, std::vector<uint32_t>& packed) {
    std::vector<float> values(static_cast<size_t>(rows * kDepth));
    for (int i = 0; i < rows * kDepth; ++i) {
      values[i] = draw();
      const uint32_t stored = kKind == kTf32   ? bits(values[i])
                              : kKind == kBf16 ? bf16_of(values[i])
                                               : fp16_of(values[i]);
      if (kKind == kTf32)
        packed[i] = stored;
      else
        packed[i / 2] |= stored << (i % 2 * 16);
    }
    return values;
  };
  std::vector<uint32_t> packed_a(128), packed_b(64);
  const std::vector<float> a = matrix(16, packed_a), b = matrix(8, packed_b);
  std::vector<float> wanted(128), before(128);
  for (int i = 0; i < 128; ++i) {
    wanted[i] = before[i] = draw();
    for (int k = 0; k < kDepth; ++k) wanted[i] += a[i / 8 * kDepth + k] * b[i % 8 * kDepth + k];
  }
  const Buffer<uint32_t> on_device_a(packed_a), on_device_b(packed_b);
  const Buffer<float> d(before);
  launch(one_tile<kKind>, 1, 32, 0, 1, static_cast<const uint32_t*>(on_device_a.data),
         static_cast<const uint32_t*>(on_device_b.data), d.data);
  Found found;
  int wrong = 0;
  const std::vector<float> out = d.values();
  for (int i = 0; i < 128; ++i) wrong += out[i] != wanted[i];
  found.add("wrong", wrong);
  found.expect(wrong == 0, std::to_string(wrong) + " of 128 sums differ from the CPU's");
  return found;
}

// Rows of 16 bytes that lie 48 bytes apart, as padded rows do.
__global__ void matrices(uint32_t* out) {
  SharedAllocator allocator;
  const Shared<uint16_t> region = allocator.take<uint16_t>(32 * 24);
  for (int i = thread_id(); i < 32 * 24; i += 32) region.store(i, static_cast<uint16_t>(i));
  warp_sync();
  const uint4 v = load_matrices(region, thread_id() * 24);
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
  for (int m = 0; m < 4; ++m) out[thread_id() * 4 + m] = words[m];
}

Found loaded_matrices() {
  const Buffer<uint32_t> buffer(size_t{128});
  launch(matrices, 1, 32, 2048, 1, buffer.data);
  const std::vector<uint32_t> out = buffer.values();
  Found found;
  int wrong = 0;
  for (int lane = 0; lane < 32; ++lane)
    for (int m = 0; m < 4; ++m) {
      const auto first = static_cast<uint32_t>((8 * m + lane / 4) * 24 + 2 * (lane % 4));
      wrong += out[lane * 4 + m] != (first | (first + 1) << 16);
    }
  found.add("wrong", wrong);
  found.expect(wrong == 0, std::to_string(wrong) + " of 128 words differ from the CPU's");
  return found;
}

}  // namespace

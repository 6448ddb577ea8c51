// The instructions of AMX that csrc/cpu/kernels/amx.h uses, in plain C++, as functions of the same names as the
// compiler's. Results have the bits of the instructions as Intel's manual defines them: products of even and of odd k
// have sums of their own, each product is added by a fused multiply-add that rounds to nearest even, and denormal
// numbers are zeros, in operands and results alike. What a CPU answers with an invalid-opcode fault ends the program.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>

#undef _tile_loadconfig  // those of immintrin.h, where it was included
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps

namespace emulated_tiles {

struct Tile {
  int rows, row_bytes;
  unsigned char data[16][64];
};
struct State {
  bool configured;
  Tile tiles[8];
};
inline thread_local State state;  // of one CPU, of which every thread has its own
inline std::atomic<int64_t> products{0};

[[noreturn]] inline void fault(const char* what) {
  fprintf(stderr, "emulated AMX: %s\n", what);
  abort();
}

inline Tile& tile(int number) {
  if (!state.configured) fault("a tile is used without a configuration");
  if (number < 0 || number > 7 || state.tiles[number].rows == 0) fault("a tile is used that is not configured");
  return state.tiles[number];
}

// Sets what is not there to zero, as every instruction that writes a tile does.
inline void clear(Tile& t, int from_row) {
  for (int row = 0; row < 16; ++row) {
    const int kept = row < from_row ? t.row_bytes : 0;
    memset(t.data[row] + kept, 0, static_cast<size_t>(64 - kept));
  }
}

inline float flushed(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if ((bits & 0x7f800000) == 0) bits &= 0x80000000;
  memcpy(&value, &bits, 4);
  return value;
}
inline float of_bfloat16(const unsigned char* p) {
  uint16_t half;
  memcpy(&half, p, 2);
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float value;
  memcpy(&value, &bits, 4);
  return flushed(value);
}

// sum + a * b with one rounding. The product of two bfloat16 has 16 digits, so that a float holds it unless it is tiny
// or huge, and a product and an addition then give what a fused multiply-add gives, which may be a function of C.
inline float fused(float a, float b, float sum) {
  const float product = a * b, size = __builtin_fabsf(product);
  const bool exact = (size >= 0x1p-126f && size <= 0x1.fffffep127f) || a == 0 || b == 0;
  return flushed(exact ? product + sum : __builtin_fmaf(a, b, sum));
}

}  // namespace emulated_tiles

inline void _tile_loadconfig(const void* config) {
  using namespace emulated_tiles;
  const auto* bytes = static_cast<const unsigned char*>(config);
  if (bytes[0] != 1) fault("the palette is not 1");
  if (bytes[1] != 0) fault("the first row is not 0");
  for (int i = 2; i < 16; ++i)
    if (bytes[i]) fault("a reserved byte of the configuration is not 0");
  for (int i = 0; i < 16; ++i) {
    uint16_t row_bytes;
    memcpy(&row_bytes, bytes + 16 + 2 * i, 2);
    const int rows = bytes[48 + i];
    if (i >= 8 && (row_bytes || rows)) fault("a tile beyond the eight is configured");
    if (row_bytes > 64 || rows > 16 || (row_bytes == 0) != (rows == 0)) fault("a tile has an impossible size");
    if (i < 8) state.tiles[i] = {rows, row_bytes, {}};
  }
  state.configured = true;
}

inline void _tile_release() { emulated_tiles::state = {}; }

inline void _tile_zero(int number) {
  using namespace emulated_tiles;
  clear(tile(number), 0);
}

inline void _tile_loadd(int number, const void* base, int64_t stride) {
  using namespace emulated_tiles;
  Tile& t = tile(number);
  for (int row = 0; row < t.rows; ++row)
    memcpy(t.data[row], static_cast<const unsigned char*>(base) + row * stride, static_cast<size_t>(t.row_bytes));
  clear(t, t.rows);
}

inline void _tile_stored(int number, void* base, int64_t stride) {
  using namespace emulated_tiles;
  const Tile& t = tile(number);
  for (int row = 0; row < t.rows; ++row)
    memcpy(static_cast<unsigned char*>(base) + row * stride, t.data[row], static_cast<size_t>(t.row_bytes));
}

inline void _tile_dpbf16ps(int to, int left, int right) {
  using namespace emulated_tiles;
  Tile& c = tile(to);
  const Tile &a = tile(left), &b = tile(right);
  if (to == left || to == right || left == right) fault("two operands of a product are the same tile");
  if (c.rows != a.rows || c.row_bytes != b.row_bytes || a.row_bytes != 4 * b.rows || c.row_bytes % 4 || a.row_bytes % 4)
    fault("the sizes of a product's tiles do not fit each other");
  for (int m = 0; m < c.rows; ++m) {
    for (int n = 0; n < c.row_bytes / 4; ++n) {
      float even = 0, odd = 0, sum;
      for (int k = 0; k < b.rows; ++k) {
        even = fused(of_bfloat16(a.data[m] + 4 * k), of_bfloat16(b.data[k] + 4 * n), even);
        odd = fused(of_bfloat16(a.data[m] + 4 * k + 2), of_bfloat16(b.data[k] + 4 * n + 2), odd);
      }
      memcpy(&sum, c.data[m] + 4 * n, 4);
      sum = flushed(flushed(sum) + flushed(even + odd));
      memcpy(c.data[m] + 4 * n, &sum, 4);
    }
  }
  clear(c, c.rows);
  products.fetch_add(1, std::memory_order_relaxed);
}

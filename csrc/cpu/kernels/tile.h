// The inner loop of every product but that of weight gradients: acc[row][vector] += a[row][k] * w[k][vector], for
// ascending k, with all sums in registers. A tile is some rows and blocks of columns whose sums are formed together; a
// block is one vector of columns. Each sum is formed in the same order in every tile, so its bits do not depend on the
// tile.
#pragma once

#include "convert.h"

namespace sf {
namespace {

// A format: the type of rows and packed weights (E), the type of sums (A), and add(), which adds the products of one k,
// or of kPack neighbouring k at once, to a sum. A panel has a multiple of kPanelLines lines. With
// kTiled the products are those of amx.h. A Scope lives while a task runs.
template <class T>
struct Plain {
  using A = T;
  using E = T;
  using V = typename VecOf<T>::Type;
  using Weight = V;
  static constexpr int kLanes = sizeof(V) / sizeof(T), kPack = 1, kPanelLines = 1;
  static constexpr bool kTiled = false;
  struct Scope {};
  static SF_FN Weight weight(const E* p) { return load(p); }
  static SF_FN V broadcast(const E* p) { return splat(*p); }
  static SF_FN V add(V acc, V a, Weight w) { return fma(a, w, acc); }
  static SF_FN A value(E e) { return e; }
  static SF_FN V read(const E* p, int n) { return n >= kLanes ? load(p) : load(p, n); }
  static SF_FN void write(E* p, V v, int n) { n >= kLanes ? store(p, v) : store(p, v, n); }
};

// Rows of bfloat16 with float sums.
struct Bfloat16Rows {
  using A = float;
  using E = Bits16;
  using V = FloatVec;
  static constexpr int kLanes = sizeof(V) / sizeof(A), kPack = 2;
  static SF_FN A value(E e) { return bfloat16_to_float(e); }
#if defined(__AVX512BF16__)
  static SF_FN V read(const E* p, int n) {
    const __mmask16 mask = n >= 16 ? 0xffff : (1u << n) - 1;
    return (FloatVec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p)), 16);
  }
  static SF_FN void write(E* p, V v, int n) {
    const __mmask16 mask = n >= 16 ? 0xffff : (1u << n) - 1;
    _mm256_mask_storeu_epi16(p, mask, (__m256i)_mm512_cvtneps_pbh(v));
  }
#else
  static SF_FN V read(const E* p, int n) {
    V v{};
    for (int i = 0; i < kLanes && i < n; ++i) v[i] = bfloat16_to_float(p[i]);
    return v;
  }
  static SF_FN void write(E* p, V v, int n) {
    for (int i = 0; i < kLanes && i < n; ++i) p[i] = float_to_bfloat16(v[i]);
  }
#endif
};

#if defined(SF_BFLOAT16_PAIRS)
// Two bfloat16 at neighbouring k, which one instruction multiplies and adds to a float sum.
struct Bfloat16Pairs : Bfloat16Rows {
  static constexpr int kPanelLines = 1;
  static constexpr bool kTiled = false;
  struct Scope {};
#if defined(SF_NEON)
  using Weight = bfloat16x8_t;
  static SF_FN Weight weight(const E* p) { return vreinterpretq_bf16_u16(vld1q_u16(p)); }
  static SF_FN Weight spread(uint32_t pair) { return vreinterpretq_bf16_u32(vdupq_n_u32(pair)); }
  static SF_FN V add(V acc, Weight a, Weight w) { return (V)vbfdotq_f32(neon(acc), a, w); }
#else
  using Weight = __m512bh;
  static SF_FN Weight weight(const E* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static SF_FN Weight spread(uint32_t pair) { return (__m512bh)_mm512_set1_epi32(static_cast<int>(pair)); }
  static SF_FN V add(V acc, Weight a, Weight w) { return _mm512_dpbf16_ps(acc, a, w); }
#endif
  static SF_FN Weight broadcast(const E* p) {
    uint32_t pair;
    __builtin_memcpy(&pair, p, 4);
    return spread(pair);
  }
  static SF_FN Weight broadcast_last(const E* p) { return spread(*p); }
};
#endif

// How many rows and blocks of units a tile has, so that its sums fill the registers and none is spilled to memory.
template <int kSlots, int kGates = kSlots>
struct TileShape {
  static constexpr bool kManyRegisters = SF_VECTOR_REGISTERS == 32;
  static constexpr int kBlocks = kSlots > 2 ? 1 : kManyRegisters ? 4 : 2;
  static constexpr int kRows = kSlots == 1 || kManyRegisters ? 6 : kGates == 3 ? 4 : 3;
  // With so many rows or fewer a tile has two blocks instead, so that more sums are formed at the same time.
  static constexpr int kFewRows = kSlots == 1 ? 0 : kManyRegisters ? 2 : 1;
};

// Starts to load the cache lines of n values at p, which will soon be read or written.
template <bool kWrite, class T>
SF_FN void prefetch(const T* p, int64_t n) {
  const char* line = reinterpret_cast<const char*>(p);
  for (const char* end = line + n * static_cast<int64_t>(sizeof(T)); line < end; line += 64) {
    __builtin_prefetch(line, kWrite, 2);
  }
}

template <int N>
struct Int {
  static constexpr int value = N;
};

template <int kMax, class Function>
SF_FN void with_constant(int64_t n, Function&& function) {
  if constexpr (kMax > 1) {
    if (n < kMax) return with_constant<kMax - 1>(n, function);
  }
  function(Int<kMax>{});
}

// Calls function(first, Int<rows>) for n rows in groups of at most kRows, as even as possible.
template <int kRows, class Function>
SF_FN void for_row_groups(int64_t n, Function&& function) {
  int64_t groups = (n + kRows - 1) / kRows;
  for (int64_t first = 0; groups > 0; --groups) {
    const int64_t rows = (n - first) / groups;
    with_constant<kRows>(rows, [&](auto count) { function(first, count); });
    first += rows;
  }
}

// Calls one(block, next) for the first block of each group of kBlocks blocks in [begin, end). `next` is the first block
// of the following group, or `block` itself in the last call. Odd time steps visit the groups in reverse, so that the
// weights read last are still in the cache.
template <int kBlocks, class Function>
SF_FN void for_blocks(int64_t begin, int64_t end, bool backwards, Function&& one) {
  const int64_t last = (end - begin) / kBlocks - 1;
  const auto block = [&](int64_t i) { return begin + (backwards ? last - i : i) * kBlocks; };
  for (int64_t i = 0; i <= last; ++i) one(block(i), block(i < last ? i + 1 : i));
}

struct SlotOfGate {
  static constexpr int slot(int gate) { return gate; }
};
template <class Cell>
struct HiddenSlotOfGate {
  static constexpr int slot(int gate) { return Cell::hidden_slot(gate); }
};

// Adds the products of one k, or of kPack neighbouring k, to all sums. The rows' values or the weights, whichever are
// fewer, are all held in registers; the others are loaded one at a time.
template <class F, class Slot, int kRows, int kBlocks, int kGates, int kSlots, class Broadcast>
SF_FN void add_k(typename F::V (&acc)[kRows][kBlocks * kSlots], const typename F::E* w, int64_t block_stride,
                 Broadcast broadcast) {
  constexpr int kVectors = kBlocks * kGates;
  const auto weight = [&](int v) {
    return F::weight(w + v / kGates * block_stride + v % kGates * F::kLanes * F::kPack);
  };
  const auto add = [&](int m, int v, decltype(broadcast(0)) a, typename F::Weight b) {
    auto& sum = acc[m][v / kGates * kSlots + Slot::slot(v % kGates)];
    sum = F::add(sum, a, b);
  };
  if constexpr (kRows < kVectors) {
    decltype(broadcast(0)) values[kRows];
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) values[m] = broadcast(m);
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) {
      const typename F::Weight b = weight(v);
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) add(m, v, values[m], b);
    }
  } else {
    typename F::Weight weights[kVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kVectors; ++v) weights[v] = weight(v);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const auto a = broadcast(m);
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) add(m, v, a, weights[v]);
    }
  }
}

template <class V, int kRows, int kColumns>
SF_FN void copy_sums(V (&to)[kRows][kColumns], const V (&from)[kRows][kColumns]) {
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
    for (int v = 0; v < kColumns; ++v) to[m][v] = from[m][v];
  }
}

// Memory to prefetch while sums are formed. Each tile prefetches its share of the `bytes`: the tile of the rows
// [begin, end) takes the fraction (end - begin) / rows.
struct Ahead {
  const void* from = nullptr;
  int64_t bytes = 0, begin = 0, end = 0, rows = 1;

  const char* first() const { return static_cast<const char*>(from) + bytes * begin / rows; }
  int64_t size() const { return bytes * (end - begin) / rows; }
};

// The distance between the lines of a panel, those of neighbouring k.
template <class F, int kGates>
constexpr int64_t kLine = kGates * F::kLanes * F::kPack;

// Adds rows[m][begin..end) times the panels w, w + block_stride, ... to acc; w points to its line `begin`.
// With kFetch, each k also prefetches the two cache lines at `next`, and then moves `next` by `step` bytes.
template <class F, class Slot, int kRows, int kBlocks, int kGates, int kSlots, bool kFetch = false>
SF_FN void accumulate_chain(typename F::V (&acc)[kRows][kBlocks * kSlots], const typename F::E* const* rows,
                            int64_t begin, int64_t end, const typename F::E* w, int64_t block_stride, int64_t line,
                            const char* next = nullptr, int64_t step = 0) {
  const typename F::E* row[kRows];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) row[m] = rows[m];
  int64_t k = begin;
  for (; k + F::kPack <= end; k += F::kPack, w += line) {
    add_k<F, Slot, kRows, kBlocks, kGates, kSlots>(acc, w, block_stride,
                                                   [&](int m) { return F::broadcast(row[m] + k); });
    if constexpr (kFetch) {
      __builtin_prefetch(next, 0, 2);
      __builtin_prefetch(next + 64, 0, 2);
      next += step;
    }
  }
  if constexpr (F::kPack > 1) {
    if (k < end) {
      add_k<F, Slot, kRows, kBlocks, kGates, kSlots>(acc, w, block_stride,
                                                     [&](int m) { return F::broadcast_last(row[m] + k); });
    }
  }
}

// The most k that are added to a sum one after another. A longer chain of additions would lose digits that torch keeps,
// since its products are summed in blocks.
constexpr int64_t kChain = 256;

// The product for K > kChain, as several chains. The first chain starts from the given sums. Every other chain starts
// from zero and is added to the sums at its end. The function is not inlined, so that the more common case of one chain
// keeps all registers. Panels this large do not fit the L1 cache, and a tile of few rows would wait for them, so each
// tile prefetches a share of the next panels.
template <class F, class Slot, int kRows, int kBlocks, int kGates, int kSlots>
__attribute__((noinline)) void add_chains(typename F::V (&sums)[kRows][kBlocks * kSlots],
                                          const typename F::E* const* rows, int64_t K, const typename F::E* w,
                                          int64_t block_stride, int64_t line, const Ahead& ahead) {
  constexpr int64_t kWorthwhile = 56;                   // bytes
  const int64_t fetched = ahead.size() / K * F::kPack;  // bytes per k
  for (int64_t k = 0; k < K; k += kChain) {
    typename F::V acc[kRows][kBlocks * kSlots] = {};
    if (k == 0) copy_sums(acc, sums);
    const int64_t end = k + kChain < K ? k + kChain : K;
    const typename F::E* from = w + k / F::kPack * line;
    if (fetched >= kWorthwhile) {
      accumulate_chain<F, Slot, kRows, kBlocks, kGates, kSlots, true>(acc, rows, k, end, from, block_stride, line,
                                                                      ahead.first() + k / F::kPack * fetched, fetched);
    } else {
      accumulate_chain<F, Slot, kRows, kBlocks, kGates, kSlots>(acc, rows, k, end, from, block_stride, line);
    }
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
      for (int v = 0; v < kBlocks * kSlots; ++v) sums[m][v] = k ? sums[m][v] + acc[m][v] : acc[m][v];
    }
  }
}

// Adds rows[m][0..K) times the panels w, w + block_stride, ... to acc. Each panel is
// [ceil(K / kPack)][kGates][kLanes * kPack]; its lines may be further apart than that.
template <class F, class Slot, int kRows, int kBlocks, int kGates, int kSlots>
SF_FN void accumulate(typename F::V (&acc)[kRows][kBlocks * kSlots], const typename F::E* const* rows, int64_t K,
                      const typename F::E* w, int64_t block_stride, const Ahead& ahead = {},
                      int64_t line = kLine<F, kGates>) {
  if (K <= kChain) {
    accumulate_chain<F, Slot, kRows, kBlocks, kGates, kSlots>(acc, rows, 0, K, w, block_stride, line);
  } else {
    typename F::V sums[kRows][kBlocks * kSlots];
    copy_sums(sums, acc);
    add_chains<F, Slot, kRows, kBlocks, kGates, kSlots>(sums, rows, K, w, block_stride, line, ahead);
    copy_sums(acc, sums);
  }
}

// A product that no cell follows, for kRows rows and kBlocks blocks: out[row][column..] = in[row][0..K) times the
// panels,
// + start. The sum of the products comes first and `start` after it, as in forward_tile(). The results of a block are
// out_stride apart, and the lines of a panel `line`: a part of the groups of a panel is a product too.
struct PanelStrides {
  int64_t panel, line, out;
};
template <class F, int kGroups, int kSlots, int kRows, int kBlocks = 1>
__attribute__((noinline)) void product_tile(const typename F::E* const* in, int64_t K, const typename F::E* panel,
                                            const typename F::A* start, typename F::A* const* out, int64_t column,
                                            const PanelStrides& strides = {0, kLine<F, kGroups>, kSlots * F::kLanes}) {
  typename F::V acc[kRows][kBlocks * kSlots] = {};
  const typename F::E* rows[kRows];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) rows[m] = in[m];
  accumulate<F, SlotOfGate, kRows, kBlocks, kGroups, kSlots>(acc, rows, K, panel, strides.panel, {}, strides.line);
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
    for (int v = 0; v < kBlocks * kSlots; ++v) {
      const int64_t at = v / kSlots * strides.out + v % kSlots * F::kLanes;
      const typename F::V sum = start ? acc[m][v] + load(start + at) : acc[m][v];
      store(out[m] + column + at, sum);
    }
  }
}

// Products of `count` rows with a whole matrix, packed in `blocks` panels of panel_size elements:
// out[row][0..) = in[row][0..K) * matrix + start. A row of `out` has room for whole vectors; `start` may be null.
template <class F>
void product(const typename F::E* const* in, int64_t count, int64_t K, const typename F::E* panels, int64_t panel_size,
             int64_t blocks, const typename F::A* start, typename F::A* const* out) {
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t column = block * F::kLanes;
    for_row_groups<6>(count, [&](int64_t first, auto m) {
      product_tile<F, 1, 1, decltype(m)::value>(in + first, K, panels + block * panel_size,
                                                start ? start + column : nullptr, out + first, column);
    });
  }
}

}  // namespace
}  // namespace sf

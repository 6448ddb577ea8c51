// The small kernels around the recurrence: weights as fragments, biases as slots, rows by length, rows brought into an
// order that a product can read, and sums over rows in a fixed order.
#pragma once

#include "precision.cuh"
#include "sweep.h"

namespace sf::cuda {

constexpr int kBlockThreads = 256;

SF_DEVICE int64_t global_thread() { return static_cast<int64_t>(block_id()) * block_threads() + thread_id(); }
SF_DEVICE int64_t all_threads() { return static_cast<int64_t>(grid_blocks()) * block_threads(); }

// -- R or R^T in the order that Weights loads it: (directions, blocks, warps, m-tiles, k-tiles, planes, 32 lanes).
struct PackWeights {
  Matrix w_hh[kMaxDirections];
  uint4* to;
  int directions, gates, warps, blocks, splits, hidden_tiles;
  Pass pass;
  int64_t H;
};

template <class Math>
SF_KERNEL(kBlockThreads)
pack_weights(SF_PARAMETER PackWeights a) {
  using Element = typename Math::Element;
  constexpr int kPlanes = planes(Math::kPrecision), kTileUnits = k_tile_units(Math::kPrecision);
  constexpr int kPerRegister = 4 / sizeof(Element);
  const int k_tiles = a.hidden_tiles * operands(a.pass, a.gates), tiles = m_tiles(a.pass, a.gates);
  const int64_t count = static_cast<int64_t>(a.directions) * a.blocks * a.warps * tiles * k_tiles * 32;
  for (int64_t i = global_thread(); i < count; i += all_threads()) {
    const int lane = static_cast<int>(i % 32), k_tile = static_cast<int>(i / 32 % k_tiles);
    const int m_tile = static_cast<int>(i / 32 / k_tiles % tiles);
    const int64_t warp = i / 32 / k_tiles / tiles;
    const int split = static_cast<int>(warp % a.warps % a.splits);
    const int group = static_cast<int>(warp / a.warps % a.blocks * (a.warps / a.splits) + warp % a.warps / a.splits);
    const Matrix& w = a.w_hh[warp / a.warps / a.blocks];
    uint32_t words[kPlanes][4];
    for (int reg = 0; reg < 4; ++reg) {
      Element parts[kPlanes][kPerRegister];
      for (int e = 0; e < kPerRegister; ++e) {
        const int64_t unit = group * kGroupUnits + lane / 4 + 8 * (reg & 1);
        const int in_k = (split * k_tiles + k_tile) * kTileUnits + (lane % 4 + 4 * (reg >> 1)) * kPerRegister + e;
        const bool forward = a.pass == Pass::kForward;
        const int values = operands(a.pass, a.gates);
        const int64_t other = in_k / values;  // the unit whose value or gradient is multiplied
        const int64_t gate = forward ? m_tile : in_k % values;
        const int64_t row = gate * a.H + (forward ? unit : other), column = forward ? other : unit;
        float value = 0;
        if (unit < a.H && other < a.H) {
          const auto* data = reinterpret_cast<const typename Math::Storage*>(w.data);
          value = Math::widen(data[row * w.row_stride + column * w.column_stride]);
        }
        Element split_value[kPlanes];
        Math::split(value, split_value);
        for (int plane = 0; plane < kPlanes; ++plane) parts[plane][e] = split_value[plane];
      }
      for (int plane = 0; plane < kPlanes; ++plane) {
        uint32_t word = 0;
        for (int e = 0; e < kPerRegister; ++e) word |= element_bits(parts[plane][e]) << (16 * e);
        words[plane][reg] = word;
      }
    }
    for (int plane = 0; plane < kPlanes; ++plane) {
      const uint4 v{words[plane][0], words[plane][1], words[plane][2], words[plane][3]};
      a.to[(i / 32 * kPlanes + plane) * 32 + lane] = v;
    }
  }
}

// -- What both biases give to each slot: (directions, slots, H).
struct PackBias {
  Matrix b_ih[kMaxDirections], b_hh[kMaxDirections];  // absent: zeros
  void* to;
  int directions;
  int64_t H;
};

template <class Cell, class Math>
SF_KERNEL(kBlockThreads)
pack_bias(SF_PARAMETER PackBias a) {
  using Compute = typename Math::Compute;
  const int64_t count = a.directions * Cell::kSlots * a.H;
  for (int64_t i = global_thread(); i < count; i += all_threads()) {
    const int64_t unit = i % a.H, d = i / a.H / Cell::kSlots;
    const int slot = static_cast<int>(i / a.H % Cell::kSlots);
    Compute sum = 0;
    for (int gate = 0; gate < Cell::kGates; ++gate) {
      const Matrix &b_ih = a.b_ih[d], &b_hh = a.b_hh[d];
      const int64_t row = gate * a.H + unit;
      if (b_ih.data && gate == slot)
        sum += Math::widen(reinterpret_cast<const typename Math::Storage*>(b_ih.data)[row * b_ih.row_stride]);
      if (b_hh.data && Cell::hidden_slot(gate) == slot)
        sum += Math::widen(reinterpret_cast<const typename Math::Storage*>(b_hh.data)[row * b_hh.row_stride]);
    }
    static_cast<Compute*>(a.to)[i] = sum;
  }
}

// -- Lengths between 0 and T, and the batch rows by descending length, equal ones as they are.
struct OrderRows {
  const int64_t* given;
  int64_t *lengths, *order;
  int64_t B, T;
};

SF_KERNEL(kBlockThreads)
order_rows(SF_PARAMETER OrderRows a) {
  const auto clamped = [&](int64_t b) { return a.given[b] < 0 ? 0 : a.given[b] > a.T ? a.T : a.given[b]; };
  for (int64_t b = global_thread(); b < a.B; b += all_threads()) {
    const int64_t mine = clamped(b);
    int64_t rank = 0;
    for (int64_t other = 0; other < a.B; ++other) {
      const int64_t theirs = clamped(other);
      rank += theirs > mine || (theirs == mine && other < b);
    }
    a.lengths[b] = mine;
    a.order[rank] = b;
  }
}

// -- Rows side by side, by (sample, t, row of the sample), or packed. shift: of which step the row is; where that is
// outside the sequence it is `first`'s, zero where absent. Steps beyond a row's length are zero.
struct GatherRows {
  Rows from, first;
  void* to;
  const int64_t *lengths, *t_row;  // may be null
  int64_t T, B, samples, width, shift;
};

template <class Storage>
SF_KERNEL(kBlockThreads)
gather_rows(SF_PARAMETER GatherRows a) {
  const int64_t each = a.B / a.samples;
  for (int64_t i = global_thread(); i < a.T * a.B * a.width; i += all_threads()) {
    const int64_t column = i % a.width, b = i / a.width % a.B, t = i / a.width / a.B;
    const int64_t length = a.lengths ? a.lengths[b] : a.T, source = t + a.shift;
    const bool live = t < length;
    if (a.t_row && !live) continue;
    const int64_t row = a.t_row ? a.t_row[t] + b : ((b / each) * a.T + t) * each + b % each;
    Storage value{};
    if (live && source >= 0 && source < length)
      value = *element<const Storage>(a.from, source, b, column);
    else if (live && a.first.data)
      value = *element<const Storage>(a.first, 0, b, column);
    static_cast<Storage*>(a.to)[row * a.width + column] = value;
  }
}

// -- Sums over rows, in a fixed order: parts of the rows first, then the parts. (samples, rows, width) -> (samples,
// width)
struct SumRows {
  const void* from;
  void *partial, *to;  // (samples, parts, width) and (samples, width) in the compute type
  int64_t samples, rows, width, parts;
};

template <class Math>
SF_KERNEL(kBlockThreads)
sum_parts(SF_PARAMETER SumRows a) {
  using Compute = typename Math::Compute;
  const auto* from = static_cast<const typename Math::Storage*>(a.from);
  const int64_t each = (a.rows + a.parts - 1) / a.parts;
  for (int64_t i = global_thread(); i < a.samples * a.parts * a.width; i += all_threads()) {
    const int64_t column = i % a.width, part = i / a.width % a.parts, sample = i / a.width / a.parts;
    const int64_t end = (part + 1) * each < a.rows ? (part + 1) * each : a.rows;
    Compute sum = 0;
    for (int64_t row = part * each; row < end; ++row)
      sum += Math::widen(from[(sample * a.rows + row) * a.width + column]);
    static_cast<Compute*>(a.partial)[i] = sum;
  }
}

template <class Compute>
SF_KERNEL(kBlockThreads)
sum_of_parts(SF_PARAMETER SumRows a) {
  for (int64_t i = global_thread(); i < a.samples * a.width; i += all_threads()) {
    Compute sum = 0;
    for (int64_t part = 0; part < a.parts; ++part)
      sum += static_cast<const Compute*>(a.partial)[(i / a.width * a.parts + part) * a.width + i % a.width];
    static_cast<Compute*>(a.to)[i] = sum;
  }
}

// -- Bias gradients out of the sums of all slots: (samples, gates * H) each.
struct BiasGrad {
  const void* sums;  // (samples, width) compute type, slots first
  char *d_b_ih, *d_b_hh;
  int64_t samples, width, H;
};

template <class Cell, class Math>
SF_KERNEL(kBlockThreads)
bias_grad(SF_PARAMETER BiasGrad a) {
  using Storage = typename Math::Storage;
  const auto* sums = static_cast<const typename Math::Compute*>(a.sums);
  const int64_t each = Cell::kGates * a.H;
  for (int64_t i = global_thread(); i < a.samples * each; i += all_threads()) {
    const int64_t sample = i / each, unit = i % a.H;
    const int gate = static_cast<int>(i % each / a.H);
    const auto sum_of = [&](int slot) { return sums[sample * a.width + slot * a.H + unit]; };
    reinterpret_cast<Storage*>(a.d_b_ih)[i] = Math::narrow(sum_of(gate));
    reinterpret_cast<Storage*>(a.d_b_hh)[i] = Math::narrow(sum_of(Cell::hidden_slot(gate)));
  }
}

}  // namespace sf::cuda

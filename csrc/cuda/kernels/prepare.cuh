// The small kernels that run before and after the recurrence. They add up biases, order rows by length, copy rows into
// an order that a product can read, and sum over rows in a fixed order.
#pragma once

#include "masks.cuh"

namespace sf::cuda {

// The sum of both biases of each slot, (directions, slots, H).
struct PackBias {
  Matrix b_ih[kMaxDirections], b_hh[kMaxDirections];  // zeros where absent
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

// Clamps the lengths to 0 .. T and orders the batch rows by descending length. Rows of one length keep their order.
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
    a.lengths[b] = mine;
    if (!a.order) continue;
    int64_t rank = 0;
    for (int64_t other = 0; other < a.B; ++other) {
      const int64_t theirs = clamped(other);
      rank += theirs > mine || (theirs == mine && other < b);
    }
    a.order[rank] = b;
  }
}

// Copies rows so that they lie side by side, in the order (sample, t, row of the sample), or packed. Steps beyond a
// row's length are zero.
struct GatherRows {
  Rows from;
  void* to;
  const int64_t *lengths, *t_row;  // may be null
  int64_t T, B, samples, width, packed_rows;

  SF_DEVICE int64_t rows() const { return t_row ? packed_rows : T * B; }
  SF_DEVICE int64_t length(int64_t b) const { return lengths && lengths[b] < T ? lengths[b] : T; }
  // The number of the row to which the row of a place is copied.
  SF_DEVICE int64_t to_row(int64_t t, int64_t b) const {
    const int64_t each = B / samples;
    return t_row ? t_row[t] + b : ((b / each) * T + t) * each + b % each;
  }
};

// The step and batch row of row i, where rows are ordered by time, or packed.
struct Place {
  int64_t t, b;
};

// The step that row i of a packed sequence belongs to: the last one that starts at or before it.
SF_DEVICE int64_t step_of(const int64_t* t_row, int64_t T, int64_t i) {
  int64_t low = 0, high = T;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (t_row[middle] <= i)
      low = middle;
    else
      high = middle;
  }
  return low;
}

SF_DEVICE Place place_of(const int64_t* t_row, int64_t T, int64_t B, int64_t i) {
  if (!t_row) return {i / B, i % B};
  const int64_t t = step_of(t_row, T, i);
  return {t, i - t_row[t]};
}

template <class Storage>
SF_KERNEL(kBlockThreads)
gather_rows(SF_PARAMETER GatherRows a) {
  for (int64_t i = global_thread(); i < a.rows() * a.width; i += all_threads()) {
    const int64_t column = i % a.width;
    const auto [t, b] = place_of(a.t_row, a.T, a.B, i / a.width);
    const Storage value = t < a.length(b) ? *element<const Storage>(a.from, t, b, column) : Storage{};
    static_cast<Storage*>(a.to)[a.to_row(t, b) * a.width + column] = value;
  }
}

// The operands of all steps, in the same order: the h of the step before, or h0 at the first step of a row, or the
// reset state where a step starts anew; masked if the state is dropped.
struct GatherOperands {
  GatherRows rows;  // rows.from is the output
  Rows h0, resets, h_reset;
  Noise noise;
  int direction;
};

template <class Math>
SF_KERNEL(kBlockThreads)
gather_operands(SF_PARAMETER GatherOperands a) {
  using Storage = typename Math::Storage;
  const GatherRows& g = a.rows;
  for (int64_t i = global_thread(); i < g.rows() * g.width; i += all_threads()) {
    const int64_t column = i % g.width;
    const auto [t, b] = place_of(g.t_row, g.T, g.B, i / g.width);
    const int64_t length = g.length(b), before = a.direction ? t + 1 : t - 1;
    Storage value{};
    if (t < length) {
      if (starts_anew(a.resets, a.direction, t, b, length))
        value = stored_or_zero<Math>(a.h_reset, b, column);
      else if (before >= 0 && before < length)
        value = *element<const Storage>(g.from, before, b, column);
      else
        value = stored_or_zero<Math>(a.h0, b, column);
      value = masked_state<Math>(a.noise, a.direction, b, column, value);
    }
    static_cast<Storage*>(g.to)[g.to_row(t, b) * g.width + column] = value;
  }
}

// The sum over the steps of a row that start anew of the gradients of the gates, (B, gates * H): the product of it with
// R is what comes to the reset state through R.
struct SumAnew {
  Rows d_gates, resets;
  const int64_t* lengths;
  void* to;
  int64_t T, B, H, gates;
  int hidden_slot[kMostGates];
  int direction;
};

template <class Math>
SF_KERNEL(kBlockThreads)
sum_anew(SF_PARAMETER SumAnew a) {
  using Storage = typename Math::Storage;
  for (int64_t i = global_thread(); i < a.B * a.gates * a.H; i += all_threads()) {
    const int64_t unit = i % a.H, gate = i / a.H % a.gates, b = i / a.H / a.gates;
    const int64_t length = a.lengths ? a.lengths[b] : a.T;
    typename Math::Compute sum = 0;
    for (int64_t t = 0; t < length; ++t)
      if (starts_anew(a.resets, a.direction, t, b, length))
        sum += Math::widen(*element<const Storage>(a.d_gates, t, b, a.hidden_slot[gate] * a.H + unit));
    static_cast<Storage*>(a.to)[i] = Math::narrow(sum);
  }
}

// The gradient of a reset state for each row: what came to it beside R, and what came through R, masked if the state is
// dropped. Either may be null.
struct ResetGrad {
  Rows to;
  const void *carried, *product;  // (B, width) in the compute type
  Noise noise;
  int64_t B, width;
  int direction;
};

template <class Math>
SF_KERNEL(kBlockThreads)
reset_grad(SF_PARAMETER ResetGrad a) {
  using Compute = typename Math::Compute;
  for (int64_t i = global_thread(); i < a.B * a.width; i += all_threads()) {
    const int64_t b = i / a.width, unit = i % a.width;
    Compute sum = a.carried ? static_cast<const Compute*>(a.carried)[i] : 0;
    if (a.product)
      sum += static_cast<const Compute*>(a.product)[i] * state_mask<Compute>(a.noise, a.direction, b, unit);
    *element<typename Math::Storage>(a.to, 0, b, unit) = Math::narrow(sum);
  }
}

// Sums over rows in a fixed order, (samples, rows, from_stride) -> (samples, to_stride), of which `width` values are
// summed. sum_parts adds up each part of the rows, sum_of_parts adds up the parts.
struct SumRows {
  const void* from;
  void* partial;  // (samples, parts, width) in the compute type
  void* to;       // in the compute type, or the storage type with kNarrow
  int64_t samples, rows, width, from_stride, to_stride, parts;
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
      sum += Math::widen(from[(sample * a.rows + row) * a.from_stride + column]);
    static_cast<Compute*>(a.partial)[i] = sum;
  }
}

template <class Math, bool kNarrow>
SF_KERNEL(kBlockThreads)
sum_of_parts(SF_PARAMETER SumRows a) {
  using Compute = typename Math::Compute;
  for (int64_t i = global_thread(); i < a.samples * a.width; i += all_threads()) {
    Compute sum = 0;
    for (int64_t part = 0; part < a.parts; ++part)
      sum += static_cast<const Compute*>(a.partial)[(i / a.width * a.parts + part) * a.width + i % a.width];
    const int64_t to = i / a.width * a.to_stride + i % a.width;
    if constexpr (kNarrow)
      static_cast<typename Math::Storage*>(a.to)[to] = Math::narrow(sum);
    else
      static_cast<Compute*>(a.to)[to] = sum;
  }
}

// The gradients of both biases, (samples, gates * H) each, from the sums of the gradients of all slots.
struct BiasGrad {
  const void* sums;  // (samples, width) in the compute type, of which the slots come first
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

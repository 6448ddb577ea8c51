// The small kernels that run before and after the recurrence. They add up biases, order rows by length, copy rows into
// an order that a product can read, and sum over rows in a fixed order.
#pragma once

#include "elements.cuh"

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

// Copies rows so that they lie side by side, in the order (sample, t, row of the sample), or packed. The row copied for
// step t is that of step t + shift. Where the sequence has no such step, it is the row of `first`, or zeros without
// one. Steps beyond a row's length are zero.
struct GatherRows {
  Rows from, first;
  void* to;
  const int64_t *lengths, *t_row;  // may be null
  int64_t T, B, samples, width, shift, packed_rows;
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
  const int64_t each = a.B / a.samples, rows = a.t_row ? a.packed_rows : a.T * a.B;
  for (int64_t i = global_thread(); i < rows * a.width; i += all_threads()) {
    const int64_t column = i % a.width, row = i / a.width;
    const auto [t, b] = place_of(a.t_row, a.T, a.B, row);
    const int64_t length = a.lengths && a.lengths[b] < a.T ? a.lengths[b] : a.T, source = t + a.shift;
    Storage value{};
    if (t < length && source >= 0 && source < length)
      value = *element<const Storage>(a.from, source, b, column);
    else if (t < length && a.first.data)
      value = *element<const Storage>(a.first, 0, b, column);
    const int64_t to = a.t_row ? row : ((b / each) * a.T + t) * each + b % each;
    static_cast<Storage*>(a.to)[to * a.width + column] = value;
  }
}

// Sums over rows in a fixed order, (samples, rows, width) -> (samples, width). sum_parts adds up each part of the rows,
// sum_of_parts adds up the parts.
struct SumRows {
  const void* from;
  void* partial;  // (samples, parts, width) in the compute type
  void* to;       // (samples, width) in the compute type
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

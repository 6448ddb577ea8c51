// The stepwise regime: one product and one cell kernel per step, for any size, any dtype and projected states. Each
// step reads R again. The launches can be captured in a CUDA graph.
#pragma once

#include "elements.cuh"
#include "../launch_args.h"

namespace sf::cuda {

struct StepwiseDirectionArgs {
  Rows h0, c0, saved, output, h_n, c_n;
  Rows d_output, d_h_n, d_c_n, d_gates, d_h0, d_c0;
  // Buffers of one step, in the compute type (c) or the storage type (s). Hout is the width of h: P, or H without a
  // projection.
  //                        forward                           backward
  Rows projected;        // c, x times W_ih^T
  const void* bias;      // c (slots, H)
  const void* products;  // c (B, gates * H), h times R^T     c (B, Hout), of the step before this one
  void* h;               // s (B, Hout), h                    s (B, gates * H), the gradients of the gates
  void* state;           // c (B, H), c                       c (B, Hout), the part of d(loss)/dh not used yet
  void* carry;           //                                   c (B, H), the cell's carry
  void* projections;     // c (B, Hout), the projected h      c (B, H), d(loss)/dh before the projection
  void* unprojected;     // s (B, H), h before projection     s (B, Hout), d(loss)/dh after projection
  int64_t t;             // the step
};

struct StepwiseArgs {
  StepwiseDirectionArgs direction[kMaxDirections];
  int64_t B, H, P, T, slots;
  const int64_t* lengths;
  bool write_output;
  int directions;

  SF_FN int64_t out() const { return P ? P : H; }
  SF_FN int64_t widest() const { return P > H ? P : H; }
};

// The position of element i in (directions, B, width).
struct StepwisePlace {
  int d;
  int64_t b, unit, length;
  int64_t at;  // in (B, width)
  bool live;   // whether the batch row has the step

  SF_DEVICE StepwisePlace(const StepwiseArgs& a, int64_t i, int64_t width)
      : d(static_cast<int>(i / width / a.B)),
        b(i / width % a.B),
        unit(i % width),
        length(a.lengths ? a.lengths[b] : a.T),
        at(b * width + unit),
        live(a.direction[d].t < length) {}
};

template <class Math>
SF_DEVICE typename Math::Compute value_or_zero(const Rows& rows, int64_t b, int64_t unit) {
  return rows.data ? Math::widen(*element<const typename Math::Storage>(rows, 0, b, unit)) : 0;
}

// The first kernel of the forward: sets the states to h0 and c0, or to zeros.
template <class Math>
SF_KERNEL(kBlockThreads)
stepwise_begin(SF_PARAMETER StepwiseArgs a) {
  using Storage = typename Math::Storage;
  using Compute = typename Math::Compute;
  for (int64_t i = global_thread(); i < a.directions * a.B * a.widest(); i += all_threads()) {
    const StepwisePlace p(a, i, a.widest());
    const int64_t at = p.b * a.H + p.unit;  // in (B, H)
    const bool has_cell = p.unit < a.H;
    const StepwiseDirectionArgs& io = a.direction[p.d];
    if (has_cell) static_cast<Compute*>(io.state)[at] = value_or_zero<Math>(io.c0, p.b, p.unit);
    if (p.unit < a.out())
      static_cast<Storage*>(io.h)[p.b * a.out() + p.unit] = Math::narrow(value_or_zero<Math>(io.h0, p.b, p.unit));
  }
}

// The end of a step, with and without a projection: keep h for the next step and write it to the output.
template <class Math>
SF_DEVICE void stepwise_store_h(const StepwiseArgs& a, const StepwisePlace& p, typename Math::Compute h) {
  const StepwiseDirectionArgs& io = a.direction[p.d];
  if (!p.live) return;
  const typename Math::Storage stored = Math::narrow(h);
  static_cast<typename Math::Storage*>(io.h)[p.at] = stored;
  if (a.write_output) *element<typename Math::Storage>(io.output, io.t, p.b, p.unit) = stored;
}

template <class Cell, class Math>
SF_KERNEL(kBlockThreads)
stepwise_forward(SF_PARAMETER StepwiseArgs a) {
  using Storage = typename Math::Storage;
  using Compute = typename Math::Compute;
  for (int64_t i = global_thread(); i < a.directions * a.B * a.H; i += all_threads()) {
    const StepwisePlace p(a, i, a.H);
    const StepwiseDirectionArgs& io = a.direction[p.d];
    if (!p.live) {
      if (a.P) static_cast<Storage*>(io.unprojected)[p.at] = Math::narrow(0);
      continue;
    }
    const auto* bias = static_cast<const Compute*>(io.bias);
    const auto* products = static_cast<const Compute*>(io.products) + p.b * Cell::kGates * a.H;
    Compute slots[Cell::kSlots], saved[Cell::kSaved + 1];
    for (int s = 0; s < Cell::kSlots; ++s) slots[s] = bias[s * a.H + p.unit];
    for (int g = 0; g < Cell::kGates; ++g)
      slots[g] += *element<const Compute>(io.projected, io.t, p.b, g * a.H + p.unit);
    for (int g = 0; g < Cell::kGates; ++g) slots[Cell::hidden_slot(g)] += products[g * a.H + p.unit];
    Compute& c = static_cast<Compute*>(io.state)[p.at];
    Compute h = a.P ? 0 : Math::widen(static_cast<const Storage*>(io.h)[p.at]), next_c = c;
    Cell::forward(slots, h, next_c, saved);
    c = next_c;
    if (io.saved.data) {
      Storage* to = element<Storage>(io.saved, io.t, p.b, 0);
      for (int s = 0; s < Cell::kSaved; ++s) to[saved_at(s, p.unit, padded(a.H))] = Math::narrow(saved[s]);
    }
    if (a.P)
      static_cast<Storage*>(io.unprojected)[p.at] = Math::narrow(h);
    else
      stepwise_store_h<Math>(a, p, h);
  }
}

// With a projection: takes h from the product with W_hr.
template <class Math>
SF_KERNEL(kBlockThreads)
stepwise_project(SF_PARAMETER StepwiseArgs a) {
  for (int64_t i = global_thread(); i < a.directions * a.B * a.P; i += all_threads()) {
    const StepwisePlace p(a, i, a.P);
    stepwise_store_h<Math>(a, p, static_cast<const typename Math::Compute*>(a.direction[p.d].projections)[p.at]);
  }
}

// Writes the states after the last step.
template <class Cell, class Math>
SF_KERNEL(kBlockThreads)
stepwise_end(SF_PARAMETER StepwiseArgs a) {
  using Storage = typename Math::Storage;
  for (int64_t i = global_thread(); i < a.directions * a.B * a.widest(); i += all_threads()) {
    const StepwisePlace p(a, i, a.widest());
    const int64_t at = p.b * a.H + p.unit;  // in (B, H)
    const bool has_cell = p.unit < a.H;
    const StepwiseDirectionArgs& io = a.direction[p.d];
    if (p.unit < a.out())
      *element<Storage>(io.h_n, 0, p.b, p.unit) = static_cast<const Storage*>(io.h)[p.b * a.out() + p.unit];
    if (Cell::kHasC && has_cell)
      *element<Storage>(io.c_n, 0, p.b, p.unit) =
          Math::narrow(static_cast<const typename Math::Compute*>(io.state)[at]);
  }
}

// The first kernel of the backward: sets the gradients of the states after the last step.
template <class Math>
SF_KERNEL(kBlockThreads)
stepwise_begin_back(SF_PARAMETER StepwiseArgs a) {
  using Compute = typename Math::Compute;
  for (int64_t i = global_thread(); i < a.directions * a.B * a.widest(); i += all_threads()) {
    const StepwisePlace p(a, i, a.widest());
    const int64_t at = p.b * a.H + p.unit;  // in (B, H)
    const bool has_cell = p.unit < a.H;
    const StepwiseDirectionArgs& io = a.direction[p.d];
    if (has_cell) static_cast<Compute*>(io.carry)[at] = value_or_zero<Math>(io.d_c_n, p.b, p.unit);
    if (p.unit < a.out())
      static_cast<Compute*>(io.state)[p.b * a.out() + p.unit] = value_or_zero<Math>(io.d_h_n, p.b, p.unit);
  }
}

// Adds the product of the step before this one to d(loss)/dh. If the row has this step, the cell uses up the sum;
// otherwise the sum is kept for a later step.
template <class Math>
SF_DEVICE typename Math::Compute stepwise_take_dh(const StepwiseArgs& a, const StepwisePlace& p) {
  using Compute = typename Math::Compute;
  const StepwiseDirectionArgs& io = a.direction[p.d];
  Compute& pending = static_cast<Compute*>(io.state)[p.at];
  Compute d = pending;
  if (io.products) d += static_cast<const Compute*>(io.products)[p.at];
  pending = p.live ? 0 : d;
  if (!p.live) return 0;
  if (io.d_output.data) d += Math::widen(*element<const typename Math::Storage>(io.d_output, io.t, p.b, p.unit));
  return d;
}

// With a projection: takes d(loss)/dh of the projected h, for the product with W_hr that follows.
template <class Math>
SF_KERNEL(kBlockThreads)
stepwise_project_back(SF_PARAMETER StepwiseArgs a) {
  using Storage = typename Math::Storage;
  for (int64_t i = global_thread(); i < a.directions * a.B * a.P; i += all_threads()) {
    const StepwisePlace p(a, i, a.P);
    const StepwiseDirectionArgs& io = a.direction[p.d];
    const Storage d = Math::narrow(stepwise_take_dh<Math>(a, p));
    static_cast<Storage*>(io.unprojected)[p.at] = d;
    if (p.live) *element<Storage>(io.d_gates, io.t, p.b, a.slots * a.H + p.unit) = d;
  }
}

template <class Cell, class Math>
SF_KERNEL(kBlockThreads)
stepwise_backward(SF_PARAMETER StepwiseArgs a) {
  using Storage = typename Math::Storage;
  using Compute = typename Math::Compute;
  for (int64_t i = global_thread(); i < a.directions * a.B * a.H; i += all_threads()) {
    const StepwisePlace p(a, i, a.H);
    const StepwiseDirectionArgs& io = a.direction[p.d];
    const bool reverse = p.d == 1;
    const Compute dh = a.P ? static_cast<const Compute*>(io.projections)[p.at] : stepwise_take_dh<Math>(a, p);
    Storage* next = static_cast<Storage*>(io.h) + p.b * Cell::kGates * a.H + p.unit;
    if (!p.live) {
      for (int g = 0; g < Cell::kGates; ++g) next[g * a.H] = Math::narrow(0);
      continue;
    }
    Compute saved[Cell::kSaved + 1], d[Cell::kSlots], h = 0, h_prev = 0, c_prev = 0;
    const auto* from = element<const Storage>(io.saved, io.t, p.b, 0);
    for (int s = 0; s < Cell::kSaved; ++s) saved[s] = Math::widen(from[saved_at(s, p.unit, padded(a.H))]);
    const int64_t before = reverse ? io.t + 1 : io.t - 1;
    const bool has_before = reverse ? before < p.length : before >= 0;
    if (Cell::kReadsH) h = Math::widen(*element<const Storage>(io.output, io.t, p.b, p.unit));
    if (Cell::kReadsHPrev)
      h_prev = has_before ? Math::widen(*element<const Storage>(io.output, before, p.b, p.unit))
                          : value_or_zero<Math>(io.h0, p.b, p.unit);
    if (Cell::kHasC)
      c_prev = has_before ? Math::widen(element<const Storage>(io.saved, before, p.b,
                                                               0)[saved_at(Cell::kSaved - 1, p.unit, padded(a.H))])
                          : value_or_zero<Math>(io.c0, p.b, p.unit);
    Cell::backward(saved, h, h_prev, c_prev, dh, static_cast<Compute*>(io.carry)[p.at], d);
    Storage* to = element<Storage>(io.d_gates, io.t, p.b, p.unit);
    for (int s = 0; s < Cell::kSlots; ++s) to[s * a.H] = Math::narrow(d[s]);
    for (int g = 0; g < Cell::kGates; ++g) next[g * a.H] = Math::narrow(d[Cell::hidden_slot(g)]);
    if constexpr (Cell::kHasC) {
      if (a.P) to[Cell::kSlots * a.H + a.P] = Math::narrow(Cell::unprojected(saved));
    }
  }
}

// Writes the gradients of h0 and c0.
template <class Cell, class Math>
SF_KERNEL(kBlockThreads)
stepwise_end_back(SF_PARAMETER StepwiseArgs a) {
  using Storage = typename Math::Storage;
  using Compute = typename Math::Compute;
  for (int64_t i = global_thread(); i < a.directions * a.B * a.widest(); i += all_threads()) {
    const StepwisePlace p(a, i, a.widest());
    const int64_t at = p.b * a.H + p.unit;  // in (B, H)
    const bool has_cell = p.unit < a.H;
    const StepwiseDirectionArgs& io = a.direction[p.d];
    const Compute carry = has_cell ? static_cast<const Compute*>(io.carry)[at] : 0;
    if (p.unit < a.out() && io.d_h0.data) {
      const int64_t in_out = p.b * a.out() + p.unit;
      const Compute d =
          static_cast<const Compute*>(io.state)[in_out] + static_cast<const Compute*>(io.products)[in_out];
      *element<Storage>(io.d_h0, 0, p.b, p.unit) = Math::narrow(d + (Cell::kCarriesH ? carry : 0));
    }
    if (Cell::kHasC && has_cell && io.d_c0.data) *element<Storage>(io.d_c0, 0, p.b, p.unit) = Math::narrow(carry);
  }
}

}  // namespace sf::cuda

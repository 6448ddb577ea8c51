// The arguments of the stepwise kernels, the place of a thread's element, and what options add to a unit.
#pragma once

#include "masks.cuh"
#include "../launch_args.h"

namespace sf::cuda {

struct StepwiseDirectionArgs {
  Rows h0, c0, saved, output, h_n, c_n;
  Rows d_output, d_h_n, d_c_n, d_gates, d_h0, d_c0;
  Rows h_reset, c_reset;
  const void* further[kMostFurtherWeights];  // s, see Layer
  // Buffers of one step, in the compute type (c) or the storage type (s). Hout is the width of h: P, or H without a
  // projection.
  //                        forward                           backward
  Rows projected;           // c, x times W_ih^T
  const void* bias;         // c (slots, H)
  const void* products;     // c (B, gates * H), h times R^T     c (B, Hout), of the step before this one
  void* h;                  // s (B, Hout), h as R sees it       s (B, gates * H), the gradients of the gates
  void* h_state;            // s (B, Hout), h; it is the same buffer unless the state is dropped
  void* state;              // c (B, H), c                       c (B, Hout), the part of d(loss)/dh not used yet
  void* carry;              //                                   c (B, H), the cell's carry
  void* projections;        // c (B, Hout), the projected h      c (B, H), d(loss)/dh before the projection
  void* unprojected;        // s (B, H), h before projection     s (B, Hout), d(loss)/dh after projection
  void* second;             // s (B, H), r * h                  s (B, H), the gradient of gate n
  void* second_products;    // c (B, H), the products of these with the part of R of gate n
  void* scratch;            // c (B, gates * H), for cells with a norm
  Rows d_aside;             //                                   s, gradients for norm_sums, see NormRow::d_slot
  Rows c_statistics;        //                                   c, the mean and the inverse deviation of c
  Rows d_further;           //                                   see Backward
  void *reset_h, *reset_c;  //                                c, see ResetCarries
  void* sums;               //                                c (B, further_sums * H), null where they are not wanted
  int64_t t, end;  // the step, and the next; of a kernel over several steps the first, and the one after the last
};

struct StepwiseArgs {
  StepwiseDirectionArgs direction[kMaxDirections];
  int64_t B, H, P, T;
  int64_t beyond_slots;  // where in a row of d_gates the gradients of the slots have ended
  int64_t sums_width;
  int64_t steps = 1;   // end - t, or that of the direction which has more
  int64_t gate_width;  // of the projected input: from a gate's values to those of the next
  const int64_t* lengths;
  Rows resets;
  Noise noise;
  bool write_output, saves_fresh_h;
  int directions;

  SF_FN int64_t out() const { return P ? P : H; }
  SF_FN int64_t widest() const { return P > H ? P : H; }
};

// The place of an element at a step: in (directions, B, width).
struct StepwisePlace {
  int d;
  int64_t t, b, unit, length;
  int64_t at;  // in (B, width)
  bool live;   // whether the batch row has the step

  SF_DEVICE StepwisePlace(const StepwiseArgs& a, int d_, int64_t t_, int64_t b_, int64_t unit_, int64_t width)
      : d(d_),
        t(t_),
        b(b_),
        unit(unit_),
        length(a.lengths ? a.lengths[b] : a.T),
        at(b * width + unit),
        live(t < length) {}

  // Whether the step, or the row's next one, starts from the reset state.
  SF_DEVICE bool anew(const StepwiseArgs& a) const { return live && starts_anew(a.resets, d, t, b, length); }
  SF_DEVICE bool next_anew(const StepwiseArgs& a) const {
    const int64_t next = d ? t - 1 : t + 1;
    return next >= 0 && next < length && starts_anew(a.resets, d, next, b, length);
  }
  // The step before this one in the order of the direction, or -1.
  SF_DEVICE int64_t before() const {
    const int64_t before = d ? t + 1 : t - 1;
    return before < length ? before : -1;
  }
};

// Calls f(place) for the elements of a step that a thread takes.
template <class F>
SF_DEVICE void each_place(const StepwiseArgs& a, int64_t width, F&& f) {
  for (int64_t i = global_thread(); i < a.directions * a.B * width; i += all_threads()) {
    const auto d = static_cast<int>(i / width / a.B);
    f(StepwisePlace(a, d, a.direction[d].t, i / width % a.B, i % width, width));
  }
}

// What the options of the layer add to a unit. kOptions is false for a layer without any. `seen` is memory for the
// weights by which the gates see c.
template <class Cell, class Math, bool kOptions>
SF_DEVICE auto stepwise_options(const StepwiseArgs& a, const StepwisePlace& p, typename Math::Compute (&seen)[3]) {
  using Compute = typename Math::Compute;
  if constexpr (!kOptions) {
    return NoOptions{};
  } else {
    const StepwiseDirectionArgs& io = a.direction[p.d];
    const Compute mask = mask_at<Compute>(a.noise, Masked::kCandidate, p.d, p.b, p.t, p.unit);
    if constexpr (OptionsOf<Cell>::kPeephole) {
      SF_UNROLL
      for (int k = 0; k < 3; ++k)
        seen[k] = Math::widen(static_cast<const typename Math::Storage*>(io.further[0])[k * a.H + p.unit]);
      return UnitOptions<Compute, true>{mask, seen};
    } else {
      return UnitOptions<Compute, false>{mask, nullptr};
    }
  }
}

// Adds to the sums of a row, see further_sums() in cells.h.
template <class Compute>
SF_DEVICE void add_sum(const StepwiseArgs& a, const StepwisePlace& p, int row, Compute v) {
  const StepwiseDirectionArgs& io = a.direction[p.d];
  if (io.sums) static_cast<Compute*>(io.sums)[p.b * a.sums_width + row * a.H + p.unit] += v;
}
template <class Compute>
SF_DEVICE void add_carry(void* to, int64_t at, Compute v) {
  if (to) static_cast<Compute*>(to)[at] += v;
}

}  // namespace sf::cuda

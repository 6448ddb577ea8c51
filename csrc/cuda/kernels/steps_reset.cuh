// A step of the GRU whose r meets h before the product (reset_after=False), forward and backward. It has two products:
// going forward that of r and z with h, then that of n with r * h; going back that of n, then that of r and z. The
// second operand goes the way of the first, so a step is two of the exchange's.
//
// `second` is called by all warps of a block with the operand of the second product, and returns its sums. Going back
// both products run over the K of all gates, with zeros for those of the other: the order of R in registers and of the
// operand is then that of the GRU.
#pragma once

#include "steps.cuh"

namespace sf::cuda {

template <class S>
struct ResetForwardStep : ForwardStep<S> {
  using Base = ForwardStep<S>;
  using typename Base::Cell, typename Base::Math, typename Base::Storage, typename Base::Prepared;
  using Floats = Vector<float, S::kCells>;
  using Base::Base;

  template <class Second>
  SF_DEVICE void run(const LaunchArgs& a, const DirectionArgs& io, const Lane<S>& at, const StepPosition<S>& now,
                     const Prepared& prepared, float (&sums)[S::kCells][S::kMTiles], const SharedOptions<S>& options,
                     const LaneMasks<S>& masks, const TileStates<S>& states, float (&next)[S::kCells][S::kOperands],
                     Second&& second) const {
    float saved[S::kCells][5];
    Floats h, c{};
    if (at.owns()) h = states.load(0);
    if (at.owns()) SF_UNROLL
    for (int cell = 0; cell < S::kCells; ++cell) {
      const float slots[2] = {prepared.slots[cell][0] + sums[cell][0], prepared.slots[cell][1] + sums[cell][1]};
      Cell::gates(slots, saved[cell]);
      next[cell][0] = saved[cell][0] * Math::widen(Math::narrow(masks.of_state(h.v[cell], cell)));
    }
    second(next, sums);
    if (!at.owns()) return;
    SF_UNROLL
    for (int column = 0; column < S::kLaneColumns; ++column) {
      Storage *const output = this->row_of(io.output, 1, now, column), *const saved_row =
                                                                           this->row_of(io.saved, 4, now, column);
      SF_UNROLL
      for (int half = 0; half < S::kLaneHalves; ++half) {
        const int cell = S::cell_of(half, column);
        float next_h = h.v[cell];
        const float product = next[cell][0];
        Vector<float, 4> seen{};
        Cell::finish(prepared.slots[cell][2] + sums[cell][2], next_h, saved[cell], options.of_unit(masks, cell, seen));
        saved[cell][3] = product;  // r * h, for the gradient of R
        this->keep(a, io, now, masks, cell, half, next_h, 0, saved[cell], output, saved_row, h, c, next);
      }
    }
    this->begin_anew(io, now, prepared, masks, h, c, next);
    states.store(0, h);
  }
};

template <class S>
struct ResetBackwardStep : BackwardStep<S> {
  using Base = BackwardStep<S>;
  using typename Base::Cell, typename Base::Math, typename Base::Storage, typename Base::Prepared;
  using Floats = Vector<float, S::kCells>;
  using Base::Base;

  template <class Second>
  SF_DEVICE void run(const LaunchArgs& a, const DirectionArgs& io, const Lane<S>& at, const StepPosition<S>& now,
                     const Prepared& in, float (&sums)[S::kCells][S::kMTiles], const SharedOptions<S>& options,
                     const LaneMasks<S>& masks, const TileStates<S>& states, float (&next)[S::kCells][S::kOperands],
                     Second&& second) const {
    Floats pending, carry;
    if (at.owns()) pending = states.load(0), carry = states.load(1);
    float h_before[S::kCells], c_before[S::kCells], saved[S::kCells][5], d[S::kCells][3];
    typename Base::Arriving come[S::kCells];
    if (at.owns()) {
      this->read_before(io, now, in, h_before, c_before);
      SF_UNROLL
      for (int cell = 0; cell < S::kCells; ++cell) {
        Vector<float, 4> seen{};
        Math::unpack(in.four[cell], saved[cell]);
        pending.v[cell] += masks.of_state(sums[cell][0], cell);
        come[cell] = this->arriving(in, masks, cell, pending.v[cell], carry.v[cell]);
        Cell::mixed_backward(saved[cell], h_before[cell], come[cell].dh, come[cell].carry, d[cell],
                             options.of_unit(masks, cell, seen));
        next[cell][0] = next[cell][1] = 0;
        next[cell][2] = this->live(now, cell) ? d[cell][2] : 0;
      }
    }
    second(next, sums);
    if (!at.owns()) return;
    SF_UNROLL
    for (int cell = 0; cell < S::kCells; ++cell) {
      const int column = S::column_of(cell), half = S::half_of(cell);
      const float seen = Math::widen(Math::narrow(masks.of_state(h_before[cell], cell)));
      const float d_seen = Cell::reset_backward(saved[cell], seen, sums[cell][0], d[cell]);
      const bool is_live = this->live(now, cell);
      if (is_live) {
        pending.v[cell] = come[cell].kept_h;
        carry.v[cell] = come[cell].carry + masks.of_state(d_seen, cell);
        SF_UNROLL
        for (int s = 0; s < 4; ++s) {  // behind the slots r * h
          const int64_t offset = static_cast<int64_t>(sizeof(Storage)) * (s * a.H + this->unit + 8 * half);
          *reinterpret_cast<Storage*>(io.d_gates.row(offset, now.t_row, now.b[column])) =
              Math::narrow(s < 3 ? d[cell][s < 3 ? s : 0] : saved[cell][3]);
        }
      }
      next[cell][0] = is_live ? d[cell][0] : 0;
      next[cell][1] = is_live ? d[cell][1] : 0;
      next[cell][2] = 0;
    }
    this->stop_at_resets(a, io, now, in, options, pending, carry, next);
    states.store(0, pending);
    states.store(1, carry);
  }
};

}  // namespace sf::cuda

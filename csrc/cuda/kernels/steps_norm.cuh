// A step of the cells with layer normalisation, forward and backward. What the sums of x need was done before and is
// done after the recurrence (norm_rows.cuh). So a step normalises the sums of h, and with a c also what tanh reads of
// it: each is one meeting of the units of a row (row_totals.cuh), to which every warp of the block comes.
#pragma once

#include "row_totals.cuh"
#include "steps.cuh"

namespace sf::cuda {

// Where in a row of saved values the normalised sum of h of a gate is; behind those of all gates are the inverse
// deviations, of x first.
template <class S>
SF_DEVICE int normalised_at(int gate, int units) {
  return (S::Cell::kSaved + S::kGates + gate) * units;
}

template <class S>
struct NormForwardStep : ForwardStep<S> {
  using Base = ForwardStep<S>;
  using typename Base::Cell, typename Base::Math, typename Base::Storage, typename Base::Prepared;
  using Floats = Vector<float, S::kCells>;
  static constexpr int kBlocks = NormBlocks<S::kGates>::kNormBlocks;
  using Base::Base;

  template <class Totals>
  SF_DEVICE void run(const LaunchArgs& a, const DirectionArgs& io, const Lane<S>& at, const StepPosition<S>& now,
                     const Prepared& prepared, const float (&sums)[S::kCells][S::kMTiles],
                     const SharedOptions<S>& options, const LaneMasks<S>& masks, const TileStates<S>& states,
                     float (&next)[S::kCells][S::kOperands], Totals& totals) const {
    Floats h, c;
    if (at.owns()) h = states.load(0), c = states.load(1);
    const int units = this->fifth / 4;
    float2 of_h[S::kLaneColumns][kBlocks];
    totals.template measure<kBlocks>(at, this->in_layer, sums, of_h);
    float saved[S::kCells][5], given[S::kCells][1];  // the h that the cell gave; with a c, that
    if (at.owns()) SF_UNROLL
    for (int column = 0; column < S::kLaneColumns; ++column) {
      Storage* const saved_row = this->row_of(io.saved, 1, now, column);
      SF_UNROLL
      for (int half = 0; half < S::kLaneHalves; ++half) {
        const int cell = S::cell_of(half, column);
        const auto gain = totals.gains.h(half);
        float slots[Cell::kSlots];
        SF_UNROLL
        for (int s = 0; s < Cell::kSlots; ++s) slots[s] = prepared.slots[cell][s];
        SF_UNROLL
        for (int g = 0; g < S::kGates; ++g) {
          const float2 row = of_h[column][NormBlocks<S::kGates>::block_of(g)];
          const float v = (sums[cell][g] - row.x) * row.y;
          slots[Cell::hidden_slot(g)] = fma(v, gain.v[g], slots[Cell::hidden_slot(g)]);
          if (io.saved.data && this->live(now, cell))
            saved_row[normalised_at<S>(g, units) + 8 * half] = Math::narrow(v);
        }
        Vector<float, 4> seen{};
        float none = 0;
        if constexpr (Cell::kHasC) {
          given[cell][0] = c.v[cell];
          Cell::memory(slots, given[cell][0], saved[cell], options.of_unit(masks, cell, seen));
        } else {
          given[cell][0] = h.v[cell];
          Cell::forward(slots, given[cell][0], none, saved[cell], options.of_unit(masks, cell, seen));
        }
      }
      const bool is_first = at.group == 0 && at.split < (S::kSplits < 4 ? 1 : 2) && at.g == 0;
      if (io.saved.data && is_first && now.has(column)) save_deviations(io, now, column, of_h, units);
    }
    float2 of_c[S::kLaneColumns][1];
    if constexpr (Cell::kHasC) totals.template measure<1>(at, this->in_layer, given, of_c);
    if (!at.owns()) return;
    SF_UNROLL
    for (int column = 0; column < S::kLaneColumns; ++column) {
      Storage *const output = this->row_of(io.output, 1, now, column), *const saved_row = this->row_of(
                                                                           io.saved, Cell::kSaved >= 4 ? 4 : 1, now,
                                                                           column);
      SF_UNROLL
      for (int half = 0; half < S::kLaneHalves; ++half) {
        const int cell = S::cell_of(half, column);
        float next_h = given[cell][0], next_c = 0;
        if constexpr (Cell::kHasC) {
          const auto gain = totals.gains.c(half);
          next_c = given[cell][0];
          next_h =
              Cell::output(saved[cell][3], fma((next_c - of_c[column][0].x) * of_c[column][0].y, gain.v[0], gain.v[1]));
        }
        this->keep(a, io, now, masks, cell, half, next_h, next_c, saved[cell], output, saved_row, h, c, next);
      }
    }
    this->begin_anew(io, now, prepared, masks, h, c, next);
    states.store(0, h);
    states.store(1, c);
  }

 private:
  SF_DEVICE void save_deviations(const DirectionArgs& io, const StepPosition<S>& now, int column,
                                 const float2 (&of_h)[S::kLaneColumns][kBlocks], int units) const {
    const int64_t offset = static_cast<int64_t>(sizeof(Storage)) * normalised_at<S>(S::kGates, units);
    auto* to = reinterpret_cast<float*>(io.saved.row(offset, now.t_row, now.b[column]));
    SF_UNROLL
    for (int block = 0; block < kBlocks; ++block) to[kBlocks + block] = of_h[column][block].y;
  }
};

template <class S>
struct NormBackwardStep : BackwardStep<S> {
  using Base = BackwardStep<S>;
  using typename Base::Cell, typename Base::Math, typename Base::Storage;
  using Floats = Vector<float, S::kCells>;
  using Blocks = NormBlocks<S::kGates>;
  static constexpr int kBlocks = Blocks::kNormBlocks;
  struct Sums {  // those of h: the normalised values, and their inverse deviations
    Storage v[S::kCells][S::kGates];
    float inverse[S::kLaneColumns][kBlocks];
  };
  // What is read at the beginning of the step itself, before its wait, since registers are few. With a c, its sums are
  // read before the first meeting, or just before the second one where R takes half of the registers.
  static constexpr bool kLate =
      Cell::kHasC && S::kCells == 4 && weight_registers(S::kTiling, S::kGates, S::kPrecision) >= 128;
  struct Prepared : Base::Inputs {
    Sums of_h;
    float2 of_c[Cell::kHasC ? S::kLaneColumns : 1];  // the mean and the inverse deviation of c
  };
  const NormArgs& norm;

  SF_DEVICE NormBackwardStep(const LaunchArgs& a, const DirectionArgs& io, const Lane<S>& at)
      : Base(a, io, at), norm(a.norm) {}

  SF_DEVICE Prepared prepare(const typename Base::Inputs& inputs, const DirectionArgs& io, const Lane<S>& at,
                             const StepPosition<S>& now, bool reverse) const {
    Prepared in{inputs, {}, {}};
    if constexpr (Cell::kHasC) SF_UNROLL
    for (int column = 0; column < S::kLaneColumns; ++column)
      if (at.owns() && now.has(column))
        in.of_c[column] = *reinterpret_cast<const float2*>(norm.c_statistics[reverse].row(0, now.t_row, now.b[column]));
    if (!Cell::kHasC && at.owns()) load_sums(io, now, in.of_h);
    return in;
  }

  // The states stay in shared memory while the warps meet, since registers are few.
  template <class Totals>
  SF_DEVICE void run(const LaunchArgs& a, const DirectionArgs& io, const Lane<S>& at, const StepPosition<S>& now,
                     const Prepared& in, const float (&sums)[S::kCells][S::kMTiles], const SharedOptions<S>& options,
                     const LaneMasks<S>& masks, const TileStates<S>& states, float (&next)[S::kCells][S::kOperands],
                     Totals& totals) const {
    float h_before[S::kCells], c_before[S::kCells], saved[S::kCells][5];
    typename Base::Arriving come[S::kCells];
    float d[S::kCells][Cell::kSlots], d_read[S::kCells], read[S::kCells];
    float2 pairs[S::kCells][kBlocks], of_c[S::kLaneColumns][1], of_h[S::kLaneColumns][kBlocks];
    if (at.owns()) {
      Floats pending = states.load(0), carry = states.load(1);
      this->read_before(io, now, in, h_before, c_before);
      SF_UNROLL
      for (int cell = 0; cell < S::kCells; ++cell) {
        if (Cell::kSaved >= 4) Math::unpack(in.four[cell], saved[cell]);
        if (Cell::kSaved > 4) saved[cell][4] = Math::widen(in.c[cell]);
        pending.v[cell] += masks.of_state(sums[cell][0], cell);
        come[cell] = this->arriving(in, masks, cell, pending.v[cell], carry.v[cell]);
        if (this->live(now, cell)) pending.v[cell] = come[cell].kept_h;
      }
      states.store(0, pending);
    }
    Sums h_sums{};
    if (!Cell::kHasC) h_sums = in.of_h;
    if constexpr (Cell::kHasC) {
      float2 of_row[S::kCells][1];
      if (at.owns()) SF_UNROLL
      for (int cell = 0; cell < S::kCells; ++cell) {
        Vector<float, 4> seen{};
        const auto gain = totals.gains.c(S::half_of(cell));
        const float2 row = in.of_c[S::column_of(cell)];
        if (options.changes(Masked::kZoneoutC))
          saved[cell][4] = Cell::next_c(saved[cell][0], saved[cell][1], saved[cell][2], c_before[cell],
                                        options.of_unit(masks, cell, seen));
        read[cell] = (saved[cell][4] - row.x) * row.y;
        d_read[cell] = 0;
        Cell::output_backward(saved[cell][3], fma(read[cell], gain.v[0], gain.v[1]), come[cell].dh, d[cell][3],
                              d_read[cell]);
        const float d_v = this->live(now, cell) ? d_read[cell] * gain.v[0] : 0;
        of_row[cell][0] = {d_v, d_v * read[cell]};
      }
      if (!kLate && at.owns()) load_sums(io, now, h_sums);
      totals.template average<1, 1>(at, of_row, of_c);
    }
    Floats carry;
    if (at.owns()) carry = states.load(1);
    if (at.owns()) SF_UNROLL
    for (int cell = 0; cell < S::kCells; ++cell) {
      Vector<float, 4> seen{};
      const auto unit_options = options.of_unit(masks, cell, seen);
      if constexpr (Cell::kHasC) {
        const float2 mean = of_c[S::column_of(cell)][0];
        come[cell].carry = carry.v[cell];
        this->share_carry(masks, cell, come[cell]);
        come[cell].carry += norm_gradient(d_read[cell] * totals.gains.c(S::half_of(cell)).v[0], read[cell],
                                          in.of_c[S::column_of(cell)].y, mean.x, mean.y);
        Cell::memory_backward(saved[cell], c_before[cell], come[cell].carry, d[cell], unit_options);
        come[cell].carry += come[cell].kept_c;
      } else {
        Cell::backward(saved[cell], Cell::kReadsH ? Math::widen(in.h[cell]) : 0, h_before[cell], c_before[cell],
                       come[cell].dh, come[cell].carry, d[cell], unit_options);
      }
      const auto gain = totals.gains.h(S::half_of(cell));
      SF_UNROLL
      for (int g = 0; g < S::kGates; ++g) next[cell][g] = 0;
      if (!this->live(now, cell)) continue;
      carry.v[cell] = come[cell].carry;
      SF_UNROLL
      for (int s = 0; s < Cell::kSlots; ++s) *slot(a, io, now, totals.direction, cell, s) = Math::narrow(d[cell][s]);
      if constexpr (Cell::kHasC) {
        *slot(a, io, now, totals.direction, cell, Cell::kSlots) = Math::narrow(d_read[cell] * read[cell]);
        *slot(a, io, now, totals.direction, cell, Cell::kSlots + 1) = Math::narrow(d_read[cell]);
      }
      SF_UNROLL
      for (int g = 0; g < S::kGates; ++g) {  // until the meeting, the gradients of the normalised values
        next[cell][g] = d[cell][Cell::hidden_slot(g)] * gain.v[g];
      }
    }
    if (at.owns()) {
      states.store(1, carry);
      if (kLate) load_sums(io, now, h_sums);
      SF_UNROLL
      for (int cell = 0; cell < S::kCells; ++cell) {
        SF_UNROLL
        for (int block = 0; block < kBlocks; ++block) pairs[cell][block] = {0, 0};
        SF_UNROLL
        for (int g = 0; g < S::kGates; ++g) {
          float2& pair = pairs[cell][Blocks::block_of(g)];
          pair.x += next[cell][g], pair.y += next[cell][g] * Math::widen(h_sums.v[cell][g]);
        }
      }
    }
    totals.template average<kBlocks, S::kGates>(at, pairs, of_h);
    if (!at.owns()) return;
    SF_UNROLL
    for (int cell = 0; cell < S::kCells; ++cell) {
      if (!this->live(now, cell)) continue;
      SF_UNROLL
      for (int g = 0; g < S::kGates; ++g) {
        const int column = S::column_of(cell), block = Blocks::block_of(g);
        next[cell][g] = norm_gradient(next[cell][g], Math::widen(h_sums.v[cell][g]), h_sums.inverse[column][block],
                                      of_h[column][block].x, of_h[column][block].y);
        *gradient(io.d_gates, a, now, cell, S::kGates + g) = Math::narrow(next[cell][g]);
      }
    }
    if (!in.anew) return;
    Floats pending = states.load(0);
    carry = states.load(1);
    this->stop_at_resets(a, io, now, in, options, pending, carry, next);
    states.store(0, pending);
    states.store(1, carry);
  }

 private:
  SF_DEVICE void load_sums(const DirectionArgs& io, const StepPosition<S>& now, Sums& sums) const {
    const int units = this->fifth / 4, size = sizeof(Storage);
    SF_UNROLL
    for (int column = 0; column < S::kLaneColumns; ++column) {
      if (!now.has(column)) continue;
      const auto* inverse = reinterpret_cast<const float*>(
          io.saved.row(size * normalised_at<S>(S::kGates, units), now.t_row, now.b[column]));
      SF_UNROLL
      for (int block = 0; block < kBlocks; ++block) sums.inverse[column][block] = inverse[kBlocks + block];
      const auto* from = reinterpret_cast<const Storage*>(io.saved.row(size * this->unit, now.t_row, now.b[column]));
      SF_UNROLL
      for (int half = 0; half < S::kLaneHalves; ++half) SF_UNROLL
      for (int g = 0; g < S::kGates; ++g)
        if (this->in_layer[half]) sums.v[S::cell_of(half, column)][g] = from[normalised_at<S>(g, units) + 8 * half];
    }
  }
  SF_DEVICE Storage* gradient(const RowAddress& rows, const LaunchArgs& a, const StepPosition<S>& now, int cell,
                              int slot) const {
    const int64_t offset = static_cast<int64_t>(sizeof(Storage)) * (slot * a.H + this->unit + 8 * S::half_of(cell));
    return reinterpret_cast<Storage*>(rows.row(offset, now.t_row, now.b[S::column_of(cell)]));
  }
  // Where NormRow::d_slot finds it.
  SF_DEVICE Storage* slot(const LaunchArgs& a, const DirectionArgs& io, const StepPosition<S>& now, int direction,
                          int cell, int slot) const {
    return slot < S::kGates ? gradient(io.d_gates, a, now, cell, slot)
                            : gradient(norm.d_aside[direction], a, now, cell, slot - S::kGates);
  }
};

}  // namespace sf::cuda

// One step of the cells that a lane holds, forward and backward: the values they read, write, and pass to the next
// step. The formulas are those of core/cells.h. A step's inputs are loaded (load) before its product is ready (run).
#pragma once

#include "options.cuh"

namespace sf::cuda {

// Element `at` of a state of batch row b: h0, c0 or a reset state.
template <class Math>
SF_DEVICE float state_at(const RowAddress& from, uint32_t b, int at) {
  return from.data ? Math::widen(reinterpret_cast<const typename Math::Storage*>(from.row(0, 0, b))[at]) : 0;
}
SF_DEVICE bool is_set(const RowAddress& resets, uint32_t t_row, uint32_t b) { return *resets.row(0, t_row, b) != 0; }

// The step that a lane works on: its time t, the t_row (see RowAddress) of this time and of the one that the kernel
// visits next, and the batch rows of the lane's columns with their lengths.
template <class S>
struct StepPosition {
  int t;
  uint32_t t_row, t_row_before;
  uint32_t b[S::kLaneColumns];
  int length[S::kLaneColumns];

  SF_DEVICE bool has(int column) const { return t < length[column]; }
};

// Calls f(cell, column, half) for the cells of the columns whose bit is set. It stays behind one branch, so that a step
// without resets jumps over all of it.
template <class S, class F>
SF_DEVICE void each_anew(uint32_t columns, const bool (&in_layer)[S::kLaneHalves], F&& f) {
  SF_UNROLL
  for (int column = 0; column < S::kLaneColumns; ++column) SF_UNROLL
  for (int half = 0; half < S::kLaneHalves; ++half)
    if ((columns >> column & 1) && in_layer[half]) f(S::cell_of(half, column), column, half);
}

template <class S>
struct ForwardStep {
  using Cell = typename S::Cell;
  using Math = typename S::Math;
  using Storage = typename Math::Storage;
  struct Inputs {
    float x[S::kCells][S::kGates];
    uint32_t anew;  // a bit for each column: whether the row's next step starts from the reset state
  };

  float bias[S::kLaneHalves][Cell::kSlots];
  bool in_layer[S::kLaneHalves];
  int unit;   // the lane's first unit
  int fifth;  // where in a row of saved values the fifth values begin

  SF_DEVICE ForwardStep(const LaunchArgs& a, const DirectionArgs& io, const Lane<S>& at)
      : unit(at.unit(0)), fifth(4 * static_cast<int>(padded(a.H))) {
    SF_UNROLL
    for (int half = 0; half < S::kLaneHalves; ++half) {
      in_layer[half] = unit + 8 * half < a.H;
      SF_UNROLL
      for (int s = 0; s < Cell::kSlots; ++s) bias[half][s] = in_layer[half] ? io.bias[s * a.H + unit + 8 * half] : 0;
    }
  }
  // The state before the first step. The reverse direction reads no reset there.
  static SF_DEVICE float first(const DirectionArgs& io, int which, uint32_t b, int at, bool reverse, int length) {
    const bool anew = io.resets.data && !reverse && length > 0 && is_set(io.resets, 0, b);
    return state_at<Math>(anew ? (which == 0 ? io.h_reset : io.c_reset) : which == 0 ? io.h0 : io.c0, b, at);
  }
  SF_DEVICE bool live(const StepPosition<S>& now, int cell) const {
    return now.has(S::column_of(cell)) && in_layer[S::half_of(cell)];
  }
  SF_DEVICE void load(const DirectionArgs& io, const StepPosition<S>& now, bool reverse, Inputs& in) const {
    in = Inputs{};  // otherwise the compiler keeps the old values of cells that load none, at a move each
    if (io.resets.data) SF_UNROLL
    for (int column = 0; column < S::kLaneColumns; ++column) {
      const bool has_next = reverse ? now.t > 0 && now.has(column) : now.t + 1 < now.length[column];
      if (has_next && is_set(io.resets, reverse ? now.t_row : now.t_row_before, now.b[column])) in.anew |= 1u << column;
    }
    SF_UNROLL
    for (int column = 0; column < S::kLaneColumns; ++column) {
      const auto* x = reinterpret_cast<const float*>(io.projected.row(4 * unit, now.t_row, now.b[column]));
      SF_UNROLL
      for (int half = 0; half < S::kLaneHalves; ++half) {
        const int cell = S::cell_of(half, column);
        SF_UNROLL
        for (int g = 0; g < S::kGates; ++g)
          if (live(now, cell)) in.x[cell][g] = x[g * S::kPadded + 8 * half];
      }
    }
  }
  // The part of the slots that does not depend on the product: biases and projected input.
  struct Prepared {
    float slots[S::kCells][Cell::kSlots];
    uint32_t anew;
  };
  SF_DEVICE Prepared prepare(const Inputs& in, const DirectionArgs&, const Lane<S>&, const StepPosition<S>&,
                             bool) const {
    Prepared k;
    k.anew = in.anew;
    SF_UNROLL
    for (int cell = 0; cell < S::kCells; ++cell) SF_UNROLL
    for (int s = 0; s < Cell::kSlots; ++s)
      k.slots[cell][s] = bias[S::half_of(cell)][s] + (s < S::kGates ? in.x[cell][s < S::kGates ? s : 0] : 0);
    return k;
  }
  // The value from which the sum of m-tile m starts. Without kStartsFromInput it is added after the product.
  static SF_DEVICE float start(const Prepared& k, int cell, int m) { return k.slots[cell][Cell::hidden_slot(m)]; }

  SF_DEVICE void run(const LaunchArgs& a, const DirectionArgs& io, const StepPosition<S>& now, const Prepared& prepared,
                     const float (&sums)[S::kCells][S::kMTiles], const SharedOptions<S>& options,
                     const LaneMasks<S>& masks, int, Vector<float, S::kCells>& h, Vector<float, S::kCells>& c,
                     float (&next)[S::kCells][S::kOperands]) const {
    SF_UNROLL
    for (int column = 0; column < S::kLaneColumns; ++column) {
      Storage *const output = row_of(io.output, 1, now, column), *const saved_row = row_of(
                                                                     io.saved, Cell::kSaved >= 4 ? 4 : 1, now, column);
      SF_UNROLL
      for (int half = 0; half < S::kLaneHalves; ++half) {
        const int cell = S::cell_of(half, column);
        float slots[Cell::kSlots], saved[5];
        SF_UNROLL
        for (int s = 0; s < Cell::kSlots; ++s) slots[s] = prepared.slots[cell][s];
        SF_UNROLL
        for (int g = 0; g < S::kGates; ++g)
          slots[Cell::hidden_slot(g)] = S::kStartsFromInput ? sums[cell][g] : start(prepared, cell, g) + sums[cell][g];
        float next_h = h.v[cell], next_c = c.v[cell];
        Vector<float, 4> seen{};
        Cell::forward(slots, next_h, next_c, saved, options.of_unit(masks, cell, seen));
        keep(a, io, now, masks, cell, half, next_h, next_c, saved, output, saved_row, h, c, next);
      }
    }
    begin_anew(io, now, prepared, masks, h, c, next);
  }
  // What follows a cell's formula: zoneout, what is written, and what the next step reads.
  SF_DEVICE void keep(const LaunchArgs& a, const DirectionArgs& io, const StepPosition<S>& now,
                      const LaneMasks<S>& masks, int cell, int half, float next_h, float next_c, float (&saved)[5],
                      Storage* output, Storage* saved_row, Vector<float, S::kCells>& h, Vector<float, S::kCells>& c,
                      float (&next)[S::kCells][S::kOperands]) const {
    if constexpr (S::kOptions) {
      if (Cell::kReadsH && a.options.saves_fresh_h && io.saved.data && live(now, cell))
        saved_row[fresh_h() + 8 * half] = Math::narrow(next_h);
      next_h = masks.share(Masked::kZoneoutH, cell).mix(next_h, h.v[cell]);
      if (Cell::kHasC) saved[4] = next_c = masks.share(Masked::kZoneoutC, cell).mix(next_c, c.v[cell]);
    }
    const Storage stored = Math::narrow(next_h);
    if (live(now, cell)) {
      h.v[cell] = Math::widen(stored);  // the next step reads h as it is stored
      c.v[cell] = next_c;
      if (a.write_output) output[8 * half] = stored;
      if (Cell::kSaved >= 4 && io.saved.data) {
        *reinterpret_cast<typename Math::Four*>(saved_row + 32 * half) = Math::pack(saved);
        if (Cell::kSaved > 4) saved_row[fifth - 3 * unit + 8 * half] = Math::narrow(saved[Cell::kSaved - 1]);
      }
    }
    next[cell][0] = masks.of_state(h.v[cell], cell);
  }
  // Leaves the reset state where the next step starts from it.
  SF_DEVICE void begin_anew(const DirectionArgs& io, const StepPosition<S>& now, const Prepared& prepared,
                            const LaneMasks<S>& masks, Vector<float, S::kCells>& h, Vector<float, S::kCells>& c,
                            float (&next)[S::kCells][S::kOperands]) const {
    if (prepared.anew)
      each_anew<S>(prepared.anew, in_layer, [&](int cell, int column, int half) {
        h.v[cell] = state_at<Math>(io.h_reset, now.b[column], unit + 8 * half);
        next[cell][0] = masks.of_state(h.v[cell], cell);
        if (Cell::kHasC) c.v[cell] = state_at<Math>(io.c_reset, now.b[column], unit + 8 * half);
      });
  }
  // Where the lane's part of a row of values begins, of which each unit has `values` side by side.
  SF_DEVICE Storage* row_of(const RowAddress& rows, int values, const StepPosition<S>& now, int column) const {
    return reinterpret_cast<Storage*>(
        rows.row(static_cast<int>(sizeof(Storage)) * values * unit, now.t_row, now.b[column]));
  }
  SF_DEVICE int fresh_h() const { return S::kFreshH * (fifth / 4); }
  static SF_DEVICE void finish(const DirectionArgs& io, int64_t b, int at, float h, float c) {
    *element<Storage>(io.h_n, 0, b, at) = Math::narrow(h);
    if (Cell::kHasC) *element<Storage>(io.c_n, 0, b, at) = Math::narrow(c);
  }
};

template <class S>
struct BackwardStep {
  using Cell = typename S::Cell;
  using Math = typename S::Math;
  using Storage = typename Math::Storage;
  struct Inputs {
    typename Math::Four four[S::kCells];
    Storage c[S::kCells], c_before[S::kCells], h[S::kCells], h_before[S::kCells], d[S::kCells];
    uint32_t anew;  // a bit for each column: whether the step starts from the reset state
  };

  bool in_layer[S::kLaneHalves], fresh_h;
  int unit, fifth;

  SF_DEVICE BackwardStep(const LaunchArgs& a, const DirectionArgs&, const Lane<S>& at)
      : fresh_h(a.options.saves_fresh_h), unit(at.unit(0)), fifth(4 * static_cast<int>(padded(a.H))) {
    SF_UNROLL
    for (int half = 0; half < S::kLaneHalves; ++half) in_layer[half] = unit + 8 * half < a.H;
  }
  static SF_DEVICE float first(const DirectionArgs& io, int which, uint32_t b, int at, bool, int) {
    if (which == 1 && !Cell::kHasC) return 0;
    const Rows& from = which == 0 ? io.d_h_n : io.d_c_n;
    return from.data ? Math::widen(*element<const Storage>(from, 0, b, at)) : 0;
  }
  SF_DEVICE bool live(const StepPosition<S>& now, int cell) const {
    return now.has(S::column_of(cell)) && in_layer[S::half_of(cell)];
  }
  SF_DEVICE void load(const DirectionArgs& io, const StepPosition<S>& now, bool reverse, Inputs& in) const {
    in = Inputs{};
    const RowAddress& given = S::kOptions && fresh_h ? io.saved : io.output;  // has the h that the cells gave
    const int before = reverse ? now.t + 1 : now.t - 1;
    if (io.resets.data) SF_UNROLL
    for (int column = 0; column < S::kLaneColumns; ++column)
      if (now.has(column) && (!reverse || before < now.length[column]) &&
          is_set(io.resets, reverse ? now.t_row_before : now.t_row, now.b[column]))
        in.anew |= 1u << column;
    SF_UNROLL
    for (int column = 0; column < S::kLaneColumns; ++column) {
      const bool has_before = reverse ? before < now.length[column] : before >= 0;
      const uint32_t b = now.b[column];
      const int size = sizeof(Storage);
      const auto at = [](const char* row) { return reinterpret_cast<const Storage*>(row); };
      const Storage* saved = at(io.saved.row(size * 4 * unit, now.t_row, b));
      const Storage* fifth_now = at(io.saved.row(size * (fifth + unit), now.t_row, b));
      const Storage* fifth_before =
          at(has_before ? io.saved.row(size * (fifth + unit), now.t_row_before, b) : io.c0.row(size * unit, 0, b));
      const Storage* h = at(given.row(size * (unit + (fresh_h ? S::kFreshH * (fifth / 4) : 0)), now.t_row, b));
      const Storage* h_before =
          at(has_before ? io.output.row(size * unit, now.t_row_before, b) : io.h0.row(size * unit, 0, b));
      const Storage* d = at(io.d_output.row(size * unit, now.t_row, b));
      SF_UNROLL
      for (int half = 0; half < S::kLaneHalves; ++half) {
        const int cell = S::cell_of(half, column), i = 8 * half;
        if (!live(now, cell)) continue;
        if (Cell::kSaved >= 4) in.four[cell] = *reinterpret_cast<const typename Math::Four*>(saved + 4 * i);
        if (Cell::kSaved > 4) in.c[cell] = fifth_now[i];
        if (Cell::kHasC) in.c_before[cell] = has_before || io.c0.data ? fifth_before[i] : Math::narrow(0);
        if (Cell::kReadsH) in.h[cell] = h[i];
        if (Cell::kReadsHPrev) in.h_before[cell] = has_before || io.h0.data ? h_before[i] : Math::narrow(0);
        if (io.d_output.data) in.d[cell] = d[i];
      }
    }
  }
  using Prepared = Inputs;
  static SF_DEVICE const Inputs& prepare(const Inputs& in, const DirectionArgs&, const Lane<S>&, const StepPosition<S>&,
                                         bool) {
    return in;
  }
  static SF_DEVICE float start(const Prepared&, int, int) { return 0; }

  SF_DEVICE void run(const LaunchArgs& a, const DirectionArgs& io, const StepPosition<S>& now, const Prepared& in,
                     const float (&sums)[S::kCells][S::kMTiles], const SharedOptions<S>& options,
                     const LaneMasks<S>& masks, int tile, Vector<float, S::kCells>& pending,
                     Vector<float, S::kCells>& carry, float (&next)[S::kCells][S::kOperands]) const {
    float h_before[S::kCells], c_before[S::kCells];
    Vector<float, S::kCells> d_seen[3] = {};
    read_before(io, now, in, h_before, c_before);
    SF_UNROLL
    for (int column = 0; column < S::kLaneColumns; ++column) {
      Storage* d_slots[Cell::kSlots];
      SF_UNROLL
      for (int s = 0; s < Cell::kSlots; ++s) {
        const int64_t offset = static_cast<int64_t>(sizeof(Storage)) * (s * a.H + unit);
        d_slots[s] = reinterpret_cast<Storage*>(io.d_gates.row(offset, now.t_row, now.b[column]));
      }
      SF_UNROLL
      for (int half = 0; half < S::kLaneHalves; ++half) {
        const int cell = S::cell_of(half, column);
        const auto used = [](bool used_by_cell, Storage v) { return used_by_cell ? Math::widen(v) : 0; };
        float saved[5], d[Cell::kSlots];
        if (Cell::kSaved >= 4) Math::unpack(in.four[cell], saved);
        if (Cell::kSaved > 4) saved[4] = Math::widen(in.c[cell]);
        pending.v[cell] += masks.of_state(sums[cell][0], cell);
        Arriving come = arriving(in, masks, cell, pending.v[cell], carry.v[cell]);
        const bool is_live = live(now, cell);
        Vector<float, 4> seen{};
        const auto unit_options = options.of_unit(masks, cell, seen);
        if constexpr (S::kOptions && Cell::kHasC)
          if (options.changes(Masked::kZoneoutC))
            saved[4] = Cell::next_c(saved[0], saved[1], saved[2], c_before[cell], unit_options);
        Cell::backward(saved, used(Cell::kReadsH, in.h[cell]), h_before[cell], c_before[cell], come.dh, come.carry, d,
                       unit_options);
        if constexpr (S::kOptions && Cell::kHasC) {
          come.carry += come.kept_c;
          if (is_live) {
            d_seen[0].v[cell] = d[0] * c_before[cell];
            d_seen[1].v[cell] = d[1] * c_before[cell];
            d_seen[2].v[cell] = d[3] * saved[4];
          }
        }
        if (is_live) {
          pending.v[cell] = come.kept_h;
          carry.v[cell] = come.carry;
          SF_UNROLL
          for (int s = 0; s < Cell::kSlots; ++s) d_slots[s][8 * half] = Math::narrow(d[s]);
        }
        SF_UNROLL
        for (int g = 0; g < S::kGates; ++g) next[cell][g] = is_live ? d[Cell::hidden_slot(g)] : 0;
      }
    }
    if constexpr (S::kOptions && Cell::kHasC)
      if (options.adds_up()) SF_UNROLL
    for (int gate = 0; gate < 3; ++gate) options.add_seen(tile, gate, d_seen[gate]);
    stop_at_resets(a, io, now, in, options, pending, carry, next);
  }
  // The states before the step.
  SF_DEVICE void read_before(const DirectionArgs& io, const StepPosition<S>& now, const Inputs& in,
                             float (&h_before)[S::kCells], float (&c_before)[S::kCells]) const {
    SF_UNROLL
    for (int cell = 0; cell < S::kCells; ++cell) {
      h_before[cell] = Cell::kReadsHPrev ? Math::widen(in.h_before[cell]) : 0;
      c_before[cell] = Cell::kHasC ? Math::widen(in.c_before[cell]) : 0;
    }
    if ((Cell::kReadsHPrev || Cell::kHasC) && in.anew)
      each_anew<S>(in.anew, in_layer, [&](int cell, int column, int half) {
        if (Cell::kReadsHPrev) h_before[cell] = state_at<Math>(io.h_reset, now.b[column], unit + 8 * half);
        if (Cell::kHasC) c_before[cell] = state_at<Math>(io.c_reset, now.b[column], unit + 8 * half);
      });
  }
  // What comes to a cell: the gradient of the h that it gave and its carry, and what zoneout keeps of the gradients of
  // h and of c for the step before.
  struct Arriving {
    float dh, carry, kept_h, kept_c;
  };
  SF_DEVICE Arriving arriving(const Inputs& in, const LaneMasks<S>& masks, int cell, float pending, float carry) const {
    Arriving come{pending + Math::widen(in.d[cell]), carry, 0, 0};
    if constexpr (S::kOptions) {
      if (Cell::kCarriesH) {  // zoneout shares out the whole gradient of h
        come.dh += come.carry;
        come.carry = 0;
      }
      const NewShare<float> of_h = masks.share(Masked::kZoneoutH, cell);
      come.kept_h = of_h.of_old(come.dh);
      come.dh = of_h.of_new(come.dh);
      if constexpr (Cell::kHasC) share_carry(masks, cell, come);
    }
    return come;
  }
  SF_DEVICE void share_carry(const LaneMasks<S>& masks, int cell, Arriving& come) const {
    const NewShare<float> of_c = masks.share(Masked::kZoneoutC, cell);
    come.kept_c = of_c.of_old(come.carry);
    come.carry = of_c.of_new(come.carry);
  }
  // Nothing flows back over a reset.
  SF_DEVICE void stop_at_resets(const LaunchArgs& a, const DirectionArgs& io, const StepPosition<S>& now,
                                const Inputs& in, const SharedOptions<S>& options, Vector<float, S::kCells>& pending,
                                Vector<float, S::kCells>& carry, float (&next)[S::kCells][S::kOperands]) const {
    if (in.anew)
      each_anew<S>(in.anew, in_layer, [&](int cell, int column, int half) {
        if ((Cell::kHasC || Cell::kCarriesH) && io.reset_carry)
          io.reset_carry[static_cast<int64_t>(now.b[column]) * a.H + unit + 8 * half] += carry.v[cell];
        carry.v[cell] = 0;
        if constexpr (S::kOptions)
          pending.v[cell] = options.to_reset_h(pending.v[cell], now.b[column], unit + 8 * half, a.H);
        SF_UNROLL
        for (int g = 0; g < S::kGates; ++g) next[cell][g] = 0;
      });
  }
  static SF_DEVICE void finish(const DirectionArgs& io, int64_t b, int at, float pending, float carry) {
    if (io.d_h0.data) *element<Storage>(io.d_h0, 0, b, at) = Math::narrow(pending + (Cell::kCarriesH ? carry : 0));
    if (Cell::kHasC && io.d_c0.data) *element<Storage>(io.d_c0, 0, b, at) = Math::narrow(carry);
  }
};

}  // namespace sf::cuda

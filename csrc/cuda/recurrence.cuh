// The recurrent kernel: one text for every cell, precision, pass and regime. R stays in registers; per step and batch
// tile a warp multiplies the operand by its part of R, the cells it holds turn the sums into the next operand, and the
// exchange brings that to all who read it. The two passes differ in what a cell reads and gives.
#pragma once

#include "exchange.cuh"

namespace sf::cuda {

// Per batch tile and cell a thread keeps two floats in shared memory: h and c going forward; going back d(loss)/dh that
// has come but was not used yet, and the cell's carry.
template <class S>
struct States {
  Shared<float> region;

  SF_DEVICE States(Carve& carve, const Sweep& a)
      : region(carve.take<float>(a.tiles * 2 * S::kCells * block_threads())) {}
  SF_DEVICE int index(int tile, int which, int cell) const {
    return ((tile * 2 + which) * S::kCells + cell) * block_threads() + thread_id();
  }
  SF_DEVICE float load(int tile, int which, int cell) const { return region.load(index(tile, which, cell)); }
  SF_DEVICE void store(int tile, int which, int cell, float v) const { region.store(index(tile, which, cell), v); }
};

// One cell at one step: batch row, length, whether the row has this step.
struct Place {
  int64_t t, b;
  int unit, length;
  bool live;
};

template <class S>
struct ForwardStep {
  using Cell = typename S::Cell;
  using Math = typename S::Math;
  using Storage = typename Math::Storage;
  struct Inputs {
    float x[S::kCells][S::kGates];
  };
  static constexpr int kUnitsHeld = S::kSplits == 1 ? 2 : 1;

  float bias[kUnitsHeld][Cell::kSlots];
  int64_t padded_units;

  SF_DEVICE ForwardStep(const Sweep& a, const SweepDirection& io, const Lane<S>& at) : padded_units(padded(a.H)) {
    SF_UNROLL
    for (int i = 0; i < kUnitsHeld; ++i) {
      const int unit = at.unit(2 * i);
      SF_UNROLL
      for (int s = 0; s < Cell::kSlots; ++s) bias[i][s] = unit < a.H ? io.bias[s * a.H + unit] : 0;
    }
  }
  static SF_DEVICE float first(const SweepDirection& io, int which, int64_t b, int unit) {
    const Rows& from = which == 0 ? io.h0 : io.c0;
    return from.data ? Math::widen(*element<const Storage>(from, 0, b, unit)) : 0;
  }
  SF_DEVICE void load(const Sweep& a, const SweepDirection& io, const Place& p, bool, Inputs& in, int cell) const {
    SF_UNROLL
    for (int g = 0; g < S::kGates; ++g)
      in.x[cell][g] = p.live ? *element<const float>(io.projected, p.t - io.begin, p.b, g * a.H + p.unit) : 0;
  }
  SF_DEVICE void run(const Sweep& a, const SweepDirection& io, const Place& p, const Inputs& in, int cell,
                     const float (&sum)[S::kMTiles], float& h, float& c, float (&gives)[S::kOperands]) const {
    float slots[Cell::kSlots], saved[Cell::kSaved + 1];
    SF_UNROLL
    for (int s = 0; s < Cell::kSlots; ++s) slots[s] = bias[cell * kUnitsHeld / S::kCells][s];
    SF_UNROLL
    for (int g = 0; g < S::kGates; ++g) slots[g] += in.x[cell][g];
    SF_UNROLL
    for (int g = 0; g < S::kGates; ++g) slots[Cell::hidden_slot(g)] += sum[g];
    float next_h = h, next_c = c;
    Cell::forward(slots, next_h, next_c, saved);
    const Storage stored = Math::narrow(next_h);
    if (p.live) {
      h = Math::widen(stored);  // what the next step reads is what is stored
      c = next_c;
      if (a.write_output) *element<Storage>(io.output, p.t, p.b, p.unit) = stored;
      if (io.saved.data) {
        Storage* to = element<Storage>(io.saved, p.t, p.b, 0);
        SF_UNROLL
        for (int s = 0; s < Cell::kSaved; ++s) to[saved_at(s, p.unit, padded_units)] = Math::narrow(saved[s]);
      }
    }
    gives[0] = h;
  }
  static SF_DEVICE void finish(const SweepDirection& io, int64_t b, int unit, float h, float c) {
    *element<Storage>(io.h_n, 0, b, unit) = Math::narrow(h);
    if (Cell::kHasC) *element<Storage>(io.c_n, 0, b, unit) = Math::narrow(c);
  }
};

template <class S>
struct BackwardStep {
  using Cell = typename S::Cell;
  using Math = typename S::Math;
  using Storage = typename Math::Storage;
  struct Inputs {
    Storage saved[S::kCells][Cell::kSaved + 1], h[S::kCells], h_prev[S::kCells], c_prev[S::kCells], d[S::kCells];
  };
  int64_t padded_units;

  SF_DEVICE BackwardStep(const Sweep& a, const SweepDirection&, const Lane<S>&) : padded_units(padded(a.H)) {}
  static SF_DEVICE float first(const SweepDirection& io, int which, int64_t b, int unit) {
    if (which == 1 && !Cell::kHasC) return 0;
    const Rows& from = which == 0 ? io.d_h_n : io.d_c_n;
    return from.data ? Math::widen(*element<const Storage>(from, 0, b, unit)) : 0;
  }
  SF_DEVICE void load(const Sweep&, const SweepDirection& io, const Place& p, bool reverse, Inputs& in,
                      int cell) const {
    const Storage zero = Math::narrow(0);
    SF_UNROLL
    for (int s = 0; s < Cell::kSaved; ++s) in.saved[cell][s] = zero;
    in.h[cell] = in.h_prev[cell] = in.c_prev[cell] = in.d[cell] = zero;
    if (!p.live) return;
    const Storage* saved = element<const Storage>(io.saved, p.t, p.b, 0);
    SF_UNROLL
    for (int s = 0; s < Cell::kSaved; ++s) in.saved[cell][s] = saved[saved_at(s, p.unit, padded_units)];
    const int64_t before = reverse ? p.t + 1 : p.t - 1;
    const bool has_before = reverse ? before < p.length : before >= 0;
    if (Cell::kReadsH) in.h[cell] = *element<const Storage>(io.output, p.t, p.b, p.unit);
    if (Cell::kReadsHPrev) {
      if (has_before)
        in.h_prev[cell] = *element<const Storage>(io.output, before, p.b, p.unit);
      else if (io.h0.data)
        in.h_prev[cell] = *element<const Storage>(io.h0, 0, p.b, p.unit);
    }
    if (Cell::kHasC) {
      if (has_before) {
        const int64_t at = saved_at(Cell::kSaved - 1, p.unit, padded_units);
        in.c_prev[cell] = element<const Storage>(io.saved, before, p.b, 0)[at];
      } else if (io.c0.data) {
        in.c_prev[cell] = *element<const Storage>(io.c0, 0, p.b, p.unit);
      }
    }
    if (io.d_output.data) in.d[cell] = *element<const Storage>(io.d_output, p.t, p.b, p.unit);
  }
  SF_DEVICE void run(const Sweep& a, const SweepDirection& io, const Place& p, const Inputs& in, int cell,
                     const float (&sum)[S::kMTiles], float& pending, float& carry, float (&gives)[S::kOperands]) const {
    float saved[Cell::kSaved + 1], d[Cell::kSlots];
    SF_UNROLL
    for (int s = 0; s < Cell::kSaved; ++s) saved[s] = Math::widen(in.saved[cell][s]);
    pending += sum[0];
    float next_carry = carry;
    Cell::backward(saved, Math::widen(in.h[cell]), Math::widen(in.h_prev[cell]), Math::widen(in.c_prev[cell]),
                   pending + Math::widen(in.d[cell]), next_carry, d);
    if (p.live) {
      pending = 0;
      carry = next_carry;
      Storage* to = element<Storage>(io.d_gates, p.t, p.b, p.unit);
      SF_UNROLL
      for (int s = 0; s < Cell::kSlots; ++s) to[s * a.H] = Math::narrow(d[s]);
    }
    SF_UNROLL
    for (int g = 0; g < S::kGates; ++g) gives[g] = p.live ? d[Cell::hidden_slot(g)] : 0;
  }
  static SF_DEVICE void finish(const SweepDirection& io, int64_t b, int unit, float pending, float carry) {
    if (io.d_h0.data) *element<Storage>(io.d_h0, 0, b, unit) = Math::narrow(pending + (Cell::kCarriesH ? carry : 0));
    if (Cell::kHasC && io.d_c0.data) *element<Storage>(io.d_c0, 0, b, unit) = Math::narrow(carry);
  }
};

template <class S>
struct StepOf {
  using Type = ForwardStep<S>;
};
template <class Cell, class Math, int kSplits, int kHiddenTiles>
struct StepOf<Shape<Cell, Math, kSplits, kHiddenTiles, Pass::kBackward>> {
  using Type = BackwardStep<Shape<Cell, Math, kSplits, kHiddenTiles, Pass::kBackward>>;
};

// The warp's part of R times a batch tile's operand.
template <class S>
struct Weights {
  uint32_t r[S::kMTiles][S::kKTiles][S::kPlanes][4];

  SF_DEVICE Weights(const SweepDirection& io, const Lane<S>& at) {
    const auto* from = static_cast<const uint4*>(io.weights) + at.lane;
    const int warp = at.block * (block_threads() / 32) + at.warp;
    SF_UNROLL
    for (int m = 0; m < S::kMTiles; ++m) SF_UNROLL
    for (int k = 0; k < S::kKTiles; ++k) SF_UNROLL
    for (int plane = 0; plane < S::kPlanes; ++plane) {
      const uint4 v = from[(((warp * S::kMTiles + m) * S::kKTiles + k) * S::kPlanes + plane) * 32];
      auto& to = r[m][k][plane];
      to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
    }
  }

  SF_DEVICE void multiply(const Operand<S>& operand, int64_t step, int tile, const Lane<S>& at,
                          float (&sums)[S::kMTiles][4]) const {
    float chains[S::kChains][S::kMTiles][4] = {};
    SF_UNROLL
    for (int k = 0; k < S::kKTiles; k += 2) {
      uint4 loaded[S::kPlanes];
      SF_UNROLL
      for (int plane = 0; plane < S::kPlanes; ++plane) {
        const int k_tile = at.split * S::kKTiles + k, piece = 2 * k_tile + (at.lane >> 3);
        loaded[plane] =
            load_matrices(operand.region, operand.row(step, tile, plane, at.lane & 7) + piece * S::kPieceElements);
      }
      SF_UNROLL
      for (int j = 0; j < 2; ++j) {
        uint32_t b[S::kPlanes][2];
        SF_UNROLL
        for (int plane = 0; plane < S::kPlanes; ++plane) {
          b[plane][0] = j ? loaded[plane].z : loaded[plane].x;
          b[plane][1] = j ? loaded[plane].w : loaded[plane].y;
        }
        SF_UNROLL
        for (int m = 0; m < S::kMTiles; ++m) S::Math::mma(chains[(k + j) % S::kChains][m], r[m][k + j], b);
      }
    }
    SF_UNROLL
    for (int m = 0; m < S::kMTiles; ++m) SF_UNROLL
    for (int i = 0; i < 4; ++i) {
      sums[m][i] = chains[0][m][i];
      SF_UNROLL
      for (int c = 1; c < S::kChains; ++c) sums[m][i] += chains[c][m][i];
    }
  }
};

// The sums of the warps that share a group's K, added in their order: (2 in turn, groups, 4 elements, m-tiles, warps,
// 32 lanes). Two in turn, so that one barrier is enough.
template <class S>
struct Partials {
  Shared<float> region;
  int groups;

  SF_DEVICE Partials(Carve& carve, const Sweep& a)
      : region(carve.take<float>(2 * a.block_groups * 4 * S::kMTiles * S::kSplits * 32)), groups(a.block_groups) {}

  SF_DEVICE void reduce(const Lane<S>& at, int turn, const float (&mine)[S::kMTiles][4],
                        float (&sums)[S::kCells][S::kMTiles]) const {
    const int base = (turn * groups + at.group_in_block) * 4 * S::kMTiles * S::kSplits * 32 + at.lane;
    SF_UNROLL
    for (int i = 0; i < 4; ++i) SF_UNROLL
    for (int m = 0; m < S::kMTiles; ++m)
      region.store(base + ((i * S::kMTiles + m) * S::kSplits + at.split) * 32, mine[m][i]);
    group_sync(at.group_in_block, 32 * S::kSplits);
    if (!at.owns()) return;
    SF_UNROLL
    for (int c = 0; c < S::kCells; ++c) SF_UNROLL
    for (int m = 0; m < S::kMTiles; ++m) {
      const int from = base + ((at.split * S::kCells + c) * S::kMTiles + m) * S::kSplits * 32;
      sums[c][m] = region.load(from);
      SF_UNROLL
      for (int s = 1; s < S::kSplits; ++s) sums[c][m] += region.load(from + s * 32);
    }
  }
};

template <class S, template <class> class ExchangeOf>
SF_KERNEL(S::kThreads)
recur(SF_PARAMETER Sweep a) {
  using Step = typename StepOf<S>::Type;
  constexpr bool kForward = S::kPass == Pass::kForward;
  const Lane<S> at(a);
  const int team = block_id() / a.blocks, direction = team % a.directions;
  const int64_t first_row = static_cast<int64_t>(team / a.directions) * a.tiles * kTileRows;
  const SweepDirection& io = a.direction[direction];

  Carve carve;
  const auto rows = carve.take<int>(a.tiles * kTileRows), lengths = carve.take<int>(a.tiles * kTileRows);
  const States<S> states(carve, a);
  ExchangeOf<S> exchange(carve, a, at);
  const Partials<S> partials(carve, a);
  const Weights<S> weights(io, at);
  const Step step(a, io, at);

  // Which batch row each row of the team's tiles is, and its length; beyond the batch: -1, 0.
  for (int i = thread_id(); i < a.tiles * kTileRows; i += block_threads()) {
    const int64_t slot = first_row + i, b = slot >= a.B ? -1 : a.order ? a.order[slot] : slot;
    rows.store(i, static_cast<int>(b));
    lengths.store(i, b < 0 ? 0 : static_cast<int>(a.lengths ? a.lengths[b] : a.T));
  }
  for (int i = thread_id(); i < exchange.operand.size(); i += block_threads()) exchange.operand.region.store(i, 0);
  cta_sync();
  const bool ascending = (direction == 0) == kForward;
  int64_t end = io.begin;
  for (int i = 0; i < a.tiles * kTileRows; ++i) end = lengths.load(i) > end ? lengths.load(i) : end;
  end = end < io.end ? end : io.end;
  const int64_t steps = end - io.begin;
  const int64_t turns = steps + (kForward ? 0 : 1);  // going back, the last only gathers what the first step is owed

  // The states before the first step, and going forward the operand it reads.
  const auto state_before = [&](int which, int64_t b, int unit) {
    if (b < 0 || unit >= a.H) return 0.0f;
    return a.first ? Step::first(io, which, b, unit) : a.carried_in[((direction * 2 + which) * a.B + b) * a.H + unit];
  };
  if (at.owns()) {
    for (int tile = 0; tile < a.tiles; ++tile) SF_UNROLL
    for (int cell = 0; cell < S::kCells; ++cell)
      for (int which = 0; which < 2; ++which)
        states.store(tile, which, cell,
                     state_before(which, rows.load(tile * kTileRows + at.column(cell)), at.unit(cell)));
  }
  if (kForward) {
    for (int i = thread_id(); i < a.tiles * kTileRows * a.H; i += block_threads()) {
      const int unit = static_cast<int>(i % a.H), row = static_cast<int>(i / a.H);
      exchange.operand.store(0, row / kTileRows, row % kTileRows, 0, unit, state_before(0, rows.load(row), unit));
    }
  }
  exchange.begin();

  const auto place = [&](int64_t s, int tile, int cell) {
    const int slot = tile * kTileRows + at.column(cell);
    const int64_t t = ascending ? io.begin + s : end - 1 - s;
    const int length = lengths.load(slot), unit = at.unit(cell);
    return Place{t, rows.load(slot), unit, length, t < length && unit < a.H};
  };
  typename Step::Inputs ahead{};
  if (at.owns() && steps > 0) SF_UNROLL
  for (int cell = 0; cell < S::kCells; ++cell) step.load(a, io, place(0, 0, cell), direction == 1, ahead, cell);

  int64_t s = 0;
  for (int64_t i = 0, tile = 0; s < turns; ++i) {
    const int now_tile = static_cast<int>(tile);
    const int64_t now = s;
    if (++tile == a.tiles) tile = 0, ++s;  // of the next turn of this loop
    const typename Step::Inputs in = ahead;
    if (at.owns() && s < steps) SF_UNROLL
    for (int cell = 0; cell < S::kCells; ++cell)
      step.load(a, io, place(s, static_cast<int>(tile), cell), direction == 1, ahead, cell);

    exchange.wait(at, now, turns, now_tile);
    float products[S::kMTiles][4], sums[S::kCells][S::kMTiles];
    weights.multiply(exchange.operand, now, now_tile, at, products);
    if constexpr (S::kSplits == 1) {
      SF_UNROLL
      for (int cell = 0; cell < S::kCells; ++cell) SF_UNROLL
      for (int m = 0; m < S::kMTiles; ++m) sums[cell][m] = products[m][cell];
    } else {
      partials.reduce(at, static_cast<int>(i & 1), products, sums);
    }
    if (at.owns()) {
      SF_UNROLL
      for (int cell = 0; cell < S::kCells; ++cell) {
        const Place p = place(now, now_tile, cell);
        float s0 = states.load(now_tile, 0, cell), s1 = states.load(now_tile, 1, cell), gives[S::kOperands];
        if (now < steps)
          step.run(a, io, p, in, cell, sums[cell], s0, s1, gives);
        else
          s0 += sums[cell][0];
        states.store(now_tile, 0, cell, s0);
        states.store(now_tile, 1, cell, s1);
        if (now + 1 < turns) SF_UNROLL
        for (int g = 0; g < S::kOperands; ++g)
          exchange.put(at, now + 1, now_tile, at.column(cell), g, at.unit(cell), gives[g]);
      }
    }
    if (now + 1 < turns) exchange.send(at, now + 1, now_tile);
  }

  if (at.owns()) {
    for (int tile = 0; tile < a.tiles; ++tile) SF_UNROLL
    for (int cell = 0; cell < S::kCells; ++cell) {
      const int64_t b = rows.load(tile * kTileRows + at.column(cell));
      const int unit = at.unit(cell);
      if (b < 0 || unit >= a.H) continue;
      const float s0 = states.load(tile, 0, cell), s1 = states.load(tile, 1, cell);
      if (a.last) {
        Step::finish(io, b, unit, s0, s1);
      } else {
        a.carried_out[((direction * 2 + 0) * a.B + b) * a.H + unit] = s0;
        a.carried_out[((direction * 2 + 1) * a.B + b) * a.H + unit] = s1;
      }
    }
  }
  exchange.end();
}

}  // namespace sf::cuda

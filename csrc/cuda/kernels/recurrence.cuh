// The recurrent kernel, written once for every cell, precision, pass and regime. R stays in registers. Per step and
// batch tile a warp multiplies the operand by its part of R, the cells it holds turn the sums into values of the next
// operand, and the exchange brings these to every warp that reads them. The passes differ in what a cell reads and
// writes (steps.cuh); a layer with a norm or with two products in a step has steps of its own (steps_norm.cuh,
// steps_reset.cuh).
#pragma once

#include "steps_norm.cuh"
#include "steps_reset.cuh"

namespace sf::cuda {

template <class S, bool kForward = S::kPass == Pass::kForward>
using StepOf = std::conditional_t<
    S::kNorm, std::conditional_t<kForward, NormForwardStep<S>, NormBackwardStep<S>>,
    std::conditional_t<S::kResetsFirst, std::conditional_t<kForward, ResetForwardStep<S>, ResetBackwardStep<S>>,
                       std::conditional_t<kForward, ForwardStep<S>, BackwardStep<S>>>>;

// A warp's part of R in registers, and the product of it with the operand of a batch tile.
template <class S>
struct WeightFragments {
  uint32_t r[S::kMTiles][S::kKTiles][S::kPlanes][4];

  SF_DEVICE WeightFragments(const DirectionArgs& io, const Lane<S>& at) {
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

  // The sums of the m-tiles kFirst .. kLast - 1.
  template <int kFirst = 0, int kLast = S::kMTiles, class Operand>
  SF_DEVICE void multiply(const Operand& operand, int step, int tile, const Lane<S>& at,
                          float (&sums)[S::kMTiles][4]) const {
    float chains[S::kChains][S::kMTiles][4] = {};  // the first chain starts from the values of `sums`
    SF_UNROLL
    for (int m = kFirst; m < kLast; ++m) SF_UNROLL
    for (int i = 0; i < 4; ++i) chains[0][m][i] = sums[m][i];
    SF_UNROLL
    for (int k = 0; k < S::kKTiles; k += 2) {
      uint4 loaded[S::kPlanes];
      SF_UNROLL
      for (int plane = 0; plane < S::kPlanes; ++plane) {
        const int k_tile = at.split * S::kKTiles + k, half_tile = 2 * k_tile + (at.lane >> 3);
        loaded[plane] =
            load_matrices(operand.region, operand.row(step, tile, plane, at.lane & 7) + half_tile * S::kPacketElements);
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
        for (int m = kFirst; m < kLast; ++m) S::Math::mma(chains[(k + j) % S::kChains][m], r[m][k + j], b);
      }
    }
    SF_UNROLL
    for (int m = kFirst; m < kLast; ++m) SF_UNROLL
    for (int i = 0; i < 4; ++i) {
      sums[m][i] = chains[0][m][i];
      SF_UNROLL
      for (int c = 1; c < S::kChains; ++c) sums[m][i] += chains[c][m][i];
    }
  }
};

// Adds up the sums of the warps that share a group, in the order of the warps. The layout is (2 buffers, groups, 4
// elements, m-tiles, warps, 32 lanes). The buffers are used in turn, so that one barrier per product is enough.
template <class S>
struct Partials {
  Shared<float> region;
  int groups;

  SF_DEVICE Partials(SharedAllocator& allocator, const LaunchArgs& a)
      : region(allocator.take<float>(2 * a.block_groups * 4 * S::kMTiles * S::kSplits * 32)), groups(a.block_groups) {}

  template <int kFirst = 0, int kLast = S::kMTiles>
  SF_DEVICE void reduce(const Lane<S>& at, int turn, const float (&mine)[S::kMTiles][4],
                        float (&sums)[S::kCells][S::kMTiles]) const {
    const int base = (turn * groups + at.group_in_block) * 4 * S::kMTiles * S::kSplits * 32 + at.lane;
    SF_UNROLL
    for (int i = 0; i < 4; ++i) SF_UNROLL
    for (int m = kFirst; m < kLast; ++m)
      region.store(base + ((i * S::kMTiles + m) * S::kSplits + at.split) * 32, mine[m][i]);
    group_sync(at.group_in_block, 32 * S::kSplits);
    if (!at.owns()) return;
    SF_UNROLL
    for (int c = 0; c < S::kCells; ++c) SF_UNROLL
    for (int m = kFirst; m < kLast; ++m) {
      const int from = base + ((at.split * S::kCells + c) * S::kMTiles + m) * S::kSplits * 32;
      sums[c][m] = region.load(from);
      SF_UNROLL
      for (int s = 1; s < S::kSplits; ++s) sums[c][m] += region.load(from + s * 32);
    }
  }
};

// The batch row and the length of each row of a team's tiles, (tiles, 8, 2). Rows beyond the batch have batch row -1
// and length 0.
template <class S>
struct RowTable {
  Shared<int> region;

  SF_DEVICE RowTable(SharedAllocator& allocator, const LaunchArgs& a, int first_row)
      : region(allocator.take<int>(a.tiles * kTileRows * 2)) {
    for (int i = thread_id(); i < a.tiles * kTileRows; i += block_threads()) {
      const int b = batch_row(a, first_row + i);
      region.store(2 * i, b);
      region.store(2 * i + 1, b < 0 ? 0 : a.lengths ? static_cast<int>(a.lengths[b]) : a.T);
    }
  }
  SF_DEVICE int b(int row) const { return region.load(2 * row); }
  SF_DEVICE int length(int row) const { return region.load(2 * row + 1); }
  // Loads the rows of a lane's columns, of which `row` is the first. If has_step is false, the lengths are set so that
  // no row has the step.
  SF_DEVICE void load(int row, bool has_step, StepPosition<S>& to) const {
    const auto v = region.template load_as<Vector<int, 2 * S::kLaneColumns>>(2 * row);
    SF_UNROLL
    for (int i = 0; i < S::kLaneColumns; ++i) {
      to.b[i] = static_cast<uint32_t>(v.v[2 * i]);
      to.length[i] = has_step ? v.v[2 * i + 1] : INT32_MIN;
    }
  }
};

struct NoTotals {
  template <class... Args>
  SF_DEVICE explicit NoTotals(Args&&...) {}
};
template <class S, class Exchange, bool kNorm = S::kNorm>
struct TotalsOfExchange {
  using Type = NoTotals;
};
template <class S, class Exchange>
struct TotalsOfExchange<S, Exchange, true> {
  using Type = RowTotals<S, typename Exchange::RowParts>;
};
template <class S, class Exchange>
using TotalsOf = typename TotalsOfExchange<S, Exchange>::Type;

template <class S, template <class> class ExchangeOf>
SF_KERNEL(S::kThreads)
recur(SF_PARAMETER LaunchArgs a) {
  using Step = StepOf<S>;
  using Exchange = ExchangeOf<S>;
  using Floats = Vector<float, S::kCells>;
  constexpr bool kForward = S::kPass == Pass::kForward;
  const Lane<S> at(a);
  const int team = block_id() / a.blocks, direction = team % a.directions;
  const DirectionArgs& io = a.direction[direction];

  SharedAllocator allocator;
  const RowTable<S> rows(allocator, a, team / a.directions * a.tiles * kTileRows);
  // h and c in the forward; in the backward the part of d(loss)/dh that no step has used yet, and the cell's carry.
  const LaneValues<S, 2> states(allocator, a.tiles);
  Exchange exchange(allocator, a, at);
  const SharedOptions<S> options(allocator, a, at, direction, team / a.directions * a.tiles * kTileRows);
  TotalsOf<S, Exchange> totals(allocator, a, at, direction);
  const Partials<S> partials(allocator, a);  // the last, since a plan counts none where one warp has all of K
  const WeightFragments<S> weights(io, at);
  const Step step(a, io, at);

  for (int i = thread_id(); i < exchange.operand.size(); i += block_threads()) exchange.operand.region.store(i, 0);
  cta_sync();
  const bool ascending = (direction == 0) == kForward;
  int end = io.begin;
  for (int i = 0; i < a.tiles * kTileRows; ++i) end = rows.length(i) > end ? rows.length(i) : end;
  end = end < io.end ? end : io.end;
  const int steps = end - io.begin, stride = ascending ? 1 : -1;
  // The backward runs one extra iteration, to add the gradient of h0.
  const int turns = steps + (kForward ? 0 : 1);

  // Set the states before the first step, and in the forward the operand of the first step too. That of the backward is
  // the zeros that are there already.
  const auto state_before = [&](int which, int row, int unit) {
    const int b = rows.b(row);
    if (b < 0 || unit >= a.H) return 0.0f;
    return a.first ? Step::first(io, which, b, unit, direction == 1, rows.length(row))
                   : a.carried_in[(static_cast<int64_t>(direction * 2 + which) * a.B + b) * a.H + unit];
  };
  for (int tile = 0; tile < a.tiles && at.owns(); ++tile)
    for (int which = 0; which < 2; ++which) {
      Floats v;
      SF_UNROLL
      for (int cell = 0; cell < S::kCells; ++cell)
        v.v[cell] = state_before(which, tile * kTileRows + at.column(cell), at.unit(cell));
      states.store(tile, which, v);
    }
  const auto set_first_operand = [&](int tile) {
    for (int i = thread_id(); i < kTileRows * a.H; i += block_threads()) {
      const int unit = i % a.H, column = i / a.H;
      const int row = tile * kTileRows + column;
      const float h[S::kOperands] = {options.first_state(state_before(0, row, unit), row, unit)};
      store_split<S>(exchange.operand.region, h,
                     [&](int plane) { return exchange.operand.row(0, tile, plane, column) + unit; });
    }
  };
  if constexpr (kForward && Exchange::kHoldsEveryTile)
    for (int tile = 0; tile < a.tiles; ++tile) set_first_operand(tile);
  exchange.begin();

  // Row offsets of a packed sequence are read one step before they are used, the inputs of a cell one iteration of the
  // loop below before.
  const auto row_of = [&](int t) {
    if (!a.t_row) return static_cast<uint32_t>(t);
    return static_cast<uint32_t>(t < 0 ? 0 : a.t_row[t]);  // t_row has T + 1 elements
  };
  StepPosition<S> ahead{};
  typename Step::Inputs inputs_ahead{};
  ahead.t = ascending ? io.begin : end - 1;
  ahead.t_row = steps > 0 ? row_of(ahead.t) : 0;
  ahead.t_row_before = steps > 0 ? row_of(ahead.t + stride) : 0;
  if (at.owns()) {
    rows.load(at.column(0), steps > 0, ahead);
    step.load(io, ahead, direction == 1, inputs_ahead);
  }

  int turn = 0, tile = 0;
  for (int i = 0; turn < turns; ++i) {
    const int now_tile = tile, now_turn = turn;
    const StepPosition<S> now = ahead;
    const typename Step::Prepared prepared = step.prepare(inputs_ahead, io, at, now, direction == 1);
    const LaneMasks<S> masks = options.draw(at, now_tile * kTileRows + at.column(0), now.t);
    if (++tile == a.tiles) {
      tile = 0;
      ++turn;
      ahead.t += stride;
      ahead.t_row = ahead.t_row_before;
      if (turn < steps) ahead.t_row_before = row_of(ahead.t + stride);
    }
    if (at.owns()) {
      rows.load(tile * kTileRows + at.column(0), turn < steps, ahead);
      step.load(io, ahead, direction == 1, inputs_ahead);
    }

    if constexpr (kForward && !Exchange::kHoldsEveryTile)
      if (now_turn == 0) set_first_operand(now_tile);
    constexpr int kFirstTiles = S::kResetsFirst && kForward ? 2 : S::kMTiles;  // those of r and z
    float products[S::kMTiles][4], sums[S::kCells][S::kMTiles];
    exchange.wait(at, S::kProducts * now_turn, turns, now_tile);
    SF_UNROLL
    for (int m = 0; m < S::kMTiles; ++m) SF_UNROLL
    for (int i = 0; i < 4; ++i)
      products[m][i] = S::kStartsFromInput ? Step::start(prepared, i < S::kCells ? i : 0, m) : 0;
    weights.template multiply<0, kFirstTiles>(exchange.operand, S::kProducts * now_turn, now_tile, at, products);
    if constexpr (S::kSplits == 1) {
      SF_UNROLL
      for (int cell = 0; cell < S::kCells; ++cell) SF_UNROLL
      for (int m = 0; m < S::kMTiles; ++m) sums[cell][m] = products[m][cell];
    } else {
      partials.template reduce<0, kFirstTiles>(at, S::kProducts == 2 ? 0 : i & 1, products, sums);
    }
    const auto put = [&](int operand, const float (&v)[S::kCells][S::kOperands]) {
      SF_UNROLL
      for (int cell = 0; cell < S::kCells; ++cell)
        exchange.put(at, operand, now_tile, at.column(cell), at.unit(cell), v[cell]);
    };
    const bool more = now_turn + 1 < turns, has_step = kForward || now_turn < steps;
    float next[S::kCells][S::kOperands];
    const TileStates<S> of_tile{states, now_tile};
    // Where the warps meet within a step they do so in the extra iteration too, whose rows have no step: its units are
    // not live, so that the step adds the product to the first state and changes nothing else.
    if constexpr (S::kNorm) {
      step.run(a, io, at, now, prepared, sums, options, masks, of_tile, next, totals);
    } else if constexpr (S::kResetsFirst) {
      const auto second = [&](const float (&v)[S::kCells][S::kOperands], float (&found)[S::kCells][S::kMTiles]) {
        constexpr int kFrom = kForward ? kFirstTiles : 0;
        if (at.owns()) put(2 * now_turn + 1, v);
        exchange.send(at, 2 * now_turn + 1, now_tile);
        exchange.wait(at, 2 * now_turn + 1, turns, now_tile);
        SF_UNROLL
        for (int m = kFrom; m < S::kMTiles; ++m) SF_UNROLL
        for (int i = 0; i < 4; ++i) products[m][i] = 0;
        weights.template multiply<kFrom, S::kMTiles>(exchange.operand, 2 * now_turn + 1, now_tile, at, products);
        if constexpr (S::kSplits == 1) {
          SF_UNROLL
          for (int cell = 0; cell < S::kCells; ++cell) SF_UNROLL
          for (int m = kFrom; m < S::kMTiles; ++m) found[cell][m] = products[m][cell];
        } else {
          partials.template reduce<kFrom, S::kMTiles>(at, 1, products, found);
        }
      };
      step.run(a, io, at, now, prepared, sums, options, masks, of_tile, next, second);
    }
    if (at.owns()) {
      if constexpr (S::kMeets) {
        if (more) put(S::kProducts * (now_turn + 1), next);
      } else {
        Floats s0 = of_tile.load(0), s1 = of_tile.load(1);
        if (has_step) {
          step.run(a, io, now, prepared, sums, options, masks, now_tile, s0, s1, next);
          if (more) put(now_turn + 1, next);
        } else {
          SF_UNROLL
          for (int cell = 0; cell < S::kCells; ++cell) s0.v[cell] += masks.of_state(sums[cell][0], cell);
        }
        of_tile.store(0, s0);
        of_tile.store(1, s1);
      }
    }
    if (more) exchange.send(at, S::kProducts * (now_turn + 1), now_tile);
  }

  for (int t = 0; t < a.tiles && at.owns(); ++t) {
    const Floats s0 = states.load(t, 0), s1 = states.load(t, 1);
    SF_UNROLL
    for (int cell = 0; cell < S::kCells; ++cell) {
      const int b = rows.b(t * kTileRows + at.column(cell)), unit = at.unit(cell);
      if (b < 0 || unit >= a.H) continue;
      if (a.last) {
        Step::finish(io, b, unit, s0.v[cell], s1.v[cell]);
        options.finish(t, cell, b, unit, a.H);
      } else {
        a.carried_out[(static_cast<int64_t>(direction * 2) * a.B + b) * a.H + unit] = s0.v[cell];
        a.carried_out[(static_cast<int64_t>(direction * 2 + 1) * a.B + b) * a.H + unit] = s1.v[cell];
      }
    }
  }
  exchange.end();
}

}  // namespace sf::cuda

// What options do to the cells of a lane in the recurrent kernel: zoneout, the dropouts and peepholes. One variant of a
// kernel serves them all, and looks at run time which of them a layer has; a layer without any takes the variant in
// which everything here is empty.
//
// Drawing a word takes dozens of instructions, most of them for the key of a row and step. So what is the same at every
// step of a row is mixed once, and kept in shared memory. A step draws before it waits for its operand, and hands on a
// bit for each mask and cell.
#pragma once

#include "exchange.cuh"
#include "masks.cuh"

namespace sf::cuda {

// What options add to a unit. A kernel for cells with peepholes runs those without any too.
struct LaneUnitOptions {
  UnitOptions<float, true> with_peephole;
  bool sees;

  SF_DEVICE float candidate(float v) const { return with_peephole.candidate(v); }
  SF_DEVICE float see_c(int gate, float sum, float c) const { return sees ? with_peephole.see_c(gate, sum, c) : sum; }
  SF_DEVICE float add_seen(int gate, float d_sum, float d_c) const {
    return sees ? with_peephole.add_seen(gate, d_sum, d_c) : d_c;
  }
};

// The masks of a lane's cells at one step.
template <class S, bool kOptions = S::kOptions>
struct LaneMasks {
  uint32_t kept;  // a bit for each mask and cell
  const Mask<float>* masks;

  static SF_DEVICE uint32_t bit(int masked, int cell) { return 1u << (masked * S::kCells + cell); }
  SF_DEVICE float at(Masked masked, int cell) const {
    const int kind = static_cast<int>(masked);
    return kept & bit(kind, cell) ? masks[kind].kept : 0;
  }
  SF_DEVICE NewShare<float> share(Masked masked, int cell) const { return NewShare<float>(at(masked, cell)); }
  // The h, or the gradient of the h, that R sees.
  SF_DEVICE float of_state(float v, int cell) const { return v * at(Masked::kState, cell); }
};
template <class S>
struct LaneMasks<S, false> {
  SF_DEVICE float of_state(float v, int) const { return v; }
};

// In shared memory: the keys of the rows of a team's tiles, (tiles, 8, kinds of masks, 2), and the weights by which the
// gates see c, (units of the block, 4). There are weights only where the layer has peepholes. The backward adds up
// their gradients there too, as each cell's sums over the steps.
template <class S, bool kOptions = S::kOptions>
struct SharedOptions {
  static constexpr int kRowWords = 2 * kMaskedKinds;
  const OptionArgs& o;
  Shared<uint32_t> keys;
  Shared<float> seen;
  int lane_seen;  // where the weights of the lane's first unit begin
  LaneValues<S, 3> d_seen;
  int direction;

  SF_DEVICE SharedOptions(SharedAllocator& allocator, const LaunchArgs& a, const Lane<S>& at, int direction_,
                          int first_row)
      : o(a.options),
        keys(allocator.take<uint32_t>(a.tiles * kTileRows * kRowWords)),
        seen(allocator.take<float>(a.options.seen[0] ? 4 * a.block_groups * kGroupUnits : 0)),
        lane_seen(4 * (at.unit(0) - at.block * a.block_groups * kGroupUnits)),
        d_seen(allocator, adds_up() ? a.tiles : 0),
        direction(direction_) {
    for (int i = 0; adds_up() && i < 3 * a.tiles; ++i) d_seen.store(i / 3, i % 3, {});
    for (int i = thread_id(); o.seed && i < a.tiles * kTileRows * kMaskedKinds; i += block_threads()) {
      const auto masked = static_cast<Masked>(i % kMaskedKinds);
      NoiseKey key = noise_row_key(*o.seed, masked, direction, batch_row(a, first_row + i / kMaskedKinds));
      if (masked == Masked::kState) key = key.at_step(0);
      keys.store_as(2 * i, key);
    }
    const auto* weights = static_cast<const typename S::Math::Storage*>(o.seen[direction]);
    for (int i = thread_id(); weights && i < a.block_groups * kGroupUnits; i += block_threads()) {
      const int unit = at.block * a.block_groups * kGroupUnits + i;
      Vector<float, 4> of_unit{};
      for (int k = 0; k < 3 && unit < a.H; ++k) of_unit.v[k] = S::Math::widen(weights[k * a.H + unit]);
      seen.store_as(4 * i, of_unit);
    }
  }
  SF_DEVICE NoiseKey key(int row, Masked masked) const {
    return keys.template load_as<NoiseKey>(row * kRowWords + 2 * static_cast<int>(masked));
  }
  // `row`: that of the lane's first column, in the team's tiles.
  SF_DEVICE LaneMasks<S> draw(const Lane<S>& at, int row, int t) const {
    constexpr bool kDraws[] = {true, S::Cell::kHasC, true, S::kGates > 1};
    LaneMasks<S> drawn{~0u, o.masks};
    SF_UNROLL
    for (int kind = 0; kind < kMaskedKinds; ++kind) {
      const uint32_t threshold = o.masks[kind].threshold;
      if (!kDraws[kind] || threshold == 0) continue;
      const auto masked = static_cast<Masked>(kind);
      SF_UNROLL
      for (int column = 0; column < S::kLaneColumns; ++column) {
        const NoiseKey of_row = key(row + column, masked);
        const NoiseKey now = masked == Masked::kState ? of_row : of_row.at_step(t);
        SF_UNROLL
        for (int half = 0; half < S::kLaneHalves; ++half) {
          const auto unit = static_cast<uint32_t>(at.unit(0) + 8 * half);
          if (noise_word(now, unit) < threshold) drawn.kept &= ~LaneMasks<S>::bit(kind, S::cell_of(half, column));
        }
      }
    }
    return drawn;
  }
  // The first h of a row, as R sees it.
  SF_DEVICE float first_state(float h, int row, int unit) const {
    const Mask<float>& mask = o.masks[static_cast<int>(Masked::kState)];
    const bool draws = mask.threshold > 0;
    return draws && noise_word(key(row, Masked::kState), static_cast<uint32_t>(unit)) < mask.threshold ? 0
                                                                                                       : h * mask.kept;
  }
  // The options of a cell's unit. `memory` is for the weights by which its gates see c.
  SF_DEVICE LaneUnitOptions of_unit(const LaneMasks<S>& masks, int cell, Vector<float, 4>& memory) const {
    const bool sees = S::Cell::kHasC && o.seen[0];
    if (sees) memory = seen.template load_as<Vector<float, 4>>(lane_seen + 32 * S::half_of(cell));
    return {{masks.at(Masked::kCandidate, cell), memory.v}, sees};
  }

  SF_DEVICE bool changes(Masked masked) const { return o.masks[static_cast<int>(masked)].changes(); }

  // Hands what zoneout keeps of a gradient of h to the reset state, and returns what is left of it.
  SF_DEVICE float to_reset_h(float d, uint32_t b, int unit, int H) const {
    if (o.reset_h[direction]) o.reset_h[direction][static_cast<int64_t>(b) * H + unit] += d;
    return 0;
  }

  SF_DEVICE bool adds_up() const { return S::kPass == Pass::kBackward && S::Cell::kHasC && o.d_seen[0].data; }
  // Adds a step's gradients of the weights: each is that of a gate's sum times the c that the gate saw.
  SF_DEVICE void add_seen(int tile, int gate, const Vector<float, S::kCells>& d) const {
    Vector<float, S::kCells> sum = d_seen.load(tile, gate);
    SF_UNROLL
    for (int cell = 0; cell < S::kCells; ++cell) sum.v[cell] += d.v[cell];
    d_seen.store(tile, gate, sum);
  }
  SF_DEVICE void finish(int tile, int cell, int64_t b, int unit, int H) const {
    using Storage = typename S::Math::Storage;
    if (!adds_up()) return;
    SF_UNROLL
    for (int k = 0; k < 3; ++k)
      *element<Storage>(o.d_seen[direction], 0, b, k * H + unit) = S::Math::narrow(d_seen.load(tile, k).v[cell]);
  }
};
template <class S>
struct SharedOptions<S, false> {
  SF_DEVICE SharedOptions(SharedAllocator&, const LaunchArgs&, const Lane<S>&, int, int) {}
  SF_DEVICE LaneMasks<S> draw(const Lane<S>&, int, int) const { return {}; }
  SF_DEVICE float first_state(float h, int, int) const { return h; }
  SF_DEVICE NoOptions of_unit(const LaneMasks<S>&, int, Vector<float, 4>&) const { return {}; }
  SF_DEVICE void finish(int, int, int64_t, int, int) const {}
};

}  // namespace sf::cuda

// The forward pass of a layer with options, for one task. The products of a step go through memory, and one function
// then looks at a row of the batch at a time: a norm needs all sums of a row before any unit of it is known, and masks
// are drawn for a row. Everything else is that of the forward pass without options, from which this one is derived.
#pragma once

#include "forward.h"
#include "row_parts.h"

namespace sf {
namespace {

// The inputs and outputs of the tiles of one step that sum_tile() computes.
template <class F>
struct SumStep {
  const typename F::E **x, **h;
  const typename F::A** start;  // per row: [blocks][kSlots][kLanes], added between the input's products and the state's
  typename F::A** to;
  int64_t rows, K_x, K_h;
  const typename F::E *w_x, *w_h;
};

// The sums of forward_tile() without a cell after them.
template <class F, class HiddenSlot, int kGates, int kSlots, int kRows, int kBlocks>
__attribute__((noinline)) void sum_tile(const SumStep<F>& s, int64_t row, int64_t block, int64_t next) {
  using E = typename F::E;
  typename F::V acc[kRows][kBlocks * kSlots] = {};
  const E* rows[kRows];
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) rows[m] = s.x[row + m];
  const auto add = [&](auto slot, int64_t K, const E* w) {
    const int64_t panel = panel_size<F>(K, kGates);
    const Ahead ahead{w + next * panel, kBlocks * panel * static_cast<int64_t>(sizeof(E)), row, row + kRows, s.rows};
    accumulate<F, decltype(slot), kRows, kBlocks, kGates, kSlots>(acc, rows, K, w + block * panel, panel, ahead);
  };
  add(SlotOfGate{}, s.K_x, s.w_x);
  const int64_t at = block * kSlots * F::kLanes;
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
    for (int v = 0; v < kBlocks * kSlots; ++v) acc[m][v] += load(s.start[row + m] + at + v * F::kLanes);
    rows[m] = s.h[row + m];
  }
  add(HiddenSlot{}, s.K_h, s.w_h);
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
    for (int v = 0; v < kBlocks * kSlots; ++v) store(s.to[row + m] + at + v * F::kLanes, acc[m][v]);
  }
}

template <class F, class Cell>
class RowForward : ForwardPass<F, Cell> {
  using Pass = ForwardPass<F, Cell>;
  using Shape = RowShape<Cell>;
  using Base = typename Shape::Base;
  using A = typename F::A;
  using E = typename F::E;
  using V = typename F::V;
  static constexpr int kL = F::kLanes, kG = Base::kGates, kSaved = Shape::kBaseSaved;
  static constexpr bool kNorm = Shape::kNorm, kNormC = kNorm && Base::kHasC;
  // The sums of input and state are one, unless each is normalised, or the state's waits for r.
  static constexpr bool kOneSum = !kNorm && !Shape::kResetsFirst;
  static constexpr int kSums = kOneSum ? Base::kSlots : kG, kTileRows = TileShape<kSums, kG>::kRows;

 public:
  static int64_t measure(const Forward& call, int64_t rows, bool) {
    return RowForward(call, rows, nullptr, nullptr).size_;
  }
  static int64_t measure_shared(const Forward& call, int64_t rows) {
    return RowForward(call, rows, nullptr, nullptr).shared_size_;
  }
  static void run(const ForwardTask& task) {
    RowForward(*task.call, task.task.count, task.task.scratch, task.task.shared).go(task);
  }

 private:
  using Pass::call_, Pass::layer_, Pass::n_, Pass::padded_, Pass::out_, Pass::h_stride_, Pass::shared_size_,
      Pass::rows_;
  using Pass::direction_, Pass::packed_, Pass::start_, Pass::h_prev_, Pass::h_next_, Pass::output_rows_, Pass::saved_;
  using Pass::project_first_, Pass::x_rows_, Pass::m_rows_, Pass::c_, Pass::output_direct_, Pass::proj_rows_,
      Pass::own_;

  RowForward(const Forward& call, int64_t rows, char* scratch, char* shared)
      : Pass(call, rows, false, Arena(scratch), shared, kSums, !kOneSum), noise_(call.layer.noise) {
    const int64_t row = padded_ * kSums;
    sums_ = own_.template take<A>(n_ * row);
    sum_rows_ = own_.template take<A*>(n_);
    operand_rows_ = own_.template take<const E*>(n_);
    operands_ = own_.template take<E>(noise_.masks_state() || Shape::kResetsFirst ? n_ * h_stride_ : 0);
    state_masks_ = own_.template take<A>(noise_.masks_state() ? n_ * h_stride_ : 0);
    const bool drawn = noise_.seed != nullptr;
    candidate_ = own_.template take<A>(noise_.masks_candidate() ? n_ * padded_ : 0);
    keep_h_ = own_.template take<A>(drawn && noise_.zoneout_h > 0 ? n_ * h_stride_ : 0);
    keep_c_ = own_.template take<A>(drawn && noise_.zoneout_c > 0 ? n_ * padded_ : 0);
    values_ = own_.template take<A>((Shape::kResetsFirst ? n_ : 1) * padded_ * (kSaved > 0 ? kSaved : 1));
    normed_x_ = own_.template take<A>(kNorm ? row : 0);
    normed_h_ = own_.template take<A>(kNorm ? row : 0);
    new_c_ = own_.template take<A>(kNormC ? padded_ : 0);
    normed_c_ = own_.template take<A>(kNormC ? padded_ : 0);
    for (int k = 0; k < kFurther; ++k) further_[k] = own_.template take<A>(padded_ * further_rows(k));
    size_ = own_.used();
  }

  int64_t further_rows(int k) const { return layer_.further[k][0].data ? layer_.further[k][0].rows : 0; }

  void go(const ForwardTask& task) {
    Pass::begin(task);
    for (int k = 0; k < kFurther; ++k)
      if (further_rows(k)) read_further<F>(layer_, layer_.further[k][direction_], further_[k]);
    for (int64_t i = 0; i < n_; ++i) {
      sum_rows_[i] = sums_ + i * padded_ * kSums;
      if (noise_.masks_state())
        draw_mask(noise_, Masked::kState, direction_, rows_[i], 0, kept_scale<A>(noise_.state),
                  state_masks_ + i * h_stride_, out_);
    }
    Pass::for_steps([&](int64_t step, int64_t active) {
      if (project_first_)
        Pass::template project<kSums>(step, active, kOneSum ? reinterpret_cast<const A*>(packed_.bias) : nullptr);
      Pass::prepare(step, active);
      for (int64_t i = 0; i < active; ++i) {
        operand_rows_[i] = noise_.masks_state() ? masked_state(i) : h_prev_[i];
        draw_masks(i, step);
      }
      if constexpr (kOneSum) {
        one_sum(active, step & 1);
      } else if constexpr (Shape::kResetsFirst) {
        product<2>(active, 0);
        for (int64_t i = 0; i < active; ++i) reset_row(i);
        product<1>(active, 2);
      } else {
        product<kG>(active, 0);
      }
      for (int64_t i = 0; i < active; ++i) {
        run_row(i);
        if (!layer_.P && output_direct_) copy_output(i);
      }
      if (layer_.P) project_rows(active);
      Pass::finish_step(step, active);
    });
  }

  // The sums of input and state of all slots, biases included.
  void one_sum(int64_t active, bool backwards) {
    SumStep<F> s{project_first_ ? operand_rows_ : x_rows_,
                 operand_rows_,
                 start_,
                 sum_rows_,
                 active,
                 project_first_ ? 0 : layer_.features(),
                 out_,
                 reinterpret_cast<const E*>(packed_.w_ih),
                 reinterpret_cast<const E*>(packed_.w_hh)};
    constexpr int kBlocks = TileShape<kSums, kG>::kBlocks;
    const int64_t blocks = blocks_of<F>(layer_.H), whole = blocks / kBlocks * kBlocks;
    bool first_block = !project_first_;
    for_blocks<kBlocks>(0, whole, backwards, [&](int64_t block, int64_t next) {
      for_row_groups<kTileRows>(active, [&](int64_t row, auto m) {
        if (first_block) prefetch_rows(row + decltype(m)::value, active);
        sum_tile<F, HiddenSlotOfGate<Base>, kG, kSums, decltype(m)::value, kBlocks>(s, row, block, next);
      });
      first_block = false;
    });
    for (int64_t block = whole; block < blocks; ++block) {
      for_row_groups<kTileRows>(active, [&](int64_t row, auto m) {
        sum_tile<F, HiddenSlotOfGate<Base>, kG, kSums, decltype(m)::value, 1>(s, row, block, block);
      });
    }
  }

  // The first blocks are the first to read x: while they are summed, the rows of the next tile are fetched.
  void prefetch_rows(int64_t first, int64_t active) const {
    for (int64_t row = first; row < first + kTileRows && row < active; ++row)
      prefetch<false>(x_rows_[row], layer_.features());
  }

  // The sums of the state's part of kCount gates from `first` on. Fewer gates leave registers for more blocks.
  template <int kCount>
  void product(int64_t active, int first) {
    constexpr bool kMany = SF_VECTOR_REGISTERS == 32;
    constexpr int kBlocks = kCount == 1 ? TileShape<1>::kBlocks : kCount == 2 && kMany ? 2 : 1;
    const int64_t blocks = blocks_of<F>(layer_.H), whole = blocks / kBlocks * kBlocks;
    for (int64_t block = 0; block < whole; block += kBlocks) product_of_blocks<kCount, kBlocks>(active, first, block);
    for (int64_t block = whole; block < blocks; ++block) product_of_blocks<kCount, 1>(active, first, block);
  }
  template <int kCount, int kBlocks>
  void product_of_blocks(int64_t active, int first, int64_t block) {
    const int64_t panel = panel_size<F>(out_, kG);
    const E* w = reinterpret_cast<const E*>(packed_.w_hh) + first * kL * F::kPack + block * panel;
    for_row_groups<kTileRows>(active, [&](int64_t row, auto m) {
      product_tile<F, kCount, kCount, decltype(m)::value, kBlocks>(operand_rows_ + row, out_, w, nullptr,
                                                                   sum_rows_ + row, (block * kG + first) * kL,
                                                                   {panel, kLine<F, kG>, kG * kL});
    });
  }

  // h of the previous step times the mask of the state.
  const E* masked_state(int64_t i) {
    E* to = operands_ + i * h_stride_;
    for (int64_t u = 0; u < out_; u += kL)
      F::write(to + u, F::read(h_prev_[i] + u, lanes<F>(u, out_)) * load(state_masks_ + i * h_stride_ + u),
               lanes<F>(u, out_));
    return to;
  }

  void draw_masks(int64_t i, int64_t step) {
    if (!noise_.seed) return;
    const int64_t b = rows_[i], t = this->time(i, step);
    if (noise_.candidate > 0)  // beyond the units too, where 0 times what lay there could be NaN
      draw_mask(noise_, Masked::kCandidate, direction_, b, t, kept_scale<A>(noise_.candidate), candidate_ + i * padded_,
                padded_);
    if (noise_.zoneout_h > 0)
      draw_mask(noise_, Masked::kZoneoutH, direction_, b, t, A(1), keep_h_ + i * h_stride_, out_);
    if (noise_.zoneout_c > 0)
      draw_mask(noise_, Masked::kZoneoutC, direction_, b, t, A(1), keep_c_ + i * padded_, layer_.H);
  }

  V zone_out_h(V fresh, V old, int64_t i, int64_t unit) const {
    if (!(noise_.zoneout_h > 0)) return fresh;
    return zoned_out(fresh, old, noise_.seed ? keep_h_ + i * h_stride_ + unit : nullptr,
                     static_cast<A>(noise_.zoneout_h));
  }
  V zone_out_c(V fresh, V old, int64_t i, int64_t unit) const {
    if (!(noise_.zoneout_c > 0)) return fresh;
    return zoned_out(fresh, old, noise_.seed ? keep_c_ + i * padded_ + unit : nullptr,
                     static_cast<A>(noise_.zoneout_c));
  }

  // Where the values of row i that training saves go; in inference they are needed only until the row is done.
  A* values_of(int64_t i) const {
    if (call_.saved[direction_].data) return saved_[i];
    return values_ + (Shape::kResetsFirst ? i * padded_ * kSaved : 0);
  }

  UnitOptions<V, Shape::kPeephole> options_of(int64_t i, int64_t block, V (&seen)[3]) const {
    const A* const mask = noise_.masks_candidate() ? candidate_ + i * padded_ : nullptr;
    return unit_options<Shape::kPeephole, V>(block, mask, further_[0], seen);
  }

  // The slots of the cell without its option: biases, the input's sums and the state's.
  void slots_of(int64_t i, int64_t block, V (&a)[Base::kSlots]) const {
    if constexpr (kOneSum) {
      for (int s = 0; s < kSums; ++s) a[s] = load(sum_rows_[i] + (block * kSums + s) * kL);
      return;
    }
    const A* bias = reinterpret_cast<const A*>(packed_.bias) + block * Cell::kSlots * kL;
    if constexpr (kNorm) {
      for (V& sum : a) sum = V{};
      for (int g = 0; g < kG; ++g) {
        const int64_t at = (block * kG + g) * kL;
        const int norm = Shape::block_of(g);
        a[g] += fma(load(now_x_ + at) * inverse_x_[norm], load(further_[0] + at), load(bias + g * kL));
        a[Base::hidden_slot(g)] +=
            fma(load(now_h_ + at) * inverse_h_[norm], load(further_[1] + at), load(bias + (kG + g) * kL));
      }
    } else {
      for (int s = 0; s < Base::kSlots; ++s) a[s] = s < Cell::kSlots ? load(bias + s * kL) : V{};
      for (int g = 0; g < kG; ++g) {
        const int64_t at = (block * kG + g) * kL;
        a[g] += load(start_[i] + at);
        a[Cell::hidden_slot(g)] += load(sum_rows_[i] + at);
      }
    }
  }

  // With kResetsFirst: the gates r and z, and r * h for the second product.
  void reset_row(int64_t i) {
    if constexpr (Shape::kResetsFirst) {
      E* to = operands_ + i * h_stride_;
      A* values = values_of(i);
      for (int64_t unit = 0; unit < layer_.H; unit += kL) {
        const int64_t block = unit / kL;
        V a[Base::kSlots], saved[kSaved];
        slots_of(i, block, a);
        Cell::gates(a, saved);
        const V operand = F::read(operand_rows_[i] + unit, lanes<F>(unit, layer_.H));
        store(values + unit * kSaved, saved[0]);
        store(values + unit * kSaved + kL, saved[1]);
        F::write(to + unit, saved[0] * operand, lanes<F>(unit, layer_.H));
      }
      operand_rows_[i] = to;
    }
  }

  // The cells of one row and block.
  void run_block(int64_t i, int64_t block) {
    A* const values = values_of(i);
    A* const c_row = c_ + i * padded_;
    const int64_t unit = block * kL;
    const int n = lanes<F>(unit, layer_.H);
    V a[Base::kSlots], saved[kSaved + 1], seen[3], c{};
    slots_of(i, block, a);
    V h = F::read(h_prev_[i] + unit, layer_.P ? 0 : n);
    const V old_h = h;
    if constexpr (Base::kHasC) c = load(c_row + unit);
    const V old_c = c;
    const auto options = options_of(i, block, seen);
    if constexpr (kNormC) {
      Base::memory(a, c, saved, options);
      store(new_c_ + unit, c);
    } else if constexpr (Shape::kResetsFirst) {
      saved[0] = load(values + unit * kSaved), saved[1] = load(values + unit * kSaved + kL);
      Cell::finish(a[2], h, saved, options);
    } else {
      Base::forward(a, h, c, saved, options);
      if (layer_.saves_fresh_h() && call_.saved[direction_].data) store(values + Cell::kSaved * padded_ + unit, h);
    }
    if constexpr (Base::kHasC) {
      c = zone_out_c(c, old_c, i, unit);
      saved[kSaved - 1] = c;
      store(c_row + unit, c);
    }
    for (int k = 0; k < kSaved; ++k) store(values + unit * kSaved + k * kL, saved[k]);
    if constexpr (!kNormC) write_h(i, unit, n, h, old_h);
  }

  void run_row(int64_t i) {
    A* const values = values_of(i);
    if constexpr (kNorm) {
      const bool keep = call_.saved[direction_].data != nullptr;
      now_x_ = keep ? values + Shape::centred_x(padded_) : normed_x_;
      now_h_ = keep ? values + Shape::centred_h(padded_) : normed_h_;
      for (int block = 0; block < Shape::kNormBlocks; ++block) {
        const int first = Shape::first_gate(block), last = Shape::last_gate(block);
        inverse_x_[block] = centre<F>(start_[i], now_x_, layer_.H, kG, first, last);
        inverse_h_[block] = centre<F>(sum_rows_[i], now_h_, layer_.H, kG, first, last);
        A* const inverses = values + Shape::inverses(padded_) + 2 * block;
        if (keep) inverses[0] = inverse_x_[block], inverses[1] = inverse_h_[block];
      }
    }
    for (int64_t block = 0; block < blocks_of<F>(layer_.H); ++block) run_block(i, block);
    if constexpr (kNormC) {
      const A inverse = centre<F>(new_c_, normed_c_, layer_.H, 1, 0, 1);
      for (int64_t unit = 0; unit < layer_.H; unit += kL) {
        const int n = lanes<F>(unit, layer_.H);
        const V c = fma(load(normed_c_ + unit) * inverse, load(further_[2] + unit), load(further_[3] + unit));
        const V h = Base::output(load(values + unit * kSaved + 3 * kL), c);
        write_h(i, unit, n, h, F::read(h_prev_[i] + unit, layer_.P ? 0 : n));
      }
    }
  }

  void write_h(int64_t i, int64_t unit, int n, V h, V old) {
    if (layer_.P) {
      F::write(m_rows_[i] + unit, h, n);
    } else {
      F::write(h_next_[i] + unit, zone_out_h(h, old, i, unit), n);
    }
  }

  void copy_output(int64_t i) {
    for (int64_t u = 0; u < out_; u += kL)
      F::write(output_rows_[i] + u, F::read(h_next_[i] + u, lanes<F>(u, out_)), lanes<F>(u, out_));
  }

  // h = W_hr m, with zoneout before it is rounded.
  void project_rows(int64_t active) {
    Pass::project_sums(active);
    for (int64_t i = 0; i < active; ++i) {
      for (int64_t u = 0; u < out_; u += kL) {
        const V h = zone_out_h(load(proj_rows_[i] + u), F::read(h_prev_[i] + u, lanes<F>(u, out_)), i, u);
        F::write(h_next_[i] + u, h, lanes<F>(u, out_));
      }
    }
  }

  static constexpr int kFurther = kMostFurtherWeights;
  const Noise& noise_;
  int64_t size_;
  A *sums_, **sum_rows_, *state_masks_, *candidate_, *keep_h_, *keep_c_, *values_, *normed_x_, *normed_h_, *new_c_,
      *normed_c_, *further_[kFurther];
  A *now_x_ = nullptr, *now_h_ = nullptr, inverse_x_[2] = {}, inverse_h_[2] = {};  // the norms of the row at hand
  const E** operand_rows_;
  E* operands_;
};

}  // namespace
}  // namespace sf

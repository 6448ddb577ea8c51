// The backward pass of a layer with options, for one task, as row_forward.h is its forward pass: products go through
// memory, and one function then looks at a row of the batch at a time. What it is derived from finds the rows of each
// step, and what flows to the states before the first step and to the reset states.
#pragma once

#include "backward.h"
#include "row_parts.h"

namespace sf {
namespace {

template <class F, class Cell>
class RowBackward : BackwardPass<F, Cell> {
  using Pass = BackwardPass<F, Cell>;
  using Shape = RowShape<Cell>;
  using Base = typename Shape::Base;
  using A = typename F::A;
  using V = typename F::V;
  using Step = BackwardStep<F>;
  static constexpr int kL = F::kLanes, kG = Base::kGates, kSaved = Shape::kBaseSaved, kSlots = Base::kSlots;
  static constexpr bool kNorm = Shape::kNorm, kNormC = kNorm && Base::kHasC;

 public:
  static int64_t measure(const Backward& call, int64_t rows) { return RowBackward(call, rows, nullptr, 0).size_; }
  static void run(const BackwardTask& task) {
    RowBackward(*task.call, task.task.count, task.task.scratch, task.task.direction).go(task);
  }

 private:
  using Pass::a_, Pass::saved_rows_, Pass::h_rows_, Pass::h_prev_rows_, Pass::c_prev_rows_, Pass::gate_rows_;
  using Pass::call_, Pass::layer_, Pass::n_, Pass::padded_, Pass::wide_, Pass::d_, Pass::rows_, Pass::packed_;
  using Pass::projected_rows_, Pass::target_rows_, Pass::carry_, Pass::carry_h_, Pass::scale_, Pass::own_;

  RowBackward(const Backward& call, int64_t rows, char* scratch, int direction)
      : Pass(call, rows, scratch, direction), noise_(call.layer.noise) {
    const int64_t unprojected = layer_.P ? n_ * padded_ : 0, again = Shape::kResetsFirst ? n_ * wide_ : 0;
    state_masks_ = own_.template take<A>(noise_.masks_state() ? n_ * wide_ : 0);
    scale_rows_ = own_.template take<const A*>(noise_.masks_state() ? n_ : 0);
    const bool carries_h = Base::kHasC && noise_.zoneout_h > 0;
    carry_h_rows_ = own_.template take<A>(carries_h ? n_ * wide_ : 0);
    d_m_ = own_.template take<A>(unprojected + again);
    d_m_rows_ = own_.template take<A*>(n_);
    A** const of_unit[] = {&fresh_c_, &normed_c_, &d_normed_c_, &d_c_, &d_o_};
    for (A** p : of_unit) *p = own_.template take<A>(padded_);
    const bool drawn = noise_.seed != nullptr;
    candidate_ = own_.template take<A>(noise_.masks_candidate() ? n_ * padded_ : 0);
    keep_h_ = own_.template take<A>(drawn && noise_.zoneout_h > 0 ? n_ * wide_ : 0);
    keep_c_ = own_.template take<A>(drawn && noise_.zoneout_c > 0 ? n_ * padded_ : 0);
    d_sums_ = own_.template take<A>(kNorm ? padded_ * kSlots : 0);
    d_normed_ = own_.template take<A>(kNorm ? padded_ * kG : 0);
    for (int k = 0; k < kMostFurtherWeights; ++k)
      further_[k] = own_.template take<A>(layer_.further[k][0].data ? padded_ * layer_.further[k][0].rows : 0);
    if (noise_.masks_state()) scale_ = scale_rows_;
    if (carries_h) carry_h_ = carry_h_rows_;
    size_ = own_.used();
  }

  void go(const BackwardTask& task) {
    Pass::begin(task);
    for (int k = 0; k < kMostFurtherWeights; ++k)
      if (layer_.further[k][d_].data) read_further<F>(layer_, layer_.further[k][d_], further_[k]);
    for (int64_t i = 0; i < n_; ++i) {
      d_m_rows_[i] = d_m_ + i * (layer_.P ? padded_ : wide_);
      for (int64_t u = 0; carry_h_ && u < wide_; ++u) carry_h_[i * wide_ + u] = 0;
      if (A* sums = further_sums_of(i))
        for (int64_t u = 0; u < further_sums(kCells[layer_.cell]) * layer_.H; ++u) sums[u] = 0;
      if (!noise_.masks_state()) continue;
      scale_rows_[i] = state_masks_ + i * wide_;
      draw_mask(noise_, Masked::kState, d_, rows_[i], 0, kept_scale<A>(noise_.state), state_masks_ + i * wide_,
                layer_.out());
    }
    Pass::run(task.task, [&](int64_t step, int64_t active, bool product) { run_step(step, active, product); });
  }

  A* further_sums_of(int64_t i) const {
    return call_.d_further[d_].data ? Pass::row_of(call_.d_further[d_], 0, rows_[i]) : nullptr;
  }

  void run_step(int64_t step, int64_t active, bool product) {
    Step s{};
    Pass::set_recurrent(s, active);
    if constexpr (Shape::kResetsFirst) s.segments = 2;  // what comes through gate n is in the carry
    if (!product) s.K = 0, s.segments = 0;
    for (int64_t i = 0; i < active && layer_.P; ++i) projected_rows_[i] = gate_rows_[i] + Cell::kSlots * layer_.H;
    A* const* const d_h = layer_.P ? projected_rows_ : target_rows_;
    for (int64_t i = 0; i < active; ++i) draw_masks(i, step);
    Pass::gradient_tiles(s, layer_.out(), d_h);
    for (int64_t i = 0; i < active; ++i) {
      take_h(i, d_h[i]);
      a_[i] = layer_.P ? d_h[i] : gate_rows_[i];
    }
    if (layer_.P) single_product(active, 0, 0, 1, layer_.P, packed_.w_hr, layer_.H);
    for (int64_t i = 0; i < active; ++i) {
      if (i + 1 < active) {  // what the next row will read and write
        prefetch<false>(saved_rows_[i + 1], Cell::kSaved * padded_);
        prefetch<true>(gate_rows_[i + 1], Cell::kSlots * layer_.H);
      }
      run_row(i, step, layer_.P ? d_m_rows_[i] : target_rows_[i]);
    }
    if constexpr (Shape::kResetsFirst) {
      single_product(active, 2 * layer_.H, 2, kG, layer_.H, packed_.w_hh, layer_.H);
      for (int64_t i = 0; i < active; ++i) reset_row(i);
    }
  }

  // d_m_rows_ = the rows a_, from `segment` on, times part `first` of the panels of w.
  void single_product(int64_t active, int64_t segment, int first, int of_panel, int64_t K, const char* w,
                      int64_t columns) {
    Step s{};
    s.a = a_;
    s.rows = active;
    s.segments = 1;
    s.segment[0] = segment;
    s.first = first;
    s.of_panel = of_panel;
    s.K = K;
    s.w = reinterpret_cast<const A*>(w);
    Pass::gradient_tiles(s, columns, d_m_rows_);
  }

  A* carry_h_of(int64_t i) const {
    if (Base::kHasC) return carry_h_ ? carry_h_ + i * wide_ : nullptr;
    return carry_ + i * padded_;
  }

  void draw_masks(int64_t i, int64_t step) {
    if (!noise_.seed) return;
    const int64_t b = rows_[i], t = this->time(i, step);
    if (noise_.candidate > 0)  // beyond the units too, as in the forward pass
      draw_mask(noise_, Masked::kCandidate, d_, b, t, kept_scale<A>(noise_.candidate), candidate_ + i * padded_,
                padded_);
    if (noise_.zoneout_h > 0) draw_mask(noise_, Masked::kZoneoutH, d_, b, t, A(1), keep_h_ + i * wide_, layer_.out());
    if (noise_.zoneout_c > 0) draw_mask(noise_, Masked::kZoneoutC, d_, b, t, A(1), keep_c_ + i * padded_, layer_.H);
  }

  // Adds to a row's gradient of h what was carried here, and takes from it what zoneout passes on to the previous h.
  void take_h(int64_t i, A* d_h) {
    A* const carry = carry_h_of(i);
    if (!carry) return;
    const A rate = static_cast<A>(noise_.zoneout_h);
    const A* const keep = noise_.seed && noise_.zoneout_h > 0 ? keep_h_ + i * wide_ : nullptr;
    for (int64_t u = 0; u < layer_.out(); ++u) {
      const A d = d_h[u] + carry[u], fresh = keep ? (keep[u] > 0 ? d : 0) : d * (1 - rate);
      d_h[u] = fresh;
      carry[u] = keep ? (keep[u] > 0 ? 0 : d) : d * rate;
    }
  }

  void add_further(int64_t i, int64_t row, int64_t unit, int n, V v) const {
    A* const sums = further_sums_of(i);
    if (!sums) return;
    A* const at = sums + row * layer_.H + unit;
    F::write(at, F::read(at, n) + v, n);
  }

  UnitOptions<V, Shape::kPeephole> options_of(int64_t i, int64_t block, V (&seen)[3]) const {
    const A* const mask = noise_.masks_candidate() ? candidate_ + i * padded_ : nullptr;
    return unit_options<Shape::kPeephole, V>(block, mask, further_[0], seen);
  }

  void run_row(int64_t i, int64_t step, const A* d_h) {
    if constexpr (kNormC) {
      for (int64_t unit = 0; unit < layer_.H; unit += kL) store(fresh_c_ + unit, fresh_c(i, step, unit));
      norm_of_c_backward(i, d_h);
    }
    for (int64_t unit = 0; unit < layer_.H; unit += kL) run_unit(i, step, unit, d_h);
    if constexpr (kNorm) {
      sums_backward(i, 0);
      sums_backward(i, 1);
    }
  }

  // The gradients of the sums of one vector of units, and what it passes on to the previous step.
  void run_unit(int64_t i, int64_t step, int64_t unit, const A* d_h) {
    const int64_t H = layer_.H;
    const int n = lanes<F>(unit, H);
    V saved[kSaved + 1], d[kSlots], seen[3];
    for (int k = 0; k < kSaved; ++k) saved[k] = load(saved_rows_[i] + unit * kSaved + k * kL);
    const auto options = options_of(i, unit / kL, seen);
    unit_backward(i, step, unit, n, load(d_h + unit), saved, d, options);
    if constexpr (kNorm) {
      for (int k = 0; k < kSlots; ++k) {
        d[k] = within<F>(d[k], n);
        store(d_sums_ + (unit / kL * kSlots + k) * kL, d[k]);
        add_further(i, k, unit, n, d[k]);
      }
    } else {
      for (int k = 0; k < kSlots && k < Cell::kSlots; ++k) F::write(gate_rows_[i] + k * H + unit, d[k], n);
    }
  }

  // c as the cell gave it, before zoneout.
  V fresh_c(int64_t i, int64_t step, int64_t unit) const {
    const A* const values = saved_rows_[i] + unit * kSaved;
    if (!(noise_.zoneout_c > 0)) return load(values + 4 * kL);
    V seen[3];
    const V c_prev = load(c_prev_rows_[i] + unit * (step ? kSaved : 1));
    return Base::next_c(load(values), load(values + kL), load(values + 2 * kL), c_prev, options_of(i, unit / kL, seen));
  }

  // With a normalised c: the gradient of o's sum, in d_o_, and that of c which comes through h, in d_c_.
  void norm_of_c_backward(int64_t i, const A* d_h) {
    const int64_t H = layer_.H, first_sum = kSlots + 2 * kG;
    const A inverse = centre<F>(fresh_c_, normed_c_, H, 1, 0, 1);
    const auto take = [&](int64_t block, int n) {
      const int64_t unit = block * kL;
      const V gain = load(further_[2] + unit), normed = load(normed_c_ + unit) * inverse,
              c = fma(normed, gain, load(further_[3] + unit)), o = load(saved_rows_[i] + unit * kSaved + 3 * kL);
      V d_o, d_c{};
      Base::output_backward(o, c, load(d_h + unit), d_o, d_c);
      d_c = within<F>(d_c, n);
      add_further(i, first_sum, unit, n, d_c * normed);
      add_further(i, first_sum + 1, unit, n, d_c);
      store(d_o_ + unit, d_o);
      if (layer_.P) write_unprojected(i, unit, n, Base::output(o, c));
      return d_c * gain;
    };
    centre_backward<F>(d_normed_c_, normed_c_, inverse, H, 1, 0, 1, take,
                       [&](int64_t block, int, V d) { store(d_c_ + block * kL, d); });
  }

  void write_unprojected(int64_t i, int64_t unit, int n, V m) const {
    F::write(gate_rows_[i] + Cell::kSlots * layer_.H + layer_.P + unit, m, n);
  }

  template <class O>
  void unit_backward(int64_t i, int64_t step, int64_t unit, int n, V d_h, V* saved, V (&d)[kSlots], const O& options) {
    A* const carry = carry_ + i * padded_ + unit;
    if constexpr (Base::kHasC) {
      const V c_prev = load(c_prev_rows_[i] + unit * (step ? kSaved : 1)), passed = load(carry);
      saved[4] = kNormC ? load(fresh_c_ + unit) : fresh_c(i, step, unit);
      V d_c = passed, kept{};
      if (noise_.zoneout_c > 0) {
        const A* const mask = noise_.seed ? keep_c_ + i * padded_ + unit : nullptr;
        d_c = zoned_out(passed, V{}, mask, static_cast<A>(noise_.zoneout_c));
        kept = passed - d_c;
      }
      if constexpr (kNormC) {
        d_c += load(d_c_ + unit);
        d[3] = load(d_o_ + unit);
      } else {
        Base::output_backward(saved[3], saved[4], d_h, d[3], d_c);
        if (layer_.P) write_unprojected(i, unit, n, Base::output(saved[3], saved[4]));
      }
      Base::memory_backward(saved, c_prev, d_c, d, options);
      store(carry, d_c + kept);
      if constexpr (Shape::kPeephole) {
        add_further(i, 0, unit, n, d[0] * c_prev);
        add_further(i, 1, unit, n, d[1] * c_prev);
        add_further(i, 2, unit, n, d[3] * saved[4]);
      }
    } else if constexpr (Base::kReadsHPrev) {
      V passed{};
      const V h_prev = F::read(h_prev_rows_[i] + unit, n);
      if constexpr (Shape::kResetsFirst)
        Base::mixed_backward(saved, h_prev, d_h, passed, d, options);
      else
        Base::backward(saved, V{}, h_prev, V{}, d_h, passed, d, options);
      store(carry, load(carry) + passed);
    } else {
      V none{};
      const V h =
          layer_.saves_fresh_h() ? load(saved_rows_[i] + Cell::kSaved * padded_ + unit) : F::read(h_rows_[i] + unit, n);
      Base::backward(saved, h, V{}, V{}, d_h, none, d, options);
    }
  }

  // The gradients of the input's sums (part 0) or the state's (part 1) from those of the normalised ones.
  void sums_backward(int64_t i, int part) {
    const A* const centred = saved_rows_[i] + (part ? Shape::centred_h(padded_) : Shape::centred_x(padded_));
    const int64_t H = layer_.H;
    A* const to = gate_rows_[i] + part * kG * H;
    for (int block = 0; block < Shape::kNormBlocks; ++block) {
      const A inverse = saved_rows_[i][Shape::inverses(padded_) + 2 * block + part];
      const auto take = [&](int64_t at, int n) {
        const int64_t unit = at / kG * kL;
        const int gate = static_cast<int>(at % kG);
        const V d = load(d_sums_ + (at / kG * kSlots + (part ? Base::hidden_slot(gate) : gate)) * kL);
        add_further(i, kSlots + part * kG + gate, unit, n, d * (load(centred + at * kL) * inverse));
        return d * load(further_[part] + at * kL);
      };
      centre_backward<F>(d_normed_, centred, inverse, H, kG, Shape::first_gate(block), Shape::last_gate(block), take,
                         [&](int64_t at, int n, V d) { F::write(to + at % kG * H + at / kG * kL, d, n); });
    }
  }

  // With kResetsFirst: what comes back from the product with r * h.
  void reset_row(int64_t i) {
    if constexpr (Shape::kResetsFirst) {
      const int64_t H = layer_.H;
      for (int64_t unit = 0; unit < H; unit += kL) {
        const int n = lanes<F>(unit, H);
        const V r = load(saved_rows_[i] + unit * kSaved),
                mask = noise_.masks_state() ? load(scale_rows_[i] + unit) : V{} + 1,
                operand = F::read(h_prev_rows_[i] + unit, n) * mask;
        V d_r, passed = Cell::reset_backward(&r, operand, load(d_m_rows_[i] + unit), &d_r) * mask;
        A* const carry = carry_ + i * padded_ + unit;
        store(carry, load(carry) + passed);
        F::write(gate_rows_[i] + unit, d_r, n);
        F::write(gate_rows_[i] + Cell::kSlots * H + unit, r * operand, n);
      }
    }
  }

  const Noise& noise_;
  int64_t size_;
  A *state_masks_, *carry_h_rows_, *d_m_, **d_m_rows_, *candidate_, *keep_h_, *keep_c_, *fresh_c_, *normed_c_,
      *d_normed_c_, *d_c_, *d_o_, *d_sums_, *d_normed_, *further_[kMostFurtherWeights];
  const A** scale_rows_;
};

}  // namespace
}  // namespace sf

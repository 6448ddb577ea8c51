// The backward pass of one task, from the last step to the first. d(h), the gradient of h, is d_gates of the next step
// times W_hh, plus the gradient of the output and, at a row's last step, of h_n. From it the cell computes this step's
// d_gates, which are kept for the other gradients (input_grad.h, weight_grad.h) in the type that products read; sums
// and carries are in the compute type. With a projection, a row of d_gates also holds d(projected h) and o * tanh(c).
#pragma once

#include "backward_tiles.h"
#include "scratch.h"

namespace sf {
namespace {

template <class F, class Cell>
class BackwardPass {
  using A = typename F::A;
  using E = typename F::E;
  static constexpr int kL = F::kLanes, kG = Cell::kGates, kSaved = OptionsOf<Cell>::Base::kSaved;

 public:
  static int64_t measure(const Backward& call, int64_t rows) { return BackwardPass(call, rows, nullptr, 0).size_; }
  static void run(const BackwardTask& task) {
    [[maybe_unused]] const typename F::Scope scope{};
    BackwardPass(*task.call, task.task.count, task.task.scratch, task.task.direction).go(task);
  }

 protected:
  BackwardPass(const Backward& call, int64_t rows, char* scratch, int direction)
      : call_(call), layer_(call.layer), n_(rows), d_(direction) {
    const Layer& l = layer_;
    padded_ = padded(l.H);
    wide_ = padded(l.out());
    Arena own(scratch);
    auto reader = [&](const Rows& from, int64_t width, int64_t stride) {
      RowReader<E> r{from, width, nullptr, stride};
      r.scratch = own.template take<E>(from.data && r.direct() ? 0 : n_ * stride);
      return r;
    };
    d_output_ = reader(call.d_output[d_], l.out(), wide_);
    d_h_n_ = reader(call.d_h_n[d_], l.out(), wide_);
    h_ = reader(call.output[d_], l.out(), wide_);
    h_prev_ = reader(call.output[d_], l.out(), wide_);
    h0_ = reader(l.h0[d_], l.out(), wide_);
    const E*** const read[] = {&a_, &from_output_, &from_state_, &h_rows_, &h_prev_rows_};
    for (const E*** p : read) *p = own.template take<const E*>(n_);
    const A*** const read_sums[] = {&saved_rows_, &c_prev_rows_};
    for (const A*** p : read_sums) *p = own.template take<const A*>(n_);
    E*** const written[] = {&gate_rows_, &projected_rows_};
    for (E*** p : written) *p = own.template take<E*>(n_);
    A*** const written_sums[] = {&target_rows_, &to_reset_, &bias_rows_};
    for (A*** p : written_sums) *p = own.template take<A*>(n_);
    fresh_ = own.template take<bool>(n_);
    anew_ = own.template take<bool>(n_);
    const bool resets = l.resets.data != nullptr;
    reset_h_ = own.template take<E>(resets ? wide_ : 0);
    reset_c_ = own.template take<A>(resets && Cell::kHasC ? padded_ : 0);
    reset_c_spread_ = own.template take<A>(resets && Cell::kHasC ? padded_ * kSaved : 0);
    carry_ = own.template take<A>(n_ * padded_);
    c0_ = own.template take<A>(Cell::kHasC ? n_ * padded_ : 0);
    target_ = own.template take<A>(n_ * wide_);
    if constexpr (F::kTiled) {
      const int64_t gates = kG * staged_size(n_, l.H), projected = staged_size(n_, l.P);
      staged_ = own.template take<E>(gates > projected ? gates : projected);
    }
    own_ = own;
    size_ = own.used();
  }

  void begin(const BackwardTask& task) {
    const Task& t = task.task;
    rows_ = t.rows;
    unit_begin_ = t.unit_begin;
    unit_end_ = t.unit_end;
    packed_ = task.packed;
    begin_rows();
  }

  void go(const BackwardTask& task) {
    begin(task);
    run(task.task, [&](int64_t step, int64_t active, bool product) { run_step(step, active, product); });
  }

  // Calls one(step, active rows, whether a later step left gradients) for every step, the last one first.
  template <class Function>
  void run(const Task& t, Function&& one) {
    const int64_t steps = n_ ? layer_.length(rows_[0]) : 0;
    int64_t active = 0;
    for (int64_t step = steps - 1; step >= 0; --step) {
      const int64_t before = active;
      while (active < n_ && layer_.length(rows_[active]) > step) ++active;
      prepare(step, before, active);
      one(step, active, before > 0);
      if (t.barrier) t.barrier(t.barrier_state);
    }
    if (call_.d_h0[d_].data || call_.d_h_reset[d_].data) initial_gradient(active);
    finish_c0();
  }

  int64_t time(int64_t i, int64_t step) const { return d_ ? layer_.length(rows_[i]) - 1 - step : step; }
  template <class T = A>
  static T* row_of(const Rows& rows, int64_t t, int64_t b) {
    return reinterpret_cast<T*>(rows.data) + rows.offset(t, b);
  }

  void begin_rows() {
    if (!h0_.rows.data) {
      for (int64_t i = 0; i < n_ * wide_; ++i) h0_.scratch[i] = E(0);
    }
    if constexpr (Cell::kHasC) {
      const Rows& c0 = layer_.c0[d_];
      for (int64_t i = 0; i < n_; ++i) {
        A* to = c0_ + i * padded_;
        for (int64_t u = 0; u < padded_; ++u) to[u] = 0;
        if (c0.data)
          read_row<A>(c0.dtype, c0.data + c0.offset(0, rows_[i]) * size_of(c0.dtype), c0.stride, to, layer_.H);
      }
    }
    for (int64_t i = 0; i < n_; ++i) {
      start_carry(i);
      gate_rows_[i] = nullptr;
      target_rows_[i] = target_ + i * wide_;
      anew_[i] = false;
      if (call_.d_bias[d_].data) {
        bias_rows_[i] = row_of(call_.d_bias[d_], 0, rows_[i]);
        for (int slot = 0; slot < Cell::kSlots; ++slot)
          for (int64_t u = unit_begin_; u < unit_end_; ++u) bias_rows_[i][slot * layer_.H + u] = 0;
      }
      for (int64_t u = out_begin(); call_.d_h_reset[d_].data && u < out_end(); ++u)
        reset_sum(call_.d_h_reset, i)[u] = 0;
      for (int64_t u = unit_begin_; call_.d_c_reset[d_].data && u < unit_end_; ++u)
        reset_sum(call_.d_c_reset, i)[u] = 0;
    }
    if (layer_.resets.data) read_reset_states();
  }

  int64_t out_begin() const { return layer_.P ? 0 : unit_begin_; }
  int64_t out_end() const { return layer_.P ? layer_.P : unit_end_; }
  A* reset_sum(const Rows (&sums)[kMaxDirections], int64_t i) const { return row_of(sums[d_], 0, rows_[i]); }

  // The reset states, that of c a second time where a row of saved values has it.
  void read_reset_states() {
    const auto read = [&](const Rows& from, auto* to, int64_t n, int64_t width) {
      for (int64_t u = 0; u < width; ++u) to[u] = 0;
      if (from.data) read_row(from.dtype, from.data, from.stride, to, n);
    };
    read(layer_.h_reset[d_], reset_h_, layer_.out(), wide_);
    if constexpr (Cell::kHasC) {
      read(layer_.c_reset[d_], reset_c_, layer_.H, padded_);
      for (int64_t u = 0; u < padded_; ++u) reset_c_spread_[u / kL * kL * kSaved + u % kL] = reset_c_[u];
    }
  }

  // The step after this one starts anew: the carry that it left is a gradient of the reset state.
  void carry_to_reset_state(int64_t i) {
    A* carry = carry_ + i * padded_;
    const Rows(&sums)[kMaxDirections] = Cell::kHasC ? call_.d_c_reset : call_.d_h_reset;
    if (sums[d_].data) {
      A* sum = reset_sum(sums, i);
      for (int64_t u = unit_begin_; u < unit_end_; ++u) sum[u] += carry[u];
    }
    for (int64_t u = 0; u < padded_; ++u) carry[u] = 0;
    if (!carry_h_) return;
    carry = carry_h_ + i * wide_;
    for (int64_t u = 0; call_.d_h_reset[d_].data && u < layer_.out(); ++u) reset_sum(call_.d_h_reset, i)[u] += carry[u];
    for (int64_t u = 0; u < wide_; ++u) carry[u] = 0;
  }

  // The carry that is a part of the gradient of the previous h, if there is one.
  const A* carry_of_h(int64_t i) const {
    if (carry_h_) return carry_h_ + i * wide_;
    return Cell::kHasC || (!Cell::kCarriesH && !layer_.row_wise) ? nullptr : carry_ + i * padded_;
  }

  // Sets the carry that a row's last step receives: the gradient of c_n, or zero.
  void start_carry(int64_t i) {
    A* carry = carry_ + i * padded_;
    for (int64_t u = 0; u < padded_; ++u) carry[u] = 0;
    const Rows& d_c_n = call_.d_c_n[d_];
    if (Cell::kHasC && d_c_n.data) {
      read_row<A>(d_c_n.dtype, d_c_n.data + d_c_n.offset(0, rows_[i]) * size_of(d_c_n.dtype), d_c_n.stride, carry,
                  layer_.H);
    }
  }

  const E* initial_h(int64_t i) const { return h0_.rows.data ? h0_.at(0, rows_[i], i) : h0_.scratch + i * wide_; }

  void prepare(int64_t step, int64_t before, int64_t active) {
    const Rows &d_gates = call_.d_gates[d_], &saved = call_.saved[d_];
    const int64_t c_slot = (kSaved - 1) * kL;
    for (int64_t i = 0; i < active; ++i) {
      const int64_t b = rows_[i], t = time(i, step), t_prev = time(i, step - 1);
      const bool joins = i >= before, cut = !joins && anew_[i];
      fresh_[i] = joins || cut;
      to_reset_[i] = cut && call_.d_h_reset[d_].data ? reset_sum(call_.d_h_reset, i) : nullptr;
      if (cut) carry_to_reset_state(i);
      const bool anew = anew_[i] = layer_.starts_anew(d_, t, b, layer_.length(b));
      E* current = row_of<E>(d_gates, t, b);
      a_[i] = joins ? (before ? a_[0] : current) : gate_rows_[i];
      gate_rows_[i] = current;
      from_output_[i] = d_output_.rows.data ? d_output_.at(t, b, i) : nullptr;
      from_state_[i] = joins && d_h_n_.rows.data ? d_h_n_.at(0, b, i) : nullptr;
      if (Cell::kSaved > 0 || layer_.row_wise) saved_rows_[i] = row_of(saved, t, b);
      if constexpr (Cell::kReadsH) h_rows_[i] = h_.at(t, b, i);
      if constexpr (Cell::kReadsHPrev)
        h_prev_rows_[i] = anew ? reset_h_ : step ? h_prev_.at(t_prev, b, i) : initial_h(i);
      if constexpr (Cell::kHasC) {
        c_prev_rows_[i] = step ? row_of(saved, t_prev, b) + c_slot : c0_ + i * padded_;
        if (anew) c_prev_rows_[i] = step ? reset_c_spread_ : reset_c_;
      }
    }
  }

  // Sets the operands of the product of d_gates with W_hh. There is one segment per gate: its hidden_slot().
  void set_recurrent(BackwardStep<F>& s, int64_t rows) const {
    s.a = a_;
    s.rows = rows;
    s.fresh = fresh_;
    s.to_reset = call_.d_h_reset[d_].data ? to_reset_ : nullptr;
    s.scale = scale_;
    s.segments = s.of_panel = kG;
    for (int g = 0; g < kG; ++g) s.segment[g] = Cell::hidden_slot(g) * layer_.H;
    s.K = layer_.H;
    s.w = reinterpret_cast<const E*>(packed_.w_hh);
    s.staged = staged_;
    s.from_output = from_output_;
    s.from_state = from_state_;
  }

  void run_step(int64_t step, int64_t active, bool product) {
    BackwardStep<F> s{};
    set_recurrent(s, active);
    if (!product) s.K = 0, s.segments = 0;
    s.H = layer_.H;
    if (layer_.P) {  // first d(projected h), which is kept in the row of d_gates; its product with W_hr is d(h)
      const int64_t place = Cell::kSlots * layer_.H;
      for (int64_t i = 0; i < active; ++i) projected_rows_[i] = gate_rows_[i] + place;
      gradient_tiles(s, layer_.P, projected_rows_);
      for (int64_t i = 0; i < active; ++i) a_[i] = projected_rows_[i];
      s.fresh = nullptr;
      s.to_reset = nullptr;
      s.scale = nullptr;
      s.segments = s.of_panel = 1;
      s.segment[0] = 0;
      s.K = layer_.P;
      s.w = reinterpret_cast<const E*>(packed_.w_hr);
      s.from_output = s.from_state = nullptr;
    }
    s.saved = saved_rows_;
    s.h = h_rows_;
    s.h_prev = h_prev_rows_;
    s.c_prev = c_prev_rows_;
    s.c_scale = step ? Cell::kSaved : 1;
    s.d_gates = gate_rows_;
    s.bias = call_.d_bias[d_].data ? bias_rows_ : nullptr;
    s.carry = carry_;
    s.carry_stride = padded_;
    cell_tiles(s, step & 1);
    if (layer_.P) keep_unprojected(active);
  }

  void cell_tiles(const BackwardStep<F>& s, bool backwards) {
    using Shape = TileShape<1>;
    const int64_t rows = s.rows;
    const int64_t begin = unit_begin_ / kL, end = blocks_of<F>(unit_end_);
    if constexpr (F::kTiled) {
      tiled_hidden_product(s, begin, end, [&](int64_t row, int64_t block, const A* product) {
        run_cell_back<F, Cell>(s, row, block, product);
      });
    } else {
      for_blocks<Shape::kBlocks>(begin, end, backwards, [&](int64_t block, int64_t next) {
        for_row_groups<Shape::kRows>(rows, [&](int64_t first, auto m) {
          backward_tile<F, Cell, decltype(m)::value, Shape::kBlocks>(s, first, block, next);
        });
      });
      for (int64_t block = begin + (end - begin) / Shape::kBlocks * Shape::kBlocks; block < end; ++block) {
        for_row_groups<Shape::kRows>(rows, [&](int64_t first, auto m) {
          backward_tile<F, Cell, decltype(m)::value, 1>(s, first, block, block);
        });
      }
    }
  }

  template <class To>
  void gradient_tiles(const BackwardStep<F>& s, int64_t columns, To* const* out) {
    constexpr int kBlocks = TileShape<1>::kBlocks;
    const int64_t blocks = blocks_of<F>(columns), whole = blocks / kBlocks * kBlocks;
    if constexpr (F::kTiled) {
      tiled_hidden_product(s, 0, blocks, [&](int64_t row, int64_t block, const A* product) {
        write_gradient<F>(s, row, block * kL, columns, product, out);
      });
    } else {
      const auto tiles = [&](int64_t block, auto count) {
        for_row_groups<TileShape<1>::kRows>(s.rows, [&](int64_t first, auto m) {
          gradient_tile<F, decltype(m)::value, decltype(count)::value>(s, first, block, columns, out);
        });
      };
      for (int64_t block = 0; block < whole; block += kBlocks) tiles(block, Int<kBlocks>{});
      for (int64_t block = whole; block < blocks; ++block) tiles(block, Int<1>{});
    }
  }

  // h before the projection, o * tanh(c), for the gradient of W_hr.
  void keep_unprojected(int64_t active) {
    if constexpr (Cell::kHasC) {
      for (int64_t i = 0; i < active; ++i) {
        E* to = gate_rows_[i] + Cell::kSlots * layer_.H + layer_.P;
        for (int64_t unit = 0; unit < layer_.H; unit += kL) {
          typename F::V saved[Cell::kSaved];
          for (int k = 0; k < Cell::kSaved; ++k) saved[k] = load(saved_rows_[i] + unit * Cell::kSaved + k * kL);
          F::write(to + unit, Cell::unprojected(saved), static_cast<int>(layer_.H - unit));
        }
      }
    }
  }

  // d_h0: one more product, plus the carry if the cell has one for h. For rows of length 0, it is the gradient of h_n.
  void initial_gradient(int64_t active) {
    BackwardStep<F> s{};
    set_recurrent(s, active);
    if constexpr (OptionsOf<Cell>::kResetsFirst) s.segments = 2;  // the part of gate n is in the carry
    for (int64_t i = 0; i < active; ++i) a_[i] = gate_rows_[i];
    if (packed_.w_hh || F::kPack > 1) {
      s.fresh = nullptr;
      s.to_reset = nullptr;
      s.from_output = s.from_state = nullptr;
      gradient_tiles(s, layer_.out(), target_rows_);
    } else if constexpr (F::kPack == 1) {  // the weights are used in place
      const Matrix& w = layer_.w_hh[d_];
      Term<A> terms[kG];
      for (int g = 0; g < kG; ++g) {
        const char* gate = w.data + g * layer_.H * w.row_stride * static_cast<int64_t>(sizeof(A));
        terms[g] = {a_, s.segment[g], layer_.H, reinterpret_cast<const A*>(gate), w.row_stride};
      }
      terms_product<F>(terms, kG, active, layer_.H, target_rows_);
    }
    const Rows& d_h0 = call_.d_h0[d_];
    const int64_t begin = out_begin(), end = out_end();
    for (int64_t i = 0; i < n_; ++i) {
      A* row = target_rows_[i];
      if (i >= active) {
        for (int64_t u = begin; u < end; ++u) row[u] = 0;
        if (d_h_n_.rows.data) {
          const E* from = d_h_n_.at(0, rows_[i], i);
          for (int64_t u = begin; u < end; ++u) row[u] = F::value(from[u]);
        }
      } else if (const A* carry = carry_of_h(i)) {
        for (int64_t u = begin; u < end; ++u) row[u] += carry[u];
      }
      if (anew_[i]) {  // the first step does not read h0
        for (int64_t u = begin; call_.d_h_reset[d_].data && u < end; ++u) reset_sum(call_.d_h_reset, i)[u] += row[u];
        for (int64_t u = begin; u < end; ++u) row[u] = 0;
      }
      if (!d_h0.data) continue;
      write_row<A>(d_h0.dtype, row + begin, d_h0.data + (d_h0.offset(0, rows_[i]) + begin) * size_of(d_h0.dtype),
                   end - begin);
    }
  }

  void finish_c0() {
    const Rows& d_c0 = call_.d_c0[d_];
    if (!Cell::kHasC) return;
    for (int64_t i = 0; i < n_; ++i) {
      A* carry = carry_ + i * padded_;
      if (anew_[i]) {
        for (int64_t u = unit_begin_; call_.d_c_reset[d_].data && u < unit_end_; ++u)
          reset_sum(call_.d_c_reset, i)[u] += carry[u];
        for (int64_t u = 0; u < padded_; ++u) carry[u] = 0;
      }
      if (!d_c0.data) continue;
      write_row<A>(d_c0.dtype, carry + unit_begin_,
                   d_c0.data + (d_c0.offset(0, rows_[i]) + unit_begin_) * size_of(d_c0.dtype), unit_end_ - unit_begin_);
    }
  }

  const Backward& call_;
  const Layer& layer_;
  int64_t n_, padded_, wide_, size_;
  int d_;
  Arena own_{nullptr};         // for what a derived class needs beyond the memory below
  A* carry_h_ = nullptr;       // with a row-wise layer that has c: a carry for h
  const A** scale_ = nullptr;  // the masks of the state
  const int64_t* rows_ = nullptr;
  int64_t unit_begin_ = 0, unit_end_ = 0;
  PackedBackward packed_{};
  RowReader<E> d_output_, d_h_n_, h_, h_prev_, h0_;
  const E **a_, **from_output_, **from_state_, **h_rows_, **h_prev_rows_;
  const A **saved_rows_, **c_prev_rows_;
  E **gate_rows_, **projected_rows_, *reset_h_, *staged_ = nullptr;
  A **target_rows_, **to_reset_, **bias_rows_, *carry_, *c0_, *target_, *reset_c_, *reset_c_spread_;
  bool *fresh_, *anew_;  // anew: the step that was computed last starts anew
};

}  // namespace
}  // namespace sf

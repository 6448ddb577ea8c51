// The forward pass of one task, step by step and in each step tile by tile.
// h is kept in two buffers that take turns, and copied to the output: rows of the output are often a power of two
// apart, and the cache could not hold many of them. The input is projected at each step. With only one or two rows,
// reading w_ih would take most of the time, so several steps are projected at once. The bits are the same, because each
// sum adds the same numbers in the same order. Where x holds ids, the projection is a column of w_ih.
#pragma once

#include "forward_tiles.h"
#include "scratch.h"

namespace sf {
namespace {

template <class F, class Cell>
class ForwardPass {
  using A = typename F::A;
  using E = typename F::E;
  using Shape = TileShape<Cell::kSlots, Cell::kGates>;
  static constexpr int kL = F::kLanes, kS = Cell::kSlots;
  static constexpr int64_t kChunkBytes = 128 * 1024, kManyRows = 12;

 public:
  static int64_t measure(const Forward& call, int64_t rows, bool in_place) {
    return ForwardPass(call, rows, in_place, nullptr, nullptr).private_size_;
  }
  static int64_t measure_shared(const Forward& call, int64_t rows) {
    return ForwardPass(call, rows, false, nullptr, nullptr).shared_size_;
  }
  static void run(const ForwardTask& task) {
    [[maybe_unused]] const typename F::Scope scope{};
    ForwardPass(*task.call, task.task.count, !task.packed.w_hh, task.task.scratch, task.task.shared).go(task);
  }

 protected:
  ForwardPass(const Forward& call, int64_t rows, bool in_place, char* scratch, char* shared)
      : ForwardPass(call, rows, in_place, Arena(scratch), shared, kS) {}
  // sums: how many sums of a unit are projected. project: whether the input is projected before the state in any case.
  ForwardPass(const Forward& call, int64_t rows, bool in_place, Arena own, char* shared, int sums, bool project = false)
      : call_(call), layer_(call.layer), n_(rows), in_place_(in_place) {
    const Layer& l = layer_;
    padded_ = padded(l.H);
    out_ = l.out();
    h_stride_ = padded(out_);
    start_size_ = padded_ * sums;
    project_first_ = (n_ <= 2 && !in_place_) || l.ids || project;
    chunk_ = 1;
    if (project_first_ && !l.ids && n_ < kManyRows) {
      const int64_t fit = kChunkBytes / (start_size_ * static_cast<int64_t>(sizeof(A)) * (n_ ? n_ : 1));
      chunk_ = fit < 6 ? 6 : fit > 48 ? 48 : fit;
      if (chunk_ > l.T) chunk_ = l.T;
    }
    const int64_t rows_x = n_ * chunk_;
    projected_ = own.template take<A>(project_first_ ? rows_x * start_size_ : 0);
    projected_rows_ = own.template take<A*>(rows_x);
    x_rows_ = own.template take<const E*>(rows_x);
    start_ = own.template take<const A*>(n_);
    h_prev_ = own.template take<const E*>(n_);
    h_next_ = own.template take<E*>(n_);
    output_rows_ = own.template take<E*>(n_);
    m_rows_ = own.template take<E*>(l.P ? n_ : 0);
    m_ = own.template take<E>(l.P ? n_ * padded_ : 0);
    proj_out_ = own.template take<A>(l.P ? n_ * h_stride_ : 0);
    proj_rows_ = own.template take<A*>(l.P ? n_ : 0);
    saved_ = own.template take<A*>(n_);
    c_ = own.template take<A>(Cell::kHasC ? n_ * padded_ : 0);
    x_ = {l.x, l.features(), nullptr, (l.features() + 63) / 64 * 64};
    x_.scratch = own.template take<E>(x_.direct() ? 0 : rows_x * x_.slot_stride);
    bias_ = own.template take<A>(in_place_ ? start_size_ : 0);
    reset_h_ = own.template take<E>(l.resets.data ? h_stride_ : 0);
    reset_c_ = own.template take<A>(l.resets.data && Cell::kHasC ? padded_ : 0);
    const int64_t most = blocks_of<F>(l.H) < Shape::kBlocks ? blocks_of<F>(l.H) : Shape::kBlocks,
                  packed = in_place_ && n_ > Shape::kRows ? most : 0;  // blocks at a time
    panels_x_ = own.template take<E>(packed * panel_size<F>(l.features(), Cell::kGates));
    panels_h_ = own.template take<E>(packed * panel_size<F>(out_, Cell::kGates));
    staged_x_ = own.template take<E>(F::kTiled ? staged_size(rows_x, l.features()) : 0);
    staged_h_ = own.template take<E>(F::kTiled ? staged_size(n_, l.P && l.H > out_ ? l.H : out_) : 0);
    Arena common(shared);
    ring_[0] = common.template take<E>(n_ * h_stride_);
    ring_[1] = common.template take<E>(n_ * h_stride_);
    own_ = own;
    private_size_ = own.used();
    shared_size_ = common.used();
  }

  void begin(const ForwardTask& task) {
    const Task& t = task.task;
    const int d = t.direction;
    direction_ = d;
    rows_ = t.rows;
    unit_begin_ = t.unit_begin;
    unit_end_ = t.unit_end;
    block_begin_ = unit_begin_ / kL;
    block_end_ = blocks_of<F>(unit_end_);
    out_begin_ = layer_.P ? 0 : unit_begin_;
    out_end_ = layer_.P ? layer_.P : unit_end_;
    packed_ = task.packed;
    if (in_place_) {
      pack_bias<F, Cell>(layer_, d, bias_);
      packed_.bias = reinterpret_cast<const char*>(bias_);
    }
    output_direct_ = !layer_.P && call_.output[d].data && call_.output[d].dtype == dtype_of<E>();
    begin_rows();
    if (layer_.resets.data) {
      read_state(layer_.h_reset[d], 0, reset_h_, 0, out_);
      if constexpr (Cell::kHasC) {
        for (int64_t u = layer_.H; u < padded_; ++u) reset_c_[u] = 0;
        read_state(layer_.c_reset[d], 0, reset_c_, 0, layer_.H);
      }
    }
    if (t.barrier) t.barrier(t.barrier_state);
  }

  // Calls one(step, active rows) for every step.
  template <class Function>
  void for_steps(Function&& one) {
    const int64_t steps = n_ ? layer_.length(rows_[0]) : 0;
    int64_t active = n_;
    for (int64_t step = 0; step < steps; ++step) {
      while (layer_.length(rows_[active - 1]) <= step) --active;
      one(step, active);
    }
    for (int64_t i = 0; i < n_; ++i) clear_tail(i);
  }

  void go(const ForwardTask& task) {
    const Task& t = task.task;
    const int d = t.direction;
    begin(task);
    for_steps([&](int64_t step, int64_t active) {
      if (project_first_) project<kS>(step, active, reinterpret_cast<const A*>(packed_.bias));
      prepare(step, active);
      ForwardStep<F> s;
      s.start = start_;
      s.x = project_first_ ? h_prev_ : x_rows_;  // never read if K_x is 0
      s.h_prev = h_prev_;
      s.h_next = layer_.P ? m_rows_ : h_next_;
      s.output = output_direct_ ? output_rows_ : nullptr;
      s.saved = call_.saved[d].data ? saved_ : nullptr;
      s.c = c_;
      s.rows = active;
      s.c_stride = padded_;
      s.K_x = project_first_ ? 0 : layer_.features();
      s.K_h = out_;
      s.H = layer_.H;
      s.w_x = reinterpret_cast<const E*>(packed_.w_ih);
      s.w_h = reinterpret_cast<const E*>(packed_.w_hh);
      s.first_block = 0;
      s.staged_x = staged_x_;
      s.staged_h = staged_h_;
      if (in_place_) {
        tiles_in_place(s);
      } else {
        forward_tiles<F, Cell>(s, block_begin_, block_end_, step & 1);
      }
      if (layer_.P) project_output(active);
      finish_step(step, active);
      if (t.barrier) t.barrier(t.barrier_state);
    });
  }

  // Computes one step with weights that are not packed. A few rows, the rows of one tile, use them as they lie in
  // memory; with more rows, the blocks of each tile are packed just before they are used.
  void tiles_in_place(ForwardStep<F>& s) {
    if constexpr (!kInferenceAlone && F::kPack == 1) {
      if (s.rows <= Shape::kRows) {
        const Matrix &w_ih = layer_.w_ih[direction_], &w_hh = layer_.w_hh[direction_];
        s.w_x = reinterpret_cast<const E*>(w_ih.data), s.row_stride_x = w_ih.row_stride;
        s.w_h = reinterpret_cast<const E*>(w_hh.data), s.row_stride_h = w_hh.row_stride;
        int64_t block = block_begin_;
        for (; s.rows == 1 && block + 2 <= block_end_; block += 2)
          forward_tile<F, Cell, 1, 2, true>(s, 0, block, block);
        for (; block < block_end_; ++block) {
          with_constant<Shape::kRows>(
              s.rows, [&](auto m) { forward_tile<F, Cell, decltype(m)::value, 1, true>(s, 0, block, block); });
        }
        return;
      }
      const PackSource from_x = input_weights<Cell>(layer_, direction_),
                       from_h = hidden_weights<Cell>(layer_, direction_);
      s.w_x = panels_x_, s.w_h = panels_h_;
      for (int64_t block = block_begin_; block < block_end_; block += Shape::kBlocks) {
        const int64_t end = block + Shape::kBlocks < block_end_ ? block + Shape::kBlocks : block_end_;
        s.first_block = block;
        if (s.K_x) pack<F>(from_x, panels_x_, block, end);
        pack<F>(from_h, panels_h_, block, end);
        forward_tiles<F, Cell>(s, block, end, false);
      }
    }
  }

  int64_t time(int64_t i, int64_t step) const { return direction_ ? layer_.length(rows_[i]) - 1 - step : step; }

  // Reads the initial states. For rows without steps they are also h_n and c_n.
  void begin_rows() {
    for (int64_t i = 0; i < n_; ++i) {
      E* h = ring_[0] + i * h_stride_;
      const int64_t b = rows_[i];
      read_state(layer_.h0[direction_], b, h, out_begin_, out_end_);
      if constexpr (Cell::kHasC) {
        for (int64_t u = layer_.H; u < padded_; ++u) c_[i * padded_ + u] = 0;
        read_state(layer_.c0[direction_], b, c_ + i * padded_, unit_begin_, unit_end_);
      }
      h_next_[i] = h;
      if (layer_.length(b) == 0) finish_row(i);
      start_[i] = reinterpret_cast<const A*>(packed_.bias);
      if (layer_.P) {
        m_rows_[i] = m_ + i * padded_;
        proj_rows_[i] = proj_out_ + i * h_stride_;
      }
    }
  }

  template <class To>
  void read_state(const Rows& from, int64_t b, To* to, int64_t begin, int64_t end) {
    if (!from.data) {
      for (int64_t u = begin; u < end; ++u) to[u] = To(0);
      return;
    }
    const char* source = from.data + (from.offset(0, b) + begin * from.stride) * size_of(from.dtype);
    read_row<To>(from.dtype, source, from.stride, to + begin, end - begin);
  }

  // Projects the input: at the start of a chunk of steps that are projected at once, that of all of them. The rows
  // start_ point to the sums of this step, [blocks][kSums][kLanes], plus `bias` unless that is null.
  template <int kSums>
  void project(int64_t step, int64_t active, const A* bias) {
    const int64_t in_chunk = step % chunk_;
    if (layer_.ids)
      take_columns<kSums>(step, active, bias);
    else if (in_chunk == 0)
      project_chunk<kSums>(step, active, bias);
    for (int64_t i = 0; i < active; ++i) start_[i] = projected_ + (in_chunk * n_ + i) * start_size_;
  }

  // Finds the rows of this step.
  void prepare(int64_t step, int64_t active) {
    const Rows& output = call_.output[direction_];
    const Rows& saved = call_.saved[direction_];
    for (int64_t i = 0; i < active; ++i) {
      const int64_t t = time(i, step), b = rows_[i];
      h_prev_[i] = h_next_[i];
      h_next_[i] = ring_[(step + 1) & 1] + i * h_stride_;
      if (output_direct_) output_rows_[i] = reinterpret_cast<E*>(output.data) + output.offset(t, b);
      if (saved.data) saved_[i] = reinterpret_cast<A*>(saved.data) + saved.offset(t, b);
      if (!project_first_) x_rows_[i] = x_.at(t, b, i);
      if (layer_.starts_anew(direction_, t, b, layer_.length(b))) start_anew(i);
    }
  }

  // Gives a row the reset state as its previous one.
  void start_anew(int64_t i) {
    h_prev_[i] = reset_h_;
    if constexpr (Cell::kHasC) {
      for (int64_t u = 0; u < padded_; ++u) c_[i * padded_ + u] = reset_c_[u];
    }
  }

  template <int kSums>
  void project_chunk(int64_t step, int64_t active, const A* bias) {
    int64_t count = 0;
    for (int64_t k = 0; k < chunk_; ++k) {
      for (int64_t i = 0; i < active && step + k < layer_.length(rows_[i]); ++i, ++count) {
        x_rows_[count] = x_.at(time(i, step + k), rows_[i], count);
        projected_rows_[count] = projected_ + (k * n_ + i) * start_size_;
      }
    }
    const int64_t panel = panel_size<F>(layer_.I, Cell::kGates);
    const E* w = reinterpret_cast<const E*>(packed_.w_ih);
    if constexpr (F::kTiled) {
      product_tiled<Cell::kGates, kSums>(x_rows_, count, layer_.I, w, block_begin_, block_end_, bias, projected_rows_,
                                         staged_x_);
    } else {
      for (int64_t block = block_begin_; block < block_end_; ++block) {
        for_row_groups<Shape::kRows>(count, [&](int64_t first, auto m) {
          const int64_t at = block * kSums * kL, rows = decltype(m)::value;
          for (int64_t row = first + rows; block == block_begin_ && row < first + 2 * rows && row < count; ++row)
            prefetch<false>(x_rows_[row], layer_.I);
          product_tile<F, Cell::kGates, kSums, decltype(m)::value>(
              x_rows_ + first, layer_.I, w + block * panel, bias ? bias + at : nullptr, projected_rows_ + first, at);
        });
      }
    }
  }

  // The projection of ids: the columns of w_ih that they name, plus the bias. Columns are far apart in memory, so those
  // of the next step are prefetched.
  template <int kSums>
  void take_columns(int64_t step, int64_t active, const A* bias) {
    const Matrix& w = layer_.w_ih[direction_];
    const int64_t size = size_of(layer_.dtype);
    const bool direct = layer_.dtype == dtype_of<A>() && w.row_stride == 1;
    const auto column_of = [&](int64_t i, int64_t at) {
      return w.data + layer_.id(time(i, at), rows_[i]) * w.column_stride * size;
    };
    for (int64_t i = 0; i < active; ++i) {
      const char* column = column_of(i, step);
      if (w.row_stride == 1 && step + 1 < layer_.length(rows_[i]))
        prefetch<false>(column_of(i, step + 1), layer_.gates * layer_.H * size);
      A* to = projected_ + i * start_size_;
      for (int64_t block = block_begin_; block < block_end_; ++block) {
        const int64_t left = layer_.H - block * kL, n = left < kL ? left : kL;
        for (int s = 0; s < kSums; ++s) {
          const int64_t at = (block * kSums + s) * kL;
          typename F::V sum = bias ? load(bias + at) : typename F::V{};
          if (s < Cell::kGates) {
            const char* from = column + (s * layer_.H + block * kL) * w.row_stride * size;
            if (direct) {
              sum += Plain<A>::read(reinterpret_cast<const A*>(from), static_cast<int>(n));
            } else {
              A line[kL] = {};
              read_row<A>(layer_.dtype, from, w.row_stride, line, n);
              sum += load(line);
            }
          }
          store(to + at, sum);
        }
      }
    }
  }

  // h = W_hr m, where m is h before the projection. It is computed in padded rows, as tiles write whole vectors.
  void project_sums(int64_t active) {
    const int64_t panel = panel_size<F>(layer_.H, 1);
    const E* w = reinterpret_cast<const E*>(packed_.w_hr);
    if constexpr (F::kTiled) {
      product_tiled<1, 1>(m_rows_, active, layer_.H, w, 0, blocks_of<F>(layer_.P), nullptr, proj_rows_, staged_h_);
    } else {
      product<F>(m_rows_, active, layer_.H, w, panel, blocks_of<F>(layer_.P), nullptr, proj_rows_);
    }
  }
  void project_output(int64_t active) {
    project_sums(active);
    for (int64_t i = 0; i < active; ++i)
      write_row<A>(dtype_of<E>(), proj_rows_[i], reinterpret_cast<char*>(h_next_[i]), layer_.P);
  }

  void finish_step(int64_t step, int64_t active) {
    const Rows& output = call_.output[direction_];
    for (int64_t i = 0; i < active; ++i) {
      if (dtype_of<E>() != layer_.dtype) {
        round_row(layer_.dtype, reinterpret_cast<A*>(h_next_[i]) + out_begin_, out_end_ - out_begin_);
      }
      if (!output_direct_ && output.data) {
        char* to = output.data + (output.offset(time(i, step), rows_[i]) + out_begin_) * size_of(output.dtype);
        write_row<E>(output.dtype, h_next_[i] + out_begin_, to, out_end_ - out_begin_);
      }
      if (layer_.length(rows_[i]) == step + 1) finish_row(i);
    }
  }

  void finish_row(int64_t i) {
    const Rows& h_n = call_.h_n[direction_];
    const int64_t b = rows_[i];
    write_row<E>(h_n.dtype, h_next_[i] + out_begin_, h_n.data + (h_n.offset(0, b) + out_begin_) * size_of(h_n.dtype),
                 out_end_ - out_begin_);
    if constexpr (Cell::kHasC) {
      const Rows& c_n = call_.c_n[direction_];
      write_row<A>(c_n.dtype, c_ + i * padded_ + unit_begin_,
                   c_n.data + (c_n.offset(0, b) + unit_begin_) * size_of(c_n.dtype), unit_end_ - unit_begin_);
    }
  }

  // The output beyond a row's length is zero.
  void clear_tail(int64_t i) {
    const Rows& output = call_.output[direction_];
    if (!output.data || output.t_row) return;
    const int64_t size = size_of(output.dtype), b = rows_[i];
    for (int64_t t = layer_.length(b); t < layer_.T; ++t) {
      __builtin_memset(output.data + (output.offset(t, b) + out_begin_) * size, 0,
                       static_cast<size_t>((out_end_ - out_begin_) * size));
    }
  }

  const Forward& call_;
  const Layer& layer_;
  const int64_t n_;
  const bool in_place_;
  Arena own_{nullptr};  // for what a derived class needs beyond the memory below
  int64_t padded_, out_, h_stride_, start_size_, chunk_, private_size_, shared_size_;
  bool project_first_, output_direct_ = false;
  int direction_ = 0;
  const int64_t* rows_ = nullptr;
  int64_t unit_begin_ = 0, unit_end_ = 0, block_begin_ = 0, block_end_ = 0, out_begin_ = 0, out_end_ = 0;
  PackedForward packed_{};
  RowReader<E> x_;
  A *projected_, *proj_out_, *c_, *bias_, *reset_c_;
  A **projected_rows_, **proj_rows_, **saved_;
  const A** start_;
  const E **x_rows_, **h_prev_;
  E **h_next_, **output_rows_, **m_rows_, *m_, *panels_x_, *panels_h_, *ring_[2], *reset_h_, *staged_x_, *staged_h_;
};

}  // namespace
}  // namespace sf

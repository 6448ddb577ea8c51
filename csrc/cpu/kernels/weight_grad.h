// Weight gradients: d_gates^T times the rows of x, of the previous h and, with a projection, of o * tanh(c).
// The rows (t, b) are taken in chunks that fit the caches. d_gates is read in place; of the other operand, a few
// columns at a time are copied into a panel. Each chunk has sums of its own, which are then added to the total, in an
// order that does not depend on the number of threads. A chunk alone is written to the gradient at once.
#pragma once

#include "amx.h"
#include "grad_tiles.h"
#include "kernel_table.h"
#include "row_parts.h"
#include "scratch.h"

namespace sf {
namespace {

template <class F, class Cell>
class WeightGradPass {
  using A = typename F::A;
  using E = typename F::E;
  static constexpr int kL = F::kLanes, kRows = GradTile::kRows, kBlocks = GradTile::kBlocks;
  static constexpr int64_t kChunk = 128;
  // kGated: r * h, of the cell that resets first.
  enum Source { kInput, kHidden, kUnprojected, kGated, kSources };

  // Rows (t, b) whose products are added up together.
  struct Chunk {
    int64_t count = 0;
    const E** gates;
    const char** sources[kSources];
    const Rows** hidden;  // where the previous h of each row is: the output, h0 or the reset state
    const A** mask;       // of the state that each row was given
  };

  // Neighbouring columns of d_gates that one thread works on. Each column gives one row of each weight's gradient.
  struct Strip {
    int64_t column, count;       // in a row of d_gates
    int64_t most;                // how many columns any part of a task has
    int64_t place;               // of the first column in a row of pairs
    E* tiles;                    // room for its columns of a chunk where the products are tiled
    int64_t grad_row[kSources];  // first row in the gradient of each source's weight, or -1
    A *bias, *chunk_bias, *run_bias, *total[kSources];
  };

 public:
  static int64_t measure(const WeightGrad& call, int64_t parts) {
    const WeightGradTask widest{&call, 0, 0, parts, 0, nullptr, call.layer.B / call.samples, nullptr};
    return WeightGradPass(widest).size_;
  }
  static void run(const WeightGradTask& task) {
    [[maybe_unused]] const typename F::Scope scope{};
    WeightGradPass(task).go();
  }

 private:
  explicit WeightGradPass(const WeightGradTask& task)
      : task_(task), call_(*task.call), layer_(call_.layer), d_(task.direction) {
    const Layer& l = layer_;
    width_[kInput] = l.features(), width_[kHidden] = l.out(), width_[kUnprojected] = l.P ? l.H : 0;
    width_[kGated] = OptionsOf<Cell>::kResetsFirst ? l.H : 0;
    const int64_t steps = l.T * (l.B / call_.samples);
    one_chunk_ = F::kPack == 1 && steps <= kChunk && l.dtype == dtype_of<A>();
    Arena own(task.scratch);
    for (int s = 0; s < Cell::kSlots; ++s) {
      int64_t hidden_row = -1;
      for (int g = 0; g < Cell::kGates; ++g) {
        if (Cell::hidden_slot(g) == s) hidden_row = g * l.H;
      }
      const bool gated = OptionsOf<Cell>::kResetsFirst && s + 1 == Cell::kSlots;
      add_strip(own, s * l.H, l.H,
                {s < Cell::kGates ? s * l.H : -1, gated ? -1 : hidden_row, -1, gated ? hidden_row : -1});
    }
    if (l.P) add_strip(own, Cell::kSlots * l.H, l.P, {-1, -1, 0, -1});
    for (Chunk& chunk : chunks_) {
      chunk.gates = own.template take<const E*>(kChunk);
      for (const char**& p : chunk.sources) p = own.template take<const char*>(kChunk);
      chunk.hidden = own.template take<const Rows*>(kChunk);
      chunk.mask = own.template take<const A*>(kChunk);
    }
    int64_t longest = 0;
    for (int64_t w : width_) longest = w > longest ? w : longest;
    panel_ = own.template take<E>(one_chunk_ ? steps * (longest + kL) : kChunk * kBlocks * kL);
    for (E*& line : lines_) line = own.template take<E>(longest + kBlocks * kL);
    if constexpr (F::kTiled) {
      for (int i = 0; i < strip_count_; ++i)
        strips_[i].tiles = own.template take<E>(staged_size(strips_[i].most, kChunk));
    } else if constexpr (F::kPack > 1) {
      int64_t columns = 0;
      for (int i = 0; i < strip_count_; ++i) columns += strips_[i].most;
      pairs_ = own.template take<E>(kChunk * columns);
      pair_rows_ = own.template take<const E*>(kChunk / F::kPack);
    }
    masks_ = own.template take<A>(layer_.noise.masks_state() ? task.count * l.out() : 0);
    size_ = own.used();
  }

  // rows: for each source, the first row of its weight's gradient that the strip gives, or -1.
  void add_strip(Arena& own, int64_t column, int64_t count, const int64_t (&rows)[kSources]) {
    const int64_t tiles = (count + kRows - 1) / kRows;
    const int64_t begin = tiles * task_.part / task_.parts * kRows,
                  end = tiles * (task_.part + 1) / task_.parts * kRows;
    const int64_t most = (tiles + task_.parts - 1) / task_.parts * kRows;  // measure() knows no part: take the largest
    Strip& s = strips_[strip_count_++];
    s.column = column + begin;
    s.count = (end < count ? end : count) - begin;
    s.most = most;
    s.bias = own.template take<A>(most);
    s.chunk_bias = own.template take<A>(most);
    s.run_bias = own.template take<A>(most);
    for (int k = 0; k < kSources; ++k) {
      s.grad_row[k] = rows[k] < 0 ? -1 : rows[k] + begin;
      s.total[k] = own.template take<A>(rows[k] < 0 || one_chunk_ ? 0 : most * padded_width(k));
    }
  }

  int64_t padded_width(int source) const { return (width_[source] + kL - 1) / kL * kL; }

  void go() {
    for (int i = 0; i < strip_count_; ++i) {
      Strip& s = strips_[i];
      for (int64_t k = 0; k < s.count; ++k) s.bias[k] = 0;
      for (int source = 0; source < kSources; ++source) {
        if (s.grad_row[source] >= 0 && !one_chunk_) {
          for (int64_t k = 0; k < s.count * padded_width(source); ++k) s.total[source][k] = 0;
        }
      }
    }
    for (int64_t i = 0; layer_.noise.masks_state() && i < task_.count; ++i)
      draw_mask(layer_.noise, Masked::kState, d_, task_.rows[i], 0, kept_scale<A>(layer_.noise.state),
                masks_ + i * layer_.out(), layer_.out());
    for (int i = 0; i < strip_count_; ++i) tiles_ += strips_[i].count / kRows * panels_of(strips_[i]);
    int64_t active = task_.count;
    for (int64_t t = 0; t < layer_.T; ++t) {
      while (active > 0 && layer_.length(task_.rows[active - 1]) <= t) --active;
      for (int64_t i = 0; i < active; ++i) {
        if (next_->count == kChunk) add_next();
        add_row(*next_, t, task_.rows[i], masks_ + i * layer_.out());
      }
    }
    add_next();
    if (now_->count || one_chunk_) add_chunk();
    for (int i = 0; i < strip_count_; ++i) finish(strips_[i]);
  }

  // Adds the chunk before the one that was just filled, whose rows are loaded meanwhile.
  void add_next() {
    if (now_->count) add_chunk();
    Chunk* const free = now_;
    now_ = next_, next_ = free;
    next_->count = 0;
  }

  void add_row(Chunk& chunk, int64_t t, int64_t b, const A* mask) {
    const int64_t k = chunk.count++;
    const Rows& g = call_.d_gates[d_];
    chunk.mask[k] = mask;
    chunk.gates[k] = reinterpret_cast<const E*>(g.data) + g.offset(t, b);
    if (width_[kInput]) chunk.sources[kInput][k] = address(layer_.x, t, b);
    const int64_t before = d_ ? t + 1 : t - 1;
    const int64_t length = layer_.length(b);
    const bool anew = layer_.starts_anew(d_, t, b, length), follows = !anew && before >= 0 && before < length;
    const Rows& hidden = anew ? layer_.h_reset[d_] : follows ? call_.output[d_] : layer_.h0[d_];
    chunk.hidden[k] = &hidden;
    chunk.sources[kHidden][k] = hidden.data ? address(hidden, follows ? before : 0, b) : nullptr;
    chunk.sources[kGated][k] = reinterpret_cast<const char*>(chunk.gates[k] + Cell::kSlots * layer_.H);
    chunk.sources[kUnprojected][k] = reinterpret_cast<const char*>(chunk.gates[k] + Cell::kSlots * layer_.H + layer_.P);
  }

  static const char* address(const Rows& rows, int64_t t, int64_t b) {
    return rows.data + rows.offset(t, b) * size_of(rows.dtype);
  }

  void add_chunk() {
    const int64_t K = now_->count;
    tile_ = fetched_ = 0;
    if constexpr (F::kPack == 1) {  // where d_gates are rounded, the backward sums them
      for (int i = 0; i < strip_count_ && call_.d_b_ih[d_]; ++i) add_bias(strips_[i], K);
    }
    if constexpr (F::kTiled) {
      for (int i = 0; i < strip_count_; ++i)
        tile_columns<F>(now_->gates, K, strips_[i].column, strips_[i].count, strips_[i].tiles);
    } else if constexpr (F::kPack > 1) {
      pair_gates(K);
    }
    for (int source = 0; source < kSources; ++source) {
      if constexpr (F::kPack == 1) {
        if (one_chunk_) {
          write_gradient(source, K);
          continue;
        }
      }
      for_panels(source, [&](int64_t block, auto n) { add_panel<decltype(n)::value>(source, block, K); });
    }
  }

  // Starts to load the share of the next chunk that belongs to one of this chunk's tiles.
  void load_ahead() {
    for (const int64_t end = next_->count * ++tile_ / tiles_; fetched_ < end; ++fetched_) {
      const E* const gates = next_->gates[fetched_];
      for (int i = 0; i < strip_count_; ++i) prefetch<false>(gates + strips_[i].column, strips_[i].count);
      for (int source = kInput; source <= kHidden; ++source) {
        const Rows& rows = source == kInput ? layer_.x : *next_->hidden[fetched_];
        if (width_[source] && rows.data && rows.stride == 1)
          prefetch<false>(next_->sources[source][fetched_], width_[source] * size_of(rows.dtype));
      }
    }
  }

  // How many panels of all sources the gate rows of a strip are multiplied with.
  int64_t panels_of(const Strip& s) const {
    int64_t panels = 0;
    for (int source = 0; source < kSources; ++source)
      if (s.grad_row[source] >= 0) panels += (blocks_of<F>(width_[source]) + kBlocks - 1) / kBlocks;
    return panels;
  }

  // Calls function(first block, Int<blocks>) for a source's columns, in panels as even as possible.
  template <class Function>
  void for_panels(int source, Function&& function) const {
    for_row_groups<kBlocks>(blocks_of<F>(width_[source]), function);
  }

  // Adds the columns of a chunk to the bias gradients, first in short runs: one long chain of additions would lose
  // digits that torch's own sum keeps.
  void add_bias(Strip& s, int64_t K) {
    constexpr int64_t kRun = 8;
    for (int64_t m = 0; m < s.count; ++m) s.chunk_bias[m] = 0;
    for (int64_t first = 0; first < K; first += kRun) {
      const int64_t last = first + kRun < K ? first + kRun : K;
      for (int64_t m = 0; m < s.count; ++m) s.run_bias[m] = now_->gates[first][s.column + m];
      for (int64_t k = first + 1; k < last; ++k) {
        const E* from = now_->gates[k] + s.column;
        for (int64_t m = 0; m < s.count; ++m) s.run_bias[m] += from[m];
      }
      for (int64_t m = 0; m < s.count; ++m) s.chunk_bias[m] += s.run_bias[m];
    }
    for (int64_t m = 0; m < s.count; ++m) s.bias[m] += s.chunk_bias[m];
  }

  template <int kN>
  void add_panel(int source, int64_t block, int64_t K) {
    const int64_t first = block * kL, n = width_[source] - first < kN * kL ? width_[source] - first : kN * kL;
    fill_panel<kN>(source, first, n, K);
    for (int i = 0; i < strip_count_; ++i) {
      if (strips_[i].grad_row[source] >= 0) add_strip_sums<kN>(strips_[i], source, first, K);
    }
  }

  // Adds the products of a strip's columns with a panel to the total.
  template <int kN>
  void add_strip_sums(const Strip& s, int source, int64_t first, int64_t K) {
    A* const total = s.total[source] + s.count * first;
    if constexpr (F::kTiled) {
      for_tiled_sums<kN>(
          s.count, 0, 1,
          [&](int64_t m, int row_tiles, int64_t, int64_t, float* sums, int64_t stride) {
            multiply_panels<SlotOfGate, kN, kN>(staged_from(s.tiles, m, K, row_tiles), panel_, 0, 1, sums, stride,
                                                true);
          },
          [&](int64_t m, int64_t, const float* sums) {
#pragma GCC unroll 4
            for (int j = 0; j < kN; ++j) {
              A* const p = total + (m * kN + j) * kL;
              store(p, load(p) + load(sums + j * kL));
            }
          });
    } else {
      const E* const* const gates = F::kPack == 1 ? now_->gates : pair_rows_;
      const int64_t lines = (K + F::kPack - 1) / F::kPack, column = F::kPack == 1 ? s.column : s.place;
      int64_t m = 0;
      for (; m + kRows <= s.count; m += kRows) {
        load_ahead();
        grad_tile<F, kRows, kN>(gates, column + m, panel_, lines, total + m * kN * kL);
      }
      for (; m < s.count; ++m) grad_tile<F, 1, kN>(gates, column + m, panel_, lines, total + m * kN * kL);
    }
  }

  // Copies n columns of a source, from `first` on, as lines of kN blocks: one row in each, or two rows side by side.
  template <int kN>
  void fill_panel(int source, int64_t first, int64_t n, int64_t K) {
    constexpr int kWidth = kN * kL;
    for (int64_t k = 0; k < lines_of<F>(K) * F::kPack; k += F::kPack) {
      E* to = panel_ + k * kWidth;
      if (k >= K) {
        for (int64_t i = 0; i < 2 * kWidth; ++i) to[i] = 0;
        continue;
      }
      const E* from = source_line(source, k, first, n, lines_[0]);
      if constexpr (F::kPack == 1) {
#pragma GCC unroll 4
        for (int j = 0; j < kN; ++j)
          store(to + j * kL, from ? F::read(from + j * kL, static_cast<int>(n - j * kL)) : typename F::V{});
      } else {
        interleave_rows(from, k + 1 < K ? source_line(source, k + 1, first, n, lines_[1]) : nullptr, n, to);
        for (int64_t i = 2 * n; i < 2 * kWidth; ++i) to[i] = 0;
      }
    }
  }

  // Copies the gates of a chunk, two rows side by side.
  void pair_gates(int64_t K) {
    int64_t width = 0;
    for (int i = 0; i < strip_count_; ++i) strips_[i].place = width, width += strips_[i].count;
    for (int64_t k = 0; k < K; k += 2) {
      E* to = pairs_ + k * width;
      pair_rows_[k / 2] = to;
      for (int i = 0; i < strip_count_; ++i) {
        const Strip& s = strips_[i];
        interleave_rows(now_->gates[k] + s.column, k + 1 < K ? now_->gates[k + 1] + s.column : nullptr, s.count,
                        to + 2 * s.place);
      }
    }
  }

  // Writes the gradient of a source's weight, row by row. There is no total: the only chunk is all there is.
  void write_gradient(int source, int64_t K) {
    const int64_t width = width_[source], stride = padded_width(source);
    for (int64_t k = 0; k < K && width; ++k) {
      const E* from = source_line(source, k, 0, width, lines_[0]);
      for (int64_t column = 0; column < width; column += kL) {
        store(panel_ + k * stride + column,
              from ? F::read(from + column, static_cast<int>(width - column)) : typename F::V{});
      }
    }
    for (int i = 0; i < strip_count_; ++i) {
      const Strip& s = strips_[i];
      if (s.grad_row[source] < 0) continue;
      A* const to = reinterpret_cast<A*>(weight_of(source)) + first_row(s, source) * width;
      for_row_groups<kRows>(s.count, [&](int64_t m, auto rows) {
        for_panels(source, [&](int64_t block, auto blocks) {
          const int64_t first = block * kL;
          grad_tile_once<F, decltype(rows)::value, decltype(blocks)::value>(
              now_->gates, s.column + m, panel_ + first, stride, K, to + m * width + first, width, width - first);
        });
      });
    }
  }

  char* weight_of(int source) const {
    return source == kInput ? call_.d_w_ih[d_] : source == kUnprojected ? call_.d_w_hr[d_] : call_.d_w_hh[d_];
  }
  // The row of the gradient that a strip begins with.
  int64_t first_row(const Strip& s, int source) const {
    return task_.sample * (source == kUnprojected ? layer_.P : layer_.gates * layer_.H) + s.grad_row[source];
  }

  // n numbers of row k of a source, from column `first` on, in place or in `line`; null if they are zeros, as there is
  // no h0 or no learnt reset state.
  const E* source_line(int source, int64_t k, int64_t first, int64_t n, E* line) {
    const char* row = now_->sources[source][k];
    if (!row) return nullptr;
    if (source == kUnprojected || source == kGated) return reinterpret_cast<const E*>(row) + first;
    const Rows& rows = source == kInput ? layer_.x : *now_->hidden[k];
    row += first * rows.stride * size_of(rows.dtype);
    const bool masked = source == kHidden && layer_.noise.masks_state();
    if (!masked && rows.dtype == dtype_of<E>() && rows.stride == 1) return reinterpret_cast<const E*>(row);
    read_row<E>(rows.dtype, row, rows.stride, line, n);
    if constexpr (F::kPack == 1) {  // masks belong to row-wise layers, whose products are plain
      for (int64_t u = 0; masked && u < n; ++u) line[u] *= now_->mask[k][first + u];
    }
    return line;
  }

  void finish(const Strip& s) {
    char* const biases[kSources] = {call_.d_b_ih[d_], call_.d_b_hh[d_], nullptr, call_.d_b_hh[d_]};
    const int64_t size = size_of(layer_.dtype);
    for (int source = 0; source < kSources; ++source) {
      if (s.grad_row[source] < 0) continue;
      const int64_t width = width_[source], row = first_row(s, source);
      for_panels(source, [&](int64_t block, auto blocks) {
        constexpr int kWidth = decltype(blocks)::value * kL;
        const int64_t first = block * kL, n = width - first < kWidth ? width - first : kWidth;
        const A* total = s.total[source] + s.count * first;
        for (int64_t m = 0; m < s.count && !one_chunk_; ++m)
          write_row<A>(layer_.dtype, total + m * kWidth, weight_of(source) + ((row + m) * width + first) * size, n);
      });
      if (biases[source]) write_row<A>(layer_.dtype, s.bias, biases[source] + row * size, s.count);
    }
  }

  const WeightGradTask& task_;
  const WeightGrad& call_;
  const Layer& layer_;
  int d_;
  int64_t width_[kSources], size_;
  Strip strips_[Cell::kSlots + 1];
  int strip_count_ = 0;
  bool one_chunk_;  // all steps of a sample fit into one chunk, and the gradients have the type of the sums
  Chunk chunks_[2], *now_ = chunks_, *next_ = chunks_ + 1;
  int64_t tiles_ = 0, tile_ = 0, fetched_ = 0;  // of a chunk: its tiles, those that are done, rows of the next one
  E *panel_, *lines_[F::kPack], *pairs_ = nullptr;
  const E** pair_rows_ = nullptr;
  A* masks_;
};

}  // namespace
}  // namespace sf

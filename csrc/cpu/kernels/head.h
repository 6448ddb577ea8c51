// What follows the layers of a classifier: a linear product, pooling over the steps of a row, and softmax.
// The product is that of the layers, and e^x is made of the parts of their sigmoid. Each sum has one order, which
// depends on the sizes of a row alone, so a row has the same bits in every batch, with any padding and on any thread.
#pragma once

#include "kernel_table.h"
#include "pack.h"
#include "scratch.h"

#include "../../core/activations.h"  // after vec.h, whose vectors the formulas are compiled for

namespace sf {
namespace {

// A weight (columns, K) and its bias, packed as panels and, behind them, whole vectors of the compute type.
template <class F>
struct PackedProduct {
  using A = typename F::A;
  using E = typename F::E;
  PackSource source;
  int64_t panel, blocks, bias_at, end;  // the last two in bytes

  PackedProduct(const Matrix& weight, Dtype dtype)
      : source{weight.data, dtype, weight.column_stride, weight.row_stride, 0, weight.columns, weight.rows, 1},
        panel(panel_size<F>(weight.columns, 1)),
        blocks(blocks_of<F>(weight.rows)),
        bias_at((blocks * panel * static_cast<int64_t>(sizeof(E)) + 63) / 64 * 64),
        end(bias_at + width() * static_cast<int64_t>(sizeof(A))) {}

  int64_t width() const { return blocks * F::kLanes; }  // columns of a row of results, with the room for whole vectors
  void pack(const Matrix& bias, char* to) const {
    sf::pack<F>(source, reinterpret_cast<E*>(to));
    A* const line = reinterpret_cast<A*>(to + bias_at);
    for (int64_t i = 0; i < width(); ++i) line[i] = A(0);
    if (bias.data) read_row<A>(source.dtype, bias.data, bias.row_stride, line, source.columns);
  }
  void run(const E* const* rows, int64_t count, const char* packed, A* const* out) const {
    product<F>(rows, count, source.K, reinterpret_cast<const E*>(packed), panel, blocks,
               reinterpret_cast<const A*>(packed + bias_at), out);
  }
};

// Reads rows that are not contiguous E into slots of scratch memory, and gives each row of results its place.
template <class F>
struct RowChunk {
  static constexpr int64_t kRows = 48;  // so that rows and their results stay in the cache while all panels pass
  using A = typename F::A;
  using E = typename F::E;
  RowReader<E> reader;
  const E** in;
  A** out;

  RowChunk(const Rows& x, int64_t K, int64_t width, Arena& arena) : reader{x, K, nullptr, (K + 63) / 64 * 64} {
    reader.scratch = arena.take<E>(reader.direct() ? 0 : kRows * reader.slot_stride);
    in = arena.take<const E*>(kRows);
    out = arena.take<A*>(kRows);
    results_ = arena.take<A>(kRows * width);
    width_ = width;
  }
  void place_results() {
    for (int64_t i = 0; i < kRows; ++i) out[i] = results_ + i * width_;
  }

 private:
  A* results_;
  int64_t width_;
};

template <class F>
int64_t linear_scratch_of(const Linear& call) {
  Arena arena(nullptr);
  RowChunk<F>(call.x, call.weight.columns, PackedProduct<F>(call.weight, call.dtype).width(), arena);
  return arena.used();
}

template <class F>
void run_linear_task(const LinearTask& task) {
  const Linear& call = *task.call;
  const PackedProduct<F> weight(call.weight, call.dtype);
  Arena arena(task.scratch);
  RowChunk<F> chunk(call.x, call.weight.columns, weight.width(), arena);
  chunk.place_results();
  for (int64_t first = task.begin; first < task.end; first += chunk.kRows) {
    const int64_t count = task.end - first < chunk.kRows ? task.end - first : chunk.kRows;
    for (int64_t i = 0; i < count; ++i) chunk.in[i] = chunk.reader.at(0, first + i, i);
    weight.run(chunk.in, count, task.packed, chunk.out);
    const Rows& to = call.result;
    for (int64_t i = 0; i < count; ++i)
      write_row<typename F::A>(to.dtype, chunk.out[i], to.data + to.offset(0, first + i) * size_of(to.dtype),
                               call.weight.rows);
  }
}

// Replaces n numbers by e^(x - largest) and returns their sum, which is formed lane by lane. Where one of them is NaN,
// the sum is NaN.
template <class F>
typename F::A exponentials(typename F::A* x, int64_t n) {
  using A = typename F::A;
  using V = typename F::V;
  A largest = n ? x[0] : A(0);
  for (int64_t i = 1; i < n; ++i)
    if (x[i] > largest) largest = x[i];
  V sums{};
  for (int64_t i = 0; i < n; i += F::kLanes) {
    const int left = static_cast<int>(n - i < F::kLanes ? n - i : F::kLanes);
    F::write(x + i, exp(F::read(x + i, left) - largest), left);
    sums += F::read(x + i, left);  // zeros in the lanes beyond the last number
  }
  A sum = sums[0];
  for (int lane = 1; lane < F::kLanes; ++lane) sum += sums[lane];
  return sum;
}

// Pools the rows of a task one after another. F is Plain: 16-bit rows are converted first.
template <class F>
class PoolPass {
  using A = typename F::A;
  using V = typename F::V;
  static constexpr int kL = F::kLanes;

 public:
  PoolPass(const PoolSteps& call, char* scratch)
      : call_(call),
        weight_(call.weight, call.dtype),
        padded_((call.W + kL - 1) / kL * kL),
        arena_(scratch),
        chunk_(call.output, call.W, weight_.width(), arena_) {
    shares_ = arena_.take<A>(call.pooling == Pooling::kAttention ? call.T : 0);
    pooled_ = arena_.take<A>(padded_);
    part_ = arena_.take<A>(padded_);
  }
  static int64_t measure(const PoolSteps& call) { return PoolPass(call, nullptr).arena_.used(); }

  void run(const PoolStepsTask& task) {
    chunk_.place_results();
    for (int64_t b = task.begin; b < task.end; ++b) {
      for (int64_t i = 0; i < padded_; ++i) pooled_[i] = A(0);
      const int64_t n = call_.length(b);
      if (n > 0) {
        if (call_.pooling == Pooling::kMax) {
          take_largest(b, n);
        } else {
          const bool attention = call_.pooling == Pooling::kAttention;
          if (attention) score(b, n, task.packed);
          const A sum = attention ? exponentials<F>(shares_, n) : static_cast<A>(n);
          add_steps(b, n, attention);
          for (int64_t i = 0; i < padded_; i += kL) store(pooled_ + i, load(pooled_ + i) / sum);
        }
      }
      const Rows& to = call_.pooled;
      write_row<A>(to.dtype, pooled_, to.data + to.offset(0, b) * size_of(to.dtype), call_.W);
    }
  }

 private:
  V step(const A* row, int64_t i) const {
    return F::read(row + i, static_cast<int>(call_.W - i < kL ? call_.W - i : kL));
  }

  // The scores of a row's steps.
  void score(int64_t b, int64_t n, const char* packed) {
    for (int64_t first = 0; first < n; first += chunk_.kRows) {
      const int64_t count = n - first < chunk_.kRows ? n - first : chunk_.kRows;
      for (int64_t i = 0; i < count; ++i) chunk_.in[i] = chunk_.reader.at(first + i, b, i);
      weight_.run(chunk_.in, count, packed, chunk_.out);
      for (int64_t i = 0; i < count; ++i) shares_[first + i] = chunk_.out[i][0];
    }
  }

  // pooled = the sum of all steps, each times its share or 1, in ascending order. As in a product, not more than kChain
  // steps are added one after another.
  void add_steps(int64_t b, int64_t n, bool weighted) {
    for (int64_t first = 0; first < n; first += kChain) {
      for (int64_t i = 0; i < padded_; ++i) part_[i] = A(0);
      for (int64_t t = first; t < n && t < first + kChain; ++t) {
        const A* row = chunk_.reader.at(t, b, 0);
        const V share = weighted ? splat(shares_[t]) : V{} + A(1);
        for (int64_t i = 0; i < padded_; i += kL) store(part_ + i, fma(share, step(row, i), load(part_ + i)));
      }
      for (int64_t i = 0; i < padded_; i += kL) store(pooled_ + i, load(pooled_ + i) + load(part_ + i));
    }
  }

  // pooled = the largest value of each unit, or NaN where one of its values is NaN.
  void take_largest(int64_t b, int64_t n) {
    for (int64_t t = 0; t < n; ++t) {
      const A* row = chunk_.reader.at(t, b, 0);
      for (int64_t i = 0; i < padded_; i += kL) {
        const V x = step(row, i), before = load(pooled_ + i);
        const V larger = t ? select(x > before, x, before) : x;
        store(pooled_ + i, select(x == x, larger, x));
      }
    }
  }

  const PoolSteps& call_;
  PackedProduct<F> weight_;
  int64_t padded_;
  Arena arena_;
  RowChunk<F> chunk_;
  A *shares_, *pooled_, *part_;
};

template <class F>
int64_t softmax_scratch_of(const Softmax& call) {
  Arena arena(nullptr);
  arena.take<typename F::A>(call.classes);
  return arena.used();
}

template <class F>
void run_softmax_task(const SoftmaxTask& task) {
  using A = typename F::A;
  const Softmax& call = *task.call;
  A* const row = reinterpret_cast<A*>(task.scratch);
  const A temperature = static_cast<A>(call.temperature);
  const Rows &from = call.logits, &to = call.probabilities;
  for (int64_t b = task.begin; b < task.end; ++b) {
    read_row<A>(from.dtype, from.data + from.offset(0, b) * size_of(from.dtype), from.stride, row, call.classes);
    for (int64_t k = 0; k < call.classes; ++k) row[k] /= temperature;
    const A sum = exponentials<F>(row, call.classes);
    for (int64_t k = 0; k < call.classes; ++k) row[k] /= sum;
    write_row<A>(to.dtype, row, to.data + to.offset(0, b) * size_of(to.dtype), call.classes);
  }
}

}  // namespace
}  // namespace sf

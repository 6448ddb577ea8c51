// The gradient of the input: d_gates times w_ih. The products of both directions are summed in the same registers.
// Beyond a row's length the gradient is zero.
#pragma once

#include "amx.h"
#include "kernel_table.h"
#include "scratch.h"
#include "unpacked.h"

namespace sf {
namespace {

// Computes d_x of the rows [begin, end) of all (t, b).
template <class F, class Cell>
class InputGrad {
  using A = typename F::A;
  using E = typename F::E;
  static constexpr int kL = F::kLanes;
  static constexpr int64_t kChunk = 96;

 public:
  static int64_t measure(const Backward& call) {
    const InputGradTask empty{&call, {}, 0, 0, nullptr};
    return InputGrad(empty).size_;
  }
  static void run(const InputGradTask& task) {
    [[maybe_unused]] const typename F::Scope scope{};
    InputGrad(task).go();
  }

 private:
  explicit InputGrad(const InputGradTask& task) : task_(task), call_(*task.call), layer_(call_.layer) {
    wide_ = (layer_.I + kL * 4 - 1) / (kL * 4) * kL * 4;
    Arena own(task.scratch);
    for (const E**& p : gates_) p = own.template take<const E*>(kChunk);
    targets_ = own.template take<char*>(kChunk);
    rows_ = own.template take<E*>(kChunk);
    staged_ = own.template take<E>(direct() ? 0 : kChunk * wide_);
    staged_gates_ =
        own.template take<E>(F::kTiled ? layer_.directions * staged_size(kChunk, Cell::kGates * layer_.H) : 0);
    size_ = own.used();
  }

  void go() {
    int64_t count = 0;
    int64_t t = task_.begin / (layer_.B ? layer_.B : 1), b = task_.begin % (layer_.B ? layer_.B : 1);
    for (int64_t row = task_.begin; row < task_.end; ++row) {
      char* target = call_.d_x.data + call_.d_x.offset(t, b) * size_of(call_.d_x.dtype);
      if (t < layer_.length(b)) {
        for (int d = 0; d < layer_.directions; ++d) {
          const Rows& g = call_.d_gates[d];
          gates_[d][count] = reinterpret_cast<const E*>(g.data) + g.offset(t, b);
        }
        targets_[count] = target;
        rows_[count] = direct() ? reinterpret_cast<E*>(target) : staged_ + count * wide_;
        if (++count == kChunk) flush(count), count = 0;
      } else if (!call_.d_x.t_row) {
        __builtin_memset(target, 0, static_cast<size_t>(layer_.I * size_of(call_.d_x.dtype)));
      }
      if (++b == layer_.B) b = 0, ++t;
    }
    flush(count);
  }

  bool direct() const { return call_.d_x.dtype == dtype_of<E>(); }

  void flush(int64_t count) {
    if constexpr (F::kTiled) {
      flush_tiled(count);
    } else if (task_.packed[0].w_ih) {
      using Shape = TileShape<1>;
      const int64_t end = blocks_of<F>(layer_.I);
      int64_t block = 0;
      for (; block + Shape::kBlocks <= end; block += Shape::kBlocks) tiles<Shape::kBlocks>(count, block);
      for (; block < end; ++block) tiles<1>(count, block);
    } else if constexpr (F::kPack == 1) {  // the weights are used in place
      Term<A> terms[kMaxDirections];
      for (int d = 0; d < layer_.directions; ++d) {
        const Matrix& w = layer_.w_ih[d];
        terms[d] = {gates_[d], 0, Cell::kGates * layer_.H, reinterpret_cast<const A*>(w.data), w.row_stride};
      }
      terms_product<F>(terms, layer_.directions, count, layer_.I, rows_);
    }
    if (!direct()) {
      for (int64_t i = 0; i < count; ++i) write_row<E>(call_.d_x.dtype, rows_[i], targets_[i], layer_.I);
    }
  }

  void flush_tiled(int64_t count) {
    const int64_t K = Cell::kGates * layer_.H, panel = panel_size<F>(K, 1), staged = staged_size(count, K);
    for (int d = 0; d < layer_.directions; ++d) stage(gates_[d], count, 0, K, staged_gates_ + d * staged);
    for_tiled_sums<1>(
        count, 0, blocks_of<F>(layer_.I),
        [&](int64_t row, int row_tiles, int64_t block, int64_t blocks, float* sums, int64_t stride) {
          for (int d = 0; d < layer_.directions; ++d) {
            const E* const w = reinterpret_cast<const E*>(task_.packed[d].w_ih) + block * panel;
            multiply_panels<SlotOfGate, 1, 1>(staged_from(staged_gates_ + d * staged, row, K, row_tiles), w, panel,
                                              blocks, sums, stride, d == 0);
          }
        },
        [&](int64_t row, int64_t block, const float* sum) {
          const int64_t column = block * kL;
          F::write(rows_[row] + column, load(sum), static_cast<int>(layer_.I - column));
        });
  }

  template <int kBlocks>
  void tiles(int64_t count, int64_t block) {
    for_row_groups<TileShape<1>::kRows>(count, [&](int64_t first, auto m) {
      constexpr int kRows = decltype(m)::value;
      if (block == 0) {
        for (int64_t row = first + kRows; row < first + 2 * kRows && row < count; ++row) {
          for (int d = 0; d < layer_.directions; ++d) prefetch<false>(gates_[d][row], Cell::kGates * layer_.H);
        }
      }
      tile<kRows, kBlocks>(first, block);
    });
  }

  template <int kRows, int kBlocks>
  __attribute__((noinline)) void tile(int64_t row, int64_t block) {
    typename F::V acc[kRows][kBlocks] = {};
    const int64_t K = Cell::kGates * layer_.H, panel = panel_size<F>(K, 1);
    for (int d = 0; d < layer_.directions; ++d) {
      const E* rows[kRows];
#pragma GCC unroll 16
      for (int m = 0; m < kRows; ++m) rows[m] = gates_[d][row + m];
      const E* w = reinterpret_cast<const E*>(task_.packed[d].w_ih) + block * panel;
      accumulate<F, SlotOfGate, kRows, kBlocks, 1, 1>(acc, rows, K, w, panel);
    }
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 16
      for (int j = 0; j < kBlocks; ++j) {
        const int64_t column = (block + j) * kL;
        F::write(rows_[row + m] + column, acc[m][j], static_cast<int>(layer_.I - column));
      }
    }
  }

  const InputGradTask& task_;
  const Backward& call_;
  const Layer& layer_;
  int64_t wide_, size_;
  const E** gates_[kMaxDirections];
  char** targets_;
  E **rows_, *staged_, *staged_gates_;
};

}  // namespace
}  // namespace sf

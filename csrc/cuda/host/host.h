// What the host files share: launches over many elements, cells and dtypes as types, and what lies around a
// recurrence: rows in an order products can read, the projected input in chunks, biases as slots. Defined in
// products.cu.
#pragma once

#include <algorithm>
#include <functional>

#include "backend.h"
#include "../kernels/elements.cuh"

namespace sf::cuda {

template <class Args>
void launch_over(Queue& queue, void (*kernel)(Args), int64_t count, const Args& args) {
  constexpr int64_t kMostBlocks = 2048;
  if (count <= 0) return;
  const auto blocks = static_cast<int>(std::min(ceil_div(count, kBlockThreads), kMostBlocks));
  queue.launch(kernel, LaunchShape{blocks, kBlockThreads}, args);
}

template <class F>
auto with_cell(int cell, F&& f) {
  switch (cell) {
#define SF_CASE(name, Cell) \
  case kCell_##name:        \
    return f(Cell{});
    SF_CELLS(SF_CASE)
#undef SF_CASE
  }
  throw std::runtime_error("cell: expected an index of the list of cells");
}
template <class F>
auto with_math(Dtype dtype, F&& f) {  // of storage and sums; how products are
                                      // formed does not matter to it
  switch (dtype) {
    case Dtype::kBFloat16:
      return f(Bf16{});
    case Dtype::kFloat16:
      return f(Fp16{});
    case Dtype::kFloat32:
      return f(Tf32x3{});
    default:
      return f(Float64{});
  }
}
template <class F>
auto with_both(const Layer& l, F&& f) {
  return with_cell(l.cell, [&](auto cell) { return with_math(l.dtype, [&](auto math) { return f(cell, math); }); });
}

inline Dtype compute_dtype(Dtype d) { return d == Dtype::kFloat64 ? d : Dtype::kFloat32; }
inline int64_t row_count(const Layer& l) { return l.packed_rows ? l.packed_rows : l.T * l.B; }
inline int64_t gates_width(const Layer& l) { return kCells[l.cell].slots * l.H + (l.P ? l.P + l.H : 0); }

// A layer's rows as the kernels take them: lengths within 0 .. T, and an order in which tiles are of about one
// length.
struct Lengths {
  const int64_t *lengths = nullptr, *order = nullptr;
};
Lengths order_batch(const Layer&, Queue&);

// Rows of `width` side by side from `data`, by time or packed as in the layer.
Rows contiguous_rows(const void* data, Dtype dtype, const Layer&, int64_t width);

// `from` side by side, see gather_rows.
void gather(const Layer&, const Rows& from, const Rows& first, int64_t shift, int64_t samples, int64_t width,
            const int64_t* lengths, void* to, Queue&);

// Some steps of a sequence with their projected input, in the compute type, by time.
struct Chunk {
  Rows projected[kMaxDirections];
  int64_t begin[kMaxDirections], end[kMaxDirections];
  bool first, last;
};
// Runs over the sequence in chunks; each gate's units are `gate_width` apart.
void for_chunks(const Forward&, int64_t gate_width, const Choice&, Queue&,
                const std::function<void(const Chunk&)>& run);

// (directions, slots, H), and where a direction's begins.
const void* make_bias(const Layer&, Queue&);
const void* bias_of(const void* all, const Layer&, int d);

// -- stepwise.cu
void step_forward(const Forward&, const Choice&, const Lengths&, Queue&);
void step_backward(const Backward&, const Choice&, const Lengths&, Queue&);

// -- products.cu
void input_grad(const Backward&, const Choice&, Queue&);

}  // namespace sf::cuda

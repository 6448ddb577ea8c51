// Shared by the host files: launches of elementwise kernels, functions that turn a cell or dtype into a type, and the
// steps before and after a recurrence, such as the projection of x and the packing of biases. Defined in products.cu,
// unless a comment says otherwise.
#pragma once

#include <algorithm>
#include <functional>
#include <type_traits>

#include "backend.h"
#include "../kernels/elements.cuh"

namespace sf::cuda {

template <class Args>
void launch_over(DeviceStream& stream, void (*kernel)(Args), int64_t count, const Args& args) {
  constexpr int64_t kMaxBlocks = 2048;
  if (count <= 0) return;
  const auto blocks = static_cast<int>(std::min(ceil_div(count, kBlockThreads), kMaxBlocks));
  stream.launch(kernel, LaunchShape{blocks, kBlockThreads}, args);
}

// The cell whose slots have the biases of a cell: they are added after a normalisation.
template <class Cell>
using BiasSlots = std::conditional_t<OptionsOf<Cell>::kNorm, typename OptionsOf<Cell>::Base, Cell>;
inline int64_t bias_slots(const Layer& l) {
  const CellInfo& info = kCells[l.cell];
  return info.norm ? info.base_slots : info.slots;
}

template <class F>
auto with_cell(int cell, F&& f) {
  switch (cell) {
#define SF_CASE(name, Cell) \
  case kCell_##name:        \
    return f(Cell{});
    SF_CELLS(SF_CASE)
    SF_OPTION_CELLS(SF_CASE)
#undef SF_CASE
  }
  throw std::runtime_error("cell: expected an index of the list of cells");
}
// f may use the types Storage and Compute, but not mma(): it is not known here whether TF32 is allowed.
template <class F>
auto with_math(Dtype dtype, F&& f) {
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
auto with_cell_and_math(const Layer& l, F&& f) {
  return with_cell(l.cell, [&](auto cell) { return with_math(l.dtype, [&](auto math) { return f(cell, math); }); });
}

// f takes the cell of BiasSlots.
template <class F>
auto with_slots_and_math(const Layer& l, F&& f) {
  return with_cell(l.cell, [&](auto cell) {
    return with_math(l.dtype, [&](auto math) { return f(BiasSlots<decltype(cell)>{}, math); });
  });
}

inline Dtype compute_dtype(Dtype d) { return d == Dtype::kFloat64 ? d : Dtype::kFloat32; }
inline int64_t row_count(const Layer& l) { return l.packed_rows ? l.packed_rows : l.T * l.B; }
inline int64_t gates_width(const Layer& l) {
  return (kCells[l.cell].slots + kCells[l.cell].resets_first) * l.H + (l.P ? l.P + l.H : 0);
}

// The lengths of the batch rows, within 0 .. T, and the batch rows in descending order of length, so that the rows of a
// batch tile have about the same length. Either is null where LaunchArgs allows it.
struct Lengths {
  const int64_t *lengths = nullptr, *order = nullptr;
};
Lengths order_batch(const Layer&, DeviceStream&);

// Describes rows of `width` values that lie side by side from `data` on, ordered by time, or packed like the layer's.
Rows contiguous_rows(const void* data, Dtype dtype, const Layer&, int64_t width);

// Copies the rows of `from`, so that they lie side by side in `to`. The arguments are those of gather_rows.
void gather(const Layer&, const Rows& from, int64_t samples, int64_t width, const int64_t* lengths, void* to,
            DeviceStream&);

// Some consecutive steps of a sequence with their projected input, in the compute type, ordered by time.
struct Chunk {
  Rows projected[kMaxDirections];
  int64_t begin[kMaxDirections], end[kMaxDirections];
  bool first, last;
};
// For each chunk, projects its input and calls `run`. A gate's values begin `gate_width` after those of the gate
// before.
void for_chunks(const Forward&, int64_t gate_width, const Choice&, DeviceStream&,
                const std::function<void(const Chunk&)>& run);

// make_bias() returns the sum of both biases of each slot, (directions, slots, H), in the compute type. bias_of() finds
// the values of one direction in it.
const void* make_bias(const Layer&, DeviceStream&);
const void* bias_of(const void* all, const Layer&, int d);

// The gradients of the reset states. A kernel adds to these what comes to a reset state beside R, (B, width) in the
// compute type, zero at first; null where it is not wanted. end_resets() adds what comes through R.
struct ResetCarries {
  void *h[kMaxDirections] = {}, *c[kMaxDirections] = {};
};
ResetCarries begin_resets(const Backward&, DeviceStream&);
void end_resets(const Backward&, const ResetCarries&, const Lengths&, const Choice&, DeviceStream&);

// Layer normalisation beside the recurrence; nothing where a cell has no norm. Defined in norm.cu. normalise_input()
// normalises the projected input of a chunk. begin_norms() takes memory for the backward: for gradients that wait for
// the sums which end_norms() makes of them, and for the statistics of c at every step.
struct Norms {
  Rows d_aside[kMaxDirections], c_statistics[kMaxDirections];
};
void normalise_input(const Forward&, const Chunk&, int64_t gate_width, const Lengths&, DeviceStream&);
Norms begin_norms(const Backward&, const Lengths&, DeviceStream&);
void end_norms(const Backward&, const Norms&, const Lengths&, DeviceStream&);

// Defined in stepwise.cu.
void step_forward(const Forward&, const Choice&, const Lengths&, DeviceStream&);
void step_backward(const Backward&, const Choice&, const Lengths&, const ResetCarries&, const Norms&, DeviceStream&);

void input_grad(const Backward&, const Choice&, DeviceStream&);

}  // namespace sf::cuda

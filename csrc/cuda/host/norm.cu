// Layer normalisation before and behind a recurrence, for every regime. The kernels are in kernels/norm_rows.cuh.
#include "stepwise.h"

namespace sf::cuda {
namespace {

// Calls f(cell, math) for a cell with a norm.
template <class F>
void with_norm(const Layer& l, F&& f) {
  with_cell_and_math(l, [&](auto cell, auto math) {
    if constexpr (OptionsOf<decltype(cell)>::kNorm) f(cell, math);
  });
}

StepwiseArgs of_all_steps(const Backward& b, const Norms& norms, const Lengths& lengths) {
  const Layer& l = b.layer;
  StepwiseArgs a = stepwise_of(l, lengths);
  a.steps = l.T;
  for (int d = 0; d < l.directions; ++d) {
    StepwiseDirectionArgs& io = a.direction[d];
    io.end = l.T;
    io.saved = b.saved[d];
    io.d_gates = b.d_gates[d];
    io.d_further = b.d_further[d];
    io.d_aside = norms.d_aside[d];
    io.c_statistics = norms.c_statistics[d];
  }
  return a;
}

}  // namespace

void normalise_input(const Forward& f, const Chunk& chunk, int64_t gate_width, const Lengths& lengths,
                     DeviceStream& stream) {
  const Layer& l = f.layer;
  StepwiseArgs a = stepwise_of(l, lengths);
  a.gate_width = gate_width;
  for (int d = 0; d < l.directions; ++d) {
    StepwiseDirectionArgs& io = a.direction[d];
    io.saved = f.saved[d];
    io.projected = chunk.projected[d];
    io.t = chunk.begin[d];
    io.end = chunk.end[d];
    a.steps = std::max(d ? a.steps : 0, io.end - io.t);
  }
  with_norm(l, [&](auto cell, auto math) {
    launch_rows<decltype(math)>(stream, norm_input<decltype(cell), decltype(math)>, a);
  });
}

Norms begin_norms(const Backward& b, const Lengths& lengths, DeviceStream& stream) {
  const Layer& l = b.layer;
  const CellInfo& info = kCells[l.cell];
  Norms norms{};
  if (!info.norm) return norms;
  const int64_t aside = (info.base_slots - info.gates + 2 * info.has_c) * l.H, rows = row_count(l);
  for (int d = 0; d < l.directions; ++d) {
    norms.d_aside[d] = contiguous_rows(stream.take(rows * aside * size_of(l.dtype)), l.dtype, l, aside);
    if (!info.has_c) continue;
    const Dtype compute = compute_dtype(l.dtype);
    norms.c_statistics[d] = contiguous_rows(stream.take(rows * 2 * size_of(compute)), compute, l, 2);
  }
  if (!info.has_c) return norms;
  StepwiseArgs a = of_all_steps(b, norms, lengths);
  with_norm(l, [&](auto cell, auto math) {
    using Cell = decltype(cell);
    if constexpr (Cell::kHasC) launch_rows<decltype(math)>(stream, norm_measure_c<Cell, decltype(math)>, a);
  });
  return norms;
}

void end_norms(const Backward& b, const Norms& norms, const Lengths& lengths, DeviceStream& stream) {
  const Layer& l = b.layer;
  if (!kCells[l.cell].norm) return;
  const StepwiseArgs a = of_all_steps(b, norms, lengths);
  with_norm(l, [&](auto cell, auto math) {
    using Cell = decltype(cell);
    using Math = decltype(math);
    launch_over(stream, norm_sums<Cell, Math>, l.directions * l.B * a.sums_width, a);
    launch_rows<Math>(stream, norm_input_back<Cell, Math>, a);
  });
}

}  // namespace sf::cuda

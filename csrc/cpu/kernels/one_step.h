// One step of one row, for streams (csrc/runtime). ForwardPass divides its memory, copies states and finds rows at each
// call, which takes longer than a step of a small layer. Here the caller knows where everything lies.
#pragma once

#include "forward.h"

namespace sf {
namespace {

// Both states lie in rows of padded() values. What is beyond the units in them is written too, and never read.
template <class F, class Cell>
void one_step(const StepTask& task) {
  using E = typename F::E;
  const Layer& layer = *task.layer;
  const auto elements = [](const char* p) { return reinterpret_cast<const E*>(p); };
  const typename F::A* start[] = {reinterpret_cast<const typename F::A*>(task.packed.bias)};
  const E *x[] = {elements(task.x)}, *h_prev[] = {elements(task.h)};
  E *h_next[] = {reinterpret_cast<E*>(task.h_next)}, *output[] = {reinterpret_cast<E*>(task.output)};
  ForwardStep<F> s;
  s.start = start;
  s.x = x;
  s.h_prev = h_prev;
  s.h_next = h_next;
  s.output = task.output ? output : nullptr;
  s.saved = nullptr;
  s.c = reinterpret_cast<typename F::A*>(task.c);
  s.rows = 1;
  s.c_stride = 0;  // there is no second row
  s.K_x = layer.I;
  s.K_h = s.H = layer.H;
  s.w_x = elements(task.packed.w_ih);
  s.w_h = elements(task.packed.w_hh);
  s.first_block = 0;
  using Shape = TileShape<Cell::kSlots, Cell::kGates>;
  constexpr int kBlocks = Shape::kFewRows ? 2 : Shape::kBlocks;
  const int64_t blocks = blocks_of<F>(layer.H);
  for_blocks<kBlocks>(0, blocks, task.backwards,
                      [&](int64_t block, int64_t next) { forward_tile<F, Cell, 1, kBlocks>(s, 0, block, next); });
  for (int64_t block = blocks / kBlocks * kBlocks; block < blocks; ++block)
    forward_tile<F, Cell, 1, 1>(s, 0, block, block);
}

// The function for steps of a layer; null for a layer with options or a projection, and where its dtype is not the one
// that the products read.
template <class F, class Cell>
StepFunction step_function(const Layer& layer) {
  if constexpr (!OptionsOf<Cell>::kIsOption) {
    if (!layer.row_wise && !layer.P && layer.dtype == dtype_of<typename F::E>()) return one_step<F, Cell>;
  }
  return nullptr;
}

}  // namespace
}  // namespace sf

// The kernels of layers in bfloat16 without options, by the tiles of amx.h. Whatever else a call asks for is done by
// the kernels that SF_WITHOUT_AMX names, so that this file is compiled in a fraction of the time of kernels.cpp.
#include "amx.h"
#include "backward.h"
#include "forward.h"
#include "input_grad.h"
#include "layout.h"
#include "weight_grad.h"

namespace sf {
extern const Kernels SF_WITHOUT_AMX;
namespace {

constexpr const Kernels& kOthers = SF_WITHOUT_AMX;

constexpr bool is_tiled(const Layer& layer) {
  return layer.dtype == Dtype::kBFloat16 && !layer.row_wise && !kCells[layer.cell].is_option;
}

// Calls function(Cell) with a value of the type of the layer's cell.
template <class Function>
auto with_cell(const Layer& layer, Function&& function) {
  switch (layer.cell) {
#define SF_CASE(name, Type) \
  case kCell_##name:        \
    return function(Type{});
    SF_CELLS(SF_CASE)
#undef SF_CASE
  }
  __builtin_unreachable();
}

void pack_forward(const Layer& layer, int d, char* to) {
  if (!is_tiled(layer)) return kOthers.pack_forward(layer, d, to);
  with_cell(layer, [&](auto c) { ForwardLayout<AmxTiles, decltype(c)>(layer).pack_all(layer, d, to); });
}
int64_t packed_forward_size(const Layer& layer) {
  if (!is_tiled(layer)) return kOthers.packed_forward_size(layer);
  return with_cell(layer, [&](auto c) { return ForwardLayout<AmxTiles, decltype(c)>(layer).end; });
}
PackedForward packed_forward(const Layer& layer, const char* packed) {
  if (!is_tiled(layer)) return kOthers.packed_forward(layer, packed);
  return with_cell(layer, [&](auto c) { return ForwardLayout<AmxTiles, decltype(c)>(layer).packed(packed); });
}
int64_t forward_scratch(const Forward& call, int64_t rows, bool in_place) {
  if (!is_tiled(call.layer)) return kOthers.forward_scratch(call, rows, in_place);
  return with_cell(call.layer, [&](auto c) { return ForwardPass<AmxTiles, decltype(c)>::measure(call, rows, false); });
}
int64_t forward_shared(const Forward& call, int64_t rows) {
  if (!is_tiled(call.layer)) return kOthers.forward_shared(call, rows);
  return with_cell(call.layer, [&](auto c) { return ForwardPass<AmxTiles, decltype(c)>::measure_shared(call, rows); });
}
void forward(const ForwardTask& task) {
  if (!is_tiled(task.call->layer)) return kOthers.forward(task);
  with_cell(task.call->layer, [&](auto c) { ForwardPass<AmxTiles, decltype(c)>::run(task); });
}
void pack_backward(const Layer& layer, int d, char* to, bool w_ih, bool others) {
  if (!is_tiled(layer)) return kOthers.pack_backward(layer, d, to, w_ih, others);
  with_cell(layer, [&](auto c) { BackwardLayout<AmxTiles, decltype(c)>(layer).pack_some(layer, d, to, w_ih, others); });
}
int64_t packed_backward_size(const Layer& layer) {
  if (!is_tiled(layer)) return kOthers.packed_backward_size(layer);
  return with_cell(layer, [&](auto c) { return BackwardLayout<AmxTiles, decltype(c)>(layer).end; });
}
PackedBackward packed_backward(const Layer& layer, const char* packed) {
  if (!is_tiled(layer)) return kOthers.packed_backward(layer, packed);
  return with_cell(layer, [&](auto c) { return BackwardLayout<AmxTiles, decltype(c)>(layer).packed(packed); });
}
int64_t backward_scratch(const Backward& call, int64_t rows) {
  if (!is_tiled(call.layer)) return kOthers.backward_scratch(call, rows);
  return with_cell(call.layer, [&](auto c) { return BackwardPass<AmxTiles, decltype(c)>::measure(call, rows); });
}
void backward(const BackwardTask& task) {
  if (!is_tiled(task.call->layer)) return kOthers.backward(task);
  with_cell(task.call->layer, [&](auto c) { BackwardPass<AmxTiles, decltype(c)>::run(task); });
}
int64_t input_grad_scratch(const Backward& call) {
  if (!is_tiled(call.layer)) return kOthers.input_grad_scratch(call);
  return with_cell(call.layer, [&](auto c) { return InputGrad<AmxTiles, decltype(c)>::measure(call); });
}
void input_grad(const InputGradTask& task) {
  if (!is_tiled(task.call->layer)) return kOthers.input_grad(task);
  with_cell(task.call->layer, [&](auto c) { InputGrad<AmxTiles, decltype(c)>::run(task); });
}
int64_t weight_grad_scratch(const WeightGrad& call, int64_t parts) {
  if (!is_tiled(call.layer)) return kOthers.weight_grad_scratch(call, parts);
  return with_cell(call.layer, [&](auto c) { return WeightGradPass<AmxTiles, decltype(c)>::measure(call, parts); });
}
void weight_grad(const WeightGradTask& task) {
  if (!is_tiled(task.call->layer)) return kOthers.weight_grad(task);
  with_cell(task.call->layer, [&](auto c) { WeightGradPass<AmxTiles, decltype(c)>::run(task); });
}

bool forward_in_place(const Layer& layer) { return !is_tiled(layer) && kOthers.forward_in_place(layer); }
bool backward_in_place(const Layer& layer) { return !is_tiled(layer) && kOthers.backward_in_place(layer); }
Dtype gates_dtype(const Layer& layer) { return is_tiled(layer) ? Dtype::kBFloat16 : kOthers.gates_dtype(layer); }

// The function of the other kernels, called when it is needed: their table may not be there when this one is made.
template <auto kMember>
struct Others;
template <class Result, class... Arguments, Result (*Kernels::*kMember)(Arguments...)>
struct Others<kMember> {
  static Result call(Arguments... arguments) { return (kOthers.*kMember)(arguments...); }
};

}  // namespace

extern const Kernels SF_ISA;
const Kernels SF_ISA = {
    .name = SF_ISA_NAME,
    .pack_forward = pack_forward,
    .packed_forward_size = packed_forward_size,
    .packed_forward = packed_forward,
    .pack_backward = pack_backward,
    .packed_backward_size = packed_backward_size,
    .packed_backward = packed_backward,
    .forward_in_place = forward_in_place,
    .forward_scratch = forward_scratch,
    .forward_shared = forward_shared,
    .forward = forward,
    .step_of = nullptr,
    .gates_dtype = gates_dtype,
    .backward_in_place = backward_in_place,
    .backward_scratch = backward_scratch,
    .backward = backward,
    .input_grad_scratch = input_grad_scratch,
    .input_grad = input_grad,
    .weight_grad_scratch = weight_grad_scratch,
    .weight_grad = weight_grad,
    .sum_rows = Others<&Kernels::sum_rows>::call,
    .packed_linear_size = Others<&Kernels::packed_linear_size>::call,
    .pack_linear = Others<&Kernels::pack_linear>::call,
    .linear_scratch = Others<&Kernels::linear_scratch>::call,
    .linear = Others<&Kernels::linear>::call,
    .packed_pool_steps_size = Others<&Kernels::packed_pool_steps_size>::call,
    .pack_pool_steps = Others<&Kernels::pack_pool_steps>::call,
    .pool_steps_scratch = Others<&Kernels::pool_steps_scratch>::call,
    .pool_steps = Others<&Kernels::pool_steps>::call,
    .softmax_scratch = Others<&Kernels::softmax_scratch>::call,
    .softmax = Others<&Kernels::softmax>::call,
    .fingerprint = Others<&Kernels::fingerprint>::call,
};

}  // namespace sf

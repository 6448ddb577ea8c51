// The CPU kernels. This file is compiled once per instruction set, which SF_ISA names, and fills that set's table. Each
// function chooses the types of the cell and the format, and calls the templates of the headers.
// No file of this folder includes a header of torch or of the standard library: an inline function of theirs, compiled
// here for AVX-512, could become the one copy that the linker keeps for all files, and would crash an older CPU.
#include "backward.h"
#include "forward.h"
#include "head.h"
#include "input_grad.h"
#include "layout.h"
#include "one_step.h"
#include "row_backward.h"
#include "row_forward.h"
#include "weight_grad.h"

namespace sf {
namespace {

// These call function(F, Cell), with a value of the type of the layer's format and one of its cell. The backward of
// row-wise layers does not use the format of pairs of bfloat16.
template <class F, class Function>
auto with_cell(const Layer& layer, Function&& function) {
  switch (layer.cell) {
#define SF_CASE(name, Type) \
  case kCell_##name:        \
    return function(F{}, Type{});
    SF_CELLS(SF_CASE)
    SF_OPTION_CELLS(SF_CASE)
#undef SF_CASE
  }
  __builtin_unreachable();
}
template <class Function>
auto with_format(const Layer& layer, Function&& function) {
  if (!kInferenceAlone && layer.dtype == Dtype::kFloat64) return with_cell<Plain<double>>(layer, function);
  return with_cell<Plain<float>>(layer, function);
}
template <class Function>
auto with_forward_format(const Layer& layer, Function&& function) {
#if defined(SF_BFLOAT16_PAIRS)
  if (kInferenceAlone || layer.dtype == Dtype::kBFloat16) return with_cell<Bfloat16Pairs>(layer, function);
#endif
  return with_format(layer, function);
}

template <class Function>
auto with_backward_format(const Layer& layer, Function&& function) {
#if defined(SF_BFLOAT16_PAIRS)
  if (layer.dtype == Dtype::kBFloat16 && !layer.row_wise) {
    switch (layer.cell) {
#define SF_CASE(name, Type) \
  case kCell_##name:        \
    return function(Bfloat16Pairs{}, Type{});
      SF_CELLS(SF_CASE)
#undef SF_CASE
    }
  }
#endif
  return with_format(layer, function);
}
Dtype gates_dtype(const Layer& layer) {
  return with_backward_format(layer, [](auto f, auto) { return dtype_of<typename decltype(f)::E>(); });
}

void pack_forward(const Layer& layer, int d, char* to) {
  with_forward_format(layer,
                      [&](auto f, auto c) { ForwardLayout<decltype(f), decltype(c)>(layer).pack_all(layer, d, to); });
}
int64_t packed_forward_size(const Layer& layer) {
  return with_forward_format(layer, [&](auto f, auto c) { return ForwardLayout<decltype(f), decltype(c)>(layer).end; });
}
PackedForward packed_forward(const Layer& layer, const char* p) {
  return with_forward_format(layer,
                             [&](auto f, auto c) { return ForwardLayout<decltype(f), decltype(c)>(layer).packed(p); });
}

void pack_backward(const Layer& layer, int d, char* to, bool w_ih, bool w_hh) {
  with_backward_format(layer, [&](auto f, auto c) {
    BackwardLayout<decltype(f), decltype(c)>(layer).pack_some(layer, d, to, w_ih, w_hh);
  });
}
int64_t packed_backward_size(const Layer& layer) {
  return with_backward_format(layer,
                              [&](auto f, auto c) { return BackwardLayout<decltype(f), decltype(c)>(layer).end; });
}
PackedBackward packed_backward(const Layer& layer, const char* p) {
  return with_backward_format(
      layer, [&](auto f, auto c) { return BackwardLayout<decltype(f), decltype(c)>(layer).packed(p); });
}

bool forward_in_place(const Layer& layer) {
  if (kInferenceAlone || layer.row_wise) return false;
  return with_forward_format(layer, [&](auto f, auto) { return readable_in_place<decltype(f)>(layer); });
}
// These two call function(Pass<F, Cell>), with a value of the type of the pass that runs a layer. Cells that are
// options have no other pass than the row-wise ones.
template <class Pass>
struct PassOf {
  using Type = Pass;
};
template <class Function>
auto with_forward_pass(const Layer& layer, Function&& function) {
  return with_forward_format(layer, [&](auto f, auto c) {
    using F = decltype(f);
    using Cell = decltype(c);
    if constexpr (!OptionsOf<Cell>::kIsOption) {
      if (!layer.row_wise) return function(PassOf<ForwardPass<F, Cell>>{});
    }
    return function(PassOf<RowForward<F, Cell>>{});
  });
}
template <class Function>
auto with_backward_pass(const Layer& layer, Function&& function) {
  return with_backward_format(layer, [&](auto f, auto c) {
    using F = decltype(f);
    using Cell = decltype(c);
    if constexpr (!OptionsOf<Cell>::kIsOption) {
      if (!layer.row_wise) return function(PassOf<BackwardPass<F, Cell>>{});
    }
    if constexpr (F::kPack == 1) {
      return function(PassOf<RowBackward<F, Cell>>{});
    } else {
      __builtin_unreachable();
    }
  });
}

int64_t forward_scratch(const Forward& call, int64_t rows, bool in_place) {
  return with_forward_pass(call.layer, [&](auto p) { return decltype(p)::Type::measure(call, rows, in_place); });
}
int64_t forward_shared(const Forward& call, int64_t rows) {
  return with_forward_pass(call.layer, [&](auto p) { return decltype(p)::Type::measure_shared(call, rows); });
}
void forward(const ForwardTask& task) {
  with_forward_pass(task.call->layer, [&](auto p) { decltype(p)::Type::run(task); });
}
StepFunction step_of(const Layer& layer) {
  return with_forward_format(layer, [&](auto f, auto c) { return step_function<decltype(f), decltype(c)>(layer); });
}
bool backward_in_place(const Layer& layer) {
  if (layer.row_wise) return false;
  return with_backward_format(layer, [&](auto f, auto) { return readable_in_place_backward<decltype(f)>(layer); });
}
int64_t backward_scratch(const Backward& call, int64_t rows) {
  return with_backward_pass(call.layer, [&](auto p) { return decltype(p)::Type::measure(call, rows); });
}
void backward(const BackwardTask& task) {
  with_backward_pass(task.call->layer, [&](auto p) { decltype(p)::Type::run(task); });
}
int64_t input_grad_scratch(const Backward& call) {
  return with_backward_format(call.layer,
                              [&](auto f, auto c) { return InputGrad<decltype(f), decltype(c)>::measure(call); });
}
void input_grad(const InputGradTask& task) {
  with_backward_format(task.call->layer, [&](auto f, auto c) { InputGrad<decltype(f), decltype(c)>::run(task); });
}
int64_t weight_grad_scratch(const WeightGrad& call, int64_t parts) {
  return with_backward_format(
      call.layer, [&](auto f, auto c) { return WeightGradPass<decltype(f), decltype(c)>::measure(call, parts); });
}
void weight_grad(const WeightGradTask& task) {
  with_backward_format(task.call->layer, [&](auto f, auto c) { WeightGradPass<decltype(f), decltype(c)>::run(task); });
}

// The same without a cell, for what follows the layers. Only products use the format of pairs of bfloat16.
template <class Function>
auto with_sums(Dtype dtype, Function&& function) {
  return dtype == Dtype::kFloat64 ? function(Plain<double>{}) : function(Plain<float>{});
}
template <class Function>
auto with_product(Dtype dtype, Function&& function) {
#if defined(SF_BFLOAT16_PAIRS)
  if (dtype == Dtype::kBFloat16) return function(Bfloat16Pairs{});
#endif
  return with_sums(dtype, function);
}

void sum_rows(Dtype from, Dtype dtype, int64_t width, const char* const* rows, int64_t count, char* to) {
  if (from == Dtype::kBFloat16) return sum_of_rows<Bfloat16Rows>(dtype, width, rows, count, to);
  with_sums(dtype, [&](auto f) { sum_of_rows<decltype(f)>(dtype, width, rows, count, to); });
}

int64_t packed_linear_size(const Linear& call) {
  return with_product(call.dtype, [&](auto f) { return PackedProduct<decltype(f)>(call.weight, call.dtype).end; });
}
void pack_linear(const Linear& call, char* to) {
  with_product(call.dtype, [&](auto f) { PackedProduct<decltype(f)>(call.weight, call.dtype).pack(call.bias, to); });
}
int64_t linear_scratch(const Linear& call) {
  return with_product(call.dtype, [&](auto f) { return linear_scratch_of<decltype(f)>(call); });
}
void linear(const LinearTask& task) {
  with_product(task.call->dtype, [&](auto f) { run_linear_task<decltype(f)>(task); });
}
int64_t packed_pool_steps_size(const PoolSteps& call) {
  return with_sums(call.dtype, [&](auto f) { return PackedProduct<decltype(f)>(call.weight, call.dtype).end; });
}
void pack_pool_steps(const PoolSteps& call, char* to) {
  with_sums(call.dtype, [&](auto f) { PackedProduct<decltype(f)>(call.weight, call.dtype).pack(call.bias, to); });
}
int64_t pool_steps_scratch(const PoolSteps& call) {
  return with_sums(call.dtype, [&](auto f) { return PoolPass<decltype(f)>::measure(call); });
}
void pool_steps(const PoolStepsTask& task) {
  with_sums(task.call->dtype, [&](auto f) { PoolPass<decltype(f)>(*task.call, task.scratch).run(task); });
}
int64_t softmax_scratch(const Softmax& call) {
  return with_sums(call.dtype, [&](auto f) { return softmax_scratch_of<decltype(f)>(call); });
}
void softmax(const SoftmaxTask& task) {
  with_sums(task.call->dtype, [&](auto f) { run_softmax_task<decltype(f)>(task); });
}

// A hash of 128 bits over the bytes of all parts. The sizes of the parts are not hashed: the caller puts them into a
// part. Each step of mix() can be undone, so it loses nothing, and its shift lets high bits change low ones, so that
// two flipped signs do not cancel.
void fingerprint(const Bytes* parts, int64_t count, uint64_t (&hash)[2]) {
  constexpr uint64_t kPrime = 0x9e3779b97f4a7c15, kOther = 0xd6e8feb86659fd93;
  constexpr int kStreams = 4, kBytes = sizeof(HashVec);
  HashVec sums[kStreams];
  for (int i = 0; i < kStreams; ++i) {
    for (int lane = 0; lane < kBytes / 8; ++lane) sums[i][lane] = static_cast<uint64_t>(i * 64 + lane + 2) * kPrime;
  }
  auto mix = [](HashVec s, HashVec word) {
    s = (s ^ word) * kPrime;
    return s ^ (s >> 29);
  };
  for (const Bytes* part = parts; part < parts + count; ++part) {
    const char* p = static_cast<const char*>(part->data);
    int64_t left = part->size;
    for (; left >= kStreams * kBytes; left -= kStreams * kBytes, p += kStreams * kBytes) {
#pragma GCC unroll 4
      for (int i = 0; i < kStreams; ++i) {
        HashVec word;
        __builtin_memcpy(&word, p + i * kBytes, kBytes);
        sums[i] = mix(sums[i], word);
      }
    }
    for (int i = 0; left > 0; ++i, left -= kBytes, p += kBytes) {
      HashVec word{};
      __builtin_memcpy(&word, p, static_cast<size_t>(left < kBytes ? left : kBytes));
      sums[i] = mix(sums[i], word);
    }
  }
  hash[0] = kOther;
  hash[1] = kPrime;
  for (const HashVec& sum : sums) {
    for (int lane = 0; lane < kBytes / 8; ++lane) {
      hash[0] = (hash[0] ^ sum[lane]) * kPrime;
      hash[0] ^= hash[0] >> 32;
      hash[1] = (hash[1] + sum[lane]) * kOther;
      hash[1] ^= hash[1] >> 31;
    }
  }
}

}  // namespace

extern const Kernels SF_ISA;
const Kernels SF_ISA = {
    .name = SF_ISA_NAME,
    .pack_forward = pack_forward,
    .packed_forward_size = packed_forward_size,
    .packed_forward = packed_forward,
    .pack_backward = kInferenceAlone ? nullptr : pack_backward,
    .packed_backward_size = kInferenceAlone ? nullptr : packed_backward_size,
    .packed_backward = kInferenceAlone ? nullptr : packed_backward,
    .forward_in_place = forward_in_place,
    .forward_scratch = forward_scratch,
    .forward_shared = forward_shared,
    .forward = forward,
    .step_of = kInferenceAlone ? step_of : nullptr,
    .gates_dtype = kInferenceAlone ? nullptr : gates_dtype,
    .backward_in_place = kInferenceAlone ? nullptr : backward_in_place,
    .backward_scratch = kInferenceAlone ? nullptr : backward_scratch,
    .backward = kInferenceAlone ? nullptr : backward,
    .input_grad_scratch = kInferenceAlone ? nullptr : input_grad_scratch,
    .input_grad = kInferenceAlone ? nullptr : input_grad,
    .weight_grad_scratch = kInferenceAlone ? nullptr : weight_grad_scratch,
    .weight_grad = kInferenceAlone ? nullptr : weight_grad,
    .sum_rows = kInferenceAlone ? nullptr : sum_rows,
    .packed_linear_size = packed_linear_size,
    .pack_linear = pack_linear,
    .linear_scratch = linear_scratch,
    .linear = linear,
    .packed_pool_steps_size = packed_pool_steps_size,
    .pack_pool_steps = pack_pool_steps,
    .pool_steps_scratch = pool_steps_scratch,
    .pool_steps = pool_steps,
    .softmax_scratch = softmax_scratch,
    .softmax = softmax,
    .fingerprint = kInferenceAlone ? nullptr : fingerprint,
};

}  // namespace sf

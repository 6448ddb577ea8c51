// The table of kernels that kernels.cpp fills for each instruction set, and the tasks that cpu/host/run.cpp gives them.
// A task is some rows, or some units of all rows, of one direction, over all steps.
#pragma once

#include "../../core/args.h"

namespace sf {

// The runtime (csrc/runtime) compiles the kernels with SF_INFERENCE. They then lack what it never asks for, and take a
// fifth of the space: training, float64, weights that are not packed, and in a build for bfloat16 products other
// formats.
#if defined(SF_INFERENCE)
constexpr bool kInferenceAlone = true;
#else
constexpr bool kInferenceAlone = false;
#endif

// Rows are in descending order of length, so that those which have ended are at the end of the list.
struct Task {
  int direction;
  const int64_t* rows;  // indices in the batch
  int64_t count;
  int64_t unit_begin, unit_end;  // a range of the hidden units, in multiples of kSavedAlign except for H at the end
  void (*barrier)(void* state);  // to be called once per step; null unless several tasks share the rows
  void* barrier_state;
  char* scratch;  // memory for this task
  char* shared;   // memory for all tasks that share the rows
};

struct PackedForward {  // all null where the weights are used in place
  const char *w_ih, *w_hh, *bias, *w_hr;
};
struct PackedBackward {  // each null where it is used in place; w_hh is so in calls of one step
  const char *w_ih, *w_hh, *w_hr;
};

struct ForwardTask {
  const Forward* call;
  PackedForward packed;
  Task task;
};
// One step of one row of a layer, in one direction. h and h_next have padded(H) elements in the layer's dtype, c in the
// compute type.
struct StepTask {
  const Layer* layer;
  PackedForward packed;
  const char* x;
  char *h, *h_next, *c, *output;  // output: a second place for h_next, of H elements; or null
  bool backwards;                 // the order of blocks; not the same in neighbouring steps
};
using StepFunction = void (*)(const StepTask&);
struct BackwardTask {
  const Backward* call;
  PackedBackward packed;
  Task task;
};
struct InputGradTask {  // d_x of rows [begin, end) of all (t, b), over both directions
  const Backward* call;
  PackedBackward packed[kMaxDirections];
  int64_t begin, end;
  char* scratch;
};
struct WeightGradTask {
  const WeightGrad* call;
  int direction;
  int64_t part, parts;  // the gate rows of this task: part number `part` of `parts`
  int64_t sample;
  const int64_t* rows;  // indices of the sample's rows in the batch, longest first
  int64_t count;
  char* scratch;
};

struct LinearTask {  // rows [begin, end)
  const Linear* call;
  const char* packed;
  int64_t begin, end;
  char* scratch;
};
struct PoolStepsTask {  // rows [begin, end)
  const PoolSteps* call;
  const char* packed;  // the weight of the scores
  int64_t begin, end;
  char* scratch;
};
struct SoftmaxTask {  // rows [begin, end)
  const Softmax* call;
  int64_t begin, end;
  char* scratch;
};

struct Bytes {
  const void* data;
  int64_t size;
};

// All sizes are in bytes. With kInferenceAlone the functions for training are null.
struct Kernels {
  const char* name;
  void (*pack_forward)(const Layer&, int direction, char* to);
  int64_t (*packed_forward_size)(const Layer&);
  PackedForward (*packed_forward)(const Layer&, const char* packed);
  void (*pack_backward)(const Layer&, int direction, char* to, bool w_ih, bool w_hh);  // w_hh: and w_hr
  int64_t (*packed_backward_size)(const Layer&);
  PackedBackward (*packed_backward)(const Layer&, const char* packed);

  bool (*forward_in_place)(const Layer&);  // whether the weights can be used in place, as they lie in memory
  int64_t (*forward_scratch)(const Forward&, int64_t rows, bool in_place);
  int64_t (*forward_shared)(const Forward&, int64_t rows);
  void (*forward)(const ForwardTask&);
  StepFunction (*step_of)(const Layer&);  // null where the layer has no such function; with kInferenceAlone only
  Dtype (*gates_dtype)(const Layer&);     // of d_gates
  bool (*backward_in_place)(const Layer&);
  int64_t (*backward_scratch)(const Backward&, int64_t rows);
  void (*backward)(const BackwardTask&);
  int64_t (*input_grad_scratch)(const Backward&);
  void (*input_grad)(const InputGradTask&);
  int64_t (*weight_grad_scratch)(const WeightGrad&, int64_t parts);
  void (*weight_grad)(const WeightGradTask&);
  // Writes the sum of rows of `width` values. They are in the compute type or in that of d_gates.
  void (*sum_rows)(Dtype from, Dtype to, int64_t width, const char* const* rows, int64_t count, char* sum);

  // What follows the layers of a classifier.
  int64_t (*packed_linear_size)(const Linear&);
  void (*pack_linear)(const Linear&, char* to);
  int64_t (*linear_scratch)(const Linear&);
  void (*linear)(const LinearTask&);
  int64_t (*packed_pool_steps_size)(const PoolSteps&);
  void (*pack_pool_steps)(const PoolSteps&, char* to);
  int64_t (*pool_steps_scratch)(const PoolSteps&);
  void (*pool_steps)(const PoolStepsTask&);
  int64_t (*softmax_scratch)(const Softmax&);
  void (*softmax)(const SoftmaxTask&);

  // A hash of the bytes of several parts.
  void (*fingerprint)(const Bytes* parts, int64_t count, uint64_t (&hash)[2]);
};

}  // namespace sf

// The table of kernels that each ISA's build of kernels.cpp fills, and what dispatch.cpp hands them: one task at a
// time, some rows (or some units of all rows) of one direction, over all steps. No std header here: see kernels.cpp.
#pragma once

#include "../../core/args.h"

namespace sf {

// One thread's share of a direction. Rows are in descending order of length, so finished ones drop off the end.
struct Task {
  int direction;
  const int64_t* rows;  // batch rows
  int64_t count;
  int64_t unit_begin, unit_end;  // of the hidden units; multiples of kSavedAlign, or H at the end
  void (*barrier)(void* state);  // null unless several tasks share the rows; called once per step
  void* barrier_state;
  char* scratch;
  char* shared;  // scratch of all tasks that share the rows
};

struct PackedForward {
  const char *w_ih, *w_hh, *bias, *w_hr;
};
struct PackedBackward {
  const char *w_ih, *w_hh, *w_hr;
};

struct ForwardTask {
  const Forward* call;
  PackedForward packed;
  Task task;
};
struct BackwardTask {
  const Backward* call;
  PackedBackward packed;
  Task task;
};
struct InputGradTask {  // d_x of rows [begin, end) of all (t, b), both directions summed
  const Backward* call;
  PackedBackward packed[kMaxDirections];
  int64_t begin, end;
  char* scratch;
};
struct WeightGradTask {
  const WeightGrad* call;
  int direction;
  int64_t part, parts;  // which share of the gate rows
  int64_t sample;
  const int64_t* rows;  // the sample's batch rows, longest first
  int64_t count;
  char* scratch;
};

struct Bytes {
  const void* data;
  int64_t size;
};

// Sizes in bytes, of packed weights and scratch.
struct Kernels {
  const char* name;
  void (*pack_forward)(const Layer&, int direction, char* to);
  int64_t (*packed_forward_size)(const Layer&);
  PackedForward (*packed_forward)(const Layer&, const char* packed);
  void (*pack_backward)(const Layer&, int direction, char* to);
  int64_t (*packed_backward_size)(const Layer&);
  PackedBackward (*packed_backward)(const Layer&, const char* packed);

  int64_t (*forward_scratch)(const Forward&, int64_t rows);
  int64_t (*forward_shared)(const Forward&, int64_t rows);
  void (*forward)(const ForwardTask&);
  int64_t (*backward_scratch)(const Backward&, int64_t rows);
  void (*backward)(const BackwardTask&);
  int64_t (*input_grad_scratch)(const Backward&);
  void (*input_grad)(const InputGradTask&);
  int64_t (*weight_grad_scratch)(const WeightGrad&, int64_t parts);
  void (*weight_grad)(const WeightGradTask&);
  // to = the sum of rows of gates * H values in the compute type, in the layer's dtype
  void (*sum_rows)(const Layer&, const char* const* rows, int64_t count, char* to);
  void (*fingerprint)(const Bytes* parts, int64_t count, uint64_t (&hash)[2]);
};

}  // namespace sf

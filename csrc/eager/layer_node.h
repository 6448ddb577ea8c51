// A layer of a plain eager call, and the node that it leaves in autograd's graph. A call is plain if nothing but
// autograd looks at it: no transform, no mode, no subclass of a tensor. Everything else goes through the operators,
// which torch can look into.
#pragma once

#define SF_EAGER
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/python_headers.h>

#include <array>
#include <string>

#include "../bindings/layer_calls.h"

namespace sf {

// The arguments of a layer that are not tensors.
struct Spec {
  std::string cell;
  int64_t directions = 1;
  bool batch_first = false;
  bool one_step = false;  // a cell's
  Runner* runner = nullptr;
  std::string impl;  // the name of the runner
  // Those of LayerOptions: of zoneout of h and of c, of the dropout of the state and of the candidate.
  std::array<double, 4> rates{};
};

// The tensors of a layer in the order of seqcls_fast/_spec.py; then all weights. An absent one is undefined.
constexpr size_t kX = 0, kH0 = 1, kC0 = 2, kLengths = 3, kBatchSizes = 4, kResets = 5, kSeed = 6, kHReset = 7,
                 kCReset = 8, kWeights = 9;

struct Results {
  Tensor output, h_n, c_n;  // undefined: not wanted, or the cell has none
};

// Whether nothing in this thread looks at the calls of operators, and autocast is off.
bool is_plain_thread();

// Whether it is an ordinary tensor of the CPU, and no dual number.
bool is_plain(const Tensor& t);

// Runs a layer, and records its node if grad mode is on and a tensor requires a gradient. False if the arguments are
// wrong or there is too little memory. The operators then say so in a sentence: they check the same again. `packed`:
// the packed weights if they are frozen, which allows no graph.
bool run_layer(const Spec& spec, const Tensors& tensors, const Tensor& packed, bool want_output, Results& results);

// The function of seqcls_fast/_autograd.py that computes the gradients of a node whose backward is not plain.
void set_unusual_backward(PyObject* function);

}  // namespace sf

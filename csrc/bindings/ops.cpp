// The ops of torch.ops.seqcls_fast: their schemas, the checks and results that each has of its own, their registration.
// Arguments that all ops share are checked in arguments.h; the kernels are behind runner.h.
#include <algorithm>
#include <cstdint>
#include <new>
#include <string>
#include <utility>

#include "arguments.h"
#include "runners.h"
#include "tensors.h"

namespace sf {
namespace {

[[noreturn]] void out_of_memory(const Tensor& x, const Tensors& weights) {
  std::string shapes;
  for (size_t i = 0; i < std::min<size_t>(weights.size(), 10); ++i) shapes += " " + text(weights[i].sizes());
  fail("x: expected a layer that fits into memory, but there is too little for x of shape ", text(x.sizes()),
       " and weights of shapes", shapes);
}

// Returns h_n; c_n of an LSTM; output if it or saved is wanted; saved if wanted. Absent results are left out of the
// list, as the dispatcher takes as long for an empty tensor as for another.
Tensors rnn_forward(Tensor x, Tensors weights, Maybe h0, Maybe c0, Maybe lengths, Maybe batch_sizes, Name cell,
                    int64_t directions, bool batch_first, bool want_output, bool want_saved, Name impl,
                    bool allow_tf32) try {
  check_given("x", x);
  const ScopedRunner runner(x, impl, allow_tf32);
  LayerCall call = describe_layer({x, weights, h0, c0, lengths, batch_sizes, cell, directions, batch_first}, *runner);
  const Layer& l = call.layer;
  // If no result has a place for each step, the steps after the end of the longest row need not run.
  if (!want_output && !want_saved && !call.lengths.empty())
    call.layer.T = std::max<int64_t>(1, *std::max_element(call.lengths.begin(), call.lengths.end()));
  Forward forward{};
  forward.layer = l;
  Tensors results;
  results.reserve(4);
  results.push_back(call.empty({l.directions, l.B, l.out()}));
  for (int d = 0; d < l.directions; ++d) forward.h_n[d] = state_rows(results.back(), l.dtype, d);
  if (call.info->has_c) {
    results.push_back(call.empty({l.directions, l.B, l.H}));
    for (int d = 0; d < l.directions; ++d) forward.c_n[d] = state_rows(results.back(), l.dtype, d);
  }
  if (want_output || want_saved) {
    results.push_back(call.empty_output());
    for (int d = 0; d < l.directions; ++d) forward.output[d] = call.rows(results.back(), d * l.out());
  }
  if (want_saved) {
    results.push_back(call.empty_buffer(call.saved_width()));
    for (int d = 0; d < l.directions; ++d) forward.saved[d] = call.buffer_rows(results.back(), d);
  }
  if (l.B > 0) runner->forward(forward);
  return results;
} catch (const std::bad_alloc&) {
  out_of_memory(x, weights);
}

// The op of exported and traced programs: the forward alone. Its autograd, vmap and autocast are registered with the
// dispatcher (_exported.py), since such a program runs none of our Python around the op.
Tensors rnn_layer(Tensor x, Tensors weights, Maybe h0, Maybe c0, Maybe lengths, Maybe batch_sizes, Name cell,
                  int64_t directions, bool batch_first, bool want_output, Name impl, bool allow_tf32) {
  return rnn_forward(x, std::move(weights), h0, c0, lengths, batch_sizes, std::move(cell), directions, batch_first,
                     want_output, false, std::move(impl), allow_tf32);
}

// The gradients of all weights, in their order. With samples, the batch is cut into that many equal parts, and each
// gradient is (samples, ...), that of one part after another.
Tensors weight_gradients(const LayerCall& call, const Backward& backward, const Tensors& weights, int64_t samples,
                         Runner& runner) {
  const Layer& l = call.layer;
  const int64_t directions = l.directions;
  Tensors grads;
  grads.reserve(weights.size());
  for (size_t k = 0; k < weights.size(); ++k) {
    const auto sizes = weights[k].sizes();
    Shape shape(sizes.begin(), sizes.end());
    // The kernels write w_ih's gradient (I, gates * H) where x holds ids, since an id names a column of w_ih.
    if (l.ids && k < static_cast<size_t>(directions)) std::swap(shape[0], shape[1]);
    if (samples) shape.insert(shape.begin(), samples);
    grads.push_back(call.empty(shape));
  }
  WeightGrad grad{};
  grad.layer = l;
  grad.samples = std::max<int64_t>(samples, 1);
  const auto [w_ih, w_hh, b_ih, b_hh, w_hr] = by_kind(grads, directions);
  for (int d = 0; d < l.directions; ++d) {
    grad.output[d] = backward.output[d];
    grad.d_gates[d] = backward.d_gates[d];
    grad.d_w_ih[d] = data_of(w_ih[d]);
    grad.d_w_hh[d] = data_of(w_hh[d]);
    if (b_ih.count) grad.d_b_ih[d] = data_of(b_ih[d]);
    if (b_hh.count) grad.d_b_hh[d] = data_of(b_hh[d]);
    if (w_hr.count) grad.d_w_hr[d] = data_of(w_hr[d]);
  }
  if (l.B > 0) {
    runner.weight_grad(grad);
  } else {
    for (Tensor& g : grads) torch::stable::zero_(g);
  }
  if (l.ids)
    for (int d = 0; d < l.directions; ++d)
      grads[static_cast<size_t>(d)] = torch::stable::transpose(grads[static_cast<size_t>(d)], -1, -2);
  return grads;
}

// Returns the gradients of x if wanted, of h0 and c0 where they are given, and of all weights if wanted.
Tensors rnn_backward(Maybe d_output, Maybe d_h_n, Maybe d_c_n, Tensor x, Tensors weights, Maybe h0, Maybe c0,
                     Maybe lengths, Maybe batch_sizes, Tensor output, Tensor saved, Name cell, int64_t directions,
                     bool batch_first, bool want_d_x, bool want_d_weights, int64_t samples, Name impl,
                     bool allow_tf32) try {
  check_given("x", x);
  const ScopedRunner runner(x, impl, allow_tf32);
  const LayerCall call =
      describe_layer({x, weights, h0, c0, lengths, batch_sizes, cell, directions, batch_first}, *runner);
  const Layer& l = call.layer;
  const Shape state{l.directions, l.B, l.out()}, c_state{l.directions, l.B, l.H};
  const Shape output_shape = call.rows_shape(l.directions * l.out());
  check_given("output", output);
  check_given("saved", saved);
  call.check("output", output, output_shape);
  call.check_buffer("saved", saved, call.saved_width());
  if (d_output) call.check("d_output", *d_output, output_shape);
  if (d_h_n) call.check("d_h_n", *d_h_n, state);
  if (d_c_n) call.check("d_c_n", *d_c_n, c_state);
  if (want_d_x && l.ids) fail("want_d_x: expected False, as x holds ids, which have no gradient");
  if (samples < 0 || (samples && l.B % samples))
    fail("samples: expected a divisor of the batch ", l.B, " but got ", samples);
  if (samples && batch_sizes) fail("samples: expected 0 with batch_sizes but got ", samples);
  Tensors results;
  results.reserve(3 + weights.size());  // so that pointers into the list stay valid
  const auto add = [&](const Shape& shape) -> const Tensor& {
    results.push_back(call.empty(shape));
    return results.back();
  };
  const Tensor d_gates = call.empty_buffer(call.gates_width());
  Backward backward{};
  backward.layer = l;
  if (want_d_x) backward.d_x = call.rows(add(call.rows_shape(l.I)));
  const Tensor* d_h0 = h0 ? &add(state) : nullptr;
  const Tensor* d_c0 = c0 ? &add(c_state) : nullptr;
  for (int d = 0; d < l.directions; ++d) {
    backward.output[d] = call.rows(output, d * l.out());
    backward.saved[d] = call.buffer_rows(saved, d);
    if (d_output) backward.d_output[d] = call.rows(*d_output, d * l.out());
    backward.d_h_n[d] = state_rows(d_h_n, l.dtype, d);
    backward.d_c_n[d] = state_rows(d_c_n, l.dtype, d);
    backward.d_gates[d] = call.buffer_rows(d_gates, d);
    if (d_h0) backward.d_h0[d] = state_rows(*d_h0, l.dtype, d);
    if (d_c0) backward.d_c0[d] = state_rows(*d_c0, l.dtype, d);
  }
  if (l.B > 0) runner->backward(backward);
  if (want_d_weights)
    for (Tensor& grad : weight_gradients(call, backward, weights, samples, *runner)) results.push_back(std::move(grad));
  return results;
} catch (const std::bad_alloc&) {
  out_of_memory(x, weights);
}

}  // namespace
}  // namespace sf

// impl and allow_tf32 come last: allow_tf32 has a default, so that programs exported without it still load.
STABLE_TORCH_LIBRARY(seqcls_fast, m) {
  m.def(
      "rnn_forward(Tensor x, Tensor[] weights, Tensor? h0, Tensor? c0, Tensor? lengths, Tensor? batch_sizes, str cell, "
      "int directions, bool batch_first, bool want_output, bool want_saved, str impl, bool allow_tf32=False) "
      "-> Tensor[]");
  m.def(
      "rnn_layer(Tensor x, Tensor[] weights, Tensor? h0, Tensor? c0, Tensor? lengths, Tensor? batch_sizes, str cell, "
      "int directions, bool batch_first, bool want_output, str impl, bool allow_tf32=False) -> Tensor[]");
  m.def(
      "rnn_backward(Tensor? d_output, Tensor? d_h_n, Tensor? d_c_n, Tensor x, Tensor[] weights, Tensor? h0, Tensor? "
      "c0, Tensor? lengths, Tensor? batch_sizes, Tensor output, Tensor saved, str cell, int directions, bool "
      "batch_first, bool want_d_x, bool want_d_weights, int samples, str impl, bool allow_tf32=False) -> Tensor[]");
}

#define SF_IMPLEMENT(m)                               \
  m.impl("rnn_forward", TORCH_BOX(&sf::rnn_forward)); \
  m.impl("rnn_layer", TORCH_BOX(&sf::rnn_layer));     \
  m.impl("rnn_backward", TORCH_BOX(&sf::rnn_backward));

STABLE_TORCH_LIBRARY_IMPL(seqcls_fast, CPU, m){SF_IMPLEMENT(m)}
#if defined(SF_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(seqcls_fast, CUDA, m) {
  SF_IMPLEMENT(m)
}
#endif
#undef SF_IMPLEMENT

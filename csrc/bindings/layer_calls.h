// What the operators of a layer do once an implementation is chosen: they check the arguments, allocate the results and
// run the kernels. The eager entry (csrc/eager) compiles the same functions for tensors of torch's C++ interface.
#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <utility>

#include "options.h"
#include "packed.h"
#include "runner.h"
#include "tensors.h"

namespace sf {

// Returns h_n; c_n of an LSTM; output if it or saved is wanted; saved if wanted. Absent results are left out of the
// list, as the dispatcher takes as long for an empty tensor as for another. A cell has no output: it is h_n.
inline Tensors layer_forward(const LayerArguments& given, bool want_output, bool want_saved, Runner& runner) {
  LayerCall call = describe_layer(given, runner);
  if (given.packed) {
    if (want_saved) fail("want_saved: expected False with packed, as packed weights are for inference alone");
    use_packed(call, *given.packed, runner);
  }
  const Layer& l = call.layer;
  const bool keep_steps = !call.cell_rank && (want_output || want_saved);
  // If no result has a place for each step, the steps after the end of the longest row need not run.
  if (!keep_steps && !call.lengths.empty())
    call.layer.T = std::max<int64_t>(1, *std::max_element(call.lengths.begin(), call.lengths.end()));
  Forward forward{};
  forward.layer = l;
  forward.training = want_saved;
  Tensors results;
  results.reserve(4);
  results.push_back(call.empty(call.state_shape(l.out())));
  for (int d = 0; d < l.directions; ++d) forward.h_n[d] = state_rows(results.back(), l.dtype, d);
  if (call.info->has_c) {
    results.push_back(call.empty(call.state_shape(l.H)));
    for (int d = 0; d < l.directions; ++d) forward.c_n[d] = state_rows(results.back(), l.dtype, d);
  }
  if (keep_steps) {
    results.push_back(call.empty_output());
    for (int d = 0; d < l.directions; ++d) forward.output[d] = call.rows(results.back(), d * l.out());
  }
  if (want_saved) {
    results.push_back(call.empty_buffer(call.saved_width(), call.buffer_dtype));
    for (int d = 0; d < l.directions; ++d) forward.saved[d] = call.buffer_rows(results.back(), call.buffer_dtype, d);
  }
  if (l.B > 0) runner.forward(forward);
  return results;
}

// The sum, for each sample, of some columns of rows that are sums over the steps of one batch row each.
inline RowSums row_sums(const LayerCall& call, const Rows& from, int64_t column, int64_t width, int64_t samples,
                        char* to, int64_t to_stride) {
  RowSums sums{};
  sums.from_dtype = from.dtype;
  sums.to_dtype = call.layer.dtype;
  sums.from = from.data + column * size_of(from.dtype);
  sums.to = to;
  sums.samples = samples;
  sums.rows = call.layer.B / samples;
  sums.width = width;
  sums.from_stride = from.b_stride;
  sums.to_stride = to_stride;
  return sums;
}

// The gradients of all weights, in their order. With samples, the batch is cut into that many equal parts, and each
// gradient is (samples, ...), that of one part after another.
inline Tensors weight_gradients(const LayerCall& call, const Backward& backward, const Tensors& weights,
                                int64_t samples, Runner& runner) {
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
  const auto [w_ih, w_hh, b_ih, b_hh, w_hr, further] = by_kind(grads, directions, *call.info);
  for (int d = 0; d < l.directions; ++d) {
    grad.output[d] = backward.output[d];
    grad.d_gates[d] = backward.d_gates[d];
    grad.d_w_ih[d] = data_of(w_ih[d]);
    grad.d_w_hh[d] = data_of(w_hh[d]);
    const bool summed = call.info->norm || backward.d_bias[d].data;
    if (b_ih.count && !summed) grad.d_b_ih[d] = data_of(b_ih[d]);
    if (b_hh.count && !summed) grad.d_b_hh[d] = data_of(b_hh[d]);
    if (w_hr.count) grad.d_w_hr[d] = data_of(w_hr[d]);
  }
  if (l.B > 0) {
    runner.weight_grad(grad);
    const auto add_up = [&](const Rows& from, const Tensor& to, int64_t to_row, int64_t from_row, int64_t rows) {
      const int64_t each = to.numel() / grad.samples;
      runner.sum_rows(row_sums(call, from, from_row * l.H, rows * l.H, grad.samples,
                               data_of(to) + to_row * l.H * size_of(l.dtype), each));
    };
    for (int d = 0; d < l.directions && backward.d_bias[d].data; ++d) {
      for (int gate = 0; gate < call.info->gates; ++gate) {
        add_up(backward.d_bias[d], b_ih[d], gate, gate, 1);
        add_up(backward.d_bias[d], b_hh[d], gate, call.info->hidden_slot[gate], 1);
      }
    }
    for (int d = 0; d < l.directions && backward.d_further[d].data; ++d) {
      const auto sum = [&](const Tensor& to, int64_t to_row, int64_t from_row, int64_t rows) {
        add_up(backward.d_further[d], to, to_row, from_row, rows);
      };
      int64_t next = 0;
      if (call.info->norm) {  // the biases are added after the norms, so their gradients are not those of the slots
        for (int gate = 0; gate < call.info->gates && b_ih.count; ++gate) {
          sum(b_ih[d], gate, gate, 1);
          sum(b_hh[d], gate, call.info->base_hidden_slot[gate], 1);
        }
        next = call.info->base_slots;
      }
      for (int k = 0; k < call.info->further_count; ++k) {
        const int64_t rows = call.info->further[k].rows;
        sum(further[k][d], 0, next, rows);
        next += rows;
      }
    }
  } else {
    for (Tensor& g : grads) fill_with_zeros(g);
  }
  if (l.ids)
    for (int d = 0; d < l.directions; ++d) grads[static_cast<size_t>(d)] = as_transposed(grads[static_cast<size_t>(d)]);
  return grads;
}

// Returns the gradients of x if wanted, of h0, c0, h_reset and c_reset where they are given, and of all weights if
// wanted. `output` and `saved` are those that the forward returned; `output` of a cell is h_n. With samples, those of
// the reset states are (samples, ...) as those of the weights are.
inline Tensors layer_backward(const LayerArguments& given, const Maybe& d_output, const Maybe& d_h_n,
                              const Maybe& d_c_n, const Tensor& output, const Tensor& saved, bool want_d_x,
                              bool want_d_weights, int64_t samples, Runner& runner) {
  const LayerCall call = describe_layer(given, runner);
  const Tensors& weights = given.weights;
  const Maybe &h0 = given.h0, &c0 = given.c0;
  const Layer& l = call.layer;
  const Shape state = call.state_shape(l.out()), c_state = call.state_shape(l.H);
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
  if (samples && given.batch_sizes) fail("samples: expected 0 with batch_sizes but got ", samples);
  Tensors results;
  results.reserve(3 + weights.size());  // so that pointers into the list stay valid
  const auto add = [&](const Shape& shape) -> const Tensor& {
    results.push_back(call.empty(shape));
    return results.back();
  };
  const Dtype gates_dtype = runner.gates_dtype(l);
  const Tensor d_gates = call.empty_buffer(call.gates_width(), gates_dtype);
  Backward backward{};
  backward.layer = l;
  if (want_d_x) backward.d_x = call.rows(add(call.rows_shape(l.I)));
  const Tensor* d_h0 = h0 ? &add(state) : nullptr;
  const Tensor* d_c0 = c0 ? &add(c_state) : nullptr;
  // The gradients that are sums over the rows of the batch too: first those of each row.
  Tensors row_buffers;
  const auto add_row_sums = [&](Rows(&to)[kMaxDirections], int64_t width) {
    row_buffers.push_back(sf::empty(Shape{l.directions, l.B, width}, call.buffer_dtype, call.device));
    for (int d = 0; d < l.directions; ++d) {
      to[d].dtype = call.buffer_dtype;
      to[d].data = data_of(row_buffers.back()) + d * l.B * width * size_of(call.buffer_dtype);
      to[d].b_stride = width;
    }
  };
  const auto add_reset = [&](const Maybe& given_state, Rows(&rows)[kMaxDirections], int64_t width) -> const Tensor* {
    if (!given_state) return nullptr;
    add_row_sums(rows, width);
    return &add(samples ? Shape{samples, l.directions, width} : Shape{l.directions, width});
  };
  static const LayerOptions none;
  const LayerOptions& options = given.options ? *given.options : none;
  const Tensor* d_h_reset = add_reset(options.h_reset, backward.d_h_reset, l.out());
  const Tensor* d_c_reset = add_reset(options.c_reset, backward.d_c_reset, l.H);
  if (want_d_weights && further_sums(*call.info)) add_row_sums(backward.d_further, further_sums(*call.info) * l.H);
  if (want_d_weights && gates_dtype != call.buffer_dtype && l.b_ih[0].data)
    add_row_sums(backward.d_bias, call.info->slots * l.H);
  for (int d = 0; d < l.directions; ++d) {
    backward.output[d] = call.rows(output, d * l.out());
    backward.saved[d] = call.buffer_rows(saved, call.buffer_dtype, d);
    if (d_output) backward.d_output[d] = call.rows(*d_output, d * l.out());
    backward.d_h_n[d] = state_rows(d_h_n, l.dtype, d);
    backward.d_c_n[d] = state_rows(d_c_n, l.dtype, d);
    backward.d_gates[d] = call.buffer_rows(d_gates, gates_dtype, d);
    if (d_h0) backward.d_h0[d] = state_rows(*d_h0, l.dtype, d);
    if (d_c0) backward.d_c0[d] = state_rows(*d_c0, l.dtype, d);
  }
  if (l.B > 0) runner.backward(backward);
  for (const auto& [tensor, rows, width] :
       {std::tuple{d_h_reset, &backward.d_h_reset, l.out()}, std::tuple{d_c_reset, &backward.d_c_reset, l.H}}) {
    if (!tensor) continue;
    Tensor result = *tensor;
    if (l.B == 0) fill_with_zeros(result);
    for (int d = 0; d < l.directions && l.B > 0; ++d)
      runner.sum_rows(row_sums(call, (*rows)[d], 0, width, std::max<int64_t>(samples, 1),
                               data_of(result) + d * width * size_of(l.dtype), l.directions * width));
  }
  if (want_d_weights)
    for (Tensor& grad : weight_gradients(call, backward, weights, samples, runner)) results.push_back(std::move(grad));
  return results;
}

}  // namespace sf

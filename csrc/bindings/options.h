// The arguments of a layer's options, checked and added to its Layer: resets, the state that they lead to, masks.
#pragma once

#include "arguments.h"

namespace sf {

// The arguments of a layer's options: see Layer in args.h.
struct LayerOptions {
  Maybe resets, h_reset, c_reset, seed;
  double zoneout_h = 0, zoneout_c = 0, state_dropout = 0, candidate_dropout = 0;
};

inline void check_rate(const char* name, double rate) {
  if (!(rate >= 0 && rate < 1)) fail(name, ": expected a number from 0 to below 1 but got ", rate);
}

inline void describe_options(LayerCall& call, const LayerOptions& options) {
  Layer& l = call.layer;
  const auto& [resets, h_reset, c_reset, seed, zoneout_h, zoneout_c, state_dropout, candidate_dropout] = options;
  if (resets) {
    // Of the shape of x without its features.
    Shape shape = call.rows_shape(1);
    shape.resize(shape.size() - 1);
    check_tensor("resets", *resets, call.device, ScalarType::Bool, shape);
    const auto strides = resets->strides();
    l.resets.data = data_of(*resets);
    if (call.packed()) {
      l.resets.t_stride = l.resets.b_stride = strides[0];
      l.resets.t_row = call.device_t_row;
    } else if (call.cell_rank) {
      l.resets.b_stride = call.cell_rank == 1 ? 0 : strides[0];
    } else {
      l.resets.t_stride = strides[call.batch_first ? 1 : 0];
      l.resets.b_stride = strides[call.batch_first ? 0 : 1];
    }
  }
  if (c_reset && !call.info->has_c) fail("c_reset: expected None for cell ", call.info->name);
  if (h_reset) call.check("h_reset", *h_reset, Shape{l.directions, l.out()});
  if (c_reset) call.check("c_reset", *c_reset, Shape{l.directions, l.H});
  for (int d = 0; d < l.directions; ++d) {
    const auto row_of = [&](const Maybe& state) {
      Rows rows;
      if (!state) return rows;
      rows.dtype = l.dtype;
      rows.data = data_of(*state) + d * state->strides()[0] * size_of(l.dtype);
      rows.stride = state->strides()[1];
      return rows;
    };
    l.h_reset[d] = row_of(h_reset);
    l.c_reset[d] = row_of(c_reset);
  }
  check_rate("zoneout_h", zoneout_h);
  check_rate("zoneout_c", zoneout_c);
  check_rate("state_dropout", state_dropout);
  check_rate("candidate_dropout", candidate_dropout);
  if (zoneout_c > 0 && !call.info->has_c)
    fail("zoneout_c: expected 0 for cell ", call.info->name, " but got ", zoneout_c);
  if (candidate_dropout > 0 && call.info->gates == 1)
    fail("candidate_dropout: expected 0 for cell ", call.info->name, " but got ", candidate_dropout);
  l.noise = {zoneout_h, zoneout_c, state_dropout, candidate_dropout, nullptr};
  if (!seed) return;
  check_tensor("seed", *seed, call.device, ScalarType::Long, Shape{});
  l.noise.seed = static_cast<const int64_t*>(seed->data_ptr());
  if (call.device.type() != DeviceType::CPU) return;
  const int64_t value = *static_cast<const volatile int64_t*>(l.noise.seed);  // another thread may write to it
  call.seed.assign(1, value);
  l.noise.seed = call.seed.data();
}

inline LayerCall describe_layer(const LayerArguments& given, const Runner& runner) {
  LayerCall call = describe_input(given, runner);
  point_into_buffers(call);
  describe_weights(call, given);
  if (given.options) describe_options(call, *given.options);
  call.layer.row_wise = call.info->is_option || call.layer.noise.any();
  return call;
}

}  // namespace sf

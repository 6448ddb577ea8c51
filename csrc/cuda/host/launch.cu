// Makes the plan of a layer, and launches the regimes that keep R on the chip: onchip, cluster and grid. Like all host
// code but runner.cu, it reaches the device through DeviceStream alone, so that tests/cuda/simt can run it on the CPU.
#include "host.h"
#include "../kernels/kernels.h"
#include "../kernels/pack.cuh"

namespace sf::cuda {
namespace {

Precision precision_of(Dtype d, bool tf32) {
  if (d == Dtype::kBFloat16) return Precision::kBf16;
  if (d == Dtype::kFloat16) return Precision::kFp16;
  return tf32 ? Precision::kTf32 : Precision::kTf32x3;
}

template <class Math>
const void* make_weights(const Layer& l, const Request& r, const Plan& p, DeviceStream& stream) {
  const int warps = p.block_groups * p.tiling.splits, k_tiles = p.tiling.k_tiles * operands(r.pass, r.gates);
  const int64_t fragments = int64_t{1} * l.directions * p.blocks * warps * m_tiles(r.pass, r.gates) * k_tiles * 32;
  auto* to = stream.take_of<uint4>(fragments * planes(r.precision));
  launch_over(stream, pack_weights<Math>, fragments,
              {{l.w_hh[0], l.w_hh[1]},
               to,
               l.directions,
               r.gates,
               warps,
               p.blocks,
               p.tiling.splits,
               p.tiling.k_tiles,
               r.pass,
               l.H});
  return to;
}

Request request_of(const Layer& l, Pass pass, bool tf32) {
  const CellInfo& info = kCells[l.cell];
  const Options options = options_of(info.norm, info.resets_first, info.further_count > 0, l.noise.any());
  return {static_cast<int>(l.gates), pass, precision_of(l.dtype, tf32), l.H, l.B, l.directions, options};
}

bool strides_fit(const Rows& rows) {
  return rows.t_stride * size_of(rows.dtype) < kAddressLimit && rows.b_stride * size_of(rows.dtype) < kAddressLimit;
}
RowAddress row_address(const Rows& rows) {
  if (!rows.data) return {};
  const int64_t size = size_of(rows.dtype);
  return {rows.data, static_cast<uint32_t>(rows.t_stride * size), static_cast<uint32_t>(rows.b_stride * size)};
}
// Copies the rows first if a RowAddress cannot describe them. steps: 1 for h0 and c0, else T.
RowAddress row_address(const Layer& l, const Rows& rows, int64_t width, int64_t steps, DeviceStream& stream) {
  if (!rows.data || (rows.stride == 1 && strides_fit(rows))) return row_address(rows);
  Layer copied = l;
  copied.T = steps;
  if (steps == 1) copied.packed_rows = 0, copied.x.t_row = nullptr;
  void* copy = stream.take((steps == 1 ? l.B : row_count(l)) * width * size_of(l.dtype));
  gather(copied, rows, 1, width, nullptr, copy, stream);
  return row_address(contiguous_rows(copy, l.dtype, copied, width));
}

// The kernel, the plan and the arguments of a pass, except for the arguments that only one of the two passes has.
struct RecurrentLaunch {
  const Layer& l;
  Request request;
  Plan plan;
  DeviceStream& stream;
  RecurrentKernel kernel;
  LaunchArgs args{};
  int64_t word_bytes = 0, part_bytes = 0;

  RecurrentLaunch(const Layer& layer, Pass pass, const Plan& plan_, const Choice& choice, const Lengths& lengths,
                  DeviceStream& stream_)
      : l(layer), request(request_of(layer, pass, choice.tf32)), plan(plan_), stream(stream_) {
    const void* weights = nullptr;
    switch (request.precision) {
      case Precision::kBf16:
        kernel = kernel_bf16(l.cell, pass, plan.tiling, plan.regime, request.options);
        weights = make_weights<Bf16>(l, request, plan, stream);
        break;
      case Precision::kFp16:
        kernel = kernel_fp16(l.cell, pass, plan.tiling, plan.regime, request.options);
        weights = make_weights<Fp16>(l, request, plan, stream);
        break;
      case Precision::kTf32:
        kernel = kernel_tf32(l.cell, pass, plan.tiling, plan.regime, request.options);
        weights = make_weights<Tf32>(l, request, plan, stream);
        break;
      case Precision::kTf32x3:
        kernel = kernel_tf32x3(l.cell, pass, plan.tiling, plan.regime, request.options);
        weights = make_weights<Tf32x3>(l, request, plan, stream);
        break;
    }
    if (!kernel)
      throw std::runtime_error(std::string("no kernel was built for regime ") +
                               kRegimes[static_cast<int>(plan.regime)] + " at this size");
    const int k_tiles = plan.tiling.k_tiles * operands(pass, request.gates);
    const int64_t fragments = int64_t{1} * plan.blocks * plan.block_groups * plan.tiling.splits *
                              m_tiles(pass, request.gates) * k_tiles * planes(request.precision) * 32;
    for (int d = 0; d < l.directions; ++d) {
      DirectionArgs& io = args.direction[d];
      io.weights = static_cast<const uint4*>(weights) + d * fragments;
      io.h0 = row_address(l, l.h0[d], l.H, 1, stream);
      io.c0 = row_address(l, l.c0[d], l.H, 1, stream);
      io.resets = {l.resets.data, static_cast<uint32_t>(l.resets.t_stride), static_cast<uint32_t>(l.resets.b_stride)};
      io.h_reset = row_address(l, l.h_reset[d], l.H, 1, stream);
      io.c_reset = row_address(l, l.c_reset[d], l.H, 1, stream);
      io.begin = 0;
      io.end = static_cast<int>(l.T);
      if (request.options == Options::kPeephole) args.options.seen[d] = l.further[0][d].data;
      args.norm.gains[d] = l.further[1][d].data;
      for (int which = 0; which < 2; ++which) args.norm.of_c[which][d] = l.further[2 + which][d].data;
    }
    const int units = slice_units(plan.tiling.splits);
    args.norm.slices = static_cast<int>(ceil_div(l.H, units));
    args.norm.last_units = static_cast<int>(l.H) - (args.norm.slices - 1) * units;
    args.norm.inverse_H = 1.0f / static_cast<float>(l.H);
    args.norm.inverse_last = 1.0f / static_cast<float>(args.norm.last_units);
    args.options.seed = l.noise.seed;
    for (int kind = 0; kind < kMaskedKinds; ++kind)
      args.options.masks[kind] = mask_of<float>(l.noise, static_cast<Masked>(kind));
    args.options.saves_fresh_h = l.saves_fresh_h();
    args.T = static_cast<int>(l.T);
    args.B = static_cast<int>(l.B);
    args.H = static_cast<int>(l.H);
    args.t_row = l.x.t_row;
    args.first = args.last = true;
    args.lengths = lengths.lengths;
    args.order = lengths.order;
    args.error = stream.error_word();
    args.max_polls = stream.limits().max_polls;
    args.directions = l.directions;
    args.blocks = plan.blocks;
    args.block_groups = plan.block_groups;
    args.groups = plan.groups;
    args.tiles = plan.tiles;
    if (plan.regime == Regime::kGrid) {
      const int row_words =
          operands(pass, request.gates) * plan.groups * kGroupUnits * element_size(request.precision) / 4;
      word_bytes =
          int64_t{8} * plan.teams * l.directions * 2 * plan.tiles * planes(request.precision) * kTileRows * row_words;
      args.words = static_cast<uint64_t*>(stream.take(word_bytes));
      if (request.options == Options::kNorm) {
        part_bytes = int64_t{8} * plan.teams * l.directions * 2 * row_part_words(request.gates, args.norm.slices);
        args.norm.words = static_cast<uint64_t*>(stream.take(part_bytes));
      }
    }
  }

  void launch() {
    if (args.words) stream.zero(args.words, word_bytes);  // 0 is a tag that no sent word has
    if (args.norm.words) stream.zero(args.norm.words, part_bytes);
    LaunchShape shape{plan.teams * l.directions * plan.blocks, plan.threads, plan.shared_bytes};
    shape.cluster = plan.regime == Regime::kCluster ? plan.blocks : 1;
    shape.cooperative = plan.regime == Regime::kGrid;
    stream.launch(kernel, shape, args);
  }
};

void recurrent_forward(const Forward& f, const Plan& plan, const Choice& choice, const Lengths& lengths,
                       DeviceStream& stream) {
  const Layer& l = f.layer;
  RecurrentLaunch launch(l, Pass::kForward, plan, choice, lengths, stream);
  const void* bias = make_bias(l, stream);
  launch.args.write_output = f.output[0].data != nullptr;
  const int64_t state_count = l.directions * 2 * l.B * l.H;
  float* carried[2] = {stream.take_of<float>(state_count), stream.take_of<float>(state_count)};
  for (int d = 0; d < l.directions; ++d) {
    DirectionArgs& io = launch.args.direction[d];
    io.bias = static_cast<const float*>(bias_of(bias, l, d));
    io.saved = row_address(f.saved[d]);
    io.output = row_address(f.output[d]);
    io.h_n = f.h_n[d];
    io.c_n = f.c_n[d];
  }
  for_chunks(f, plan.padded, choice, stream, [&](const Chunk& chunk) {
    if (launch.request.options == Options::kNorm) normalise_input(f, chunk, plan.padded, lengths, stream);
    for (int d = 0; d < l.directions; ++d) {
      DirectionArgs& io = launch.args.direction[d];
      io.projected = row_address(chunk.projected[d]);
      io.begin = static_cast<int>(chunk.begin[d]);
      io.end = static_cast<int>(chunk.end[d]);
    }
    launch.args.first = chunk.first;
    launch.args.last = chunk.last;
    launch.args.carried_in = carried[0];
    launch.args.carried_out = carried[1];
    std::swap(carried[0], carried[1]);
    launch.launch();
  });
}

void recurrent_backward(const Backward& b, const Plan& plan, const Choice& choice, const Lengths& lengths,
                        const ResetCarries& carries, const Norms& norms, DeviceStream& stream) {
  RecurrentLaunch launch(b.layer, Pass::kBackward, plan, choice, lengths, stream);
  for (int d = 0; d < b.layer.directions; ++d) {
    DirectionArgs& io = launch.args.direction[d];
    io.saved = row_address(b.saved[d]);
    io.output = row_address(b.output[d]);
    io.d_output = row_address(b.layer, b.d_output[d], b.layer.H, b.layer.T, stream);
    io.d_h_n = b.d_h_n[d];
    io.d_c_n = b.d_c_n[d];
    io.d_gates = row_address(b.d_gates[d]);
    io.d_h0 = b.d_h0[d];
    io.d_c0 = b.d_c0[d];
    if (launch.request.options == Options::kPeephole) launch.args.options.d_seen[d] = b.d_further[d];
    launch.args.norm.c_statistics[d] = row_address(norms.c_statistics[d]);
    launch.args.norm.d_aside[d] = row_address(norms.d_aside[d]);
    launch.args.options.reset_h[d] = static_cast<float*>(carries.h[d]);
    io.reset_carry = static_cast<float*>(kCells[b.layer.cell].has_c ? carries.c[d] : carries.h[d]);
  }
  launch.launch();
}

// Runs a recurrent kernel, or the steps one by one if the plan says so or if the device cannot hold the kernel's blocks
// after all. A forced regime is never replaced.
template <class Recur, class Step>
void run_plan(const Plan& plan, const Choice& choice, Recur&& recur, Step&& step) {
  if (plan.regime == Regime::kStepwise) return step();
  try {
    recur();
  } catch (const TooManyBlocks&) {
    if (choice.forced) throw;
    step();
  }
}

}  // namespace

std::vector<std::string> regime_names() { return {std::begin(kRegimes), std::end(kRegimes)}; }

Choice choice_of(const std::string& impl, bool allow_tf32) {
  Choice choice;
  choice.tf32 = allow_tf32;
  if (impl == "auto") return choice;
  choice.forced = true;
  for (int i = 0; i < 4; ++i) {
    choice.regime = static_cast<Regime>(i);
    if (impl == kRegimes[i]) return choice;
  }
  throw std::runtime_error(
      "impl: expected auto, onchip, cluster, grid or "
      "stepwise on CUDA but got '" +
      impl + "'");
}

Plan plan_layer(const Layer& l, Pass pass, const Choice& choice, const Limits& limits) {
  const char* why = nullptr;
  if (l.dtype == Dtype::kFloat64) why = "float64 has no kernel that keeps its weights on the chip";
  if (l.P) why = "projected states have no kernel that keeps its weights on the chip";
  if (l.resets.data && std::max(l.resets.t_stride, l.resets.b_stride) >= kAddressLimit)
    why = "the layer is too large for addresses of 32 bits";
  if (std::max({l.T, l.B, l.directions * l.T * l.H * size_of(l.dtype), 8 * l.directions * l.B * l.gates * l.H,
                5 * l.B * padded(l.H) * size_of(l.dtype)}) >= kAddressLimit / 2)
    why = "the layer is too large for addresses of 32 bits";
  const Request r = request_of(l, pass, choice.tf32);
  Plan plan;
  if (why) {
    plan.why = why;
  } else {
    plan = choice.forced ? fit(r, limits, choice.regime) : make_plan(r, limits);
    if (fits(plan)) return plan;
    why = plan.why;
  }
  if (!choice.forced || choice.regime == Regime::kStepwise) return plan;
  throw std::runtime_error(std::string("impl: ") + kRegimes[static_cast<int>(choice.regime)] +
                           " cannot run this layer (hidden_size " + std::to_string(l.H) + ", batch " +
                           std::to_string(l.B) + "): " + why);
}

void run_forward(const Forward& f, const Choice& choice, DeviceStream& stream) {
  const Layer& l = f.layer;
  const Lengths lengths = order_batch(l, stream);
  if (f.output[0].data && l.lengths && !l.packed_rows)  // no kernel writes the steps beyond a row's length
    stream.zero(f.output[0].data, l.T * l.B * l.directions * l.out() * size_of(l.dtype));
  const Plan plan = plan_layer(l, Pass::kForward, choice, stream.limits());
  run_plan(
      plan, choice, [&] { recurrent_forward(f, plan, choice, lengths, stream); },
      [&] { step_forward(f, choice, lengths, stream); });
}

void run_backward(const Backward& b, const Choice& choice, DeviceStream& stream) {
  const Layer& l = b.layer;
  const Lengths lengths = order_batch(l, stream);
  const int64_t width = gates_width(l);
  if (l.lengths && !l.packed_rows) stream.zero(b.d_gates[0].data, l.directions * l.T * l.B * width * size_of(l.dtype));
  const Plan plan = plan_layer(l, Pass::kBackward, choice, stream.limits());
  const ResetCarries carries = begin_resets(b, stream);
  const Norms norms = begin_norms(b, lengths, stream);
  run_plan(
      plan, choice, [&] { recurrent_backward(b, plan, choice, lengths, carries, norms, stream); },
      [&] { step_backward(b, choice, lengths, carries, norms, stream); });
  end_norms(b, norms, lengths, stream);
  end_resets(b, carries, lengths, choice, stream);
  if (b.d_x.data) input_grad(b, choice, stream);
}

}  // namespace sf::cuda

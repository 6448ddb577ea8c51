// From a layer to a plan, and to the launches of the regimes that keep R on the chip. Host code over Queue alone, as
// host.h and its files are, so that tests/cuda/simt runs all of it on the CPU.
#include "host.h"
#include "../kernels/kernels.h"
#include "../kernels/pack.cuh"

namespace sf::cuda {
namespace {

constexpr int64_t kFar = int64_t{1} << 32;  // bytes that a Track cannot say

Precision precision_of(Dtype d, bool tf32) {
  if (d == Dtype::kBFloat16) return Precision::kBf16;
  if (d == Dtype::kFloat16) return Precision::kFp16;
  return tf32 ? Precision::kTf32 : Precision::kTf32x3;
}

template <class Math>
const void* make_weights(const Layer& l, const Request& r, const Plan& p, Queue& q) {
  const int warps = p.block_groups * p.tiling.splits, k_tiles = p.tiling.k_tiles * operands(r.pass, r.gates);
  const int64_t pieces = int64_t{1} * l.directions * p.blocks * warps * m_tiles(r.pass, r.gates) * k_tiles * 32;
  auto* to = q.take_of<uint4>(pieces * planes(r.precision));
  launch_over(q, pack_weights<Math>, pieces,
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
  return {static_cast<int>(l.gates), pass, precision_of(l.dtype, tf32), l.H, l.B, l.directions};
}

// Rows for a sweep: a copy where values do not lie side by side.
bool near(const Rows& rows) {
  return rows.t_stride * size_of(rows.dtype) < kFar && rows.b_stride * size_of(rows.dtype) < kFar;
}
Track track_of(const Rows& rows) {
  if (!rows.data) return {};
  const int64_t size = size_of(rows.dtype);
  return {rows.data, static_cast<uint32_t>(rows.t_stride * size), static_cast<uint32_t>(rows.b_stride * size)};
}
Track track_of(const Layer& l, const Rows& rows, int64_t width, int64_t steps, Queue& q) {
  if (!rows.data || (rows.stride == 1 && near(rows))) return track_of(rows);
  Layer part = l;  // h0 and c0 are of one step
  part.T = steps;
  if (steps == 1) part.packed_rows = 0, part.x.t_row = nullptr;
  void* copy = q.take((steps == 1 ? l.B : row_count(l)) * width * size_of(l.dtype));
  gather(part, rows, {}, 0, 1, width, nullptr, copy, q);
  return track_of(contiguous_rows(copy, l.dtype, part, width));
}

// All of a sweep but what one pass alone has.
struct Sweeper {
  const Layer& l;
  Request request;
  Plan plan;
  Queue& q;
  RecurrentKernel kernel;
  Sweep sweep{};
  int64_t word_bytes = 0;

  Sweeper(const Layer& layer, Pass pass, const Plan& p, const Choice& choice, const Lengths& lengths, Queue& queue)
      : l(layer), request(request_of(layer, pass, choice.tf32)), plan(p), q(queue) {
    const void* weights = nullptr;
    switch (request.precision) {
      case Precision::kBf16:
        kernel = kernel_bf16(l.cell, pass, plan.tiling, plan.regime);
        weights = make_weights<Bf16>(l, request, plan, q);
        break;
      case Precision::kFp16:
        kernel = kernel_fp16(l.cell, pass, plan.tiling, plan.regime);
        weights = make_weights<Fp16>(l, request, plan, q);
        break;
      case Precision::kTf32:
        kernel = kernel_tf32(l.cell, pass, plan.tiling, plan.regime);
        weights = make_weights<Tf32>(l, request, plan, q);
        break;
      case Precision::kTf32x3:
        kernel = kernel_tf32x3(l.cell, pass, plan.tiling, plan.regime);
        weights = make_weights<Tf32x3>(l, request, plan, q);
        break;
    }
    if (!kernel)
      throw std::runtime_error(std::string("no kernel was built for regime ") +
                               kRegimes[static_cast<int>(plan.regime)] + " at this size");
    const int k_tiles = plan.tiling.k_tiles * operands(pass, request.gates);
    const int64_t pieces = int64_t{1} * plan.blocks * plan.block_groups * plan.tiling.splits *
                           m_tiles(pass, request.gates) * k_tiles * planes(request.precision) * 32;
    for (int d = 0; d < l.directions; ++d) {
      SweepDirection& io = sweep.direction[d];
      io.weights = static_cast<const uint4*>(weights) + d * pieces;
      io.h0 = track_of(l, l.h0[d], l.H, 1, q);
      io.c0 = track_of(l, l.c0[d], l.H, 1, q);
      io.begin = 0;
      io.end = static_cast<int>(l.T);
    }
    sweep.T = static_cast<int>(l.T);
    sweep.B = static_cast<int>(l.B);
    sweep.H = static_cast<int>(l.H);
    sweep.t_row = l.x.t_row;
    sweep.first = sweep.last = true;
    sweep.lengths = lengths.lengths;
    sweep.order = lengths.order;
    sweep.error = q.error_word();
    sweep.most_peeks = q.limits().most_peeks;
    sweep.directions = l.directions;
    sweep.blocks = plan.blocks;
    sweep.block_groups = plan.block_groups;
    sweep.groups = plan.groups;
    sweep.tiles = plan.tiles;
    if (plan.regime == Regime::kGrid) {
      const int row_words =
          operands(pass, request.gates) * plan.groups * kGroupUnits * element_size(request.precision) / 4;
      word_bytes =
          int64_t{8} * plan.teams * l.directions * 2 * plan.tiles * planes(request.precision) * kTileRows * row_words;
      sweep.words = static_cast<uint64_t*>(q.take(word_bytes));
    }
  }

  void launch() {
    if (sweep.words) q.zero(sweep.words, word_bytes);  // no step's tag
    LaunchShape shape{plan.teams * l.directions * plan.blocks, plan.threads, plan.shared_bytes};
    shape.cluster = plan.regime == Regime::kCluster ? plan.blocks : 1;
    shape.cooperative = plan.regime == Regime::kGrid;
    q.launch(kernel, shape, sweep);
  }
};

void sweep_forward(const Forward& f, const Plan& plan, const Choice& choice, const Lengths& lengths, Queue& q) {
  const Layer& l = f.layer;
  Sweeper s(l, Pass::kForward, plan, choice, lengths, q);
  const void* bias = make_bias(l, q);
  s.sweep.write_output = f.output[0].data != nullptr;
  float* carried[2] = {q.take_of<float>(l.directions * 2 * l.B * l.H), q.take_of<float>(l.directions * 2 * l.B * l.H)};
  for (int d = 0; d < l.directions; ++d) {
    SweepDirection& io = s.sweep.direction[d];
    io.bias = static_cast<const float*>(bias_of(bias, l, d));
    io.saved = track_of(f.saved[d]);
    io.output = track_of(f.output[d]);
    io.h_n = f.h_n[d];
    io.c_n = f.c_n[d];
  }
  for_chunks(f, plan.padded, choice, q, [&](const Chunk& chunk) {
    for (int d = 0; d < l.directions; ++d) {
      SweepDirection& io = s.sweep.direction[d];
      io.projected = track_of(chunk.projected[d]);
      io.begin = static_cast<int>(chunk.begin[d]);
      io.end = static_cast<int>(chunk.end[d]);
    }
    s.sweep.first = chunk.first;
    s.sweep.last = chunk.last;
    s.sweep.carried_in = carried[0];
    s.sweep.carried_out = carried[1];
    std::swap(carried[0], carried[1]);
    s.launch();
  });
}

void sweep_backward(const Backward& b, const Plan& plan, const Choice& choice, const Lengths& lengths, Queue& q) {
  Sweeper s(b.layer, Pass::kBackward, plan, choice, lengths, q);
  for (int d = 0; d < b.layer.directions; ++d) {
    SweepDirection& io = s.sweep.direction[d];
    io.saved = track_of(b.saved[d]);
    io.output = track_of(b.output[d]);
    io.d_output = track_of(b.layer, b.d_output[d], b.layer.H, b.layer.T, q);
    io.d_h_n = b.d_h_n[d];
    io.d_c_n = b.d_c_n[d];
    io.d_gates = track_of(b.d_gates[d]);
    io.d_h0 = b.d_h0[d];
    io.d_c0 = b.d_c0[d];
  }
  s.launch();
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
  if (std::max({l.T, l.B, l.directions * l.T * l.H * size_of(l.dtype), 8 * l.directions * l.B * l.gates * l.H,
                5 * l.B * padded(l.H) * size_of(l.dtype)}) >= kFar / 2)
    why = "rows lie too far apart";
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

void run_forward(const Forward& f, const Choice& choice, Queue& q) {
  const Layer& l = f.layer;
  const Lengths lengths = order_batch(l, q);
  if (f.output[0].data && l.lengths && !l.packed_rows)  // steps beyond a row's length
    q.zero(f.output[0].data, l.T * l.B * l.directions * l.out() * size_of(l.dtype));
  const Plan plan = plan_layer(l, Pass::kForward, choice, q.limits());
  if (plan.regime == Regime::kStepwise)
    step_forward(f, choice, lengths, q);
  else
    sweep_forward(f, plan, choice, lengths, q);
}

void run_backward(const Backward& b, const Choice& choice, Queue& q) {
  const Layer& l = b.layer;
  const Lengths lengths = order_batch(l, q);
  const int64_t width = gates_width(l);
  if (l.lengths && !l.packed_rows) q.zero(b.d_gates[0].data, l.directions * l.T * l.B * width * size_of(l.dtype));
  const Plan plan = plan_layer(l, Pass::kBackward, choice, q.limits());
  if (plan.regime == Regime::kStepwise)
    step_backward(b, choice, lengths, q);
  else
    sweep_backward(b, plan, choice, lengths, q);
  if (b.d_x.data) input_grad(b, choice, q);
}

}  // namespace sf::cuda

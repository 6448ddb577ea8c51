// From a layer to launches: the plan, scratch, the products around the recurrence, and the recurrence itself. Host code
// over Queue alone, so that tests/simt runs all of it on the CPU.
#include <algorithm>
#include <functional>

#include "backend.h"
#include "kernels.h"
#include "prepare.cuh"
#include "stepwise.cuh"

namespace sf::cuda {
namespace {

constexpr int64_t kMostBlocks = 2048;
constexpr int64_t kMostOrdered = 65536;  // batch rows; ordering takes their square
constexpr int64_t kSumParts = 128;
constexpr int64_t kFar = int64_t{1} << 32;  // bytes that a Track cannot say

template <class Args>
void launch_over(Queue& queue, void (*kernel)(Args), int64_t count, const Args& args) {
  if (count <= 0) return;
  const auto blocks = static_cast<int>(std::min(ceil_div(count, kBlockThreads), kMostBlocks));
  queue.launch(kernel, LaunchShape{blocks, kBlockThreads}, args);
}

struct CellInfo {
  int gates, slots;
  int hidden_slot[4];
  bool has_c;
};
template <class Cell>
CellInfo info_of() {
  CellInfo info{Cell::kGates, Cell::kSlots, {}, Cell::kHasC};
  for (int g = 0; g < Cell::kGates; ++g) info.hidden_slot[g] = Cell::hidden_slot(g);
  return info;
}
template <class F>
auto with_cell(int cell, F&& f) {
  switch (cell) {
#define SF_CASE(name, Cell) \
  case kCell_##name:        \
    return f(Cell{});
    SF_CELLS(SF_CASE)
#undef SF_CASE
  }
  throw std::runtime_error("cell: expected an index of the list of cells");
}
template <class F>
auto with_math(Dtype dtype, F&& f) {  // of storage and sums; how products are formed does not matter to it
  switch (dtype) {
    case Dtype::kBFloat16:
      return f(Bf16{});
    case Dtype::kFloat16:
      return f(Fp16{});
    case Dtype::kFloat32:
      return f(Tf32x3{});
    default:
      return f(Float64{});
  }
}
template <class F>
auto with_both(const Layer& l, F&& f) {
  return with_cell(l.cell, [&](auto cell) { return with_math(l.dtype, [&](auto math) { return f(cell, math); }); });
}
CellInfo info_of(int cell) {
  return with_cell(cell, [](auto c) { return info_of<decltype(c)>(); });
}

Dtype compute_dtype(Dtype d) { return d == Dtype::kFloat64 ? d : Dtype::kFloat32; }
Precision precision_of(Dtype d, bool tf32) {
  if (d == Dtype::kBFloat16) return Precision::kBf16;
  if (d == Dtype::kFloat16) return Precision::kFp16;
  return tf32 ? Precision::kTf32 : Precision::kTf32x3;
}

// Rows of `width` side by side from `data`, by time or packed as in the layer.
Rows contiguous_rows(const void* data, Dtype dtype, const Layer& l, int64_t width) {
  Rows rows;
  rows.data = static_cast<char*>(const_cast<void*>(data));
  rows.dtype = dtype;
  rows.t_row = l.x.t_row;
  rows.t_stride = rows.t_row ? width : l.B * width;
  rows.b_stride = width;
  return rows;
}
enum class Order { kTime, kBatch };
int64_t row_count(const Layer& l) { return l.packed_rows ? l.packed_rows : l.T * l.B; }

// A layer's rows as the kernels take them: lengths within 0 .. T, and an order in which tiles are of about one length.
struct Lengths {
  const int64_t *lengths = nullptr, *order = nullptr;
};
Lengths order_batch(const Layer& l, Queue& q) {
  if (!l.lengths) return {};
  if (l.packed_rows) return {l.lengths, nullptr};  // made of batch_sizes, and in order
  auto* lengths = q.take_of<int64_t>(l.B);
  auto* order = q.take_of<int64_t>(l.B);
  const bool ordered = l.B <= kMostOrdered;
  launch_over(q, order_rows, l.B, {l.lengths, lengths, ordered ? order : nullptr, l.B, l.T});
  return {lengths, ordered ? order : nullptr};
}

// Rows of x, output or a gradient that a product can read: as they are if they lie side by side, by time or by batch
// row, or a copy by time. `masked`: a copy whose padding is zero, which a sum over rows needs.
struct ProductRows {
  const void* data;
  int64_t stride;
  Order order;
};
void gather(const Layer& l, const Rows& from, const Rows& first, int64_t shift, int64_t samples, int64_t width,
            const int64_t* lengths, void* to, Queue& q) {
  const GatherRows args{from, first, to, lengths, l.x.t_row, l.T, l.B, samples, width, shift};
  with_math(l.dtype,
            [&](auto math) { launch_over(q, gather_rows<typename decltype(math)::Storage>, l.T * l.B * width, args); });
}
ProductRows product_rows(const Layer& l, const Rows& rows, int64_t width, bool masked, Queue& q) {
  const auto far = [&](int64_t stride) { return stride >= width; };
  if (rows.stride == 1 && !masked) {
    if (l.packed_rows && far(rows.b_stride)) return {rows.data, rows.b_stride, Order::kTime};
    if (!l.packed_rows) {
      if (far(rows.b_stride) && (rows.t_stride == l.B * rows.b_stride || l.T == 1))
        return {rows.data, rows.b_stride, Order::kTime};
      if (far(rows.t_stride) && (rows.b_stride == l.T * rows.t_stride || l.B == 1))
        return {rows.data, rows.t_stride, Order::kBatch};
    }
  }
  void* copy = q.take(row_count(l) * width * size_of(l.dtype));
  gather(l, rows, {}, 0, 1, width, masked ? l.lengths : nullptr, copy, q);
  return {copy, width, Order::kTime};
}

// Steps begin .. end of x times W_ih^T, in the compute type, by time; each gate's units `gate_width` apart.
Rows project(const Layer& l, const ProductRows& x, int d, int64_t begin, int64_t end, int64_t gate_width,
             const Choice& choice, void* to, Queue& q) {
  const int64_t width = l.gates * gate_width, size = size_of(l.dtype);
  const int at_once = gate_width == l.H ? static_cast<int>(l.gates) : 1;
  Product p{};
  p.n = at_once * l.H;
  p.k = l.I;
  p.b_stride = l.I;
  p.b_transposed = true;
  p.in = l.dtype;
  p.out = compute_dtype(l.dtype);
  p.tf32 = choice.tf32;
  p.a_stride = x.stride;
  p.a = x.data;
  p.c_stride = width;
  if (l.packed_rows) {
    p.m = l.packed_rows;
  } else if (x.order == Order::kTime) {
    p.m = (end - begin) * l.B;
    p.a = static_cast<const char*>(x.data) + begin * l.B * x.stride * size;
  } else {
    p.m = end - begin;
    p.a = static_cast<const char*>(x.data) + begin * x.stride * size;
    p.c_stride = l.B * width;
    p.batch = l.B;
    p.a_batch = l.T * x.stride;
    p.c_batch = width;
  }
  for (int gate = 0; gate < l.gates; gate += at_once) {
    p.b = l.w_ih[d].data + gate * l.H * l.I * size;
    p.c = static_cast<char*>(to) + gate * gate_width * size_of(p.out);
    q.multiply(p);
  }
  return contiguous_rows(to, p.out, l, width);
}

// How many steps of the projected input are kept at a time.
int64_t chunk_steps(const Layer& l, int64_t gate_width, const Limits& limits) {
  if (l.packed_rows) return l.T;
  const int64_t step_bytes = l.directions * l.B * l.gates * gate_width * size_of(compute_dtype(l.dtype));
  return std::clamp<int64_t>(limits.projected_bytes / step_bytes, 1, l.T);
}

// Runs `f(chunk's projected input and steps, per direction; first; last)` over the sequence.
struct Chunk {
  Rows projected[kMaxDirections];
  int64_t begin[kMaxDirections], end[kMaxDirections];
  bool first, last;
};
void for_chunks(const Forward& f, int64_t gate_width, const Choice& choice, Queue& q,
                const std::function<void(const Chunk&)>& run) {
  const Layer& l = f.layer;
  const int64_t steps = chunk_steps(l, gate_width, q.limits());
  const ProductRows x = product_rows(l, l.x, l.I, false, q);
  const int64_t rows = l.packed_rows ? l.packed_rows : steps * l.B;
  void* buffers[kMaxDirections];
  for (int d = 0; d < l.directions; ++d)
    buffers[d] = q.take(rows * l.gates * gate_width * size_of(compute_dtype(l.dtype)));
  for (int64_t begin = 0; begin < l.T; begin += steps) {
    const int64_t end = std::min(begin + steps, l.T);
    Chunk chunk{};
    for (int d = 0; d < l.directions; ++d) {
      chunk.begin[d] = d ? l.T - end : begin;
      chunk.end[d] = d ? l.T - begin : end;
      chunk.projected[d] = project(l, x, d, chunk.begin[d], chunk.end[d], gate_width, choice, buffers[d], q);
    }
    chunk.first = begin == 0;
    chunk.last = end == l.T;
    run(chunk);
  }
}

const void* make_bias(const Layer& l, Queue& q) {
  return with_both(l, [&](auto cell, auto math) -> const void* {
    using Cell = decltype(cell);
    const int64_t count = l.directions * Cell::kSlots * l.H;
    void* to = q.take(count * size_of(compute_dtype(l.dtype)));
    launch_over(q, pack_bias<Cell, decltype(math)>, count,
                {{l.b_ih[0], l.b_ih[1]}, {l.b_hh[0], l.b_hh[1]}, to, l.directions, l.H});
    return to;
  });
}
const void* bias_of(const void* all, const Layer& l, int d) {
  return static_cast<const char*>(all) + d * info_of(l.cell).slots * l.H * size_of(compute_dtype(l.dtype));
}

// -- regimes with R on the chip

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
      io.projected.data -= chunk.begin[d] * io.projected.t_bytes;  // as if it began with step 0
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

// -- stepwise

Product step_product(const Layer& l, const Choice& choice) {
  Product p{};
  p.m = l.B;
  p.in = l.dtype;
  p.out = compute_dtype(l.dtype);
  p.tf32 = choice.tf32;
  return p;
}

Stepwise stepwise_of(const Layer& l, const Lengths& lengths) {
  Stepwise a{};
  a.B = l.B;
  a.H = l.H;
  a.P = l.P;
  a.T = l.T;
  a.slots = info_of(l.cell).slots;
  a.lengths = lengths.lengths;
  a.directions = l.directions;
  for (int d = 0; d < l.directions; ++d) {
    a.direction[d].h0 = l.h0[d];
    a.direction[d].c0 = l.c0[d];
  }
  return a;
}

void stepwise_forward_pass(const Forward& f, const Choice& choice, const Lengths& lengths, Queue& q) {
  const Layer& l = f.layer;
  const int64_t compute = size_of(compute_dtype(l.dtype)), storage = size_of(l.dtype);
  Stepwise a = stepwise_of(l, lengths);
  a.write_output = f.output[0].data != nullptr;
  const void* bias = make_bias(l, q);
  Product recurrent[kMaxDirections], projection[kMaxDirections];
  for (int d = 0; d < l.directions; ++d) {
    StepwiseDirection& io = a.direction[d];
    io.saved = f.saved[d];
    io.output = f.output[d];
    io.h_n = f.h_n[d];
    io.c_n = f.c_n[d];
    io.bias = bias_of(bias, l, d);
    void* products = q.take(l.B * l.gates * l.H * compute);
    io.products = products;
    io.h = q.take(l.B * l.out() * storage);
    io.state = q.take(l.B * l.H * compute);
    Product& p = recurrent[d] = step_product(l, choice);
    p.n = l.gates * l.H;
    p.k = l.out();
    p.a = io.h;
    p.a_stride = l.out();
    p.b = l.w_hh[d].data;
    p.b_stride = l.out();
    p.b_transposed = true;
    p.c = products;
    p.c_stride = p.n;
    if (!l.P) continue;
    io.unprojected = q.take(l.B * l.H * storage);
    io.projections = q.take(l.B * l.P * compute);
    Product& r = projection[d] = step_product(l, choice);
    r.n = l.P;
    r.k = l.H;
    r.a = io.unprojected;
    r.a_stride = l.H;
    r.b = l.w_hr[d].data;
    r.b_stride = l.H;
    r.b_transposed = true;
    r.c = io.projections;
    r.c_stride = l.P;
  }
  with_both(l, [&](auto cell, auto math) {
    using Cell = decltype(cell);
    using Math = decltype(math);
    const int64_t cells = l.directions * l.B * l.H;
    launch_over(q, stepwise_begin<Math>, cells, a);
    for_chunks(f, l.H, choice, q, [&](const Chunk& chunk) {
      for (int64_t s = 0; s < chunk.end[0] - chunk.begin[0]; ++s) {
        for (int d = 0; d < l.directions; ++d) {
          StepwiseDirection& io = a.direction[d];
          io.projected = chunk.projected[d];
          io.begin = chunk.begin[d];
          io.t = d ? chunk.end[d] - 1 - s : chunk.begin[d] + s;
          q.multiply(recurrent[d]);
        }
        launch_over(q, stepwise_forward<Cell, Math>, cells, a);
        if (!l.P) continue;
        for (int d = 0; d < l.directions; ++d) q.multiply(projection[d]);
        launch_over(q, stepwise_project<Math>, l.directions * l.B * l.P, a);
      }
    });
    launch_over(q, stepwise_end<Cell, Math>, cells, a);
  });
}

void stepwise_backward_pass(const Backward& b, const Choice& choice, const Lengths& lengths, Queue& q) {
  const Layer& l = b.layer;
  const int64_t compute = size_of(compute_dtype(l.dtype)), storage = size_of(l.dtype);
  Stepwise a = stepwise_of(l, lengths);
  Product recurrent[kMaxDirections], projection[kMaxDirections];
  for (int d = 0; d < l.directions; ++d) {
    StepwiseDirection& io = a.direction[d];
    io.saved = b.saved[d];
    io.output = b.output[d];
    io.d_output = b.d_output[d];
    io.d_h_n = b.d_h_n[d];
    io.d_c_n = b.d_c_n[d];
    io.d_gates = b.d_gates[d];
    io.d_h0 = b.d_h0[d];
    io.d_c0 = b.d_c0[d];
    io.h = q.take(l.B * l.gates * l.H * storage);
    io.state = q.take(l.B * l.out() * compute);
    io.carry = q.take(l.B * l.H * compute);
    Product& p = recurrent[d] = step_product(l, choice);
    p.n = l.out();
    p.k = l.gates * l.H;
    p.a = io.h;
    p.a_stride = p.k;
    p.b = l.w_hh[d].data;
    p.b_stride = l.out();
    p.c = q.take(l.B * l.out() * compute);
    p.c_stride = l.out();
    if (!l.P) continue;
    io.unprojected = q.take(l.B * l.P * storage);
    io.projections = q.take(l.B * l.H * compute);
    Product& r = projection[d] = step_product(l, choice);
    r.n = l.H;
    r.k = l.P;
    r.a = io.unprojected;
    r.a_stride = l.P;
    r.b = l.w_hr[d].data;
    r.b_stride = l.H;
    r.c = io.projections;
    r.c_stride = l.H;
  }
  with_both(l, [&](auto cell, auto math) {
    using Cell = decltype(cell);
    using Math = decltype(math);
    const int64_t cells = l.directions * l.B * l.H;
    launch_over(q, stepwise_begin_back<Math>, cells, a);
    for (int64_t s = 0; s < l.T; ++s) {
      for (int d = 0; d < l.directions; ++d) a.direction[d].t = d ? s : l.T - 1 - s;
      if (l.P) {
        launch_over(q, stepwise_project_back<Math>, l.directions * l.B * l.P, a);
        for (int d = 0; d < l.directions; ++d) q.multiply(projection[d]);
      }
      launch_over(q, stepwise_backward<Cell, Math>, cells, a);
      for (int d = 0; d < l.directions; ++d) {
        q.multiply(recurrent[d]);
        a.direction[d].products = recurrent[d].c;
      }
    }
    launch_over(q, stepwise_end_back<Cell, Math>, cells, a);
  });
}

}  // namespace

std::vector<std::string> regime_names() { return {std::begin(kRegimes), std::end(kRegimes)}; }

Choice choice_of(const std::string& impl) {
  Choice choice;
  std::string name = impl;
  const std::string suffix = "-tf32";
  if (name.size() > suffix.size() && name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0) {
    choice.tf32 = true;
    name.resize(name.size() - suffix.size());
  }
  if (name == "auto") return choice;
  choice.forced = true;
  for (int i = 0; i < 4; ++i) {
    choice.regime = static_cast<Regime>(i);
    if (name == kRegimes[i]) return choice;
  }
  throw std::runtime_error("impl: expected auto, onchip, cluster, grid or stepwise on CUDA but got '" + impl + "'");
}

Plan plan_layer(const Layer& l, Pass pass, const Choice& choice, const Limits& limits) {
  const char* why = nullptr;
  if (l.dtype == Dtype::kFloat64) why = "float64 has no kernel that keeps its weights on the chip";
  if (l.P) why = "projected states have no kernel that keeps its weights on the chip";
  if (std::max({l.T, l.B, l.directions * l.T * l.H * size_of(l.dtype), 8 * l.directions * l.B * l.gates * l.H}) >=
      kFar / 2)
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
    stepwise_forward_pass(f, choice, lengths, q);
  else
    sweep_forward(f, plan, choice, lengths, q);
}

void run_backward(const Backward& b, const Choice& choice, Queue& q) {
  const Layer& l = b.layer;
  const Lengths lengths = order_batch(l, q);
  const int64_t slots = info_of(l.cell).slots, width = slots * l.H + (l.P ? l.P + l.H : 0);
  if (l.lengths && !l.packed_rows) q.zero(b.d_gates[0].data, l.directions * l.T * l.B * width * size_of(l.dtype));
  const Plan plan = plan_layer(l, Pass::kBackward, choice, q.limits());
  if (plan.regime == Regime::kStepwise)
    stepwise_backward_pass(b, choice, lengths, q);
  else
    sweep_backward(b, plan, choice, lengths, q);
  if (!b.d_x.data) return;
  for (int d = 0; d < l.directions; ++d) {
    Product p{};
    p.n = l.I;
    p.k = l.gates * l.H;
    p.a = b.d_gates[d].data;
    p.a_stride = width;
    p.b = l.w_ih[d].data;
    p.b_stride = l.I;
    p.c = b.d_x.data;
    p.c_stride = l.I;
    p.in = p.out = l.dtype;
    p.accumulate = d > 0;
    p.tf32 = choice.tf32;
    p.m = row_count(l);
    if (!l.packed_rows && b.d_x.b_stride != l.I) {  // (B, T, I): row by row of the batch
      p.m = l.T;
      p.a_stride = l.B * width;
      p.batch = l.B;
      p.a_batch = width;
      p.c_batch = l.T * l.I;
    }
    q.multiply(p);
  }
}

void run_weight_grad(const WeightGrad& g, const Choice& choice, Queue& q) {
  const Layer& l = g.layer;
  const CellInfo info = info_of(l.cell);
  const int64_t width = info.slots * l.H + (l.P ? l.P + l.H : 0), rows = row_count(l), each = rows / g.samples;
  const int64_t size = size_of(l.dtype);
  const bool apart = g.samples > 1;
  const void* x = nullptr;
  int64_t x_stride = l.I;
  if (apart) {
    void* copy = q.take(rows * l.I * size);
    gather(l, l.x, {}, 0, g.samples, l.I, l.lengths, copy, q);
    x = copy;
  } else {
    ProductRows found = product_rows(l, l.x, l.I, l.lengths && !l.packed_rows, q);
    if (found.order == Order::kBatch && l.B > 1 && l.T > 1) {
      void* copy = q.take(rows * l.I * size);
      gather(l, l.x, {}, 0, 1, l.I, nullptr, copy, q);
      found = {copy, l.I, Order::kTime};
    }
    x = found.data;
    x_stride = found.stride;
  }
  for (int d = 0; d < l.directions; ++d) {
    void* before = q.take(rows * l.out() * size);  // the h that each step read
    gather(l, g.output[d], l.h0[d], d ? 1 : -1, g.samples, l.out(), l.lengths, before, q);
    const char* d_gates = g.d_gates[d].data;
    if (apart) {
      void* copy = q.take(rows * width * size);
      gather(l, g.d_gates[d], {}, 0, g.samples, width, nullptr, copy, q);
      d_gates = static_cast<const char*>(copy);
    }
    const auto product = [&](int64_t slot_column, int64_t m, const void* b, int64_t b_stride, int64_t n, char* c,
                             int64_t c_rows) {
      Product p{};
      p.m = m;
      p.n = n;
      p.k = each;
      p.a = d_gates + slot_column * size;
      p.a_stride = width;
      p.a_transposed = true;
      p.b = b;
      p.b_stride = b_stride;
      p.c = c;
      p.c_stride = n;
      p.in = p.out = l.dtype;
      p.tf32 = choice.tf32;
      p.batch = g.samples;
      p.a_batch = each * width;
      p.b_batch = each * b_stride;
      p.c_batch = c_rows * n;
      q.multiply(p);
    };
    const int64_t gate_rows = l.gates * l.H;
    product(0, gate_rows, x, x_stride, l.I, g.d_w_ih[d], gate_rows);
    for (int first = 0, next = 0; first < info.gates; first = next) {  // gates whose slots lie side by side
      while (++next < info.gates && info.hidden_slot[next] == info.hidden_slot[next - 1] + 1) continue;
      product(info.hidden_slot[first] * l.H, (next - first) * l.H, before, l.out(), l.out(),
              g.d_w_hh[d] + first * l.H * l.out() * size, gate_rows);
    }
    if (g.d_w_hr[d]) {
      const int64_t at = info.slots * l.H;
      product(at, l.P, d_gates + (at + l.P) * size, width, l.H, g.d_w_hr[d], l.P);
    }
    if (!g.d_b_ih[d]) continue;
    with_both(l, [&](auto cell, auto math) {
      using Math = decltype(math);
      using Compute = typename Math::Compute;
      const int64_t parts = std::min(kSumParts, each);
      const int64_t compute = static_cast<int64_t>(sizeof(Compute));
      const SumRows sums{d_gates,
                         q.take(g.samples * parts * width * compute),
                         q.take(g.samples * width * compute),
                         g.samples,
                         each,
                         width,
                         parts};
      launch_over(q, sum_parts<Math>, g.samples * parts * width, sums);
      launch_over(q, sum_of_parts<Compute>, g.samples * width, sums);
      launch_over(q, bias_grad<decltype(cell), Math>, g.samples * gate_rows,
                  {sums.to, g.d_b_ih[d], g.d_b_hh[d], g.samples, width, l.H});
    });
  }
}

}  // namespace sf::cuda

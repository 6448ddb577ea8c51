// Launches the stepwise regime: in every step a product with R for each direction, and a kernel for the cells of both
// directions. The kernels are in kernels/stepwise.cuh.
#include "host.h"
#include "../kernels/stepwise.cuh"

namespace sf::cuda {
namespace {

Product step_product(const Layer& l, const Choice& choice) {
  Product p{};
  p.m = l.B;
  p.in = l.dtype;
  p.out = compute_dtype(l.dtype);
  p.tf32 = choice.tf32;
  return p;
}

StepwiseArgs stepwise_of(const Layer& l, const Lengths& lengths) {
  StepwiseArgs a{};
  a.B = l.B;
  a.H = l.H;
  a.P = l.P;
  a.T = l.T;
  a.slots = kCells[l.cell].slots;
  a.lengths = lengths.lengths;
  a.directions = l.directions;
  for (int d = 0; d < l.directions; ++d) {
    a.direction[d].h0 = l.h0[d];
    a.direction[d].c0 = l.c0[d];
  }
  return a;
}

}  // namespace

void step_forward(const Forward& f, const Choice& choice, const Lengths& lengths, DeviceStream& stream) {
  const Layer& l = f.layer;
  const int64_t compute = size_of(compute_dtype(l.dtype)), storage = size_of(l.dtype);
  StepwiseArgs a = stepwise_of(l, lengths);
  a.write_output = f.output[0].data != nullptr;
  const void* bias = make_bias(l, stream);
  Product recurrent[kMaxDirections], projection[kMaxDirections];
  for (int d = 0; d < l.directions; ++d) {
    StepwiseDirectionArgs& io = a.direction[d];
    io.saved = f.saved[d];
    io.output = f.output[d];
    io.h_n = f.h_n[d];
    io.c_n = f.c_n[d];
    io.bias = bias_of(bias, l, d);
    void* products = stream.take(l.B * l.gates * l.H * compute);
    io.products = products;
    io.h = stream.take(l.B * l.out() * storage);
    io.state = stream.take(l.B * l.H * compute);
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
    io.unprojected = stream.take(l.B * l.H * storage);
    io.projections = stream.take(l.B * l.P * compute);
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
  with_cell_and_math(l, [&](auto cell, auto math) {
    using Cell = decltype(cell);
    using Math = decltype(math);
    const int64_t cells = l.directions * l.B * l.H;
    launch_over(stream, stepwise_begin<Math>, cells, a);
    for_chunks(f, l.H, choice, stream, [&](const Chunk& chunk) {
      int64_t steps = 0;  // the chunks of the two directions may differ by a few steps
      for (int d = 0; d < l.directions; ++d) steps = std::max(steps, chunk.end[d] - chunk.begin[d]);
      for (int64_t s = 0; s < steps; ++s) {
        for (int d = 0; d < l.directions; ++d) {
          StepwiseDirectionArgs& io = a.direction[d];
          io.projected = chunk.projected[d];
          const bool any = s < chunk.end[d] - chunk.begin[d];
          io.t = !any ? l.T : d ? chunk.end[d] - 1 - s : chunk.begin[d] + s;  // T: no row has this step
          stream.multiply(recurrent[d]);
        }
        launch_over(stream, stepwise_forward<Cell, Math>, cells, a);
        if (!l.P) continue;
        for (int d = 0; d < l.directions; ++d) stream.multiply(projection[d]);
        launch_over(stream, stepwise_project<Math>, l.directions * l.B * l.P, a);
      }
    });
    launch_over(stream, stepwise_end<Cell, Math>, cells, a);
  });
}

void step_backward(const Backward& b, const Choice& choice, const Lengths& lengths, DeviceStream& stream) {
  const Layer& l = b.layer;
  const int64_t compute = size_of(compute_dtype(l.dtype)), storage = size_of(l.dtype);
  StepwiseArgs a = stepwise_of(l, lengths);
  Product recurrent[kMaxDirections], projection[kMaxDirections];
  for (int d = 0; d < l.directions; ++d) {
    StepwiseDirectionArgs& io = a.direction[d];
    io.saved = b.saved[d];
    io.output = b.output[d];
    io.d_output = b.d_output[d];
    io.d_h_n = b.d_h_n[d];
    io.d_c_n = b.d_c_n[d];
    io.d_gates = b.d_gates[d];
    io.d_h0 = b.d_h0[d];
    io.d_c0 = b.d_c0[d];
    io.h = stream.take(l.B * l.gates * l.H * storage);
    io.state = stream.take(l.B * l.out() * compute);
    io.carry = stream.take(l.B * l.H * compute);
    Product& p = recurrent[d] = step_product(l, choice);
    p.n = l.out();
    p.k = l.gates * l.H;
    p.a = io.h;
    p.a_stride = p.k;
    p.b = l.w_hh[d].data;
    p.b_stride = l.out();
    p.c = stream.take(l.B * l.out() * compute);
    p.c_stride = l.out();
    if (!l.P) continue;
    io.unprojected = stream.take(l.B * l.P * storage);
    io.projections = stream.take(l.B * l.H * compute);
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
  with_cell_and_math(l, [&](auto cell, auto math) {
    using Cell = decltype(cell);
    using Math = decltype(math);
    const int64_t cells = l.directions * l.B * l.H;
    launch_over(stream, stepwise_begin_back<Math>, cells, a);
    for (int64_t s = 0; s < l.T; ++s) {
      for (int d = 0; d < l.directions; ++d) a.direction[d].t = d ? s : l.T - 1 - s;
      if (l.P) {
        launch_over(stream, stepwise_project_back<Math>, l.directions * l.B * l.P, a);
        for (int d = 0; d < l.directions; ++d) stream.multiply(projection[d]);
      }
      launch_over(stream, stepwise_backward<Cell, Math>, cells, a);
      for (int d = 0; d < l.directions; ++d) {
        stream.multiply(recurrent[d]);
        a.direction[d].products = recurrent[d].c;
      }
    }
    launch_over(stream, stepwise_end_back<Cell, Math>, cells, a);
  });
}

}  // namespace sf::cuda

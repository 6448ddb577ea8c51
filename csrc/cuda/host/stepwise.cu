// Launches the stepwise regime: in every step a product with R for each direction, and a kernel for the cells of both
// directions; for a cell whose product waits for r, two of each. The kernels are in kernels/stepwise*.cuh.
#include <type_traits>

#include "stepwise.h"
#include "../kernels/stepwise_norm.cuh"
#include "../kernels/stepwise_reset.cuh"

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

// The kernels of a cell's step. Where a product waits for r, that of gate n lies between a first kernel and the other.
template <class Cell>
struct StepwiseKernels {
  template <class Math>
  static void forward(DeviceStream& stream, bool options, int64_t cells, const StepwiseArgs& a) {
    constexpr bool kPlain = !OptionsOf<Cell>::kPeephole;
    options || !kPlain ? launch_over(stream, stepwise_forward<Cell, Math, true>, cells, a)
                       : launch_over(stream, stepwise_forward<Cell, Math, !kPlain>, cells, a);
  }
  template <class Math>
  static void backward(DeviceStream& stream, bool options, int64_t cells, const StepwiseArgs& a) {
    constexpr bool kPlain = !OptionsOf<Cell>::kPeephole;
    options || !kPlain ? launch_over(stream, stepwise_backward<Cell, Math, true>, cells, a)
                       : launch_over(stream, stepwise_backward<Cell, Math, !kPlain>, cells, a);
  }
};
template <class Base>
struct StepwiseKernels<Normed<Base>> {
  template <class Math>
  static void forward(DeviceStream& stream, bool, int64_t, const StepwiseArgs& a) {
    launch_rows<Math>(stream, norm_forward<Normed<Base>, Math>, a);
  }
  template <class Math>
  static void backward(DeviceStream& stream, bool, int64_t, const StepwiseArgs& a) {
    launch_rows<Math>(stream, norm_backward<Normed<Base>, Math>, a);
  }
};
template <>
struct StepwiseKernels<GruResetBefore> {
  template <class Math>
  static void first_forward(DeviceStream& stream, int64_t cells, const StepwiseArgs& a) {
    launch_over(stream, reset_before_operand<Math>, cells, a);
  }
  template <class Math>
  static void forward(DeviceStream& stream, bool, int64_t cells, const StepwiseArgs& a) {
    launch_over(stream, reset_before_forward<Math>, cells, a);
  }
  template <class Math>
  static void first_backward(DeviceStream& stream, int64_t cells, const StepwiseArgs& a) {
    launch_over(stream, reset_before_mixed_back<Math>, cells, a);
  }
  template <class Math>
  static void backward(DeviceStream& stream, bool, int64_t cells, const StepwiseArgs& a) {
    launch_over(stream, reset_before_backward<Math>, cells, a);
  }
};

// The product of gate n, for a cell whose product waits for r: of the rows of `io.second` with the gate's part of R.
Product second_product(const Layer& l, int d, bool transposed, StepwiseDirectionArgs& io, const Choice& choice,
                       DeviceStream& stream) {
  Product p = step_product(l, choice);
  p.n = p.k = p.a_stride = p.b_stride = p.c_stride = l.H;
  p.a = io.second = stream.take(l.B * l.H * size_of(l.dtype));
  p.b = l.w_hh[d].data + (l.gates - 1) * l.H * l.H * size_of(l.dtype);
  p.b_transposed = transposed;
  p.c = stream.take(l.B * l.H * size_of(compute_dtype(l.dtype)));
  io.second_products = p.c;
  return p;
}

}  // namespace

StepwiseArgs stepwise_of(const Layer& l, const Lengths& lengths) {
  const CellInfo& info = kCells[l.cell];
  StepwiseArgs a{};
  a.B = l.B;
  a.H = l.H;
  a.P = l.P;
  a.T = l.T;
  a.beyond_slots = (info.slots + info.resets_first) * l.H;
  a.sums_width = further_sums(info) * l.H;
  a.gate_width = l.H;
  a.lengths = lengths.lengths;
  a.resets = l.resets;
  a.noise = l.noise;
  a.saves_fresh_h = l.saves_fresh_h();
  a.directions = l.directions;
  for (int d = 0; d < l.directions; ++d) {
    a.direction[d].h0 = l.h0[d];
    a.direction[d].c0 = l.c0[d];
    a.direction[d].h_reset = l.h_reset[d];
    a.direction[d].c_reset = l.c_reset[d];
    for (int k = 0; k < info.further_count; ++k) a.direction[d].further[k] = l.further[k][d].data;
  }
  return a;
}

void step_forward(const Forward& f, const Choice& choice, const Lengths& lengths, DeviceStream& stream) {
  const Layer& l = f.layer;
  const int64_t compute = size_of(compute_dtype(l.dtype)), storage = size_of(l.dtype);
  StepwiseArgs a = stepwise_of(l, lengths);
  a.write_output = f.output[0].data != nullptr;
  const void* bias = make_bias(l, stream);
  const CellInfo& info = kCells[l.cell];
  const bool drops_state = l.noise.seed && l.noise.state > 0;
  Product recurrent[kMaxDirections], second[kMaxDirections], projection[kMaxDirections];
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
    io.h_state = drops_state ? stream.take(l.B * l.out() * storage) : io.h;
    io.state = stream.take(l.B * l.H * compute);
    if (info.norm) io.scratch = stream.take(l.B * l.gates * l.H * compute);
    if (info.resets_first) second[d] = second_product(l, d, true, io, choice, stream);
    Product& p = recurrent[d] = step_product(l, choice);
    p.n = (l.gates - info.resets_first) * l.H;
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
    using Kernels = StepwiseKernels<Cell>;
    const int64_t cells = l.directions * l.B * l.H;
    launch_over(stream, stepwise_begin<Math>, cells, a);
    for_chunks(f, l.H, choice, stream, [&](const Chunk& chunk) {
      if (info.norm) normalise_input(f, chunk, l.H, lengths, stream);
      int64_t steps = 0;  // the chunks of the two directions may differ by a few steps
      for (int d = 0; d < l.directions; ++d) steps = std::max(steps, chunk.end[d] - chunk.begin[d]);
      for (int64_t s = 0; s < steps; ++s) {
        for (int d = 0; d < l.directions; ++d) {
          StepwiseDirectionArgs& io = a.direction[d];
          io.projected = chunk.projected[d];
          const bool any = s < chunk.end[d] - chunk.begin[d];
          io.t = !any ? l.T : d ? chunk.end[d] - 1 - s : chunk.begin[d] + s;  // T: no row has this step
          io.end = io.t + 1;
          stream.multiply(recurrent[d]);
        }
        if constexpr (std::is_same_v<Cell, GruResetBefore>) {
          Kernels::template first_forward<Math>(stream, cells, a);
          for (int d = 0; d < l.directions; ++d) stream.multiply(second[d]);
        }
        Kernels::template forward<Math>(stream, l.noise.any(), cells, a);
        if (!l.P) continue;
        for (int d = 0; d < l.directions; ++d) stream.multiply(projection[d]);
        launch_over(stream, stepwise_project<Math>, l.directions * l.B * l.P, a);
      }
    });
    launch_over(stream, stepwise_end<Cell, Math>, cells, a);
  });
}

void step_backward(const Backward& b, const Choice& choice, const Lengths& lengths, const ResetCarries& carries,
                   const Norms& norms, DeviceStream& stream) {
  const Layer& l = b.layer;
  const int64_t compute = size_of(compute_dtype(l.dtype)), storage = size_of(l.dtype);
  StepwiseArgs a = stepwise_of(l, lengths);
  const CellInfo& info = kCells[l.cell];
  Product recurrent[kMaxDirections], second[kMaxDirections], projection[kMaxDirections];
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
    io.reset_h = carries.h[d];
    io.reset_c = carries.c[d];
    io.d_aside = norms.d_aside[d];
    io.c_statistics = norms.c_statistics[d];
    if (b.d_further[d].data && !info.norm) {
      io.sums = stream.take(l.B * a.sums_width * compute);
      stream.zero(io.sums, l.B * a.sums_width * compute);
    }
    if (info.norm || info.resets_first) io.scratch = stream.take(l.B * l.gates * l.H * compute);
    if (info.resets_first) second[d] = second_product(l, d, false, io, choice, stream);
    io.h = stream.take(l.B * l.gates * l.H * storage);
    io.state = stream.take(l.B * l.out() * compute);
    io.carry = stream.take(l.B * l.H * compute);
    Product& p = recurrent[d] = step_product(l, choice);
    p.n = l.out();
    p.k = (l.gates - info.resets_first) * l.H;
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
    using Kernels = StepwiseKernels<Cell>;
    const int64_t cells = l.directions * l.B * l.H;
    launch_over(stream, stepwise_begin_back<Math>, cells, a);
    for (int64_t s = 0; s < l.T; ++s) {
      for (int d = 0; d < l.directions; ++d) {
        a.direction[d].t = d ? s : l.T - 1 - s;
        a.direction[d].end = a.direction[d].t + 1;
      }
      if (l.P) {
        launch_over(stream, stepwise_project_back<Math>, l.directions * l.B * l.P, a);
        for (int d = 0; d < l.directions; ++d) stream.multiply(projection[d]);
      }
      if constexpr (std::is_same_v<Cell, GruResetBefore>) {
        Kernels::template first_backward<Math>(stream, cells, a);
        for (int d = 0; d < l.directions; ++d) stream.multiply(second[d]);
      }
      Kernels::template backward<Math>(stream, l.noise.any(), cells, a);
      for (int d = 0; d < l.directions; ++d) {
        stream.multiply(recurrent[d]);
        a.direction[d].products = recurrent[d].c;
      }
    }
    launch_over(stream, stepwise_end_back<Cell, Math>, cells, a);
    for (int d = 0; d < l.directions; ++d)
      if (a.direction[d].sums)
        launch_over(stream, stepwise_end_sums<Math>, l.B * a.sums_width,
                    {a.direction[d].sums, b.d_further[d], l.B, a.sums_width});
  });
}

}  // namespace sf::cuda

// Runs cases of arm.py on one implementation: `driver IMPL THREADS < cases > results`. A case is 13 numbers of 8 bytes,
// named below, then its arrays: lengths, x, weights, states and incoming gradients, as far as it has them. Its results
// are output, h_n and c_n, and the gradients of all inputs but ids, in the same order and dtype. Memory that kernels
// must write, and not read before, holds NaN.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../../csrc/core/cells.h"
#include "../../csrc/cpu/host/schedule.h"

using namespace sf;

namespace {

using Bytes = std::vector<char>;

Bytes read(int64_t size) {
  Bytes found(static_cast<size_t>(size));
  if (size && std::fread(found.data(), 1, found.size(), stdin) != found.size()) {
    std::fprintf(stderr, "expected %lld more bytes of a case\n", static_cast<long long>(size));
    std::exit(1);
  }
  return found;
}

struct Header {
  int64_t cell, dtype, D, T, B, I, H, P, bias, state, lengths, want_output, ids;
};

class Call {
 public:
  explicit Call(const Header& h) : s_(h), info_(kCells[h.cell]) {
    layer_.cell = static_cast<int>(h.cell);
    layer_.dtype = static_cast<Dtype>(h.dtype);
    layer_.directions = static_cast<int>(h.D);
    layer_.T = h.T, layer_.B = h.B, layer_.I = h.I, layer_.H = h.H, layer_.P = h.P;
    layer_.gates = info_.gates;
    rows_ = h.T * h.B;
    if (h.lengths) {
      lengths_ = read(h.B * 8);
      layer_.lengths = reinterpret_cast<const int64_t*>(lengths_.data());
    }
    x_ = read(rows_ * (h.ids ? 8 : h.I * size()));
    layer_.x = steps(x_, h.ids ? 1 : h.I, 0);
    if (h.ids) {
      layer_.ids = reinterpret_cast<const int64_t*>(x_.data());
      layer_.x.data = nullptr;
    }
    const int64_t gate_rows = layer_.gates * h.H, out = layer_.out();
    weights(layer_.w_ih, gate_rows, h.I);
    weights(layer_.w_hh, gate_rows, out);
    if (h.bias) weights(layer_.b_ih, gate_rows, 1), weights(layer_.b_hh, gate_rows, 1);
    if (h.P) weights(layer_.w_hr, h.P, h.H);
    if (h.state) {
      states(layer_.h0, out);
      if (info_.has_c) states(layer_.c0, h.H);
    }
  }
  Call(const Call&) = delete;  // the layer points to it

  void run(const Kernels& kernels) {
    const int64_t out = layer_.out(), D = s_.D;
    // The incoming gradients follow the inputs.
    Bytes d_output = s_.want_output ? read(rows_ * D * out * size()) : Bytes{};
    Bytes d_h_n = read(D * s_.B * out * size()), d_c_n = info_.has_c ? read(D * s_.B * s_.H * size()) : Bytes{};

    const bool wide = layer_.dtype == Dtype::kFloat64;
    const Dtype sums = wide ? Dtype::kFloat64 : Dtype::kFloat32, of_gates = kernels.gates_dtype(layer_);
    const bool rounded = s_.bias && of_gates != sums;  // then the backward sums the biases' gradients
    const int64_t saved_width = info_.saved * padded(s_.H);
    const int64_t gates_width = info_.slots * s_.H + (s_.P ? s_.P + s_.H : 0);
    Bytes output = poisoned(rows_ * D * out * size()), h_n = poisoned(D * s_.B * out * size()),
          c_n = poisoned(info_.has_c ? D * s_.B * s_.H * size() : 0),
          saved = poisoned(D * rows_ * saved_width * size_of(sums)),
          d_gates = poisoned(D * rows_ * gates_width * size_of(of_gates)),
          bias_sums = poisoned(D * s_.B * info_.slots * s_.H * size_of(sums));
    Forward forward{};
    forward.layer = layer_;
    forward.training = true;
    Backward backward{};
    backward.layer = layer_;
    WeightGrad grad{};
    grad.layer = layer_;
    grad.samples = 1;
    // The gradients of x, weights and states, in the order in which they were read.
    std::vector<Bytes> gradients;
    gradients.reserve(16);
    const auto gradient = [&](int64_t count) {
      gradients.push_back(poisoned(count * size()));
      return gradients.back().data();
    };
    if (!s_.ids) {
      backward.d_x = layer_.x;
      backward.d_x.data = gradient(rows_ * s_.I);
    }
    const auto each = [&](char*(&to)[kMaxDirections], int64_t count) {
      for (int d = 0; d < D; ++d) to[d] = gradient(count);
    };
    const int64_t gate_rows = layer_.gates * s_.H;
    each(grad.d_w_ih, gate_rows * s_.I);
    each(grad.d_w_hh, gate_rows * out);
    char *d_b_ih[kMaxDirections] = {}, *d_b_hh[kMaxDirections] = {};
    if (s_.bias) each(d_b_ih, gate_rows), each(d_b_hh, gate_rows);
    if (s_.P) each(grad.d_w_hr, s_.P * s_.H);
    char* const d_h0 = s_.state ? gradient(D * s_.B * out) : nullptr;
    char* const d_c0 = s_.state && info_.has_c ? gradient(D * s_.B * s_.H) : nullptr;
    for (int d = 0; d < D; ++d) {
      forward.output[d] = backward.output[d] = grad.output[d] = steps(output, D * out, d * out);
      forward.h_n[d] = state(h_n.data(), out, d);
      if (info_.has_c) forward.c_n[d] = state(c_n.data(), s_.H, d);
      forward.saved[d] = backward.saved[d] = buffer(saved, sums, saved_width, d);
      backward.d_gates[d] = grad.d_gates[d] = buffer(d_gates, of_gates, gates_width, d);
      if (rounded) {
        const int64_t width = info_.slots * s_.H;
        backward.d_bias[d] = {bias_sums.data() + d * s_.B * width * size_of(sums), sums, 0, width, 1, nullptr};
      } else {
        grad.d_b_ih[d] = d_b_ih[d], grad.d_b_hh[d] = d_b_hh[d];
      }
      if (s_.want_output) backward.d_output[d] = steps(d_output, D * out, d * out);
      backward.d_h_n[d] = state(d_h_n.data(), out, d);
      if (info_.has_c) backward.d_c_n[d] = state(d_c_n.data(), s_.H, d);
      if (d_h0) backward.d_h0[d] = state(d_h0, out, d);
      if (d_c0) backward.d_c0[d] = state(d_c0, s_.H, d);
    }
    run_forward(kernels, forward);
    run_backward(kernels, backward);
    run_weight_grad(kernels, grad);
    for (int d = 0; d < D && rounded; ++d) {
      const auto add_up = [&](int slot, char* to, int gate) {
        const Rows& from = backward.d_bias[d];
        run_sum_rows(kernels, {sums, layer_.dtype, from.data + slot * s_.H * size_of(sums), to + gate * s_.H * size(),
                               1, s_.B, s_.H, from.b_stride, 0});
      };
      for (int gate = 0; gate < info_.gates; ++gate)
        add_up(gate, d_b_ih[d], gate), add_up(info_.hidden_slot[gate], d_b_hh[d], gate);
    }
    if (s_.ids)  // the kernels write the gradient of w_ih transposed
      for (int64_t d = 0; d < D; ++d) transpose(gradients[static_cast<size_t>(d)], s_.I, gate_rows);
    if (s_.want_output) write(output);
    write(h_n);
    write(c_n);
    for (const Bytes& each_gradient : gradients) write(each_gradient);
  }

 private:
  int64_t size() const { return size_of(layer_.dtype); }
  static Bytes poisoned(int64_t count) { return Bytes(static_cast<size_t>(count), '\xff'); }
  static void write(const Bytes& of) { std::fwrite(of.data(), 1, of.size(), stdout); }

  void weights(Matrix (&to)[kMaxDirections], int64_t rows, int64_t columns) {
    for (int d = 0; d < s_.D; ++d) {
      kept_.push_back(read(rows * columns * size()));
      to[d] = {kept_.back().data(), rows, columns, columns, 1};
    }
  }
  void states(Rows (&to)[kMaxDirections], int64_t width) {
    kept_.push_back(read(s_.D * s_.B * width * size()));
    for (int d = 0; d < s_.D; ++d) to[d] = state(kept_.back().data(), width, d);
  }
  Rows state(char* data, int64_t width, int d) const {
    return {data + d * s_.B * width * size(), layer_.dtype, 0, width, 1, nullptr};
  }
  Rows steps(Bytes& of, int64_t width, int64_t column) const {
    return {of.data() + column * size(), layer_.dtype, s_.B * width, width, 1, nullptr};
  }
  Rows buffer(Bytes& of, Dtype dtype, int64_t width, int d) const {
    return {of.data() + d * rows_ * width * size_of(dtype), dtype, s_.B * width, width, 1, nullptr};
  }
  void transpose(Bytes& matrix, int64_t rows, int64_t columns) const {
    const Bytes from = matrix;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j)
        std::memcpy(matrix.data() + (j * rows + i) * size(), from.data() + (i * columns + j) * size(),
                    static_cast<size_t>(size()));
  }

  const Header s_;
  const CellInfo& info_;
  Layer layer_{};
  int64_t rows_;
  Bytes lengths_, x_;
  std::vector<Bytes> kept_;
};

}  // namespace

int main(int, char** argv) {
  torch::stable::asked = torch::stable::granted = static_cast<uint32_t>(std::atoi(argv[2]));
  const Kernels& kernels = kernels_for(argv[1]);
  Header header;
  while (std::fread(&header, sizeof header, 1, stdin) == 1) Call(header).run(kernels);
}

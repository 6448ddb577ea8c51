// A layer with its weights and inputs in plain memory, and calls of the CPU backend with it, for driver.cpp.
#pragma once

#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "../../csrc/core/cells.h"
#include "../../csrc/cpu/host/backend.h"

using namespace sf;
using Numbers = std::vector<float>;

struct Sizes {
  int cell, directions;
  int64_t T, B, I, H;
  bool ids = false, ragged = false;
};

inline Numbers random_numbers(int64_t count, unsigned seed, float scale = 1) {
  std::minstd_rand draw(seed + 1);
  Numbers found(static_cast<size_t>(count));
  for (float& value : found) value = scale * (static_cast<float>(draw() % 2001) / 1000 - 1);
  return found;
}

struct Weights {
  Numbers w_ih[kMaxDirections], w_hh[kMaxDirections], b_ih[kMaxDirections], b_hh[kMaxDirections];

  Weights(const Sizes& s, unsigned seed) {
    const int64_t rows = kCells[s.cell].gates * s.H;
    for (int d = 0; d < s.directions; ++d) {
      w_ih[d] = random_numbers(rows * s.I, seed++, 0.1F);
      w_hh[d] = random_numbers(rows * s.H, seed++, 0.1F);
      b_ih[d] = random_numbers(rows, seed++);
      b_hh[d] = random_numbers(rows, seed++);
    }
  }
};

// One caller's input and results. Several of them may use the same weights at the same time.
class Call {
 public:
  Call(const Sizes& sizes, const Weights& weights) : s_(sizes), info_(kCells[sizes.cell]) {
    layer_.cell = s_.cell;
    layer_.dtype = Dtype::kFloat32;
    layer_.directions = s_.directions;
    layer_.T = s_.T, layer_.B = s_.B, layer_.I = s_.I, layer_.H = s_.H, layer_.P = 0;
    layer_.gates = info_.gates;
    const int64_t rows = layer_.gates * s_.H;
    for (int d = 0; d < s_.directions; ++d) {
      layer_.w_ih[d] = matrix(weights.w_ih[d], rows, s_.I);
      layer_.w_hh[d] = matrix(weights.w_hh[d], rows, s_.H);
      layer_.b_ih[d] = matrix(weights.b_ih[d], rows, 1);
      layer_.b_hh[d] = matrix(weights.b_hh[d], rows, 1);
    }
    for (int64_t b = 0; b < s_.B; ++b) lengths_.push_back(1 + (b * 7 + 3) % s_.T);
    if (s_.ragged) layer_.lengths = lengths_.data();
    const int64_t width = s_.ids ? 1 : s_.I;
    layer_.x.t_stride = s_.B * width;
    layer_.x.b_stride = width;
    for (int64_t i = 0; i < s_.T * s_.B; ++i) ids_.push_back(i * 5 % s_.I);
    if (s_.ids) {
      layer_.ids = ids_.data();
    } else {
      x_ = random_numbers(s_.T * s_.B * s_.I, 99);
      layer_.x.data = bytes(x_);
    }
  }
  Call(const Call&) = delete;  // the layer points to it

  // The last states and the outputs. With `training`, what backward() reads is saved.
  Numbers forward(bool training, const Kernels& kernels = kernels_for("auto")) {
    Forward call{};
    call.layer = layer_;
    call.training = training;
    const int64_t rows = s_.T * s_.B, states = s_.directions * s_.B * s_.H, width = info_.saved * padded(s_.H);
    Numbers results(static_cast<size_t>(2 * states + s_.directions * rows * s_.H));
    saved_.assign(static_cast<size_t>(training ? s_.directions * rows * width : 0), 0);
    for (int d = 0; d < s_.directions; ++d) {
      call.h_n[d] = state(results.data() + d * s_.B * s_.H);
      if (info_.has_c) call.c_n[d] = state(results.data() + states + d * s_.B * s_.H);
      call.output[d] = output(results.data() + 2 * states, d);
      if (training) call.saved[d] = buffer(saved_, d, width);
    }
    run_forward(kernels, call);
    output_.assign(results.begin() + 2 * states, results.end());
    return results;
  }

  // The gradients of the input and of the weights, for gradients of 1 of every output.
  Numbers backward() {
    Backward call{};
    call.layer = layer_;
    const int64_t rows = s_.T * s_.B, gate_rows = layer_.gates * s_.H, width = info_.slots * s_.H;
    const Numbers ones(output_.size(), 1.0F);
    Numbers gates(static_cast<size_t>(s_.directions * rows * width));
    Numbers results(static_cast<size_t>(rows * s_.I + s_.directions * gate_rows * (s_.I + s_.H + 2)));
    if (!s_.ids) {
      call.d_x = layer_.x;
      call.d_x.data = bytes(results);
    }
    WeightGrad grad{};
    grad.layer = layer_;
    grad.samples = 1;
    char* next = bytes(results) + rows * s_.I * int64_t{sizeof(float)};
    const auto take = [&](int64_t count) { return std::exchange(next, next + count * int64_t{sizeof(float)}); };
    for (int d = 0; d < s_.directions; ++d) {
      grad.output[d] = call.output[d] = output(output_.data(), d);
      call.d_output[d] = output(const_cast<float*>(ones.data()), d);
      call.saved[d] = buffer(saved_, d, info_.saved * padded(s_.H));
      grad.d_gates[d] = call.d_gates[d] = buffer(gates, d, width);
      grad.d_w_ih[d] = take(gate_rows * s_.I);
      grad.d_w_hh[d] = take(gate_rows * s_.H);
      grad.d_b_ih[d] = take(gate_rows);
      grad.d_b_hh[d] = take(gate_rows);
    }
    run_backward(kernels_for("auto"), call);
    run_weight_grad(kernels_for("auto"), grad);
    return results;
  }

 private:
  static char* bytes(const Numbers& of) { return reinterpret_cast<char*>(const_cast<float*>(of.data())); }
  static Matrix matrix(const Numbers& of, int64_t rows, int64_t columns) {
    return {bytes(of), rows, columns, columns, 1};
  }
  Rows state(float* data) const { return {reinterpret_cast<char*>(data), Dtype::kFloat32, 0, s_.H, 1, nullptr}; }
  Rows output(float* data, int d) const {
    const int64_t width = s_.directions * s_.H;
    return {reinterpret_cast<char*>(data + d * s_.H), Dtype::kFloat32, s_.B * width, width, 1, nullptr};
  }
  Rows buffer(const Numbers& of, int d, int64_t width) const {
    char* data = bytes(of) + d * s_.T * s_.B * width * int64_t{sizeof(float)};
    return {data, Dtype::kFloat32, s_.B * width, width, 1, nullptr};
  }

  const Sizes s_;
  const CellInfo& info_;
  Layer layer_{};
  Numbers x_, saved_, output_;
  std::vector<int64_t> lengths_, ids_;
};

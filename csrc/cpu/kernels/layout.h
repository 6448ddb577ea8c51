// Where the packed weights of one direction of a layer lie, and how they are packed: `end` is their size in bytes.
#pragma once

#include "kernel_table.h"
#include "pack.h"

namespace sf {
namespace {

constexpr int64_t round_up(int64_t bytes) { return (bytes + 63) / 64 * 64; }

template <class F>
typename F::E* elements(char* p) {
  return reinterpret_cast<typename F::E*>(p);
}

template <class F, class Cell>
struct ForwardLayout {
  int64_t w_ih = 0, w_hh, bias, w_hr, end;

  explicit ForwardLayout(const Layer& l) {
    constexpr int64_t kE = sizeof(typename F::E);
    w_hh = w_ih + round_up(packed_size<F>(input_weights<Cell>(l, 0)) * kE);
    bias = w_hh + round_up(packed_size<F>(hidden_weights<Cell>(l, 0)) * kE);
    w_hr = bias + round_up(blocks_of<F>(l.H) * Cell::kSlots * F::kLanes * static_cast<int64_t>(sizeof(typename F::A)));
    end = w_hr + (l.P ? round_up(packed_size<F>(projection(l, 0)) * kE) : 0);
  }
  void pack_all(const Layer& layer, int d, char* to) const {
    pack<F>(input_weights<Cell>(layer, d), elements<F>(to + w_ih));
    pack<F>(hidden_weights<Cell>(layer, d), elements<F>(to + w_hh));
    pack_bias<F, Cell>(layer, d, reinterpret_cast<typename F::A*>(to + bias));
    if (layer.P) pack<F>(projection(layer, d), elements<F>(to + w_hr));
  }
  PackedForward packed(const char* p) const { return {p + w_ih, p + w_hh, p + bias, p + w_hr}; }
};

template <class F, class Cell>
struct BackwardLayout {
  int64_t w_ih = 0, w_hh, w_hr, end;

  explicit BackwardLayout(const Layer& l) {
    constexpr int64_t kE = sizeof(typename F::E);
    w_hh = w_ih + round_up(packed_size<F>(input_weights_back<Cell>(l, 0)) * kE);
    w_hr = w_hh + round_up(packed_size<F>(hidden_weights_back<Cell>(l, 0)) * kE);
    end = w_hr + (l.P ? round_up(packed_size<F>(projection_back(l, 0)) * kE) : 0);
  }
  void pack_some(const Layer& layer, int d, char* to, bool with_w_ih, bool others) const {
    if (with_w_ih) pack<F>(input_weights_back<Cell>(layer, d), elements<F>(to + w_ih));
    if (!others) return;
    pack<F>(hidden_weights_back<Cell>(layer, d), elements<F>(to + w_hh));
    if (layer.P) pack<F>(projection_back(layer, d), elements<F>(to + w_hr));
  }
  PackedBackward packed(const char* p) const { return {p + w_ih, p + w_hh, p + w_hr}; }
};

}  // namespace
}  // namespace sf

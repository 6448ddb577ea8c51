// The gate math of every cell, forward and backward, once, for any value type V.
// A cell has kGates gates in torch's order and kSlots accumulators: slot g sums what the input gives to gate g, slot
// hidden_slot(g) what the state gives. They are the same slot but for GRU's n, whose two sums meet only after r scales
// one. The gradient of the slots has the same layout, so schedulers move slots about and never mention a gate.
#pragma once

#include "activations.h"
#include "cell_list.h"

namespace sf {

// In:  a[kSlots] slot sums, h and c the previous states.   Out: h and c the next states, saved[kSaved].
// Backward in: saved, the states after (h) and before (h_prev, c_prev) the step, dh = d(loss)/dh, carry from the next
// step.   Out: d[kSlots], and carry for the previous step, all of it but the recurrent product d * W_hh.
template <class Activation>
struct Elman {
  static constexpr int kGates = 1, kSlots = 1, kSaved = 0;
  static constexpr bool kHasC = false, kReadsH = true, kReadsHPrev = false, kCarriesH = false;
  static constexpr int hidden_slot(int) { return 0; }

  template <class V>
  static SF_FN void forward(const V* a, V& h, V&, V*) {
    h = Activation::value(a[0]);
  }
  template <class V>
  static SF_FN void backward(const V*, V h, V, V, V dh, V&, V* d) {
    d[0] = dh * Activation::slope(h);
  }
};

struct TanhActivation {
  template <class V>
  static SF_FN V value(V x) {
    return tanh(x);
  }
  template <class V>
  static SF_FN V slope(V y) {
    return fma(-y, y, V{} + 1);
  }
};

struct ReluActivation {
  template <class V>
  static SF_FN V value(V x) {
    return max0(x);
  }
  template <class V>
  static SF_FN V slope(V y) {
    return above0(y);
  }
};

using RnnTanh = Elman<TanhActivation>;
using RnnRelu = Elman<ReluActivation>;

struct Gru {  // gates r z n; slots r z n_input n_hidden; saved r z n n_hidden
  static constexpr int kGates = 3, kSlots = 4, kSaved = 4;
  static constexpr bool kHasC = false, kReadsH = false, kReadsHPrev = true, kCarriesH = true;
  static constexpr int hidden_slot(int gate) { return gate == 2 ? 3 : gate; }

  template <class V>
  static SF_FN void forward(const V* a, V& h, V&, V* saved) {
    const V r = sigmoid(a[0]), z = sigmoid(a[1]), n = tanh(fma(r, a[3], a[2]));
    saved[0] = r, saved[1] = z, saved[2] = n, saved[3] = a[3];
    h = fma(z, h - n, n);
  }
  template <class V>
  static SF_FN void backward(const V* saved, V, V h_prev, V, V dh, V& carry, V* d) {
    const V r = saved[0], z = saved[1], n = saved[2];
    dh += carry;
    d[1] = dh * (h_prev - n) * fma(-z, z, z);
    d[2] = dh * (1 - z) * fma(-n, n, V{} + 1);
    d[0] = d[2] * saved[3] * fma(-r, r, r);
    d[3] = d[2] * r;
    carry = dh * z;
  }
};

struct Lstm {  // gates and slots i f g o; saved i f g o c, the last always c
  static constexpr int kGates = 4, kSlots = 4, kSaved = 5;
  static constexpr bool kHasC = true, kReadsH = false, kReadsHPrev = false, kCarriesH = false;
  static constexpr int hidden_slot(int gate) { return gate; }

  template <class V>
  static SF_FN V output(V o, V c) {
    return o * tanh(c);
  }
  template <class V>
  static SF_FN V unprojected(const V* saved) {
    return output(saved[3], saved[4]);
  }

  template <class V>
  static SF_FN void forward(const V* a, V& h, V& c, V* saved) {
    const V i = sigmoid(a[0]), f = sigmoid(a[1]), g = tanh(a[2]), o = sigmoid(a[3]);
    c = fma(f, c, i * g);
    h = output(o, c);
    saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = o, saved[4] = c;
  }
  template <class V>
  static SF_FN void backward(const V* saved, V, V, V c_prev, V dh, V& carry, V* d) {
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3], tanh_c = tanh(saved[4]);
    const V dc = fma(dh * o, fma(-tanh_c, tanh_c, V{} + 1), carry);
    d[0] = dc * g * fma(-i, i, i);
    d[1] = dc * c_prev * fma(-f, f, f);
    d[2] = dc * i * fma(-g, g, V{} + 1);
    d[3] = dh * tanh_c * fma(-o, o, o);
    carry = dc * f;
  }
};

}  // namespace sf

// The formulas of every cell, forward and backward, written once for any value type V, and the table of cells.
// A cell has kGates gates in torch's order and kSlots sums, called slots: slot g sums the input's part of gate g, slot
// hidden_slot(g) the state's part. The two are one slot except for GRU's gate n, where r scales the state's part before
// the two are added. Gradients of slots have the same layout. The rest of the code moves slots and knows no gate.
#pragma once

#include "activations.h"
#include "types.h"

namespace sf {

// A cell is a struct with these members:
//   kGates       gates: w_ih and w_hh have kGates * H rows
//   kSlots       sums, see above
//   kSaved       values that training keeps for the backward pass, per unit and step: none or four, five with kHasC
//   kActivations how many sigmoid and tanh one unit and step takes, {forward, backward}
//   kHasC        there is a second state c besides h. Then five values are saved, the last of which is c, and h may be
//                projected: unprojected(saved) is h before the projection
//   kReadsH      backward() reads h
//   kReadsHPrev  forward() reads the previous h, and backward() h_prev
//   kCarriesH    carry is a part of the gradient of the previous h; with kHasC it is the gradient of the previous c
//   forward      takes the sums a[kSlots] and the previous states in h and c; leaves the next states there, and
//                saved[kSaved]
//   backward     takes saved, the states after (h) and before (h_prev, c_prev) the step, dh = d(loss) / dh, and the
//                carry of the next step; returns the gradients d[kSlots] and the carry for the previous step. The
//                caller adds the product d * W_hh to the gradient of the previous h.
template <class Activation>
struct Elman {
  static constexpr int kGates = 1, kSlots = 1, kSaved = 0, kActivations[] = {Activation::kCount, 0};
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
  static constexpr int kCount = 1;
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
  static constexpr int kCount = 0;
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
  static constexpr int kGates = 3, kSlots = 4, kSaved = 4, kActivations[] = {3, 0};
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

struct Lstm {  // gates and slots i f g o; saved i f g o c
  static constexpr int kGates = 4, kSlots = 4, kSaved = 5, kActivations[] = {5, 1};
  static constexpr bool kHasC = true, kReadsH = false, kReadsHPrev = false, kCarriesH = false;
  static constexpr int hidden_slot(int gate) { return gate; }

  template <class V>
  static SF_FN V output(V o, V c) {
    return o * tanh(c);
  }
  template <class V>
  static SF_FN V unprojected(const V* saved) {  // h before the projection
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

// The list of cells: a name for users and a type. All code that chooses a cell by its index is made from this list.
#define SF_CELLS(X)    \
  X(rnn_tanh, RnnTanh) \
  X(rnn_relu, RnnRelu) \
  X(gru, Gru)          \
  X(lstm, Lstm)

enum CellIndex {
#define SF_INDEX(name, Type) kCell_##name,
  SF_CELLS(SF_INDEX)
#undef SF_INDEX
};

// The table of cells: their constants by index. Python reads it as seqcls_fast._C.cells().
constexpr int kMostGates = 4;
struct CellInfo {
  const char* name;
  int gates, slots, saved;
  bool has_c;
  int hidden_slot[kMostGates];
  int activations[2];  // forward, backward
};

template <class Cell>
constexpr CellInfo cell_info(const char* name) {
  static_assert(Cell::kGates <= kMostGates, "kGates: at most kMostGates");
  static_assert(Cell::kHasC ? Cell::kSaved == 5 : Cell::kSaved == 0 || Cell::kSaved == 4,
                "kSaved: five with kHasC, else none or four, which is how the CUDA kernels store them");
  CellInfo info{
      name, Cell::kGates, Cell::kSlots, Cell::kSaved, Cell::kHasC, {}, {Cell::kActivations[0], Cell::kActivations[1]}};
  for (int gate = 0; gate < Cell::kGates; ++gate) info.hidden_slot[gate] = Cell::hidden_slot(gate);
  return info;
}

constexpr CellInfo kCells[] = {
#define SF_ROW(name, Type) cell_info<Type>(#name),
    SF_CELLS(SF_ROW)
#undef SF_ROW
};
constexpr const char* kCellNames[] = {
#define SF_NAME(name, Type) #name,
    SF_CELLS(SF_NAME)
#undef SF_NAME
};

}  // namespace sf

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
// Both take an object that says what the options of a layer add to a unit: NoOptions, or UnitOptions below.
struct NoOptions {
  template <class V>
  SF_FN V candidate(V v) const {
    return v;
  }
  template <class V>
  SF_FN V see_c(int, V sum, V) const {
    return sum;
  }
  template <class V>
  SF_FN V add_seen(int, V, V d_c) const {
    return d_c;
  }
};

template <class Activation>
struct Elman {
  static constexpr int kGates = 1, kSlots = 1, kSaved = 0, kActivations[] = {Activation::kCount, 0};
  static constexpr bool kHasC = false, kReadsH = true, kReadsHPrev = false, kCarriesH = false;
  static constexpr int hidden_slot(int) { return 0; }

  template <class V, class O = NoOptions>
  static SF_FN void forward(const V* a, V& h, V&, V*, const O& = {}) {
    h = Activation::value(a[0]);
  }
  template <class V, class O = NoOptions>
  static SF_FN void backward(const V*, V h, V, V, V dh, V&, V* d, const O& = {}) {
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

  template <class V, class O = NoOptions>
  static SF_FN void forward(const V* a, V& h, V&, V* saved, const O& options = {}) {
    const V r = sigmoid(a[0]), z = sigmoid(a[1]), n = tanh(fma(r, a[3], a[2]));
    saved[0] = r, saved[1] = z, saved[2] = n, saved[3] = a[3];
    h = mixed(z, options.candidate(n), h);
  }
  template <class V>
  static SF_FN V mixed(V z, V n, V h_prev) {
    return fma(z, h_prev - n, n);
  }

  template <class V, class O = NoOptions>
  static SF_FN void backward(const V* saved, V, V h_prev, V, V dh, V& carry, V* d, const O& options = {}) {
    const V r = saved[0];
    mixed_backward(saved, h_prev, dh, carry, d, options);
    d[0] = d[2] * saved[3] * fma(-r, r, r);
    d[3] = d[2] * r;
  }
  // The gradients of the sums of z and n, and the part of the gradient of h_prev that does not come through r.
  template <class V, class O>
  static SF_FN void mixed_backward(const V* saved, V h_prev, V dh, V& carry, V* d, const O& options) {
    const V z = saved[1], n = saved[2];
    dh += carry;
    d[1] = dh * (h_prev - options.candidate(n)) * fma(-z, z, z);
    d[2] = options.candidate(dh * (1 - z)) * fma(-n, n, V{} + 1);
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

  template <class V, class O = NoOptions>
  static SF_FN void forward(const V* a, V& h, V& c, V* saved, const O& options = {}) {
    memory(a, c, saved, options);
    h = output(saved[3], c);
  }
  template <class V, class O>
  static SF_FN void memory(const V* a, V& c, V* saved, const O& options) {  // everything but h
    const V i = sigmoid(options.see_c(0, a[0], c)), f = sigmoid(options.see_c(1, a[1], c)), g = tanh(a[2]);
    c = next_c(i, f, g, c, options);
    saved[0] = i, saved[1] = f, saved[2] = g, saved[3] = sigmoid(options.see_c(2, a[3], c)), saved[4] = c;
  }

  template <class V, class O>
  static SF_FN V next_c(V i, V f, V g, V c, const O& options) {
    return fma(f, c, i * options.candidate(g));
  }

  template <class V, class O = NoOptions>
  static SF_FN void backward(const V* saved, V, V, V c_prev, V dh, V& carry, V* d, const O& options = {}) {
    output_backward(saved[3], saved[4], dh, d[3], carry);
    memory_backward(saved, c_prev, carry, d, options);
  }
  // The gradient of the sum of o; that of c is added to d_c.
  template <class V>
  static SF_FN void output_backward(V o, V c, V dh, V& d_o, V& d_c) {
    const V tanh_c = tanh(c);
    d_c = fma(dh * o, fma(-tanh_c, tanh_c, V{} + 1), d_c);
    d_o = dh * tanh_c * fma(-o, o, o);
  }
  // Takes d[3], the gradient of the sum of o, and in d_c the gradient of c. Leaves there that of the previous c.
  template <class V, class O>
  static SF_FN void memory_backward(const V* saved, V c_prev, V& d_c, V* d, const O& options) {
    const V i = saved[0], f = saved[1], g = saved[2], dc = options.add_seen(2, d[3], d_c);
    d[0] = dc * options.candidate(g) * fma(-i, i, i);
    d[1] = dc * c_prev * fma(-f, f, f);
    d[2] = options.candidate(dc * i) * fma(-g, g, V{} + 1);
    d_c = options.add_seen(1, d[1], options.add_seen(0, d[0], dc * f));
  }
};

// ---- Options
//
// A layer with options takes longer ways: its sums go through memory, and a function looks at one row of the batch at a
// time (csrc/cpu/kernels/row_forward.h). Some options are cells of their own, since they have further weights or
// another order of products. They have these members too:
//   Base          the cell without the option
//   kFurther      the further weights: (rows * H) values each
//   kNorm         the sums of input and state are normalised over the units of a row before they are added, each with a
//                 gain for every gate and unit; with kHasC, tanh(c) reads c normalised, with a gain and a bias. A cell
//                 that has it saves the normalised sums too, and the inverse deviations
//   kResetsFirst  the product with gate n's part of W_hh takes r * h instead of h, and so waits for r
// The others, zoneout and the two dropouts, are numbers: see noise.h.

// What options add to a unit: the value of the mask of its candidate (g or n), and the weights by which the gates i, f
// and o see c.
template <class V, bool kPeephole>
struct UnitOptions {
  V mask;
  const V* seen;

  SF_FN V candidate(V v) const { return v * mask; }
  SF_FN V see_c(int gate, V sum, V c) const {
    if constexpr (kPeephole) return fma(seen[gate], c, sum);
    return sum;
  }
  SF_FN V add_seen(int gate, V d_sum, V d_c) const {
    if constexpr (kPeephole) return fma(d_sum, seen[gate], d_c);
    return d_c;
  }
};

// What the options of a cell are, for any cell: one that is not an option has none.
template <class Cell, class = void>
struct OptionsOf {
  using Base = Cell;
  static constexpr bool kIsOption = false, kNorm = false, kResetsFirst = false, kPeephole = false;
};
template <class Cell>
struct OptionsOf<Cell, decltype(static_cast<void>(Cell::kNorm))> {
  using Base = typename Cell::Base;
  static constexpr bool kIsOption = true, kNorm = Cell::kNorm, kResetsFirst = Cell::kResetsFirst,
                        kPeephole = !kNorm && Cell::kFurther[0].name != nullptr;
};

struct Further {
  const char* name;
  int rows;        // of H values
  bool is_matrix;  // its shape is (rows, H), and not (rows * H,)
};
constexpr int kMostFurther = 4;

constexpr double kNormEpsilon = 1e-5;  // is added to a variance

// Which gates are normalised together: all of them, but of a GRU r with z, and n apart.
template <int kGates>
struct NormBlocks {
  static constexpr int kNormBlocks = kGates == 3 ? 2 : 1;
  static constexpr int first_gate(int block) { return kGates == 3 ? 2 * block : 0; }
  static constexpr int last_gate(int block) { return kGates == 3 ? 2 + block : kGates; }  // the one after the last
  static constexpr int block_of(int gate) { return kGates == 3 ? gate / 2 : 0; }
  static constexpr int gates_of(int block) { return last_gate(block) - first_gate(block); }
};

template <class Cell>
struct Normed : Cell, NormBlocks<Cell::kGates> {
  using Base = Cell;
  static constexpr int kSlots = 2 * Cell::kGates, kSaved = Cell::kSaved + 2 * Cell::kGates + 1;
  static constexpr bool kNorm = true, kResetsFirst = false;
  static constexpr Further kFurther[kMostFurther] = {{"weight_ln_ih", Cell::kGates, false},
                                                     {"weight_ln_hh", Cell::kGates, false},
                                                     {Cell::kHasC ? "weight_ln_c" : nullptr, 1, false},
                                                     {Cell::kHasC ? "bias_ln_c" : nullptr, 1, false}};
  static constexpr int hidden_slot(int gate) { return Cell::kGates + gate; }
};

struct LstmPeephole : Lstm {  // W. i and f see the previous c, o the new one
  using Base = Lstm;
  static constexpr bool kNorm = false, kResetsFirst = false;
  static constexpr Further kFurther[] = {{"weight_peephole", 3, true}};
};

struct GruResetBefore : Gru {  // slots r z n; saved r z n, and nothing in the fourth place
  using Base = Gru;
  static constexpr int kSlots = 3;
  static constexpr bool kNorm = false, kResetsFirst = true;
  static constexpr Further kFurther[] = {{nullptr, 0, false}};
  static constexpr int hidden_slot(int gate) { return gate; }

  template <class V>
  static SF_FN void gates(const V* a, V* saved) {
    saved[0] = sigmoid(a[0]), saved[1] = sigmoid(a[1]);
  }
  // After the product with r * h.
  template <class V, class O>
  static SF_FN void finish(V a_n, V& h, V* saved, const O& options) {
    saved[2] = tanh(a_n), saved[3] = V{};
    h = mixed(saved[1], options.candidate(saved[2]), h);
  }
  // Takes the gradient of r * operand, where operand is h, or what a mask leaves of it. Sets the gradient of r's sum,
  // and returns that of the operand.
  template <class V>
  static SF_FN V reset_backward(const V* saved, V operand, V d_product, V* d) {
    const V r = saved[0];
    d[0] = d_product * operand * fma(-r, r, r);
    return d_product * r;
  }
};

// The list of cells: a name for users and a type. All code that chooses a cell by its index is made from this list, and
// from the list of cells that are options, whose indices follow.
#define SF_CELLS(X)    \
  X(rnn_tanh, RnnTanh) \
  X(rnn_relu, RnnRelu) \
  X(gru, Gru)          \
  X(lstm, Lstm)
#define SF_OPTION_CELLS(X)                \
  X(rnn_tanh_layer_norm, Normed<RnnTanh>) \
  X(rnn_relu_layer_norm, Normed<RnnRelu>) \
  X(gru_layer_norm, Normed<Gru>)          \
  X(lstm_layer_norm, Normed<Lstm>)        \
  X(lstm_peephole, LstmPeephole)          \
  X(gru_reset_before, GruResetBefore)

enum CellIndex {
#define SF_INDEX(name, Type) kCell_##name,
  SF_CELLS(SF_INDEX) SF_OPTION_CELLS(SF_INDEX)
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
  // The slots of the cell without its option; those of the cell itself if it is none.
  int base_slots, base_hidden_slot[kMostGates];
  // Of a cell that is an option.
  bool is_option, norm, resets_first;
  Further further[kMostFurther];
  int further_count;
};

template <class Cell>
constexpr CellInfo cell_info(const char* name) {
  static_assert(Cell::kGates <= kMostGates, "kGates: at most kMostGates");
  static_assert(Cell::kHasC ? Cell::kSaved == 5 : Cell::kSaved == 0 || Cell::kSaved == 4,
                "kSaved: five with kHasC, else none or four, which is how the CUDA kernels store them");
  CellInfo info{};
  info.name = name;
  info.gates = Cell::kGates;
  info.slots = info.base_slots = Cell::kSlots;
  info.saved = Cell::kSaved;
  info.has_c = Cell::kHasC;
  for (int pass = 0; pass < 2; ++pass) info.activations[pass] = Cell::kActivations[pass];
  for (int gate = 0; gate < Cell::kGates; ++gate)
    info.hidden_slot[gate] = info.base_hidden_slot[gate] = Cell::hidden_slot(gate);
  return info;
}

template <class Cell>
constexpr CellInfo option_cell_info(const char* name) {
  CellInfo info = cell_info<typename Cell::Base>(name);
  info.slots = Cell::kSlots;
  info.saved = Cell::kSaved;
  info.is_option = true;
  info.norm = Cell::kNorm;
  info.resets_first = Cell::kResetsFirst;
  for (int gate = 0; gate < Cell::kGates; ++gate) info.hidden_slot[gate] = Cell::hidden_slot(gate);
  for (const Further& further : Cell::kFurther)
    if (further.name) info.further[info.further_count++] = further;
  return info;
}

// The sums over the steps of one row from which the gradients of the further weights are made, in rows of H values.
// With kNorm: those of the gradients of the base cell's slots, for the biases; those of the gains of the input's and of
// the state's sums, one for each gate; with a c, those of its gain and bias. Without: one for each row of the weights.
constexpr int further_sums(const CellInfo& cell) {
  if (cell.norm) return cell.base_slots + 2 * cell.gates + (cell.has_c ? 2 : 0);
  int rows = 0;
  for (int k = 0; k < cell.further_count; ++k) rows += cell.further[k].rows;
  return rows;
}

constexpr CellInfo kCells[] = {
#define SF_ROW(name, Type) cell_info<Type>(#name),
    SF_CELLS(SF_ROW)
#undef SF_ROW
#define SF_ROW(name, Type) option_cell_info<Type>(#name),
        SF_OPTION_CELLS(SF_ROW)
#undef SF_ROW
};
constexpr const char* kCellNames[] = {
#define SF_NAME(name, Type) #name,
    SF_CELLS(SF_NAME) SF_OPTION_CELLS(SF_NAME)
#undef SF_NAME
};

}  // namespace sf

// The arguments that bindings hand to a backend: plain structs of pointers, sizes and strides.
// The row of step t and batch row b of x, of the output or of a gradient is found by Rows::offset(), for padded tensors
// of any strides and for packed sequences alike, so nothing is ever unpacked.
#pragma once

#include "math.h"
#include "noise.h"
#include "types.h"

namespace sf {

enum class Dtype : int { kFloat32, kFloat64, kBFloat16, kFloat16 };

constexpr int64_t size_of(Dtype d) { return d == Dtype::kFloat64 ? 8 : d == Dtype::kFloat32 ? 4 : 2; }

constexpr int kMaxDirections = 2;
constexpr int64_t kSavedAlign = 16;  // saved values come in blocks of this many units, on every instruction set
constexpr int64_t padded(int64_t units) { return (units + kSavedAlign - 1) / kSavedAlign * kSavedAlign; }

struct Rows {
  char* data = nullptr;  // null where the tensor is absent
  Dtype dtype = Dtype::kFloat32;
  int64_t t_stride = 0, b_stride = 0, stride = 1;  // in elements; `stride` is between neighbours in a row
  // Packed input: t_row[t] is the index of the first row of step t, and t_stride the distance between rows.
  const int64_t* t_row = nullptr;

  SF_FN int64_t offset(int64_t t, int64_t b) const { return (t_row ? t_row[t] : t) * t_stride + b * b_stride; }
};

struct Matrix {  // a weight, or a bias with one column
  const char* data = nullptr;
  int64_t rows = 0, columns = 1, row_stride = 0, column_stride = 1;
};

// Whether step t of a row starts from the reset state. A reset at t cuts between t - 1 and t. The reverse direction
// thus reads the reset state at t - 1, where its own sequence begins anew.
SF_FN bool starts_anew(const Rows& resets, int direction, int64_t t, int64_t b, int64_t row_length) {
  if (!resets.data || (direction && t + 1 >= row_length)) return false;
  return resets.data[resets.offset(direction ? t + 1 : t, b)] != 0;
}

constexpr int kMostFurtherWeights = 4;  // kMostFurther of cells.h

struct Layer {
  int cell;  // its index in kCells (cells.h)
  Dtype dtype;
  int directions;
  int64_t T, B, I, H, P;  // I: columns of w_ih; P: width of the projected state, 0 without a projection
  Matrix w_ih[kMaxDirections], w_hh[kMaxDirections], b_ih[kMaxDirections], b_hh[kMaxDirections], w_hr[kMaxDirections];
  const int64_t* lengths;     // (B,), null where every row has T steps
  int64_t packed_rows;        // the number of rows of packed input, 0 for padded input
  const int64_t* host_t_row;  // x.t_row in memory that the host can read
  Rows x;
  // Null unless x holds ids; then x.data is null. An id is the index of the column of w_ih that is its projection.
  const int64_t* ids;
  Rows h0[kMaxDirections], c0[kMaxDirections];  // the same at every t

  // Where a step starts anew: bytes, not zero where the state before the step is the reset state. Null: nowhere. What
  // lies beyond a row's length is never read.
  Rows resets;
  Rows h_reset[kMaxDirections], c_reset[kMaxDirections];  // the reset state, the same for every row; zeros where absent
  Noise noise;
  Matrix further[kMostFurtherWeights][kMaxDirections];  // the weights that the cell has beyond those above

  int64_t gates;  // the number of gates of the cell
  // The packed weights of all directions, if they were packed before the call. Then no weight is read but w_ih of ids.
  const char* packed;
  // Whether it has options that look at one row of the batch at a time: see the options of cells.h.
  bool row_wise;

  SF_FN int64_t out() const { return P ? P : H; }
  // Whether a cell whose backward reads its h must save it: with zoneout the output holds another one. Only cells with
  // one gate read it.
  SF_FN bool saves_fresh_h() const { return gates == 1 && noise.zoneout_h > 0; }
  SF_FN int64_t features() const { return ids ? 0 : I; }  // the number of features that the input's product sums over
  int64_t id(int64_t t, int64_t b) const { return ids[x.offset(t, b)]; }
  int64_t length(int64_t b) const { return lengths ? lengths[b] : T; }
  SF_FN bool starts_anew(int direction, int64_t t, int64_t b, int64_t row_length) const {
    return sf::starts_anew(resets, direction, t, b, row_length);
  }
};

// steps_of() is the number of steps of all rows together, weights_of() the number of multiply-adds of one step of one
// row in one direction. Both are doubles, because products of several sizes may not fit into 64 bits.
SF_FN double steps_of(const Layer& layer) {
  if (!layer.lengths) return static_cast<double>(layer.T) * static_cast<double>(layer.B);
  double sum = 0;
  for (int64_t b = 0; b < layer.B; ++b) sum += static_cast<double>(layer.lengths[b]);
  return sum;
}
SF_FN double weights_of(const Layer& layer) {
  return static_cast<double>(layer.gates * layer.H * (layer.features() + layer.out()) + layer.P * layer.H);
}

struct Forward {
  Layer layer;
  Rows output[kMaxDirections];                    // absent without want_output
  Rows h_n[kMaxDirections], c_n[kMaxDirections];  // the same at every t
  Rows saved[kMaxDirections];                     // in the compute type; absent in inference
  bool training;                                  // a cell may save nothing in training
};

struct Backward {
  Layer layer;
  Rows output[kMaxDirections], saved[kMaxDirections];
  Rows d_output[kMaxDirections], d_h_n[kMaxDirections], d_c_n[kMaxDirections];  // each may be absent
  Rows d_x;                                                                     // absent unless wanted
  Rows d_gates[kMaxDirections];                                                 // in Runner::gates_dtype()
  Rows d_h0[kMaxDirections], d_c0[kMaxDirections];                              // absent unless wanted
  // The gradients of the reset states and of the weights in Layer::further, as sums over the steps of each row: (B,
  // width), in the compute type; absent unless wanted. The order of the latter: see further_sums() in cells.h.
  Rows d_h_reset[kMaxDirections], d_c_reset[kMaxDirections], d_further[kMaxDirections];
  // The same for the biases: (B, slots * H), sums of d_gates before they are rounded. Absent unless they are rounded.
  Rows d_bias[kMaxDirections];
};

struct WeightGrad {
  Layer layer;
  Rows output[kMaxDirections], d_gates[kMaxDirections];
  // Contiguous, in the layer's dtype. Those of biases and of w_hr may be null. With ids, d_w_ih is transposed:
  // (I, gates * H).
  char *d_w_ih[kMaxDirections], *d_w_hh[kMaxDirections], *d_b_ih[kMaxDirections], *d_b_hh[kMaxDirections],
      *d_w_hr[kMaxDirections];
  int64_t samples;  // number of equal slices of the batch; each gets its own gradients, stored one after another
};

// The sums of the rows of each sample, in a fixed order.
struct RowSums {
  Dtype from_dtype, to_dtype;
  const char* from;  // (samples * rows, from_stride), of which the first `width` values of each row are summed
  char* to;          // (samples, to_stride)
  int64_t samples, rows, width, from_stride, to_stride;
};

// What follows the layers of a classifier, in inference. Every result of a row depends on that row alone.

// result = x weight^T + bias for `count` rows; row i of x is at offset(0, i). The result may be in the compute type.
struct Linear {
  Dtype dtype;
  int64_t count;
  Matrix weight, bias;  // (columns, K) and (columns, 1); without a bias its data is null
  Rows x, result;
};

// What becomes of the steps of a row: their mean, their largest values, or their mean weighted by the softmax of a
// score, which is a product with `weight` (1, W).
enum class Pooling : int { kMean, kMax, kAttention };

// Rows without steps are pooled to zeros. Steps beyond a row's length are not read.
struct PoolSteps {
  Dtype dtype;
  Pooling pooling;
  int64_t T, B, W;
  const int64_t* lengths;  // (B,), null where every row has T steps
  Matrix weight, bias;     // with kAttention alone
  Rows output;             // (T, B, W)
  Rows pooled;             // (B, W)

  int64_t length(int64_t b) const { return lengths ? lengths[b] : T; }
};

// probabilities = softmax(logits / temperature), for `count` rows of `classes` numbers.
struct Softmax {
  Dtype dtype;
  int64_t count, classes;
  double temperature;
  Rows logits, probabilities;
};

}  // namespace sf

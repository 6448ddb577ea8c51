// The boundary between bindings and backends: plain data, nothing but pointers, sizes and strides.
// A row of x, output or gradient at step t of batch row b starts at row t's offset + b * b_stride, so padded tensors of
// any strides and packed sequences are addressed alike and nothing is ever unpacked.
#pragma once

#include <cstddef>
#include <cstdint>

#include "math.h"

namespace sf {

enum class Dtype : int { kFloat32, kFloat64, kBFloat16, kFloat16 };

constexpr int64_t size_of(Dtype d) { return d == Dtype::kFloat64 ? 8 : d == Dtype::kFloat32 ? 4 : 2; }

constexpr int kMaxDirections = 2;
constexpr int64_t kSavedAlign = 16;  // saved values come in blocks of this many units, whatever the ISA
constexpr int64_t padded(int64_t units) { return (units + kSavedAlign - 1) / kSavedAlign * kSavedAlign; }

struct Rows {
  char* data = nullptr;  // null: absent
  Dtype dtype = Dtype::kFloat32;
  int64_t t_stride = 0, b_stride = 0, stride = 1;  // in elements; stride: between neighbours in a row
  const int64_t* t_row = nullptr;                  // packed: row index of (t, 0); then t_stride is that of one row

  SF_FN int64_t offset(int64_t t, int64_t b) const { return (t_row ? t_row[t] : t) * t_stride + b * b_stride; }
};

struct Matrix {  // a weight, or a bias with one column
  const char* data = nullptr;
  int64_t rows = 0, columns = 1, row_stride = 0, column_stride = 1;
};

struct Layer {
  int cell;  // index in SF_CELLS
  Dtype dtype;
  int directions;
  int64_t T, B, I, H, P;  // I: columns of w_ih; P: projected size, 0 without projection
  Matrix w_ih[kMaxDirections], w_hh[kMaxDirections], b_ih[kMaxDirections], b_hh[kMaxDirections], w_hr[kMaxDirections];
  const int64_t* lengths;     // (B,), null: all T
  int64_t packed_rows;        // 0: padded
  const int64_t* host_t_row;  // x.t_row where the host can read it
  Rows x;
  const int64_t* ids;  // where x holds them: each names the column of w_ih that is its projection; x.data is null then
  Rows h0[kMaxDirections], c0[kMaxDirections];  // t ignored

  int64_t gates;  // of the cell

  int64_t out() const { return P ? P : H; }
  int64_t features() const { return ids ? 0 : I; }  // that a product runs over
  int64_t id(int64_t t, int64_t b) const { return ids[x.offset(t, b)]; }
  int64_t length(int64_t b) const { return lengths ? lengths[b] : T; }
};

struct Forward {
  Layer layer;
  Rows output[kMaxDirections];                    // absent without want_output
  Rows h_n[kMaxDirections], c_n[kMaxDirections];  // t ignored
  Rows saved[kMaxDirections];                     // in the compute type; absent in inference
};

struct Backward {
  Layer layer;
  Rows output[kMaxDirections], saved[kMaxDirections];
  Rows d_output[kMaxDirections], d_h_n[kMaxDirections], d_c_n[kMaxDirections];  // each may be absent
  Rows d_x;                                                                     // absent when not wanted
  Rows d_gates[kMaxDirections];                                                 // compute type
  Rows d_h0[kMaxDirections], d_c0[kMaxDirections];                              // absent when not wanted
};

struct WeightGrad {
  Layer layer;
  Rows output[kMaxDirections], d_gates[kMaxDirections];
  char *d_w_ih[kMaxDirections], *d_w_hh[kMaxDirections], *d_b_ih[kMaxDirections], *d_b_hh[kMaxDirections],
      *d_w_hr[kMaxDirections];  // contiguous, in the layer's dtype; biases and w_hr may be null; with ids d_w_ih is
                                // (I, gates * H), column by column
  int64_t samples;  // stretches of the batch, as long as one another, whose gradients lie one after the other
};

}  // namespace sf

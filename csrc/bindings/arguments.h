// Turns the arguments of an op into the plain Layer of core/args.h, and checks the arguments that all ops share.
// The result is a LayerCall: it holds the Layer, any memory that the Layer points to and that no tensor of the caller
// owns, and it knows the shapes that the other tensors of the call must have.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "../core/cells.h"
#include "runner.h"
#include "tensors.h"

namespace sf {

// ---- Weights

// The weights of one kind (w_ih, say), one per direction; they lie side by side in the list of all weights.
struct Kind {
  const Tensor* first = nullptr;
  int64_t count = 0;
  const Tensor& operator[](int64_t d) const { return first[d]; }
};

struct Weights {
  Kind w_ih, w_hh, b_ih, b_hh, w_hr, further[kMostFurther];
};

// Divides the list of all weights into its kinds. It holds every w_ih, every w_hh, then optionally every b_ih and every
// b_hh, then optionally every w_hr, then the further weights of the cell, kind after kind.
inline Weights by_kind(const Tensors& all, int64_t directions, const CellInfo& cell) {
  if (directions < 1 || directions > kMaxDirections) fail("directions: expected 1 or 2 but got ", directions);
  const auto n = static_cast<int64_t>(all.size()), each = n / directions - cell.further_count;
  if (each < 2 || each > 5 || n % directions)
    fail("weights: expected ", 2 + cell.further_count, " to ", 5 + cell.further_count,
         " tensors per direction for cell ", cell.name, " but got ", n);
  const Tensor* next = all.data();
  const auto take = [&](bool present) {
    if (!present) return Kind{};
    next += directions;
    return Kind{next - directions, directions};
  };
  Weights w;
  w.w_ih = take(true);
  w.w_hh = take(true);
  w.b_ih = take(each >= 4);
  w.b_hh = take(each >= 4);
  w.w_hr = take(each == 3 || each == 5);
  for (int k = 0; k < cell.further_count; ++k) w.further[k] = take(true);
  return w;
}

inline Matrix matrix_of(const Kind& kind, int d) {
  if (!kind.count) return {};
  const Tensor& w = kind[d];
  const auto sizes = w.sizes(), strides = w.strides();
  if (sizes.size() == 1) return {data_of(w), sizes[0], 1, strides[0], 1};
  return {data_of(w), sizes[0], sizes[1], strides[0], strides[1]};
}

// ---- States

// Direction d of a state, or of its gradient: (D, B, width), or the (B, width) or (width,) of a cell.
inline Rows state_rows(const Tensor& state, Dtype dtype, int d) {
  Rows rows;
  const auto strides = state.strides();
  const size_t rank = strides.size();
  rows.data = data_of(state) + (rank > 2 ? d * strides[0] * size_of(dtype) : 0);
  rows.dtype = dtype;
  rows.b_stride = rank > 1 ? strides[rank - 2] : 0;
  rows.stride = strides[rank - 1];
  return rows;
}

inline Rows state_rows(const Maybe& state, Dtype dtype, int d) { return state ? state_rows(*state, dtype, d) : Rows{}; }

// ---- The layer

struct LayerOptions;  // options.h

// The arguments that describe a layer, the same in every op.
struct LayerArguments {
  const Tensor& x;
  Tensors& weights;  // on CUDA, replaced by contiguous copies where they are not contiguous
  const Maybe &h0, &c0, &lengths, &batch_sizes;
  const Name& cell;
  int64_t directions;
  bool batch_first;
  bool one_step = false;           // of a cell: x is (B, I) or (I,), and so are the states and results
  const Tensor* packed = nullptr;  // the weights, packed before the call (packed.h)
  const LayerOptions* options = nullptr;
};

struct LayerCall {
  Layer layer{};
  const CellInfo* info = nullptr;
  bool batch_first = false;
  size_t cell_rank = 0;  // the number of dimensions of a cell's tensors; 0 if the call is not a cell's
  Dtype buffer_dtype = Dtype::kFloat32;
  Device device{DeviceType::CPU, -1};
  std::vector<int64_t> lengths;           // (B,), empty: all T
  std::vector<int64_t> t_row;             // packed rows: the first row of each step, then the number of rows
  const int64_t* device_t_row = nullptr;  // t_row in memory of the device
  std::vector<int64_t> seed;              // of the masks, on the CPU
  Tensors kept;                           // memory that the layer points to

  LayerCall() = default;
  LayerCall(LayerCall&&) = default;  // a copy would point to the vectors of the original

  bool packed() const { return !t_row.empty(); }

  void set_cell(const Name& name) {
    layer.cell = index_in("cell", kCellNames, name.value);
    info = &kCells[layer.cell];
    layer.gates = info->gates;
  }

  // Every tensor is checked to have the dtype and the device of the layer.
  template <class Expected>
  void check(const char* name, const Tensor& t, const Expected& shape) const {
    check_tensor(name, t, device, scalar_of(layer.dtype), shape);
  }
  Tensor empty(const Shape& shape) const { return sf::empty(shape, layer.dtype, device); }

  // h0, c0, h_n, c_n and their gradients.
  Shape state_shape(int64_t width) const {
    if (cell_rank) return cell_rank == 1 ? Shape{width} : Shape{layer.B, width};
    return {layer.directions, layer.B, width};
  }
  // Tensors of rows: x, output and their gradients. (T, B, width), (B, T, width) if batch_first, (N, width) if packed.
  Shape rows_shape(int64_t width) const {
    if (cell_rank) return state_shape(width);
    if (packed()) return {t_row.back(), width};
    if (batch_first) return {layer.B, layer.T, width};
    return {layer.T, layer.B, width};
  }
  // A new output. One step follows another in its memory, also if batch_first, as in the outputs of torch.nn: dropout
  // draws its mask in the order of the memory, so that a seeded run draws the masks that it draws with torch.nn.
  Tensor empty_output() const {
    return sf::empty(rows_shape(layer.directions * layer.out()), layer.dtype, device, batch_first && !packed());
  }
  // The rows of such a tensor. Each of them begins at `column`.
  Rows rows(const Tensor& t, int64_t column = 0) const {
    Rows r;
    r.dtype = layer.dtype;
    const auto strides = t.strides();
    r.stride = strides[strides.size() - 1];
    r.data = data_of(t) + column * r.stride * size_of(layer.dtype);
    if (packed()) {
      r.t_stride = r.b_stride = strides[0];
      r.t_row = device_t_row;
    } else if (cell_rank) {
      r.b_stride = cell_rank == 1 ? 0 : strides[0];
    } else {
      r.t_stride = strides[batch_first ? 1 : 0];
      r.b_stride = strides[batch_first ? 0 : 1];
    }
    return r;
  }

  // Buffers: `saved` and `d_gates`, which only kernels read. Contiguous, (D, T, B, width), (D, N, width) if packed.
  Shape buffer_shape(int64_t width) const {
    if (packed()) return {layer.directions, t_row.back(), width};
    return {layer.directions, layer.T, layer.B, width};
  }
  Tensor empty_buffer(int64_t width, Dtype dtype) const { return sf::empty(buffer_shape(width), dtype, device); }
  void check_buffer(const char* name, const Tensor& t, int64_t width) const {
    check_tensor(name, t, device, scalar_of(buffer_dtype), buffer_shape(width));
    if (!t.is_contiguous()) fail(name, ": expected a contiguous tensor");
  }
  Rows buffer_rows(const Tensor& t, Dtype dtype, int d) const {
    Rows r;
    r.dtype = dtype;
    const auto sizes = t.sizes();
    const int64_t width = sizes[sizes.size() - 1], rows_per_step = packed() ? 1 : layer.B;
    r.data = data_of(t) + d * (t.numel() / layer.directions) * size_of(r.dtype);
    r.b_stride = width;
    r.t_stride = rows_per_step * width;
    r.t_row = device_t_row;
    return r;
  }
  int64_t saved_width() const { return (info->saved + layer.saves_fresh_h()) * padded(layer.H); }
  int64_t gates_width() const {
    return (info->slots + info->resets_first) * layer.H + (layer.P ? layer.P + layer.H : 0);
  }
};

// Copies the lengths and checks their values. On CUDA they stay where they are, and kernels clamp the values instead.
inline void read_lengths(LayerCall& call, const Tensor& lengths) {
  const int64_t B = call.layer.B, T = call.layer.T;
  check_tensor("lengths", lengths, call.device, ScalarType::Long, Dims{B});
  if (call.device.type() != DeviceType::CPU) {
    call.kept.push_back(as_contiguous(lengths));
    call.layer.lengths = static_cast<const int64_t*>(call.kept.back().data_ptr());
    return;
  }
  // volatile: another thread may write to them, so each is read exactly once.
  const auto* values = static_cast<const volatile int64_t*>(lengths.data_ptr());
  const int64_t stride = lengths.strides()[0];
  call.lengths.resize(static_cast<size_t>(B));
  int64_t low = 0, high = 0;
  for (int64_t b = 0; b < B; ++b) {
    const int64_t value = values[b * stride];
    low = b ? std::min(low, value) : value;
    high = b ? std::max(high, value) : value;
    call.lengths[static_cast<size_t>(b)] = value;
  }
  if (low < 0 || high > T) fail("lengths: expected values from 0 to T = ", T, " but got ", low, " to ", high);
}

// Takes T, B, the lengths and the first row of each step from the batch sizes of a packed sequence. rows: those of x.
inline void read_batch_sizes(LayerCall& call, const Tensor& batch_sizes, int64_t rows) {
  if (batch_sizes.dim() != 1 || batch_sizes.scalar_type() != ScalarType::Long ||
      batch_sizes.device().type() != DeviceType::CPU) {
    fail("batch_sizes: expected a one-dimensional int64 CPU tensor");
  }
  check_memory("batch_sizes", batch_sizes);
  const int64_t T = batch_sizes.numel(), stride = T ? batch_sizes.strides()[0] : 1;
  // volatile: another thread may write to them, so each is read exactly once.
  const auto* values = static_cast<const volatile int64_t*>(batch_sizes.data_ptr());
  if (T <= 0) fail("batch_sizes: expected at least one step");
  if (T > rows) fail("batch_sizes: expected at most ", rows, " steps, as x has so many rows, but got ", T);
  call.layer.T = T;
  call.t_row.reserve(static_cast<size_t>(T) + 1);
  int64_t row = 0, before = rows;
  for (int64_t t = 0; t < T; ++t) {
    const int64_t n = values[t * stride];
    if (n < 1 || (t && n > before))
      fail("batch_sizes: expected positive values that never grow but got ", n, " at step ", t);
    if (n > rows - row) fail("batch_sizes: expected a sum of ", rows, ", the rows of x, but they sum to more");
    before = n;
    if (!t) {
      call.layer.B = n;
      call.lengths.assign(static_cast<size_t>(n), 0);
    }
    call.t_row.push_back(row);
    row += n;
    for (int64_t b = 0; b < n; ++b) ++call.lengths[static_cast<size_t>(b)];
  }
  if (row != rows) fail("batch_sizes: expected a sum of ", rows, ", the rows of x, but they sum to ", row);
  call.t_row.push_back(row);
}

// Describes all of a layer except for its weights and states.
inline LayerCall describe_input(const LayerArguments& given, const Runner& runner) {
  const auto& [x, weights, h0, c0, lengths, batch_sizes, cell, directions, batch_first, one_step, packed, options] =
      given;
  LayerCall call;
  call.device = x.device();
  call.set_cell(cell);
  call.batch_first = batch_first;
  Layer& l = call.layer;
  // x holds features, or ids of columns of w_ih. With ids the layer has the dtype of the weights.
  const bool ids = x.scalar_type() == ScalarType::Long;
  l.dtype = ids && !weights.empty() ? dtype_of("weights", weights.back()) : dtype_of("x", x);
  call.buffer_dtype = runner.buffer_dtype(l.dtype);
  const auto sizes = x.sizes();
  if (one_step && (sizes.size() == 1 || sizes.size() == 2)) call.cell_rank = sizes.size();
  const size_t outer = one_step ? call.cell_rank - 1 : batch_sizes ? 1 : 2;
  if (one_step ? ids || !call.cell_rank : sizes.size() != outer + !ids)
    fail("x: expected ", batch_sizes ? "packed rows (N" : "(T, B", ids ? ") of ids" : ", I)", " but got shape ",
         text(sizes));
  check_memory("x", x);
  if (batch_sizes) {
    if (lengths) fail("lengths: expected None with batch_sizes, which already say where rows end");
    read_batch_sizes(call, *batch_sizes, sizes[0]);
    l.packed_rows = sizes[0];
  } else if (one_step) {
    l.T = 1;
    l.B = outer ? sizes[0] : 1;
  } else {
    l.T = sizes[batch_first ? 1 : 0];
    l.B = sizes[batch_first ? 0 : 1];
    if (l.T <= 0) fail("x: expected at least one step but got ", text(sizes));
    if (lengths) read_lengths(call, *lengths);
  }
  l.x = call.rows(x);
  if (ids) {
    static const int64_t none = 0;  // an empty tensor has no address, but a layer with ids needs one
    l.ids = l.x.data ? reinterpret_cast<const int64_t*>(l.x.data) : &none;
    l.x.data = nullptr;
    return call;
  }
  l.I = sizes[outer];
  if (l.I <= 0) fail("x: expected at least one feature but got ", text(sizes));
  return call;
}

// Lets the layer point to the lengths and row offsets of the call, or to copies of them on another device.
inline void point_into_buffers(LayerCall& call) {
  const auto place = [&](const std::vector<int64_t>& values) -> const int64_t* {
    if (call.device.type() == DeviceType::CPU) return values.data();
    call.kept.push_back(on_device(values, call.device));
    return static_cast<const int64_t*>(call.kept.back().data_ptr());
  };
  if (!call.lengths.empty()) call.layer.lengths = place(call.lengths);
  if (call.packed()) {
    call.layer.host_t_row = call.t_row.data();
    call.layer.x.t_row = call.device_t_row = place(call.t_row);
  }
}

inline void describe_weights(LayerCall& call, const LayerArguments& given) {
  Layer& l = call.layer;
  Tensors& weights = given.weights;
  const int64_t directions = given.directions;
  // cuBLAS reads contiguous weights only. With ids it does not read w_ih, the first weights of the list.
  if (call.device.type() != DeviceType::CPU)
    for (size_t i = l.ids ? static_cast<size_t>(directions) : 0; i < weights.size(); ++i)
      weights[i] = as_contiguous(weights[i]);
  const auto [w_ih, w_hh, b_ih, b_hh, w_hr, further] = by_kind(weights, directions, *call.info);
  l.directions = static_cast<int>(directions);
  const int64_t rows = w_ih[0].dim() == 2 ? w_ih[0].sizes()[0] : 0;
  if (rows <= 0 || rows % l.gates != 0)
    fail("w_ih: expected ", l.gates, " * hidden_size rows but got ", text(w_ih[0].sizes()));
  l.H = rows / l.gates;
  if (!l.I) l.I = w_ih[0].sizes()[1];  // x has not told
  if (l.I <= 0) fail("w_ih: expected at least one column but got ", text(w_ih[0].sizes()));
  if (w_hr.count) {
    if (!call.info->has_c) fail("w_hr: expected none for cell ", call.info->name);
    if (w_hr[0].dim() != 2 || w_hr[0].sizes()[0] <= 0)
      fail("w_hr: expected (proj_size, ", l.H, ") but got ", text(w_hr[0].sizes()));
    l.P = w_hr[0].sizes()[0];
  }
  const auto check_kind = [&](const char* name, const Kind& kind, Dims shape) {
    for (int64_t d = 0; d < kind.count; ++d) call.check(name, kind[d], shape);
  };
  check_kind("w_ih", w_ih, {rows, l.I});
  check_kind("w_hh", w_hh, {rows, l.out()});
  check_kind("b_ih", b_ih, {rows});
  check_kind("b_hh", b_hh, {rows});
  check_kind("w_hr", w_hr, {l.P, l.H});
  for (int k = 0; k < call.info->further_count; ++k) {
    const Further& kind = call.info->further[k];
    kind.is_matrix ? check_kind(kind.name, further[k], {kind.rows, l.H})
                   : check_kind(kind.name, further[k], {kind.rows * l.H});
    for (int d = 0; d < l.directions; ++d) {
      Matrix& m = l.further[k][d] = matrix_of(further[k], d);
      if (!kind.is_matrix) m = {m.data, kind.rows, l.H, l.H * m.row_stride, m.row_stride};
    }
  }
  const Maybe &h0 = given.h0, &c0 = given.c0;
  if (h0) call.check("h0", *h0, call.state_shape(l.out()));
  if (c0 && !call.info->has_c) fail("c0: expected None for cell ", call.info->name);
  if (c0) call.check("c0", *c0, call.state_shape(l.H));
  for (int d = 0; d < l.directions; ++d) {
    l.w_ih[d] = matrix_of(w_ih, d);
    l.w_hh[d] = matrix_of(w_hh, d);
    l.b_ih[d] = matrix_of(b_ih, d);
    l.b_hh[d] = matrix_of(b_hh, d);
    l.w_hr[d] = matrix_of(w_hr, d);
    l.h0[d] = state_rows(h0, l.dtype, d);
    l.c0[d] = state_rows(c0, l.dtype, d);
  }
}

}  // namespace sf

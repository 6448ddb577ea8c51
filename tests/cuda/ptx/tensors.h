// The memory that a call of an operator may touch, as regions with their exact bounds: what csrc/bindings allocates or
// receives. Memory that the host code takes during the call is added by its stream.
#pragma once

#include <string>

#include "../../../csrc/core/args.h"
#include "../../../csrc/core/cells.h"
#include "global.h"

namespace sf::ptx {

class Tensors {
 public:
  Tensors(GlobalMemory& memory, const Layer& layer) : memory_(memory), l_(layer) {
    rows(l_.x, l_.I, l_.T, false, "x");
    if (l_.ids) {
      Rows ids = l_.x;
      ids.data = reinterpret_cast<char*>(const_cast<int64_t*>(l_.ids)), ids.dtype = Dtype::kFloat64;  // of 8 bytes
      rows(ids, 1, l_.T, false, "x");
    }
    memory_.add(l_.x.t_row, 8 * (l_.T + 1), false, "the rows of the steps");
    memory_.add(l_.lengths, 8 * l_.B, false, "lengths");
    for (int d = 0; d < l_.directions; ++d) {
      for (const auto& [name, m] : {std::pair{"w_ih", l_.w_ih[d]},
                                    {"w_hh", l_.w_hh[d]},
                                    {"b_ih", l_.b_ih[d]},
                                    {"b_hh", l_.b_hh[d]},
                                    {"w_hr", l_.w_hr[d]}})
        if (m.rows > 0 && m.columns > 0)
          add(m.data, (m.rows - 1) * m.row_stride + (m.columns - 1) * m.column_stride + 1, l_.dtype, false, name);
      rows(l_.h0[d], l_.out(), 1, false, "h0");
      rows(l_.c0[d], l_.H, 1, false, "c0");
      rows(l_.h_reset[d], l_.out(), 1, false, "h_reset");
      rows(l_.c_reset[d], l_.H, 1, false, "c_reset");
      for (int k = 0; k < kCells[l_.cell].further_count; ++k)
        add(l_.further[k][d].data, l_.further[k][d].rows * l_.H, l_.dtype, false, kCells[l_.cell].further[k].name);
    }
    memory_.add(l_.resets.data, span(l_.resets, 1, l_.T), false, "resets");
    memory_.add(l_.noise.seed, 8, false, "seed");
  }
  void forward(const Forward& f) {
    for (int d = 0; d < l_.directions; ++d) {
      rows(f.output[d], l_.out(), l_.T, true, "output");
      rows(f.h_n[d], l_.out(), 1, true, "h_n");
      rows(f.c_n[d], l_.H, 1, true, "c_n");
      rows(f.saved[d], saved_width(), l_.T, true, "saved");
    }
  }
  void backward(const Backward& b) {
    rows(b.d_x, l_.I, l_.T, true, "d_x");
    for (int d = 0; d < l_.directions; ++d) {
      rows(b.output[d], l_.out(), l_.T, false, "output");
      rows(b.saved[d], saved_width(), l_.T, false, "saved");
      rows(b.d_output[d], l_.out(), l_.T, false, "d_output");
      rows(b.d_h_n[d], l_.out(), 1, false, "d_h_n");
      rows(b.d_c_n[d], l_.H, 1, false, "d_c_n");
      rows(b.d_gates[d], gates_width(), l_.T, true, "d_gates");
      rows(b.d_h0[d], l_.out(), 1, true, "d_h0");
      rows(b.d_c0[d], l_.H, 1, true, "d_c0");
      rows(b.d_h_reset[d], l_.out(), 1, true, "d_h_reset");
      rows(b.d_c_reset[d], l_.H, 1, true, "d_c_reset");
      rows(b.d_further[d], further_sums(kCells[l_.cell]) * l_.H, 1, true, "d_further");
    }
  }
  void weight_grad(const WeightGrad& g) {
    const int64_t each = g.samples * l_.gates * l_.H;
    for (int d = 0; d < l_.directions; ++d) {
      rows(g.output[d], l_.out(), l_.T, false, "output");
      rows(g.d_gates[d], gates_width(), l_.T, false, "d_gates");
      add(g.d_w_ih[d], each * l_.I, l_.dtype, true, "d_w_ih");
      add(g.d_w_hh[d], each * l_.out(), l_.dtype, true, "d_w_hh");
      add(g.d_b_ih[d], each, l_.dtype, true, "d_b_ih");
      add(g.d_b_hh[d], each, l_.dtype, true, "d_b_hh");
      add(g.d_w_hr[d], g.samples * l_.P * l_.H, l_.dtype, true, "d_w_hr");
    }
  }

 private:
  int64_t saved_width() const { return (kCells[l_.cell].saved + l_.saves_fresh_h()) * padded(l_.H); }
  int64_t gates_width() const {
    const CellInfo& cell = kCells[l_.cell];
    return (cell.slots + cell.resets_first) * l_.H + (l_.P ? l_.P + l_.H : 0);
  }
  void rows(const Rows& r, int64_t width, int64_t steps, bool writable, const char* name) {
    add(r.data, span(r, width, steps), r.dtype, writable, name);
  }
  // The number of elements from the first to the last.
  int64_t span(const Rows& r, int64_t width, int64_t steps) const {
    if (width == 0 || l_.B == 0 || steps == 0) return 0;
    const bool packed = r.t_row && steps == l_.T && l_.packed_rows;
    const int64_t last =
        packed ? (l_.packed_rows - 1) * r.t_stride : (steps - 1) * r.t_stride + (l_.B - 1) * r.b_stride;
    return last + (width - 1) * r.stride + 1;
  }
  void add(const void* data, int64_t count, Dtype dtype, bool writable, const char* name) {
    memory_.add(data, count * size_of(dtype), writable, name);
  }

  GlobalMemory& memory_;
  const Layer& l_;
};

inline void add_row_sums(GlobalMemory& memory, const RowSums& s) {
  const int64_t rows = s.samples * s.rows;
  memory.add(s.from, ((rows - 1) * s.from_stride + s.width) * size_of(s.from_dtype), false, "sums of rows");
  memory.add(s.to, ((s.samples - 1) * s.to_stride + s.width) * size_of(s.to_dtype), true, "a gradient");
}

}  // namespace sf::ptx

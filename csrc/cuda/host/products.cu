// The work before and after a recurrence: the projection of x, and the gradients of x, weights and biases. x is
// projected in chunks of steps, so that the projected input of a long sequence does not fill the memory.
#include <vector>

#include "host.h"
#include "../kernels/ids.cuh"

namespace sf::cuda {
namespace {

constexpr int64_t kSumParts = 128;

// The rows of x, in the form in which a product can read them: the same stride from each row to the next, with the rows
// ordered by time or by batch row.
enum class Order { kTime, kBatch };
struct ProductRows {
  const void* data;
  int64_t stride;
  Order order;
};
// The rows as they are if a product can read them, otherwise a copy ordered by time. `masked` asks for a copy whose
// padding is zero, which a sum over rows needs.
ProductRows product_rows(const Layer& l, const Rows& rows, int64_t width, bool masked, DeviceStream& stream) {
  const auto apart = [&](int64_t stride) { return stride >= width; };  // whether rows with this stride do not overlap
  if (rows.stride == 1 && !masked) {
    if (l.packed_rows && apart(rows.b_stride)) return {rows.data, rows.b_stride, Order::kTime};
    if (!l.packed_rows) {
      if (apart(rows.b_stride) && (rows.t_stride == l.B * rows.b_stride || l.T == 1))
        return {rows.data, rows.b_stride, Order::kTime};
      if (apart(rows.t_stride) && (rows.b_stride == l.T * rows.t_stride || l.B == 1))
        return {rows.data, rows.t_stride, Order::kBatch};
    }
  }
  void* copy = stream.take(row_count(l) * width * size_of(l.dtype));
  gather(l, rows, 1, width, masked ? l.lengths : nullptr, copy, stream);
  return {copy, width, Order::kTime};
}

// The number of the first row of a step, where rows are ordered by time, or packed.
int64_t first_row(const Layer& l, int64_t t) { return l.packed_rows ? l.host_t_row[t] : t * l.B; }

Ids ids_of(const Layer& l, DeviceStream& stream) {
  return {l.ids, l.x, l.packed_rows ? nullptr : l.lengths, l.T, l.B, l.I, stream.error_word()};
}

// Multiplies the steps begin .. end - 1 of x by W_ih^T. `to` has the compute type and is ordered by time; a gate's
// values begin `gate_width` after those of the gate before.
void project(const Layer& l, const ProductRows& x, int d, int64_t begin, int64_t end, int64_t gate_width,
             const Choice& choice, void* to, DeviceStream& stream) {
  if (l.ids) {
    const int64_t first = first_row(l, begin), rows = first_row(l, end) - first;
    const GatherColumns args{ids_of(l, stream), l.w_ih[d], to, first, rows, l.gates, l.H, gate_width};
    return with_math(
        l.dtype, [&](auto math) { launch_over(stream, gather_columns<decltype(math)>, rows * kBlockThreads, args); });
  }
  const int64_t width = l.gates * gate_width, size = size_of(l.dtype);
  const int at_once = gate_width == l.H ? static_cast<int>(l.gates) : 1;
  Product p{};
  p.n = at_once * l.H;
  p.k = l.I;
  p.b_stride = l.I;
  p.b_transposed = true;
  p.in = l.dtype;
  p.out = compute_dtype(l.dtype);
  p.tf32 = choice.tf32;
  p.a_stride = x.stride;
  p.a = x.data;
  p.c_stride = width;
  if (x.order == Order::kTime) {
    p.m = first_row(l, end) - first_row(l, begin);
    p.a = static_cast<const char*>(x.data) + first_row(l, begin) * x.stride * size;
  } else {
    p.m = end - begin;
    p.a = static_cast<const char*>(x.data) + begin * x.stride * size;
    p.c_stride = l.B * width;
    p.batch = l.B;
    p.a_batch = l.T * x.stride;
    p.c_batch = width;
  }
  for (int gate = 0; gate < l.gates; gate += at_once) {
    p.b = l.w_ih[d].data + gate * l.H * l.I * size;
    p.c = static_cast<char*>(to) + gate * gate_width * size_of(p.out);
    stream.multiply(p);
  }
}

// The first step of each chunk, and T. A chunk is as long as projected_bytes allows, but at least one step.
std::vector<int64_t> cut_steps(const Layer& l, int64_t gate_width, const Limits& limits) {
  const int64_t row_bytes = l.directions * l.gates * gate_width * size_of(compute_dtype(l.dtype));
  const int64_t most_rows = limits.projected_bytes / row_bytes;
  std::vector<int64_t> cuts{0};
  for (int64_t t = 1; t <= l.T; ++t)
    if (t == l.T || first_row(l, t + 1) - first_row(l, cuts.back()) > most_rows) cuts.push_back(t);
  return cuts;
}

}  // namespace

Lengths order_batch(const Layer& l, DeviceStream& stream) {
  if (!l.lengths) return {};
  if (l.packed_rows) return {l.lengths, nullptr};  // packed rows are ordered by length already
  auto* lengths = stream.take_of<int64_t>(l.B);
  auto* order = stream.take_of<int64_t>(l.B);
  const bool ordered = l.B <= stream.limits().max_ordered;
  launch_over(stream, order_rows, l.B, {l.lengths, lengths, ordered ? order : nullptr, l.B, l.T});
  return {lengths, ordered ? order : nullptr};
}

Rows contiguous_rows(const void* data, Dtype dtype, const Layer& l, int64_t width) {
  Rows rows;
  rows.data = static_cast<char*>(const_cast<void*>(data));
  rows.dtype = dtype;
  rows.t_row = l.x.t_row;
  rows.t_stride = rows.t_row ? width : l.B * width;
  rows.b_stride = width;
  return rows;
}

void gather(const Layer& l, const Rows& from, int64_t samples, int64_t width, const int64_t* lengths, void* to,
            DeviceStream& stream) {
  if (l.packed_rows) lengths = l.lengths;  // a packed row has no memory for steps beyond its length
  const GatherRows args{from, to, lengths, l.x.t_row, l.T, l.B, samples, width, l.packed_rows};
  with_math(l.dtype, [&](auto math) {
    launch_over(stream, gather_rows<typename decltype(math)::Storage>, row_count(l) * width, args);
  });
}

void for_chunks(const Forward& f, int64_t gate_width, const Choice& choice, DeviceStream& stream,
                const std::function<void(const Chunk&)>& run) {
  const Layer& l = f.layer;
  const std::vector<int64_t> cuts = cut_steps(l, gate_width, stream.limits());
  const int64_t count = static_cast<int64_t>(cuts.size()) - 1;
  int64_t rows = 0;
  for (int64_t i = 0; i < count; ++i) rows = std::max(rows, first_row(l, cuts[i + 1]) - first_row(l, cuts[i]));
  const ProductRows x = l.ids ? ProductRows{} : product_rows(l, l.x, l.I, false, stream);
  const int64_t width = l.gates * gate_width;
  void* buffers[kMaxDirections];
  for (int d = 0; d < l.directions; ++d) buffers[d] = stream.take(rows * width * size_of(compute_dtype(l.dtype)));
  for (int64_t i = 0; i < count; ++i) {
    Chunk chunk{};
    for (int d = 0; d < l.directions; ++d) {
      const int64_t cut = d ? count - 1 - i : i;  // the reverse direction begins with the last steps
      chunk.begin[d] = cuts[cut];
      chunk.end[d] = cuts[cut + 1];
      project(l, x, d, chunk.begin[d], chunk.end[d], gate_width, choice, buffers[d], stream);
      Rows& rows = chunk.projected[d] = contiguous_rows(buffers[d], compute_dtype(l.dtype), l, width);
      rows.data -= first_row(l, chunk.begin[d]) * width * size_of(rows.dtype);  // so that step t is found at t
    }
    chunk.first = i == 0;
    chunk.last = i == count - 1;
    run(chunk);
  }
}

const void* make_bias(const Layer& l, DeviceStream& stream) {
  return with_slots_and_math(l, [&](auto cell, auto math) -> const void* {
    using Cell = decltype(cell);
    const int64_t count = l.directions * Cell::kSlots * l.H;
    void* to = stream.take(count * size_of(compute_dtype(l.dtype)));
    launch_over(stream, pack_bias<Cell, decltype(math)>, count,
                {{l.b_ih[0], l.b_ih[1]}, {l.b_hh[0], l.b_hh[1]}, to, l.directions, l.H});
    return to;
  });
}
const void* bias_of(const void* all, const Layer& l, int d) {
  return static_cast<const char*>(all) + d * bias_slots(l) * l.H * size_of(compute_dtype(l.dtype));
}

void input_grad(const Backward& b, const Choice& choice, DeviceStream& stream) {
  const Layer& l = b.layer;
  const int64_t width = gates_width(l);
  for (int d = 0; d < l.directions; ++d) {
    Product p{};
    p.n = l.I;
    p.k = l.gates * l.H;
    p.a = b.d_gates[d].data;
    p.a_stride = width;
    p.b = l.w_ih[d].data;
    p.b_stride = l.I;
    p.c = b.d_x.data;
    p.c_stride = l.I;
    p.in = p.out = l.dtype;
    p.accumulate = d > 0;
    p.tf32 = choice.tf32;
    p.m = row_count(l);
    if (!l.packed_rows && b.d_x.b_stride != l.I) {  // d_x is (B, T, I): one product per batch row
      p.m = l.T;
      p.a_stride = l.B * width;
      p.batch = l.B;
      p.a_batch = width;
      p.c_batch = l.T * l.I;
    }
    stream.multiply(p);
  }
}

namespace {

// Whether the product of a gate takes r * h: those values lie behind the gradients of the slots.
bool waits(const CellInfo& cell, int gate) { return cell.resets_first && gate == cell.gates - 1; }

// The rows of x in the order in which the gradient of W_ih sums over them: sample by sample, ordered by time in each.
ProductRows summed_rows(const Layer& l, int64_t samples, DeviceStream& stream) {
  ProductRows x{};
  if (samples == 1) x = product_rows(l, l.x, l.I, l.lengths && !l.packed_rows, stream);
  if (samples > 1 || (x.order == Order::kBatch && l.B > 1 && l.T > 1)) {
    void* copy = stream.take(row_count(l) * l.I * size_of(l.dtype));
    gather(l, l.x, samples, l.I, samples > 1 ? l.lengths : nullptr, copy, stream);
    x = {copy, l.I, Order::kTime};
  }
  return x;
}

void id_grad(const WeightGrad& g, DeviceStream& stream) {
  const Layer& l = g.layer;
  const int64_t rows = row_count(l), columns = g.samples * l.I, width = l.gates * l.H;
  auto* keys = stream.take_of<int64_t>(rows);
  launch_over(stream, key_columns, rows, {ids_of(l, stream), keys, rows, g.samples});
  const Sorted sorted = stream.sort(keys, rows);
  for (int d = 0; d < l.directions; ++d) {
    stream.zero(g.d_w_ih[d], columns * width * size_of(l.dtype));
    with_math(l.dtype, [&](auto math) {
      using Math = decltype(math);
      const int64_t segments = ceil_div(rows, kSegment);
      const SumColumns args{
          g.d_gates[d].data, sorted.keys, sorted.order, stream.take_of<typename Math::Compute>(2 * segments * width),
          g.d_w_ih[d],       rows,        columns,      width,
          gates_width(l)};
      launch_over(stream, sum_segments<Math>, segments * width, args);
      launch_over(stream, sum_long_runs<Math>, segments * width, args);
    });
  }
}

}  // namespace

void run_weight_grad(const WeightGrad& g, const Choice& choice, DeviceStream& stream) {
  const Layer& l = g.layer;
  const CellInfo& info = kCells[l.cell];
  const int64_t width = gates_width(l), rows = row_count(l), sample_rows = rows / g.samples;
  const int64_t size = size_of(l.dtype);
  const ProductRows x = l.ids ? ProductRows{} : summed_rows(l, g.samples, stream);
  if (l.ids) id_grad(g, stream);
  for (int d = 0; d < l.directions; ++d) {
    void* before = stream.take(rows * l.out() * size);  // the h that each step was given
    const GatherOperands operands{
        {g.output[d], before, l.lengths, l.x.t_row, l.T, l.B, g.samples, l.out(), l.packed_rows},
        l.h0[d],
        l.resets,
        l.h_reset[d],
        l.noise,
        d};
    with_math(l.dtype,
              [&](auto math) { launch_over(stream, gather_operands<decltype(math)>, rows * l.out(), operands); });
    const char* d_gates = g.d_gates[d].data;
    if (g.samples > 1) {
      void* copy = stream.take(rows * width * size);
      gather(l, g.d_gates[d], g.samples, width, nullptr, copy, stream);
      d_gates = static_cast<const char*>(copy);
    }
    const auto product = [&](int64_t slot_column, int64_t m, const void* b, int64_t b_stride, int64_t n, char* c,
                             int64_t c_rows) {
      Product p{};
      p.m = m;
      p.n = n;
      p.k = sample_rows;
      p.a = d_gates + slot_column * size;
      p.a_stride = width;
      p.a_transposed = true;
      p.b = b;
      p.b_stride = b_stride;
      p.c = c;
      p.c_stride = n;
      p.in = p.out = l.dtype;
      p.tf32 = choice.tf32;
      p.batch = g.samples;
      p.a_batch = sample_rows * width;
      p.b_batch = sample_rows * b_stride;
      p.c_batch = c_rows * n;
      stream.multiply(p);
    };
    const int64_t gate_rows = l.gates * l.H, beyond_slots = (info.slots + info.resets_first) * l.H;
    if (!l.ids) product(0, gate_rows, x.data, x.stride, l.I, g.d_w_ih[d], gate_rows);
    // Gates whose slots lie side by side share one product.
    for (int first = 0, next = 0; first < info.gates; first = next) {
      while (++next < info.gates && info.hidden_slot[next] == info.hidden_slot[next - 1] + 1 && !waits(info, next))
        continue;
      const bool own = waits(info, first);
      product(info.hidden_slot[first] * l.H, (next - first) * l.H, own ? d_gates + info.slots * l.H * size : before,
              own ? width : l.out(), l.out(), g.d_w_hh[d] + first * l.H * l.out() * size, gate_rows);
    }
    if (g.d_w_hr[d]) product(beyond_slots, l.P, d_gates + (beyond_slots + l.P) * size, width, l.H, g.d_w_hr[d], l.P);
    if (!g.d_b_ih[d]) continue;
    with_slots_and_math(l, [&](auto cell, auto math) {
      using Math = decltype(math);
      const int64_t compute = size_of(compute_dtype(l.dtype)), parts = std::min(kSumParts, sample_rows);
      const SumRows sums{d_gates,
                         stream.take(g.samples * parts * width * compute),
                         stream.take(g.samples * width * compute),
                         g.samples,
                         sample_rows,
                         width,
                         width,
                         width,
                         parts};
      launch_over(stream, sum_parts<Math>, g.samples * parts * width, sums);
      launch_over(stream, sum_of_parts<Math, false>, g.samples * width, sums);
      launch_over(stream, bias_grad<decltype(cell), Math>, g.samples * gate_rows,
                  {sums.to, g.d_b_ih[d], g.d_b_hh[d], g.samples, width, l.H});
    });
  }
}

void run_sum_rows(const RowSums& s, DeviceStream& stream) {
  const int64_t parts = std::min(kSumParts, s.rows);
  with_math(s.to_dtype, [&](auto math) {
    using Math = decltype(math);
    void* partial = stream.take(s.samples * parts * s.width * size_of(compute_dtype(s.to_dtype)));
    const SumRows sums{s.from, partial, s.to, s.samples, s.rows, s.width, s.from_stride, s.to_stride, parts};
    launch_over(stream, sum_parts<Math>, s.samples * parts * s.width, sums);
    launch_over(stream, sum_of_parts<Math, true>, s.samples * s.width, sums);
  });
}

const void* reset_products(const Backward& b, int d, const Lengths& lengths, const Choice& choice,
                           DeviceStream& stream) {
  const Layer& l = b.layer;
  const CellInfo& info = kCells[l.cell];
  SumAnew sums{b.d_gates[d], l.resets, lengths.lengths, nullptr, l.T, l.B, l.H, l.gates - info.resets_first, {}, d};
  for (int gate = 0; gate < info.gates; ++gate) sums.hidden_slot[gate] = info.hidden_slot[gate];
  sums.to = stream.take(l.B * sums.gates * l.H * size_of(l.dtype));
  with_math(l.dtype, [&](auto math) { launch_over(stream, sum_anew<decltype(math)>, l.B * sums.gates * l.H, sums); });
  Product p{};
  p.m = l.B;
  p.n = p.b_stride = p.c_stride = l.out();
  p.k = p.a_stride = sums.gates * l.H;
  p.a = sums.to;
  p.b = l.w_hh[d].data;
  p.c = stream.take(l.B * l.out() * size_of(compute_dtype(l.dtype)));
  p.in = l.dtype;
  p.out = compute_dtype(l.dtype);
  p.tf32 = choice.tf32;
  stream.multiply(p);
  return p.c;
}

ResetCarries begin_resets(const Backward& b, DeviceStream& stream) {
  const Layer& l = b.layer;
  const int64_t compute = size_of(compute_dtype(l.dtype));
  ResetCarries carries;
  for (int d = 0; d < l.directions && l.resets.data; ++d) {
    const auto take = [&](const Rows& wanted, int64_t width) -> void* {
      if (!wanted.data) return nullptr;
      void* data = stream.take(l.B * width * compute);
      stream.zero(data, l.B * width * compute);
      return data;
    };
    carries.h[d] = take(b.d_h_reset[d], l.out());
    carries.c[d] = take(b.d_c_reset[d], l.H);
  }
  return carries;
}

void end_resets(const Backward& b, const ResetCarries& carries, const Lengths& lengths, const Choice& choice,
                DeviceStream& stream) {
  const Layer& l = b.layer;
  for (int d = 0; d < l.directions; ++d) {
    with_math(l.dtype, [&](auto math) {
      using Math = decltype(math);
      if (b.d_h_reset[d].data) {
        const void* product = l.resets.data ? reset_products(b, d, lengths, choice, stream) : nullptr;
        launch_over(stream, reset_grad<Math>, l.B * l.out(),
                    {b.d_h_reset[d], carries.h[d], product, l.noise, l.B, l.out(), d});
      }
      if (b.d_c_reset[d].data)
        launch_over(stream, reset_grad<Math>, l.B * l.H, {b.d_c_reset[d], carries.c[d], nullptr, l.noise, l.B, l.H, d});
    });
  }
}

}  // namespace sf::cuda

// Runs one call of the CPU backend: packs the weights, divides the work among threads and hands the kernels their
// tasks. Where x holds ids, they are checked here, and the gradients of their columns are summed here.
#include <algorithm>
#include <vector>

#include "../../bindings/checks.h"
#include "packed_weights.h"
#include "schedule.h"

namespace sf {
namespace {

// A copy of a call's ids, made while they are checked. The kernels read the column that an id names without a check,
// and another thread may write to the tensor, so each id is read from it only once. Ids beyond a row's length are not
// read.
class OwnIds {
 public:
  explicit OwnIds(Layer& layer) {
    if (!layer.ids) return;
    const bool packed = layer.x.t_row != nullptr;
    ids_.resize(static_cast<size_t>(packed ? layer.packed_rows : layer.T * layer.B));
    Rows place;  // where the copies are
    place.t_row = layer.x.t_row;
    place.t_stride = packed ? 1 : layer.B;
    place.b_stride = 1;
    const auto* given = static_cast<const volatile int64_t*>(layer.ids);
    for (int64_t t = 0; t < layer.T; ++t) {
      for (int64_t b = 0; b < layer.B; ++b) {
        if (t >= layer.length(b)) continue;
        const int64_t id = given[layer.x.offset(t, b)];
        if (id < 0 || id >= layer.I)
          fail("x: expected ids from 0 to ", layer.I - 1, ", the columns of w_ih, but got ", id);
        ids_[static_cast<size_t>(place.offset(t, b))] = id;
      }
    }
    layer.ids = ids_.data();
    layer.x = place;
  }
  OwnIds(const OwnIds&) = delete;  // the layer points to it

 private:
  std::vector<int64_t> ids_;
};

// The gradients of the columns of w_ih, for each sample: the sum of d_gates over the steps whose id named the column.
// The steps are sorted by sample and id; steps of the same id keep their order.
void id_grad(const Kernels& kernels, const WeightGrad& call, int64_t workers) {
  const Layer& layer = call.layer;
  const int64_t each = layer.B / call.samples, columns = call.samples * layer.I;
  const auto for_steps = [&](auto&& function) {
    for (int64_t t = 0; t < layer.T; ++t)
      for (int64_t b = 0; b < layer.B; ++b)
        if (t < layer.length(b)) function(t, b, static_cast<size_t>(b / each * layer.I + layer.id(t, b)));
  };
  std::vector<int64_t> begin(static_cast<size_t>(columns) + 1);  // where each column's steps begin
  for_steps([&](int64_t, int64_t, size_t column) { ++begin[column + 1]; });
  for (size_t i = 1; i < begin.size(); ++i) begin[i] += begin[i - 1];
  struct Step {
    int64_t t, b;
  };
  std::vector<Step> steps(static_cast<size_t>(begin.back()));
  std::vector<int64_t> next = begin;
  for_steps([&](int64_t t, int64_t b, size_t column) { steps[static_cast<size_t>(next[column]++)] = {t, b}; });

  const int64_t row_bytes = layer.gates * layer.H * size_of(layer.dtype);
  // The first column of a worker. Its share of the work is counted as rows read plus rows written.
  const auto share = [&](int64_t worker) {
    const int64_t goal = (columns + begin.back()) * worker / workers;
    int64_t low = 0, high = columns;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      begin[static_cast<size_t>(middle)] + middle < goal ? low = middle + 1 : high = middle;
    }
    return low;
  };
  parallel(workers, [&](int64_t first, int64_t last) {
    std::vector<const char*> rows;
    for (int d = 0; d < layer.directions; ++d) {
      const Rows& from = call.d_gates[d];
      for (int64_t column = share(first), end = share(last); column < end; ++column) {
        rows.clear();
        for (int64_t i = begin[static_cast<size_t>(column)]; i < begin[static_cast<size_t>(column) + 1]; ++i) {
          const auto [t, b] = steps[static_cast<size_t>(i)];
          rows.push_back(from.data + from.offset(t, b) * size_of(from.dtype));
        }
        kernels.sum_rows(from.dtype, layer.dtype, layer.gates * layer.H, rows.data(), static_cast<int64_t>(rows.size()),
                         call.d_w_ih[d] + column * row_bytes);
      }
    }
  });
}

}  // namespace

void run_forward(const Kernels& kernels, Forward call) {
  const Layer& layer = call.layer;
  const OwnIds ids(call.layer);
  const Packed own = layer.packed ? nullptr : pack_forward(kernels, layer, call.training);
  const char* const packed = own ? own->data() : layer.packed;
  const int64_t each = kernels.packed_forward_size(layer);
  const Split s = split(layer, steps_of(layer) * layer.directions * weights_of(layer));
  run_split(
      layer, s, [&](int64_t rows) { return kernels.forward_scratch(call, rows, !packed); },
      [&](int64_t rows) { return kernels.forward_shared(call, rows); },
      [&](const Task& task) {
        kernels.forward(
            {&call, packed ? kernels.packed_forward(layer, packed + task.direction * each) : PackedForward{}, task});
      });
}

void run_backward(const Kernels& kernels, const Backward& call) {
  const Layer& layer = call.layer;
  const PackedBackwards packed(kernels, call);
  const double work = steps_of(layer) * static_cast<double>(layer.gates * layer.H * layer.directions);
  const Split s = split(layer, work * static_cast<double>(layer.out()));
  run_split(
      layer, s, [&](int64_t rows) { return kernels.backward_scratch(call, rows); }, [](int64_t) { return int64_t{0}; },
      [&](const Task& task) { kernels.backward({&call, packed.of[task.direction], task}); });
  if (!call.d_x.data) return;
  const int64_t rows = layer.T * layer.B,
                workers = std::min(threads_for(work * static_cast<double>(layer.I)), std::max<int64_t>(rows, 1));
  parallel(workers, [&](int64_t first, int64_t last) {
    Buffer scratch(kernels.input_grad_scratch(call));
    InputGradTask task{&call, {}, rows * first / workers, rows * last / workers, scratch.data()};
    std::copy(packed.of, packed.of + layer.directions, task.packed);
    kernels.input_grad(task);
  });
}

void run_weight_grad(const Kernels& kernels, WeightGrad call) {
  const Layer& layer = call.layer;
  const OwnIds ids(call.layer);
  const std::vector<int64_t> rows = longest_first(layer, call.samples);
  const int64_t workers = threads_for(steps_of(layer) * layer.directions * weights_of(layer));
  const int64_t whole = layer.directions * call.samples, count = layer.B / call.samples;
  // A job is one direction of one sample, or a part of its gate rows if whole jobs would not divide evenly.
  constexpr int64_t kEnoughJobs = 8;
  const bool even = whole % workers == 0 || whole >= kEnoughJobs * workers;
  const int64_t parts = even ? 1 : workers % whole == 0 ? workers / whole : workers;
  const int64_t jobs = parts * whole;
  parallel(std::min(workers, jobs), [&](int64_t first, int64_t last) {
    const int64_t n = std::min(workers, jobs);
    Buffer scratch(kernels.weight_grad_scratch(call, parts));
    for (int64_t job = jobs * first / n; job < jobs * last / n; ++job) {
      const int64_t sample = job / parts % call.samples;
      kernels.weight_grad({&call, static_cast<int>(job / parts / call.samples), job % parts, parts, sample,
                           rows.data() + sample * count, count, scratch.data()});
    }
  });
  if (layer.ids) {
    const double read_and_written = steps_of(layer) + static_cast<double>(call.samples * layer.I);
    id_grad(kernels, call, threads_for(read_and_written * static_cast<double>(layer.gates * layer.H * 4)));
  }
}

void run_sum_rows(const Kernels& kernels, const RowSums& s) {
  std::vector<const char*> rows(static_cast<size_t>(s.rows));
  for (int64_t sample = 0; sample < s.samples; ++sample) {
    for (int64_t i = 0; i < s.rows; ++i)
      rows[static_cast<size_t>(i)] = s.from + (sample * s.rows + i) * s.from_stride * size_of(s.from_dtype);
    kernels.sum_rows(s.from_dtype, s.to_dtype, s.width, rows.data(), s.rows,
                     s.to + sample * s.to_stride * size_of(s.to_dtype));
  }
}

int64_t packed_size(const Kernels& kernels, const Layer& layer) {
  return kernels.packed_forward_size(layer) * layer.directions;
}

void pack_all(const Kernels& kernels, const Layer& layer, char* to) {
  const int64_t each = kernels.packed_forward_size(layer);
  for (int d = 0; d < layer.directions; ++d) kernels.pack_forward(layer, d, to + d * each);
}

int64_t packed_cache_size() { return packed_cache().size(); }
void packed_cache_clear() { packed_cache().clear(); }

}  // namespace sf

// Kernels for x that holds ids. The projection of an id is the column of W_ih that it names, and the gradient of a
// column is the sum of the gradients of all steps that named it, added in a fixed order without atomic additions.
#pragma once

#include "prepare.cuh"

namespace sf::cuda {

struct Ids {
  const int64_t* ids;
  Rows at;
  const int64_t* lengths;  // of padded rows; null if every row has T steps
  int64_t T, B, columns;
  uint32_t* error;

  SF_DEVICE bool has(Place p) const { return !lengths || p.t < lengths[p.b]; }
  SF_DEVICE int64_t of(Place p) const { return ids[at.offset(p.t, p.b)]; }
  SF_DEVICE bool valid(int64_t id) const {
    if (id >= 0 && id < columns) return true;
    raise(error, kNoSuchId);
    return false;
  }
  SF_DEVICE Place place(int64_t row) const { return place_of(at.t_row, T, B, row); }
};

// Projects the rows first .. first + rows - 1 in the compute type. A gate's values begin gate_width after those of the
// gate before. A block works on one row at a time.
struct GatherColumns {
  Ids ids;
  Matrix w;
  void* to;
  int64_t first, rows, gates, H, gate_width;
};

template <class Math>
SF_KERNEL(kBlockThreads)
gather_columns(SF_PARAMETER GatherColumns a) {
  using Compute = typename Math::Compute;
  const auto* w = reinterpret_cast<const typename Math::Storage*>(a.w.data);
  for (int64_t row = block_id(); row < a.rows; row += grid_blocks()) {
    const Place p = a.ids.place(a.first + row);
    if (!a.ids.has(p)) continue;
    const int64_t id = a.ids.of(p);
    const bool valid = a.ids.valid(id);
    const int H = static_cast<int>(a.H);  // 64-bit divisions are slow
    auto* to = static_cast<Compute*>(a.to) + row * a.gates * a.gate_width;
    for (int i = thread_id(); i < a.gates * a.H; i += block_threads()) {
      to[i / H * a.gate_width + i % H] =
          valid ? Math::widen(w[i * a.w.row_stride + id * a.w.column_stride]) : Compute{0};
    }
  }
}

// Writes the key of each step: the number of the column that its gradient belongs to. Each sample has columns of its
// own, numbered one sample after another. The key of a step that belongs to no column is the number after the last one.
struct KeyColumns {
  Ids ids;
  int64_t* to;
  int64_t rows, samples;
};

SF_KERNEL(kBlockThreads)
key_columns(SF_PARAMETER KeyColumns a) {
  for (int64_t row = global_thread(); row < a.rows; row += all_threads()) {
    const Place p = a.ids.place(row);
    a.to[row] = a.samples * a.ids.columns;
    if (!a.ids.has(p)) continue;
    const int64_t id = a.ids.of(p);
    if (a.ids.valid(id)) a.to[row] = p.b / (a.ids.B / a.samples) * a.ids.columns + id;
  }
}

// Sums the rows of each column, in a fixed order. The rows are sorted by their column, and the rows of one column are a
// run. sum_segments adds up the rows of each run within each segment of kSegment rows. That finishes a run that lies in
// one segment. A longer run leaves a partial sum in each of its segments: the tail of the segment in which it begins,
// and the head of every later segment that it reaches. sum_long_runs adds the heads to the tail.
constexpr int64_t kSegment = 32;

struct SumColumns {
  const void* from;            // (rows, from_width), of which the first `width` columns are summed
  const int64_t *keys, *rows;  // the sorted keys, and the row that each belongs to
  void* partial;               // (segments, head and tail, width) in the compute type
  void* to;                    // (columns, width), zero before the launch
  int64_t count, columns, width, from_width;

  SF_FN int64_t end(int64_t segment) const {
    return (segment + 1) * kSegment < count ? (segment + 1) * kSegment : count;
  }
  // Whether the run of i goes on after i.
  SF_FN bool goes_on(int64_t i) const { return i + 1 < count && keys[i + 1] == keys[i]; }
  SF_FN int64_t partial_at(int64_t segment, int which, int64_t column) const {
    return (2 * segment + which) * width + column;
  }
};

template <class Math>
SF_KERNEL(kBlockThreads)
sum_segments(SF_PARAMETER SumColumns a) {
  using Storage = typename Math::Storage;
  using Compute = typename Math::Compute;
  const int64_t segments = (a.count + kSegment - 1) / kSegment;
  for (int64_t j = global_thread(); j < segments * a.width; j += all_threads()) {
    const int64_t segment = j / a.width, column = j % a.width, first = segment * kSegment, end = a.end(segment);
    bool began_before = first > 0 && a.goes_on(first - 1);
    Compute sum = 0;
    for (int64_t i = first; i < end && a.keys[i] < a.columns; ++i) {
      sum += Math::widen(static_cast<const Storage*>(a.from)[a.rows[i] * a.from_width + column]);
      if (i + 1 < end && a.goes_on(i)) continue;
      if (began_before)
        static_cast<Compute*>(a.partial)[a.partial_at(segment, 0, column)] = sum;
      else if (a.goes_on(i))
        static_cast<Compute*>(a.partial)[a.partial_at(segment, 1, column)] = sum;
      else
        static_cast<Storage*>(a.to)[a.keys[i] * a.width + column] = Math::narrow(sum);
      began_before = false;
      sum = 0;
    }
  }
}

template <class Math>
SF_KERNEL(kBlockThreads)
sum_long_runs(SF_PARAMETER SumColumns a) {
  using Compute = typename Math::Compute;
  const int64_t segments = (a.count + kSegment - 1) / kSegment;
  const auto* partial = static_cast<const Compute*>(a.partial);
  for (int64_t j = global_thread(); j < segments * a.width; j += all_threads()) {
    const int64_t segment = j / a.width, column = j % a.width, first = segment * kSegment, last = a.end(segment) - 1;
    const int64_t key = a.keys[last];
    const bool began_before = a.keys[first] == key && first > 0 && a.goes_on(first - 1);
    if (key >= a.columns || began_before || !a.goes_on(last)) continue;
    Compute sum = partial[a.partial_at(segment, 1, column)];
    for (int64_t next = segment + 1; next < segments && a.keys[next * kSegment] == key; ++next)
      sum += partial[a.partial_at(next, 0, column)];
    static_cast<typename Math::Storage*>(a.to)[key * a.width + column] = Math::narrow(sum);
  }
}

}  // namespace sf::cuda

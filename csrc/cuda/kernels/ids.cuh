// Where x holds ids: each names the column of W_ih that is its projection, and whose gradient is then the sum of what
// reached the steps that named it.
#pragma once

#include "prepare.cuh"

namespace sf::cuda {

struct Ids {
  const int64_t* ids;
  Rows at;
  const int64_t* lengths;  // of padded rows; may be null
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

// -- The projection of rows first .. first + rows, in the compute type, each gate's units gate_width apart. A block
// has a row at a time.
struct TakeColumns {
  Ids ids;
  Matrix w;
  void* to;
  int64_t first, rows, gates, H, gate_width;
};

template <class Math>
SF_KERNEL(kBlockThreads)
take_columns(SF_PARAMETER TakeColumns a) {
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

// -- What a step's gradient belongs to: sample by sample the columns, and one more for what belongs to none.
struct NameColumns {
  Ids ids;
  int64_t* to;
  int64_t rows, samples;
};

SF_KERNEL(kBlockThreads)
name_columns(SF_PARAMETER NameColumns a) {
  for (int64_t row = global_thread(); row < a.rows; row += all_threads()) {
    const Place p = a.ids.place(row);
    a.to[row] = a.samples * a.ids.columns;
    if (!a.ids.has(p)) continue;
    const int64_t id = a.ids.of(p);
    if (a.ids.valid(id)) a.to[row] = p.b / (a.ids.B / a.samples) * a.ids.columns + id;
  }
}

// -- Sums of the rows of each column, in a fixed order: stretches of the sorted rows first. A run of one column that
// lies within a stretch is done then; of one that began before there is a head, of one that goes on a tail.
constexpr int64_t kStretch = 32;

struct SumColumns {
  const void* from;            // (rows, from_width), of which the first `width` count
  const int64_t *keys, *rows;  // sorted
  void* partial;               // (stretches, head and tail, width) in the compute type
  void* to;                    // (columns, width), zeros before
  int64_t count, columns, width, from_width;

  SF_FN int64_t end(int64_t stretch) const {
    return (stretch + 1) * kStretch < count ? (stretch + 1) * kStretch : count;
  }
  SF_FN bool goes_on(int64_t i) const { return i + 1 < count && keys[i + 1] == keys[i]; }  // beyond i
  SF_FN int64_t part(int64_t stretch, int which, int64_t column) const {
    return (2 * stretch + which) * width + column;
  }
};

template <class Math>
SF_KERNEL(kBlockThreads)
sum_stretches(SF_PARAMETER SumColumns a) {
  using Storage = typename Math::Storage;
  using Compute = typename Math::Compute;
  const int64_t stretches = (a.count + kStretch - 1) / kStretch;
  for (int64_t j = global_thread(); j < stretches * a.width; j += all_threads()) {
    const int64_t stretch = j / a.width, column = j % a.width, first = stretch * kStretch, end = a.end(stretch);
    bool began_before = first > 0 && a.goes_on(first - 1);
    Compute sum = 0;
    for (int64_t i = first; i < end && a.keys[i] < a.columns; ++i) {
      sum += Math::widen(static_cast<const Storage*>(a.from)[a.rows[i] * a.from_width + column]);
      if (i + 1 < end && a.goes_on(i)) continue;
      if (began_before)
        static_cast<Compute*>(a.partial)[a.part(stretch, 0, column)] = sum;
      else if (a.goes_on(i))
        static_cast<Compute*>(a.partial)[a.part(stretch, 1, column)] = sum;
      else
        static_cast<Storage*>(a.to)[a.keys[i] * a.width + column] = Math::narrow(sum);
      began_before = false;
      sum = 0;
    }
  }
}

// A tail and the heads that follow it.
template <class Math>
SF_KERNEL(kBlockThreads)
sum_long_runs(SF_PARAMETER SumColumns a) {
  using Compute = typename Math::Compute;
  const int64_t stretches = (a.count + kStretch - 1) / kStretch;
  const auto* partial = static_cast<const Compute*>(a.partial);
  for (int64_t j = global_thread(); j < stretches * a.width; j += all_threads()) {
    const int64_t stretch = j / a.width, column = j % a.width, first = stretch * kStretch, last = a.end(stretch) - 1;
    const int64_t key = a.keys[last];
    const bool began_before = a.keys[first] == key && first > 0 && a.goes_on(first - 1);
    if (key >= a.columns || began_before || !a.goes_on(last)) continue;
    Compute sum = partial[a.part(stretch, 1, column)];
    for (int64_t next = stretch + 1; next < stretches && a.keys[next * kStretch] == key; ++next)
      sum += partial[a.part(next, 0, column)];
    static_cast<typename Math::Storage*>(a.to)[key * a.width + column] = Math::narrow(sum);
  }
}

}  // namespace sf::cuda

// Layer normalisation of rows that no step of the recurrence needs: the sums of x before the forward, the statistics of
// c before the backward, and behind the backward the gradients of the sums of x, of the gains and of the biases. They
// serve every regime, so that a step normalises the sums of h alone. A block takes a row at a time, and adds it up in
// an order that depends on nothing but the width of the row.
//
// A row of saved values holds those of the base cell, the normalised sums of x and of h, and the inverse deviations in
// the compute type.
#pragma once

#include "norm.cuh"
#include "stepwise.cuh"

namespace sf::cuda {

constexpr int kMostRowSums = 4;  // that are added up at once
constexpr int kRowReduceValues = kMostRowSums * (kBlockThreads + 32 + 1);

// Adds up the values of all threads of a block.
template <class Compute>
struct RowReduce {
  Shared<Compute> region;  // (sums, threads), (sums, 32), (sums)

  SF_DEVICE explicit RowReduce(SharedAllocator& allocator) : region(allocator.take<Compute>(kRowReduceValues)) {}
  template <int kCount>
  SF_DEVICE void sum(Compute (&v)[kCount]) const {
    static_assert(kCount <= kMostRowSums, "the region has room for so many");
    constexpr int kParts = kMostRowSums * kBlockThreads, kTotals = kParts + kMostRowSums * 32;
    cta_sync();
    SF_UNROLL
    for (int k = 0; k < kCount; ++k) region.store(k * kBlockThreads + thread_id(), v[k]);
    cta_sync();
    if (thread_id() < 32 * kCount) {
      const int k = thread_id() / 32, lane = thread_id() % 32;
      Compute part = 0;
      for (int i = lane; i < kBlockThreads; i += 32) part += region.load(k * kBlockThreads + i);
      region.store(kParts + thread_id(), part);
    }
    cta_sync();
    if (thread_id() < kCount) {
      Compute total = 0;
      for (int lane = 0; lane < 32; ++lane) total += region.load(kParts + 32 * thread_id() + lane);
      region.store(kTotals + thread_id(), total);
    }
    cta_sync();
    SF_UNROLL
    for (int k = 0; k < kCount; ++k) v[k] = region.load(kTotals + k);
  }
};

// One row of one step: the sums of x and of h are its two sides, each in blocks that are normalised apart.
template <class Cell, class Math>
struct NormRow {
  using Mathematics = Math;
  using Base = typename Cell::Base;
  using Storage = typename Math::Storage;
  using Compute = typename Math::Compute;
  static constexpr int kGates = Base::kGates, kBlocks = Cell::kNormBlocks;

  const StepwiseArgs& a;
  const StepwiseDirectionArgs& io;
  StepwisePlace first;

  SF_DEVICE NormRow(const StepwiseArgs& args, int d, int64_t t, int64_t b)
      : a(args), io(args.direction[d]), first(args, d, t, b, 0, args.H) {}

  template <class F>
  SF_DEVICE void each_unit(F&& f) const {
    for (int64_t unit = thread_id(); unit < a.H; unit += block_threads())
      f(StepwisePlace(a, first.d, first.t, first.b, unit, a.H));
  }
  SF_DEVICE Compute gain(int side, int gate, int64_t unit) const {
    return Math::widen(static_cast<const Storage*>(io.further[side])[gate * a.H + unit]);
  }
  SF_DEVICE Compute of_c(int which, int64_t unit) const {  // its gain or its bias
    return Math::widen(static_cast<const Storage*>(io.further[2 + which])[unit]);
  }
  SF_DEVICE Compute& input(int gate, int64_t unit) const {
    return *element<Compute>(io.projected, first.t, first.b, gate * a.gate_width + unit);
  }
  SF_DEVICE Compute product(int gate, int64_t unit) const {
    return static_cast<const Compute*>(io.products)[(first.b * kGates + gate) * a.H + unit];
  }
  // A value of this row for each gate, which only one thread touches.
  SF_DEVICE Compute& scratch(int gate, int64_t unit) const {
    return static_cast<Compute*>(io.scratch)[(first.b * kGates + gate) * a.H + unit];
  }
  SF_DEVICE Storage* saved() const { return element<Storage>(io.saved, first.t, first.b, 0); }
  SF_DEVICE Storage& normalised(int side, int gate, int64_t unit) const {
    return saved()[(Base::kSaved + side * kGates + gate) * padded(a.H) + unit];
  }
  SF_DEVICE Compute* deviations() const {  // (sides, blocks)
    return reinterpret_cast<Compute*>(saved() + (Base::kSaved + 2 * kGates) * padded(a.H));
  }
  // The gradient of a slot of the base cell; beyond the slots, what the gradients of the gain and of the bias of c add
  // up. Those of the gates lie in d_gates until norm_input_back.
  SF_DEVICE Storage& d_slot(int slot, int64_t unit) const {
    return slot < kGates ? *element<Storage>(io.d_gates, first.t, first.b, slot * a.H + unit)
                         : *element<Storage>(io.d_aside, first.t, first.b, (slot - kGates) * a.H + unit);
  }
  SF_DEVICE Compute* c_statistics() const { return element<Compute>(io.c_statistics, first.t, first.b, 0); }

  // The mean and the inverse deviation of the values of each of kCount blocks. each_value(f) calls f(block, value) for
  // those that the thread has; a block has `counts` values. The mean comes first and then the squares of what differs
  // from it, since a difference of sums of squares would cancel.
  template <int kCount, class EachValue>
  SF_DEVICE void measure(const RowReduce<Compute>& reduce, const int64_t (&counts)[kCount], EachValue&& each_value,
                         Compute (&mean)[kCount], Compute (&inverse)[kCount]) const {
    for (int k = 0; k < kCount; ++k) mean[k] = inverse[k] = 0;
    each_value([&](int k, Compute v) { mean[k] += v; });
    reduce.sum(mean);
    for (int k = 0; k < kCount; ++k) mean[k] /= static_cast<Compute>(counts[k]);
    each_value([&](int k, Compute v) { inverse[k] += (v - mean[k]) * (v - mean[k]); });
    reduce.sum(inverse);
    for (int k = 0; k < kCount; ++k) inverse[k] = inverse_deviation(inverse[k] / static_cast<Compute>(counts[k]));
  }
  // The same for the sums of a side, where value(gate, unit) are those; the inverse deviations are saved.
  template <class Value>
  SF_DEVICE void measure_side(const RowReduce<Compute>& reduce, int side, Value&& value, Compute (&mean)[kBlocks],
                              Compute (&inverse)[kBlocks]) const {
    int64_t counts[kBlocks];
    for (int k = 0; k < kBlocks; ++k) counts[k] = Cell::gates_of(k) * a.H;
    const auto each_value = [&](auto&& f) {
      each_unit([&](const StepwisePlace& p) {
        for (int g = 0; g < kGates; ++g) f(Cell::block_of(g), value(g, p.unit));
      });
    };
    measure(reduce, counts, each_value, mean, inverse);
    if (io.saved.data && thread_id() == 0)
      for (int k = 0; k < kBlocks; ++k) deviations()[side * kBlocks + k] = inverse[k];
  }
  // Calls f(place, gate, d) with the gradients of the sums of a side, where d_of(gate, unit) are those of the slots.
  template <class Gradient, class F>
  SF_DEVICE void side_backward(const RowReduce<Compute>& reduce, int side, Gradient&& d_of, F&& f) const {
    Compute sums[2 * kBlocks] = {};  // of the gradients of the normalised values, and of these times the values
    each_unit([&](const StepwisePlace& p) {
      for (int g = 0; g < kGates; ++g) {
        const Compute d = d_of(g, p.unit) * gain(side, g, p.unit);
        sums[2 * Cell::block_of(g)] += d;
        sums[2 * Cell::block_of(g) + 1] += d * Math::widen(normalised(side, g, p.unit));
      }
    });
    reduce.sum(sums);
    for (int k = 0; k < 2 * kBlocks; ++k) sums[k] /= static_cast<Compute>(Cell::gates_of(k / 2) * a.H);
    each_unit([&](const StepwisePlace& p) {
      for (int g = 0; g < kGates; ++g) {
        const int k = Cell::block_of(g);
        f(p, g,
          norm_gradient(d_of(g, p.unit) * gain(side, g, p.unit), Math::widen(normalised(side, g, p.unit)),
                        deviations()[side * kBlocks + k], sums[2 * k], sums[2 * k + 1]));
      }
    });
  }
};

// Calls f(row, reduce) for the rows of all steps that a block takes; a row may lack the step.
template <class Cell, class Math, class F>
SF_DEVICE void each_norm_row(const StepwiseArgs& a, F&& f) {
  SharedAllocator allocator;
  const RowReduce<typename Math::Compute> reduce(allocator);
  for (int64_t i = block_id(); i < a.directions * a.steps * a.B; i += grid_blocks()) {
    const auto d = static_cast<int>(i / (a.steps * a.B));
    const int64_t t = a.direction[d].t + i / a.B % a.steps;
    if (t < a.direction[d].end) f(NormRow<Cell, Math>(a, d, t, i % a.B), reduce);
  }
}

// Replaces the sums of x by the normalised ones times their gains.
template <class Cell, class Math>
SF_KERNEL(kBlockThreads)
norm_input(SF_PARAMETER StepwiseArgs a) {
  using Row = NormRow<Cell, Math>;
  using Compute = typename Math::Compute;
  each_norm_row<Cell, Math>(a, [&](const Row& row, const auto& reduce) {
    if (!row.first.live) return;
    Compute mean[Row::kBlocks], inverse[Row::kBlocks];
    row.measure_side(reduce, 0, [&](int g, int64_t unit) { return row.input(g, unit); }, mean, inverse);
    row.each_unit([&](const StepwisePlace& p) {
      for (int g = 0; g < Row::kGates; ++g) {
        const Compute v = (row.input(g, p.unit) - mean[Cell::block_of(g)]) * inverse[Cell::block_of(g)];
        row.input(g, p.unit) = v * row.gain(0, g, p.unit);
        if (row.io.saved.data) row.normalised(0, g, p.unit) = Math::narrow(v);
      }
    });
  });
}

// Before the backward: the mean and the inverse deviation of c at every step, from what was saved of it.
template <class Cell, class Math>
SF_KERNEL(kBlockThreads)
norm_measure_c(SF_PARAMETER StepwiseArgs a) {
  using Row = NormRow<Cell, Math>;
  using Compute = typename Math::Compute;
  each_norm_row<Cell, Math>(a, [&](const Row& row, const auto& reduce) {
    if (!row.first.live) return;
    const auto each_value = [&](auto&& f) {
      row.each_unit([&](const StepwisePlace& p) { f(0, stepwise_c_given<typename Cell::Base, Math>(a, p)); });
    };
    const int64_t counts[1] = {a.H};
    Compute mean[1], inverse[1];
    row.measure(reduce, counts, each_value, mean, inverse);
    if (thread_id() == 0) row.c_statistics()[0] = mean[0], row.c_statistics()[1] = inverse[0];
  });
}

// Behind the backward: the sums over the steps of each row of the batch, see further_sums() in cells.h.
template <class Cell, class Math>
SF_KERNEL(kBlockThreads)
norm_sums(SF_PARAMETER StepwiseArgs a) {
  using Base = typename Cell::Base;
  using Compute = typename Math::Compute;
  each_place(a, a.sums_width, [&](const StepwisePlace& p) {
    const Rows& to = a.direction[p.d].d_further;
    if (!to.data) return;
    const auto which = static_cast<int>(p.unit / a.H) - Base::kSlots;  // negative: the bias of a slot
    const int64_t unit = p.unit % a.H;
    const bool of_gain = which >= 0 && which < 2 * Base::kGates;
    const int side = which / Base::kGates, gate = which % Base::kGates;
    const int slot = which < 0  ? which + Base::kSlots
                     : !of_gain ? which - 2 * Base::kGates + Base::kSlots
                     : side     ? Base::hidden_slot(gate)
                                : gate;
    Compute sum = 0;
    for (int64_t t = 0; t < p.length; ++t) {
      const NormRow<Cell, Math> row(a, p.d, t, p.b);
      const Compute d = Math::widen(row.d_slot(slot, unit));
      sum += of_gain ? d * Math::widen(row.normalised(side, gate, unit)) : d;
    }
    *element<typename Math::Storage>(to, 0, p.b, p.unit) = Math::narrow(sum);
  });
}

// Behind norm_sums: replaces the gradients of the slots by those of the sums of x.
template <class Cell, class Math>
SF_KERNEL(kBlockThreads)
norm_input_back(SF_PARAMETER StepwiseArgs a) {
  using Row = NormRow<Cell, Math>;
  each_norm_row<Cell, Math>(a, [&](const Row& row, const auto& reduce) {
    if (!row.first.live) return;
    row.side_backward(
        reduce, 0, [&](int g, int64_t unit) { return Math::widen(row.d_slot(g, unit)); },
        [&](const StepwisePlace& p, int g, typename Math::Compute d) { row.d_slot(g, p.unit) = Math::narrow(d); });
  });
}

}  // namespace sf::cuda

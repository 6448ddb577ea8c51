// The cells with layer normalisation, stepwise. A block takes a row of the batch at a time, since the sums of a row are
// normalised over its units: all gates together, but r and z of a GRU apart from n. Sums over a row are added in an
// order that depends on nothing but the width of the row.
//
// A row of saved values holds those of the base cell, the normalised sums of x and of h, and the inverse deviations in
// the compute type. The statistics of c are computed again from the saved values.
#pragma once

#include "stepwise.cuh"

namespace sf::cuda {

constexpr int kMostRowSums = 8;  // that are added up at once
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

SF_DEVICE float inverse_root(float v) { return 1.0f / sqrtf(v); }
SF_DEVICE double inverse_root(double v) { return 1.0 / sqrt(v); }
template <class Compute>
SF_DEVICE Compute inverse_deviation(Compute variance) {
  return inverse_root(variance + static_cast<Compute>(kNormEpsilon));
}

// One row: the sums of x and of h are its two sides, each in kBlocks blocks that are normalised apart.
template <class Cell, class Math>
struct NormRow {
  using Mathematics = Math;
  using Base = typename Cell::Base;
  using Storage = typename Math::Storage;
  using Compute = typename Math::Compute;
  static constexpr int kGates = Base::kGates, kBlocks = kGates == 3 ? 2 : 1;
  static SF_DEVICE int block_of(int gate) { return kBlocks == 2 && gate == 2; }
  static SF_DEVICE int gates_of(int block) { return kBlocks == 1 ? kGates : block ? 1 : 2; }

  const StepwiseArgs& a;
  const StepwiseDirectionArgs& io;
  int64_t row;  // in (directions, B)
  StepwisePlace first;

  SF_DEVICE NormRow(const StepwiseArgs& args, int64_t row_)
      : a(args), io(args.direction[row_ / args.B]), row(row_), first(args, row_ * args.H, args.H) {}

  template <class F>
  SF_DEVICE void each_unit(F&& f) const {
    for (int64_t unit = thread_id(); unit < a.H; unit += block_threads()) f(StepwisePlace(a, row * a.H + unit, a.H));
  }
  SF_DEVICE Compute gain(int side, int gate, int64_t unit) const {
    return Math::widen(static_cast<const Storage*>(io.further[side])[gate * a.H + unit]);
  }
  SF_DEVICE Compute of_c(int which, int64_t unit) const {  // its gain or its bias
    return Math::widen(static_cast<const Storage*>(io.further[2 + which])[unit]);
  }
  SF_DEVICE Compute sum(int side, int gate, int64_t unit) const {
    if (side == 0) return *element<const Compute>(io.projected, io.t, first.b, gate * a.H + unit);
    return static_cast<const Compute*>(io.products)[(first.b * kGates + gate) * a.H + unit];
  }
  // A value of this row for each gate of each side, which only one thread touches.
  SF_DEVICE Compute& scratch(int side, int gate, int64_t unit) const {
    return static_cast<Compute*>(io.scratch)[((first.b * 2 + side) * kGates + gate) * a.H + unit];
  }
  SF_DEVICE Storage* saved() const { return element<Storage>(io.saved, io.t, first.b, 0); }
  SF_DEVICE Storage& normalised(int side, int gate, int64_t unit) const {
    return saved()[(Base::kSaved + side * kGates + gate) * padded(a.H) + unit];
  }
  SF_DEVICE Compute* deviations() const {  // (sides, blocks)
    return reinterpret_cast<Compute*>(saved() + (Base::kSaved + 2 * kGates) * padded(a.H));
  }

  // The mean and the inverse deviation of c.
  template <class C>
  SF_DEVICE void measure_c(const RowReduce<Compute>& reduce, C&& c, Compute& mean, Compute& inverse) const {
    Compute sums[1] = {};
    each_unit([&](const StepwisePlace& p) { sums[0] += c(p); });
    reduce.sum(sums);
    mean = sums[0] / static_cast<Compute>(a.H);
    sums[0] = 0;
    each_unit([&](const StepwisePlace& p) { sums[0] += (c(p) - mean) * (c(p) - mean); });
    reduce.sum(sums);
    inverse = inverse_deviation(sums[0] / static_cast<Compute>(a.H));
  }
};

template <class Cell, class Math>
SF_KERNEL(kBlockThreads)
norm_forward(SF_PARAMETER StepwiseArgs a) {
  using Row = NormRow<Cell, Math>;
  using Base = typename Row::Base;
  using Compute = typename Math::Compute;
  constexpr int kGates = Row::kGates, kBlocks = Row::kBlocks;
  SharedAllocator allocator;
  const RowReduce<Compute> reduce(allocator);
  for (int64_t i = block_id(); i < a.directions * a.B; i += grid_blocks()) {
    const Row row(a, i);
    const StepwiseDirectionArgs& io = row.io;
    if (!row.first.live) {
      row.each_unit([&](const StepwisePlace& p) { stepwise_end_cell<Math>(a, p, 0); });
      continue;
    }
    Compute mean[2 * kBlocks] = {}, inverse[2 * kBlocks] = {};
    const auto each_sum = [&](auto&& f) {
      row.each_unit([&](const StepwisePlace& p) {
        for (int side = 0; side < 2; ++side)
          for (int g = 0; g < kGates; ++g) f(side * kBlocks + Row::block_of(g), row.sum(side, g, p.unit));
      });
    };
    const auto divide = [&](Compute(&sums)[2 * kBlocks]) {
      for (int k = 0; k < 2 * kBlocks; ++k) sums[k] /= static_cast<Compute>(Row::gates_of(k % kBlocks) * a.H);
    };
    each_sum([&](int k, Compute v) { mean[k] += v; });
    reduce.sum(mean);
    divide(mean);
    each_sum([&](int k, Compute v) { inverse[k] += (v - mean[k]) * (v - mean[k]); });
    reduce.sum(inverse);
    divide(inverse);
    for (int k = 0; k < 2 * kBlocks; ++k) inverse[k] = inverse_deviation(inverse[k]);
    if (io.saved.data && thread_id() == 0)
      for (int k = 0; k < 2 * kBlocks; ++k) row.deviations()[k] = inverse[k];

    row.each_unit([&](const StepwisePlace& p) {
      Compute seen[3];
      const auto options = stepwise_options<Base, Math, true>(a, p, seen);
      Compute slots[Base::kSlots], saved[Base::kSaved + 1];
      for (int s = 0; s < Base::kSlots; ++s) slots[s] = static_cast<const Compute*>(io.bias)[s * a.H + p.unit];
      for (int side = 0; side < 2; ++side)
        for (int g = 0; g < kGates; ++g) {
          const int k = side * kBlocks + Row::block_of(g);
          const Compute v = (row.sum(side, g, p.unit) - mean[k]) * inverse[k];
          slots[side ? Base::hidden_slot(g) : g] += v * row.gain(side, g, p.unit);
          if (io.saved.data) row.normalised(side, g, p.unit) = Math::narrow(v);
        }
      if constexpr (Base::kHasC) {
        Compute c = static_cast<const Compute*>(io.state)[p.at];
        Base::memory(slots, c, saved, options);
        row.scratch(0, 0, p.unit) = c, row.scratch(0, 1, p.unit) = saved[3];
        saved[4] = stepwise_store_c<Math>(a, p, c);
        stepwise_save<Base, Math>(a, p, saved);
      } else {
        Compute h = Math::widen(static_cast<const typename Math::Storage*>(io.h_state)[p.at]), none = 0;
        Base::forward(slots, h, none, saved, options);
        stepwise_save<Base, Math>(a, p, saved);
        stepwise_save_h<Cell, Math>(a, p, h);
        stepwise_store_h<Math>(a, p, h);
      }
    });
    if constexpr (Base::kHasC) {
      const auto c_of = [&](const StepwisePlace& p) { return row.scratch(0, 0, p.unit); };
      Compute c_mean, c_inverse;
      row.measure_c(reduce, c_of, c_mean, c_inverse);
      row.each_unit([&](const StepwisePlace& p) {
        const Compute c = fma((c_of(p) - c_mean) * c_inverse, row.of_c(0, p.unit), row.of_c(1, p.unit));
        stepwise_end_cell<Math>(a, p, Base::output(row.scratch(0, 1, p.unit), c));
      });
    }
  }
}

// The gradient of the normalisation of c. Leaves that of the c which the cell gave, without the carry, in the scratch
// of gate f, and the gradient of the sum of o in that of gate g.
template <class Row, class Compute>
SF_DEVICE void norm_c_backward(const Row& row, const RowReduce<Compute>& reduce) {
  using Math = typename Row::Mathematics;
  const StepwiseArgs& a = row.a;
  const auto c_of = [&](const StepwisePlace& p) -> Compute& { return row.scratch(0, 0, p.unit); };
  const auto d_c_of = [&](const StepwisePlace& p) -> Compute& { return row.scratch(0, 1, p.unit); };
  const auto d_o_of = [&](const StepwisePlace& p) -> Compute& { return row.scratch(0, 2, p.unit); };
  row.each_unit([&](const StepwisePlace& p) {
    Compute seen[3];
    const auto options = stepwise_options<Lstm, Math, true>(a, p, seen);
    Compute saved[5];
    stepwise_read_saved<Lstm, Math>(a, p, saved);
    c_of(p) = stepwise_c_given(a, saved, stepwise_c_before<Lstm, Math>(a, p), options);
    d_o_of(p) = saved[3];
  });
  Compute mean, inverse, sums[2] = {};
  row.measure_c(reduce, c_of, mean, inverse);
  constexpr int kFirst = Lstm::kSlots + 2 * Lstm::kGates;  // see further_sums()
  row.each_unit([&](const StepwisePlace& p) {
    const Compute v = (c_of(p) - mean) * inverse, o = d_o_of(p), gain = row.of_c(0, p.unit);
    const Compute read = fma(v, gain, row.of_c(1, p.unit));
    Compute d_read = 0;
    Lstm::output_backward(o, read, stepwise_dh<Lstm, Math>(a, p), d_o_of(p), d_read);
    if (a.P)
      *element<typename Math::Storage>(row.io.d_gates, row.io.t, p.b, a.beyond_slots + a.P + p.unit) =
          Math::narrow(Lstm::output(o, read));
    add_sum(a, p, kFirst, d_read * v);
    add_sum(a, p, kFirst + 1, d_read);
    d_c_of(p) = d_read * gain;
    c_of(p) = v;
    sums[0] += d_c_of(p), sums[1] += d_c_of(p) * v;
  });
  reduce.sum(sums);
  for (Compute& sum : sums) sum /= static_cast<Compute>(a.H);
  row.each_unit([&](const StepwisePlace& p) { d_c_of(p) = inverse * (d_c_of(p) - sums[0] - c_of(p) * sums[1]); });
}

template <class Cell, class Math>
SF_KERNEL(kBlockThreads)
norm_backward(SF_PARAMETER StepwiseArgs a) {
  using Row = NormRow<Cell, Math>;
  using Base = typename Row::Base;
  using Compute = typename Math::Compute;
  constexpr int kGates = Row::kGates, kBlocks = Row::kBlocks;
  SharedAllocator allocator;
  const RowReduce<Compute> reduce(allocator);
  for (int64_t i = block_id(); i < a.directions * a.B; i += grid_blocks()) {
    const Row row(a, i);
    if (!row.first.live) {
      row.each_unit([&](const StepwisePlace& p) {
        const Compute none[Cell::kSlots] = {};
        stepwise_dh<Base, Math>(a, p);  // which keeps the gradient for a later step
        stepwise_write_slots<Cell, Math>(a, p, none);
      });
      continue;
    }
    if constexpr (Base::kHasC) norm_c_backward(row, reduce);
    Compute sums[4 * kBlocks] = {};  // for each side and block: of the gradients, and of these times the values
    row.each_unit([&](const StepwisePlace& p) {
      Compute seen[3];
      const auto options = stepwise_options<Base, Math, true>(a, p, seen);
      Compute saved[Base::kSaved + 1], d[Base::kSlots];
      stepwise_read_saved<Base, Math>(a, p, saved);
      if constexpr (Base::kHasC) {
        const Compute of_norm = row.scratch(0, 1, p.unit);
        d[3] = row.scratch(0, 2, p.unit);
        stepwise_carry_c<Math>(a, p, [&](Compute& d_c) {
          d_c += of_norm;
          Base::memory_backward(saved, stepwise_c_before<Base, Math>(a, p), d_c, d, options);
        });
      } else {
        const Compute dh = stepwise_dh<Base, Math>(a, p), h = Base::kReadsH ? stepwise_h_given<Cell, Math>(a, p) : 0;
        const Compute h_before = Base::kReadsHPrev ? Math::widen(stepwise_h_before<Math>(a, p)) : 0;
        Compute carry = 0;
        Base::backward(saved, h, h_before, Compute{0}, dh, carry, d, options);
        if (Base::kCarriesH) stepwise_keep_carry<Math>(a, p, carry);
      }
      for (int s = 0; s < Base::kSlots; ++s) add_sum(a, p, s, d[s]);
      for (int side = 0; side < 2; ++side)
        for (int g = 0; g < kGates; ++g) {
          const int k = side * kBlocks + Row::block_of(g);
          const Compute v = Math::widen(row.normalised(side, g, p.unit)), d_sum = d[side ? Base::hidden_slot(g) : g];
          const Compute d_v = d_sum * row.gain(side, g, p.unit);
          add_sum(a, p, Base::kSlots + side * kGates + g, d_sum * v);
          row.scratch(side, g, p.unit) = d_v;
          sums[2 * k] += d_v, sums[2 * k + 1] += d_v * v;
        }
    });
    reduce.sum(sums);
    row.each_unit([&](const StepwisePlace& p) {
      Compute d[Cell::kSlots];
      for (int side = 0; side < 2; ++side)
        for (int g = 0; g < kGates; ++g) {
          const int k = side * kBlocks + Row::block_of(g);
          const auto count = static_cast<Compute>(Row::gates_of(Row::block_of(g)) * a.H);
          const Compute v = Math::widen(row.normalised(side, g, p.unit));
          d[side * kGates + g] = row.deviations()[k] *
                                 (row.scratch(side, g, p.unit) - sums[2 * k] / count - v * (sums[2 * k + 1] / count));
        }
      stepwise_write_slots<Cell, Math>(a, p, d);
    });
  }
}

}  // namespace sf::cuda

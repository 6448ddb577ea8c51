// A step of the cells with layer normalisation in the stepwise regime: the sums of h are normalised here, those of x by
// norm_rows.cuh. A block takes a row of the batch at a time.
#pragma once

#include "norm_rows.cuh"

namespace sf::cuda {

template <class Cell, class Math>
SF_KERNEL(kBlockThreads)
norm_forward(SF_PARAMETER StepwiseArgs a) {
  using Row = NormRow<Cell, Math>;
  using Base = typename Row::Base;
  using Compute = typename Math::Compute;
  constexpr int kGates = Row::kGates, kBlocks = Row::kBlocks;
  each_norm_row<Cell, Math>(a, [&](const Row& row, const auto& reduce) {
    const StepwiseDirectionArgs& io = row.io;
    if (!row.first.live) {
      row.each_unit([&](const StepwisePlace& p) { stepwise_end_cell<Math>(a, p, 0); });
      return;
    }
    Compute mean[kBlocks], inverse[kBlocks];
    row.measure_side(reduce, 1, [&](int g, int64_t unit) { return row.product(g, unit); }, mean, inverse);
    row.each_unit([&](const StepwisePlace& p) {
      Compute seen[3];
      const auto options = stepwise_options<Base, Math, true>(a, p, seen);
      Compute slots[Base::kSlots], saved[Base::kSaved + 1];
      stepwise_slots<Base, Math>(a, p, slots);
      for (int g = 0; g < kGates; ++g) {
        const Compute v = (row.product(g, p.unit) - mean[Cell::block_of(g)]) * inverse[Cell::block_of(g)];
        slots[Base::hidden_slot(g)] += v * row.gain(1, g, p.unit);
        if (io.saved.data) row.normalised(1, g, p.unit) = Math::narrow(v);
      }
      if constexpr (Base::kHasC) {
        Compute c = static_cast<const Compute*>(io.state)[p.at];
        Base::memory(slots, c, saved, options);
        row.scratch(0, p.unit) = c, row.scratch(1, p.unit) = saved[3];
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
      const auto each_value = [&](auto&& f) {
        row.each_unit([&](const StepwisePlace& p) { f(0, row.scratch(0, p.unit)); });
      };
      const int64_t counts[1] = {a.H};
      Compute of_c[1], inverse_of_c[1];
      row.measure(reduce, counts, each_value, of_c, inverse_of_c);
      row.each_unit([&](const StepwisePlace& p) {
        const Compute v = (row.scratch(0, p.unit) - of_c[0]) * inverse_of_c[0];
        const Compute c = fma(v, row.of_c(0, p.unit), row.of_c(1, p.unit));
        stepwise_end_cell<Math>(a, p, Base::output(row.scratch(1, p.unit), c));
      });
    }
  });
}

// The gradient of the normalisation of c. Leaves that of the c which the cell gave, without the carry, in the scratch
// of gate f, and the gradient of the sum of o in that of gate g.
template <class Row, class Reduce>
SF_DEVICE void norm_c_backward(const Row& row, const Reduce& reduce) {
  using Math = typename Row::Mathematics;
  using Compute = typename Math::Compute;
  const StepwiseArgs& a = row.a;
  const Compute mean = row.c_statistics()[0], inverse = row.c_statistics()[1];
  Compute sums[2] = {};
  row.each_unit([&](const StepwisePlace& p) {
    Compute saved[5], d_o, d_read = 0;
    stepwise_read_saved<Lstm, Math>(a, p, saved);
    const Compute o = saved[3], v = (stepwise_c_given<Lstm, Math>(a, p) - mean) * inverse, gain = row.of_c(0, p.unit);
    const Compute read = fma(v, gain, row.of_c(1, p.unit));
    Lstm::output_backward(o, read, stepwise_dh<Lstm, Math>(a, p), d_o, d_read);
    if (a.P)
      *element<typename Math::Storage>(row.io.d_gates, p.t, p.b, a.beyond_slots + a.P + p.unit) =
          Math::narrow(Lstm::output(o, read));
    row.d_slot(Lstm::kSlots, p.unit) = Math::narrow(d_read * v);
    row.d_slot(Lstm::kSlots + 1, p.unit) = Math::narrow(d_read);
    row.scratch(0, p.unit) = v, row.scratch(1, p.unit) = d_read * gain, row.scratch(2, p.unit) = d_o;
    sums[0] += d_read * gain, sums[1] += d_read * gain * v;
  });
  reduce.sum(sums);
  for (Compute& sum : sums) sum /= static_cast<Compute>(a.H);
  row.each_unit([&](const StepwisePlace& p) {
    row.scratch(1, p.unit) = norm_gradient(row.scratch(1, p.unit), row.scratch(0, p.unit), inverse, sums[0], sums[1]);
  });
}

template <class Cell, class Math>
SF_KERNEL(kBlockThreads)
norm_backward(SF_PARAMETER StepwiseArgs a) {
  using Row = NormRow<Cell, Math>;
  using Base = typename Row::Base;
  using Storage = typename Math::Storage;
  using Compute = typename Math::Compute;
  each_norm_row<Cell, Math>(a, [&](const Row& row, const auto& reduce) {
    const auto operand = [&](int g, const StepwisePlace& p) -> Storage& {
      return static_cast<Storage*>(row.io.h)[(p.b * Base::kGates + g) * a.H + p.unit];
    };
    if (!row.first.live) {
      row.each_unit([&](const StepwisePlace& p) {
        stepwise_dh<Base, Math>(a, p);  // which keeps the gradient for a later step
        for (int g = 0; g < Base::kGates; ++g) operand(g, p) = Math::narrow(0);
      });
      return;
    }
    if constexpr (Base::kHasC) norm_c_backward(row, reduce);
    row.each_unit([&](const StepwisePlace& p) {
      Compute seen[3];
      const auto options = stepwise_options<Base, Math, true>(a, p, seen);
      Compute saved[Base::kSaved + 1], d[Base::kSlots];
      stepwise_read_saved<Base, Math>(a, p, saved);
      if constexpr (Base::kHasC) {
        const Compute of_norm = row.scratch(1, p.unit);
        d[3] = row.scratch(2, p.unit);
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
      for (int s = 0; s < Base::kSlots; ++s) row.d_slot(s, p.unit) = Math::narrow(d[s]);
      for (int g = 0; g < Base::kGates; ++g) row.scratch(g, p.unit) = d[Base::hidden_slot(g)];
    });
    row.side_backward(
        reduce, 1, [&](int g, int64_t unit) { return row.scratch(g, unit); },
        [&](const StepwisePlace& p, int g, Compute d) {
          const Storage stored = Math::narrow(d);
          *element<Storage>(row.io.d_gates, p.t, p.b, (Base::kGates + g) * a.H + p.unit) = stored;
          operand(g, p) = p.anew(a) ? Math::narrow(0) : stored;
        });
  });
}

}  // namespace sf::cuda

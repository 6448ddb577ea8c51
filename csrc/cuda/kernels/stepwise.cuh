// The stepwise regime: one product and one cell kernel per step, for any size, any dtype, projected states and options.
// Each step reads R again. The launches can be captured in a CUDA graph. A cell with a norm or with two products has
// kernels of its own: stepwise_norm.cuh, stepwise_reset.cuh.
//
// A row whose next step starts anew gets the reset state at the end of this step, in place of its own. In the backward,
// the operand of a step that started anew is zero, so that nothing flows back over it: what should have flowed to the
// reset state is added up apart (end_resets in host/host.h).
#pragma once

#include "stepwise_args.cuh"

namespace sf::cuda {

// The first kernel of the forward: sets the states to h0 and c0, to the reset state, or to zeros.
template <class Math>
SF_KERNEL(kBlockThreads)
stepwise_begin(SF_PARAMETER StepwiseArgs a) {
  using Storage = typename Math::Storage;
  using Compute = typename Math::Compute;
  each_place(a, a.widest(), [&](const StepwisePlace& p) {
    const int64_t at = p.b * a.H + p.unit;  // in (B, H)
    const bool has_cell = p.unit < a.H;
    const StepwiseDirectionArgs& io = a.direction[p.d];
    const bool anew = p.d == 0 && p.length > 0 && starts_anew(a.resets, 0, 0, p.b, p.length);
    if (has_cell) static_cast<Compute*>(io.state)[at] = wide_or_zero<Math>(anew ? io.c_reset : io.c0, p.b, p.unit);
    if (p.unit < a.out()) {
      const Storage h = stored_or_zero<Math>(anew ? io.h_reset : io.h0, p.b, p.unit);
      static_cast<Storage*>(io.h_state)[p.b * a.out() + p.unit] = h;
      static_cast<Storage*>(io.h)[p.b * a.out() + p.unit] = masked_state<Math>(a.noise, p.d, p.b, p.unit, h);
    }
  });
}

// The end of a step, with and without a projection: keep h for the next step and write it to the output.
template <class Math>
SF_DEVICE void stepwise_store_h(const StepwiseArgs& a, const StepwisePlace& p, typename Math::Compute h) {
  using Storage = typename Math::Storage;
  const StepwiseDirectionArgs& io = a.direction[p.d];
  if (!p.live) return;
  Storage& state = static_cast<Storage*>(io.h_state)[p.at];
  const NewShare<typename Math::Compute> share(a.noise, Masked::kZoneoutH, p.d, p.b, p.t, p.unit);
  Storage stored = Math::narrow(share.mix(h, Math::widen(state)));
  if (a.write_output) *element<Storage>(io.output, p.t, p.b, p.unit) = stored;
  if (p.next_anew(a)) stored = stored_or_zero<Math>(io.h_reset, p.b, p.unit);
  state = stored;
  static_cast<Storage*>(io.h)[p.at] = masked_state<Math>(a.noise, p.d, p.b, p.unit, stored);
}

// The same for c. Returns c as it is saved.
template <class Math>
SF_DEVICE typename Math::Compute stepwise_store_c(const StepwiseArgs& a, const StepwisePlace& p,
                                                  typename Math::Compute c) {
  using Compute = typename Math::Compute;
  const StepwiseDirectionArgs& io = a.direction[p.d];
  Compute& state = static_cast<Compute*>(io.state)[p.at];
  c = NewShare<Compute>(a.noise, Masked::kZoneoutC, p.d, p.b, p.t, p.unit).mix(c, state);
  state = p.next_anew(a) ? wide_or_zero<Math>(io.c_reset, p.b, p.unit) : c;
  return c;
}

// The sums of biases and projected input, to which the products are added.
template <class Cell, class Math>
SF_DEVICE void stepwise_slots(const StepwiseArgs& a, const StepwisePlace& p,
                              typename Math::Compute (&slots)[Cell::kSlots]) {
  using Compute = typename Math::Compute;
  const StepwiseDirectionArgs& io = a.direction[p.d];
  for (int s = 0; s < Cell::kSlots; ++s) slots[s] = static_cast<const Compute*>(io.bias)[s * a.H + p.unit];
  for (int g = 0; g < Cell::kGates; ++g) slots[g] += *element<const Compute>(io.projected, p.t, p.b, g * a.H + p.unit);
}

template <class Cell, class Math>
SF_DEVICE void stepwise_save(const StepwiseArgs& a, const StepwisePlace& p, const typename Math::Compute* saved) {
  const StepwiseDirectionArgs& io = a.direction[p.d];
  if (!io.saved.data) return;
  auto* to = element<typename Math::Storage>(io.saved, p.t, p.b, 0);
  for (int s = 0; s < Cell::kSaved; ++s) to[saved_at(s, p.unit, padded(a.H))] = Math::narrow(saved[s]);
}

// Where in a row of saved values is the h that a cell gave, if zoneout changed it.
template <class Cell>
SF_DEVICE int64_t fresh_h_at(const StepwiseArgs& a, int64_t unit) {
  return Cell::kSaved * padded(a.H) + unit;
}
template <class Cell, class Math>
SF_DEVICE typename Math::Compute stepwise_h_given(const StepwiseArgs& a, const StepwisePlace& p) {
  using Storage = typename Math::Storage;
  const StepwiseDirectionArgs& io = a.direction[p.d];
  return Math::widen(a.saves_fresh_h ? element<const Storage>(io.saved, p.t, p.b, 0)[fresh_h_at<Cell>(a, p.unit)]
                                     : *element<const Storage>(io.output, p.t, p.b, p.unit));
}
template <class Cell, class Math>
SF_DEVICE void stepwise_save_h(const StepwiseArgs& a, const StepwisePlace& p, typename Math::Compute h) {
  const StepwiseDirectionArgs& io = a.direction[p.d];
  if (Cell::kReadsH && a.saves_fresh_h && io.saved.data)
    element<typename Math::Storage>(io.saved, p.t, p.b, 0)[fresh_h_at<Cell>(a, p.unit)] = Math::narrow(h);
}

// Keeps h, or hands it to the projection.
template <class Math>
SF_DEVICE void stepwise_end_cell(const StepwiseArgs& a, const StepwisePlace& p, typename Math::Compute h) {
  if (a.P)
    static_cast<typename Math::Storage*>(a.direction[p.d].unprojected)[p.at] = Math::narrow(p.live ? h : 0);
  else
    stepwise_store_h<Math>(a, p, h);
}

template <class Cell, class Math, bool kOptions>
SF_KERNEL(kBlockThreads)
stepwise_forward(SF_PARAMETER StepwiseArgs a) {
  using Storage = typename Math::Storage;
  using Compute = typename Math::Compute;
  each_place(a, a.H, [&](const StepwisePlace& p) {
    const StepwiseDirectionArgs& io = a.direction[p.d];
    Compute h = 0;
    if (p.live) {
      const auto* products = static_cast<const Compute*>(io.products) + p.b * Cell::kGates * a.H;
      Compute seen[3];
      const auto options = stepwise_options<Cell, Math, kOptions>(a, p, seen);
      Compute slots[Cell::kSlots], saved[Cell::kSaved + 1], c = static_cast<const Compute*>(io.state)[p.at];
      stepwise_slots<Cell, Math>(a, p, slots);
      for (int g = 0; g < Cell::kGates; ++g) slots[Cell::hidden_slot(g)] += products[g * a.H + p.unit];
      if (!a.P) h = Math::widen(static_cast<const Storage*>(io.h_state)[p.at]);
      Cell::forward(slots, h, c, saved, options);
      if constexpr (Cell::kHasC) saved[Cell::kSaved - 1] = stepwise_store_c<Math>(a, p, c);
      stepwise_save<Cell, Math>(a, p, saved);
      stepwise_save_h<Cell, Math>(a, p, h);
    }
    stepwise_end_cell<Math>(a, p, h);
  });
}

// With a projection: takes h from the product with W_hr.
template <class Math>
SF_KERNEL(kBlockThreads)
stepwise_project(SF_PARAMETER StepwiseArgs a) {
  each_place(a, a.P, [&](const StepwisePlace& p) {
    stepwise_store_h<Math>(a, p, static_cast<const typename Math::Compute*>(a.direction[p.d].projections)[p.at]);
  });
}

// Writes the states after the last step.
template <class Cell, class Math>
SF_KERNEL(kBlockThreads)
stepwise_end(SF_PARAMETER StepwiseArgs a) {
  using Storage = typename Math::Storage;
  each_place(a, a.widest(), [&](const StepwisePlace& p) {
    const int64_t at = p.b * a.H + p.unit;  // in (B, H)
    const bool has_cell = p.unit < a.H;
    const StepwiseDirectionArgs& io = a.direction[p.d];
    if (p.unit < a.out())
      *element<Storage>(io.h_n, 0, p.b, p.unit) = static_cast<const Storage*>(io.h_state)[p.b * a.out() + p.unit];
    if (Cell::kHasC && has_cell)
      *element<Storage>(io.c_n, 0, p.b, p.unit) =
          Math::narrow(static_cast<const typename Math::Compute*>(io.state)[at]);
  });
}

// The first kernel of the backward: sets the gradients of the states after the last step.
template <class Math>
SF_KERNEL(kBlockThreads)
stepwise_begin_back(SF_PARAMETER StepwiseArgs a) {
  using Compute = typename Math::Compute;
  each_place(a, a.widest(), [&](const StepwisePlace& p) {
    const int64_t at = p.b * a.H + p.unit;  // in (B, H)
    const bool has_cell = p.unit < a.H;
    const StepwiseDirectionArgs& io = a.direction[p.d];
    if (has_cell) static_cast<Compute*>(io.carry)[at] = wide_or_zero<Math>(io.d_c_n, p.b, p.unit);
    if (p.unit < a.out())
      static_cast<Compute*>(io.state)[p.b * a.out() + p.unit] = wide_or_zero<Math>(io.d_h_n, p.b, p.unit);
  });
}

// Adds the product of the step before this one to d(loss)/dh. If the row has this step, the cell uses up the sum, but
// for the share that zoneout gives to the h before; otherwise the sum is kept for a later step. `carry` is added to the
// gradient and set to zero if the row has the step.
template <class Math>
SF_DEVICE typename Math::Compute stepwise_take_dh(const StepwiseArgs& a, const StepwisePlace& p,
                                                  typename Math::Compute* carry = nullptr) {
  using Compute = typename Math::Compute;
  const StepwiseDirectionArgs& io = a.direction[p.d];
  Compute& pending = static_cast<Compute*>(io.state)[p.at];
  Compute d = pending;
  if (io.products) d += static_cast<const Compute*>(io.products)[p.at] * state_mask<Compute>(a.noise, p.d, p.b, p.unit);
  pending = d;
  if (!p.live) return 0;
  if (io.d_output.data) d += Math::widen(*element<const typename Math::Storage>(io.d_output, p.t, p.b, p.unit));
  if (carry) {
    d += *carry;
    *carry = 0;
  }
  const NewShare<Compute> share(a.noise, Masked::kZoneoutH, p.d, p.b, p.t, p.unit);
  pending = share.of_old(d);
  if (p.anew(a)) {
    add_carry(io.reset_h, p.at, pending);
    pending = 0;
  }
  return share.of_new(d);
}

// The h and the c before the step.
template <class Math>
SF_DEVICE typename Math::Storage stepwise_h_before(const StepwiseArgs& a, const StepwisePlace& p) {
  const StepwiseDirectionArgs& io = a.direction[p.d];
  const int64_t before = p.before();
  if (p.anew(a)) return stored_or_zero<Math>(io.h_reset, p.b, p.unit);
  if (before < 0) return stored_or_zero<Math>(io.h0, p.b, p.unit);
  return *element<const typename Math::Storage>(io.output, before, p.b, p.unit);
}
template <class Cell, class Math>
SF_DEVICE typename Math::Compute stepwise_c_before(const StepwiseArgs& a, const StepwisePlace& p) {
  const StepwiseDirectionArgs& io = a.direction[p.d];
  const int64_t before = p.before();
  if (p.anew(a)) return wide_or_zero<Math>(io.c_reset, p.b, p.unit);
  if (before < 0) return wide_or_zero<Math>(io.c0, p.b, p.unit);
  const auto* saved = element<const typename Math::Storage>(io.saved, before, p.b, 0);
  return Math::widen(saved[saved_at(Cell::kSaved - 1, p.unit, padded(a.H))]);
}

template <class Cell, class Math>
SF_DEVICE void stepwise_read_saved(const StepwiseArgs& a, const StepwisePlace& p, typename Math::Compute* saved) {
  const StepwiseDirectionArgs& io = a.direction[p.d];
  const auto* from = element<const typename Math::Storage>(io.saved, p.t, p.b, 0);
  for (int s = 0; s < Cell::kSaved; ++s) saved[s] = Math::widen(from[saved_at(s, p.unit, padded(a.H))]);
}

// The c that a cell gave, which is saved as zoneout left it.
template <class Compute, class Options>
SF_DEVICE Compute stepwise_c_given(const StepwiseArgs& a, const Compute* saved, Compute c_before, const Options& unit) {
  return a.noise.zoneout_c > 0 ? Lstm::next_c(saved[0], saved[1], saved[2], c_before, unit) : saved[4];
}
template <class Cell, class Math>
SF_DEVICE typename Math::Compute stepwise_c_given(const StepwiseArgs& a, const StepwisePlace& p) {
  typename Math::Compute saved[5], seen[3];
  stepwise_read_saved<Cell, Math>(a, p, saved);
  return stepwise_c_given(a, saved, stepwise_c_before<Cell, Math>(a, p),
                          stepwise_options<Cell, Math, true>(a, p, seen));
}

// The carry of c before and after the step: takes the share that zoneout gives to the cell's c, and adds the other
// share to the gradient of the c before.
template <class Math, class Backward>
SF_DEVICE void stepwise_carry_c(const StepwiseArgs& a, const StepwisePlace& p, Backward&& backward) {
  using Compute = typename Math::Compute;
  const StepwiseDirectionArgs& io = a.direction[p.d];
  Compute& carry = static_cast<Compute*>(io.carry)[p.at];
  const NewShare<Compute> share(a.noise, Masked::kZoneoutC, p.d, p.b, p.t, p.unit);
  Compute d_c = share.of_new(carry);
  backward(d_c);
  carry = d_c + share.of_old(carry);
  if (p.anew(a)) {
    add_carry(io.reset_c, p.at, carry);
    carry = 0;
  }
}

// Keeps a part of the gradient of the h before for the next step, or adds it to that of the reset state.
template <class Math>
SF_DEVICE void stepwise_keep_carry(const StepwiseArgs& a, const StepwisePlace& p, typename Math::Compute carry) {
  const StepwiseDirectionArgs& io = a.direction[p.d];
  if (p.anew(a)) {
    add_carry(io.reset_h, p.at, carry);
    carry = 0;
  }
  static_cast<typename Math::Compute*>(io.carry)[p.at] = carry;
}

// Writes the gradients of the slots, and the operand of the product: zero where nothing flows back.
template <class Cell, class Math>
SF_DEVICE void stepwise_write_slots(const StepwiseArgs& a, const StepwisePlace& p, const typename Math::Compute* d) {
  using Storage = typename Math::Storage;
  const StepwiseDirectionArgs& io = a.direction[p.d];
  Storage* next = static_cast<Storage*>(io.h) + p.b * Cell::kGates * a.H + p.unit;
  const bool flows = p.live && !p.anew(a);
  for (int g = 0; g < Cell::kGates; ++g) next[g * a.H] = Math::narrow(flows ? d[Cell::hidden_slot(g)] : 0);
  if (!p.live) return;
  Storage* to = element<Storage>(io.d_gates, p.t, p.b, p.unit);
  for (int s = 0; s < Cell::kSlots; ++s) to[s * a.H] = Math::narrow(d[s]);
}

// With a projection: takes d(loss)/dh of the projected h, for the product with W_hr that follows.
template <class Math>
SF_KERNEL(kBlockThreads)
stepwise_project_back(SF_PARAMETER StepwiseArgs a) {
  using Storage = typename Math::Storage;
  each_place(a, a.P, [&](const StepwisePlace& p) {
    const StepwiseDirectionArgs& io = a.direction[p.d];
    const Storage d = Math::narrow(stepwise_take_dh<Math>(a, p));
    static_cast<Storage*>(io.unprojected)[p.at] = d;
    if (p.live) *element<Storage>(io.d_gates, p.t, p.b, a.beyond_slots + p.unit) = d;
  });
}

template <class Cell, class Math>
SF_DEVICE typename Math::Compute stepwise_dh(const StepwiseArgs& a, const StepwisePlace& p) {
  using Compute = typename Math::Compute;
  const StepwiseDirectionArgs& io = a.direction[p.d];
  if (a.P) return static_cast<const Compute*>(io.projections)[p.at];
  return stepwise_take_dh<Math>(a, p, Cell::kCarriesH ? static_cast<Compute*>(io.carry) + p.at : nullptr);
}

template <class Cell, class Math, bool kOptions>
SF_KERNEL(kBlockThreads)
stepwise_backward(SF_PARAMETER StepwiseArgs a) {
  using Storage = typename Math::Storage;
  using Compute = typename Math::Compute;
  each_place(a, a.H, [&](const StepwisePlace& p) {
    const StepwiseDirectionArgs& io = a.direction[p.d];
    const Compute dh = stepwise_dh<Cell, Math>(a, p);
    Compute saved[Cell::kSaved + 1], d[Cell::kSlots] = {};
    if (p.live) {
      Compute seen[3];
      const auto options = stepwise_options<Cell, Math, kOptions>(a, p, seen);
      stepwise_read_saved<Cell, Math>(a, p, saved);
      if constexpr (Cell::kHasC) {
        const Compute c_before = stepwise_c_before<Cell, Math>(a, p);
        saved[4] = stepwise_c_given(a, saved, c_before, options);
        stepwise_carry_c<Math>(
            a, p, [&](Compute& d_c) { Cell::backward(saved, Compute{0}, Compute{0}, c_before, dh, d_c, d, options); });
        if constexpr (OptionsOf<Cell>::kPeephole) {
          add_sum(a, p, 0, d[0] * c_before);
          add_sum(a, p, 1, d[1] * c_before);
          add_sum(a, p, 2, d[3] * saved[4]);
        }
        if (a.P)
          *element<Storage>(io.d_gates, p.t, p.b, a.beyond_slots + a.P + p.unit) =
              Math::narrow(Cell::unprojected(saved));
      } else {
        const Compute h = Cell::kReadsH ? stepwise_h_given<Cell, Math>(a, p) : 0;
        const Compute h_before = Cell::kReadsHPrev ? Math::widen(stepwise_h_before<Math>(a, p)) : 0;
        Compute carry = 0;
        Cell::backward(saved, h, h_before, Compute{0}, dh, carry, d, options);
        if (Cell::kCarriesH) stepwise_keep_carry<Math>(a, p, carry);
      }
    }
    stepwise_write_slots<Cell, Math>(a, p, d);
  });
}

// Writes the gradients of h0 and c0.
template <class Cell, class Math>
SF_KERNEL(kBlockThreads)
stepwise_end_back(SF_PARAMETER StepwiseArgs a) {
  using Storage = typename Math::Storage;
  using Compute = typename Math::Compute;
  each_place(a, a.widest(), [&](const StepwisePlace& p) {
    const int64_t at = p.b * a.H + p.unit;  // in (B, H)
    const bool has_cell = p.unit < a.H;
    const StepwiseDirectionArgs& io = a.direction[p.d];
    const Compute carry = has_cell ? static_cast<const Compute*>(io.carry)[at] : 0;
    if (p.unit < a.out() && io.d_h0.data) {
      const int64_t in_out = p.b * a.out() + p.unit;
      const Compute d =
          static_cast<const Compute*>(io.state)[in_out] +
          static_cast<const Compute*>(io.products)[in_out] * state_mask<Compute>(a.noise, p.d, p.b, p.unit);
      *element<Storage>(io.d_h0, 0, p.b, p.unit) = Math::narrow(d + (Cell::kCarriesH ? carry : 0));
    }
    if (Cell::kHasC && has_cell && io.d_c0.data) *element<Storage>(io.d_c0, 0, p.b, p.unit) = Math::narrow(carry);
  });
}

struct StepwiseSums {
  const void* sums;  // (B, width) in the compute type
  Rows to;
  int64_t B, width;
};
// Writes the sums of the rows.
template <class Math>
SF_KERNEL(kBlockThreads)
stepwise_end_sums(SF_PARAMETER StepwiseSums a) {
  for (int64_t i = global_thread(); i < a.B * a.width; i += all_threads())
    *element<typename Math::Storage>(a.to, 0, i / a.width, i % a.width) =
        Math::narrow(static_cast<const typename Math::Compute*>(a.sums)[i]);
}

}  // namespace sf::cuda

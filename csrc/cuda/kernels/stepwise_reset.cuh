// The GRU whose r meets h before the product (reset_after=False): a step has two products, that of the gates r and z,
// and that of gate n, which takes r * h. Each product is followed by a kernel.
#pragma once

#include "stepwise.cuh"

namespace sf::cuda {

// The sums of r, z and n, the last without its product.
template <class Math>
SF_DEVICE void reset_before_slots(const StepwiseArgs& a, const StepwisePlace& p, typename Math::Compute (&slots)[3]) {
  const StepwiseDirectionArgs& io = a.direction[p.d];
  stepwise_slots<GruResetBefore, Math>(a, p, slots);
  const auto* products = static_cast<const typename Math::Compute*>(io.products) + p.b * 2 * a.H + p.unit;
  for (int g = 0; g < 2; ++g) slots[g] += products[g * a.H];
}

// After the product of r and z: the operand of n.
template <class Math>
SF_KERNEL(kBlockThreads)
reset_before_operand(SF_PARAMETER StepwiseArgs a) {
  using Storage = typename Math::Storage;
  each_place(a, a.H, [&](const StepwisePlace& p) {
    const StepwiseDirectionArgs& io = a.direction[p.d];
    Storage& to = static_cast<Storage*>(io.second)[p.at];
    to = Math::narrow(0);
    if (!p.live) return;
    typename Math::Compute slots[3], gates[2];
    reset_before_slots<Math>(a, p, slots);
    GruResetBefore::gates(slots, gates);
    to = Math::narrow(gates[0] * Math::widen(static_cast<const Storage*>(io.h)[p.at]));
  });
}

// After the product of n.
template <class Math>
SF_KERNEL(kBlockThreads)
reset_before_forward(SF_PARAMETER StepwiseArgs a) {
  using Storage = typename Math::Storage;
  using Compute = typename Math::Compute;
  each_place(a, a.H, [&](const StepwisePlace& p) {
    const StepwiseDirectionArgs& io = a.direction[p.d];
    if (!p.live) return;
    Compute seen[3];
    const auto options = stepwise_options<GruResetBefore, Math, true>(a, p, seen);
    Compute slots[3], saved[5];
    reset_before_slots<Math>(a, p, slots);
    Compute h = Math::widen(static_cast<const Storage*>(io.h_state)[p.at]);
    GruResetBefore::gates(slots, saved);
    GruResetBefore::finish(slots[2] + static_cast<const Compute*>(io.second_products)[p.at], h, saved, options);
    saved[3] = Math::widen(static_cast<const Storage*>(io.second)[p.at]);  // r * h, for the gradient of R
    stepwise_save<GruResetBefore, Math>(a, p, saved);
    stepwise_store_h<Math>(a, p, h);
  });
}

// The gradients of the sums of z and n, before the product of n.
template <class Math>
SF_KERNEL(kBlockThreads)
reset_before_mixed_back(SF_PARAMETER StepwiseArgs a) {
  using Storage = typename Math::Storage;
  using Compute = typename Math::Compute;
  each_place(a, a.H, [&](const StepwisePlace& p) {
    const StepwiseDirectionArgs& io = a.direction[p.d];
    const Compute dh = stepwise_dh<GruResetBefore, Math>(a, p);
    Storage& next = static_cast<Storage*>(io.second)[p.at];
    next = Math::narrow(0);
    if (!p.live) return;
    Compute seen[3];
    const auto options = stepwise_options<GruResetBefore, Math, true>(a, p, seen);
    Compute saved[5], d[3], carry = 0;
    stepwise_read_saved<GruResetBefore, Math>(a, p, saved);
    Gru::mixed_backward(saved, Math::widen(stepwise_h_before<Math>(a, p)), dh, carry, d, options);
    next = Math::narrow(d[2]);
    Storage* to = element<Storage>(io.d_gates, p.t, p.b, p.unit);
    to[a.H] = Math::narrow(d[1]), to[2 * a.H] = next, to[3 * a.H] = Math::narrow(saved[3]);
    static_cast<Compute*>(io.scratch)[p.at] = carry;
  });
}

// The gradient of the sum of r, after the product of n, and the operand of the product of r and z.
template <class Math>
SF_KERNEL(kBlockThreads)
reset_before_backward(SF_PARAMETER StepwiseArgs a) {
  using Storage = typename Math::Storage;
  using Compute = typename Math::Compute;
  each_place(a, a.H, [&](const StepwisePlace& p) {
    const StepwiseDirectionArgs& io = a.direction[p.d];
    Storage* next = static_cast<Storage*>(io.h) + p.b * 2 * a.H + p.unit;
    next[0] = next[a.H] = Math::narrow(0);
    if (!p.live) return;
    Storage* to = element<Storage>(io.d_gates, p.t, p.b, p.unit);
    const Compute r[1] = {Math::widen(*element<const Storage>(io.saved, p.t, p.b, saved_at(0, p.unit, padded(a.H))))};
    const Storage seen = masked_state<Math>(a.noise, p.d, p.b, p.unit, stepwise_h_before<Math>(a, p));
    Compute d_r[1];
    const Compute d_seen = GruResetBefore::reset_backward(r, Math::widen(seen),
                                                          static_cast<const Compute*>(io.second_products)[p.at], d_r);
    to[0] = Math::narrow(d_r[0]);
    const Compute mask = state_mask<Compute>(a.noise, p.d, p.b, p.unit);
    stepwise_keep_carry<Math>(a, p, static_cast<const Compute*>(io.scratch)[p.at] + d_seen * mask);
    if (!p.anew(a)) next[0] = to[0], next[a.H] = to[a.H];
  });
}

}  // namespace sf::cuda

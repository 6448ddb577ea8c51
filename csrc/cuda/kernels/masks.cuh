// What zoneout and the dropouts do to a unit. The words are those of core/noise.h. The seed is read on the device, so
// that a captured CUDA graph draws new masks when the seed's memory changes.
#pragma once

#include "elements.cuh"

namespace sf::cuda {

template <class Math>
SF_DEVICE typename Math::Compute wide_or_zero(const Rows& rows, int64_t b, int64_t unit) {
  return rows.data ? Math::widen(*element<const typename Math::Storage>(rows, 0, b, unit)) : 0;
}
template <class Math>
SF_DEVICE typename Math::Storage stored_or_zero(const Rows& rows, int64_t b, int64_t unit) {
  return rows.data ? *element<const typename Math::Storage>(rows, 0, b, unit) : Math::narrow(0);
}

// By what a mask multiplies a unit.
template <class Compute>
SF_DEVICE Compute mask_at(const Noise& noise, Masked masked, int direction, int64_t b, int64_t t, int64_t unit) {
  const Mask<Compute> mask = mask_of<Compute>(noise, masked);
  if (mask.threshold == 0) return mask.kept;
  const NoiseKey key = noise_key(*noise.seed, masked, direction, b, t);
  return noise_word(key, static_cast<uint32_t>(unit)) >= mask.threshold ? mask.kept : 0;
}

// The mask of the state that R sees is the same at every step.
template <class Compute>
SF_DEVICE Compute state_mask(const Noise& noise, int direction, int64_t b, int64_t unit) {
  return mask_at<Compute>(noise, Masked::kState, direction, b, 0, unit);
}
template <class Math>
SF_DEVICE typename Math::Storage masked_state(const Noise& noise, int direction, int64_t b, int64_t unit,
                                              typename Math::Storage h) {
  if (!noise.seed || !(noise.state > 0)) return h;
  return Math::narrow(Math::widen(h) * state_mask<typename Math::Compute>(noise, direction, b, unit));
}

// The share of its new state that zoneout gives to a unit: 0 or 1 in training, else 1 - rate.
template <class Compute>
struct NewShare {
  Compute share;

  SF_DEVICE explicit NewShare(Compute share_) : share(share_) {}
  SF_DEVICE NewShare(const Noise& noise, Masked masked, int direction, int64_t b, int64_t t, int64_t unit)
      : share(mask_at<Compute>(noise, masked, direction, b, t, unit)) {}
  // A share of 0 or 1 chooses, since 0 * NaN is NaN.
  SF_DEVICE Compute mix(Compute now, Compute before) const {
    return share == 1 ? now : share == 0 ? before : share * now + (1 - share) * before;
  }
  SF_DEVICE Compute of_new(Compute d) const { return share == 1 ? d : share == 0 ? 0 : share * d; }
  SF_DEVICE Compute of_old(Compute d) const { return share == 1 ? 0 : share == 0 ? d : (1 - share) * d; }
};

}  // namespace sf::cuda
